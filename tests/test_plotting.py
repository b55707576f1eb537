"""What is drawn: positions, colours and labels, and interactive figures that need nothing but themselves."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_hex, to_rgba

from cropnb import plotting


@pytest.fixture
def ax():
    yield plt.figure(figsize=(4, 3)).add_subplot()
    plt.close("all")


def labels(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def test_a_crop_has_one_colour_and_others_get_spare_ones():
    colours = plotting.palette(["wheat", "rice", "maize", "oats"])
    assert colours["wheat"] == "#CC79A7"
    assert colours["maize"] == "#E69F00"
    assert list(colours) == ["wheat", "rice", "maize", "oats"]
    many = [f"crop {i}" for i in range(9)]
    assert len(set(plotting.palette(many[:8]).values())) == 8
    assert not set(plotting.palette(many).values()) & set(plotting.PALETTE.values())


def test_networks_are_coloured_by_their_place():
    colours = plotting.network_colours([f"network {i}" for i in range(8)])
    assert len(set(colours.values())) == 7
    assert colours["network 0"] == colours["network 7"]


def test_style_is_an_opaque_light_figure_in_the_palette():
    with plt.rc_context():
        plotting.style()
        assert plt.rcParams["figure.facecolor"] == plt.rcParams["savefig.facecolor"] == "white"
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"][:4] == list(plotting.PALETTE.values())


def test_maps_read_in_kilometres(ax):
    ax.imshow(np.zeros((20, 30)), extent=(500_000, 515_000, 5_330_000, 5_340_000))
    assert plotting.kilometres(ax) is ax
    ax.figure.canvas.draw()
    assert {"500", "505", "510"} <= set(labels(ax.xaxis))
    assert {"5330", "5332", "5340"} <= set(labels(ax.yaxis))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_aspect()) == ("easting (km)", "northing (km)", 1)
    ax.set(xlim=(500_000, 500_600), ylim=(5_615_000, 5_615_600))
    ax.figure.canvas.draw()
    assert "5615.2" in labels(ax.yaxis)
    assert not any(line.get_visible() for line in ax.get_xgridlines())


def test_confusion_shows_shares_of_the_true_class_and_counts(ax):
    matrix = pd.DataFrame([[30, 10, 0], [0, 1000, 0], [0, 0, 0]], index=list("abc"), columns=list("abc"))
    plotting.confusion(matrix, ax)
    assert [text.get_text() for text in ax.texts][:5] == ["75 %\n30", "25 %\n10", "0 %\n0", "0 %\n0", "100 %\n1,000"]
    np.testing.assert_allclose(ax.collections[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    assert ax.collections[0].get_clim() == (0, 1)
    assert labels(ax.xaxis) == labels(ax.yaxis) == list("abc")


def test_a_network_is_a_bar_a_layer_as_long_as_its_output(ax):
    layers = pd.DataFrame(
        [("input", "InputLayer", (26, 100), 0), ("convolve", "Conv1D", (10,), 1234)],
        columns=["layer", "kind", "output", "parameters"],
    )
    plotting.network(layers, ax)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], np.log10([2600, 10]) + 0.1)
    assert to_hex(ax.patches[1].get_facecolor()).upper() == "#56B4E9"
    assert [text.get_text() for text in ax.texts] == ["InputLayer  26 x 100", "Conv1D  10  (1,234 parameters)"]
    assert labels(ax.yaxis) == ["input", "convolve"]
    assert ax.yaxis_inverted()


def test_history_draws_each_set_in_its_colour_and_marks_the_kept_epoch():
    epochs = pd.DataFrame(
        {
            "loss": [3.0, 2, 1],
            "val_loss": [3.0, 2.5, 2.6],
            "accuracy": [0.3, 0.5, 0.9],
            "val_accuracy": [0.3, 0.6, 0.5],
        },
        index=[1, 2, 3],
    )
    figure, axes = plt.subplots(1, 2)
    plotting.history(epochs, axes)
    for ax, name in zip(axes, ("loss", "accuracy"), strict=True):
        training, validation, kept = ax.lines
        assert (training.get_color(), validation.get_color()) == (plotting.SETS["train"], plotting.SETS["validation"])
        np.testing.assert_array_equal(training.get_xydata(), np.column_stack([epochs.index, epochs[name]]))
        np.testing.assert_array_equal(validation.get_ydata(), epochs[f"val_{name}"])
        assert kept.get_xdata() == [2, 2]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", name)
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["training", "validation", "kept"]
    plt.close(figure)


def test_intervals_are_bars_around_dots_from_top_to_bottom(ax):
    frame = pd.DataFrame({"estimate": [1.0, 2], "low": [0.5, 1], "high": [2.0, 4]}, index=["a", 7])
    plotting.intervals(frame, ax, color="#D55E00", offset=0.25, label="test")
    plotting.intervals(frame, ax, offset=-0.25)
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0.25], [2, 1.25]])
    np.testing.assert_array_equal(ax.collections[0].get_segments(), [[[0.5, 0.25], [2, 0.25]], [[1, 1.25], [4, 1.25]]])
    assert ax.lines[0].get_color() == "#D55E00"
    np.testing.assert_array_equal(ax.collections[0].get_color(), [to_rgba("#D55E00")])
    assert ax.lines[0].get_label() == "test"
    assert labels(ax.yaxis) == ["a", "7"]
    assert ax.yaxis_inverted()


def test_seasonal_draws_the_median_in_the_crops_colour_and_the_middle_half(ax):
    values = xr.DataArray(np.array([[0.0, 1], [1, 1], [2, 1], [3, 1], [4, 6]]), dims=("point", "month"))
    values = values.assign_coords(month=[4, 5])
    plotting.seasonal(values.T, ["maize"] * 5, ax)
    assert ax.lines[0].get_color() == plotting.PALETTE["maize"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[4, 2], [5, 1]])
    band = ax.collections[0].get_paths()[0].vertices
    assert {(4, 1), (4, 3), (5, 1)} <= set(map(tuple, band.tolist()))
    assert (ax.lines[0].get_label(), ax.get_xlabel()) == ("maize", "month")
    plotting.seasonal(values, ["rye", "wheat", "rye", "wheat", "wheat"], ax)
    assert [line.get_label() for line in ax.lines] == ["maize", "wheat", "rye"]


@pytest.fixture(scope="module")
def shown():
    plotting.accessors()
    image = xr.DataArray(np.arange(6.0).reshape(2, 3), coords={"y": [0.0, 1], "x": [0.0, 1, 2]}, dims=("y", "x"))
    return plotting.show(image.rename("v").hvplot.image(width=480, height=300), alt='A "map".')._repr_html_()


def test_an_interactive_figure_needs_nothing_but_itself(shown):
    assert 'aria-label="A &quot;map&quot;."' in shown
    library = re.search(rf'<script class="{plotting.LOADER}">(.*?)</script>', shown, re.DOTALL)
    assert len(library[1]) > 500_000
    assert library[1].startswith("if (!window.Bokeh)")
    rest = shown.replace(library[0], "")
    assert len(rest) < 30_000
    assert not re.search(r"(src|href)=", rest)


def test_an_interactive_figure_shrinks_with_its_column(shown):
    roots = json.loads(re.search(r"const docs_json = '(.*?)';", shown)[1].encode().decode("unicode_escape"))
    attributes = next(iter(roots.values()))["roots"][0]["attributes"]
    assert attributes["sizing_mode"] == "scale_width"
    assert (attributes["width"], attributes["height"], attributes["max_width"]) == (480, 300, 480)


def test_accessors_put_nothing_out(capsys):
    plotting.accessors()
    assert capsys.readouterr().out == ""
    assert pd.DataFrame({"a": [1]}).hvplot is not None


def test_class_map_shows_classes_in_their_colours_and_values_at_the_pointer():
    import holoviews as hv
    from bokeh.models import HoverTool

    codes = np.tile(np.array([0, 1, 255, 1], "uint8"), (300, 100))
    coords = {"y": 5_000_000 - 10.0 * np.arange(300), "x": 400_000 + 10.0 * np.arange(400)}
    codes = xr.DataArray(codes, coords, ("y", "x"), name="crop")
    score = codes.astype(float) / 255
    plot = hv.render(plotting.class_map(codes, {"maize": "#E69F00", "rye": "#000000"}, score=score), backend="bokeh")
    glyph = plot.renderers[0]
    drawn = glyph.data_source.data["image"][0]
    assert drawn.shape == (150, 200)
    np.testing.assert_array_equal(drawn[0, :2], [1, 1])  # every second pixel, from the second
    np.testing.assert_allclose(glyph.data_source.data["score"][0][0, 0], 1 / 255)
    assert glyph.data_source.data["x"][0] == pytest.approx(400, abs=0.02)
    mapper = glyph.glyph.color_mapper
    assert (list(mapper.palette), mapper.low, mapper.high) == (["#E69F00", "#000000"], -0.5, 1.5)
    (hover,) = plot.select({"type": HoverTool})
    assert [name for name, _ in hover.tooltips] == ["class", "score"]
    assert hover.formatters["@image"].args == {"words": ["maize", "rye"]}
    assert plot.xaxis[0].axis_label == "easting (km)"


def test_class_map_leaves_what_is_no_class_white():
    import holoviews as hv

    codes = xr.DataArray(np.array([[0, 255], [-1, 2]]), {"y": [0.0, 10], "x": [0.0, 10]}, ("y", "x"))
    plot = hv.render(plotting.class_map(codes, {"a": "#111111", "b": "#222222"}), backend="bokeh")
    np.testing.assert_array_equal(np.isfinite(plot.renderers[0].data_source.data["image"][0]), [[1, 0], [0, 0]])


def test_two_tables_share_one_scale():
    columns = pd.MultiIndex.from_product([["paper", "estimate", "state"], ["a", "b"]])
    rows = [
        [0.9, 0.8, 0.7, 0.6, "", ""],
        [0.5, 0.4, np.nan, np.nan, "not in this build", "not possible here"],
    ]
    wide = pd.DataFrame(rows, ["one", "two"], columns)
    _, axes = plt.subplots(1, 2)
    plotting.two_tables(wide, axes, ("paper", "ours"), 1)
    assert [ax.collections[0].get_clim() for ax in axes] == [(40, 90)] * 2
    written = [{text.get_text(): text.get_position() for text in ax.texts if text.get_text()} for ax in axes]
    assert list(written[0]) == ["90.0", "80.0", "50.0", "40.0"]
    assert written[1] == {"70.0": (0.5, 0.5), "60.0": (1.5, 0.5), "–": (0.5, 1.5), "not\npossible": (1.5, 1.5)}


def test_the_paper_stands_beside_the_intervals():
    frame = pd.DataFrame({"estimate": [1.0, np.nan], "low": [0.0, np.nan], "high": [2.0, np.nan]}, ["a", "b"])
    ax = plotting.beside(frame, [3.0, 4.0], plt.figure().gca(), "ours")
    diamonds = next(line for line in ax.lines if line.get_marker() == "D")
    assert diamonds.get_xdata().tolist() == [3, 4]
    assert diamonds.get_ydata().tolist() == [0.25, 1.25]  # just below each interval
    assert ax.get_ylim() == (1.6, -0.6)
