"""Timeline evaluation of hand-computed cases: two clips of two seconds whose middle second is speech."""

import numpy as np
import pytest
from datasets import Dataset

from modeling_mmemo.evaluation.timelines import frame_sums, join_clips, speech_edges, timeline_table


CLIPS = [
    {"label": "angry", "speaker": "a", "start": 0.0, "end": 2.0, "speech": (0.5, 1.5)},
    {"label": "sad", "speaker": "b", "start": 2.0, "end": 4.0, "speech": (2.5, 3.5)},
]


def entry(start, end, label):
    return {"start": start, "end": end, "label": label}


@pytest.fixture
def rows(make_clip):
    silence = np.zeros(8_000, np.float32)
    clips = [np.concatenate([silence, make_clip(1.0, seed), silence]) for seed in range(4)]
    return Dataset.from_dict(
        {
            "audio": [clip.tolist() for clip in clips],
            "text": ["i am happy !"] * 4,
            "label": ["angry", "sad", "angry", "angry"],
            "speaker": ["a", "a", "b", "b"],
        }
    )


def test_frame_sums_of_a_hand_computed_case():
    timeline = [entry(0.5, 1.0, "angry"), entry(1.0, 2.0, "sad"), entry(2.0, 3.0, "sad"), entry(3.0, 3.5, "silence")]
    # Speech is detected from 0.5 to 1.75 s and from 2.25 s on.
    sums = frame_sums({"timeline": timeline, "speech": [(0.5, 1.75), (2.25, 4.0)]}, CLIPS)
    # Speech, correct, missed, false alarm; then speech frames labelled angry and sad.
    assert sums.tolist() == [[100, 50, 0, 25, 100, 0], [100, 50, 50, 25, 0, 100]]


def test_predictions_outside_detected_speech_are_ignored():
    timeline = [entry(0.0, 4.0, "angry")]
    sums = frame_sums({"timeline": timeline, "speech": [(0.5, 1.5)]}, CLIPS)
    assert sums[:, :4].tolist() == [[100, 100, 0, 0], [100, 0, 100, 0]]


def test_join_clips(emotion, rows):
    samples, clips, words = join_clips(emotion, rows, with_words=True)
    assert len(samples) == 4 * 32_000
    assert sorted(clip["label"] for clip in clips) == ["angry", "angry", "angry", "sad"]
    for index, clip in enumerate(clips):
        assert (clip["start"], clip["end"]) == (2 * index, 2 * index + 2)
        assert clip["speech"] == pytest.approx((2 * index + 0.5, 2 * index + 1.5), abs=0.03)
    assert [word for word, _, _ in words[:4]] == ["i", "am", "happy", "!"]
    assert (words[4][1], words[7][2]) == pytest.approx(clips[1]["speech"])


def test_a_timeline_is_compared_with_the_majority_label(emotion, rows):
    table = timeline_table(_AlwaysAngry(emotion), "mine", "four clips", rows, with_words=False)
    assert (table["rows"], table["groups"], table["resampled"]) == (4, 2, "speakers")
    assert table["minutes"] == pytest.approx(8 / 60, abs=0.01)
    assert table["changes"] in (1, 2)
    # Always angry: three of four seconds of speech are correct, as for the majority, but silence is predicted too.
    assert table["frame_accuracy"]["value"] == pytest.approx(0.75, abs=0.02)
    assert table["majority"]["value"] == pytest.approx(0.25, abs=0.02)
    assert table["confused"]["value"] == pytest.approx(0.25, abs=0.02)
    assert table["missed"]["value"] == 0
    assert table["eder"]["value"] == pytest.approx(0.25 + table["false_alarm"]["value"], abs=1e-3)
    assert table["below_majority"]["value"] < 0


class _AlwaysAngry:
    """A pipeline that predicts anger everywhere."""

    def __init__(self, emotion):
        self.processor = emotion.processor

    def __call__(self, samples, return_timeline):
        seconds = len(samples) / 16_000
        return {"duration": seconds, "speech": [(0.0, seconds)], "timeline": [entry(0.0, seconds, "angry")]}


def test_speech_edges_are_within_35_db_of_the_loudest_frame(make_clip):
    loud = make_clip(1.0)
    audio = np.concatenate([loud * 10 ** (-50 / 20), loud, loud * 10 ** (-50 / 20)])
    assert speech_edges(audio, 16_000) == pytest.approx((1.0, 2.0), abs=0.03)
