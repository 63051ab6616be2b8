"""
Rows of tables and of datasets of the Hub as items of an archive.

Deliberate choices:
- A remote table is copied once, so that it is the same in every pass.
- A dataset of the Hub is streamed: neither its rows nor its recordings are stored. Ids are made of the numbers of its
  rows, which are unique and, other than a check of a column of ids, cost no pass over the dataset.
- Labels of a dataset are carried by their names, not by their numbers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmemo.archives.column_mapping import map_columns
from mmemo.archives.folders import SUBTITLE_SUFFIXES, Input, find_companion
from mmemo.archives.tables import json_type, merge_types, open_table
from mmemo.archives.tasks import ArchiveItem
from mmemo.audio.files import keep_seekable
from mmemo.storage import absolute, is_url, join, local_path, name_of, reason_of, valid_text


# Rows of a dataset without declared types, of which types are inferred.
TYPED_ROWS = 1000


class TableSource:
    """
    The rows of a table; see [`ArchivePart`].

    Args:
        location (`str`): Path or URL of the table.
        columns (`Mapping[str, str]`), video (`bool`): See [`map_columns`].
    """

    def __init__(self, location: str, columns: Mapping[str, str], video: bool):
        self._location = absolute(location)
        self.name = valid_text(location)
        path = keep_seekable(location, self)
        self._table = open_table(local_path(path) or path, self.name)
        self._mapping = map_columns(self._table.types, self.name, columns, video)
        if wrong := [name for name in self._mapping.carried if name in self._table.not_utf8]:
            raise ValueError(f"{self.name}: the column {wrong[0]!r} is not UTF-8; save the table as UTF-8.")
        self.columns, self.left_out = self._mapping.types, self._mapping.left_out
        self.count: int | None = self._table.count

    def ids(self) -> Iterator[str]:
        for number, values in enumerate(self._rows(self._mapping.needed)):
            self._mapping.channel_of(values, self.place(number))
            yield self._mapping.id_of(values, self._default_id(number))

    def place(self, number: int) -> str:
        return f"row {number} of {self.name}"

    def items(self, srt: Path | None = None) -> Iterator[ArchiveItem]:
        for number, values in enumerate(self._rows(self._mapping.all)):
            id = self._mapping.id_of(values, self._default_id(number))
            item = self._mapping.item(values, id, self.place(number), self._locate)
            if srt is not None and item.word_times is None:
                written, _ = self._mapping.recording(values)
                item = _with_subtitles(item, written, srt)
            yield item

    def _rows(self, columns: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
        if not columns:
            return iter([{}] * self._table.count)
        return self._table.rows(columns, self._mapping.strings & set(columns))

    def _default_id(self, number: int) -> str:
        return f"{self.name}/{number}"

    def _locate(self, path: str) -> str:
        return join(self._location, path)


def _with_subtitles(item: ArchiveItem, written: str | None, srt: Path) -> ArchiveItem:
    """Returns an item with its subtitles in a folder, where they have the name of its recording."""
    if written is None:
        return item
    path = Path(name_of(written)) if is_url(written) or Path(written).is_absolute() else Path(written)
    found = find_companion(srt, Input(item.id, written, path), SUBTITLE_SUFFIXES)
    return item if found is None else replace(item, word_times=absolute(str(found)))


class HubSource:
    """
    The rows of a dataset of the Hub; see [`ArchivePart`].

    Args:
        source (`str`): `owner/name` or `owner/name:config`.
        split (`str`, *optional*): The split; all splits by default.
        columns (`Mapping[str, str]`), video (`bool`): See [`map_columns`].

    Raises:
        ImportError: If `datasets` is missing.
        ValueError: If there is no such dataset or split, or it has no such columns.
    """

    def __init__(self, source: str, split: str | None, columns: Mapping[str, str], video: bool):
        self.name = source
        self._splits = [
            _HubSplit(source, name, rows, columns, video) for name, rows in _load_splits(source, split).items()
        ]
        self.columns = merge_types((part.name, part.mapping.types) for part in self._splits)
        self.left_out = self._splits[0].mapping.left_out
        counts = [part.count for part in self._splits if part.count is not None]
        self.count: int | None = sum(counts) if len(counts) == len(self._splits) else None

    def ids(self) -> Iterator[str]:
        return iter(())

    def place(self, number: int) -> str:
        return f"row {number} of {self.name}"

    def items(self, srt: Path | None = None) -> Iterator[ArchiveItem]:
        seen: set[int] = set()
        for part in self._splits:
            for item in part.items():
                if part.mapping.id is not None:
                    # Found only here: to read all ids first, the dataset would be transferred twice.
                    if hash(item.id) in seen:
                        raise ValueError(
                            f"{self.name} has the id {item.id!r} more than once; leave id out of --columns, and rows "
                            "are identified by their numbers."
                        )
                    seen.add(hash(item.id))
                yield item


class _HubSplit:
    """A split of a dataset of the Hub."""

    def __init__(self, source: str, split: str, rows: Any, columns: Mapping[str, str], video: bool):
        self.name = f"{source}/{split}"
        self._base = f"hf://datasets/{source.partition(':')[0]}/"
        features = rows.features or {}
        with _explained(self.name):
            kinds = _named_features(features).arrow_schema if features else _inferred_types(rows)
        self.mapping = map_columns(dict(zip(kinds.names, kinds.types)), self.name, columns, video, has_ids=False)
        self._labels = {name: features[name] for name in self.mapping.carried.keys() & features.keys()}
        for name in self.mapping.paths:
            if name in self.mapping.media and name in features and not isinstance(features[name], dict):
                rows = rows.cast_column(name, type(features[name])(decode=False))
        self._rows = rows.select_columns(list(self.mapping.all))
        splits = rows.info.splits or {}
        self.count: int | None = splits[split].num_examples if split in splits else None

    def items(self) -> Iterator[ArchiveItem]:
        for number, row in enumerate(self._stream()):
            # Keys may be missing from rows of JSON.
            values = {name: row.get(name) for name in self.mapping.all}
            values |= {name: _with_names(values[name], feature) for name, feature in self._labels.items()}
            place = f"{self.name}/{number}"
            id = self.mapping.id_of(values, place, is_named=False)
            yield self.mapping.item(values, id, place, self._locate)

    def _stream(self) -> Iterator[dict[str, Any]]:
        with _explained(self.name):
            yield from self._rows

    def _locate(self, path: str) -> str:
        return join(self._base, path)


def _load_splits(source: str, split: str | None) -> dict[str, Any]:
    """Returns the splits of a dataset of the Hub, as streams."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"{source} is neither a file nor a folder; as a dataset of the Hub, it needs the package datasets: pip "
            "install datasets."
        ) from error
    repository, _, config = source.partition(":")
    with _explained(source):
        loaded = load_dataset(repository, config or None, split=split, streaming=True)
    return dict(loaded) if split is None else {split: loaded}


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raises errors of `datasets` and of the libraries below it, which may have any class, as a `ValueError`."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{name} is neither an existing file or folder nor a readable dataset of the Hub ({reason_of(error)}); "
            "check the name, the configuration and the split, your token for it, and the connection."
        ) from error


def _inferred_types(rows: Any) -> pa.Schema:
    """Returns the types of the first rows of a dataset that declares none, such as one of CSV files."""
    first = list(rows.take(TYPED_ROWS))
    names = dict.fromkeys(name for row in first for name in row)
    return pa.schema({name: json_type([row.get(name) for row in first]) for name in names})


def _named_features(features: Any) -> Any:
    """Returns the features of a dataset with labels as strings."""
    from datasets import ClassLabel, Features, List, Value

    def named(feature: Any) -> Any:
        if isinstance(feature, ClassLabel):
            return Value("string")
        if isinstance(feature, List):
            return List(named(feature.feature))
        return {name: named(part) for name, part in feature.items()} if isinstance(feature, dict) else feature

    return Features({name: named(feature) for name, feature in features.items()})


def _with_names(value: Any, feature: Any) -> Any:
    """Returns a value of a dataset with the names of its labels; -1 is a missing label."""
    from datasets import ClassLabel, List

    if value is None:
        return None
    if isinstance(feature, ClassLabel):
        return feature.int2str(value) if value >= 0 else None
    if isinstance(feature, List):
        return [_with_names(part, feature.feature) for part in value]
    if isinstance(feature, dict):
        return {name: _with_names(value[name], part) for name, part in feature.items()}
    return value
