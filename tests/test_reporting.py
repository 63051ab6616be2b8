"""Errors as one line, and warnings about one input."""

import logging

import pytest

from mmemo.archives.reporting import (
    MAX_WARNINGS,
    collected_warnings,
    describe_error,
    progress_bar,
    report_error,
    warnings_about,
)


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


def test_warnings_are_collected_once_each_and_not_written(capsys, caplog):
    logger = logging.getLogger("mmemo.items")
    with collected_warnings() as warnings:
        logger.info("loaded")
        for number in (0, 0, *range(2 * MAX_WARNINGS)):
            logger.warning(f"{number} tokens were truncated.")
    logger.warning("later")

    assert warnings == [f"{number} tokens were truncated." for number in range(MAX_WARNINGS)]
    assert capsys.readouterr().err == "" and [record.message for record in caplog.records] == ["later"]


def test_warnings_in_a_failing_context_end_with_it(caplog):
    for context in (collected_warnings(), warnings_about("a.wav")):
        with pytest.raises(KeyError), context:
            raise KeyError
    logging.getLogger("mmemo").warning("later")

    assert [record.message for record in caplog.records] == ["later"]
    assert logging.getLogger("mmemo").handlers == []
