"""Batches form under load, and an error reaches only the job that caused it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmemo.items import PreparedItem
from mmemo.serving.batching import Batcher


def submit(values):
    """
    Submits values to one worker: the others wait while the first one runs. Returns the result or the error for each
    value, and the sizes of the batches.
    """
    sizes, is_running, may_run = [], threading.Event(), threading.Event()

    def run(items):
        is_running.set()
        may_run.wait()
        values = [int(item.text) for item in items]
        if min(values) < 0:
            raise RuntimeError(f"failed with {len(items)} items")
        return {"doubled": np.array([2 * value for value in values])}

    batcher = Batcher(run, workers=1, max_batch_size=4, observe=sizes.append)
    with ThreadPoolExecutor(len(values)) as pool:
        futures = [pool.submit(batcher.submit, [PreparedItem(text=str(values[0]))])]
        is_running.wait()
        futures += [pool.submit(batcher.submit, [PreparedItem(text=str(value))]) for value in values[1:]]
        while len(batcher) < len(values) - 1:
            time.sleep(0.001)
        may_run.set()
    batcher.close()
    return [str(future.exception() or future.result()["doubled"].item()) for future in futures], sizes


def test_waiting_items_share_a_batch():
    assert submit([0, 1, 2, 3, 4, 5]) == (["0", "2", "4", "6", "8", "10"], [1, 4, 1])


def test_an_item_that_fails_does_not_fail_its_neighbours():
    results, sizes = submit([0, 1, -1, 2])

    assert results == ["0", "2", "failed with 1 items", "4"]
    assert sizes == [1, 3, 1, 1, 1]


def test_a_closed_batcher_rejects_items():
    batcher = Batcher(lambda items: {}, workers=1, max_batch_size=1)
    batcher.close()

    with pytest.raises(RuntimeError, match="shutting down"):
        batcher.submit([PreparedItem(text="1")])
