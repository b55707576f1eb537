"""Execute one chapter: md:myst to ipynb to papermill, with checked parameters.

The executed notebook appears under its name only when every cell has run. When a cell fails, the notebook as far as
it came is kept in ``failed/`` beside ``executed/``, with the reason in one sentence. A chapter whose data is not on
this machine and cannot be fetched becomes a page that says so.
"""

import argparse
import ast
import json
import os
import re
import sqlite3
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

import artefacts
import nbformat
import papermill
from chapters import ROOT, Cell, ChapterError, check_parameters, defaults, load, notebook_of
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from nbformat.sign import NotebookNotary
from papermill.exceptions import PapermillExecutionError

from cropnb import project

FAILURES = (PapermillExecutionError, DeadKernelError)  # of a cell, of the whole process
# The last cell of every execution: what a page says of its making is asked of the kernel that made it.
ENVIRONMENT = "from cropnb import project\n\nproject.environment()"


def without_results(notebook, title: str, sentence: str):
    """The page of a chapter that could not run: title and introduction without its results, then what is missing."""
    first = next(cell for cell in notebook.cells if cell.cell_type == "markdown")
    first.source = re.sub(r"^.*\{glue:.*\n?", "", first.source, flags=re.MULTILINE)  # a sentence stands on a line
    box = f":::{{admonition}} {title}\n:class: warning\n{sentence}\n:::"
    notebook.cells = [first, nbformat.v4.new_markdown_cell(box)]
    return notebook


def explain(source: Path, error: PapermillExecutionError | DeadKernelError) -> str:
    """Name notebook, cell and error in one line."""
    if isinstance(error, DeadKernelError):
        return (
            f"{source.name}: its process was killed, most likely for want of memory; give it more, or smaller samples."
        )
    message = re.sub(r"\x1b\[[0-9;]*m", "", error.evalue).strip() or "(no message)"
    return f"{source.name}, cell {error.exec_count}: {error.ename}: {message}"


def new_kernel() -> AsyncKernelManager:
    """A kernel to be started, of the Python that runs this, whatever kernels the user has installed.

    It is asynchronous, so that its death is noticed. Its sockets are files: of two kernels that start at once, one may
    lose its TCP port.
    """
    place = f"{gettempdir()}/cropnb-{uuid4().hex[:12]}"
    files = {"transport": "ipc", "ip": place} if len(os.fsencode(place)) < 90 else {}  # a socket's name is short
    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **files)


def trust(notebook) -> None:
    """Sign what was run here as the user's own: JupyterLab runs the scripts of a figure in a trusted notebook only."""
    with suppress(OSError, sqlite3.Error):  # a home that cannot be written to is no reason to fail
        NotebookNotary().sign(notebook)


def execute(source: Path, output: Path, parameters: dict, kernel=None, left_out: str = "", without=()) -> None:
    """Execute a chapter into `output`, in a kernel of its own or in the one of a kernel manager, emptied first.

    `left_out` says why it is not executed, where the region lacks what it needs, and `without` what it has not, so
    that cells which need that are left out.

    Raises
    ------
    PapermillExecutionError
        If a cell fails; what has run is kept in ``failed/<chapter>.ipynb`` beside the folder of `output`.
    """
    for folder in ("failed", "executed"):
        (output.parent.parent / folder).mkdir(parents=True, exist_ok=True)
    failed = output.parent.parent / "failed" / output.name
    reason = failed.with_suffix(".txt")
    started, begin, chapter = datetime.now(UTC), time.perf_counter(), load(source)
    notebook = notebook_of(source, without)
    if kernel is not None:
        notebook.cells.insert(0, nbformat.v4.new_code_cell("get_ipython().reset()"))
    notebook.cells.append(nbformat.v4.new_code_cell(ENVIRONMENT))
    nbformat.write(notebook, failed)
    own = kernel or new_kernel()
    missing, title = [left_out] * bool(left_out), "This chapter is left out for this region"
    try:
        if not missing:
            options = {"progress_bar": False, "cwd": ROOT, "kernel_name": "python3", "log_output": False, "km": own}
            options["start_timeout"] = 600  # seconds: a cold home on a network
            papermill.execute_notebook(failed, failed, parameters, **options)
    except PapermillExecutionError as error:
        if error.ename != "DataUnavailable":
            reason.write_text(f"{explain(source, error)}\nThe notebook as far as it came: {failed}\n")
            raise
        title = "The data of this chapter is not on the machine that built this page"
        rest = "The rest of the book does not depend on it; see {doc}`../book/data`."
        missing = [error.evalue.replace(f"{ROOT}/", ""), rest]
    except DeadKernelError as error:
        reason.write_text(f"{explain(source, error)}\nThe notebook as far as it came: {failed}\n")
        raise
    finally:
        if kernel is None and own.has_kernel:
            run_sync(own.shutdown_kernel)(now=True)
    notebook = nbformat.read(failed, as_version=4)
    if missing:
        environment = project.environment()
        notebook = without_results(notebook_of(source, without), title, "\n\n".join(missing))
    else:
        environment = ast.literal_eval(notebook.cells.pop().outputs[-1].data["text/plain"])
    given = defaults(source) | parameters
    wrote = [Path(given["build"], name) for name in chapter.writes]
    if chapter.network and project.ordered():
        wrote.append(Path(Cell("", chapter, given).run))
    notebook.metadata.setdefault("cropnb", {})["run"] = {
        "parameters": given,
        "date": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - begin, 1),
        **environment,
        "missing": missing[:1],
        "wrote": artefacts.stamps(wrote),
        "without": list(without),
    }
    nbformat.write(notebook, failed)
    trust(notebook)
    os.replace(failed, output)
    reason.unlink(missing_ok=True)


def prepare_environment() -> None:
    """What every kernel inherits."""
    # Pages are rendered without a network: figures must not load their scripts from one.
    os.environ["CROPNB_STATIC"] = "1"
    # A server's own choice, often agg, would leave the pages without figures.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    # Nor do a user's start-up files run before a chapter.
    os.environ["IPYTHONDIR"] = str(ROOT / "_build/ipython")
    os.environ.pop("PYTHONSTARTUP", None)


def _literal(text: str) -> object:
    """A value as JSON or Python writes it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return ast.literal_eval(text)


def typed(source: Path, assignments: list[str]) -> dict[str, object]:
    """``name=value`` words as parameters, each value read as the type of the chapter's default."""
    known, values = defaults(source), {}
    for word in re.split(r"\s+(?=[A-Za-z_]\w*=)", " ".join(assignments).strip()) if assignments else ():
        if not word:
            continue
        name, equals, text = word.partition("=")
        if not equals:
            raise ChapterError(f"'{word}' is no parameter: write name=value.")
        try:
            values[name] = text.strip("'\"") if isinstance(known.get(name), str) else _literal(text)
        except (ValueError, SyntaxError):
            values[name] = text  # the check below says what the chapter takes
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the chapter, notebooks/NN_slug.md")
    parser.add_argument("output", type=Path, help="the executed notebook to write")
    parser.add_argument("--json", default="{}", help="parameters as a JSON object")
    parser.add_argument("--left-out", default="", help="why the chapter becomes a page without results")
    parser.add_argument("--without", default="", help="what the region has not, such as 'twin m-chi'")
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="further parameters")
    arguments = parser.parse_args()
    prepare_environment()
    try:
        source = load(arguments.source.resolve()).source
        given = json.loads(arguments.json) | typed(source, arguments.parameters)
        given = check_parameters(source, given)
        begin = time.perf_counter()
        print(f"  running   {source.stem}", flush=True)
        execute(source, arguments.output, given, None, arguments.left_out, arguments.without.split())
    except ChapterError as error:
        print(f"  refused   {error}", file=sys.stderr)
        return 2
    except FAILURES as error:
        print(f"  failed    {explain(source, error)}", file=sys.stderr)
        return 1
    print(f"  finished  {source.stem} in {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    project.command(main)
