"""
Bootstrap intervals over speakers.

Deliberate choices:
- Rows of one speaker are correlated, so whole speakers are drawn, not rows.
- Every measure is a function of sums over rows (confusion matrices, calibration bins). Rows are summed once per
  speaker, and a resample is a weighted sum of a few matrices.
- Resamples depend only on the groups and the seed. Resamples of two conditions over the same rows are therefore
  paired, and their difference is computed resample by resample.
"""

import warnings

import numpy as np


SAMPLES = 1000
LEVEL = 0.95


def speaker_groups(speakers: list[str | None]) -> tuple[np.ndarray, str]:
    """
    Groups rows by speaker; a row without a speaker is a group of its own.

    Args:
        speakers (`list[str | None]`): The speaker of each row.

    Returns:
        `tuple[np.ndarray, str]`: The group of each row, numbered from 0, and their kind: `"speakers"`, or
        `"rows"` if fewer than two speakers are known.
    """
    if len(set(speakers) - {None}) < 2:
        return np.arange(len(speakers)), "rows"
    named = [f"row {index}" if speaker is None else f"speaker {speaker}" for index, speaker in enumerate(speakers)]
    return np.unique(named, return_inverse=True)[1], "speakers"


def resampled_sums(values: np.ndarray, groups: np.ndarray, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """
    Sums values over groups drawn with replacement; each resample draws as many groups as there are.

    Args:
        values (`np.ndarray` of shape `(rows, ...)`): Values to sum.
        groups (`np.ndarray` of shape `(rows,)`): Group of each row, numbered from 0.
        samples (`int`, *optional*, defaults to 1000): Number of resamples.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        `np.ndarray` of shape `(samples, ...)`.

    Raises:
        ValueError: If there are fewer than two groups.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    if count < 2:
        raise ValueError(
            f"Got {count} group(s); a bootstrap needs at least two. To resample rows instead of speakers, pass one "
            "group per row: np.arange(rows)."
        )
    per_group = np.zeros((count, *values.shape[1:]))
    np.add.at(per_group, groups, values)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(samples)])
    return np.tensordot(drawn, per_group, axes=1)


def percentile_interval(resampled: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """
    Returns the percentile interval of a measure.

    Args:
        resampled (`np.ndarray` of shape `(samples, ...)`):
            The measure in each resample; NaN where it is undefined (a label that was not drawn).
        level (`float`, *optional*, defaults to 0.95): Share of the resamples that the interval covers.

    Returns:
        `np.ndarray` of shape `(2, ...)`: lower and upper end; NaN where no resample has the measure.
    """
    tail = (1 - level) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN slice encountered")
        return np.nanquantile(resampled, [tail, 1 - tail], axis=0)
