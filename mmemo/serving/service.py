"""
The predictor of the service, its queues, and its limits on concurrent work.

Deliberate choices:
- Clips, videos and timelines have separate limits and threads, so that a long recording does not delay short
  requests.
- Apart from timelines, as many videos are decoded at once as there are workers: each keeps a core busy and holds
  decoded frames.
- A request over a limit is rejected at once, with the time after which to retry.
"""

import asyncio
import math
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from threading import Semaphore
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from mmemo.runtime.predictor import EmotionPredictor
from mmemo.serving.batching import OutOfTimeError, QueuedPredictor, until
from mmemo.serving.limits import PendingBytes, check_audio, check_duration, check_turns, open_limited_video
from mmemo.serving.observing import Metrics
from mmemo.serving.settings import ServiceSettings
from mmemo.timeline.windows import LABEL_OPTIONS
from mmemo.video.landmarks import load_landmarker


# Number of clips decoded at the same time: each may take some 100 MB.
DECODERS = 2


class Slots:
    """
    A limit on concurrent work, with an estimate of its duration.

    Args:
        limit (`int`): Number of slots.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.taken = 0
        self._mean_seconds = 0.1

    def take(self) -> bool:
        """Takes a slot and returns `True`, or returns `False` if none is free."""
        if self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    def give_back(self, seconds: float) -> None:
        """Frees a slot that was taken for `seconds`."""
        self.taken -= 1
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    def retry_after(self, workers: int) -> int:
        """Returns the seconds after which a slot should be free, 1 to 60."""
        return min(max(1, math.ceil(self.taken * self._mean_seconds / workers)), 60)


class Service:
    """
    A predictor, its queues, its threads and its metrics.

    Args:
        settings ([`ServiceSettings`]): The model and the limits.
        metrics ([`Metrics`], *optional*): The metrics to update; by default for Prometheus.

    Raises:
        FileNotFoundError, ImportError, ValueError: If the model cannot be loaded; see [`EmotionPredictor`].
    """

    def __init__(self, settings: ServiceSettings, metrics: Metrics | None = None):
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.pending = PendingBytes(settings.max_pending_bytes)
        self.predictor = QueuedPredictor(
            settings.model,
            settings.revision,
            settings.workers,
            settings.max_batch_size,
            self.metrics.batch_size.observe,
        )
        self.clips, self.recordings = Slots(settings.max_waiting), Slots(settings.max_recordings)
        self.videos = Slots(settings.max_videos)
        self.open_streams = Slots(settings.max_streams)
        # One more than the workers need, to decode the next clip during an inference.
        threads = settings.workers * (self.predictor.max_batch_size + 1)
        self._clip_threads = ThreadPoolExecutor(threads, "mmemo-clip")
        self._video_threads = ThreadPoolExecutor(settings.workers, "mmemo-video")
        self._recording_threads = ThreadPoolExecutor(settings.max_recordings, "mmemo-recording")
        self.stream_threads = ThreadPoolExecutor(settings.max_streams, "mmemo-stream")
        self._decoders = Semaphore(DECODERS)
        self.metrics.pending.set_function(lambda: self.pending.count)
        self.metrics.waiting.set_function(lambda: len(self.predictor.batcher))
        self.metrics.requests.set_function(lambda: self.taken)
        self.metrics.streams.set_function(lambda: self.open_streams.taken)

    @property
    def taken(self) -> int:
        """Number of requests in progress or waiting."""
        return self.clips.taken + self.videos.taken + self.recordings.taken

    def close(self) -> None:
        """Ends all threads and drops work that is still in progress."""
        self.predictor.stop()
        for executor in (self._clip_threads, self._video_threads, self._recording_threads, self.stream_threads):
            executor.shutdown(cancel_futures=True)

    def check_key(self, headers: Headers, key: str | None = None) -> bool:
        """
        Checks an API key in constant time.

        Args:
            headers (`Headers`): Of the request; the key is expected as `Authorization: Bearer KEY`.
            key (`str`, *optional*): A key from elsewhere in the request, which overrides the header.
        """
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        given = key or (credentials.strip() if scheme.lower() == "bearer" else "")
        valid = self.settings.api_keys
        matches = [secrets.compare_digest(given.encode(), one.encode()) for one in valid]
        if valid and not any(matches):
            self.rejected("key")
            return False
        return True

    def is_idle(self) -> bool:
        """Whether no request is arriving or in progress."""
        return self.taken + self.pending.count == 0

    def rejected(self, reason: str) -> None:
        """Counts a rejected request or stream."""
        self.metrics.rejects.labels(reason).inc()

    async def predict(self, items: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any] | Exception]:
        """
        Predicts the items of one request.

        Returns:
            `list`: for each item its prediction, or the exception that it raised.

        Raises:
            HTTPException: If too many requests are in progress, or the request exceeds its time limit.
        """
        is_recording = options["return_timeline"]
        if is_recording:
            slots, executor, reason, what = self.recordings, self._recording_threads, "recordings", "timelines"
        elif any("video" in item for item in items):
            slots, executor, reason, what = self.videos, self._video_threads, "videos", "requests with videos"
        else:
            slots, executor, reason, what = self.clips, self._clip_threads, "queue", "requests"
        if not slots.take():
            self.rejected(reason)
            raise self._unavailable(f"{slots.limit} {what} are in progress; try again later.", slots)
        started = time.monotonic()
        shares = 1 if is_recording else min(len(items), self.settings.workers * self.predictor.max_batch_size)
        future = asyncio.gather(
            *(
                asyncio.get_running_loop().run_in_executor(
                    executor, self._predict_all, items[share::shares], options, started + self.settings.timeout_s
                )
                for share in range(shares)
            )
        )
        # After a timeout the threads go on until their next inference, and hold the slot until then.
        future.add_done_callback(lambda _: slots.give_back(time.monotonic() - started))
        try:
            found = await asyncio.wait_for(asyncio.shield(future), self.settings.timeout_s)
        except (TimeoutError, OutOfTimeError) as error:
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            self.rejected("timeout")
            raise self._unavailable(
                f"The request took more than {self.settings.timeout_s:g} s; send less, or try again later.", slots
            ) from error
        return [found[index % shares][index // shares] for index in range(len(items))]

    def _unavailable(self, detail: str, slots: Slots) -> HTTPException:
        return HTTPException(503, detail, {"Retry-After": str(slots.retry_after(self.settings.workers))})

    def _predict_all(
        self, items: list[dict[str, Any]], options: dict[str, Any], deadline: float
    ) -> list[dict[str, Any] | Exception]:
        predictions: list[dict[str, Any] | Exception] = []
        with until(deadline):
            for item in items:
                try:
                    predictions.append(self._predict(item, **options))
                except OutOfTimeError:
                    raise
                except Exception as error:  # of any type: the other items of the request are not affected
                    predictions.append(error)
        return predictions

    def _predict(
        self,
        item: dict[str, Any],
        return_timeline: bool,
        channel: int | None = None,
        face: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        labels = {name: options.pop(name) for name in LABEL_OPTIONS if name in options}
        recognition = self.predictor.with_labels(**labels)
        if "speaker_turns" in options:
            check_turns(options["speaker_turns"], self.settings)
        # Otherwise the predictor raises.
        if "video" in item and "video" in self.predictor.answers.modalities:
            item = item | self._follow_face(item, face)
            face = None
        audio = item.get("audio")
        if audio is not None:
            with self._decoders:
                check_audio(audio, self.settings, return_timeline)
        elif return_timeline and item.get("word_times"):
            check_duration(item["word_times"], self.settings)
        if return_timeline:
            return recognition.predict_timeline(item, channel=channel, face=face, **options)
        with self._decoders if audio is not None else nullcontext():
            prepared = recognition.prepare(item, channel, face)
        prediction = recognition.predict_item(prepared, return_modality_weights=True, **options)
        return {"label": prediction["scores"][0]["label"], **prediction}

    def _follow_face(self, item: dict[str, Any], face: int | None) -> dict[str, Any]:
        """Returns the face in the video of an item and, unless the item has `audio`, the sound of the video."""
        video = open_limited_video(item["video"], self.settings)
        has_sound = "audio" not in item and video.sound is not None and "audio" in self.predictor.answers.modalities
        sequence = self.predictor.processor.load_video(video, face=face)
        return {"video": sequence, **({"audio": video.sound} if has_sound else {})}


def warm_up(predictor: EmotionPredictor) -> None:
    """Runs the model once with audio and once with text, and loads the models that find faces."""
    if "text" in predictor.answers.modalities:
        predictor(text="Hello.")
    if "audio" in predictor.answers.modalities:
        rate = predictor.processor.feature_extractor.sampling_rate
        predictor([math.sin(index) for index in range(rate)])
    if "video" in predictor.answers.modalities:
        load_landmarker()
