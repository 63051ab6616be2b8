"""`mmemo predict` and `mmemo call`: from the arguments to the output."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from mmemo.archives.call_report import CallLayout, CallSummaryLayout
from mmemo.archives.folders import (
    SUBTITLE_SUFFIXES,
    TEXT_INPUT,
    TURNS_SUFFIXES,
    Input,
    check_companions,
    find_channel_companions,
    find_files,
    named,
    plot_paths,
)
from mmemo.archives.interrupts import outside_callbacks
from mmemo.archives.jobs import CallJob, ItemJob, ReportingPredictor, run_job
from mmemo.archives.reporting import progress_bar, report_error, warn, warnings_about
from mmemo.archives.scorer import check_modalities
from mmemo.archives.writing import STANDARD_INPUT, ItemLayout, PredictionWriter, TimelineLayout
from mmemo.audio.loading import VIDEO_SUFFIXES
from mmemo.timeline.windows import TimelineOptions
from mmemo.words.decoding import decode_text


@dataclass(frozen=True)
class ArchiveOptions:
    """
    Options that `mmemo predict` and `mmemo call` share; see their help texts.

    Args:
        files (`list[str]`, *optional*), recursive (`bool`): The inputs; see [`find_files`].
        video (`bool`): Whether to predict faces: of folders, only video files are inputs.
        model, revision (`str`, *optional*): See [`EmotionPredictor`].
        kind (`str`), output (`Path`, *optional*): See [`PredictionWriter`].
        plot (`Path`, *optional*): Folder of the plots.
        top_k (`int`): Number of labels in text; JSON and CSV have all of them.
        threshold, coverage (`float`, *optional*): See [`AnswerFormatter`].
        granularity (`str`, *optional*): See [`TimelineOptions`].
        labels (`dict`): Options of [`~EmotionRecognition.with_labels`].
        debug (`bool`): Whether to raise the first error.
    """

    files: list[str] | None
    recursive: bool
    video: bool
    model: str | None
    revision: str | None
    kind: str
    output: Path | None
    plot: Path | None
    top_k: int
    threshold: float | None
    coverage: float | None
    granularity: str | None
    labels: dict[str, Any]
    debug: bool

    def inputs(self) -> tuple[list[Input], int]:
        """Returns the inputs, and the number of folders and pipes that cannot be read, after reporting these."""
        if not self.files:
            return [TEXT_INPUT], 0
        if self.files == [STANDARD_INPUT]:
            content = {"bytes": sys.stdin.buffer.read(), "path": "standard input"}
            return [Input(STANDARD_INPUT, content, Path("stdin"))], 0
        found, problems = find_files(self.files, self.recursive, *([VIDEO_SUFFIXES] if self.video else []))
        for problem in problems:
            report_error(ValueError(problem))
        return found, len(problems)

    def plots(self, inputs: list[Input]) -> dict[str | None, Path]:
        """Returns the paths of the inputs' plots; empty if none are requested."""
        if self.plot is None:
            return {}
        import mmemo.plots  # noqa: F401 - a missing matplotlib is reported before the first prediction

        return plot_paths(self.plot, inputs)

    def load(self, inputs: list[Input]) -> tuple[ReportingPredictor, list[str]]:
        """Loads the model and checks the options against it; returns the labels that it predicts, too."""
        predictor = ReportingPredictor(self.model, self.revision, shows_progress=len(inputs) == 1)
        check_modalities(predictor.answers, self.model, self.video, bool(self.files))
        answers = predictor.with_labels(**self.labels).answers
        answers.check_options(top_k=self.top_k, threshold=self.threshold, coverage=self.coverage)
        return predictor, answers.labels

    def answer_options(self) -> dict[str, Any]:
        """Returns the options of each prediction."""
        return {
            "top_k": self.top_k if self.kind == "text" else None,
            "threshold": self.threshold,
            "coverage": self.coverage,
            **self.labels,
        }

    def run(self, job: Any, layout: ItemLayout, inputs: list[Input], text: str | None = None) -> int:
        """Predicts the inputs, writes the results, and returns the number of inputs that failed."""
        writer = PredictionWriter(self.kind, layout, self.output)
        with progress_bar(len(inputs), is_shown=len(inputs) > 1) as bar:
            return run_job(job, inputs, writer, text, lambda: bar.update(1), self.debug)


def predict_archive(
    archive: ArchiveOptions,
    text: str | None,
    srt: Path | None,
    timeline: bool,
    channel: int | None,
    face: int | None,
) -> int:
    """
    Predicts recordings, or a text; see `mmemo predict --help`.

    Returns:
        `int`: Number of inputs that failed.
    """
    options = {"channel": channel, "face": face, **archive.answer_options()}
    if archive.granularity is not None:
        options["granularity"] = TimelineOptions(granularity=archive.granularity).granularity
    inputs, unread = archive.inputs()
    if text is not None and len(inputs) > 1:
        raise typer.BadParameter(
            f"--text belongs to one file, got {len(inputs)}; leave it out, or run the command once per file."
        )
    if archive.files is None and srt is not None and srt.is_dir():
        raise typer.BadParameter(f"--srt {srt} is a folder, which needs recordings; pass them, or a subtitle file.")
    if text == STANDARD_INPUT:
        text = decode_text(sys.stdin.buffer.read(), "standard input").rstrip("\r\n")
    missing = check_companions("--srt", srt, inputs, SUBTITLE_SUFFIXES)
    plots = archive.plots(inputs)
    predictor, labels = archive.load(inputs)
    _warn_of_missing_subtitles(missing, inputs, srt)
    kind = TimelineLayout if timeline else ItemLayout
    layout = kind(labels, archive.coverage is not None, archive.video)
    job = ItemJob(predictor, text, srt, timeline, archive.video, options, plots)
    return unread + archive.run(job, layout, inputs, text)


def predict_into_folder(files: list[str], output: str, options: dict[str, Any]) -> int:
    """
    Predicts an archive into a folder; see `mmemo predict --help`.

    Args:
        files (`list[str]`): The sources.
        output (`str`): The folder.
        options (`dict`): Options of [`score`].

    Returns:
        `int`: Number of inputs that failed in this run, and of folders that cannot be read.
    """
    from mmemo.archives.archive_job import score

    pairs = options.pop("columns", [])
    if wrong := [pair for pair in pairs if pair.count("=") != 1]:
        raise typer.BadParameter(f"--columns {wrong[0]} must be written as ours=theirs, as in path=recording.")
    columns = dict(pair.split("=") for pair in pairs)
    # Both write the rows that were predicted. A shell may have its background jobs ignore SIGINT.
    handlers = {signal.SIGTERM: lambda *_: sys.exit(128 + signal.SIGTERM)}
    if callable(interrupt := signal.getsignal(signal.SIGINT)):
        handlers[signal.SIGINT] = interrupt
    replaced = {number: signal.signal(number, outside_callbacks(handler)) for number, handler in handlers.items()}
    try:
        with warnings_about(output):
            summary = score(files, output, columns=columns, progress=True, **options)
    except (KeyboardInterrupt, SystemExit):
        typer.echo(f"{output} has the rows that were predicted; the same command continues.", err=True)
        raise
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
    for problem in summary.problems:
        report_error(ValueError(problem))
    skipped = f", {summary.skipped:,} were there already" if summary.skipped else ""
    typer.echo(f"{output}: {summary.predicted:,} predicted, {summary.failed:,} failed{skipped}.")
    return summary.failed + len(summary.problems)


def predict_calls(
    archive: ArchiveOptions,
    speaker_turns: Path | None,
    srt: Path | None,
    customer: str | None,
    everyone: bool,
    summary: bool,
) -> int:
    """
    Predicts calls by speaker; see `mmemo call --help`.

    Returns:
        `int`: Number of calls that failed.
    """
    is_number = speaker_turns is None and customer is not None and customer.isdecimal()
    options = {
        "customer": int(str(customer)) if is_number else customer,
        "everyone": everyone,
        "granularity": archive.granularity,
        **archive.answer_options(),
    }
    inputs, unread = archive.inputs()
    check_companions("--speaker-turns", speaker_turns, inputs, TURNS_SUFFIXES)
    if speaker_turns is None and srt is not None:
        missing = [str(one.name) for one in inputs if not find_channel_companions(srt, one, SUBTITLE_SUFFIXES)]
    else:
        missing = check_companions("--srt", srt, inputs, SUBTITLE_SUFFIXES)
    plots = archive.plots(inputs)
    predictor, labels = archive.load(inputs)
    _warn_of_missing_subtitles(missing, inputs, srt)
    layout = (CallSummaryLayout if summary else CallLayout)(labels, archive.coverage is not None)
    job = CallJob(predictor, speaker_turns, srt, summary, options, plots)
    return unread + archive.run(job, layout, inputs)


def _warn_of_missing_subtitles(missing: list[str], inputs: list[Input], srt: Path | None) -> None:
    if missing:
        warn(
            f"{len(missing)} of {len(inputs)} recordings have no subtitles in {srt} and are predicted without words: "
            f"{named(missing)}."
        )
