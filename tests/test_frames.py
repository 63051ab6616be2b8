"""Frames of a video on a uniform grid: times, windows, variable rates, alignment with the sound, memory."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from videos import CODINGS, FPS, FRAMES, number_of, numbered, numbers, tone, write_video

from mmemo.audio.loading import load_audio
from mmemo.video import video_files
from mmemo.video.frames import open_video


def times(video, rate=FPS, **window):
    return [time for time, _ in video.frames(rate, **window)]


# A program stream has few timestamps.
@pytest.mark.parametrize("name", sorted(CODINGS.keys() - {"mpg"}))
def test_the_grid_of_every_container_is_exact(name, encoded_video):
    video = open_video(encoded_video(name))

    assert video.size == (64, 48)
    assert not video.is_image and not video.has_audio
    assert video.duration == pytest.approx(4.0, abs=0.4)
    assert times(video) == [index / FPS for index in range(40)]
    assert numbers(video) == list(range(40))
    assert numbers(video, 5) == list(range(0, 40, 2))
    # At 4 frames per second the frames at 0, 0.25, 0.5, 0.75, ... are 0, 2, 5, 7, ...
    assert numbers(video, 4) == [int(index * 2.5) for index in range(16)]
    assert numbers(video, 20) == [index // 2 for index in range(80)]


@pytest.mark.parametrize("name", CODINGS)
def test_a_window_equals_that_part_of_the_whole(name, encoded_video):
    video = open_video(encoded_video(name))
    whole = list(video.frames(FPS))

    for start in (0, 3, 6, 7, 12, 13, 25, 31, 38):
        window = list(video.frames(FPS, start=start / FPS, end=(start + 4) / FPS))
        assert [time for time, _ in window] == [time for time, _ in whole[start : start + 4]]
        for (_, found), (_, expected) in zip(window, whole[start : start + 4]):
            np.testing.assert_array_equal(found, expected)
    assert list(video.frames(FPS, start=9.0)) == []


def test_windows_tile_the_grid(encoded_video):
    video = open_video(encoded_video("mp4"))
    step = 0.7  # 7 * 0.1, which is 0.7000000000000001

    tiled = [time for index in range(6) for time in times(video, start=index * step, end=(index + 1) * step)]
    assert tiled == times(video)
    assert times(video, start=0.05, end=0.31) == [0.1, 0.2, 0.3]


def test_rates_that_containers_round_show_each_frame_once(tmp_path):
    write_video(tmp_path / "a.mkv", numbered(40), 30)

    assert numbers(open_video(tmp_path / "a.mkv"), 30) == list(range(40))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rates(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered(6), FPS, times=[0, 0.1, 0.15, 0.7, 0.71, 1.5])

    assert numbers(open_video(path)) == [0, 1, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, 5]
    assert numbers(open_video(path), start=0.6, end=0.9) == [2, 3, 4]


def test_a_frame_shown_twice_is_one_array(encoded_video):
    frames = [pixels for _, pixels in open_video(encoded_video("mp4")).frames(2 * FPS, end=0.4)]

    assert [frames[index] is frames[index + 1] for index in range(7)] == [True, False] * 3 + [True]


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv"])
def test_without_sound_time_starts_at_the_first_frame(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered(10), FPS, times=[3.3 + index / FPS for index in range(10)])

    assert numbers(open_video(path)) == list(range(10))
    assert numbers(open_video(path), start=0.4, end=0.7) == [4, 5, 6]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mov", "libx264"), ("mkv", "libx264"), ("ts", "libx264"), ("webm", "libvpx-vp9")],
)
@pytest.mark.parametrize(("sound_start", "first_frame"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])
def test_sound_and_frames_are_aligned(suffix, codec, sound_start, first_frame, tmp_path):
    """A flash and a tone start at 1 s of the file."""
    path = tmp_path / f"a.{suffix}"
    seconds = np.arange(first_frame, 2, 1 / 50)
    frames = np.where(seconds >= 0.999, 200, 20).astype(np.uint8)[:, None, None, None]
    samples = tone(2 - sound_start)
    samples[: round((1 - sound_start) * 48_000)] *= 1e-3
    write_video(
        path,
        np.broadcast_to(frames, (len(frames), 48, 64, 3)),
        50,
        samples=samples,
        sampling_rate=48_000,
        times=seconds,
        codec=codec,
        sound_start=sound_start,
    )

    video = open_video(path)
    assert video.has_audio
    heard = np.argmax(np.abs(load_audio(path)) > 0.1) / 16_000
    seen = next(time for time, pixels in video.frames(100) if pixels.mean() > 100)

    assert seen == pytest.approx(heard, abs=0.035)


def test_iterations_are_independent_and_close_their_files(encoded_video, monkeypatch):
    opened = []
    open_demuxer = video_files.open_demuxer
    monkeypatch.setattr(
        video_files, "open_demuxer", lambda *args, **kwargs: opened.append(open_demuxer(*args, **kwargs)) or opened[-1]
    )
    video = open_video(encoded_video("mp4"))
    first, second = video.frames(FPS), video.frames(FPS)

    assert [number_of(next(first)[1]), number_of(next(first)[1]), number_of(next(second)[1])] == [0, 1, 0]
    first.close()
    assert number_of(next(second)[1]) == 1
    second.close()
    assert len(opened) == 3
    for container in opened:
        with pytest.raises(AssertionError, match="not open"):
            container.seek(0)


def test_memory_does_not_grow_with_the_duration(tmp_path):
    frames = np.broadcast_to(numbered(60, 240, 320)[:, None], (60, FPS, 240, 320, 3)).reshape(-1, 240, 320, 3)
    write_video(tmp_path / "a.mp4", frames, FPS, g="50")
    frame_bytes = 240 * 320 * 3

    tracemalloc.start()
    shown = sum(1 for _ in open_video(tmp_path / "a.mp4").frames(FPS))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert shown == 600
    assert peak < 5 * frame_bytes


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), True, "25", 1001])
def test_rates_are_checked(fps):
    with pytest.raises(ValueError, match=r"^fps=.* must be a positive number of frames|^fps=1001 is out of range"):
        open_video(FRAMES, fps=fps)
    with pytest.raises(
        ValueError, match=r"^frames_per_second=.* must be a positive|^frames_per_second=1001 is out of"
    ):
        open_video(FRAMES, fps=25).frames(fps)


@pytest.mark.parametrize("window", [(-1, None), (2, 1), (1, 1), (float("nan"), None), (float("inf"), None)])
def test_windows_are_checked(window):
    with pytest.raises(ValueError, match=r"is not a window of seconds; valid is 0 <= start < end"):
        open_video(FRAMES, fps=25).frames(5, *window)


def test_nothing_is_printed_and_importing_is_light(encoded_video):
    code = (
        "import sys; from mmemo.video.frames import open_video\n"
        "assert not {'av', 'torch', 'PIL'} & sys.modules.keys()\n"
        "print(len(list(open_video(sys.argv[1]).frames(5))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, encoded_video("mp4")], capture_output=True, text=True, check=True
    )

    assert (done.stdout, done.stderr) == ("20\n", "")
