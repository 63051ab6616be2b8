"""Paths, web pages and remote storage: what is opened, what is found, and which sentence an error becomes."""

import io
import sys
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from videos import short_video

from mmemo.archives.folders import find_files
from mmemo.audio.loading import AudioBlocks, load_audio
from mmemo.storage import fetch, is_remote, is_url, join, list_folder, list_matches, local_path, name_of
from mmemo.video.frames import open_video
from mmemo.words.times import read_word_times


SUBTITLES = b"1\n00:00:00,100 --> 00:00:00,400\nso sad\n"


@pytest.fixture
def storage():
    """Files in the memory of this process, below `memory://calls`."""
    memory = fsspec.filesystem("memory")
    for name in ("a.wav", "may/b.MP3", "may/notes.txt", ".hidden/c.wav", "may/.d.wav", "call [1].wav"):
        memory.pipe(f"/calls/{name}", name.encode())
    yield memory
    memory.rm("/", recursive=True)


@pytest.fixture
def clip(make_clip):
    buffer = io.BytesIO()
    soundfile.write(buffer, make_clip(0.5), 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("location", "url", "remote", "name"),
    [
        ("calls/a.wav", False, False, "a.wav"),
        ("C:/calls/a.wav", False, False, "a.wav"),
        ("a::b.wav", False, False, "a::b.wav"),
        ("https://example.com/calls/a.wav?key=1/2", True, False, "a.wav"),
        ("https://example.com", True, False, ""),
        ("file:///calls/a.wav", True, False, "a.wav"),
        ("s3://bucket/calls/what?.wav", True, True, "what?.wav"),
        ("abfss://box@account.host/a.wav", True, True, "a.wav"),
        ("simplecache::gs://bucket/a.wav", True, True, "a.wav"),
        ("zip://calls/a.wav::s3://bucket/b.zip", True, True, "a.wav"),
    ],
)
def test_forms_of_locations(location, url, remote, name):
    assert (is_url(location), is_remote(location), name_of(location)) == (url, remote, name)


def test_file_urls_are_local():
    assert local_path("file:///calls/a b.wav") == "/calls/a b.wav"
    assert local_path("file:///C:/calls/a.wav") == "C:/calls/a.wav"
    assert local_path("s3://bucket/a.wav") is None


@pytest.mark.parametrize(
    ("base", "path", "expected"),
    [
        ("tables/calls.csv", "may/a.wav", "tables/may/a.wav"),
        ("calls.csv", "/a.wav", "/a.wav"),
        ("calls.csv", "s3://bucket/a.wav", "s3://bucket/a.wav"),
        ("s3://bucket/tables/calls.csv", "../a.wav", "s3://bucket/a.wav"),
        ("memory:///calls.csv", "a.wav", "memory:///a.wav"),
        ("https://example.com/tables/calls.csv?key=1", "my call.wav", "https://example.com/tables/my%20call.wav"),
        ("zip://tables/calls.csv::s3://bucket/b.zip", "a.wav", "zip://tables/a.wav::s3://bucket/b.zip"),
        ("simplecache::s3://bucket/calls.csv", "a.wav", "simplecache::s3://bucket/a.wav"),
    ],
)
def test_paths_are_relative_to_their_table(base, path, expected):
    assert join(base, path) == expected


def test_sound_of_remote_storage_is_that_of_the_file(storage, clip, temporary_folder):
    storage.pipe("/calls/clip.wav", clip)

    expected = load_audio(clip)
    np.testing.assert_array_equal(load_audio("memory://calls/clip.wav"), expected)
    assert not list(temporary_folder.iterdir())
    recording = AudioBlocks({"path": "memory://calls/clip.wav"})
    storage.rm("/calls/clip.wav")  # downloaded once
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(recording), axis=1)[0], expected)
    del recording
    assert not list(temporary_folder.iterdir())


def test_file_urls_are_read_where_they_are(tmp_path, clip, temporary_folder):
    path = tmp_path / "100%20 .wav"
    path.write_bytes(clip)

    np.testing.assert_array_equal(load_audio(path.as_posix()), load_audio(f"file://{path}"))
    assert AudioBlocks(f"file://{path}").duration == 0.5
    assert not list(temporary_folder.iterdir())
    with pytest.raises(ValueError, match=r"Cannot read file:///nowhere\.wav \(.*No such file"):
        load_audio("file:///nowhere.wav")


def test_files_in_an_archive_are_read(tmp_path, clip):
    with zipfile.ZipFile(tmp_path / "calls.zip", "w") as archive:
        archive.writestr("may/a.wav", clip)

    inputs, _ = find_files([f"zip://may::file://{tmp_path}/calls.zip"])

    assert [one.name for one in inputs] == [f"zip://may/a.wav::file://{tmp_path}/calls.zip"]
    np.testing.assert_array_equal(load_audio(inputs[0].audio), load_audio(clip))


def test_videos_and_subtitles_of_remote_storage(storage):
    storage.pipe("/calls/a.mp4", short_video())
    storage.pipe("/calls/a.srt", SUBTITLES)

    assert open_video("memory://calls/a.mp4").size == open_video(short_video()).size
    assert read_word_times("memory://calls/a.srt") == read_word_times(SUBTITLES)


def test_files_below_a_folder_are_found_without_hidden_ones(storage):
    assert list_folder("memory://calls") == [
        ("memory:///calls/a.wav", "a.wav"),
        ("memory:///calls/call [1].wav", "call [1].wav"),
        ("memory:///calls/may/b.MP3", "may/b.MP3"),
        ("memory:///calls/may/notes.txt", "may/notes.txt"),
    ]
    assert [place for _, place in list_folder("memory://calls", recursive=False)] == ["a.wav", "call [1].wav"]
    assert list_folder("memory://calls/a.wav") is None
    assert list_matches("memory://calls/m*/*") == [
        ("memory:///calls/may/.d.wav", ".d.wav"),
        ("memory:///calls/may/b.MP3", "b.MP3"),
        ("memory:///calls/may/notes.txt", "notes.txt"),
    ]


def failing(error):
    """A file system all of whose methods raise an error."""

    class Failing:
        def __getattr__(self, name):
            def fail(*_, **__):
                raise error

            return fail

        def invalidate_cache(self):
            pass

    return lambda location: (Failing(), location)


class DriverError(Exception):
    """Drivers have errors of their own that are no `OSError`."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError("b/a.wav"), r"Cannot read s3://b/a\.wav \(no such file\); check the URL\."),
        (
            PermissionError("Access\n Denied"),
            r"\(Access Denied\); check the URL, your credentials for it, and the conn",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), r"\(\[Errno 104\] Connection reset by peer\); check"),
        (DriverError("no credentials"), r"\(no credentials\); check the URL, your credentials"),
        (DriverError(), r"\(DriverError\); check"),
    ],
)
def test_errors_of_drivers_are_sentences(monkeypatch, temporary_folder, error, sentence):
    monkeypatch.setattr("fsspec.core.url_to_fs", failing(error))

    for load in (load_audio, AudioBlocks, open_video):
        with pytest.raises(ValueError, match=sentence):
            load("s3://b/a.wav")
    if not isinstance(error, FileNotFoundError):  # which may be a file that is missing when it is opened
        with pytest.raises(ValueError, match=sentence):
            find_files(["s3://b/a.wav"])
    with pytest.raises(ValueError, match=sentence.replace("wav", "srt")):
        read_word_times("s3://b/a.srt")
    assert not list(temporary_folder.iterdir())


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://b/a\.wav, because the package s3fs is missing; pip install s3fs\.$"):
        load_audio("s3://b/a.wav")

    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ValueError, match=r"the package fsspec is missing; pip install 'mmemo\[archives\]'\.$"):
        load_audio("memory://b/a.wav")


def test_unknown_protocols_and_folders_raise(storage):
    with pytest.raises(ValueError, match=r"Cannot read nope://b/a\.wav \(Protocol not known: nope\); check the URL"):
        load_audio("nope://b/a.wav")
    for load in (load_audio, AudioBlocks):
        with pytest.raises(ValueError, match=r"Cannot read memory://calls, which is a folder; pass the URL of a file"):
            load("memory://calls")


def test_a_listing_is_not_older_than_the_call(storage):
    list_folder("memory://calls/may")
    storage.pipe("/calls/may/new.wav", b"")

    assert "new.wav" in [place for _, place in list_folder("memory://calls/may")]


def test_a_local_file_has_no_name(tmp_path):
    (tmp_path / "samples.raw").write_bytes(b"1")

    with fetch(str(tmp_path / "samples.raw")) as stream:
        assert not isinstance(stream.name, str) and stream.read() == b"1"
    assert Path(tmp_path / "samples.raw").exists()
