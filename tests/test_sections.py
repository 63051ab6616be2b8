"""Long recordings in sections: how they are planned, predicted, and joined."""

import io
import math
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from encoded import CODINGS, encode

from mmemo.answers import AnswerFormatter
from mmemo.archives import sections
from mmemo.archives.scorer import Scorer
from mmemo.archives.sections import SectionJoiner, plan_sections
from mmemo.archives.tasks import ArchiveItem, Outcome, ScoringOptions, Section, Task
from mmemo.audio.loading import AudioBlocks


RATE = 16_000
# Words before, across and after a border.
SRT = """1
00:00:01,000 --> 00:00:02,000
I am happy.

2
00:00:22,500 --> 00:00:26,000
you are so sad!

3
00:00:50,000 --> 00:00:51,000
wait
"""


@pytest.fixture(scope="module")
def options(exported):
    return ScoringOptions(model=str(exported), timeline=True, section_s=60.0)


@pytest.fixture(scope="module")
def scorer(options):
    return Scorer(options)


@pytest.fixture(scope="module")
def samples(example_audio):
    """70 s of the example clips; somebody speaks across the borders at 24 and 48 s, and there are two long pauses."""
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(example_audio.parent.glob("*.flac"))]
    talk = np.concatenate([part for clip in clips for part in (clip, np.zeros(RATE // 2, np.float32))])
    return np.resize(np.concatenate([talk, np.zeros(4 * RATE, np.float32)]), 70 * RATE)


@pytest.fixture(scope="module")
def recording(samples, tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "call.wav"
    soundfile.write(path, samples, RATE, subtype="PCM_16")
    return str(path)


@pytest.fixture(autouse=True)
def short_lead(monkeypatch):
    """One that contains a long pause, which is as good as a longer lead, and faster."""
    monkeypatch.setattr(sections, "LEAD_SECONDS", 24.0)


@pytest.fixture
def means(monkeypatch):
    """Predicts recordings of more than a minute as the mean over their windows."""
    monkeypatch.setattr("mmemo.recognition.MAX_LOADED_SECONDS", 60.0)


def in_sections(item, count=3):
    """The tasks of sections that are shorter than planned ones."""
    borders = [*(24.0 * number for number in range(count)), math.inf]
    return [Task(item, Section(number, count, *borders[number : number + 2])) for number in range(count)]


def split_and_whole(scorer, options, item, count=3):
    """Returns the joined outcome of an item's sections, in any order, and that of the item as one task."""
    outcomes = scorer(in_sections(item, count))
    random.Random(0).shuffle(outcomes)
    joiner = SectionJoiner(scorer.answers, options)
    *early, joined = [joiner.add(outcome) for outcome in outcomes]
    assert early == [None] * (count - 1)
    (whole,) = scorer([Task(item)])
    return joined, whole


def scores_of(entry):
    return {score["label"]: score["score"] for score in entry["scores"]}


def silent_wav(path, seconds, rate=8_000):
    soundfile.write(path, np.zeros(round(seconds * rate), np.int16), rate)
    return ArchiveItem("a", path=str(path))


def test_long_recordings_are_split_at_multiples_of_the_section(tmp_path, options):
    item = silent_wav(tmp_path / "a.wav", 200.0)

    tasks = plan_sections(item, options)

    assert tasks == [
        Task(item, Section(0, 3, 0.0, 60.0)),
        Task(item, Section(1, 3, 60.0, 120.0)),
        Task(item, Section(2, 3, 120.0, math.inf)),
    ]
    # In multiples of 12 s.
    assert [task.section.start for task in plan_sections(item, replace(options, section_s=65.0))] == [0.0, 60.0, 120.0]
    assert [task.section.start for task in plan_sections(item, replace(options, section_s=95.0))] == [0.0, 96.0]


@pytest.mark.parametrize(("seconds", "section_s"), [(61.0, 60.0), (89.9, 60.0), (102.0, 67.0)])
def test_no_section_is_much_shorter_than_the_others(tmp_path, options, seconds, section_s):
    item = silent_wav(tmp_path / "a.wav", seconds)

    assert plan_sections(item, replace(options, section_s=section_s)) == [Task(item)]


@pytest.mark.parametrize(
    ("changes", "about_item"),
    [
        ({"section_s": math.inf}, {}),
        ({"video": True}, {}),
        ({"granularity": "utterance"}, {}),
        ({"timeline": False}, {}),  # at most ten minutes, which are loaded
        ({}, {"path": "https://example.com/a.wav"}),
        ({}, {"path": "s3://bucket/a.wav"}),
        ({}, {"content": b"RIFF"}),
        ({}, {"path": None, "text": "so sad"}),
        ({}, {"path": "vanished.wav"}),
        ({}, {"path": "."}),
    ],
)
def test_other_items_are_one_task(tmp_path, options, changes, about_item):
    item = replace(silent_wav(tmp_path / "a.wav", 200.0), **about_item)

    assert plan_sections(item, replace(options, **changes)) == [Task(item)]


def test_files_that_are_too_small_are_not_opened(tmp_path, options, monkeypatch):
    monkeypatch.setattr(sections, "AudioBlocks", lambda path: pytest.fail(f"{path} was opened"))
    item = silent_wav(tmp_path / "a.wav", 4.0)

    assert plan_sections(item, options) == [Task(item)]


def test_large_files_that_are_not_audio_are_one_task(tmp_path, options, scorer):
    path = tmp_path / "a.wav"
    path.write_bytes(os.urandom(100_000))
    os.mkfifo(tmp_path / "pipe")

    for item in (ArchiveItem("a", path=str(path)), ArchiveItem("b", path=str(tmp_path / "pipe"))):
        assert plan_sections(item, options) == [Task(item)]
    assert "is not readable audio" in scorer(plan_sections(ArchiveItem("a", path=str(path)), options))[0].error


def test_a_joined_timeline_equals_that_of_the_recording(scorer, options, recording, monkeypatch):
    """To the bit, since the pauses bring the windows of all sections into step."""
    decoded = []
    between = AudioBlocks.between
    monkeypatch.setattr(AudioBlocks, "between", lambda *args: decoded.append(args[1:]) or between(*args))
    item = ArchiveItem("a", path=recording, columns={"agent": "ann"})

    joined, whole = split_and_whole(scorer, options, item)

    assert joined == whole
    assert joined.result["duration"] == 70.0 and len(joined.result["timeline"]) == 140
    assert any(start < 24 < end for start, end in joined.result["speech"])
    assert decoded == [(0.0, 32.0), (0.0, 56.0), (24.0, math.inf)]


def test_only_the_windows_of_a_section_are_predicted(scorer, recording, monkeypatch):
    counts = []

    def predict_windows(windows, function_to_apply=None):
        counts.append(len(windows))
        for window in windows:
            window.set_predictions(np.ones((len(window.spans), 4)) / 4, np.ones((len(window.spans), 2)))

    monkeypatch.setattr(scorer._predictor, "predict_windows", predict_windows)
    item = ArchiveItem("a", path=recording)

    scorer([Task(item)])
    total = sum(counts)
    scorer(in_sections(item))

    assert 10 < total <= sum(counts) - total <= total + 2 * 2  # up to two windows at each border


@pytest.mark.slow
def test_a_planned_recording_with_the_usual_lead(scorer, options, samples, tmp_path, monkeypatch):
    monkeypatch.undo()
    path = tmp_path / "stereo.wav"
    channel = np.resize(samples, 190 * RATE)
    soundfile.write(path, np.stack([np.zeros_like(channel), channel], axis=1), RATE)
    item = ArchiveItem("a", path=str(path), channel=1)
    joiner = SectionJoiner(scorer.answers, options)

    *_, joined = [joiner.add(outcome) for outcome in scorer(plan_sections(item, options))]

    assert [joined] == scorer([Task(item)])


@pytest.mark.parametrize(
    "name",
    ["m4a", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mkv with video", "wav with mp3", "amr"))],
)
def test_files_that_cannot_be_seeked_are_decoded_up_to_the_section(scorer, options, samples, tmp_path, name):
    path = tmp_path / "call"
    path.write_bytes(encode(np.rint(samples[None] * 32_767).astype(np.int16), RATE, CODINGS[name]))

    joined, whole = split_and_whole(scorer, options, ArchiveItem("a", path=str(path)))

    assert joined.result["duration"] == whole.result["duration"] and joined.result["speech"] == whole.result["speech"]
    for entry, other in zip(joined.result["timeline"], whole.result["timeline"], strict=True):
        assert (entry["start"], entry["end"]) == (other["start"], other["end"])
        # Resampled samples differ by rounding, and so do the ranges of int8.
        assert scores_of(entry) == pytest.approx(scores_of(other), abs=0 if CODINGS[name].rate == RATE else 0.05)


@pytest.mark.parametrize(
    "granularity", ["segment", *(pytest.param(name, marks=pytest.mark.slow) for name in ("word", "sentence"))]
)
def test_words_belong_to_their_section(options, recording, tmp_path, granularity):
    path = tmp_path / "call.srt"
    path.write_text(SRT)
    options = replace(options, granularity=granularity)
    item = ArchiveItem("a", path=recording, **({"text": SRT} if granularity == "word" else {"word_times": str(path)}))

    joined, whole = split_and_whole(Scorer(options), options, item)

    assert joined.warnings == whole.warnings
    for entry, other in zip(joined.result["timeline"], whole.result["timeline"], strict=True):
        assert (entry["start"], entry["end"], entry["words"]) == (other["start"], other["end"], other["words"])
        assert scores_of(entry) == pytest.approx(scores_of(other), abs=1e-3)
    if granularity == "segment":
        assert joined == whole


def test_a_section_without_words_has_no_spans_of_them(options, recording, tmp_path):
    path = tmp_path / "call.srt"
    path.write_text(SRT.partition("\n2\n")[0])  # at the beginning
    options = replace(options, granularity="word")

    joined, whole = split_and_whole(Scorer(options), options, ArchiveItem("a", path=recording, word_times=str(path)))

    assert joined.error is None and joined == whole
    assert joined.result["speech"][-1][1] > 60


def test_a_sentence_may_be_longer_than_what_is_predicted_after_a_section(options, recording, tmp_path):
    path = tmp_path / "call.srt"
    path.write_text("1\n00:00:20,000 --> 00:00:45,000\n" + "so sad " * 20 + "\n")
    options = replace(options, granularity="sentence")

    joined, whole = split_and_whole(Scorer(options), options, ArchiveItem("a", path=recording, word_times=str(path)))

    (entry,), (other,) = joined.result["timeline"], whole.result["timeline"]
    assert (entry["start"], entry["end"], entry["words"]) == (20.0, 45.0, other["words"])
    assert scores_of(entry) == pytest.approx(scores_of(other), abs=1e-3)


def test_the_mean_of_a_recording_is_over_all_sections(means, options, recording):
    options = replace(options, timeline=False, threshold=0.5)

    joined, whole = split_and_whole(Scorer(options), options, ArchiveItem("a", path=recording, text="so happy"))

    assert joined == whole
    assert joined.result.keys() == {"label", "scores", "modality_weights", "duration"}
    assert joined.warnings == (
        "The recording lasts 70 s. Its prediction is the mean over its speech, in windows of 3.5 s; "
        "return_timeline=True returns the predictions over time.",
    )


@pytest.mark.parametrize("text", [None, "so happy"])
def test_a_recording_without_speech_has_the_prediction_of_its_text(means, options, tmp_path, monkeypatch, text):
    options = replace(options, timeline=False)
    scorer = Scorer(options)
    # Otherwise the processor of the tiny model detects no speech, and all of it is predicted.
    monkeypatch.setattr(scorer._predictor.processor, "speech_padding_s", 0.1)
    item = replace(silent_wav(tmp_path / "a.wav", 70.0), text=text)

    joined, whole = split_and_whole(scorer, options, item)

    assert joined == whole
    if text is None:
        assert joined.error == "audio: no speech was detected in 70.0 s; there is no prediction."
    else:
        assert joined.warnings == ("audio: no speech was detected in 70.0 s, so the text alone is predicted.",)
        assert joined.result["modality_weights"] == {"audio": 0.0, "text": 1.0}


def test_an_invalid_item_fails_as_a_whole_recording_does(scorer, options, recording):
    for about_item in ({"channel": 2}, {"text": "so " * 100}, {"text": SRT.replace("00:00:5", "00:09:5")}):
        joined, whole = split_and_whole(scorer, options, ArchiveItem("a", path=recording, **about_item))

        assert joined == whole and joined.error is not None


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_a_wrong_declared_length_changes_nothing(scorer, options, recording, count):
    """As of containers of which FFmpeg estimates the length: the last section is long, or empty."""
    joined, whole = split_and_whole(scorer, options, ArchiveItem("a", path=recording), count)

    assert joined == whole


def test_a_truncated_recording_fails(scorer, options, samples, tmp_path):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC")
    path = tmp_path / "a.flac"
    path.write_bytes(file.getvalue()[: -len(file.getvalue()) // 4])

    joined, whole = split_and_whole(scorer, options, ArchiveItem("a", path=str(path)))

    for outcome in (joined, whole):
        assert outcome.error.startswith(f"{path} is ") and "truncated" in outcome.error


@pytest.fixture
def joiner():
    answers = AnswerFormatter(["happy", "sad"], None, None, ["audio", "text"])
    return SectionJoiner(answers, ScoringOptions(timeline=True))


def part(number, *, item="a", attempts=1, **about_outcome):
    task = Task(ArchiveItem(item), Section(number, 3, 60.0 * number, 60.0 * (number + 1)), attempts)
    return Outcome(task, **about_outcome)


def result_of(number, label=0):
    start = 60.0 * number
    scores = [[0.25, 0.75], [0.75, 0.25]][label]
    spans = [[start, start + 0.5, ["so"], scores, [1.0, 0.0]], [start + 0.5, start + 1.0, [], None, None]]
    return {"spans": spans, "speech": [[start, start + 0.5]], "duration": start + 60.0}


def test_items_without_sections_pass(joiner):
    outcome = Outcome(Task(ArchiveItem("a")), {"label": "sad"}, None, ("so",))

    assert joiner.add(outcome) is outcome


def test_sections_of_several_items_are_joined_in_order(joiner):
    added = [
        joiner.add(part(number, item=item, result=result_of(number, label), warnings=(f"{number}", "both")))
        for item, number, label in (("b", 2, 0), ("a", 1, 0), ("b", 0, 0), ("a", 0, 1), ("a", 2, 0))
    ]

    assert added[:4] == [None] * 4
    joined = added[4]
    assert joined.task == Task(ArchiveItem("a")) and joined.warnings == ("0", "both", "1", "2")
    assert [entry["label"] for entry in joined.result["timeline"]] == [
        "happy",
        "silence",
        "sad",
        "silence",
        "sad",
        "silence",
    ]
    assert joined.result["label"] == "sad"
    assert {entry["label"]: entry["score"] for entry in joined.result["scores"]} == pytest.approx(
        {"sad": (0.25 + 0.75 + 0.75) / 3, "happy": (0.75 + 0.25 + 0.25) / 3}
    )
    assert joined.result["duration"] == 180.0
    assert joined.result["speech"] == [[0.0, 0.5], [60.0, 60.5], [120.0, 120.5]]


def test_speech_across_a_border_is_one_stretch(joiner):
    stretches = ([[0.0, 1.0], [58.0, 60.0]], [[60.2, 61.0], [100.0, 119.9]], [[120.3, 121.0]])
    for number, speech in enumerate(stretches):
        joined = joiner.add(part(number, result=result_of(number) | {"speech": speech}))

    assert joined.result["speech"] == [[0.0, 1.0], [58.0, 61.0], [100.0, 119.9], [120.3, 121.0]]


def test_an_item_fails_once_all_sections_have_come(joiner):
    assert joiner.add(part(2, error="second", attempts=2)) is None
    assert joiner.add(part(1, error="first", warnings=("so",))) is None

    joined = joiner.add(part(0, result=result_of(0)))

    assert joined == Outcome(Task(ArchiveItem("a"), attempts=2), error="first", warnings=("so",))


def test_an_answer_that_cannot_be_formatted_is_an_error():
    answers = AnswerFormatter(["happy", "sad"], None, {"audio": [1.0] * 101}, ["audio", "text"])
    joiner = SectionJoiner(answers, ScoringOptions(timeline=True, coverage=0.9))
    for number in range(3):
        result = result_of(number)
        result["spans"][0][4] = [0.5, 0.5]
        joined = joiner.add(part(number, result=result))

    assert joined.result is None and joined.error.startswith("coverage needs this model's conformal_quantiles for")
