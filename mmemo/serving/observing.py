"""
Metrics for Prometheus, and a log line for each request.

Deliberate choices:
- A log line has the time, path, size, duration and status of a request; never its audio, its text or the prediction.
- For an unexpected error the log has its class and its stack, but not its message, which might quote the user.
"""

import json
import logging
import sys
import time
import traceback
import uuid
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers


logger = logging.getLogger("mmemo.serving")

# Loggers of the modules that read items.
ITEM_LOGGERS = ("mmemo.audio", "mmemo.words", "mmemo.timeline", "mmemo.video", "mmemo.items")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one service. Subclasses report them elsewhere, by other classes with the same methods."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.seconds = self.histogram(
            "mmemo_request_seconds",
            "Time from the first byte of a request to the last byte of its response",
            SECONDS,
            ("path", "status"),
        )
        self.batch_size = self.histogram("mmemo_batch_size", "Items per inference", BATCH_SIZES)
        self.rejects = self.counter("mmemo_rejects", "Rejected requests and streams", ("reason",))
        self.streams = self.gauge("mmemo_streams", "Open live streams")
        self.waiting = self.gauge("mmemo_queue_depth", "Items waiting for inference")
        self.requests = self.gauge("mmemo_requests_in_flight", "Requests in progress or waiting")
        self.pending = self.gauge("mmemo_pending_bytes", "Bytes of requests in flight")

    def histogram(self, name: str, description: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Any:
        return Histogram(name, description, labels, buckets=buckets, registry=self.registry)

    def counter(self, name: str, description: str, labels: Sequence[str] = ()) -> Any:
        return Counter(name, description, labels, registry=self.registry)

    def gauge(self, name: str, description: str) -> Any:
        return Gauge(name, description, registry=self.registry)

    def exposition(self) -> bytes:
        """Returns the metrics in the format of Prometheus."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["trace"] = [f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in _frames(record.exc_info)]
        return json.dumps(line)


def _frames(exc_info: Any) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(exc_info[2])


def _is_wanted(record: logging.LogRecord) -> bool:
    """Drops uvicorn's records of connections, which have addresses and queries, and of errors logged by `app`."""
    return "WebSocket" not in record.msg and not record.msg.startswith("Exception in ASGI application")


def _is_free_of_user_text(record: logging.LogRecord) -> bool:
    """Excludes warnings about items, which may quote text of the user."""
    return record.levelno >= logging.ERROR or not record.name.startswith(ITEM_LOGGERS)


def configure_logging() -> None:
    """Writes all logs of the process to standard error as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(_is_free_of_user_text)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("uvicorn.error").addFilter(_is_wanted)


class Observe:
    """
    ASGI middleware that measures and logs each request, and adds its `X-Request-Id`.

    Args:
        app: The ASGI application.
        metrics ([`Metrics`]): The metrics to update.
        paths (`frozenset[str]`): Paths that are reported by name; all others are reported as `other`.
        id_header (`str`, *optional*):
            Header with the id that a proxy has given to the request, and returns itself; by default each request gets
            a new id.
    """

    def __init__(self, app: Any, metrics: Metrics, paths: frozenset[str], id_header: str | None = None):
        self.app = app
        self.metrics = metrics
        self.paths = paths
        self.id_header = id_header

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, received = time.perf_counter(), 500, 0
        given_id = None if self.id_header is None else Headers(scope=scope).get(self.id_header)
        request_id = uuid.uuid4().hex[:12] if given_id is None else given_id

        async def receive_and_count() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def send_with_id(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if given_id is None:
                    message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive_and_count, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            path = path if path in self.paths else "other"
            self.metrics.seconds.labels(path, str(status)).observe(seconds)
            facts = {
                "id": request_id,
                "method": scope["method"],
                "path": path,
                "status": status,
                "seconds": round(seconds, 4),
                "bytes": received,
            }
            logger.info("request", extra={"facts": facts})
