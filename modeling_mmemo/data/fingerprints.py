"""Fingerprints of data, which invalidate a cache when the data change."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def audio_fingerprint(audio: Mapping[str, Any] | None) -> str:
    """
    Returns a string that changes when a stored clip changes.

    Args:
        audio (`Mapping`, *optional*):
            A cell of the column `audio`, `{"bytes", "path"}`. Bytes are hashed. A file is identified by its path,
            size and time of modification, without reading it; a URL by its name.
    """
    if audio is None:
        return "missing"
    if audio["bytes"] is not None:
        return hashlib.sha256(audio["bytes"]).hexdigest()
    return file_fingerprint(audio["path"])


def file_fingerprint(path: str | Path) -> str:
    """Returns the path of a file with its size and time of modification; the path alone if it is not a local file."""
    if not Path(path).is_file():
        return str(path)
    status = Path(path).stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"


def rows_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a hash of rows with a column `audio`: of all other columns by value, of `audio` by its fingerprint."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(sorted((dict(row) | {"audio": audio_fingerprint(row["audio"])}).items())).encode())
    return digest.hexdigest()
