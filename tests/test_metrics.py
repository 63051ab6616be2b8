import pytest

from modeling_mmemo.evaluation.metrics import emotion_metrics


def test_metrics_of_a_case_worked_out_by_hand():
    truth = ["sad", "sad", "sad", "happy"]
    answers = ["sad", "sad", "angry", "happy"]

    scores = emotion_metrics(truth, answers)

    assert scores["wa"] == pytest.approx(3 / 4)
    assert scores["uar"] == pytest.approx((2 / 3 + 1) / 2)  # "angry" was never true
    assert scores["weighted_f1"] == pytest.approx((3 * 0.8 + 1 * 1.0) / 4)  # F1 of sad: P 1, R 2/3
