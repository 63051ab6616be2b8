"""`mmemo predict` on files, folders and globs: the output formats, and runs that resume."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.archives.folders import find_files, find_subtitles
from mmemo.cli import app


@pytest.fixture
def run():
    """Runs the command `mmemo` with arguments."""
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_json_has_a_line_per_file(run, exported, make_clip, tmp_path):
    paths = [tmp_path / "one.wav", tmp_path / "two.wav"]
    for seed, path in enumerate(paths):
        soundfile.write(path, make_clip(0.5, seed), 16_000)

    result = run("predict", *paths, "--model", exported, "--json")

    predict = EmotionPredictor(exported)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines == [expected_line(predict, path) for path in paths]


def expected_line(predict, path):
    result = predict(path, return_modality_weights=True)
    return {"file": str(path), "text": None, "label": result["scores"][0]["label"], **result}


@pytest.fixture
def folder(make_clip, tmp_path):
    """Four clips, one of them in a subfolder, a broken audio file, and a text file."""
    folder = tmp_path / "clips"
    (folder / "inside").mkdir(parents=True)
    for name in ("a.wav", "b.flac", "inside/c.ogg", "d.WAV"):
        soundfile.write(folder / name, make_clip(0.6, len(name)), 16_000, format=name[-3:].replace("lac", "FLAC"))
    (folder / "e.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("not audio")
    return folder


def test_an_interrupted_csv_run_resumes(run, exported, folder, tmp_path):
    output = tmp_path / "predictions.csv"
    command = ("predict", folder, "--csv", "--output", output, "--model", exported)

    first = run(*command)

    assert first.exit_code == 1 and first.stdout == ""
    assert f"Error: {folder / 'e.wav'}: audio: {folder / 'e.wav'} is not readable audio" in first.stderr
    complete = output.read_text()
    rows = list(csv.DictReader(io.StringIO(complete)))
    assert [Path(row["file"]).name for row in rows] == ["a.wav", "b.flac", "d.WAV", "c.ogg"]
    predict = EmotionPredictor(exported)
    for row in rows:
        scores = {entry["label"]: entry["score"] for entry in predict(row["file"])}
        assert {label: float(row[label]) for label in scores} == pytest.approx(scores, abs=1e-6)
        assert row["label"] == max(scores, key=scores.get) and float(row["score"]) == pytest.approx(
            max(scores.values())
        )

    lines = complete.splitlines(keepends=True)
    output.write_text("".join(lines[:3]) + lines[3][:20])  # interrupted within a row
    soundfile.write(folder / "e.wav", np.sin(np.arange(16_000)), 16_000)

    second = run(*command)

    assert (second.exit_code, second.stderr) == (0, "")
    again = output.read_text()
    assert again.startswith("".join(lines[:3]))
    assert sorted(Path(row["file"]).name for row in csv.DictReader(io.StringIO(again))) == [
        "a.wav",
        "b.flac",
        "c.ogg",
        "d.WAV",
        "e.wav",
    ]


def test_an_interrupted_csv_run_of_timelines_resumes(run, exported, example_audio, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copy(example_audio, tmp_path / f"{name}.flac")
    output = tmp_path / "predictions.csv"
    command = ("predict", str(tmp_path / "*.flac"), "--timeline", "--csv", "--output", output, "--model", exported)

    assert run(*command).exit_code == 0
    complete = output.read_text()
    lines = complete.splitlines(keepends=True)
    assert len(lines) > 10 and lines[0].startswith("file,start,end,words,label,score,angry,")
    output.write_text("".join(lines[:-3]))  # rows of the last file are missing

    assert run(*command).exit_code == 0
    assert output.read_text() == complete


def test_an_interrupted_json_run_resumes(run, exported, folder, tmp_path):
    output = tmp_path / "predictions.jsonl"
    command = ("predict", folder / "a.wav", folder / "b.flac", "--json", "--output", output, "--model", exported)
    assert run(*command).exit_code == 0
    complete = output.read_text()
    output.write_text(complete[:-30])

    assert run(*command).exit_code == 0
    assert output.read_text() == complete
    assert run(*command).exit_code == 0
    assert output.read_text() == complete

    output.write_text("something else\n")
    result = run(*command)
    assert result.exit_code == 1 and "does not contain predictions of such a run" in result.stderr
    assert output.read_text() == "something else\n"


def test_a_timeline_with_subtitles_and_a_plot(run, example_audio, tmp_path):
    (tmp_path / f"{example_audio.stem}.srt").write_text("1\n00:00:00,200 --> 00:00:01,500\nWhat are those bags?\n")

    given = ("--timeline", "--srt", tmp_path, "--plot", tmp_path / "plots")
    text = run("predict", example_audio, *given)
    as_json = run("predict", example_audio, *given, "--json")

    assert text.exit_code == as_json.exit_code == 0, text.stderr
    assert text.stdout.startswith(f"{example_audio}: angry 0.") and " to " in text.stdout
    srt = tmp_path / f"{example_audio.stem}.srt"
    expected = EmotionPredictor()(example_audio, word_times=srt, return_timeline=True)
    found = json.loads(as_json.stdout)
    assert json.loads(json.dumps(expected)) == {name: found[name] for name in expected}
    assert (tmp_path / "plots" / f"{example_audio.stem}.png").stat().st_size > 10_000


def test_paths_folders_and_globs_give_each_file_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    names = ["d.WAV", ".", "*.flac", "inside/**/*.ogg"]

    assert [str(path) for path in find_files(names)] == ["d.WAV", "a.wav", "b.flac", "e.wav", "inside/c.ogg"]
    assert find_files(["missing.wav"]) == [Path("missing.wav")]  # reported when it is opened
    with pytest.raises(ValueError, match=r"no/\*\.wav matches no file"):
        find_files(["no/*.wav"])


def test_subtitles_have_the_name_of_the_audio_file(tmp_path):
    (tmp_path / "a.vtt").touch()

    assert find_subtitles(tmp_path, Path("clips/a.wav")) == tmp_path / "a.vtt"
    assert find_subtitles(tmp_path, Path("clips/b.wav")) is None
    assert find_subtitles(tmp_path / "a.vtt", Path("clips/b.wav")) == tmp_path / "a.vtt"
