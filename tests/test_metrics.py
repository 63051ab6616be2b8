from pathlib import Path

import evaluate
import numpy as np
import pytest

from modeling_mmemo.evaluation import metrics
from modeling_mmemo.evaluation.metrics import (
    calibration_bins,
    class_measures,
    confusions,
    emotion_metrics,
    expected_calibration_error,
    overall_measures,
)


def test_metrics_of_a_hand_computed_case():
    truth = ["sad", "sad", "sad", "happy"]
    predictions = ["sad", "sad", "angry", "happy"]

    scores = emotion_metrics(truth, predictions)

    assert scores["wa"] == pytest.approx(3 / 4)
    assert scores["uar"] == pytest.approx((2 / 3 + 1) / 2)  # "angry" never occurs
    assert scores["macro_f1"] == pytest.approx((0.8 + 1.0) / 2)  # F1 of sad: P 1, R 2/3
    assert scores["weighted_f1"] == pytest.approx((3 * 0.8 + 1 * 1.0) / 4)


def test_the_metric_module_loads_by_path():
    metric = evaluate.load(str(Path(metrics.__file__).with_name("emotion_metric.py")), keep_in_memory=True)

    assert metric.compute(references=[0, 0, 1], predictions=[0, 1, 1])["uar"] == pytest.approx(0.75)


def test_lists_of_different_lengths_raise():
    with pytest.raises(ValueError, match="Got 2 true labels but 1 predictions; they must match 1:1"):
        emotion_metrics([0, 1], [0])
    with pytest.raises(ValueError, match="not be empty"):
        emotion_metrics([], [])


def test_measures_of_a_confusion_matrix_match_those_of_the_labels():
    rng = np.random.default_rng(0)
    truth, predictions = rng.integers(4, size=(2, 60))
    predictions[truth == 0] = 5  # a label that never occurs; label 0 is never predicted correctly

    measures = overall_measures(confusions(truth, predictions, 7).sum(axis=0))

    assert measures == pytest.approx(emotion_metrics(truth, predictions))


def test_class_measures():
    confusion = np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])

    measures = class_measures(confusion)

    assert measures["support"].tolist() == [3, 1, 0]
    assert measures["precision"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(measures["recall"], [2 / 3, 1, np.nan])
    np.testing.assert_allclose(measures["f1"], [0.8, 1, np.nan])


def test_calibration_error_of_a_hand_computed_case():
    # Two bins: confidence 0.5 with no correct prediction; mean confidence 0.8 with 1 of 2 correct.
    scores = np.array([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.05, 0.9, 0.05]])

    assert expected_calibration_error(scores, np.array([1, 0, 0]), bins=2) == pytest.approx((0.5 + 2 * 0.3) / 3)


def test_bins_include_their_upper_edge():
    bins = calibration_bins(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]), bins=4)

    assert bins[0, 3].tolist() == [1, 1, 1]
    assert bins[1, 1].tolist() == [1, 0.5, 0]
    assert bins.sum() == 4.5
