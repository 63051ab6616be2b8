"""Memory returns to the system."""

import asyncio
import gc
import subprocess
import sys

import pytest

from mmemo.serving import memory


pytestmark = pytest.mark.skipif(not memory.IS_GLIBC, reason="needs glibc")


def test_garbage_is_released():
    """In a process of its own, whose memory nothing else changes."""
    code = """
import gc
from mmemo.serving.memory import _resident_bytes, release_memory
gc.disable()
before = _resident_bytes()
lists = [[bytes(1000)] for _ in range(50_000)]
for entry in lists:
    entry.append(entry)  # a cycle, which only the collector frees
taken = _resident_bytes() - before
del lists, entry
release_memory()
print(taken, _resident_bytes() - before)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    taken, left = map(int, output.split())

    assert taken > 40 * memory.MIB and left < 10 * memory.MIB


def test_memory_is_released_once_the_process_is_idle(monkeypatch):
    sizes, released, is_idle = [100 * memory.MIB], [], False
    monkeypatch.setattr(memory, "INTERVAL_S", 0.001)
    monkeypatch.setattr(memory, "_resident_bytes", lambda: sizes[-1])
    monkeypatch.setattr(memory, "release_memory", lambda: released.append(sizes.append(100 * memory.MIB)))

    async def run():
        nonlocal is_idle
        task = asyncio.create_task(memory.keep_small(lambda: is_idle))
        await asyncio.sleep(0.02)
        sizes.append(110 * memory.MIB)
        await asyncio.sleep(0.02)
        sizes.append(200 * memory.MIB)
        await asyncio.sleep(0.02)
        assert not released
        is_idle = True
        while not released:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        task.cancel()

    try:
        asyncio.run(run())
    finally:
        gc.unfreeze()

    assert len(released) == 1
