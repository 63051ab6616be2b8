"""
Live streams: audio arrives as binary messages, and segments are returned as JSON as soon as they are final.

The first message of the client describes the audio ([`StreamStart`]). After that, binary messages are audio (for Opus,
one packet each), and text messages are words with timestamps ([`StreamWords`]) or the end ([`StreamEnd`]). The service
sends `{"type": "ready"}`, then `{"type": "segment", ...}`, and finally `{"type": "end"}` or `{"type": "error"}`.
"""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import Field, TypeAdapter, ValidationError

from mmemo.audio.pcm import PcmDecoder
from mmemo.serving.json_structure import check_json
from mmemo.serving.limits import short_detail
from mmemo.serving.reading import first_error, to_label_options
from mmemo.serving.schemas import StreamEnd, StreamStart, StreamWords
from mmemo.serving.service import Service
from mmemo.timeline.streaming import EmotionStream


# Close codes; source: RFC 6455, section 7.4.1.
NORMAL, BAD_DATA, POLICY_VIOLATION, TOO_BIG, INTERNAL_ERROR, TRY_AGAIN_LATER = 1000, 1007, 1008, 1009, 1011, 1013
# Maximum size of a message.
STREAM_MESSAGE_BYTES = 2**18
OPUS_RATE = 48_000
# Words wait in memory for their audio, so their number is limited.
WORDS_PER_SECOND, SPARE_WORDS = 20, 500
# Time limit for the first message; until then the stream does not count towards `max_streams`.
START_SECONDS = 10.0
START: TypeAdapter[StreamStart] = TypeAdapter(StreamStart)
MESSAGES: TypeAdapter[StreamWords | StreamEnd] = TypeAdapter(
    Annotated[StreamWords | StreamEnd, Field(discriminator="type")]
)
# Limits on the JSON of a message: its size bounds its words, of four values each; no object has more fields.
MAX_VALUES, MAX_FIELDS = 100_000, len(StreamStart.model_fields)

Decode = Callable[[bytes], np.ndarray]


class StreamError(Exception):
    """
    Ends a stream with an error.

    Args:
        detail (`str` or `Exception`): Sent to the client.
        code (`int`, *optional*, defaults to 1007): Close code.
    """

    def __init__(self, detail: str | Exception, code: int = BAD_DATA):
        super().__init__(detail)
        self.detail = short_detail(detail)
        self.code = code


async def serve_stream(socket: WebSocket, service: Service) -> None:
    """
    Serves one live stream until it ends.

    Args:
        socket (`WebSocket`): An accepted connection.
        service ([`Service`]): Holds the predictor and the limits.
    """
    try:
        start = _parse(START, await _receive(socket, min(service.settings.idle_s, START_SECONDS)))
        if not service.check_key(socket.headers, start.api_key):
            raise StreamError("The API key is missing or wrong.", POLICY_VIOLATION)
        if not service.open_streams.take():
            service.rejected("streams")
            raise StreamError(f"{service.open_streams.limit} streams are open; try again later.", TRY_AGAIN_LATER)
        try:
            await _serve(socket, start, service)
        finally:
            service.open_streams.give_back(0.0)
    except WebSocketDisconnect:
        return
    except StreamError as error:
        await end(socket, {"type": "error", "detail": error.detail}, error.code)


async def _serve(socket: WebSocket, start: StreamStart, service: Service) -> None:
    loop, executor, settings = asyncio.get_running_loop(), service.stream_threads, service.settings
    try:
        decode = _decoder(start)
        options: dict[str, Any] = {"top_k": start.top_k, "threshold": start.threshold, "coverage": start.coverage}
        options |= to_label_options(start)
        rate = OPUS_RATE if start.encoding == "opus" else start.sampling_rate
        # In a thread, since it may encode candidate labels.
        stream = await loop.run_in_executor(executor, partial(EmotionStream, service.predictor, rate, **options))
    except ValueError as error:
        raise StreamError(error) from error
    await socket.send_json({"type": "ready", "latency_s": stream.latency_seconds})
    seconds, num_words = 0.0, 0
    while True:
        message = await _receive(socket, settings.idle_s)
        samples, words = np.zeros(0, np.float32), None
        try:
            if isinstance(message, bytes):
                samples = decode(message)
                seconds += samples.shape[-1] / rate
            else:
                parsed = _parse(MESSAGES, message)
                if isinstance(parsed, StreamEnd):
                    break
                words = [tuple(word) for word in parsed.word_times]
                num_words += len(words)
            if num_words > SPARE_WORDS + WORDS_PER_SECOND * seconds:
                raise StreamError(
                    f"{num_words} words are too many for {seconds:.1f} s of audio; send words after their audio."
                )
            if seconds > settings.max_recording_s:
                raise StreamError(
                    f"The stream is longer than {settings.max_recording_s:g} s; start a new one.", POLICY_VIOLATION
                )
            segments = await loop.run_in_executor(executor, stream.feed, samples, words)
        except ValueError as error:
            raise StreamError(error) from error
        for segment in segments:
            await socket.send_json({"type": "segment", **segment})
    for segment in await loop.run_in_executor(executor, stream.flush):
        await socket.send_json({"type": "segment", **segment})
    await end(socket, {"type": "end", "duration": seconds}, NORMAL)


async def _receive(socket: WebSocket, seconds: float) -> bytes | str:
    try:
        async with asyncio.timeout(seconds):
            message = await socket.receive()
    except TimeoutError as error:
        raise StreamError(f"No message arrived for {seconds:g} s.", POLICY_VIOLATION) from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    content: bytes | str = message["text"] if message.get("bytes") is None else message["bytes"]
    size = len(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
    if size > STREAM_MESSAGE_BYTES:  # behind a server without this limit
        raise StreamError(
            f"A message has {size} bytes; send at most {STREAM_MESSAGE_BYTES // 1024} KiB in one message.", TOO_BIG
        )
    return content


def _parse(adapter: TypeAdapter, message: bytes | str) -> Any:
    if isinstance(message, bytes):
        raise StreamError('The first message must describe the audio: {"encoding": "pcm_s16le", ...}.')
    try:
        check_json(message.encode(errors="surrogatepass"), MAX_VALUES, MAX_FIELDS)
        return adapter.validate_json(message, strict=True)
    except ValidationError as error:
        raise StreamError(f"The message is invalid: {first_error(error, whole='the message')}") from error
    except ValueError as error:
        raise StreamError(error) from error


def _decoder(start: StreamStart) -> Decode:
    """Returns a function that decodes one message to float32 mono samples of shape `(samples,)`."""
    if start.encoding == "opus":
        return _OpusDecoder(start.channels)
    return PcmDecoder(start.encoding, start.channels)


class _OpusDecoder:
    """
    Decodes Opus packets, one in each message, at 48 kHz for every sampling rate of the source.

    Args:
        channels (`int`): Number of channels, which are averaged.

    Raises:
        ValueError: If PyAV is not installed.
    """

    def __init__(self, channels: int):
        try:
            import av
        except ModuleNotFoundError as error:
            raise ValueError("This service cannot decode Opus, because PyAV is not installed; send PCM.") from error
        self._av = av
        self._context = av.CodecContext.create("opus", "r")
        self._context.sample_rate = OPUS_RATE
        self._context.layout = "stereo" if channels == 2 else "mono"

    def __call__(self, message: bytes) -> np.ndarray:
        try:
            frames = self._context.decode(self._av.Packet(message)) if message else []
        except self._av.error.FFmpegError as error:
            raise ValueError("A message is not an Opus packet; send one packet each, without a container.") from error
        samples = [frame.to_ndarray().mean(axis=0) for frame in frames]
        return np.concatenate(samples) if samples else np.zeros(0, np.float32)


async def end(socket: WebSocket, message: dict[str, Any], code: int) -> None:
    """Sends the last message and closes the connection, unless the client has closed it."""
    try:
        await socket.send_text(json.dumps(message))
        await socket.close(code)
    except (RuntimeError, WebSocketDisconnect):
        return
