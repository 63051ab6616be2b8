"""Fingerprints of data, which invalidate a cache when the data change."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modeling_mmemo.data.schema import FILE_COLUMNS


def audio_fingerprint(audio: Mapping[str, Any] | None) -> str:
    """
    Returns a string that changes when a stored clip changes.

    Args:
        audio (`Mapping`, *optional*):
            A cell of the column `audio` or `video`, `{"bytes", "path"}`. Bytes are hashed. A file is identified by its
            path, size and time of modification, without reading it; a URL by its name.
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
    """Returns a hash of rows with the columns of `FEATURES`: of files by their fingerprints, of others by value."""
    digest = hashlib.sha256()
    for row in rows:
        files = {name: audio_fingerprint(row[name]) for name in FILE_COLUMNS}
        digest.update(repr(sorted((dict(row) | files).items())).encode())
    return digest.hexdigest()
