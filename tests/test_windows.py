"""A track cuts what it hears into windows and puts their answers together; the model is played by arithmetic."""

import math

import numpy as np
import pytest

from mmemo.timeline.track import Track
from mmemo.timeline.windows import Span, TimelineOptions
from modeling_mmemo import load_audio


RATE = 16_000


def make_track(words=(), text=None, **options):
    options = {"voice_activity": False, "window_s": 4.0, "window_hop_s": 3.0, **options}
    return Track(TimelineOptions(**options), RATE, words, text)


def sound(seconds):
    return np.full(round(seconds * RATE), 0.1, np.float32)


def answer(window):
    """Says of each span when the middle of the window is, and that only audio was heard."""
    window.take(
        np.full((len(window.spans), 1), (window.start + window.end) / 2), np.array([[1.0, 0.0]] * len(window.spans))
    )


def run(track, *chunks):
    """Windows and spans of a whole recording, each window answered at once."""
    windows, spans = [], []

    def hear(some):
        for window in some:
            answer(window)
            windows.append(window)
            spans.extend(track.pop())

    for chunk in chunks:
        hear(track.feed(chunk))
        spans.extend(track.pop())
    hear(track.finish())
    return windows, [*spans, *track.pop()]


def test_windows_overlap_and_the_last_reaches_back():
    windows, _ = run(make_track(), sound(8.5))
    assert [(window.start, window.end) for window in windows] == [(0, 4), (3, 7), (4.5, 8.5)]
    assert [len(window.item["audio"]) for window in windows] == [4 * RATE] * 3


def test_a_short_recording_is_one_window():
    (window,), spans = run(make_track(), sound(1.3))
    assert (window.start, window.end) == (0, 1.3)
    assert [(span.start, span.end) for span in spans] == [(0, 0.5), (0.5, 1), (1, 1.3)]


def test_segments_are_answered_by_the_mean_of_the_windows_that_hold_them():
    _, spans = run(make_track(), sound(8.5))
    middles = {span.start: span.scores[0] for span in spans}
    # Windows have their middles at 2, 5 and 6.5 s.
    assert middles[0] == 2
    assert middles[3] == (2 + 5) / 2
    assert middles[4] == 5
    # Settled before the recording ended: what a live stream has given out already.
    assert middles[4.5] == 5
    assert middles[6] == (5 + 6.5) / 2
    assert middles[8] == 6.5


def test_what_a_window_holds_in_part_counts_for_that_part():
    # One span from 2 to 6 s: two seconds of it in the first window, three in the second, of which it is the rest.
    words = [("one", 2.0, 4.0), ("two.", 4.0, 6.0)]
    _, (span,) = run(make_track(words, granularity="sentence"), sound(7))
    assert (span.start, span.end, span.words) == (2, 6, ["one", "two."])
    assert span.scores[0] == pytest.approx((2 * 2 + 3 * 5) / 5)


def test_late_windows_do_not_count():
    # Windows end at 2, 3, 4, ...; a segment that ends at 2 takes none that ends after 3.
    track = make_track(window_s=2.0, window_hop_s=1.0, latency_s=1.0)
    _, spans = run(track, sound(5))
    middles = {span.start: span.scores[0] for span in spans}
    assert middles[0] == middles[0.5] == 1
    assert middles[1.5] == (1 + 2) / 2
    assert middles[2.0] == 2
    assert middles[2.5] == (2 + 3) / 2


def test_context_widens_what_is_short_as_far_as_the_window_reaches():
    (window,), _ = run(make_track(context_s=2.0), sound(4))
    times = dict(zip((span.start for span in window.spans), window.item["segment_times"]))
    assert times[0] == (0, 1.25)
    assert times[2] == (1.25, 3.25)
    assert times[3.5] == (2.75, 4)


@pytest.mark.parametrize("options", [{}, {"window_s": 2.0, "window_hop_s": 0.5, "latency_s": 0.5}])
@pytest.mark.parametrize("sizes", [[136_000], [1_000] * 136, [7, 16_000, 64_000, 55_993]])
def test_chunks_of_any_size_give_the_same(sizes, options):
    samples = np.random.default_rng(0).uniform(-1, 1, 136_000).astype(np.float32)
    chunks = np.split(samples, np.cumsum(sizes)[:-1])
    expected = run(make_track(**options), samples)
    found = run(make_track(**options), *chunks)
    for window, other in zip(*(windows for windows, _ in (found, expected)), strict=True):
        np.testing.assert_array_equal(window.item["audio"], other.item["audio"])
        assert window.item["segment_times"] == other.item["segment_times"]
    assert [(span.start, span.end, *span.scores) for span in found[1]] == [
        (span.start, span.end, *span.scores) for span in expected[1]
    ]


def test_a_window_does_not_answer_for_what_only_touches_it():
    windows, _ = run(make_track(window_s=2.0, window_hop_s=1.0), sound(4))
    assert [span.start for span in windows[1].spans] == [1, 1.5, 2, 2.5]


def test_a_word_of_no_length_is_answered_for():
    _, spans = run(make_track([("Oh", 0.0, 0.0), ("no", 3.0, 3.0)], granularity="word"), sound(7))
    assert [span.scores is None for span in spans] == [False, False]


class LoudnessDetector:
    """Calls loud frames speech."""

    def __init__(self):
        self.pending = np.zeros(0, np.float32)

    def __call__(self, samples):
        samples = np.concatenate([self.pending, samples])
        count = len(samples) // 512
        self.pending = samples[512 * count :]
        return np.abs(samples[: 512 * count]).reshape(count, 512).mean(axis=1) * 10


def say_what_is_in_it(window):
    """Answers differently for whatever is different about a window."""
    audio, text = window.item["audio"], window.item["text"]
    value = window.start + (0 if audio is None else np.abs(audio).sum(dtype=float)) + sum(map(ord, text or ""))
    scores = np.array([[value + start + 2 * end] for start, end in window.item["segment_times"]])
    window.take(scores, np.ones((len(scores), 2)))


@pytest.mark.parametrize("seed", range(40))
def test_live_is_offline_whatever_the_options_the_pauses_and_the_chunks(seed):
    rng = np.random.default_rng(seed)
    samples = rng.uniform(-0.01, 0.01, round(rng.uniform(0.5, 25) * RATE)).astype(np.float32)
    start = 0
    while start < len(samples):
        end = start + round(rng.choice([0.1, 1, 3, 8]) * RATE)
        samples[start:end] *= 50
        start = end + round(rng.choice([0.2, 1, 4, 9]) * RATE)
    words = [(f"w{n}", n * 0.7, n * 0.7 + rng.choice([0, 0.3])) for n in range(int(len(samples) / RATE / 0.7))]
    window_s = rng.choice([1.0, 2.0, 3.5])
    segment_s = rng.choice([0.25, 0.5, 0.3])
    window_hop_s = window_s * rng.choice([0.3, 0.5, 1.0])
    options = TimelineOptions(
        window_s=window_s,
        window_hop_s=window_hop_s,
        segment_s=segment_s,
        hop_s=rng.choice([segment_s, segment_s / 2, segment_s * 1.5]),
        latency_s=rng.choice([None, window_hop_s]),
        granularity=rng.choice(["segment", "word", "sentence", "utterance"] if words else ["segment"]),
    )
    words = words if options.granularity != "segment" or seed % 2 else []

    def follow(chunks, at_once):
        track = Track(options, RATE, words)
        track.detector = LoudnessDetector()
        spans, waiting = [], []

        def hear(windows, least):
            for window in windows:
                waiting.append(window)
                if len(waiting) >= least:
                    while waiting:
                        say_what_is_in_it(waiting.pop(0))
                spans.extend(track.pop())

        for chunk in chunks:
            hear(track.feed(chunk), at_once)
            spans.extend(track.pop())
        hear(track.finish(), at_once)
        while waiting:
            say_what_is_in_it(waiting.pop(0))
        return [*spans, *track.pop()]

    cuts = np.sort(rng.integers(len(samples), size=rng.integers(1, 60)))
    expected = follow([samples], at_once=1)
    assert expected
    for chunks, at_once in (([samples], 5), (np.split(samples, cuts), 1), (np.split(samples, cuts), 3)):
        found = follow(chunks, at_once)
        for span, other in zip(found, expected, strict=True):
            assert (span.start, span.end, span.words) == (other.start, other.end, other.words)
            assert (span.scores is None) == (other.scores is None)
            if span.scores is not None:
                assert span.scores[0] == pytest.approx(other.scores[0])


def test_nothing_is_done_before_its_last_window_is_answered():
    track = make_track()
    windows = list(track.feed(sound(8)))
    assert list(track.pop()) == []
    answer(windows[0])
    assert [span.start for span in track.pop()] == [0, 0.5, 1, 1.5, 2, 2.5]
    answer(windows[1])
    assert [span.start for span in track.pop()] == [3, 3.5, 4, 4.5, 5, 5.5]


def test_state_does_not_grow():
    track = make_track()
    for _ in range(200):
        for window in track.feed(sound(1)):
            answer(window)
        list(track.pop())
        track.pop_speech()
    assert len(track._buffer) <= 8 * RATE
    assert len(track._open) <= 20


def test_words_are_those_whose_middle_lies_in_a_segment():
    words = [("a", 0.0, 0.3), ("bee", 0.3, 0.9), ("sea", 1.0, 1.0)]
    (window,), spans = run(make_track(words), sound(1.5))
    assert [span.words for span in spans] == [["a"], ["bee"], ["sea"]]
    assert window.item["text"] == "a bee sea"
    assert window.item["word_times"] == words


def test_a_window_has_its_own_words_at_its_own_times():
    words = [("early", 0.5, 1.0), ("between", 2.5, 3.5), ("late", 5.0, 5.5)]
    windows, _ = run(make_track(words), sound(7))
    assert [window.item["text"] for window in windows] == ["early between", "between late"]
    assert windows[1].item["word_times"] == [("between", 0.0, 0.5), ("late", 2.0, 2.5)]


def test_a_text_without_times_is_in_every_window():
    windows, spans = run(make_track(text="So it is."), sound(7))
    assert [(window.item["text"], window.item["word_times"]) for window in windows] == [("So it is.", None)] * 2
    assert not any(span.words for span in spans)


def test_each_word_and_the_whole_can_be_answered_for():
    words = [("one", 0.2, 0.4), ("two", 2.0, 2.5)]
    _, spans = run(make_track(words, granularity="word"), sound(3))
    assert [(span.start, span.end, span.words) for span in spans] == [(0.2, 0.4, ["one"]), (2.0, 2.5, ["two"])]
    _, (whole,) = run(make_track(words, granularity="utterance"), sound(8.5))
    assert (whole.start, whole.end, whole.words) == (0, 8.5, ["one", "two"])
    # Four seconds of each of the windows around 2, 5 and 6.5 s.
    assert whole.scores[0] == pytest.approx((2 + 5 + 6.5) / 3)


def test_words_without_audio_pass_with_the_time():
    track = make_track([("one", 0.0, 0.4), ("two", 5.0, 5.5)])
    windows = [*track.advance(5.5), *track.finish()]
    assert [(window.start, window.end, window.item["text"]) for window in windows] == [
        (0, 4, "one"),
        (1.5, 5.5, "two"),
    ]
    for window in windows:
        assert window.item["audio"] is None
        answer(window)
    assert [span.scores is None for span in track.pop()].count(False) == 11


def test_silence_is_not_answered_for(example_audio):
    speech = load_audio(example_audio)[:RATE]
    gap = np.zeros(8 * RATE, np.float32)
    track = Track(TimelineOptions(), RATE)
    windows, spans = run(track, gap, speech, gap)
    assert 0 < len(windows) <= 3
    heard = [span.start for span in spans if span.scores is not None]
    assert heard[0] >= 8
    assert heard[-1] <= 9.5
    ((start, end),) = track.pop_speech()
    assert 7.9 < start < 8.5
    assert 8.5 < end < 9.2


def test_windows_begin_where_a_voice_does(example_audio):
    speech = load_audio(example_audio)
    track = Track(TimelineOptions(window_s=3.0, window_hop_s=2.5), RATE)
    windows, _ = run(track, np.zeros(10 * RATE, np.float32), speech, np.zeros(10 * RATE, np.float32), speech)
    # Half a second ahead of it, and not before the next one speaks.
    assert [window.start for window in windows] == [9.5, pytest.approx(9.5 + len(speech) / RATE + 10, abs=0.6)]


@pytest.mark.parametrize("latency_s", [None, 1.5])
def test_speech_after_silence_is_answered_for_without_a_gap(example_audio, latency_s):
    speech = load_audio(example_audio)
    for offset in np.arange(0.0, 1.0, 0.13):
        track = Track(TimelineOptions(window_s=3.0, window_hop_s=1.0, latency_s=latency_s), RATE)
        pause = np.zeros(round((6 + offset) * RATE), np.float32)
        _, spans = run(track, pause, speech, pause, speech[:RATE])
        # A second track that hears nothing but where the voice is.
        finder = Track(TimelineOptions(), RATE, answers=False)
        run(finder, pause, speech, pause, speech[:RATE])
        for begin, end in finder.pop_speech():
            inside = [span for span in spans if span.start < end - 0.2 and span.end > begin + 0.2]
            assert inside
            assert all(span.scores is not None for span in inside)


def test_words_are_answered_for_even_where_no_voice_is_found():
    track = Track(TimelineOptions(), RATE, [("hello", 1.0, 1.4)])
    (window,), spans = run(track, np.zeros(4 * RATE, np.float32))
    assert window.item["audio"] is None
    assert [span.start for span in spans if span.scores is not None] == [1.0]


def test_a_sound_without_a_voice_counts_as_missing_beside_words():
    tone = (np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE) / 2).astype(np.float32)
    windows, _ = run(Track(TimelineOptions(), RATE, [("hello", 1.0, 1.4)]), tone)
    assert [(window.item["audio"], window.item["text"]) for window in windows] == [(None, "hello")]


def test_a_track_that_only_finds_speech_has_no_windows(example_audio):
    track = Track(TimelineOptions(), RATE, answers=False)
    windows, spans = run(track, load_audio(example_audio))
    assert not windows
    assert not spans
    assert track.pop_speech()
    assert len(track._buffer) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"granularity": "phrase"}, "granularity='phrase'"),
        ({"segment_s": 0}, "segment_s=0 must be a positive number"),
        ({"window_s": math.nan}, "window_s=nan"),
        ({"hop_s": "0.5"}, "hop_s='0.5'"),
        ({"window_hop_s": 5}, "window_hop_s=5 exceeds window_s=3.5"),
        ({"segment_s": 5.0}, "segment_s=5.0 exceeds window_s=3.5"),
        ({"latency_s": 1.0}, "at least 2.5"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TimelineOptions(**options)


def test_words_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="granularity='word' needs to know when words are said"):
        make_track(granularity="word")
    with pytest.raises(ValueError, match="voice_activity=False"):
        Track(TimelineOptions(), 8_000)


def test_what_neither_modality_had_a_share_in_is_not_answered_for():
    (window,) = [*(track := make_track()).feed(sound(1)), *track.finish()]
    window.take(np.ones((2, 1)), np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert [span.scores is None for span in track.pop()] == [True, False]


def test_a_span_takes_a_weighted_mean():
    span = Span(0.0, 2.0)
    span.add(np.array([1.0, 0.0]), np.array([1.0, 0.0]), 1.0)
    span.add(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 3.0)
    np.testing.assert_allclose(span.scores, [0.25, 0.75])
    np.testing.assert_allclose(span.modality_weights, [0.25, 0.75])
