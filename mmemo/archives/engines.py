"""
Engines that run the tasks of an archive job on one machine: in this process, or in several.

Deliberate choices:
- Each worker process has its own pipe. With a `ProcessPoolExecutor`, the end of one worker fails the batches of all;
  a worker that is killed while it writes a result blocks the executor forever; and workers outlive a killed driver.
- The tasks of a batch whose worker ended run again one by one: a file that ends its worker fails alone.
- A batch takes about half a second, whether its tasks are texts or calls: few messages, steady progress, and little is
  lost with a worker. While a batch runs, the next one waits in the worker, which then never waits for the driver.
- Sections of recordings and large contents are batches of their own, which only idle workers receive: at the end of a
  job, none waits behind another.
- Predictions use one thread, in `run_local` too, so that all engines return the same floats.
"""

import os
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any

from mmemo.archives.interrupts import outside_callbacks
from mmemo.archives.tasks import Outcome, ScoringOptions, Task
from mmemo.runtime.cores import available_cores


# Closing it ends the workers.
Outcomes = Generator[Outcome, None, None]
# Loads a scorer; see [`load_scorer`].
LoadScorer = Callable[[ScoringOptions], Callable[[Sequence[Task]], list[Outcome]]]

MAX_ATTEMPTS = 3
MAX_WORKERS_PER_CORE = 8
# Aimed duration and maximum size of a batch, and the number of batches in a worker: one runs, the others wait.
BATCH_S, MAX_BATCH_SIZE, BATCHES_PER_WORKER = 0.5, 8, 2
LARGE_CONTENT_BYTES = 2 * 2**20
# Time that a worker has to delete its temporary files before it is killed.
GRACE_S = 5.0
# Forked processes would inherit the locks of other threads.
SPAWN = get_context("spawn")


def load_scorer(options: ScoringOptions) -> Callable[[Sequence[Task]], list[Outcome]]:
    """Returns a [`Scorer`]; only where it is needed: the driver of worker processes has no use for ONNX Runtime."""
    from mmemo.archives.scorer import Scorer

    return Scorer(options)


def run_local(tasks: Iterable[Task], options: ScoringOptions, load: LoadScorer = load_scorer) -> Outcomes:
    """
    Runs tasks in this process, one after the other.

    Args:
        tasks (`Iterable[Task]`): The tasks; read one at a time.
        options ([`ScoringOptions`]): How to predict.
        load (`Callable`, *optional*, defaults to [`load_scorer`]): Returns the scorer for the options.

    Returns:
        `Generator[Outcome]`: An outcome for each task, in the same order.

    Raises:
        FileNotFoundError, ImportError, OSError, ValueError: If the model cannot be loaded; see [`Scorer`].
    """
    score = load(options)
    return (outcome for task in tasks for outcome in score([task]))


def run_processes(
    tasks: Iterable[Task], options: ScoringOptions, workers: int | None = None, load: LoadScorer = load_scorer
) -> Outcomes:
    """
    Runs tasks in worker processes, which start as they are needed and end with the iterator.

    A script must call it under `if __name__ == "__main__":`, because new processes import the script.

    Args:
        tasks (`Iterable[Task]`): The tasks; at most `8 * (2 * workers + 1)` are read ahead of their outcomes.
        options ([`ScoringOptions`]): How to predict.
        workers (`int`, *optional*): Maximum number of processes; one per core by default.
        load (`Callable`, *optional*, defaults to [`load_scorer`]):
            Returns the scorer for the options, in each worker; must be picklable.

    Returns:
        `Generator[Outcome]`: An outcome for each task, in the order in which they finish. Closing it ends the workers.

    Raises:
        ChildProcessError: If workers end while they load the model.
        FileNotFoundError, ImportError, OSError: If the model cannot be loaded; see [`Scorer`].
        ValueError: If `workers` is out of range, or see [`Scorer`].
    """
    cores = available_cores()
    workers = cores if workers is None else workers
    limit = MAX_WORKERS_PER_CORE * cores
    if not 1 <= workers <= limit:
        raise ValueError(
            f"workers must be 1 to {limit}, at most {MAX_WORKERS_PER_CORE} per core, got {workers}; the default is "
            f"one per core, {cores}."
        )
    return _Driver(tasks, workers, (load, options)).run()


@dataclass(frozen=True)
class _TaskBatch:
    """Tasks that run together, and the number of attempts to run them in this job, this one included."""

    tasks: tuple[Task, ...]
    attempts: int = 1

    @property
    def is_large(self) -> bool:
        return _is_large(self.tasks[0])


def _is_large(task: Task) -> bool:
    """Whether a task is a batch of its own."""
    return task.section is not None or len(task.item.content or b"") > LARGE_CONTENT_BYTES


class _Driver:
    """
    Distributes tasks to worker processes.

    Args:
        tasks (`Iterable[Task]`): The tasks.
        max_workers (`int`): Maximum number of processes.
        scorer (`tuple[LoadScorer, ScoringOptions]`): What each worker loads.
    """

    def __init__(self, tasks: Iterable[Task], max_workers: int, scorer: tuple[LoadScorer, ScoringOptions]):
        self._new_batches = self._make_batches(tasks)
        self._max_workers = max_workers
        self._scorer = scorer
        self._workers: list[_WorkerProcess] = []
        # Batches that could not be assigned, or whose worker ended.
        self._waiting: deque[_TaskBatch] = deque()
        self._batch_size = 1
        self._failed_starts = 0

    def run(self) -> Outcomes:
        try:
            while self._assign():
                ready = wait([worker.connection for worker in self._workers])
                for worker in [worker for worker in self._workers if worker.connection in ready]:
                    yield from self._receive(worker)
        finally:
            for worker in self._workers:
                worker.process.terminate()
            for worker in self._workers:
                worker.join()

    def _make_batches(self, tasks: Iterable[Task]) -> Iterator[_TaskBatch]:
        batch: list[Task] = []
        for task in tasks:
            if batch and _is_large(task):
                yield _TaskBatch(tuple(batch))
                batch = []
            batch.append(task)
            if len(batch) >= self._batch_size or _is_large(task):
                yield _TaskBatch(tuple(batch))
                batch = []
        if batch:
            yield _TaskBatch(tuple(batch))

    def _assign(self) -> bool:
        """Sends batches to the workers that have room; returns whether any batch is in a worker."""
        while batch := self._waiting.popleft() if self._waiting else next(self._new_batches, None):
            worker = self._find_worker(batch)
            if worker is None:
                self._waiting.appendleft(batch)
                break
            worker.send(batch)
        return any(worker.batches for worker in self._workers)

    def _find_worker(self, batch: _TaskBatch) -> "_WorkerProcess | None":
        """Returns the idlest worker that has room for a batch; a new one rather than one that is busy."""
        candidates = [worker for worker in self._workers if worker.has_room_for(batch)]
        found = min(candidates, key=lambda worker: len(worker.batches), default=None)
        if (found is None or found.batches) and len(self._workers) < self._max_workers:
            found = _WorkerProcess(self._scorer)
            self._workers.append(found)
        return found

    def _receive(self, worker: "_WorkerProcess") -> Outcomes:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):  # an incomplete message is an OSError
            yield from self._replace(worker)
            return
        if isinstance(message, Exception):
            raise message
        self._failed_starts = 0
        if not worker.is_ready:
            worker.is_ready = True
            return
        batch = worker.batches.popleft()
        answers, seconds = message
        aimed_size = round(BATCH_S * len(batch.tasks) / seconds) if seconds > 0 else MAX_BATCH_SIZE
        self._batch_size = max(1, min(MAX_BATCH_SIZE, aimed_size))
        for task, answer in zip(batch.tasks, answers, strict=True):
            yield Outcome(task, *answer)

    def _replace(self, worker: "_WorkerProcess") -> Outcomes:
        """Saves the batches of a worker that has ended; yields the outcomes of tasks that have no attempts left."""
        self._workers.remove(worker)
        code = worker.join()
        if not worker.is_ready:
            self._failed_starts += 1
            _check_start(code, self._failed_starts)
        elif worker.batches:
            # A worker runs its batches in order: the others had not started.
            batch = worker.batches.popleft()
            for task in batch.tasks:
                if batch.attempts >= MAX_ATTEMPTS:
                    yield Outcome(task, error=f"The worker process {_describe_exit(code)}; {batch.attempts} attempts.")
                else:
                    again = replace(task, attempts=task.attempts + 1)
                    self._waiting.append(_TaskBatch((again,), batch.attempts + 1))
        self._waiting.extend(worker.batches)


class _WorkerProcess:
    """
    A worker process, as the driver sees it.

    Args:
        scorer (`tuple[LoadScorer, ScoringOptions]`): What it loads.

    Attributes:
        batches (`deque[_TaskBatch]`): The batches it has: the first one runs, the others wait.
        is_ready (`bool`): Whether it has loaded the scorer.
    """

    def __init__(self, scorer: tuple[LoadScorer, ScoringOptions]):
        self.connection, other_end = SPAWN.Pipe()
        # As a daemon, it does not keep a driver alive that never closes the iterator.
        self.process = SPAWN.Process(target=_work, args=(other_end,), name="mmemo-worker", daemon=True)
        with _one_thread(), _interrupts_blocked():
            self.process.start()
        # Without this copy, the end of the process closes the pipe.
        other_end.close()
        self.batches: deque[_TaskBatch] = deque()
        self.is_ready = False
        self._send(scorer)

    def has_room_for(self, batch: _TaskBatch) -> bool:
        if not self.batches:
            return True
        return len(self.batches) < BATCHES_PER_WORKER and not (batch.is_large or self.batches[-1].is_large)

    def send(self, batch: _TaskBatch) -> None:
        self.batches.append(batch)
        self._send(batch.tasks)

    def join(self) -> int | None:
        """Waits for the process and returns its exit code."""
        self.process.join(GRACE_S)
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode

    def _send(self, message: Any) -> None:
        with suppress(ConnectionError):  # it has ended, which the next `recv` reports
            self.connection.send(message)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within this context, new processes use one thread in BLAS, which reads this variable when NumPy is imported."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """
    Within this context, new processes block SIGINT, from their first instruction: Ctrl-C reaches all processes of a
    terminal, but only the driver handles it.
    """
    if sys.platform == "win32":
        yield
        return
    # It starts with the first process, and unblocks SIGINT.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _work(connection: Connection) -> None:
    """
    Runs in a worker process: loads the scorer, then scores one batch after the other.

    Sends `None` once the scorer is loaded, then the answers and the seconds of each batch; an exception ends the job.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Raises, so that temporary files are deleted.
    signal.signal(signal.SIGTERM, outside_callbacks(lambda *_: sys.exit()))
    messages: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_receive_messages, args=(connection, messages), daemon=True).start()
    try:
        with suppress(ConnectionError):  # the driver has ended
            try:
                load, options = pickle.loads(messages.get())
                score = load(options)
                connection.send(None)
                while True:
                    tasks = pickle.loads(messages.get())
                    start = time.perf_counter()
                    # The driver has the tasks, and their contents.
                    answers = [(outcome.result, outcome.error, outcome.warnings) for outcome in score(tasks)]
                    connection.send((answers, time.perf_counter() - start))
            except Exception as error:
                connection.send(_as_portable(error))
    finally:
        # It is ending already.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _receive_messages(connection: Connection, messages: "SimpleQueue[bytes]") -> None:
    """
    Receives messages while others are processed, so that the driver never waits to send one, and ends this process
    when the driver ends.
    """
    try:
        while True:
            messages.put(connection.recv_bytes())
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)


def _as_portable(error: Exception) -> Exception:
    """Returns an error that can be pickled, with the traceback of this process as a note."""
    try:
        pickle.loads(pickle.dumps(error))
        portable = error
    except Exception:  # a class may fail in any way
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note("".join(traceback.format_exception(error)))
    return portable


def _check_start(code: int | None, failed_starts: int) -> None:
    """Raises a `ChildProcessError` if a worker that ended before it was ready should not be started again."""
    if code is not None and code < 0:
        if failed_starts >= MAX_ATTEMPTS:
            raise ChildProcessError(
                f"A worker process {_describe_exit(code)} while it loaded the model, {failed_starts} times; start "
                "fewer workers, or free memory."
            )
    else:
        raise ChildProcessError(
            f"A worker process {_describe_exit(code)} before it loaded the model, see its output above; a Python "
            'script must be a file that starts the job under `if __name__ == "__main__":`.'
        )


def _describe_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    hint = ", as happens when memory runs out" if code == -signal.SIGKILL else ""
    return f"was ended by signal {-code} ({signal.strsignal(-code)}){hint}"
