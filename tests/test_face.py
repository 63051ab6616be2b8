import logging
import re
import tracemalloc

import numpy as np
import pytest
from faces import clip, open_mouth, place, read_portrait, resize

from mmemo.video import face as face_module
from mmemo.video.face import read_face, read_faces
from mmemo.video.landmarks import BLENDSHAPES, load_landmarker


PORTRAIT = read_portrait()
BLACK = np.zeros((240, 320, 3), np.uint8)


def test_one_picture():
    sequence = read_face([(0.0, PORTRAIT)], frames_per_second=5)
    (face,) = load_landmarker()(PORTRAIT)

    assert sequence.times == pytest.approx(np.array([[0, 0.2]]))
    assert sequence.duration == pytest.approx(0.2)
    assert sequence.is_present.tolist() == [True]
    assert np.array_equal(sequence.blendshapes, face.blendshapes[None])
    assert sequence.crops is None


def test_a_face_that_leaves_and_returns():
    sequence = read_face(clip([PORTRAIT, PORTRAIT, np.zeros_like(PORTRAIT), PORTRAIT]), 10, crop_size=32)
    smiles = sequence.blendshapes[:, BLENDSHAPES.index("mouthSmileLeft")]
    types = [array.dtype for array in (sequence.times, sequence.blendshapes, sequence.boxes, sequence.crops)]

    assert sequence.is_present.tolist() == [True, True, False, True]
    assert types == [np.float32, np.float32, np.float32, np.uint8]
    assert (smiles > 0.5).tolist() == [True, True, False, True]
    assert sequence.boxes.any(axis=1).tolist() == [True, True, False, True]
    assert sequence.crops.shape == (4, 32, 32, 3)
    assert sequence.crops.any(axis=(1, 2, 3)).tolist() == [True, True, False, True]
    assert sequence.times[:, 0] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert sequence.duration == pytest.approx(0.4)


@pytest.fixture(scope="module")
def conversation():
    """The left face is larger, the right one speaks."""
    opened = open_mouth(PORTRAIT)
    return [
        place((512, 1000), (PORTRAIT, 0, 0), (resize((PORTRAIT, opened)[index % 2][:, ::-1], 400), 550, 60))
        for index in range(6)
    ]


@pytest.mark.parametrize(("face", "is_right"), [(None, True), (0, True), (1, False)])
def test_the_speaking_face_is_chosen(conversation, face, is_right):
    sequence = read_face(clip(conversation), 10, face=face)

    assert sequence.is_present.all()
    assert ((sequence.boxes[:, 0] > 0.5) == is_right).all()


def test_all_faces_are_ranked(conversation):
    faces = read_faces(clip(conversation), 10)

    assert [face.boxes[0, 0] > 0.5 for face in faces] == [True, False]
    assert np.array_equal(faces[1].blendshapes, read_face(clip(conversation), 10, face=1).blendshapes)
    assert read_faces(clip([BLACK]), 10) == []


def test_in_one_picture_the_largest_face_is_chosen(conversation):
    assert read_face(clip(conversation[:1]), 10).boxes[0, 0] < 0.5


@pytest.mark.parametrize("face", [2, -1, "0", True, 0.0, [0]])
def test_a_face_out_of_range(conversation, face):
    message = re.escape(f"face={face!r} is not in the video; faces found: 2, numbered from 0")
    with pytest.raises(ValueError, match=message):
        read_face(clip(conversation[:1]), 10, face=face)


def test_no_face(caplog):
    with caplog.at_level(logging.WARNING):
        sequence = read_face(clip([BLACK] * 3), 10, crop_size=8)

    assert not sequence.is_present.any()
    assert not sequence.blendshapes.any()
    assert sequence.crops.shape == (3, 8, 8, 3)
    assert [record.message for record in caplog.records] == ["No face found in 3 frames."]
    with pytest.raises(ValueError, match=r"faces found: 0"):
        read_face(clip([BLACK]), 10, face=0)


def test_no_frames():
    sequence = read_face([], 10)

    assert (sequence.times.shape, sequence.blendshapes.shape, sequence.duration) == ((0, 2), (0, 52), 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_per_second": 0}, "frames_per_second must be above 0, got 0"),
        ({"frames_per_second": float("nan")}, "frames_per_second must be above 0, got nan"),
        ({"frames_per_second": 5, "crop_size": 0}, "crop_size must be at least 1 pixel, got 0"),
    ],
)
def test_invalid_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        read_face([(0.0, PORTRAIT)], **options)


def test_crops_of_more_than_ten_minutes():
    frames = [(0.0, BLACK), (599.8, BLACK), (600.0, BLACK)]

    assert len(read_face(frames[:2], 5, crop_size=8).crops) == 2
    assert len(read_face(frames, 5).times) == 3
    with pytest.raises(ValueError, match="may cover 600 seconds at most"):
        read_face(frames, 5, crop_size=8)


def test_memory_does_not_grow_with_the_frames(monkeypatch):
    """Frames are released one by one: 300 of 0.7 MB take less than ten."""
    monkeypatch.setattr(face_module, "load_landmarker", lambda: Blind())
    frames = ((index / 5, np.zeros((480, 480, 3), np.uint8)) for index in range(300))
    tracemalloc.start()
    read_face(frames, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 10 * 480 * 480 * 3


class Blind:
    """A landmarker that finds no face."""

    def detect(self, picture):
        return []


def test_a_mirrored_face():
    portrait = read_portrait()
    face = read_face([(0.0, portrait)], 5, crop_size=32)
    mirrored = face.mirrored()
    left, right = (face.blendshapes[0, BLENDSHAPES.index(f"browDown{side}")] for side in ("Left", "Right"))
    assert mirrored.blendshapes[0, BLENDSHAPES.index("browDownLeft")] == right
    assert mirrored.blendshapes[0, BLENDSHAPES.index("browDownRight")] == left
    assert mirrored.blendshapes[0, BLENDSHAPES.index("jawOpen")] == face.blendshapes[0, BLENDSHAPES.index("jawOpen")]
    picture = read_face([(0.0, portrait[:, ::-1])], 5, crop_size=32)
    assert mirrored.boxes == pytest.approx(picture.boxes, abs=0.02)
    # The landmarker itself is not symmetric: its crops, and more so its blendshapes, differ.
    differences = [np.abs(crops.astype(int) - picture.crops).mean() for crops in (mirrored.crops, face.crops)]
    assert differences[0] < differences[1] / 2
    again = mirrored.mirrored()
    assert np.array_equal(again.blendshapes, face.blendshapes) and np.array_equal(again.crops, face.crops)
    assert again.boxes == pytest.approx(face.boxes)
    absent = read_face([(0.0, np.zeros_like(portrait))], 5)
    assert not absent.mirrored().boxes.any()
