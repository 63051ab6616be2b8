"""Recordings in folders, and the files that belong to them."""

import os
from pathlib import Path

import fsspec
import pytest

from mmemo.archives.folders import (
    SUBTITLE_SUFFIXES,
    Input,
    check_companions,
    check_exists,
    find_channel_companions,
    find_companion,
    find_files,
    named,
    plot_paths,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty files: recordings in a folder and its subfolder, and files that are not recordings."""
    for name in ("b.flac", "a.wav", "call.m4a", "d.WAV", "inside/c.ogg", "inside/film.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("._a.wav", ".DS_Store", ".trash/old.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*patterns, **options):
    return [one.name for one in find_files(patterns, **options)[0]]


def test_every_audio_and_video_file_in_a_folder_is_an_input(folder):
    assert found(".") == ["a.wav", "b.flac", "call.m4a", "d.WAV", "inside/c.ogg", "inside/film.mp4"]
    assert found(".", recursive=False) == ["a.wav", "b.flac", "call.m4a", "d.WAV"]


def test_paths_folders_and_globs_give_each_file_once(folder):
    inputs = ["d.WAV", ".", "*.flac", "inside/**/*.ogg"]

    assert found(*inputs) == ["d.WAV", "a.wav", "b.flac", "call.m4a", "inside/c.ogg", "inside/film.mp4"]
    assert found("missing.wav") == ["missing.wav"]  # reported when it is opened
    assert found("notes.txt") == ["notes.txt"]  # named, so it is meant


def test_an_input_knows_its_place_in_the_folder(folder):
    inputs, _ = find_files([str(folder), str(folder / "notes.txt"), "https://example.com/calls/1.mp3?key=2"])

    places = [str(one.place) for one in inputs]
    assert places == ["a.wav", "b.flac", "call.m4a", "d.WAV", "inside/c.ogg", "inside/film.mp4", "notes.txt", "1.mp3"]
    assert inputs[-1].audio == "https://example.com/calls/1.mp3?key=2"


def test_links_to_folders_are_followed_and_their_cycles_end(folder):
    (folder / "inside" / "up").symlink_to(folder)
    (folder / "linked").symlink_to(folder / "inside")

    assert len(found(".")) == 6


def test_a_folder_that_does_not_exist_is_named(folder):
    with pytest.raises(ValueError, match=rf"There is no file or folder cals/may; paths are relative to {Path.cwd()}"):
        find_files([".", "cals/may"])


def test_pipes_are_left_out_with_a_message(folder):
    os.mkfifo(folder / "pipe.wav")

    for pattern in (str(folder), str(folder / "*.wav")):
        found, problems = find_files([pattern])
        assert folder / "pipe.wav" not in [one.audio for one in found]
        assert len(problems) == 1 and "pipe.wav is a pipe, socket or device and is left out" in problems[0]
    assert [one.audio for one in find_files([str(folder / "pipe.wav")])[0]] == [folder / "pipe.wav"]


def test_a_broken_link_is_reported_and_not_passed_over(folder):
    (folder / "inside" / "gone.wav").symlink_to("nowhere.wav")

    assert "inside/gone.wav" in found(".")


@pytest.fixture
def storage():
    """Empty files in the memory of this process, below `memory://calls`."""
    memory = fsspec.filesystem("memory")
    for name in ("a.wav", "may/b.MP3", "may/film.mp4", "may/notes.txt", ".c.wav", "[1].wav"):
        memory.pipe(f"/calls/{name}", b"")
    yield memory
    memory.rm("/", recursive=True)


def test_folders_and_globs_of_remote_storage(storage):
    below = "memory:///calls"

    assert found("memory://calls") == [
        f"{below}/[1].wav",
        f"{below}/a.wav",
        f"{below}/may/b.MP3",
        f"{below}/may/film.mp4",
    ]
    assert found("memory://calls", recursive=False) == [f"{below}/[1].wav", f"{below}/a.wav"]
    assert found("memory://calls/**/*.MP3", f"{below}/a.wav") == [f"{below}/may/b.MP3", f"{below}/a.wav"]
    assert found("memory://calls/[1].wav") == ["memory://calls/[1].wav"]  # exists, so it is no glob
    assert found("memory://calls/gone.wav") == ["memory://calls/gone.wav"]  # reported when it is opened
    inputs, problems = find_files(["memory://calls/may"])
    assert [str(one.place) for one in inputs] == ["b.MP3", "film.mp4"] and not problems

    with pytest.raises(ValueError, match=r"There is no file or folder memory://call; check the URL and your cred"):
        find_files(["memory://call"])
    with pytest.raises(ValueError, match=r"memory://calls/\*\.ogg matches no file\."):
        find_files(["memory://calls/*.ogg"])
    storage.pipe("/texts/notes.txt", b"")
    with pytest.raises(ValueError, match=r"^memory://texts contains no audio or video file; .* it has 1\."):
        find_files(["memory://texts"])


def test_file_urls_are_folders_of_this_machine(folder):
    assert found(f"file://{folder}/inside") == [f"{folder}/inside/c.ogg", f"{folder}/inside/film.mp4"]
    assert found(f"file://{folder}/*.flac") == [f"{folder}/b.flac"]


def test_patterns_without_recordings_raise(folder):
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "notes.txt").touch()

    with pytest.raises(ValueError, match=r"no/\*\.wav matches no file"):
        find_files(["no/*.wav"])
    with pytest.raises(ValueError, match=r"^empty contains no audio or video file; valid suffixes are \['.3g2'"):
        find_files(["empty"])
    with pytest.raises(ValueError, match=r"texts contains no .* Pass files with other suffixes by name; it has 1\."):
        find_files(["texts"])
    with pytest.raises(ValueError, match="itself, and --no-recursive leaves its subfolders out"):
        find_files(["texts"], recursive=False)


def test_folders_that_cannot_be_read_are_named(folder, monkeypatch):
    closed = {"inside"}
    scan = os.scandir

    def scandir(path):
        if os.path.basename(os.fspath(path)) in closed:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)

    inputs, problems = find_files([str(folder)])
    assert len(inputs) == 4
    assert problems == [f"{folder}/inside cannot be read (Permission denied); its recordings are missing."]
    with pytest.raises(ValueError, match=r"inside cannot be read \(Permission denied\); correct its permissions"):
        find_files([str(folder / "inside")])


def recordings(*names):
    return [Input(f"calls/{name}", Path("calls") / name, Path(name)) for name in names]


def subtitles(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_subtitles_have_the_name_of_the_recording(tmp_path):
    subtitles(tmp_path, "a.vtt", "b.wav.srt", "may/c.srt", "c.srt")
    a, b, c, may, d = recordings("a.wav", "b.wav", "c.wav", "may/c.wav", "d.wav")

    assert find_companion(tmp_path, a, SUBTITLE_SUFFIXES) == tmp_path / "a.vtt"
    assert find_companion(tmp_path, b, SUBTITLE_SUFFIXES) == tmp_path / "b.wav.srt"
    assert find_companion(tmp_path, c, SUBTITLE_SUFFIXES) == tmp_path / "c.srt"
    assert find_companion(tmp_path, may, SUBTITLE_SUFFIXES) == tmp_path / "may" / "c.srt"
    assert find_companion(tmp_path, d, SUBTITLE_SUFFIXES) is None
    assert find_companion(tmp_path / "a.vtt", d, SUBTITLE_SUFFIXES) == tmp_path / "a.vtt"
    assert find_companion(None, a, SUBTITLE_SUFFIXES) is None


def test_channels_have_subtitles_of_their_own(tmp_path):
    subtitles(
        tmp_path, "[1].channel_1.srt", "[1].channel_0.vtt", "[1].channel_x.srt", "[1].srt", "other.channel_0.srt"
    )
    (call,) = recordings("[1].wav")

    assert find_channel_companions(tmp_path, call, SUBTITLE_SUFFIXES) == {
        0: tmp_path / "[1].channel_0.vtt",
        1: tmp_path / "[1].channel_1.srt",
    }


def test_recordings_without_subtitles_are_named(tmp_path):
    subtitles(tmp_path, "a.srt")

    missing = check_companions("--srt", tmp_path, recordings("a.wav", "b.wav", "may/c.wav"), SUBTITLE_SUFFIXES)

    assert missing == ["calls/b.wav", "calls/may/c.wav"]
    assert check_companions("--srt", None, recordings("a.wav"), SUBTITLE_SUFFIXES) == []


def test_subtitles_that_fit_no_single_recording_raise(tmp_path):
    subtitles(tmp_path, "a.srt")
    two = recordings("may/a.wav", "june/a.wav")

    with pytest.raises(ValueError, match=r"a\.srt has the name of 2 recordings, calls/may/a\.wav, calls/june/a\.wav"):
        check_companions("--srt", tmp_path, two, SUBTITLE_SUFFIXES)
    with pytest.raises(ValueError, match=r"--srt .*a\.srt belongs to one recording, got 2"):
        check_companions("--srt", tmp_path / "a.srt", two, SUBTITLE_SUFFIXES)
    with pytest.raises(ValueError, match=r"--srt nowhere does not exist"):
        check_companions("--srt", Path("nowhere"), two, SUBTITLE_SUFFIXES)
    # One recording in two formats.
    assert check_companions("--srt", tmp_path, recordings("a.wav", "a.mp4"), SUBTITLE_SUFFIXES) == []


def test_every_recording_has_a_plot_of_its_own():
    plots = plot_paths(Path("plots"), recordings("a.wav", "b.wav", "b.mp4", "may/a.wav"))

    assert list(map(str, plots.values())) == ["plots/a", "plots/b.wav", "plots/b.mp4", "plots/may/a"]
    clips = [Input(name, Path(name), Path("a.wav")) for name in ("may/a.wav", "june/a.wav")]
    with pytest.raises(ValueError, match=r"plots/a\.wav would be the plot of 2 recordings, may/a\.wav, june/a\.wav"):
        plot_paths(Path("plots"), clips)


def test_of_many_names_the_first_are_listed():
    assert named(["a", "b"]) == "a, b"
    assert named(map(str, range(25))).endswith("18, 19 and 5 more")


def test_a_vanished_file_raises(folder):
    check_exists(Path("a.wav"))
    Path("a.wav").unlink()
    with pytest.raises(ValueError, match=r"^There is no such file; paths are relative to /"):
        check_exists(Path("a.wav"))
