"""
Loading of audio: a clip as a whole, or a long recording block by block.

Deliberate choices:
- Whatever is wrong with an input is found here, and nowhere else; both ways of loading share the checks.
- A file is decoded strictly forward and a block at a time: what its header declares is never allocated on trust.
- Only URLs and pipes are copied before they are decoded: by `load_audio` into memory, by `AudioBlocks` into a file.
"""

import http.client
import io
import math
import os
import re
import shutil
import tempfile
import urllib.request
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike


@runtime_checkable
class AudioDecoder(Protocol):
    """What is used of a `torchcodec.decoders.AudioDecoder`, which `datasets` yields where it decodes audio."""

    def get_all_samples(self) -> Any:
        """Returns an object with `data` of shape `(channels, samples)` and `sample_rate` in Hz."""


AudioInput: TypeAlias = str | os.PathLike | bytes | ArrayLike | dict[str, Any] | AudioDecoder
"""
One clip, in any of these forms:

- a path, or an http(s) URL, of an audio file (any format that libsndfile reads: WAV, FLAC, Ogg, MP3, AIFF, ...);
- the bytes of such a file;
- samples: a NumPy array, a list of floats or a torch tensor, of shape `(samples,)` or `(channels, samples)`, as floats
  in [-1, 1] or as uint8, int16 or int32 PCM;
- `{"array": samples, "sampling_rate": Hz}`, or the same with `"raw"` for `"array"`;
- `{"path": path, "bytes": bytes}`, either of them possibly `None`, as `datasets` yields with `Audio(decode=False)`;
- a torchcodec `AudioDecoder`.
"""

AUDIO_INPUT_FORMS = (
    "a path or http(s) URL of an audio file, its bytes, an array of shape (samples,) or (channels, samples), "
    "{'array', 'sampling_rate'}, {'path', 'bytes'} or a torchcodec AudioDecoder"
)
PCM_DTYPES = ("uint8", "int16", "int32")
SILENCE_PEAK = 1e-4  # -80 dBFS, about three steps of 16-bit PCM: there is no voice below it
# What every extractor and encoder needs: two frames of 25 ms, 10 ms apart, and a little more.
MIN_AUDIO_SECONDS = 0.04
# Hz. Resampling a clip from a rate far below these would make it thousands of times as long.
SAMPLING_RATES = (1_000, 1_000_000)
DOWNLOAD_TIMEOUT_SECONDS = 30
# Sizes from here on stand for "unknown" in a WAV that was written to a pipe (SoX 0x7FFFF000, ffmpeg 0xFFFFFFFF).
STREAMED_WAV_SIZE = 0x7FFFF000
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX, for instance of a FLAC that was written to a pipe
# Samples of all channels together, 16 MiB: a file may declare 1024 channels and any rate.
MAX_BLOCK_SAMPLES = 2**22


def load_audio(
    audio: AudioInput,
    sampling_rate: float | None = None,
    target_sampling_rate: int = 16_000,
    channel: int | None = None,
) -> np.ndarray:
    """
    Loads one clip as mono samples at the target rate.

    Args:
        audio (`AudioInput`):
            The clip, in any of the forms that [`AudioInput`] lists.
        sampling_rate (`float`, *optional*):
            Rate of bare samples in Hz; without it they count as being at the target rate already. Files, dictionaries
            and decoders know their own rate.
        target_sampling_rate (`int`, *optional*, defaults to 16000):
            Rate of the result in Hz; see [`resample`].
        channel (`int`, *optional*):
            The channel to take, counted from 0. Without it the channels are averaged.

    Returns:
        `np.ndarray` of shape `(samples,)`: float32, nominally within [-1, 1].

    Raises:
        ValueError: if the input is of no accepted form, cannot be read, is truncated, empty or silent, holds NaN or
            infinity, has its dimensions the wrong way round, or if the rate or the channel is impossible.
    """
    name, source, rate = _resolve(audio, target_sampling_rate if sampling_rate is None else sampling_rate)
    with _open(name, source, rate) as recording:
        rate = recording.rate
        samples = np.concatenate(list(_read(recording, MAX_BLOCK_SAMPLES)), axis=1)
    check_channel(name, len(samples), channel)
    mono = resample(to_mono(samples, channel), rate, target_sampling_rate)
    peak = max(mono.max(), -mono.min())
    if peak < SILENCE_PEAK:
        raise ValueError(
            f"{name} is silent: its peak is {peak:.1e}, and audio must reach {SILENCE_PEAK} (-80 dBFS). Leave it out; "
            "if only the mean of its channels is silent, choose one with channel=."
        )
    return np.ascontiguousarray(mono)


def resample(samples: np.ndarray, sampling_rate: float, target_sampling_rate: float) -> np.ndarray:
    """
    Brings samples of shape `(samples,)` to another rate, as `librosa.resample` does by default: soxr's high quality,
    and as long as the ratio of the rates says, rounded up.
    """
    if sampling_rate == target_sampling_rate:
        return samples
    resampled = soxr.resample(samples, sampling_rate, target_sampling_rate, quality="HQ")
    return _fix_length(resampled, _resampled_length(len(samples), sampling_rate, target_sampling_rate))


def _resampled_length(length: int, sampling_rate: float, target_sampling_rate: float) -> int:
    return math.ceil(length * (float(target_sampling_rate) / float(sampling_rate)))


def _fix_length(samples: np.ndarray, length: int) -> np.ndarray:
    """Cuts samples of shape `(samples, ...)` to a length, or fills them up with zeros."""
    missing = length - len(samples)
    if missing <= 0:
        return samples[:length]
    return np.pad(samples, [(0, missing)] + [(0, 0)] * (samples.ndim - 1))


def check_channel(name: str, channels: int, channel: int | None) -> None:
    """Refuses a channel that an audio of so many does not have; `None` is the mean of all."""
    if channel is not None and not (isinstance(channel, Integral) and 0 <= channel < channels):
        raise ValueError(
            f"{name} has {channels} channel(s), so channel={channel!r} does not exist; pass 0 to {channels - 1}, or "
            "None for the mean of all channels."
        )


def to_mono(samples: np.ndarray, channel: int | None = None) -> np.ndarray:
    """One channel of samples of shape `(channels, samples)`, or the mean of all: `(samples,)`."""
    if channel is not None:
        return samples[channel]
    return samples.mean(axis=0) if len(samples) > 1 else samples[0]


class AudioBlocks:
    """
    A recording of any length, read block by block: all its channels, at the target rate, in bounded memory.

    Iterating gives float32 arrays of shape `(channels, samples)`, nominally within [-1, 1]. Joined and averaged over
    the channels they are what [`load_audio`] returns, within 1e-4; but a silent recording is not refused. Blocks are
    of differing lengths, never empty. Each iteration reads the recording again.

    A URL or a pipe is copied to a temporary file, which is removed with this object.

    Args:
        audio (`AudioInput`):
            The recording, in any of the forms that [`AudioInput`] lists. An `AudioDecoder` decodes as a whole.
        sampling_rate (`float`, *optional*):
            Rate of bare samples in Hz, as in [`load_audio`].
        target_sampling_rate (`int`, *optional*, defaults to 16000):
            Rate of the blocks in Hz. Resampling is soxr's high quality, carried on from block to block.
        block_seconds (`float`, *optional*, defaults to 30.0):
            How much is read at once, in seconds; less where that would exceed 2^22 samples of all channels together.

    Attributes:
        channels (`int`):
            Number of channels.
        source_rate (`float`):
            Rate of the recording itself, in Hz.
        duration (`float` or `None`):
            Length in seconds as the container declares it, `None` where it does not.

    Raises:
        ValueError: as [`load_audio`], except for silence; or if `block_seconds` is impossible. What the header tells
            is found at construction; no samples, NaN, infinity and a decoder's errors while iterating, and a missing
            end after the last block.

    Example:

    ```python
    >>> recording = AudioBlocks("call.wav")
    >>> seconds = sum(block.shape[1] for block in recording) / 16_000
    ```
    """

    channels: int
    source_rate: float
    duration: float | None

    def __init__(
        self,
        audio: AudioInput,
        sampling_rate: float | None = None,
        target_sampling_rate: int = 16_000,
        block_seconds: float = 30.0,
    ):
        if not 0 < block_seconds < math.inf:
            raise ValueError(f"block_seconds={block_seconds} must be a positive number of seconds, such as 30.")
        name, source, rate = _resolve(audio, target_sampling_rate if sampling_rate is None else sampling_rate)
        if isinstance(source, str):
            source = self._seekable(source)
        self._input = (name, source, rate)
        self._target_rate = target_sampling_rate
        with _open(*self._input) as recording:
            self.channels = recording.channels
            self.source_rate = float(recording.rate)
            self.duration = None if recording.frames is None else recording.frames / float(recording.rate)
            growth = max(1, math.ceil(target_sampling_rate / recording.rate))
            self._block_samples = min(
                max(1, round(block_seconds * recording.rate)) * self.channels, MAX_BLOCK_SAMPLES // growth
            )

    def __iter__(self) -> Iterator[np.ndarray]:
        with _open(*self._input) as recording:
            blocks = _read(recording, self._block_samples)
            if recording.rate != self._target_rate:
                blocks = _resample(blocks, recording, self._target_rate)
            yield from blocks

    def _seekable(self, location: str) -> str:
        """Returns the path of a file that can be read again and again, which lives as long as this object."""
        with _fetch(location) as stream:
            if stream.seekable():
                return location
            descriptor, path = tempfile.mkstemp(prefix="mmemo-")
            weakref.finalize(self, os.unlink, path)
            with open(descriptor, "wb") as file:
                shutil.copyfileobj(stream, file)
        return path


class LiveAudio:
    """
    Brings samples that arrive bit by bit to mono at the target rate.

    Args:
        sampling_rate (`float`): Of what arrives, in Hz.
        target_sampling_rate (`int`, *optional*, defaults to 16000): Of the result, in Hz.

    Raises:
        ValueError: If the rate is impossible.
    """

    def __init__(self, sampling_rate: float, target_sampling_rate: int = 16_000):
        _check_rate("The stream", sampling_rate)
        self._stream = None
        if sampling_rate != target_sampling_rate:
            self._stream = soxr.ResampleStream(sampling_rate, target_sampling_rate, 1, dtype="float32", quality="HQ")

    def __call__(self, chunk: ArrayLike, is_last: bool = False) -> np.ndarray:
        """
        Takes the next samples.

        Args:
            chunk (`ArrayLike`):
                Of shape `(samples,)` or `(channels, samples)`, floats in [-1, 1] or PCM; may be empty.
            is_last (`bool`, *optional*, defaults to `False`):
                Whether nothing follows; a resampler then gives the rest.

        Returns:
            `np.ndarray` of shape `(samples,)`, float32; a resampler lags a little behind.

        Raises:
            ValueError: If the chunk is no samples, or holds NaN or infinity.
        """
        name, samples = _check_array(chunk)
        if not np.isfinite(samples).all():
            raise ValueError(f"The chunk, {name}, holds NaN or infinite samples; audio must be finite.")
        blocks = list(_slices(samples, max(1, samples.shape[1])))
        mono = to_mono(blocks[0]) if blocks else np.zeros(0, np.float32)
        return mono if self._stream is None else self._stream.resample_chunk(mono, last=is_last)


class _Recording(NamedTuple):
    """An input that is open for reading: samples of shape `(channels, samples)`, or a file."""

    name: str
    source: "np.ndarray | _ForwardFile"
    channels: int
    frames: int | None
    rate: float


class _ForwardFile(soundfile.SoundFile):
    """
    A file that is only read on and on. After every read of a seekable one, soundfile seeks to where it is, and Ogg
    Opus then decodes other samples (libsndfile 1.2.2).
    """

    def seekable(self) -> bool:
        return False


def _resolve(audio: AudioInput, sampling_rate: float) -> tuple[str, np.ndarray | bytes | str, Any]:
    """
    Returns a name for error messages, and either samples of shape `(channels, samples)` and their rate in Hz, or the
    bytes or the location of a file and `None`.
    """
    if isinstance(audio, dict):
        samples = audio.get("raw") if audio.get("array") is None else audio["array"]
        if samples is not None and audio.get("sampling_rate") is not None:
            return *_check_array(samples), audio["sampling_rate"]
        if samples is None and audio.get("bytes") is not None:
            return _short(audio.get("path") or "file in bytes"), bytes(audio["bytes"]), None
        if samples is None and audio.get("path") is not None:
            return _resolve(audio["path"], sampling_rate)
        raise ValueError(
            f"dict with keys {list(audio)} is not audio: it needs 'array' and 'sampling_rate', or one of 'path' and "
            "'bytes', and those must not be None."
        )
    if isinstance(audio, (str, os.PathLike)):
        return _short(os.fspath(audio)), os.fspath(audio), None
    if isinstance(audio, (bytes, bytearray, memoryview)):
        return "file in bytes", bytes(audio), None
    if isinstance(audio, AudioDecoder):
        try:
            decoded = audio.get_all_samples()
        except RuntimeError as error:
            raise ValueError(f"{type(audio).__name__} cannot decode its audio: {_short(error)}") from error
        return *_check_array(decoded.data), decoded.sample_rate
    return *_check_array(audio), sampling_rate


def _check_array(array: ArrayLike) -> tuple[str, np.ndarray]:
    """Returns a name for error messages and samples of shape `(channels, samples)`, floats or PCM."""
    try:
        samples = np.asarray(array)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or with a gradient
        raise ValueError(f"{type(array).__name__} cannot be read as samples: {_short(error)}") from error
    name = f"array of shape {samples.shape}"
    if samples.ndim == 0 or samples.dtype.kind not in "biufc":
        raise ValueError(f"{type(array).__name__} is not an audio input; pass {AUDIO_INPUT_FORMS}.")
    if samples.dtype.kind != "f" and samples.dtype not in PCM_DTYPES:
        raise ValueError(
            f"{name} has dtype {samples.dtype}, of unknown scale; pass floats in [-1, 1], or PCM as {PCM_DTYPES}."
        )
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"{name} is not one clip; it must be (samples,) or (channels, samples). Pass a batch as a list."
        )
    samples = np.atleast_2d(samples)
    if samples.size and len(samples) > samples.shape[1]:
        raise ValueError(f"{name} has more channels than samples; it must be (channels, samples): transpose it.")
    return name, samples


@contextmanager
def _open(name: str, source: np.ndarray | bytes | str, rate: float) -> Iterator[_Recording]:
    """Opens what `_resolve` returned."""
    if isinstance(source, np.ndarray):
        _check_rate(name, rate)
        channels, frames = source.shape
        yield _Recording(name, source, channels, frames, rate)
    else:
        with _stream(source) as stream, _decode(stream, name) as file:
            _check_rate(name, file.samplerate)
            frames = None if file.frames == UNKNOWN_FRAMES else file.frames
            yield _Recording(name, file, file.channels, frames, file.samplerate)


def _check_rate(name: str, rate: float) -> None:
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < math.inf:
        raise ValueError(f"{name}: sampling_rate={rate!r} must be a positive number of Hz, such as 16000.")
    if not SAMPLING_RATES[0] <= rate <= SAMPLING_RATES[1]:
        raise ValueError(
            f"{name}: sampling_rate={rate!r} is not the rate of a recording; valid are {SAMPLING_RATES[0]} to "
            f"{SAMPLING_RATES[1]} Hz. Is it in kHz?"
        )


@contextmanager
def _stream(source: bytes | str) -> Iterator[BinaryIO]:
    """Opens the bytes or the location of a file, so that it can seek."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    else:
        with _fetch(source) as stream:
            yield stream if stream.seekable() else io.BytesIO(stream.read())


@contextmanager
def _fetch(location: str) -> Iterator[BinaryIO]:
    """Opens a local file or an http(s) URL, which cannot seek."""
    try:
        if location.startswith(("http://", "https://")):
            request = urllib.request.Request(location, headers={"User-Agent": "mmemo"})
            with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
                yield response
                if response.length:  # only a read of everything at once complains itself
                    raise ConnectionError(f"the connection ended {response.length} bytes early")
        else:
            # The second has no name: by that, soundfile would take any `.raw` for samples without a header.
            with open(location, "rb") as file, open(file.fileno(), "rb", closefd=False) as nameless:
                yield nameless
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"Cannot read {_short(location)} ({_short(error)}); pass {AUDIO_INPUT_FORMS}.") from error


@contextmanager
def _decode(stream: BinaryIO, name: str) -> Iterator[_ForwardFile]:
    """Opens an audio file for decoding."""
    if stream.seek(0, os.SEEK_END) == 0:
        raise ValueError(f"{name} is empty (0 bytes); pass a whole audio file.")
    stream.seek(0)
    try:
        with _ForwardFile(stream) as file:
            # For WAV and AIFF libsndfile trusts the file's length over its header and tells the difference in its log.
            sizes = re.search(r"(?:data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info)
            if sizes is not None and int(sizes[2]) < int(sizes[1]) < STREAMED_WAV_SIZE:
                raise _truncated(name)
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{name} is not readable audio ({error.error_string}): it is corrupt, truncated, or of a format unknown "
            "to libsndfile. Convert it (ffmpeg -i INPUT output.wav), or pass a torchcodec AudioDecoder."
        ) from error


def _truncated(name: str) -> ValueError:
    return ValueError(f"{name} is truncated: its header announces more audio than it holds. Fetch the whole file.")


def _read(recording: _Recording, block_samples: int) -> Iterator[np.ndarray]:
    """Yields float32 blocks `(channels, samples)` of `block_samples` samples in all, none of them empty."""
    name, source = recording.name, recording.source
    frames = max(1, block_samples // max(1, recording.channels))
    blocks = _slices(source, frames) if isinstance(source, np.ndarray) else _decoded(source, frames, name)
    empty = True
    for block in blocks:
        if not np.isfinite(block).all():
            raise ValueError(
                f"{name} holds NaN or infinite samples; audio must be finite. Repair it, for instance with "
                "np.nan_to_num."
            )
        if block.size:
            empty = False
            yield block
    if empty:
        raise ValueError(f"{name} has no samples; leave this clip out, or pass one of at least one sample.")


def _slices(samples: np.ndarray, frames: int) -> Iterator[np.ndarray]:
    """Yields an array, floats or PCM, as float32 blocks of shape `(channels, frames)`."""
    for start in range(0, samples.shape[1], frames):
        block = samples[:, start : start + frames]
        if block.dtype.kind == "f":
            yield block.astype(np.float32, copy=False)
        else:
            middle = 2 ** (8 * block.dtype.itemsize - 1)
            yield (block.astype(np.float32) - (middle if block.dtype.kind == "u" else 0)) / middle


def _decoded(file: soundfile.SoundFile, frames: int, name: str) -> Iterator[np.ndarray]:
    """Yields a file as float32 blocks of shape `(channels, frames)`."""
    left = file.frames
    while left > 0:
        block = file.read(min(frames, left), dtype="float32", always_2d=True).T
        if block.shape[1] == 0:
            break
        left -= block.shape[1]
        yield block
    if left > 0 and file.frames != UNKNOWN_FRAMES:
        raise _truncated(name)


def _resample(blocks: Iterator[np.ndarray], recording: _Recording, target_rate: int) -> Iterator[np.ndarray]:
    """Yields blocks at the target rate; together they are as long as `librosa.resample` makes the whole."""
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


def _short(text: object) -> str:
    return str(text)[:200]
