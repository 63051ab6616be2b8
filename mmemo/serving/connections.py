"""
Closes connections so that the last response reaches a client that is still sending.

Closing a socket that holds unread data makes the kernel send a reset. The client's next write then fails, and many
clients never read the response that gives the reason. So the service ends its own side of the connection first,
discards what still arrives up to a limit, and closes the socket after that (nginx calls this a lingering close).

Source: RFC 9112, section 9.6.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from mmemo.serving.settings import MIB


# Limits of a lingering close: bytes discarded, seconds in total, and seconds without data.
LINGER_BYTES = 256 * MIB
LINGER_S, LINGER_IDLE_S = 30.0, 5.0


class LingeringH11Protocol(H11Protocol):
    """uvicorn's HTTP protocol, and through it its WebSocket protocol, over a [`LingeringTransport`]."""

    def connection_made(self, transport: Any) -> None:
        self._lingering = LingeringTransport(transport)
        super().connection_made(self._lingering)  # type: ignore[arg-type]

    def shutdown(self) -> None:
        """Stops the connection with the server. If it is idle there is nothing to wait for."""
        super().shutdown()
        if self._lingering.is_closing() and (self.cycle is None or not self.cycle.more_body):
            self._lingering.close_now()


class LingeringTransport:
    """
    An asyncio transport whose `close` waits for the client; all other methods are those of the original.

    Args:
        transport (`asyncio.Transport`): The transport of the accepted connection.
    """

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport
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
            self._transport.write_eof()

    def close_now(self) -> None:
        """Closes the connection as soon as all data is sent."""
        self._transport.close()


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
