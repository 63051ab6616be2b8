"""
Mel spectrograms, log-mel spectrograms and MFCCs of a batch of clips, in NumPy.

Deliberate choices:
- The frames of a whole batch are one strided view: one FFT per chunk, not one per clip.
- The FFT runs in double precision, as librosa's does: in single precision, bins 80 dB below a clip's maximum are off
  by up to 1e-3 dB.
- The filterbank is sparse, so it is multiplied in blocks of bands, each with the bins where it is not zero.
- Window, filterbank and cosines are arguments: librosa computes them, and an exported model loads them from a file.
"""

import math

import numpy as np


FEATURES = ("mel", "log_mel", "mfcc")
# Windowed samples per chunk. An FFT's temporary arrays take 28 bytes per sample: less than 2 MiB for any batch size;
# larger chunks exceed the CPU's cache and are slower.
CHUNK_SAMPLES = 2**16
BANDS_PER_BLOCK = 32
LOWEST_POWER = 1e-10


class MelAnalysis:
    """
    Computes the features of [`MMEmoFeatureExtractor`], which documents `preset`, `features`, `hop_length` and
    `loudness_dbfs`.

    Args:
        window (`np.ndarray` of shape `(n_fft,)`): The window of each frame.
        mel_filters (`np.ndarray` of shape `(n_mels, n_fft // 2 + 1)`): The filterbank.
        cosines (`np.ndarray` of shape `(n_mfcc, n_mels)`, float64): The DCT from decibels to MFCCs.
    """

    def __init__(
        self,
        preset: str,
        features: tuple[str, ...],
        hop_length: int,
        loudness_dbfs: float | None,
        window: np.ndarray,
        mel_filters: np.ndarray,
        cosines: np.ndarray,
    ):
        self.preset = preset
        self.features = features
        self.hop_length = hop_length
        self.loudness_dbfs = loudness_dbfs
        self.window = window
        self.mel_filters = mel_filters
        self.cosines = cosines
        self._blocks = _blocks(mel_filters.T)

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of a clip of `num_samples` samples."""
        frames = num_samples // self.hop_length
        return max(frames, 1) if self.preset == "whisper" else frames + 1

    def level(self, samples: np.ndarray) -> np.ndarray:
        """Scales a clip to the RMS level `loudness_dbfs`."""
        if self.loudness_dbfs is None:
            return samples
        rms = math.sqrt(np.mean(np.square(samples, dtype=np.float64)))
        return samples * (10 ** (self.loudness_dbfs / 20) / rms)

    def __call__(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """Returns the features of every clip, float32 of shape `(feature_size, frames)`."""
        return [self._stack(mel) for mel in self._mel_spectrograms(clips)]

    def _mel_spectrograms(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        """Returns the mel power of every clip, float32 of shape `(n_mels, frames)`."""
        # Every padded clip starts at a multiple of the hop in one long signal, so one strided view holds all frames.
        # The few frames that span two clips are computed too, and dropped.
        n_fft = len(self.window)
        lengths = [math.ceil((len(clip) + n_fft) / self.hop_length) * self.hop_length for clip in clips]
        starts = np.cumsum([0, *lengths])
        signal = np.zeros(starts[-1], np.float32)
        for clip, start in zip(clips, starts):
            padded = np.pad(clip, n_fft // 2, mode="reflect" if self.preset == "whisper" else "constant")
            signal[start : start + len(padded)] = padded
        frames = np.lib.stride_tricks.sliding_window_view(signal, n_fft)[:: self.hop_length]
        mel = np.empty((len(frames), len(self.mel_filters)), np.float32)
        step = max(1, CHUNK_SAMPLES // n_fft)
        for start in range(0, len(frames), step):
            spectrum = np.fft.rfft(frames[start : start + step] * self.window)
            power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
            for bins, bands, filters in self._blocks:
                np.matmul(power[:, bins], filters, out=mel[start : start + step, bands])
        firsts = starts // self.hop_length
        return [mel[first : first + self.num_frames(len(clip))].T for first, clip in zip(firsts, clips)]

    def _stack(self, mel: np.ndarray) -> np.ndarray:
        """Returns the features, of shape `(feature_size, frames)`, of mel power of shape `(n_mels, frames)`."""
        stacked = []
        for feature in self.features:
            if feature == "mel":
                stacked.append(mel)
            elif feature == "mfcc":
                stacked.append((self.cosines @ _power_to_db(mel)).astype(np.float32))
            elif self.preset == "librosa":
                stacked.append(_power_to_db(mel))
            else:
                log_mel = np.log10(np.maximum(mel, LOWEST_POWER))
                stacked.append((np.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0)
        return np.concatenate(stacked)


def pad(arrays: list[np.ndarray], width: int, value: float) -> np.ndarray:
    """Stacks arrays of shape `(..., length)` into one of shape `(batch, ..., width)`, padded with `value`."""
    padded = np.full((len(arrays), *arrays[0].shape[:-1], width), value, arrays[0].dtype)
    for row, array in zip(padded, arrays):
        row[..., : array.shape[-1]] = array
    return padded


def _power_to_db(mel: np.ndarray) -> np.ndarray:
    """Returns decibels re 1, at most 80 below the maximum, like `librosa.power_to_db` with its defaults."""
    decibels = 10.0 * np.log10(np.maximum(mel, LOWEST_POWER))
    return np.maximum(decibels, decibels.max() - 80.0)


def _blocks(mel_filters: np.ndarray) -> list[tuple[slice, slice, np.ndarray]]:
    """Splits a filterbank of shape `(bins, bands)` into blocks: the bins that are not zero, the bands, the filters."""
    blocks = []
    for band in range(0, mel_filters.shape[1], BANDS_PER_BLOCK):
        bands = slice(band, band + BANDS_PER_BLOCK)
        used = np.flatnonzero(np.any(mel_filters[:, bands], axis=1))
        bins = slice(min(used, default=0), max(used, default=0) + 1)
        blocks.append((bins, bands, mel_filters[bins, bands]))
    return blocks
