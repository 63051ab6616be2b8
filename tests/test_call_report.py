"""Calls as text and CSV."""

import pytest

from mmemo.archives.call_report import CallLayout, CallSummaryLayout
from mmemo.timeline.calls import summarize_call


def entry(start, end, label, score=0.8, words=()):
    other = {"angry": "sad", "sad": "angry"}[label]
    scores = [{"label": label, "score": score}, {"label": other, "score": 1 - score}]
    return {"start": start, "end": end, "label": label, "scores": scores, "words": list(words)}


@pytest.fixture
def call():
    """The agent speaks from 0 to 4 s; the customer from 4 to 8 s, angry and then sad."""
    entries = [entry(4.0, 7.0, "angry", 0.9, ["an", "hour!"]), entry(7.0, 8.0, "sad", 0.7)]
    spans = [{"start": one["start"], "end": one["end"], "label": one["label"], "score": 0.9} for one in entries]
    customer = {**entry(0, 0, "angry", 0.6), "timeline": entries, "spans": spans}
    return {
        "duration": 8.0,
        "speakers": {"channel_0": {"speech": [(0.0, 4.0)]}, "channel_1": {"speech": [(4.0, 8.0)], **customer}},
    }


@pytest.fixture
def turns(call):
    turns = [{"speaker": "channel_0", "start": 0.0, "end": 4.0}, {"speaker": "channel_1", **entry(4.0, 8.0, "angry")}]
    turns[1]["words"] = ["an", "hour!"]
    return {**call, "turns": turns}


def test_spans_of_channels(call):
    assert list(CallLayout(["angry", "sad"]).lines("call.wav", call)) == [
        "call.wav: 8.00 s",
        "  channel_0  not predicted",
        "  channel_1  angry 0.60, sad 0.40",
        "      4.00 to     7.00 s  channel_1  angry 0.90",
        "      7.00 to     8.00 s  channel_1  sad 0.90",
    ]


def test_turns(turns):
    assert list(CallLayout(["angry", "sad"]).lines("call.wav", turns))[3:] == [
        "      0.00 to     4.00 s  channel_0",
        '      4.00 to     8.00 s  channel_1  angry 0.80  "an hour!"',
    ]


def test_rows_of_a_call(call):
    layout = CallLayout(["angry", "sad"])

    assert layout.columns == ["speaker", "start", "end", "words", "label", "score", "angry", "sad"]
    assert list(layout.rows(call)) == [
        ["channel_1", 4.0, 7.0, "an hour!", "angry", 0.9, 0.9, 0.1],
        ["channel_1", 7.0, 8.0, "", "sad", 0.7, 0.3, 0.7],
    ]
    call["speakers"]["channel_1"] |= {"timeline": [], "label": "silence", "scores": []}
    assert list(layout.rows(call)) == [["channel_1", "", "", "", "silence", "", "", ""]]


def test_a_summary(call):
    call["summary"] = summarize_call(call)

    lines = list(CallSummaryLayout(["angry", "sad"]).lines("call.wav", call))

    assert [line.rstrip() for line in lines] == [
        "call.wav: 8.0 s, silence 0.0 s (0%), overlap 0.0 s (0%)",
        "",
        "  channel_0: talks 4.0 s (50%), 0 interruptions",
        "    emotions not predicted",
        "",
        "  channel_1: talks 4.0 s (50%), 0 interruptions",
        "           share of speech             by quarter of the call",
        "    angry  ███████████████░░░░░  75%     0%    0%  100%   50%",
        "    sad    █████░░░░░░░░░░░░░░░  25%     0%    0%    0%   50%",
        "    strongest",
        '        4.00 to     7.00 s  angry 0.90  "an hour!"',
        "        7.00 to     8.00 s  sad 0.70",
        "",
    ]


def test_bars_of_a_terminal_without_unicode(call, monkeypatch):
    call["summary"] = summarize_call(call)
    monkeypatch.setattr("sys.stdout", type("Terminal", (), {"encoding": "cp1252"}))

    assert any("###############....." in line for line in CallSummaryLayout(["angry", "sad"]).lines("a", call))


def test_rows_of_a_summary(call):
    call["summary"] = summarize_call(call)
    layout = CallSummaryLayout(["angry", "happy", "sad"])

    assert layout.columns == [
        "speaker",
        "talk_seconds",
        "talk_share",
        "interruptions",
        "angry",
        "happy",
        "sad",
        "uncertain",
    ]
    assert list(layout.rows(call)) == [
        ["channel_0", 4.0, 0.5, 0, "", "", "", ""],
        ["channel_1", 4.0, 0.5, 0, 0.75, 0.0, 0.25, 0.0],
    ]
