"""Execute cells of the sweep one after another in one kernel, emptied in between, so that its start is paid once.

Every cell leaves a status beside the marker of its batch. One that failed is a status too and stops nothing; one whose
status is of the same code and parameters, and whose run is there, is not repeated.
"""

import json
import os
import sys
import time
from pathlib import Path

import artefacts
from chapters import load, recorded
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from run_chapter import FAILURES, execute, explain, new_kernel, prepare_environment

from cropnb import files


def finished(status: Path, cell: dict) -> bool:
    """Whether the cell was trained by the same code with the same parameters."""
    known = recorded(status)
    there = known and Path(cell["run"], "run.json").exists()
    return bool(there) and not known["failed"] and known["code"] == cell["code"]


def note(status: Path, network: str, cell: dict, seconds: float, failed: str = "") -> None:
    """Leave the status of a cell that was executed as ordered."""
    known = {"cell": cell["name"], "network": network, "run": cell["run"], "code": cell["code"]}
    wrote = artefacts.stamps([] if failed else [Path(cell["run"])])
    files.write_json(status, known | {"seconds": seconds, "failed": failed, "wrote": wrote})


def main(source: Path, marker: Path, cells: list[dict]) -> None:
    prepare_environment()
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # batches run side by side, one a core
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
    chapter, folder = load(source.resolve()), marker.parent
    kernel = new_kernel()
    for cell in cells:
        status = folder / f"{cell['name']}.json"
        if finished(status, cell):
            continue
        if not run_sync(kernel.is_alive)():
            run_sync(kernel.start_kernel)()
        begin, reason = time.perf_counter(), ""
        try:
            output = folder / f"executed/{cell['name']}.ipynb"
            execute(chapter.source, output, cell["parameters"], kernel, without=("reader",))
        except FAILURES as error:
            reason = explain(chapter.source, error)
            if isinstance(error, DeadKernelError):
                run_sync(kernel.shutdown_kernel)(now=True)
        seconds = round(time.perf_counter() - begin, 1)
        note(status, chapter.network, cell, seconds, reason)
        said = f"failed    {cell['name']}: {reason}" if reason else f"trained   {cell['name']} in {seconds:.0f} s"
        print(f"  {said}", flush=True)
    if run_sync(kernel.is_alive)():
        run_sync(kernel.shutdown_kernel)(now=True)
    marker.touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
