"""A track cuts a recording into windows and averages their predictions; arithmetic stands in for the model."""

import numpy as np
import pytest

from mmemo.timeline.track import SampleBuffer, SpeechActivity, Track
from mmemo.timeline.windows import TimelineOptions
from modeling_mmemo import load_audio


RATE = 16_000


def make_track(words=(), text=None, **options):
    options = {"voice_activity": False, "window_s": 4.0, "window_hop_s": 3.0, **options}
    return Track(TimelineOptions(**options), RATE, words, text)


def sound(seconds):
    return np.resize(np.float32([0.1, -0.1]), round(seconds * RATE))


def predict(window):
    """Predicts the middle of the window for each span, from audio alone."""
    window.set_predictions(
        np.full((len(window.spans), 1), (window.start + window.end) / 2), np.array([[1.0, 0.0]] * len(window.spans))
    )


def run(track, *chunks):
    """Windows and spans of a whole recording; each window gets its predictions at once."""
    windows, spans = [], []

    def collect(some):
        for window in some:
            predict(window)
            windows.append(window)
            spans.extend(track.pop())

    for chunk in chunks:
        collect(track.feed(chunk))
        spans.extend(track.pop())
    collect(track.finish())
    return windows, [*spans, *track.pop()]


def test_windows_overlap_and_the_last_one_reaches_back():
    windows, _ = run(make_track(), sound(8.5))
    assert [(window.start, window.end) for window in windows] == [(0, 4), (3, 7), (4.5, 8.5)]
    assert [len(window.item["audio"]) for window in windows] == [4 * RATE] * 3


def test_a_short_recording_is_one_window():
    (window,), spans = run(make_track(), sound(1.3))
    assert (window.start, window.end) == (0, 1.3)
    assert [(span.start, span.end) for span in spans] == [(0, 0.5), (0.5, 1), (1, 1.3)]


def test_segments_get_the_mean_over_the_windows_that_contain_them():
    _, spans = run(make_track(), sound(8.5))
    middles = {span.start: span.scores[0] for span in spans}
    # Windows have their middles at 2, 5 and 6.5 s.
    assert middles[0] == 2
    assert middles[3] == (2 + 5) / 2
    assert middles[4] == 5
    # Final before the recording ended: a live stream has returned it already.
    assert middles[4.5] == 5
    assert middles[6] == (5 + 6.5) / 2
    assert middles[8] == 6.5


def test_windows_are_weighted_by_the_seconds_of_a_span_that_they_contain():
    # One span from 2 to 6 s: two seconds of it in the first window, three in the second.
    words = [("one", 2.0, 4.0), ("two.", 4.0, 6.0)]
    _, (span,) = run(make_track(words, granularity="sentence"), sound(7))
    assert (span.start, span.end, span.words) == (2, 6, ["one", "two."])
    assert span.scores[0] == pytest.approx((2 * 2 + 3 * 5) / 5)


def test_windows_after_the_latency_do_not_count():
    # Windows end at 2, 3, 4, ...; a segment that ends at 2 uses none that ends after 3.
    track = make_track(window_s=2.0, window_hop_s=1.0, latency_s=1.0)
    _, spans = run(track, sound(5))
    middles = {span.start: span.scores[0] for span in spans}
    assert middles[0] == middles[0.5] == 1
    assert middles[1.5] == (1 + 2) / 2
    assert middles[2.0] == 2
    assert middles[2.5] == (2 + 3) / 2


def test_context_widens_short_spans_within_the_window():
    (window,), _ = run(make_track(context_s=2.0), sound(4))
    times = dict(zip((span.start for span in window.spans), window.item["segment_times"]))
    assert times[0] == (0, 1.25)
    assert times[2] == (1.25, 3.25)
    assert times[3.5] == (2.75, 4)


@pytest.mark.parametrize("options", [{}, {"window_s": 2.0, "window_hop_s": 0.5, "latency_s": 0.5}])
@pytest.mark.parametrize("sizes", [[136_000], [1_000] * 136, [7, 16_000, 64_000, 55_993]])
def test_chunk_sizes_do_not_change_the_result(sizes, options):
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


def test_a_window_does_not_predict_spans_that_only_touch_it():
    windows, _ = run(make_track(window_s=2.0, window_hop_s=1.0), sound(4))
    assert [span.start for span in windows[1].spans] == [1, 1.5, 2, 2.5]


def test_a_word_of_zero_length_gets_a_prediction():
    _, spans = run(make_track([("Oh", 0.0, 0.0), ("no", 3.0, 3.0)], granularity="word"), sound(7))
    assert [span.scores is None for span in spans] == [False, False]


class LoudnessDetector:
    """Takes loud frames for speech."""

    def __init__(self):
        self.pending = np.zeros(0, np.float32)

    def __call__(self, samples):
        samples = np.concatenate([self.pending, samples])
        count = len(samples) // 512
        self.pending = samples[512 * count :]
        return np.abs(samples[: 512 * count]).reshape(count, 512).mean(axis=1) * 10


def predict_content(window):
    """Predicts different scores for windows with different content."""
    audio, text = window.item["audio"], window.item["text"]
    value = window.start + (0 if audio is None else np.abs(audio).sum(dtype=float)) + sum(map(ord, text or ""))
    scores = np.array([[value + start + 2 * end] for start, end in window.item["segment_times"]])
    window.set_predictions(scores, np.ones((len(scores), 2)))


@pytest.mark.parametrize("seed", range(40))
def test_live_equals_offline_for_any_options_pauses_and_chunks(seed):
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

    def process(chunks, batch_size):
        track = Track(options, RATE, words)
        track.speech.detector = LoudnessDetector()
        spans, waiting = [], []

        def collect(windows):
            for window in windows:
                waiting.append(window)
                if len(waiting) >= batch_size:
                    while waiting:
                        predict_content(waiting.pop(0))
                spans.extend(track.pop())

        for chunk in chunks:
            collect(track.feed(chunk))
            spans.extend(track.pop())
        collect(track.finish())
        while waiting:
            predict_content(waiting.pop(0))
        return [*spans, *track.pop()]

    cuts = np.sort(rng.integers(len(samples), size=rng.integers(1, 60)))
    expected = process([samples], batch_size=1)
    assert expected
    for chunks, batch_size in (([samples], 5), (np.split(samples, cuts), 1), (np.split(samples, cuts), 3)):
        found = process(chunks, batch_size)
        for span, other in zip(found, expected, strict=True):
            assert (span.start, span.end, span.words) == (other.start, other.end, other.words)
            assert (span.scores is None) == (other.scores is None)
            if span.scores is not None:
                assert span.scores[0] == pytest.approx(other.scores[0])


def test_spans_wait_for_the_predictions_of_their_last_window():
    track = make_track()
    windows = list(track.feed(sound(8)))
    assert list(track.pop()) == []
    predict(windows[0])
    assert [span.start for span in track.pop()] == [0, 0.5, 1, 1.5, 2, 2.5]
    predict(windows[1])
    assert [span.start for span in track.pop()] == [3, 3.5, 4, 4.5, 5, 5.5]


def test_state_is_bounded():
    track = make_track()
    for _ in range(200):
        for window in track.feed(sound(1)):
            predict(window)
        list(track.pop())
        track.pop_speech()
    assert len(track.audio.samples) <= 8 * RATE
    assert len(track._open) <= 20


def test_words_belong_to_the_segment_that_holds_their_middle():
    words = [("a", 0.0, 0.3), ("bee", 0.3, 0.9), ("sea", 1.0, 1.0)]
    (window,), spans = run(make_track(words), sound(1.5))
    assert [span.words for span in spans] == [["a"], ["bee"], ["sea"]]
    assert window.item["text"] == "a bee sea"
    assert window.item["word_times"] == words


def test_a_window_has_its_words_at_times_relative_to_its_start():
    words = [("early", 0.5, 1.0), ("between", 2.5, 3.5), ("late", 5.0, 5.5)]
    windows, _ = run(make_track(words), sound(7))
    assert [window.item["text"] for window in windows] == ["early between", "between late"]
    assert windows[1].item["word_times"] == [("between", 0.0, 0.5), ("late", 2.0, 2.5)]


def test_a_text_without_timestamps_is_in_every_window():
    windows, spans = run(make_track(text="So it is."), sound(7))
    assert [(window.item["text"], window.item["word_times"]) for window in windows] == [("So it is.", None)] * 2
    assert not any(span.words for span in spans)


def test_granularity_word_and_utterance():
    words = [("one", 0.2, 0.4), ("two", 2.0, 2.5)]
    _, spans = run(make_track(words, granularity="word"), sound(3))
    assert [(span.start, span.end, span.words) for span in spans] == [(0.2, 0.4, ["one"]), (2.0, 2.5, ["two"])]
    _, (whole,) = run(make_track(words, granularity="utterance"), sound(8.5))
    assert (whole.start, whole.end, whole.words) == (0, 8.5, ["one", "two"])
    # Four seconds of each of the windows around 2, 5 and 6.5 s.
    assert whole.scores[0] == pytest.approx((2 + 5 + 6.5) / 3)


def test_words_without_audio_get_windows_as_time_advances():
    track = make_track([("one", 0.0, 0.4), ("two", 5.0, 5.5)])
    windows = [*track.advance(5.5), *track.finish()]
    assert [(window.start, window.end, window.item["text"]) for window in windows] == [
        (0, 4, "one"),
        (1.5, 5.5, "two"),
    ]
    for window in windows:
        assert window.item["audio"] is None
        predict(window)
    assert [span.scores is None for span in track.pop()].count(False) == 11


def test_silence_gets_no_prediction(example_audio):
    speech = load_audio(example_audio)[:RATE]
    gap = np.zeros(8 * RATE, np.float32)
    track = Track(TimelineOptions(), RATE)
    windows, spans = run(track, gap, speech, gap)
    assert 0 < len(windows) <= 3
    predicted = [span.start for span in spans if span.scores is not None]
    assert predicted[0] >= 8
    assert predicted[-1] <= 9.5
    ((start, end),) = track.pop_speech()
    assert 7.9 < start < 8.5
    assert 8.5 < end < 9.2


def test_windows_begin_where_speech_begins(example_audio):
    speech = load_audio(example_audio)
    track = Track(TimelineOptions(window_s=3.0, window_hop_s=2.5), RATE)
    windows, _ = run(track, np.zeros(10 * RATE, np.float32), speech, np.zeros(10 * RATE, np.float32), speech)
    # Half a second before it; the next one waits for the next speech.
    assert [window.start for window in windows] == [9.5, pytest.approx(9.5 + len(speech) / RATE + 10, abs=0.6)]


@pytest.mark.parametrize("latency_s", [None, 1.5])
def test_speech_after_silence_gets_predictions_without_a_gap(example_audio, latency_s):
    speech = load_audio(example_audio)
    for offset in np.arange(0.0, 1.0, 0.13):
        track = Track(TimelineOptions(window_s=3.0, window_hop_s=1.0, latency_s=latency_s), RATE)
        pause = np.zeros(round((6 + offset) * RATE), np.float32)
        _, spans = run(track, pause, speech, pause, speech[:RATE])
        # A second track that only detects speech.
        finder = Track(TimelineOptions(), RATE, yields_windows=False)
        run(finder, pause, speech, pause, speech[:RATE])
        for begin, end in finder.pop_speech():
            inside = [span for span in spans if span.start < end - 0.2 and span.end > begin + 0.2]
            assert inside
            assert all(span.scores is not None for span in inside)


def test_words_get_predictions_without_speech_in_the_audio():
    track = Track(TimelineOptions(), RATE, [("hello", 1.0, 1.4)])
    (window,), spans = run(track, np.zeros(4 * RATE, np.float32))
    assert window.item["audio"] is None
    assert [span.start for span in spans if span.scores is not None] == [1.0]


def test_audio_without_speech_counts_as_missing():
    tone = (np.sin(2 * np.pi * 440 * np.arange(4 * RATE) / RATE) / 2).astype(np.float32)
    windows, _ = run(Track(TimelineOptions(), RATE, [("hello", 1.0, 1.4)]), tone)
    assert [(window.item["audio"], window.item["text"]) for window in windows] == [(None, "hello")]


def test_a_track_that_only_detects_speech_has_no_windows(example_audio):
    track = Track(TimelineOptions(), RATE, yields_windows=False)
    windows, spans = run(track, load_audio(example_audio))
    assert not windows
    assert not spans
    assert track.pop_speech()
    assert len(track.audio.samples) == 0


def test_missing_words_and_other_sampling_rates_raise():
    with pytest.raises(ValueError, match="granularity='word' needs words with timestamps"):
        make_track(granularity="word")
    with pytest.raises(ValueError, match="voice_activity=False"):
        Track(TimelineOptions(), 8_000)


def test_a_sample_buffer_keeps_the_indices_of_the_recording():
    buffer = SampleBuffer()
    buffer.append(np.arange(5, dtype=np.float32))
    buffer.drop_before(2)
    buffer.drop_before(1)
    buffer.append(np.arange(5, 8, dtype=np.float32))
    assert (buffer.start, buffer.end) == (2, 8)
    np.testing.assert_array_equal(buffer.read(3, 6), [3, 4, 5])
    buffer.drop_before(100)
    assert (buffer.start, buffer.end, len(buffer.samples)) == (8, 8, 0)


def test_speech_activity_merges_frames_over_short_pauses():
    speech = SpeechActivity(lambda probabilities: probabilities)
    frame = 512 / RATE
    speech.feed(np.array([0.9, 0.1, 0.9, *[0.0] * 20, 0.9]))
    assert speech.end == pytest.approx(24 * frame)
    assert speech.next_speech(0.0) == 0
    assert speech.next_speech(3.5 * frame) == pytest.approx(23 * frame)
    assert speech.seconds_between(0.0, 3 * frame) == pytest.approx(2 * frame)
    speech.drop_before(10 * frame)
    assert speech.seconds_between(20 * frame, 24 * frame) == pytest.approx(frame)
    # The last stretch may still grow.
    np.testing.assert_allclose(speech.pop_stretches(keep_last=True), [(0, 3 * frame)])
    np.testing.assert_allclose(speech.pop_stretches(keep_last=False), [(23 * frame, 24 * frame)])
    assert speech.next_speech(24 * frame) is None
