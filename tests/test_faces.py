import os

import numpy as np
import pytest
from faces import open_mouth, read_portrait
from videos import short_video, write_video

from mmemo.video.landmarks import BLENDSHAPES
from modeling_mmemo import MMEmoProcessor
from modeling_mmemo.data import faces as faces_module
from modeling_mmemo.data.faces import FaceCache, Faces, with_faces, with_sounds
from modeling_mmemo.data.schema import as_dataset


FRAMES = np.stack([picture[:256, 100:356] for picture in (read_portrait(), open_mouth(read_portrait()))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video with a face and one without, both with sound."""
    folder = tmp_path_factory.mktemp("videos")
    tone = np.sin(np.arange(6400) / 10).astype(np.float32) / 4
    write_video(folder / "face.mp4", FRAMES, fps=5, samples=tone)
    (folder / "none.mp4").write_bytes(short_video())
    (folder / "silent.mp4").write_bytes(short_video(has_sound=False))
    return folder


def stored(path):
    return {"bytes": None, "path": str(path)}


@pytest.fixture
def cache(tmp_path):
    return FaceCache(MMEmoProcessor(frames_per_second=5.0), tmp_path / "cache")


@pytest.fixture
def followed(monkeypatch):
    """The videos in which a face was followed."""
    videos, load = [], MMEmoProcessor.load_video

    def record(self, video, *options):
        videos.append(video["path"])
        return load(self, video, *options)

    monkeypatch.setattr(MMEmoProcessor, "load_video", record)
    return videos


def test_a_face_is_followed_once(cache, folder, followed):
    first, again = cache.read(stored(folder / "face.mp4")), cache.read(stored(folder / "face.mp4"))

    assert len(followed) == 1
    for name in ("times", "is_present", "blendshapes", "boxes"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert first.is_present.all() and first.crops is None
    assert again.duration == first.duration == pytest.approx(0.4)
    jaw = again.blendshapes[:, BLENDSHAPES.index("jawOpen")]
    assert jaw[1] > jaw[0] + 0.05


def test_another_rate_crop_or_file_is_followed_again(folder, tmp_path, followed):
    path = tmp_path / "face.mp4"
    path.write_bytes((folder / "face.mp4").read_bytes())
    images = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    settings = [{"frames_per_second": 5.0}, {"frames_per_second": 10.0}]
    settings.append({"frames_per_second": 5.0, "crop_size": 8, **images})
    caches = [FaceCache(MMEmoProcessor(**options), tmp_path / "cache") for options in settings]

    faces = [cache.read(stored(path)) for cache in caches]
    os.utime(path, (0, 0))
    caches[0].read(stored(path))

    assert len(followed) == 4
    assert [len(face.times) for face in faces] == [2, 4, 2]
    assert faces[2].crops.shape == (2, 8, 8, 3)


def test_bytes_are_cached_by_their_content(cache, folder, followed):
    content = (folder / "face.mp4").read_bytes()

    for path in ("a.mp4", "b.mp4"):
        cache.read({"bytes": content, "path": path})

    assert len(followed) == 1


def test_large_crops_are_not_stored(folder, tmp_path, followed, monkeypatch):
    processor = MMEmoProcessor(frames_per_second=5.0, crop_size=8, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    stores, computes = FaceCache(processor, tmp_path / "small"), FaceCache(processor, tmp_path / "large")
    video = stored(folder / "face.mp4")

    expected = [stores.read(video).crops for _ in range(2)]
    assert len(followed) == 1
    monkeypatch.setattr(faces_module, "MAX_CROP_BYTES", 2 * 8 * 8 * 3 - 1)
    computed = [computes.read(video).crops for _ in range(2)]

    assert len(followed) == 3
    assert computes.read(video, with_crops=False).crops is None and len(followed) == 3
    assert all(np.array_equal(crops, expected[0]) for crops in (expected[1], *computed))


def test_faces_of_rows(cache, folder):
    faces = Faces(cache, [stored(folder / "face.mp4"), None])

    assert [faces.length(index) for index in range(2)] == [2, 0]
    assert faces[0].is_present.all() and faces[1] is None and faces.without_crops(1) is None


def test_videos_without_a_face_are_missing_and_counted_once(cache, folder, caplog):
    names = ("face.mp4", "none.mp4", None, "silent.mp4")
    rows = as_dataset([{"text": "a", "video": name and stored(folder / name)} for name in names])

    videos = with_faces(rows, cache)["video"]

    assert [video and os.path.basename(video["path"]) for video in videos] == ["face.mp4", None, None, None]
    (warning,) = [record.message for record in caplog.records if record.name.endswith("data.faces")]
    assert warning == "No face was found in 2 of 3 videos; these videos count as missing."


def test_rows_without_audio_have_the_sound_of_their_video(folder):
    names = ("face.mp4", "silent.mp4", None, "none.mp4")
    rows = [{"text": "a", "video": name and stored(folder / name)} for name in names]
    rows[3]["audio"] = stored("own.wav")

    found = with_sounds(as_dataset(rows))

    assert [audio and os.path.basename(audio["path"]) for audio in found["audio"]] == [
        "face.mp4",
        None,
        None,
        "own.wav",
    ]
    assert list(found["video"]) == [row["video"] for row in rows]


def test_unreadable_videos_are_listed(cache, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    rows = as_dataset([{"video": stored(tmp_path / name)} for name in ("text.mp4", "missing.mp4")])

    with pytest.raises(ValueError, match=r"2 video file\(s\) cannot be read") as error:
        with_faces(rows, cache)
    with pytest.raises(ValueError, match=r"2 video file\(s\) cannot be read"):
        with_sounds(rows)

    assert "text.mp4" in str(error.value) and "missing.mp4" in str(error.value)
