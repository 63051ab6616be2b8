"""
Audio files: decodes paths, URLs, bytes and open files with libsndfile, or with FFmpeg where libsndfile cannot.

Deliberate choices:
- The content of a file decides how it is decoded, not its suffix.
- Files are decoded strictly forward, one block at a time: memory is never allocated for a length that only the header
  declares. Decoding may begin later: by a seek where that is exact, otherwise by decoding and dropping what precedes.
"""

import io
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
import soundfile

from mmemo.audio.containers import STREAMED_RIFF_SIZE, is_cut, open_container, truncated, unreadable
from mmemo.storage import download, fetch, is_remote, short


MPEG_HEADER_BYTES = 4096
BAD_OPEN = 7  # the error code of libsndfile if the decoder finds nothing
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX, as for a FLAC written to a pipe
# Codings of WAV, FLAC, AIFF and others in which libsndfile seeks to the exact sample, without decoding.
EXACT_SUBTYPES = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW")


@runtime_checkable
class BinaryFile(Protocol):
    """An open binary file, such as `io.BytesIO` or the result of `open(path, "rb")`."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def seekable(self) -> bool: ...


class AudioFile(Protocol):
    """A file that is open for decoding."""

    channels: int
    rate: int
    frames: int | None  # as declared; `None` if unknown
    declared_seconds: float | None  # also where its samples may be more or fewer

    def blocks(self, frames: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yields float32 blocks of shape `(channels, frames)` from sample `start`; the last one may be shorter."""


class _SoundFile:
    """A file that libsndfile decodes."""

    def __init__(self, file: "_ForwardFile", name: str):
        self._file = file
        self._name = name
        self.channels = file.channels
        self.rate = file.samplerate
        self.frames = None if file.frames == UNKNOWN_FRAMES else file.frames
        self.declared_seconds = None if self.frames is None else self.frames / self.rate

    def blocks(self, frames: int, start: int = 0) -> Iterator[np.ndarray]:
        left = self._file.frames - start
        if left > 0:
            self._skip(start, frames)
        while left > 0:
            block = self._file.read(min(frames, left), dtype="float32", always_2d=True).T
            if block.shape[1] == 0:
                break
            left -= block.shape[1]
            yield block
        if left > 0 and self.frames is not None:
            raise truncated(self._name)

    def _skip(self, start: int, frames: int) -> None:
        """Moves to sample `start`, by decoding up to there in blocks of `frames` where seeking is not exact."""
        if self.frames is not None and self._file.subtype.startswith(EXACT_SUBTYPES):
            self._file.seek(start)
            return
        block = np.empty((min(frames, start), self.channels), np.float32)
        while start > 0:
            skipped = len(self._file.read(out=block[:start]))
            if skipped == 0:
                return
            start -= skipped


class _ForwardFile(soundfile.SoundFile):
    """
    A file that is only read forward. After each read of a seekable file, soundfile seeks to the current position, and
    Ogg Opus then decodes different samples (libsndfile 1.2.2).
    """

    def seekable(self) -> bool:
        return False


@contextmanager
def open_audio_file(stream: BinaryIO, name: str) -> Iterator[AudioFile]:
    """
    Opens an audio file for decoding.

    Args:
        stream (`BinaryIO`): The file, seekable and without a name.
        name (`str`): Its name in error messages.

    Raises:
        ValueError: If it cannot be decoded or is truncated.
    """
    if stream.seek(0, os.SEEK_END) == 0:
        raise ValueError(f"{name} is empty (0 bytes); use a whole audio file.")
    if is_cut(stream):
        raise truncated(name)
    stream.seek(0)
    with ExitStack() as stack:
        file, reason = None, None
        try:
            file = stack.enter_context(_ForwardFile(stream))
        except soundfile.LibsndfileError as error:
            # Of an MP3 without a frame libsndfile says that the file does not exist.
            reason = "nothing in it can be decoded" if error.code == BAD_OPEN else error.error_string
        # A WAV that was written to a pipe may declare 0 frames.
        if file is None or file.frames == 0 or (file.subtype.startswith("MPEG") and not _has_mpeg_length(stream)):
            yield stack.enter_context(open_container(stream, name, reason))
            return
        # For WAV and AIFF libsndfile uses the file's length instead of the header's, and logs the difference.
        sizes = re.search(r"(?:data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info)
        if sizes is not None and int(sizes[2]) < int(sizes[1]) < STREAMED_RIFF_SIZE:
            raise truncated(name)
        try:
            yield _SoundFile(file, name)
        except soundfile.LibsndfileError as error:
            raise unreadable(name, error.error_string) from error


def _has_mpeg_length(stream: BinaryIO) -> bool:
    """
    Whether the first frame of an MP3 declares the length; otherwise libsndfile estimates it from the bit rate, and
    decodes no further.
    """
    position = stream.tell()
    stream.seek(0)
    header = stream.read(10)
    if header.startswith(b"ID3"):
        stream.seek(10 + sum(byte << 7 * (3 - index) for index, byte in enumerate(header[6:])))
    frame = stream.read(MPEG_HEADER_BYTES)
    stream.seek(position)
    return any(tag in frame for tag in (b"Xing", b"Info", b"VBRI"))


@contextmanager
def open_stream(source: bytes | str | BinaryFile) -> Iterator[BinaryIO]:
    """Opens the bytes or the location of a file, or an open file, as a seekable stream without a name."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
    elif isinstance(source, str):
        with fetch(source) as stream:
            yield stream if stream.seekable() else io.BytesIO(stream.read())
    else:
        yield io.BytesIO(read_file(source))


def read_file(file: BinaryFile) -> bytes:
    """Reads an open file from its beginning, wherever it has been read to."""
    kind = type(file).__name__
    try:
        if file.seekable():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{kind} cannot be read ({short(error)}); pass a file that is open for reading.") from error
    if not isinstance(content, bytes):
        raise ValueError(
            f"{kind} returns {type(content).__name__} instead of bytes; open the file with open(path, 'rb')."
        )
    return content


def keep_seekable(source: str | BinaryFile, owner: object) -> str:
    """
    Returns the path of a file that can be read repeatedly: that of a local file, or that of a temporary copy of a URL,
    a pipe or an open file, which is deleted with `owner`.
    """
    if not isinstance(source, str):
        return _keep(partial(_copy, io.BytesIO(read_file(source))), owner)
    if is_remote(source):
        return _keep(partial(download, source), owner)
    with fetch(source) as stream:
        return source if stream.seekable() else _keep(partial(_copy, stream), owner)


def _keep(write: Callable[[str], None], owner: object) -> str:
    """Returns the path of a temporary file that `write` has written and that is deleted with `owner`."""
    descriptor, path = tempfile.mkstemp(prefix="mmemo-")
    os.close(descriptor)
    delete = weakref.finalize(owner, os.unlink, path)
    try:
        write(path)
    except BaseException:  # the owner may live on in the traceback
        delete()
        raise
    return path


def _copy(stream: BinaryIO, path: str) -> None:
    with open(path, "wb") as file:
        shutil.copyfileobj(stream, file)
