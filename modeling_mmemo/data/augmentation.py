"""Augmentation of voices: noise, colour, level, speed and telephone lines on samples, SpecAugment on log-mel frames.

Deliberate choices:
- Samples are what `load_audio` returns: mono float32. Nothing is changed in place.
- All that is random comes from the generator that is passed in, so a seed repeats a run whatever else draws numbers.
- Own code over numpy, scipy and librosa: audiomentations 0.43 demands soxr < 1, and the masks of wav2vec2 in
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
    """Adds noise at a signal-to-noise ratio; digital silence stays silent.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        snr_db (`float`): Mean power of `audio` over that of the noise, in dB.
        rng (`np.random.Generator`): Draws the noise.
        color (`str`): `"white"`, as strong at every frequency, or `"pink"`, as strong in every octave from one cycle a
            clip upward.

    Raises:
        ValueError: If the audio is of another form, the ratio is out of `LEVELS_DB`, or the colour is unknown.
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
    """Makes audio louder by `db` dB, or softer where that is negative; nothing is clipped.

    A feature extractor with `loudness_dbfs` undoes this, but not what a later [`telephone`] makes of the level.

    Raises:
        ValueError: If the audio is of another form, or the gain is out of `LEVELS_DB`.
    """
    _check_audio(audio)
    _check_between("db", db, LEVELS_DB, " dB")
    return audio * np.float32(10 ** (db / 20))


def equalize(audio: np.ndarray, sampling_rate: int, gains_db: Sequence[float]) -> np.ndarray:
    """Colours audio as rooms and microphones do: each frequency has a gain of its own, without shifts in time.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Their rate in Hz, before and after.
        gains_db (`Sequence[float]`): Gains in dB at two or more frequencies that are evenly spaced in mel, from 0
            to half the sampling rate; straight lines in between.

    Returns:
        `np.ndarray` of as many samples as `audio`.

    Raises:
        ValueError: If the audio is of another form, its rate impossible, or there are fewer than two gains or one of
            them out of `LEVELS_DB`.
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    if len(gains_db) < 2:
        raise ValueError(f"gains_db={gains_db} must be gains at two frequencies or more.")
    for db in gains_db:
        _check_between("gains_db", db, LEVELS_DB, " dB")
    size = scipy.fft.next_fast_len(len(audio), real=True)
    mels = librosa.hz_to_mel(scipy.fft.rfftfreq(size, 1 / sampling_rate))
    points = np.linspace(0, librosa.hz_to_mel(sampling_rate / 2), len(gains_db))
    gains = 10 ** (np.interp(mels, points, gains_db) / 20)
    return scipy.fft.irfft(scipy.fft.rfft(audio, size) * gains.astype(np.float32), size)[: len(audio)]


def change_speed(audio: np.ndarray, sampling_rate: int, factor: float) -> np.ndarray:
    """Plays audio `factor` times as fast: tempo and pitch together, `ceil(samples / factor)` samples.

    Times within the clip, such as those of its words, are to be divided by `factor`.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Their rate in Hz, before and after.
        factor (`float`): Speed; 1.1 is faster and higher, 0.9 slower and lower.

    Raises:
        ValueError: If the audio is of another form, its rate impossible, or the factor out of `SPEEDS`.

    Source: Ko et al. 2015, Audio Augmentation for Speech Recognition.
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    _check_between("factor", factor, SPEEDS)
    return librosa.resample(audio, orig_sr=sampling_rate * factor, target_sr=sampling_rate)


def telephone(audio: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Sends audio through a telephone line: 300 to 3400 Hz, clipped at full scale, 8 bits of mu-law at 8 kHz.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Their rate in Hz, before and after.

    Returns:
        `np.ndarray` of as many samples as `audio`.

    Raises:
        ValueError: If the audio is of another form, or its rate impossible.

    Source: ITU-T G.711, mu-law by its continuous formula.
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    narrow = librosa.resample(audio, orig_sr=sampling_rate, target_sr=TELEPHONE_RATE)
    narrow = scipy.signal.sosfilt(TELEPHONE_BAND, narrow).clip(-1, 1)
    # Rounded here, to 127 levels either side of 0: librosa's own quantization takes longer than all the rest.
    levels = np.round(librosa.mu_compress(narrow, quantize=False) * 127) / 127
    narrow = librosa.mu_expand(levels, quantize=False).astype(np.float32)
    # Both ways the number of samples is rounded up, so there are never too few.
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
    """Hides random spans of frames and of mel bands behind the mean of the clip's real frames.

    Args:
        input_features (`torch.Tensor` of shape `(batch, mels, frames)`): Log-mel frames, padded on the right.
        mask (`torch.Tensor` of shape `(batch, frames)`): 1 for real frames, 0 for padding, which is left as it is.
        rng (`np.random.Generator`): Draws the spans, anew for every clip.
        time_masks, frequency_masks (`int`): Number of spans along either axis; they may overlap.
        time_share (`float`): Largest width of a span of frames, as a share of the clip's real frames. Widths are
            uniform from 0 upward.
        frequency_share (`float`): Largest width of a span of mel bands, as a share of all bands.

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
    # NaN for a clip without any real frame, in which nothing is hidden.
    means = input_features.masked_fill(~real, 0).sum(dim=(1, 2)) / (num_frames * mels)
    return torch.where(hidden, means[:, None, None], input_features)


def _spans(lengths: np.ndarray, size: int, count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Booleans of shape `(batch, size)`: for each of `lengths`, `count` spans that lie within it."""
    lengths = np.broadcast_to(lengths[:, None], (len(lengths), count))
    widths = rng.integers(0, (share * lengths).astype(int), endpoint=True)
    starts = rng.integers(0, lengths - widths, endpoint=True)
    positions = np.arange(size)[:, None]
    return ((starts[:, None] <= positions) & (positions < (starts + widths)[:, None])).any(axis=2)


@dataclass
class Augmentation:
    """Which augmentations clips are given, how often and how strong; all are off by default.

    The fields are plain numbers and lists, so that `HfArgumentParser` makes flags of them. A range is a lowest and a
    highest value, between which values are drawn uniformly.

    Raises:
        ValueError: If a probability, a share, a number of masks or a range is impossible.
    """

    speed_probability: float = field(default=0.0, metadata={"help": "How often a clip's speed is changed."})
    speed: list[float] = field(
        default_factory=lambda: [0.9, 1.1], metadata={"help": "Range of speed factors; tempo and pitch go together."}
    )
    noise_probability: float = field(default=0.0, metadata={"help": "How often a clip is given white or pink noise."})
    snr_db: list[float] = field(
        default_factory=lambda: [5.0, 30.0], metadata={"help": "Range of signal-to-noise ratios in dB."}
    )
    equalizer_probability: float = field(
        default=0.0, metadata={"help": "How often a clip's frequencies are given gains of their own."}
    )
    equalizer_db: list[float] = field(
        default_factory=lambda: [-8.0, 8.0], metadata={"help": "Range of those gains in dB."}
    )
    gain_probability: float = field(default=0.0, metadata={"help": "How often a clip's level is changed."})
    gain_db: list[float] = field(default_factory=lambda: [-6.0, 6.0], metadata={"help": "Range of gains in dB."})
    telephone_probability: float = field(
        default=0.0, metadata={"help": "How often a clip is sent through a telephone line."}
    )
    spec_augment_probability: float = field(
        default=0.0, metadata={"help": "How often spans of a clip's frames and mel bands are hidden."}
    )
    time_masks: int = field(default=2, metadata={"help": "Number of hidden spans of frames."})
    time_share: float = field(default=0.2, metadata={"help": "Their largest width, as a share of the real frames."})
    frequency_masks: int = field(default=2, metadata={"help": "Number of hidden spans of mel bands."})
    frequency_share: float = field(default=0.2, metadata={"help": "Their largest width, as a share of the bands."})

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
        """Draws what happens to one clip, in the order in which a call would do it: voice, room, microphone, line.

        Only a changed speed changes the length: times within the clip scale with `len(result) / len(audio)`.

        Args:
            audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
            sampling_rate (`int`): Their rate in Hz, before and after.
            rng (`np.random.Generator`): Draws all of it.
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
        """Draws clips of a batch and applies [`spec_augment`] to them.

        Args:
            input_features (`torch.Tensor` of shape `(batch, mels, frames)`): Log-mel frames, padded on the right.
            mask (`torch.Tensor` of shape `(batch, frames)`): 1 for real frames, 0 for padding.
            rng (`np.random.Generator`): Draws all of it.
        """
        drawn = torch.from_numpy(rng.random(len(mask)) < self.spec_augment_probability).to(mask.device)
        # Nothing is hidden in a clip without real frames, so the others are passed as such.
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
            f"{name}={value} must be two numbers, a lowest and a highest one, between {lowest} and {highest}{unit}."
        )


def _check_between(name: str, value: float, limits: tuple[float, float], unit: str = "") -> None:
    lowest, highest = limits
    if not lowest <= value <= highest:
        raise ValueError(f"{name}={value} must be between {lowest} and {highest}{unit}.")
