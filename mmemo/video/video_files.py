"""
Video and image files, decoded by FFmpeg.

Deliberate choices:
- Files are opened and checked as in `mmemo.audio`: the same inputs, demuxers, limits and errors, and a truncated file
  raises.
- Time 0 is the first sample of the file's sound, as in `mmemo.audio`, so that sound and frames are aligned; without
  sound, it is the start of the video track.
- Frames that cannot be decoded are skipped with one warning; the frame before is shown instead.
- Each iteration opens the file again: iterations are independent, and nothing stays open between them.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from mmemo.audio.containers import (
    DECLARING,
    MISSING_SECONDS,
    MISSING_SHARE,
    demux,
    find_track,
    import_av,
    is_cut,
    open_container,
    open_demuxer,
    reason_of,
    truncated,
    unreadable,
)
from mmemo.audio.containers import DECODERS as AUDIO_DECODERS
from mmemo.audio.containers import DEMUXERS as AUDIO_DEMUXERS
from mmemo.audio.files import open_stream
from mmemo.video.pixels import FrameConverter
from mmemo.video.video_inputs import MAX_FPS


logger = logging.getLogger(__name__)

DEMUXERS = f"{AUDIO_DEMUXERS},dv,gif,apng,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
DECODERS = (
    "apng,av1,bmp,cinepak,dnxhd,dvvideo,ffv1,ffvhuff,flv,gif,h263,h263i,h263p,h264,hevc,huffyuv,libdav1d,mjpeg,mjpegb,"
    "mpeg1video,mpeg2video,mpeg4,mpegvideo,msmpeg4,msmpeg4v1,msmpeg4v2,png,prores,qtrle,rawvideo,rv10,rv20,rv30,rv40,"
    "svq1,svq3,theora,tiff,utvideo,vc1,vp3,vp6,vp6a,vp6f,vp8,vp9,webp,wmv1,wmv2,wmv3"
)
# Containers whose duration is known, and not estimated from a bit rate.
TIMED = DECLARING | {"avi", "gif", "mpegts"}
# Containers whose duration is the end of the last frame, whenever the first one starts.
FROM_ZERO = {"matroska", "flv"}
# AVIF and HEIC are MP4 with one frame, and of no duration.
IMAGE_BRANDS = {"avif", "heic", "heix", "mif1"}
# Trailers of cameras may follow the end marker of a JPEG.
JPEG_START, JPEG_END, JPEG_TAIL_BYTES = b"\xff\xd8", b"\xff\xd9", 2**16
MAX_PIXELS = 8192 * 8192
MAX_SECONDS = 24 * 3600
# More threads hold more decoded frames.
DECODING_THREADS = 4
# Matroska and FLV round times to 1 ms: a frame is shown from up to 1 ms before its start.
ROUNDING_SECONDS = 0.001


class VideoLimitError(ValueError):
    """A file exceeds a limit on its frames."""


def _no_check() -> None:
    """The default of `DecodingLimits.check`: a function with a name, so that worker processes can send videos."""


@dataclass(frozen=True)
class DecodingLimits:
    """
    Limits on the frames of a file.

    Args:
        max_pixels (`int`): Size of a frame.
        max_seconds (`float`): Time from the start of the first frame to the end of the last one.
        check (`Callable[[], None]`): Called for each decoded frame; an exception that it raises ends decoding.
    """

    max_pixels: int = MAX_PIXELS
    max_seconds: float = MAX_SECONDS
    check: Callable[[], None] = _no_check


class VideoTrack:
    """
    The video track of an open container, or an image, decoded forward. Times are in seconds, as the container counts.

    Attributes:
        start (`float`): Start of the track.
        end (`float`): End of the last decoded frame.
        corrupt (`int`): Number of frames that could not be decoded so far, not counting those before the first one.
    """

    start: float
    end: float
    corrupt: int = 0

    def __init__(self, container: Any, name: str, limits: DecodingLimits):
        self._name = name
        self._limits = limits
        self._av = import_av(name, "video")
        self._container = container
        self._formats = set(container.format.name.split(","))
        self._track = _find_video(container, name)
        context = self._track.codec_context
        if context.width * context.height > limits.max_pixels:
            raise VideoLimitError(
                f"{name} has frames of {context.width} x {context.height} pixels; at most {limits.max_pixels} are "
                "decoded. Scale it down (ffmpeg -i INPUT -vf scale=1280:-2 output.mp4)."
            )
        context.options = {"max_pixels": str(limits.max_pixels)}
        context.thread_type, context.thread_count = "AUTO", DECODING_THREADS
        self.fps = float(self._track.guessed_rate or self._track.average_rate or 25)
        self.start = float((self._track.start_time or 0) * self._track.time_base)
        self._packets_end = self.end = 0.0

    @property
    def is_image(self) -> bool:
        brand = self._container.metadata.get("major_brand", "")
        return self._container.format.name.endswith("_pipe") or brand in IMAGE_BRANDS

    @property
    def has_audio(self) -> bool:
        return bool(self._container.streams.audio)

    @property
    def aspect(self) -> float:
        """Width of a pixel, relative to its height."""
        return float(self._track.sample_aspect_ratio or 1)

    @property
    def declared_end(self) -> float | None:
        if not TIMED & self._formats:
            return None
        if self._track.duration is not None:
            return self.start + float(self._track.duration * self._track.time_base)
        if self._container.duration is None:
            return None
        start = 0 if FROM_ZERO & self._formats else self._container.start_time or 0
        return (start + self._container.duration) / 10**6

    def seek(self, time: float) -> bool:
        """Seeks to a key frame that starts at or before `time`; returns `False` if the track remains at its start."""
        # FFmpeg interpolates the times of an MPEG program stream from where reading starts.
        if time <= self.start or "mpeg" in self._formats:
            return False
        try:
            self._container.seek(int(time / self._track.time_base), stream=self._track)
        except self._av.error.FFmpegError:  # as for GIF
            return False
        return True

    def decode(self, has_sought: bool = False) -> Iterator[tuple[float, Any]]:
        """
        Yields the start and the `av.VideoFrame` of each frame.

        Args:
            has_sought (`bool`, *optional*, defaults to `False`): Whether decoding starts at the next key frame, which
                may not exist.

        Raises:
            ValueError: If no frame can be decoded, the track is truncated, or its times are beyond the limits.
        """
        count, time, first, failure = 0, None, 0.0, ""
        for packet in self._packets(has_sought):
            try:
                frames = packet.decode()
            except self._av.error.FFmpegError as error:
                frames, failure = [], reason_of(error)
                self.corrupt += time is not None
            for frame in frames:
                self._limits.check()
                if frame.is_corrupt:
                    failure = "its frames are corrupt"
                    self.corrupt += time is not None
                    continue
                if time is None:
                    time = first = self.start if frame.time is None else frame.time
                else:
                    time = max(time, self.end if frame.time is None else frame.time)
                count += 1
                self.end = time + (float(frame.duration * frame.time_base) if frame.duration else 1 / self.fps)
                self._check_limits(self.end - first, count)
                yield time, frame
        if time is None and not has_sought:
            raise unreadable(self._name, self._why_nothing(failure), "video")
        if time is not None and self._is_short():
            raise truncated(self._name, "video")

    def _packets(self, has_sought: bool) -> Iterator[Any]:
        for packet in demux(self._container, self._track, self._name, "video"):
            if has_sought and packet.size and not packet.is_keyframe:
                continue
            has_sought = False
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                end = float((time + (packet.duration or 0)) * packet.time_base)
                self._packets_end = max(self._packets_end, end)
            yield packet

    def _check_limits(self, seconds: float, count: int) -> None:
        max_seconds = self._limits.max_seconds
        if seconds > max_seconds + ROUNDING_SECONDS:
            raise VideoLimitError(
                f"{self._name} has frames up to {seconds:.0f} s; at most {max_seconds:g} s are decoded. Cut it "
                f"(ffmpeg -i INPUT -t {max_seconds:g} output.mp4)."
            )
        if count > MAX_FPS * (seconds + 1):
            raise VideoLimitError(
                f"{self._name} has {count} frames in {seconds:.3f} s; at most {MAX_FPS:.0f} frames per second are "
                "decoded. Convert it (ffmpeg -i INPUT output.mp4)."
            )

    def _is_short(self) -> bool:
        """Whether the packets ended long before the declared end of the track."""
        if not DECLARING & self._formats:
            return False
        if self._track.duration is None and len(self._container.streams) > 1:
            return False
        declared = self.declared_end or 0.0
        return declared - self._packets_end > max(MISSING_SECONDS, MISSING_SHARE * declared, 1 / self.fps)

    def _why_nothing(self, failure: str) -> str:
        if not self._track.codec_context.width:
            return f"its size is unknown, or larger than {self._limits.max_pixels} pixels"
        return failure or "it has no frames"


class VideoFile:
    """
    A video or image file.

    Attributes:
        fps (`float`): Frames per second, on average.
        duration (`float` or `None`): As declared, in seconds; 0 for an image.
        has_audio (`bool`): Whether the file has an audio track.
        is_image (`bool`): Whether the file is one image.
        first (`np.ndarray` of shape `(height, width, 3)`): The first frame, converted.
    """

    def __init__(self, source: str | bytes, name: str, limits: DecodingLimits):
        self._source = source
        self._name = name
        self._limits = limits
        with self._open() as track:
            _, frame = next(track.decode())
            self.fps, self._aspect = track.fps, track.aspect
            self.first = FrameConverter(self._aspect)(frame)
            self.has_audio, self.is_image = track.has_audio, track.is_image
            start, end = track.start, track.declared_end
        # As the container counts; see the module's docstring.
        self._origin = self._sound_start(start) if self.has_audio else start
        self.duration = 0.0 if self.is_image else None if end is None else max(0.0, end - self._origin)

    def at(self, times: Iterable[float]) -> Iterator[tuple[float, np.ndarray]]:
        """
        Yields the frames shown at ascending times, up to the end of the video, as pairs of the time in seconds and
        the pixels. Before the first frame, the first one is shown.
        """
        remaining = iter(times)
        time = next(remaining, None)
        if time is None:
            return
        convert = FrameConverter(self._aspect)
        shown, pixels = None, None
        for start, frame in self._frames_from(time + ROUNDING_SECONDS):
            while shown is not None and time + ROUNDING_SECONDS < start:
                pixels = convert(shown) if pixels is None else pixels
                yield time, pixels
                time = next(remaining, None)
                if time is None:
                    return
            shown, pixels = frame, None

    def _frames_from(self, time: float) -> Iterator[tuple[float, Any]]:
        """Yields start and frame from the frame shown at `time` or an earlier one on, then the end and `None`."""
        back = 0.0
        while True:
            with self._open() as track:
                has_sought = track.seek(self._origin + time - back)
                frames = track.decode(has_sought)
                # Key frames are found by their place in the file, and may be shown after `time`.
                first = next(frames, None)
                if first is not None and (first[0] - self._origin <= time or not has_sought):
                    yield from self._reported(track, first, frames)
                    return
            back = 2 * back + 1

    def _reported(self, track: VideoTrack, first: tuple[float, Any], frames: Iterator) -> Iterator[tuple[float, Any]]:
        try:
            yield first[0] - self._origin, first[1]
            for start, frame in frames:
                yield start - self._origin, frame
            yield track.end - self._origin, None
        finally:
            if track.corrupt:
                logger.warning(f"{self._name}: {track.corrupt} corrupt frame(s) were skipped.")

    @contextmanager
    def _open(self) -> Iterator[VideoTrack]:
        av = import_av(self._name, "video")
        with open_stream(self._source) as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                raise ValueError(f"{self._name} is empty (0 bytes); use a whole video file.")
            if is_cut(stream) or _is_cut_jpeg(stream):
                raise truncated(self._name, "video")
            try:
                container = open_demuxer(
                    stream,
                    self._name,
                    DEMUXERS,
                    f"{DECODERS},{AUDIO_DECODERS}",
                    "video",
                    # The first frames are decoded when the container is opened.
                    options={"max_pixels": str(self._limits.max_pixels)},
                )
            except av.error.FFmpegError as error:
                raise unreadable(self._name, reason_of(error), "video") from error
            with container:
                yield VideoTrack(container, self._name, self._limits)

    def _sound_start(self, default: float) -> float:
        try:
            with open_stream(self._source) as stream, open_container(stream, self._name, None) as track:
                return track.start
        except ValueError:  # undecodable sound raises where it is loaded
            return default


def _find_video(container: Any, name: str) -> Any:
    """Returns the video track; cover art, thumbnails and the tiles of an image are none."""
    from av.stream import Disposition

    other = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.dependent
    tracks = [track for track in container.streams.video if not track.disposition & other]
    best = container.streams.best("video")
    return find_track(tracks, best if best in tracks else None, DECODERS, name, "video")


def _is_cut_jpeg(stream: BinaryIO) -> bool:
    stream.seek(0)
    if stream.read(2) != JPEG_START:
        return False
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - JPEG_TAIL_BYTES))
    return JPEG_END not in stream.read()
