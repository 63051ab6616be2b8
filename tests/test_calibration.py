import numpy as np
import pytest

from modeling_mmemo.training.calibration import RANGE, fit_quantiles, fit_temperature


def test_temperature_by_hand():
    logits = np.array([[2.0, 0.0]] * 4)
    labels = np.array([0, 0, 0, 1])

    temperature = fit_temperature(logits, labels)

    # The prediction is right three times in four: 1 / (1 + exp(-2 / T)) = 3 / 4.
    assert temperature == pytest.approx(2 / np.log(3), rel=1e-3)


def test_perfect_predictions_get_the_lowest_temperature():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])

    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(RANGE[0], rel=1e-2)


def test_temperature_needs_rows():
    with pytest.raises(ValueError, match=r"no rows to fit a temperature on; give development data"):
        fit_temperature(np.zeros((0, 2)), np.zeros(0, int))


def test_quantiles_by_hand():
    # Four rows whose true labels score 0.9, 0.8, 0.5 and 0.1.
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.1, 0.9]])
    quantiles = fit_quantiles(np.log(scores), np.zeros(4, int))
    assert len(quantiles) == 101
    # Of the four and a fifth, new row: two in five have an error of at most 0.2, four in five of at most 0.9.
    assert [quantiles[level] for level in (20, 40, 60, 80, 81, 100)] == pytest.approx(
        [0.1, 0.2, 0.5, 0.9, 1, 1], abs=1e-4
    )


def test_new_rows_have_the_requested_coverage():
    rng = np.random.default_rng(0)

    def draw(rows):
        logits = rng.normal(scale=2, size=(rows, 4))
        probabilities = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)  # overconfident
        return logits, np.array([rng.choice(4, p=row) for row in probabilities])

    quantiles = fit_quantiles(*draw(500))
    logits, labels = draw(4000)
    errors = 1 - (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))[np.arange(4000), labels]
    for coverage in (0.5, 0.8, 0.9):
        assert np.mean(errors <= quantiles[round(100 * coverage)]) == pytest.approx(coverage, abs=0.04)


def test_quantiles_need_rows():
    with pytest.raises(ValueError, match=r"no rows to fit quantiles on"):
        fit_quantiles(np.zeros((0, 2)), np.zeros(0, int))
