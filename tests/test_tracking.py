import numpy as np
import pytest
from faces import clip, open_mouth, place, read_portrait, resize
from PIL import Image

from mmemo.video.landmarks import BLENDSHAPES, Region, load_landmarker
from mmemo.video.tracking import FaceTrack, FaceTracker, crop, rank


PORTRAIT = read_portrait()
EMPTY = np.full((480, 640, 3), 110, np.uint8)


def follow(pictures, frames_per_second=10, crop_size=None):
    tracker = FaceTracker(load_landmarker(), crop_size)
    for time, picture in clip(pictures, frames_per_second):
        tracker.update(time, picture)
    return tracker.tracks


@pytest.fixture
def detections(monkeypatch):
    """Counts the pictures in which faces are detected."""
    landmarker, pictures = load_landmarker(), []
    detect = landmarker.detect
    monkeypatch.setattr(landmarker, "detect", lambda picture: pictures.append(picture) or detect(picture))
    return pictures


MOVES = {
    "still": [place((480, 640), (resize(PORTRAIT, 400), 100, 40))] * 12,
    "moving": [place((480, 640), (resize(PORTRAIT, 400), 8 * index, 2 * index)) for index in range(15)],
    "zooming": [place((480, 640), (resize(PORTRAIT, 320 + 12 * index), 90, 0)) for index in range(12)],
    "turning": [np.asarray(Image.fromarray(PORTRAIT).rotate(6 * index - 40)) for index in range(14)],
}


@pytest.mark.parametrize("move", MOVES)
def test_tracked_blendshapes_are_close_to_detected_ones(move, detections):
    (track,) = follow(MOVES[move])
    # In the first frame, and a second later.
    assert len(detections) == 2
    detected = np.array([load_landmarker()(picture)[0].blendshapes for picture in MOVES[move]])
    differences = np.abs(np.array(track.blendshapes) - detected)

    assert track.frames == list(range(len(MOVES[move])))
    # The blendshapes of detection differ by 0.015 themselves if a picture moves by three pixels.
    assert differences[0].max() < 1e-6
    assert differences.mean() < 0.04
    assert np.median(differences.max(axis=1)) < 0.3


def test_a_fast_face_is_predicted_again_where_it_is(monkeypatch):
    pictures = [place((480, 640), (resize(PORTRAIT, 312 + 12 * index), 10 * index, 5 * index)) for index in range(12)]
    settled = np.array([follow([picture] * 3)[0].blendshapes[-1] for picture in pictures])
    followed = np.array(follow(pictures)[0].blendshapes)
    monkeypatch.setattr("mmemo.video.tracking.MAX_MOVE", np.inf)
    off_centre = np.array(follow(pictures)[0].blendshapes)

    assert np.abs(followed - settled).mean() < 0.5 * np.abs(off_centre - settled).mean()


def test_a_jump_is_found_again_in_the_same_frame():
    pictures = [place((480, 640), (resize(PORTRAIT, 400), left, 0)) for left in (-100, -100, 230, 230, -100)]
    (track,) = follow(pictures)

    assert track.frames == [0, 1, 2, 3, 4]
    assert [round(box[0] + box[2], 1) for box in track.boxes] == pytest.approx([0.2, 0.2, 1.3, 1.3, 0.2], abs=0.11)


def test_a_face_that_returns_continues_its_track(detections):
    there, elsewhere = (place((480, 640), (resize(PORTRAIT, 400), left, 40)) for left in (0, 220))
    (track,) = follow([there, there, EMPTY, EMPTY, EMPTY, elsewhere, elsewhere])

    assert track.frames == [0, 1, 5, 6]
    assert len(detections) == 6


def two_faces(first, second, size=(512, 1000)):
    """The portrait on the left and a smaller mirrored one on the right, or neither."""
    faces = []
    if first is not None:
        faces.append((first, 0, 0))
    if second is not None:
        faces.append((resize(second[:, ::-1], 400), 550, 60))
    return place(size, *faces)


def test_two_faces_return_to_their_own_tracks():
    both, left, right, none = (
        two_faces(*pair) for pair in ((PORTRAIT, PORTRAIT), (PORTRAIT, None), (None, PORTRAIT), (None, None))
    )
    tracks = follow([both, both, none, right, both, left, none, left])

    assert sorted(track.frames for track in tracks) == [[0, 1, 3, 4], [0, 1, 4, 5, 7]]


def test_with_two_faces_before_one_elsewhere_is_new():
    both = two_faces(PORTRAIT, PORTRAIT)
    between = place((512, 1000), (resize(PORTRAIT, 400), 300, 100))
    tracks = follow([both, np.full_like(both, 110), between])

    assert [track.frames for track in tracks] == [[0], [0], [2]]


def test_a_second_face_is_found_within_a_second():
    tracks = follow([two_faces(PORTRAIT, None), *[two_faces(PORTRAIT, PORTRAIT)] * 12])

    assert [track.frames[0] for track in tracks] == [0, 10]


def test_frames_of_other_sizes():
    pictures = [place((480, 640), (resize(PORTRAIT, 400), 100, 40)), PORTRAIT, PORTRAIT[::2, ::2]]
    (track,) = follow(pictures)

    assert track.frames == [0, 1, 2]


def test_boxes_are_relative_to_the_picture():
    picture = place((480, 640), (resize(PORTRAIT, 400), 100, 40))
    (track,) = follow([picture])
    points = load_landmarker()(picture)[0].points
    left, top, right, bottom = track.boxes[0]

    assert [640 * left, 640 * right] == pytest.approx([points[:, 0].min(), points[:, 0].max()], abs=1e-3)
    assert [480 * top, 480 * bottom] == pytest.approx([points[:, 1].min(), points[:, 1].max()], abs=1e-3)


def test_a_box_at_the_edge_stays_inside():
    (track,) = follow([PORTRAIT[60:, 190:]])

    assert track.boxes[0][0] == 0 < track.boxes[0][1]


@pytest.mark.parametrize("size", [48, 112, 224])
def test_crops_are_level_and_average(size):
    turned = np.asarray(Image.fromarray(PORTRAIT).rotate(25, Image.Resampling.BICUBIC))
    (face,) = load_landmarker()(turned)
    upright = load_landmarker()(PORTRAIT)[0].region
    result = crop(turned, face.region, size)
    half = upright.size / 2
    box = (upright.x - half, upright.y - half, upright.x + half, upright.y + half)
    image = Image.fromarray(PORTRAIT).rotate(np.degrees(upright.angle), center=(upright.x, upright.y))
    expected = image.resize((size, size), Image.Resampling.BOX, box=box)

    assert result.shape == (size, size, 3)
    assert np.corrcoef(result.ravel(), np.asarray(expected).ravel())[0, 1] > 0.95


def test_crop_averages_blocks():
    # A checkerboard of pixels: sampling would give black or white.
    board = np.repeat(np.indices((40, 40)).sum(axis=0)[..., None] % 2 * 255, 3, axis=2).astype(np.uint8)

    assert crop(board, Region(20, 20, 20, 0.0), 10) == pytest.approx(np.full((10, 10, 3), 127.5), abs=1)


@pytest.mark.parametrize("centre", [(-130, 50), (50, 230), (-75, 50), (-1e5, 1e5)])
def test_a_crop_outside_of_the_picture_is_black(centre):
    white = np.full((100, 100, 3), 255, np.uint8)

    # Near the corner at (-75, 50) a part of the picture lies inside.
    assert (crop(white, Region(*centre, 200, 0.0), 8) > 0).any() == (centre == (-75, 50))


def test_crops_are_kept_with_a_crop_size():
    (track,) = follow([PORTRAIT, np.zeros_like(PORTRAIT), PORTRAIT], crop_size=48)

    assert track.frames == [0, 2]
    assert np.shape(track.crops) == (2, 48, 48, 3)
    assert follow([PORTRAIT])[0].crops == []


def make_track(jaw_open, frames=None, side=0.2, mouth_close=0.0):
    values = np.zeros((len(jaw_open), len(BLENDSHAPES)))
    values[:, BLENDSHAPES.index("jawOpen")] = jaw_open
    values[:, BLENDSHAPES.index("mouthClose")] = mouth_close
    box = np.array([0.1, 0.1, 0.1 + side, 0.1 + side])
    frames = list(range(len(jaw_open))) if frames is None else frames
    return FaceTrack(Region(0, 0, 1, 0.0), frames, list(values), [box] * len(jaw_open))


def test_speaking_frames_by_hand():
    # At 4 frames per second, two frames on either side belong to a frame.
    assert make_track([0, 0, 0, 0, 0, 0.1, 0, 0, 0, 0, 0]).speaking_frames(4) == 5
    assert make_track([0, 0, 0, 0, 0, 0.09, 0, 0, 0, 0, 0]).speaking_frames(4) == 0
    # A mouth that stays open does not speak, nor do lips that stay closed over a moving jaw.
    assert make_track([0.6] * 9).speaking_frames(4) == 0
    assert make_track([0, 0.5, 0, 0.5], mouth_close=[0, 0.5, 0, 0.5]).speaking_frames(4) == 0
    # Frames without the face are not counted, and separate.
    assert make_track([0, 0.5], frames=[3, 5]).speaking_frames(4) == 2
    assert make_track([0, 0.5], frames=[3, 9]).speaking_frames(4) == 0
    assert make_track([0.5]).speaking_frames(25) == 0


def test_speaking_does_not_depend_on_the_frame_rate():
    def seconds(rate):
        times = np.arange(0, 10, 1 / rate)
        return make_track(np.where(times < 4, 0.1 + 0.1 * np.sin(9 * times), 0.1)).speaking_frames(rate) / rate

    assert seconds(30) == pytest.approx(4.5, abs=0.2)
    assert seconds(10) == pytest.approx(seconds(30), abs=0.2)


def test_rank_by_hand():
    quiet_large, quiet_small = make_track([0.1] * 8, side=0.5), make_track([0.1] * 8, side=0.2)
    quiet_brief = make_track([0.1], side=0.9)
    little, long = make_track([0, 0.3, *[0.3] * 6], side=0.4), make_track([0, 0.3] * 4, side=0.1)
    ranked = rank([quiet_small, little, quiet_brief, long, quiet_large], 4)

    assert [id(track) for track in ranked] == [id(x) for x in (long, little, quiet_large, quiet_brief, quiet_small)]


def test_the_face_whose_mouth_moves_ranks_first():
    opened = open_mouth(PORTRAIT)
    moving = [two_faces(PORTRAIT, (PORTRAIT, opened)[index % 2]) for index in range(8)]
    tracks = follow(moving)
    (speaker, silent) = rank(tracks, 10)

    assert speaker.speaking_frames(10) >= 6
    assert silent.speaking_frames(10) == 0
    assert speaker.boxes[0][0] > 0.5 > silent.boxes[0][0]
    assert silent.area > speaker.area
