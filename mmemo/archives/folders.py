"""
`mmemo predict`: predicts files, folders and globs, and writes the results as text, JSON lines, CSV or plots.

Deliberate choices:
- A prediction is written as soon as it is made, so an interrupted run with an output file resumes where it stopped.
- A file that cannot be predicted is reported on standard error, and the run continues.
"""

import csv
import glob
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from mmemo.runtime.predictor import EmotionPredictor


# The usual extensions of the formats that libsndfile decodes.
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64"}
SUBTITLE_SUFFIXES = (".srt", ".vtt")


def find_files(patterns: Iterable[str]) -> list[Path]:
    """
    Returns the audio files that paths, folders (searched recursively) and globs refer to, in order, each once.

    Raises:
        ValueError: If a pattern matches no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()
            )
        elif path.exists() or not glob.has_magic(pattern):
            files = [path]
        else:
            files = [file for file in map(Path, sorted(glob.glob(pattern, recursive=True))) if file.is_file()]
        if not files and path.is_dir():
            raise ValueError(f"{pattern} contains no audio file; valid suffixes are {sorted(AUDIO_SUFFIXES)}.")
        if not files:
            raise ValueError(f"{pattern} matches no file.")
        found.update(dict.fromkeys(files))
    return list(found)


def find_subtitles(srt: Path, file: Path | None) -> Path | None:
    """
    Returns the subtitles of an audio file: `srt` itself, or, if `srt` is a folder, the file in it that has the audio
    file's name; `None` if there is none.
    """
    if not srt.is_dir() or file is None:
        return srt
    return next((path for suffix in SUBTITLE_SUFFIXES if (path := srt / f"{file.stem}{suffix}").is_file()), None)


class PredictionWriter:
    """
    Writes predictions one by one.

    Args:
        kind (`str`): `"text"`, `"json"` or `"csv"`.
        labels (`list[str]`): The model's labels, in order.
        timeline (`bool`): Whether the predictions are timelines.
        output (`Path`, *optional*): File to append to; defaults to standard output.

    Attributes:
        done (`set[str]`): Files whose predictions the output file already contains.

    Raises:
        ValueError: If the output file exists and contains something else.
    """

    def __init__(self, kind: str, labels: list[str], timeline: bool, output: Path | None = None):
        self._kind, self._labels, self._timeline = kind, labels, timeline
        self._columns = ["file", *(["start", "end", "words"] if timeline else []), "label", "score", *labels]
        self._output = output
        self.done: set[str] = set()
        if output is not None and output.is_file() and output.stat().st_size:
            self.done = self._read_done(output)
        elif kind == "csv":
            self._write(self._as_csv([self._columns]))

    def add(self, file: Path | None, text: str | None, result: dict[str, Any]) -> None:
        """Writes the prediction for an audio file, a text, or both."""
        if self._kind == "json":
            line = json.dumps({"file": file and str(file), "text": text, **result}, ensure_ascii=False)
            self._write(f"{line}\n")
        elif self._kind == "csv":
            self._write(self._as_csv(self._rows(file, result)))
        else:
            self._write("".join(f"{line}\n" for line in self._lines(file, text, result)))

    def _lines(self, file: Path | None, text: str | None, result: dict[str, Any]) -> Iterator[str]:
        scores = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in result["scores"])
        yield f"{file or text}: {scores or result['label']}"
        for span in result.get("spans", []):
            yield f"  {span['start']:8.2f} to {span['end']:8.2f} s  {span['label']} {span['score']:.2f}"

    def _rows(self, file: Path | None, result: dict[str, Any]) -> Iterator[list[Any]]:
        for entry in result["timeline"] if self._timeline else [result]:
            scores = {score["label"]: round(score["score"], 6) for score in entry["scores"]}
            place = [entry["start"], entry["end"], " ".join(entry["words"])] if self._timeline else []
            best = max(scores.values(), default="")
            yield [file, *place, entry["label"], best, *(scores.get(label, "") for label in self._labels)]

    def _as_csv(self, rows: Iterable[list[Any]]) -> str:
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        return buffer.getvalue()

    def _write(self, content: str) -> None:
        if self._output is None:
            sys.stdout.write(content)
            return
        with self._output.open("a", encoding="utf-8") as file:
            # A single write, so that an interrupted run leaves complete predictions.
            file.write(content)

    def _read_done(self, output: Path) -> set[str]:
        """Returns the files that an earlier run has predicted; removes an incomplete prediction from the output."""
        content = output.read_text(encoding="utf-8")
        complete = content[: content.rfind("\n") + 1]
        try:
            if self._kind == "csv":
                reader = csv.DictReader(io.StringIO(complete))
                if reader.fieldnames != self._columns:
                    raise ValueError(f"its columns are {reader.fieldnames}, expected {self._columns}")
                files = [row["file"] for row in reader]
                if self._timeline and files:
                    # Rows of the last file may be missing.
                    rows = io.StringIO(complete)
                    complete = "".join(line for line, file in zip(rows, [None, *files]) if file != files[-1])
                done = set(files) - set(files[-1:] if self._timeline else [])
            else:
                done = {json.loads(line)["file"] for line in complete.splitlines()}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{output} does not contain predictions of such a run ({error}); choose another --output, or delete "
                "the file."
            ) from error
        if complete != content:
            output.write_text(complete, encoding="utf-8")
        return done


def predict_files(
    predictor: EmotionPredictor,
    files: list[Path | None],
    writer: PredictionWriter,
    text: str | None = None,
    srt: Path | None = None,
    timeline: bool = False,
    top_k: int | None = None,
    plots: Path | None = None,
    advance: Callable[[], None] = lambda: None,
    errors: TextIO | None = None,
) -> int:
    """
    Predicts files one by one and writes the results.

    Args:
        predictor ([`EmotionPredictor`]): The model.
        files (`list`): Audio files; `[None]` for a text alone.
        writer ([`PredictionWriter`]): Writes the results; files that its output already contains are skipped.
        text (`str`, *optional*): The text spoken in the file.
        srt (`Path`, *optional*): Subtitles, or a folder of subtitles; see [`find_subtitles`].
        timeline (`bool`, *optional*, defaults to `False`): Whether to predict timelines.
        top_k (`int`, *optional*): Number of labels to return; defaults to all.
        plots (`Path`, *optional*): Folder for a plot of each timeline; created if it does not exist.
        advance (`Callable`, *optional*): Called after each file.
        errors (`TextIO`, *optional*): Stream for error messages; defaults to standard error.

    Returns:
        `int`: Number of files that could not be predicted.
    """
    failed = 0
    for file in files:
        if file is None or str(file) not in writer.done:
            try:
                subtitles = None if srt is None else find_subtitles(srt, file)
                result = _predict(predictor, file, text, subtitles, timeline, top_k)
            except ValueError as error:
                failed += 1
                print(f"Error: {file or 'text'}: {error}", file=errors or sys.stderr)
            else:
                if plots is not None:
                    _plot(result, file, plots)
                writer.add(file, text, result)
        advance()
    return failed


def _predict(
    predictor: EmotionPredictor,
    file: Path | None,
    text: str | None,
    subtitles: Path | None,
    timeline: bool,
    top_k: int | None,
) -> dict[str, Any]:
    if timeline:
        return predictor(file, text, word_times=subtitles, top_k=top_k, return_timeline=True)
    result = predictor(file, text, word_times=subtitles, top_k=top_k, return_modality_weights=True)
    return {"label": result["scores"][0]["label"], **result}


def _plot(result: dict[str, Any], file: Path | None, folder: Path) -> None:
    from mmemo.plots import plot_timeline

    folder.mkdir(parents=True, exist_ok=True)
    plot_timeline(result, audio=file, path=folder / f"{file.stem if file else 'text'}.png")
