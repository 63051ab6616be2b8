"""Archives on Ray: each task has one outcome, whichever workers and nodes are lost, and each problem a sentence."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from itertools import count, islice
from pathlib import Path

import pytest
import ray
from ray_cluster import TEST_ENVIRONMENT, local_cluster, processes

from mmemo.archives import ray_engine
from mmemo.archives.engines import run_local
from mmemo.archives.job_manifest import model_hash
from mmemo.archives.ray_engine import run_ray, worker_versions
from mmemo.archives.tasks import ArchiveItem, Outcome, ScoringOptions, Section, Task


OPTIONS = ScoringOptions()
ENVIRONMENT = {**os.environ, **TEST_ENVIRONMENT, "TMPDIR": "/tmp"}


class FakeScorer:
    """Returns the process that it runs in; items that are called `crash` kill it, and `bug` raises an error."""

    def __init__(self, seconds=0.0, fails_in=None):
        if fails_in is not None:
            os.kill(os.getpid(), signal.SIGKILL) if fails_in == "crash" else raise_error()
        self.seconds = seconds

    def __call__(self, tasks):
        return [self.score(task) for task in tasks]

    def score(self, task):
        if task.item.path == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if task.item.path == "bug":
            raise KeyError("bug")
        time.sleep(self.seconds)
        state = {"torch": "torch" in sys.modules, "threads": os.environ["OMP_NUM_THREADS"], "cwd": os.getcwd()}
        return Outcome(task, {"label": task.item.id, "pid": os.getpid(), **state}, warnings=("short",))


def load_fake(options, **settings):
    assert options == OPTIONS
    return FakeScorer(**settings)


def raise_error():
    raise FileNotFoundError("There is no model\nat models/calls.")


def version_of_node():
    return {"mmemo": os.environ.get("FAKE_VERSION", "1.0")}


def tasks_of(number, **paths):
    return [Task(ArchiveItem(f"item-{index}", path=paths.get(f"item_{index}", "ok"))) for index in range(number)]


def run(tasks, seconds=0.0, workers=2, **options):
    options = {"fingerprint": version_of_node, "load": partial(load_fake, seconds=seconds), **options}
    return run_ray(tasks, OPTIONS, workers, **options)


def sizes(batches):
    return [len(batch.tasks) for batch in batches]


def test_batches_follow_the_pace_of_the_workers():
    batches = ray_engine._RayBatches(tasks_of(300))
    single = next(batches)
    assert len(single.tasks) == 1

    batches.measured(single, 0.1)
    first = next(batches)
    assert len(first.tasks) == 10
    batches.measured(first, 0.01 * 10)
    assert len(next(batches).tasks) == 12  # 0.8 * 0.1 s + 0.2 * 0.01 s per task

    for _ in range(30):
        batches.measured(first, 0.0)
    assert len(next(batches).tasks) == ray_engine.MAX_BATCH_TASKS
    for _ in range(30):
        batches.measured(first, 600.0)
    assert len(next(batches).tasks) == 1
    assert sum(sizes(batches)) == 300 - 1 - 10 - 12 - 64 - 1


def test_sections_and_large_recordings_are_batches_of_their_own():
    short, long = tasks_of(6), ArchiveItem("long", path="long.wav")
    sections = [Task(long, Section(number, 2, 1800.0 * number, 1800.0 * number + 1800)) for number in range(2)]
    large = Task(ArchiveItem("large", content=bytes(ray_engine.MAX_BATCH_BYTES)))
    batches = ray_engine._RayBatches([*short[:3], *sections, *short[3:5], large, short[5]])
    batches.measured(ray_engine._RayBatch(short, 1), 0.06)

    found = list(batches)

    assert sizes(found) == [3, 1, 1, 3, 1]
    assert [task for batch in found for task in batch.tasks] == [*short[:3], *sections, *short[3:5], large, short[5]]
    batches.measured(found[1], 60.0)
    assert batches._max_tasks() == 64


def test_batches_that_lost_a_worker_are_split_and_single_tasks_given_up():
    batches = ray_engine._RayBatches(tasks_of(3))
    alone = next(batches)
    batches.measured(alone, 0.01)
    together = next(batches)

    assert alone.attempts == 3 and alone.split() == []
    assert together.attempts == 1 and list(together.outcomes({})) == []
    assert [(len(batch.tasks), batch.attempts) for batch in together.split()] == [(1, 2), (1, 2)]
    (outcome,) = alone.outcomes({})
    assert outcome.task.attempts == 3 and outcome.result is None
    assert "died in each of 3 attempts" in outcome.error


def test_feed_can_be_read_again():
    async def read():
        feed = ray_engine._BatchFeed(patience=60.0)
        await feed.add({0: b"a", 1: b"b"})
        assert [await feed.get(position) for position in range(2)] == [b"a", b"b"]
        late = asyncio.create_task(feed.get(2))
        await asyncio.sleep(0)
        assert not late.done()
        assert [await feed.start(0, "x"), await feed.start(0, "x"), await feed.start(1, "y")] == [1, 2, 1]
        await feed.add({2: b"c"}, done=0)
        assert await late == b"c"
        assert [await feed.get(position) for position in range(3)] == [b"", b"b", b"c"]
        assert await feed.start(0, "x") == 0
        assert [await feed.load("x"), await feed.load("x"), await feed.load("x", is_loaded=True)] == [1, 2, 0]

    asyncio.run(read())


def test_idle_workers_repeat_what_others_do_not_finish():
    async def read():
        feed = ray_engine._BatchFeed(patience=0.01)
        await feed.add({0: b"a", 1: b"b", 2: b"c"})
        for position, worker in enumerate("xy"):
            await feed.start(position, worker)
        with pytest.raises(TimeoutError):  # both workers are busy
            await asyncio.wait_for(feed.get(3), 0.1)
        await feed.add({}, done=0)
        # `x` is idle: first the batch that no worker has started, then the other one.
        assert await feed.get(3) == b"c"
        assert await feed.start(3, "x") == 1
        await feed.add({}, done=2)
        assert await feed.get(4) == b"b"
        assert [await feed.start(position, "x") for position in (2, 3, 4)] == [0, 0, 1]

    asyncio.run(read())


def test_missing_ray_is_one_sentence():
    code = "import sys; sys.modules['ray'] = None; import mmemo.archives.ray_engine"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert process.stderr.splitlines()[-1] == (
        "ImportError: The Ray engine needs Ray and PyArrow: pip install 'mmemo[ray]'."
    )


def test_number_of_workers_is_checked():
    with pytest.raises(ValueError, match=r"at least 1, got 0\."):
        next(run(tasks_of(1), workers=0))


def test_address_of_ray_client_is_one_sentence():
    with pytest.raises(
        ValueError, match=r"^Ray Data does not run through Ray Client, 'ray://head:10001'; run the com"
    ):
        next(run(tasks_of(1), address="ray://head:10001"))


def test_versions_include_the_model():
    assert worker_versions().keys() == {"Python", "mmemo", "onnxruntime"}
    assert worker_versions(lambda: "abc")["model"] == "abc"


LOCAL_JOB = """
import mmemo.archives.ray_engine  # before ray
import os
from itertools import islice
from test_ray_engine import run, tasks_of
read = []
def tasks():
    for task in tasks_of(1000):
        read.append(task)
        yield task
most = done = 0
stream = run(tasks(), seconds=0.02)
for outcome in islice(stream, 400):
    done += 1
    most = max(most, len(read) - done)
    assert outcome.warnings == ("short",) and outcome.error is None, outcome
    assert not outcome.result["torch"] and outcome.result["threads"] == "1", outcome
    assert outcome.result["label"] == outcome.task.item.id and outcome.result["cwd"] == os.getcwd(), outcome
    if done == 50:
        os.kill(outcome.result["pid"], 9)
stream.close()
print(done, most)
"""


@pytest.mark.slow
def test_local_job_is_quiet_lazy_and_leaves_nothing():
    before = set(Path("/tmp").glob("ray-*"))
    process = subprocess.run([sys.executable, "-c", LOCAL_JOB], capture_output=True, text=True, env=ENVIRONMENT)

    assert (process.stderr, process.returncode) == ("", 0)
    done, most = map(int, process.stdout.split())
    assert done == 400
    # Eight batches of a second of work, and the outcomes of one that are yielded one by one.
    assert most <= 9 * ray_engine.BATCH_S / 0.02
    assert set(Path("/tmp").glob("ray-*")) <= before


@pytest.mark.slow
def test_killed_driver_leaves_no_process():
    code = "from test_ray_engine import *\n"
    code += "for outcome in run(tasks_of(10**6), seconds=0.02): print(outcome.result['pid'], flush=True)"
    folder = tempfile.mkdtemp(dir="/tmp")
    environment = {**ENVIRONMENT, "TMPDIR": folder}
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(driver.stdout.readline())
    raylet = next(parent for pid, parent, _ in processes() if pid == worker)
    driver.kill()
    driver.wait()

    deadline = time.monotonic() + 60
    while remaining := {pid for pid, parent, _ in processes() if worker == pid or raylet in (pid, parent)}:
        assert time.monotonic() < deadline, remaining
        time.sleep(0.5)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(nodes=2) as cluster:
        yield cluster


def check_complete(outcomes, number):
    assert Counter(outcome.task.item.id for outcome in outcomes) == {f"item-{index}": 1 for index in range(number)}
    assert all(outcome.result["label"] == outcome.task.item.id for outcome in outcomes if outcome.error is None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ray::MapWorker", "ray::Read"])
def test_killed_workers_lose_nothing(cluster, name):
    outcomes = run(tasks_of(500), seconds=0.02, address=cluster.address)
    found = list(islice(outcomes, 100))
    killed = cluster.kill_worker(name)
    found += outcomes

    check_complete(found, 500)
    assert {outcome.error for outcome in found} == {None}
    assert {outcome.task.attempts for outcome in found} == {1}
    if name == "ray::MapWorker":
        assert killed in {outcome.result["pid"] for outcome in found[:100]}
        assert killed not in {outcome.result["pid"] for outcome in found[-100:]}


@pytest.mark.slow
def test_predictions_are_those_of_the_local_engine(cluster, exported, example_audio):
    clips = sorted(example_audio.parent.glob("*.flac"))
    tasks = [Task(ArchiveItem(clip.name, path=str(clip), columns={"agent": "anna"})) for clip in clips]
    tasks += [Task(ArchiveItem("content", content=clips[0].read_bytes())), Task(ArchiveItem("text", text="so happy"))]
    tasks.append(Task(ArchiveItem("missing", path="no-such-file.wav")))
    options = ScoringOptions(model=str(exported), timeline=True)
    fingerprint = partial(worker_versions, partial(model_hash, options.model))

    found = list(run_ray(tasks, options, address=cluster.address, fingerprint=fingerprint))

    in_order = sorted(found, key=lambda outcome: [task.item.id for task in tasks].index(outcome.task.item.id))
    assert in_order == list(run_local(tasks, options))
    # Texts without a recording have no timeline.
    assert [outcome.task.item.id for outcome in in_order if outcome.error is not None] == ["text", "missing"]


@pytest.mark.slow
def test_killed_node_loses_nothing(cluster):
    cluster.add_node()
    outcomes = run(tasks_of(600), seconds=0.02, workers=3, address="auto")
    found = list(islice(outcomes, 100))
    cluster.kill_node()
    found += outcomes

    check_complete(found, 600)
    assert {outcome.error for outcome in found} == {None}


@pytest.mark.slow
def test_task_that_kills_its_workers_is_given_up(cluster):
    outcomes = list(run(tasks_of(200, item_3="crash", item_150="crash"), seconds=0.02, address=cluster.address))

    check_complete(outcomes, 200)
    failed = {outcome.task.item.id: outcome for outcome in outcomes if outcome.error is not None}
    assert failed.keys() == {"item-3", "item-150"}
    assert {outcome.task.attempts for outcome in failed.values()} == {3}
    assert "died in each of 3 attempts" in failed["item-3"].error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"load": partial(load_fake, fails_in="error")}, ValueError, r"^There is no model at models/calls\.$"),
        ({"load": partial(load_fake, fails_in="crash")}, ValueError, r"^A worker has died 3 times as it load"),
        ({"path": "bug"}, RuntimeError, r"^The scorer failed on a worker:\n(?s:.*)KeyError: 'bug'"),
    ],
    ids=["model", "crash", "bug"],
)
def test_what_no_worker_can_do_ends_the_job(cluster, options, error, message):
    path = options.pop("path", "ok")
    with pytest.raises(error, match=message):
        list(run(tasks_of(20, item_7=path), address=cluster.address, **options))


@pytest.mark.slow
def test_session_of_the_caller_is_used_and_left_running(cluster):
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        progress = ray.data.DataContext.get_current().enable_progress_bars
        check_complete(list(run(tasks_of(20))), 20)

        assert ray.is_initialized()
        assert ray.data.DataContext.get_current().enable_progress_bars is progress
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_error_of_the_tasks_ends_the_job(cluster):
    def tasks():
        yield from tasks_of(30)
        raise ValueError("row 31 has no id")

    with pytest.raises(ValueError, match="row 31"):
        list(run(tasks(), address=cluster.address))
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FAKE_VERSION": "2.0"}, r"^Node \S+ \(\w{8}\) has mmemo 2\.0, and the driver has 1\.0; all nodes need the "),
        (
            {"PYTHONPATH": f"{{shadow}}:{Path(__file__).parent}"},
            r"^Node \S+ \(\w{8}\) cannot run this job, which needs mmemo 1\.0: .*mmemo",
        ),
    ],
    ids=["other version", "not installed"],
)
def test_nodes_with_another_mmemo_end_the_job(cluster, tmp_path, monkeypatch, environment, message):
    (tmp_path / "mmemo.py").write_text("")
    # Workers import from the folder of the driver too.
    monkeypatch.chdir(tmp_path.parent)
    environment = {name: value.format(shadow=tmp_path) for name, value in environment.items()}
    cluster.add_node(environment)
    try:
        with pytest.raises(ValueError, match=message):
            list(run(tasks_of(20), workers=None, address=cluster.address))
    finally:
        cluster.kill_node()


@pytest.mark.slow
def test_node_that_joins_later_works_too_or_ends_the_job(cluster):
    outcomes = run((task for index in count() for task in tasks_of(1)), 0.05, workers=None, address=cluster.address)
    early = {outcome.result["pid"] for outcome in islice(outcomes, 100)}
    assert len(early) == 2
    cluster.add_node()
    deadline = time.monotonic() + 300
    while len({outcome.result["pid"] for outcome in islice(outcomes, 100)} | early) < 3:
        assert time.monotonic() < deadline
    cluster.add_node({"FAKE_VERSION": "2.0"})
    with pytest.raises(ValueError, match=r"has mmemo 2\.0, and the driver has 1\.0"):
        while time.monotonic() < deadline:
            next(outcomes)
    for _ in range(2):
        cluster.kill_node()


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:6379", "calls"])
def test_unreachable_cluster_is_one_sentence_soon(address):
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"^There is no Ray cluster at '{address}'; pass the address .*\.$"):
        next(run(tasks_of(1), address=address))
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_machine_outside_the_cluster_is_one_sentence(cluster, monkeypatch):
    monkeypatch.setattr(ray, "init", partial(ray.init, _node_ip_address="10.1.2.3"))
    with pytest.raises(ConnectionError, match=r"^This machine is not part of the Ray cluster at '\S+'; run the comma"):
        next(run(tasks_of(1), address=cluster.address))


@pytest.mark.slow
def test_cluster_with_another_ray_is_one_sentence(cluster, monkeypatch):
    monkeypatch.setattr(ray, "__version__", "2.1.0")
    with pytest.raises(ValueError, match=r"runs Ray 2\.\d+\.\d+ and Python 3\S+, and this process Ray 2\.1\.0 "):
        next(run(tasks_of(1), address=cluster.address))
    assert not ray.is_initialized()
