"""Drawn faces, read back from the pixels."""

import io

import av
import numpy as np
import pytest

from mmemo.video import drawing
from mmemo.video.drawing import DRAWN_SIDE, draw_faces, encode_faces
from mmemo.video.face import FaceSequence
from mmemo.video.landmarks import BLENDSHAPES


GREY = np.full((240, 320, 3), 128, np.uint8)
ORANGE, BLUE = (230, 159, 0), (86, 180, 233)
LEFT, RIGHT = (0.1, 0.25, 0.3, 0.5), (0.7, 0.25, 0.9, 0.5)


def make_face(box, present=(True,), **blendshapes):
    """A face that is in one place in all frames in which it is present."""
    count = len(present)
    values, boxes = np.zeros((count, len(BLENDSHAPES)), np.float32), np.zeros((count, 4), np.float32)
    for name, value in blendshapes.items():
        values[:, BLENDSHAPES.index(name)] = value
    boxes[list(present)] = box
    starts = np.arange(count, dtype=np.float32) / 10
    times = np.stack([starts, starts + 0.1], axis=1)
    return FaceSequence(times, np.array(present), values, boxes, None, count / 10)


def where(pixels, color, tolerance=0):
    """Left, top, right and bottom of the pixels of a colour."""
    found = np.abs(np.asarray(pixels, int) - color).max(axis=2) <= tolerance
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    return columns[0], rows[0], columns[-1], rows[-1]


@pytest.fixture
def written(monkeypatch):
    """What is written beside the boxes."""
    texts = []
    write = drawing._write
    monkeypatch.setattr(
        drawing, "_write", lambda canvas, size, text, box: (texts.append(text), write(canvas, size, text, box))
    )
    return texts


def test_boxes_have_the_color_of_the_chosen_face():
    drawn = draw_faces(GREY, [make_face(LEFT), make_face(RIGHT)], 1, 0)

    assert drawn.size == (DRAWN_SIDE, 480)
    assert where(drawn, ORANGE) == pytest.approx((448, 120, 576, 240), abs=1)
    assert where(drawn, BLUE) == pytest.approx((64, 120, 192, 240), abs=1)


def test_names_of_the_chosen_face_only(written):
    smiling = make_face(RIGHT, mouthSmileLeft=0.9, jawOpen=0.5, cheekPuff=0.4, noseSneerLeft=0.3, _neutral=1)
    draw_faces(GREY, [make_face(LEFT, jawOpen=1), smiling], 1, 0)

    assert written[0] == "face 0"
    assert written[1].split("\n")[:4] == ["face 1", "mouthSmileLeft 0.90", "jawOpen 0.50", "cheekPuff 0.40"]
    assert len(written[1].split("\n")) == 6


@pytest.mark.parametrize(("box", "is_right"), [(LEFT, True), (RIGHT, False)])
def test_names_are_on_the_side_with_more_room(box, is_right):
    left, top, right, bottom = where(draw_faces(GREY, [make_face(box, jawOpen=1)], 0, 0), (0, 0, 0))

    assert left > 192 if is_right else right < 448
    assert top == pytest.approx(120, abs=1) and right - left > 100 and bottom - top > 80


def test_names_stay_inside_the_picture():
    left, _, right, bottom = where(draw_faces(GREY, [make_face((0, 0.9, 1, 1))], 0, 0), (0, 0, 0))

    assert left >= 0 and right == DRAWN_SIDE - 1 and bottom == 479


def test_an_absent_face_is_not_drawn():
    assert np.unique(draw_faces(GREY, [make_face(LEFT, (True, False))], 0, 1)).tolist() == [128]


def test_the_sides_are_even():
    assert draw_faces(np.zeros((101, 333, 3), np.uint8), [], 0, 0).size == (640, 194)


def test_a_video_has_the_frames_and_their_rate():
    face = make_face(LEFT, (True, False, True))
    content = encode_faces(((index / 10, GREY) for index in range(3)), 10, [face], 0)

    with av.open(io.BytesIO(content)) as container:
        (stream,) = container.streams
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate, float(stream.duration * stream.time_base)) == (
            "h264",
            10,
            0.3,
        )
    assert where(frames[0], ORANGE, 40) == pytest.approx((64, 120, 192, 240), abs=3)
    assert np.abs(frames[1].astype(int) - 128).max() <= 4
    assert len(frames) == 3
