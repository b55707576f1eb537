"""What a page shows of a training, on a training that never ran."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cropnb import evaluation, plotting, trainings
from cropnb.models import cnn3d

CLASSES = ["maize", "soybean"]


def test_code_shows_the_function_without_its_docstring():
    shown = trainings.code(cnn3d.build, trainings.Training.write).data
    assert shown.startswith("```python\ndef build(")
    assert "return keras.Model(" in shown
    assert "def write(self)" in shown
    assert '"""' not in shown


def test_a_parameter_that_a_page_lacks_is_named():
    with pytest.raises(KeyError, match="profile"):
        trainings.Training("tcnn", {})


@pytest.fixture
def judged():
    return pd.DataFrame(
        {
            "x": [5.0, 15, 1005, 1015],
            "y": [5.0, 15, 5, 15],
            "block": [0, 0, 1, 1],
            "parcel_id": [1, 1, 2, 3],
            "true": ["maize", "maize", "maize", "soybean"],
            "predicted": ["soybean", "soybean", "maize", "soybean"],
            "right": [False, False, True, True],
            "score": [0.6, 0.8, 0.9, 1.0],
        }
    )


def test_words_of_a_training(judged):
    training = trainings.Training.__new__(trainings.Training)
    values = dict.fromkeys(trainings.Parameters.__dataclass_fields__, 0) | {"epochs": 3, "seed": 1}
    training.parameters, training.name, training.classes = trainings.Parameters(**values), "tcnn", CLASSES
    training.judged, training.seconds = judged, 1.5
    training.history = pd.DataFrame({"val_accuracy": [0.5, 0.75, 0.625]}, pd.RangeIndex(1, 4, name="epoch"))
    training.matrix = evaluation.confusion_matrix(judged["true"], judged["predicted"], CLASSES)
    training.scores = pd.DataFrame({"estimate": [0.5, 0.5]}, ["overall_accuracy", "mean_f1"])
    training.layers = pd.DataFrame({"parameters": [1, 2], "published": [10, 20]})
    for name in ("train", "validation", "test"):
        setattr(training, name, type("Data", (), {"samples": judged}))
    words = training.words()
    assert (words["mistaken"], words["taken_for"], words["confused"], words["confused_of"]) == (
        "maize",
        "soybean",
        2,
        3,
    )
    assert (words["worst"], words["best"], words["whole"], words["kept"]) == (0, 100, 100, 2)
    assert words["late_gain"] == pytest.approx(-12.5)
    assert (words["ended"], words["published"], words["network"]) == ("used up its epochs", 30, "TCNN")
    assert np.isclose(words["score_wrong"], 0.7)


def test_errors_are_drawn_by_true_crop_with_the_accuracy_of_each_block(judged):
    _, ax = plt.subplots()
    assert plotting.errors(judged, CLASSES, ax) is ax
    assert [text.get_text() for text in ax.texts] == ["0%", "100%"]
    wrong = next(line for line in ax.lines if line.get_label() == "maize")
    assert list(wrong.get_xdata()) == [5, 15]
    plt.close()


def test_a_learning_curve_has_a_line_a_start():
    index = pd.MultiIndex.from_tuples([("old", 0), ("old", 5), ("new", 5)], names=["start", "labelled"])
    columns = pd.MultiIndex.from_product([["overall_accuracy"], ["estimate", "low", "high"]])
    scores = pd.DataFrame([[0.5, 0.4, 0.6]] * 3, index, columns)
    _, ax = plt.subplots()
    assert plotting.learning_curve(scores, 0.3, ax) is ax
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["old", "new"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "5"]
    plt.close()
