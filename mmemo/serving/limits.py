"""
What a request may weigh: its bytes before anybody parses them, and its sound before anybody decodes it.

Deliberate choices:
- Bytes are counted as they come, whatever the header says; a header that announces too many is believed.
- A container says how long, how wide and how fast its sound is. What is announced is never decoded beyond; what is not
  announced is decoded once to be counted, block by block.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from threading import Lock
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from mmemo.audio.loading import AudioBlocks
from mmemo.serving.settings import MIB, ServiceSettings


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class TooLargeError(ValueError):
    """Something exceeds what the service takes."""


def check_sound(data: bytes, settings: ServiceSettings, is_recording: bool) -> None:
    """
    Refuses the bytes of a file that hold more sound than the service takes.

    Args:
        data (`bytes`): Of the file.
        settings ([`ServiceSettings`]): What it takes.
        is_recording (`bool`): Whether it is to be followed over time, and not held as a whole.

    Raises:
        TooLargeError: If it is too long, or has too many channels or too high a rate.
        ValueError: If it is no audio; see [`AudioBlocks`].
    """
    blocks = AudioBlocks(data)
    rate, channels = blocks.source_rate, blocks.channels
    if channels > settings.max_channels:
        raise TooLargeError(f"The audio has {channels} channels; this service takes at most {settings.max_channels}.")
    if rate > settings.max_sampling_rate:
        raise TooLargeError(f"The audio has {rate:g} Hz; this service takes at most {settings.max_sampling_rate} Hz.")
    longest = settings.max_recording_s
    if not is_recording:
        longest = min(settings.max_clip_s, settings.max_decoded_bytes / (4 * channels * rate))
    seconds = 0.0
    if blocks.duration is None:
        for block in blocks:
            seconds += block.shape[1] / 16_000
            if seconds > longest:
                break
    else:
        seconds = blocks.duration
    if seconds > longest:
        remedy = "Cut it." if is_recording else "Cut it, or ask for a timeline (return_timeline)."
        raise TooLargeError(
            f"The audio lasts more than {longest:.1f} s, the most that this service takes of {channels} channel(s) at "
            f"{rate:g} Hz{'' if is_recording else ' as one clip'}. {remedy}"
        )


class PendingBytes:
    """How many bytes of requests are in flight."""

    def __init__(self, limit: int):
        self.limit = limit
        self.count = 0
        self._lock = Lock()

    def take(self, count: int) -> bool:
        """Takes so many more, if there is room for them."""
        with self._lock:
            if self.count + count > self.limit:
                return False
            self.count += count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            self.count -= count


class LimitBodies:
    """ASGI middleware: refuses requests that are too large or too slow, and too many at once."""

    def __init__(self, app: Any, settings: ServiceSettings, pending: PendingBytes, refused: Callable[[str], None]):
        self.app = app
        self.settings = settings
        self.pending = pending
        self.refused = refused

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        taken = int(announced) if announced.isdigit() else 0
        if taken > self.settings.max_request_bytes:
            await _refusal(self._too_large())(scope, receive, send)
            return
        if not self.pending.take(taken):
            await _refusal(self._no_room())(scope, receive, send)
            return
        received = 0
        deadline = asyncio.get_running_loop().time() + self.settings.upload_timeout_s

        async def counted() -> Message:
            nonlocal received, taken
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(
                    408, f"The request took more than {self.settings.upload_timeout_s:g} s to arrive."
                ) from error
            received += len(message.get("body", b""))
            if received > self.settings.max_request_bytes:
                raise self._too_large()
            if received > taken:
                if not self.pending.take(received - taken):
                    raise self._no_room()
                taken = received
            return message

        body_is_there = False

        async def until_the_body_is_there() -> Message:
            nonlocal body_is_there
            # What comes behind the body is that the client has left, which may be never.
            message = await (receive() if body_is_there else counted())
            body_is_there = body_is_there or not message.get("more_body", False)
            return message

        try:
            await self.app(scope, until_the_body_is_there, send)
        finally:
            self.pending.give_back(taken)

    def _too_large(self) -> HTTPException:
        self.refused("too large")
        limit = self.settings.max_request_bytes / MIB
        return HTTPException(413, f"The request is larger than {limit:g} MiB, the most that this service takes.")

    def _no_room(self) -> HTTPException:
        self.refused("pending bytes")
        return HTTPException(503, "Too many requests are in flight; try again later.", {"Retry-After": "1"})


def _refusal(error: HTTPException) -> JSONResponse:
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
