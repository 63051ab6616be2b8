"""What makes scores mean what they say, fitted on development data: temperatures, and quantiles for sets of labels."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax


RANGE = (0.05, 20.0)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature under which the labels are likeliest.

    Args:
        logits (`np.ndarray` of shape `(rows, num_labels)`): Undivided.
        labels (`np.ndarray` of shape `(rows,)`): Indices of the true labels.

    Raises:
        ValueError: If there are no rows.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    if not len(labels):
        raise ValueError("There are no rows to fit a temperature on; give development data.")

    def loss(log_temperature: float) -> float:
        log_probs = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -log_probs[np.arange(len(labels)), labels].mean()

    return float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))


def fit_quantiles(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """How far the true label's score is from 1: the quantiles that `coverage=` goes by.

    Args:
        logits (`np.ndarray` of shape `(rows, num_labels)`): Divided by the temperature.
        labels (`np.ndarray` of shape `(rows,)`): Indices of the true labels.

    Returns:
        `list[float]`: the quantiles at 0, 1, ..., 100 %, each corrected for the number of rows and rounded up, so that
        new rows of the same kind are covered at least so often.

    Raises:
        ValueError: If there are no rows.

    Source: Angelopoulos and Bates, "A Gentle Introduction to Conformal Prediction", 2021.
    """
    if not len(labels):
        raise ValueError("There are no rows to fit quantiles on; give development data.")
    lacking = np.sort(1 - softmax(logits, axis=1)[np.arange(len(labels)), labels])
    # Quantiles beyond what so few rows can tell are 1: every label is in the set.
    lacking = np.append(lacking, 1.0)
    ranks = np.ceil(np.arange(101) / 100 * (len(labels) + 1)).astype(int)
    return (np.ceil(lacking[np.maximum(ranks, 1) - 1] * 1e4) / 1e4).tolist()
