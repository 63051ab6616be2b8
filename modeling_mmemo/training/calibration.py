"""Calibration on development data: temperatures for the scores, and quantiles for prediction sets."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax


RANGE = (0.05, 20.0)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """
    Returns the temperature, in `RANGE`, that maximises the likelihood of the labels.

    Args:
        logits (`np.ndarray` of shape `(rows, num_labels)`): The logits before division by a temperature.
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
    """
    Returns the quantiles of 1 minus the score of the true label, from which `coverage=` builds prediction sets.

    Args:
        logits (`np.ndarray` of shape `(rows, num_labels)`): The logits, divided by the temperature.
        labels (`np.ndarray` of shape `(rows,)`): Indices of the true labels.

    Returns:
        `list[float]`: The quantiles at 0, 1, ..., 100 %, each corrected for the number of rows and rounded up, so that
        prediction sets for new rows of the same kind have at least the requested coverage.

    Raises:
        ValueError: If there are no rows.

    Source: Angelopoulos and Bates, "A Gentle Introduction to Conformal Prediction", 2021.
    """
    if not len(labels):
        raise ValueError("There are no rows to fit quantiles on; give development data.")
    errors = np.sort(1 - softmax(logits, axis=1)[np.arange(len(labels)), labels])
    # A quantile that needs more rows is 1: the prediction set then holds every label.
    errors = np.append(errors, 1.0)
    ranks = np.ceil(np.arange(101) / 100 * (len(labels) + 1)).astype(int)
    return (np.ceil(errors[np.maximum(ranks, 1) - 1] * 1e4) / 1e4).tolist()
