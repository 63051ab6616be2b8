import numpy as np
import pytest
import soundfile
from PIL import Image
from videos import short_video

from modeling_mmemo.data import clips
from modeling_mmemo.data.clips import LISTED, check_clips, clip_seconds


def stored(path):
    return {"bytes": None, "path": str(path)}


@pytest.fixture
def clip(tmp_path, make_clip):
    soundfile.write(tmp_path / "clip.wav", make_clip(0.5), 16_000)
    return tmp_path / "clip.wav"


def test_seconds_of_files_and_bytes(clip, tmp_path):
    samples, _ = soundfile.read(clip)
    soundfile.write(tmp_path / "clip.flac", samples, 8_000)

    assert clip_seconds(stored(clip)) == 0.5
    assert clip_seconds({"bytes": clip.read_bytes(), "path": None}) == 0.5
    assert clip_seconds(stored(tmp_path / "clip.flac")) == 1.0


def test_readable_clips_pass(clip):
    check_clips([stored(clip), None, {"bytes": clip.read_bytes(), "path": "clip.wav"}, stored(clip)])


def test_every_unreadable_clip_is_listed(clip, tmp_path):
    (tmp_path / "notes.wav").write_text("not audio")
    (tmp_path / "zero.wav").touch()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    bad = [stored(tmp_path / name) for name in ("nosuch.wav", "notes.wav", "zero.wav", "empty.wav")]
    bad.append({"bytes": b"nothing", "path": "hub.wav"})

    with pytest.raises(ValueError, match=r"5 audio file\(s\) cannot be read\. Correct their paths") as error:
        check_clips([stored(clip), *bad, bad[0]])

    for reason in (
        "nosuch.wav does not exist",
        "notes.wav is not readable audio",
        "zero.wav is empty (0 bytes)",
        "empty.wav has no samples",
        "hub.wav is not readable audio",
    ):
        assert reason in str(error.value)


def test_long_lists_are_cut(tmp_path):
    with pytest.raises(ValueError, match=r"23 audio file\(s\) [\s\S]*\n  and 13 more$") as error:
        check_clips([stored(tmp_path / f"{index}.wav") for index in range(23)])

    assert str(error.value).count("does not exist") == LISTED


@pytest.mark.parametrize("suffix", [".mp4", ".flv", ".mkv"])
def test_readable_videos_pass_with_and_without_sound(tmp_path, suffix):
    for has_sound in (True, False):
        content = short_video(suffix, has_sound)
        (tmp_path / f"a{suffix}").write_bytes(content)
        check_clips([], [stored(tmp_path / f"a{suffix}"), None, {"bytes": content, "path": "b.mp4"}])


def test_unreadable_videos_are_listed_with_clips(clip, tmp_path):
    (tmp_path / "pointer.flv").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "cut.mp4").write_bytes(short_video()[:500])
    videos = [stored(tmp_path / name) for name in ("nosuch.mp4", "pointer.flv", "cut.mp4", "clip.wav")]

    with pytest.raises(ValueError, match=r"4 video file\(s\) cannot be read") as error:
        check_clips([stored(clip)], [*videos, videos[0]])

    for reason in (
        "nosuch.mp4 does not exist",
        "pointer.flv is not a readable video",
        "cut.mp4 is not a readable video",
        "clip.wav has no video track; use it as audio",
    ):
        assert reason in str(error.value)
    with pytest.raises(ValueError, match=r"2 audio and video file\(s\) cannot be read"):
        check_clips([stored(tmp_path / "nosuch.wav")], videos[:1])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_images_are_readable_videos_without_sound(tmp_path, suffix):
    Image.new("RGB", (16, 16)).save(tmp_path / f"face.{suffix}")

    assert not clips.has_sound(stored(tmp_path / f"face.{suffix}"))
    check_clips((), [stored(tmp_path / f"face.{suffix}")])
