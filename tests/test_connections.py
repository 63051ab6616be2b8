"""A client that sends everything before it reads still receives the response that ended its request early."""

import base64
import json
import os
import socket
import struct

import httpx
import pytest
from running import PATIENCE_S, running


MIB = 2**20


@pytest.fixture(scope="module")
def service(exported, tmp_path_factory):
    log = tmp_path_factory.mktemp("service") / "log"
    with running(log, exported, api_keys="alpha-key", max_request_mib=8, max_pending_mib=16) as service:
        yield service


def connect(service):
    host, port = service.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def read_to_end(connection):
    return b"".join(iter(lambda: connection.recv(2**16), b""))


def frame(opcode, payload):
    """A WebSocket frame as a client sends it; the mask of zeros leaves the payload as it is."""
    return struct.pack(">BBQ4x", 0x80 | opcode, 0x80 | 127, len(payload)) + payload


def open_stream(connection):
    key = base64.b64encode(os.urandom(16))
    connection.sendall(
        b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % key
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1)
    assert b" 101 " in head


@pytest.mark.parametrize("extra", [b"", b"Connection: close\r\n"], ids=["keep-alive", "close"])
@pytest.mark.parametrize(
    ("path", "headers", "mib", "status"),
    [
        (b"/predict", b"Content-Type: application/json\r\n", 8, 401),
        (b"/predict", b"Authorization: Bearer alpha-key\r\n", 8, 415),
        (b"/predict", b"Authorization: Bearer alpha-key\r\n", 64, 413),
        (b"/nothing", b"", 8, 404),
    ],
)
def test_http_errors_reach_a_client_that_sends_its_whole_body_first(service, path, headers, mib, status, extra):
    with connect(service) as connection:
        connection.sendall(
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b%b\r\n" % (path, mib * MIB, headers, extra)
        )
        connection.sendall(bytes(mib * MIB))
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head.lower()  # or the server would read without a limit
    assert json.loads(body).keys() == {"detail"}


def test_a_malformed_request_gets_a_response_while_its_body_arrives(service):
    with connect(service) as connection:
        connection.sendall(b"this is not HTTP\r\n\r\n" + bytes(16 * MIB))
        assert read_to_end(connection).startswith(b"HTTP/1.1 400 ")


def test_a_complete_request_keeps_its_connection(service):
    with httpx.Client(base_url=service.address, headers={"authorization": "Bearer alpha-key"}) as client:
        for _ in range(2):
            response = client.post("/predict", json={})
            assert response.status_code == 422 and "connection" not in response.headers


@pytest.mark.parametrize(
    ("first", "detail", "code"),
    [
        (b"{}", b"The API key is missing or wrong.", 1008),
        (b"hello", b"The message is invalid", 1007),
        (bytes(MIB), b"", 1009),
    ],
    ids=["key", "message", "size"],
)
def test_the_reason_reaches_a_stream_that_is_still_sending(service, first, detail, code):
    with connect(service) as connection:
        open_stream(connection)
        connection.sendall(frame(1, first) + frame(2, bytes(100_000)) * 200)
        received = b""
        while struct.pack(">H", code) not in received:
            data = connection.recv(2**16)
            assert data, received
            received += data

    assert detail in received


def test_a_client_that_never_stops_sending_is_cut_off(service):
    """The server discards a limited number of bytes."""
    with connect(service) as connection, pytest.raises(OSError):
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % 2**40)
        for _ in range(1024):
            connection.sendall(bytes(MIB))
