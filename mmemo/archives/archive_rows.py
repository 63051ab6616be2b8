"""
Rows of an archive's output: one schema whatever the options, and its encodings in Parquet, JSON lines and CSV.

Deliberate choices:
- The schema depends on the model and the user's own columns only. What a job does not predict is null.
- Names of files need not be valid Unicode: bytes that are not become escapes such as `\\udce9` in all formats.
- In CSV, nested columns are JSON texts, and an empty field is null. JSON has no NaN and no infinity: they become null,
  as NaN does in all of the user's columns, where pandas means a missing value by it.
"""

import csv
import io
import json
import math
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import quote

from mmemo.archives.tasks import Outcome
from mmemo.storage import valid_text


try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ImportError("The output of archives needs pyarrow: pip install 'mmemo[archives]'.") from error


# The user's own columns follow.
LAST_COLUMN = "attempts"
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
MAX_NAME_BYTES = 255
BATCH_BYTES = 2**20
SPAN_FIELDS = ("start", "end", "label", "score")
COLUMN_TYPES = "text, integers, floats, decimals, booleans, dates and timestamps"
PARAMETRIC_TYPES = {
    r"timestamp\[(s|ms|us|ns), tz=(.+)\]": lambda found: pa.timestamp(found[1], tz=found[2]),
    r"decimal128\((\d+), (-?\d+)\)": lambda found: pa.decimal128(int(found[1]), int(found[2])),
    # Categories of pandas: their values.
    r"dictionary<values=(.+), indices=.*>": lambda found: column_type(found[1]),
}


def column_type(name: str) -> pa.DataType:
    """
    Returns the Arrow type with a name, as `str` gives it.

    Raises:
        ValueError: If there is none, or columns of an archive cannot have it.
    """
    for pattern, make in PARAMETRIC_TYPES.items():
        if found := re.fullmatch(pattern, name):
            return make(found)
    try:
        kind = pa.type_for_alias(name)
    except ValueError:
        kind = pa.binary()
    tests = (_is_text, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_date)
    if not any(test(kind) for test in (*tests, pa.types.is_timestamp)):
        raise ValueError(f"The type {name!r} is not one of {COLUMN_TYPES}; convert the column, or leave it out.")
    return kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def archive_schema(labels: Sequence[str], modalities: Sequence[str], columns: Mapping[str, str]) -> pa.Schema:
    """
    Returns the schema of an archive's output.

    Args:
        labels, modalities (`Sequence[str]`): See [`AnswerFormatter`].
        columns (`Mapping[str, str]`): The user's own columns and the names of their Arrow types.

    Raises:
        ValueError: If a column has the name of another one, in upper or lower case, or an invalid type.
    """
    number, text, texts = pa.float64(), pa.string(), pa.list_(pa.string())
    scores = pa.struct([(label, number) for label in labels])
    stretch = [("start", number), ("end", number)]
    span = [*stretch, ("label", text), ("score", number)]
    blendshapes = pa.list_(pa.struct([("name", text), ("score", number)]))
    face = [("face_presence", number), ("blendshapes", blendshapes)]
    fields = [
        ("id", text),
        ("path", text),
        ("label", text),
        ("score", number),
        ("scores", scores),
        ("label_set", texts),
        ("modality_weights", pa.struct([(modality, number) for modality in modalities])),
        ("duration", number),
        ("timeline", pa.list_(pa.struct([*span, ("scores", scores), ("words", texts), *face]))),
        ("spans", pa.list_(pa.struct(span))),
        ("speech", pa.list_(pa.struct(stretch))),
        ("warnings", texts),
        ("error", text),
        (LAST_COLUMN, pa.int32()),
    ]
    # Names differ in more than case, because those of SQL do.
    taken = {name for name, _ in fields}
    for name, kind in columns.items():
        if name.lower() in taken:
            raise ValueError(f"The column {name!r} has the name of another column of the output; rename it.")
        taken.add(name.lower())
        try:
            fields.append((name, column_type(kind)))
        except ValueError as error:
            raise ValueError(f"The column {name!r} cannot be in the output: {error}") from error
    return pa.schema(fields)


def own_columns(schema: pa.Schema) -> list[pa.Field]:
    """Returns the user's own columns of a schema."""
    return list(schema)[schema.get_field_index(LAST_COLUMN) + 1 :]


def row_of(outcome: Outcome, schema: pa.Schema) -> dict[str, Any]:
    """
    Returns the row of an outcome.

    Args:
        outcome ([`Outcome`]): The outcome of a whole item.
        schema (`pyarrow.Schema`): See [`archive_schema`].

    Raises:
        ValueError: If a value of the user's own columns does not fit the type of the column.
    """
    item, result = outcome.task.item, outcome.result
    row: dict[str, Any] = dict.fromkeys(schema.names)
    row["id"] = valid_text(item.id)
    row["path"] = None if item.path is None else valid_text(item.path)
    row["attempts"] = outcome.task.attempts
    row["error"] = None if outcome.error is None else valid_text(outcome.error)
    row["warnings"] = list(map(valid_text, outcome.warnings)) or None
    for field in own_columns(schema):
        row[field.name] = _own_value(item.columns.get(field.name), field, row["id"])
    if result is None:
        return row
    labels = [field.name for field in schema.field("scores").type]
    modalities = [field.name for field in schema.field("modality_weights").type]
    weights = result.get("modality_weights")
    return row | {
        **_scored(result, labels),
        "label_set": result.get("label_set"),
        "modality_weights": None if weights is None else {name: weights.get(name) for name in modalities},
        "duration": result.get("duration"),
        "timeline": _listed(result.get("timeline"), lambda entry: _entry(entry, labels)),
        "spans": _listed(result.get("spans"), lambda span: {name: span[name] for name in SPAN_FIELDS}),
        "speech": _listed(result.get("speech"), lambda stretch: dict(zip(("start", "end"), stretch))),
    }


def _scored(entry: Mapping[str, Any], labels: list[str]) -> dict[str, Any]:
    """Returns `label`, `score` and `scores`; silence has no scores."""
    scores = {found["label"]: found["score"] for found in entry["scores"]}
    return {
        "label": entry["label"],
        "score": max(scores.values(), default=None),
        "scores": {label: scores.get(label) for label in labels} if scores else None,
    }


def _entry(entry: Mapping[str, Any], labels: list[str]) -> dict[str, Any]:
    """Returns an entry of a timeline."""
    face = entry.get("face") or {"presence": None, "blendshapes": None}
    return {
        "start": entry["start"],
        "end": entry["end"],
        **_scored(entry, labels),
        "words": list(map(valid_text, entry["words"])),
        "face_presence": face["presence"],
        "blendshapes": face["blendshapes"],
    }


def _listed(values: Iterable[Any] | None, convert: Any) -> list[Any] | None:
    return None if values is None else [convert(value) for value in values]


def _own_value(value: Any, field: pa.Field, name: str) -> Any:
    """Returns a value of a user's column as Python object of the column's type."""
    if isinstance(value, float) and math.isnan(value):
        return None
    value = valid_text(value) if isinstance(value, str) else value
    try:
        converted = pa.scalar(value, field.type).as_py()
        # Arrow cuts 1.5 to the integer 1, and a time to its date.
        fits = converted is None or pa.types.is_floating(field.type) or converted == value
    except (ValueError, TypeError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: the column {field.name!r} has the type {field.type}, got {str(value)[:80]!r} "
            f"({type(value).__name__}); correct the value, or pass the column as text."
        )
    return converted


def check_partitions(partition_by: Sequence[str], schema: pa.Schema) -> None:
    """
    Checks that columns can divide the output into folders.

    Raises:
        ValueError: If one is not a column of the user, or its values cannot name folders.
    """
    kinds = {column.name: column.type for column in own_columns(schema)}
    for name in partition_by:
        if name not in kinds:
            raise ValueError(f"partition_by={name!r} is none of the input's own columns; choose one of {list(kinds)}.")
        tests = (_is_text, pa.types.is_integer, pa.types.is_boolean, pa.types.is_date)
        if not any(test(kinds[name]) for test in tests):
            raise ValueError(
                f"partition_by={name!r} has the type {kinds[name]}; choose a column of text, integers, booleans or "
                "dates."
            )


def partition_of(row: Mapping[str, Any], partition_by: Sequence[str]) -> str:
    """
    Returns the folder of a row's partition, as Hive names it: `agent=anna/day=2026-01-31`.

    Raises:
        ValueError: If the name of a folder would be too long.
    """
    folders = []
    for column in partition_by:
        value = NO_VALUE if row[column] is None else quote(as_text(row[column]), safe="")
        folders.append(f"{_quoted_start(column)}={value}")
        if len(folders[-1]) > MAX_NAME_BYTES:
            raise ValueError(
                f"{row['id']}: the column {column!r} has {len(value)} bytes, {str(row[column])[:40]!r}..., too many "
                "for the name of a folder; choose another column for partition_by."
            )
    return "/".join(folders)


def _quoted_start(column: str) -> str:
    """Returns the start of the names of a column's folders: never that of a hidden one, which readers pass over."""
    name = quote(column, safe="")
    return f"%{ord(name[0]):02X}{name[1:]}" if name.startswith((".", "_")) else name


class RowState(NamedTuple):
    """What resuming a job needs to know of a row."""

    id: str
    is_failed: bool
    attempts: int


class PartFormat(ABC):
    """
    A format of the output's files.

    Args:
        schema (`pyarrow.Schema`): See [`archive_schema`].
    """

    suffix: str

    def __init__(self, schema: pa.Schema):
        self.schema = schema

    @abstractmethod
    def encode(self, row: Mapping[str, Any]) -> bytes:
        """Returns a row in the form in which it waits for the rest of its part."""

    @abstractmethod
    def join(self, rows: Iterable[bytes]) -> bytes:
        """Returns a file of encoded rows."""

    @abstractmethod
    def replace(self, file: BinaryIO, rows: Mapping[str, bytes]) -> bytes:
        """Returns a file with encoded rows, by id, in place of those with their ids."""

    @abstractmethod
    def states(self, file: BinaryIO) -> Iterator[RowState]:
        """Yields the states of a file's rows; raises an error if it is truncated, or has other columns."""

    @abstractmethod
    def rows(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        """Yields the rows of a file, as [`row_of`] returns them."""


class ParquetFormat(PartFormat):
    """Parquet, compressed with Zstandard. Rows wait pickled, a sixth of their size in Python."""

    suffix = ".parquet"

    def encode(self, row: Mapping[str, Any]) -> bytes:
        return pickle.dumps(row)

    def join(self, rows: Iterable[bytes]) -> bytes:
        return self._written(pa.Table.from_batches(self._batches(rows), self.schema))

    def replace(self, file: BinaryIO, rows: Mapping[str, bytes]) -> bytes:
        old = pq.read_table(file, schema=self.schema)
        places = {name: len(old) + number for number, name in enumerate(rows)}
        order = [places.get(name, number) for number, name in enumerate(old["id"].to_pylist())]
        both = pa.concat_tables([old, pa.Table.from_batches(self._batches(rows.values()), self.schema)])
        return self._written(both.take(order))

    def states(self, file: BinaryIO) -> Iterator[RowState]:
        for batch in self._opened(file).iter_batches(columns=["id", "error", "attempts"]):
            columns = (batch["id"], batch["error"].is_valid(), batch["attempts"])
            yield from map(RowState, *(column.to_pylist() for column in columns))

    def rows(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        for batch in self._opened(file).iter_batches(batch_size=100):
            yield from batch.to_pylist()

    def _opened(self, file: BinaryIO) -> pq.ParquetFile:
        opened = pq.ParquetFile(file)
        if not opened.schema_arrow.equals(self.schema):
            raise ValueError(f"its columns are {opened.schema_arrow.names}, expected {self.schema.names}")
        return opened

    def _batches(self, rows: Iterable[bytes]) -> Iterator[pa.RecordBatch]:
        """Yields encoded rows in batches: one by one they cost a hundred times more, all at once too much memory."""
        batch: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            batch.append(pickle.loads(row))
            size += len(row)
            if size > BATCH_BYTES:
                yield pa.RecordBatch.from_pylist(batch, self.schema)
                batch, size = [], 0
        if batch:
            yield pa.RecordBatch.from_pylist(batch, self.schema)

    def _written(self, table: pa.Table) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(table.combine_chunks(), buffer, compression="zstd")
        return buffer.getvalue()


class TextFormat(PartFormat):
    """A format whose encoded rows are its lines."""

    def join(self, rows: Iterable[bytes]) -> bytes:
        return b"".join((self.header(), *rows))

    def replace(self, file: BinaryIO, rows: Mapping[str, bytes]) -> bytes:
        return self.join(rows.get(row["id"]) or self.encode(row) for row in self.rows(file))

    def header(self) -> bytes:
        """Returns the start of a file."""
        return b""


class JsonFormat(TextFormat):
    """JSON lines."""

    suffix = ".jsonl"

    def encode(self, row: Mapping[str, Any]) -> bytes:
        return f"{_as_json(row)}\n".encode()

    def states(self, file: BinaryIO) -> Iterator[RowState]:
        for row in self._objects(file):
            yield RowState(row["id"], row["error"] is not None, row["attempts"])

    def rows(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        own = {field.name: field.type for field in own_columns(self.schema)}
        for row in self._objects(file):
            texts = {name: row[name] for name in own if isinstance(row[name], str)}
            yield row | {name: _from_text(text, own[name]) for name, text in texts.items()}

    def _objects(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        _check_end(file)
        for line in file:
            row = json.loads(line)
            if list(row) != self.schema.names:
                raise ValueError(f"its columns are {list(row)}, expected {self.schema.names}")
            yield row


class CsvFormat(TextFormat):
    """CSV with a header."""

    suffix = ".csv"

    def encode(self, row: Mapping[str, Any]) -> bytes:
        return _as_csv(map(as_text, row.values()))

    def header(self) -> bytes:
        return _as_csv(self.schema.names)

    def states(self, file: BinaryIO) -> Iterator[RowState]:
        places = [self.schema.get_field_index(name) for name in ("id", "error", "attempts")]
        for texts in self._lines(file):
            name, error, attempts = (texts[place] for place in places)
            yield RowState(name, error != "", int(attempts))

    def rows(self, file: BinaryIO) -> Iterator[dict[str, Any]]:
        types = {field.name: field.type for field in self.schema}
        for texts in self._lines(file):
            fields = zip(types.items(), texts)
            yield {name: _from_text(text, kind) if text else None for (name, kind), text in fields}

    def _lines(self, file: BinaryIO) -> Iterator[list[str]]:
        """Yields the fields of each row."""
        csv.field_size_limit(2**31 - 1)  # a timeline is one field
        _check_end(file)
        reader = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""), strict=True)
        header = next(reader, [])
        if header != self.schema.names:
            raise ValueError(f"its columns are {header}, expected {self.schema.names}")
        for texts in reader:
            if len(texts) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(texts)} columns, expected {len(header)}")
            yield texts


FORMATS: dict[str, type[PartFormat]] = {"parquet": ParquetFormat, "json": JsonFormat, "csv": CsvFormat}


def _check_end(file: BinaryIO) -> None:
    """Raises a `ValueError` if a file of lines is empty, or its last line is cut."""
    if not file.seek(0, io.SEEK_END):
        raise ValueError("it is empty")
    file.seek(-1, io.SEEK_END)
    if file.read(1) != b"\n":
        raise ValueError("it ends within a line")
    file.seek(0)


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=as_text)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=as_text)


def _finite(value: Any) -> Any:
    """Returns a value with null in place of NaN and infinity."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(value: Any) -> str:
    """Returns a value as a field of CSV, also as the name of a partition."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, date):  # or datetime
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else _as_json(value)


def _as_csv(fields: Iterable[str]) -> bytes:
    buffer = io.StringIO(newline="")
    # Readers end a line at \r and \n, but before Python 3.13 only characters of the line terminator are quoted.
    csv.writer(buffer, lineterminator="\r\n").writerow(fields)
    return buffer.getvalue().removesuffix("\r\n").encode() + b"\n"


def _from_text(text: str, kind: pa.DataType) -> Any:
    """Returns the value that [`as_text`] wrote."""
    if _is_text(kind):
        return text
    if pa.types.is_nested(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return json.loads(text)
    return pa.scalar(text).cast(kind).as_py()
