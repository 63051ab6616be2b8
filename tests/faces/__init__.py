"""A portrait, and pictures and clips made of it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


FOLDER = Path(__file__).parent
# Row of the portrait between its lips.
MOUTH_ROW = 144


def read_portrait():
    """Returns the portrait, uint8 `(512, 512, 3)`; its face lies about (225, 130), 100 pixels wide."""
    return np.asarray(Image.open(FOLDER / "astronaut.jpg"))


def read_versions():
    """Returns versions of the portrait by name, all of which the detector finds in the whole picture."""
    portrait = read_portrait()
    return {
        "upright": portrait,
        "rotated by 30 degrees": np.asarray(
            Image.fromarray(portrait).rotate(30, Image.Resampling.BILINEAR, expand=True)
        ),
        "rotated by -45 degrees": np.asarray(Image.fromarray(portrait).rotate(-45, Image.Resampling.BILINEAR)),
        "rotated by 90 degrees": np.rot90(portrait),
        "mirrored": portrait[:, ::-1],
        "doubled": portrait.repeat(2, axis=0).repeat(2, axis=1),
        "halved": portrait[::2, ::2],
        "portrait format": portrait[:, 100:350],
        "landscape format": portrait[:300],
        "cut by the edge": portrait[60:, 180:],
        "moved": np.roll(portrait, (37, -41), axis=(0, 1)),
        "grey": portrait.mean(axis=2, keepdims=True).round().astype(np.uint8).repeat(3, axis=2),
    }


def read_reference():
    """Returns the reference's detection and blendshapes of each version, by name."""
    return json.loads((FOLDER / "reference.json").read_text(encoding="utf-8"))


def open_mouth(portrait, rows=20):
    """Returns the portrait with the mouth opened by some rows."""
    opened = np.linspace(MOUTH_ROW, MOUTH_ROW + 4, rows + 4).round().astype(int)
    kept = len(portrait) - MOUTH_ROW - rows
    return portrait[np.concatenate([np.arange(MOUTH_ROW), opened, MOUTH_ROW + 4 + np.arange(kept)])[: len(portrait)]]


def place(size, *pictures):
    """
    Puts pictures on a grey one.

    Args:
        size (`tuple[int, int]`): Height and width of the result.
        pictures (tuples of a picture, `left` and `top`): What lies outside is cut off.
    """
    result = np.full((*size, 3), 110, np.uint8)
    for picture, left, top in pictures:
        rows, columns = (np.arange(length) + start for length, start in zip(picture.shape, (top, left)))
        seen = (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1])
        result[np.ix_(rows[seen[0]], columns[seen[1]])] = picture[np.ix_(*seen)]
    return result


def resize(picture, side):
    """Returns a square picture with another side."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))


def clip(pictures, frames_per_second=10):
    """Yields the frames of a video: their starts in seconds, and the pictures."""
    for index, picture in enumerate(pictures):
        yield index / frames_per_second, picture
