"""
Recordings of noise for augmentation, from a folder of audio files.

Deliberate choices:
- Recordings are loaded on first use and kept, up to a bound: decoding one takes longer than all other augmentations.
- A stretch always contains a loud sample. Corpora of sounds pad short recordings with zeros, and noise that is silent
  has no signal-to-noise ratio.
"""

from pathlib import Path

import numpy as np

from mmemo.audio.loading import AUDIO_SUFFIXES, AudioBlocks, is_silent, to_mono
from modeling_mmemo.data.fingerprints import file_fingerprint


RECORDING_SECONDS = 60.0  # of a longer recording only the beginning is used
MAX_SAMPLES = 2**26  # 70 minutes at 16 kHz, 256 MiB


class NoiseRecordings:
    """
    The recordings of a folder and its subfolders.

    Args:
        folder (`str` or `Path`): Folder with audio files of any format that [`load_audio`] reads.
        max_samples (`int`, *optional*, defaults to 2^26):
            Number of samples that are kept in memory by each process; the recordings that were loaded first are
            dropped, and loaded again when they are drawn.

    Raises:
        ValueError: If the folder does not exist or contains no audio files.
    """

    def __init__(self, folder: str | Path, max_samples: int = MAX_SAMPLES):
        # Sorted, so that a seed draws the same recordings on every machine.
        self.paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        if not self.paths:
            raise ValueError(
                f"noise_dir={str(folder)!r} contains no audio files; name a folder with recordings of noise "
                f"({', '.join(sorted(AUDIO_SUFFIXES))})."
            )
        self.max_samples = max_samples
        self._loaded: dict[tuple[Path, int], np.ndarray] = {}

    def __getstate__(self) -> dict:
        # Workers of a DataLoader load recordings themselves.
        return self.__dict__ | {"_loaded": {}}

    def draw(self, num_samples: int, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
        """
        Returns a random stretch of a random recording, which is repeated if it is shorter.

        Args:
            num_samples (`int`): Number of samples.
            sampling_rate (`int`): Their sampling rate in Hz.
            rng (`np.random.Generator`): Draws the recording and the stretch.

        Returns:
            `np.ndarray` of shape `(num_samples,)`: Float32 samples, at least one of which is as loud as the RMS level
            of the recording.

        Raises:
            ValueError: If the recording cannot be read or is silent.
        """
        recording = self._load(self.paths[rng.integers(len(self.paths))], sampling_rate)
        level = np.abs(recording)
        loud = np.flatnonzero(level >= min(np.sqrt(np.mean(np.square(recording))), level.max()))
        start = rng.choice(loud) - rng.integers(num_samples)
        if len(recording) > num_samples:
            start = np.clip(start, 0, len(recording) - num_samples)
        return recording[np.arange(start, start + num_samples) % len(recording)]

    def fingerprints(self) -> list[str]:
        """Returns a string for each recording that changes when its file changes; see [`file_fingerprint`]."""
        return [file_fingerprint(path) for path in self.paths]

    def _load(self, path: Path, sampling_rate: int) -> np.ndarray:
        key = (path, sampling_rate)
        if key not in self._loaded:
            recording = _read(path, sampling_rate)
            while self._loaded and self.num_samples + len(recording) > self.max_samples:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[key] = recording
        return self._loaded[key]

    @property
    def num_samples(self) -> int:
        """Number of samples in memory."""
        return sum(map(len, self._loaded.values()))


def _read(path: Path, sampling_rate: int) -> np.ndarray:
    """Returns the beginning of a recording, mono and without a constant offset."""
    blocks = AudioBlocks(str(path), target_sampling_rate=sampling_rate, block_seconds=RECORDING_SECONDS)
    limit = round(RECORDING_SECONDS * sampling_rate)
    parts, length = [], 0
    for block in blocks:
        parts.append(to_mono(block))
        length += block.shape[1]
        if length >= limit:
            break
    samples = np.concatenate(parts)[:limit]
    if is_silent(samples):
        raise ValueError(f"{path} in noise_dir is silent; remove it.")
    return samples - samples.mean()
