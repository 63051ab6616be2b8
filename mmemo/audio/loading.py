"""
Audio loading: a clip as a whole, or a long recording block by block.

Deliberate choices:
- All checks of audio inputs are here, and both ways of loading share them.
- Files are decoded strictly forward, one block at a time: memory is never allocated for a length that only the header
  declares.
- Only URLs and pipes are copied before decoding: by `load_audio` into memory, by `AudioBlocks` into a file.
"""

import array
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
    """The part of `torchcodec.decoders.AudioDecoder` that is used; `datasets` yields such decoders."""

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
# The usual suffixes of the formats that are decoded, to find files in folders; a file's suffix says nothing about how it
# is decoded.
AUDIO_SUFFIXES = frozenset(
    ".aac .ac3 .aif .aifc .aiff .amr .ape .au .awb .caf .flac .m4a .m4b .mka .mp2 .mp3 .oga .ogg .opus .ra .snd .spx "
    ".tta .voc .w64 .wav .wave .weba .wma .wv".split()
)
VIDEO_SUFFIXES = frozenset(
    ".3g2 .3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .qt .rm .ts .vob .webm .wmv".split()
)
AUDIO_KEYS = ("array", "raw", "bytes", "path")
PCM_DTYPES = ("uint8", "int16", "int32")
SILENCE_PEAK = 1e-4  # -80 dBFS, about three steps of 16-bit PCM; speech is louder
# Minimum for all feature extractors and encoders: two frames of 25 ms with a hop of 10 ms, and a little more.
MIN_AUDIO_SECONDS = 0.04
# Valid range in Hz. Resampling from a much lower rate would make a clip thousands of times longer.
SAMPLING_RATES = (1_000, 1_000_000)
DOWNLOAD_TIMEOUT_SECONDS = 30
# WAVs written to a pipe declare at least this size, meaning "unknown" (SoX 0x7FFFF000, ffmpeg 0xFFFFFFFF).
STREAMED_WAV_SIZE = 0x7FFFF000
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX, as for a FLAC written to a pipe
# Over all channels, 16 MiB: a file may declare 1024 channels and any rate.
MAX_BLOCK_SAMPLES = 2**22


@runtime_checkable
class BinaryFile(Protocol):
    """An open binary file, such as `io.BytesIO` or the result of `open(path, "rb")`."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> Any: ...

    def seekable(self) -> bool: ...


@runtime_checkable
class ArrayObject(Protocol):
    """An object that converts itself to an array, such as a tensor or a pandas `Series`."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray: ...


def is_audio_object(value: Any) -> bool:
    """
    Returns whether a Python object is one audio input by itself, and not a collection of inputs.

    Lists are collections: of items in pipelines, although a list of floats is one clip for [`load_audio`]. So are arrays
    and `Series` of anything but numbers, such as paths.
    """
    if isinstance(value, dict):
        return any(key in value for key in AUDIO_KEYS)
    if isinstance(value, tuple):
        return len(value) == 2 and sum(isinstance(part, Real) for part in value) == 1
    if isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview, array.array, BinaryFile, AudioDecoder)):
        return True
    dtype = str(value.dtype) if isinstance(value, (np.ndarray, np.generic)) else ""
    return isinstance(value, ArrayObject) and not dtype.startswith(("<U", "object"))


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
            "if only the mean of its channels is silent, select one with channel=."
        )
    return np.ascontiguousarray(mono)


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
            f"{name} has {channels} channel(s), so channel={channel!r} does not exist; pass 0 to {channels - 1}, or "
            "None for the mean of all channels."
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
    over the channels they equal the result of [`load_audio`] within 1e-4; unlike there, silence is not an error.
    Blocks have different lengths and are never empty. Each iteration reads the recording again.

    A URL or a pipe is copied to a temporary file, which is deleted with this object.

    Args:
        audio (`AudioInput`):
            The recording, in any of the forms that [`AudioInput`] lists. An `AudioDecoder` decodes all of it at once.
        sampling_rate (`float`, *optional*):
            Sampling rate of bare samples in Hz, as in [`load_audio`].
        target_sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate of the blocks in Hz. The resampler, of soxr's high quality, keeps its state between blocks.
        block_seconds (`float`, *optional*, defaults to 30.0):
            Length of a block in seconds; shorter where it would exceed 2^22 samples over all channels.

    Attributes:
        channels (`int`):
            Number of channels.
        source_rate (`float`):
            Sampling rate of the recording itself in Hz.
        duration (`float` or `None`):
            Length in seconds as declared by the container; `None` if it declares none.

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
        """Returns the path of a file that can be read repeatedly and exists as long as this object."""
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
    Converts the chunks of a live stream to mono at the target sampling rate.

    Args:
        sampling_rate (`float`): Sampling rate of the chunks in Hz.
        target_sampling_rate (`int`, *optional*, defaults to 16000): Sampling rate of the result in Hz.

    Raises:
        ValueError: If the sampling rate is invalid.
    """

    def __init__(self, sampling_rate: float, target_sampling_rate: int = 16_000):
        _check_rate("The stream", sampling_rate)
        self._stream = None
        if sampling_rate != target_sampling_rate:
            self._stream = soxr.ResampleStream(sampling_rate, target_sampling_rate, 1, dtype="float32", quality="HQ")

    def __call__(self, chunk: ArrayLike, is_last: bool = False) -> np.ndarray:
        """
        Converts the next chunk.

        Args:
            chunk (`ArrayLike`):
                Samples of shape `(samples,)` or `(channels, samples)`, floats in [-1, 1] or PCM; may be empty.
            is_last (`bool`, *optional*, defaults to `False`):
                Whether this is the last chunk; the resampler then returns its remaining samples.

        Returns:
            `np.ndarray` of shape `(samples,)`, float32; a resampler has a short delay.

        Raises:
            ValueError: If the chunk does not contain samples, or contains NaN or infinity.
        """
        name, samples = _check_array(chunk)
        if not np.isfinite(samples).all():
            raise ValueError(f"The chunk, {name}, contains NaN or infinite samples; audio must be finite.")
        blocks = list(_slices(samples, max(1, samples.shape[1])))
        mono = to_mono(blocks[0]) if blocks else np.zeros(0, np.float32)
        return mono if self._stream is None else self._stream.resample_chunk(mono, last=is_last)


class _Recording(NamedTuple):
    """An open input: samples of shape `(channels, samples)`, or a file."""

    name: str
    source: "np.ndarray | _ForwardFile"
    channels: int
    frames: int | None
    rate: float


class _ForwardFile(soundfile.SoundFile):
    """
    A file that is only read forward. After each read of a seekable file, soundfile seeks to the current position, and
    Ogg Opus then decodes different samples (libsndfile 1.2.2).
    """

    def seekable(self) -> bool:
        return False


def _resolve(audio: AudioInput, sampling_rate: float) -> tuple[str, np.ndarray | bytes | str, Any]:
    """
    Returns a name for error messages, the source, and its sampling rate in Hz: samples of shape `(channels, samples)`
    with their rate, or the bytes or location of a file with `None`.
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
    """Opens a source returned by `_resolve`."""
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
            f"{name}: sampling_rate={rate!r} is out of range; valid rates are {SAMPLING_RATES[0]} to "
            f"{SAMPLING_RATES[1]} Hz. Is it in kHz?"
        )


@contextmanager
def _stream(source: bytes | str) -> Iterator[BinaryIO]:
    """Opens the bytes or the location of a file as a seekable stream."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    else:
        with _fetch(source) as stream:
            yield stream if stream.seekable() else io.BytesIO(stream.read())


@contextmanager
def _fetch(location: str) -> Iterator[BinaryIO]:
    """Opens a local file, or an http(s) URL, which is not seekable."""
    try:
        if location.startswith(("http://", "https://")):
            request = urllib.request.Request(location, headers={"User-Agent": "mmemo"})
            with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
                yield response
                if response.length:  # urllib itself raises only where everything is read at once
                    raise ConnectionError(f"the connection ended {response.length} bytes early")
        else:
            # The second handle has no name: soundfile would take a file named `.raw` for samples without a header.
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
            # For WAV and AIFF libsndfile uses the file's length instead of the header's, and logs the difference.
            sizes = re.search(r"(?:data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info)
            if sizes is not None and int(sizes[2]) < int(sizes[1]) < STREAMED_WAV_SIZE:
                raise _truncated(name)
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{name} is not readable audio ({error.error_string}): it is corrupt, truncated, or in a format unknown "
            "to libsndfile. Convert it (ffmpeg -i INPUT output.wav), or pass a torchcodec AudioDecoder."
        ) from error


def _truncated(name: str) -> ValueError:
    return ValueError(f"{name} is truncated: its header declares more audio than it contains. Fetch the whole file.")


def _read(recording: _Recording, block_samples: int) -> Iterator[np.ndarray]:
    """Yields non-empty float32 blocks of shape `(channels, samples)`, of `block_samples` samples over all channels."""
    name, source = recording.name, recording.source
    frames = max(1, block_samples // max(1, recording.channels))
    blocks = _slices(source, frames) if isinstance(source, np.ndarray) else _decoded(source, frames, name)
    empty = True
    for block in blocks:
        if not np.isfinite(block).all():
            raise ValueError(
                f"{name} contains NaN or infinite samples; audio must be finite. Replace them, for instance with "
                "np.nan_to_num."
            )
        if block.size:
            empty = False
            yield block
    if empty:
        raise ValueError(f"{name} has no samples; leave this clip out, or pass one with at least one sample.")


def _slices(samples: np.ndarray, frames: int) -> Iterator[np.ndarray]:
    """Yields an array of floats or PCM as float32 blocks of shape `(channels, frames)`."""
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


def _short(text: object) -> str:
    return str(text)[:200]
