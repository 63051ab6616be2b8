"""Signals that end a job."""

import os
from collections.abc import Callable
from threading import Timer
from types import FrameType
from typing import Any


RETRY_SECONDS = 0.01

Handler = Callable[[int, FrameType | None], Any]


def outside_callbacks(handler: Handler) -> Handler:
    """
    Returns a signal handler that calls another one, which raises, but not within a callback of libsndfile.

    There the exception would be printed and lost, and the clip be read as if it were damaged. The signal is sent again
    until the callback has returned.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if is_in_callback(frame):
            Timer(RETRY_SECONDS, os.kill, (os.getpid(), number)).start()
        else:
            handler(number, frame)

    return handle


def is_in_callback(frame: FrameType | None) -> bool:
    """Whether soundfile reads from a Python object in a frame, or in one of its callers."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "soundfile" and frame.f_code.co_name.startswith("vio_"):
            return True
        frame = frame.f_back
    return False
