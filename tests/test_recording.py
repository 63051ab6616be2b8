"""Recordings: their sources, and the errors before anything is predicted."""

import numpy as np
import pytest
import soundfile
from transformers import WhisperFeatureExtractor

from mmemo.timeline.recording import SpeakerOptions, open_recording
from mmemo.timeline.windows import TimelineOptions
from modeling_mmemo import MMEmoProcessor


RATE = 16_000
CUT = {"voice_activity": False, "window_s": 4.0}
SRT = "1\n00:00:00,200 --> 00:00:00,800\nI am\n\n2\n00:00:04,000 --> 00:00:04,500\nso happy!\n"


@pytest.fixture
def stereo():
    """Ten seconds of two channels with opposite signs."""
    ramp = np.linspace(0.1, 0.9, 10 * RATE, dtype=np.float32)
    return np.stack([ramp, -ramp])


def opened(processor, audio=None, transcriber=None, modalities=("audio", "text"), **arguments):
    """Opens a recording with options sorted by their names into item, speakers and timeline."""
    parts = ({"audio": audio}, {}, {})
    for name, value in arguments.items():
        places = (SpeakerOptions.__dataclass_fields__, TimelineOptions.__dataclass_fields__)
        parts[next((index for index, fields in enumerate(places, 1) if name in fields), 0)][name] = value
    item, speakers, timeline = parts
    speakers, options = SpeakerOptions(**speakers), TimelineOptions(**timeline)
    return open_recording(processor, item, modalities, speakers, options, transcriber)


def predict(recording):
    """Returns the windows of a recording, each with a constant prediction."""
    windows = []
    for window in recording:
        window.set_predictions(np.zeros((len(window.spans), 2)), np.ones((len(window.spans), 2)))
        windows.append(window)
    recording.collect()
    return windows


def test_channels_are_averaged_or_selected(processor, stereo):
    stereo[1] *= 0.5
    for channel, expected in ((None, stereo.mean(axis=0)), (0, stereo[0]), (1, stereo[1])):
        recording = opened(processor, stereo, channel=channel, **CUT)
        np.testing.assert_array_equal(predict(recording)[1].item["audio"], expected[3 * RATE : 7 * RATE])
        assert recording.duration == 10
        assert len(recording.sources[0].spans) == 20


def test_a_file_and_its_samples_give_the_same_windows(processor, stereo, tmp_path):
    soundfile.write(tmp_path / "call.wav", stereo.T, RATE, subtype="FLOAT")
    found, expected = (predict(opened(processor, audio, **CUT)) for audio in (tmp_path / "call.wav", stereo))
    for window, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(window.item["audio"], other.item["audio"], atol=1e-6)


def test_split_channels_predict_only_the_customer(processor, stereo):
    words = {1: [("so", 0.5, 1.0)], 0: [("you", 2.0, 2.5)]}
    recording = opened(processor, stereo, word_times=words, channels="split", customer=1, **CUT)
    windows = predict(recording)
    assert all((window.item["audio"] < 0).all() for window in windows)
    assert [source.speaker for source in recording.sources] == ["channel_0", "channel_1"]
    assert [source.is_selected for source in recording.sources] == [False, True]
    assert [len(source.spans) for source in recording.sources] == [0, 20]
    assert recording.sources[1].spans[1].words == ["so"]
    everyone = opened(processor, stereo, channels="split", everyone=True, **CUT)
    predict(everyone)
    assert [len(source.spans) for source in everyone.sources] == [20, 20]


@pytest.mark.parametrize("name", [1, "1", "channel_1", np.int64(1)])
def test_channels_have_the_names_of_results(processor, stereo, name):
    words = {name: [("so", 0.5, 1.0)]}
    recording = opened(processor, stereo, word_times=words, channels="split", customer=name, **CUT)
    predict(recording)
    assert [source.is_selected for source in recording.sources] == [False, True]
    assert recording.sources[1].spans[1].words == ["so"]


@pytest.mark.parametrize("name", [7, "7"])
def test_speakers_may_be_numbers(processor, stereo, name):
    turns = [(7, 0.5, 2.0), ("8", 2.0, 4.0), (9, 3.0, 3.0)]
    recording = opened(processor, stereo[0], speaker_turns=turns, customer=name, **CUT)
    assert [(source.speaker, source.is_selected) for source in recording.sources] == [("7", True), ("8", False)]


def test_words_are_the_same_with_and_without_a_timeline(processor, stereo):
    # Whisper's last segment ends with its window of 30 s, after the audio.
    segments = [{"text": " I am", "start": 0.0, "end": 0.9}, {"text": " not so happy", "start": 1.0, "end": 5.0}]
    audio = stereo[0, : 2 * RATE]
    item = processor.prepare(audio, word_times={"segments": segments}, sampling_rate=RATE)
    recording = opened(processor, audio, word_times={"segments": segments}, granularity="word", **CUT)
    predict(recording)
    assert [(word, *times) for word, *times in item.word_times] == [
        (*span.words, span.start, span.end) for span in recording.sources[0].spans
    ]
    assert item.word_times[2:] == (("not", 1.0, 1.3), ("so", 1.3, 1.5), ("happy", 1.5, 2.0))


def test_each_turn_is_predicted_at_its_own_time(processor, stereo):
    turns = [("ann", 0.5, 2.0), ("bob", 1.5, 6.25), ("ann", 7.0, 12.0)]
    words = [("I", 0.6, 0.8), ("wait", 3.0, 3.5), ("so", 7.2, 7.4)]
    recording = opened(processor, stereo[0], word_times=words, speaker_turns=turns, customer="ann", **CUT)
    windows = predict(recording)
    ramp = stereo[0]
    np.testing.assert_array_equal(windows[0].item["audio"], ramp[RATE // 2 : 2 * RATE])
    np.testing.assert_array_equal(windows[1].item["audio"], ramp[7 * RATE :])
    assert windows[0].item["word_times"] == [("I", pytest.approx(0.1), pytest.approx(0.3))]
    first, other, last = recording.sources
    assert [(span.start, span.end) for span in first.spans] == [(0.5, 1.0), (1.0, 1.5), (1.5, 2.0)]
    assert other.spans == []
    assert (last.spans[0].start, last.spans[-1].end) == (7.0, 10.0)
    assert [source.speech for source in recording.sources] == [[(0.5, 2.0)], [(1.5, 6.25)], [(7.0, 10.0)]]
    assert [source.words for source in recording.sources] == [["I"], ["wait"], ["so"]]


def test_one_speaker_needs_no_customer(processor, stereo):
    recording = opened(processor, stereo[0], speaker_turns=[("ann", 1.0, 2.0)], **CUT)
    assert predict(recording)
    assert recording.has_turns


@pytest.mark.parametrize("key", ["text", "word_times"])
def test_subtitles_are_words_with_timestamps(processor, stereo, key):
    recording = opened(processor, stereo[0], **{key: SRT}, **CUT)
    windows = predict(recording)
    assert [window.item["text"] for window in windows] == ["I am", "so happy!", None]
    assert recording.sources[0].spans[8].words == ["so", "happy!"]


def test_words_of_a_text_keep_its_punctuation(processor, stereo):
    words = [("i", 0.0, 0.5), ("am", 0.5, 1.0), ("happy", 1.0, 1.5)]
    recording = opened(processor, stereo, text="I am so happy!", word_times=words, granularity="word", **CUT)
    predict(recording)
    assert [span.words for span in recording.sources[0].spans] == [["I"], ["am so"], ["happy!"]]


def test_a_transcriber_supplies_missing_words(processor, stereo):
    transcribed = []

    def transcriber(samples, sampling_rate):
        transcribed.append((samples, sampling_rate))
        return [("so", 1.0, 1.2)]

    recording = opened(processor, stereo, channel=1, transcriber=transcriber, **CUT)
    assert predict(recording)[0].item["text"] == "so"
    np.testing.assert_array_equal(transcribed[0][0], stereo[1])
    opened(processor, stereo, text="I am here.", transcriber=transcriber, **CUT)
    assert len(transcribed) == 1
    call = opened(processor, stereo, channels="split", customer=0, transcriber=transcriber, **CUT)
    np.testing.assert_array_equal(transcribed[1][0], stereo[0])
    assert len(transcribed) == 2
    assert predict(call)[0].item["text"] == "so"


def test_words_without_audio_have_a_timeline(processor):
    recording = opened(processor, text=SRT, window_s=4.0)
    # The last window reaches back from 4.5 s to 0.5 s.
    assert [window.item["text"] for window in predict(recording)] == ["I am", "am so happy!"]
    assert recording.duration == 4.5


def test_a_long_text_without_timestamps_raises(processor, stereo):
    text = "so " * 100
    with pytest.raises(ValueError, match="The text has 102 tokens and no timestamps, and a window takes 64"):
        opened(processor, stereo, text=text, **CUT)
    opened(processor, stereo[:, : 3 * RATE], text=text, **CUT)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"channels": "both"}, "channels='both' is unknown"),
        ({"channels": "split", "channel": 0}, "leave channel and speaker_turns out"),
        ({"channels": "split"}, r"Pass customer=, the channel of the customer, one of \['channel_0', 'channel_1'\]"),
        *(
            (
                {"channels": "split", "customer": customer},
                r"customer=.* is not a channel .*; pass one of \['channel_0', 'channel_1'\]. .* by its number",
            )
            for customer in (2, "channel_2", "bob", True, "")
        ),
        ({"speaker_turns": [("ann", 0, 1), ("bob", 1, 2)], "customer": "eve"}, r"pass one of \['ann', 'bob'\]\.$"),
        ({"channels": "split", "customer": 0, "everyone": True}, "customer=0 contradicts everyone"),
        ({"customer": 0}, "set channels='split' or speaker_turns too"),
        ({"channels": "split", "customer": 0, "word_times": [("so", 0, 1)]}, "must be a dictionary by channel"),
        (
            {"channels": "split", "customer": 0, "word_times": {1: [], "channel_1": []}},
            r"with each of \['channel_0', 'channel_1'\] at most once",
        ),
        ({"channels": "split", "customer": 0, "word_times": {"left": []}}, "must be a dictionary by channel"),
        ({"channels": "split", "customer": 0, "text": "so"}, "fits no channel"),
        ({"speaker_turns": [("ann", 0, 1), ("bob", 1, 2)]}, r"the speaker of the customer, one of \['ann', 'bob'\]"),
        ({"speaker_turns": [("ann", 0, 1)], "text": "so"}, "fits no turn"),
        (
            {"text": SRT, "word_times": [("so", 0, 1)]},
            "text and word_times both contain word timestamps; pass a plain str as text",
        ),
        ({"channel": 5}, r"has 2 channel\(s\), so channel=5"),
        ({"word_times": [("so", 100.0, 101.0)]}, "'so'.* starts at 100"),
        ({"segment_s": -1}, "segment_s=-1"),
        ({"audio": None, "text": "so"}, "needs audio, words with timestamps or a video"),
        ({"audio": None, "channels": "split"}, "there is none; pass audio"),
    ],
)
def test_contradicting_options_raise(processor, stereo, arguments, message):
    with pytest.raises(ValueError, match=message):
        opened(processor, **{"audio": stereo, **arguments})


def test_words_of_zero_length_or_after_the_end_are_predicted(processor, stereo):
    recording = opened(processor, stereo[0, : 2 * RATE], word_times=[("so", 0.5, 0.5), ("sad", 2.1, 2.1)], **CUT)
    assert [window.item["text"] for window in predict(recording)] == ["so sad"]
    assert [span.words for span in recording.sources[0].spans] == [[], ["so"], [], ["sad"]]
    alone = opened(processor, word_times=[("so", 5.6, 5.6), ("sad", 9.0, 9.0)], granularity="word", window_hop_s=0.7)
    predict(alone)
    assert [span.scores is None for span in alone.sources[0].spans] == [False, False]


def test_text_before_the_first_timestamp_is_encoded(processor, stereo):
    words = [("am", 0.5, 0.6), ("happy", 1.0, 1.5)]
    recording = opened(processor, stereo[0], text="Oh, I am so happy!", word_times=words, **CUT)
    assert predict(recording)[0].item["text"] == "Oh, I am so happy!"


def test_a_channel_without_words_has_no_word_spans(processor, stereo):
    words = {0: [("so", 0.5, 1.0)]}
    recording = opened(processor, stereo, word_times=words, channels="split", everyone=True, granularity="word", **CUT)
    predict(recording)
    assert [len(source.spans) for source in recording.sources] == [1, 0]
    silent = opened(processor, stereo[0], transcriber=lambda *_: [], granularity="word", **CUT)
    assert not predict(silent)


def test_words_of_an_audio_model_only_define_spans(processor, stereo):
    words = [("so", 0.5, 1.0)]
    recording = opened(processor, stereo[0], modalities=["audio"], word_times=words, granularity="word", **CUT)
    (window,) = predict(recording)
    assert window.item["text"] is None
    assert [span.words for span in recording.sources[0].spans] == [["so"]]
    with pytest.raises(ValueError, match="This model has no text encoder, so a timeline needs audio; pass audio"):
        opened(processor, modalities=["audio"], word_times=words)


def test_turns_are_clipped_to_the_recording(processor, stereo):
    recording = opened(processor, stereo[0], speaker_turns=[("ann", 9.0, 12.0)], **CUT)
    predict(recording)
    assert recording.sources[0].speech == [(9.0, 10.0)]
    with pytest.raises(ValueError, match=r"Turn 1, of 'ann', starts at 11 s, but the audio lasts 10.00 s"):
        opened(processor, stereo[0], speaker_turns=[("ann", 1, 2), ("ann", 11, 12)])


def test_a_window_longer_than_the_feature_extractor_takes_raises(stereo, tokenizer):
    processor = MMEmoProcessor(WhisperFeatureExtractor(chunk_length=2), tokenizer)
    with pytest.raises(ValueError, match=r"window_s=3.5 exceeds the maximum of this model's feature extractor, 2 s"):
        opened(processor, stereo[0])


def test_splitting_one_channel_raises(processor, stereo):
    with pytest.raises(ValueError, match="this one has 1"):
        opened(processor, stereo[0], channels="split", customer=0)


def test_a_long_timeline_of_words_keeps_few_spans_open(processor):
    """Each window looks at all open spans: two words four hours apart took ten minutes."""
    recording = opened(processor, word_times=[("so", 0.0, 1.0), ("sad", 3599.0, 3600.0)])
    (source,) = recording.sources
    most = 0
    for window in recording:
        window.set_predictions(np.zeros((len(window.spans), 2)), np.ones((len(window.spans), 2)))
        most = max(most, len(source.track._open))
    recording.collect()

    assert most < 100 and len(source.spans) == 7200 and recording.duration == 3600
