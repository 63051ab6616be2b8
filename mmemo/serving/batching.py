"""
Runs the inferences of many requests on a few threads.

Deliberate choices:
- A worker takes the items that are waiting, up to a batch, and never waits for more: batches form only under load.
- `EmotionPredictor` runs the model only in `run`, so one queue serves clips, timelines and live streams.
- `run` blocks its caller until the result is there. Callers have threads of their own; the event loop never blocks.
- If a batch fails, each of its jobs runs again alone, so that an error reaches only the request that caused it.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Condition, Thread

import numpy as np

from mmemo.items import PreparedItem
from mmemo.runtime.predictor import EmotionPredictor


Outputs = dict[str, np.ndarray]
BATCH_SIZE = 8

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


class OutOfTimeError(Exception):
    """A request exceeded its time limit, or the service is stopping."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Sets the deadline of this thread, a value of `time.monotonic()`; see [`check_deadline`]."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def check_deadline() -> None:
    """Raises an [`OutOfTimeError`] if the deadline of this thread has passed; see [`until`]."""
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() > deadline:
        raise OutOfTimeError


@dataclass(eq=False)
class Job:
    """Items of one caller, which run in one batch, and the future of their outputs."""

    items: list[PreparedItem]
    outputs: Future = field(default_factory=Future)

    @property
    def has_segments(self) -> bool:
        return self.items[0].segment_times is not None


class Batcher:
    """
    Runs items in batches on worker threads.

    Args:
        run (`Callable`): Function from a list of items to arrays with a row for each item.
        workers (`int`): Number of threads.
        max_batch_size (`int`): Maximum number of items in a batch of several jobs. A larger job runs alone.
        observe (`Callable[[int], None]`, *optional*): Called with the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[list[PreparedItem]], Outputs],
        workers: int,
        max_batch_size: int,
        observe: Callable[[int], None] = lambda size: None,
    ):
        self._run = run
        self._max_batch_size = max_batch_size
        self._observe = observe
        self._waiting: deque[Job] = deque()
        self._changed = Condition()
        self._is_closed = False
        self._threads = [Thread(target=self._work, name=f"mmemo-{index}", daemon=True) for index in range(workers)]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Number of waiting items."""
        with self._changed:
            return sum(len(job.items) for job in self._waiting)

    def submit(self, items: list[PreparedItem]) -> Outputs:
        """
        Runs items and blocks until their outputs are there.

        Raises:
            RuntimeError: If the batcher is closed.
        """
        job = Job(items)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("The service is shutting down.")
            self._waiting.append(job)
            self._changed.notify()
        return job.outputs.result()

    def close(self) -> None:
        """Runs the waiting items and ends the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while jobs := self._next_batch():
            self._run_jobs(jobs)

    def _run_jobs(self, jobs: list[Job]) -> None:
        items = [item for job in jobs for item in job.items]
        self._observe(len(items))
        try:
            outputs = self._run(items)
        except Exception as error:  # of any type: the caller must receive it
            if len(jobs) == 1:
                jobs[0].outputs.set_exception(error)
            else:
                for job in jobs:
                    self._run_jobs([job])
            return
        first = 0
        for job in jobs:
            last = first + len(job.items)
            job.outputs.set_result({name: values[first:last] for name, values in outputs.items()})
            first = last

    def _next_batch(self) -> list[Job]:
        """Waits for jobs and returns those of the next batch; an empty list once the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if not self._waiting:
                return []
            jobs = [self._waiting.popleft()]
            size = len(jobs[0].items)
            while self._waiting:
                following = self._waiting[0]
                size += len(following.items)
                if size > self._max_batch_size or following.has_segments != jobs[0].has_segments:
                    break
                jobs.append(self._waiting.popleft())
            return jobs


class QueuedPredictor(EmotionPredictor):
    """
    An [`EmotionPredictor`] for many threads: their inferences wait in one queue.

    Args:
        model (`str`, *optional*), revision (`str`, *optional*): See [`EmotionPredictor`].
        workers (`int`, *optional*, defaults to 1): Number of inferences that run at the same time, on one core each.
        max_batch_size (`int`, *optional*):
            Maximum number of items of different callers in a batch. Defaults to 1 for a dynamic int8 graph and to 8
            for any other.
        observe (`Callable[[int], None]`, *optional*): Called with the size of each batch.
    """

    def __init__(
        self,
        model: str | None = None,
        revision: str | None = None,
        workers: int = 1,
        max_batch_size: int | None = None,
        observe: Callable[[int], None] = lambda size: None,
    ):
        # With more than one thread each, concurrent inferences would compete for the cores.
        super().__init__(model, num_threads=1, revision=revision)
        if max_batch_size is None:
            max_batch_size = 1 if self.graph.is_batch_dependent else BATCH_SIZE
        self.max_batch_size = max_batch_size
        self._is_stopped = False
        self.batcher = Batcher(super().run, workers, max_batch_size, observe)

    def stop(self) -> None:
        """Rejects further inferences and ends the threads."""
        self._is_stopped = True
        self.batcher.close()

    def run(self, items: list[PreparedItem]) -> Outputs:
        """
        Runs the model over prepared items; see [`~EmotionPredictor.run`].

        Raises:
            OutOfTimeError: If the deadline of the caller has passed, see [`until`], or the predictor is stopped.
        """
        check_deadline()
        if self._is_stopped:
            raise OutOfTimeError
        return self.batcher.submit(items)
