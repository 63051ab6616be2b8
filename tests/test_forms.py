"""Forms: what is cut off, or is not UTF-8, is an error and never answered as if it were whole."""

import asyncio
import socket
from tempfile import SpooledTemporaryFile

import httpx
import pytest
from running import PATIENCE_S, running
from starlette import formparsers
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mmemo.serving.forms import receive_form


TEXT = b'--B\r\nContent-Disposition: form-data; name="text"\r\n\r\nso sad\r\n'
FILE = b'--B\r\nContent-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n' + bytes(3000) + b"\r\n"
END = b"--B--\r\n"


def receive(body, content_type="multipart/form-data; boundary=B", size=1000, max_part_bytes=100):
    """Parses a form that arrives in pieces."""
    pieces = [body[first : first + size] for first in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages[-1]["more_body"] = False

    async def next_message():
        return messages.pop(0)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
    return asyncio.run(receive_form(Request(scope, next_message), max_part_bytes))


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_fields_and_files(size):
    fields, files = receive(TEXT + FILE + END, size=size)

    assert fields == {"text": "so sad"} and files == {"audio_file": bytes(3000)}


@pytest.mark.parametrize("size", [1, 10_000])
def test_every_truncated_form_is_an_error(size):
    whole = TEXT + FILE + END
    places = [*range(len(TEXT) + 90), len(whole) - 1000, *range(len(whole) - len(END) - 5, len(whole) - 4)]
    for place in places:
        with pytest.raises(HTTPException) as raised:
            receive(whole[:place], size=size)
        assert raised.value.status_code == 400
        assert "The form is incomplete: its closing boundary is missing" in raised.value.detail, place


@pytest.mark.filterwarnings("error")
def test_a_truncated_form_leaves_no_file_open(monkeypatch):
    files = []

    def spooled(**options):
        files.append(SpooledTemporaryFile(**options))  # noqa: SIM115  the form must close it
        return files[-1]

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", spooled)
    large = FILE.replace(bytes(3000), bytes(3_000_000))
    with pytest.raises(HTTPException):
        receive(large[:-1], size=100_000)

    assert [file.closed for file in files] == [True]


def test_another_boundary_is_an_error():
    with pytest.raises(HTTPException, match="400"):
        receive(TEXT + END, "multipart/form-data; boundary=C")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"--B\r\nContent-Disposition: form-data\r\n\r\na\r\n" + END, 'header field "name" must be provided'),
        (b"--B\r\nContent-Type: text/plain\r\n\r\na\r\n" + END, 'header field "name" must be provided'),
        (TEXT.replace(b"so sad", b"\xff\xfe") + END, "text: not valid UTF-8"),
        (TEXT.replace(b"so sad", b"a" * 101) + END, "maximum size"),
        (FILE * 4 + END, "Too many files"),
    ],
)
def test_malformed_forms(body, detail):
    with pytest.raises(HTTPException) as raised:
        receive(body)
    assert raised.value.status_code == 400 and detail in raised.value.detail


@pytest.mark.parametrize("parts", [TEXT + TEXT, TEXT + TEXT.replace(b"so sad", b""), FILE + FILE])
def test_a_name_that_occurs_twice_is_an_error(parts):
    with pytest.raises(ValueError, match="duplicate; send it once"):
        receive(parts + END)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("service") / "log") as service:
        yield service


def test_a_truncated_form_is_not_answered_from_its_text(service, example_audio):
    audio = FILE.replace(bytes(3000), example_audio.read_bytes()[:20_000])
    response = service.post(
        "/predict", content=TEXT + audio[:-2], headers={"content-type": "multipart/form-data; boundary=B"}
    )

    assert response.status_code == 400 and "The form is incomplete" in response.json()["detail"]
    # Nothing of it stays open.
    service.wait_until(lambda: service.metric("mmemo_pending_bytes") == 0)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (b"multipart/form-data; boundary=B", TEXT),
        (b"application/json", b'{"text": "so sad"}'),
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_ends_early_gets_no_prediction(service, content_type, body, is_chunked):
    host, port = service.address.removeprefix("http://").split(":")
    length = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % (len(body) + 100)
    sent = b"%x\r\n%b\r\n" % (len(body), body) if is_chunked else body
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\n%b\r\n\r\n%b" % (content_type, length, sent)
        )
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(1000).startswith(b"HTTP/1.1 2")
    service.wait_until(lambda: service.metric("mmemo_pending_bytes") == 0)


@pytest.mark.parametrize(
    ("content_type", "detail"),
    [
        (
            "multipart/form-data; boundary=B; charset=punycode",
            "The charset of the Content-Type is punycode; send UTF-8.",
        ),
        ("application/json; charset=utf-16", "The charset of the Content-Type is utf-16; send UTF-8."),
    ],
)
def test_other_charsets_than_utf_8_are_rejected(service, content_type, detail):
    response = service.post("/predict", content=TEXT + END, headers={"content-type": content_type})

    assert (response.status_code, response.json()["detail"]) == (415, detail)


@pytest.mark.parametrize("content_type", ["Application/JSON ; charset=UTF-8", 'application/json;charset="utf-8"'])
def test_the_content_type_may_name_utf_8(service, content_type):
    response = httpx.post(
        f"{service.address}/predict", content=b'{"text": "so"}', headers={"content-type": content_type}
    )

    assert response.status_code == 200
