"""m-chi against independent numbers, its identities, and equality in blocks and in one piece."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cropnb import polarimetry

DATA = Path(__file__).parent / "data"
AMPLITUDES = {"ps": "Ps", "pd": "Pd", "pv": "Pv"}
finite = st.floats(-1e3, 1e3, allow_nan=False, width=32)


def slc(array, name):
    return xr.DataArray(array, dims=("y", "x"), name=name)


@st.composite
def scenes(draw):
    """A pair of complex images whose values a float32 can hold."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9))
    parts = [draw(hnp.arrays(np.float64, shape, elements=finite)) for _ in range(4)]
    return slc(parts[0] + 1j * parts[1], "VV"), slc(parts[2] + 1j * parts[3], "VH")


@pytest.fixture(scope="module", params=["s1_crop_like", "single_bounce", "zero_nan"])
def golden(request):
    with np.load(DATA / f"mchi_{request.param}.npz") as file:
        arrays = {name: file[name] for name in file.files}
    # Stored once: what both conventions share.
    shared = {name.replace("snap", "raney"): array for name, array in arrays.items() if name.startswith("snap")}
    return shared | arrays


def rows_of(golden):
    """The rows that a golden speaks of: some end two rows before their images, which a 5x5 window would clip."""
    return slice(len(golden["w5_C11"]))


def speckle(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((2, *shape)) + 1j * rng.standard_normal((2, *shape))) * [[[1.0]], [[0.5]]]


@pytest.mark.parametrize("convention", ["snap", "raney"])
def test_goldens_in_float64(golden, convention):
    vv, vh = slc(golden["VV"], "VV"), slc(golden["VH"], "VH")
    c2 = polarimetry.window_mean(polarimetry.covariance(vv, vh), 5).isel(y=rows_of(golden))
    np.testing.assert_allclose(c2.c11, golden["w5_C11"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(c2.c22, golden["w5_C22"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(c2.c12_real + 1j * c2.c12_imag, golden["w5_C12"], rtol=0, atol=1e-12)
    parameters = polarimetry.stokes(c2, convention)
    for name in ("s1", "s2", "s3", "s4"):
        np.testing.assert_allclose(parameters[name], golden[f"{convention}_w5_{name.upper()}"], rtol=0, atol=1e-12)
    result = polarimetry.m_chi(c2, convention)
    np.testing.assert_allclose(result.m, golden[f"{convention}_w5_m"], rtol=0, atol=1e-12)
    chi = polarimetry.ellipticity(c2, convention)
    np.testing.assert_allclose(chi, golden[f"{convention}_w5_chi"], rtol=0, atol=1e-12)
    s1 = parameters.s1.values
    partly = ~(golden[f"{convention}_w5_m"] > 1 - 1e-9)
    for name, column in AMPLITUDES.items():
        expected, values = golden[f"{convention}_w5_{column}"], result[name].values
        np.testing.assert_allclose(values[partly], expected[partly], rtol=0, atol=1e-12)
        # A fully polarised wave has Pv^2 = S1 - P = 0 to rounding, so powers are what can be compared.
        np.testing.assert_array_less(np.abs(values**2 - expected**2)[~partly], 1e-12 * s1[~partly])
        np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))


@pytest.mark.parametrize("convention", ["snap", "raney"])
def test_goldens_in_float32(golden, convention):
    vv, vh = slc(golden["VV"].astype("c8"), "VV"), slc(golden["VH"].astype("c8"), "VH")
    c2 = polarimetry.window_mean(polarimetry.covariance(vv, vh), 5)
    result = polarimetry.m_chi(c2, convention).isel(y=rows_of(golden))
    s1 = golden[f"{convention}_w5_S1"]
    partly = golden[f"{convention}_w5_m"] < 1 - 1e-6
    for name, column in AMPLITUDES.items():
        expected = golden[f"{convention}_w5_{column}"]
        assert result[name].dtype == np.float32
        known = np.isfinite(expected)
        np.testing.assert_array_equal(np.isnan(result[name]), np.isnan(expected))
        # A covariance rounded to float32 no longer knows a Pv below 1e-3 sqrt(S1): powers there.
        error = np.abs(result[name].values - expected)
        assert (error[partly] <= 1e-6 * np.sqrt(s1[partly])).all()
        rest = known & ~partly
        assert (np.abs(result[name].values ** 2 - expected**2)[rest] <= 1e-6 * s1[rest]).all()


def test_analytic_table():
    with np.load(DATA / "mchi_analytic_table.npz") as file:
        table = dict(zip(file["columns"].tolist(), file["table"].T, strict=True))
    elements = {"c11": "C11", "c22": "C22", "c12_real": "C12re", "c12_imag": "C12im"}
    c2 = xr.Dataset({name: (("y", "x"), table[column][np.newaxis]) for name, column in elements.items()})
    result = polarimetry.m_chi(c2, "snap").isel(y=0)
    np.testing.assert_allclose(result.m, table["m"], rtol=0, atol=1e-12)
    polarised = table["m"] > 0
    chi = polarimetry.ellipticity(c2, "snap").values[0]
    np.testing.assert_allclose(chi[polarised], table["chi"][polarised], rtol=0, atol=1e-6)
    for name, column in AMPLITUDES.items():
        np.testing.assert_allclose(result[name] ** 2 / table["S1"], table[column] ** 2 / table["S1"], atol=1e-12)


@pytest.fixture(scope="module")
def described():
    """Simulated covariances and what polsartools 0.13 computes of them (window 1; its S4 has the other sign)."""
    with np.load(DATA / "descriptors_polsartools.npz") as file:
        return xr.Dataset({name: (("y", "x"), file[name].astype(float)) for name in file})


def test_descriptors_equal_polsartools(described):
    def same(ours, *names):
        for plane, name in zip(ours, names, strict=True):
            np.testing.assert_allclose(plane, described[name], rtol=0, atol=3e-4 if "shannon" in name else 1e-4)

    delta = polarimetry.m_delta(described, "raney")
    same([delta.ps, delta.pd], "delta_ps", "delta_pd")
    # polsartools halves the power of the volume, so that its three do not sum to the span
    same([delta.pv / np.sqrt(2)], "delta_pv")
    np.testing.assert_allclose((delta**2).to_dataarray().sum("variable"), described.c11 + described.c22)
    free = polarimetry.model_free(described, "raney")
    same([free.ps, free.pd, free.pv], "free_ps", "free_pd", "free_pv")
    eigen, shannon = polarimetry.entropy_alpha(described), polarimetry.shannon_entropy(described)
    same([eigen.entropy, eigen.alpha], "entropy", "alpha")
    same([shannon.intensity, shannon.polarimetry], "shannon_intensity", "shannon_polarimetry")
    same([polarimetry.dprvi(described), polarimetry.m_chi(described).m], "dprvi", "m")


def test_descriptors_of_pure_and_of_unpolarised_waves():
    c2 = xr.Dataset({"c11": ("y", [1.0, 1.0]), "c22": ("y", [0.0, 1.0])}).expand_dims("x")
    c2 = c2.assign(c12_real=0 * c2.c11, c12_imag=0 * c2.c11)
    np.testing.assert_allclose(polarimetry.entropy_alpha(c2).entropy[0], [0, 1])
    assert polarimetry.entropy_alpha(c2).alpha[0, 0] == 0
    np.testing.assert_allclose(polarimetry.dprvi(c2)[0], [0, 1])
    assert polarimetry.shannon_entropy(c2).polarimetry[0, 1] == 0
    np.testing.assert_allclose(polarimetry.m_delta(c2).pv[0] ** 2, [0, 2])
    swapped = polarimetry.model_free(c2.assign(c12_imag=0.4 * c2.c11), "raney")
    here = polarimetry.model_free(c2.assign(c12_imag=0.4 * c2.c11))
    np.testing.assert_allclose(swapped.ps, here.pd)
    assert (here.ps > here.pd).all()


def test_coherence_is_one_for_an_image_with_itself_and_as_simulated_for_a_pair():
    first, other = (slc(image, None) for image in speckle((60, 60), 1))
    np.testing.assert_allclose(polarimetry.coherence(first, first * 1j, 3), 1)
    first, other = first / np.abs(first).std(), other / np.abs(other).std()
    near = polarimetry.coherence(first, 0.8 * first + 0.6 * other, 31)
    far = polarimetry.coherence(first, other, 31)
    assert float(near.mean()) > 0.6 > 0.3 > float(far.mean())
    assert near.attrs["units"] == "1"


def test_decibel_and_cross_ratio():
    with np.load(DATA / "mchi_db_points.npz") as file:
        linear, expected = xr.DataArray(file["linear"], dims="x"), np.where(file["linear"] > 0, file["dB"], np.nan)
    np.testing.assert_allclose(polarimetry.decibel(linear), expected, rtol=0, atol=1e-12)
    assert polarimetry.decibel(linear.astype("f4")).dtype == np.float32
    ratio = polarimetry.cross_ratio(xr.DataArray([-10.0]), xr.DataArray([-17.0]))
    assert ratio.item() == -7.0
    assert ratio.attrs["units"] == "dB"


@settings(deadline=None, max_examples=25)
@given(scenes(), st.sampled_from([1, 3, 5]), st.sampled_from(["snap", "raney"]))
def test_identities(scene, window, convention):
    c2 = polarimetry.window_mean(polarimetry.covariance(*scene), window)
    s = polarimetry.stokes(c2, convention)
    r = polarimetry.m_chi(c2, convention)
    tolerance = 1e-11 * s.s1.values + 1e-30
    ps2, pd2, pv2, m = r.ps.values**2, r.pd.values**2, r.pv.values**2, r.m.fillna(0).values
    s1 = s.s1.values
    assert (np.abs(ps2 + pd2 + pv2 - s1) <= tolerance).all()
    assert (np.abs(ps2 + pd2 - m * s1) <= tolerance).all()
    assert (np.abs(ps2 - pd2 - s.s4.values) <= tolerance).all()
    determinant = (c2.c11 * c2.c22 - c2.c12_real**2 - c2.c12_imag**2).values
    assert (np.abs(4 * determinant - s1**2 * (1 - m**2)) <= tolerance * s1).all()
    chi = polarimetry.ellipticity(c2, convention)
    assert (np.abs(chi.fillna(0)) <= 45).all()
    assert (np.abs(ps2 - pd2 + m * s1 * np.sin(np.radians(2 * chi.fillna(0).values))) <= tolerance).all()
    np.testing.assert_array_equal(np.isnan(chi), s1 == 0)
    np.testing.assert_array_equal(np.isnan(r.m), s1 == 0)
    if window == 1:
        assert (np.abs(m - (s1 > 0)) <= 1e-11).all()
        assert (pv2 <= tolerance).all()


@settings(deadline=None, max_examples=25)
@given(scenes(), st.floats(0.01, 100))
def test_symmetries(scene, scale):
    def decomposed(vv, vh, convention="snap"):
        return polarimetry.m_chi(polarimetry.window_mean(polarimetry.covariance(vv, vh), 3), convention)

    vv, vh = scene
    here = decomposed(vv, vh)
    largest = max(float(abs(vv).max()), float(abs(vh).max()))
    close = {"rtol": 0, "atol": 2e-6 * largest}
    swapped = decomposed(vh.rename("VV"), vv.rename("VH"))
    conjugated = decomposed(vv.conj(), vh.conj())
    other = decomposed(vv, vh, "raney")
    for changed in (swapped, conjugated, other):
        for name, partner in (("ps", "pd"), ("pd", "ps"), ("pv", "pv")):
            np.testing.assert_allclose(changed[partner], here[name], **close)
    scaled = decomposed(vv * scale, vh * scale)
    for name in AMPLITUDES:
        np.testing.assert_allclose(scaled[name] / scale, here[name], **close)


def test_uncorrelated_channels_leave_only_the_amplitudes():
    c2 = xr.Dataset({"c11": ("y", [0.08, 0.02]), "c22": ("y", [0.02, 0.08])}).expand_dims("x")
    c2 = c2.assign(c12_real=0 * c2.c11, c12_imag=0 * c2.c11)
    r = polarimetry.m_chi(c2).isel(x=0)
    np.testing.assert_allclose(polarimetry.ellipticity(c2), 0)
    np.testing.assert_allclose(r.m, 0.6)
    np.testing.assert_allclose(r.ps, np.sqrt(0.03))
    np.testing.assert_allclose(r.pd, r.ps)
    np.testing.assert_allclose(r.pv, np.sqrt(2 * 0.02))


def test_window_mean_clips_at_the_edge_and_spreads_nan():
    plane = xr.DataArray(np.arange(20.0).reshape(4, 5), dims=("y", "x"))
    mean = polarimetry.window_mean(plane, 3)
    assert mean[0, 0] == plane[:2, :2].mean()
    assert mean[1, 2] == plane[:3, 1:4].mean()
    holed = polarimetry.window_mean(plane.where(plane != 0), 3)
    np.testing.assert_array_equal(np.isnan(holed), (plane.y < 2) & (plane.x < 2))


def test_multilook_averages_whole_blocks_and_their_coordinates():
    c2 = xr.Dataset({"c11": (("y", "x"), np.arange(18.0).reshape(2, 9))}, {"x": 2.5 * np.arange(9), "y": [0.0, 10.0]})
    looked = polarimetry.multilook(c2)
    np.testing.assert_array_equal(looked.c11, [[1.5, 5.5], [10.5, 14.5]])
    np.testing.assert_array_equal(looked.x, [3.75, 13.75])
    assert np.isnan(polarimetry.multilook(c2.where(c2.c11 != 0)).c11[0, 0])


def dated(dtype="c16"):
    coords = {"time": [0, 1], "y": 390.0 - 10 * np.arange(39), "x": 2.5 * np.arange(60), "spatial_ref": 0}
    images = np.stack([speckle((39, 60), seed) for seed in (0, 1)], axis=1).astype(dtype)
    images[0, 0, 30, 17] = np.nan
    return [
        xr.DataArray(image, coords, ("time", "y", "x"), name) for image, name in zip(images, ("VV", "VH"), strict=True)
    ]


@pytest.mark.parametrize("dtype", ["c8", "c16"])
@pytest.mark.parametrize("chunks", [{"y": 7, "x": 9}, {"y": (1, 37, 1), "x": (2, 57, 1)}, {"time": 1}])
def test_blocks_equal_the_whole_exactly(dtype, chunks):
    def steps(vv, vh):
        c2 = polarimetry.window_mean(polarimetry.multilook(polarimetry.covariance(vv, vh)), 5)
        return c2, polarimetry.m_chi(c2).assign(chi=polarimetry.ellipticity(c2))

    vv, vh = dated(dtype)
    for whole, lazy in zip(steps(vv, vh), steps(vv.chunk(chunks), vh.chunk(chunks)), strict=True):
        assert all(plane.chunks for plane in lazy.values())
        assert all(plane.dtype == vv.real.dtype for plane in lazy.values())
        xr.testing.assert_identical(lazy.compute(), whole)


def test_coordinates_dates_and_attributes_survive():
    vv, vh = dated()
    result = polarimetry.m_chi(polarimetry.window_mean(polarimetry.multilook(polarimetry.covariance(vv, vh)), 3))
    assert result.ps.dims == ("time", "y", "x")
    np.testing.assert_array_equal(result.x, 3.75 + 10 * np.arange(15))
    assert "spatial_ref" in result.coords
    assert result.attrs == {"convention": "snap", "window": 3}
    assert result.ps.attrs == {"long_name": "single bounce, square root of power", "units": "1"}


def test_polsarpro_folder(tmp_path):
    (tmp_path / "config.txt").write_text("Nrow\n2\n---------\nNcol\n3\n---------\nPolarType\npp2\n")
    for value, name in enumerate(("C11", "C22", "C12_real", "C12_imag")):
        np.full(6, value, "<f4").tofile(tmp_path / f"{name}.bin")
    c2 = polarimetry.read_polsarpro(tmp_path)
    assert c2.sizes == {"y": 2, "x": 3}
    assert [float(c2[name][1, 2]) for name in polarimetry.C2] == [0, 1, 2, 3]
    np.zeros(5, "<f4").tofile(tmp_path / "C22.bin")
    with pytest.raises(ValueError, match=r"C22\.bin holds 5 values but config\.txt says \(2, 3\)"):
        polarimetry.read_polsarpro(tmp_path)
    (tmp_path / "C22.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"C22\.bin is missing"):
        polarimetry.read_polsarpro(tmp_path)


def test_bad_input_is_answered_in_one_sentence():
    vv, vh = (slc(a, n) for a, n in zip(speckle((4, 4)), ("VV", "VH"), strict=True))
    c2 = polarimetry.covariance(vv, vh)
    with pytest.raises(ValueError, match=r"\['y'\] is missing from \('line', 'x'\)"):
        polarimetry.covariance(vv.rename(y="line"), vh)
    with pytest.raises(ValueError, match="The VV argument is named VH: give VV first"):
        polarimetry.covariance(vh, vv)
    with pytest.raises(ValueError, match="VH is float64, not complex"):
        polarimetry.covariance(vv, vh.real)
    with pytest.raises(ValueError, match="differ: crop both to one grid"):
        polarimetry.covariance(vv, vh[:3])
    with pytest.raises(ValueError, match="A window of 4 pixels has no centre: choose an odd size such as 5"):
        polarimetry.window_mean(c2, 4)
    with pytest.raises(ValueError, match="Unknown convention 'sanp' of S4: choose one of"):
        polarimetry.m_chi(c2, "sanp")
    with pytest.raises(ValueError, match=r"The covariance lacks \['c22'\]"):
        polarimetry.stokes(c2.drop_vars("c22"))
