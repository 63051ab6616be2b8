"""
Whether the channels of a recording carry different voices, so that their mean would mix them.

Deliberate choices:
- Loudness over time is compared, not the samples: two microphones in one room record the same voice at different times
  and levels, but it is loud in both at once.
- Memory does not depend on the length: only sums over frames are kept.
"""

import numpy as np

from mmemo.audio.loading import AudioBlocks


FRAME_SECONDS = 0.05
# Below this correlation of the loudness of two channels they carry different signals. Stereo recordings of one room or
# of music are above 0.8, two voices below 0.5, and voices that take turns below 0.
DIFFERENT_BELOW = 0.6
# Channels that are quieter than the loudest one by more than this carry noise or crosstalk, which the mean tolerates.
AUDIBLE_DB = 30.0


def channels_differ(blocks: AudioBlocks) -> bool:
    """
    Whether at least two channels of a recording carry different signals, such as the two sides of a call.

    Args:
        blocks ([`AudioBlocks`]): The recording; if it has several channels, it is decoded once, in bounded memory.

    Raises:
        ValueError: If the recording is invalid; see [`AudioBlocks`].
    """
    channels = blocks.channels
    if channels < 2:
        return False
    frame_samples = round(FRAME_SECONDS * blocks.target_rate)
    frames, sums, products = 0, np.zeros(channels), np.zeros((channels, channels))
    rest = np.zeros((channels, 0), np.float32)
    for block in blocks:
        samples = np.concatenate([rest, block], axis=1)
        whole = samples.shape[1] // frame_samples
        rest = samples[:, whole * frame_samples :]
        # The standard deviation, since a constant offset is not sound.
        loudness = samples[:, : whole * frame_samples].reshape(channels, whole, frame_samples).std(axis=2)
        frames += whole
        sums += loudness.sum(axis=1, dtype=np.float64)
        products += loudness.astype(np.float64) @ loudness.T
    return frames > 1 and _least_correlation(frames, sums, products) < DIFFERENT_BELOW


def _least_correlation(frames: int, sums: np.ndarray, products: np.ndarray) -> float:
    """Returns the lowest correlation of the loudness of two audible channels; 1 if fewer are audible."""
    power = np.diag(products) / frames
    audible = power > max(power.max(), 1e-12) * 10 ** (-AUDIBLE_DB / 10)
    covariances = (products / frames - np.outer(sums, sums) / frames**2)[np.ix_(audible, audible)]
    deviations = np.sqrt(np.maximum(np.diag(covariances), 1e-18))
    return float((covariances / np.outer(deviations, deviations)).min(initial=1.0))
