"""The command `mmemo`. Each command imports its dependencies when it runs, so `--help` is fast."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


app = typer.Typer(help="Multimodal emotion recognition from audio, text, or both.", no_args_is_help=True)


class Int8(StrEnum):
    """Quantization approaches for the int8 graph."""

    NONE = "none"
    DYNAMIC = "dynamic"
    STATIC = "static"


@app.command()
def predict(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Audio files, folders of audio files, or quoted globs.", show_default=False),
    ] = None,
    text: Annotated[str | None, typer.Option(help="Text spoken in the file, or a text without audio.")] = None,
    srt: Annotated[
        Path | None,
        typer.Option(help="Subtitles (SRT or WebVTT), or a folder of subtitles with the names of the audio files."),
    ] = None,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="Predict a timeline with an entry every 0.5 s, from windows of 3.5 s.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of an exported model; the embedded one by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")] = None,
    top_k: Annotated[int, typer.Option(help="Number of labels to print.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, with all labels.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV with all labels: a row per file, or per timeline entry.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Output file for --json or --csv. Files that it already contains are skipped."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for a plot of each timeline; created if missing.")] = None,
) -> None:
    """Predicts the emotions of audio files, or of a text, with the exported model. Does not need torch."""
    if not files and text is None and srt is None:
        raise typer.BadParameter("Pass audio files, --text or --srt.")
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv contradict each other; pass one of them.")
    if output is not None and not (as_json or as_csv):
        raise typer.BadParameter("--output needs --json or --csv.")
    if not timeline and (plot is not None or (srt is not None and not files)):
        raise typer.BadParameter("--plot, and --srt without an audio file, need --timeline.")
    with _reported_errors():
        from mmemo.archives.folders import PredictionWriter, find_files, predict_files
        from mmemo.runtime.predictor import EmotionPredictor

        found: list[Path | None] = [*find_files(files)] if files else [None]
        if text is not None and len(found) > 1:
            raise typer.BadParameter(
                f"--text belongs to one file, got {len(found)}; leave it out, or run the command once per file."
            )
        if srt is not None and len(found) > 1 and not srt.is_dir():
            raise typer.BadParameter(f"--srt {srt} belongs to one file, got {len(found)}; pass a folder of subtitles.")
        predictor = EmotionPredictor(model, revision=revision)
        kind = "json" if as_json else "csv" if as_csv else "text"
        writer = PredictionWriter(kind, predictor.answers.labels, timeline, output)
        labels = top_k if kind == "text" else None
        with _progress(len(found)) as bar:
            failed = predict_files(predictor, found, writer, text, srt, timeline, labels, plot, lambda: bar.update(1))
    if failed:
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluates a model on corpora, with the options of eval.py (mmemo evaluate --help)."""
    with _reported_errors():
        if context.args[:1] == ["--folds"]:
            from modeling_mmemo.training.folds import main as cross_validate

            cross_validate(context.args[1:])
        else:
            from modeling_mmemo.evaluation.evaluate_command import main as run

            run(context.args)


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(help="Folder or Hub name of a model; the embedded one by default.", show_default=False),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")] = None,
) -> None:
    """Describes a model: labels, encoders, fusion, files, and the installed runtimes."""
    with _reported_errors():
        from mmemo.info import describe

        typer.echo(describe(model, revision))


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of an exported model; the embedded one by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")] = None,
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
    with _reported_errors():
        from mmemo.serving.settings import ServiceSettings, environment_warnings

        given = {
            "model": model,
            "revision": revision,
            "host": host,
            "port": port,
            "workers": workers,
            "max_batch_size": max_batch_size,
        }
        chosen = ServiceSettings.from_environment(
            **{name: value for name, value in given.items() if value is not None}
        )
        if settings:
            typer.echo(chosen.describe())
            typer.echo("".join(f"Warning: {warning}\n" for warning in environment_warnings()), err=True, nl=False)
            return
        from mmemo.serving.server import serve as run

        run(chosen)


@app.command()
def demo(
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of an exported model; the embedded one by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")] = None,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", min=1, max=65535)] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Create a public link through gradio's tunnel.")] = False,
) -> None:
    """Serves a web page that predicts recordings, uploads and text."""
    with _reported_errors():
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
) -> None:
    """Exports a trained model to ONNX, in float and int8."""
    if (int8 is Int8.STATIC) != bool(calibration):
        raise typer.BadParameter("--calibration and --int8 static need each other; pass both or neither.")
    if (output is None) != in_place:
        raise typer.BadParameter("Pass either --output or --in-place.")
    if in_place and int8 is Int8.NONE:
        raise typer.BadParameter("--in-place adds an int8 graph; leave --int8 none out.")
    with _reported_errors():
        from modeling_mmemo.exporters.export_command import export as run

        paths = run(model, output, int8.value, calibration or [], data_dir, calibration_rows)
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
    with _reported_errors():
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
    with _reported_errors():
        from modeling_mmemo.evaluation.card import write_card

        typer.echo(write_card(model, results, output, name, license_, training_data))


def _progress(length: int) -> Any:
    """Returns a progress bar on standard error; hidden for a single file, and without a terminal."""
    return typer.progressbar(length=length, file=sys.stderr, hidden=length < 2 or not sys.stderr.isatty())


@contextmanager
def _reported_errors() -> Iterator[None]:
    """Reports an error as its message, without a traceback, and exits with status 1."""
    try:
        yield
    except ModuleNotFoundError as error:
        everything = "mmemo[onnx,train,serve,demo]"
        message = (
            f"This command needs the package {error.name}; pip install '{everything}' installs the dependencies of "
            "all commands."
        )
    except BrokenPipeError:
        # The reader, such as `head`, has enough; typer exits without a message.
        raise
    except (ImportError, OSError, ValueError) as error:
        message = str(error)
    else:
        return
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """The entry point of `mmemo`."""
    app()


if __name__ == "__main__":
    main()
