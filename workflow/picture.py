"""The map at the head of the README: the figure of a build's map page, small enough for a repository."""

import io
import sys
from pathlib import Path

import nbformat
from chapters import ROOT
from PIL import Image
from render import picture

LARGEST = 300_000  # bytes
TARGET = ROOT / "book/_static/crop_map.png"


def main(build: Path) -> int:
    page = build / "executed/13_crop_map.ipynb"
    png = picture(nbformat.read(page, as_version=4), "fig-crop-map") if page.exists() else None
    if png is None:
        print(f"{page} holds no map: build the book first.", file=sys.stderr)
        return 1
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((1400, 1400))
    image.quantize(64).save(TARGET, optimize=True)
    size = TARGET.stat().st_size
    print(f"{TARGET.relative_to(ROOT)}: {image.width} x {image.height} pixels, {size / 1000:.0f} kB")
    return int(size > LARGEST)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
