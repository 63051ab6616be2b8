"""
Audio augmentation: noise, equalizer, gain, speed and telephone line on samples, SpecAugment on log-mel frames.

Deliberate choices:
- Samples are mono float32, as `load_audio` returns them. Nothing is changed in place.
- All random numbers come from the generator that is passed in, so a seed reproduces a run.
- Own code over numpy, scipy and librosa: audiomentations 0.43 requires soxr < 1, and the masks of wav2vec2 in
  transformers have one fixed width and draw from NumPy's global state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import librosa
import numpy as np
import scipy.fft
import scipy.signal
import torch

from mmemo.audio.loading import SAMPLING_RATES


NOISE_COLORS = ("white", "pink")
NOISE_RMS = 0.1  # of full scale
LEVELS_DB = (-100.0, 100.0)
EQUALIZER_POINTS = 6  # evenly spaced in mel
SPEEDS = (0.5, 2.0)  # factors; the usual ones are 0.9 to 1.1
TELEPHONE_RATE = 8_000  # Hz
TELEPHONE_BAND = scipy.signal.butter(4, (300, 3400), "bandpass", fs=TELEPHONE_RATE, output="sos")  # Hz


def add_noise(audio: np.ndarray, snr_db: float, rng: np.random.Generator, color: str = "white") -> np.ndarray:
    """
    Adds noise at a signal-to-noise ratio; digital silence stays silent.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        snr_db (`float`): Mean power of `audio` divided by that of the noise, in dB.
        rng (`np.random.Generator`): Draws the noise.
        color (`str`, *optional*, defaults to `"white"`):
            `"white"` has equal power at every frequency, `"pink"` in every octave above one cycle per clip.

    Returns:
        `np.ndarray` of the shape of `audio`.

    Raises:
        ValueError: If the audio has another type or shape, `snr_db` is out of `LEVELS_DB`, or the color is unknown.
    """
    _check_audio(audio)
    _check_between("snr_db", snr_db, LEVELS_DB, " dB")
    noise = make_noise(len(audio), rng, color)
    scale = np.sqrt(_power(audio) / _power(noise)) * 10 ** (-snr_db / 20)
    return audio + np.float32(scale) * noise


def make_noise(num_samples: int, rng: np.random.Generator, color: str = "white") -> np.ndarray:
    """
    Returns noise with an RMS level of `NOISE_RMS`.

    Args:
        num_samples (`int`): Number of samples.
        rng (`np.random.Generator`): Draws the noise.
        color (`str`, *optional*, defaults to `"white"`): One of `NOISE_COLORS`; see [`add_noise`].

    Returns:
        `np.ndarray` of shape `(num_samples,)`: Float32 samples.

    Raises:
        ValueError: If the color is unknown.
    """
    if color not in NOISE_COLORS:
        raise ValueError(f"color={color!r} is unknown; choose one of {NOISE_COLORS}.")
    noise = _white_noise(num_samples, rng) if color == "white" else _pink_noise(num_samples, rng)
    return np.float32(NOISE_RMS / np.sqrt(_power(noise))) * noise


def _white_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(num_samples, dtype=np.float32)


def _pink_noise(num_samples: int, rng: np.random.Generator) -> np.ndarray:
    size = scipy.fft.next_fast_len(num_samples, real=True)
    spectrum = rng.standard_normal((size // 2 + 1, 2), dtype=np.float32).view(np.complex64)[:, 0]
    # Power is proportional to 1 / frequency; the constant component is as strong as the lowest frequency.
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return scipy.fft.irfft(spectrum, size)[:num_samples]


def _power(audio: np.ndarray) -> float:
    return np.mean(np.square(audio, dtype=np.float64))


def gain(audio: np.ndarray, db: float) -> np.ndarray:
    """
    Amplifies audio by `db` dB, which may be negative; nothing is clipped.

    A feature extractor with `loudness_dbfs` undoes this, but not the clipping of a following [`telephone`].

    Raises:
        ValueError: If the audio has another type or shape, or `db` is out of `LEVELS_DB`.
    """
    _check_audio(audio)
    _check_between("db", db, LEVELS_DB, " dB")
    return audio * np.float32(10 ** (db / 20))


def equalize(audio: np.ndarray, sampling_rate: int, gains_db: Sequence[float]) -> np.ndarray:
    """
    Applies a gain that depends on frequency, as rooms and microphones do, without delay.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Sampling rate in Hz, before and after.
        gains_db (`Sequence[float]`):
            Gains in dB at two or more frequencies, evenly spaced in mel from 0 to half the sampling rate;
            interpolated linearly.

    Returns:
        `np.ndarray` of the shape of `audio`.

    Raises:
        ValueError: If the audio has another type or shape, the sampling rate is invalid, or there are fewer than two
            gains or one is out of `LEVELS_DB`.
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    if len(gains_db) < 2:
        raise ValueError(f"gains_db={gains_db} must have gains at two or more frequencies.")
    for db in gains_db:
        _check_between("gains_db", db, LEVELS_DB, " dB")
    size = scipy.fft.next_fast_len(len(audio), real=True)
    mels = librosa.hz_to_mel(scipy.fft.rfftfreq(size, 1 / sampling_rate))
    points = np.linspace(0, librosa.hz_to_mel(sampling_rate / 2), len(gains_db))
    gains = 10 ** (np.interp(mels, points, gains_db) / 20)
    return scipy.fft.irfft(scipy.fft.rfft(audio, size) * gains.astype(np.float32), size)[: len(audio)]


def change_speed(audio: np.ndarray, sampling_rate: int, factor: float) -> np.ndarray:
    """
    Changes tempo and pitch together.

    Divide timestamps within the clip, such as those of its words, by `factor`.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Sampling rate in Hz, before and after.
        factor (`float`): Speed; 1.1 is faster and higher, 0.9 slower and lower.

    Returns:
        `np.ndarray` of shape `(ceil(samples / factor),)`.

    Raises:
        ValueError: If the audio has another type or shape, the sampling rate is invalid, or the factor is out of
            `SPEEDS`.

    Source: Ko et al. 2015, Audio Augmentation for Speech Recognition.
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    _check_between("factor", factor, SPEEDS)
    return librosa.resample(audio, orig_sr=sampling_rate * factor, target_sr=sampling_rate)


def telephone(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """
    Simulates a telephone line: 300 to 3400 Hz, clipped at full scale, 8-bit mu-law at 8 kHz.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Sampling rate in Hz, before and after.

    Returns:
        `np.ndarray` of the shape of `audio`.

    Raises:
        ValueError: If the audio has another type or shape, or the sampling rate is invalid.

    Source: ITU-T G.711, with the continuous formula of mu-law.
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    narrow = librosa.resample(audio, orig_sr=sampling_rate, target_sr=TELEPHONE_RATE)
    narrow = scipy.signal.sosfilt(TELEPHONE_BAND, narrow).clip(-1, 1)
    # Rounded here, to 127 levels on either side of 0: librosa's own quantisation takes longer than everything else.
    levels = np.round(librosa.mu_compress(narrow, quantize=False) * 127) / 127
    narrow = librosa.mu_expand(levels, quantize=False).astype(np.float32)
    # Both resamplings round the number of samples up, so there are never too few.
    return librosa.resample(narrow, orig_sr=TELEPHONE_RATE, target_sr=sampling_rate)[: len(audio)]


def spec_augment(
    input_features: torch.Tensor,
    mask: torch.Tensor,
    rng: np.random.Generator,
    time_masks: int = 2,
    time_share: float = 0.2,
    frequency_masks: int = 2,
    frequency_share: float = 0.2,
) -> torch.Tensor:
    """
    Replaces random spans of frames and of mel bands with the mean of the clip's real frames.

    Args:
        input_features (`torch.Tensor` of shape `(batch, mels, frames)`): Log-mel frames, padded on the right.
        mask (`torch.Tensor` of shape `(batch, frames)`): 1 for real frames, 0 for padding, which is not changed.
        rng (`np.random.Generator`): Draws the spans of every clip.
        time_masks, frequency_masks (`int`): Number of spans along each axis; they may overlap.
        time_share (`float`):
            Maximum width of a span of frames, as a share of the clip's real frames. Widths are uniform from 0.
        frequency_share (`float`): Maximum width of a span of mel bands, as a share of all bands.

    Returns:
        `torch.Tensor` of the shape of `input_features`.

    Raises:
        ValueError: If the shapes do not match, a share is out of [0, 1], or a number of spans is negative.

    Source: Park et al. 2019, SpecAugment, without time warping.
    """
    if input_features.ndim != 3 or mask.shape != (input_features.shape[0], input_features.shape[2]):
        raise ValueError(
            f"input_features of shape {tuple(input_features.shape)} and mask of shape {tuple(mask.shape)} do not "
            "match; they must be (batch, mels, frames) and (batch, frames)."
        )
    _check_spans(time_masks, time_share, frequency_masks, frequency_share)
    batch, mels, frames = input_features.shape
    real = mask.bool().unsqueeze(1)
    num_frames = real.sum(dim=(1, 2))
    times = _spans(num_frames.numpy(force=True), frames, time_masks, time_share, rng)
    bands = _spans(np.full(batch, mels), mels, frequency_masks, frequency_share, rng)
    hidden = torch.from_numpy(times[:, None, :] | bands[:, :, None]).to(input_features.device) & real
    # NaN for a clip without real frames, in which nothing is replaced.
    means = input_features.masked_fill(~real, 0).sum(dim=(1, 2)) / (num_frames * mels)
    return torch.where(hidden, means[:, None, None], input_features)


def _spans(lengths: np.ndarray, size: int, count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Returns booleans of shape `(batch, size)`, true in `count` random spans within each of `lengths`."""
    lengths = np.broadcast_to(lengths[:, None], (len(lengths), count))
    widths = rng.integers(0, (share * lengths).astype(int), endpoint=True)
    starts = rng.integers(0, lengths - widths, endpoint=True)
    positions = np.arange(size)[:, None]
    return ((starts[:, None] <= positions) & (positions < (starts + widths)[:, None])).any(axis=2)


@dataclass
class Augmentation:
    """
    The augmentations of clips, their probabilities and strengths; all are off by default.

    The fields are plain numbers and lists, so that `HfArgumentParser` makes flags of them. A range is a minimum and a
    maximum, between which values are drawn uniformly.

    Raises:
        ValueError: If a probability, a share, a number of masks or a range is invalid.
    """

    speed_probability: float = field(
        default=0.0, metadata={"help": "Probability that the speed of a clip is changed."}
    )
    speed: list[float] = field(
        default_factory=lambda: [0.9, 1.1],
        metadata={"help": "Range of speed factors; tempo and pitch change together."},
    )
    noise_probability: float = field(
        default=0.0, metadata={"help": "Probability that a clip gets white or pink noise."}
    )
    snr_db: list[float] = field(
        default_factory=lambda: [5.0, 30.0], metadata={"help": "Range of signal-to-noise ratios in dB."}
    )
    equalizer_probability: float = field(
        default=0.0, metadata={"help": "Probability that a clip gets gains that depend on frequency."}
    )
    equalizer_db: list[float] = field(
        default_factory=lambda: [-8.0, 8.0], metadata={"help": "Range of these gains in dB."}
    )
    gain_probability: float = field(default=0.0, metadata={"help": "Probability that the level of a clip is changed."})
    gain_db: list[float] = field(default_factory=lambda: [-6.0, 6.0], metadata={"help": "Range of gains in dB."})
    telephone_probability: float = field(
        default=0.0, metadata={"help": "Probability that a clip is sent through a simulated telephone line."}
    )
    spec_augment_probability: float = field(
        default=0.0, metadata={"help": "Probability that a clip gets SpecAugment (masked frames and mel bands)."}
    )
    time_masks: int = field(default=2, metadata={"help": "Number of masked spans of frames."})
    time_share: float = field(default=0.2, metadata={"help": "Their maximum width, as a share of the real frames."})
    frequency_masks: int = field(default=2, metadata={"help": "Number of masked spans of mel bands."})
    frequency_share: float = field(default=0.2, metadata={"help": "Their maximum width, as a share of the bands."})

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_probability"):
                _check_between(name, value, (0, 1))
        _check_range("speed", self.speed, SPEEDS)
        _check_range("snr_db", self.snr_db, LEVELS_DB, " dB")
        _check_range("equalizer_db", self.equalizer_db, LEVELS_DB, " dB")
        _check_range("gain_db", self.gain_db, LEVELS_DB, " dB")
        _check_spans(self.time_masks, self.time_share, self.frequency_masks, self.frequency_share)

    def augment_audio(self, audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
        """
        Augments one clip at random, in the order of a real call: voice, room, microphone, line.

        Only a change of speed changes the length: timestamps scale with `len(result) / len(audio)`.

        Args:
            audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
            sampling_rate (`int`): Sampling rate in Hz, before and after.
            rng (`np.random.Generator`): Draws the augmentation.

        Returns:
            `np.ndarray`: The augmented samples; `audio` itself if nothing was drawn.
        """
        if rng.random() < self.speed_probability:
            audio = change_speed(audio, sampling_rate, rng.uniform(*self.speed))
        if rng.random() < self.noise_probability:
            audio = add_noise(audio, rng.uniform(*self.snr_db), rng, rng.choice(NOISE_COLORS))
        if rng.random() < self.equalizer_probability:
            audio = equalize(audio, sampling_rate, rng.uniform(*self.equalizer_db, EQUALIZER_POINTS))
        if rng.random() < self.gain_probability:
            audio = gain(audio, rng.uniform(*self.gain_db))
        if rng.random() < self.telephone_probability:
            audio = telephone(audio, sampling_rate)
        return audio

    def augment_features(
        self, input_features: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator
    ) -> torch.Tensor:
        """
        Applies [`spec_augment`] to random clips of a batch.

        Args:
            input_features (`torch.Tensor` of shape `(batch, mels, frames)`): Log-mel frames, padded on the right.
            mask (`torch.Tensor` of shape `(batch, frames)`): 1 for real frames, 0 for padding.
            rng (`np.random.Generator`): Draws the clips and the spans.
        """
        drawn = torch.from_numpy(rng.random(len(mask)) < self.spec_augment_probability).to(mask.device)
        # Nothing is replaced in a clip without real frames, so clips that were not drawn are passed as such.
        return spec_augment(
            input_features,
            mask * drawn[:, None],
            rng,
            self.time_masks,
            self.time_share,
            self.frequency_masks,
            self.frequency_share,
        )


def _check_audio(audio: np.ndarray) -> None:
    if not isinstance(audio, np.ndarray) or audio.dtype != np.float32 or audio.ndim != 1 or audio.size == 0:
        form = f"{audio.dtype} of shape {audio.shape}" if isinstance(audio, np.ndarray) else type(audio).__name__
        raise ValueError(
            f"audio is {form}; it must be a float32 array of shape (samples,) with at least one sample, such as "
            "load_audio returns."
        )


def _check_spans(time_masks: int, time_share: float, frequency_masks: int, frequency_share: float) -> None:
    for name, count in {"time_masks": time_masks, "frequency_masks": frequency_masks}.items():
        if count < 0:
            raise ValueError(f"{name}={count} must be at least 0.")
    _check_between("time_share", time_share, (0, 1))
    _check_between("frequency_share", frequency_share, (0, 1))


def _check_range(name: str, value: Sequence[float], limits: tuple[float, float], unit: str = "") -> None:
    lowest, highest = limits
    if np.shape(value) != (2,) or not lowest <= value[0] <= value[1] <= highest:
        raise ValueError(
            f"{name}={value} must be two numbers, a minimum and a maximum, between {lowest} and {highest}{unit}."
        )


def _check_between(name: str, value: float, limits: tuple[float, float], unit: str = "") -> None:
    lowest, highest = limits
    if not lowest <= value <= highest:
        raise ValueError(f"{name}={value} must be between {lowest} and {highest}{unit}.")
