"""Errors as one line."""

import pytest

from mmemo.archives.reporting import describe_error, progress_bar, report_error


@pytest.mark.parametrize(
    ("error", "described"),
    [
        (ValueError("a.wav is\nempty."), "a.wav is empty."),
        (ValueError(), "ValueError. For the traceback, run: mmemo --debug COMMAND."),
        (FileNotFoundError(2, "No such file", "a"), "[Errno 2] No such file: 'a'"),
        (RuntimeError("broken."), "RuntimeError: broken. For the traceback, run: mmemo --debug COMMAND."),
        (MemoryError(), "There is not enough memory. For the traceback, run: mmemo --debug COMMAND."),
        (
            ModuleNotFoundError("No module named 'x'", name="x"),
            "This command needs the package x; pip install 'mmemo[onnx,train,serve,demo]' installs the dependencies "
            "of all commands.",
        ),
        (ImportError("pip install onnxruntime."), "pip install onnxruntime."),
    ],
)
def test_every_error_is_one_line(error, described):
    assert describe_error(error) == described


def test_a_progress_bar_needs_a_terminal(capsys):
    with progress_bar(10) as bar:
        bar.update(3)

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "message", "line"),
    [
        ("a.wav", "audio: a.wav is empty.", "Error: audio: a.wav is empty."),
        ("a.wav", "audio: data.wav is empty.", "Error: a.wav: audio: data.wav is empty."),
        ("-", "not audio (ffmpeg -i x, or x-y).", "Error: -: not audio (ffmpeg -i x, or x-y)."),
        (None, "no input.", "Error: no input."),
    ],
)
def test_errors_name_their_input_once(name, message, line, capsys):
    report_error(ValueError(message), name)
    assert capsys.readouterr().err == line + "\n"
