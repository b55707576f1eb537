"""Sphinx extension of the book: interactive figures without a network, no request to one, launch buttons, clean labels.

A page that holds an interactive figure (see `cropnb.plotting.show`) gets the BokehJS of the installed package, and
only such a page. Jupyter Book always loads sphinx-thebe, whose scripts declare addresses on the net: they are left out.
Launch buttons of chapters open the Markdown source, since git holds no executed notebook.
"""

from pathlib import Path

import bokeh
from sphinx.util.fileutil import copy_asset_file

BOKEH = "bokeh.min.js"


def choose_scripts(app, pagename, templatename, context, doctree):
    """Ask for BokehJS on pages that need it, before the figures' own scripts run; drop what it does not need."""
    body, scripts = context.get("body", ""), context["script_files"]
    if "cropnb-interactive" in body:
        app.add_js_file(BOKEH, priority=100)
    unused = ["thebe"] + ["mathjax"] * ('class="math' not in body)
    scripts[:] = [s for s in scripts if not any(name in f"{s.filename}{s.attributes}" for name in unused)]


def mend_labels(app, pagename, templatename, context, doctree):
    """Take away what a screen reader would stumble over in the markup of docutils and MyST-NB."""
    for wrong, right in (
        ('<div role="list" class="citation-list">', '<div class="citation-list">'),  # its entries are no list items
        (' aria-label="Toggle hidden content"', ""),  # would hide the words of the button, "Show code cell source"
    ):
        context["body"] = context.get("body", "").replace(wrong, right)


def launch_with_repository(app, config):
    """Leave out launch buttons while the repository has no address: the theme's links would lack it."""
    if not config.html_theme_options.get("repository_url"):
        config.html_theme_options["launch_buttons"] = {}


def launch_source(app, pagename, templatename, context, doctree):
    """Let the theme's launch buttons of a chapter open its source."""
    for group in context["header_buttons"]:
        if group.get("label") == "launch-buttons":
            for button in group["buttons"]:
                button["url"] = button["url"].replace(f"{pagename}.ipynb", f"{pagename}.md")


def finish_scripts(app, exception):
    """Put BokehJS beside the other static files, and empty the script that draws icons which the font draws too."""
    if exception is None and app.builder.format == "html":
        static = Path(app.outdir) / "_static"
        copy_asset_file(str(Path(bokeh.__file__).parent / "server/static/js" / BOKEH), str(static))
        (static / "scripts/fontawesome.js").write_text("")


def setup(app):
    app.connect("config-inited", launch_with_repository)
    app.connect("html-page-context", choose_scripts)
    app.connect("html-page-context", mend_labels)
    app.connect("html-page-context", launch_source, priority=600)  # the theme adds its buttons at 501
    app.connect("build-finished", finish_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
