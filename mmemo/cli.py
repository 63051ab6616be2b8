"""The command `mmemo`. What a command needs is imported as it runs, so that `--help` is instant."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


app = typer.Typer(help="Multimodal emotion recognition: a voice, its words, or both.", no_args_is_help=True)


class Target(StrEnum):
    """What a model is exported to."""

    ONNX = "onnx"
    TORCH_INT8 = "torch-int8"


class Int8(StrEnum):
    """How a graph gets to int8."""

    NONE = "none"
    DYNAMIC = "dynamic"
    STATIC = "static"


@app.command()
def predict(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Audio files, folders of them, or globs in quotes.", show_default=False),
    ] = None,
    text: Annotated[str | None, typer.Option(help="What is said, in the one file or without any.")] = None,
    srt: Annotated[
        Path | None,
        typer.Option(help="What is said when: SRT or WebVTT, or a folder where they have the names of the files."),
    ] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Answer over time, in half seconds.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of an exported model; the embedded one by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")] = None,
    top_k: Annotated[int, typer.Option(help="How many labels to show.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all labels.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="CSV, with all labels; a row a file, or a half second.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="File for --json or --csv. Of files that stand there already, none is asked again."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Folder for a plot of each timeline.")] = None,
) -> None:
    """Says which emotions are in audio files, or in a text. Runs the exported model; needs no torch."""
    if not files and text is None and srt is None:
        raise typer.BadParameter("Give audio files, --text, --srt, or several of them.")
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv contradict each other; give one of them.")
    if output is not None and not (as_json or as_csv):
        raise typer.BadParameter("--output takes --json or --csv.")
    if not timeline and (plot is not None or (srt is not None and not files)):
        raise typer.BadParameter("--plot, and --srt without a file, take --timeline.")
    with _sentences():
        from mmemo.archives.folders import Answers, find_files, predict_all
        from mmemo.runtime.predictor import EmotionPredictor

        found: list[Path | None] = [*find_files(files)] if files else [None]
        if text is not None and len(found) > 1:
            raise typer.BadParameter(
                f"--text goes with one file, got {len(found)}; leave it out, or call once a file."
            )
        if srt is not None and len(found) > 1 and not srt.is_dir():
            raise typer.BadParameter(f"--srt {srt} goes with one file, got {len(found)}; give a folder of them.")
        predictor = EmotionPredictor(model, revision=revision)
        kind = "json" if as_json else "csv" if as_csv else "text"
        answers = Answers(kind, predictor.answers.labels, timeline, output)
        labels = top_k if kind == "text" else None
        with _progress(len(found)) as bar:
            failed = predict_all(predictor, found, answers, text, srt, timeline, labels, plot, lambda: bar.update(1))
    if failed:
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Scores a model on corpora: what eval.py does, with its options (mmemo evaluate --help)."""
    with _sentences():
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
    """Says what a model is: its labels, encoders, fusion, files, and what can run it."""
    with _sentences():
        from mmemo.info import describe

        typer.echo(describe(model, revision))


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of an exported model; the embedded one by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen; 127.0.0.1 by default.")] = None,
    port: Annotated[int | None, typer.Option(help="8000 by default.", min=1, max=65535)] = None,
    workers: Annotated[int | None, typer.Option(help="Inferences at once; as many as there are cores.", min=1)] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Waiting items that pass the model together.", min=1)
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="Show all settings, and do not serve.")] = False,
) -> None:
    """Serves a model over HTTP and WebSocket. Every setting has an environment variable: --settings shows them."""
    with _sentences():
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
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port.", min=1, max=65535)] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Make a link from anywhere, through gradio.")] = False,
) -> None:
    """Opens a page to speak, upload and write to."""
    with _sentences():
        from mmemo.demo import serve_demo
        from mmemo.runtime.predictor import EmotionPredictor

        serve_demo(EmotionPredictor(model, revision=revision), host, port, share)


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a model.")],
    output: Annotated[Path | None, typer.Option(help="Folder to write to, made if need be.")] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place", help="Add the int8 graph to the model's folder, sharing the weights that lie there."
        ),
    ] = False,
    to: Annotated[Target, typer.Option(help="ONNX graphs, or int8 weights for PyTorch.")] = Target.ONNX,
    int8: Annotated[Int8, typer.Option(help="How to add an int8 graph to the float one.")] = Int8.DYNAMIC,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="For --int8 static: training data, as train.py names it; may be given again."),
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder that holds the corpora.")] = Path("data"),
    calibration_rows: Annotated[int, typer.Option(help="Rows to take of each, drawn at random.", min=1)] = 128,
) -> None:
    """Writes a trained model as ONNX graphs, float and int8, or as int8 weights for PyTorch."""
    if (int8 is Int8.STATIC and to is Target.ONNX) != bool(calibration):
        raise typer.BadParameter("--calibration goes with --int8 static (and --to onnx), and that with it.")
    if (output is None) != in_place:
        raise typer.BadParameter("Give either --output or --in-place.")
    if in_place and (to is not Target.ONNX or int8 is Int8.NONE):
        raise typer.BadParameter("--in-place adds an int8 graph: leave --to and --int8 none out.")
    with _sentences():
        from modeling_mmemo.exporters.export_command import export as run

        paths = run(model, output, to.value, int8.value, calibration or [], data_dir, calibration_rows)
        for path in paths:
            typer.echo(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="Of a trained model, or of its adapter.")],
    repo: Annotated[str, typer.Option(help="Repository of the Hub, owner/name; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make it a private one.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made if need be; main by default.")] = None,
    tag: Annotated[str | None, typer.Option(help="Name for what is pushed, such as v1.0.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Add its graphs, float and int8.")] = False,
    results: Annotated[Path | None, typer.Option(help="Folder of results that eval.py left, to add.")] = None,
) -> None:
    """Pushes a trained model to the Hub with its code, in one commit. Log in before: hf auth login."""
    with _sentences():
        from modeling_mmemo.hub.push import push as run

        typer.echo(run(folder, repo, private or None, revision, tag, onnx, results).commit_url)


@app.command()
def card(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    results: Annotated[Path, typer.Option(help="Folder of results that eval.py left.")],
    output: Annotated[Path | None, typer.Option(help="The card; README.md in the model's folder by default.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model, such as owner/name; its folder's by default.")
    ] = None,
    license_: Annotated[str | None, typer.Option("--license", help="As the Hub has it, such as apache-2.0.")] = None,
    training_data: Annotated[
        Path | None, typer.Option(help="Markdown file on what it was trained on, and under which licences that is.")
    ] = None,
) -> None:
    """Writes a model card from results, or brings the figures of one that is there up to date."""
    with _sentences():
        from modeling_mmemo.evaluation.card import write_card

        typer.echo(write_card(model, results, output, name, license_, training_data))


def _progress(length: int) -> Any:
    """A bar on standard error, for those who watch more than one file."""
    return typer.progressbar(length=length, file=sys.stderr, hidden=length < 2 or not sys.stderr.isatty())


@contextmanager
def _sentences() -> Iterator[None]:
    """Ends the command with an error's sentence rather than its trace."""
    try:
        yield
    except ModuleNotFoundError as error:
        everything = "mmemo[onnx,train,serve,demo]"
        sentence = f"this needs the package {error.name}: pip install '{everything}' has all that any command needs."
    except (ImportError, OSError, ValueError) as error:
        sentence = str(error)
    else:
        return
    typer.echo(f"Error: {sentence}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """The entry point of `mmemo`."""
    app()


if __name__ == "__main__":
    main()
