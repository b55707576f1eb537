"""Tables of embeddings are read in the labels' order or refused in a sentence; masked reconstruction learns."""

import numpy as np
import pandas as pd
import pytest

from cropnb import pretrained

# Keras reads TensorFlow variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

POINTS = pd.Index(["c", "a"], name="point")
PIXELS = pd.MultiIndex.from_tuples([(3, 1), (0, 2)], names=["row", "col"])


def table(**changes):
    """Three points with two dimensions each, in another order than the labels."""
    frame = pd.DataFrame({"point": ["a", "b", "c"], "A00": [0.0, 1.0, 2.0], "A01": [0.5, 1.5, 2.5]})
    return frame.assign(**changes)


def read(frame, tmp_path):
    frame.to_parquet(tmp_path / "table.parquet")
    return pretrained.read(tmp_path / "table.parquet", POINTS, PIXELS)


@pytest.mark.parametrize("frame", [table(), table().set_index("point")], ids=["column", "index"])
def test_points_come_in_the_order_of_their_labels(frame, tmp_path):
    made = read(frame, tmp_path)
    np.testing.assert_array_equal(made, [[2, 2.5], [0, 0.5]])
    assert made.index.equals(POINTS)
    assert set(made.dtypes) == {np.dtype("float32")}


def test_pixels_are_known_by_row_and_column(tmp_path):
    frame = pd.DataFrame({"col": [2, 1, 0], "row": [0, 3, 0], "0": [1.0, 2.0, 3.0]})
    made = read(frame, tmp_path)
    np.testing.assert_array_equal(made, [[2], [1]])
    assert made.index.equals(PIXELS)


FAULTS = {
    "no name": (table().drop(columns="point"), "does not name its pixels; add the column point or row and col."),
    "a coordinate": (table(lat=45.0), "column lat has no number at its end, as a dimension has; leave it out."),
    "integers": (table(A01=[1, 2, 3]), "column A01 is of type int64; store floats, any scale applied."),
    "words": (table(A01=["x", "y", "z"]), "column A01 is of type .*; store floats, any scale applied."),
    "vectors in a cell": (table(A01=[[1.0], [2.0], [3.0]]), "column A01 is of type object; store floats"),
    "no dimension": (table()[["point"]], "has no vectors; add a column a dimension, such as A00."),
    "twice": (table(point=["a", "c", "c"]), "pixel c stands there twice; keep one row."),
    "absent": (table(point=["a", "b", "d"]), "lacks 1 of 2 labelled pixels, c first; add them."),
    "other type": (table(point=[1, 2, 3]), "lacks 2 of 2 labelled pixels"),
    "not finite": (table(A01=[1, 2, np.nan]), "pixel c has a value that is not finite; embed it again."),
    "infinite": (table(A00=[-np.inf, 2, 0]), "pixel a has a value that is not finite; embed it again."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_that_names_the_file(fault, tmp_path):
    frame, sentence = FAULTS[fault]
    with pytest.raises(ValueError, match=f"table.parquet:? .*{sentence}"):
        read(frame, tmp_path)


def test_a_gap_in_a_row_without_a_label_does_no_harm(tmp_path):
    assert len(read(table(A00=[0.0, np.nan, 2.0]), tmp_path)) == 2


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "table.parquet").write_text("A00,A01")
    with pytest.raises(ValueError, match=r"table.parquet cannot be read as Parquet .*; give a table.$"):
        pretrained.read(tmp_path / "table.parquet", POINTS)
    with pytest.raises(ValueError, match=r"none.parquet cannot be read as Parquet .*; give a table.$"):
        pretrained.read(tmp_path / "none.parquet", POINTS)


@pytest.fixture(scope="module")
def series():
    """Seasons that two numbers decide, so that a seen half tells the hidden one."""
    rng = np.random.default_rng(0)
    shape = np.stack([np.sin(np.arange(7) / 2 + i) for i in range(2)])
    values = np.einsum("ni,it,if->ntf", rng.normal(size=(600, 2)), shape, rng.normal(size=(2, 3)))
    return ((values - values.mean(0)) / values.std(0)).astype("float32")


def test_masked_reconstruction_learns_what_a_random_encoder_does_not_know(series):
    _, random = pretrained.pretrain(series, passes=0, seed=1)
    encoder, learnt = pretrained.pretrain(series, passes=15, seed=1)
    assert random < 0.2
    assert learnt > 0.6
    assert pretrained.embed(encoder, series).shape == (600, 64)


def test_the_same_seed_gives_the_same_embeddings(series):
    first, second = (
        pretrained.embed(pretrained.pretrain(series[:50], passes=1, seed=2, size=8)[0], series) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_half_of_the_dates_are_hidden_and_only_they_count(series):
    x, weight = pretrained._hide(series, np.random.default_rng(0))
    np.testing.assert_array_equal(weight.sum(axis=1), 3)
    np.testing.assert_array_equal(x[..., -1], 1 - weight)
    np.testing.assert_array_equal(x[weight == 1], 0)
    np.testing.assert_array_equal(x[weight == 0][:, :3], series[weight == 0])
