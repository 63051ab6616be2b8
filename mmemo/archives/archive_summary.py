"""
Figures of an archive: how its predictions are distributed, as a whole, by column and over time, and what failed.

Deliberate choices:
- DuckDB computes them while it reads the files, in bounded memory; Python receives the finished figures only.
- Names of columns reach SQL as quoted identifiers, values as parameters or quoted literals.
- Shares of few rows mislead: each has its number of rows and a 95 % Wilson interval.
- Speaking time is summed over the spans of timelines, which are their merged entries: the same seconds, and a fraction
  of the columns to read.
- Errors are grouped after names, paths and numbers in them have been replaced. An example keeps the original.
- The manifest is read as plain JSON, so that archives of other versions of mmemo can be summarized as well.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any

from mmemo.archives.job_manifest import MANIFEST_FILE
from mmemo.storage import is_url
from mmemo.timeline.windows import SILENCE, UNCERTAIN


try:
    import duckdb
    import fsspec
except ModuleNotFoundError as error:
    raise ImportError("Reports on archives need DuckDB and fsspec: pip install 'mmemo[archives]'.") from error


SUFFIXES = {"parquet": ".parquet", "json": ".jsonl", "csv": ".csv"}
# Columns of the output that the figures need; those that `by` and `time` may name are not nested.
TYPES = {
    "id": "VARCHAR",
    "path": "VARCHAR",
    "label": "VARCHAR",
    "score": "DOUBLE",
    "duration": "DOUBLE",
    "error": "VARCHAR",
    "attempts": "INTEGER",
}
NESTED_TYPES = {"spans": 'STRUCT("start" DOUBLE, "end" DOUBLE, "label" VARCHAR)[]', "warnings": "VARCHAR[]"}
# The same as structures of DuckDB's `from_json`.
NESTED_STRUCTURES = {"spans": '[{"start":"DOUBLE","end":"DOUBLE","label":"VARCHAR"}]', "warnings": '["VARCHAR"]'}
# For each period its name in `strftime`, and its number in SQL: neighbours differ by 1.
PERIODS = {
    "month": ("%Y-%m", "date_diff('month', DATE '1970-01-01', moment)"),
    "week": ("%G-W%V", "date_diff('week', DATE '1970-01-05', moment)"),
    "day": ("%Y-%m-%d", "date_diff('day', DATE '1970-01-01', moment)"),
    "weekday": ("%a", "isodow(moment)"),
    "hour": ("%H", "hour(moment)"),
}
# Tried on text that is not an ISO date or timestamp.
SHORT_DATES = "['%Y-%m', '%Y%m%d', '%Y%m']"
MEMORY_LIMIT = "1GB"
# Each thread has buffers of its own.
MAX_THREADS = 4
# The timeline of 12 hours has about 20 MB as JSON.
MAX_ROW_BYTES = 64 * 2**20
NORMAL_QUANTILE = 1.959964  # of a 95 % interval
MAX_MESSAGE = 300
# A message is used once in each: DuckDB inserts arguments wherever they occur, which nested macros would multiply.
# Names of recordings that could be a word or a number are replaced only before a colon.
MACROS = (
    r"""CREATE TEMP MACRO is_distinct(name) AS
    length(name) > 3 AND NOT regexp_full_match(name, '[A-Za-z]*|[\d.,:]*')""",
    """CREATE TEMP MACRO without_name(message, name) AS replace(
    message,
    CASE WHEN is_distinct(name) THEN name ELSE ' ' || name || ':' END,
    CASE WHEN is_distinct(name) THEN 'FILE' ELSE ' FILE:' END)""",
    r"""CREATE TEMP MACRO without_paths(message) AS
    regexp_replace(message, '(^|[\s''"(=])(\w+://|[A-Za-z]:\\|\.{0,2}/)[^\s''"()]*[^\s''"().,:;]', '\1FILE', 'g')""",
    r"""CREATE TEMP MACRO without_numbers(message) AS
    regexp_replace(message, '\b((0x)?[0-9a-f]{8,}\b|0x[0-9a-f]+|\d+([.,:]\d+)*)', 'N', 'g')""",
    """CREATE TEMP MACRO without_names(message, id, path) AS without_name(without_name(without_name(without_name(
    ' ' || message, path), id), parse_filename(path)), parse_filename(id))""",
    """CREATE TEMP MACRO reason_of(message, id, path) AS
    ltrim(without_numbers(without_paths(without_names(message, id, coalesce(path, id)))))""",
)


@dataclass(frozen=True)
class SummaryOptions:
    """
    Which figures a summary contains.

    Args:
        by (`tuple[str, ...]`, *optional*): Columns, for each of which the figures are given by its values.
        time (`str`, *optional*): A column of dates or timestamps, or of text in ISO 8601 or `time_format`.
        period (`str`, *optional*, defaults to `"month"`):
            The periods of `time`: `"month"`, `"week"`, `"day"`, `"weekday"` or `"hour"` of the day.
        time_format (`str`, *optional*): Format of `time` if it is text in another form, such as `"%d.%m.%Y"`.
        time_zone (`str`, *optional*, defaults to `"UTC"`):
            Time zone of the periods. Timestamps with an offset are converted to it, others are used as they are.
        top (`int`, *optional*, defaults to 20): Number of the most frequent values and reasons; others are summed.

    Raises:
        ValueError: If an option is invalid.
    """

    by: tuple[str, ...] = ()
    time: str | None = None
    period: str = "month"
    time_format: str | None = None
    time_zone: str = "UTC"
    top: int = 20

    def __post_init__(self):
        if self.period not in PERIODS:
            raise ValueError(f"period={self.period!r} is unknown; choose one of {list(PERIODS)}.")
        if self.time is None and self.time_format is not None:
            raise ValueError(f"time_format={self.time_format!r} needs time, the column that it is the format of.")
        if self.top < 1:
            raise ValueError(f"top={self.top!r} must be at least 1.")


@dataclass(frozen=True)
class ArchiveFiles:
    """
    The files of an archive's output.

    Args:
        place (`str`): The folder, as given.
        manifest (`dict`): Its manifest; see [`JobManifest`].
        format (`str`): `"parquet"`, `"json"` or `"csv"`.
        parts (`list[str]`): Paths or URLs of the files with the rows.
        filesystem (`fsspec.AbstractFileSystem`, *optional*): What opens the URLs; `None` for a local folder.
    """

    place: str
    manifest: dict[str, Any]
    format: str
    parts: list[str]
    filesystem: Any = None

    @classmethod
    def find(cls, place: str) -> "ArchiveFiles":
        """
        Finds the files in a folder, or at a URL such as `s3://bucket/predictions`.

        Raises:
            ValueError: If there is no manifest, or not one row yet.
        """
        is_remote = is_url(place)
        filesystem, folder = fsspec.url_to_fs(place) if is_remote else (fsspec.filesystem("file"), place)
        folder = folder.rstrip("/") or "/"
        try:
            manifest = json.loads(filesystem.cat_file(f"{folder}/{MANIFEST_FILE}"))
            kind = manifest["format"]
            suffix = SUFFIXES[kind]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(
                f"{place} has no {MANIFEST_FILE}; pass the folder that mmemo predict --output has written."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{place}/{MANIFEST_FILE} is not the manifest of an archive ({type(error).__name__}: {error}); pass "
                "the folder that mmemo predict --output has written."
            ) from error
        # Files that are still being written have other names.
        found = re.compile(rf"(.*/)?part-[^/]*{re.escape(suffix)}")
        paths = [path for path in filesystem.find(folder) if found.fullmatch(path)]
        if not paths:
            raise ValueError(f"{place} has no rows yet; run the report again when mmemo predict has written some.")
        parts = [filesystem.unstrip_protocol(path) for path in paths] if is_remote else paths
        return cls(place, manifest, kind, parts, filesystem if is_remote else None)

    @property
    def columns(self) -> list[str]:
        """The columns that can be grouped by: the user's own, and those of the output that are not nested."""
        return [*self.manifest.get("columns", ()), *TYPES]

    def check_column(self, option: str, column: str) -> None:
        """Raises a `ValueError` that names the valid columns if there is no such column."""
        if column not in self.columns:
            raise ValueError(f"{option} {column} is not a column of {self.place}; choose one of {self.columns}.")

    def rows_query(self, columns: Iterable[str]) -> str:
        """Returns a query for the rows, with `columns` in addition to those that all figures need."""
        own = [column for column in dict.fromkeys(columns) if column not in TYPES]
        if self.format == "parquet":
            names = ", ".join(map(_identifier, [*TYPES, *NESTED_TYPES, *own]))
            return f"SELECT {names} FROM read_parquet(getvariable('parts'), hive_partitioning = false)"
        if self.format == "json":
            types = {**TYPES, **NESTED_TYPES, **dict.fromkeys(own, "VARCHAR")}
            typed = ", ".join(f"{_literal(name)}: {_literal(kind)}" for name, kind in types.items())
            return (
                "SELECT * FROM read_json(getvariable('parts'), format = 'newline_delimited', "
                f"hive_partitioning = false, maximum_object_size = {MAX_ROW_BYTES}, columns = {{{typed}}})"
            )
        values = [f"CAST({_identifier(name)} AS {kind}) AS {_identifier(name)}" for name, kind in TYPES.items()]
        values += [f"from_json({name}, {_literal(form)}) AS {name}" for name, form in NESTED_STRUCTURES.items()]
        return (
            f"SELECT {', '.join([*values, *map(_identifier, own)])} FROM read_csv(getvariable('parts'), "
            "header = true, all_varchar = true, delim = ',', quote = '\"', escape = '\"', comment = '', skip = 0, "
            "new_line = '\\n', hive_partitioning = false, "
            f"max_line_size = {MAX_ROW_BYTES}, buffer_size = {MAX_ROW_BYTES + 1})"
        )


def summarize_archive(place: str, options: SummaryOptions | None = None) -> dict[str, Any]:
    """
    Summarizes the output of an archive job, which may still be running.

    Args:
        place (`str`): The output folder, or its URL.
        options ([`SummaryOptions`], *optional*): Which figures to compute.

    Returns:
        `dict`: JSON-serializable. `output`, `reported`, and of the manifest `model`, `revision`, `fingerprint` and
        `created`; the figures of all rows:

        - `rows`, `predicted`; `failed`, a share of the rows; `hours` of the predicted ones; `mean_score`.
        - `labels`: the share of each label, "uncertain" and "silence" in the predicted rows.

        A share is `{"rows", "share", "interval"}`, the last two `None` of no rows. Then:

        - `speech`: `rows` with timelines, `hours` of speaking time, and `labels` with the `hours` and `share` of each.
        - `by`: for each column the `groups`, `others` with their `number`, and `total`, the number of values. A group
          is the figures above and its `value`.
        - `time`: `column`, `period`, `periods` with the figures above, `name` and `number`, whose neighbours differ
          by 1; rows without a time in `missing`, and in `unreadable` those with another text, with an `example`.
        - `failures` and `warnings`: `rows`, `reasons` with `reason`, `rows` and `example`, and `others`.
        - `attempts`: `attempts`, and how many rows `failed` and were `predicted` after so many.

    Raises:
        ValueError: If there is no archive, no such column, or an invalid time zone or format.
        OSError: If files cannot be read.
    """
    options = options or SummaryOptions()
    files = ArchiveFiles.find(place)
    for column in options.by:
        files.check_column("--by", column)
    if options.time is not None:
        files.check_column("--time", options.time)
    with _connect(files, options) as connection:
        try:
            return _Figures(connection, files, options).summarize()
        except duckdb.Error as error:
            # The message contains the damaged file, but possibly after a long row of it; then comes our own query.
            reason = " ".join(str(error).partition("\nLINE ")[0].split())
            damaged = next((part for part in files.parts if part in reason), place)
            raise OSError(f"{damaged} cannot be read: {reason[:MAX_MESSAGE]}") from error


@contextmanager
def _connect(files: ArchiveFiles, options: SummaryOptions) -> Iterator["duckdb.DuckDBPyConnection"]:
    """Opens a database with the view `rows`; larger tables than fit into its memory go to a temporary folder."""
    with TemporaryDirectory(prefix="mmemo-report-") as folder:
        settings: dict[str, Any] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": folder,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
        }
        with duckdb.connect(config=settings) as connection:
            (threads,) = connection.execute("SELECT current_setting('threads')").fetchone() or (1,)
            connection.execute(f"SET threads = {min(threads, MAX_THREADS)}")
            # The bar would be part of the report: it goes to standard output.
            connection.execute("SET enable_progress_bar = false")
            _set_time(connection, options)
            if files.filesystem is not None:
                connection.register_filesystem(files.filesystem)
            # DuckDB expands patterns in paths.
            parts = [re.sub(r"([*?\[])", r"[\1]", part) for part in files.parts]
            connection.execute("SET VARIABLE parts = ?", [parts])
            for macro in MACROS:
                connection.execute(macro)
            yield connection


def _set_time(connection: "duckdb.DuckDBPyConnection", options: SummaryOptions) -> None:
    try:
        connection.execute(f"SET TimeZone = {_literal(options.time_zone)}")
    except duckdb.Error as error:
        raise ValueError(f"time_zone={options.time_zone!r} is unknown; pass a name such as Europe/Berlin.") from error
    try:
        connection.execute(f"SELECT try_strptime('', {_literal(options.time_format or '%Y')})")
    except duckdb.Error as error:
        raise ValueError(
            f"time_format={options.time_format!r} is not a format of strptime; pass one such as %d.%m.%Y."
        ) from error


class _Figures:
    """Computes the figures of an archive."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", files: ArchiveFiles, options: SummaryOptions):
        self._connection, self._files, self._options = connection, files, options
        self._by = list(dict.fromkeys(options.by))
        self._labels: list[str] = []

    def summarize(self) -> dict[str, Any]:
        """Returns the summary; see [`summarize_archive`]."""
        self._count()
        (whole,) = self._cells(-1, "0", "NULL").values()
        known = [label for label in self._files.manifest.get("labels", ()) if isinstance(label, str)]
        found = {label for label, *_ in whole.cells if label is not None}
        special = (UNCERTAIN, SILENCE)
        self._labels = [*known, *sorted(found - {*known, *special}), *special]
        manifest = self._files.manifest
        return {
            "output": self._files.place,
            "reported": datetime.now(UTC).isoformat(timespec="seconds"),
            **{name: manifest.get(name) for name in ("model", "revision", "fingerprint", "created")},
            **self._figures(whole),
            "speech": self._speech(),
            "by": {column: self._groups(number) for number, column in enumerate(self._by)},
            "time": None if self._options.time is None else self._periods(),
            "failures": self._reasons("SELECT id, path, error AS message FROM rows WHERE error IS NOT NULL"),
            "warnings": self._reasons("SELECT id, path, unnest(warnings) AS message FROM rows"),
            "attempts": self._attempts(),
        }

    def _count(self) -> None:
        """Counts the rows by label, as a whole and by each dimension, in one pass over the files."""
        time = self._options.time
        columns = [*self._by, *([] if time is None else [time])]
        # Text takes long to parse, so it is parsed once. Of Parquet, each query reads only the columns that it needs.
        kind = "VIEW" if self._files.format == "parquet" else "TABLE"
        self._connection.execute(f"CREATE TEMP {kind} rows AS {self._files.rows_query(columns)}")
        # A dimension is a column, the number of attempts, or the period.
        values = [*map(_identifier, self._by), "attempts"]
        dimensions = [f"value_{number}" for number in range(len(values))]
        selected = ", ".join(f"CAST({value} AS VARCHAR) AS {name}" for value, name in zip(values, dimensions))
        moment, name, number, text = "NULL::TIMESTAMP", "NULL::VARCHAR", "NULL::BIGINT", "NULL::VARCHAR"
        if time is not None:
            text = f"CAST({_identifier(time)} AS VARCHAR)"
            moment = _moment(text, self._options.time_format)
            form, number = PERIODS[self._options.period]
            name = f"strftime(moment, {_literal(form)})"
            dimensions.append("period")
        sets = ", ".join(f"(label, failed, {name})" for name in dimensions)
        which = " ".join(f"WHEN grouping({name}) = 0 THEN {place}" for place, name in enumerate(dimensions))
        value = " ".join(f"WHEN grouping({name}) = 0 THEN {name}" for name in dimensions)
        self._connection.execute(
            f"""CREATE TEMP TABLE counts AS
            WITH moments AS (
                SELECT label, error IS NOT NULL AS failed, duration, score, {selected}, {text} AS time_text,
                    {moment} AS moment
                FROM rows),
            dimensions AS (
                SELECT * EXCLUDE (time_text, moment),
                    {name} AS period, {number} AS number, moment IS NULL AND time_text IS NOT NULL AS unreadable,
                    CASE WHEN unreadable THEN time_text END AS example
                FROM moments)
            SELECT CASE {which} ELSE -1 END AS dimension, CASE {value} END AS value, label, failed, count(*) AS n,
                sum(duration) AS seconds, sum(score) AS scores, count(score) AS scored, min(number) AS number,
                count_if(unreadable) AS unreadable, min(example) AS example
            FROM dimensions GROUP BY GROUPING SETS ((label, failed), {sets})"""
        )

    def _cells(self, dimension: int, place: str, value: str) -> dict[Any, "_Group"]:
        """
        Returns the counts of a dimension's groups.

        Args:
            dimension (`int`): Its number, or -1 for all rows.
            place, value (`str`): What the groups are identified and named by, in SQL.
        """
        # Values differ from missing ones, which have a rank too.
        query = f"""
            WITH sizes AS (SELECT value, sum(n) AS size FROM counts WHERE dimension = $dimension GROUP BY value),
            ranked AS (SELECT value, row_number() OVER (ORDER BY size DESC, value NULLS LAST) AS rank FROM sizes)
            SELECT {place} AS place, {value} AS name, label, failed, sum(n), sum(seconds), sum(scores), sum(scored)
            FROM counts JOIN ranked ON counts.value IS NOT DISTINCT FROM ranked.value WHERE dimension = $dimension
            GROUP BY ALL ORDER BY place"""
        groups: dict[Any, _Group] = {}
        for found, name, *cell in self._execute(query, {"dimension": dimension}):
            groups.setdefault(found, _Group(name, [])).cells.append(tuple(cell))
        return groups

    def _figures(self, group: "_Group") -> dict[str, Any]:
        rows = sum(count for _, _, count, *_ in group.cells)
        failed = sum(count for _, is_failed, count, *_ in group.cells if is_failed)
        by_label = {label: count for label, is_failed, count, *_ in group.cells if not is_failed}
        seconds, scores, scored = (sum(cell[place] or 0 for cell in group.cells if not cell[1]) for place in (3, 4, 5))
        predicted = rows - failed
        return {
            "rows": int(rows),
            "predicted": int(predicted),
            "failed": share_of(failed, rows),
            "hours": seconds / 3600,
            "mean_score": scores / scored if scored else None,
            "labels": {label: share_of(by_label.get(label, 0), predicted) for label in self._labels},
        }

    def _groups(self, dimension: int) -> dict[str, Any]:
        top = self._options.top
        place, value = f"least(rank, {top + 1})", f"CASE WHEN rank <= {top} THEN ranked.value END"
        groups = self._cells(dimension, place, value)
        ((total,),) = self._execute(
            "SELECT count(*) FROM (SELECT DISTINCT value FROM counts WHERE dimension = $dimension)",
            {"dimension": dimension},
        )
        rest = groups.pop(top + 1, None)
        return {
            "total": total,
            "groups": [{"value": group.name, **self._figures(group)} for group in groups.values()],
            "others": None if rest is None else {"number": total - top, **self._figures(rest)},
        }

    def _periods(self) -> dict[str, Any]:
        dimension = len(self._by) + 1
        groups = self._cells(dimension, "counts.number", "counts.value")
        query = "SELECT coalesce(sum(n), 0), coalesce(sum(unreadable), 0), min(example) FROM counts "
        ((unplaced, unreadable, example),) = self._execute(
            query + "WHERE dimension = $dimension AND value IS NULL", {"dimension": dimension}
        )
        return {
            "column": self._options.time,
            "period": self._options.period,
            "periods": [
                {"name": group.name, "number": number, **self._figures(group)}
                for number, group in groups.items()
                if number is not None
            ],
            "missing": int(unplaced - unreadable),
            "unreadable": {"rows": int(unreadable), "example": example},
        }

    def _attempts(self) -> list[dict[str, int]]:
        query = """SELECT CAST(value AS INTEGER) AS attempts, sum(n) FILTER (failed), sum(n) FILTER (NOT failed)
            FROM counts WHERE dimension = $dimension GROUP BY value ORDER BY attempts"""
        return [
            {"attempts": attempts, "failed": int(failed or 0), "predicted": int(predicted or 0)}
            for attempts, failed, predicted in self._execute(query, {"dimension": len(self._by)})
        ]

    def _speech(self) -> dict[str, Any] | None:
        ((rows,),) = self._execute("SELECT count(spans) FROM rows", {})
        if not rows:
            return None
        query = """SELECT span."label", sum(span."end" - span."start") FROM (SELECT unnest(spans) AS span FROM rows)
            GROUP BY ALL"""
        seconds = dict(self._execute(query, {}))
        total = sum(seconds.values())
        return {
            "rows": rows,
            "hours": total / 3600,
            "labels": {
                label: {
                    "hours": seconds.get(label, 0.0) / 3600,
                    "share": seconds.get(label, 0.0) / total if total else None,
                }
                for label in [*self._labels[:-1], *sorted(seconds.keys() - set(self._labels))]
            },
        }

    def _reasons(self, messages: str) -> dict[str, Any]:
        """Returns the most frequent reasons in the messages that a query selects with their `id` and `path`."""
        top = self._options.top
        query = f"""
            WITH messages AS MATERIALIZED ({messages}),
            reasons AS (
                SELECT reason_of(message, id, path) AS reason, count(DISTINCT id) AS n, min(id) AS example,
                    min_by(message, id) AS text
                FROM messages GROUP BY reason),
            ranked AS (SELECT *, row_number() OVER (ORDER BY n DESC, reason) AS rank FROM reasons)
            SELECT least(rank, $top + 1) AS place, min_by(reason, rank), sum(n), count(*), min_by(example, rank),
                min_by(text, rank), (SELECT count(DISTINCT id) FROM messages)
            FROM ranked GROUP BY place ORDER BY place"""
        found = self._execute(query, {"top": top})
        return {
            "rows": found[0][-1] if found else 0,
            "reasons": [
                {"reason": reason, "rows": int(count), "example": {"id": example, "message": text}}
                for place, reason, count, _, example, text, _ in found
                if place <= top
            ],
            "others": next(
                ({"number": number, "rows": int(count)} for place, _, count, number, *_ in found if place > top), None
            ),
        }

    def _execute(self, query: str, parameters: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, parameters or None).fetchall()


@dataclass(frozen=True)
class _Group:
    """Counts of a group: label, whether it failed, rows, seconds, sum and number of scores."""

    name: str | None
    cells: list[tuple[Any, ...]]


def share_of(rows: int, total: int) -> dict[str, Any]:
    """
    Returns `{"rows", "share", "interval"}` of some of `total` rows.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.
    """
    if not total:
        return {"rows": int(rows), "share": None, "interval": None}
    share = rows / total
    square = NORMAL_QUANTILE**2 / total
    center = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return {"rows": int(rows), "share": share, "interval": [max(center - half, 0.0), min(center + half, 1.0)]}


def _moment(text: str, time_format: str | None) -> str:
    """Returns the timestamp in a text, in SQL; NULL if it is none."""
    if time_format is None:
        parsed = f"coalesce(TRY_CAST({text} AS TIMESTAMPTZ)::TIMESTAMP, try_strptime({text}, {SHORT_DATES}))"
    else:
        parsed = f"try_strptime({text}, {_literal(time_format)})::TIMESTAMP"
    return f"CASE WHEN isfinite({parsed}) THEN {parsed} END"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
