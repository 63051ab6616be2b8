"""Errors as one line."""

import pytest

from mmemo.archives.reporting import describe_error, progress_bar


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
