"""
Reads the items of an archive: from folders, globs and URLs, tables, datasets of the Hub, and remote storage.

Deliberate choices:
- Rows of tables and datasets are read as they are needed; only the names of files in folders are held in memory.
- Ids are checked before the first item is returned. The check holds 8 bytes an id, and reads the ids a second time
  only to name repeated ones.
- A row without a recording and a text is an item too, so that it gets a row in the output that says so.
- Local paths are absolute: workers may run in other folders.
"""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mmemo.archives.folders import SUBTITLE_SUFFIXES, Input, check_companions, find_companion, find_files, named
from mmemo.archives.tasks import ArchiveItem
from mmemo.audio.loading import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from mmemo.storage import absolute, is_url, local_path, name_of, valid_text


if TYPE_CHECKING:
    import pyarrow

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
MAX_REPEATED = 5
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


class ArchivePart(Protocol):
    """
    One source of an archive.

    Attributes:
        name (`str`): Its name, for messages.
        columns (`dict[str, pyarrow.DataType]`): The columns that its items carry.
        left_out (`tuple[str, ...]`): The columns that its items do not carry.
        count (`int`, *optional*): Number of items; `None` if unknown.
    """

    name: str
    columns: "dict[str, pyarrow.DataType]"
    left_out: tuple[str, ...]
    count: int | None

    def ids(self) -> Iterator[str]:
        """Yields the id of each item; nothing if ids are unique by construction, or too expensive to read."""

    def place(self, number: int) -> str:
        """Returns where an item is found, for messages."""

    def items(self, srt: Path | None = None) -> Iterator[ArchiveItem]:
        """Yields the items, with their subtitles in `srt`."""


class ArchiveSource:
    """
    The items of an archive; see [`read_archive`]. Each iteration reads them again.

    Attributes:
        columns (`dict[str, pyarrow.DataType]`): The columns that items carry, with their types.
        count (`int`, *optional*): Number of items; `None` if unknown.
        problems (`list[str]`): Parts of the archive that cannot be read, such as subfolders; their items are missing.
        warnings (`list[str]`): Recordings without subtitles, and columns that are not carried.
    """

    def __init__(self, parts: Sequence[ArchivePart], srt: Path | None, problems: list[str], warnings: list[str]):
        self._parts, self._srt = parts, srt
        self.problems, self.warnings = problems, warnings
        self.columns = _merged_columns(parts)
        counts = [part.count for part in parts if part.count is not None]
        self.count: int | None = sum(counts) if len(counts) == len(parts) else None

    def __iter__(self) -> Iterator[ArchiveItem]:
        for part in self._parts:
            yield from part.items(self._srt)


def read_archive(
    sources: Sequence[str],
    *,
    recursive: bool = True,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    video: bool = False,
    srt: Path | None = None,
) -> ArchiveSource:
    """
    Opens the sources of an archive.

    Args:
        sources (`Sequence[str]`):
            Each the first that applies: a folder; a table, or a glob of tables (.csv, .tsv, .jsonl, .parquet); a file
            or glob; a dataset of the Hub, as `owner/name` or `owner/name:config`. Folders, tables, files and globs may
            be URLs of remote storage, such as s3://; tables and files also http(s) URLs.
        recursive (`bool`, *optional*, defaults to `True`): Whether to search the subfolders of folders.
        columns (`Mapping[str, str]`, *optional*):
            The column of tables and datasets for each of `id`, `path`, `text`, `word_times` (path of subtitles) and
            `channel`, if the names differ: `{"path": "recording"}`. Without `path`, `audio`, `file_name` or `file` is
            that column; with `video`, `video` before these. Paths are relative to the table. Other columns are
            carried, those with the name of a column of the output with the prefix `input_`.
        split (`str`, *optional*): The split of datasets of the Hub; all splits by default.
        video (`bool`, *optional*, defaults to `False`):
            Whether faces are predicted: of folders, only video files are items.
        srt (`Path`, *optional*):
            Subtitles of files and of rows without subtitles: a folder of them, or the file of a single item; see
            [`find_companion`].

    Returns:
        [`ArchiveSource`]: Its items, in the order of folders and files, tables, datasets. The id of a file is its
        path, that of a row its `id`, else its path as written, else its table and number, from 0, and that of a row of
        a dataset `owner/name/split/number`.

    Raises:
        ImportError: If a package is missing that a source needs.
        ValueError: If a source cannot be read, ids are repeated, or an option does not fit the sources.

    Example:

    ```python
    >>> archive = read_archive(["calls.csv"], columns={"path": "recording", "id": "call_id"})
    >>> next(iter(archive)).path
    '/archive/may/0001.wav'
    ```
    """
    files, tables, datasets = _sort_sources(sources)
    if columns and not tables and not datasets:
        raise ValueError(f"columns={dict(columns)} applies to tables and datasets, and there is none; leave it out.")
    if split is not None and not datasets:
        raise ValueError(f"split={split!r} applies to datasets of the Hub, and there is none; leave it out.")
    if srt is not None and datasets:
        raise ValueError(
            f"--srt {srt} does not apply to the dataset {datasets[0]}; map its column with --columns word_times=NAME."
        )
    inputs, problems = find_files(files, recursive, VIDEO_SUFFIXES if video else AUDIO_SUFFIXES | VIDEO_SUFFIXES)
    parts: list[ArchivePart] = [FileSource(inputs)] if inputs else []
    parts += _row_sources(tables, datasets, split, columns or {}, video)
    missing = check_companions("--srt", srt, inputs, SUBTITLE_SUFFIXES)
    source = ArchiveSource(parts, srt, problems, _warnings(parts, missing, len(inputs), srt))
    if srt is not None and srt.is_file() and source.count != 1:
        raise ValueError(f"--srt {srt} belongs to one recording, got {source.count}; pass a folder of files.")
    _check_ids(parts)
    return source


class FileSource:
    """Files of folders, globs and URLs; see [`ArchivePart`]."""

    name = "the files"
    left_out: tuple[str, ...] = ()

    def __init__(self, inputs: Sequence[Input]):
        self._inputs = inputs
        self.columns: dict[str, pyarrow.DataType] = {}
        self.count: int | None = len(inputs)

    def ids(self) -> Iterator[str]:
        return (valid_text(str(one.name)) for one in self._inputs)

    def place(self, number: int) -> str:
        return ascii(str(self._inputs[number].name))

    def items(self, srt: Path | None = None) -> Iterator[ArchiveItem]:
        for one, id in zip(self._inputs, self.ids()):
            found = find_companion(srt, one, SUBTITLE_SUFFIXES)
            word_times = None if found is None else absolute(str(found))
            yield ArchiveItem(id, path=absolute(str(one.audio)), word_times=word_times)


def _sort_sources(sources: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Returns the patterns of files, the locations of tables, and the names of datasets of the Hub."""
    if not sources:
        raise ValueError("An archive needs a source: a folder, glob, table, URL or dataset of the Hub.")
    files, tables, datasets = [], [], []
    for source in dict.fromkeys(sources):
        path = local_path(source)
        suffix = os.path.splitext(name_of(source))[1].lower()
        if path is not None and os.path.isdir(path):
            files.append(source)
        elif suffix in TABLE_SUFFIXES:
            tables += [str(one.audio) for one in find_files([source])[0]]
        elif _is_dataset(source, suffix):
            datasets.append(source)
        else:
            files.append(source)
    return files, list(dict.fromkeys(tables)), datasets


def _is_dataset(source: str, suffix: str) -> bool:
    is_file = is_url(source) or os.path.exists(source) or suffix in AUDIO_SUFFIXES | VIDEO_SUFFIXES
    return not is_file and not glob.has_magic(source) and _HUB_NAME.fullmatch(source) is not None


def _row_sources(
    tables: list[str], datasets: list[str], split: str | None, columns: Mapping[str, str], video: bool
) -> list[ArchivePart]:
    """Opens tables and datasets of the Hub."""
    if not tables and not datasets:
        return []
    try:
        from mmemo.archives.column_mapping import check_columns
        from mmemo.archives.row_sources import HubSource, TableSource
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Tables and datasets need the package {error.name}: pip install 'mmemo[archives]'."
        ) from error
    check_columns(columns)
    return [
        *(TableSource(table, columns, video) for table in tables),
        *(HubSource(dataset, split, columns, video) for dataset in datasets),
    ]


def _merged_columns(parts: Sequence[ArchivePart]) -> "dict[str, pyarrow.DataType]":
    """Returns the columns of all parts, with types that fit all of them."""
    if not any(part.columns for part in parts):
        return {}
    from mmemo.archives.tables import merge_types

    return merge_types((part.name, part.columns) for part in parts)


def _warnings(parts: Sequence[ArchivePart], missing: list[str], count: int, srt: Path | None) -> list[str]:
    warnings = []
    if missing:
        warnings.append(
            f"{len(missing)} of {count} recordings have no subtitles in {srt} and are predicted without words: "
            f"{named(missing)}."
        )
    for part in parts:
        if part.left_out:
            warnings.append(f"{part.name}: {named(part.left_out)} contain files or bytes and are not carried.")
    return warnings


def _check_ids(parts: Sequence[ArchivePart]) -> None:
    """Raises a `ValueError` if an id is repeated."""
    hashes = np.fromiter((hash(id) for part in parts for id in part.ids()), np.int64)
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated:
        return
    places: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        for number, id in enumerate(part.ids()):
            if hash(id) in repeated:
                places[id].append(part.place(number))
    found = {id: where for id, where in places.items() if len(where) > 1}
    if found:
        shown = "; ".join(f"{id!r}, {named(where)}" for id, where in list(found.items())[:MAX_REPEATED])
        raise ValueError(
            f"{len(found)} id(s) occur more than once (rows are numbered from 0): {shown}. Remove the repeated items, "
            "or name a column of unique values with --columns id=NAME."
        )
