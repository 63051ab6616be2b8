"""Invalid requests are rejected with one sentence about the request, never about objects of Python."""

import json

import httpx
import pytest
from running import PATIENCE_S, running


JSON = {"content-type": "application/json"}
SRT = "1\n00:00:00,200 --> 00:00:01,000\nI am not happy.\n"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with (
        running(tmp_path_factory.mktemp("service") / "log") as service,
        httpx.Client(base_url=service.address, timeout=PATIENCE_S) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("request_", "status", "detail"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "The body is not valid JSON"),
        ({"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}, 400, "The body is not valid JSON"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        (
            {"content": b"x", "headers": {"content-type": "text/plain"}},
            415,
            "The Content-Type is text/plain",
        ),
        ({"content": b""}, 415, "The Content-Type is missing"),
        ({"json": {}}, 422, "audio and text are both missing"),
        ({"json": []}, 422, "The body: Input should be an object"),
        ({"json": {"txt": "so"}}, 422, "txt: Extra inputs are not permitted"),
        ({"json": {"text": "so", "top_k": 0}}, 422, "top_k: Input should be greater than or equal to 1"),
        ({"json": {"text": "so", "top_k": True}}, 422, "top_k: Input should be a valid integer"),
        ({"json": {"text": "so", "top_k": "2"}}, 422, "top_k: Input should be a valid integer"),
        ({"json": {"audio": "!", "text": "so"}}, 422, "audio: not valid base64"),
        ({"json": {"audio": ""}}, 422, "is empty"),
        ({"json": {"text": "so", "segment_s": 1.0}}, 422, "segment_s: only for timelines; set return_timeline"),
        ({"json": {"text": "so", "return_timeline": True}}, 422, "A timeline needs audio, words"),
        ({"json": {"subtitles": "/etc/hostname"}}, 422, "subtitles: not SRT or WebVTT; send the content"),
        ({"json": {"subtitles": "call.srt"}}, 422, "subtitles: not SRT or WebVTT; send the content"),
        ({"json": {"subtitles": "s3://bucket/call.srt"}}, 422, "subtitles: not SRT or WebVTT; send the content"),
        ({"files": {"subtitles": b"file:///calls/call.vtt"}}, 422, "subtitles: not SRT or WebVTT; send the content"),
        ({"json": {"word_times": "hf://datasets/a/b/c.srt"}}, 422, "word_times: Input should be a valid array"),
        ({"json": {"audio": "s3://bucket/call.wav"}}, 422, "audio: not valid base64"),
        ({"json": {"video": "file:///calls/call.mp4"}}, 422, "video: not valid base64"),
        ({"files": {"audio_file": b"s3://bucket/call.wav"}}, 422, "not readable audio"),
        ({"json": {"word_times": [["so", 2.0, 1.0]]}}, 422, "0 <= start <= end"),
        ({"json": {"subtitles": SRT, "word_times": [["so", 0.0, 1.0]]}}, 422, "send one of them"),
        ({"data": {"audio_file": "a.wav"}, "files": {"subtitles": b""}}, 422, "audio_file: is a text field"),
        ({"files": {"audio": b"1"}}, 422, "audio: unknown file; the form accepts audio_file, video_file, subtitles"),
        ({"files": {"audio_file": b"RIFF"}}, 422, "not readable audio"),
        ({"files": {"subtitles": b"\xff\xfe\x00"}}, 422, "subtitles: not valid UTF-8"),
        ({"files": {"subtitles": SRT.encode()}, "data": {"speaker_turns": "["}}, 422, "speaker_turns: not valid JSON"),
        ({"data": {"text": "so", "context": "["}}, 415, "The Content-Type is application/x-www-form-urlencoded"),
        ({"files": {"subtitles": SRT.encode()}, "data": {"context": "["}}, 422, "context: not valid JSON"),
        ({"json": {"text": "so", "context": [{"text": "no", "speaker": "B"}]}}, 422, "takes no dialogue context"),
        ({"json": {"text": "so", "context": [{"speaker": "B"}]}}, 422, "context.0.text: Field required"),
        ({"json": {"text": "so", "return_timeline": 1}}, 422, "return_timeline: Input should be a valid boolean"),
        ({"json": {"text": "so", "threshold": True}}, 422, "threshold: Input should be a valid number"),
        ({"json": {"word_times": [["so", "1", 2]]}}, 422, "word_times.0.1: Input should be a valid number"),
        ({"json": {"word_times": [["so", 1, True]]}}, 422, "word_times.0.2: Input should be a valid number"),
        ({"json": {"word_times": [["so", 1, 2, 3]]}}, 422, "word_times.0: has too many entries"),
        ({"json": {"word_times": {"so": 1}}}, 422, "word_times: Input should be a valid array"),
        ({"json": {"speaker_turns": [{"speaker": "a", "start": 0, "end": "1"}]}}, 422, "speaker_turns.0.end: Input"),
        ({"json": {"text": "so", "customer": True}}, 422, "customer: must be the number of a channel or the name"),
        ({"json": {"text": "so", "top_k": 10**40}}, 422, "top_k: Input should be less than or equal to 2147483647"),
        ({"json": {"text": "so", "channel": 10**40}}, 422, "channel: Input should be less than or equal to"),
        ({"json": {"audio": 1}}, 422, "audio: must be a string, the content of an audio file in base64"),
        (
            {"json": {"word_times": [["so", 0, 1]], "return_timeline": True, "segment_s": 4}},
            422,
            "segment_s=4.0 exceeds window_s=3.5",
        ),
        (
            {"files": {"subtitles": SRT.encode()}, "data": {"return_timeline": "1", "segment_s": "1e9"}},
            422,
            "segment_s=1000000000.0 exceeds window_s=3.5",
        ),
        (
            {"content": b'{"text": "so", "threshold": NaN}', "headers": JSON},
            422,
            "threshold: Input should be a",
        ),
        ({"content": b'{"text": "so", "top_k": %b}' % (b"9" * 5000), "headers": JSON}, 400, "not valid JSON"),
        (
            {"content": b'{"text": "so", "threshold": 1e999}', "headers": JSON},
            422,
            "threshold: Input should be a",
        ),
        ({"content": b'{"text": "so", "text": "sad"}', "headers": JSON}, 422, "text: duplicate; send it once"),
        ({"content": b'{"text": "\\ud800"}', "headers": JSON}, 400, "not valid JSON"),
        ({"content": b'{"text": "\xff"}', "headers": JSON}, 400, "not valid JSON"),
        ({"content": b'{"text": "a\x00"}', "headers": JSON}, 400, "not valid JSON"),
        ({"content": b'{"text": "so"', "headers": JSON}, 400, "not valid JSON: EOF while parsing an object"),
        ({"content": b'{"text": "so"} {}', "headers": JSON}, 400, "not valid JSON: trailing characters"),
        ({"content": b'{"text": ' + b"[" * 100, "headers": JSON}, 413, "more than 16 levels"),
        ({"json": {f"k{index}": 1 for index in range(23)}}, 422, "An object has more than 22 fields"),
        ({"json": {"text": "so", "k" * 5000: 1}}, 422, "k" * 1000 + "..."),
        (
            {"files": {"subtitles": SRT.encode()}, "data": {"context": '[{"text": 1}]'}},
            422,
            "context.0.text: Input should be a valid string",
        ),
        (
            {
                "files": {"subtitles": SRT.encode()},
                "data": {"speaker_turns": '[{"speaker": "a", "start": "0", "end": true}]', "return_timeline": "1"},
            },
            422,
            "speaker_turns.0.start: Input should be a valid number",
        ),
        (
            {"files": {"subtitles": SRT.encode()}, "data": {"text": ["so", "sad"]}},
            422,
            "text: duplicate; send it once",
        ),
        ({"files": [("audio_file", b"1"), ("audio_file", b"2")]}, 422, "audio_file: duplicate; send it once"),
        ({"files": {"subtitles": SRT.encode()}, "data": {"txt": "so"}}, 422, "txt: Extra inputs are not permitted"),
    ],
)
def test_invalid_requests_are_rejected_with_a_reason(client, request_, status, detail):
    response = client.post("/predict", **request_)

    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert detail in response.json()["detail"]
    assert response.json().keys() == {"detail"} and "Traceback" not in response.text


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=B", None])
def test_a_batch_must_be_json(client, kind):
    content = json.dumps({"items": [{"text": "so"}]}).encode()
    response = client.post("/predict/batch", content=content, headers={"content-type": kind} if kind else {})

    shown = (kind or "missing").partition(";")[0]
    assert (response.status_code, response.json()["detail"]) == (
        415,
        f"The Content-Type is {shown}; send application/json.",
    )


@pytest.mark.parametrize(
    ("batch", "detail"),
    [
        ({"items": []}, "items: is empty; send at least one."),
        ({"items": [1]}, "items.0: Input should be an object."),
        ({"items": [{"text": "so"}, {"text": 1}, {"txt": 2}]}, "items.1.text: Input should be a valid string."),
        ({"items": [{"text": "so", "top_k": 1}]}, "items.0.top_k: Extra inputs are not permitted."),
    ],
)
def test_invalid_batches_are_rejected_with_a_reason(client, batch, detail):
    response = client.post("/predict/batch", json=batch)

    assert (response.status_code, response.json()["detail"]) == (422, detail)
