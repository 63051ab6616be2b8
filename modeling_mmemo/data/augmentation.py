"""
Audio augmentation: speed, crop, silence, room, noise, equalizer, gain and telephone line on samples, SpecAugment on
log-mel frames.

Deliberate choices:
- Samples are mono float32, as `load_audio` returns them. Nothing is changed in place.
- All random numbers come from the generator that is passed in, so a seed reproduces a run.
- Clips are augmented as they were recorded; the processor cuts them to their speech afterwards, as in a prediction. It
  therefore removes silence before and after a clip again, unless it does not detect speech (`cut_to_speech`).
- Own code over numpy, scipy and librosa: audiomentations 0.43 requires soxr < 1, and the masks of wav2vec2 in
  transformers have one fixed width and draw from NumPy's global state.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import librosa
import numpy as np
import scipy.fft
import scipy.signal
import torch

from mmemo.audio.loading import MIN_AUDIO_SECONDS, SAMPLING_RATES, is_silent
from mmemo.video.face import FaceSequence
from modeling_mmemo.data.noise_recordings import NoiseRecordings


NOISE_COLORS = ("white", "pink")
NOISE_RMS = 0.1  # of full scale
LEVELS_DB = (-100.0, 100.0)
EQUALIZER_POINTS = 6  # evenly spaced in mel
SPEEDS = (0.5, 2.0)  # factors; the usual ones are 0.9 to 1.1
REVERBERATION_TIMES = (0.01, 10.0)  # seconds; rooms have 0.2 to 1
CROPS = (MIN_AUDIO_SECONDS, 60.0)  # seconds
CROP_DB = -20.0  # a stretch with less power, relative to its clip, is mostly a pause
SILENCES = (0.0, 60.0)  # seconds
SILENCE_DB = (-90.0, -60.0)  # of the noise in silence, relative to the clip: that of 16 bits, and that of a quiet room
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
    return mix_noise(audio, make_noise(len(audio), rng, color), snr_db)


def mix_noise(audio: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """
    Adds the given noise at a signal-to-noise ratio; digital silence stays silent.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        noise (`np.ndarray` of shape `(samples,)`): Float32 samples of any level, not all of them 0.
        snr_db (`float`): Mean power of `audio` divided by that of the noise, in dB.

    Returns:
        `np.ndarray` of the shape of `audio`.

    Raises:
        ValueError: If audio or noise has another type or shape, the noise is silent, or `snr_db` is out of
            `LEVELS_DB`.
    """
    _check_audio(audio)
    _check_audio(noise, "noise")
    _check_between("snr_db", snr_db, LEVELS_DB, " dB")
    if len(noise) != len(audio) or not noise.any():
        raise ValueError(
            f"noise of {len(noise)} samples, of which {np.count_nonzero(noise)} are not 0, cannot be added to audio "
            f"of {len(audio)} samples; it must have the same length and not be silent."
        )
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


def reverberate(
    audio: np.ndarray, sampling_rate: int, reverberation_s: float, direct_db: float, rng: np.random.Generator
) -> np.ndarray:
    """
    Places audio in a synthetic room, without delay: direct sound, followed by white noise that decays exponentially.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Sampling rate in Hz, before and after.
        reverberation_s (`float`): Reverberation time (RT60) in seconds, in which the power decays by 60 dB.
        direct_db (`float`): Energy of the direct sound divided by that of the reverberation, in dB.
        rng (`np.random.Generator`): Draws the room.

    Returns:
        `np.ndarray` of the shape of `audio`: the direct sound as it was, plus the reverberation, cut off at the end.

    Raises:
        ValueError: If the audio has another type or shape, the sampling rate is invalid, `reverberation_s` is out of
            `REVERBERATION_TIMES`, or `direct_db` out of `LEVELS_DB`.

    Source: Polack 1988, La transmission de l'énergie sonore dans les salles (the model); Ko et al. 2017, A Study on
    Data Augmentation of Reverberant Speech for Robust Speech Recognition (simulated rooms for training).
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    _check_between("reverberation_s", reverberation_s, REVERBERATION_TIMES, " s")
    _check_between("direct_db", direct_db, LEVELS_DB, " dB")
    # The amplitude decays by 60 dB, a factor of 1000, in the reverberation time; the first sample is the direct sound.
    seconds = np.arange(1, round(reverberation_s * sampling_rate) + 1) / sampling_rate
    decay = np.exp(-np.log(1000) / reverberation_s * seconds).astype(np.float32)
    tail = np.concatenate([np.zeros(1, np.float32), _white_noise(len(decay), rng) * decay])
    tail *= np.float32(10 ** (-direct_db / 20) / np.linalg.norm(tail))
    return audio + scipy.signal.fftconvolve(audio, tail)[: len(audio)]


def crop(audio: np.ndarray, sampling_rate: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """
    Returns a random stretch, as in the windows of a timeline.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Sampling rate in Hz.
        seconds (`float`): Length of the stretch.
        rng (`np.random.Generator`): Draws its start.

    Returns:
        `np.ndarray` of shape `(seconds * sampling_rate,)`; `audio` itself if it is no longer than that, or if the
        stretch is mostly a pause: its power is less than `CROP_DB` relative to that of the clip.

    Raises:
        ValueError: If the audio has another type or shape, the sampling rate is invalid, or `seconds` is out of
            `CROPS`.
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    _check_between("seconds", seconds, CROPS, " s")
    # Not below the minimum of seconds where that is a fraction of a sample more.
    num_samples = int(np.ceil(seconds * sampling_rate))
    if num_samples >= len(audio):
        return audio
    start = rng.integers(len(audio) - num_samples, endpoint=True)
    stretch = audio[start : start + num_samples]
    is_pause = _power(stretch) < _power(audio) * 10 ** (CROP_DB / 10) or is_silent(stretch)
    return audio if is_pause else stretch


def surround_with_silence(
    audio: np.ndarray, sampling_rate: int, before_s: float, after_s: float, level_db: float, rng: np.random.Generator
) -> np.ndarray:
    """
    Puts silence before and after audio: white noise of a low level, as of a microphone that is on.

    Args:
        audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
        sampling_rate (`int`): Sampling rate in Hz, before and after.
        before_s, after_s (`float`): Seconds before and after the clip.
        level_db (`float`): Power of the noise divided by the mean power of the clip, in dB.
        rng (`np.random.Generator`): Draws the noise.

    Returns:
        `np.ndarray` of shape `((before_s + seconds + after_s) * sampling_rate,)`.

    Raises:
        ValueError: If the audio has another type or shape, the sampling rate is invalid, a number of seconds is out
            of `SILENCES`, or `level_db` out of `LEVELS_DB`.
    """
    _check_audio(audio)
    _check_between("sampling_rate", sampling_rate, SAMPLING_RATES, " Hz (not kHz)")
    _check_between("before_s", before_s, SILENCES, " s")
    _check_between("after_s", after_s, SILENCES, " s")
    _check_between("level_db", level_db, LEVELS_DB, " dB")
    level = np.float32(np.sqrt(_power(audio)) * 10 ** (level_db / 20))
    before, after = (level * _white_noise(round(seconds * sampling_rate), rng) for seconds in (before_s, after_s))
    return np.concatenate([before, audio, after])


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
    The augmentations of clips and faces, their probabilities and strengths; all are off by default.

    The fields are plain numbers, strings and lists, so that `HfArgumentParser` makes flags of them. A range is a
    minimum and a maximum, between which values are drawn uniformly.

    Raises:
        ValueError: If a probability, a share, a number of masks or a range is invalid, or `noise_dir` contains no
            audio files.
    """

    speed_probability: float = field(
        default=0.0, metadata={"help": "Probability that the speed of a clip is changed."}
    )
    speed: list[float] = field(
        default_factory=lambda: [0.9, 1.1],
        metadata={"help": "Range of speed factors; tempo and pitch change together."},
    )
    crop_probability: float = field(
        default=0.0,
        metadata={"help": "Probability that a random stretch of a clip is used; never of a clip with word times."},
    )
    crop_s: list[float] = field(
        default_factory=lambda: [1.2, 3.5], metadata={"help": "Range of lengths of the stretch in seconds."}
    )
    silence_probability: float = field(
        default=0.0,
        metadata={
            "help": "Probability that silence is put before and after a clip; never around one with word times. Needs "
            "a processor that does not cut clips to their speech."
        },
    )
    silence_s: list[float] = field(
        default_factory=lambda: [0.2, 2.0],
        metadata={"help": "Range of lengths of the silence in seconds, drawn for either side."},
    )
    room_probability: float = field(default=0.0, metadata={"help": "Probability that a clip gets reverberation."})
    reverberation_s: list[float] = field(
        default_factory=lambda: [0.15, 0.6], metadata={"help": "Range of reverberation times (RT60) in seconds."}
    )
    direct_db: list[float] = field(
        default_factory=lambda: [0.0, 12.0], metadata={"help": "Range of direct-to-reverberant ratios in dB."}
    )
    noise_probability: float = field(
        default=0.0, metadata={"help": "Probability that a clip gets noise: white, pink or from noise_dir."}
    )
    snr_db: list[float] = field(
        default_factory=lambda: [5.0, 30.0], metadata={"help": "Range of signal-to-noise ratios in dB."}
    )
    noise_dir: str | None = field(
        default=None, metadata={"help": "Folder of recordings of noise, with subfolders; none by default."}
    )
    recorded_noise_share: float = field(
        default=0.7,
        metadata={"help": "With noise_dir, share of the noise that is recorded rather than white or pink."},
    )
    recordings: NoiseRecordings | None = field(default=None, init=False, repr=False, compare=False)
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
    mirror_probability: float = field(
        default=0.0, metadata={"help": "Probability that the face of a video is mirrored."}
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_probability"):
                _check_between(name, value, (0, 1))
        _check_between("recorded_noise_share", self.recorded_noise_share, (0, 1))
        _check_range("crop_s", self.crop_s, CROPS, " s")
        _check_range("silence_s", self.silence_s, SILENCES, " s")
        _check_range("reverberation_s", self.reverberation_s, REVERBERATION_TIMES, " s")
        _check_range("direct_db", self.direct_db, LEVELS_DB, " dB")
        _check_range("speed", self.speed, SPEEDS)
        _check_range("snr_db", self.snr_db, LEVELS_DB, " dB")
        _check_range("equalizer_db", self.equalizer_db, LEVELS_DB, " dB")
        _check_range("gain_db", self.gain_db, LEVELS_DB, " dB")
        _check_spans(self.time_masks, self.time_share, self.frequency_masks, self.frequency_share)
        if self.noise_dir is not None:
            self.recordings = NoiseRecordings(self.noise_dir)

    def augment_audio(
        self, audio: np.ndarray, sampling_rate: int, rng: np.random.Generator, is_timed: bool = False
    ) -> np.ndarray:
        """
        Augments one clip at random, in the order of a real call: voice, stretch, room, noise, microphone, line.

        Args:
            audio (`np.ndarray` of shape `(samples,)`): Float32 samples.
            sampling_rate (`int`): Sampling rate in Hz, before and after.
            rng (`np.random.Generator`): Draws the augmentation.
            is_timed (`bool`, *optional*, defaults to `False`):
                Whether there are timestamps within the clip. It is then neither cropped nor surrounded by silence, and
                timestamps scale with `len(result) / len(audio)`.

        Returns:
            `np.ndarray`: The augmented samples; `audio` itself if nothing was drawn. Only speed, crop and silence
            change the length; the others neither delay the clip nor change its length.
        """
        if rng.random() < self.speed_probability:
            audio = change_speed(audio, sampling_rate, rng.uniform(*self.speed))
        if self._draws(self.crop_probability, rng) and not is_timed:
            audio = crop(audio, sampling_rate, rng.uniform(*self.crop_s), rng)
        if self._draws(self.silence_probability, rng) and not is_timed:
            before_s, after_s = rng.uniform(*self.silence_s, 2)
            audio = surround_with_silence(audio, sampling_rate, before_s, after_s, rng.uniform(*SILENCE_DB), rng)
        if self._draws(self.room_probability, rng):
            reverberation_s, direct_db = rng.uniform(*self.reverberation_s), rng.uniform(*self.direct_db)
            audio = reverberate(audio, sampling_rate, reverberation_s, direct_db, rng)
        if rng.random() < self.noise_probability:
            audio = self._add_noise(audio, sampling_rate, rng)
        if rng.random() < self.equalizer_probability:
            audio = equalize(audio, sampling_rate, rng.uniform(*self.equalizer_db, EQUALIZER_POINTS))
        if rng.random() < self.gain_probability:
            audio = gain(audio, rng.uniform(*self.gain_db))
        if rng.random() < self.telephone_probability:
            audio = telephone(audio, sampling_rate)
        return audio

    def augment_face(self, face: FaceSequence, rng: np.random.Generator) -> FaceSequence:
        """Mirrors a face at random; the generator draws it."""
        return face.mirrored() if self._draws(self.mirror_probability, rng) else face

    @staticmethod
    def _draws(probability: float, rng: np.random.Generator) -> bool:
        """Draws nothing where the probability is 0, so that runs without the augmentation stay what they were."""
        return probability > 0 and rng.random() < probability

    def _add_noise(self, audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
        snr_db = rng.uniform(*self.snr_db)
        if self.recordings is not None and self._draws(self.recorded_noise_share, rng):
            return mix_noise(audio, self.recordings.draw(len(audio), sampling_rate, rng), snr_db)
        return add_noise(audio, snr_db, rng, rng.choice(NOISE_COLORS))

    @property
    def is_active(self) -> bool:
        """Whether any augmentation has a probability above 0."""
        return any(value > 0 for name, value in vars(self).items() if name.endswith("_probability"))

    def settings(self) -> dict[str, Any]:
        """Returns all options, and the fingerprints of the recordings of `noise_dir`: equal settings and seeds give
        equal augmentations."""
        options = {option.name: getattr(self, option.name) for option in fields(self) if option.init}
        return options | {"recordings": self.recordings.fingerprints() if self.recordings is not None else []}

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


def _check_audio(audio: np.ndarray, name: str = "audio") -> None:
    if not isinstance(audio, np.ndarray) or audio.dtype != np.float32 or audio.ndim != 1 or audio.size == 0:
        form = f"{audio.dtype} of shape {audio.shape}" if isinstance(audio, np.ndarray) else type(audio).__name__
        raise ValueError(
            f"{name} is {form}; it must be a float32 array of shape (samples,) with at least one sample, such as "
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
