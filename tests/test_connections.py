"""A client that sends everything before it reads still receives the response that ended its request early."""

import asyncio
import base64
import json
import os
import socket
import struct
import time
from contextlib import suppress

import httpx
import pytest
from running import PATIENCE_S, running

from mmemo.serving.connections import BODY, REQUEST, Connections, LingeringTransport


MIB = 2**20
HALF = b"GET /health HTTP/1.1\r\nHost: x\r\n"


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


class FakeConnection:
    is_aborted = False

    def abort(self):
        self.is_aborted = True


def test_the_connection_that_has_waited_longest_makes_room():
    connections = Connections(3, 1.0, lambda reason: None)
    body, first, second, new, last = (FakeConnection() for _ in range(5))
    assert all(map(connections.add, (body, first, second)))
    connections.set_waiting(body, BODY)

    assert connections.add(new) and first.is_aborted  # the body waits longer, but its request has begun
    connections.set_waiting(second, None)
    connections.set_waiting(new, None)
    assert connections.add(last) and body.is_aborted
    connections.set_waiting(last, None)
    assert not connections.add(FakeConnection())  # three requests are in progress
    connections.remove(second)
    connections.set_waiting(second, REQUEST)  # it is gone
    assert connections.add(FakeConnection())
    assert not (second.is_aborted or new.is_aborted or last.is_aborted)


def test_closing_a_connection_that_the_client_has_reset_aborts_it():
    async def close_after_reset():
        accepted, lost = asyncio.get_running_loop().create_future(), asyncio.Event()

        class Server(asyncio.Protocol):
            def connection_made(self, transport):
                accepted.set_result(transport)

            def connection_lost(self, exc):
                lost.set()

        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as client:
            transport = await accepted
            transport.pause_reading()  # or the event loop would notice the reset first
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connections = Connections(1, 1.0, lambda reason: None)
        LingeringTransport(transport, connections).close()
        await asyncio.wait_for(lost.wait(), PATIENCE_S)
        server.close()

    asyncio.run(close_after_reset())


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    log = tmp_path_factory.mktemp("service") / "log"
    with running(log, header_timeout_s=0.5, keep_alive_s=0.3, max_connections=8) as service:
        yield service


@pytest.mark.parametrize("sent", [b"", b"G", HALF], ids=["nothing", "a letter", "headers"])
def test_headers_have_a_time_limit(hasty, sent):
    with connect(hasty) as connection:
        connection.sendall(sent)
        received = read_to_end(connection)

    assert received.startswith(b"HTTP/1.1 408 ") if sent else received == b""
    assert not sent or b'{"detail": "The headers of the request took more than 0.5 s to arrive."}' in received


def test_headers_that_arrive_byte_by_byte_have_the_same_limit(hasty):
    with connect(hasty) as connection, pytest.raises(OSError):
        for byte in HALF + b"X: " + b"a" * 10_000:
            connection.sendall(bytes([byte]))
            time.sleep(0.01)


def test_the_headers_of_a_second_request_have_the_limit_too(hasty):
    with connect(hasty) as connection:
        connection.sendall(HALF + b"\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")
        connection.sendall(HALF)
        assert b"HTTP/1.1 408 " in read_to_end(connection)


def test_an_idle_connection_is_closed(hasty):
    with connect(hasty) as connection:
        connection.sendall(HALF + b"\r\n")
        assert b"408" not in read_to_end(connection)


def test_a_request_may_take_longer_than_its_headers(hasty):
    with connect(hasty) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 14\r\n\r\n")
        time.sleep(1)
        connection.sendall(b'{"text": "so"}')
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200 ")


def test_connections_that_only_wait_keep_nobody_out(hasty):
    waiting = [connect(hasty) for _ in range(40)]
    try:
        for connection in waiting:
            with suppress(OSError):  # it had to make room
                connection.sendall(HALF)
        assert hasty.get("/health").status_code == 200
        assert hasty.post("/predict", json={"text": "so"}).status_code == 200
        assert hasty.open_files() < 40
    finally:
        for connection in waiting:
            connection.close()


def test_uploads_that_stand_still_keep_nobody_out(hasty):
    waiting = [connect(hasty) for _ in range(20)]
    try:
        for connection in waiting:
            with suppress(OSError):
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n")
                connection.sendall(b"Content-Type: application/json\r\n\r\n{")
        assert hasty.post("/predict", json={"text": "so"}).status_code == 200
    finally:
        for connection in waiting:
            connection.close()
    hasty.wait_until(lambda: hasty.metric("mmemo_pending_bytes") == 0)


def test_a_new_connection_is_rejected_if_all_have_requests_in_progress(hasty):
    streams = [connect(hasty) for _ in range(8)]
    try:
        for stream in streams:
            open_stream(stream)
            stream.sendall(frame(1, b"{}"))
            assert b"ready" in stream.recv(1000)
        with connect(hasty) as connection:
            received = read_to_end(connection)
        assert received.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in received
        assert b'{"detail": "Too many connections are open; try again later."}' in received
    finally:
        for stream in streams:
            stream.close()
    hasty.wait_until(lambda: hasty.is_ready())
    assert hasty.metric('mmemo_rejects_total{reason="connections"}') >= 1


@pytest.mark.slow
def test_half_sent_headers_do_not_use_up_the_open_files(tmp_path):
    with running(tmp_path / "log", max_files=128) as service:
        waiting = []
        try:
            for _ in range(300):
                waiting.append(connect(service))
                with suppress(OSError):
                    waiting[-1].sendall(HALF)
            for _ in range(5):
                assert service.get("/health").status_code == 200
                assert service.post("/predict", json={"text": "so"}).status_code == 200
            assert service.open_files() < 100
        finally:
            for connection in waiting:
                connection.close()
    assert "at most 48 connections instead of max_connections=512; raise ulimit -n" in service.log
    assert '"level": "error"' not in service.log and len(service.log) < 20_000


def test_what_is_not_http_gets_an_error_in_json(hasty):
    with connect(hasty) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = read_to_end(connection).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body) == {"detail": "The request is not valid HTTP/1.1."}
