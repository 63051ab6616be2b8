"""`mmemo predict` and `mmemo call` from arguments to output."""

import csv
import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner
from videos import short_video

from mmemo import EmotionPredictor
from mmemo.cli import Granularity, app
from mmemo.timeline.calls import summarize_call
from mmemo.timeline.windows import GRANULARITIES


SUBTITLES = "1\n00:00:00,200 --> 00:00:01,500\nWhat are those bags?\n"


@pytest.fixture
def run():
    """Runs the command `mmemo` with arguments and bytes on standard input."""

    def invoke(*arguments, stdin=None):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return invoke


@pytest.fixture(scope="module")
def embedded():
    return EmotionPredictor()


@pytest.fixture(scope="module")
def stereo(example_audio, tmp_path_factory):
    """A call: the agent speaks on channel 0, then the customer on channel 1."""
    first, second = (soundfile.read(path)[0] for path in sorted(example_audio.parent.glob("*.flac"))[:2])
    channels = np.zeros((len(first) + len(second), 2))
    channels[: len(first), 0], channels[len(first) :, 1] = first, second
    path = tmp_path_factory.mktemp("calls") / "stereo.wav"
    soundfile.write(path, channels, 16_000)
    return path


@pytest.fixture
def folder(make_clip, tmp_path):
    """Four clips, one of them in a subfolder, a broken audio file, and a text file."""
    folder = tmp_path / "clips"
    (folder / "inside").mkdir(parents=True)
    for name in ("a.wav", "b.flac", "inside/c.ogg", "d.WAV"):
        soundfile.write(folder / name, make_clip(0.6, len(name)), 16_000, format=name[-3:].replace("lac", "FLAC"))
    (folder / "e.m4a").write_bytes(b"not audio")
    (folder / "notes.txt").write_text("not audio")
    return folder


def table(content):
    return list(csv.DictReader(io.StringIO(content)))


def as_json(result):
    """Converts tuples to lists."""
    return json.loads(json.dumps(result))


def test_json_has_a_line_per_file(run, exported, folder):
    result = run("predict", folder, "--model", exported, "--json")

    predict = EmotionPredictor(exported)
    *lines, broken, last = [json.loads(line) for line in result.stdout.splitlines()]
    for line in [*lines, last]:
        expected = predict(line["file"], return_modality_weights=True)
        best = expected["scores"][0]["label"]
        assert line == {"file": line["file"], "text": None, "label": best, **expected, "error": None}
    assert broken.keys() == {"file", "text", "error"} and broken["file"] == str(folder / "e.m4a")


def test_files_of_phones_and_films_in_a_folder_are_predicted(run, exported, example_audio, tmp_path):
    samples, rate = soundfile.read(example_audio, dtype="float32")
    for name in ("call.m4a", "film.mkv"):
        with av.open(tmp_path / name, "w") as container:
            stream = container.add_stream("aac", rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = rate
            container.mux([*stream.encode(frame), *stream.encode(None)])
    shutil.copy(example_audio, tmp_path / "laboratory.flac")

    result = run("predict", tmp_path, "--csv", "--model", exported)

    assert (result.exit_code, result.stderr) == (0, "")
    assert [(Path(row["file"]).name, bool(row["label"]), row["error"]) for row in table(result.stdout)] == [
        ("call.m4a", True, ""),
        ("film.mkv", True, ""),
        ("laboratory.flac", True, ""),
    ]


def test_an_interrupted_csv_run_resumes(run, exported, folder, tmp_path):
    output = tmp_path / "predictions.csv"
    command = ("predict", folder, "--csv", "--output", output, "--model", exported)

    first = run(*command)

    assert first.exit_code == 1 and first.stdout == ""
    assert f"Error: audio: {folder / 'e.m4a'} is not readable audio" in first.stderr
    complete = output.read_text()
    rows = table(complete)
    assert [Path(row["file"]).name for row in rows] == ["a.wav", "b.flac", "d.WAV", "e.m4a", "c.ogg"]
    failed = rows.pop(3)
    assert failed["error"] in first.stderr and failed["label"] == ""
    predict = EmotionPredictor(exported)
    for row in rows:
        scores = {entry["label"]: entry["score"] for entry in predict(row["file"])}
        assert {label: float(row[label]) for label in scores} == pytest.approx(scores, abs=1e-6)
        assert row["label"] == max(scores, key=scores.get) and row["error"] == ""
        assert float(row["score"]) == pytest.approx(max(scores.values()), abs=1e-6)

    lines = complete.splitlines(keepends=True)
    output.write_text("".join(lines[:3]) + lines[3][:20])  # interrupted within a row
    soundfile.write(folder / "e.m4a", np.sin(np.arange(16_000)), 16_000, format="WAV")

    second = run(*command)

    assert (second.exit_code, second.stderr) == (0, "")
    again = output.read_text()
    assert again.startswith("".join(lines[:3]))
    assert sorted(Path(row["file"]).name for row in table(again)) == ["a.wav", "b.flac", "c.ogg", "d.WAV", "e.m4a"]


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


def test_options_of_a_prediction(run, embedded, stereo):
    options = ("--channel", 1, "--threshold", 0.99, "--coverage", 0.9, "--json")

    found = json.loads(run("predict", stereo, *options).stdout)

    expected = embedded(stereo, channel=1, threshold=0.99, coverage=0.9, return_modality_weights=True)
    assert {name: found[name] for name in expected} == expected and found["label"] == "uncertain"


def test_a_granularity_requests_a_timeline(run, embedded, example_audio, tmp_path):
    srt = tmp_path / "words.srt"
    srt.write_text(SUBTITLES)

    found = json.loads(run("predict", example_audio, "--granularity", "word", "--srt", srt, "--json").stdout)

    expected = embedded(example_audio, word_times=srt, granularity="word", return_timeline=True)
    assert {name: found[name] for name in expected} == as_json(expected) and len(found["timeline"]) == 4
    assert [one.value for one in Granularity] == list(GRANULARITIES)
    assert "granularity='word' needs words" in run("predict", example_audio, "--granularity", "word").stderr


def test_a_timeline_with_subtitles_and_a_plot(run, embedded, example_audio, tmp_path):
    srt = tmp_path / f"{example_audio.stem}.srt"
    srt.write_text(SUBTITLES)

    given = ("--timeline", "--srt", tmp_path, "--plot", tmp_path / "plots")
    text = run("predict", example_audio, *given)
    found = json.loads(run("predict", example_audio, *given, "--json").stdout)

    assert text.exit_code == 0 and text.stderr == ""
    assert text.stdout.startswith(f"{example_audio}: angry 0.") and " to " in text.stdout
    expected = embedded(example_audio, word_times=srt, return_timeline=True)
    assert {name: found[name] for name in expected} == as_json(expected)
    assert (tmp_path / "plots" / f"{example_audio.stem}.png").stat().st_size > 10_000


def test_recordings_without_subtitles_are_named(run, exported, folder, tmp_path):
    (folder / "e.m4a").unlink()
    subtitles = tmp_path / "subtitles"
    (subtitles / "inside").mkdir(parents=True)
    for name in ("a", "inside/c"):
        (subtitles / f"{name}.srt").write_text("1\n00:00:00,100 --> 00:00:00,500\nso happy\n")

    result = run("predict", folder, "--srt", subtitles, "--model", exported)

    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 4
    assert result.stderr == (
        f"Warning: 2 of 4 recordings have no subtitles in {subtitles} and are predicted without words: "
        f"{folder / 'b.flac'}, {folder / 'd.WAV'}.\n"
    )


def test_a_file_and_a_text_on_standard_input(run, exported, example_audio):
    content = example_audio.read_bytes()

    result = run("predict", "-", "--model", exported, "--json", stdin=content)

    expected = EmotionPredictor(exported)(example_audio, return_modality_weights=True)
    found = json.loads(result.stdout)
    assert found["file"] == "-" and found["scores"] == expected["scores"]
    broken = run("predict", "-", "--model", exported, stdin=b"not audio")
    assert broken.exit_code == 1 and broken.stderr.startswith("Error: -: audio: standard input is not readable audio")
    text = run("predict", "--text", "-", "--model", exported, "--json", stdin="so happy\n")
    assert json.loads(text.stdout)["text"] == "so happy"
    windows = run(
        "predict", "--text", "-", "--model", exported, "--json", stdin="\ufeffso happy\r\n".encode("utf-16-le")
    )
    assert json.loads(windows.stdout) == json.loads(text.stdout)
    both = run("predict", example_audio, "--text", "-", "--model", exported, "--json", stdin="so happy")
    assert json.loads(both.stdout)["modality_weights"]["text"] > 0


def test_faces_of_the_videos_in_a_folder_are_predicted(run, video_model, portrait, example_audio, tmp_path):
    shutil.copy(portrait, tmp_path / "a.mp4")
    (tmp_path / "b.mkv").write_bytes(short_video(".mkv", has_sound=False))
    shutil.copy(example_audio, tmp_path / "c.flac")  # no video

    result = run("predict", tmp_path, "--video", "--csv", "--model", video_model)

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"Warning: {tmp_path / 'b.mkv'}: No face found in 3 frames.",
        f"Error: {tmp_path / 'b.mkv'}: video: no face was found, and there is neither audio nor text.",
    ]
    face, failed = table(result.stdout)
    assert (face["label"], face["audio_weight"], face["text_weight"], face["video_weight"]) == (
        "happy",
        "0.5",
        "0.0",
        "0.5",
    )
    assert failed["error"] == "video: no face was found, and there is neither audio nor text."
    sound = run("predict", tmp_path / "a.mp4", "--csv", "--model", video_model).stdout
    assert table(sound)[0]["label"] == "sad" and "weight" not in sound


def test_a_timeline_of_a_video_with_a_text_and_a_plot(run, video_model, portrait, tmp_path):
    command = ("predict", portrait, "--video", "--face", 0, "--timeline", "--text", "so sad", "--model", video_model)

    result = run(*command, "--json", "--plot", tmp_path)

    assert (result.exit_code, result.stderr) == (0, "")
    (line,) = map(json.loads, result.stdout.splitlines())
    assert line["modality_weights"] == pytest.approx({"audio": 1 / 3, "text": 1 / 3, "video": 1 / 3})
    assert line["timeline"][0]["face"]["presence"] == 1
    assert (tmp_path / "clip.png").stat().st_size > 1000
    missing = run("predict", portrait, "--video", "--face", 2, "--model", video_model)
    assert "face=2 is not in the video; faces found: 1, numbered from 0." in missing.stderr


def test_subfolders_are_searched_on_request(run, exported, folder):
    (folder / "e.m4a").unlink()

    assert len(run("predict", folder, "--no-recursive", "--model", exported).stdout.splitlines()) == 3


def test_a_call_by_channel(run, embedded, stereo):
    expected = embedded(stereo, channels="split", customer=1, return_timeline=True)

    text = run("call", stereo, "--customer", 1)
    found = json.loads(run("call", stereo, "--channels", "split", "--customer", 1, "--summary", "--json").stdout)

    assert text.exit_code == 0 and text.stderr == ""
    assert text.stdout.splitlines()[1:2] == ["  channel_0  not predicted"] and "  channel_1  " in text.stdout
    summary = as_json(summarize_call(expected))
    assert found == {"file": str(stereo), "text": None, **as_json(expected), "summary": summary, "error": None}


def test_the_customer_is_a_channel_or_its_name_in_results(run, exported, stereo):
    by_number, by_name = (
        run("call", stereo, "--customer", name, "--json", "--model", exported) for name in (1, "channel_1")
    )

    assert (by_name.exit_code, by_name.stdout) == (0, by_number.stdout)


def test_a_call_by_turns_with_words_and_plots(run, embedded, stereo, tmp_path):
    (tmp_path / "stereo.rttm").write_text(
        "SPEAKER s 1 0.1 1.5 <NA> <NA> bob <NA> <NA>\nSPEAKER s 1 1.9 1.4 <NA> <NA> ann/2 <NA> <NA>\n"
    )
    (tmp_path / "stereo.srt").write_text("1\n00:00:02,000 --> 00:00:03,000\nWhat are those bags?\n")
    given = ("--speaker-turns", tmp_path, "--customer", "ann/2", "--srt", tmp_path)

    result = run("call", stereo, *given, "--csv", "--plot", tmp_path / "plots")
    text = run("call", stereo, *given)

    expected = embedded(
        stereo,
        word_times=tmp_path / "stereo.srt",
        speaker_turns=tmp_path / "stereo.rttm",
        customer="ann/2",
        return_timeline=True,
    )
    assert result.exit_code == 0, result.stderr
    timeline = expected["speakers"]["ann/2"]["timeline"]
    assert [(row["speaker"], float(row["start"]), row["label"]) for row in table(result.stdout)] == [
        ("ann/2", entry["start"], entry["label"]) for entry in timeline
    ]
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["stereo.ann%2F2.png"]
    assert '"What are those bags?"' in text.stdout


def test_channels_with_subtitles_of_their_own(run, embedded, stereo, tmp_path):
    (tmp_path / "stereo.channel_1.srt").write_text("1\n00:00:02,000 --> 00:00:03,000\nWhat are those bags?\n")

    found = json.loads(run("call", stereo, "--customer", 1, "--srt", tmp_path, "--json").stdout)

    words = {1: tmp_path / "stereo.channel_1.srt"}
    expected = embedded(stereo, word_times=words, channels="split", customer=1, return_timeline=True)
    assert found["speakers"] == as_json(expected["speakers"])
    empty = run("call", stereo, "--customer", 1, "--srt", tmp_path / "..")
    assert empty.exit_code == 0 and "Warning: 1 of 1 recordings have no subtitles in" in empty.stderr


def test_a_folder_of_calls_has_a_row_for_each(run, exported, stereo, example_audio, tmp_path):
    shutil.copy(stereo, tmp_path / "a.wav")
    shutil.copy(example_audio, tmp_path / "mono.flac")
    output = tmp_path / "calls.csv"

    result = run("call", tmp_path, "--everyone", "--summary", "--csv", "--output", output, "--model", exported)

    assert result.exit_code == 1 and "mono.flac: channels='split' needs audio of several channels" in result.stderr
    first, second, mono = table(output.read_text())
    assert [first["speaker"], second["speaker"]] == ["channel_0", "channel_1"]
    assert float(first["talk_share"]) + float(second["talk_share"]) == pytest.approx(1, abs=1e-5)
    assert Path(mono["file"]).name == "mono.flac" and mono["error"] in result.stderr


def test_calls_without_turns_are_errors(run, exported, stereo, tmp_path):
    result = run("call", stereo, "--speaker-turns", tmp_path, "--customer", "ann", "--model", exported)

    assert result.exit_code == 1
    assert result.stderr.endswith(f"{tmp_path} has no speaker turns of this recording; add stereo.rttm.\n")
