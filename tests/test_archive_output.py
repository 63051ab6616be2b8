"""The output folder of an archive job: parts, runs that resume, failed rows, full disks and killed processes."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from mmemo.archives import archive_output
from mmemo.archives.archive_output import ArchiveOutput, read_manifest, read_rows
from mmemo.archives.job_manifest import JobManifest
from mmemo.archives.tasks import ArchiveItem, Outcome, Task


LABELS = ("angry", "sad")
RESULT = {
    "label": "sad",
    "scores": [{"label": "sad", "score": 0.75}, {"label": "angry", "score": 0.25}],
    "modality_weights": {"audio": 1.0, "text": 0.0},
    "duration": 2.5,
}
SUFFIXES = {"parquet": ".parquet", "json": ".jsonl", "csv": ".csv"}


def add_all(output, outcomes):
    for one in outcomes:
        output.add(one)


def make_manifest(format="parquet", **changes):
    manifest = JobManifest(
        model=None,
        revision=None,
        model_hash="0" * 64,
        options={},
        format=format,
        partition_by=(),
        labels=LABELS,
        modalities=("audio", "text"),
        columns={"agent": "string", "month": "int64"},
        versions={},
    )
    return dataclasses.replace(manifest, **changes)


@pytest.fixture(params=SUFFIXES)
def manifest(request):
    return make_manifest(request.param)


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    return str(tmp_path / "OUT") if request.param == "local" else f"memory://{tmp_path.name}/OUT"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "OUT"


def outcome(name, error=None, attempts=1, columns=None, result=RESULT):
    task = Task(ArchiveItem(name, f"{name}.wav", columns=columns or {"agent": "anna", "month": 7}), attempts=attempts)
    return Outcome(task, error=error) if error else Outcome(task, result)


def found(folder):
    return {row["id"]: (row["label"], row["error"], row["attempts"]) for row in read_rows(folder)}


def parts(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("part-*"))


GOOD = ("sad", None, 1)


def test_a_run_resumes(folder, manifest):
    with ArchiveOutput.open(folder, manifest) as output:
        assert not output.is_done("a")
        add_all(output, [outcome("a"), outcome("b", "It is empty.")])
        assert output.is_done("a") and output.failed == {"b": 1} and output.num_rows == 0
        output.flush()
        assert output.num_rows == 2
    with ArchiveOutput.open(folder, manifest) as output:
        assert output.is_done("a") and output.is_done("b") and not output.is_done("c")
        assert output.failed == {"b": 1} and output.num_rows == 2
        output.add(outcome("c"))

    assert found(folder) == {"a": GOOD, "b": (None, "It is empty.", 1), "c": GOOD}
    assert len(list(read_rows(folder))) == 3
    assert read_manifest(folder) == manifest


def test_failed_rows_are_retried_in_place(folder, manifest):
    with ArchiveOutput.open(folder, manifest, rows_per_part=3) as output:
        add_all(output, (outcome(name, "Failed." if name in "bde" else None) for name in "abcde"))
    before = list(read_rows(folder))
    with ArchiveOutput.open(folder, manifest, retry_failed=True) as output:
        assert output.is_done("a") and not output.is_done("b") and output.failed == dict.fromkeys("bde", 1)
        add_all(output, [outcome("d", attempts=output.attempts("d") + 1), outcome("b", "Failed again.", attempts=2)])
        output.add(outcome("f"))
        assert output.is_done("b") and output.failed == {"b": 2, "e": 1}
        output.flush()
        assert output.num_rows == 6

    expected = dict.fromkeys("acf", GOOD) | {"b": (None, "Failed again.", 2), "d": ("sad", None, 2)}
    assert found(folder) == expected | {"e": (None, "Failed.", 1)}
    after = list(read_rows(folder))
    assert [row["id"] for row in after] == list("abcdef") and after[0] == before[0]
    with ArchiveOutput.open(folder, manifest) as output:
        assert output.failed == {"b": 2, "e": 1} and output.num_rows == 6


def test_parts_are_written_by_number_of_rows(out, manifest):
    with ArchiveOutput.open(out, manifest, rows_per_part=2) as output:
        add_all(output, map(outcome, "abcde"))
        assert len(parts(out)) == 2 and output.num_rows == 4

    suffix = SUFFIXES[manifest.format]
    assert len(parts(out)) == 3
    assert all(re.fullmatch(rf"part-0000\d-[0-9a-f]{{8}}\{suffix}", name) for name in parts(out))


def test_parts_are_written_by_time(out, monkeypatch):
    now = 0.0
    monkeypatch.setattr(archive_output, "monotonic", lambda: now)
    with ArchiveOutput.open(out, make_manifest(partition_by=("agent",))) as output:
        output.add(outcome("a", columns={"agent": "anna"}))
        now = 29.0
        output.add(outcome("b", columns={"agent": "ben"}))
        assert parts(out) == []
        now = 30.0
        output.add(outcome("c", columns={"agent": "ben"}))
        assert len(parts(out)) == 1 and parts(out)[0].startswith("agent=anna/")
        now = 59.0
        output.add(outcome("d", columns={"agent": "anna"}))
        assert len(parts(out)) == 2 and output.num_rows == 3


def test_long_timelines_are_written_by_size(out, monkeypatch):
    monkeypatch.setattr(archive_output, "MAX_COLLECTED_BYTES", 100_000)
    span = {"start": 0.0, "end": 0.5, "words": [], **RESULT}
    with ArchiveOutput.open(out, make_manifest()) as output:
        output.add(outcome("a"))
        assert output.num_rows == 0
        output.add(outcome("long", result={**RESULT, "timeline": [span] * 5000, "spans": [], "speech": []}))
        assert output.num_rows == 2


def test_another_job_is_refused(folder):
    with ArchiveOutput.open(folder, make_manifest()) as output:
        output.add(outcome("a"))

    with pytest.raises(ValueError, match=r"OUT contains the predictions of another job: format was 'parquet' and is"):
        ArchiveOutput.open(folder, make_manifest("json"))
    with ArchiveOutput.open(folder, make_manifest(columns={"month": "int64", "agent": "string"})) as output:
        output.add(outcome("b"))
    assert set(found(folder)) == {"a", "b"}


def test_a_folder_with_other_files_is_refused(out):
    out.mkdir()
    (out / ".DS_Store").touch()
    (out / "notes.txt").touch()

    with pytest.raises(
        ValueError, match=r"OUT has no \.manifest\.json but other files, such as notes\.txt; choose a new"
    ):
        ArchiveOutput.open(out, make_manifest())
    with pytest.raises(FileNotFoundError, match=r"OUT has no \.manifest\.json; choose the --output of an earlier"):
        list(read_rows(out))
    (out / "notes.txt").unlink()
    ArchiveOutput.open(out, make_manifest()).close()


def test_a_second_writer_is_refused_and_an_error_releases_the_lock(out):
    with ArchiveOutput.open(out, make_manifest()), pytest.raises(ValueError, match="OUT is being written by process"):
        ArchiveOutput.open(out, make_manifest())
    with pytest.raises(ValueError, match="another job"):
        ArchiveOutput.open(out, make_manifest("csv"))
    ArchiveOutput.open(out, make_manifest()).close()


@pytest.mark.parametrize("change", [{"format": "xml"}, {"partition_by": ("queue",)}, {"columns": {"id": "string"}}])
def test_an_invalid_manifest_is_refused_before_anything_is_created(change, out):
    with pytest.raises(ValueError, match=r"choose one of|rename it"):
        ArchiveOutput.open(out, make_manifest(**change))
    assert not out.exists()


@pytest.mark.parametrize("content", [lambda content: content[:-5], lambda content: b"", lambda content: b"PAR1 no"])
def test_a_damaged_part_is_named(content, out, manifest):
    with ArchiveOutput.open(out, manifest) as output:
        add_all(output, map(outcome, "ab"))
    (name,) = parts(out)
    (out / name).write_bytes(content((out / name).read_bytes()))

    with pytest.raises(ValueError, match=rf"OUT/{name} is damaged, or not a file of this job \(.*\)\. Restore it, or"):
        ArchiveOutput.open(out, manifest)
    with pytest.raises(ValueError, match=r"OUT/part-.* is damaged"):
        list(read_rows(out))
    (out / name).unlink()
    with ArchiveOutput.open(out, manifest) as output:
        assert not output.is_done("a")


def test_parts_of_two_writers_are_found(out, manifest):
    with ArchiveOutput.open(out, manifest) as output:
        add_all(output, map(outcome, "ab"))
    (name,) = parts(out)
    (out / f"part-7-x{SUFFIXES[manifest.format]}").write_bytes((out / name).read_bytes())

    with pytest.raises(
        ValueError, match=r"OUT/part-7-x.* is damaged, .* \(the row of 'a' is in another file too\)\. Rest"
    ):
        ArchiveOutput.open(out, manifest)


def test_a_part_that_cannot_be_read_is_not_called_damaged(out):
    with ArchiveOutput.open(out, make_manifest()) as output:
        output.add(outcome("a"))

    class Unreadable:
        place = "OUT"

        def open(self, name):
            return (out / name).open("rb")

    with (
        pytest.raises(OSError, match=r"OUT/part-.* cannot be read \(\[Errno 5\] I/O\); nothing was changed"),
        archive_output._reading_part(Unreadable(), parts(out)[0]),
    ):
        raise OSError(5, "I/O")


def test_ids_are_unique(out):
    with ArchiveOutput.open(out, make_manifest()) as output:
        output.add(outcome("a"))
        with pytest.raises(ValueError, match="a: the output has a row of this id already; ids must be unique"):
            output.add(outcome("a"))


def test_names_that_are_not_unicode_are_done_too(out, manifest):
    with ArchiveOutput.open(out, manifest) as output:
        add_all(output, [outcome("caf\udce9"), outcome("fa\udce9", "Failed.")])
    with ArchiveOutput.open(out, manifest, retry_failed=True) as output:
        assert output.is_done("caf\udce9") and not output.is_done("fa\udce9") and output.attempts("fa\udce9") == 1
        output.add(outcome("fa\udce9", attempts=2))

    assert found(out) == {"caf\\udce9": GOOD, "fa\\udce9": ("sad", None, 2)}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_run_writes_its_rows(error, out, manifest):
    with pytest.raises(error), ArchiveOutput.open(out, manifest) as output:
        output.add(outcome("a"))
        raise error
    assert found(out) == {"a": GOOD}


@pytest.mark.parametrize("is_replaced", [False, True])
def test_an_interruption_around_the_rename_repeats_no_row(is_replaced, out, manifest, monkeypatch):
    replace = os.replace

    def interrupt(*paths):
        monkeypatch.setattr(os, "replace", replace)
        if is_replaced:
            replace(*paths)
        raise KeyboardInterrupt

    output = ArchiveOutput.open(out, manifest, rows_per_part=2)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), output:
        add_all(output, map(outcome, "abc"))

    assert sorted(row["id"] for row in read_rows(out)) == ["a", "b"] and len(parts(out)) == 1


def test_values_that_do_not_fit_lose_no_other_row(out):
    with (
        pytest.raises(ValueError, match="b: the column 'month' has the type int64, got 'July'"),
        ArchiveOutput.open(out, make_manifest()) as output,
    ):
        add_all(output, [outcome("a"), outcome("b", columns={"month": "July"})])
    assert found(out) == {"a": GOOD}


def test_partitions(folder):
    manifest = make_manifest(partition_by=("agent", "month"))
    values = [("anna", 7), ("ben/x", 7), (None, 8), ("anna", 7)]
    with ArchiveOutput.open(folder, manifest) as output:
        add_all(
            output,
            (
                outcome(str(number), "Failed." if number else None, columns={"agent": agent, "month": month})
                for number, (agent, month) in enumerate(values)
            ),
        )
    with ArchiveOutput.open(folder, manifest, retry_failed=True) as output:
        output.add(outcome("1", attempts=2, columns={"agent": "ben/x", "month": 7}))
        with pytest.raises(
            ValueError, match=r"2: its failed row is in agent=__HIVE.*, but its columns now belong to ag"
        ):
            output.add(outcome("2", attempts=2, columns={"agent": "anna", "month": 8}))

    rows = {row["id"]: (row["agent"], row["month"], row["attempts"]) for row in read_rows(folder)}
    assert rows == {"0": ("anna", 7, 1), "1": ("ben/x", 7, 2), "2": (None, 8, 1), "3": ("anna", 7, 1)}
    if "://" not in folder:
        assert {name.rpartition("/")[0] for name in parts(Path(folder))} == {
            "agent=anna/month=7",
            "agent=ben%2Fx/month=7",
            "agent=__HIVE_DEFAULT_PARTITION__/month=8",
        }


def test_temporary_files_of_others_are_kept(out):
    (out / "inside").mkdir(parents=True)
    (out / "inside" / ".letter.tmp").touch()
    (out / "inside" / "letter.txt").touch()
    with pytest.raises(ValueError, match="choose a new folder"):
        ArchiveOutput.open(out, make_manifest())

    assert (out / "inside" / ".letter.tmp").exists()


def test_a_run_resumes_in_partitions_with_hidden_names(folder):
    manifest = make_manifest(columns={".agent": "string"}, partition_by=(".agent",))
    with ArchiveOutput.open(folder, manifest) as output:
        output.add(outcome("a", columns={".agent": "anna"}))
    with ArchiveOutput.open(folder, manifest) as output:
        assert output.is_done("a")

    assert found(folder) == {"a": GOOD}


@pytest.mark.parametrize("partition_by", [(), ("agent", "month")])
def test_duckdb_reads_every_format(partition_by, out, manifest):
    duckdb = pytest.importorskip("duckdb")
    agents = ["007", "Ann/a é", None, ""]
    with ArchiveOutput.open(out, dataclasses.replace(manifest, partition_by=partition_by)) as output:
        add_all(output, (outcome(str(n), columns={"agent": agent, "month": n}) for n, agent in enumerate(agents)))
        output.add(outcome("4", "Failed."))
    reader = {"parquet": "read_parquet({})", "json": "read_json({})", "csv": "read_csv({}, all_varchar=true)"}
    glob = f"'{out}/**/part-*{SUFFIXES[manifest.format]}', hive_partitioning={'true' if partition_by else 'false'}"
    source = reader[manifest.format].format(glob)

    rows = duckdb.sql(f"select id, label, score::double, error, agent from {source} order by id").fetchall()
    # An empty text is null in CSV.
    expected = [*agents[:3], None if manifest.format == "csv" and not partition_by else ""]
    assert rows[:4] == [(str(n), "sad", 0.75, None, agent) for n, agent in enumerate(expected)]
    assert rows[4] == ("4", None, None, "Failed.", "anna")


@pytest.mark.parametrize("partition_by", [(), ("agent",)])
def test_pandas_and_datasets_read_parquet(partition_by, out, tmp_path):
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    with ArchiveOutput.open(out, make_manifest(partition_by=partition_by)) as output:
        add_all(output, (outcome(name, columns={"agent": agent}) for name, agent in (("a", "007"), ("b", None))))

    paths = sorted(map(str, out.glob("**/*.parquet")))
    frame = pandas.read_parquet(paths, partitioning=None).set_index("id")
    assert frame.loc["a", "agent"] == "007" and pandas.isna(frame.loc["b", "agent"])
    loaded = datasets.load_dataset("parquet", data_files=f"{out}/**/*.parquet", cache_dir=str(tmp_path))["train"]
    assert {row["id"]: (row["agent"], row["scores"]["sad"]) for row in loaded} == {
        "a": ("007", 0.75),
        "b": (None, 0.75),
    }


def test_the_ids_of_a_million_rows_fit_into_memory(out):
    output = ArchiveOutput.open(out, make_manifest())
    tracemalloc.start()
    output._done.update(archive_output._digest(f"calls/2026/01/{number}.wav") for number in range(30_000))
    size = tracemalloc.get_traced_memory()[1] / 30_000
    tracemalloc.stop()
    output.close()

    assert size < 200  # bytes an id


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_loses_no_written_row(small_disk, manifest):
    out, ballast = small_disk / "OUT", small_disk / "ballast"
    output = ArchiveOutput.open(out, manifest, rows_per_part=2)
    add_all(output, map(outcome, "ab"))
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)

    message = r"OUT cannot be written \(No space left on device\); the 2 rows in it are safe\. Make space"
    with pytest.raises(OSError, match=message), output:
        add_all(output, map(outcome, "cd"))
    assert found(out) == dict.fromkeys("ab", GOOD) and not list(out.glob(".*.tmp"))
    ballast.unlink()
    with ArchiveOutput.open(out, manifest) as output:
        add_all(output, (outcome(name) for name in "abcd" if not output.is_done(name)))
    assert found(out) == dict.fromkeys("abcd", GOOD)


def test_a_write_that_failed_is_tried_again_at_the_end(out, manifest, monkeypatch):
    replace, problems = os.replace, [OSError(28, "No space left on device")]

    def fail(*paths):
        if problems:
            raise problems.pop()
        replace(*paths)

    with (
        pytest.raises(OSError, match="the 0 rows in it are safe"),
        ArchiveOutput.open(out, manifest, rows_per_part=2) as output,
    ):
        monkeypatch.setattr(os, "replace", fail)
        add_all(output, map(outcome, "abc"))
    assert found(out) == dict.fromkeys("ab", GOOD)


def test_a_folder_that_cannot_be_created_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match=r"file/OUT cannot be written \(Not a directory\)"):
        ArchiveOutput.open(tmp_path / "file" / "OUT", make_manifest())


WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from test_archive_output import make_manifest, outcome
from mmemo.archives import archive_output

archive_output.SECONDS_PER_PART = 0.02  # replaces failed rows soon
options = {"retry_failed": True, "rows_per_part": 20}
with archive_output.ArchiveOutput.open(sys.argv[2], make_manifest(sys.argv[3]), **options) as output:
    for number in range(100_000):
        name = str(number)
        if not output.is_done(name):
            # Every third fails in the first run.
            error = "Failed." if number % 3 == 0 and output.attempts(name) == 0 else None
            output.add(outcome(name, error, output.attempts(name) + 1))
            print(output.num_rows, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("format", SUFFIXES)
def test_a_killed_writer_leaves_complete_parts(format, out):
    command = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(out), format]
    written = 0
    for run in range(6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
            safe = next(num_rows for line in process.stdout if (num_rows := int(line)) >= written + 40)
            time.sleep(0.0037 * run)
            process.send_signal(signal.SIGKILL)
        rows = [row["id"] for row in read_rows(out)]
        assert len(rows) == len(set(rows)) >= safe  # each id once, and no row is lost
        written = len(rows)

    with ArchiveOutput.open(out, make_manifest(format)) as output:
        assert output.num_rows == written and not list(out.rglob("*.tmp"))
    attempts = {row["attempts"] for row in read_rows(out) if int(row["id"]) % 3 == 0}
    assert attempts == {1, 2}  # killed in the middle of replacing failed rows, too
