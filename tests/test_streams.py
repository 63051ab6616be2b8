"""Live streams over a WebSocket: they return the segments of `EmotionStream`, within limits, and explain errors."""

import json
from fractions import Fraction

import numpy as np
import pytest
import soundfile
from running import PATIENCE_S, exchange, running
from websockets.sync.client import connect

from modeling_mmemo import EmotionStream, load_pipeline


RATE = 16_000


@pytest.fixture(scope="module")
def service(exported, tmp_path_factory):
    with running(tmp_path_factory.mktemp("service") / "log", exported, max_streams=3) as service:
        yield service


@pytest.fixture(scope="module")
def speech(example_audio):
    """A few seconds of 16-bit PCM at 16 kHz."""
    samples, _ = soundfile.read(example_audio, dtype="int16")
    return np.tile(np.concatenate([samples, np.zeros(RATE // 2, np.int16)]), 3)


def cut(data, size):
    return [data[first : first + size] for first in range(0, len(data), size)]


def offline(exported, samples, rate=RATE, words=(), **options):
    stream = EmotionStream(load_pipeline(exported, "onnx"), rate, **options)
    return stream.feed(samples, list(words)) + stream.flush()


END = json.dumps({"type": "end"})


def assert_same(received, expected):
    assert received[0]["type"] == "ready" and received[0]["latency_s"] == pytest.approx(1.532)
    assert received[-1]["type"] == "end"
    segments = [{name: value for name, value in segment.items() if name != "type"} for segment in received[1:-1]]
    assert [entry["label"] for entry in segments] == [entry["label"] for entry in expected]
    for segment, entry in zip(segments, expected):
        assert segment["words"] == entry["words"]
        assert [score["score"] for score in segment["scores"]] == pytest.approx(
            [score["score"] for score in entry["scores"]], abs=1e-4
        )


@pytest.mark.parametrize("size", [640, 999, 32_000])
def test_pcm(service, exported, speech, size):
    received, code = exchange(service.stream_address, {"top_k": 2}, [*cut(speech.tobytes(), size), END])

    assert_same(received, offline(exported, speech, top_k=2))
    assert code == 1000
    assert received[-1]["duration"] == pytest.approx(len(speech) / RATE)


def test_float_stereo_at_another_sampling_rate(service, exported, speech):
    samples = np.stack([speech, np.roll(speech, 100)]).astype(np.float32) / 2**15
    start = {"encoding": "pcm_f32le", "channels": 2, "sampling_rate": 8_000}

    received, _ = exchange(service.stream_address, start, [*cut(samples.T.tobytes(), 12_000), END])

    assert_same(received, offline(exported, samples, 8_000))


def test_mu_law(service, exported, speech, tmp_path):
    path = tmp_path / "call.raw"
    soundfile.write(path, speech, RATE, format="RAW", subtype="ULAW")
    decoded, _ = soundfile.read(
        path, dtype="float32", format="RAW", subtype="ULAW", samplerate=RATE, channels=1, endian="FILE"
    )

    received, _ = exchange(service.stream_address, {"encoding": "mulaw"}, [*cut(path.read_bytes(), 1600), END])

    assert_same(received, offline(exported, decoded))


def test_opus_packets(service, exported, speech):
    av = pytest.importorskip("av", reason="Opus needs PyAV")
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "mono", "s16"
    packets, decoded = [], []
    decoder = av.CodecContext.create("opus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    loud = np.repeat(speech, 3)
    for first in range(0, len(loud) - 960, 960):
        frame = av.AudioFrame.from_ndarray(loud[None, first : first + 960], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 48_000, Fraction(1, 48_000), first
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    for packet in packets:
        decoded += [frame.to_ndarray()[0] for frame in decoder.decode(av.Packet(packet))]

    received, code = exchange(service.stream_address, {"encoding": "opus"}, [*packets, END])

    assert code == 1000 and len(packets) > 200
    assert_same(received, offline(exported, np.concatenate(decoded), 48_000))


def test_words_reach_the_segments_of_their_timestamps(service, exported, speech):
    words = [("so", 1.0, 1.3), ("sad", 1.3, 1.9)]
    message = json.dumps({"type": "words", "word_times": words})

    received, _ = exchange(service.stream_address, {}, [message, *cut(speech.tobytes(), 3200), END])

    assert_same(received, offline(exported, speech, words=words))
    assert [word for message in received[1:-1] for word in message["words"]] == ["so", "sad"]


@pytest.mark.parametrize(
    ("start", "messages", "detail", "code"),
    [
        ({"encoding": "mp3"}, [], "encoding: Input should be", 1007),
        ({"sampling_rate": 1}, [], "sampling_rate: Input should be greater", 1007),
        ({"channels": True}, [], "channels: Input should be a valid integer", 1007),
        ({"threshold": 2}, [], "threshold: Input should be less than 1", 1007),
        ({"coverage": 0.9}, [], "coverage needs this model's conformal_quantiles", 1007),
        ("hello", [], "The message is invalid", 1007),
        ({f"k{index}": 1 for index in range(11)}, [], "An object has more than 10 fields", 1007),
        ({}, [json.dumps({"type": "word"})], "Input tag 'word' found using 'type' does not match", 1007),
        ({}, [json.dumps({"word_times": []})], "a message needs a type, 'words' or 'end'", 1007),
        ({}, [json.dumps({"type": "words", "word_times": [["so", 1, True]]})], "word_times.0.2: Input should", 1007),
        ({}, ['{"type": "words", "word_times": [' + "1," * 100_000 + "1]}"], "more than 100000 values", 1007),
        ({}, ["hello"], "The message is invalid", 1007),
        ({}, [json.dumps({"type": "words", "word_times": [["so", 2, 1]]})], "0 <= start <= end", 1007),
        ({"encoding": "opus"}, [b"\xff" * 50], "A message is not an Opus packet", 1007),
        ({"encoding": "pcm_f32le"}, [np.full(800, np.nan, np.float32).tobytes()], "contains NaN or infinite", 1007),
        (
            {},
            [json.dumps({"type": "words", "word_times": [["so", 1e6, 1e6]] * 501})],
            "501 words are too many for 0.0 s of audio",
            1007,
        ),
    ],
)
def test_invalid_streams_end_with_an_error(service, start, messages, detail, code):
    received, closed = exchange(service.stream_address, start, messages)

    assert received[-1]["type"] == "error" and detail in received[-1]["detail"]
    assert closed == code


def test_an_idle_stream_is_closed(exported, tmp_path):
    with running(tmp_path / "log", exported, idle_s=0.2) as service:
        received, code = exchange(service.stream_address, {}, [])

    assert (received[-1]["detail"], code) == ("No message arrived for 0.2 s.", 1008)


def test_audio_before_the_first_message(service):
    with connect(service.stream_address) as socket:
        socket.send(b"\0" * 100)
        assert "must describe the audio" in json.loads(socket.recv(timeout=PATIENCE_S))["detail"]


def test_messages_have_a_maximum_size(service):
    _, code = exchange(service.stream_address, {}, [b"\0" * 300_000])

    assert code == 1009


def test_more_streams_than_the_limit(service):
    service.wait_until(lambda: service.metric("mmemo_streams") == 0)  # those of earlier tests
    sockets = [connect(service.stream_address) for _ in range(3)]
    try:
        for socket in sockets:
            socket.send("{}")
            assert json.loads(socket.recv(timeout=PATIENCE_S))["type"] == "ready"
        received, code = exchange(service.stream_address, {}, [])
        assert "3 streams are open; try again later." in received[0]["detail"] and code == 1013
        assert service.metric('mmemo_rejects_total{reason="streams"}') == 1
    finally:
        for socket in sockets:
            socket.close()
    received, code = exchange(service.stream_address, {}, [END])
    assert (received[-1]["type"], code) == ("end", 1000)
    service.wait_until(lambda: service.metric("mmemo_streams") == 0)


def test_a_lost_connection_frees_its_slot(service, speech):
    for _ in range(10):
        with connect(service.stream_address) as socket:
            socket.send("{}")
            socket.send(speech[:8000].tobytes())
            socket.socket.close()
    assert service.get("/health").status_code == 200
    received, _ = exchange(service.stream_address, {}, [END])
    assert received[-1]["type"] == "end"


def test_streams_have_a_maximum_duration_and_need_a_key(exported, speech, tmp_path):
    with running(tmp_path / "log", exported, max_recording_s=2, api_keys="alpha-key") as service:
        received, code = exchange(service.stream_address, {}, [])
        assert (received[0]["detail"], code) == ("The API key is missing or wrong.", 1008)
        for headers in ({"Authorization": "bearer alpha-key"}, {"Authorization": "BEARER  alpha-key"}):
            received, code = exchange(service.stream_address, {}, [END], **headers)
            assert (received[-1]["type"], code) == ("end", 1000)
        received, code = exchange(service.stream_address, {"api_key": "alpha-key"}, cut(speech.tobytes(), 16_000))
        assert "longer than 2 s" in received[-1]["detail"] and code == 1008
        waiting = [connect(service.stream_address) for _ in range(20)]  # without a key they take no slot
        with connect(service.stream_address, additional_headers={"Authorization": "Bearer alpha-key"}) as socket:
            socket.send("{}")
            assert json.loads(socket.recv(timeout=PATIENCE_S))["type"] == "ready"
        for socket in waiting:
            socket.close()
        connect(f"{service.stream_address}?words=somebody").close()
    assert "alpha-key" not in service.log and "somebody" not in service.log


def test_candidate_labels(service, exported, speech):
    options = {"candidate_labels": ["happy", "so sad"], "hypothesis_template": "i am {}.", "none_label": None}

    received, code = exchange(service.stream_address, options, [speech.tobytes(), END])
    refused, _ = exchange(service.stream_address, {"candidate_labels": ["a", "A"]}, [])

    assert_same(received, offline(exported, speech, **options))
    assert code == 1000 and {entry["label"] for entry in received[1:-1]} <= {"happy", "so sad", "silence"}
    assert "'a' and 'A', which are the same label" in refused[-1]["detail"]
