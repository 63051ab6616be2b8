"""
The output folder of an archive job: parts in Parquet, JSON lines or CSV, which an interrupted job resumes.

Deliberate choices:
- Rows are collected into parts of a thousand, or of 30 seconds, and a part is written as a whole. An exception or
  Ctrl-C writes what is collected; a process that is killed loses that, and nothing else.
- The columns by which the output is partitioned are in its files too: a file can be read without its path, and numbers
  in text ("007") remain text. `pandas.read_parquet` needs `partitioning=None` for that.
- Of predicted ids only digests are kept, about 100 MB for a million.
"""

import csv
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, BinaryIO

from mmemo.archives.archive_rows import (
    FORMATS,
    PartFormat,
    archive_schema,
    check_partitions,
    partition_of,
    row_of,
)
from mmemo.archives.job_manifest import MANIFEST_FILE, JobManifest
from mmemo.archives.output_folder import OutputFolder, open_folder
from mmemo.archives.tasks import Outcome
from mmemo.storage import valid_text


ROWS_PER_PART = 1000
SECONDS_PER_PART = 30.0
# Of all parts together; a timeline of twelve hours has 15 MB.
MAX_COLLECTED_BYTES = 64 * 2**20
PART = re.compile(r"(?:.*/)?part-(\d+)-[^/]*")


@dataclass
class CollectedPart:
    """
    Rows of a part that is not written yet, or that is written again with other rows.

    Args:
        name (`str`): The name of its file.
        is_rewritten (`bool`): Whether the file exists, and its rows with these ids are replaced.
        since (`float`): When its first row was collected, in seconds of a monotonic clock.
        rows (`dict[str, bytes]`): Encoded rows by id.
        size (`int`): Size of the rows in bytes.
    """

    name: str
    is_rewritten: bool
    since: float
    rows: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


class ArchiveOutput:
    """
    The output folder of an archive job, open for writing; a context manager. [`~ArchiveOutput.open`] creates it.

    Attributes:
        manifest ([`JobManifest`]): The manifest in the folder.
        failed (`dict[str, int]`): The ids of failed rows, with the number of attempts to predict them.
        num_rows (`int`): Number of rows in the files of the folder.

    Example:

    ```python
    >>> with ArchiveOutput.open("predictions", manifest) as output:
    ...     for outcome in run_local((Task(item) for item in items if not output.is_done(item.id)), options):
    ...         output.add(outcome)
    ```
    """

    def __init__(self, folder: OutputFolder, manifest: JobManifest, rows_per_part: int):
        self.manifest = manifest
        self.failed: dict[str, int] = {}
        self.num_rows = 0
        self._folder = folder
        self._format = _format_of(manifest)
        check_partitions(manifest.partition_by, self._format.schema)
        self._rows_per_part = rows_per_part
        self._done: set[bytes] = set()
        # With `retry_failed`: the parts that contain failed rows.
        self._part_of: dict[str, str] = {}
        self._next_number = 0
        self._run_id = secrets.token_hex(4)
        # The oldest first, and the current part of each partition.
        self._collected: dict[str, CollectedPart] = {}
        self._current: dict[str, str] = {}

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        manifest: JobManifest,
        *,
        retry_failed: bool = False,
        rows_per_part: int = ROWS_PER_PART,
    ) -> "ArchiveOutput":
        """
        Opens a new output folder, or one that an earlier run of the same job has written to, and locks it.

        Args:
            folder (`str` or `os.PathLike`): A path, which is created if missing, or a URL of fsspec.
            manifest ([`JobManifest`]): The manifest of the job.
            retry_failed (`bool`, *optional*, defaults to `False`): Whether failed rows are predicted again.
            rows_per_part (`int`, *optional*, defaults to 1000): Number of rows of a file.

        Raises:
            ValueError: If the folder belongs to another job or contains other files, another process writes to it, a
                file in it is damaged, or the manifest is invalid.
            OSError: If the folder cannot be read or written.
        """
        place = open_folder(folder)
        output = cls(place, manifest, rows_per_part)
        try:
            output._writing(place.lock)
            output._resume(retry_failed)
        except BaseException:
            place.unlock()
            raise
        return output

    def __enter__(self) -> "ArchiveOutput":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_done(self, name: str) -> bool:
        """Returns whether the output has a row of this id, and the job does not retry it."""
        return _digest(valid_text(name)) in self._done

    def attempts(self, name: str) -> int:
        """Returns the number of failed attempts to predict the item with this id."""
        return self.failed.get(valid_text(name), 0)

    def add(self, outcome: Outcome) -> None:
        """
        Adds the row of an outcome, and writes the parts that are due.

        Args:
            outcome ([`Outcome`]): The outcome of a whole item.

        Raises:
            ValueError: If the output has a row of this id, or a value does not fit the type of its column.
            OSError: If a part cannot be written. Its rows are kept: closing the output tries once more.
        """
        row = row_of(outcome, self._format.schema)
        name = row["id"]
        digest = _digest(name)
        if digest in self._done:
            raise ValueError(f"{name}: the output has a row of this id already; ids must be unique.")
        part = self._part_for(row)
        encoded = self._format.encode(row)
        part.rows[name] = encoded
        part.size += len(encoded)
        self._done.add(digest)
        if row["error"] is None:
            self.failed.pop(name, None)
        else:
            self.failed[name] = row["attempts"]
        self._write_due(part)

    def flush(self) -> None:
        """
        Writes all rows that were added.

        Raises:
            OSError: If a part cannot be written; the others are.
            ValueError: If a part of an earlier run, with failed rows to replace, is damaged.
        """
        problem: Exception | None = None
        for part in list(self._collected.values()):
            try:
                self._write_part(part)
            except (OSError, ValueError) as error:
                problem = error
        if problem is not None:
            raise problem

    def close(self) -> None:
        """Writes all rows that were added, and unlocks the folder; see [`~ArchiveOutput.flush`]."""
        try:
            self.flush()
        finally:
            self._folder.unlock()

    def _resume(self, retry_failed: bool) -> None:
        """Writes the manifest, or compares it and finds the rows of earlier runs."""
        names = self._folder.names()
        place = self._folder.place
        try:
            written = _read_manifest(self._folder)
        except FileNotFoundError:
            if names:
                raise ValueError(
                    f"{place} has no {MANIFEST_FILE} but other files, such as {names[0]}; choose a new folder."
                ) from None
            self._writing(lambda: self._folder.put(MANIFEST_FILE, self.manifest.to_json().encode()))
            return
        self.manifest.check_same_job(written, place)
        self._writing(self._folder.clean)
        # Its columns may have another order.
        self.manifest, self._format = written, _format_of(written)
        parts = _numbered_parts(names, self._format)
        self._next_number = max(parts.values(), default=-1) + 1
        for name in parts:
            self._find_rows(name, retry_failed)

    def _find_rows(self, name: str, retry_failed: bool) -> None:
        count = len(self._done) + len(self._part_of)
        with _reading_part(self._folder, name) as file:
            for state in self._format.states(file):
                digest = _digest(state.id)
                if digest in self._done or state.id in self._part_of:
                    raise ValueError(f"the row of {state.id!r} is in another file too")
                if state.is_failed:
                    self.failed[state.id] = state.attempts
                if state.is_failed and retry_failed:
                    self._part_of[state.id] = name
                else:
                    self._done.add(digest)
            found = len(self._done) + len(self._part_of) - count
            if not found:
                raise ValueError("it has no rows")
        self.num_rows += found

    def _part_for(self, row: Mapping[str, Any]) -> CollectedPart:
        """Returns the part that a row belongs to: that of its failed row, or the current one of its partition."""
        partition = partition_of(row, self.manifest.partition_by)
        name = self._part_of.get(row["id"])
        is_rewritten = name is not None
        if name is None:
            name = self._current.get(partition)
        elif name.rpartition("/")[0] != partition:
            raise ValueError(
                f"{row['id']}: its failed row is in {name}, but its columns now belong to {partition}; give them "
                "their earlier values, or choose another --output."
            )
        if name is None:
            file = f"part-{self._next_number:05d}-{self._run_id}{self._format.suffix}"
            self._next_number += 1
            name = self._current[partition] = f"{partition}/{file}".lstrip("/")
        if name not in self._collected:
            self._collected[name] = CollectedPart(name, is_rewritten, monotonic())
        return self._collected[name]

    def _write_due(self, part: CollectedPart) -> None:
        if len(part.rows) >= self._rows_per_part:
            self._write_part(part)
        if sum(part.size for part in self._collected.values()) > MAX_COLLECTED_BYTES:
            self.flush()
        while self._collected:
            oldest = next(iter(self._collected.values()))
            if monotonic() - oldest.since < SECONDS_PER_PART:
                break
            self._write_part(oldest)

    def _write_part(self, part: CollectedPart) -> None:
        """Writes a part. Repeating it is harmless: the file keeps its name."""
        if part.is_rewritten:
            with _reading_part(self._folder, part.name) as file:
                content = self._format.replace(file, part.rows)
        else:
            content = self._format.join(part.rows.values())
        self._writing(lambda: self._folder.put(part.name, content))
        del self._collected[part.name]
        if not part.is_rewritten:
            self.num_rows += len(part.rows)
            self._current = {key: name for key, name in self._current.items() if name != part.name}

    def _writing(self, write: Callable[[], None]) -> None:
        """Calls a function that writes to the folder."""
        try:
            write()
        except OSError as error:
            raise OSError(
                f"{self._folder.place} cannot be written ({error.strerror or error}); the {self.num_rows} rows in it "
                "are safe. Make space or access for it, and run the same command again, which continues."
            ) from error


def read_manifest(folder: str | os.PathLike) -> JobManifest:
    """
    Returns the manifest of an output folder.

    Raises:
        FileNotFoundError: If the folder is not the output of an archive job.
    """
    return _read_manifest(open_folder(folder))


def read_rows(folder: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """
    Yields the rows of an output folder, in any of the formats, one file after the other.

    Args:
        folder (`str` or `os.PathLike`): A path, or a URL of fsspec.

    Returns:
        `Iterator[dict]`: By the columns of [`archive_schema`], with values of their types.

    Raises:
        FileNotFoundError: If the folder is not the output of an archive job.
        ValueError: If a file is damaged.
    """
    place = open_folder(folder)
    part_format = _format_of(_read_manifest(place))
    for name in _numbered_parts(place.names(), part_format):
        with _reading_part(place, name) as file:
            yield from part_format.rows(file)


def _read_manifest(folder: OutputFolder) -> JobManifest:
    """Returns the manifest of a folder; raises a `FileNotFoundError` if it has none."""
    try:
        content = folder.read(MANIFEST_FILE)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder.place} has no {MANIFEST_FILE}; choose the --output of an earlier mmemo predict."
        ) from error
    return JobManifest.from_json(content, f"{folder.place}/{MANIFEST_FILE}")


def _format_of(manifest: JobManifest) -> PartFormat:
    if manifest.format not in FORMATS:
        raise ValueError(f"The format {manifest.format!r} is unknown; choose one of {list(FORMATS)}.")
    return FORMATS[manifest.format](archive_schema(manifest.labels, manifest.modalities, manifest.columns))


def _numbered_parts(names: Iterable[str], part_format: PartFormat) -> dict[str, int]:
    """Returns the names of the parts among names of files, with their numbers."""
    matches = (PART.fullmatch(name) for name in names if name.endswith(part_format.suffix))
    return {found[0]: int(found[1]) for found in matches if found}


@contextmanager
def _reading_part(folder: OutputFolder, name: str) -> Iterator[BinaryIO]:
    """Opens a part; errors of its content and of the storage become one sentence each."""
    with folder.open(name) as file:
        try:
            yield file
        except Exception as error:  # those of storages have no common base class
            # Arrow raises a plain OSError without a number where a file ends too early.
            is_content = isinstance(error, (ValueError, LookupError, TypeError, csv.Error)) or type(error) is OSError
            if not is_content or (isinstance(error, OSError) and error.errno is not None):
                raise OSError(f"{folder.place}/{name} cannot be read ({error}); nothing was changed.") from error
            raise ValueError(
                f"{folder.place}/{name} is damaged, or not a file of this job ({error}). Restore it, or delete it: "
                "the job then predicts its rows again."
            ) from error


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16).digest()
