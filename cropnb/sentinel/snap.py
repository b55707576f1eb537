"""The route through ESA's SNAP, for those who have it: graphs for its `gpt`, and a reader for what it writes.

    gpt graph.xml -Pinput=PRODUCT.zip -Poutput=S1_20170505.dim -Pcrs=EPSG:32652

`graph` gives the graph, `read` what gpt wrote, `write` puts it on the region's grid. SNAP itself was not at hand:
operators, parameters and the names of bands follow its documentation and sources, and the files of the tests are
written in its shape.
"""

import calendar
import copy
import re
import struct
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import rasterio
import rioxarray  # noqa: F401, the accessor .rio
import xarray as xr
from odc.geo.geobox import GeoBox
from PIL import TiffImagePlugin
from rasterio.enums import Resampling

from ..cube import FEATURES
from .files import new_geotiff, read_xml

# SNAP's names: red, green, blue of the usual picture are double bounce, volume, single bounce.
BANDS = {"MChi_r": "pd", "MChi_g": "pv", "MChi_b": "ps", "Sigma0_VV_db": "vv_db", "Sigma0_VH_db": "vh_db"}
BANDS |= {name: name for name in FEATURES["sar"] if name.endswith("_db")}
MONTHS = "|".join(calendar.month_abbr[1:])
STACK = re.compile(rf"(?:_(?:mst|slv\d+))?_(\d\d(?:{MONTHS})\d{{4}})(?=_db$|$)")  # in a name: a date of a stack
DIMAP_TAG = 65000  # of a GeoTIFF: the header that else is the .dim
AMPLITUDES_SINCE, POWERS_SINCE = (9, 0, 1), (7, 0, 2)  # versions of SNAP


def graph(kind: str, dates: Sequence = ()) -> str:
    """Text of a gpt graph: "polarimetric" for one acquisition, "backscatter" for those of one track.

    `dates` are those of the acquisitions that -Pinput1, -Pinput2, ... name, in the same order.
    Raises ValueError for another kind and for a backscatter graph without dates.
    """
    if kind not in ("polarimetric", "backscatter") or (kind == "backscatter") != bool(len(dates)):
        raise ValueError(f"No graph {kind!r} of {len(dates)} dates: 'polarimetric', or 'backscatter' with its dates.")
    text = resources.files("cropnb").joinpath(f"resources/snap/{kind}.xml").read_text("utf-8")
    if kind == "polarimetric":
        return text
    root = ElementTree.fromstring(text)
    nodes = {node.get("id"): node for node in root.findall("node")}
    single = list(nodes)[: list(nodes).index("CreateStack")]
    stack, bands = nodes["CreateStack"].find("sources"), nodes["BandMaths"].find("parameters/targetBands")
    patterns, place = [*bands], list(root).index(nodes["Read"])
    stack.clear()
    bands.clear()
    for each in (nodes[name] for name in single):
        root.remove(each)
    for i, date in enumerate(dates):
        for name in single:
            node = _filled(nodes[name], input=f"${{input{i + 1}}}")
            node.set("id", f"{name}-{i + 1}")
            for source in node.find("sources"):
                source.set("refid", f"{source.get('refid')}-{i + 1}")
            root.insert(place, node)
            place += 1
        ElementTree.SubElement(stack, f"sourceProduct.{i}" if i else "sourceProduct", refid=f"{single[-1]}-{i + 1}")
        # CreateStack counts bands of the secondary products, VH before VV.
        day = f"{pd.Timestamp(date):%d%b%Y}"
        roles = (f"slv{2 * i - 1}", f"slv{2 * i}") if i else ("mst", "mst")
        vh, vv = (f"Sigma0_{name}_{role}_{day}_db" for name, role in zip(("VH", "VV"), roles, strict=True))
        bands.extend(_filled(pattern, date=day, vv=vv, vh=vh) for pattern in patterns)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode")


def _filled(element: ElementTree.Element, **values: str) -> ElementTree.Element:
    element = copy.deepcopy(element)
    for each in element.iter():
        each.text = Template(each.text).safe_substitute(values) if each.text else each.text
    return element


def read(path: str | Path, *, powers: bool | None = None) -> xr.Dataset:
    """Features (time, y, x) of a product that SNAP wrote, BEAM-DIMAP (.dim) or GeoTIFF; NaN where SNAP has 0.

    Variables are named as in `cropnb.cube.FEATURES`; attribute `orbit_track`. In a stack, the time of day is that of
    the first acquisition: dates of one track are taken at the same time.

    Parameters
    ----------
    powers
        Whether the m-chi bands are powers with the other sign of S4, as SNAP 7.0.2 to 9.0.0 wrote them: they become
        amplitudes of the sign that SNAP has since, single and double bounce changed over. None takes the version from
        the file.

    Raises
    ------
    FileNotFoundError
        For a missing product or image.
    ValueError
        For a header that is not SNAP's or has a document type, an unknown band, no map projection, no time, and m-chi
        bands of an unknown or too old version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no SNAP product {path}: give the .dim or .tif file.")
    header = _header(path)
    wkt, numbers = (header.findtext(f".//{tag}", "").strip() for tag in ("WKT", "IMAGE_TO_MODEL_TRANSFORM"))
    if not (wkt and numbers and header.find(".//BAND_NAME") is not None):
        raise ValueError(f"{path} has no bands or is in radar geometry: let the graph end with Terrain-Correction.")
    planes = [_plane(path, header, i, band.text) for i, band in enumerate(header.iterfind(".//BAND_NAME"))]
    product = xr.merge(planes, join="outer", compat="no_conflicts", combine_attrs="drop")
    m_chi = [name for name in ("ps", "pd", "pv") if name in product]
    if m_chi and (_are_powers(path, header) if powers is None else powers):
        other = {name: new for name, new in (("ps", "pd"), ("pd", "ps")) if name in m_chi}
        product = product.assign(np.sqrt(product[m_chi])).rename(other)
    if {"vv_db", "vh_db"} <= set(product) and "cross_ratio_db" not in product:
        product["cross_ratio_db"] = product.vh_db - product.vv_db
    for name in product.data_vars:
        product[name].attrs = dict(FEATURES["sar"][name])
    xx, yx, xy, yy, x, y = (float(number) for number in numbers.split(","))
    grid = GeoBox((product.sizes["y"], product.sizes["x"]), rasterio.Affine(xx, xy, x, yx, yy, y), wkt)
    axes = dict(zip(("y", "x"), (axis.values for axis in grid.coordinates.values()), strict=True))
    return product.assign_coords(axes).assign_attrs(orbit_track=_attribute(header, "REL_ORBIT")).rio.write_crs(grid.crs)


def write(products: Sequence[xr.Dataset], grid: GeoBox, folder: str | Path) -> list[Path]:
    """Write products of `read`, of any branches, as folder/sar/S1_<time>_FEATURES.tif on the region's grid.

    Products of one track and day become one file. Pixels are taken as they are where SNAP's grid falls together with
    the region's, and between pixels (bilinear) where not.
    Raises ValueError for a product that does not touch the grid.
    """
    found: dict[tuple, list] = {}
    for product in products:
        for time in pd.DatetimeIndex(product.time):
            found.setdefault((time.date(), product.attrs["orbit_track"]), []).append((time, product))
    paths = []
    for (_, track), group in sorted(found.items(), key=lambda each: each[0]):
        bands = {name: plane for time, product in group for name, plane in _on_grid(product, time, grid).items()}
        names = [name for name in FEATURES["sar"] if name in bands]
        paths.append(Path(folder, "sar", f"S1_{group[0][0]:%Y%m%dT%H%M}_FEATURES.tif"))
        with new_geotiff(paths[-1], grid, len(names), "float32", np.nan, orbit_track=track) as file:
            file.write(np.stack([bands[name].values for name in names]).astype("float32"))
            file.descriptions = names
    return paths


def _on_grid(product: xr.Dataset, time: pd.Timestamp, grid: GeoBox) -> xr.Dataset:
    shift = ~grid.affine * (product.rio.transform() * (0, 0))
    same = product.rio.crs == grid.crs and np.allclose(product.rio.resolution(), (grid.affine.a, grid.affine.e))
    method = Resampling.nearest if same and np.allclose(shift, np.round(shift), atol=1e-3) else Resampling.bilinear
    place = {"dst_crs": grid.crs, "shape": grid.shape, "transform": grid.affine, "nodata": np.nan}
    here = product.sel(time=time, drop=True).rio.reproject(**place, resampling=method)
    if not any(np.isfinite(plane).any() for plane in here.values()):
        raise ValueError(f"SNAP's product of {time:%Y-%m-%d} has no pixel in the region's grid: choose another one.")
    return here


def _header(path: Path) -> ElementTree.Element:
    if path.suffix == ".dim":
        return read_xml(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # of a directory cut short
            first = file.read(8)
            directory = TiffImagePlugin.ImageFileDirectory_v2(first + (file.read(8) if first[2:3] == b"+" else b""))
            file.seek(directory.next)
            directory.load(file)
        if "<!DOCTYPE" not in directory[DIMAP_TAG]:
            return ElementTree.fromstring(directory[DIMAP_TAG])
    except (SyntaxError, KeyError, TypeError, IndexError, struct.error):  # of XML: a syntax error
        pass
    raise ValueError(f"{path} has no header of SNAP in it: write BEAM-DIMAP, or GeoTIFF with SNAP itself.")


def _attribute(header: ElementTree.Element, name: str) -> str:
    return header.findtext(f".//MDElem[@name='Abstracted_Metadata']/MDATTR[@name='{name}']", "").strip()


def _plane(path: Path, header: ElementTree.Element, number: int, name: str) -> xr.DataArray:
    """A band (time=1, y, x) by the name of its feature, NaN where it is 0."""
    feature, date = BANDS.get(STACK.sub("", name)), STACK.search(name)
    if not feature:
        raise ValueError(f"{path} has the band {name!r}: known are {', '.join(BANDS)}, also with the date of a stack.")
    start = header.findtext(".//PRODUCT_SCENE_RASTER_START_TIME", "").strip()
    time = pd.to_datetime(start, format="%d-%b-%Y %H:%M:%S.%f", errors="coerce")
    if pd.isna(time):
        raise ValueError(f"{path} does not say when it was taken ({start!r}): keep SNAP's metadata.")
    if date:
        time = pd.to_datetime(date[1], format="%d%b%Y") + (time - time.normalize())
    image = path if path.suffix != ".dim" else path.with_suffix(".data") / f"{name}.img"
    if not image.is_file():
        raise FileNotFoundError(f"{image} is missing: keep the .data folder beside {path.name}.")
    try:
        with rasterio.open(image) as file:
            values = file.read(number + 1 if image == path else 1).astype("float32")
            if image != path and image.stat().st_size < values.size * np.dtype(file.dtypes[0]).itemsize:
                values = None  # GDAL makes up what a raw image lacks
    except rasterio.errors.RasterioError:
        values = None
    if values is None:
        raise ValueError(f"{image} is cut short or damaged: let SNAP write it again.")
    return xr.DataArray(np.where(values == 0, np.nan, values)[None], {"time": [time]}, ("time", "y", "x"), name=feature)


def _are_powers(path: Path, header: ElementTree.Element) -> bool:
    """Whether the version of SNAP that made the m-chi bands wrote powers."""
    for node in header.iterfind(".//MDElem[@name='Processing_Graph']/MDElem"):
        values = {each.get("name"): each.text or "" for each in node.iterfind("MDATTR")}
        version = tuple(int(part) for part in re.findall(r"\d+", values.get("moduleVersion", ""))[:3])
        if values.get("operator") == "CP-Decomposition" and version >= POWERS_SINCE:
            return version < AMPLITUDES_SINCE
    raise ValueError(
        f"{path} does not come from a CP-Decomposition of SNAP 7.0.2 or later, which tells amplitudes from powers: "
        "say powers=False for SNAP 9.0.1 or later, powers=True for 7.0.2 to 9.0.0, and make it anew for an older one."
    )
