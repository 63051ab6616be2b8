"""PCM: samples as integers, and as raw bytes without a header."""

import numpy as np


ENCODINGS = {"pcm_s16le": "<i2", "pcm_f32le": "<f4", "mulaw": "u1"}


def as_floats(samples: np.ndarray) -> np.ndarray:
    """Converts samples of any shape, floats or PCM, to float32; PCM to [-1, 1]."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large becomes infinite, which is refused later
            return samples.astype(np.float32, copy=False)
    middle = 2 ** (8 * samples.dtype.itemsize - 1)
    return (samples.astype(np.float32) - (middle if samples.dtype.kind == "u" else 0)) / middle


def _mu_law_values() -> np.ndarray:
    """
    Returns the samples of the 256 mu-law codes, as float32 of shape `(256,)`.

    A code has inverted bits: a sign, 3 bits of exponent and 4 of mantissa. Source: ITU-T G.711.
    """
    codes = ~np.arange(256, dtype=np.uint8)
    exponents, mantissas = (codes >> 4 & 7).astype(int), (codes & 15).astype(int)
    magnitudes = ((mantissas << 3) + 132 << exponents) - 132
    return (np.where(codes & 128, -magnitudes, magnitudes) / 2**15).astype(np.float32)


MU_LAW = _mu_law_values()


class PcmDecoder:
    """
    Decodes interleaved PCM or mu-law, chunk by chunk. A chunk may end within a sample.

    Args:
        encoding (`str`): `"pcm_s16le"`, `"pcm_f32le"` or `"mulaw"`.
        channels (`int`): Number of channels, which are averaged.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(self, encoding: str, channels: int = 1):
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding={encoding!r} must be one of {sorted(ENCODINGS)}.")
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels={channels!r} must be a positive integer.")
        self._dtype = np.dtype(ENCODINGS[encoding])
        self._channels = channels
        self._rest = b""

    def __call__(self, chunk: bytes) -> np.ndarray:
        """Returns the samples that are complete, as float32 of shape `(samples,)`."""
        data = self._rest + chunk
        frame_bytes = self._dtype.itemsize * self._channels
        end = len(data) // frame_bytes * frame_bytes
        self._rest = data[end:]
        samples = np.frombuffer(data[:end], self._dtype).reshape(-1, self._channels)
        samples = MU_LAW[samples] if self._dtype.kind == "u" else as_floats(samples)
        return samples.mean(axis=1, dtype=np.float32)
