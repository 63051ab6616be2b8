"""
`mmemo predict`: files, folders and globs through a predictor, and what was found as text, JSON lines, CSV or plots.

Deliberate choices:
- An answer is written as soon as it is there. So a run that breaks off goes on where it was, if its output is a file.
- A file that cannot be answered for is told on standard error, and the others go on.
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


# What libsndfile reads, by the usual endings.
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64"}
SUBTITLE_SUFFIXES = (".srt", ".vtt")
FORMATS = ("text", "json", "csv")


def find_files(given: Iterable[str]) -> list[Path]:
    """
    The audio files that are meant by paths, by folders (with those inside them) and by globs, each once, in order.

    Raises:
        ValueError: If one of them means no file.
    """
    found: dict[Path, None] = {}
    for name in given:
        path = Path(name)
        if path.is_dir():
            files = sorted(
                file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()
            )
        elif path.exists() or not glob.has_magic(name):
            files = [path]
        else:
            files = [file for file in map(Path, sorted(glob.glob(name, recursive=True))) if file.is_file()]
        if not files and path.is_dir():
            raise ValueError(f"{name} holds no audio file; those end in {', '.join(sorted(AUDIO_SUFFIXES))}.")
        if not files:
            raise ValueError(f"{name} matches no file.")
        found.update(dict.fromkeys(files))
    return list(found)


def find_subtitles(srt: Path, file: Path | None) -> Path | None:
    """
    The subtitles of a file: `srt` itself, or what has the file's name in the folder `srt`, if there is any.
    """
    if not srt.is_dir() or file is None:
        return srt
    return next((path for suffix in SUBTITLE_SUFFIXES if (path := srt / f"{file.stem}{suffix}").is_file()), None)


class Answers:
    """
    Where answers go, one after the other.

    Args:
        kind (`str`): `"text"`, `"json"` or `"csv"`.
        labels (`list[str]`): Of the model, in their order.
        timeline (`bool`): Whether the answers are timelines.
        output (`Path`, *optional*): A file to add to; standard output by default.

    Raises:
        ValueError: If the file is there and holds something else.
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
        """Writes the answer for a file, for its text, or both."""
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
            # In one piece, so that a run that breaks off leaves whole answers.
            file.write(content)

    def _read_done(self, output: Path) -> set[str]:
        """Which files an earlier run answered for; what it left half written goes."""
        content = output.read_text(encoding="utf-8")
        whole = content[: content.rfind("\n") + 1]
        try:
            if self._kind == "csv":
                reader = csv.DictReader(io.StringIO(whole))
                if reader.fieldnames != self._columns:
                    raise ValueError(f"its columns are {reader.fieldnames}, not {self._columns}")
                files = [row["file"] for row in reader]
                if self._timeline and files:
                    # Of the last one, rows may be missing.
                    rows = io.StringIO(whole)
                    whole = "".join(line for line, file in zip(rows, [None, *files]) if file != files[-1])
                done = set(files) - set(files[-1:] if self._timeline else [])
            else:
                done = {json.loads(line)["file"] for line in whole.splitlines()}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{output} holds no answers of such a run ({error}); name another --output, or remove it."
            ) from error
        if whole != content:
            output.write_text(whole, encoding="utf-8")
        return done


def predict_all(
    predictor: EmotionPredictor,
    files: list[Path | None],
    answers: Answers,
    text: str | None = None,
    srt: Path | None = None,
    timeline: bool = False,
    top_k: int | None = None,
    plots: Path | None = None,
    advance: Callable[[], None] = lambda: None,
    errors: TextIO | None = None,
) -> int:
    """
    Answers for files one after the other.

    Args:
        predictor ([`EmotionPredictor`]): What answers.
        files (`list`): Audio files; `[None]` for a text alone.
        answers ([`Answers`]): Where the answers go; files that it has already are left out.
        text (`str`, *optional*): What is said.
        srt (`Path`, *optional*): Subtitles, or a folder of them; see [`find_subtitles`].
        timeline (`bool`): Whether to answer over time.
        top_k (`int`, *optional*): How many labels.
        plots (`Path`, *optional*): A folder for a plot of each timeline.
        advance (`Callable`): Called behind each file.
        errors (`TextIO`, *optional*): Where it is told what cannot be answered for; standard error by default.

    Returns:
        `int`: How many files could not be answered for.
    """
    failed = 0
    for file in files:
        if file is None or str(file) not in answers.done:
            try:
                subtitles = None if srt is None else find_subtitles(srt, file)
                result = _predict(predictor, file, text, subtitles, timeline, top_k)
            except ValueError as error:
                failed += 1
                print(f"Error: {file or 'text'}: {error}", file=errors or sys.stderr)
            else:
                if plots is not None:
                    _plot(result, file, plots)
                answers.add(file, text, result)
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
