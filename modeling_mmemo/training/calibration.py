"""Temperatures, fitted on development data, that make scores mean what they say."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax


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
