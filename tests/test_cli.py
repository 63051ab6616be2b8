"""The command `mmemo`: its options, and its errors."""

import subprocess
import sys
from importlib.metadata import version

import pytest
from tiny import write_table
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.cli import app


@pytest.fixture
def run():
    """Runs the command `mmemo` with arguments."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_predict_a_file_with_text(run, example_audio):
    result = run("predict", example_audio, "--text", "I hate you!", "--top-k", 2)

    best = EmotionPredictor()(example_audio, "I hate you!", top_k=2)
    expected = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in best)
    assert (result.exit_code, result.stdout) == (0, f"{example_audio}: {expected}\n")


def test_info_describes_a_model(run):
    result = run("info")

    assert result.exit_code == 0 and result.stdout.startswith("model ")


def test_evaluate_has_the_options_of_eval_py(run):
    result = run("evaluate", "--help")

    assert result.exit_code == 0 and "--corpora" in result.stdout and "--pairs" in result.stdout


def test_adapt_a_model_to_a_table(run, trained, tmp_path):
    texts = {"fine": "i am so happy", "cross": "wait , you !"}
    rows = [{"words": f"{text} {'so ' * i}", "mood": mood} for mood, text in texts.items() for i in range(3)]
    table = write_table(tmp_path / "rows.csv", rows)
    columns = ("--columns", "text=words", "--columns", "label=mood", "--label-map", "fine=calm")

    result = run("adapt", "--data", table, "--output", tmp_path / "new", "--model", trained, "--shots", 2, *columns)
    again = run("adapt", "--data", table, "--output", tmp_path / "new", "--model", trained, *columns)

    assert result.exit_code == 0 and "2 labels from 4 rows" in result.stdout and "| calm  | 2" in result.stdout
    assert "rows, 4 rows, cross-validated in 2 folds of rows; chance is a UAR of 50.0" in result.stdout
    assert (again.exit_code, again.stdout) == (1, "") and "exists and is not an empty folder" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to evaluate; pass --corpora, --pairs or --timelines."),
        (["--corpora", "none"], "Unknown corpora ['none']; choose among"),
        (["--limit", "x"], "mmemo evaluate: error: argument --limit: invalid int value: 'x'"),
        (["--corpora", "ravdess", "--corpora2", "x"], "error: unknown arguments ['--corpora2', 'x']; --help lists"),
    ],
)
def test_invalid_options_of_evaluate_are_one_sentence(run, arguments, message):
    result = run("evaluate", *arguments)

    printed = " ".join(result.stderr.replace("│", " ").split())
    assert (result.exit_code, result.stdout) == (2, "") and message in printed and len(printed) < 600


def test_the_version(run):
    assert run("--version").stdout == f"mmemo {version('mmemo')}\n"


def test_demo_says_at_once_that_it_is_loading(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmemo.demo", None)

    result = run("demo")

    assert result.exit_code == 1 and result.stdout.startswith("Loading the model and gradio")


@pytest.mark.parametrize("error", [KeyError("label"), RuntimeError("broken"), MemoryError(), ZeroDivisionError()])
def test_unexpected_errors_have_a_traceback_only_with_debug(run, monkeypatch, error):
    def describe(*_):
        raise error

    monkeypatch.setattr("mmemo.info.describe", describe)

    plain, debugged = run("info"), run("--debug", "info")

    assert plain.exit_code == 1 and plain.stderr.startswith("Error: ") and plain.stderr.count("\n") == 1
    assert "mmemo --debug COMMAND" in plain.stderr
    assert debugged.exception is error


def test_debug_raises_the_first_error_of_an_input(run, exported, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")

    result = run("--debug", "predict", tmp_path, "--model", exported)

    assert isinstance(result.exception, ValueError) and "not readable audio" in str(result.exception)


def test_an_interrupt_has_its_own_status(run, monkeypatch):
    def describe(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmemo.info.describe", describe)

    result = run("info")

    assert (result.exit_code, result.stderr) == (130, "Interrupted.\n")


def test_serve_prints_its_settings(run, monkeypatch):
    monkeypatch.setenv("MMEMO_SERVE__MAX_CLIP_S", "12.5")
    monkeypatch.setenv("MMEMO_SERVE__API_KEYS", "secret")
    monkeypatch.setenv("MMEMO_PORT", "1")

    result = run("serve", "--port", 1234, "--settings")

    assert result.exit_code == 0 and "secret" not in result.stdout
    settings = {"MMEMO_SERVE__PORT=1234", "MMEMO_SERVE__MAX_CLIP_S=12.5", "MMEMO_SERVE__API_KEYS=(1 keys)"}
    assert settings <= set(result.stdout.splitlines())
    assert "Warning: MMEMO_PORT is ignored: the setting is now called MMEMO_SERVE__PORT." in result.stderr


def test_predict_a_text(run, exported):
    assert run("predict", "--text", "so happy", "--model", exported).stdout.startswith("so happy: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict"], 2, "Pass audio files, --text or --srt"),
        (["predict", "a.wav", "--json", "--csv"], 2, "--json and --csv contradict each other"),
        (["predict", "a.wav", "--output", "out.csv"], 2, "--output out.csv names a file: add --csv"),
        (["predict", "a.wav", "--plot", "plots"], 2, "need --timeline"),
        (["predict", "no/*.wav"], 1, "Error: no/*.wav matches no file."),
        (["predict", "benchmarks"], 1, "Error: benchmarks contains no audio or video file; valid suffixes are"),
        (["predict", "a.wav", "b.wav", "--srt", "LICENSE"], 1, "--srt LICENSE belongs to one recording, got 2"),
        (["predict", "a.wav", "--srt", "missing.srt"], 1, "Error: --srt missing.srt does not exist."),
        (["predict", "--timeline", "--srt", "configs"], 2, "--srt configs is a folder, which needs recordings"),
        (["predict", "-", "a.wav"], 2, "- is the file on standard input; pass it as the only file"),
        (["predict", "-", "--text", "-"], 2, "- is the file on standard input; pass it as the only file"),
        (["predict", "--text", "so", "--threshold", "2"], 1, "Error: threshold=2.0 must be a score between 0 and 1."),
        (["predict", "--text", "so", "--granularity", "line"], 2, "'word', 'segment', 'sentence', 'utterance'"),
        (["predict", "a.mp4", "--face", "1"], 2, "--face needs --video."),
        (["predict", "--text", "so", "--video"], 2, "--video needs files: videos, or folders of them."),
        (
            ["predict", "a.mp4", "--video"],
            1,
            "Error: --video needs a model with a video encoder; the embedded model encodes audio and text only. Train",
        ),
        (["call", "a.mp4", "--customer", "1", "--video"], 2, "--video is for mmemo predict: a call has several"),
        (["call"], 2, "Pass recordings of calls: files or folders."),
        (["call", "a.wav"], 2, "Pass --customer, the channel of the customer, such as 1; or --everyone."),
        (["call", "a.wav", "--customer", "1", "--everyone"], 2, "--customer and --everyone contradict each other"),
        (
            ["call", "a.wav", "--channels", "split", "--speaker-turns", "a.rttm"],
            2,
            "--channels and --speaker-turns contradict each other",
        ),
        (
            ["call", "a.wav", "--customer", "1", "--srt", "a.srt"],
            2,
            "--srt a.srt must be a folder with NAME.channel_0",
        ),
        (["call", "a.wav", "--customer", "1"], 1, "Error: a.wav: There is no such file"),
        (["info", "configs"], 1, "Error: configs is not an mmemo model"),
        (["serve", "--model", "configs"], 1, "Error: configs has no model_int8.onnx"),
        (["predict", "a.wav", "b.wav", "--text", "so"], 2, "--text belongs to one file, got 2"),
        (["predict", "missing.wav"], 1, "Error: missing.wav: There is no such file; paths are relative to"),
        (["predict", "README.md"], 1, "Error: audio: README.md is not readable audio"),
        (["predict", "a.wav", "--model", "runs/none"], 1, "Error: runs/none is neither a folder in "),
        (
            ["info", "no/such/folder"],
            1,
            "Error: no/such/folder is neither a folder nor a name on the Hub (owner/name)",
        ),
        (["export", "model"], 2, "Pass either --output or --in-place"),
        (["export", "model", "--output", "out", "--in-place"], 2, "Pass either --output or --in-place"),
        (["export", "model", "--in-place", "--int8", "none"], 2, "--in-place adds an int8 graph"),
        (["export", "model", "--output", "out", "--int8", "static"], 2, "--calibration and --int8 static"),
        (["export", "model", "--output", "out", "--calibration", "ravdess"], 2, "--calibration and --int8"),
    ],
)
def test_invalid_input_is_an_error_without_a_traceback(run, arguments, code, message):
    result = run(*arguments)

    assert result.exit_code == code
    # Usage errors are framed, and broken into lines, for the terminal.
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_a_closed_pipe_is_not_an_error_message(example_audio):
    command = [sys.executable, "-m", "mmemo.cli", "predict", *[example_audio] * 3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()

        assert process.stderr.read() == ""


def test_a_missing_package_is_named(run, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    result = run("predict", "--text", "so", "--model", exported)

    assert (result.exit_code, result.stderr) == (
        1,
        "Error: Running a graph needs ONNX Runtime: pip install onnxruntime.\n",
    )


def test_help_lists_the_commands():
    result = subprocess.run([sys.executable, "-m", "mmemo.cli", "--help"], capture_output=True, text=True, check=True)

    assert "predict" in result.stdout and "export" in result.stdout
