"""
Writes the predictions of many inputs as text, JSON lines or CSV, and resumes an interrupted output file.

Deliberate choices:
- Every input has a row or a line, also if it failed: its `error` says why, and is empty otherwise.
- The columns depend on the model and the options only, never on the results.
- A prediction is written as soon as it is made, so an interrupted run resumes where it stopped. Failed inputs and an
  incomplete last one are predicted again.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmemo.modalities import MODALITIES


STANDARD_INPUT = "-"
# Names of files need not be valid Unicode: JSON can escape such bytes, CSV contains them as they are.
ENCODING_ERRORS = {"json": "backslashreplace", "csv": "surrogateescape"}
# Keys of results that tell the layouts apart in JSON lines.
MARKS = ("timeline", "speakers")
MAX_TEXT_WIDTH = 72
# Columns of predictions from videos.
WEIGHT_COLUMNS = {f"{modality}_weight": modality for modality in MODALITIES}
FACE_COLUMNS = ("face_presence", "blendshapes")


class ItemLayout:
    """
    One prediction for each input.

    Args:
        labels (`list[str]`): The model's labels, in order.
        has_label_set (`bool`, *optional*, defaults to `False`): Whether predictions have a prediction set.
        has_video (`bool`, *optional*, defaults to `False`): Whether they are of videos, which adds modality weights.
    """

    mark: str | None = None
    """The one of `MARKS` that results have."""
    has_many_rows = False
    """Whether one input may have several rows in CSV."""
    place: tuple[str, ...] = ()
    """Columns before the label."""

    def __init__(self, labels: list[str], has_label_set: bool = False, has_video: bool = False):
        self.labels = labels
        self.has_label_set = has_label_set
        self.has_video = has_video

    @property
    def columns(self) -> list[str]:
        """The columns in CSV between `file` and `error`."""
        label_set = ["label_set"] if self.has_label_set else []
        weights = WEIGHT_COLUMNS if self.has_video else []
        return [*self.place, "label", "score", *label_set, *self.labels, *weights]

    def rows(self, result: dict[str, Any]) -> Iterator[list[Any]]:
        """Yields the rows of a result in CSV, at least one."""
        yield self.row((), result)

    def row(self, place: tuple[Any, ...], entry: dict[str, Any]) -> list[Any]:
        """Returns the row of one entry: its place, and its scores in the order of the labels."""
        scores = {score["label"]: round(score["score"], 6) for score in entry["scores"]}
        label_set = [" ".join(entry.get("label_set", ()))] if self.has_label_set else []
        best = max(scores.values(), default="")
        weights = WEIGHT_COLUMNS.values() if self.has_video else ()
        shares = [round(entry["modality_weights"][modality], 6) for modality in weights]
        return [*place, entry["label"], best, *label_set, *(scores.get(label, "") for label in self.labels), *shares]

    def lines(self, name: str, result: dict[str, Any]) -> Iterator[str]:
        """Yields the lines of a result as text."""
        yield f"{name}: {describe_scores(result)}"


class TimelineLayout(ItemLayout):
    """The timeline of each input: a row for each of its entries."""

    mark = "timeline"
    has_many_rows = True
    place = ("start", "end", "words")

    @property
    def columns(self) -> list[str]:
        return [*super().columns, *(FACE_COLUMNS if self.has_video else ())]

    def row(self, place: tuple[Any, ...], entry: dict[str, Any]) -> list[Any]:
        face = entry.get("face", {"presence": "", "blendshapes": []})
        names = " ".join(f"{shape['name']}={shape['score']:.2f}" for shape in face["blendshapes"])
        return [*super().row(place, entry), *((face["presence"], names) if self.has_video else ())]

    def rows(self, result: dict[str, Any]) -> Iterator[list[Any]]:
        entries = result["timeline"] or [{**result, "start": "", "end": "", "words": []}]
        for entry in entries:
            yield self.row((entry["start"], entry["end"], " ".join(entry["words"])), entry)

    def lines(self, name: str, result: dict[str, Any]) -> Iterator[str]:
        yield from super().lines(name, result)
        for span in result["spans"]:
            yield f"  {span['start']:8.2f} to {span['end']:8.2f} s  {span['label']} {span['score']:.2f}"


def describe_scores(result: dict[str, Any]) -> str:
    """Returns scores as "angry 0.83, sad 0.07", after the label where that is not the first of them."""
    scores = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in result["scores"])
    if not scores:
        return str(result["label"])
    is_first = result["label"] == result["scores"][0]["label"]
    label_set = f"; prediction set {', '.join(result['label_set'])}" if result.get("label_set") else ""
    return ("" if is_first else f"{result['label']}, ") + scores + label_set


class PredictionWriter:
    """
    Writes predictions one by one.

    Args:
        kind (`str`): `"text"`, `"json"` or `"csv"`.
        layout ([`ItemLayout`]): The columns and rows of a result.
        output (`Path`, *optional*): File to append to; defaults to standard output. Its folder is created if missing.

    Attributes:
        done (`set[str]`): Inputs whose predictions the output file already contains.

    Raises:
        ValueError: If the output file exists and contains something else, such as other columns.
    """

    def __init__(self, kind: str, layout: ItemLayout, output: Path | None = None):
        self._kind, self._layout, self._output = kind, layout, output
        self._columns = ["file", *layout.columns, "error"]
        self.done: set[str] = set()
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        if output is not None and output.is_file() and output.stat().st_size:
            self.done = self._resume(output)
        elif kind == "csv":
            self._write(_as_csv([self._columns]))

    def add(self, name: str | None, text: str | None, result: dict[str, Any]) -> None:
        """
        Writes a prediction.

        Args:
            name (`str`, *optional*): The name of the input; `None` for a text alone.
            text (`str`, *optional*): The text of the input.
            result (`dict`): The prediction.
        """
        if self._kind == "json":
            self._write(_as_json({"file": name, "text": text, **result, "error": None}))
        elif self._kind == "csv":
            self._write(_as_csv([name, *row, ""] for row in self._layout.rows(result)))
        else:
            shown = name or _short(text or "subtitles")
            self._write("".join(f"{line}\n" for line in self._layout.lines(shown, result)))

    def add_error(self, name: str | None, text: str | None, error: str) -> None:
        """Writes a row for an input that could not be predicted; as text nothing."""
        if self._kind == "json":
            self._write(_as_json({"file": name, "text": text, "error": error}))
        elif self._kind == "csv":
            self._write(_as_csv([[name, *[""] * (len(self._columns) - 2), error]]))

    def _write(self, content: str) -> None:
        if self._output is None:
            sys.stdout.write(content)
            sys.stdout.flush()  # for the next program in a pipe
            return
        errors = ENCODING_ERRORS[self._kind]
        with self._output.open("a", encoding="utf-8", errors=errors, newline="") as file:
            # A single write, so that an interrupted run leaves complete predictions.
            file.write(content)

    def _resume(self, output: Path) -> set[str]:
        """Returns the inputs that an earlier run has predicted; removes failed and incomplete ones from the output."""
        try:
            with output.open(encoding="utf-8", errors=ENCODING_ERRORS["csv"], newline="") as file:
                content = file.read()
            complete, done = self._kept_rows(content) if self._kind == "csv" else self._kept_lines(content)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(
                f"{output} does not contain predictions of such a run ({error}); choose another --output, or delete "
                "the file."
            ) from error
        if complete != content:
            rest = output.with_name(f".{output.name}.resumed")
            with rest.open("w", encoding="utf-8", errors=ENCODING_ERRORS["csv"], newline="") as file:
                file.write(complete)
            os.replace(rest, output)
        return done - {"", STANDARD_INPUT}

    def _kept_rows(self, content: str) -> tuple[str, set[str]]:
        """Returns the header and the rows of predicted inputs, and the names of these inputs."""
        csv.field_size_limit(max(csv.field_size_limit(), len(content)))  # many words may be one field
        header, *rows = csv.reader(io.StringIO(content, newline=""))
        if header != self._columns:
            raise ValueError(f"its columns are {str(header)[:200]}, expected {self._columns}")
        if rows and (len(rows[-1]) != len(header) or not content.endswith("\n")):
            rows.pop()  # interrupted within a row
        if strange := next((row for row in rows if len(row) != len(header)), None):
            raise ValueError(f"a row has {len(strange)} columns, expected {len(header)}: {strange[:3]}")
        dropped = {row[0] for row in rows if row[-1]}
        if self._layout.has_many_rows and rows:
            dropped.add(rows[-1][0])  # some of its rows may be missing
        kept = [row for row in rows if row[0] not in dropped]
        return _as_csv([header, *kept]), {row[0] for row in kept}

    def _kept_lines(self, content: str) -> tuple[str, set[str]]:
        """Returns the lines of predicted inputs, and the names of these inputs."""
        lines, done = [], set()
        for line in content[: content.rfind("\n") + 1].split("\n")[:-1]:
            entry = json.loads(line)
            if "error" not in entry:
                raise ValueError("a line has no 'error'")
            if entry["error"] is not None:
                continue
            if any((mark in entry) != (mark == self._layout.mark) for mark in MARKS):
                raise ValueError(f"the line of {entry['file']!r} was written with other options")
            lines.append(f"{line}\n")
            done.add(entry["file"] or "")
        return "".join(lines), done


def _short(text: str) -> str:
    """Returns a text as one line of at most `MAX_TEXT_WIDTH` characters."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_TEXT_WIDTH else f"{line[: MAX_TEXT_WIDTH - 4]} ..."


def _as_json(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _as_csv(rows: Iterable[list[Any]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
