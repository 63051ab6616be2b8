import numpy as np
import pytest

from modeling_mmemo.training.calibration import RANGE, fit_temperature


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
