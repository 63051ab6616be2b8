"""
A predictor, who waits for it, and for how long.

Deliberate choices:
- Clips and timelines have places of their own, so that an hour of sound never keeps a sentence waiting.
- Who gets no place is told at once, and when to come again.
"""

import asyncio
import math
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Semaphore
from typing import Any

from starlette.exceptions import HTTPException

from mmemo.runtime.predictor import EmotionPredictor
from mmemo.serving.batching import OutOfTimeError, QueuedPredictor, until
from mmemo.serving.limits import PendingBytes, check_sound
from mmemo.serving.observing import Metrics
from mmemo.serving.settings import ServiceSettings


# Clips that are decoded at once: each may take several times `max_decoded_mib`.
DECODERS = 2


class Places:
    """So many things may be done at once, and their rate is known."""

    def __init__(self, limit: int):
        self.limit = limit
        self.taken = 0
        self._mean_seconds = 0.1

    def take(self) -> bool:
        if self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    def give_back(self, seconds: float) -> None:
        self.taken -= 1
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def retry_after(self, workers: int) -> int:
        """When there should be room again, in seconds."""
        return min(max(1, math.ceil(self.taken * self._mean_seconds / workers)), 60)


class Service:
    """
    A predictor, and who waits for it.

    Args:
        settings ([`ServiceSettings`]): What it may be asked.
    """

    def __init__(self, settings: ServiceSettings):
        self.settings = settings
        self.metrics = Metrics()
        self.pending = PendingBytes(settings.max_pending_bytes)
        self.predictor = QueuedPredictor(
            settings.model,
            settings.revision,
            settings.workers,
            settings.max_batch_size,
            self.metrics.batch_size.observe,
        )
        self.clips, self.recordings = Places(settings.max_waiting), Places(settings.max_recordings)
        self.open_streams = Places(settings.max_streams)
        # Who is about to be answered decodes meanwhile.
        threads = settings.workers * (self.predictor.max_batch_size + 1)
        self._clip_threads = ThreadPoolExecutor(threads, "mmemo-clip")
        self._recording_threads = ThreadPoolExecutor(settings.max_recordings, "mmemo-recording")
        self.stream_threads = ThreadPoolExecutor(settings.max_streams, "mmemo-stream")
        self._decoders = Semaphore(DECODERS)
        self.metrics.pending.set_function(lambda: self.pending.count)
        self.metrics.waiting.set_function(lambda: len(self.predictor.batcher))
        self.metrics.requests.set_function(lambda: self.clips.taken + self.recordings.taken)
        self.metrics.streams.set_function(lambda: self.open_streams.taken)

    def close(self) -> None:
        """Ends all threads. Nobody waits any more for what is still in flight then."""
        self.predictor.stop()
        for executor in (self._clip_threads, self._recording_threads, self.stream_threads):
            executor.shutdown(cancel_futures=True)

    def check_key(self, given: str) -> bool:
        """Whether an API key is right, in a time that says nothing of how nearly."""
        keys = self.settings.api_keys
        matches = [secrets.compare_digest(given.encode(), key.encode()) for key in keys]
        return not keys or any(matches)

    def refused(self, reason: str) -> None:
        self.metrics.rejects.labels(reason).inc()

    async def answer(self, items: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any] | ValueError]:
        """
        The answers for the items of one request, when it is its turn, or what is wrong with an item.

        Raises:
            HTTPException: If too many requests wait, or it takes too long.
        """
        is_recording = options["return_timeline"]
        places = self.recordings if is_recording else self.clips
        if not places.take():
            self.refused("recordings" if is_recording else "queue")
            raise HTTPException(
                503,
                f"{places.limit} {'timelines are being made' if is_recording else 'requests wait'} already; try again "
                "later.",
                {"Retry-After": str(places.retry_after(self.settings.workers))},
            )
        started = time.monotonic()
        executor = self._recording_threads if is_recording else self._clip_threads
        shares = 1 if is_recording else min(len(items), self.settings.workers * self.predictor.max_batch_size)
        future = asyncio.gather(
            *(
                asyncio.get_running_loop().run_in_executor(
                    executor, self._answer_all, items[share::shares], options, started + self.settings.timeout_s
                )
                for share in range(shares)
            )
        )
        # Who gives up waiting leaves the work behind, until it finds that its time is up.
        future.add_done_callback(lambda _: places.give_back(time.monotonic() - started))
        try:
            found = await asyncio.wait_for(asyncio.shield(future), self.settings.timeout_s)
        except (TimeoutError, OutOfTimeError) as error:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            self.refused("timeout")
            raise HTTPException(
                503,
                f"There was no answer within {self.settings.timeout_s:g} s; send less, or try again later.",
                {"Retry-After": str(places.retry_after(self.settings.workers))},
            ) from error
        return [found[index % shares][index // shares] for index in range(len(items))]

    def _answer_all(self, items: list[dict], options: dict[str, Any], deadline: float) -> list[dict | ValueError]:
        answers: list[dict | ValueError] = []
        with until(deadline):
            for item in items:
                try:
                    answers.append(self._answer(item, **options))
                except ValueError as error:
                    answers.append(error)
        return answers

    def _answer(
        self, item: dict[str, Any], return_timeline: bool, channel: int | None = None, **options: Any
    ) -> dict[str, Any]:
        audio = item.get("audio")
        if audio is not None:
            with self._decoders:
                check_sound(audio, self.settings, return_timeline)
        if return_timeline:
            return self.predictor.predict_timeline(item, channel=channel, **options)
        find_voice = options.get("threshold") is not None or options.get("coverage") is not None
        with self._decoders if audio is not None else nullcontext():
            prepared = self.predictor.prepare(item, channel, find_voice)
        answer = self.predictor.predict_item(prepared, return_modality_weights=True, **options)
        return {"label": answer["scores"][0]["label"], **answer}


def warm_up(predictor: EmotionPredictor) -> None:
    """Runs the model once on each modality that it has."""
    if "text" in predictor.answers.modalities:
        predictor(text="Hello.")
    if "audio" in predictor.answers.modalities:
        rate = predictor.processor.feature_extractor.sampling_rate
        predictor([math.sin(index) for index in range(rate)])
