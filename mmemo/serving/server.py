"""Runs the service until it receives SIGTERM or SIGINT."""

import ctypes
import logging
import platform
import signal
import sys

import uvicorn

from mmemo.serving.app import create_app
from mmemo.serving.connections import LingeringH11Protocol
from mmemo.serving.observing import configure_logging
from mmemo.serving.settings import MIB, ServiceSettings, environment_warnings


logger = logging.getLogger("mmemo.serving")

# Maximum size of a WebSocket message. uvicorn stops reading while a message waits for the service.
STREAM_MESSAGE_BYTES = 2**18
# Parameters of glibc's `mallopt`.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8


def serve(settings: ServiceSettings) -> None:
    """
    Serves until SIGTERM or SIGINT, then completes the requests in flight within `shutdown_s`.

    Args:
        settings ([`ServiceSettings`]): The settings of the service.

    Raises:
        FileNotFoundError, ImportError, ValueError: If the model cannot be loaded; see [`EmotionPredictor`].
    """
    _limit_memory_pools()
    configure_logging()
    for warning in environment_warnings():
        logger.warning(warning)
    # uvicorn raises the signal again after a regular shutdown; the exit status is 0 nevertheless.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=round(settings.shutdown_s),
        http=LingeringH11Protocol,
        ws="websockets-sansio",
        ws_max_size=STREAM_MESSAGE_BYTES,
        server_header=False,
    )


def _limit_memory_pools() -> None:
    """
    Makes all threads share two glibc memory pools and allocates large blocks with `mmap`, which returns them to the
    system when they are freed. By default glibc gives threads pools of their own, which keep the memory of a large
    request.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_MMAP_THRESHOLD, 4 * MIB)
