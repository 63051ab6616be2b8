"""Summaries of calls, from results worked out by hand."""

import copy
import json

import numpy as np
import pytest

from mmemo.timeline.calls import summarize_call


LABELS = ["angry", "neutral", "sad"]


def entry(start, end, label, score=0.8, words=()):
    """A timeline entry; the other labels share the rest of the score."""
    scored = "angry" if label == "uncertain" else label
    scores = [{"label": name, "score": score if name == scored else (1 - score) / 2} for name in LABELS]
    return {
        "start": start,
        "end": end,
        "label": label,
        "scores": [] if label == "silence" else sorted(scores, key=lambda item: -item["score"]),
        "words": list(words),
        "modality_weights": {"audio": 1.0, "text": 0.0},
    }


def call(duration, **speech):
    return {"duration": duration, "speakers": {name: {"speech": stretches} for name, stretches in speech.items()}}


@pytest.fixture
def talk():
    """Ten seconds: the customer gets angry, the agent's emotions were not predicted."""
    timeline = [
        entry(0, 1, "neutral", 0.9, ["well"]),
        entry(1, 2, "angry", 0.6, ["this"]),
        entry(2, 3, "angry", 0.8, ["is", "bad"]),
        entry(3, 5, "silence"),
        entry(5, 6, "angry", 0.75),
        entry(6, 7, "uncertain", 0.4),
        entry(7, 8, "neutral"),
        entry(8, 9, "silence"),
        entry(9, 10, "neutral"),
    ]
    result = call(10.0, customer=[(0, 3), (5, 8), (9, 10)], agent=[(2, 4)])
    result["speakers"]["customer"]["timeline"] = timeline
    return result


def test_talk_silence_and_overlap(talk):
    summary = summarize_call(talk)

    assert summary["duration"] == 10
    assert summary["silence"] == {"seconds": 2.0, "share": 0.2}  # 4 to 5 and 8 to 9
    assert summary["overlap"] == {"seconds": 1.0, "share": 0.1}  # 2 to 3
    assert list(summary["speakers"]) == ["customer", "agent"]
    assert summary["speakers"]["agent"] == {"talk_seconds": 2.0, "talk_share": 2 / 9, "interruptions": 1}
    assert summary["speakers"]["customer"]["talk_seconds"] == 7
    assert summary["speakers"]["customer"]["talk_share"] == 7 / 9
    assert summary["speakers"]["customer"]["interruptions"] == 0


def test_emotions_are_shares_of_the_speech(talk):
    customer = summarize_call(talk)["speakers"]["customer"]

    assert customer["emotions"] == pytest.approx({"angry": 3 / 7, "neutral": 3 / 7, "uncertain": 1 / 7, "sad": 0})
    assert list(customer["emotions"].values()) == sorted(customer["emotions"].values(), reverse=True)


def test_the_trend_splits_entries_at_the_quarters(talk):
    trend = summarize_call(talk)["speakers"]["customer"]["trend"]

    # 0 to 2.5, 2.5 to 5, 5 to 7.5, 7.5 to 10
    assert trend == [
        pytest.approx({"angry": 1.5 / 2.5, "neutral": 1 / 2.5, "uncertain": 0, "sad": 0}),
        pytest.approx({"angry": 1, "neutral": 0, "uncertain": 0, "sad": 0}),
        pytest.approx({"angry": 1 / 2.5, "neutral": 0.5 / 2.5, "uncertain": 1 / 2.5, "sad": 0}),
        pytest.approx({"angry": 0, "neutral": 1, "uncertain": 0, "sad": 0}),
    ]
    assert next(iter(trend[3])) == "neutral"


def test_the_strongest_spans_are_merged_and_never_neutral(talk):
    talk["speakers"]["customer"]["timeline"][4]["end"] = 5.5  # a gap, then sad
    talk["speakers"]["customer"]["timeline"].insert(5, entry(5.5, 6, "sad", 0.7, ["oh"]))
    strongest = summarize_call(talk)["speakers"]["customer"]["strongest"]

    assert [(span["start"], span["end"], span["label"]) for span in strongest] == [
        (5, 5.5, "angry"),
        (1, 3, "angry"),
        (5.5, 6, "sad"),
    ]
    assert [span["score"] for span in strongest] == pytest.approx([0.75, 0.7, 0.7])
    assert strongest[1]["words"] == ["this", "is", "bad"]
    assert summarize_call(talk, strongest=1)["speakers"]["customer"]["strongest"] == strongest[:1]
    assert summarize_call(talk, strongest=0)["speakers"]["customer"]["strongest"] == []


def test_the_score_of_a_span_is_the_mean_over_its_seconds():
    result = call(3.0, a=[(0, 3)])
    result["speakers"]["a"]["timeline"] = [
        entry(0, 2, "sad", 0.9),
        entry(2, 2.5, "sad", 0.4),
        entry(2.6, 3, "sad", 0.5),
    ]

    strongest = summarize_call(result)["speakers"]["a"]["strongest"]
    assert [(span["start"], span["end"]) for span in strongest] == [(0, 2.5), (2.6, 3)]
    assert strongest[0]["score"] == pytest.approx((2 * 0.9 + 0.5 * 0.4) / 2.5)


def test_words_of_zero_length_are_valid():
    result = call(3.0, a=[(0, 3)])
    result["speakers"]["a"]["timeline"] = [entry(1, 1, "sad", 0.9, ["oh"])]

    speaker = summarize_call(result)["speakers"]["a"]
    assert speaker["strongest"] == [
        {"start": 1, "end": 1, "label": "sad", "score": pytest.approx(0.9), "words": ["oh"]}
    ]
    assert speaker["emotions"] == dict.fromkeys(LABELS, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([(0, 2)], [(1, 3)], 1),
        ([(0.4, 2)], [(0.9, 3)], 1),  # 0.9 - 0.4 is a little less than 0.5
        ([(0.5, 2)], [(0.9, 3)], 0),  # both began at once
        ([(0, 1.2)], [(1, 3)], 1),  # 1.2 - 1 is a little less than 0.2
        ([(0, 1.15)], [(1, 3)], 0),  # the first was about to stop
        ([(0, 2)], [(1, 1.5)], 1),
        ([(0, 2)], [(1, 1.4)], 0),  # a backchannel
        ([(0, 2)], [(1, 1.3), (1.3, 1.6)], 1),  # one stretch, in two pieces
        ([(0, 2)], [(2, 3)], 0),
        ([(2, 4)], [(0, 1)], 0),
        ([(0, 2), (3, 5)], [(1, 2.5), (4, 6)], 2),
        ([], [(1, 2)], 0),
        ([(0, 2)], [], 0),
    ],
)
def test_interruptions(first, second, expected):
    speakers = summarize_call(call(6.0, first=first, second=second))["speakers"]

    assert (speakers["first"]["interruptions"], speakers["second"]["interruptions"]) == (0, expected)


def test_interrupting_two_speakers_at_once_counts_once():
    speakers = summarize_call(call(4.0, a=[(0, 3)], b=[(0.1, 3)], c=[(1, 2)]))["speakers"]

    assert [speaker["interruptions"] for speaker in speakers.values()] == [0, 0, 1]


def test_times_equal_a_count_per_millisecond():
    rng = np.random.default_rng(0)
    speech, active = {}, np.zeros((3, 60_000), bool)
    for name, row in zip("abc", active):
        ends = np.sort(rng.choice(60_000, size=40, replace=False)).reshape(-1, 2)
        speech[name] = [(start / 1000, end / 1000) for start, end in ends.tolist()]
        for start, end in ends:
            row[start:end] = True
    summary = summarize_call(call(60.0, **speech))

    voices = active.sum(axis=0)
    assert summary["silence"]["seconds"] == pytest.approx((voices == 0).sum() / 1000)
    assert summary["overlap"]["seconds"] == pytest.approx((voices >= 2).sum() / 1000)
    talk = [speaker["talk_seconds"] for speaker in summary["speakers"].values()]
    assert talk == pytest.approx(active.sum(axis=1) / 1000)
    assert sum(speaker["talk_share"] for speaker in summary["speakers"].values()) == pytest.approx(1)


def test_shares_of_an_empty_whole_are_zero():
    result = call(0.0, a=[])
    result["speakers"]["a"]["timeline"] = []
    summary = summarize_call(result)

    assert summary["silence"] == summary["overlap"] == {"seconds": 0.0, "share": 0.0}
    assert summary["speakers"]["a"] == {
        "talk_seconds": 0.0,
        "talk_share": 0.0,
        "interruptions": 0,
        "emotions": {},
        "trend": [{}] * 4,
        "strongest": [],
    }
    assert summarize_call(call(2.0))["silence"] == {"seconds": 2.0, "share": 1.0}


def test_a_silent_speaker_has_all_labels(talk):
    talk["speakers"]["agent"]["timeline"] = [entry(0, 10, "silence")]

    agent = summarize_call(talk)["speakers"]["agent"]
    assert agent["emotions"] == dict.fromkeys(LABELS, 0.0)
    assert agent["trend"] == [agent["emotions"]] * 4
    assert agent["strongest"] == []


def test_a_summary_is_json_and_does_not_change_the_result(talk):
    before = copy.deepcopy(talk)
    summary = summarize_call(talk)

    assert json.loads(json.dumps(summary)) == summary
    assert talk == before


def test_other_results_raise(talk):
    with pytest.raises(ValueError, match=r'no \'speakers\'.*channels="split" or speaker_turns='):
        summarize_call({"duration": 1.0, "timeline": []})
    with pytest.raises(ValueError, match="strongest=-1 must be at least 0"):
        summarize_call(talk, strongest=-1)
