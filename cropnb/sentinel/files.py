"""What every reader of a SAFE product shares: XML without tricks, and files written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import rasterio


def check_xml(path: Path) -> None:
    """Raise ValueError for XML that is cut short or declares a document type, the only place for entities.

    Products of the ESA have none; a declared entity can read other files or grow without bound.
    """

    def refuse(name, *_):
        raise ValueError(f"{path} declares the document type {name!r}, which no SAFE has: do not use this product.")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise ValueError(f"{path} is not whole XML ({error}): fetch the product again.") from None


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file that `check_xml` finds harmless."""
    check_xml(path)
    return ElementTree.parse(path).getroot()


@contextmanager
def new_geotiff(path: Path, grid, count: int, dtype: str, nodata: float, **tags) -> Iterator[rasterio.io.DatasetWriter]:
    """Write a GeoTIFF on `grid` (GeoBox) to a temporary name, renamed when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    profile = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": count,
        "dtype": dtype,
        "crs": str(grid.crs),
        "transform": grid.affine,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "bigtiff": "IF_SAFER",
    }
    try:
        with rasterio.open(partial, "w", **profile) as file:
            file.update_tags(**tags)
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def other_products(path: Path, grid, product: str, **tags) -> str:
    """Names of the products that a file of the same day already holds; none if `product` is among them.

    Then, or without a file, it is to be written anew. Raises ValueError for one on another grid (GeoBox) or whose
    tags have other values.
    """
    if not path.exists():
        return ""
    with rasterio.open(path) as file:
        held, place = file.tags(), (file.shape, file.transform, file.crs)
    if product in (products := held.get("product", "")).split():
        return ""
    if place != (tuple(grid.shape), grid.affine, rasterio.CRS.from_user_input(str(grid.crs))):
        raise ValueError(f"{path} is on another grid: remove it and write all products of its day again.")
    for key, value in tags.items():
        if held.get(key) != str(value):
            raise ValueError(
                f"{path} was written with {key} = {held.get(key)}, not {value}: remove it and write all products of "
                f"its day again."
            )
    return products
