"""Calibration on development data: temperatures and biases for the scores, and quantiles for prediction sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax


RANGE = (0.05, 20.0)
# A temperature within this factor of an end of the range is at the end.
NEAR = 1.05
# With fewer rows the temperature is mostly noise. For random logits of 7 labels with a true temperature of 1.5, 90 %
# of the fits are between 0.3 and 6.1 with 4 rows, 1.0 and 2.6 with 20, 1.1 and 1.9 with 50, 1.3 and 1.7 with 300.
MIN_ROWS = 50
# The scores of a single speaker do not show how sure the model may be about others.
MIN_SPEAKERS = 2


@dataclass(frozen=True)
class Calibration:
    """
    The calibration of the scores for one set of modalities.

    Args:
        temperature (`float`, *optional*): The divisor of the logits; `None` if none could be fitted.
        quantiles (`list[float]`, *optional*): See [`fit_quantiles`]; `None` if there are too few rows or speakers.
        description (`str`): What was fitted, or why not.
    """

    temperature: float | None
    quantiles: list[float] | None
    description: str


def calibrate_scores(logits: np.ndarray, labels: np.ndarray, speakers: Sequence[str | None]) -> Calibration:
    """
    Fits a temperature and quantiles where the development rows support them.

    Args:
        logits (`np.ndarray` of shape `(rows, num_labels)`): The logits before division by a temperature.
        labels (`np.ndarray` of shape `(rows,)`): Indices of the true labels.
        speakers (`Sequence[str | None]`): The speaker of each clip; `None` if it is unknown, or for a text.

    Returns:
        [`Calibration`]: Without a temperature and quantiles for fewer than 50 rows, or rows of a single speaker;
        without a temperature if there is no best one: every prediction is correct, so that a lower one is always
        better, or it is at an end of `RANGE`, as for logits that do not depend on the label.
    """
    if len(labels) < MIN_ROWS:
        return Calibration(None, None, f"not fitted: {len(labels)} development rows, at least {MIN_ROWS} are needed")
    if None not in speakers and len(set(speakers)) < MIN_SPEAKERS:
        return Calibration(
            None, None, f"not fitted: all development rows are of one speaker, at least {MIN_SPEAKERS} are needed"
        )
    temperature: float | None = round(fit_temperature(logits, labels), 4)
    description = f"temperature {temperature:.2f}"
    if (logits.argmax(axis=1) == labels).all():
        temperature, description = None, "temperature not fitted: every prediction is correct"
    elif not RANGE[0] * NEAR < temperature < RANGE[1] / NEAR:
        description = f"temperature not fitted: the best one, {temperature:.2f}, is at the end of its range {RANGE}"
        temperature = None
    quantiles = fit_quantiles(logits / (temperature or 1.0), labels)
    covered = np.floor(100 * len(labels) / (len(labels) + 1))
    return Calibration(temperature, quantiles, f"{description}; prediction sets up to {covered:.0f} % coverage")


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


def fit_biases(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Returns the biases that, added to the logits, maximise the likelihood of the labels together with a temperature.

    Args:
        logits (`np.ndarray` of shape `(rows, num_labels)`): The logits before division by a temperature.
        labels (`np.ndarray` of shape `(rows,)`): Indices of the true labels.

    Returns:
        `np.ndarray` of shape `(num_labels,)`: Biases with mean 0 over the labels that occur; 0 for the others.

    Raises:
        ValueError: If there are no rows.

    Source: Alexandari et al., "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift
    Adaptation", 2020 (bias-corrected temperature scaling).
    """
    if not len(labels):
        raise ValueError("There are no rows to fit biases on; give development data.")
    occurring, targets = np.unique(labels, return_inverse=True)
    kept = logits[:, occurring]
    is_target = np.eye(len(occurring))[targets]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        temperature = np.exp(parameters[0])
        scaled = (kept + parameters[1:]) / temperature
        log_probs = log_softmax(scaled, axis=1)
        errors = np.exp(log_probs) - is_target
        gradient = np.append(-(errors * scaled).sum(axis=1).mean(), errors.mean(axis=0) / temperature)
        return -log_probs[is_target == 1].mean(), gradient

    bounds = [tuple(np.log(RANGE))] + len(occurring) * [(-10, 10)]
    fitted = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds).x[1:]
    biases = np.zeros(logits.shape[1])
    biases[occurring] = fitted - fitted.mean()
    return biases


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
