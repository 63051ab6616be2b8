"""Every benchmark runs, with one repetition on little data."""

import csv
import importlib
import os
import re
import shutil
from pathlib import Path

import pytest
import tiny


ROOT = Path(__file__).parents[1]
CLIPS = ROOT / "examples" / "audio"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `main` of a benchmark; returns its output."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))

    def run(name, *arguments):
        importlib.import_module(name).main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def data_dir(tmp_path):
    """The example clips in the layout of RAVDESS."""
    shutil.copytree(CLIPS, tmp_path / "ravdess")
    with (CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        clips = [{**clip, "speaker": "01"} for clip in csv.DictReader(file)]
    tiny.write_table(tmp_path / "ravdess" / "metadata.csv", clips)
    return tmp_path


def test_every_benchmark_has_a_test():
    tested = {"agreement", "archives", "feature_extraction", "inference", "load", "timeline", "video"}

    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == tested


def test_agreement(run, data_dir):
    printed = run("agreement", "--data_dir", data_dir, "--corpora", "ravdess", "--limit", 2)

    _, torch, onnx = (line.split() for line in printed.splitlines())
    assert (torch[:3], onnx[:3]) == (["ravdess", "2", "torch"], ["ravdess", "2", "onnx"])
    assert torch[5:] == ["100.00%", "0.0000", "0.0000"]
    assert 0 < float(onnx[-1]) < 0.2


@pytest.mark.slow
def test_archives(run):
    printed = run("archives", "--files", 12, "--repetitions", 1, "--engines", "local:1", "processes:2")

    local, processes = (line.split() for line in printed.splitlines()[-2:])
    assert (local[0], processes[0]) == ("local:1", "processes:2")
    assert float(local[3]) == 1.0 and all(float(value) > 0 for value in (*local[1:5], *processes[1:5]))


def test_feature_extraction(run):
    printed = run("feature_extraction", "--repetitions", 1, "--clips", 2)

    assert "2 clips of 3 s" in printed and printed.count(" ms ") == 5


@pytest.mark.slow
def test_inference(run, exported):
    small = ("--exported", exported, "--repetitions", 1, "--batch_size", 2, "--batch_repetitions", 1, "--threads", 1)

    printed = run("inference", *small)

    rows = importlib.import_module("inference").ROWS
    assert all(f"\n{name} " in printed for name in rows)
    assert "PyTorch fp32 / ONNX int8: " in printed


def test_inference_profile(run, exported):
    printed = run("inference", "--exported", exported, "--profile", "--repetitions", 1, "--threads", 1)

    assert "whole call" in printed and "MatMulNBits" in printed


@pytest.mark.slow
def test_load(run):
    printed = run("load", "--requests", 2, "--repetitions", 1, "--batches", 1, "--clients", 1, 2)

    assert [line.split()[:2] for line in printed.splitlines()[-2:]] == [["1", "1"], ["1", "2"]]


@pytest.mark.slow
def test_load_growth(run):
    assert "after 8 requests: " in run("load", "--growth", 8)


def test_timeline(run):
    printed = run("timeline", "--minutes", 0.15, "--repetitions", 1)

    assert "timeline, audio and text" in printed and "ms at 95 %" in printed


@pytest.mark.slow
def test_timeline_memory(run):
    printed = run("timeline", "--minutes", 0.1, "--memory")

    assert printed.count(" MiB of memory") == 4


@pytest.mark.slow
def test_video(run):
    printed = run("video", "--repetitions", 1)

    assert "  whole call" in printed and "100.0%" in printed and "frames per second on one core" in printed


@pytest.mark.slow
def test_video_memory(run):
    printed = run("video", "--memory", "--minutes", 0.2)

    assert "0.2 minutes, the face is in 100.0% of 50 frames" in printed
    assert re.search(r"memory \d+ MiB after the first minute, \d+ MiB at the end, \d\d\d MiB at its peak", printed)
