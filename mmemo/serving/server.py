"""Runs the service until it is told to stop."""

import ctypes
import platform
import signal
import sys

import uvicorn

from mmemo.serving.app import create_app
from mmemo.serving.observing import configure_logging
from mmemo.serving.settings import MIB, ServiceSettings


# A stream holds at most so many messages of such a size, beside what the network does.
STREAM_MESSAGE_BYTES, STREAM_MESSAGES = 2**18, 8


# Numbers of parameters of glibc's `mallopt`.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8


def serve(settings: ServiceSettings) -> None:
    """
    Serves until SIGTERM or SIGINT; what is in flight then is answered.

    Args:
        settings ([`ServiceSettings`]): What is served, where, and how much of it.

    Raises:
        FileNotFoundError, ImportError, ValueError: If there is no model to run; see [`EmotionPredictor`].
    """
    _share_memory()
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


def _share_memory() -> None:
    """
    Has all threads take memory from the same two pools, and what is large from the system, to which it goes back. By
    itself glibc has a pool for every thread, each of which keeps what a large request took.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_MMAP_THRESHOLD, 4 * MIB)
