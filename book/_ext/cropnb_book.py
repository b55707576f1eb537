"""Sphinx extension of the book: interactive figures without a network, and no request to one.

A page that holds an interactive figure (see `cropnb.plotting.show`) gets the BokehJS of the installed package, and
only such a page. Jupyter Book always loads sphinx-thebe, whose scripts declare addresses on the net: they are left out.
"""

from pathlib import Path

import bokeh
from sphinx.util.fileutil import copy_asset_file

BOKEH = "bokeh.min.js"


def choose_scripts(app, pagename, templatename, context, doctree):
    """Ask for BokehJS on pages that need it, before the figures' own scripts run; leave thebe out."""
    if "cropnb-interactive" in context.get("body", ""):
        app.add_js_file(BOKEH, priority=100)
    scripts = context["script_files"]
    scripts[:] = [script for script in scripts if "thebe" not in f"{script.filename}{script.attributes}"]


def copy_bokeh(app, exception):
    """Put BokehJS beside the other static files."""
    if exception is None and app.builder.format == "html":
        source = Path(bokeh.__file__).parent / "server/static/js" / BOKEH
        copy_asset_file(str(source), str(Path(app.outdir) / "_static"))


def setup(app):
    app.connect("html-page-context", choose_scripts)
    app.connect("build-finished", copy_bokeh)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
