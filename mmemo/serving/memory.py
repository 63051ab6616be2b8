"""
Returns memory to the system.

Deliberate choices:
- All threads share two memory pools of glibc. By default threads have pools of their own, which keep the memory of a
  large request.
- When no request is in progress and the process has grown, garbage is collected and free memory is returned. Otherwise
  what a request has taken between two small objects that live longer stays with the process.
"""

import asyncio
import ctypes
import gc
import os
import platform
from collections.abc import Callable
from pathlib import Path

from mmemo.serving.settings import MIB


# Parameters of glibc's `mallopt`.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
IS_GLIBC = platform.libc_ver()[0] == "glibc"
# Seconds between two looks at the size of the process, and the growth from which memory is returned.
INTERVAL_S, GROWTH_BYTES = 0.5, 16 * MIB


def limit_memory_pools() -> None:
    """
    Makes all threads share two glibc memory pools and allocates large blocks with `mmap`, which returns them to the
    system when they are freed.
    """
    if IS_GLIBC:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_MMAP_THRESHOLD, 4 * MIB)


def release_memory() -> None:
    """Collects garbage, such as the frames of an exception, and returns free memory to the system."""
    gc.collect()
    if IS_GLIBC:
        ctypes.CDLL(None).malloc_trim(0)


async def keep_small(is_idle: Callable[[], bool]) -> None:
    """
    Returns memory whenever the process is idle and has grown; runs until it is cancelled. Does nothing without glibc.

    Args:
        is_idle (`Callable[[], bool]`): Whether no request is in progress.
    """
    if not IS_GLIBC:
        return
    # What lives as long as the process needs no more looks of the collector.
    gc.collect()
    gc.freeze()
    usual = _resident_bytes()
    while True:
        await asyncio.sleep(INTERVAL_S)
        now = _resident_bytes()
        if now < usual + GROWTH_BYTES:
            usual = min(usual, now)
        elif is_idle():
            await asyncio.to_thread(release_memory)
            usual = _resident_bytes()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
