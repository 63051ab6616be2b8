"""
Connections: limits on those that wait, and closing them so that the last response reaches its client.

Deliberate choices:
- The headers of a request have a time limit, from the first byte, or from the connection on for the first request.
- The number of open connections is limited below that of open files, at which a server can neither accept nor answer.
  For a new connection the one is closed that has waited longest for its client: for a request, or if none does, for
  a body. So clients that only open connections do not keep others out. A complete request is never dropped.
- Closing a socket that holds unread data makes the kernel send a reset. The client's next write then fails, and many
  clients never read the response that gives the reason. So the service ends its own side of the connection first,
  discards what still arrives up to a limit, and closes the socket after that (nginx calls this a lingering close).

Source: RFC 9112, section 9.6.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from mmemo.serving.settings import MIB


# Limits of a lingering close: bytes discarded, seconds in total, and seconds without data.
LINGER_BYTES = 256 * MIB
LINGER_S, LINGER_IDLE_S = 30.0, 5.0
# What a connection waits for. Those that wait for a request, or for their client to close them, are closed first.
REQUEST, BODY = "request", "body"


class Connections:
    """
    The open connections of a server.

    Args:
        limit (`int`): Maximum number of connections.
        header_timeout_s (`float`): Maximum time for the headers of a request to arrive.
        rejected (`Callable[[str], None]`): Called with the reason of each rejection.
    """

    def __init__(self, limit: int, header_timeout_s: float, rejected: Callable[[str], None]):
        self.limit = limit
        self.header_timeout_s = header_timeout_s
        self.rejected = rejected
        self._open: set[LingeringTransport] = set()
        # Those that wait, in the order in which they began to.
        self._waiting: dict[str, dict[LingeringTransport, None]] = {REQUEST: {}, BODY: {}}

    def add(self, connection: "LingeringTransport") -> bool:
        """
        Adds a new connection, which waits for its first request. At the limit, closes those that have waited longest.

        Returns:
            `bool`: Whether there is room for its requests; if not, it must be closed.
        """
        while len(self._open) >= self.limit and (longest := self._longest_waiting()):
            self.remove(longest)
            longest.abort()
        has_room = len(self._open) < self.limit
        self._open.add(connection)
        self.set_waiting(connection, REQUEST)
        return has_room

    def set_waiting(self, connection: "LingeringTransport", kind: str | None) -> None:
        """Sets what an open connection waits for: `REQUEST`, `BODY`, or `None` for a request in progress."""
        if connection in self._open:
            for other, waiting in self._waiting.items():
                if other == kind:
                    waiting.setdefault(connection)
                else:
                    waiting.pop(connection, None)

    def remove(self, connection: "LingeringTransport") -> None:
        """Removes a connection that is closed."""
        self.set_waiting(connection, None)
        self._open.discard(connection)

    def _longest_waiting(self) -> "LingeringTransport | None":
        return next((connection for waiting in self._waiting.values() for connection in waiting), None)


class LimitedH11Protocol(H11Protocol):
    """
    uvicorn's HTTP protocol over a [`LingeringTransport`], with limits on connections and on the time of headers.

    Args:
        connections ([`Connections`]): Those of the server.
        arguments: Of `H11Protocol`.
    """

    def __init__(self, connections: Connections, **arguments: Any):
        super().__init__(**arguments)
        self._connections = connections
        self._headers_end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._lingering = LingeringTransport(transport, self._connections)
        super().connection_made(self._lingering)  # type: ignore[arg-type]
        if self._connections.add(self._lingering):
            self._limit_headers()
        else:
            self._connections.rejected("connections")
            self._refuse(503, "Too many connections are open; try again later.", [(b"retry-after", b"1")])

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_headers()
        self._lingering.lost()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._lingering.is_closing():
            self._end_headers()
        elif self.conn.their_state is not h11.IDLE:
            self._end_headers()
            is_websocket = self._lingering.get_protocol() is not self
            is_arriving = self.conn.their_state is h11.SEND_BODY and not is_websocket
            self._connections.set_waiting(self._lingering, BODY if is_arriving else None)
        elif self.conn.trailing_data[0]:
            self._limit_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._lingering.is_closing() and self.conn.their_state is h11.IDLE:
            self._connections.set_waiting(self._lingering, REQUEST)

    def send_400_response(self, msg: str) -> None:
        """Rejects a request that is not HTTP, with an error in the format of the service."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(400, "The request is not valid HTTP/1.1.")
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """Stops the connection with the server. If it is idle there is nothing to wait for."""
        super().shutdown()
        if self._lingering.is_closing() and (self.cycle is None or not self.cycle.more_body):
            self._lingering.close_now()

    def _limit_headers(self) -> None:
        if self._headers_end is None:
            self._headers_end = self.loop.call_later(self._connections.header_timeout_s, self._headers_late)

    def _end_headers(self) -> None:
        if self._headers_end is not None:
            self._headers_end.cancel()
            self._headers_end = None

    def _headers_late(self) -> None:
        if self._lingering.is_closing():
            return
        self._connections.rejected("headers")
        if self.conn.trailing_data[0]:
            seconds = self._connections.header_timeout_s
            self._refuse(408, f"The headers of the request took more than {seconds:g} s to arrive.")
        self._lingering.close_now()

    def _refuse(self, status: int, detail: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        """Sends an error before there is a request, and closes the connection."""
        body = json.dumps({"detail": detail}).encode()
        described = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *(headers or []),
        ]
        response = h11.Response(status_code=status, headers=described, reason=STATUS_PHRASES[status])
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class LimitedWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, over the [`LingeringTransport`] of an HTTP connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport.lost()  # type: ignore[attr-defined]
        super().connection_lost(exc)


class LingeringTransport:
    """
    An asyncio transport whose `close` waits for the client; all other methods are those of the original.

    Args:
        transport (`asyncio.Transport`): The transport of the accepted connection.
        connections ([`Connections`]): Those of the server.
    """

    def __init__(self, transport: asyncio.Transport, connections: Connections):
        self._transport = transport
        self._connections = connections
        self._discard: _Discard | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._discard is not None or self._transport.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        if self._discard is None:
            self._transport.set_protocol(protocol)
        else:
            self._discard.replaced = protocol

    def close(self) -> None:
        """Ends the response, and closes the connection once the client does so or a limit is reached."""
        if not self.is_closing():
            self._discard = _Discard(self._transport)
            self._transport.set_protocol(self._discard)
            self._transport.resume_reading()
            self._connections.set_waiting(self, REQUEST)
            try:
                self._transport.write_eof()
            except OSError:  # the client has reset the connection, and receives nothing any more
                self._transport.abort()

    def close_now(self) -> None:
        """Closes the connection as soon as all data is sent."""
        self._transport.close()

    def abort(self) -> None:
        """Closes the connection at once."""
        self._transport.abort()

    def lost(self) -> None:
        """Must be called when the connection is closed."""
        self._connections.remove(self)


class _Discard(asyncio.Protocol):
    """Replaces the protocol of a connection: discards incoming data, up to the limits above."""

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
        self.replaced = transport.get_protocol()
        self._left = LINGER_BYTES
        self._loop = asyncio.get_running_loop()
        # `close` would wait for a client that does not read its response; `abort` does not.
        self._end = self._loop.call_later(LINGER_S, transport.abort)
        self._idle = self._loop.call_later(LINGER_IDLE_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()
        self._idle.cancel()
        self._idle = self._loop.call_later(LINGER_IDLE_S, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        self._idle.cancel()
        self.replaced.connection_lost(exc)
