import numpy as np
import pytest

from modeling_mmemo.evaluation.figures import Figures


LABELS = ["angry", "happy", "sad"]
ANGRY, HAPPY = [0.8, 0.1, 0.1], [0.2, 0.6, 0.2]
# All rows of speaker a are correct, of speaker b only the happy ones.
TRUTH = ["angry", "angry", "happy", "angry", "happy", "happy"]
SPEAKERS = ["a", "a", "a", "b", "b", "b"]
SCORES = np.array([ANGRY, ANGRY, HAPPY, HAPPY, HAPPY, HAPPY])


@pytest.fixture
def figures():
    return Figures(TRUTH, SPEAKERS, LABELS)


def test_intervals_are_over_speakers(figures):
    wa = figures.overall(SCORES)["wa"]

    assert wa == {"value": 0.8333, "interval": [0.6667, 1.0]}
    assert figures.rows() == {"rows": 6, "groups": 2, "resampled": "speakers"}


def test_all_measures_lie_in_their_intervals(figures):
    for measure in figures.overall(SCORES).values():
        low, high = measure["interval"]
        assert low <= measure["value"] <= high


def test_recall_of_a_label_without_rows_is_none(figures):
    labels = figures.per_class(SCORES)

    assert labels["angry"]["support"] == 3
    assert labels["angry"]["recall"] == {"value": 0.6667, "interval": [0.0, 1.0]}
    assert labels["sad"]["support"] == 0
    assert labels["sad"]["recall"] is None


def test_the_confusion_matrix_has_counts_and_shares(figures):
    confusion = figures.confusion(SCORES)

    assert confusion["counts"] == [[2, 1, 0], [0, 3, 0], [0, 0, 0]]
    assert confusion["shares"][0][1] == {"value": 0.3333, "interval": [0.0, 1.0]}
    assert confusion["shares"][1][1] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert confusion["shares"][2] == [None, None, None]


def test_the_reliability_diagram_skips_empty_bins(figures):
    bins = figures.reliability(SCORES)

    assert [(entry["rows"], entry["confidence"], entry["accuracy"]["value"]) for entry in bins] == [
        (4, 0.6, 0.75),
        (2, 0.8, 1.0),
    ]


def test_differences_are_paired(figures):
    same = figures.difference(SCORES, SCORES)
    better = figures.difference(SCORES, np.tile(HAPPY, (6, 1)))

    assert same["uar"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert better["wa"] == {"value": 0.3333, "interval": [0.0, 0.6667]}


def test_shares_are_means_with_intervals(figures):
    assert (
        figures.shares(np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]]))
        == [{"value": 0.5, "interval": [0.0, 1.0]}] * 2
    )


def test_unknown_labels_raise():
    with pytest.raises(ValueError, match=r"labels \['bored'\], which the model does not have; its labels are"):
        Figures(["bored", "sad"], ["a", "b"], LABELS)
