"""Requests and streams over a limit are rejected, in bounded memory."""

import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hostile import endless_opus, forged_flac, forged_wav, noise
from running import PATIENCE_S, running
from websockets.sync.client import connect

from mmemo.serving.limits import MAX_DETAIL_CHARS, PendingBytes, TooLargeError, check_audio, check_turns
from mmemo.serving.settings import ServiceSettings


MEMORY_MIB = 256
# Bounds of the service under attack.
HEALTH_S, LEFT_MIB = 1.0, 50
JSON = {"content-type": "application/json"}
TURN = {"speaker": "ann", "start": 0, "end": 1}
SRT = b"1\n00:00:01,000 --> 00:00:02,000\nso sad\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The embedded model under the default limits."""
    with running(tmp_path_factory.mktemp("service") / "log") as service:
        yield service


@pytest.fixture(scope="module")
def hours():
    return endless_opus(8.7 * 3600)


def post(service, **request):
    return service.post("/predict", **request)


@pytest.mark.slow
@pytest.mark.parametrize("timeline", ["0", "1"])
def test_hours_of_opus_are_rejected(service, hours, timeline):
    files, data = {"audio_file": hours}, {"return_timeline": timeline}

    response = post(service, files=files, data=data)

    assert response.status_code == 413
    assert f"longer than {14400 if timeline == '1' else 600} s" in response.json()["detail"]


@pytest.mark.parametrize(
    ("data", "status", "detail"),
    [
        (forged_flac(), 413, "a sampling rate of 655350 Hz; this service accepts at most 192000 Hz"),
        (forged_flac(rate=96_000), 413, "longer than 600 s, the limit of this service without a timeline"),
        (forged_flac(rate=16_000, channels=1), 413, "longer than 600 s"),
        (forged_wav(), 413, "has 1024 channels"),
        (noise(1, channels=9), 413, "The audio has 9 channels; this service accepts at most 8"),
        (noise(601, rate=8_000), 413, "longer than 600 s"),
    ],
    ids=["forged rate", "forged width", "forged length", "forged wav", "wide", "long"],
)
def test_audio_is_rejected_by_its_header(service, data, status, detail):
    as_file = post(service, files={"audio_file": data})
    as_json = post(service, json={"audio": base64.b64encode(data).decode()})

    assert (as_file.status_code, as_json.status_code) == (status, status)
    assert detail in as_file.json()["detail"] and as_json.json() == as_file.json()


@pytest.mark.slow
def test_hostile_requests_take_bounded_memory(service, hours):
    """Thirty at once, among them timelines that are accepted."""
    long = noise(60, rate=48_000, channels=2)
    post(service, files={"audio_file": noise(3)})
    idle = service.memory()
    service.reset_peak()
    requests = [
        {"files": {"audio_file": hours}},
        {"files": {"audio_file": hours}, "data": {"return_timeline": "1"}},
        {"files": {"audio_file": forged_flac(rate=192_000, samples=192_000 * 5)}},
        {"files": {"audio_file": forged_flac()}},
        {"files": {"audio_file": long}, "data": {"return_timeline": "1"}},
        {"json": {"audio": base64.b64encode(noise(120, rate=48_000)).decode()}},
        {"content": b"x" * 24_000_000, "headers": {"content-type": "application/json"}},
        {"content": b"[" * 24_000_000, "headers": {"content-type": "application/json"}},
        {"json": {"text": "so " * 60_000}},
        {"json": {"items": [{"text": "so " * 1000}] * 2000}},
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        found = list(pool.map(lambda request: post(service, **request), requests * 3))

    statuses = {response.status_code for response in found}
    assert 413 in statuses and statuses <= {200, 400, 413, 422, 503}
    assert service.memory("VmHWM") - idle < MEMORY_MIB
    assert service.metric("mmemo_pending_bytes") == 0


def test_a_request_has_a_maximum_size(service):
    before = service.metric('mmemo_rejects_total{reason="too large"}')
    response = post(service, files={"audio_file": b"\0" * 27_000_000})
    assert service.metric('mmemo_rejects_total{reason="too large"}') == before + 1
    assert response.status_code == 413 and "larger than 25 MiB" in response.json()["detail"]

    def endless():
        for _ in range(60):
            yield b"\0" * 2**19

    response = post(service, content=endless(), headers={"content-type": "application/json"})
    assert response.status_code == 413 and "larger than 25 MiB" in response.json()["detail"]


@pytest.mark.parametrize("length", [b"-1", b"abc", b"99999999999999999999999", b""])
def test_invalid_content_lengths(service, length):
    host, port = service.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %b\r\n\r\n{}" % length
        )
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(100)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert service.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("request_", "detail"),
    [
        ({"json": {"text": "a" * 200_001}}, "text has 200001 characters; this service accepts at most 200000"),
        ({"data": {"text": "a" * 200_001}, "files": {"subtitles": b""}}, "text has 200001 characters"),
        (
            {"files": {"subtitles": b"1\n00:00:01,000 --> 00:00:02,000\n" + b"a" * 200_000}},
            "subtitles has 200032 characters",
        ),
        ({"json": {"word_times": [["a" * 1000, 0, 1]] * 201}}, "word_times has 201000 characters"),
        ({"json": {"word_times": [["a", 0, 1]] * 50_001}}, "word_times has 50001 words; this service accepts at most"),
        ({"json": {"text": "so", "context": [{"text": "a"}] * 1001}}, "context has 1001 turns"),
        ({"json": {"text": "so", "context": [{"text": "a", "speaker": "b" * 257}]}}, "A speaker of context has 257"),
        ({"json": {"text": "so", "speaker": "b" * 257}}, "speaker has 257 characters"),
        ({"json": {"speaker_turns": [TURN] * 5001, "return_timeline": True}}, "speaker_turns has 5001 turns"),
        (
            {"json": {"speaker_turns": [TURN | {"speaker": "b" * 257}], "return_timeline": True}},
            "A speaker of speaker_turns has 257 characters",
        ),
        ({"json": {"customer": "b" * 257, "return_timeline": True}}, "customer has 257 characters"),
        (
            {
                "files": {"subtitles": b""},
                "data": {"speaker_turns": json.dumps([TURN] * 5001), "return_timeline": "1"},
            },
            "speaker_turns has 5001 turns",
        ),
        (
            {"json": {"speaker_turns": [TURN | {"speaker": f"{i}"} for i in range(17)], "return_timeline": True}},
            "speaker_turns has turns of 17 speakers at the same time; this service accepts at most 16",
        ),
        ({"json": {"word_times": [["so", 0, 14_401]], "return_timeline": True}}, "The last word ends at 14401 s"),
        ({"json": {"word_times": [["so", 0, 1e300]], "return_timeline": True}}, "The last word ends at 1e+300 s"),
        (
            {"files": {"subtitles": SRT.replace(b"00:00:02", b"99:00:02")}, "data": {"return_timeline": "1"}},
            "The last word ends at 356402 s",
        ),
    ],
)
def test_parts_of_a_request_have_a_maximum_size(service, request_, detail):
    response = post(service, **request_)

    assert response.status_code == 413 and detail in response.json()["detail"]


def test_a_batch_has_a_maximum_number_of_items(service):
    response = service.post("/predict/batch", json={"items": [{"text": "so"}] * 33})

    assert response.status_code == 413 and "has 33 items" in response.json()["detail"]


def test_a_form_has_a_maximum_number_of_parts(service):
    many = [("files", (f"audio_file{index}", b"")) for index in range(50)]
    assert post(service, files=many).status_code == 400
    assert (
        post(service, data={f"field{index}": "a" for index in range(50)}, files={"subtitles": b""}).status_code == 400
    )


def test_streams_take_bounded_memory(service):
    idle = service.memory()
    service.reset_peak()
    sockets = [connect(service.stream_address) for _ in range(16)]
    try:
        for socket_ in sockets:
            socket_.send(json.dumps({"encoding": "pcm_f32le", "sampling_rate": 192_000, "channels": 2}))
        for _ in range(10):
            for socket_ in sockets:
                socket_.send(b"\0" * 250_000)
        for socket_ in sockets:
            assert json.loads(socket_.recv(timeout=PATIENCE_S))["type"] == "ready"
    finally:
        for socket_ in sockets:
            socket_.close()
    assert service.memory("VmHWM") - idle < MEMORY_MIB


def test_audio_without_a_duration_in_its_header_is_measured():
    """Such as FLAC written to a pipe."""
    settings = ServiceSettings(max_clip_s=2.0, max_recording_s=5.0)
    data = bytearray(forged_flac(rate=16_000, channels=2, samples=0))
    check_audio(bytes(data), settings, is_recording=False)
    long = bytearray(noise(3, kind="FLAC"))
    long[18:26] = (int.from_bytes(long[18:26], "big") >> 36 << 36).to_bytes(8, "big")

    check_audio(bytes(long), settings, is_recording=True)
    with pytest.raises(TooLargeError, match=r"longer than 2 s, .* set return_timeline"):
        check_audio(bytes(long), settings, is_recording=False)


def test_pending_bytes_are_given_back():
    pending = PendingBytes(10)

    assert pending.take(6) and not pending.take(5) and pending.take(4)
    pending.give_back(4)
    assert pending.count == 6 and pending.take(4)


def repeated(before, unit, count, after, separator=b","):
    return before + separator.join([unit] * count) + after


ATTACKS = {
    "a million unknown fields": b"{" + b",".join(b'"k%d":1' % index for index in range(1_000_000)) + b"}",
    "words of a wrong type": repeated(b'{"word_times":[', b"1", 10_000_000, b"]}"),
    "a million words": repeated(b'{"word_times":[', b'["a",1,2]', 1_000_000, b"]}"),
    "turns without fields": repeated(b'{"speaker_turns":[', b"{}", 5_000_000, b"]}"),
    "words with an invalid time": repeated(b'{"word_times":[', b'["a",1,true]', 120_000, b"]}"),
    "quotes": b'{"text":"' + b'\\"' * 10_000_000,
    "levels": b'{"text":' + b"[" * 20_000_000,
    "digits": b'{"top_k":' + b"1" * 20_000_000 + b"}",
    "a long name": b'{"' + b"k" * 20_000_000 + b'":1}',
    "not base64": b'{"audio":"' + b"!" * 20_000_000 + b'"}',
    "base64 that is no audio": b'{"audio":"' + b"A" * 20_000_000 + b'"}',
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_body_neither_stops_the_service_nor_stays_in_memory(service, name):
    slowest, is_over = 0.0, threading.Event()

    def probe():
        nonlocal slowest
        with httpx.Client(base_url=service.address, timeout=PATIENCE_S) as client:
            while not is_over.wait(0.05):
                started = time.monotonic()
                assert client.get("/health").status_code == 200
                slowest = max(slowest, time.monotonic() - started)

    post(service, json={"text": "so"})
    idle = service.memory()
    service.reset_peak()
    thread = threading.Thread(target=probe)
    thread.start()
    response = post(service, content=ATTACKS[name], headers=JSON)
    is_over.set()
    thread.join()

    assert response.status_code in (400, 413, 422) and len(response.json()["detail"]) <= MAX_DETAIL_CHARS + 3
    assert slowest < HEALTH_S
    assert service.memory("VmHWM") - idle < MEMORY_MIB
    service.wait_until(lambda: service.memory() - idle < LEFT_MIB)


@pytest.mark.slow
def test_hostile_items_of_a_batch_and_turns_of_a_form(service):
    items = service.post(
        "/predict/batch", content=repeated(b'{"items":[', b'{"a":1,"b":2}', 1_000_000, b"]}"), headers=JSON
    )
    turns = post(service, data={"speaker_turns": "[" + ",".join(["{}"] * 260_000) + "]"}, files={"subtitles": b""})
    context = post(service, data={"context": "[" + ",".join(["1"] * 390_000) + "]"}, files={"subtitles": b""})

    assert (items.status_code, turns.status_code, context.status_code) == (413, 413, 422)
    assert context.json() == {"detail": "context.0: Input should be an object."}
    assert (
        items.json() == turns.json() == {"detail": "The JSON has more than 500000 values, the limit of this service."}
    )


def test_overlapping_turns_of_one_speaker_are_one_voice():
    settings = ServiceSettings(max_voices=2)

    check_turns([("a", 0, 5), ("a", 1, 6), ("a", 2, 7), ("b", 0, 3), ("c", 3, 4)], settings)
    with pytest.raises(TooLargeError, match="turns of 3 speakers at the same time"):
        check_turns([("a", 0, 5), ("b", 0, 3), ("c", 2.9, 4)], settings)
