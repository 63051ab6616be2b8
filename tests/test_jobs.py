"""Predicting inputs one by one: errors, warnings, progress."""

import json
import logging
from pathlib import Path

import pytest

from mmemo.archives.folders import Input
from mmemo.archives.jobs import CallJob, ItemJob, ReportingPredictor, run_job
from mmemo.archives.writing import ItemLayout, PredictionWriter


RESULT = {"label": "sad", "scores": [{"label": "sad", "score": 1.0}]}


def recordings(*names):
    return [Input(name, {"bytes": b"", "path": name}, Path(name)) for name in names]


@pytest.fixture(scope="module")
def predictor(exported):
    return ReportingPredictor(str(exported), None, shows_progress=True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("It is\nempty."), "It is empty."),
        (KeyError("label"), "KeyError: 'label'. For the traceback, run: mmemo --debug COMMAND."),
        (MemoryError(), "There is not enough memory. For the traceback"),
    ],
)
def test_an_input_that_fails_is_reported_and_the_others_are_predicted(error, message, capsys):
    def job(one):
        if one.name == "b.wav":
            raise error
        return RESULT

    advanced = []
    writer = PredictionWriter("json", ItemLayout(["sad"]))
    failed = run_job(job, recordings("a.wav", "b.wav", "c.wav"), writer, advance=lambda: advanced.append(1))

    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert failed == 1 and len(advanced) == 3
    assert [line["file"] for line in lines] == ["a.wav", "b.wav", "c.wav"]
    assert lines[1]["error"].startswith(message) and lines[2]["error"] is None
    assert printed.err.startswith(f"Error: b.wav: {message}") and printed.err.count("\n") == 1
    with pytest.raises(type(error)):
        run_job(job, recordings("b.wav"), writer, debug=True)


def test_a_missing_file_is_one_sentence(predictor, capsys):
    missing = Input("calls/a.wav", Path("calls/a.wav"), Path("a.wav"))

    assert run_job(ItemJob(predictor), [missing], PredictionWriter("text", ItemLayout([]))) == 1
    assert capsys.readouterr().err.startswith("Error: calls/a.wav: There is no such file; paths are relative to /")


def test_warnings_name_their_input(capsys, caplog):
    def job(one):
        logging.getLogger("mmemo.items").warning("text[0]: truncated by 3 of 67 tokens; the limit is 64.")
        return RESULT

    run_job(job, recordings("a.wav"), PredictionWriter("text", ItemLayout(["sad"])))

    assert capsys.readouterr().err == "Warning: a.wav: text[0]: truncated by 3 of 67 tokens; the limit is 64.\n"
    assert caplog.records == []  # printed once
    assert logging.getLogger("mmemo").handlers == []


def test_a_call_without_turns_is_refused(predictor, tmp_path):
    (call,) = recordings("may/a.wav")

    with pytest.raises(ValueError, match=r"has no speaker turns of this recording; add may/a\.rttm"):
        CallJob(predictor, turns=tmp_path)(call)


def test_long_recordings_have_a_progress_bar(predictor, monkeypatch):
    shown = []
    monkeypatch.setattr("mmemo.archives.jobs.progress_bar", lambda length: shown.append(length))

    for seconds in (None, 59.0, 60.4):
        predictor._progress(seconds)

    assert shown == [60]
