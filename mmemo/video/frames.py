"""
Frames of a video on a uniform time grid.

Deliberate choices:
- The grid is that of the caller, not of the file: frames of files with variable frame rates are comparable.
- Frames are decoded one at a time, and only those on the grid are converted and scaled down.
- One image is one frame at time 0 of duration 0: it has a face, and no time that sound could be aligned with.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import count, takewhile
from typing import Protocol

import numpy as np

from mmemo.audio.files import BinaryFile, keep_seekable
from mmemo.audio.inputs import as_array
from mmemo.storage import short
from mmemo.video.pixels import FrameConverter
from mmemo.video.video_files import ROUNDING_SECONDS, DecodingLimits, VideoFile
from mmemo.video.video_inputs import VIDEO_INPUT_FORMS as VIDEO_INPUT_FORMS
from mmemo.video.video_inputs import Frames, VideoDecoder, VideoInput, as_rgb, check_fps, resolve_video
from mmemo.video.video_inputs import is_video_object as is_video_object


# Start and end of a window are numbers of grid points up to rounding errors.
ROUNDING_POINTS = 1e-6


class _Video(Protocol):
    """A video whose frames can be read in order."""

    duration: float | None
    has_audio: bool
    is_image: bool
    first: np.ndarray

    def at(self, times: Iterable[float]) -> Iterator[tuple[float, np.ndarray]]:
        """Yields the frames shown at ascending times, up to the end of the video."""


class VideoSource:
    """
    A video that is open for reading; see [`open_video`]. Nothing stays open between iterations.

    Attributes:
        duration (`float` or `None`):
            Length in seconds; for files as declared by the container, which may be wrong, and `None` if it declares
            none. 0 for one image.
        has_audio (`bool`):
            Whether the file has an audio track, which [`load_audio`] loads from the same input.
        sound (`str`, `bytes` or `None`):
            The file as an input of [`load_audio`], `None` without an audio track.
        is_image (`bool`):
            Whether the input is one image.
        size (`tuple[int, int]`):
            Width and height of the first frame in pixels, as [`~VideoSource.frames`] yields it.
    """

    duration: float | None
    has_audio: bool
    sound: str | bytes | None
    is_image: bool
    size: tuple[int, int]

    def __init__(self, video: VideoInput, fps: float | None = None, limits: DecodingLimits | None = None):
        name, source = resolve_video(video, fps)
        if isinstance(source, (str, BinaryFile)):
            source = keep_seekable(source, self)
        self._video: _Video
        if isinstance(source, Frames):
            self._video = _FrameList(source, name, limits or DecodingLimits())
        elif isinstance(source, VideoDecoder):
            _refuse_fps(name, fps, getattr(source.metadata, "average_fps", None))
            self._video = _DecoderVideo(source, name)
        else:
            self._video = VideoFile(source, name, limits or DecodingLimits())
            _refuse_fps(name, fps, self._video.fps)
        self.duration, self.has_audio = self._video.duration, self._video.has_audio
        self.sound = source if self.has_audio and isinstance(source, (str, bytes)) else None
        self.is_image = self._video.is_image
        height, width = self._video.first.shape[:2]
        self.size = (width, height)

    def frames(
        self, frames_per_second: float, start: float = 0.0, end: float | None = None
    ) -> Iterator[tuple[float, np.ndarray]]:
        """
        Yields the frames that a player shows at the times 0, 1 / rate, 2 / rate, ... of the video.

        Time 0 is the first sample of the file's sound, as in [`load_audio`], and frames before it are left out;
        without sound, time 0 is the start of the video. Before the first frame, the first one is shown. A frame that
        starts up to 1 ms after a time counts as shown then. One image is one frame at 0.

        Args:
            frames_per_second (`float`):
                Rate of the grid.
            start, end (`float`, *optional*):
                Window in seconds, without its end; by default the whole video. Reading seeks to `start`. Frames and
                times are those that the whole video has in that window.

        Yields:
            `tuple[float, np.ndarray]`: start in seconds, and uint8 RGB of shape `(height, width, 3)`, rotated as the
            file demands, with square pixels, and scaled down to at most 1280 pixels on either side. Do not modify it:
            a frame that is shown at several times is the same array.

        Raises:
            ValueError: If an argument is invalid; while iterating, if a file is truncated (after its last frame),
                unreadable, or exceeds the limits of 24 hours and 1000 frames per second.
        """
        check_fps("frames_per_second", frames_per_second)
        if not 0 <= start < math.inf or (end is not None and not start < end):
            raise ValueError(f"start={start!r}, end={end!r} is not a window of seconds; valid is 0 <= start < end.")
        return self._frames(float(frames_per_second), start, math.inf if end is None else end)

    def _frames(self, rate: float, start: float, end: float) -> Iterator[tuple[float, np.ndarray]]:
        first = math.ceil(start * rate - ROUNDING_POINTS)
        if self.is_image:
            if first == 0:
                yield 0.0, self._video.first
            return
        points = takewhile(lambda point: point < end * rate - ROUNDING_POINTS, count(first))
        yield from self._video.at(point / rate for point in points)


def open_video(video: VideoInput, fps: float | None = None, limits: DecodingLimits | None = None) -> VideoSource:
    """
    Opens a video or an image, and decodes its first frame.

    A URL, a pipe or an open file is copied to a temporary file, which is deleted with the result.

    Args:
        video (`VideoInput`):
            The video, in any of the forms that [`VideoInput`] lists.
        fps (`float`, *optional*):
            Frames per second of bare frames, which need it; files and decoders have their own times.
        limits ([`DecodingLimits`], *optional*):
            Limits on the frames of files.

    Returns:
        [`VideoSource`]

    Raises:
        ValueError: If the input has no accepted form, cannot be read, has no video track or no frame that can be
            decoded, exceeds a limit (by default 8192 x 8192 pixels), or if `fps` is missing, invalid or contradicts
            the input.

    Example:

    ```python
    >>> video = open_video("clip.mp4")
    >>> for seconds, pixels in video.frames(5): ...
    ```
    """
    return VideoSource(video, fps, limits)


def _refuse_fps(name: str, fps: float | None, own: float | None) -> None:
    if fps is not None:
        rate = "" if own is None else f" ({own:g} frames per second)"
        raise ValueError(f"fps={fps!r} does not apply to {name}, which has its own timestamps{rate}; leave out fps.")


class _FrameList:
    """Frames in memory."""

    has_audio = False

    def __init__(self, frames: Frames, name: str, limits: DecodingLimits):
        self._pictures = frames.pictures
        self._fps = frames.fps or 1.0
        self.is_image = frames.fps is None
        seconds = 0.0 if self.is_image else len(frames.pictures) / self._fps
        if seconds > limits.max_seconds + ROUNDING_SECONDS:
            raise ValueError(
                f"{name} at fps={self._fps:g} lasts {seconds:.0f} s; at most {limits.max_seconds:g} s are read. Check "
                "fps, or pass fewer frames."
            )
        self.duration: float | None = seconds
        self.first = FrameConverter()(as_rgb(frames.pictures[0]))

    def at(self, times: Iterable[float]) -> Iterator[tuple[float, np.ndarray]]:
        convert = FrameConverter()
        index, pixels = 0, self.first
        for time in times:
            shown = int((time + ROUNDING_SECONDS) * self._fps)
            if shown >= len(self._pictures):
                return
            if shown != index:
                index, pixels = shown, convert(as_rgb(self._pictures[shown]))
            yield time, pixels


class _DecoderVideo:
    """The video of a torchcodec decoder. Time 0 is its first frame."""

    has_audio = False
    is_image = False

    def __init__(self, decoder: VideoDecoder, name: str):
        self._decoder = decoder
        self._name = name
        self._start = float(decoder.metadata.begin_stream_seconds)
        self._seconds = float(decoder.metadata.end_stream_seconds) - self._start
        self.duration: float | None = self._seconds
        self.first = self._frame(0.0, FrameConverter())

    def at(self, times: Iterable[float]) -> Iterator[tuple[float, np.ndarray]]:
        convert = FrameConverter()
        for time in times:
            if time + ROUNDING_SECONDS >= self._seconds:
                return
            yield time, self._frame(time, convert)

    def _frame(self, time: float, convert: FrameConverter) -> np.ndarray:
        try:
            shown = self._decoder.get_frames_played_at([self._start + time + ROUNDING_SECONDS])
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{self._name} cannot decode its video at {time} s: {short(error)}") from error
        return convert(as_rgb(as_array(shown.data)[0]))
