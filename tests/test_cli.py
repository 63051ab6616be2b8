import json
import subprocess
import sys

import pytest
import soundfile
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.cli import app


@pytest.fixture
def run():
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def test_a_file_and_its_words(run, example_audio):
    result = run("predict", example_audio, "--text", "I hate you!", "--top-k", 2)

    best = EmotionPredictor()(example_audio, "I hate you!", top_k=2)
    expected = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in best)
    assert (result.exit_code, result.stdout) == (0, f"{example_audio}: {expected}\n")


def test_files_as_json(run, exported, make_clip, tmp_path):
    paths = [tmp_path / "one.wav", tmp_path / "two.wav"]
    for seed, path in enumerate(paths):
        soundfile.write(path, make_clip(0.5, seed), 16_000)

    result = run("predict", *paths, "--model", exported, "--json")

    predict = EmotionPredictor(exported)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines == [{"file": str(path), "text": None, "scores": predict(path)} for path in paths]


def test_a_text_alone(run, exported):
    assert run("predict", "--text", "so happy", "--model", exported).stdout.startswith("so happy: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict"], 2, "Give audio files, --text, or both"),
        (["predict", "a.wav", "b.wav", "--text", "so"], 2, "--text goes with one file, got 2"),
        (["predict", "missing.wav"], 1, "Error: missing.wav is not a file."),
        (["export", "model"], 2, "Give either --output or --in-place"),
        (["export", "model", "--output", "out", "--in-place"], 2, "Give either --output or --in-place"),
        (["export", "model", "--in-place", "--int8", "none"], 2, "--in-place adds an int8 graph"),
        (["export", "model", "--output", "out", "--int8", "static"], 2, "--calibration goes with --int8 static"),
        (["export", "model", "--output", "out", "--calibration", "ravdess"], 2, "--calibration goes with --int8"),
        (["export", "model", "--output", "out", "--to", "tflite"], 2, "'tflite' is not one of 'onnx', 'torch-int8'"),
    ],
)
def test_bad_input_is_a_sentence(run, arguments, code, message):
    result = run(*arguments)

    assert result.exit_code == code
    # Usage errors are framed, and broken into lines, for the terminal.
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_what_is_not_installed_is_named(run, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    result = run("predict", "--text", "so", "--model", exported)

    assert (result.exit_code, result.stderr) == (
        1,
        "Error: Running a graph needs ONNX Runtime: pip install onnxruntime.\n",
    )


def test_the_command_is_installed():
    result = subprocess.run([sys.executable, "-m", "mmemo.cli", "--help"], capture_output=True, text=True, check=True)

    assert "predict" in result.stdout and "export" in result.stdout
