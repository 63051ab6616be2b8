"""Figures of scores, each a value with its 95 % bootstrap interval, as stored in `results.json`."""

from typing import Any

import numpy as np

from modeling_mmemo.evaluation.bootstrap import percentile_interval, resampled_sums, speaker_groups
from modeling_mmemo.evaluation.metrics import (
    calibration_bins,
    calibration_error,
    class_measures,
    confusions,
    emotion_metrics,
    expected_calibration_error,
    overall_measures,
)


Figure = dict[str, Any]


def figure(value: float, interval: np.ndarray) -> Figure | None:
    """Returns a value and its interval, rounded to four decimals; `None` instead of either where it is undefined."""
    if np.isnan(value):
        return None
    ends = None if np.isnan(interval).any() else [round(float(end), 4) for end in interval]
    return {"value": round(float(value), 4), "interval": ends}


def label_ids(values: list[str], labels: list[str]) -> np.ndarray:
    """
    Returns the indices of `values` among the model's labels.

    Raises:
        ValueError: If a value is not a label of the model.
    """
    if unknown := sorted(set(values) - set(labels)):
        raise ValueError(f"The rows have labels {unknown}, which the model does not have; its labels are {labels}.")
    return np.array([labels.index(value) for value in values])


class Figures:
    """
    Computes figures of scores over one set of rows.

    Args:
        truth (`list[str]`): Label of each row.
        speakers (`list[str | None]`): Speaker of each row.
        labels (`list[str]`): The model's labels, in the order of its scores.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap.

    Raises:
        ValueError: If a row has a label that the model does not have.
    """

    def __init__(self, truth: list[str], speakers: list[str | None], labels: list[str], seed: int = 0):
        self.truth, self.labels, self.seed = label_ids(truth, labels), labels, seed
        self.groups, self.resampled = speaker_groups(speakers)

    def rows(self) -> dict[str, int | str]:
        """Returns the number of rows and of resampled groups, and the kind of group."""
        return {"rows": len(self.truth), "groups": len(np.unique(self.groups)), "resampled": self.resampled}

    def overall(self, scores: np.ndarray) -> dict[str, Figure | None]:
        """Returns WA, UAR, macro-F1, weighted F1 and ECE of scores of shape `(rows, labels)`."""
        values = emotion_metrics(self.truth, scores.argmax(axis=-1))
        values["ece"] = expected_calibration_error(scores, self.truth)
        resampled = overall_measures(self._resample(self._confusions(scores)))
        resampled["ece"] = calibration_error(self._resample(calibration_bins(scores, self.truth)))
        return {name: figure(value, percentile_interval(resampled[name])) for name, value in values.items()}

    def difference(self, scores: np.ndarray, baseline: np.ndarray) -> dict[str, Figure | None]:
        """Returns WA and UAR minus those of a baseline, paired over the same rows and resamples."""
        matrices = [self._confusions(values) for values in (scores, baseline)]
        ours, theirs = (overall_measures(matrix.sum(axis=0)) for matrix in matrices)
        our_resampled, their_resampled = (overall_measures(self._resample(matrix)) for matrix in matrices)
        return {
            name: figure(ours[name] - theirs[name], percentile_interval(our_resampled[name] - their_resampled[name]))
            for name in ("wa", "uar")
        }

    def shares(self, values: np.ndarray) -> list[Figure | None]:
        """Returns the means over rows of values of shape `(rows, columns)`."""
        resampled = self._resample(np.concatenate([values, np.ones((len(values), 1))], axis=1))
        return _figures(values.mean(axis=0), resampled[:, :-1] / resampled[:, -1:])

    def per_class(self, scores: np.ndarray) -> dict[str, dict[str, Figure | int | None]]:
        """Returns support, precision, recall and F1 of each label; `None` where a measure is undefined."""
        matrices = self._confusions(scores)
        values, resampled = class_measures(matrices.sum(axis=0)), class_measures(self._resample(matrices))
        columns = {name: _figures(values[name], resampled[name]) for name in ("precision", "recall", "f1")}
        return {
            label: {
                "support": int(values["support"][index]),
                **{name: column[index] for name, column in columns.items()},
            }
            for index, label in enumerate(self.labels)
        }

    def confusion(self, scores: np.ndarray) -> dict[str, list]:
        """Returns the confusion matrix: `counts`, and `shares` of each true label's rows (`None` without rows)."""
        matrices = self._confusions(scores)
        counts, resampled = matrices.sum(axis=0), self._resample(matrices)
        # 0 / 0 for a label without rows, or one that was not drawn.
        with np.errstate(invalid="ignore"):
            shares, resampled = (matrix / matrix.sum(axis=-1, keepdims=True) for matrix in (counts, resampled))
        return {
            "counts": counts.astype(int).tolist(),
            "shares": [_figures(shares[row], resampled[:, row]) for row in range(len(self.labels))],
        }

    def reliability(self, scores: np.ndarray) -> list[dict[str, Any]]:
        """Returns row count, mean confidence and accuracy of each non-empty bin of the reliability diagram."""
        bins = calibration_bins(scores, self.truth)
        sums = bins.sum(axis=0)
        filled = sums[:, 0] > 0
        rows, confidence, correct = sums[filled].T
        resampled = self._resample(bins[:, filled])
        with np.errstate(invalid="ignore"):
            accuracy = _figures(correct / rows, resampled[..., 2] / resampled[..., 0])
        return [
            {"rows": int(count), "confidence": round(float(mean), 4), "accuracy": share}
            for count, mean, share in zip(rows, confidence / rows, accuracy)
        ]

    def _confusions(self, scores: np.ndarray) -> np.ndarray:
        return confusions(self.truth, scores.argmax(axis=-1), len(self.labels))

    def _resample(self, values: np.ndarray) -> np.ndarray:
        return resampled_sums(values, self.groups, seed=self.seed)


def _figures(values: np.ndarray, resampled: np.ndarray) -> list[Figure | None]:
    """Returns figures of `values`, `(columns,)`, with resamples `(samples, columns)`; `None` for NaN."""
    return [figure(value, percentile_interval(resampled[:, column])) for column, value in enumerate(values)]
