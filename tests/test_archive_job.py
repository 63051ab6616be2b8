"""Archive jobs from sources to the output folder, and what is left of them when processes are killed."""

import csv
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.archives import ArchiveSummary, score
from mmemo.archives.archive_job import ENGINES
from mmemo.archives.archive_output import read_manifest, read_rows
from mmemo.archives.archive_rows import FORMATS
from mmemo.archives.archive_summary import PERIODS
from mmemo.cli import Engine, Format, Period, app


CLIPS = Path(__file__).parents[1] / "examples" / "audio"
NUM_CLIPS = 2000  # of the jobs that are killed


@pytest.fixture
def folder(tmp_path):
    """Two clips, one of them in a subfolder, and a broken file."""
    folder = tmp_path / "calls"
    (folder / "inside").mkdir(parents=True)
    first, second = sorted(CLIPS.glob("*.flac"))[:2]
    shutil.copy(first, folder / "a.flac")
    shutil.copy(second, folder / "inside" / "b.flac")
    (folder / "c.wav").write_bytes(b"not audio")
    return folder


@pytest.fixture
def run():
    """Runs `mmemo predict` with arguments."""

    def invoke(*arguments):
        return CliRunner().invoke(app, ["predict", *map(str, arguments)])

    return invoke


def by_name(output):
    rows = list(read_rows(output))
    assert len({row["id"] for row in rows}) == len(rows)
    return {Path(row["id"]).name: row for row in rows}


def test_an_archive_is_predicted_as_its_files_are(folder, tmp_path):
    summary = score(folder, tmp_path / "out")

    rows = by_name(tmp_path / "out")
    assert summary == ArchiveSummary(predicted=2, failed=1, skipped=0, problems=())
    predicted = EmotionPredictor(num_threads=1)(folder / "a.flac")
    assert rows["a.flac"]["scores"] == {entry["label"]: entry["score"] for entry in predicted}
    assert rows["a.flac"]["label"] == predicted[0]["label"] and rows["a.flac"]["error"] is None
    assert rows["c.wav"]["label"] is None and "is not readable audio" in rows["c.wav"]["error"]


def test_run_again_predicts_what_is_missing(folder, tmp_path):
    score(folder / "a.flac", tmp_path / "out")

    assert score(folder, tmp_path / "out") == ArchiveSummary(1, 1, 1, ())
    assert score(folder, tmp_path / "out") == ArchiveSummary(0, 0, 3, ())


@pytest.mark.slow
def test_failed_files_are_retried_on_request(folder, tmp_path):
    score(folder, tmp_path / "out")
    shutil.copy(folder / "a.flac", folder / "c.wav")

    assert score(folder, tmp_path / "out").skipped == 3
    assert score(folder, tmp_path / "out", retry_failed=True) == ArchiveSummary(1, 0, 2, ())
    row = by_name(tmp_path / "out")["c.wav"]
    assert row["error"] is None and row["attempts"] == 2


@pytest.mark.slow
def test_another_job_in_the_same_output_is_refused(folder, tmp_path):
    score(folder / "a.flac", tmp_path / "out")

    with pytest.raises(ValueError, match=r"threshold was None and is 0\.5"):
        score(folder, tmp_path / "out", threshold=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "engine='spark' is unknown; choose one of"),
        ({"address": "auto"}, "address='auto' is that of a Ray cluster"),
        ({"workers": 2}, "workers=2 needs engine='processes' or 'ray'"),
        ({"threshold": 2.0}, "threshold"),
        ({"format": "xml"}, "'xml' is unknown"),
        ({"partition_by": ["agent"]}, "agent"),
    ],
)
def test_invalid_options(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        score(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_columns_of_a_table_are_in_the_output(folder, tmp_path):
    with (folder / "calls.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["recording", "call", "agent"], ["a.flac", "0071", "anna"], ["inside/b.flac", "0072", "ben"]]
        )

    score(folder / "calls.csv", tmp_path / "out", columns={"path": "recording", "id": "call"}, partition_by=["agent"])

    assert {row["id"]: row["agent"] for row in read_rows(tmp_path / "out")} == {"0071": "anna", "0072": "ben"}
    assert len(list((tmp_path / "out" / "agent=anna").glob("part-*.parquet"))) == 1


def test_command_with_a_timeline(run, folder, tmp_path):
    result = run(folder, "--output", tmp_path / "out", "--format", "json", "--timeline", "--threshold", 0.4)

    assert result.exit_code == 1, result.output
    assert "2 predicted, 1 failed" in result.output
    rows = by_name(tmp_path / "out")
    timeline = EmotionPredictor(num_threads=1)(folder / "a.flac", return_timeline=True, threshold=0.4)
    assert [entry["start"] for entry in rows["a.flac"]["timeline"]] == [e["start"] for e in timeline["timeline"]]
    assert read_manifest(tmp_path / "out").options["threshold"] == 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.wav", "--output", "out.csv"], "names a file: add --csv"),
        (["a.wav", "--output", "out.jsonl"], "names a file: add --json"),
        (["a.wav", "--engine", "ray"], "--engine needs --output FOLDER"),
        (["a.wav", "--retry-failed", "--csv"], "--retry-failed needs --output FOLDER"),
        (["-", "--output", "out"], "--output FOLDER needs files"),
        (["a.wav", "--output", "out", "--text", "hello"], "--text contradicts --output FOLDER"),
        (["a.csv", "--output", "out", "--columns", "path"], "must be written as ours=theirs"),
    ],
)
def test_contradictory_options_of_the_command(run, arguments, message):
    result = run(*arguments)

    assert result.exit_code == 2 and message in " ".join(result.output.replace("│", " ").split())


def test_the_command_offers_all_choices():
    assert tuple(Engine) == ENGINES and tuple(Format) == tuple(FORMATS) and tuple(Period) == tuple(PERIODS)


@pytest.mark.slow
def test_engines_agree_to_the_bit(folder, tmp_path):
    for engine, workers in (("local", None), ("processes", 2), ("ray", 2)):
        score(folder, tmp_path / engine, engine=engine, workers=workers, timeline=True)

    expected = by_name(tmp_path / "local")
    assert by_name(tmp_path / "processes") == by_name(tmp_path / "ray") == expected


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of short clips, and the rows of an uninterrupted job of them."""
    place = tmp_path_factory.mktemp("many")
    voices = [soundfile.read(path)[0] for path in sorted(CLIPS.glob("*.flac"))]
    random = np.random.default_rng(0)
    (place / "clips").mkdir()
    for number in range(NUM_CLIPS):
        voice = voices[number % len(voices)]
        start = random.integers(len(voice) - 8000)
        soundfile.write(place / "clips" / f"{number:04d}.flac", voice[start : start + 8000], 16_000)
    (place / "clips" / "broken.wav").write_bytes(b"not audio")
    score(place / "clips", place / "expected", engine="processes", workers=2)
    return place / "clips", by_name(place / "expected")


def start_job(clips, output, *options):
    """Starts `mmemo predict` in a process of its own."""
    command = [sys.executable, "-m", "mmemo.cli", "predict", clips, "--output", output, *options]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_rows(process, output, count):
    """Waits until the output has this many rows."""

    def has_rows():
        assert process.poll() is None, process.communicate()[0]
        return any(output.rglob("part-*")) and sum(1 for _ in read_rows(output)) >= count

    wait_for(has_rows)


def wait_for(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "processes"])
def test_a_killed_driver_loses_nothing(many, tmp_path, engine):
    clips, expected = many
    output = tmp_path / "out"

    driver = start_job(clips, output, "--engine", engine)
    wait_for_rows(driver, output, 1)
    driver.kill()
    driver.communicate()
    found = by_name(output)
    assert 0 < len(found) < len(expected) and all(row == expected[name] for name, row in found.items())
    summary = score(clips, output, engine=engine)

    assert summary.skipped == len(found)
    assert by_name(output) == expected


@pytest.mark.slow
def test_a_cluster_loses_its_driver_a_worker_and_a_node(many, tmp_path):
    from ray_cluster import local_cluster

    clips, expected = many
    output = tmp_path / "out"
    options = ("--engine", "ray", "--format", "parquet")

    with local_cluster(nodes=3) as cluster:
        driver = start_job(clips, output, *options, "--address", cluster.address)
        wait_for_rows(driver, output, 1)
        driver.kill()
        driver.communicate()
        before = len(by_name(output))
        assert 0 < before < len(expected)
        driver = start_job(clips, output, *options, "--address", cluster.address)
        wait_for(lambda: cluster.pids() or driver.poll() is not None)
        time.sleep(2)
        assert driver.poll() is None
        cluster.kill_worker()
        cluster.kill_node()
        printed, _ = driver.communicate(timeout=600)

    assert driver.returncode == 1, printed  # for the broken file
    assert f"{before:,} were there already" in printed
    found = by_name(output)
    # Tasks that were on the lost worker may count one more attempt.
    assert all(row["attempts"] <= 3 for row in found.values())
    assert {name: row | {"attempts": 1} for name, row in found.items()} == expected
