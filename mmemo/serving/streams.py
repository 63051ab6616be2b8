"""
A live stream: sound goes in as binary messages, segments come out as JSON as soon as they can be known.

The client's first message says what comes ([`StreamStart`]). Then binary messages are sound (of Opus, a packet each),
and text messages are words with their times ([`StreamWords`]) or say that nothing follows ([`StreamEnd`]). The service
says `{"type": "ready"}`, then `{"type": "segment", ...}`, and at last `{"type": "end"}` or `{"type": "error"}`.
"""

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import TypeAdapter, ValidationError

from mmemo.serving.schemas import StreamEnd, StreamStart, StreamWords
from mmemo.serving.service import Service
from mmemo.timeline.streaming import EmotionStream


POLICY_VIOLATION, BAD_DATA, TRY_AGAIN_LATER, INTERNAL_ERROR = 1008, 1007, 1013, 1011
OPUS_RATE = 48_000
# More words than can be said would be kept until their time comes.
WORDS_PER_SECOND, SPARE_WORDS = 20, 500
# How long a client may take to say what comes: until then it has no place.
START_SECONDS = 10.0
MESSAGES: TypeAdapter[StreamWords | StreamEnd] = TypeAdapter(StreamWords | StreamEnd)

Decode = Callable[[bytes], np.ndarray]


class RefusedError(Exception):
    """A stream that is ended by the service, with a sentence and a code of RFC 6455."""

    def __init__(self, sentence: str, code: int = BAD_DATA):
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code


async def follow(socket: WebSocket, service: Service) -> None:
    """
    Follows one live stream to its end.

    Args:
        socket (`WebSocket`): Accepted already.
        service ([`Service`]): What answers.
    """
    try:
        start = _read(TypeAdapter(StreamStart), await _receive(socket, min(service.settings.idle_s, START_SECONDS)))
        if not service.check_key(start.api_key or socket.headers.get("authorization", "").removeprefix("Bearer ")):
            service.refused("key")
            raise RefusedError("The API key is missing or wrong.", POLICY_VIOLATION)
        if not service.open_streams.take():
            service.refused("streams")
            raise RefusedError(
                f"{service.open_streams.limit} streams are open already; try again later.", TRY_AGAIN_LATER
            )
        try:
            await _follow(socket, start, service)
        finally:
            service.open_streams.give_back(0.0)
    except WebSocketDisconnect:
        return
    except RefusedError as refusal:
        await end(socket, {"type": "error", "detail": refusal.sentence}, refusal.code)


async def _follow(socket: WebSocket, start: StreamStart, service: Service) -> None:
    loop, executor, settings = asyncio.get_running_loop(), service.stream_threads, service.settings
    try:
        decode = _decoder(start)
        options = {"top_k": start.top_k, "threshold": start.threshold, "coverage": start.coverage}
        rate = OPUS_RATE if start.encoding == "opus" else start.sampling_rate
        stream = EmotionStream(service.predictor, rate, **options)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    await socket.send_json({"type": "ready", "latency_s": stream.latency_seconds})
    seconds, num_words = 0.0, 0
    while True:
        message = await _receive(socket, settings.idle_s)
        chunk, words = np.zeros(0, np.float32), None
        try:
            if isinstance(message, bytes):
                chunk = decode(message)
                seconds += chunk.shape[-1] / rate
            else:
                parsed = _read(MESSAGES, message)
                if isinstance(parsed, StreamEnd):
                    break
                words = [tuple(word) for word in parsed.word_times]
                num_words += len(words)
            if num_words > SPARE_WORDS + WORDS_PER_SECOND * seconds:
                raise RefusedError(f"{num_words} words came with {seconds:.1f} s of sound; nobody speaks so fast.")
            if seconds > settings.max_recording_s:
                raise RefusedError(
                    f"The stream lasts more than {settings.max_recording_s:g} s; begin a new one.", POLICY_VIOLATION
                )
            segments = await loop.run_in_executor(executor, stream.feed, chunk, words)
        except ValueError as error:
            raise RefusedError(str(error)) from error
        for segment in segments:
            await socket.send_json({"type": "segment", **segment})
    for segment in await loop.run_in_executor(executor, stream.flush):
        await socket.send_json({"type": "segment", **segment})
    await end(socket, {"type": "end", "duration": seconds}, 1000)


async def _receive(socket: WebSocket, seconds: float) -> bytes | str:
    try:
        async with asyncio.timeout(seconds):
            message = await socket.receive()
    except TimeoutError as error:
        raise RefusedError(f"Nothing came for {seconds:g} s.", POLICY_VIOLATION) from error
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    content = message.get("bytes")
    return message["text"] if content is None else content


def _read(adapter: TypeAdapter, message: bytes | str) -> Any:
    if isinstance(message, bytes):
        raise RefusedError('Sound comes before its description; say first what it is: {"encoding": "pcm_s16le", ...}.')
    try:
        return adapter.validate_json(message)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RefusedError(f"The message is not what it must be: {place}: {first['msg']}.") from error


def _decoder(start: StreamStart) -> Decode:
    """What turns messages into samples, `(samples,)` or `(channels, samples)`."""
    if start.encoding == "opus":
        return _OpusDecoder(start.channels)
    return _PcmDecoder(start.encoding, start.channels)


class _PcmDecoder:
    """PCM or G.711, interleaved; a message may end within a sample."""

    TYPES = {"pcm_s16le": ("<i2", "PCM_16"), "pcm_f32le": ("<f4", "FLOAT"), "mulaw": ("u1", "ULAW")}

    def __init__(self, encoding: str, channels: int):
        kind, self._subtype = self.TYPES[encoding]
        self._channels = channels
        self._frame_bytes = np.dtype(kind).itemsize * channels
        self._rest = b""

    def __call__(self, message: bytes) -> np.ndarray:
        import soundfile

        data = self._rest + message
        whole = len(data) // self._frame_bytes * self._frame_bytes
        self._rest = data[whole:]
        if not whole:
            return np.zeros(0, np.float32)
        samples, _ = soundfile.read(
            io.BytesIO(data[:whole]),
            dtype="float32",
            always_2d=True,
            format="RAW",
            subtype=self._subtype,
            endian="LITTLE",
            samplerate=OPUS_RATE,
            channels=self._channels,
        )
        return samples.mean(axis=1)


class _OpusDecoder:
    """Opus, a packet a message, as WebRTC sends it. Whatever it was made of, it decodes at 48 kHz."""

    def __init__(self, channels: int):
        try:
            import av
        except ModuleNotFoundError as error:
            raise ValueError("This service was installed without PyAV, which decodes Opus; send PCM.") from error
        self._av = av
        self._context = av.CodecContext.create("opus", "r")
        self._context.sample_rate = OPUS_RATE
        self._context.layout = "stereo" if channels == 2 else "mono"

    def __call__(self, message: bytes) -> np.ndarray:
        try:
            frames = self._context.decode(self._av.Packet(message)) if message else []
        except self._av.error.FFmpegError as error:
            raise ValueError("A message is no packet of Opus; send one a message, without a container.") from error
        samples = [frame.to_ndarray().mean(axis=0) for frame in frames]
        return np.concatenate(samples) if samples else np.zeros(0, np.float32)


async def end(socket: WebSocket, message: dict[str, Any], code: int) -> None:
    """Says a last word and closes, if the other side still listens."""
    try:
        await socket.send_text(json.dumps(message))
        await socket.close(code)
    except (RuntimeError, WebSocketDisconnect):
        return
