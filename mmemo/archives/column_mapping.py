"""
Columns of a table or dataset, and the parts of an archive's items that they contain.

Deliberate choices:
- Nothing but the id and the path is taken out of a row: texts, channels and subtitles are carried into the output too.
- Columns that the output itself has, such as `label`, are carried as `input_label`: no table must be rewritten.
- Columns of files and bytes that are not predicted, such as the images of a dataset, are the only ones left out.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mmemo.archives.archive_rows import archive_schema
from mmemo.archives.tables import is_media
from mmemo.archives.tasks import ArchiveItem
from mmemo.storage import valid_text


# Parts of an item that `columns` maps to columns of a table.
OUR_COLUMNS = ("id", "path", "text", "word_times", "channel")
# Names of columns that need no mapping, in order of preference, as in training.
AUDIO_COLUMNS = ("audio", "audio_file_name", "file_name", "path", "file")
VIDEO_COLUMNS = ("video", "video_file_name")
WORD_TIMES_COLUMNS = ("word_times", "srt")
# Columns of the output that those of a table cannot replace.
OUTPUT_COLUMNS = tuple(archive_schema((), (), {}).names)
INPUT_PREFIX = "input_"


@dataclass(frozen=True)
class ColumnMapping:
    """
    The columns of a table that contain the parts of its items.

    Args:
        id, text, word_times, channel (`str`, *optional*): The table's column; `None` if it has none.
        paths (`tuple[str, ...]`): Columns of recordings, of which the first one in a row that is not empty is used.
        carried (`dict[str, str]`): The name in the output of each column that the items carry.
        types (`dict[str, pyarrow.DataType]`): The types of carried columns, by their names in the output.
        media (`tuple[str, ...]`): Columns of files; see [`is_media`].
        raw (`tuple[str, ...]`): Columns of bytes, which no text format can contain.
    """

    id: str | None
    paths: tuple[str, ...]
    text: str | None
    word_times: str | None
    channel: str | None
    carried: dict[str, str]
    types: dict[str, pa.DataType]
    media: tuple[str, ...]
    raw: tuple[str, ...]

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that ids and channels are made of."""
        return tuple(name for name in dict.fromkeys((self.id, *self.paths, self.channel)) if name is not None)

    @property
    def all(self) -> tuple[str, ...]:
        """All columns that items are made of."""
        return tuple(dict.fromkeys((*self.needed, *self.carried)))

    @property
    def strings(self) -> set[str]:
        """The columns whose values are strings, whatever they look like; not those of files."""
        columns = (self.id, *self.paths, self.text, self.word_times)
        return {name for name in columns if name is not None and name not in self.media}

    @property
    def left_out(self) -> tuple[str, ...]:
        """The columns of files and bytes that are neither predicted nor carried."""
        used = {self.id, *self.paths, self.text, self.word_times}
        return tuple(name for name in (*self.media, *self.raw) if name not in used)

    def id_of(self, values: Mapping[str, Any], default: str, is_named: bool = True) -> str:
        """
        Returns the id of a row: its own, else its path as written, else the default.

        Args:
            values (`Mapping[str, Any]`): The values of the row by column.
            default (`str`): The id of a row that has none.
            is_named (`bool`, *optional*, defaults to `True`): Whether a path is an id.
        """
        own = None if self.id is None else _given(values[self.id])
        path, _ = self.recording(values)
        return valid_text(own or (path if is_named else None) or default)

    def recording(self, values: Mapping[str, Any]) -> tuple[str | None, bytes | None]:
        """Returns the path of a row's recording as written, and its content; `None` if missing."""
        for name in self.paths:
            value = values[name]
            if isinstance(value, Mapping):
                path, content = _given(value["path"]), value["bytes"] or None
            else:
                path, content = _given(value), None
            if path is not None or content is not None:
                return path, content
        return None, None

    def channel_of(self, values: Mapping[str, Any], place: str) -> int | None:
        """
        Returns the channel of a row.

        Raises:
            ValueError: If it is no whole number.
        """
        value = None if self.channel is None else values[self.channel]
        if value is None or math.isnan(value):
            return None
        if math.isinf(value) or value != int(value):
            raise ValueError(f"{place} has the channel {value!r}; expected a whole number from 0, or nothing.")
        return int(value)

    def item(self, values: Mapping[str, Any], id: str, place: str, locate: Callable[[str], str]) -> ArchiveItem:
        """
        Returns the item of a row.

        Args:
            values (`Mapping[str, Any]`): The values of the row by column.
            id (`str`): Its id.
            place (`str`): Where it is, for messages.
            locate (`Callable[[str], str]`): Returns the location of a path as written in the table.
        """
        path, content = self.recording(values)
        word_times = None if self.word_times is None else _given(values[self.word_times])
        return ArchiveItem(
            id=id,
            # Of a recording that the row contains, the path is but its name.
            path=None if path is None or content is not None else locate(path),
            content=content,
            text=None if self.text is None else _given(values[self.text]),
            word_times=None if word_times is None else locate(word_times),
            channel=self.channel_of(values, place),
            columns={name: values[theirs] for theirs, name in self.carried.items()},
        )


def map_columns(
    kinds: Mapping[str, pa.DataType], table: str, columns: Mapping[str, str], video: bool = False, has_ids: bool = True
) -> ColumnMapping:
    """
    Finds the columns of a table that contain the parts of its items.

    Args:
        kinds (`Mapping[str, pyarrow.DataType]`): The types of the table's columns.
        table (`str`): The name of the table, for messages.
        columns (`Mapping[str, str]`): The table's column for each of ours, if the names differ; see [`read_archive`].
        video (`bool`, *optional*, defaults to `False`): Whether columns of videos come before those of audio.
        has_ids (`bool`, *optional*, defaults to `True`): Whether a column `id` that is not mapped is that of ids.

    Raises:
        ValueError: If a mapped column does not exist, a column has the wrong type, or none has paths or texts.
    """
    if missing := sorted(set(columns.values()) - kinds.keys()):
        raise ValueError(f"{table} has no column {missing[0]!r}; it has {sorted(kinds)}. Correct --columns.")
    media = tuple(name for name, kind in kinds.items() if is_media(kind))
    raw = tuple(name for name, kind in kinds.items() if _is_raw(kind))
    paths = (columns["path"],) if "path" in columns else _path_columns(kinds, media, video)
    found = {
        "id": columns.get("id") or ("id" if has_ids and "id" in kinds else None),
        "text": columns.get("text") or _first(("text",), kinds),
        "word_times": columns.get("word_times") or _first(WORD_TIMES_COLUMNS, kinds),
        "channel": columns.get("channel") or _first(("channel",), kinds),
    }
    if not paths and found["text"] is None:
        raise ValueError(
            f"{table} has no column of recordings or texts; it has {sorted(kinds)}. Name one of them with --columns, "
            "as in path=recording or text=transcript."
        )
    strings = [name for name in (found["id"], found["text"], found["word_times"]) if name is not None]
    for name in (*strings, *(name for name in paths if name not in media)):
        if pa.types.is_nested(kinds[name]):
            raise ValueError(f"{table}: the column {name!r} is {kinds[name]}, not text; map another one.")
    channel = found["channel"]
    if channel is not None and not _is_number(kinds[channel]):
        raise ValueError(f"{table}: the column {channel!r} is {kinds[channel]}, but channels are whole numbers.")
    carried = _output_names(name for name in kinds if name not in {found["id"], *paths, *media, *raw})
    types = {ours: kinds[theirs] for theirs, ours in carried.items()}
    return ColumnMapping(paths=paths, carried=carried, types=types, media=media, raw=raw, **found)


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises a `ValueError` if `columns` maps anything but the parts of an item."""
    if unknown := sorted(set(columns) - set(OUR_COLUMNS)):
        raise ValueError(f"columns maps {unknown}, but the columns of an archive are {list(OUR_COLUMNS)}.")


def _path_columns(kinds: Collection[str], media: tuple[str, ...], video: bool) -> tuple[str, ...]:
    audio, film = _first(AUDIO_COLUMNS, kinds), _first(VIDEO_COLUMNS, kinds)
    found = tuple(name for name in ((film, audio) if video else (audio, film)) if name is not None)
    return found or (media if len(media) == 1 else ())


def _output_names(names: Any) -> dict[str, str]:
    """Returns the name in the output of each column; for DuckDB, "" is no name, and case does not tell names apart."""
    taken = {*OUTPUT_COLUMNS, ""}
    found = {}
    for name in names:
        own = name
        while own.lower() in taken:
            own = INPUT_PREFIX + own
        taken.add(own.lower())
        found[name] = own
    return found


def _is_raw(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)


def _first(names: tuple[str, ...], present: Collection[str]) -> str | None:
    return next((name for name in names if name in present), None)


def _given(value: Any) -> str | None:
    """Returns a value as text, or `None` if it is missing or blank."""
    text = "" if value is None else str(value)
    return text if text.strip() else None
