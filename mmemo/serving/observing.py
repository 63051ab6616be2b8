"""
What can be seen of a service: metrics for Prometheus, and a line of log for each request.

Deliberate choices:
- A line says when, what path, how large, how long, and which status; never what anybody said or asked.
- Of an error that nobody foresaw, the log has its kind and where it was raised. Its message might quote the user.
"""

import json
import logging
import sys
import time
import traceback
import uuid
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


logger = logging.getLogger("mmemo.serving")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one service."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "mmemo_request_seconds",
            "Time from the first byte of a request to the last one of its answer",
            ["path", "status"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "mmemo_batch_size", "Items that passed the model together", buckets=BATCH_SIZES, registry=self.registry
        )
        self.rejects = Counter(
            "mmemo_rejects", "Requests and streams that were refused", ["reason"], registry=self.registry
        )
        self.streams = Gauge("mmemo_streams", "Live streams", registry=self.registry)
        self.waiting = Gauge("mmemo_queue_depth", "Items that wait for the model", registry=self.registry)
        self.requests = Gauge("mmemo_requests_in_flight", "Requests that wait or are answered", registry=self.registry)
        self.pending = Gauge("mmemo_pending_bytes", "Bytes of requests in flight", registry=self.registry)


class JsonLines(logging.Formatter):
    """A JSON object a line."""

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


def _is_ours_to_tell(record: logging.LogRecord) -> bool:
    """Leaves out what uvicorn says of who connects, with which query, and of errors that are told already."""
    return "WebSocket" not in record.msg and not record.msg.startswith("Exception in ASGI application")


def configure_logging() -> None:
    """Has all logs of the process come as JSON lines, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("uvicorn.error").addFilter(_is_ours_to_tell)
    # Of what the package warns of, items are told; they may quote words.
    for name in ("mmemo.audio", "mmemo.words", "mmemo.timeline", "mmemo.items"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Observe:
    """ASGI middleware: a line and a measurement for each request."""

    def __init__(self, app: Any, metrics: Metrics, paths: frozenset[str]):
        self.app = app
        self.metrics = metrics
        self.paths = paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, received = time.perf_counter(), 500, 0
        request_id = uuid.uuid4().hex[:12]

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def told(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, counted, told)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"] if scope["path"] in self.paths else "other"
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
