"""cropnb.sentinel.snap: the graphs, and products in the shape that SNAP writes."""

import struct
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from cropnb import cube
from cropnb.sentinel import snap

# Orders of operators of the two branches, as the SNAP chains of the literature have them.
POLARIMETRIC = """Read Apply-Orbit-File TOPSAR-Split Calibration TOPSAR-Deburst TOPSAR-Merge Polarimetric-Matrices
    Polarimetric-Speckle-Filter CP-Decomposition Terrain-Correction Write"""
BACKSCATTER = """Read Apply-Orbit-File TOPSAR-Split ThermalNoiseRemoval Calibration TOPSAR-Deburst TOPSAR-Merge
    Multilook CreateStack Multi-Temporal-Speckle-Filter Terrain-Correction LinearToFromdB BandMaths Write"""
DATES = ["2017-05-05", "2017-05-17", "2017-05-29"]
GRAPHS = {"polarimetric": (), "backscatter": DATES}


def nodes(kind):
    root = ElementTree.fromstring(snap.graph(kind, GRAPHS[kind]))
    return {node.get("id"): node for node in root.findall("node")}, root


def chains(found, name):
    """Every path of operators from a reader to the node `name`; never ends where the graph has a circle."""
    sources = [each.get("refid") for each in found[name].find("sources")]
    before = [chain for source in sources for chain in chains(found, source)] or [[]]
    return [[*chain, found[name].findtext("operator")] for chain in before]


@pytest.mark.parametrize(
    ("kind", "order", "paths"), [("polarimetric", POLARIMETRIC, 3), ("backscatter", BACKSCATTER, 9)]
)
def test_graph_runs_the_operators_in_order(kind, order, paths):
    found, root = nodes(kind)
    assert root.tag == "graph"
    assert root.findtext("version") == "1.0"
    assert len(found) == len(root.findall("node"))  # no identifier twice
    refids = {source.get("refid") for node in found.values() for source in node.find("sources")}
    assert refids <= set(found)
    assert set(found) - refids == {"Write"}  # nothing made for nobody
    every = chains(found, "Write")
    assert every == [order.split()] * paths  # a path a sub-swath and date


@pytest.mark.parametrize("kind", GRAPHS)
def test_sources_of_an_operator_have_names_of_their_own(kind):
    for node in nodes(kind)[0].values():
        names = [source.tag for source in node.find("sources")]
        assert names == ["sourceProduct", *(f"sourceProduct.{i}" for i in range(1, len(names)))][: len(names)]


def test_polarimetric_graph_keeps_the_phase_and_names_its_filters():
    found, root = nodes("polarimetric")
    calibrations = [node for node in found.values() if node.findtext("operator") == "Calibration"]
    assert [node.findtext("parameters/outputImageInComplex") for node in calibrations] == ["true"] * 3
    swaths = [node.findtext("parameters/subswath") for node in found.values()]
    assert sorted(filter(None, swaths)) == ["IW1", "IW2", "IW3"]
    assert found["Polarimetric-Matrices"].findtext("parameters/matrix") == "C2"
    assert found["Polarimetric-Speckle-Filter"].findtext("parameters/filter") == "Refined Lee Filter"
    assert found["CP-Decomposition"].findtext("parameters/decomposition") == "M-Chi Decomposition"
    assert found["Terrain-Correction"].findtext("parameters/pixelSpacingInMeter") == "10.0"
    text = "".join(root.itertext())
    assert all(f"${{{name}}}" in text for name in ("input", "output", "crs"))


def test_backscatter_graph_asks_for_every_product_and_names_every_date():
    found, root = nodes("backscatter")
    files = [node.findtext("parameters/file") for node in found.values() if node.findtext("operator") == "Read"]
    assert files == ["${input1}", "${input2}", "${input3}"]
    bands = {band.findtext("name"): band.findtext("expression") for band in root.iter("targetBand")}
    assert bands["cross_ratio_db_05May2017"] == "Sigma0_VH_mst_05May2017_db - Sigma0_VV_mst_05May2017_db"
    assert bands["cross_ratio_db_29May2017"] == "Sigma0_VH_slv3_29May2017_db - Sigma0_VV_slv4_29May2017_db"
    assert len(bands) == 9


@pytest.mark.parametrize(("kind", "dates"), [("interferogram", ()), ("backscatter", ()), ("polarimetric", DATES)])
def test_unknown_graph(kind, dates):
    with pytest.raises(ValueError, match=f"No graph '{kind}'"):
        snap.graph(kind, dates)


# Products

NORTH, WEST, SHAPE = 5330000, 350000, (6, 8)
GRID = GeoBox.from_bbox((WEST, NORTH - 60, WEST + 80, NORTH), "EPSG:32652", resolution=10)


def dim_text(bands, *, version="10.0.0", start="05-MAY-2017 21:42:13.123456", corner=(WEST, NORTH), wkt=None, extra=""):
    wkt = rasterio.crs.CRS.from_epsg(32652).to_wkt() if wkt is None else wkt
    infos = "".join(
        f"<Spectral_Band_Info><BAND_INDEX>{i}</BAND_INDEX><BAND_NAME>{name}</BAND_NAME>"
        "<DATA_TYPE>float32</DATA_TYPE></Spectral_Band_Info>"
        for i, name in enumerate(bands)
    )
    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>{extra}
<Dimap_Document name="product.dim">
  <Production><PRODUCT_SCENE_RASTER_START_TIME>{start}</PRODUCT_SCENE_RASTER_START_TIME></Production>
  <Coordinate_Reference_System><WKT>
    {wkt}
  </WKT></Coordinate_Reference_System>
  <Geoposition>
    <IMAGE_TO_MODEL_TRANSFORM>10.0,0.0,0.0,-10.0,{corner[0]},{corner[1]}</IMAGE_TO_MODEL_TRANSFORM>
  </Geoposition>
  <Image_Interpretation>{infos}</Image_Interpretation>
  <Dataset_Sources><MDElem name="metadata">
    <MDElem name="Abstracted_Metadata"><MDATTR name="REL_ORBIT" type="int32">134</MDATTR></MDElem>
    <MDElem name="Processing_Graph"><MDElem name="node.8">
      <MDATTR name="operator" type="ascii">CP-Decomposition</MDATTR>
      <MDATTR name="moduleVersion" type="ascii">{version}</MDATTR>
    </MDElem></MDElem>
  </MDElem></Dataset_Sources>
</Dimap_Document>
"""


def write_dim(path, bands, **options):
    """A BEAM-DIMAP product: header, and a big-endian image with an ENVI header for every band."""
    path.write_text(dim_text(bands, **options), "ISO-8859-1")
    folder = path.with_suffix(".data")
    folder.mkdir()
    for name, values in bands.items():
        (folder / f"{name}.img").write_bytes(values.astype(">f4").tobytes())
        (folder / f"{name}.hdr").write_text(
            f"ENVI\ndescription = {{{name}}}\nsamples = {values.shape[1]}\nlines = {values.shape[0]}\nbands = 1\n"
            "header offset = 0\nfile type = ENVI Standard\ndata type = 4\ninterleave = bsq\nbyte order = 1\n"
            f"map info = {{UTM, 1.0, 1.0, {WEST}, {NORTH}, 10.0, 10.0, 52, North, WGS-84, units=Meters}}\n"
        )
    return path


def write_tif(path, bands, text):
    """A GeoTIFF whose directory has SNAP's tag 65000 as well."""
    profile = {"driver": "GTiff", "count": len(bands), "height": SHAPE[0], "width": SHAPE[1], "dtype": "float32"}
    with rasterio.open(path, "w", crs=GRID.crs.to_wkt(), transform=GRID.affine, **profile) as file:
        file.write(np.stack(list(bands.values())).astype("float32"))
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    entries = bytes(content[start + 2 : start + 2 + 12 * count])
    text = text.encode() + b"\0"
    place = len(content)
    content += text + b"\0" * (len(text) % 2)
    struct.pack_into("<I", content, 4, len(content))
    content += struct.pack("<H", count + 1) + entries + struct.pack("<HHII", 65000, 2, len(text), place) + b"\0" * 4
    path.write_bytes(content)
    return path


@pytest.fixture
def m_chi():
    rng = np.random.default_rng(3)
    bands = {name: rng.uniform(0.05, 0.4, SHAPE).astype("float32") for name in ("MChi_r", "MChi_g", "MChi_b")}
    for values in bands.values():
        values[0, 0] = 0
    return bands


def check_m_chi(product, bands):
    assert product.sizes == {"time": 1, "y": 6, "x": 8}
    assert set(product) == {"ps", "pd", "pv"}
    assert product.time.values[0] == np.datetime64("2017-05-05T21:42:13.123456")
    assert product.attrs == {"orbit_track": "134"}
    assert product.rio.crs.to_epsg() == 32652
    assert (product.x[0], product.y[0]) == (WEST + 5, NORTH - 5)
    assert product.ps.attrs == cube.FEATURES["sar"]["ps"]
    for feature, name in (("pd", "MChi_r"), ("pv", "MChi_g"), ("ps", "MChi_b")):
        np.testing.assert_array_equal(product[feature][0], np.where(bands[name] == 0, np.nan, bands[name]))


def test_m_chi_of_a_dimap(tmp_path, m_chi):
    check_m_chi(snap.read(write_dim(tmp_path / "a.dim", m_chi)), m_chi)


def test_m_chi_of_a_geotiff(tmp_path, m_chi):
    check_m_chi(snap.read(write_tif(tmp_path / "a.tif", m_chi, dim_text(m_chi))), m_chi)


@pytest.mark.parametrize("version", ["7.0.2", "8.0.9", "9.0.0"])
def test_powers_become_amplitudes_of_the_sign_used_since(tmp_path, m_chi, version):
    new = snap.read(write_dim(tmp_path / "new.dim", m_chi, version="9.0.1"))
    # The older convention has S4 of the other sign, so the two bounces changed places.
    old = {"MChi_r": m_chi["MChi_b"] ** 2, "MChi_g": m_chi["MChi_g"] ** 2, "MChi_b": m_chi["MChi_r"] ** 2}
    read = snap.read(write_dim(tmp_path / "old.dim", old, version=version))
    for name in new:
        np.testing.assert_allclose(read[name], new[name], rtol=1e-6)
        assert read[name].attrs == new[name].attrs


@pytest.mark.parametrize("version", ["6.0.6", ""])
def test_m_chi_of_an_unknown_version_is_refused_and_can_be_told(tmp_path, m_chi, version):
    path = write_dim(tmp_path / "a.dim", m_chi, version=version)
    with pytest.raises(ValueError, match=r"a\.dim does not come from .*powers=False"):
        snap.read(path)
    check_m_chi(snap.read(path, powers=False), m_chi)
    assert float(snap.read(path, powers=True).pv[0, 1, 1]) == pytest.approx(m_chi["MChi_g"][1, 1] ** 0.5)


def test_a_stack_of_dates(tmp_path):
    rng = np.random.default_rng(4)
    names = ["Sigma0_VH_mst_05May2017_db", "Sigma0_VV_mst_05May2017_db", "Sigma0_VH_slv1_17May2017_db"]
    bands = {name: rng.uniform(-25, -8, SHAPE).astype("float32") for name in [*names, "Sigma0_VV_slv2_17May2017_db"]}
    product = snap.read(write_dim(tmp_path / "a.dim", bands))
    assert list(pd.DatetimeIndex(product.time).strftime("%Y-%m-%dT%H:%M")) == ["2017-05-05T21:42", "2017-05-17T21:42"]
    np.testing.assert_array_equal(product.vh_db[1], bands["Sigma0_VH_slv1_17May2017_db"])
    vh, vv = bands["Sigma0_VH_mst_05May2017_db"], bands["Sigma0_VV_mst_05May2017_db"]
    np.testing.assert_allclose(product.cross_ratio_db[0], vh - vv, rtol=1e-6)
    assert product.cross_ratio_db.attrs == cube.FEATURES["sar"]["cross_ratio_db"]


def test_bands_of_the_backscatter_graph_are_read(tmp_path):
    _, root = nodes("backscatter")
    bands = {band.findtext("name"): np.full(SHAPE, -10 - i) for i, band in enumerate(root.iter("targetBand"))}
    product = snap.read(write_dim(tmp_path / "a.dim", bands))
    assert set(product) == {"vv_db", "vh_db", "cross_ratio_db"}
    np.testing.assert_array_equal(product.vh_db[:, 2, 2], [-11, -14, -17])


def test_both_branches_become_acquisitions_of_a_region(tmp_path, m_chi):
    decibels = {f"{name}_db_05May2017": np.full(SHAPE, value) for name, value in [("vv", -9), ("vh", -16)]}
    products = [
        snap.read(write_dim(tmp_path / "a.dim", m_chi)),
        snap.read(write_dim(tmp_path / "b.dim", decibels, start="05-MAY-2017 21:41:58.0")),
    ]
    (path,) = snap.write(products, GRID, tmp_path)
    assert path == tmp_path / "sar" / "S1_20170505T2142_FEATURES.tif"
    with rasterio.open(path) as file:
        assert file.descriptions == ("vv_db", "vh_db", "cross_ratio_db", "ps", "pd", "pv")
        assert file.crs.to_epsg() == 32652
        assert file.transform == GRID.affine
        assert file.tags()["orbit_track"] == "134"
        assert np.isnan(file.nodata)
        np.testing.assert_array_equal(file.read(5), np.where(m_chi["MChi_r"] == 0, np.nan, m_chi["MChi_r"]))
    table = cube._radar_acquisitions(tmp_path / "sar")
    assert [(row[0], row[2]) for row in table] == [(pd.Timestamp("2017-05-05T21:42"), "134")]


def test_a_grid_between_pixels_is_interpolated_and_one_beside_is_refused(tmp_path):
    plane = np.add.outer(np.arange(6.0), 10 * np.arange(8.0)).astype("float32") + 1
    product = snap.read(write_dim(tmp_path / "a.dim", {"vv_db": plane}, corner=(WEST - 5, NORTH)))
    (path,) = snap.write([product], GRID, tmp_path)
    with rasterio.open(path) as file:
        np.testing.assert_allclose(file.read(1)[:, 1:6], (plane[:, 1:6] + plane[:, 2:7]) / 2, rtol=1e-6)
    whole = GRID.pad(2)  # the same pixels, more of them
    (path,) = snap.write([snap.read(write_dim(tmp_path / "b.dim", {"vv_db": plane}))], whole, tmp_path / "whole")
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(1)[2:-2, 2:-2], plane)
        assert np.isnan(file.read(1)[:2]).all()
    beside = GeoBox.from_bbox((WEST + 9000, NORTH - 60, WEST + 9080, NORTH), "EPSG:32652", resolution=10)
    with pytest.raises(ValueError, match="2017-05-05 has no pixel in the region's grid"):
        snap.write([product], beside, tmp_path / "beside")
    assert not (tmp_path / "beside").exists()


# Bad input


def test_a_missing_product(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no SNAP product"):
        snap.read(tmp_path / "a.dim")


def test_a_missing_image(tmp_path, m_chi):
    path = write_dim(tmp_path / "a.dim", m_chi)
    (path.with_suffix(".data") / "MChi_g.img").unlink()
    with pytest.raises(FileNotFoundError, match=r"MChi_g\.img is missing: keep the \.data folder"):
        snap.read(path)


def test_an_image_cut_short(tmp_path, m_chi):
    path = write_dim(tmp_path / "a.dim", m_chi)
    image = path.with_suffix(".data") / "MChi_g.img"
    image.write_bytes(image.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"MChi_g\.img is cut short"):
        snap.read(path)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;">]>'
READER = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize("trick", [BOMB, READER])
def test_a_header_with_entities(tmp_path, m_chi, trick):
    with pytest.raises(ValueError, match="document type"):
        snap.read(write_dim(tmp_path / "a.dim", m_chi, extra=trick))
    with pytest.raises(ValueError, match=r"a\.tif has no header of SNAP"):
        snap.read(write_tif(tmp_path / "a.tif", m_chi, dim_text(m_chi, extra=trick)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": ""}, "does not say when it was taken"),
        ({"start": "2017-05-05"}, "does not say when it was taken"),
        ({"wkt": ""}, "or is in radar geometry: let the graph end with Terrain-Correction"),
    ],
)
def test_a_header_that_lacks_something(tmp_path, m_chi, options, message):
    with pytest.raises(ValueError, match=message):
        snap.read(write_dim(tmp_path / "a.dim", m_chi, **options))


def test_a_product_without_bands(tmp_path):
    with pytest.raises(ValueError, match="has no bands"):
        snap.read(write_dim(tmp_path / "a.dim", {}))


@pytest.mark.parametrize("name", ["Sigma0_VV", "C11", "MChi_r_05Mai2017", "pd"])
def test_an_unknown_band(tmp_path, name):
    path = write_dim(tmp_path / "a.dim", {name: np.ones(SHAPE)})
    with pytest.raises(ValueError, match=f"has the band '{name}': known are MChi_r"):
        snap.read(path)


@pytest.mark.parametrize("content", [b"", b"II*\0", b"no TIFF at all", b"II*\0\xff\xff\xff\x7f"])
def test_a_geotiff_that_is_none_or_cut_short(tmp_path, content):
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif has no header of SNAP in it"):
        snap.read(path)


def test_a_geotiff_of_another_program(tmp_path, m_chi):
    path = write_tif(tmp_path / "a.tif", m_chi, dim_text(m_chi))
    with rasterio.open(path) as file, rasterio.open(tmp_path / "b.tif", "w", **file.profile) as other:
        other.write(file.read())
    with pytest.raises(ValueError, match=r"b\.tif has no header of SNAP in it"):
        snap.read(tmp_path / "b.tif")
