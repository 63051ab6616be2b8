import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from modeling_mmemo.training.linear_heads import (
    ABSENT_LOGIT,
    FIXED_STRENGTH,
    STRENGTHS,
    choose_strength,
    fit_head,
    held_out_logits,
    make_folds,
    standardization,
)


@pytest.fixture
def separable():
    """Vectors of three labels around different centres, of six speakers."""
    rng = np.random.default_rng(0)
    ids = np.tile(np.arange(3), 12)
    vectors = rng.normal(size=(36, 8)) + 3 * np.eye(3, 8)[ids]
    return vectors + 100.0, ids, np.repeat(np.arange(6), 6)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_head_has_the_scores_of_a_regression_on_standardised_vectors(separable, num_labels):
    vectors, ids, _ = separable
    vectors, ids = vectors[ids < num_labels], ids[ids < num_labels]
    mean, std = standardization(vectors)
    standard = (vectors - mean) / std
    expected = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000).fit(standard, ids)

    logits = fit_head(vectors, ids, num_labels, 0.1).logits(vectors)

    np.testing.assert_allclose(log_softmax(logits, axis=1), expected.predict_log_proba(standard), atol=1e-6)


def test_the_variance_of_few_rows_is_shrunk_to_its_mean():
    # Two rows with the variances 0 and 4: (2 * 0 + 100 * 2) / 102 and (2 * 4 + 100 * 2) / 102.
    mean, std = standardization(np.array([[1.0, 0.0], [1.0, 4.0]]))

    np.testing.assert_allclose(mean, [1, 2])
    np.testing.assert_allclose(std**2, [200 / 102, 208 / 102])
    assert standardization(np.ones((2, 3)))[1].tolist() == [1, 1, 1]


def test_constant_dimensions_and_labels_without_rows_do_not_break_a_head(separable):
    vectors, ids, _ = separable
    vectors[:, 5] = 7.0

    head = fit_head(vectors, ids + 1, 5, 0.1)

    assert np.isfinite(head.weight).all() and not head.weight[[0, 4]].any()
    assert head.bias[[0, 4]].tolist() == [ABSENT_LOGIT, ABSENT_LOGIT]


def test_folds_are_of_speakers_unless_a_label_has_only_one(separable):
    _, ids, speakers = separable
    folds, unit = make_folds(ids, speakers)

    assert unit == "speakers" and sorted(np.concatenate([test for _, test in folds])) == list(range(36))
    assert all(not set(speakers[train]) & set(speakers[test]) for train, test in folds)

    of_one = np.where(ids == 2, 9, speakers)
    folds, unit = make_folds(ids, of_one)
    assert unit == "rows" and all(set(ids[train]) == {0, 1, 2} for train, _ in folds)


def test_there_are_no_folds_with_a_single_row_of_a_label():
    ids, rows = np.array([0, 0, 1]), np.arange(3)

    assert make_folds(ids, rows) == ([], "")
    assert choose_strength(np.eye(3), ids, rows, 2) == FIXED_STRENGTH


def test_the_penalty_is_stronger_for_noise_than_for_clear_vectors(separable):
    vectors, ids, speakers = separable
    noise = np.random.default_rng(1).normal(size=(36, 8))

    assert choose_strength(noise, ids, speakers, 3) < choose_strength(vectors, ids, speakers, 3)
    assert choose_strength(vectors, ids, speakers, 3) in STRENGTHS


def test_held_out_logits_are_of_heads_without_the_speakers_of_the_row(separable):
    vectors, ids, speakers = separable
    folds, _ = make_folds(ids, speakers)
    missing = vectors.copy()
    missing[3] = np.nan

    logits = held_out_logits(missing, ids, speakers, 3, folds)

    assert not logits[3].any()
    has = np.arange(36) != 3
    assert (logits.argmax(axis=1) == ids)[has].mean() > 0.8
    # A label that only the vectors of one speaker reveal cannot be predicted from the others.
    leaky = np.random.default_rng(2).normal(size=(36, 2))
    leaky[speakers == 0] += 50 * np.eye(3, 2)[ids[speakers == 0]]
    assert (held_out_logits(leaky, ids, speakers, 3, folds).argmax(axis=1) == ids)[speakers == 0].mean() < 0.8
