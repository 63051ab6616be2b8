"""Bootstrap intervals over speakers: rows of one speaker are alike, so whole speakers are drawn, not rows.

Every measure here is a function of sums over rows (of confusion matrices, of calibration bins). So the rows are summed
once a speaker, and a resample is a weighted sum of few matrices. Resamples depend on the groups and the seed alone:
those of two conditions over the same rows are paired, and their difference can be taken resample by resample.
"""

import numpy as np


SAMPLES = 1000
LEVEL = 0.95


def speaker_groups(speakers: list[str | None]) -> tuple[np.ndarray, str]:
    """The group of each row, and what the groups are: `"speakers"`, or `"rows"` where fewer than two are known.

    A row without a speaker is a group of its own.
    """
    if len(set(speakers) - {None}) < 2:
        return np.arange(len(speakers)), "rows"
    named = [f"row {index}" if speaker is None else f"speaker {speaker}" for index, speaker in enumerate(speakers)]
    return np.unique(named, return_inverse=True)[1], "speakers"


def resampled_sums(values: np.ndarray, groups: np.ndarray, samples: int = SAMPLES, seed: int = 0) -> np.ndarray:
    """Sums values over groups that are drawn with replacement, as many as there are.

    Args:
        values (`np.ndarray` of shape `(rows, ...)`): What is summed.
        groups (`np.ndarray` of shape `(rows,)`): Group of each row, numbered from 0.
        samples (`int`, *optional*, defaults to 1000): Number of resamples.
        seed (`int`, *optional*, defaults to 0): Of the draws.

    Returns:
        `np.ndarray` of shape `(samples, ...)`.

    Raises:
        ValueError: If there are fewer than two groups.
    """
    count = int(groups.max()) + 1 if len(groups) else 0
    if count < 2:
        raise ValueError(
            f"Got {count} group(s); a bootstrap needs at least two. Pass a group for each row, np.arange(rows), to "
            "resample rows instead of speakers."
        )
    per_group = np.zeros((count, *values.shape[1:]))
    np.add.at(per_group, groups, values)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(samples)])
    return np.tensordot(drawn, per_group, axes=1)


def percentile_interval(resampled: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """The percentile interval of a measure from its resamples.

    Args:
        resampled (`np.ndarray` of shape `(samples, ...)`):
            The measure in each resample; NaN where it has none (a label that was not drawn).
        level (`float`, *optional*, defaults to 0.95): How much of the resamples the interval covers.

    Returns:
        `np.ndarray` of shape `(2, ...)`: its lower and upper end.
    """
    tail = (1 - level) / 2
    return np.nanquantile(resampled, [tail, 1 - tail], axis=0)
