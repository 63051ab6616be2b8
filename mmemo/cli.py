"""The command `mmemo`. What a command needs is imported as it runs, so that `--help` is instant."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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
    files: Annotated[list[Path] | None, typer.Argument(help="Audio files.", show_default=False)] = None,
    text: Annotated[str | None, typer.Option(help="What is said, in the one file or without any.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub name of an exported model; the embedded one by default.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub name.")] = None,
    top_k: Annotated[int, typer.Option(help="How many labels to show.", min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all labels.")] = False,
) -> None:
    """Says which emotions are in audio files, or in a text. Runs the exported model; needs no torch."""
    if text is not None and files and len(files) > 1:
        raise typer.BadParameter(f"--text goes with one file, got {len(files)}; leave it out, or call once a file.")
    if not files and text is None:
        raise typer.BadParameter("Give audio files, --text, or both.")
    with _sentences():
        from mmemo.predictor import EmotionPredictor

        predictor = EmotionPredictor(model, revision=revision)
        inputs: Sequence[Path | None] = files or [None]
        for file in inputs:
            scores = predictor(file, text, top_k=None if as_json else top_k)
            if as_json:
                typer.echo(json.dumps({"file": file and str(file), "text": text, "scores": scores}))
            else:
                answer = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in scores)
                typer.echo(f"{file or text}: {answer}")


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
        from modeling_mmemo.exporters.command import export as run

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
        from modeling_mmemo.hub import push as run

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


@contextmanager
def _sentences() -> Iterator[None]:
    """Ends the command with an error's sentence rather than its trace."""
    try:
        yield
    except ModuleNotFoundError as error:
        sentence = (
            f"this needs the package {error.name}: pip install 'mmemo[onnx,train]' has all that any command needs."
        )
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
