"""
Inferences of many requests on few threads.

Deliberate choices:
- A worker takes what is waiting, up to a batch, and never waits for more: under load batches fill by themselves.
- Everything that a predictor does passes `run`, so one queue serves clips, the windows of timelines, and live streams.
- Who asks blocks in a thread of its own; the event loop never does.
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
    """A request took longer than it may."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Has a [`QueuedPredictor`] answer in this thread no later than `deadline`, by `time.monotonic`."""
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


@dataclass(eq=False)
class Job:
    """Items that pass the model together, and what becomes of them."""

    items: list[PreparedItem]
    outputs: Future = field(default_factory=Future)

    @property
    def has_segments(self) -> bool:
        return self.items[0].segment_times is not None


class Batcher:
    """
    Runs items on threads of its own.

    Args:
        run (`Callable`): From a list of items to arrays with a row for each.
        workers (`int`): How many threads.
        max_batch_size (`int`): How many items of different jobs may share a run. A larger job runs alone.
        observe (`Callable[[int], None]`): Told the size of every batch.
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
        """How many items wait."""
        with self._changed:
            return sum(len(job.items) for job in self._waiting)

    def submit(self, items: list[PreparedItem]) -> Outputs:
        """Runs items, when it is their turn; blocks until then."""
        job = Job(items)
        with self._changed:
            if self._is_closed:
                raise RuntimeError("The service is shutting down.")
            self._waiting.append(job)
            self._changed.notify()
        return job.outputs.result()

    def close(self) -> None:
        """Runs what waits, and ends the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while jobs := self._next_batch():
            items = [item for job in jobs for item in job.items]
            self._observe(len(items))
            try:
                outputs = self._run(items)
            except Exception as error:  # of any kind: whoever waits for it is to know
                for job in jobs:
                    job.outputs.set_exception(error)
                continue
            first = 0
            for job in jobs:
                last = first + len(job.items)
                job.outputs.set_result({name: values[first:last] for name, values in outputs.items()})
                first = last

    def _next_batch(self) -> list[Job]:
        """The jobs to run next; none once it is closed."""
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
    An [`EmotionPredictor`] whose inferences wait for their turn; to be called from many threads.

    Args:
        model, revision: See [`EmotionPredictor`].
        workers (`int`): How many run at once, each on one core.
        max_batch_size (`int`, *optional*):
            How many of different callers may share a run; 1 by default if the graph is dynamic int8, 8 otherwise.
        observe (`Callable[[int], None]`): Told the size of every batch.
    """

    def __init__(
        self,
        model: str | None = None,
        revision: str | None = None,
        workers: int = 1,
        max_batch_size: int | None = None,
        observe: Callable[[int], None] = lambda size: None,
    ):
        # More threads an inference than one would spin in each other's way.
        super().__init__(model, num_threads=1, revision=revision)
        if max_batch_size is None:
            max_batch_size = 1 if self.graph.is_batch_dependent else BATCH_SIZE
        self.max_batch_size = max_batch_size
        self._is_stopped = False
        self.batcher = Batcher(super().run, workers, max_batch_size, observe)

    def stop(self) -> None:
        """Refuses what is still asked, and ends its threads."""
        self._is_stopped = True
        self.batcher.close()

    def run(self, items: list[PreparedItem]) -> Outputs:
        """
        Raises:
            OutOfTimeError: If the caller's time is up, see [`until`], or everybody's.
        """
        deadline = _deadline.get()
        if self._is_stopped or (deadline is not None and time.monotonic() > deadline):
            raise OutOfTimeError
        return self.batcher.submit(items)
