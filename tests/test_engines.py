"""Engines: every task has one outcome, whatever happens to workers and driver."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from itertools import count, islice
from pathlib import Path

import pytest

from mmemo.archives.engines import MAX_ATTEMPTS, run_local, run_processes
from mmemo.archives.tasks import ArchiveItem, Outcome, ScoringOptions, Section, Task


OPTIONS = ScoringOptions()
DEADLINE_S = 20.0


def tasks_of(*names, **fields):
    return [Task(ArchiveItem(name, **fields)) for name in names]


def numbered(length):
    return tasks_of(*map(str, range(length)))


class StubScorer:
    """
    Returns facts about each batch; what it does with a task depends on the id of its item. Workers import this class.

    Args:
        options ([`ScoringOptions`]): Its model may be an error to raise, or a signal, instead of loading.
    """

    def __init__(self, options):
        if options.model is not None and options.model.isdecimal():
            os.kill(os.getpid(), int(options.model))
        if options.model == "bad":
            raise FileNotFoundError("bad has no model_int8.onnx and no model.onnx.")
        if options.model == "strange":
            raise UnportableError("bad", 5)

    def __call__(self, tasks):
        return [self.score(task, len(tasks)) for task in tasks]

    def score(self, task, size):
        match task.item.id.split():
            case ["killed", *_]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["sleeping", *_]:
                time.sleep(3 * DEADLINE_S)
            case ["failing", *_]:
                return Outcome(task, error="It is empty.", warnings=("It is short.",))
            case ["raising", *_]:
                raise TypeError("a bug")
            case ["large", *_]:
                return Outcome(task, {"pid": os.getpid(), "text": "a" * 2**23})
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        facts = {"pid": os.getpid(), "size": size, "threads": os.environ.get("OMP_NUM_THREADS"), "blocked": blocked}
        return Outcome(task, facts)


class UnportableError(Exception):
    """Cannot be unpickled: its `args` are not its arguments."""

    def __init__(self, name, number):
        super().__init__(f"{name} is {number}")


run_stubs = functools.partial(run_processes, options=OPTIONS, load=StubScorer)


def ids(outcomes):
    return [outcome.task.item.id for outcome in outcomes]


def living_workers():
    return [child for child in multiprocessing.active_children() if child.name == "mmemo-worker"]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_local_reads_one_task_at_a_time():
    read = []
    outcomes = run_local((read.append(task) or task for task in numbered(3)), OPTIONS, StubScorer)

    assert read == []
    assert next(outcomes).result["pid"] == os.getpid()
    assert len(read) == 1
    assert ids(outcomes) == ["1", "2"]
    with pytest.raises(FileNotFoundError, match=r"^bad has no model_int8"):
        run_local([], ScoringOptions(model="bad"), StubScorer)


def test_each_task_has_one_outcome(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    tasks = [
        *numbered(30),
        *tasks_of("failing"),
        *[Task(ArchiveItem("long"), Section(n, 3, n, n + 1)) for n in range(3)],
    ]
    outcomes = list(run_stubs(tasks, workers=2))

    assert sorted(map(id, tasks)) == sorted(id(outcome.task) for outcome in outcomes)
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert (failed.task.item.id, failed.error, failed.warnings) == ("failing", "It is empty.", ("It is short.",))
    facts = [outcome.result for outcome in outcomes if outcome is not failed]
    assert len({one["pid"] for one in facts} - {os.getpid()}) == 2
    assert all(one["threads"] == "1" and one["blocked"] for one in facts)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert {outcome.result["size"] for outcome in outcomes if outcome.task.section} == {1}
    assert 1 < max(one["size"] for one in facts) <= 8
    assert living_workers() == []


def test_few_tasks_are_read_ahead_and_closing_ends_the_workers():
    read = []
    outcomes = run_stubs((read.append(number) or tasks_of(str(number))[0] for number in count()), workers=1)
    assert read == []
    ahead = [len(read) - returned for returned, _ in enumerate(islice(outcomes, 200), 1)]
    assert 8 < max(ahead) <= 24
    (worker,) = living_workers()
    outcomes.close()

    assert living_workers() == [] and not is_alive(worker.pid)


def test_a_task_that_kills_its_worker_fails_alone():
    tasks = numbered(40)
    tasks.insert(20, Task(ArchiveItem("killed"), attempts=4))  # it failed in three earlier runs
    outcomes = list(run_stubs(tasks, workers=2))

    assert sorted(ids(outcomes)) == sorted(ids(map(Outcome, tasks)))
    (failed,) = [outcome for outcome in outcomes if outcome.error]
    assert failed.error == (
        "The worker process was ended by signal 9 (Killed), as happens when memory runs out; 3 attempts."
    )
    assert failed.task == dataclasses.replace(tasks[20], attempts=4 + MAX_ATTEMPTS - 1)
    again = [outcome for outcome in outcomes if outcome.task.attempts == 2]
    assert len(again) <= 7  # the rest of its first batch
    assert all(outcome.result["size"] == 1 for outcome in again)
    assert all(outcome.task.attempts == 1 for outcome in outcomes if outcome not in [failed, *again])


def test_a_worker_killed_within_a_result_is_replaced():
    tasks = tasks_of(*(f"large {number}" for number in range(6)))
    outcomes = run_stubs(tasks, workers=1)
    first = next(outcomes)
    time.sleep(0.3)  # it now writes the second result, which nobody reads
    os.kill(first.result["pid"], signal.SIGKILL)
    others = list(outcomes)

    assert sorted(ids([first, *others])) == ids(map(Outcome, tasks))
    assert [outcome.task.attempts for outcome in others].count(2) == 1
    assert {outcome.result["pid"] for outcome in others}.isdisjoint({first.result["pid"]})


def test_large_messages_in_both_directions_do_not_deadlock():
    tasks = tasks_of(*(f"large {number}" for number in range(6)), content=bytes(2**23))

    assert len(list(run_stubs(tasks, workers=1))) == 6


@pytest.mark.parametrize(
    ("model", "tasks", "error", "message"),
    [
        ("bad", numbered(9), FileNotFoundError, r"^bad has no model_int8\.onnx and no model\.onnx\."),
        ("strange", numbered(9), RuntimeError, "^UnportableError: bad is 5"),
        (None, tasks_of("raising"), TypeError, "^a bug"),
        (
            str(int(signal.SIGKILL)),
            numbered(9),
            ChildProcessError,
            r"^A worker process was ended by signal 9 .* while it loaded the model, 3 times; start fewer workers, or",
        ),
    ],
)
def test_errors_that_end_the_job(model, tasks, error, message, capfd):
    with pytest.raises(error, match=message) as raised:
        list(run_processes(tasks, ScoringOptions(model=model), 1, StubScorer))

    assert living_workers() == []
    assert capfd.readouterr().err == ""
    if model in ("bad", "strange"):
        assert "in __init__" in raised.value.__notes__[0]


@pytest.mark.parametrize("workers", [0, -1, 10**5])
def test_the_number_of_workers_is_checked(workers):
    with pytest.raises(ValueError, match=rf"^workers must be 1 to \d+, at most 8 per core, got {workers};"):
        run_stubs([], workers=workers)


def test_errors_of_the_tasks_end_the_job():
    def tasks():
        yield from numbered(20)
        raise ValueError("The table ends early.")

    with pytest.raises(ValueError, match="The table ends early"):
        list(run_stubs(tasks(), workers=1))
    assert living_workers() == []


# A shell may have these tests, as background jobs, ignore SIGINT, which the script inherits.
SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
from test_engines import run_stubs, tasks_of

if {guard}:
    tasks = tasks_of("0", "1", "sleeping 0", "sleeping 1", "2", "3")
    for outcome in run_stubs(tasks, workers=2):
        print(outcome.result["pid"], flush=True)
"""


@pytest.fixture
def start_driver(tmp_path):
    """A function that starts a job of two workers, both busy for a minute, in a process group of its own."""
    started = []

    def start(guard='__name__ == "__main__"'):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), guard=guard))
        command = [sys.executable, str(script)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_workers_end_with_a_killed_driver(start_driver):
    driver = start_driver()
    workers = {int(driver.stdout.readline()) for _ in range(2)}
    time.sleep(0.5)
    driver.send_signal(signal.SIGKILL)
    start = time.monotonic()
    wait_until(lambda: not any(map(is_alive, workers)))

    assert time.monotonic() - start < 7
    assert driver.communicate()[1] == ""


@pytest.mark.slow
def test_ctrl_c_ends_the_job_at_once(start_driver):
    driver = start_driver()
    workers = {int(driver.stdout.readline()) for _ in range(2)}
    start = time.monotonic()
    os.killpg(driver.pid, signal.SIGINT)
    _, errors = driver.communicate(timeout=DEADLINE_S)

    assert time.monotonic() - start < 3
    assert not any(map(is_alive, workers))
    assert errors.count("Traceback") == 1 and errors.endswith("KeyboardInterrupt\n")


@pytest.mark.slow
def test_ctrl_c_while_workers_start(start_driver):
    driver = start_driver()
    children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children")
    wait_until(lambda: len(children.read_text().split()) > 1)  # the first is the resource tracker
    os.killpg(driver.pid, signal.SIGINT)
    output, errors = driver.communicate(timeout=DEADLINE_S)

    assert output == ""
    assert errors.count("Traceback") == 1 and errors.endswith("KeyboardInterrupt\n")


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(start_driver):
    _, errors = start_driver(guard="True").communicate(timeout=DEADLINE_S)

    assert errors.endswith(
        "ChildProcessError: A worker process ended with exit code 1 before it loaded the model, see its output above; "
        'a Python script must be a file that starts the job under `if __name__ == "__main__":`.\n'
    )


@pytest.mark.slow
def test_processes_return_the_predictions_of_local(example_audio):
    paths = sorted(example_audio.parent.glob("*.flac"))
    tasks = [Task(ArchiveItem(f"{path.stem}{copy}", path=str(path))) for copy in "ab" for path in paths]
    expected = {outcome.task.item.id: outcome for outcome in run_local(tasks, OPTIONS)}
    found = {outcome.task.item.id: outcome for outcome in run_processes(tasks, OPTIONS, workers=2)}

    assert found == expected and len(found) == len(tasks)
    assert all(outcome.error is None for outcome in found.values())
