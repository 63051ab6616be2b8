"""
Folders for the output of archives: local, or on any storage that fsspec reaches. Files appear in them complete.

Deliberate choices:
- A local file is written under a temporary name and renamed; a remote one is a single upload. Readers and a run that
  resumes never find half a file, whenever the writer is killed.
- One process writes to a local folder. The kernel releases its lock when the process ends, however it ends.
"""

import logging
import os
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mmemo.storage import is_url


logger = logging.getLogger(__name__)
LOCK_FILE = ".lock"
TEMPORARY_SUFFIX = ".tmp"


class OutputFolder(ABC):
    """
    A folder of files, which are named by their relative paths, with slashes.

    Attributes:
        place (`str`): Its path or URL.
    """

    place: str

    @abstractmethod
    def lock(self) -> None:
        """
        Creates the folder, and locks it for this process.

        Raises:
            ValueError: If another process has locked it.
            OSError: If it cannot be created.
        """

    @abstractmethod
    def unlock(self) -> None:
        """Releases the lock; without one, does nothing."""

    @abstractmethod
    def clean(self) -> None:
        """Removes what a killed writer left. Only for the output of an archive: other folders have such files too."""

    @abstractmethod
    def names(self) -> list[str]:
        """Returns the sorted names of all files in it that are not hidden."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Opens a file."""

    @abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """
        Writes a complete file, or nothing.

        Raises:
            OSError: If it cannot be written.
        """

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        with self.open(name) as file:
            return file.read()


class LocalFolder(OutputFolder):
    """A folder of this machine, or mounted on it."""

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self.place = str(path)
        self._lock: Any = None

    def lock(self) -> None:
        if self._path.exists() and not self._path.is_dir():
            raise ValueError(f"{self.place} is a file, and the output of an archive is a folder; choose another one.")
        self._path.mkdir(parents=True, exist_ok=True)
        lock = (self._path / LOCK_FILE).open("a+", encoding="utf-8")
        try:
            _lock_file(lock)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise ValueError(
                f"{self.place} is being written by {holder}; wait for it, end it, or choose another --output."
            ) from error
        except OSError as error:
            logger.warning(
                "%s cannot be locked (%s); do not run two jobs into it at the same time.", self.place, error.strerror
            )
        self._lock = lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def clean(self) -> None:
        for path in self._walk():
            if path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX):
                path.unlink()

    def names(self) -> list[str]:
        return sorted(path.relative_to(self._path).as_posix() for path in self._walk() if path.name[0] != ".")

    def open(self, name: str) -> BinaryIO:
        return (self._path / name).open("rb")

    def put(self, name: str, content: bytes) -> None:
        path = self._path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}{TEMPORARY_SUFFIX}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # also when interrupted
            temporary.unlink(missing_ok=True)
            raise
        for folder in path.parents[: len(Path(name).parts)]:
            _sync_folder(folder)

    def _walk(self) -> Iterator[Path]:
        for place, folders, files in os.walk(self._path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (Path(place, name) for name in files)


class RemoteFolder(OutputFolder):
    """
    A folder on a storage of fsspec, such as `s3://bucket/folder`. Such storages have no locks: two jobs at the same
    time would write the rows of both.

    Args:
        place (`str`): Its URL.
        filesystem (`fsspec.AbstractFileSystem`), root (`str`): As `fsspec.url_to_fs` returns them.
    """

    def __init__(self, place: str, filesystem: Any, root: str):
        self.place = place.rstrip("/")
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def lock(self) -> None:
        """Does nothing: object storages have neither locks nor half files."""

    def unlock(self) -> None:
        """Does nothing; see [`~RemoteFolder.lock`]."""

    def clean(self) -> None:
        """Does nothing; see [`~RemoteFolder.lock`]."""

    def names(self) -> list[str]:
        self._filesystem.invalidate_cache()
        paths = _reaching(self.place, self._filesystem.find, self._root)
        names = (path[len(self._root) :].lstrip("/") for path in paths)
        return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))

    def open(self, name: str) -> BinaryIO:
        return _reaching(self.place, self._filesystem.open, f"{self._root}/{name}", "rb")

    def put(self, name: str, content: bytes) -> None:
        _reaching(self.place, self._filesystem.pipe_file, f"{self._root}/{name}", content)


def open_folder(folder: str | os.PathLike) -> OutputFolder:
    """
    Returns an output folder, which need not exist.

    Args:
        folder (`str` or `os.PathLike`): A path, or a URL of fsspec.

    Raises:
        ImportError: If fsspec, or its package for such URLs, is not installed.
    """
    if not is_url(str(folder)):
        return LocalFolder(folder)
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise ImportError(f"{folder} needs fsspec: pip install 'mmemo[archives]'.") from error
    try:
        filesystem, root = url_to_fs(str(folder))
    except ValueError as error:
        raise ValueError(f"{folder} is neither a path nor a URL that fsspec opens: {error}") from error
    is_local = "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,))
    return LocalFolder(root) if is_local else RemoteFolder(str(folder), filesystem, root)


def _reaching(place: str, call: Any, *arguments: Any) -> Any:
    """Calls a storage; its errors have no common base class."""
    try:
        return call(*arguments)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise OSError(f"{place} cannot be reached ({type(error).__name__}: {error}).") from error


def _lock_file(file: Any) -> None:
    """Locks an open file exclusively, or raises a `BlockingIOError` or `PermissionError` if another process has."""
    if sys.platform == "win32":
        import msvcrt

        # A byte beyond its content, which remains readable.
        file.seek(2**20)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Waits until the entries of a folder are on disk."""
    if sys.platform == "win32":
        return  # Windows cannot open folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
