"""Live streams over a WebSocket: those of the pipeline, bounded, and refused in a sentence."""

import json
import time
from fractions import Fraction

import httpx
import numpy as np
import pytest
import soundfile
from running import running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from modeling_mmemo import EmotionStream, load_pipeline


RATE = 16_000


@pytest.fixture(scope="module")
def service(exported, tmp_path_factory):
    with running(tmp_path_factory.mktemp("service") / "log", exported, max_streams=3, idle_s=1.0) as service:
        yield service


@pytest.fixture(scope="module")
def speech(example_audio):
    """PCM of a few seconds, 16 bits at 16 kHz."""
    samples, _ = soundfile.read(example_audio, dtype="int16")
    return np.tile(np.concatenate([samples, np.zeros(RATE // 2, np.int16)]), 3)


def follow(service, start, messages):
    """What a stream says to messages, one after the other."""
    said = []
    with connect(service.stream_address) as socket:
        socket.send(json.dumps(start))
        try:
            for message in messages:
                socket.send(message)
            while True:
                said.append(json.loads(socket.recv(timeout=20)))
        except ConnectionClosed:
            code = socket.close_code
    return said, code


def cut(data, size):
    return [data[first : first + size] for first in range(0, len(data), size)]


def offline(exported, samples, rate=RATE, words=(), **options):
    stream = EmotionStream(load_pipeline(exported, "onnx"), rate, **options)
    return stream.feed(samples, list(words)) + stream.flush()


END = json.dumps({"type": "end"})


def same(said, expected):
    assert said[0]["type"] == "ready" and said[0]["latency_s"] == pytest.approx(1.532)
    assert said[-1]["type"] == "end"
    segments = [{name: value for name, value in segment.items() if name != "type"} for segment in said[1:-1]]
    assert [entry["label"] for entry in segments] == [entry["label"] for entry in expected]
    for segment, entry in zip(segments, expected):
        assert segment["words"] == entry["words"]
        assert [score["score"] for score in segment["scores"]] == pytest.approx(
            [score["score"] for score in entry["scores"]], abs=1e-4
        )


@pytest.mark.parametrize("size", [640, 999, 32_000])
def test_pcm_is_followed_as_by_the_pipeline(service, exported, speech, size):
    said, code = follow(service, {"top_k": 2}, [*cut(speech.tobytes(), size), END])

    same(said, offline(exported, speech, top_k=2))
    assert code == 1000
    assert said[-1]["duration"] == pytest.approx(len(speech) / RATE)


def test_floats_of_two_channels_at_another_rate(service, exported, speech):
    samples = np.stack([speech, np.roll(speech, 100)]).astype(np.float32) / 2**15
    start = {"encoding": "pcm_f32le", "channels": 2, "sampling_rate": 8_000}

    said, _ = follow(service, start, [*cut(samples.T.tobytes(), 12_000), END])

    same(said, offline(exported, samples, 8_000))


def test_telephones_mu_law(service, exported, speech, tmp_path):
    path = tmp_path / "call.raw"
    soundfile.write(path, speech, RATE, format="RAW", subtype="ULAW")
    heard, _ = soundfile.read(
        path, dtype="float32", format="RAW", subtype="ULAW", samplerate=RATE, channels=1, endian="FILE"
    )

    said, _ = follow(service, {"encoding": "mulaw"}, [*cut(path.read_bytes(), 1600), END])

    same(said, offline(exported, heard))


def test_opus_packets(service, exported, speech):
    av = pytest.importorskip("av", reason="Opus needs PyAV")
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format = 48_000, "mono", "s16"
    packets, heard = [], []
    decoder = av.CodecContext.create("opus", "r")
    decoder.sample_rate, decoder.layout = 48_000, "mono"
    loud = np.repeat(speech, 3)
    for first in range(0, len(loud) - 960, 960):
        frame = av.AudioFrame.from_ndarray(loud[None, first : first + 960], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 48_000, Fraction(1, 48_000), first
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    for packet in packets:
        heard += [frame.to_ndarray()[0] for frame in decoder.decode(av.Packet(packet))]

    said, code = follow(service, {"encoding": "opus"}, [*packets, END])

    assert code == 1000 and len(packets) > 200
    same(said, offline(exported, np.concatenate(heard), 48_000))


def test_words_count_where_they_are_said(service, exported, speech):
    words = [("so", 1.0, 1.3), ("sad", 1.3, 1.9)]
    told = json.dumps({"type": "words", "word_times": words})

    said, _ = follow(service, {}, [told, *cut(speech.tobytes(), 3200), END])

    same(said, offline(exported, speech, words=words))
    assert [word for message in said[1:-1] for word in message["words"]] == ["so", "sad"]


@pytest.mark.parametrize(
    ("start", "messages", "detail", "code"),
    [
        ({"encoding": "mp3"}, [], "encoding: Input should be", 1007),
        ({"sampling_rate": 1}, [], "sampling_rate: Input should be greater", 1007),
        ({"threshold": 2}, [], "threshold: Input should be less than 1", 1007),
        ({"coverage": 0.9}, [], "coverage= needs this model's conformal_quantiles", 1007),
        ("hello", [], "The message is not what it must be", 1007),
        ({}, ["hello"], "The message is not what it must be", 1007),
        ({}, [json.dumps({"type": "words", "word_times": [["so", 2, 1]]})], "0 <= start <= end", 1007),
        ({"encoding": "opus"}, [b"\xff" * 50], "A message is no packet of Opus", 1007),
        ({"encoding": "pcm_f32le"}, [np.full(800, np.nan, np.float32).tobytes()], "contains NaN or infinite", 1007),
        ({}, [], "Nothing came for 1 s.", 1008),
        (
            {},
            [json.dumps({"type": "words", "word_times": [["so", 1e6, 1e6]] * 501})],
            "501 words came with 0.0 s of sound; nobody speaks so fast.",
            1007,
        ),
    ],
)
def test_bad_streams_are_refused_in_a_sentence(service, start, messages, detail, code):
    said, closed = follow(service, start, messages)

    assert said[-1]["type"] == "error" and detail in said[-1]["detail"]
    assert closed == code


def test_sound_before_its_description(service):
    with connect(service.stream_address) as socket:
        socket.send(b"\0" * 100)
        assert "Sound comes before its description" in json.loads(socket.recv(timeout=10))["detail"]


def test_messages_are_bounded(service):
    _, code = follow(service, {}, [b"\0" * 300_000])

    assert code == 1009


def test_more_streams_than_there_is_room_for(service):
    deadline = time.monotonic() + 10
    while service.metric("mmemo_streams") and time.monotonic() < deadline:  # those of earlier tests
        time.sleep(0.05)
    sockets = [connect(service.stream_address) for _ in range(3)]
    try:
        for socket in sockets:
            socket.send("{}")
            assert json.loads(socket.recv(timeout=10))["type"] == "ready"
        said, code = follow(service, {}, [])
        assert "3 streams are open already" in said[0]["detail"] and code == 1013
        assert service.metric('mmemo_rejects_total{reason="streams"}') == 1
    finally:
        for socket in sockets:
            socket.close()
    said, code = follow(service, {}, [END])
    assert (said[-1]["type"], code) == ("end", 1000)
    assert service.metric("mmemo_streams") == 0


def test_who_hangs_up_frees_the_place(service, speech):
    for _ in range(10):
        with connect(service.stream_address) as socket:
            socket.send("{}")
            socket.send(speech[:8000].tobytes())
            socket.socket.close()
    assert httpx.get(f"{service.address}/health").status_code == 200
    said, _ = follow(service, {}, [END])
    assert said[-1]["type"] == "end"


def test_streams_are_of_bounded_length_and_need_the_key(exported, speech, tmp_path):
    with running(tmp_path / "log", exported, max_recording_s=2, api_keys="alpha-key") as service:
        said, code = follow(service, {}, [])
        assert (said[0]["detail"], code) == ("The API key is missing or wrong.", 1008)
        said, code = follow(service, {"api_key": "alpha-key"}, cut(speech.tobytes(), 16_000))
        assert "lasts more than 2 s" in said[-1]["detail"] and code == 1008
        waiting = [connect(service.stream_address) for _ in range(20)]  # who has not shown a key has no place
        with connect(service.stream_address, additional_headers={"Authorization": "Bearer alpha-key"}) as socket:
            socket.send("{}")
            assert json.loads(socket.recv(timeout=10))["type"] == "ready"
        for socket in waiting:
            socket.close()
        connect(f"{service.stream_address}?words=somebody").close()
    assert "alpha-key" not in service.log and "somebody" not in service.log
