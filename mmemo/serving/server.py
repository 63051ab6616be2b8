"""Runs the service until it is told to stop."""

import signal
import sys

import uvicorn

from mmemo.serving.app import create_app
from mmemo.serving.observing import configure_logging
from mmemo.serving.settings import ServiceSettings


# A stream holds at most so many messages of such a size, beside what the network does.
STREAM_MESSAGE_BYTES, STREAM_MESSAGES = 2**18, 8


def serve(settings: ServiceSettings) -> None:
    """
    Serves until SIGTERM or SIGINT; what is in flight then is answered.

    Args:
        settings ([`ServiceSettings`]): What is served, where, and how much of it.

    Raises:
        FileNotFoundError, ImportError, ValueError: If there is no model to run; see [`EmotionPredictor`].
    """
    configure_logging()
    # Where uvicorn has stopped in good order, it raises the signal once more.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=round(settings.shutdown_s),
        ws_max_size=STREAM_MESSAGE_BYTES,
        ws_max_queue=STREAM_MESSAGES,
        server_header=False,
    )
