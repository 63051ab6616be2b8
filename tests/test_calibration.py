import re

import numpy as np
import pytest

from modeling_mmemo.training.calibration import (
    MIN_ROWS,
    RANGE,
    calibrate_scores,
    fit_biases,
    fit_quantiles,
    fit_temperature,
)


def test_temperature_by_hand():
    logits = np.array([[2.0, 0.0]] * 4)
    labels = np.array([0, 0, 0, 1])

    temperature = fit_temperature(logits, labels)

    # The prediction is right three times in four: 1 / (1 + exp(-2 / T)) = 3 / 4.
    assert temperature == pytest.approx(2 / np.log(3), rel=1e-3)


def test_biases_undo_a_shift_of_the_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    shift = np.array([0.6, -0.4, -0.2])

    assert fit_biases(2 * (logits - shift), labels) == pytest.approx(2 * shift, abs=0.15)


def test_a_label_without_rows_keeps_its_bias():
    biases = fit_biases(np.array([[2.0, 0.0, 5.0]] * 4), np.array([0, 0, 0, 1]))

    assert biases[2] == 0 and biases[:2].sum() == pytest.approx(0)
    with pytest.raises(ValueError, match=r"no rows to fit biases on; give development data"):
        fit_biases(np.zeros((0, 2)), np.zeros(0, int))


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


def drawn(rows, temperature=2.0):
    """Logits, and labels drawn from their softmax at a temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(rows, 4))
    probabilities = np.exp(logits / temperature)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return logits, np.array([rng.choice(4, p=row) for row in probabilities])


@pytest.mark.parametrize("speakers", [["a", "b"] * 100, [None] * 200])
def test_enough_rows_are_calibrated(speakers):
    logits, labels = drawn(200)

    found = calibrate_scores(logits, labels, speakers)

    assert found.temperature == round(fit_temperature(logits, labels), 4)
    assert found.quantiles == fit_quantiles(logits / found.temperature, labels)
    assert found.description == f"temperature {found.temperature:.2f}; prediction sets up to 99 % coverage"


@pytest.mark.parametrize(
    ("rows", "speakers", "reason"),
    [
        # The case "temperature_cap": 4 rows of one speaker.
        (4, "a", "not fitted: 4 development rows, at least 50 are needed"),
        (MIN_ROWS - 1, "ab", "not fitted: 49 development rows, at least 50 are needed"),
        (200, "a", "not fitted: all development rows are of one speaker, at least 2 are needed"),
    ],
)
def test_few_rows_or_speakers_are_not_calibrated(rows, speakers, reason):
    found = calibrate_scores(*drawn(rows), [speakers[index % len(speakers)] for index in range(rows)])

    assert (found.temperature, found.quantiles, found.description) == (None, None, reason)


@pytest.mark.parametrize(
    ("sign", "reason"), [(-1, r"the best one, 20\.00, is at the end of its range"), (1, "every prediction is correct")]
)
def test_without_a_best_temperature_none_is_used(sign, reason):
    labels = np.arange(60) % 4
    logits = sign * 5.0 * np.eye(4)[labels]

    found = calibrate_scores(logits, labels, [None] * 60)

    assert found.temperature is None
    assert found.quantiles == fit_quantiles(logits, labels)
    assert re.match(f"temperature not fitted: {reason}", found.description)
