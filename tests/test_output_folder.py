"""Output folders, local and on fsspec's storage in memory: complete files, and one writer."""

import errno
import os
import subprocess
import sys

import pytest

from mmemo.archives.output_folder import LocalFolder, RemoteFolder, open_folder


@pytest.fixture(params=["local", "remote"])
def place(request, tmp_path):
    return str(tmp_path / "new" / "OUT") if request.param == "local" else f"memory://{tmp_path.name}/OUT"


def test_files_are_written_listed_and_read(place):
    folder = open_folder(place)
    folder.lock()
    assert folder.names() == []
    folder.put("agent=a%2Fb/part-1.csv", b"one")
    folder.put("part-2.csv", b"two")
    folder.put("part-2.csv", b"three")

    assert folder.names() == ["agent=a%2Fb/part-1.csv", "part-2.csv"]
    assert folder.read("part-2.csv") == b"three"
    with pytest.raises(FileNotFoundError):
        folder.read("part-3.csv")
    folder.unlock()


def test_paths_and_urls(tmp_path):
    assert isinstance(open_folder(tmp_path), LocalFolder)
    assert isinstance(open_folder(f"file://{tmp_path}"), LocalFolder)
    assert isinstance(open_folder("memory://OUT"), RemoteFolder)
    with pytest.raises(ValueError, match="nowhere://x is neither a path nor a URL that fsspec opens"):
        open_folder("nowhere://x")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_leaves_the_old_one(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    folder = open_folder(tmp_path)
    folder.put("part-1.csv", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)):
        folder.put("part-1.csv", b"new")

    assert os.listdir(tmp_path) == ["part-1.csv"] and folder.read("part-1.csv") == b"old"


def test_cleaning_removes_what_a_killed_writer_left(tmp_path):
    (tmp_path / "agent=x").mkdir()
    for name in (".part-1.csv.tmp", "agent=x/.part-2.csv.tmp", ".hidden", "agent=x/part-3.csv"):
        (tmp_path / name).touch()
    folder = open_folder(tmp_path)
    folder.clean()

    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".hidden", "part-3.csv"]
    assert folder.names() == ["agent=x/part-3.csv"]


def test_a_second_writer_is_refused_until_the_first_one_ends(tmp_path):
    code = (
        "import sys; from mmemo.archives.output_folder import open_folder; folder = open_folder(sys.argv[1]); "
        "folder.lock(); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        folder = open_folder(tmp_path)
        try:
            with pytest.raises(ValueError, match=f"{tmp_path} is being written by process {holder.pid} on .*; wait"):
                folder.lock()
        finally:
            holder.kill()
    folder.lock()
    with pytest.raises(ValueError, match=f"is being written by process {os.getpid()} on"):
        open_folder(tmp_path).lock()
    folder.unlock()


def test_a_storage_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def fail(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("mmemo.archives.output_folder._lock_file", fail)
    folder = open_folder(tmp_path)
    folder.lock()
    folder.unlock()

    assert "cannot be locked (No locks available); do not run two jobs into it" in caplog.text


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "predictions.json"
    path.touch()

    with pytest.raises(ValueError, match=r"predictions\.json is a file, and the output of an archive is a folder"):
        open_folder(path).lock()


def test_errors_of_a_storage_become_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("403 Forbidden")

    folder = open_folder("memory://OUT")
    monkeypatch.setattr(type(folder._filesystem), "pipe_file", fail)
    with pytest.raises(OSError, match=r"memory://OUT cannot be reached \(RuntimeError: 403 Forbidden\)\."):
        folder.put("part-1.csv", b"")
