import math

import numpy as np
import pytest

from mmemo.answers import AnswerFormatter
from mmemo.timeline.recording import Recording, Source
from mmemo.timeline.track import Track
from mmemo.timeline.windows import Span, TimelineOptions


LABELS = ("angry", "happy", "sad")
SCORES = np.array([0.2, 0.7, 0.1], np.float32)
# By percentage: nine in ten true labels of the calibration data had a score of at least 1 - 0.85.
QUANTILES = {"text": [0.0] * 90 + [0.85] + [1.0] * 10, "audio": [0.25] * 101}


@pytest.fixture
def formatter():
    return AnswerFormatter(LABELS, "single_label_classification", QUANTILES, ["audio", "text"])


def make_span(start, end, scores=None, weights=(1.0, 0.0), words=()):
    scores, weights = (None, None) if scores is None else (np.array(scores), np.array(weights))
    return Span(start, end, list(words), scores, weights)


def entries(*pairs):
    return [{"label": label, "score": pytest.approx(score, abs=1e-6)} for label, score in pairs]


@pytest.mark.parametrize(
    "problem_type, labels, expected",
    [
        (None, LABELS, "softmax"),
        (None, ["arousal"], "none"),
        ("single_label_classification", LABELS, "softmax"),
        ("single_label_classification", ["angry"], "softmax"),
        ("multi_label_classification", LABELS, "sigmoid"),
        ("regression", LABELS, "none"),
    ],
)
def test_the_default_function_follows_the_problem_type(problem_type, labels, expected):
    assert AnswerFormatter(labels, problem_type, None, ["text"]).default_function == expected


def test_scores_are_softmax_sigmoid_or_logits(formatter):
    logits = np.log([[1.0, 2.0, 5.0], [3.0, 1.0, 1.0]])

    np.testing.assert_allclose(formatter.scores(logits), [[1 / 8, 2 / 8, 5 / 8], [3 / 5, 1 / 5, 1 / 5]], atol=1e-6)
    # The sigmoid of log(x) is x / (x + 1).
    expected = [[1 / 2, 2 / 3, 5 / 6], [3 / 4, 1 / 2, 1 / 2]]
    np.testing.assert_allclose(formatter.scores(logits, "sigmoid"), expected, atol=1e-6)
    np.testing.assert_allclose(formatter.scores(logits, "none"), logits, atol=1e-6)


@pytest.mark.parametrize("function", ["softmax", "sigmoid"])
def test_scores_of_extreme_logits_are_finite(formatter, function):
    with np.errstate(over="raise", invalid="raise"):
        scores = formatter.scores(np.array([1e4, 0.0, -1e4]), function)
    np.testing.assert_allclose(scores, {"softmax": [1, 0, 0], "sigmoid": [1, 0.5, 0]}[function], atol=1e-6)


def test_items_are_sorted_by_score_and_limited_by_top_k(formatter):
    assert formatter.format_item(SCORES, (1.0, 0.0)) == entries(("happy", 0.7), ("angry", 0.2), ("sad", 0.1))
    assert formatter.format_item(SCORES, (1.0, 0.0), top_k=2) == entries(("happy", 0.7), ("angry", 0.2))
    assert [entry["label"] for entry in formatter.format_item(np.ones(3) / 3, (1.0, 0.0))] == list(LABELS)


@pytest.mark.parametrize(
    "options, keys",
    [
        ({"return_modality_weights": True}, {"scores", "modality_weights"}),
        ({"threshold": 0.5}, {"scores", "label"}),
        ({"coverage": 0.9}, {"scores", "label", "label_set"}),
        ({"threshold": 0.5, "return_modality_weights": True}, {"scores", "label", "modality_weights"}),
    ],
)
def test_items_have_only_the_requested_keys(formatter, options, keys):
    assert formatter.format_item(SCORES, (0.0, 1.0), **options).keys() == keys


@pytest.mark.parametrize("threshold, label", [(0.69, "happy"), (float(SCORES[1]), "happy"), (0.71, "uncertain")])
def test_scores_below_the_threshold_are_uncertain(formatter, threshold, label):
    assert formatter.format_item(SCORES, (1.0, 0.0), threshold=threshold)["label"] == label


def test_items_without_speech_are_uncertain_with_all_labels(formatter):
    answer = formatter.format_item(SCORES, (1.0, 0.0), has_speech=False, threshold=0.1, coverage=0.5)
    assert answer["label"] == "uncertain" and answer["label_set"] == list(LABELS)
    assert isinstance(formatter.format_item(SCORES, (1.0, 0.0), has_speech=False), list)


@pytest.mark.parametrize(
    "weights, coverage, labels",
    [
        ((0.0, 1.0), 0.9, ["happy", "angry"]),  # text: scores of at least 1 - 0.85
        ((0.0, 1.0), 0.91, ["happy", "angry", "sad"]),  # text: scores of at least 1 - 1
        ((0.0, 1.0), 0.901, ["happy", "angry", "sad"]),  # rounded up to 0.91
        ((1.0, 0.0), 0.9, ["happy"]),  # audio: no score reaches 1 - 0.25, so the highest one
    ],
)
def test_prediction_sets_follow_the_quantile_of_their_modalities(formatter, weights, coverage, labels):
    assert formatter.format_item(SCORES, weights, coverage=coverage)["label_set"] == labels


def test_lowest_score_uses_the_exact_percentage(formatter):
    """0.07 * 100 is slightly more than 7 in floating point."""
    steps = {"text": [index / 100 for index in range(101)]}
    formatter = AnswerFormatter(LABELS, None, steps, ["text"])
    assert formatter.lowest_score("text", 0.07) == pytest.approx(0.93)
    assert formatter.lowest_score("text", 0.071) == pytest.approx(0.92)


def test_prediction_sets_without_quantiles_raise(formatter):
    with pytest.raises(ValueError, match="coverage needs this model's conformal_quantiles for 'both'"):
        formatter.format_item(SCORES, (0.5, 0.5), coverage=0.9)
    with pytest.raises(ValueError, match=r"conformal_quantiles for 'text', which train\.py fits"):
        AnswerFormatter(LABELS, None, None, ["text"]).check_options(coverage=0.9)


@pytest.mark.parametrize(
    "problem_type, options, message",
    [
        (None, {"function_to_apply": "tanh"}, r"function_to_apply='tanh' is unknown; choose one of \['softmax'"),
        (None, {"top_k": 0}, "top_k=0 must be an integer of at least 1, or None"),
        (None, {"top_k": 1.0}, "top_k=1.0 must be an integer"),
        (None, {"top_k": True}, "top_k=True must be an integer"),
        (None, {"threshold": 0}, "threshold=0 must be a score between 0 and 1"),
        (None, {"threshold": math.nan}, "threshold=nan must be a score between 0 and 1"),
        (None, {"coverage": 1.0}, "coverage=1.0 must lie between 0 and 1, such as 0.9"),
        (None, {"coverage": 0.9, "function_to_apply": "none"}, "need softmax scores of a single label"),
        ("multi_label_classification", {"threshold": 0.5}, "need softmax scores of a single label"),
        ("regression", {"coverage": 0.5}, "need softmax scores of a single label"),
    ],
)
def test_invalid_options_raise(problem_type, options, message):
    formatter = AnswerFormatter(LABELS, problem_type, QUANTILES, ["audio", "text"])
    with pytest.raises(ValueError, match=message):
        formatter.check_options(**options)


def test_a_span_without_scores_is_silence(formatter):
    assert formatter.format_span(make_span(0.5, 1.0), threshold=0.5, coverage=0.9) == {
        "start": 0.5,
        "end": 1.0,
        "words": [],
        "label": "silence",
        "scores": [],
        "modality_weights": {"audio": 0.0, "text": 0.0},
    }


def test_a_timeline_averages_spans_by_their_length(formatter):
    """(1 s * 0.8 + 3 s * 0.4) / 4 s = 0.5."""
    spans = [
        make_span(0.0, 1.0, [0.8, 0.1, 0.1], words=["no"]),
        make_span(1.0, 2.0),
        make_span(2.0, 5.0, [0.4, 0.5, 0.1], (0.5, 0.5)),
    ]

    found = formatter.format_timeline(spans)

    assert found["scores"] == entries(("angry", 0.5), ("happy", 0.4), ("sad", 0.1))
    assert found["label"] == "angry"
    assert found["modality_weights"] == {"audio": pytest.approx(0.625), "text": pytest.approx(0.375)}
    assert [entry["label"] for entry in found["timeline"]] == ["angry", "silence", "happy"]
    assert found["timeline"][0]["words"] == ["no"]


def test_a_timeline_without_predictions_is_silence(formatter):
    for spans in ([], [make_span(0.0, 1.0)]):
        found = formatter.format_timeline(spans)
        assert found["label"] == "silence" and found["scores"] == found["spans"] == []


@pytest.mark.parametrize(
    "spans, expected",
    [
        # (2 s * 0.9 + 1 s * 0.6) / 3 s = 0.8.
        ([(0, 2, 0.9), (2, 3, 0.6)], [(0, 3, 0.8)]),
        # Overlapping: only the added second counts, (2 s * 0.9 + 1 s * 0.6) / 3 s.
        ([(0, 2, 0.9), (1, 3, 0.6)], [(0, 3, 0.8)]),
        # Contained in the span before it: nothing is added.
        ([(0, 3, 0.9), (1, 2, 0.6)], [(0, 3, 0.9)]),
        # A gap separates spans of one label.
        ([(0, 1, 0.9), (1.5, 2, 0.6)], [(0, 1, 0.9), (1.5, 2, 0.6)]),
        ([(0, 1, 0.9), (1, 2, None), (2, 3, 0.9)], [(0, 1, 0.9), (2, 3, 0.9)]),
    ],
)
def test_adjacent_spans_of_one_label_merge(formatter, spans, expected):
    made = [make_span(start, end, None if score is None else [score, 1 - score, 0]) for start, end, score in spans]

    merged = formatter.format_timeline(made)["spans"]

    assert [(span["start"], span["end"], span["label"]) for span in merged] == [
        (start, end, "angry") for start, end, _ in expected
    ]
    assert [span["score"] for span in merged] == pytest.approx([score for *_, score in expected])


def test_spans_of_different_labels_do_not_merge(formatter):
    spans = [make_span(0, 1, [0.9, 0.1, 0]), make_span(1, 2, [0.1, 0.9, 0]), make_span(2, 3, [0.5, 0.4, 0.1])]

    merged = formatter.format_timeline(spans, threshold=0.6)["spans"]

    assert [(span["label"], span["score"]) for span in merged] == [
        ("angry", pytest.approx(0.9)),
        ("happy", pytest.approx(0.9)),
        ("uncertain", pytest.approx(0.5)),
    ]


def make_source(*spans, **fields):
    source = Source(Track(TimelineOptions(voice_activity=False), 16_000), **fields)
    source.spans = list(spans)
    return source


def test_a_recording_of_one_voice_has_one_timeline(formatter):
    source = make_source(make_span(0, 1, SCORES))
    source.speech = [(0.0, 1.0)]
    recording = Recording(None, [source], 16_000)
    recording.duration = 1.5

    found = formatter.format_recording(recording, top_k=1)

    assert found.keys() == {"duration", "speech", "label", "scores", "modality_weights", "timeline", "spans"}
    assert found["duration"] == 1.5 and found["speech"] == [(0.0, 1.0)]
    assert found["scores"] == entries(("happy", 0.7))


def test_turns_of_a_speaker_share_one_timeline(formatter):
    sources = [
        make_source(make_span(0, 1, [0.8, 0.2, 0]), speaker="ann", start=0.0, end=1.0),
        make_source(speaker="bob", start=1.0, end=2.0, is_selected=False),
        make_source(make_span(2, 3, [0.4, 0.6, 0]), speaker="ann", start=2.0, end=3.0),
    ]
    for source, words in zip(sources, (["no"], ["yes"], ["well"])):
        source.speech, source.words = [(source.start, source.end)], words

    found = formatter.format_recording(Recording(None, sources, 16_000, has_turns=True))

    assert found["speakers"].keys() == {"ann", "bob"}
    assert found["speakers"]["ann"]["speech"] == [(0.0, 1.0), (2.0, 3.0)]
    assert found["speakers"]["ann"]["scores"] == entries(("angry", 0.6), ("happy", 0.4), ("sad", 0.0))
    assert found["speakers"]["bob"] == {"speech": [(1.0, 2.0)]}
    first, other, last = found["turns"]
    assert other == {"speaker": "bob", "start": 1.0, "end": 2.0}
    assert first.keys() == {"speaker", "start", "end", "label", "scores", "modality_weights", "words"}
    assert (first["label"], first["words"]) == ("angry", ["no"])
    assert (last["label"], last["words"]) == ("happy", ["well"])
