"""
Faces over time: which face of a frame is the one of the frames before.

Deliberate choices:
- The points of a face in one frame give the region in which it is searched in the next one. The detector runs only if
  there is no face to follow, for a second after one was lost, and once a second for new faces.
- If a face moved by more than a tenth of its region, its points are predicted again from where it is now. In 91
  pictures with regions off by 0.15, this halves the blendshapes' mean error from 0.037 to 0.018.
- A face that returns near where it left continues its track, and so does any face if there was only one before: a cut
  to another person looks like one face that moved. Nothing here compares identities.
"""

from dataclasses import dataclass, field

import numpy as np

from mmemo.video.landmarks import (
    BLENDSHAPES,
    CROP_SCALE,
    MAX_FACES,
    MAX_IOU,
    MIN_PRESENCE,
    Face,
    FaceLandmarker,
    Region,
    intersection_over_union,
    sample,
)


DETECTION_SECONDS = 1.0
MAX_MOVE = 0.1
# A frame is spoken in if, within half a second before and after it, the mouth's opening changes by this much.
SPEAKING_SECONDS = 0.5
MIN_MOUTH_CHANGE = 0.1
JAW_OPEN, MOUTH_CLOSE = BLENDSHAPES.index("jawOpen"), BLENDSHAPES.index("mouthClose")


@dataclass
class FaceTrack:
    """
    One face over time. The lists have an entry per frame in which the face was found.

    Attributes:
        region (`Region`): Where the face was last.
        frames (`list[int]`): Numbers of the frames.
        blendshapes (`list[np.ndarray]`): float32 `(52,)`.
        boxes (`list[np.ndarray]`): `(x1, y1, x2, y2)` around the points, float32, relative to the picture.
        crops (`list[np.ndarray]`): uint8 `(size, size, 3)`; empty without a crop size.
    """

    region: Region
    frames: list[int] = field(default_factory=list)
    blendshapes: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    crops: list[np.ndarray] = field(default_factory=list)

    def append(self, frame: int, picture: np.ndarray, face: Face, crop_size: int | None) -> None:
        """Appends the face found in a frame."""
        height, width = picture.shape[:2]
        box = np.concatenate([face.points.min(axis=0), face.points.max(axis=0)]) / (width, height, width, height)
        self.region = face.region
        self.frames.append(frame)
        self.blendshapes.append(face.blendshapes)
        self.boxes.append(np.clip(box, 0, 1).astype(np.float32))
        if crop_size is not None:
            self.crops.append(crop(picture, face.region, crop_size))

    def speaking_frames(self, frames_per_second: float) -> int:
        """
        Counts the frames in which the mouth moves: those with `max(o) - min(o) >= 0.1` over the second around them,
        where `o = jawOpen - mouthClose`.
        """
        first, length = self.frames[0], self.frames[-1] - self.frames[0] + 1
        reach = max(1, round(SPEAKING_SECONDS * frames_per_second))
        places = np.array(self.frames) - first + reach
        values = np.stack(self.blendshapes)
        highest = np.full(length + 2 * reach, -np.inf)
        highest[places] = values[:, JAW_OPEN] - values[:, MOUTH_CLOSE]
        lowest = np.where(np.isfinite(highest), highest, np.inf)
        windows = [np.lib.stride_tricks.sliding_window_view(bound, 2 * reach + 1) for bound in (highest, lowest)]
        change = windows[0].max(axis=1) - windows[1].min(axis=1)
        return int((change[places - reach] >= MIN_MOUTH_CHANGE).sum())

    @property
    def area(self) -> float:
        """Sum of the boxes' areas over the frames, relative to the picture."""
        boxes = np.stack(self.boxes)
        return float(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum())


class FaceTracker:
    """
    Follows the faces of a video, frame by frame.

    Args:
        landmarker (`FaceLandmarker`): Finds faces and their points.
        crop_size (`int`, *optional*): Side of the crops to keep, in pixels.

    Attributes:
        tracks (`list[FaceTrack]`): The faces so far, in the order of their first frames.
    """

    def __init__(self, landmarker: FaceLandmarker, crop_size: int | None = None):
        self.tracks: list[FaceTrack] = []
        self._landmarker = landmarker
        self._crop_size = crop_size
        self._followed: list[FaceTrack] = []
        self._shape: tuple[int, ...] = ()
        self._frame = 0
        self._detected_at = self._lost_at = -np.inf

    def update(self, time: float, picture: np.ndarray) -> None:
        """
        Adds the next frame.

        Args:
            time (`float`): Its start in seconds; not before the previous frame's.
            picture (`np.ndarray` of shape `(height, width, 3)`): uint8, RGB.
        """
        # Regions are in pixels of the frame before.
        followed = self._followed if picture.shape == self._shape else []
        found: list[tuple[FaceTrack, Face]] = []
        for track in followed:
            face = self._follow(picture, track.region)
            if face.presence >= MIN_PRESENCE and not _overlaps(face.region, found):
                found.append((track, face))
        if len(found) < len(self._followed):
            self._lost_at = time
        if not found or time - self._lost_at < DETECTION_SECONDS or time - self._detected_at >= DETECTION_SECONDS:
            self._detected_at = time
            self._detect(picture, found)
        for track, face in found:
            track.append(self._frame, picture, face, self._crop_size)
        self._followed = [track for track, _ in found]
        self._shape = picture.shape
        self._frame += 1

    def _follow(self, picture: np.ndarray, region: Region) -> Face:
        """Returns the face near its region in the previous frame; with a low presence if it is not there."""
        face = self._landmarker.face(picture, region)
        moved = np.hypot(face.region.x - region.x, face.region.y - region.y)
        if face.presence >= MIN_PRESENCE and moved > MAX_MOVE * region.size:
            face = self._landmarker.face(picture, face.region)
        return face

    def _detect(self, picture: np.ndarray, found: list[tuple[FaceTrack, Face]]) -> None:
        """Appends the faces that the detector finds beside those already found in the frame."""
        for region in self._landmarker.detect(picture):
            if len(found) == MAX_FACES or _overlaps(region, found):
                continue
            face = self._landmarker.face(picture, region)
            if face.presence >= MIN_PRESENCE and not _overlaps(face.region, found):
                found.append((self._track_at(face.region, [track for track, _ in found]), face))

    def _track_at(self, region: Region, taken: list[FaceTrack]) -> FaceTrack:
        """Returns the track that a detected face continues, or a new one."""
        lost = [track for track in self.tracks if not any(track is other for other in taken)]
        distances = [np.hypot(track.region.x - region.x, track.region.y - region.y) for track in lost]
        if lost and (len(self.tracks) == 1 or min(distances) <= region.size / CROP_SCALE):
            return lost[int(np.argmin(distances))]
        self.tracks.append(FaceTrack(region))
        return self.tracks[-1]


def crop(picture: np.ndarray, region: Region, size: int) -> np.ndarray:
    """
    Returns a region of a picture as an upright picture with antialiasing.

    Args:
        picture (`np.ndarray` of shape `(height, width, 3)`): uint8.
        region (`Region`): The region.
        size (`int`): Side of the result in pixels.

    Returns:
        `np.ndarray` of shape `(size, size, 3)`: uint8.
    """
    # Sampling would skip pixels: blocks of them are averaged first.
    picture, region = _reduce(picture, region, int(region.size / size))
    return np.rint(255 * sample(picture, region, size).transpose(1, 2, 0)).astype(np.uint8)


def _reduce(picture: np.ndarray, region: Region, factor: int) -> tuple[np.ndarray, Region]:
    """Averages blocks of `factor` by `factor` pixels in the surroundings of a region."""
    reach = region.size / 2**0.5
    left, top, right, bottom = (max(0, int(x)) for side in (-reach, reach) for x in (region.x + side, region.y + side))
    window = picture[top:bottom, left:right]
    rows, columns = window.shape[0] // max(factor, 1), window.shape[1] // max(factor, 1)
    if factor < 2 or rows * columns == 0:
        return picture, region
    total = np.zeros((rows, columns, 3), np.uint32)
    for row, column in np.ndindex(factor, factor):
        total += window[row : rows * factor : factor, column : columns * factor : factor]
    x, y = ((value - (factor - 1) / 2) / factor for value in (region.x - left, region.y - top))
    return total / np.float32(factor**2), Region(x, y, region.size / factor, region.angle)


def rank(tracks: list[FaceTrack], frames_per_second: float) -> list[FaceTrack]:
    """Returns the faces that speak in the most frames first; of those that speak equally long, the largest first."""
    return sorted(tracks, key=lambda track: (track.speaking_frames(frames_per_second), track.area), reverse=True)


def _overlaps(region: Region, found: list[tuple[FaceTrack, Face]]) -> bool:
    boxes = np.array([face.region.box for _, face in found]).reshape(-1, 4)
    return bool((intersection_over_union(region.box, boxes) > MAX_IOU).any())
