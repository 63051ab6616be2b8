"""
Runs the tasks of an archive job on Ray Data: on a Ray of its own on this machine, or on a cluster.

Deliberate choices:
- One dataset, fed as it runs: its source reads batches of tasks from an actor beside the driver, and the driver adds
  one for each that is done. So a worker loads the model once, and the tasks of a job are never in memory together.
- Ray repeats whatever a lost worker or node was doing, without limit. So a worker counts how often a batch is started:
  one that has lost a worker is split into its tasks, and a task that loses its worker each time is given up.
- Ray never moves a batch to another worker, even if its own waits for a node that does not return. So idle workers
  repeat what the others do not finish, and the first reply counts.
- The driver knows the tasks under way, so that each has exactly one outcome, even if it is executed twice.
- This module travels to the workers by value, and what it needs of mmemo as bytes, so that a node without mmemo, or
  with another version, is reported in one sentence.
"""

import asyncio
import itertools
import logging
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

from mmemo.archives.engines import LoadScorer, Outcomes, load_scorer
from mmemo.archives.job_manifest import runtime_versions
from mmemo.archives.tasks import Outcome, ScoringOptions, Task
from mmemo.runtime.cores import available_cores


# Of lost workers and nodes, which are expected; Ray would print them to standard output.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    r"^(Task .* failed\. There are|A worker died or was killed|The node with node id|The actor .* died)",
)
try:
    import pyarrow as pa
    import ray
    import ray.data
    from ray import cloudpickle
    from ray.data.block import BlockMetadata
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ImportError("The Ray engine needs Ray and PyArrow: pip install 'mmemo[ray]'.") from error


logger = logging.getLogger(__name__)
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Seconds of work in a batch: much longer than Ray's overhead, and little to repeat when a worker is lost.
BATCH_S = 1.0
MAX_BATCH_TASKS = 64
MAX_BATCH_BYTES = 8 * 2**20
# Batches under way per worker: one that it works on, one that waits at it, and two on the way.
BATCHES_PER_WORKER = 4
# Attempts to predict a task that loses its worker, and to start a worker.
MAX_ATTEMPTS = 3
# How long a worker has nothing to do before it repeats what another one has not finished.
PATIENCE_S = 30.0
CONNECT_TIMEOUT_S = 20
PREFLIGHT_TIMEOUT_S = 120
# How often the size of a cluster is read, which may grow while the job runs.
RESIZE_S = 10
# Ray's own objects on this machine: tasks, and recordings that travel inside them.
OBJECT_STORE_BYTES = 256 * 2**20
# Sockets are in Ray's folder, and their paths are limited to 103 bytes on macOS, 107 on Linux.
MAX_FOLDER_LENGTH = 30


def worker_versions(model_hash: Callable[[], str] | None = None) -> dict[str, str]:
    """
    Returns the versions that must be the same on all nodes of a cluster.

    Args:
        model_hash (`Callable`, *optional*): Returns the hash of the model.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, **runtime_versions(), **({} if model_hash is None else {"model": model_hash()})}


def run_ray(
    tasks: Iterable[Task],
    options: ScoringOptions,
    workers: int | None = None,
    address: str | None = None,
    *,
    fingerprint: Callable[[], Mapping[str, str]] = worker_versions,
    load: LoadScorer = load_scorer,
) -> Outcomes:
    """
    Predicts tasks on Ray.

    A session of Ray that the caller has started is used and left running, whatever `address` is.

    Args:
        tasks (`Iterable[Task]`): The tasks. They are read as the workers need them.
        options ([`ScoringOptions`]): How to predict.
        workers (`int`, *optional*):
            Number of worker processes, of one core each. By default, that of the cores of this machine or of the
            cluster; workers are then added on nodes that join a cluster later.
        address (`str`, *optional*):
            The cluster of this machine: `"auto"` or `"host:6379"`. By default, Ray is started on this machine.
        fingerprint (`Callable`, *optional*, defaults to [`worker_versions`]):
            Returns what must be the same on all nodes, by name; must be picklable.
        load (`Callable`, *optional*, defaults to [`load_scorer`]):
            Returns the scorer for the options, in each worker; must be picklable.

    Returns:
        `Generator[Outcome]`: One outcome per task, in any order, as they are predicted.

    Raises:
        ConnectionError: If the cluster cannot be reached, or no longer runs workers.
        ValueError: If a node has other versions than the driver, or cannot load the model.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"The number of workers must be at least 1, got {workers}.")
    with _session(address, workers) as is_own, _quiet():
        setup = _NodeSetup.create(fingerprint, partial(load, options))
        if not is_own:
            _check_nodes(setup)
        yield from _RayJob(setup, workers).run(tasks)


@dataclass(frozen=True)
class _RayBatch:
    """
    Tasks that are predicted together.

    Args:
        tasks (`list[Task]`): The tasks.
        attempts (`int`): How often they may be started.
    """

    tasks: list[Task]
    attempts: int

    def split(self) -> "list[_RayBatch]":
        """Returns what to do after the last attempt: each task alone; nothing if it was alone."""
        return [_RayBatch([task], MAX_ATTEMPTS - 1) for task in self.tasks] if len(self.tasks) > 1 else []

    def outcomes(self, reply: Mapping[str, Any]) -> Iterator[Outcome]:
        """Yields the outcomes in the reply of a worker, or that of a task that lost its worker each time."""
        if "outcomes" in reply:
            for task, (result, error, warnings) in zip(self.tasks, reply["outcomes"]):
                yield Outcome(task, result, error, warnings)
        elif len(self.tasks) == 1:
            yield Outcome(
                replace(self.tasks[0], attempts=self.tasks[0].attempts + MAX_ATTEMPTS - 1),
                error=f"The worker process died in each of {MAX_ATTEMPTS} attempts to predict this input: a decoder "
                "crashed, or memory ran out. Check the recording.",
            )


class _RayBatches:
    """
    Groups tasks to batches of about `BATCH_S` seconds of work, as fast as the workers turn out to be.

    Sections of long recordings are batches of their own, and so is each task until the first outcome.

    Args:
        tasks (`Iterable[Task]`): The tasks.
    """

    def __init__(self, tasks: Iterable[Task]):
        self._tasks = iter(tasks)
        self._seconds_per_task = float("inf")

    def __iter__(self) -> Iterator[_RayBatch]:
        return self

    def __next__(self) -> _RayBatch:
        tasks: list[Task] = []
        size = 0
        for task in self._tasks:
            if task.section is not None and tasks:
                self._tasks = itertools.chain([task], self._tasks)
                break
            tasks.append(task)
            size += len(task.item.content or b"")
            if len(tasks) >= self._max_tasks() or size >= MAX_BATCH_BYTES or task.section is not None:
                break
        if not tasks:
            raise StopIteration
        return _RayBatch(tasks, attempts=MAX_ATTEMPTS if len(tasks) == 1 else 1)

    def measured(self, batch: _RayBatch, seconds: float) -> None:
        """Takes the duration of a batch into account."""
        if batch.tasks[0].section is None:
            pace = seconds / len(batch.tasks)
            previous = pace if self._seconds_per_task == float("inf") else self._seconds_per_task
            self._seconds_per_task = 0.8 * previous + 0.2 * pace

    def _max_tasks(self) -> int:
        return max(1, round(min(MAX_BATCH_TASKS, BATCH_S / max(self._seconds_per_task, 1e-3))))


@dataclass(frozen=True)
class _NodeSetup:
    """
    What a worker needs to start. It contains no class of mmemo, so that a node without mmemo can report that.

    Args:
        expected (`dict[str, str]`): The fingerprint of the driver.
        fingerprint (`bytes`), load (`bytes`): See [`run_ray`]; pickled.
        folder (`str`): The working directory of the driver, to which relative paths refer.
    """

    expected: dict[str, str]
    fingerprint: bytes
    load: bytes
    folder: str

    @classmethod
    def create(cls, fingerprint: Callable[[], Any], load: Callable[[], Any]) -> Any:
        return cls(dict(fingerprint()), cloudpickle.dumps(fingerprint), cloudpickle.dumps(load), os.getcwd())

    def check(self) -> str | None:
        """Returns why this node cannot run the job, in one sentence; `None` if it can."""
        node = _node_name(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        try:
            found = pickle.loads(self.fingerprint)()
        except Exception as error:
            needed = ", ".join(f"{name} {value[:12]}" for name, value in self.expected.items())
            return f"{node} cannot run this job, which needs {needed}: {_one_line(error)}"
        for name, value in self.expected.items():
            if found.get(name) != value:
                return (
                    f"{node} has {name} {found.get(name, 'missing')[:12]}, and the driver has {value[:12]}; "
                    f"all nodes need the same {name}."
                )
        return None


class _BatchFeed:
    """
    The batches of a dataset, in an actor: the driver adds them, and the source of the dataset reads them.

    Batches are read by position. Ray may read them again from the start, and then finds empty batches in place of
    those that are done. While a worker has nothing to do, batches that others do not finish are added once more.

    Args:
        patience (`float`): Seconds that a worker has nothing to do before a batch is repeated; doubled each time.
    """

    def __init__(self, patience: float):
        self._patience = self._first_patience = patience
        self._changed = asyncio.Condition()
        # Numbers of batches, by position.
        self._order: list[int] = []
        # By number: what is not done, and how often it was started at each of its positions.
        self._batches: dict[int, bytes] = {}
        self._starts: dict[int, Counter[int]] = {}
        # Numbers of the last batches, by worker.
        self._last: dict[str, int] = {}
        self._loads: Counter[str] = Counter()

    async def add(self, batches: Any, done: int | None = None) -> None:
        """Adds batches by number, and removes one that is done."""
        if done is not None:
            del self._batches[done], self._starts[done]
        self._batches.update(batches)
        self._starts.update((number, Counter()) for number in batches)
        await self._append(batches)
        self._patience = self._first_patience

    async def get(self, position: int) -> bytes:
        """Returns a batch as soon as it is there."""
        while position >= len(self._order):
            try:
                async with self._changed:
                    await asyncio.wait_for(self._changed.wait(), self._patience)
            except TimeoutError:
                self._patience *= 2
                await self._repeat()
        return self._batches.get(self._order[position], b"")

    async def start(self, position: int, worker: str) -> int:
        """Counts the start of a batch, and returns how often it was started; 0 if it is done."""
        number = self._order[position]
        if number not in self._batches:
            return 0
        self._last[worker] = number
        self._starts[number][position] += 1
        return self._starts[number][position]

    async def load(self, worker: str, is_loaded: bool = False) -> int:
        """Counts how often a worker has begun to load the model since it was loaded last."""
        self._loads[worker] = 0 if is_loaded else self._loads[worker] + 1
        return self._loads[worker]

    async def _repeat(self) -> None:
        num_idle = sum(number not in self._batches for number in self._last.values())
        # Those that wait first, then those that run the longest.
        by_progress = sorted(self._batches, key=lambda number: (bool(self._starts[number]), number))
        await self._append(by_progress[:num_idle])

    async def _append(self, numbers: Iterable[int]) -> None:
        async with self._changed:
            self._order.extend(numbers)
            self._changed.notify_all()


class _RayWorker:
    """
    Predicts the batches of a dataset, in an actor of Ray.

    It raises no error at its start, which would reach the driver as the traceback of a dead actor.

    Args:
        setup ([`_NodeSetup`]): What it needs to start.
        feed (`ActorHandle`): The actor of [`_BatchFeed`].
    """

    def __init__(self, setup: Any, feed: Any):
        self._score: Any = None
        self._feed = feed
        self._name = ray.get_runtime_context().get_actor_id()
        if ray.get(feed.load.remote(self._name)) > MAX_ATTEMPTS:
            self._refusal = f"A worker has died {MAX_ATTEMPTS} times as it loaded the model; see the logs of Ray."
            return
        self._refusal = setup.check()
        if self._refusal is None:
            try:
                self._score = pickle.loads(setup.load)()
            except Exception as error:
                self._refusal = _one_line(error)
        feed.load.remote(self._name, is_loaded=True)

    def __call__(self, table: Any) -> Any:
        return pa.table({"reply": [pickle.dumps(self._reply(**table.to_pylist()[0]))]})

    def _reply(self, position: int, batch: bytes) -> dict[str, Any]:
        if self._refusal is not None:
            return {"refusal": self._refusal}
        start = ray.get(self._feed.start.remote(position, self._name)) if batch else 0
        if start == 0:
            return {"number": None}
        number, attempts, tasks = pickle.loads(batch)
        if start > attempts:
            return {"number": number}
        started = time.perf_counter()
        try:
            # The driver has the tasks, and the recordings in them.
            outcomes = [(outcome.result, outcome.error, outcome.warnings) for outcome in self._score(tasks)]
        except Exception:
            return {"traceback": traceback.format_exc()}
        return {"number": number, "outcomes": outcomes, "seconds": time.perf_counter() - started}


class _BatchFeedSource(ray.data.Datasource):
    """
    Reads the batches of a feed.

    Args:
        feed (`ActorHandle`): The actor of [`_BatchFeed`].
    """

    def __init__(self, feed: Any):
        super().__init__()
        self._feed = feed

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *limits: Any, **options: Any) -> list[ray.data.ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ray.data.ReadTask(partial(_read, self._feed), unknown)]


def _read(feed: Any) -> Any:
    for position in itertools.count():
        yield pa.table({"position": [position], "batch": [ray.get(feed.get.remote(position))]})


class _RayJob:
    """
    Predicts tasks with one dataset, or with another one if Ray gives it up.

    Args:
        setup ([`_NodeSetup`]): What a worker needs to start.
        workers (`int`, *optional*): Number of workers; as many as the cluster has cores by default.
    """

    def __init__(self, setup: _NodeSetup, workers: int | None):
        self._setup = setup
        self._workers = workers
        self._cluster_size = 0
        self._resized = -float("inf")

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        batches = _RayBatches(tasks)
        waiting: deque[_RayBatch] = deque()
        failures = 0
        while True:
            waiting.extend(islice(batches, max(0, self._limit() - len(waiting))))
            if not waiting:
                return
            under_way: dict[int, _RayBatch] = {}
            try:
                for outcome in self._predict(batches, waiting, under_way):
                    failures = 0
                    yield outcome
            except ExecutionTimeoutError as error:
                raise ConnectionError(
                    "No worker has finished anything for half an hour; check that the cluster has free cores."
                ) from error
            except RayError as error:
                failures += 1
                logger.debug("The dataset failed.", exc_info=error)
                if failures == MAX_ATTEMPTS:
                    raise ConnectionError(f"Ray cannot run the job any more: {_one_line(error)}") from error
            waiting.extend(under_way.values())

    def _predict(
        self, batches: _RayBatches, waiting: deque[_RayBatch], under_way: dict[int, _RayBatch]
    ) -> Generator[Outcome, None, None]:
        """Yields the outcomes of one dataset. `under_way` contains, by position, the batches that it has not done."""
        feed: Any = ray.remote(_BatchFeed).options(num_cpus=0, scheduling_strategy=_here()).remote(PATIENCE_S)
        numbers = itertools.count()

        def add(done: int | None = None) -> None:
            added = {}
            while len(under_way) < self._limit():
                batch = waiting.popleft() if waiting else next(batches, None)
                if batch is None:
                    break
                number = next(numbers)
                under_way[number] = batch
                added[number] = pickle.dumps((number, batch.attempts, batch.tasks))
            ray.get(feed.add.remote(added, done))

        try:
            add()
            with closing(self._replies(feed, len(under_way))) as replies:
                for reply in replies:
                    batch = under_way.pop(reply["number"], None)
                    if batch is None:
                        continue  # executed twice
                    if "outcomes" in reply:
                        batches.measured(batch, reply["seconds"])
                    else:
                        waiting.extend(batch.split())
                    add(done=reply["number"])
                    yield from batch.outcomes(reply)
                    if not under_way:
                        return
        finally:
            ray.kill(feed)

    def _replies(self, feed: Any, num_batches: int) -> Generator[dict[str, Any], None, None]:
        """Yields the replies of the workers to the batches of a feed, without end."""
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        # Each row is a batch, and passed on as soon as it is there.
        context.target_max_block_size = 1
        # With fewer batches than workers, there are no further ones.
        size = min(self._size(), num_batches)
        with ray.data.DataContext.current(context):
            dataset = ray.data.read_datasource(_BatchFeedSource(feed), num_cpus=0, override_num_blocks=1).map_batches(
                _RayWorker,
                fn_constructor_args=[self._setup, feed],
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(
                    min_size=size, initial_size=size, max_size=None if self._workers is None else size
                ),
                num_cpus=1,
            )
        tables: Iterable[Any] = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for table in tables:
            for content in table["reply"].to_pylist():
                reply = pickle.loads(content)
                if "refusal" in reply:
                    raise ValueError(reply["refusal"])
                if "traceback" in reply:
                    raise RuntimeError(f"The scorer failed on a worker:\n{reply['traceback']}")
                yield reply

    def _size(self) -> int:
        """Returns the number of workers."""
        if self._workers is not None:
            return self._workers
        if time.monotonic() - self._resized > RESIZE_S:
            self._cluster_size = int(ray.cluster_resources().get("CPU", 0))
            self._resized = time.monotonic()
        return max(1, self._cluster_size)

    def _limit(self) -> int:
        """Returns the number of batches under way."""
        return BATCHES_PER_WORKER * self._size()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _here() -> NodeAffinitySchedulingStrategy:
    """Keeps an actor on the node of the driver, which the job depends on anyway."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _check_nodes(setup: _NodeSetup) -> None:
    """Checks versions and model on each node that can run workers; raises a `ValueError` if they differ."""
    nodes = _nodes()
    if not nodes:
        raise ValueError("The Ray cluster has no node with CPUs; add worker nodes to it.")
    check: Any = ray.remote(_NodeSetup.check)
    reports = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        reports[check.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(setup)] = node
    finished, late = ray.wait(list(reports), num_returns=len(reports), timeout=PREFLIGHT_TIMEOUT_S)
    for report in finished:
        try:
            problem = ray.get(report)
        except RayError as error:
            # Nodes may be lost at any time.
            problem = f"{nodes[reports[report]]} cannot start a worker: {_one_line(error)}"
            problem = problem if reports[report] in _nodes() else None
        if problem is not None:
            raise ValueError(problem)
    if late:
        name = nodes[reports[late[0]]]
        raise ValueError(f"{name} has not started a worker within {PREFLIGHT_TIMEOUT_S} s; see its logs.")


def _nodes() -> dict[str, str]:
    """Returns the names of the nodes that can run workers, by id."""
    return {
        node["NodeID"]: _node_name(node["NodeManagerAddress"], node["NodeID"])
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    }


def _node_name(address: str, node_id: str) -> str:
    return f"Node {address} ({node_id[:8]})"


@contextmanager
def _session(address: str | None, workers: int | None) -> Iterator[bool]:
    """
    Within this context, the driver is connected to Ray.

    Returns:
        `Iterator[bool]`: Yields whether it is a Ray of its own, on this machine.
    """
    if ray.is_initialized():
        yield False
        return
    if address is not None:
        _connect(address)
        try:
            yield False
        finally:
            ray.shutdown()
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    parent = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="ray-", dir=parent if len(parent) <= MAX_FOLDER_LENGTH else "/tmp")
    try:
        _init(
            address="local",
            num_cpus=workers or available_cores(),
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )
        yield True
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _init(**options: Any) -> None:
    """Starts or connects to Ray without its messages on standard error."""
    # Of its C++ code, which even reports that this variable is set.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    standard_error = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    finally:
        os.dup2(standard_error, 2)
        os.close(standard_error)


def _connect(address: str) -> None:
    """
    Connects to a cluster.

    Raises:
        ConnectionError: If there is none, or this machine is not part of it.
        ValueError: If it has other versions, or the address is that of Ray Client.
    """
    if address.startswith("ray://"):
        raise ValueError(
            f"Ray Data does not run through Ray Client, {address!r}; run the command on a machine of the cluster with "
            "--address auto, or submit it: ray job submit --address http://HOST:8265 -- mmemo predict ..."
        )
    # Connecting to an address without a cluster would take minutes to fail.
    command = ["-m", "ray.scripts.scripts", "health-check", "--skip-version-check", "--address", address]
    try:
        subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=CONNECT_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise ConnectionError(
            f"There is no Ray cluster at {address!r}; pass the address of its head node, such as 10.0.0.5:6379, or "
            "'auto' on a machine of the cluster."
        ) from error
    try:
        _init(address=address)
    except ConnectionError as error:
        raise ConnectionError(
            f"This machine is not part of the Ray cluster at {address!r}; run the command on a machine that is, or "
            "submit it: ray job submit --address http://HOST:8265 -- mmemo predict ..."
        ) from error
    except RayError as error:  # it requires a token
        raise ConnectionError(f"The cluster at {address!r} refuses the connection: {_one_line(error)}") from error
    except RuntimeError as error:
        versions = re.findall(r"(Ray|Python): (\S+)", str(error))
        if len(versions) != 4:
            raise
        cluster, driver = (" and ".join(map(" ".join, pair)) for pair in (versions[:2], versions[2:]))
        raise ValueError(
            f"The cluster at {address!r} runs {cluster}, and this process {driver}; install the same versions."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within this context, Ray Data does not write to standard error; its log files are complete."""
    consoles = [
        handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, logging.StreamHandler)
    ]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(consoles, levels):
            handler.setLevel(level)
