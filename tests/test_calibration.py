import numpy as np
import pytest

from modeling_mmemo.training.calibration import RANGE, fit_quantiles, fit_temperature


def test_the_scores_become_as_right_as_they_say():
    logits = np.array([[2.0, 0.0]] * 4)
    labels = np.array([0, 0, 0, 1])

    temperature = fit_temperature(logits, labels)

    # The answer is right three times in four: 1 / (1 + exp(-2 / T)) = 3 / 4.
    assert temperature == pytest.approx(2 / np.log(3), rel=1e-3)


def test_answers_that_are_never_wrong_get_the_lowest_temperature():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])

    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(RANGE[0], rel=1e-2)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match=r"no rows to fit a temperature on; give development data"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))


def test_quantiles_by_hand():
    # Four rows whose true labels score 0.9, 0.8, 0.5 and 0.1.
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])
    quantiles = fit_quantiles(np.log(scores), np.zeros(4, int))
    assert len(quantiles) == 101
    # Of the four and a fifth, new one: two in five lack at most 0.2 to 1, four in five at most 0.9; more is not known.
    assert [quantiles[level] for level in (20, 40, 60, 80, 81, 100)] == pytest.approx(
        [0.1, 0.2, 0.5, 0.9, 1, 1], abs=1e-4
    )


def test_new_rows_of_the_same_kind_are_covered_as_often_as_promised():
    rng = np.random.default_rng(0)

    def draw(rows):
        logits = rng.normal(scale=2, size=(rows, 4))
        chances = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)  # surer than it should be
        return logits, np.array([rng.choice(4, p=row) for row in chances])

    quantiles = fit_quantiles(*draw(500))
    logits, labels = draw(4000)
    lacking = 1 - (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[np.arange(4000), labels]
    for coverage in (0.5, 0.8, 0.9):
        assert np.mean(lacking <= quantiles[round(100 * coverage)]) == pytest.approx(coverage, abs=0.04)


def test_no_rows_have_no_quantiles():
    with pytest.raises(ValueError, match=r"no rows to fit quantiles on"):
        fit_quantiles(np.zeros((0, 2)), np.zeros(0, int))
