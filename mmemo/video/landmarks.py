"""
MediaPipe Face Landmarker in ONNX: faces in a picture, their 478 points and their 52 blendshapes. NumPy in, NumPy out.

Deliberate choices:
- Three graphs in `landmarker/`, one thread each: a face takes about 12 ms on one core, most of it for the points.
- Pictures are sampled bilinearly without antialiasing, and black outside, as the models expect.
- The detector is the short-range one: it misses faces below about an eighth of its input. So in a picture that is not
  square it also searches three squares; their faces rank after those of the whole picture.
- The points of one frame give the region for the next one. It is scaled to match the detector's: over 367 pictures the
  blendshapes then differ by 0.02 on average. The detector's own differ by 0.015 if the picture moves by three pixels.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np


# Side of the detector's input in pixels, and its anchors: columns and rows of each grid, anchors per cell.
DETECTOR_SIZE = 128
ANCHOR_GRIDS = ((16, 2), (8, 6))
MIN_SCORE = 0.5
# Boxes that overlap by more than this intersection over union are of one face.
MAX_IOU = 0.3
MAX_FACES = 5
# Side of the crop that the points are predicted from, in pixels.
CROP_SIZE = 256
# The same relative to the longer side of a box: the detector's, and the one around the points, which is larger.
CROP_SCALE = 1.5
POINTS_CROP_SCALE = 1.4
MIN_PRESENCE = 0.5
# Points at the outer corners of the eyes; the subject's right eye is on the left of the picture.
RIGHT_EYE, LEFT_EYE = 33, 263
# The 146 points from which the blendshapes are predicted.
# fmt: off
BLENDSHAPE_POINTS = [
    0, 1, 4, 5, 6, 7, 8, 10, 13, 14, 17, 21, 33, 37, 39, 40, 46, 52, 53, 54, 55, 58, 61, 63, 65, 66, 67, 70, 78,
    80, 81, 82, 84, 87, 88, 91, 93, 95, 103, 105, 107, 109, 127, 132, 133, 136, 144, 145, 146, 148, 149, 150, 152,
    153, 154, 155, 157, 158, 159, 160, 161, 162, 163, 168, 172, 173, 176, 178, 181, 185, 191, 195, 197, 234, 246,
    249, 251, 263, 267, 269, 270, 276, 282, 283, 284, 285, 288, 291, 293, 295, 296, 297, 300, 308, 310, 311, 312,
    314, 317, 318, 321, 323, 324, 332, 334, 336, 338, 356, 361, 362, 365, 373, 374, 375, 377, 378, 379, 380, 381,
    382, 384, 385, 386, 387, 388, 389, 390, 397, 398, 400, 402, 405, 409, 415, 454, 466, 468, 469, 470, 471, 472,
    473, 474, 475, 476, 477,
]
BLENDSHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight",
    "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight",
    "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight",
    "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft", "mouthFrownRight", "mouthFunnel",
    "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker",
    "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)
# fmt: on


@dataclass(frozen=True)
class Region:
    """
    A square around a face, rotated so that the eyes are level in it.

    Attributes:
        x, y (`float`): Its centre in the picture, in pixels.
        size (`float`): Its side in pixels.
        angle (`float`): From the picture's horizontal to the line through the eyes, clockwise, in radians.
    """

    x: float
    y: float
    size: float
    angle: float

    @classmethod
    def around(cls, points: np.ndarray) -> "Region":
        """Returns the region of a face with these points, of shape `(478, 2)`, in pixels."""
        right, left = points[RIGHT_EYE], points[LEFT_EYE]
        angle = float(np.arctan2(left[1] - right[1], left[0] - right[0]))
        # The box is taken along the face's own axes, so that it does not grow with the rotation.
        axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        upright = points @ axes
        low, high = upright.min(axis=0), upright.max(axis=0)
        x, y = axes @ ((low + high) / 2)
        return cls(float(x), float(y), POINTS_CROP_SCALE * float((high - low).max()), angle)

    @property
    def box(self) -> np.ndarray:
        """The detector's box as a square `(x1, y1, x2, y2)` in pixels, not rotated."""
        half = self.size / (2 * CROP_SCALE)
        return np.array([self.x - half, self.y - half, self.x + half, self.y + half])

    def to_picture(self, size: int) -> np.ndarray:
        """Returns the matrix `(2, 3)` from pixels of a crop with this side to pixels of the picture."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        half = self.size / 2
        rotation = np.array([[cos, -sin], [sin, cos]])
        corner = np.array([self.x, self.y]) - rotation @ [half, half]
        return np.column_stack([rotation * (self.size / size), corner])


@dataclass(frozen=True)
class Face:
    """
    A face in a picture.

    Attributes:
        points (`np.ndarray` of shape `(478, 2)`): float32, in pixels.
        blendshapes (`np.ndarray` of shape `(52,)`): float32 in [0, 1], in the order of `BLENDSHAPES`.
        presence (`float`): Probability in [0, 1] that the region contains a face.
        region (`Region`): The region around the points.
    """

    points: np.ndarray
    blendshapes: np.ndarray
    presence: float
    region: Region


class FaceLandmarker:
    """
    MediaPipe Face Landmarker, on one thread. A picture is a uint8 array `(height, width, 3)`, RGB.

    The blendshapes are within 1e-3 of those of the original graphs with crops sampled by scikit-image.

    Raises:
        ImportError: If ONNX Runtime is not installed.

    Source: MediaPipe Face Landmarker, float16 v1 (Google, Apache-2.0); Bazarevsky et al., "BlazeFace: Sub-millisecond
    Neural Face Detection on Mobile GPUs", 2019; Grishchenko et al., "Blendshapes GHUM", 2023.
    """

    def __init__(self) -> None:
        self._detector, self._landmarks, self._blendshapes = map(_open, ("detector", "landmarks", "blendshapes"))
        self._anchors = np.array(
            [
                ((column + 0.5) / cells, (row + 0.5) / cells)
                for cells, anchors in ANCHOR_GRIDS
                for row in range(cells)
                for column in range(cells)
                for _ in range(anchors)
            ],
            np.float32,
        )

    def __call__(self, picture: np.ndarray) -> list[Face]:
        """Returns the faces of a picture, those with the highest detection scores first."""
        faces = [self.face(picture, region) for region in self.detect(picture)]
        return [face for face in faces if face.presence >= MIN_PRESENCE]

    def detect(self, picture: np.ndarray) -> list[Region]:
        """
        Detects the faces of a picture.

        Returns:
            `list[Region]`: At most `MAX_FACES`, those with the highest scores first.

        Raises:
            ValueError: If the picture is not a uint8 array of shape `(height, width, 3)`.
        """
        check_picture(picture)
        found: list[Region] = []
        for square in _squares(*picture.shape[:2]):
            for region in self._detect(picture, square):
                boxes = np.array([other.box for other in found]).reshape(-1, 4)
                if len(found) < MAX_FACES and not (intersection_over_union(region.box, boxes) > MAX_IOU).any():
                    found.append(region)
        return found

    def _detect(self, picture: np.ndarray, square: Region) -> list[Region]:
        """Returns the regions in a square, also those that overlap, highest scores first."""
        boxes, scores = self._detector.run(None, {"image": sample(picture, square, DETECTOR_SIZE)[None] * 2 - 1})
        # The score is the sigmoid of the output.
        found = np.flatnonzero(scores[0, :, 0] >= np.log(MIN_SCORE / (1 - MIN_SCORE)))
        found = found[np.argsort(-scores[0, found, 0], kind="stable")]
        # Centre, width and height, then x and y of six key points, the right eye and the left eye first; in pixels.
        values = boxes[0, found]
        matrix = square.to_picture(DETECTOR_SIZE)
        centres = (values[:, :2] + self._anchors[found] * DETECTOR_SIZE) @ matrix[:, :2].T + matrix[:, 2]
        sizes = CROP_SCALE * values[:, 2:4].max(axis=1) * (square.size / DETECTOR_SIZE)
        angles = np.arctan2(values[:, 7] - values[:, 5], values[:, 6] - values[:, 4])
        return [Region(*map(float, row)) for row in zip(*centres.T, sizes, angles)]

    def face(self, picture: np.ndarray, region: Region) -> Face:
        """Predicts the points and blendshapes of the face in a region. Low `presence`: the region contains no face."""
        image = sample(picture, region, CROP_SIZE)[None]
        landmarks, presence = self._landmarks.run(None, {"image": image})
        matrix = region.to_picture(CROP_SIZE)
        points = (landmarks.reshape(-1, 3)[:, :2] @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
        (blendshapes,) = self._blendshapes.run(None, {"points": points[None, BLENDSHAPE_POINTS]})
        return Face(points, blendshapes, float(1 / (1 + np.exp(-presence.item()))), Region.around(points))


@cache
def load_landmarker() -> FaceLandmarker:
    """Returns the landmarker of this process; its sessions may be shared between threads."""
    return FaceLandmarker()


def _open(name: str) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ImportError('Finding faces needs ONNX Runtime: pip install "mmemo[video]".') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    path = models_folder() / f"{name}.onnx"
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def models_folder() -> Path:
    """Returns the folder of the graphs. The code of a saved model has none, and takes those of the package."""
    folder = Path(__file__).with_name("landmarker")
    if folder.is_dir():
        return folder
    package = find_spec("mmemo")
    if package is None or package.origin is None:
        raise ImportError('Finding faces needs the graphs of the package: pip install "mmemo[video]".')
    return Path(package.origin).parent / "video" / "landmarker"


def check_picture(picture: np.ndarray) -> None:
    """Raises a `ValueError` if a picture is not a uint8 array of shape `(height, width, 3)` with pixels."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"Got a picture of shape {picture.shape} and type {picture.dtype}; it must be a uint8 array of shape "
            "(height, width, 3), RGB. Repeat a grey picture: np.repeat(picture[..., None], 3, axis=2)."
        )


def sample(picture: np.ndarray, region: Region, size: int) -> np.ndarray:
    """
    Samples a region of a picture bilinearly; black outside the picture.

    Args:
        picture (`np.ndarray` of shape `(height, width, 3)`): uint8.
        region (`Region`): The region.
        size (`int`): Side of the result in pixels.

    Returns:
        `np.ndarray` of shape `(3, size, size)`: float32 in [0, 1].
    """
    height, width = picture.shape[:2]
    matrix = region.to_picture(size).astype(np.float32)
    grid = np.arange(size, dtype=np.float32)
    x, y = (row[0] * grid + (row[1] * grid + row[2])[:, np.newaxis] for row in matrix)
    left, top = np.floor(x), np.floor(y)
    x -= left
    y -= top
    left, top = left.astype(np.int32), top.astype(np.int32)
    pixels = picture.reshape(-1, 3)
    result = np.zeros((3, size, size), np.float32)
    for row, by_row in ((top, 1 - y), (top + 1, y)):
        in_rows = (row >= 0) & (row < height)
        start = np.clip(row, 0, height - 1) * width
        for column, by_column in ((left, 1 - x), (left + 1, x)):
            weights = by_row * by_column * (in_rows & (column >= 0) & (column < width))
            # The channels come first: NumPy is slow along axes of three.
            result += weights * pixels.take(start + np.clip(column, 0, width - 1), axis=0).transpose(2, 0, 1)
    return result / 255


def intersection_over_union(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the overlap of a box `(x1, y1, x2, y2)` with each of others of shape `(boxes, 4)`, in [0, 1]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return shared / (areas - shared)


def _squares(height: int, width: int) -> list[Region]:
    """Returns the squares in which faces are searched: around the picture; at its two ends and its middle."""
    short, long = sorted((height, width))
    starts = (0.0, (long - short) / 2, float(long - short)) if long > short else ()
    centres = [(short / 2, start + short / 2) for start in starts]
    return [
        Region(width / 2, height / 2, long, 0.0),
        *(Region(*(centre if height > width else centre[::-1]), short, 0.0) for centre in centres),
    ]
