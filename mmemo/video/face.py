"""
The face of a video as a sequence of blendshapes.

Deliberate choices:
- A video has one face: by default the one whose mouth moves longest. If none moves, as in a picture, the largest.
- Frames are read one at a time. Blendshapes and boxes are kept of all faces, 10 MB for a face over an hour at 5 frames
  per second, and crops if asked for, of at most ten minutes.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral

import numpy as np

from mmemo.video.landmarks import BLENDSHAPES, load_landmarker
from mmemo.video.tracking import FaceTrack, FaceTracker, rank


# The crops of all faces are kept until the face is chosen: 450 MB per face for ten minutes at 5 frames per second, 224
# pixels.
MAX_CROP_SECONDS = 600
# Times are sums of frame durations in float32.
EPSILON = 1e-4
# Index of the blendshape of the other side; of those in the middle, their own.
_SIDES = {"Left": "Right", "Right": "Left"}
MIRRORED = [BLENDSHAPES.index(re.sub("(Left|Right)$", lambda side: _SIDES[side[0]], name)) for name in BLENDSHAPES]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaceSequence:
    """
    A face in the frames of a video.

    Attributes:
        times (`np.ndarray` of shape `(frames, 2)`): Start and end of each frame, float32, in seconds.
        is_present (`np.ndarray` of shape `(frames,)`): bool, whether the face was found in the frame.
        blendshapes (`np.ndarray` of shape `(frames, 52)`):
            float32 in [0, 1], in the order of `BLENDSHAPES`; 0 where the face is absent.
        boxes (`np.ndarray` of shape `(frames, 4)`):
            `x1, y1, x2, y2` around the points of the face, float32, relative to the picture's width and height; 0
            where the face is absent.
        crops (`np.ndarray` of shape `(frames, crop_size, crop_size, 3)` or `None`):
            uint8, RGB, rotated so that the eyes are level, 1.4 times as large as the box; black where the face is
            absent.
        duration (`float`): End of the last frame, in seconds; 0 without frames.
    """

    times: np.ndarray
    is_present: np.ndarray
    blendshapes: np.ndarray
    boxes: np.ndarray
    crops: np.ndarray | None
    duration: float

    def between(self, start: float, end: float) -> "FaceSequence":
        """Returns the frames that overlap a stretch, with times relative to its start; one may begin before it."""
        first, last = self._overlapping(start, end)
        chosen = slice(first, last)
        return FaceSequence(
            self.times[chosen] - np.float32(start),
            self.is_present[chosen],
            self.blendshapes[chosen],
            self.boxes[chosen],
            None if self.crops is None else self.crops[chosen],
            end - start,
        )

    def mirrored(self) -> "FaceSequence":
        """Returns the face as in a mirror: left and right of blendshapes, boxes and crops are swapped."""
        boxes = self.boxes.copy()
        boxes[self.is_present, 0::2] = 1 - boxes[self.is_present, 2::-2]
        return replace(
            self,
            blendshapes=self.blendshapes[:, MIRRORED],
            boxes=boxes,
            crops=None if self.crops is None else self.crops[:, :, ::-1],
        )

    def presence(self, start: float, end: float) -> float:
        """Returns the share of the frames that overlap a stretch in which the face is present; 0 without frames."""
        first, last = self._overlapping(start, end)
        return float(self.is_present[first:last].mean()) if last > first else 0.0

    def next_present(self, start: float) -> float | None:
        """Returns the time at or after `start` from which the face is present, in seconds; `None` if there is none."""
        times = self._present_times
        first = int(np.searchsorted(times[:, 1], start + EPSILON, side="right"))
        return max(float(times[first, 0]), start) if first < len(times) else None

    @cached_property
    def _present_times(self) -> np.ndarray:
        """Start and end of the frames with the face; timelines look for the next one at every window."""
        return self.times[self.is_present]

    def strongest(self, start: float, end: float, count: int) -> list[tuple[str, float]]:
        """
        Returns the blendshapes with the highest mean over a stretch, and the means; without `_neutral`.

        Args:
            start, end (`float`): The stretch, in seconds.
            count (`int`): Their number; none are returned if the face is absent.
        """
        first, last = self._overlapping(start, end)
        values = self.blendshapes[first:last][self.is_present[first:last]]
        if not len(values):
            return []
        means = values.mean(axis=0)
        order = [index for index in np.argsort(-means, kind="stable") if BLENDSHAPES[index] != "_neutral"]
        return [(BLENDSHAPES[index], float(means[index])) for index in order[:count]]

    def _overlapping(self, start: float, end: float) -> tuple[int, int]:
        """Returns the first and the last (exclusive) of the frames that overlap a stretch."""
        first = int(np.searchsorted(self.times[:, 1], start + EPSILON, side="right"))
        return first, max(int(np.searchsorted(self.times[:, 0], end - EPSILON)), first)


def read_face(
    frames: Iterable[tuple[float, np.ndarray]],
    frames_per_second: float,
    face: int | None = None,
    crop_size: int | None = None,
) -> FaceSequence:
    """
    Follows the faces of a video and returns one of them.

    Args:
        frames (iterable of `(float, np.ndarray)`):
            Start of each frame in seconds, and the frame: uint8, RGB, of shape `(height, width, 3)`.
        frames_per_second (`float`): Rate of the frames, which are evenly spaced.
        face (`int`, *optional*):
            Number of the face, from 0. Faces rank by the number of frames in which their mouth moves, then by area
            summed over frames. The default is the first, if there is a face; without one, it is absent in all frames.
        crop_size (`int`, *optional*): Side of the crops in pixels; no crops by default.

    Raises:
        ImportError: If ONNX Runtime is not installed.
        ValueError: If an argument or a frame is invalid, there are fewer faces, or crops of more than ten minutes.
    """
    starts, faces = _follow(frames, frames_per_second, crop_size)
    check_face(face, len(faces))
    if not faces:
        logger.warning("No face found in %d frames.", len(starts))
    return _sequence(faces[face or 0] if faces else None, starts, frames_per_second, crop_size)


def read_faces(
    frames: Iterable[tuple[float, np.ndarray]], frames_per_second: float, crop_size: int | None = None
) -> list[FaceSequence]:
    """Follows the faces of a video and returns all of them by rank; see [`read_face`]."""
    starts, faces = _follow(frames, frames_per_second, crop_size)
    return [_sequence(face, starts, frames_per_second, crop_size) for face in faces]


def check_face(face: int | None, count: int) -> None:
    """Raises a `ValueError` if a video with `count` faces has no face with this number; `None` is valid."""
    is_number = isinstance(face, Integral) and not isinstance(face, bool)
    if face is not None and not (is_number and 0 <= face < count):
        raise ValueError(f"face={face!r} is not in the video; faces found: {count}, numbered from 0.")


def _follow(
    frames: Iterable[tuple[float, np.ndarray]], frames_per_second: float, crop_size: int | None
) -> tuple[list[float], list[FaceTrack]]:
    """Returns the starts of the frames, and the faces by rank."""
    if not frames_per_second > 0:
        raise ValueError(f"frames_per_second must be above 0, got {frames_per_second}.")
    if crop_size is not None and crop_size < 1:
        raise ValueError(f"crop_size must be at least 1 pixel, got {crop_size}.")
    tracker = FaceTracker(load_landmarker(), crop_size)
    starts: list[float] = []
    for start, picture in frames:
        starts.append(start)
        if crop_size is not None and start - starts[0] >= MAX_CROP_SECONDS:
            raise ValueError(
                f"Crops of a face may cover {MAX_CROP_SECONDS} seconds at most, but the frames go on. Read the video "
                "in shorter windows, or without crop_size."
            )
        tracker.update(start, picture)
    return starts, rank(tracker.tracks, frames_per_second)


def _sequence(
    track: FaceTrack | None, starts: list[float], frames_per_second: float, crop_size: int | None
) -> FaceSequence:
    """Returns a face in frames with these starts; without a track, it is absent in all of them."""
    count = len(starts)
    is_present = np.zeros(count, bool)
    blendshapes = np.zeros((count, len(BLENDSHAPES)), np.float32)
    boxes = np.zeros((count, 4), np.float32)
    crops = None if crop_size is None else np.zeros((count, crop_size, crop_size, 3), np.uint8)
    if track is not None:
        is_present[track.frames] = True
        blendshapes[track.frames] = track.blendshapes
        boxes[track.frames] = track.boxes
        if crops is not None:
            crops[track.frames] = track.crops
    times = np.array([(start, start + 1 / frames_per_second) for start in starts], np.float32).reshape(-1, 2)
    return FaceSequence(times, is_present, blendshapes, boxes, crops, float(times[-1, 1]) if count else 0.0)
