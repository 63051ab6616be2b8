"""
Linear heads on fixed vectors: multinomial logistic regression on standardised vectors, from one row per label on.

Deliberate choices:
- All labels have the same total weight, since the recall of each label is what counts (UAR).
- The variance of each dimension is shrunk to the mean variance: of a few rows it is mostly noise.
- The strength of the penalty is cross-validated by the log-likelihood, so that the scores of heads are on one scale:
  the vote of several heads then ignores a modality that says nothing about the labels.
- Folds are of speakers where every label has several, otherwise of rows.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold


# Inverse strengths of the penalty to choose from.
STRENGTHS = tuple(10.0**power for power in range(-4, 1))
# Without rows to validate it on.
FIXED_STRENGTH = 1e-2
# The mean variance counts as much as this many rows.
PRIOR_ROWS = 100
MAX_FOLDS, MAX_INNER_FOLDS = 5, 3
# The logit of a label without rows in a fold.
ABSENT_LOGIT = -7.0

Folds = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class LinearHead:
    """
    Weights and biases of a head, as of `nn.Linear`.

    Args:
        weight (`np.ndarray` of shape `(num_labels, width)`), bias (`np.ndarray` of shape `(num_labels,)`):
            The parameters, for vectors that are not standardised.
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the logits, `(rows, num_labels)`, of vectors of shape `(rows, width)`."""
        return vectors @ self.weight.T + self.bias


def fit_head(vectors: np.ndarray, ids: np.ndarray, num_labels: int, strength: float) -> LinearHead:
    """
    Fits a head; the standardisation of the vectors becomes part of its parameters.

    Args:
        vectors (`np.ndarray` of shape `(rows, width)`): The vectors.
        ids (`np.ndarray` of shape `(rows,)`): Indices of the labels, at least two different ones.
        num_labels (`int`): Number of labels; one without rows gets a logit of `ABSENT_LOGIT`.
        strength (`float`): Inverse strength of the penalty, `C` of scikit-learn.
    """
    mean, std = standardization(vectors)
    fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000).fit((vectors - mean) / std, ids)
    weights, biases = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:
        # Of two labels scikit-learn returns the difference.
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    weight, bias = np.zeros((num_labels, vectors.shape[1])), np.full(num_labels, ABSENT_LOGIT)
    weight[fitted.classes_] = weights / std
    bias[fitted.classes_] = biases - weight[fitted.classes_] @ mean
    return LinearHead(weight, bias)


def standardization(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of vectors of shape `(rows, width)`, the variance shrunk to its mean
    over all dimensions; each of shape `(width,)`."""
    rows, variance = len(vectors), vectors.var(axis=0)
    std = np.sqrt((rows * variance + PRIOR_ROWS * variance.mean()) / (rows + PRIOR_ROWS))
    return vectors.mean(axis=0), np.where(std > 0, std, 1.0)


def make_folds(ids: np.ndarray, groups: np.ndarray, max_folds: int = MAX_FOLDS, seed: int = 0) -> tuple[Folds, str]:
    """
    Returns folds that have all labels as far as possible, and what they are made of.

    Args:
        ids (`np.ndarray` of shape `(rows,)`): Indices of the labels.
        groups (`np.ndarray` of shape `(rows,)`): The speaker of each row, numbered.
        max_folds (`int`, *optional*, defaults to 5): Maximum number of folds.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        `tuple[list, str]`: Indices of the rows to fit on and of those to test on, of each fold; and `"speakers"`, or
        `"rows"` if a label has a single speaker. No folds, and an empty string, if a label has a single row.
    """
    of_labels = [groups[ids == label] for label in np.unique(ids)]
    for unit, least in (
        ("speakers", min(len(np.unique(speakers)) for speakers in of_labels)),
        ("rows", min(map(len, of_labels))),
    ):
        if least < 2:
            continue
        splitter = StratifiedGroupKFold if unit == "speakers" else StratifiedKFold
        folds = splitter(min(max_folds, least), shuffle=True, random_state=seed)
        parts = folds.split(ids, ids, groups if unit == "speakers" else None)
        return [(train, test) for train, test in parts if len(np.unique(ids[train])) > 1], unit
    return [], ""


def choose_strength(vectors: np.ndarray, ids: np.ndarray, groups: np.ndarray, num_labels: int, seed: int = 0) -> float:
    """
    Returns the one of `STRENGTHS` with the highest cross-validated likelihood; arguments as in [`fit_head`] and
    [`make_folds`]. Without folds it is `FIXED_STRENGTH`.
    """
    folds, _ = make_folds(ids, groups, MAX_INNER_FOLDS, seed)
    if not folds:
        return FIXED_STRENGTH
    weights = 1 / np.bincount(ids, minlength=num_labels)[ids]

    def loss(strength: float) -> float:
        total = 0.0
        for train, test in folds:
            logits = fit_head(vectors[train], ids[train], num_labels, strength).logits(vectors[test])
            total -= weights[test] @ log_softmax(logits, axis=1)[np.arange(len(test)), ids[test]]
        return total

    return min(STRENGTHS, key=loss)


def held_out_logits(
    vectors: np.ndarray, ids: np.ndarray, groups: np.ndarray, num_labels: int, folds: Folds, seed: int = 0
) -> np.ndarray:
    """
    Returns the logits of each row by a head that was fitted, with its penalty, on the other folds.

    Args:
        vectors (`np.ndarray` of shape `(rows, width)`): The vectors; NaN in rows without one.
        ids, groups, num_labels, seed: See [`choose_strength`].
        folds (`Folds`): See [`make_folds`].

    Returns:
        `np.ndarray` of shape `(rows, num_labels)`: 0 in rows without a vector or without a head.
    """
    has = ~np.isnan(vectors).any(axis=1)
    logits = np.zeros((len(ids), num_labels))
    for train, test in folds:
        train, test = train[has[train]], test[has[test]]
        if len(np.unique(ids[train])) < 2 or not len(test):
            continue
        strength = choose_strength(vectors[train], ids[train], groups[train], num_labels, seed)
        logits[test] = fit_head(vectors[train], ids[train], num_labels, strength).logits(vectors[test])
    return logits
