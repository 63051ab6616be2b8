import numpy as np
import pytest

from modeling_mmemo.evaluation.bootstrap import percentile_interval, resampled_sums, speaker_groups


def test_rows_of_a_speaker_are_drawn_together():
    # All ten rows of speaker 0 are correct, all ten of speaker 1 wrong.
    correct, groups = np.repeat([1.0, 0.0], 10), np.repeat([0, 1], 10)

    shares = resampled_sums(correct, groups) / 20

    assert set(shares) == {
        0,
        0.5,
        1,
    }  # both drawn, or one of them twice; drawing rows would give all shares in between
    assert np.mean(shares == 0.5) == pytest.approx(0.5, abs=0.05)
    assert percentile_interval(shares).tolist() == [0, 1]


def test_resamples_depend_only_on_groups_and_seed():
    groups = np.array([0, 1, 1, 2, 3])
    values = np.random.default_rng(0).random((5, 2))

    first = resampled_sums(values, groups, samples=20)

    np.testing.assert_allclose(resampled_sums(3 * values, groups, samples=20), 3 * first)
    assert not np.allclose(resampled_sums(values, groups, samples=20, seed=1), first)


def test_intervals_have_the_nominal_coverage():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    covered = 0
    for _ in range(200):
        speakers = rng.normal(size=40)
        values = np.stack([speakers[groups] + rng.normal(size=200), np.ones(200)], axis=1)
        sums = resampled_sums(values, groups, samples=200)
        low, high = percentile_interval(sums[:, 0] / sums[:, 1])
        covered += low <= 0 <= high

    assert 0.88 <= covered / 200 <= 0.99


def test_nan_resamples_are_ignored():
    assert percentile_interval(np.array([0.0, np.nan, 1.0]), level=1.0).tolist() == [0, 1]


def test_one_group_raises():
    with pytest.raises(ValueError, match=r"Got 1 group\(s\); a bootstrap needs at least two"):
        resampled_sums(np.ones(3), np.zeros(3, int))


def test_rows_without_a_speaker_are_their_own_group():
    groups, unit = speaker_groups(["b", "a", None, "b", None])

    assert unit == "speakers"
    assert len(set(groups)) == 4
    assert groups[0] == groups[3]


@pytest.mark.parametrize("speakers", [["a", "a", "a"], [None, None, None], ["a", None, "a"]])
def test_rows_are_resampled_if_fewer_than_two_speakers_are_known(speakers):
    groups, unit = speaker_groups(speakers)

    assert unit == "rows"
    assert groups.tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("error")
def test_a_measure_without_resamples_has_no_interval():
    assert np.isnan(percentile_interval(np.full((10, 2), np.nan))).all()
