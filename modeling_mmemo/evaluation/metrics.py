"""The field's measures for one label a sample.

[`emotion_metrics`] gives the figures. The functions of a confusion matrix or of calibration gaps take any leading
dimensions, so that the bootstrap has the measures of all its resamples at once.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import evaluate
import numpy as np


MEASURES = ("wa", "uar", "macro_f1", "weighted_f1", "ece")


@cache
def _emotion_metric() -> evaluate.Metric:
    # Nothing on disk: in a distributed run every process scores for itself.
    return evaluate.load(str(Path(__file__).with_name("emotion_metric.py")), keep_in_memory=True)


def emotion_metrics(truth: Sequence, answers: Sequence) -> dict[str, float]:
    """Scores answers against the true labels, with the metric of `emotion_metric.py`.

    Args:
        truth, answers (`Sequence` of `str` or `int`): Labels, one a row.

    Returns:
        `dict` with `wa`, plain accuracy; `uar`, the mean recall, and `macro_f1`, the mean F1, of the labels that occur
        in `truth`; and `weighted_f1`, F1 averaged by support; each in [0, 1].

    Raises:
        ValueError: If there is nothing to score, or the two differ in length.
    """
    if not len(truth) or len(truth) != len(answers):
        raise ValueError(
            f"Got {len(truth)} true labels but {len(answers)} answers; they must match 1:1, and there must be any."
        )
    _, ids = np.unique([*truth, *answers], return_inverse=True)
    return _emotion_metric().compute(references=ids[: len(truth)], predictions=ids[len(truth) :])


def confusions(truth: np.ndarray, answers: np.ndarray, num_labels: int) -> np.ndarray:
    """The confusion matrix of each row alone, of shape `(rows, num_labels, num_labels)`: a 1 at `[truth, answer]`.

    Their sum over rows is the confusion matrix; the bootstrap sums them over resampled rows.
    """
    matrices = np.zeros((len(truth), num_labels, num_labels))
    matrices[np.arange(len(truth)), truth, answers] = 1
    return matrices


def _ratio(numerator: np.ndarray, denominator: np.ndarray, otherwise: float) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, otherwise), where=denominator > 0)


def class_measures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """What is found of each label.

    Args:
        confusion (`np.ndarray` of shape `(..., labels, labels)`): Counts, indexed by truth and answer.

    Returns:
        `dict` with `support`, `precision`, `recall` and `f1`, each of shape `(..., labels)`. A label that is never
        answered has a precision of 0, one that is never true has neither recall nor F1: NaN.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, answered = confusion.sum(axis=-1), confusion.sum(axis=-2)
    f1 = np.where(support > 0, _ratio(2 * hits, support + answered, 0.0), np.nan)
    return {
        "support": support,
        "precision": _ratio(hits, answered, 0.0),
        "recall": _ratio(hits, support, np.nan),
        "f1": f1,
    }


def overall_measures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of [`emotion_metrics`] from confusion matrices of shape `(..., labels, labels)`; shape `(...)`."""
    labels = class_measures(confusion)
    total = confusion.sum(axis=(-2, -1))
    return {
        "wa": np.trace(confusion, axis1=-2, axis2=-1) / total,
        "uar": np.nanmean(labels["recall"], axis=-1),
        "macro_f1": np.nanmean(labels["f1"], axis=-1),
        "weighted_f1": np.nansum(labels["support"] * labels["f1"], axis=-1) / total,
    }


def calibration_bins(scores: np.ndarray, truth: np.ndarray, bins: int = 15) -> np.ndarray:
    """What each row adds to the reliability diagram.

    Args:
        scores (`np.ndarray` of shape `(rows, labels)`): Probabilities.
        truth (`np.ndarray` of shape `(rows,)`): Indices of the true labels.
        bins (`int`, *optional*, defaults to 15): Bins of equal width over the confidence, the highest score of a row.

    Returns:
        `np.ndarray` of shape `(rows, bins, 3)`: in the row's bin 1, its confidence, and whether its answer is right;
        zeros elsewhere.
    """
    confidence = scores.max(axis=-1)
    # Each bin takes its upper edge, so that a confidence of 1 is in the last.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    values = np.zeros((len(scores), bins, 3))
    values[np.arange(len(scores)), index] = np.stack(
        [np.ones(len(scores)), confidence, scores.argmax(axis=-1) == truth], axis=-1
    )
    return values


def calibration_error(bins: np.ndarray) -> np.ndarray:
    """ECE from sums of [`calibration_bins`], of shape `(..., bins, 3)`; shape `(...)`."""
    return np.abs(bins[..., 1] - bins[..., 2]).sum(axis=-1) / bins[..., 0].sum(axis=-1)


def expected_calibration_error(scores: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """How far confidence and accuracy are apart: their distance in each bin of confidence, averaged by its rows.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017). See [`calibration_bins`] for the
    arguments.
    """
    return float(calibration_error(calibration_bins(scores, truth, bins).sum(axis=0)))
