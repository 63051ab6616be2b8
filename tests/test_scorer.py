"""The worker of an archive job: tasks in, outcomes out, whatever is wrong with them."""

import io
import json
import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.archives.scorer import Scorer
from mmemo.archives.tasks import ArchiveItem, ScoringOptions, Task
from mmemo.audio import loading
from mmemo.cli import app


SUBTITLES = "1\n00:00:00,200 --> 00:00:01,500\nI am so happy\n"


@pytest.fixture(scope="module")
def options(exported):
    return ScoringOptions(model=str(exported))


@pytest.fixture(scope="module")
def scorer(options):
    return Scorer(options)


def score(scorer, **item):
    (outcome,) = scorer([Task(ArchiveItem("a", **item))])
    return outcome


def predicted_by_command(*arguments):
    """Returns the lines of `mmemo predict --json`, without the keys that name the input."""
    printed = CliRunner().invoke(app, ["predict", "--json", *map(str, arguments)])
    assert printed.exit_code == 0, printed.stderr
    lines = [json.loads(line) for line in printed.stdout.splitlines()]
    return [{name: line[name] for name in line.keys() - {"file", "text", "error"}} for line in lines]


@pytest.mark.parametrize(
    ("is_embedded", "arguments", "changes"),
    [
        (False, (), {}),
        (False, ("--threshold", 0.99), {"threshold": 0.99}),
        (True, ("--coverage", 0.9, "--channel", 0), {"coverage": 0.9, "channel": 0}),
        (False, ("--timeline",), {"timeline": True}),
    ],
)
def test_results_equal_those_of_the_command(exported, example_audio, is_embedded, arguments, changes):
    """To the bit, although the command uses all cores."""
    clips = sorted(example_audio.parent.glob("*.flac"))[:2]
    model = None if is_embedded else str(exported)

    outcomes = Scorer(ScoringOptions(model, **changes))(
        [Task(ArchiveItem(clip.name, path=str(clip))) for clip in clips]
    )

    expected = predicted_by_command(*clips, *arguments, *([] if is_embedded else ["--model", exported]))
    assert [outcome.task.item.id for outcome in outcomes] == [clip.name for clip in clips]
    for outcome, line, clip in zip(outcomes, expected, clips, strict=True):
        assert (outcome.error, outcome.warnings) == (None, ())
        assert outcome.result == {"duration": outcome.result["duration"], **line}
        assert outcome.result["duration"] == pytest.approx(soundfile.info(clip).duration, abs=1e-4)


@pytest.mark.slow
def test_the_process_of_a_worker_loads_no_torch(example_audio):
    program = (
        "import sys; from mmemo.archives.scorer import Scorer; from mmemo.archives.tasks import *; "
        "(outcome,) = Scorer(ScoringOptions())([Task(ArchiveItem('a', path=sys.argv[1]))]); "
        "print(outcome.result['label'], sorted(name.partition('.')[0] for name in sys.modules))"
    )

    run = subprocess.run([sys.executable, "-c", program, example_audio], capture_output=True, text=True, check=True)

    label, _, modules = run.stdout.partition(" ")
    assert label == "angry"
    assert not any(f"'{name}'" in modules for name in ("torch", "transformers", "librosa", "modeling_mmemo"))


def test_a_failed_task_does_not_stop_the_others(scorer, example_audio, tmp_path, caplog):
    (tmp_path / "broken.wav").write_bytes(b"RIFFnothing")
    items = [
        ArchiveItem("vanished", path=str(tmp_path / "vanished.wav")),
        ArchiveItem("broken", path=str(tmp_path / "broken.wav")),
        ArchiveItem("empty", text=" "),
        ArchiveItem("channel", path=str(example_audio), channel=3),
        ArchiveItem("subtitles", path=str(example_audio), word_times=str(tmp_path / "none.srt")),
        ArchiveItem("whole", path=str(example_audio)),
    ]

    *failed, whole = scorer([Task(item, attempts=2) for item in items])

    assert [outcome.result for outcome in failed] == [None] * 5
    for outcome, expected in zip(
        failed,
        (
            "There is no such file; paths are relative to ",
            f"audio: {tmp_path / 'broken.wav'} is not readable audio ",
            "This item has neither a recording nor a text; add its path or its text.",
            f"audio: {example_audio} has 1 channel(s), so channel=3 does not exist; valid are 0 to 0.",
            f"word_times: Cannot read {tmp_path / 'none.srt'}: No such file or directory.",
        ),
        strict=True,
    ):
        assert outcome.error.startswith(expected)
        assert "\n" not in outcome.error
    assert whole.error is None and whole.result["label"] and whole.task.attempts == 2


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_only_errors_are_outcomes(options, monkeypatch, interruption):
    scorer = Scorer(options)

    def interrupted(*_, **__):
        raise interruption

    monkeypatch.setattr(scorer._predictor, "run", interrupted)
    with pytest.raises(interruption):
        score(scorer, text="so sad")


def test_unexpected_errors_and_scores_that_are_not_numbers_are_described(options, monkeypatch, caplog):
    scorer = Scorer(options)

    def broken(_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(scorer._predictor, "run", broken)
    with caplog.at_level(logging.DEBUG, "mmemo"):
        assert score(scorer, text="so sad").error.startswith("RuntimeError: no kernel. For the traceback")
    assert "no kernel" in caplog.text  # the traceback
    nan = {"logits": np.full((1, 4), np.nan, np.float32), "modality_weights": np.ones((1, 2), np.float32)}
    monkeypatch.setattr(scorer._predictor, "run", lambda _: nan)
    assert score(scorer, text="so sad").error.startswith("The model returned a score that is NaN or infinite")


def test_warnings_are_part_of_the_outcome(scorer, options, example_audio, tmp_path, capsys, caplog):
    stereo = tmp_path / "stereo.wav"
    first, second = (soundfile.read(path)[0] for path in sorted(example_audio.parent.glob("*.flac"))[:2])
    channels = np.zeros((len(first) + len(second), 2))
    channels[: len(first), 0], channels[len(first) :, 1] = first, second
    soundfile.write(stereo, channels, 16_000)

    mixed, single = scorer(
        [Task(ArchiveItem(str(channel), path=str(stereo), channel=channel)) for channel in (None, 1)]
    )

    (warning,) = mixed.warnings
    assert warning.startswith("The 2 channels contain different sounds, and their mean is predicted.")
    assert single.warnings == () and single.result["scores"] != mixed.result["scores"]
    assert score(Scorer(replace(options, channel=1)), path=str(stereo)) == replace(
        single, task=Task(ArchiveItem("a", path=str(stereo)))
    )
    assert capsys.readouterr() == ("", "") and caplog.records == []


def test_every_form_of_an_item_is_predicted(scorer, example_audio, tmp_path):
    subtitles = tmp_path / "a.srt"
    subtitles.write_text(SUBTITLES)

    path = score(scorer, path=str(example_audio))
    content = score(scorer, content=example_audio.read_bytes())
    text = score(scorer, text="I am so happy")
    both = score(scorer, path=str(example_audio), text="I am so happy")
    words = score(scorer, path=str(example_audio), word_times=str(subtitles))

    assert content.result == path.result
    assert text.result["duration"] is None and text.result["modality_weights"]["audio"] == 0
    assert both.result["scores"] != path.result["scores"] and both.result["modality_weights"]["text"] > 0
    assert words.result["modality_weights"]["text"] > 0
    assert score(scorer, content=b"junk").error.startswith("audio: a is not readable audio")


def test_subtitles_may_be_remote(scorer, example_audio, tmp_path, monkeypatch):
    local = tmp_path / "a.srt"
    local.write_text(SUBTITLES)
    monkeypatch.setattr("mmemo.archives.scorer.fetch", lambda url: io.BytesIO(local.read_bytes()))

    remote = score(scorer, path=str(example_audio), word_times="https://example.com/a.srt")

    assert remote.result == score(scorer, path=str(example_audio), word_times=str(local)).result


def test_results_are_plain_json(options, example_audio, tmp_path):
    scorer = Scorer(replace(options, timeline=True, granularity="word"))
    (tmp_path / "a.srt").write_text(SUBTITLES)

    result = score(scorer, path=str(example_audio), word_times=str(tmp_path / "a.srt")).result

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result.keys() == {"duration", "speech", "label", "scores", "modality_weights", "timeline", "spans"}
    assert [entry["words"] for entry in result["timeline"]] == [["I"], ["am"], ["so"], ["happy"]]
    assert all(isinstance(stretch, list) for stretch in result["speech"])


@pytest.mark.parametrize("seconds", [2.0, 20.0, 45.0])
def test_the_duration_costs_no_second_pass(scorer, exported, make_clip, tmp_path, monkeypatch, seconds):
    """Of a clip, of a recording in memory, and of one that is only read window by window."""
    path = str(tmp_path / "a.wav")
    soundfile.write(path, np.resize(make_clip(2.0), round(seconds * 8_000)), 8_000)
    monkeypatch.setattr("mmemo.recognition.WHOLE_CLIP_SECONDS", 10.0)
    monkeypatch.setattr("mmemo.recognition.MAX_LOADED_SECONDS", 30.0)
    opened = []

    def open_audio_file(*args, original=loading.open_audio_file):
        opened.append(args)
        return original(*args)

    monkeypatch.setattr(loading, "open_audio_file", open_audio_file)
    EmotionPredictor(exported, num_threads=1)(path)
    needed = len(opened)

    outcome = score(scorer, path=path)

    assert outcome.result["duration"] == seconds
    assert len(opened) == 2 * needed


def test_videos_and_their_sound(video_model, portrait, options):
    scorer = Scorer(replace(options, model=str(video_model), video=True, face=0))

    found, still, text = scorer(
        [
            Task(ArchiveItem("a", path=str(portrait))),
            Task(ArchiveItem("b", content=portrait.read_bytes())),
            Task(ArchiveItem("c", text="I am so happy")),
        ]
    )

    (expected,) = predicted_by_command(portrait, "--video", "--model", video_model, "--face", 0)
    assert found.result == {**expected, "duration": pytest.approx(2.0, abs=0.1)}
    assert still.result == found.result
    assert text.result["duration"] is None and text.error is None
    timeline = Scorer(replace(options, model=str(video_model), video=True, timeline=True))
    (expected,) = predicted_by_command(portrait, "--video", "--timeline", "--model", video_model)
    assert score(timeline, path=str(portrait)).result == expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"threshold": 1.5}, ValueError, r"threshold=1.5 must be a score between 0 and 1"),
        ({"coverage": 2}, ValueError, r"coverage=2 must lie between 0 and 1"),
        ({"granularity": "letter"}, ValueError, r"granularity='letter' is unknown; choose one of"),
        ({"section_s": 5}, ValueError, r"section_s=5 must be at least 60 seconds"),
        ({"section_s": float("nan")}, ValueError, r"section_s=nan must be at least 60 seconds"),
        ({"video": True}, ValueError, r"--video needs a model with a video encoder; .* encodes audio and text only"),
        ({"model": "no/such/model"}, FileNotFoundError, r"no/such/model is neither a folder nor a name on the Hub"),
    ],
)
def test_options_are_checked_before_the_first_task(options, changes, error, message):
    with pytest.raises(error, match=message):
        Scorer(replace(options, **changes))
