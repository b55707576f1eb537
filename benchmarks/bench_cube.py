"""Peak memory and time of the cube build at 1, 4 and 16 times the area (aim: memory flat within 30 per cent).

Every build runs in a process of its own. Blocks are 128 pixels wide, so that the smallest region already fills
dask's threads and the largest is a 6 km square with the paper's 26 acquisitions.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (1500, 3000, 6000)  # metres
AIM = 1.3


def measure(function) -> dict:
    """Seconds of a call, and peak resident memory of this process before and after it (MB)."""
    before, start = _peak(), time.perf_counter()
    function()
    return {"seconds": time.perf_counter() - start, "before": before, "peak": _peak()}


def one(step: str, folder: Path, size: int) -> dict:
    """Run one step in this process."""
    from cropnb import cube, twin

    if step == "twin":
        return measure(lambda: twin.write(folder / "region", size=size))
    return measure(lambda: cube.build(folder / "region", folder / "cube.zarr", chunk=128))


def main() -> None:
    rows = {}
    with tempfile.TemporaryDirectory() as root:
        for size in SIZES:
            for step in ("twin", "cube"):
                command = [sys.executable, __file__, step, f"{root}/{size}", str(size)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                rows[step, size] = json.loads(done.stdout)
    print("step   area  seconds  peak MB  of it above start MB")
    for (step, size), row in rows.items():
        area = (size / SIZES[0]) ** 2
        above = row["peak"] - row["before"]
        print(f"{step:5} {area:4.0f} x {row['seconds']:8.1f} {row['peak']:8.0f} {above:8.0f}")
    for size in SIZES[1:]:
        small, large = rows["cube", SIZES[0]], rows["cube", size]
        total = large["peak"] / small["peak"]
        above = (large["peak"] - large["before"]) / (small["peak"] - small["before"])
        verdict = "within" if total <= AIM else "OUTSIDE"
        area = (size / SIZES[0]) ** 2
        print(f"cube, {area:.0f} x area: peak memory {total:.2f} x ({verdict} the aim), above start {above:.2f} x")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(one(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
