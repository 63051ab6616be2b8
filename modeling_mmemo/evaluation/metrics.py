"""
Measures of single-label emotion recognition.

[`emotion_metrics`] computes the reported values. The functions of confusion matrices and calibration bins accept any
leading dimensions, so that the bootstrap computes the measures of all resamples at once.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import evaluate
import numpy as np


MEASURES = ("wa", "uar", "macro_f1", "weighted_f1", "ece")


@cache
def _emotion_metric() -> evaluate.Metric:
    # In memory, not on disk: in a distributed run every process computes its own metrics.
    return evaluate.load(str(Path(__file__).with_name("emotion_metric.py")), keep_in_memory=True)


def emotion_metrics(truth: Sequence, predictions: Sequence) -> dict[str, float]:
    """
    Compares predictions with the true labels, using the metric of `emotion_metric.py`.

    Args:
        truth, predictions (`Sequence` of `str` or `int`): Labels, one per row.

    Returns:
        `dict` with `wa`, accuracy; `uar`, mean recall, and `macro_f1`, mean F1, over the labels that occur in `truth`;
        and `weighted_f1`, F1 weighted by support; each in [0, 1].

    Raises:
        ValueError: If there are no rows, or the lengths differ.
    """
    if not len(truth) or len(truth) != len(predictions):
        raise ValueError(
            f"Got {len(truth)} true labels but {len(predictions)} predictions; they must match 1:1 and not be empty."
        )
    _, ids = np.unique([*truth, *predictions], return_inverse=True)
    return _emotion_metric().compute(references=ids[: len(truth)], predictions=ids[len(truth) :])


def confusions(truth: np.ndarray, predictions: np.ndarray, num_labels: int) -> np.ndarray:
    """
    Returns one confusion matrix per row, with a 1 at `[truth, prediction]`; shape `(rows, num_labels, num_labels)`.

    Their sum over rows is the confusion matrix; the bootstrap sums them over resampled rows.
    """
    matrices = np.zeros((len(truth), num_labels, num_labels))
    matrices[np.arange(len(truth)), truth, predictions] = 1
    return matrices


def _ratio(numerator: np.ndarray, denominator: np.ndarray, otherwise: float) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, otherwise), where=denominator > 0)


def class_measures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """
    Computes the measures of each label.

    Args:
        confusion (`np.ndarray` of shape `(..., labels, labels)`): Counts, indexed by truth and prediction.

    Returns:
        `dict` with `support`, `precision`, `recall` and `f1`, each of shape `(..., labels)`. A label that is never
        predicted has precision 0; recall and F1 of a label that never occurs are NaN.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    f1 = np.where(support > 0, _ratio(2 * hits, support + predicted, 0.0), np.nan)
    return {
        "support": support,
        "precision": _ratio(hits, predicted, 0.0),
        "recall": _ratio(hits, support, np.nan),
        "f1": f1,
    }


def overall_measures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the measures of [`emotion_metrics`], `(...)`, of confusion matrices, `(..., labels, labels)`."""
    labels = class_measures(confusion)
    total = confusion.sum(axis=(-2, -1))
    return {
        "wa": np.trace(confusion, axis1=-2, axis2=-1) / total,
        "uar": np.nanmean(labels["recall"], axis=-1),
        "macro_f1": np.nanmean(labels["f1"], axis=-1),
        "weighted_f1": np.nansum(labels["support"] * labels["f1"], axis=-1) / total,
    }


def calibration_bins(scores: np.ndarray, truth: np.ndarray, bins: int = 15) -> np.ndarray:
    """
    Computes what each row adds to the reliability diagram.

    Args:
        scores (`np.ndarray` of shape `(rows, labels)`): Probabilities.
        truth (`np.ndarray` of shape `(rows,)`): Indices of the true labels.
        bins (`int`, *optional*, defaults to 15): Bins of equal width over the confidence, the highest score of a row.

    Returns:
        `np.ndarray` of shape `(rows, bins, 3)`: in the row's bin 1, the confidence, and 1 if the prediction is
        correct; zeros elsewhere.
    """
    confidence = scores.max(axis=-1)
    # Each bin includes its upper edge, so that a confidence of 1 is in the last bin.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    values = np.zeros((len(scores), bins, 3))
    values[np.arange(len(scores)), index] = np.stack(
        [np.ones(len(scores)), confidence, scores.argmax(axis=-1) == truth], axis=-1
    )
    return values


def calibration_error(bins: np.ndarray) -> np.ndarray:
    """Returns the ECE, `(...)`, of sums of [`calibration_bins`], `(..., bins, 3)`."""
    return np.abs(bins[..., 1] - bins[..., 2]).sum(axis=-1) / bins[..., 0].sum(axis=-1)


def expected_calibration_error(scores: np.ndarray, truth: np.ndarray, bins: int = 15) -> float:
    """
    Returns the ECE: the distance of confidence and accuracy in each bin, weighted by the rows of the bin.

    See [`calibration_bins`] for the arguments.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017).
    """
    return float(calibration_error(calibration_bins(scores, truth, bins).sum(axis=0)))
