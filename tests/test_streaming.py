"""Live streams: the same segments as the offline timeline with the same windows, for chunks of any size."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from mmemo.timeline.streaming import LiveAudio
from modeling_mmemo import EmotionStream, load_audio, load_pipeline


WINDOWS = {"window_s": 3.0, "window_hop_s": 1.5, "latency_s": 1.5}


@pytest.fixture(scope="module")
def embedded():
    return load_pipeline()


@pytest.fixture(scope="module")
def speech(example_audio):
    """One utterance twice, with a pause of two seconds between."""
    clip = load_audio(example_audio)
    return np.concatenate([clip, np.zeros(2 * 16_000, np.float32), clip])


def feed_all(stream, samples, size):
    """Returns the segments of samples that are fed in chunks of `size`."""
    segments = [
        segment for start in range(0, len(samples), size) for segment in stream.feed(samples[start : start + size])
    ]
    return segments + stream.flush()


def assert_same(found, expected, tolerance=1e-4):
    assert [(entry["start"], entry["end"], entry["words"]) for entry in found] == [
        (entry["start"], entry["end"], entry["words"]) for entry in expected
    ]
    for entry, other in zip(found, expected):
        assert entry["label"] == other["label"]
        scores, others = ({score["label"]: score["score"] for score in one["scores"]} for one in (entry, other))
        assert scores == pytest.approx(others, abs=tolerance)


@pytest.mark.parametrize("size", [160, 8_000, 50_001, 10**9])
def test_segments_equal_the_offline_timeline(embedded, speech, size):
    offline = embedded(speech, return_timeline=True, **WINDOWS)
    found = feed_all(EmotionStream(embedded), speech, size)
    assert {entry["label"] for entry in found} > {"silence"}
    assert_same(found, offline["timeline"])


@pytest.mark.parametrize("options", [{"latency_s": None}, {"window_s": 4.0, "window_hop_s": 3.0, "latency_s": None}])
def test_segments_equal_the_offline_timeline_with_other_windows(embedded, speech, options):
    offline = embedded(speech, return_timeline=True, **{**WINDOWS, **options})
    assert_same(feed_all(EmotionStream(embedded, **options), speech, 8_000), offline["timeline"])


def test_segments_are_returned_within_the_stated_latency(embedded, speech):
    stream = EmotionStream(embedded)
    assert stream.latency_seconds == pytest.approx(1.532)
    for index in range(len(speech) // 1_600):
        now = (index + 1) * 0.1
        for segment in stream.feed(speech[index * 1_600 : (index + 1) * 1_600]):
            assert now - segment["end"] <= max(stream.latency_seconds, 3.04 - segment["end"]) + 0.1
    remaining = now - max((segment["end"] for segment in stream.flush()), default=now)
    assert remaining <= stream.latency_seconds


def test_streams_that_share_a_model_are_independent(embedded, speech):
    expected = feed_all(EmotionStream(embedded), speech, 8_000)
    one, other = EmotionStream(embedded), EmotionStream(embedded)
    found = []
    for start in range(0, len(speech), 8_000):
        found += one.feed(speech[start : start + 8_000])
        other.feed(speech[::-1][start : start + 8_000])
    assert_same(found + one.flush(), expected)


def test_reset_and_flush_start_a_new_stream(embedded, speech):
    stream = EmotionStream(embedded)
    first = feed_all(stream, speech, 8_000)
    stream.feed(speech[:70_000])
    stream.reset()
    assert_same(feed_all(stream, speech, 8_000), first, tolerance=0)


def test_words_apply_to_later_segments(embedded, speech):
    stream = EmotionStream(embedded)
    words = [("I", 0.1, 0.3), ("hate", 0.3, 0.8), ("this.", 0.8, 1.2)]
    segments = stream.feed(speech[:8_000], word_times=words[:2]) + stream.feed(
        speech[8_000:32_000], word_times=words[2:]
    )
    segments += stream.feed(speech[32_000:]) + stream.flush()
    assert [entry["words"] for entry in segments[:3]] == [["I"], ["hate"], ["this."]]
    assert segments[0]["modality_weights"]["text"] > 0
    assert_same(
        segments, embedded({"audio": speech, "word_times": words}, return_timeline=True, **WINDOWS)["timeline"]
    )
    stream.feed(speech[:8_000], word_times=words)
    with pytest.raises(ValueError, match=r"'hate' starts at 0.3 s, before the last one at 0.8 s"):
        stream.feed(speech[:8_000], word_times=words[1:])


def test_chunks_of_other_rates_channels_and_types_are_converted(embedded, speech):
    twice = np.repeat(speech, 2)
    pcm = np.stack([twice, twice]) * 32_767
    stream = EmotionStream(embedded, sampling_rate=32_000)
    segments = []
    for start in range(0, pcm.shape[1], 3_200):
        segments += stream.feed(pcm[:, start : start + 3_200].astype(np.int16))
    segments += stream.flush()
    expected = feed_all(EmotionStream(embedded), speech, 8_000)
    assert [entry["label"] for entry in segments] == [entry["label"] for entry in expected]


CHUNKS = {
    "sounddevice": lambda chunk: chunk[:, None],
    "sounddevice, stereo": lambda chunk: np.stack([chunk, chunk], axis=1),
    "PyAudio": lambda chunk: (chunk * 2**15).astype("<i2").tobytes(),
    "bytearray": lambda chunk: bytearray((chunk * 2**15).astype("<i2").tobytes()),
    "memoryview of bytes": lambda chunk: memoryview((chunk * 2**15).astype("<i2").tobytes()),
    "memoryview of floats": memoryview,
    "Gradio": lambda chunk: (16_000, (chunk * 2**15).astype(np.int16)),
    "tensor": lambda chunk: torch.tensor(chunk, requires_grad=True),
    "big-endian": lambda chunk: (chunk * 2**15).astype(">i2"),
    "list": lambda chunk: chunk.tolist(),
    "decoded samples": lambda chunk: SimpleNamespace(data=torch.tensor(chunk)[None], sample_rate=16_000),
}


@pytest.mark.parametrize("form", CHUNKS)
def test_chunks_of_every_library_give_the_same_samples(form, speech):
    live = LiveAudio(16_000)
    chunks = [live(CHUNKS[form](speech[start : start + 1_024])) for start in range(0, 8_192, 1_024)]

    np.testing.assert_allclose(np.concatenate(chunks), speech[:8_192], rtol=0, atol=1e-7)


def test_raw_bytes_are_decoded_as_the_stream_says(embedded, speech):
    interleaved = np.stack([speech, speech], axis=1).astype("<f4").tobytes()
    stream = EmotionStream(embedded, encoding="pcm_f32le", channels=2)
    segments = [
        segment
        for start in range(0, len(interleaved), 10_001)  # within a sample
        for segment in stream.feed(interleaved[start : start + 10_001])
    ]
    assert_same(segments + stream.flush(), feed_all(EmotionStream(embedded), speech, 8_000))


@pytest.mark.parametrize("voice_activity", [True, False])
def test_a_constant_is_silence(embedded, voice_activity):
    stream = EmotionStream(embedded, voice_activity=voice_activity)
    segments = feed_all(stream, np.full(5 * 16_000, 0.3, np.float32), 8_000)

    assert {segment["label"] for segment in segments} == {"silence"}


def test_live_audio_equals_the_loaded_file(tmp_path, make_clip):
    clip = make_clip(1.3, sampling_rate=44_100)
    soundfile.write(tmp_path / "clip.wav", clip, 44_100, subtype="FLOAT")
    live = LiveAudio(44_100)
    chunks = [live(clip[start : start + 1_000]) for start in range(0, len(clip), 1_000)]
    found = np.concatenate([*chunks, live(np.zeros(0), is_last=True)])
    expected = load_audio(tmp_path / "clip.wav")
    np.testing.assert_allclose(found[: len(expected)], expected[: len(found)], atol=1e-4)
    assert abs(len(found) - len(expected)) <= 1


def test_memory_is_bounded(embedded):
    stream = EmotionStream(embedded)
    silence = np.zeros(16_000, np.float32)
    for _ in range(100):
        stream.feed(silence)
    assert len(stream._track.audio.samples) <= 8 * 16_000
    assert len(stream._track.speech.voiced) <= 300


@pytest.mark.parametrize(
    "chunk, message",
    [
        (np.array([np.nan, 0.0]), "NaN or infinite"),
        (np.array([1, 2]), "dtype int64"),
        (np.array([1e300]), "NaN or infinite"),
        ("call.wav", r"str is not an audio input; pass an array of shape \(samples,\), .* or raw bytes"),
        (
            (48_000, np.zeros(9, np.int16)),
            "rate of 48000 Hz, but the stream 16000 Hz; pass sampling_rate=48000",
        ),
        (np.zeros((16, 9)), r"must be \(channels, samples\): transpose it"),
        (np.zeros((9, 16)), "has 9 rows and could be a batch"),
        (np.zeros(9, bool), "dtype bool"),
        ({"array": np.zeros(9)}, "dict is not an audio input"),
        (np.zeros((2, 2, 2)), "not one clip"),
    ],
)
def test_an_invalid_chunk_raises_and_the_stream_continues(embedded, chunk, message):
    stream = EmotionStream(embedded)
    with pytest.raises(ValueError, match=message):
        stream.feed(chunk)
    assert stream.feed(np.zeros(0)) == []


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"sampling_rate": 0}, ValueError, "sampling_rate=0"),
        ({"window_s": 0.1}, ValueError, "window_hop_s=1.5 exceeds window_s=0.1"),
        ({"encoding": "opus"}, ValueError, "encoding='opus' must be one of"),
        ({"channels": 0}, ValueError, "channels=0 must be"),
        ({"threshold": 2}, ValueError, "threshold=2"),
        ({"granularity": "word"}, TypeError, "granularity"),
    ],
)
def test_invalid_options_raise(embedded, options, error, message):
    with pytest.raises(error, match=message):
        EmotionStream(embedded, **options)
