"""The command `mmemo`. Each command imports its dependencies when it runs, so `--help` is fast."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mmemo.archives.reporting import report_error


class ReportingCommand(TyperCommand):
    """A command that reports an error in one sentence and exits with status 1; with `--debug` it raises the error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:
            # The reader, such as `head`, has enough; typer exits without a message.
            raise
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if _is_debugging(ctx):
                raise
            report_error(error)
            raise typer.Exit(1) from error


class ReportingTyper(typer.Typer):
    """An application whose commands are [`ReportingCommand`]s."""

    def command(self, *args: Any, **options: Any) -> Callable[..., Any]:
        return super().command(*args, cls=ReportingCommand, **options)


# Tracebacks appear only with --debug, and then as Python prints them.
app = ReportingTyper(
    help="Multimodal emotion recognition from audio, text, video, or several of them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Int8(StrEnum):
    """Quantization approaches for the int8 graph."""

    NONE = "none"
    DYNAMIC = "dynamic"
    STATIC = "static"


class Target(StrEnum):
    """Servers that an export is laid out for."""

    MMEMO = "mmemo"
    TRITON = "triton"


class Granularity(StrEnum):
    """Spans of a timeline."""

    WORD = "word"
    SEGMENT = "segment"
    SENTENCE = "sentence"
    UTTERANCE = "utterance"


class Engine(StrEnum):
    """Where an archive is predicted."""

    LOCAL = "local"
    PROCESSES = "processes"
    RAY = "ray"


class Format(StrEnum):
    """Formats of the output of an archive."""

    PARQUET = "parquet"
    JSON = "json"
    CSV = "csv"


class Channels(StrEnum):
    """How the channels of a call are used."""

    SPLIT = "split"


class Period(StrEnum):
    """Periods of a report."""

    MONTH = "month"
    WEEK = "week"
    DAY = "day"
    WEEKDAY = "weekday"
    HOUR = "hour"


ARCHIVES = "Archives: --output FOLDER without --json and --csv"

# Options of several commands.
Files = Annotated[
    list[str] | None,
    typer.Argument(
        help="Audio or video files, folders of them, quoted globs, URLs, or - for a file on standard input.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Folder or Hub name of an exported model; the embedded one by default.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")]
Recursive = Annotated[bool, typer.Option("--recursive/--no-recursive", help="Search the subfolders of folders.")]
Threshold = Annotated[float | None, typer.Option(help='Score below which the label is "uncertain".')]
Coverage = Annotated[
    float | None, typer.Option(help="Add a prediction set with this coverage, such as 0.9, to every prediction.")
]
CandidateLabel = Annotated[
    list[str] | None,
    typer.Option(
        help="Label in your own words, in place of the model's own; may be repeated, or a list separated by commas. "
        "Needs a model with a shared space of voice and words."
    ),
]
HypothesisTemplate = Annotated[
    list[str] | None,
    typer.Option(
        help="Sentence with {} in place of a --candidate-label; may be repeated. [default: This person feels {}.]"
    ),
]
NoneLabel = Annotated[
    str | None,
    typer.Option(
        help='Label of files to which no --candidate-label applies; "" leaves it out. [default: none of these]'
    ),
]
TopK = Annotated[int, typer.Option(help="Number of labels to print.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per file, with all labels.")]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Output file for --json or --csv. Files that it already contains are skipped, except failed ones."
    ),
]


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from importlib.metadata import version

        typer.echo(f"mmemo {version('mmemo')}")
        raise typer.Exit


@app.callback()
def main_options(
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Multimodal emotion recognition from audio, text, video, or several of them."""


@app.command()
def predict(
    context: typer.Context,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Audio or video files, folders of them, quoted globs, URLs, or - for a file on standard input. "
            "For archives also tables of recordings (CSV, TSV, JSON Lines, Parquet), URLs such as s3://, and datasets "
            "of the Hub.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Text spoken in the file, or a text without audio; - reads it from standard input."),
    ] = None,
    srt: Annotated[
        Path | None,
        typer.Option(
            help="Subtitles (SRT or WebVTT), or a folder of subtitles with the names of the recordings. Recordings "
            "without subtitles are named in a warning and predicted without words."
        ),
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Predict a timeline with an entry every 0.5 s, from windows of 3.5 s.")
    ] = False,
    granularity: Annotated[
        Granularity | None, typer.Option(help="Spans of the timeline; implies --timeline. [default: segment]")
    ] = None,
    channel: Annotated[
        int | None, typer.Option(help="Audio channel, counted from 0; the mean of all channels by default.", min=0)
    ] = None,
    video: Annotated[
        bool,
        typer.Option(
            "--video",
            help="Predict the face in a video as well as its sound, with a model that has a video encoder. In "
            "folders, only video files are predicted.",
        ),
    ] = False,
    face: Annotated[
        int | None,
        typer.Option(
            help="Face of the video, counted from 0; by default 0, the face whose mouth moves longest.",
            min=0,
        ),
    ] = None,
    threshold: Threshold = None,
    coverage: Coverage = None,
    candidate_label: CandidateLabel = None,
    hypothesis_template: HypothesisTemplate = None,
    none_label: NoneLabel = None,
    model: Model = None,
    revision: Revision = None,
    top_k: TopK = 3,
    recursive: Recursive = True,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV with all labels: a row per file, or per timeline entry.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            help="Output file for --json or --csv; without them, output folder or its URL, for archives of any size. "
            "What it already contains is skipped, except failed files in an output file."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for a plot of each timeline; created if missing.")] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="Predict in this process, in several, or on a Ray cluster. [default: local]",
            rich_help_panel=ARCHIVES,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of processes, or of actors on Ray; all cores by default.", min=1, rich_help_panel=ARCHIVES
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Address of the Ray cluster, such as auto; a local one is started by default.",
            rich_help_panel=ARCHIVES,
        ),
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option("--format", help="Format of the output. [default: parquet]", rich_help_panel=ARCHIVES),
    ] = None,
    partition_by: Annotated[
        list[str] | None,
        typer.Option(
            help="Divide the output into folders by a column of the table; may be repeated.", rich_help_panel=ARCHIVES
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Column of the table for one of path, id, text, word_times, channel, as in path=recording; may be "
            "repeated.",
            rich_help_panel=ARCHIVES,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Split of the dataset of the Hub; all by default.", rich_help_panel=ARCHIVES),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Predict failed files again.", rich_help_panel=ARCHIVES),
    ] = False,
) -> None:
    """
    Predicts the emotions of recordings, or of a text, with the exported model. Does not need torch.

    The output has every input; `error` says why one failed. The exit status is 1 if any input failed.
    """
    timeline = timeline or granularity is not None
    labels = _label_options(candidate_label, hypothesis_template, none_label)
    spans = None if granularity is None else granularity.value
    for_archives = {
        "engine": None if engine is None else engine.value,
        "workers": workers,
        "address": address,
        "format": None if format_ is None else format_.value,
        "partition_by": partition_by,
        "columns": columns,
        "split": split,
        "retry_failed": retry_failed or None,
    }
    is_archive = output is not None and not (as_json or as_csv)
    _check_sources(files, text, srt, video, face)
    if is_archive:
        _check_archive(files, output, {"--text": text, "--plot": plot, "--top-k": top_k if top_k != 3 else None})

        from mmemo.archives.commands import predict_into_folder

        scoring = {
            "model": model,
            "revision": revision,
            "timeline": timeline,
            "granularity": spans,
            "threshold": threshold,
            "coverage": coverage,
            "channel": channel,
            "video": video,
            "face": face,
            "recursive": recursive,
            "srt": srt,
        }
        given = {name: value for name, value in (scoring | for_archives).items() if value is not None} | labels
        if predict_into_folder(files or [], str(output), given):
            raise typer.Exit(1)
        return
    if unused := [name for name, value in for_archives.items() if value]:
        option = unused[0].replace("_", "-")
        raise typer.BadParameter(f"--{option} needs --output FOLDER, without --json and --csv.")
    if not timeline and (plot is not None or (srt is not None and not files)):
        raise typer.BadParameter("--plot, and --srt without an audio file, need --timeline.")

    from mmemo.archives.commands import ArchiveOptions, predict_archive

    archive = ArchiveOptions(
        files=files,
        recursive=recursive,
        video=video,
        model=model,
        revision=revision,
        kind=_output_kind(as_json, as_csv),
        output=None if output is None else Path(output),
        plot=plot,
        top_k=top_k,
        threshold=threshold,
        coverage=coverage,
        granularity=spans,
        labels=labels,
        debug=_is_debugging(context),
    )
    if predict_archive(archive, text, srt, timeline, channel, face):
        raise typer.Exit(1)


@app.command()
def call(
    context: typer.Context,
    files: Files = None,
    channels: Annotated[
        Channels | None,
        typer.Option(
            help="split: each channel is one speaker. The default without --speaker-turns.", show_default=False
        ),
    ] = None,
    speaker_turns: Annotated[
        Path | None,
        typer.Option(help="Speaker turns (RTTM), or a folder of RTTM files with the names of the recordings."),
    ] = None,
    customer: Annotated[
        str | None, typer.Option(help="Channel, such as 1 or channel_1, or speaker to predict the emotions of.")
    ] = None,
    everyone: Annotated[
        bool,
        typer.Option(
            "--everyone",
            help="Predict the emotions of all speakers. Inferring the emotions of people at work is prohibited in the "
            "European Union (AI Act, Art. 5(1)(f)).",
        ),
    ] = False,
    srt: Annotated[
        Path | None,
        typer.Option(
            help="Subtitles, or a folder of subtitles with the names of the recordings; for channels a folder with "
            "NAME.channel_0.srt, NAME.channel_1.srt, ..."
        ),
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print the talk time, interruptions and emotion shares of each speaker.")
    ] = False,
    granularity: Annotated[Granularity, typer.Option(help="Spans of the timelines.")] = Granularity.SEGMENT,
    threshold: Threshold = None,
    coverage: Coverage = None,
    candidate_label: CandidateLabel = None,
    hypothesis_template: HypothesisTemplate = None,
    none_label: NoneLabel = None,
    model: Model = None,
    revision: Revision = None,
    top_k: TopK = 3,
    recursive: Recursive = True,
    video: Annotated[bool, typer.Option("--video", hidden=True)] = False,
    as_json: AsJson = False,
    as_csv: Annotated[
        bool,
        typer.Option(
            "--csv", help="Print CSV with all labels: a row per timeline entry, or per speaker of --summary."
        ),
    ] = False,
    output: Output = None,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for a plot of each predicted speaker; created if missing.")
    ] = None,
) -> None:
    """
    Predicts the emotions in calls by speaker: by channel, or by the turns of a diarization.

    The output as JSON or CSV has every call; `error` says why one failed. The exit status is 1 if any call failed.
    """
    if video:
        raise typer.BadParameter(
            "--video is for mmemo predict: a call has several speakers, and it is unknown which of them a face is. "
            "mmemo call predicts the sound of videos."
        )
    if not files:
        raise typer.BadParameter("Pass recordings of calls: files or folders.")
    if "-" in files and len(files) > 1:
        raise typer.BadParameter("- is the file on standard input; pass it as the only file.")
    if channels and speaker_turns is not None:
        raise typer.BadParameter("--channels and --speaker-turns contradict each other; pass one of them.")
    if customer is not None and everyone:
        raise typer.BadParameter("--customer and --everyone contradict each other; pass one of them.")
    if speaker_turns is None and customer is None and not everyone:
        raise typer.BadParameter("Pass --customer, the channel of the customer, such as 1; or --everyone.")
    if speaker_turns is None and srt is not None and not srt.is_dir():
        raise typer.BadParameter(
            f"--srt {srt} must be a folder with NAME.channel_0.srt, NAME.channel_1.srt, ...: each channel has "
            "subtitles of its own."
        )
    kind = _output_kind(as_json, as_csv)
    if output is not None and kind == "text":
        raise typer.BadParameter("--output needs --json or --csv.")

    from mmemo.archives.commands import ArchiveOptions, predict_calls

    archive = ArchiveOptions(
        files=files,
        recursive=recursive,
        video=video,
        model=model,
        revision=revision,
        kind=kind,
        output=output,
        plot=plot,
        top_k=top_k,
        threshold=threshold,
        coverage=coverage,
        granularity=granularity.value,
        labels=_label_options(candidate_label, hypothesis_template, none_label),
        debug=_is_debugging(context),
    )
    if predict_calls(archive, speaker_turns, srt, customer, everyone, summary):
        raise typer.Exit(1)


@app.command()
def report(
    folder: Annotated[str, typer.Argument(help="Output folder of an archive, or its URL.")],
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Column to group by, such as queue; may be repeated. Inferring the emotions of people at work is "
            "prohibited in the European Union (AI Act, Art. 5(1)(f)): group by agent only if the emotions are those "
            "of customers.",
        ),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Column of dates or timestamps to group by --period.")] = None,
    period: Annotated[Period, typer.Option(help="Periods of --time; hour is the hour of the day.")] = Period.MONTH,
    time_format: Annotated[
        str | None, typer.Option(help="Format of --time if it is text other than ISO 8601, such as %d.%m.%Y.")
    ] = None,
    time_zone: Annotated[
        str, typer.Option(help="Time zone of the periods, for timestamps that have an offset.")
    ] = "UTC",
    top: Annotated[
        int, typer.Option(help="Number of the most frequent values and reasons; others are summed.", min=1)
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with 95 % intervals of the shares.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="File for the figures as a web page with plots; overwritten if it exists.")
    ] = None,
) -> None:
    """
    Summarizes an archive: shares of emotions, as a whole, by column and over time, and the reasons of failures.

    An archive that is still being written can be summarized too.
    """
    from mmemo.archives.archive_report import report as run
    from mmemo.archives.archive_summary import SummaryOptions

    options = SummaryOptions(tuple(by or ()), time, period.value, time_format, time_zone, top)
    typer.echo(run(folder, options, as_json, html))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluates a model on corpora, with the options of eval.py (mmemo evaluate --help)."""
    if context.args[:1] == ["--folds"]:
        from modeling_mmemo.training.folds import main as cross_validate

        cross_validate(context.args[1:])
    else:
        from modeling_mmemo.evaluation.evaluate_command import evaluate_and_report, parse_evaluation

        try:
            args = parse_evaluation(context.args, command="mmemo evaluate")
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        evaluate_and_report(args)


@app.command()
def adapt(
    data: Annotated[
        str,
        typer.Option(
            help="Labelled rows: a table (CSV, TSV, JSON Lines, Parquet) with the columns audio or text, label and "
            "speaker, or a folder with metadata.csv or one folder per label."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the model; it must be empty or not exist.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of the model to adapt; the embedded one by default.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Rows of each label to use, drawn evenly from its speakers.", min=1)
    ] = None,
    modality: Annotated[
        list[str] | None,
        typer.Option(
            help="Modality to use: audio, text or video; may be repeated. All that the rows have by default."
        ),
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Column name of the table, as in label=emotion; may be repeated.")
    ] = None,
    label_map: Annotated[
        list[str] | None, typer.Option(help="Label name of the table, as in excited=happy; may be repeated.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="Label to predict; may be repeated. All of the table by default.")
    ] = None,
    allow_unknown_labels: Annotated[
        bool, typer.Option("--allow-unknown-labels", help="Leave rows with other labels out, even if they are many.")
    ] = False,
    encoding: Annotated[
        str | None, typer.Option(help="Character encoding of CSV and TSV tables, such as gbk; UTF-8 by default.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder with the known corpora.")] = Path("data"),
    seed: Annotated[int, typer.Option(help="Seed of the drawn rows and of the folds.")] = 0,
) -> None:
    """
    Adapts a model to labels of your own from a few examples of each, in seconds on a CPU.

    The encoders are not trained. Prints figures of held-out speakers.
    """
    from modeling_mmemo.data.source_arguments import SourceArguments
    from modeling_mmemo.training.adapt import adapt as run

    sources = SourceArguments(
        data_dir=str(data_dir),
        columns=columns or [],
        encoding=encoding,
        label_map=label_map or [],
        labels=labels or [],
        allow_unknown_labels=allow_unknown_labels,
    )
    typer.echo(run(data, output, model, shots, modality or [], sources, seed))


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder or Hub name of a model; the embedded one by default.", show_default=False),
    ] = None,
    revision: Revision = None,
) -> None:
    """Describes a model: labels, encoders, fusion, files, and the installed runtimes."""
    from mmemo.info import describe

    typer.echo(describe(model, revision))


@app.command()
def serve(
    model: Model = None,
    revision: Revision = None,
    host: Annotated[str | None, typer.Option(help="Address to bind to; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 8000 by default.", min=1, max=65535)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Parallel inferences; the number of cores by default.", min=1)
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Maximum number of waiting items in one batch.", min=1)
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="Print all settings and exit.")] = False,
) -> None:
    """Serves a model over HTTP and WebSocket. Every setting has an environment variable; --settings prints them."""
    from mmemo.serving.settings import ServiceSettings, environment_warnings

    given = {
        "model": model,
        "revision": revision,
        "host": host,
        "port": port,
        "workers": workers,
        "max_batch_size": max_batch_size,
    }
    chosen = ServiceSettings.from_environment(**{name: value for name, value in given.items() if value is not None})
    if settings:
        typer.echo(chosen.describe())
        typer.echo("".join(f"Warning: {warning}\n" for warning in environment_warnings()), err=True, nl=False)
        return
    from mmemo.serving.server import serve as run

    run(chosen)


@app.command()
def demo(
    model: Model = None,
    revision: Revision = None,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Create a public link through gradio's tunnel.")] = False,
) -> None:
    """Serves a web page that predicts recordings, videos and text."""
    typer.echo("Loading the model and gradio, which takes a few seconds ...")
    from mmemo.demo import serve_demo
    from mmemo.runtime.predictor import EmotionPredictor

    serve_demo(EmotionPredictor(model, revision=revision), host, port, share)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a model.")],
    output: Annotated[Path | None, typer.Option(help="Output folder, created if needed.")] = None,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Add an int8 graph to the model's folder that shares the model's weights."),
    ] = False,
    int8: Annotated[Int8, typer.Option(help="How to quantize the int8 graph.")] = Int8.DYNAMIC,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Training data for --int8 static, as named for train.py; may be repeated."),
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder with the corpora.")] = Path("data"),
    calibration_rows: Annotated[int, typer.Option(help="Number of random rows of each source.", min=1)] = 128,
    to: Annotated[
        Target,
        typer.Option(
            help="Layout of the output folder: a model for mmemo, or a model repository for Triton Inference Server, "
            "with the int8 graph unless --int8 none."
        ),
    ] = Target.MMEMO,
) -> None:
    """Exports a trained model to ONNX, in float and int8."""
    if (int8 is Int8.STATIC) != bool(calibration):
        raise typer.BadParameter("--calibration and --int8 static need each other; pass both or neither.")
    if (output is None) != in_place:
        raise typer.BadParameter("Pass either --output or --in-place.")
    if in_place and int8 is Int8.NONE:
        raise typer.BadParameter("--in-place adds an int8 graph; leave --int8 none out.")
    if to is Target.TRITON and in_place:
        raise typer.BadParameter("--to triton writes a model repository; pass --output instead of --in-place.")
    from modeling_mmemo.exporters.export_command import export as run

    paths = run(model, output, int8.value, calibration or [], data_dir, calibration_rows, to.value)
    for path in paths:
        typer.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a trained model, or of its adapter.")],
    repo: Annotated[str, typer.Option(help="Hub repository, owner/name; created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to push to; created if missing, main by default.")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Tag for the commit, such as v1.0.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add ONNX graphs, float and int8.")] = False,
    results: Annotated[Path | None, typer.Option(help="Folder of results from eval.py to add.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Hub name of the base model of an adapter that was trained on a local folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes, without contacting the Hub.")
    ] = False,
) -> None:
    """Pushes a trained model and its code to the Hub in one commit. Log in first: hf auth login."""
    from modeling_mmemo.hub.push import planned_files
    from modeling_mmemo.hub.push import push as run

    if not dry_run:
        typer.echo(run(folder, repo, private or None, revision, tag, onnx, results, base=base).commit_url)
        return
    files = planned_files(folder, repo, onnx, results, base)
    for path, size in files.items():
        typer.echo(f"{size / 1e6:10.3f} MB  {path}")
    target = f"{repo}, branch {revision or 'main'}" + (f", tag {tag}" if tag else "")
    typer.echo(f"{sum(files.values()) / 1e6:10.3f} MB  in {len(files)} files would be pushed to {target}.")


@app.command()
def card(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    results: Annotated[Path, typer.Option(help="Folder of results from eval.py.")],
    output: Annotated[
        Path | None, typer.Option(help="Path of the card; README.md in the model's folder by default.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model, such as owner/name; the folder's name by default.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="License identifier of the Hub, such as apache-2.0.")
    ] = None,
    training_data: Annotated[
        Path | None, typer.Option(help="Markdown file about the training data and its licenses.")
    ] = None,
) -> None:
    """Writes a model card from results, or updates the figures of an existing one."""
    from modeling_mmemo.evaluation.card import write_card

    typer.echo(write_card(model, results, output, name, license_, training_data))


def _check_sources(files: list[str] | None, text: str | None, srt: Path | None, video: bool, face: int | None) -> None:
    """Raises for inputs of `mmemo predict` that contradict each other, or are missing."""
    if not files and text is None and srt is None:
        raise typer.BadParameter("Pass audio files, --text or --srt.")
    if files and "-" in files and (len(files) > 1 or text == "-"):
        raise typer.BadParameter("- is the file on standard input; pass it as the only file, or as --text alone.")
    if face is not None and not video:
        raise typer.BadParameter("--face needs --video.")
    if video and not files:
        raise typer.BadParameter("--video needs files: videos, or folders of them.")


def _check_archive(files: list[str] | None, output: str | None, others: dict[str, Any]) -> None:
    """Raises for options that an output folder does not allow."""
    suffix = Path(str(output)).suffix.lower()
    if suffix in (".csv", ".json", ".jsonl"):
        flag = "--csv" if suffix == ".csv" else "--json"
        raise typer.BadParameter(f"--output {output} names a file: add {flag}, or name a folder.")
    if not files or "-" in files:
        raise typer.BadParameter("--output FOLDER needs files, folders or tables; add --json or --csv for one input.")
    if unused := [name for name, value in others.items() if value is not None]:
        raise typer.BadParameter(f"{unused[0]} contradicts --output FOLDER; leave it out, or add --json or --csv.")


def _label_options(labels: list[str] | None, templates: list[str] | None, none_label: str | None) -> dict[str, Any]:
    """Returns the given options of [`~EmotionRecognition.with_labels`]."""
    given = {
        "candidate_labels": ",".join(labels) if labels else None,
        "hypothesis_template": templates or None,
        "none_label": none_label,
    }
    options = {name: value for name, value in given.items() if value is not None}
    return options | ({"none_label": None} if none_label == "" else {})


def _output_kind(as_json: bool, as_csv: bool) -> str:
    """Returns the kind of output that options request; see [`PredictionWriter`]."""
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv contradict each other; pass one of them.")
    return "json" if as_json else "csv" if as_csv else "text"


def _is_debugging(context: typer.Context) -> bool:
    return bool(context.find_root().params["debug"])


def main() -> None:
    """The entry point of `mmemo`."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files may have characters that the terminal's encoding lacks.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    app()


if __name__ == "__main__":
    main()
