"""
Audio loading: a clip as a whole, or a long recording block by block.

Deliberate choices:
- Both ways of loading share the checks of samples, which are here, and those of inputs and files.
- Only URLs, pipes and open files are copied before decoding: by `load_audio` into memory, by `AudioBlocks` into a
  file.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import soxr

from mmemo.audio.containers import without_samples
from mmemo.audio.files import AudioFile, BinaryFile, keep_seekable, open_audio_file, open_stream
from mmemo.audio.inputs import (
    AUDIO_CHUNK_FORMS,
    MAX_COLUMNS,
    AudioChunk,
    AudioInput,
    Source,
    file_bytes,
    resolve,
    resolve_samples,
)
from mmemo.audio.inputs import AUDIO_INPUT_FORMS as AUDIO_INPUT_FORMS
from mmemo.audio.inputs import is_audio_object as is_audio_object
from mmemo.audio.pcm import PcmDecoder, as_floats


# The usual suffixes of the formats that are decoded, to find files in folders. Decoding does not depend on them.
AUDIO_SUFFIXES = frozenset(
    {".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".awb", ".caf", ".dts", ".eac3", ".flac", ".m4a"}
    | {".m4b", ".mka", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".ra", ".rf64", ".snd", ".spx", ".tta", ".voc", ".w64"}
    | {".wav", ".wave", ".weba", ".wma", ".wv"}
)
VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv"}
    | {".qt", ".rm", ".ts", ".vob", ".webm", ".wmv"}
)
SILENCE_PEAK = 1e-4  # -80 dBFS, about three steps of 16-bit PCM; speech is louder
# The mean of half a second of speech is well below.
MAX_OFFSET, MIN_OFFSET_SECONDS = 0.01, 0.5
# Minimum for all feature extractors and encoders: two frames of 25 ms with a hop of 10 ms, and a little more.
MIN_AUDIO_SECONDS = 0.04
# Valid range in Hz. Resampling from a much lower rate would make a clip thousands of times longer.
SAMPLING_RATES = (1_000, 1_000_000)
# Over all channels, 16 MiB: a file may declare 1024 channels and any rate.
MAX_BLOCK_SAMPLES = 2**22


class SilentAudioError(ValueError):
    """A clip is silent."""


def load_audio(
    audio: AudioInput,
    sampling_rate: float | None = None,
    target_sampling_rate: int = 16_000,
    channel: int | None = None,
) -> np.ndarray:
    """
    Loads one clip as mono samples at the target rate. A constant offset of more than 1 % of full scale is removed
    from clips of at least 0.5 s.

    Args:
        audio (`AudioInput`):
            The clip, in any of the forms that [`AudioInput`] lists.
        sampling_rate (`float`, *optional*):
            Sampling rate of bare samples in Hz; defaults to the target rate. Files, dictionaries and decoders have
            their own rate.
        target_sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate of the result in Hz; see [`resample`].
        channel (`int`, *optional*):
            Index of the channel to load; by default the channels are averaged.

    Returns:
        `np.ndarray` of shape `(samples,)`: float32, nominally within [-1, 1].

    Raises:
        ValueError: If the input has no accepted form, cannot be read, is truncated, empty or silent, contains NaN or
            infinity, has its dimensions swapped, or if the sampling rate or the channel is invalid.
    """
    name, source, rate = resolve(audio, target_sampling_rate if sampling_rate is None else sampling_rate)
    with _open(name, source, rate) as recording:
        check_channel(name, recording.channels, channel)
        mono = np.concatenate([to_mono(block, channel) for block in _read(recording, MAX_BLOCK_SAMPLES)])
    return _finish_clip(name, mono, recording.rate, target_sampling_rate)


def _finish_clip(name: str, mono: np.ndarray, rate: float, target_sampling_rate: int) -> np.ndarray:
    """Removes the offset of a whole clip and resamples it; raises a `ValueError` if it is silent."""
    mono = _without_offset(mono, rate)
    resampled = resample(mono, rate, target_sampling_rate)
    if is_silent(mono) or is_silent(resampled):
        raise SilentAudioError(
            f"{name} is silent: its peak is {min(peak(mono), peak(resampled)):.1e}, and audio must reach "
            f"{SILENCE_PEAK} (-80 dBFS) around its mean. Leave it out; if only the mean of its channels is silent, "
            "select one channel."
        )
    return np.ascontiguousarray(resampled)


def peak(samples: np.ndarray) -> float:
    """Returns the peak of mono samples of shape `(samples,)` around their mean; one sample alone has no offset."""
    mean = samples.mean(dtype=np.float64) if len(samples) > 1 else 0.0
    return float(max(samples.max() - mean, mean - samples.min()))


def _without_offset(samples: np.ndarray, sampling_rate: float) -> np.ndarray:
    """
    Subtracts the mean of mono samples where it is a constant offset, of a bad recorder, and not that of a short sound.

    On the six example clips, an offset of 0.3 changes scores by up to 0.3, and one of the labels; subtracting the mean
    of a clip without an offset changes them by up to 0.003.
    """
    offset = samples.mean(dtype=np.float64)
    has_offset = abs(offset) > MAX_OFFSET and len(samples) >= MIN_OFFSET_SECONDS * sampling_rate
    return samples - np.float32(offset) if has_offset else samples


def is_silent(samples: np.ndarray) -> bool:
    """Returns whether mono samples of shape `(samples,)` are silent, whatever their constant offset."""
    return not len(samples) or peak(samples) < SILENCE_PEAK


def resample(samples: np.ndarray, sampling_rate: float, target_sampling_rate: float) -> np.ndarray:
    """
    Resamples samples of shape `(samples,)` like `librosa.resample` does by default: with soxr's high quality, to the
    length given by the ratio of the rates, rounded up.
    """
    if sampling_rate == target_sampling_rate:
        return samples
    resampled = soxr.resample(samples, sampling_rate, target_sampling_rate, quality="HQ")
    return _fix_length(resampled, _resampled_length(len(samples), sampling_rate, target_sampling_rate))


def _resampled_length(length: int, sampling_rate: float, target_sampling_rate: float) -> int:
    return math.ceil(length * (float(target_sampling_rate) / float(sampling_rate)))


def _fix_length(samples: np.ndarray, length: int) -> np.ndarray:
    """Truncates samples of shape `(samples, ...)` to a length, or pads them with zeros."""
    missing = length - len(samples)
    if missing <= 0:
        return samples[:length]
    return np.pad(samples, [(0, missing)] + [(0, 0)] * (samples.ndim - 1))


def check_channel(name: str, channels: int, channel: int | None) -> None:
    """Raises a `ValueError` if audio with that many channels has no such channel; `None` is the mean of all."""
    if channel is not None and not (isinstance(channel, Integral) and 0 <= channel < channels):
        raise ValueError(
            f"{name} has {channels} channel(s), so channel={channel!r} does not exist; valid are 0 to {channels - 1}. "
            "Without a channel, all are averaged."
        )


def to_mono(samples: np.ndarray, channel: int | None = None) -> np.ndarray:
    """Returns one channel of samples of shape `(channels, samples)`, or the mean of all, of shape `(samples,)`."""
    if channel is not None:
        return samples[channel]
    return samples.mean(axis=0) if len(samples) > 1 else samples[0]


class AudioBlocks:
    """
    A recording of any length, read block by block: all channels, at the target sampling rate, in bounded memory.

    Iterating yields float32 arrays of shape `(channels, samples)`, nominally within [-1, 1]. Concatenated and averaged
    over the channels they equal the result of [`load_audio`] within 1e-4; unlike there, silence is not an error, and a
    constant offset is kept.
    Blocks have different lengths and are never empty. Each iteration reads the recording again.
    [`~AudioBlocks.between`] returns a part of the recording.

    A URL, a pipe or an open file is copied to a temporary file, which is deleted with this object.

    Args:
        audio (`AudioInput`):
            The recording, in any of the forms that [`AudioInput`] lists. An `AudioDecoder` decodes all of it at once.
        sampling_rate (`float`, *optional*):
            Sampling rate of bare samples in Hz, as in [`load_audio`].
        target_sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate of the blocks in Hz. The resampler, of soxr's high quality, keeps its state between blocks.
        block_seconds (`float`, *optional*, defaults to 30.0):
            Length of a block in seconds; shorter where it would exceed 2^22 samples over all channels.
        owner (*optional*):
            Kept alive with this object: the owner of a temporary file that `audio` names.

    Attributes:
        channels (`int`):
            Number of channels.
        target_rate (`int`):
            Sampling rate of the blocks in Hz.
        source_rate (`float`):
            Sampling rate of the recording itself in Hz.
        duration (`float` or `None`):
            Length in seconds as declared by the container; `None` if it declares none, and for files that FFmpeg
            decodes, which may contain more than they declare.
        declared_duration (`float` or `None`):
            Length in seconds as the container declares or FFmpeg estimates, which may be wrong; `None` if unknown.
        decoded_duration (`float` or `None`):
            Length in seconds, once an iteration reached the end; `None` before.

    Raises:
        ValueError: As in [`load_audio`], except for silence; or if `block_seconds` is invalid. Errors in the header
            are raised at construction; missing samples, NaN, infinity and decoder errors while iterating, and
            truncation after the last block.

    Example:

    ```python
    >>> recording = AudioBlocks("call.wav")
    >>> seconds = sum(block.shape[1] for block in recording) / 16_000
    ```
    """

    channels: int
    target_rate: int
    source_rate: float
    duration: float | None
    declared_duration: float | None
    decoded_duration: float | None

    def __init__(
        self,
        audio: AudioInput,
        sampling_rate: float | None = None,
        target_sampling_rate: int = 16_000,
        block_seconds: float = 30.0,
        owner: object = None,
    ):
        self._owner = owner
        if not 0 < block_seconds < math.inf:
            raise ValueError(f"block_seconds={block_seconds} must be a positive number of seconds, such as 30.")
        name, source, rate = resolve(audio, target_sampling_rate if sampling_rate is None else sampling_rate)
        if isinstance(source, (str, BinaryFile)):
            source = keep_seekable(source, self)
        self._input = (name, source, rate)
        self._range: tuple[int, int | None] = (0, None)
        self.target_rate = target_sampling_rate
        self.decoded_duration = None
        with _open(*self._input) as recording:
            self.channels = recording.channels
            self.source_rate = float(recording.rate)
            self.duration = None if recording.frames is None else recording.frames / float(recording.rate)
            self.declared_duration = recording.declared_seconds
            growth = max(1, math.ceil(target_sampling_rate / recording.rate))
            self._block_samples = min(
                max(1, round(block_seconds * recording.rate)) * self.channels, MAX_BLOCK_SAMPLES // growth
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        samples = 0
        with _open(*self._input) as recording:
            blocks = _read(recording, self._block_samples, *self._range)
            if recording.rate != self.target_rate:
                blocks = _resample(blocks, recording, self.target_rate)
            for block in blocks:
                samples += block.shape[1]
                yield block
        self.decoded_duration = samples / self.target_rate

    def between(self, start_s: float, end_s: float = math.inf) -> "AudioBlocks":
        """
        Returns a part of the recording as a recording of its own.

        WAV, FLAC, AIFF and other PCM are read from its start; other files are decoded from their beginning, without
        resampling what precedes the part. If both borders are whole samples at both sampling rates, its samples are
        those of the whole recording, except within 20 ms of a border, where the resampler has no neighbours. A part
        after the end of the recording has no blocks.

        Args:
            start_s, end_s (`float`): The borders in seconds; the end of the recording by default.

        Raises:
            ValueError: If `start_s` is negative, or not before `end_s`.
        """
        if not 0 <= start_s < end_s:
            raise ValueError(
                f"start_s={start_s!r}, end_s={end_s!r} is not a part of a recording; valid is 0 <= start_s < end_s."
            )
        part = copy.copy(self)
        part._owner = self
        offset, limit = self._range
        last = limit
        if end_s < math.inf:
            last = offset + round(end_s * self.source_rate)
            last = last if limit is None else min(last, limit)
        part._range = (offset + round(start_s * self.source_rate), last)
        part.declared_duration = part.decoded_duration = None
        if self.duration is not None:
            part.duration = max(min(self.duration, end_s) - start_s, 0.0)
        return part

    def load_clip(self, max_seconds: float, channel: int | None = None) -> np.ndarray | None:
        """
        Loads the recording as a whole, as [`load_audio`] does.

        Args:
            max_seconds (`float`): The longest recording to load, in seconds.
            channel (`int`, *optional*): Index of the channel to load; by default the channels are averaged.

        Returns:
            `np.ndarray` of shape `(samples,)` or `None`: float32; `None` if the recording is longer.

        Raises:
            ValueError: As in [`load_audio`].
        """
        name = self._input[0]
        with _open(*self._input) as recording:
            check_channel(name, recording.channels, channel)
            blocks, samples = [], 0
            for block in _read(recording, self._block_samples, *self._range):
                blocks.append(to_mono(block, channel))
                samples += block.shape[1]
                if samples > max_seconds * recording.rate:
                    return None
        self.decoded_duration = _resampled_length(samples, recording.rate, self.target_rate) / self.target_rate
        return _finish_clip(name, np.concatenate(blocks), recording.rate, self.target_rate)

    def load_up_to(self, max_seconds: float, channel: int | None = None) -> np.ndarray | None:
        """
        Loads the recording block by block; silence is not an error.

        Args:
            max_seconds (`float`): The longest recording to load, in seconds.
            channel (`int`, *optional*): Index of the channel to load; by default the channels are averaged.

        Returns:
            `np.ndarray` of shape `(samples,)` or `None`: float32; `None` if the recording is longer.

        Raises:
            ValueError: As in [`load_audio`], except for silence.
        """
        check_channel(self._input[0], self.channels, channel)
        blocks, samples = [], 0
        for block in self:
            blocks.append(to_mono(block, channel))
            samples += block.shape[1]
            if samples > max_seconds * self.target_rate:
                return None
        return np.concatenate(blocks)


class LiveAudio:
    """
    Converts the chunks of a live stream to mono at the target sampling rate.

    Args:
        sampling_rate (`float`):
            Sampling rate of the chunks in Hz.
        target_sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate of the result in Hz.
        encoding (`str`, *optional*, defaults to `"pcm_s16le"`), channels (`int`, *optional*, defaults to 1):
            The samples in chunks of raw bytes, and the number of channels that are interleaved there; see
            [`PcmDecoder`].

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(
        self,
        sampling_rate: float,
        target_sampling_rate: int = 16_000,
        encoding: str = "pcm_s16le",
        channels: int = 1,
    ):
        _check_rate("The stream", sampling_rate)
        self._rate = sampling_rate
        self._decode = PcmDecoder(encoding, channels)
        self._stream = None
        if sampling_rate != target_sampling_rate:
            self._stream = soxr.ResampleStream(sampling_rate, target_sampling_rate, 1, dtype="float32", quality="HQ")

    def __call__(self, chunk: AudioChunk, is_last: bool = False) -> np.ndarray:
        """
        Converts the next chunk.

        Args:
            chunk (`AudioChunk`):
                The chunk, which may be empty.
            is_last (`bool`, *optional*, defaults to `False`):
                Whether this is the last chunk; the resampler then returns its remaining samples.

        Returns:
            `np.ndarray` of shape `(samples,)`, float32; a resampler has a short delay.

        Raises:
            ValueError: If the chunk does not contain samples, has another sampling rate than the stream, or contains
                NaN or infinity.
        """
        data = file_bytes(chunk)
        if data is not None:
            name, samples = "of raw bytes", self._decode(data)[None]
        else:
            name, pcm, rate = resolve_samples(chunk, self._rate, AUDIO_CHUNK_FORMS, MAX_COLUMNS)
            if rate != self._rate:
                raise ValueError(
                    f"The chunk has a sampling rate of {rate!r} Hz, but the stream {self._rate!r} Hz; pass "
                    f"sampling_rate={rate!r} to the stream."
                )
            samples = as_floats(pcm)
        if not np.isfinite(samples).all():
            raise ValueError(f"The chunk, {name}, contains NaN or infinite samples; audio must be finite.")
        mono = np.ascontiguousarray(to_mono(samples)) if samples.size else np.zeros(0, np.float32)
        return mono if self._stream is None else self._stream.resample_chunk(mono, last=is_last)


class _Recording(NamedTuple):
    """An open input: samples of shape `(channels, samples)`, or a file."""

    name: str
    source: np.ndarray | AudioFile
    channels: int
    frames: int | None
    rate: float
    declared_seconds: float | None


@contextmanager
def _open(name: str, source: Source, rate: float) -> Iterator[_Recording]:
    """Opens a source returned by `resolve`."""
    if isinstance(source, np.ndarray):
        _check_rate(name, rate)
        channels, frames = source.shape
        yield _Recording(name, source, channels, frames, rate, frames / float(rate))
    else:
        with open_stream(source) as stream, open_audio_file(stream, name) as file:
            _check_rate(name, file.rate)
            yield _Recording(name, file, file.channels, file.frames, file.rate, file.declared_seconds)


def _check_rate(name: str, rate: float) -> None:
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < math.inf:
        raise ValueError(f"{name}: sampling_rate={rate!r} must be a positive number of Hz, such as 16000.")
    if not SAMPLING_RATES[0] <= rate <= SAMPLING_RATES[1]:
        raise ValueError(
            f"{name}: sampling_rate={rate!r} is out of range; valid rates are {SAMPLING_RATES[0]} to "
            f"{SAMPLING_RATES[1]} Hz. Is it in kHz?"
        )


def _read(recording: _Recording, block_samples: int, first: int = 0, last: int | None = None) -> Iterator[np.ndarray]:
    """
    Yields non-empty float32 blocks of shape `(channels, samples)`, of `block_samples` samples over all channels, from
    sample `first` (inclusive) to `last` (exclusive).
    """
    name, source = recording.name, recording.source
    frames = max(1, block_samples // max(1, recording.channels))
    blocks = _slices(source, frames, first) if isinstance(source, np.ndarray) else source.blocks(frames, first)
    empty = first == 0
    for block in blocks if last is None else _until(blocks, last - first):
        if not np.isfinite(block).all():
            raise ValueError(
                f"{name} contains NaN or infinite samples; audio must be finite. Set these samples to zero, or save "
                "the audio as 16-bit PCM."
            )
        if block.size:
            empty = False
            yield block
    if empty:
        raise without_samples(name)


def _slices(samples: np.ndarray, frames: int, first: int) -> Iterator[np.ndarray]:
    """Yields an array of floats or PCM as float32 blocks of shape `(channels, frames)`, from sample `first`."""
    for start in range(first, samples.shape[1], frames):
        yield as_floats(samples[:, start : start + frames])


def _until(blocks: Iterator[np.ndarray], left: int) -> Iterator[np.ndarray]:
    """Yields the first `left` samples of blocks, and decodes no further."""
    while left > 0 and (block := next(blocks, None)) is not None:
        yield block[:, :left]
        left -= block.shape[1]


def _resample(blocks: Iterator[np.ndarray], recording: _Recording, target_rate: int) -> Iterator[np.ndarray]:
    """Yields blocks at the target rate; their total length is that of `librosa.resample` on the whole."""
    rate, channels = float(recording.rate), recording.channels
    stream = soxr.ResampleStream(rate, target_rate, channels, dtype="float32", quality="HQ")
    read = sent = 0
    for block in blocks:
        read += block.shape[1]
        resampled = stream.resample_chunk(np.ascontiguousarray(block.T))
        sent += len(resampled)
        if len(resampled):
            yield resampled.T
    rest = stream.resample_chunk(np.empty((0, channels), np.float32), last=True)
    missing = _resampled_length(read, rate, target_rate) - sent
    if missing > 0:
        yield _fix_length(rest, missing).T
