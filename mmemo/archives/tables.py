"""
Tables of recordings or texts: CSV, TSV, JSON lines and Parquet, read block by block with pyarrow.

Deliberate choices:
- The types of CSV and JSON columns are those of the whole table, not of its first block, so that no row fails halfway.
  The price is one more pass.
- A cell of a CSV becomes a number only if nothing is lost: `00123` and the digits of a long identifier remain strings.
- JSON values without a common type, such as numbers and strings, are carried as text.
- Paths may have bytes that are not UTF-8, as file systems allow; all other text must be UTF-8 (CSV also UTF-16).
"""

import codecs
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from mmemo.storage import name_of, valid_text


# pyarrow reads several blocks ahead; a row must fit into one.
BLOCK_BYTES = 2**20
BLOCK_ROWS = 4096
# Rows of a Parquet file that contain whole recordings.
MEDIA_BLOCK_ROWS = 16


class CellType(NamedTuple):
    """A type of CSV cells, and the regular expression that all cells of a column of this type match."""

    type: pa.DataType
    pattern: str


_DATE, _TIME = r"\d{4}-\d{2}-\d{2}", r"[ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?"
CELL_TYPES = (
    CellType(pa.int64(), r"^(0|-?[1-9]\d{0,17})$"),
    CellType(pa.float64(), r"^-?(0|[1-9]\d{0,14})?(\.\d+)?([eE][+-]?\d+)?$"),
    CellType(pa.bool_(), r"^(?i:true|false)$"),
    CellType(pa.date32(), rf"^{_DATE}$"),
    CellType(pa.timestamp("us"), rf"^{_DATE}{_TIME}$"),
    CellType(pa.timestamp("us", "UTC"), rf"^{_DATE}{_TIME}(Z|[+-]\d{{2}}:?\d{{2}})$"),
)


class Table(Protocol):
    """
    An open table.

    Attributes:
        types (`dict[str, pyarrow.DataType]`): The type of each column.
        count (`int`): Number of rows.
        not_utf8 (`frozenset[str]`): Columns of text in another encoding, which can be read as `strings` only.
    """

    types: dict[str, pa.DataType]
    count: int
    not_utf8: frozenset[str]

    def rows(self, columns: Sequence[str], strings: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        """
        Yields the rows.

        Args:
            columns (`Sequence[str]`): The columns to read.
            strings (`Collection[str]`, *optional*):
                Columns of which every value is returned as a string, as it is written in the table.
        """


def open_table(path: str, name: str) -> Table:
    """
    Opens a table.

    Args:
        path (`str`): The path of a local file.
        name (`str`): The location of the table, for messages. Its suffix is the format, CSV by default.

    Raises:
        ValueError: If it is not such a table, or has no rows or two columns of one name.
    """
    suffix = os.path.splitext(name_of(name))[1].lower()
    kinds: dict[str, Callable[[str, str], Table]] = {".jsonl": JsonTable, ".parquet": ParquetTable}
    table = kinds.get(suffix, CsvTable)(path, name)
    if not table.count:
        raise ValueError(f"{name} has no rows; it needs at least one.")
    return table


def is_media(kind: pa.DataType) -> bool:
    """Whether a column contains files, as `datasets` stores audio, images and video: their bytes or paths."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


class CsvTable:
    """A CSV table, or a TSV table: separated by tabs; see [`Table`]. An empty cell is missing."""

    def __init__(self, path: str, name: str):
        self._path, self._name = path, name
        with open(path, "rb") as file:
            start = file.read(BLOCK_BYTES)
        self._encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
        header = start.decode(self._encoding, "replace").splitlines()[:1]
        is_tsv = name_of(name).lower().endswith(".tsv")
        semicolon = bool(header) and ";" in header[0] and "," not in header[0]
        self._delimiter = "\t" if is_tsv else ";" if semicolon else ","
        with self._described(), csv.open_csv(path, *self._options()) as reader:
            self._names = _unique(reader.schema.names, name)
        self._infer()

    def rows(self, columns: Sequence[str], strings: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        for block in self._blocks(columns):
            values = {
                name: _decoded(column) if name in strings else self._cast(column, name).to_pylist()
                for name, column in zip(block.schema.names, block.columns)
            }
            yield from _records(values, block.num_rows)

    def _cast(self, column: pa.Array, name: str) -> pa.Array:
        kind = self.types[name]
        return pa.nulls(len(column)) if pa.types.is_null(kind) else column.cast(pa.string()).cast(kind)

    def _infer(self) -> None:
        """Sets `types`, `count` and `not_utf8`."""
        possible = {name: list(CELL_TYPES) for name in self._names}
        empty, not_utf8 = set(self._names), set()
        self.count = 0
        for block in self._blocks(self._names):
            self.count += block.num_rows
            for name, column in zip(block.schema.names, block.columns):
                if column.null_count == len(column):
                    continue
                empty.discard(name)
                try:
                    cells = column.drop_null().cast(pa.string())
                except pa.ArrowInvalid:
                    not_utf8.add(name)
                    possible[name] = []
                else:
                    possible[name] = [kind for kind in possible[name] if _is_of(cells, kind)]
        self.types = {name: left[0].type if left else pa.string() for name, left in possible.items()}
        self.types |= dict.fromkeys(empty, pa.null())
        self.not_utf8 = frozenset(not_utf8)

    def _blocks(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._described(), csv.open_csv(self._path, *self._options(columns)) as reader:
            yield from reader

    def _options(self, columns: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Returns the options of pyarrow, with columns of bytes, so that it neither infers types nor decodes."""
        kinds = {} if columns is None else dict.fromkeys(columns, pa.binary())
        return (
            csv.ReadOptions(block_size=BLOCK_BYTES, encoding=self._encoding),
            csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
            csv.ConvertOptions(
                include_columns=columns, column_types=kinds, null_values=[""], strings_can_be_null=True
            ),
        )

    @contextmanager
    def _described(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise ValueError(
                f"{self._name} is not a readable CSV table ({' '.join(str(error).split())[:200]}); it needs a header, "
                "and double quotes around cells that contain the separator or line breaks."
            ) from error


class JsonTable:
    """A table of JSON lines, an object a line; see [`Table`]."""

    not_utf8: frozenset[str] = frozenset()

    def __init__(self, path: str, name: str):
        self._path, self._name = path, name
        self.types: dict[str, pa.DataType] = {}
        self.count = 0
        records = self._records()
        while block := list(islice(records, BLOCK_ROWS)):
            self.count += len(block)
            for key in dict.fromkeys(key for record in block for key in record):
                kind = json_type([record.get(key) for record in block])
                self.types[key] = _common_type(self.types.get(key, kind), kind) or pa.string()

    def rows(self, columns: Sequence[str], strings: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        texts = {key for key in columns if self.types[key] == pa.string()}
        for record in self._records():
            values = {key: _as_text(record.get(key)) for key in strings}
            for key in columns:
                if key not in values:
                    values[key] = valid(_as_text(record.get(key)) if key in texts else record.get(key))
            yield values

    def _records(self) -> Iterator[dict[str, Any]]:
        with open(self._path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{self._name}, line {number}, is not JSON ({error}); correct it.") from error
                if not isinstance(record, dict):
                    raise ValueError(f"{self._name}, line {number}, is not a JSON object; write one object a line.")
                yield record


class ParquetTable:
    """A Parquet file; see [`Table`]."""

    not_utf8: frozenset[str] = frozenset()

    def __init__(self, path: str, name: str):
        self._name = name
        with self._described():
            self._file = pq.ParquetFile(path, pre_buffer=False)
        schema = self._file.schema_arrow
        self.types = {key: _plain_type(schema.field(key).type) for key in _unique(schema.names, name)}
        self.count = self._file.metadata.num_rows

    def rows(self, columns: Sequence[str], strings: Collection[str] = ()) -> Iterator[dict[str, Any]]:
        size = MEDIA_BLOCK_ROWS if any(is_media(self.types[key]) for key in columns) else BLOCK_ROWS
        with self._described():
            for block in self._file.iter_batches(size, columns=list(columns)):
                arrays = {key: _plain(block.column(key)) for key in columns}
                values = {
                    key: _strings(array) if key in strings else array.to_pylist() for key, array in arrays.items()
                }
                yield from _records(values, block.num_rows)

    @contextmanager
    def _described(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self._name} is not a readable Parquet file ({str(error)[:200]}); check it.") from error


def _records(values: dict[str, list[Any]], count: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of columns of values."""
    for row in range(count):
        yield {name: column[row] for name, column in values.items()}


def _unique(names: list[str], table: str) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{table} has several columns {', '.join(map(repr, repeated))}; rename all but one of them.")
    return names


def _is_of(cells: pa.Array, kind: CellType) -> bool:
    if not pc.all(pc.match_substring_regex(cells, kind.pattern)).as_py():
        return False
    try:
        cells.cast(kind.type)
    except pa.ArrowInvalid:  # such as February 30
        return False
    return True


def _decoded(column: pa.Array) -> list[str | None]:
    """Returns the cells of a column of bytes, with bytes that are not UTF-8 as `os.fsdecode` returns them."""
    return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in column.to_pylist()]


def valid(value: Any) -> Any:
    """Returns a value of JSON with strings of valid Unicode; see [`valid_text`]."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {valid(key): valid(part) for key, part in value.items()}
    return [valid(part) for part in value] if isinstance(value, list) else value


def _as_text(value: Any) -> str | None:
    """Returns a value of JSON as text: strings as they are, all others as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def json_type(values: list[Any]) -> pa.DataType:
    """Returns the type of values of JSON, that of text if they have no common one, or none in Parquet."""
    try:
        kind = pa.array([valid(value) for value in values]).type
    except (pa.ArrowException, OverflowError):
        return pa.string()
    return pa.string() if "struct<>" in str(kind) else kind


def merge_types(tables: Iterable[tuple[str, dict[str, pa.DataType]]]) -> dict[str, pa.DataType]:
    """
    Returns the columns of several tables; numbers of different types get a common one.

    Args:
        tables (`Iterable[tuple[str, dict]]`): The name of each table, and its types by column.

    Raises:
        ValueError: If the types of a column have nothing in common.
    """
    merged: dict[str, pa.DataType] = {}
    owners: dict[str, str] = {}
    for table, types in tables:
        for name, kind in types.items():
            before = merged.get(name, kind)
            common = _common_type(before, kind)
            if common is None:
                raise ValueError(
                    f"The column {name!r} is {kind} in {table} and {before} in {owners[name]}; rename or convert one "
                    "of them, or predict the tables separately."
                )
            merged[name] = common
            owners[name] = table
    # A column without values may be written in any type.
    return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in merged.items()}


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Returns the type of the values of two columns, `None` if they have nothing in common."""
    try:
        schemas = [pa.schema({"column": kind}) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _strings(column: pa.Array) -> list[str | None]:
    """Returns the values of a column, numbers or bytes too, as strings."""
    return _decoded(column) if pa.types.is_binary(column.type) else column.cast(pa.string()).to_pylist()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Returns the type of the values of a dictionary or extension type."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _plain(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    return column.storage if isinstance(column.type, pa.BaseExtensionType) else column
