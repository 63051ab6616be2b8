import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.cli import app


@pytest.fixture
def run():
    def run(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


def test_a_file_and_its_words(run, example_audio):
    result = run("predict", example_audio, "--text", "I hate you!", "--top-k", 2)

    best = EmotionPredictor()(example_audio, "I hate you!", top_k=2)
    expected = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in best)
    assert (result.exit_code, result.stdout) == (0, f"{example_audio}: {expected}\n")


def test_files_as_json(run, exported, make_clip, tmp_path):
    paths = [tmp_path / "one.wav", tmp_path / "two.wav"]
    for seed, path in enumerate(paths):
        soundfile.write(path, make_clip(0.5, seed), 16_000)

    result = run("predict", *paths, "--model", exported, "--json")

    predict = EmotionPredictor(exported)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines == [answer_of(predict, path) for path in paths]


def answer_of(predict, path):
    answer = predict(path, return_modality_weights=True)
    return {"file": str(path), "text": None, "label": answer["scores"][0]["label"], **answer}


@pytest.fixture
def folder(make_clip, tmp_path):
    """Five clips, one of them in a folder inside, one that is none, and what is no audio."""
    folder = tmp_path / "clips"
    (folder / "inside").mkdir(parents=True)
    for name in ("a.wav", "b.flac", "inside/c.ogg", "d.WAV"):
        soundfile.write(folder / name, make_clip(0.6, len(name)), 16_000, format=name[-3:].replace("lac", "FLAC"))
    (folder / "e.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("no audio")
    return folder


def test_a_folder_as_csv_goes_on_where_it_broke_off(run, exported, folder, tmp_path):
    output = tmp_path / "answers.csv"
    command = ("predict", folder, "--csv", "--output", output, "--model", exported)

    first = run(*command)

    assert first.exit_code == 1 and first.stdout == ""
    assert f"Error: {folder / 'e.wav'}: audio: {folder / 'e.wav'} is not readable audio" in first.stderr
    whole = output.read_text()
    rows = list(csv.DictReader(io.StringIO(whole)))
    assert [Path(row["file"]).name for row in rows] == ["a.wav", "b.flac", "d.WAV", "c.ogg"]
    predict = EmotionPredictor(exported)
    for row in rows:
        scores = {entry["label"]: entry["score"] for entry in predict(row["file"])}
        assert {label: float(row[label]) for label in scores} == pytest.approx(scores, abs=1e-6)
        assert row["label"] == max(scores, key=scores.get) and float(row["score"]) == pytest.approx(
            max(scores.values())
        )

    lines = whole.splitlines(keepends=True)
    output.write_text("".join(lines[:3]) + lines[3][:20])  # broken off within a row
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


def test_timelines_as_csv_go_on_where_they_broke_off(run, exported, example_audio, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copy(example_audio, tmp_path / f"{name}.flac")
    output = tmp_path / "answers.csv"
    command = ("predict", str(tmp_path / "*.flac"), "--timeline", "--csv", "--output", output, "--model", exported)

    assert run(*command).exit_code == 0
    whole = output.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) > 10 and lines[0].startswith("file,start,end,words,label,score,angry,")
    output.write_text("".join(lines[:-3]))  # the last file has some of its rows

    assert run(*command).exit_code == 0
    assert output.read_text() == whole


def test_json_goes_on_where_it_broke_off(run, exported, folder, tmp_path):
    output = tmp_path / "answers.jsonl"
    command = ("predict", folder / "a.wav", folder / "b.flac", "--json", "--output", output, "--model", exported)
    assert run(*command).exit_code == 0
    whole = output.read_text()
    output.write_text(whole[:-30])

    assert run(*command).exit_code == 0
    assert output.read_text() == whole
    assert run(*command).exit_code == 0
    assert output.read_text() == whole

    output.write_text("something else\n")
    result = run(*command)
    assert result.exit_code == 1 and "holds no answers of such a run" in result.stderr
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


def test_info(run, exported):
    embedded, tiny = run("info"), run("info", exported)

    assert embedded.exit_code == tiny.exit_code == 0
    assert "angry, disgust, fear, happy, neutral, sad, surprise" in embedded.stdout
    assert "int8 (dynamic)" in embedded.stdout and "80.9 MB in model.safetensors" in embedded.stdout
    assert "model.onnx" in tiny.stdout and "coverage" not in tiny.stdout


def test_evaluate_is_eval_py(run):
    result = subprocess.run(
        [sys.executable, "-m", "mmemo.cli", "evaluate", "--help"], capture_output=True, text=True, check=True
    )

    assert "--corpora" in result.stdout and "--pairs" in result.stdout
    assert "There is nothing to score" in run("evaluate").stderr


def test_settings_of_a_service(run, monkeypatch):
    monkeypatch.setenv("MMEMO_SERVE__MAX_CLIP_S", "12.5")
    monkeypatch.setenv("MMEMO_SERVE__API_KEYS", "secret")

    monkeypatch.setenv("MMEMO_PORT", "1")

    result = run("serve", "--port", 1234, "--settings")

    assert result.exit_code == 0 and "secret" not in result.stdout
    expected = {"MMEMO_SERVE__PORT=1234", "MMEMO_SERVE__MAX_CLIP_S=12.5", "MMEMO_SERVE__API_KEYS=(1 keys)"}
    assert expected <= set(result.stdout.splitlines())
    assert "Warning: MMEMO_PORT is ignored: the setting is now called MMEMO_SERVE__PORT." in result.stderr


def test_a_text_alone(run, exported):
    assert run("predict", "--text", "so happy", "--model", exported).stdout.startswith("so happy: ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict"], 2, "Give audio files, --text, --srt, or several of them"),
        (["predict", "a.wav", "--json", "--csv"], 2, "--json and --csv contradict each other"),
        (["predict", "a.wav", "--output", "out.csv"], 2, "--output takes --json or --csv"),
        (["predict", "a.wav", "--plot", "plots"], 2, "take --timeline"),
        (["predict", "no/*.wav"], 1, "Error: no/*.wav matches no file."),
        (["predict", "benchmarks"], 1, "Error: benchmarks holds no audio file; those end in .aif"),
        (["predict", "a.wav", "b.wav", "--srt", "a.srt"], 2, "--srt a.srt goes with one file, got 2"),
        (["info", "configs"], 1, "Error: configs holds no model of mmemo"),
        (["serve", "--model", "configs"], 1, "Error: configs holds no model_int8.onnx"),
        (["predict", "a.wav", "b.wav", "--text", "so"], 2, "--text goes with one file, got 2"),
        (["predict", "missing.wav"], 1, "Error: missing.wav: audio: Cannot read missing.wav"),
        (["export", "model"], 2, "Give either --output or --in-place"),
        (["export", "model", "--output", "out", "--in-place"], 2, "Give either --output or --in-place"),
        (["export", "model", "--in-place", "--int8", "none"], 2, "--in-place adds an int8 graph"),
        (["export", "model", "--output", "out", "--int8", "static"], 2, "--calibration goes with --int8 static"),
        (["export", "model", "--output", "out", "--calibration", "ravdess"], 2, "--calibration goes with --int8"),
        (["export", "model", "--output", "out", "--to", "tflite"], 2, "'tflite' is not one of 'onnx', 'torch-int8'"),
    ],
)
def test_bad_input_is_a_sentence(run, arguments, code, message):
    result = run(*arguments)

    assert result.exit_code == code
    # Usage errors are framed, and broken into lines, for the terminal.
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_what_is_not_installed_is_named(run, exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    result = run("predict", "--text", "so", "--model", exported)

    assert (result.exit_code, result.stderr) == (
        1,
        "Error: Running a graph needs ONNX Runtime: pip install onnxruntime.\n",
    )


def test_the_command_is_installed():
    result = subprocess.run([sys.executable, "-m", "mmemo.cli", "--help"], capture_output=True, text=True, check=True)

    assert "predict" in result.stdout and "export" in result.stdout
