"""
Audio inputs: the Python objects that are accepted as one clip, a recording, or a chunk of a stream.

Deliberate choices:
- Whatever could mean two things is refused: a bare array of more than two rows may be a batch, and integers that are
  not PCM have no known scale.
- Objects of other libraries are recognised by their protocols or names, so that none is imported.
"""

import array as arrays
import os
from numbers import Real
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from mmemo.audio.files import BinaryFile
from mmemo.storage import short


@runtime_checkable
class AudioDecoder(Protocol):
    """The part of `torchcodec.decoders.AudioDecoder` that is used; `datasets` yields such decoders."""

    def get_all_samples(self) -> Any:
        """Returns [`DecodedAudio`]."""


@runtime_checkable
class DecodedAudio(Protocol):
    """The part of `torchcodec.AudioSamples` that is used."""

    data: Any
    sample_rate: int


@runtime_checkable
class ArrayObject(Protocol):
    """An object that converts itself to an array, such as a tensor or a pandas `Series`."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray: ...


AudioInput: TypeAlias = (
    str
    | os.PathLike
    | bytes
    | bytearray
    | memoryview
    | BinaryFile
    | ArrayLike
    | ArrayObject
    | tuple[Any, Any]
    | dict[str, Any]
    | AudioDecoder
    | DecodedAudio
)
"""
One clip, in any of these forms:

- a path of an audio or video file, or its URL, http(s) or one that `fsspec` opens (s3, gs, hf and others): WAV,
  FLAC, Ogg, MP3, AIFF and other formats of libsndfile; M4A, MP4, MOV, MKV, WebM, WMA, AAC, AMR and others, whose
  audio track FFmpeg decodes;
- the bytes of such a file, also as a `bytearray` or `memoryview`, or the file itself, open for reading in binary mode
  (`io.BytesIO`, `open(path, "rb")`), which is read from its beginning;
- samples: a NumPy array, a list of floats, a tensor, a pandas `Series` or an arrow array, of shape `(samples,)` or
  `(channels, samples)`, as floats in [-1, 1] or as uint8, int16 or int32 PCM. `(samples, channels)` is recognised by
  up to 8 columns and more than 8 rows. A bare array of more than two rows is refused, because it could be a batch:
  pass a list of clips, or `{"array", "sampling_rate"}`;
- `(sampling_rate, samples)`, as Gradio passes it, or `(samples, sampling_rate)`, as `torchaudio.load`,
  `soundfile.read` and `librosa.load` return it;
- `{"array": samples, "sampling_rate": Hz}`, or the same with `"raw"` for `"array"`;
- `{"path": path, "bytes": bytes}`, either of them possibly `None`, as `datasets` yields with `Audio(decode=False)`;
- a torchcodec `AudioDecoder`, as `datasets` yields with `Audio()`, or the samples that it returns.
"""

AudioChunk: TypeAlias = ArrayLike | ArrayObject | bytes | bytearray | memoryview | tuple[Any, Any] | DecodedAudio
"""
A chunk of a stream, in any of these forms:

- samples as in [`AudioInput`], alone or with their sampling rate: `(samples,)`, `(channels, samples)`, or
  `(samples, channels)` as sounddevice passes it;
- raw bytes without a header, as PyAudio and WebSockets pass them, in the encoding of the stream.
"""

AUDIO_INPUT_FORMS = (
    "a path or URL of an audio file, its bytes, an open binary file, an array of shape (samples,) or "
    "(channels, samples), (sampling_rate, samples), {'array', 'sampling_rate'}, {'path', 'bytes'} or a torchcodec "
    "AudioDecoder"
)
AUDIO_CHUNK_FORMS = (
    "an array of shape (samples,), (channels, samples) or (samples, channels), (sampling_rate, samples), or raw bytes "
    "in the encoding of the stream"
)
AUDIO_KEYS = frozenset({"array", "raw", "sampling_rate", "bytes", "path"})
PCM_DTYPES = ("uint8", "int16", "int32")
# Second dimensions up to this may be channels: 7.1 surround sound has 8.
MAX_COLUMNS = 8
MAX_BARE_CHANNELS = 2
FILE_NAME = "the audio file"  # of bytes and open files, in error messages

Source: TypeAlias = np.ndarray | bytes | str | BinaryFile


def is_audio_object(value: Any) -> bool:
    """
    Returns whether a Python object is one audio input by itself, and not a collection of inputs.

    Lists are collections: of items in pipelines, although a list of floats is one clip for [`load_audio`]. So are
    arrays and `Series` of anything but numbers, such as paths.
    """
    if isinstance(value, dict):
        return bool(value.keys() - {"sampling_rate"}) and value.keys() <= AUDIO_KEYS
    if isinstance(value, tuple):
        return _has_rate(value)
    if isinstance(value, (str, os.PathLike, bytes, arrays.array, memoryview)) or is_tensor(value):
        return True
    if isinstance(value, ArrayObject):
        samples = np.asarray(value)
        return samples.ndim != 1 or samples.dtype.kind not in "OUST"
    if isinstance(value, (BinaryFile, AudioDecoder, DecodedAudio)) or is_arrow_scalar(value):
        return True
    return file_bytes(value) is not None


def resolve(audio: AudioInput, sampling_rate: float) -> tuple[str, Source, Any]:
    """
    Returns a name for error messages, the source, and its sampling rate in Hz.

    Args:
        audio (`AudioInput`): The input.
        sampling_rate (`float`): Sampling rate of bare samples in Hz.

    Returns:
        `tuple`: the name; samples of shape `(channels, samples)`, the bytes or location of a file, or an open file;
        and the rate of samples, or `None` for files.

    Raises:
        ValueError: If the input has no accepted form.
    """
    if isinstance(audio, dict):
        return _resolve_dict(audio, sampling_rate)
    if isinstance(audio, (str, os.PathLike)):
        location = os.fsdecode(audio)
        return short(location), location, None
    content = file_bytes(audio)
    if content is not None:
        return FILE_NAME, content, None
    if isinstance(audio, BinaryFile):
        return FILE_NAME, audio, None
    if is_arrow_scalar(audio):
        scalar: Any = audio
        return resolve(scalar.as_py(), sampling_rate)
    return resolve_samples(audio, sampling_rate)


def resolve_samples(
    audio: Any, sampling_rate: float, forms: str = AUDIO_INPUT_FORMS, max_rows: int = MAX_BARE_CHANNELS
) -> tuple[str, np.ndarray, Any]:
    """
    Like `resolve`, for samples only.

    Args:
        audio: Samples, alone or with their sampling rate.
        sampling_rate (`float`): Sampling rate of bare samples in Hz.
        forms (`str`, *optional*): The accepted forms, for error messages.
        max_rows (`int`, *optional*, defaults to 2): Bare arrays of more rows are refused as batches.
    """
    if isinstance(audio, tuple) and _has_rate(audio):
        rate, samples = audio if isinstance(audio[0], Real) else audio[::-1]
        return *check_array(samples, forms), rate
    if isinstance(audio, AudioDecoder):
        try:
            audio = audio.get_all_samples()
        except RuntimeError as error:
            raise ValueError(f"{type(audio).__name__} cannot decode its audio: {short(error)}") from error
    if not isinstance(audio, ArrayObject) and isinstance(audio, DecodedAudio):
        return *check_array(audio.data, forms), audio.sample_rate
    return *check_array(audio, forms, max_rows), sampling_rate


def _resolve_dict(audio: dict[str, Any], sampling_rate: float) -> tuple[str, Source, Any]:
    samples = audio.get("raw") if audio.get("array") is None else audio["array"]
    if samples is not None and audio.get("sampling_rate") is not None:
        return *check_array(samples), audio["sampling_rate"]
    if samples is None and audio.get("bytes") is not None:
        name, source, rate = resolve(audio["bytes"], sampling_rate)
        return short(audio.get("path") or name), source, rate
    if samples is None and audio.get("path") is not None:
        return resolve(audio["path"], sampling_rate)
    raise ValueError(
        f"dict with keys {list(audio)} is not audio: it needs 'array' and 'sampling_rate', or one of 'path' and "
        "'bytes', and those must not be None."
    )


def file_bytes(value: Any) -> bytes | None:
    """Returns the content of a bytes-like object; `None` for arrays, whose bytes are samples, and anything else."""
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, (np.ndarray, np.generic, arrays.array)):
        return None
    try:
        view = memoryview(value)
    except TypeError:
        return None
    return view.tobytes() if view.format in ("B", "b", "c") else None


def check_array(array: Any, forms: str = AUDIO_INPUT_FORMS, max_rows: int | None = None) -> tuple[str, np.ndarray]:
    """
    Returns a name for error messages and samples of shape `(channels, samples)`, floats or PCM in native byte order.

    Args:
        array: Anything that NumPy takes as an array, or a tensor.
        forms (`str`, *optional*): The accepted forms, for error messages.
        max_rows (`int`, *optional*): Arrays of more rows are refused as batches.

    Raises:
        ValueError: If it is not an array of floats or PCM, or its shape is not that of one clip.
    """
    try:
        samples = as_array(array)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, sparse tensors
        raise ValueError(f"{type(array).__name__} cannot be read as samples: {short(error)}") from error
    name = f"array of shape {samples.shape}"
    if samples.ndim == 0 or samples.dtype.kind not in "biufc":
        raise ValueError(f"{type(array).__name__} is not an audio input; pass {forms}.")
    if samples.dtype.kind != "f" and samples.dtype not in PCM_DTYPES:
        raise ValueError(
            f"{name} has dtype {samples.dtype}, of unknown scale; pass floats in [-1, 1], or PCM as {PCM_DTYPES}."
        )
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"{name} is not one clip; it must be (samples,) or (channels, samples). Pass a batch as a list."
        )
    return name, _with_channels_first(samples, name, max_rows)


def _with_channels_first(samples: np.ndarray, name: str, max_rows: int | None) -> np.ndarray:
    samples = np.atleast_2d(samples)
    rows, columns = samples.shape
    if columns == 1 < rows or columns <= MAX_COLUMNS < rows:
        return samples.T
    if samples.size and rows > columns:
        raise ValueError(f"{name} has more channels than samples; it must be (channels, samples): transpose it.")
    if max_rows is not None and rows > max_rows:
        raise ValueError(
            f"{name} has {rows} rows and could be a batch; pass a batch as a list of clips, or one clip of {rows} "
            "channels as {'array', 'sampling_rate'}."
        )
    return samples


def as_array(value: Any) -> np.ndarray:
    """Returns an array in native byte order of anything that NumPy takes as one, or of a tensor on any device."""
    if is_tensor(value):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    samples = np.asarray(value)
    if samples.dtype.name == "bfloat16":  # an extension of NumPy's dtypes
        return samples.astype(np.float32)
    return samples.astype(samples.dtype.newbyteorder("="), copy=False)


def _has_rate(audio: tuple) -> bool:
    """Whether a tuple is samples with their sampling rate, in either order."""
    return len(audio) == 2 and sum(isinstance(part, Real) for part in audio) == 1


def is_tensor(value: Any) -> bool:
    return any((kind.__module__, kind.__name__) == ("torch", "Tensor") for kind in type(value).__mro__)


def is_arrow_scalar(value: Any) -> bool:
    return any((kind.__module__, kind.__name__) == ("pyarrow.lib", "Scalar") for kind in type(value).__mro__)
