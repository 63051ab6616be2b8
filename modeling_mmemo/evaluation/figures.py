"""From scores to figures: each a value with its 95 % bootstrap interval, ready for `results.json`."""

from collections.abc import Callable
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
Statistic = Callable[[np.ndarray], np.ndarray]


def figure(value: float, interval: np.ndarray) -> Figure:
    """A value and its interval, rounded to four decimals."""
    return {"value": round(float(value), 4), "interval": [round(float(end), 4) for end in interval]}


def label_ids(values: list[str], labels: list[str]) -> np.ndarray:
    """The indices of `values` among the model's labels.

    Raises:
        ValueError: If the model does not know one.
    """
    if unknown := sorted(set(values) - set(labels)):
        raise ValueError(f"The rows have labels {unknown}, which the model does not know; it answers {labels}.")
    return np.array([labels.index(value) for value in values])


class Figures:
    """Figures of scores over one set of rows.

    Args:
        truth (`list[str]`): The label of each row.
        speakers (`list[str | None]`): The speaker of each row.
        labels (`list[str]`): The model's labels, in the order of its scores.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Raises:
        ValueError: If the model does not know a label.
    """

    def __init__(self, truth: list[str], speakers: list[str | None], labels: list[str], seed: int = 0):
        self.truth, self.labels, self.seed = label_ids(truth, labels), labels, seed
        self.groups, self.resampled = speaker_groups(speakers)

    def rows(self) -> dict[str, int | str]:
        """How many rows there are, and what the intervals are over."""
        return {"rows": len(self.truth), "groups": len(np.unique(self.groups)), "resampled": self.resampled}

    def overall(self, scores: np.ndarray) -> dict[str, Figure]:
        """WA, UAR, macro-F1, weighted F1 and ECE of scores of shape `(rows, labels)`."""
        values = emotion_metrics(self.truth, scores.argmax(axis=-1))
        values["ece"] = expected_calibration_error(scores, self.truth)
        resampled = overall_measures(self._resample(self._confusions(scores)))
        resampled["ece"] = calibration_error(self._resample(calibration_bins(scores, self.truth)))
        return {name: figure(value, percentile_interval(resampled[name])) for name, value in values.items()}

    def difference(self, scores: np.ndarray, baseline: np.ndarray) -> dict[str, Figure]:
        """What scores have over a baseline on the same rows and the same resamples: WA and UAR."""
        matrices = [self._confusions(answers) for answers in (scores, baseline)]
        ours, theirs = (overall_measures(matrix.sum(axis=0)) for matrix in matrices)
        our_resampled, their_resampled = (overall_measures(self._resample(matrix)) for matrix in matrices)
        return {
            name: figure(ours[name] - theirs[name], percentile_interval(our_resampled[name] - their_resampled[name]))
            for name in ("wa", "uar")
        }

    def shares(self, values: np.ndarray) -> list[Figure]:
        """The means over rows of values of shape `(rows, columns)`."""
        resampled = self._resample(np.concatenate([values, np.ones((len(values), 1))], axis=1))
        return _figures(values.mean(axis=0), resampled[:, :-1] / resampled[:, -1:])

    def per_class(self, scores: np.ndarray) -> dict[str, dict[str, Figure | int | None]]:
        """Support, precision, recall and F1 of each label; `None` where there is no such measure."""
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
        """The confusion matrix: `counts`, and the `shares` of each true label's rows (`None` where it has none)."""
        matrices = self._confusions(scores)
        counts, resampled = matrices.sum(axis=0), self._resample(matrices)
        # The share of a label that is never true, or was not drawn, is 0 / 0.
        with np.errstate(invalid="ignore"):
            shares, resampled = (matrix / matrix.sum(axis=-1, keepdims=True) for matrix in (counts, resampled))
        return {
            "counts": counts.astype(int).tolist(),
            "shares": [_figures(shares[row], resampled[:, row]) for row in range(len(self.labels))],
        }

    def reliability(self, scores: np.ndarray) -> list[dict[str, Any]]:
        """The bins of the reliability diagram that hold rows: their number, mean confidence and accuracy."""
        bins = calibration_bins(scores, self.truth)
        sums = bins.sum(axis=0)
        filled = sums[:, 0] > 0
        rows, confidence, right = sums[filled].T
        resampled = self._resample(bins[:, filled])
        with np.errstate(invalid="ignore"):
            accuracy = _figures(right / rows, resampled[..., 2] / resampled[..., 0])
        return [
            {"rows": int(count), "confidence": round(float(mean), 4), "accuracy": share}
            for count, mean, share in zip(rows, confidence / rows, accuracy)
        ]

    def _confusions(self, scores: np.ndarray) -> np.ndarray:
        return confusions(self.truth, scores.argmax(axis=-1), len(self.labels))

    def _resample(self, values: np.ndarray) -> np.ndarray:
        return resampled_sums(values, self.groups, seed=self.seed)


def _figures(values: np.ndarray, resampled: np.ndarray) -> list[Figure | None]:
    """Figures of `values` of shape `(columns,)` with resamples of shape `(samples, columns)`; `None` for NaN."""
    return [
        None if np.isnan(value) else figure(value, percentile_interval(resampled[:, column]))
        for column, value in enumerate(values)
    ]
