"""
Opens files by location: local paths, http(s) URLs, and URLs of remote storage that `fsspec` knows, such as s3://, gs://
and hf://.

Deliberate choices:
- A file of remote storage is downloaded as a whole by its driver, which resumes interrupted transfers, and read from
  the copy: decoders seek, and would report a lost connection as a corrupt file.
- Drivers raise errors of many classes; all of them become a `ValueError` with the URL, the reason and a remedy.
"""

import http.client
import os
import posixpath
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote, urljoin


DOWNLOAD_TIMEOUT_SECONDS = 30
# `simplecache::s3://bucket/a.wav` and `zip://a.wav::s3://bucket/a.zip` are chains. A drive of Windows is one letter.
_URL = re.compile(r"(?:\w+::)*[A-Za-z][\w+.-]+://")
_WEB_URL = re.compile(r"(https?://[^/?#]*)([^?#]*)(.*)", re.DOTALL)
_FILE_URL = "file://"
# Kept in the path of a web page, which may be quoted already.
_URL_CHARACTERS = "%/:?#[]@!$&'()*+,;=~"


class RemoteFile(NamedTuple):
    """A file of remote storage."""

    location: str
    """Its URL."""
    place: str
    """Its path in the folder that was searched; of a single file its name."""


def is_url(location: str) -> bool:
    """Whether a location is a URL, and not a local path."""
    return _URL.match(location) is not None


def is_web(location: str) -> bool:
    """Whether a location is an http(s) URL."""
    return location.startswith(("http://", "https://"))


def is_remote(location: str) -> bool:
    """Whether a location is the URL of remote storage, which `fsspec` opens."""
    return local_path(location) is None and not is_web(location)


def local_path(location: str) -> str | None:
    """Returns the path of a local file, given by its path or a file:// URL; `None` for other URLs."""
    if location.startswith(_FILE_URL):
        path = location.removeprefix(_FILE_URL)
        return path[1:] if re.match(r"/[A-Za-z]:", path) else path
    return None if is_url(location) else location


def absolute(location: str) -> str:
    """Returns a location that processes in other folders open, too: a local path from the root, or a URL."""
    path = local_path(location)
    return location if path is None else os.path.abspath(path)


def valid_text(text: str) -> str:
    r"""Returns a text as valid Unicode: bytes of file names that are not text, such as `\udce9`, are written so."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def name_of(location: str) -> str:
    """Returns the name of the file at a path or URL, without its folder, query and, in an archive, the archive."""
    _, path, _ = _split(location)
    return posixpath.basename(path) if is_url(location) else os.path.basename(path)


def join(base: str, path: str) -> str:
    """Returns the location of a path in a file `base`: relative to its folder, unless it is absolute or a URL."""
    if is_url(path) or os.path.isabs(path):
        return path
    if is_web(base):
        return urljoin(base, quote(path, _URL_CHARACTERS, errors="surrogateescape"))
    if not is_url(base):
        return os.path.normpath(os.path.join(os.path.dirname(base), path))
    protocol, own, rest = _split(base)
    joined = posixpath.join(posixpath.dirname(own), path)
    return protocol + (posixpath.normpath(joined) if ".." in path.split("/") else joined) + rest


def _split(location: str) -> tuple[str, str, str]:
    """Returns the protocol of a location, the path, and the rest of a chain or the query."""
    found = _URL.match(location)
    if found is None:
        return "", location, ""
    if page := _WEB_URL.match(location):
        return page[1], page[2], page[3]
    path, separator, rest = location[found.end() :].partition("::")
    return found[0], path, separator + rest


@contextmanager
def fetch(location: str) -> Iterator[BinaryIO]:
    """
    Opens a file for reading in binary mode.

    Args:
        location (`str`):
            A path or URL. The stream of an http(s) URL is not seekable, nor is that of a pipe.

    Raises:
        ValueError: If it cannot be read, or the package that reads such URLs is missing.
    """
    if is_remote(location):
        with tempfile.TemporaryDirectory(prefix="mmemo-") as folder:
            copy = os.path.join(folder, "copy")
            download(location, copy)
            with _open_nameless(copy) as stream:
                yield stream
        return
    opened: AbstractContextManager[Any] = _open_web(location) if is_web(location) else _open_nameless(location)
    try:
        with opened as stream:
            yield stream
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"Cannot read {short(location)} ({short(error)}); check the path or URL.") from error


@contextmanager
def _open_web(location: str) -> Iterator[Any]:
    request = urllib.request.Request(location, headers={"User-Agent": "mmemo"})
    with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
        yield response
        if response.length:  # urllib itself raises only where everything is read at once
            raise ConnectionError(f"the connection ended {response.length} bytes early")


@contextmanager
def _open_nameless(location: str) -> Iterator[BinaryIO]:
    path = str(local_path(location))
    # The second handle has no name: soundfile would take a file named `.raw` for samples without a header.
    with open(path, "rb") as file, open(file.fileno(), "rb", closefd=False) as nameless:
        yield nameless


def download(location: str, path: str) -> None:
    """
    Copies a file of remote storage to a local file.

    Args:
        location (`str`): The URL.
        path (`str`): The path of the copy.

    Raises:
        ValueError: If the file cannot be read, or the package that reads such URLs is missing.
    """
    with _explained(location):
        storage, own = _open_storage(location)
        storage.get_file(own, path)
        if os.path.isdir(path):  # of folders, some drivers create copies
            raise FileExistsError


def list_folder(location: str, recursive: bool = True) -> list[RemoteFile] | None:
    """
    Returns the files in a folder of remote storage that are not hidden, sorted by their paths.

    Args:
        location (`str`): The URL of the folder.
        recursive (`bool`, *optional*, defaults to `True`): Whether to list those of subfolders.

    Returns:
        `list[RemoteFile]` or `None`: `None` if it is not a folder.

    Raises:
        ValueError: If it cannot be read, or the package that reads such URLs is missing.
    """
    with _explained(location):
        storage, own = _open_storage(location, is_listed=True)
        try:
            info = storage.info(own)
        except FileNotFoundError:
            return None
        if info["type"] != "directory":
            return None
        folder = info["name"].strip("/")
        found = []
        for path in sorted(storage.find(own, maxdepth=None if recursive else 1)):
            place = posixpath.relpath(path.strip("/"), folder or ".")
            if not place.startswith(".") and "/." not in place:
                found.append(RemoteFile(_url_of(storage, path, location), place))
        return found


def list_matches(pattern: str) -> list[RemoteFile]:
    """Returns the files of remote storage that match a glob, sorted by their paths; see [`list_folder`]."""
    with _explained(pattern):
        storage, own = _open_storage(pattern, is_listed=True)
        found = storage.glob(own, detail=True)
        paths = sorted(path for path, info in found.items() if info["type"] == "file")
        return [RemoteFile(_url_of(storage, path, pattern), posixpath.basename(path)) for path in paths]


def exists(location: str) -> bool:
    """Whether a file or folder of remote storage exists; see [`list_folder`]."""
    with _explained(location):
        storage, own = _open_storage(location)
        return bool(storage.exists(own))


def _open_storage(location: str, is_listed: bool = False) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    storage, own = url_to_fs(location)
    if is_listed:
        # File systems are shared by all calls in this process, and keep their listings.
        storage.invalidate_cache()
    return storage, own


def _url_of(storage: Any, path: str, location: str) -> str:
    """Returns the URL of a path that was found at `location`, which may be a chain: `zip://FOLDER::s3://...`."""
    return str(storage.unstrip_protocol(path)) + _split(location)[2]


@contextmanager
def _explained(location: str) -> Iterator[None]:
    """Raises errors of drivers, which may have any class, as a `ValueError` with a remedy."""
    try:
        yield
    except ImportError as error:
        # fsspec raises an error of its own from that of a missing driver.
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        package = (missing.name or "fsspec").partition(".")[0]
        remedy = "'mmemo[archives]'" if package == "fsspec" else package
        raise ValueError(
            f"Cannot read {short(location)}, because the package {package} is missing; pip install {remedy}."
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"Cannot read {short(location)} (no such file); check the URL.") from error
    except FileExistsError as error:
        raise ValueError(f"Cannot read {short(location)}, which is a folder; pass the URL of a file.") from error
    except Exception as error:
        raise ValueError(
            f"Cannot read {short(location)} ({reason_of(error)}); check the URL, your credentials for it, and the "
            "connection."
        ) from error


def reason_of(error: Exception) -> str:
    """Returns the message of an error on one line, shortened; the name of its class if it has none."""
    return short(" ".join(str(error).split()) or type(error).__name__)


def short(text: object) -> str:
    return str(text)[:200]
