"""
Audio tracks of containers that libsndfile cannot read (M4A, MP4, WebM, Matroska, WMA, AMR, ...), decoded by FFmpeg.

Deliberate choices:
- FFmpeg reads from an open file, never from a path or URL, and only with listed demuxers and decoders: no playlists,
  and no formats that refer to other files.
- The video of a container is opened and checked by the same functions; see `mmemo.video`.
- Memory is bounded: frames are decoded one by one, and tables that would expand beyond the file are refused.
- No length is reported: a container may declare any, and the number of decoded samples does not depend on it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from mmemo.audio.pcm import as_floats


MP4_DEMUXER = "mov"
DEMUXERS = (
    "matroska,webm,asf,avi,flv,mpegts,mpeg,ogg,aac,loas,amr,amrnb,amrwb,ac3,eac3,dts,mp3,flac,wav,w64,"
    "aiff,au,caf,ape,wv,tta,rm,voc"
)
DECODERS = (
    "aac,aac_latm,ac3,adpcm_g726,adpcm_g726le,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,adpcm_yamaha,alac,amrnb,amrwb,ape,"
    "cook,dca,eac3,flac,g722,g723_1,g726,g726le,g729,gsm,gsm_ms,ilbc,libopencore_amrnb,libopencore_amrwb,mp1float,mp2,"
    "mp2float,mp3,mp3float,nellymoser,opus,pcm_alaw,pcm_bluray,pcm_dvd,pcm_f32be,pcm_f32le,pcm_f64be,pcm_f64le,"
    "pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,pcm_u8,qcelp,qdm2,ra_144,ra_288,"
    "real_144,real_288,sipr,speex,truespeech,tta,vorbis,wavpack,wmalossless,wmapro,wmav1,wmav2,wmavoice"
)
# Containers that declare the duration of a track; FFmpeg estimates that of others from their size.
DECLARING = {"mov", "matroska", "asf", "flv", "wav", "w64", "caf", "ape", "wv", "tta", "flac"}
# Times are rounded: a track may be shorter than declared by this many seconds, or this share of its duration.
MISSING_SECONDS, MISSING_SHARE = 0.25, 0.01
MAX_FRAME_SAMPLES = 2**21  # of one channel
# PyAV 18 reads beyond the planes of a frame that has more.
MAX_PLANES = 7
MAX_BOXES = 2**18
# The boxes that an MP4 or MOV may begin with.
MP4_BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"sidx", b"free", b"skip", b"wide", b"pnot", b"uuid"}
PIECE_BYTES = 2**20
# Files written to a pipe declare at least this size, meaning "unknown" (SoX 0x7FFFF000, ffmpeg 0xFFFFFFFF).
STREAMED_RIFF_SIZE = 0x7FFFF000
# For error messages: the suffix of a format that is decoded, and the content of a track.
CONVERSIONS = {"audio": "wav", "video": "mp4"}
CONTENTS = {"audio": "sound", "video": "video"}
MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255


class ContainerTrack:
    """
    The audio track of a container, decoded forward.

    Attributes:
        channels (`int`): Number of channels.
        rate (`int`): Sampling rate in Hz.
        start (`float`): Time of the first sample in seconds, as the container counts.
        frames (`None`): Length in samples of one channel, which is unknown.
        declared_seconds (`float`, *optional*): Length in seconds as the container declares or FFmpeg estimates.
    """

    channels: int
    rate: int
    start: float
    frames: int | None = None
    declared_seconds: float | None = None

    def __init__(self, container: Any, name: str):
        self._name = name
        self._av = import_av(name)
        self._container = container
        self._track = find_track(container.streams.audio, container.streams.best("audio"), DECODERS, name)
        self._codec = self._track.codec_context.name
        self._track.codec_context.options = {"max_samples": str(MAX_FRAME_SAMPLES)}
        self._track.codec_context.thread_count = 1
        self._seconds = Fraction(0)
        self._packet: Any = None  # the last one
        self._frames = self._decode()
        # The header may give another rate than the decoder, as for HE-AAC.
        self._first = next(self._frames, None)
        if self._first is None:
            raise truncated(name) if self._is_short() else without_samples(name)
        self.channels = self._first.layout.nb_channels
        self.rate = self._first.sample_rate
        self.start = self._first.time or 0.0
        if self._track.duration is not None:
            self.declared_seconds = float(self._track.duration * self._track.time_base)
        elif container.duration is not None:
            self.declared_seconds = container.duration / 10**6

    def blocks(self, frames: int, start: int = 0) -> Iterator[np.ndarray]:
        """Yields float32 blocks of shape `(channels, frames)` from sample `start`; the last one may be shorter."""
        pending: list[np.ndarray] = []
        count = 0
        for samples in self._samples(start):
            pending.append(samples)
            count += samples.shape[1]
            if count >= frames:
                joined = np.concatenate(pending, axis=1)
                end = count // frames * frames
                for first in range(0, end, frames):
                    yield joined[:, first : first + frames]
                pending, count = [joined[:, end:]], count - end
        if count:
            yield np.concatenate(pending, axis=1)

    def _samples(self, start: int) -> Iterator[np.ndarray]:
        """Yields the samples of each frame from sample `start`, as float32 of shape `(channels, samples)`."""
        frame, end = self._first, 0
        while frame is not None:
            if (frame.layout.nb_channels, frame.sample_rate) != (self.channels, self.rate):
                raise ValueError(
                    f"{self._name} changes from {self.channels} channel(s) at {self.rate} Hz to "
                    f"{frame.layout.nb_channels} at {frame.sample_rate} Hz after {float(self._seconds):.1f} s. "
                    "Convert it (ffmpeg -i INPUT output.wav)."
                )
            begin, end = end, end + frame.samples
            samples = self._to_array(frame) if end > start else None
            self._seconds += Fraction(frame.samples, self.rate)
            following = next(self._frames, None)
            if samples is not None:
                if following is None:
                    samples = self._without_padding(samples)
                yield samples[:, max(start - begin, 0) :]
            frame = following

    def _to_array(self, frame: Any) -> np.ndarray:
        is_planar = frame.format.is_planar
        if is_planar and self.channels > MAX_PLANES:
            is_planar = False
            resampler = self._av.AudioResampler(frame.format.packed.name, frame.layout, self.rate)
            (frame,) = resampler.resample(frame)
        samples = as_floats(frame.to_ndarray())
        return samples if is_planar else samples.reshape(-1, self.channels).T

    def _decode(self) -> Iterator[Any]:
        """
        Yields the frames of the track.

        Packets before the first frame may be undecodable: recordings of broadcasts start anywhere.
        """
        has_started, failure = False, None
        for packet in demux(self._container, self._track, self._name):
            try:
                frames = packet.decode()
            except self._av.error.FFmpegError as error:
                if has_started:
                    raise unreadable(self._name, reason_of(error)) from error
                failure, frames = error, []
            if packet.size:
                self._packet = packet
            for frame in frames:
                has_started = has_started or frame.samples > 0
                if frame.samples:
                    yield frame
        if not has_started and failure is not None:
            raise unreadable(self._name, reason_of(failure)) from failure
        # The last packet of PCM is cut at the end of the file, whose length may be unknown.
        is_cut = self._packet is not None and self._packet.is_corrupt and not self._codec.startswith("pcm")
        if has_started and (is_cut or self._is_short()):
            raise truncated(self._name)

    def _is_short(self) -> bool:
        """Whether the track ended long before its declared end."""
        if not DECLARING & set(self._container.format.name.split(",")):
            return False
        declared = Fraction(0)
        if self._track.duration is not None:
            declared = self._track.duration * self._track.time_base
        elif self._container.duration is not None and len(self._container.streams) == 1:
            declared = Fraction(self._container.duration, 10**6)
        return declared - self._seconds > max(MISSING_SECONDS, MISSING_SHARE * declared)

    def _without_padding(self, samples: np.ndarray) -> np.ndarray:
        """Cuts the last frame to the duration that an MP4 gives its packet; other containers are cut by FFmpeg."""
        if "mp4" not in self._container.format.name or not self._packet.duration:
            return samples
        return samples[:, : max(1, int(self._packet.duration * self._packet.time_base * self.rate))]


@contextmanager
def open_container(stream: BinaryIO, name: str, reason: str | None) -> Iterator[ContainerTrack]:
    """
    Opens the audio track of a container.

    Args:
        stream (`BinaryIO`): The container, seekable.
        name (`str`): Its name in error messages.
        reason (`str`, *optional*): Why libsndfile cannot read it; `None` if libsndfile finds no samples in it.

    Raises:
        ValueError: If it cannot be decoded, has no audio track, is truncated, or changes its format midway.
    """
    av = import_av(name)
    try:
        container = open_demuxer(stream, name)
    except av.error.FFmpegError as error:
        if reason is None:
            raise without_samples(name) from error
        raise unreadable(name, reason) from error
    with container:
        yield ContainerTrack(container, name)


def open_demuxer(
    stream: BinaryIO,
    name: str,
    demuxers: str = DEMUXERS,
    decoders: str = DECODERS,
    medium: str = "audio",
    **options: Any,
) -> Any:
    """
    Opens a container that is not MP4 with one of the demuxers, and an MP4 with its own.

    Args:
        stream (`BinaryIO`): The container, seekable.
        name (`str`): Its name in error messages.
        demuxers, decoders (`str`, *optional*): FFmpeg's names of those that may be used, separated by commas.
        medium (`str`, *optional*, defaults to `"audio"`): What is read from it, for error messages.
        options: Other arguments of `av.open`.

    Returns:
        `av.container.InputContainer`: the container; the caller closes it.

    Raises:
        ValueError: If an MP4 is truncated or declares more samples than it has bytes.
        av.error.FFmpegError: If it cannot be opened.
    """
    av = import_av(name, medium)
    is_mp4 = _is_mp4(stream)
    if is_mp4:
        _check_tables(stream, name, medium)
    stream.seek(0)
    allowed = {
        "format_whitelist": MP4_DEMUXER if is_mp4 else demuxers,
        "codec_whitelist": decoders,
        "protocol_whitelist": "none",
    }
    # Metadata in another encoding must not prevent decoding.
    return av.open(stream, container_options=allowed, metadata_errors="replace", **options)


def demux(container: Any, track: Any, name: str, medium: str = "audio") -> Iterator[Any]:
    """
    Yields the packets of a track, the last of which is empty.

    Raises:
        ValueError: If the container cannot be read further.
    """
    av = import_av(name, medium)
    try:
        yield from container.demux(track)
    except av.error.FFmpegError as error:
        raise unreadable(name, reason_of(error), medium) from error
    except IndexError:
        # After the packets of this track, PyAV looks for those of tracks that appeared midway, which it does not know.
        return


def unreadable(name: str, reason: str, medium: str = "audio") -> ValueError:
    return ValueError(
        f"{name} is not readable {medium} ({reason}): it is corrupt, truncated, or in an unknown format. Convert it "
        f"(ffmpeg -i INPUT output.{CONVERSIONS[medium]})."
    )


def truncated(name: str, medium: str = "audio") -> ValueError:
    return ValueError(f"{name} is truncated: it declares more {medium} than it contains. Use the whole file.")


def without_samples(name: str) -> ValueError:
    return ValueError(f"{name} has no samples; leave it out, or use audio with at least one sample.")


def import_av(name: str, medium: str = "audio") -> Any:
    try:
        import av
    except ImportError as error:
        needing = "formats other than those of libsndfile need" if medium == "audio" else "video needs"
        raise unreadable(name, f"{needing} PyAV; pip install av", medium) from error
    return av


def reason_of(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def find_track(tracks: Iterable[Any], best: Any, decoders: str, name: str, medium: str = "audio") -> Any:
    """
    Returns the track that FFmpeg prefers, or the first one that can be decoded.

    Args:
        tracks: The tracks of the medium.
        best: The track among them that FFmpeg prefers, or `None`.
        decoders (`str`): FFmpeg's names of the decoders that may be used, separated by commas.
        name (`str`): Name of the container in error messages.
        medium (`str`, *optional*, defaults to `"audio"`): The medium, for error messages.

    Raises:
        ValueError: If there is no track, or none that can be decoded.
    """
    candidates = [*([] if best is None else [best]), *tracks]
    if not candidates:
        raise ValueError(f"{name} has no {medium} track; use a file with {CONTENTS[medium]}.")
    codecs = [track.codec_context.name if track.codec_context else "unknown" for track in candidates]
    for track, codec in zip(candidates, codecs):
        if codec in decoders.split(","):
            return track
    raise unreadable(name, f"its codec is {codecs[0]}", medium)


def _is_mp4(stream: BinaryIO) -> bool:
    stream.seek(4)
    return stream.read(4) in MP4_BOXES


def _check_tables(stream: BinaryIO, name: str, medium: str) -> None:
    """
    Raises a `ValueError` if an MP4 declares more samples than it has bytes.

    FFmpeg builds an index with one entry for each sample, which a table of constant sample sizes declares in 20 bytes.
    Source: ISO/IEC 14496-12, sections 8.7.3 (`stsz`) and 8.8.8 (`trun`).
    """
    size = stream.seek(0, os.SEEK_END)
    samples = 0
    for kind, start, end in _boxes(stream, size, name, medium):
        if kind == b"mdat":
            continue
        for place in range(start, end, PIECE_BYTES):
            stream.seek(place)
            # The patterns are up to 16 bytes long.
            piece = stream.read(min(PIECE_BYTES + 15, end - place))
            if b"cmov" in piece:
                raise unreadable(name, "its header is compressed", medium)
            for found in re.finditer(rb"stsz.{4}(.{4})(.{4})", piece, re.DOTALL):
                if found[1] != bytes(4):
                    samples += int.from_bytes(found[2], "big")
            for found in re.finditer(rb"trun.{4}(.{4})", piece, re.DOTALL):
                samples += int.from_bytes(found[1], "big")
        if samples > size:
            raise unreadable(name, f"it declares {samples} samples in {size} bytes", medium)


def _boxes(stream: BinaryIO, size: int, name: str, medium: str) -> Iterator[tuple[bytes, int, int]]:
    """Yields the kind, start and end of the outermost boxes of an MP4; raises if one of them is cut."""
    end = 0
    for _ in range(MAX_BOXES):
        start = end
        stream.seek(start)
        header = stream.read(16)
        if len(header) < 8:
            return
        kind, length = header[4:8], int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        end = start + length if length else size
        if end > size and kind in MP4_BOXES:
            raise truncated(name, medium)
        yield kind, start, min(end, size)
        if end < start + 8:
            return
    raise unreadable(name, f"it has more than {MAX_BOXES} parts", medium)


def is_cut(stream: BinaryIO) -> bool:
    """Whether an Ogg file ends within a page, a Matroska or WebM within its segment, or an AVI within its list."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    header = stream.read(4096)
    if header.startswith(b"RIFF") and header[8:12] == b"AVI ":
        return size < 8 + int.from_bytes(header[4:8], "little") < STREAMED_RIFF_SIZE
    if header.startswith(b"OggS"):
        stream.seek(max(size - MAX_OGG_PAGE_BYTES, 0))
        return _ends_within_page(stream.read())
    return header.startswith(b"\x1a\x45\xdf\xa3") and _ends_within_segment(header, size)


def _ends_within_page(tail: bytes) -> bool:
    """Source: RFC 3533, section 6: a page has a header of 27 bytes, the lengths of its segments, and the segments."""
    page = tail[max(tail.rfind(b"OggS"), 0) :]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return len(page) < 27 or len(page) < 27 + page[26] + sum(lengths)


def _ends_within_segment(header: bytes, size: int) -> bool:
    """Source: RFC 8794, section 4: the first byte of a size has as many leading zeros as bytes follow it."""
    place = header.find(b"\x18\x53\x80\x67") + 4
    if place < 4 or not header[place : place + 1].strip(b"\0"):
        return False
    length = 9 - header[place].bit_length()
    unknown = (1 << 7 * length) - 1  # in live recordings
    declared = int.from_bytes(header[place : place + length], "big") & unknown
    return declared != unknown and place + length + declared > size
