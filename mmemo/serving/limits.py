"""
Limits on requests: on their size before they are parsed, on their parts, and on their audio before it is decoded.

Deliberate choices:
- Bytes are counted as they arrive, independently of `Content-Length`; a request over the limit is rejected at once.
- The header of an audio file gives its duration, channels and sampling rate, and decoding never goes beyond the
  duration given there. A file without a duration is decoded once, block by block, to measure it.
- The header of a video gives its size and duration. Decoding ends with an error beyond the limits, whatever the header
  declares, and when the request is out of time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from itertools import accumulate
from threading import Lock
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from mmemo.audio.loading import AudioBlocks
from mmemo.serving.batching import check_deadline
from mmemo.serving.schemas import PredictBatchRequest, PredictForm, PredictItem, PredictOptions
from mmemo.serving.settings import ServiceSettings
from mmemo.timeline.speaker_turns import SpeakerTurns, read_speaker_turns
from mmemo.video.frames import VideoSource, open_video
from mmemo.video.video_files import DecodingLimits
from mmemo.words.times import read_word_times


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
DECODED_RATE = 16_000  # Hz, of the blocks of [`AudioBlocks`]
# Errors may quote the request.
MAX_DETAIL_CHARS = 1000


class TooLargeError(ValueError):
    """A part of a request exceeds a limit of the service."""


def short_detail(error: str | Exception) -> str:
    """Returns the message of an error, cut to `MAX_DETAIL_CHARS`."""
    detail = str(error)
    return detail if len(detail) <= MAX_DETAIL_CHARS else f"{detail[:MAX_DETAIL_CHARS]}..."


def check_sizes(request: PredictOptions | PredictItem, settings: ServiceSettings) -> None:
    """
    Checks the numbers of items, words and turns of a request, and the lengths of its texts and names.

    Args:
        request ([`PredictRequest`], [`PredictBatchRequest`] or [`PredictForm`]): The validated body.
        settings ([`ServiceSettings`]): The limits.

    Raises:
        TooLargeError: If a limit is exceeded.
    """
    if isinstance(request, PredictBatchRequest):
        # First, because a batch may have many items.
        if len(request.items) > settings.max_items:
            raise TooLargeError(
                f"The batch has {len(request.items)} items; this service accepts at most {settings.max_items}."
            )
        for item in request.items:
            check_sizes(item, settings)
    sizes = _item_sizes(request, settings) if isinstance(request, PredictItem | PredictForm) else iter(())
    for name, size, what, limit in (*sizes, *_option_sizes(request, settings)):
        if size > limit:
            raise TooLargeError(f"{name} has {size} {what}; this service accepts at most {limit}.")


def _item_sizes(item: PredictItem | PredictForm, settings: ServiceSettings) -> Iterator[tuple[str, int, str, int]]:
    """Yields fields, their sizes, the units, and the limits."""
    max_chars, max_name_chars = settings.max_text_chars, settings.max_name_chars
    word_times = (item.word_times if isinstance(item, PredictItem) else None) or ()
    context = item.context or ()
    yield "text", len(item.text or ""), "characters", max_chars
    yield "subtitles", len(item.subtitles or ""), "characters", max_chars
    yield "word_times", sum(len(word) for word, *_ in word_times), "characters", max_chars
    yield "word_times", len(word_times), "words", settings.max_words
    yield "context", sum(len(turn.text) for turn in context), "characters", max_chars
    yield "context", len(context), "turns", settings.max_context_turns
    yield "speaker", len(item.speaker or ""), "characters", max_name_chars
    longest = max((len(turn.speaker or "") for turn in context), default=0)
    yield "A speaker of context", longest, "characters", max_name_chars


def _option_sizes(request: Any, settings: ServiceSettings) -> Iterator[tuple[str, int, str, int]]:
    if not isinstance(request, PredictOptions):
        return
    turns = request.speaker_turns or ()
    yield "speaker_turns", len(turns), "turns", settings.max_turns
    longest = max((len(turn.speaker) for turn in turns), default=0)
    yield "A speaker of speaker_turns", longest, "characters", settings.max_name_chars
    for name in ("candidate_labels", "hypothesis_template"):
        value = getattr(request, name)
        texts = [value] if isinstance(value, str) else value or ()
        yield name, sum(map(len, texts)), "characters", settings.max_text_chars
    if isinstance(request.customer, str):
        yield "customer", len(request.customer), "characters", settings.max_name_chars


def check_turns(turns: SpeakerTurns, settings: ServiceSettings) -> None:
    """
    Checks the number of turns at the same time: each of them holds audio in memory.

    Args:
        turns (`SpeakerTurns`): The speaker turns.
        settings ([`ServiceSettings`]): The limits.

    Raises:
        TooLargeError: If more than `max_voices` turns of different speakers overlap.
        ValueError: If a turn is invalid; see [`read_speaker_turns`].
    """
    read = read_speaker_turns(turns)
    # At one time, ends (-1) come before starts (+1).
    borders = sorted([(start, 1) for _, start, _ in read] + [(end, -1) for _, _, end in read])
    voices = max(accumulate(change for _, change in borders))
    if voices > settings.max_voices:
        raise TooLargeError(
            f"speaker_turns has turns of {voices} speakers at the same time; this service accepts at most "
            f"{settings.max_voices}."
        )


def check_duration(word_times: Any, settings: ServiceSettings) -> None:
    """
    Checks the duration of a recording without audio, which is that of its words.

    Args:
        word_times (`WordTimes`): The words.
        settings ([`ServiceSettings`]): The limits.

    Raises:
        TooLargeError: If a word ends after `max_recording_s`.
        ValueError: If the words are invalid; see [`read_word_times`].
    """
    seconds = max((end for _, _, end in read_word_times(word_times)), default=0.0)
    if seconds > settings.max_recording_s:
        raise TooLargeError(
            f"The last word ends at {seconds:g} s; this service accepts at most {settings.max_recording_s:g} s. Times "
            "are in seconds."
        )


def check_audio(data: bytes, settings: ServiceSettings, is_recording: bool) -> None:
    """
    Checks an audio file against the limits of the service.

    Args:
        data (`bytes`): Content of the file.
        settings ([`ServiceSettings`]): The limits.
        is_recording (`bool`): Whether the request sets `return_timeline`.

    Raises:
        TooLargeError: If it is too long, or has too many channels or too high a sampling rate.
        ValueError: If it is not readable audio; see [`AudioBlocks`].
    """
    blocks = AudioBlocks(data)
    rate, channels = blocks.source_rate, blocks.channels
    if channels > settings.max_channels:
        raise TooLargeError(
            f"The audio has {channels} channels; this service accepts at most {settings.max_channels}."
        )
    if rate > settings.max_sampling_rate:
        raise TooLargeError(
            f"The audio has a sampling rate of {rate:g} Hz; this service accepts at most "
            f"{settings.max_sampling_rate} Hz."
        )
    max_seconds = settings.max_recording_s if is_recording else settings.max_clip_s
    if _exceeds(blocks, max_seconds):
        what = "" if is_recording else " without a timeline"
        remedy = "Send a shorter file." if is_recording else "Send a shorter file, or set return_timeline."
        raise TooLargeError(f"The audio is longer than {max_seconds:g} s, the limit of this service{what}. {remedy}")


def _exceeds(blocks: AudioBlocks, max_seconds: float) -> bool:
    if blocks.duration is not None:
        return blocks.duration > max_seconds
    seconds = 0.0
    for block in blocks:
        seconds += block.shape[1] / DECODED_RATE
        if seconds > max_seconds:
            return True
    return False


def open_limited_video(data: bytes, settings: ServiceSettings) -> VideoSource:
    """
    Opens a video file under the limits of the service.

    Args:
        data (`bytes`): Content of the file.
        settings ([`ServiceSettings`]): The limits.

    Raises:
        TooLargeError, VideoLimitError: If it is too long, or its frames have too many pixels; for a file that declares
            no duration, or a wrong one, while its frames are read.
        ValueError: If it is not a readable video; see [`open_video`].
    """
    limits = DecodingLimits(settings.max_pixels, settings.max_video_s, check_deadline)
    video = open_video(data, limits=limits)
    if video.duration is not None and video.duration > settings.max_video_s:
        raise TooLargeError(
            f"The video is longer than {settings.max_video_s:g} s, the limit of this service. Send a shorter file."
        )
    return video


class PendingBytes:
    """
    Counts the bytes of all requests in flight.

    Args:
        limit (`int`): Maximum number of bytes.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.count = 0
        self._lock = Lock()

    def take(self, count: int) -> bool:
        """Adds `count` bytes and returns `True`, or returns `False` if that would exceed the limit."""
        with self._lock:
            if self.count + count > self.limit:
                return False
            self.count += count
            return True

    def give_back(self, count: int) -> None:
        with self._lock:
            self.count -= count


class LimitBodies:
    """
    ASGI middleware that rejects requests that are too large or too slow, or exceed the total of bytes in flight.

    A response that starts before the whole body has arrived closes the connection, so that the rest of the body is
    discarded within the limits of [`LingeringTransport`].

    Args:
        app: The ASGI application.
        settings ([`ServiceSettings`]): The limits.
        pending ([`PendingBytes`]): Counts the bytes in flight.
        rejected (`Callable[[str], None]`): Called with the reason of each rejection.
    """

    def __init__(self, app: Any, settings: ServiceSettings, pending: PendingBytes, rejected: Callable[[str], None]):
        self.app = app
        self.settings = settings
        self.pending = pending
        self.rejected = rejected

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(self, dict(scope["headers"]), receive)

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and not body.is_complete:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        try:
            body.announce()
            await self.app(scope, body.receive, send_and_close)
        except HTTPException as error:  # from `announce`; the application handles its own
            response = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
            await response(scope, receive, send_and_close)
        finally:
            self.pending.give_back(body.taken)


class _Body:
    """The body of one request while it arrives."""

    def __init__(self, limits: LimitBodies, headers: dict[bytes, bytes], receive: Receive):
        self._limits = limits
        self._receive = receive
        self._settings = limits.settings
        self._deadline = asyncio.get_running_loop().time() + self._settings.upload_timeout_s
        length = headers.get(b"content-length", b"")
        self._announced = int(length) if length.isdigit() else 0
        self._received = 0
        self.taken = 0
        self._has_ended = False
        self._is_empty = not self._announced and b"transfer-encoding" not in headers

    @property
    def is_complete(self) -> bool:
        return self._has_ended or self._is_empty

    def announce(self) -> None:
        """
        Reserves the bytes that `Content-Length` announces.

        Raises:
            HTTPException: If they exceed a limit.
        """
        self._reserve(self._announced)

    async def receive(self) -> Message:
        """
        Receives the next part of the body. Once the body is complete, waits without a time limit for the next event,
        which is that the client disconnects.

        Raises:
            HTTPException: If the body is too large or takes too long to arrive.
        """
        if self._has_ended:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            seconds = self._settings.upload_timeout_s
            raise HTTPException(408, f"The request took more than {seconds:g} s to arrive.") from error
        self._received += len(message.get("body", b""))
        self._reserve(self._received)
        self._has_ended = not message.get("more_body", False)
        return message

    def _reserve(self, count: int) -> None:
        if count > self._settings.max_request_bytes:
            self._limits.rejected("too large")
            raise HTTPException(
                413, f"The request is larger than {self._settings.max_request_mib:g} MiB, the limit of this service."
            )
        if count > self.taken:
            if not self._limits.pending.take(count - self.taken):
                self._limits.rejected("pending bytes")
                raise HTTPException(503, "Too many requests are in flight; try again later.", {"Retry-After": "1"})
            self.taken = count
