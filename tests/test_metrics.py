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


def test_metrics_of_a_case_worked_out_by_hand():
    truth = ["sad", "sad", "sad", "happy"]
    answers = ["sad", "sad", "angry", "happy"]

    scores = emotion_metrics(truth, answers)

    assert scores["wa"] == pytest.approx(3 / 4)
    assert scores["uar"] == pytest.approx((2 / 3 + 1) / 2)  # "angry" was never true
    assert scores["macro_f1"] == pytest.approx((0.8 + 1.0) / 2)  # F1 of sad: P 1, R 2/3
    assert scores["weighted_f1"] == pytest.approx((3 * 0.8 + 1 * 1.0) / 4)


def test_the_metric_module_is_loaded_by_its_path():
    metric = evaluate.load(str(Path(metrics.__file__).with_name("emotion_metric.py")), keep_in_memory=True)

    assert metric.compute(references=[0, 0, 1], predictions=[0, 1, 1])["uar"] == pytest.approx(0.75)


def test_lists_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="Got 2 true labels but 1 answers; they must match 1:1"):
        emotion_metrics([0, 1], [0])
    with pytest.raises(ValueError, match="there must be any"):
        emotion_metrics([], [])


def test_measures_of_a_confusion_matrix_are_those_of_the_labels():
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(4, size=(2, 60))
    answers[truth == 0] = 5  # a label that is never true, and one that is never found

    measures = overall_measures(confusions(truth, answers, 7).sum(axis=0))

    assert measures == pytest.approx(emotion_metrics(truth, answers))


def test_each_label_has_its_measures():
    confusion = np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])

    measures = class_measures(confusion)

    assert measures["support"].tolist() == [3, 1, 0]
    assert measures["precision"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(measures["recall"], [2 / 3, 1, np.nan])
    np.testing.assert_allclose(measures["f1"], [0.8, 1, np.nan])


def test_calibration_error_of_a_case_worked_out_by_hand():
    # In two bins: the first has a confidence of 0.5 and no right answer, the second 0.8 on average and 1 of 2 right.
    scores = np.array([[0.5, 0.3, 0.2], [0.7, 0.2, 0.1], [0.05, 0.9, 0.05]])

    assert expected_calibration_error(scores, np.array([1, 0, 0]), bins=2) == pytest.approx((0.5 + 2 * 0.3) / 3)


def test_a_confidence_of_one_is_in_the_last_bin_and_a_bin_takes_its_upper_edge():
    bins = calibration_bins(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]), bins=4)

    assert bins[0, 3].tolist() == [1, 1, 1]
    assert bins[1, 1].tolist() == [1, 0.5, 0]
    assert bins.sum() == 4.5
