"""Predictions as JSON lines and CSV: a row for every input, and runs that resume."""

import csv
import io
import json

import pytest

from mmemo.archives.writing import ItemLayout, PredictionWriter, TimelineLayout, describe_scores


LABELS = ["angry", "sad"]
RESULT = {
    "label": "sad",
    "scores": [{"label": "sad", "score": 0.75}, {"label": "angry", "score": 0.25}],
    "modality_weights": {"audio": 1.0, "text": 0.0},
}
SPAN = {"start": 0.0, "end": 0.5, "words": ["so", "sad"], **RESULT}
TIMELINE = {"duration": 0.5, **RESULT, "timeline": [SPAN, {**SPAN, "start": 0.5, "words": []}], "spans": []}
STRANGE = 'line\nbreak, "quotes" and \u2028.wav'
NOT_UNICODE = "caf\udce9.wav"  # as Python returns a name in Latin-1


@pytest.fixture(params=["csv", "json"])
def kind(request):
    return request.param


@pytest.fixture
def output(kind, tmp_path):
    return tmp_path / "new" / f"predictions.{kind}"


def names(kind, output):
    content = output.read_bytes().decode("utf-8", "surrogateescape")
    if kind == "json":
        return [json.loads(line)["file"] for line in content.split("\n")[:-1]]
    return [row["file"] for row in csv.DictReader(io.StringIO(content, newline=""))]


def test_rows_of_predictions_and_errors(capsys):
    writer = PredictionWriter("csv", ItemLayout(LABELS))
    writer.add("a.wav", None, RESULT)
    writer.add_error("b.wav", None, "It is empty.")

    assert capsys.readouterr().out == (
        "file,label,score,angry,sad,error\na.wav,sad,0.75,0.25,0.75,\nb.wav,,,,,It is empty.\n"
    )


def test_lines_of_predictions_and_errors(capsys):
    writer = PredictionWriter("json", ItemLayout(LABELS))
    writer.add("a.wav", "so", RESULT)
    writer.add_error("b.wav", None, "It is empty.")

    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good == {"file": "a.wav", "text": "so", **RESULT, "error": None}
    assert bad == {"file": "b.wav", "text": None, "error": "It is empty."}


def test_text_has_no_lines_for_errors(capsys):
    writer = PredictionWriter("text", TimelineLayout(LABELS))
    writer.add("a.wav", None, {**TIMELINE, "spans": [{"start": 0.0, "end": 1.0, "label": "sad", "score": 0.75}]})
    writer.add(None, "so\nsad " * 30, {**TIMELINE, "label": "silence", "scores": []})
    writer.add_error("b.wav", None, "It is empty.")

    first, span, text = capsys.readouterr().out.splitlines()
    assert first == "a.wav: sad 0.75, angry 0.25" and span == "      0.00 to     1.00 s  sad 0.75"
    assert text == "so sad " * 9 + "so sa ...: silence"


def test_a_timeline_has_a_row_for_each_entry(capsys):
    writer = PredictionWriter("csv", TimelineLayout(LABELS))
    writer.add("a.wav", None, TIMELINE)
    writer.add("silent.wav", None, {**TIMELINE, "label": "silence", "scores": [], "timeline": []})

    assert capsys.readouterr().out.splitlines() == [
        "file,start,end,words,label,score,angry,sad,error",
        "a.wav,0.0,0.5,so sad,sad,0.75,0.25,0.75,",
        "a.wav,0.5,0.5,,sad,0.75,0.25,0.75,",
        "silent.wav,,,,silence,,,,",
    ]


def test_predictions_of_videos_have_columns_for_weights_and_faces(capsys):
    weights = {"audio": 0.5, "text": 0.0, "video": 0.5}
    face = {
        "presence": 0.6,
        "blendshapes": [{"name": "jawOpen", "score": 0.4}, {"name": "browDownLeft", "score": 0.31}],
    }
    span = {**SPAN, "modality_weights": weights, "face": face}
    silence = {"label": "silence", "scores": [], "modality_weights": dict.fromkeys(weights, 0.0)}
    empty = {"duration": 0.0, **silence, "timeline": [], "spans": []}

    PredictionWriter("csv", ItemLayout(LABELS, has_video=True)).add(
        "a.mp4", None, RESULT | {"modality_weights": weights}
    )
    writer = PredictionWriter("csv", TimelineLayout(LABELS, has_video=True))
    writer.add("a.mp4", None, {**TIMELINE, "timeline": [span]})
    writer.add("b.mp4", None, empty)

    assert capsys.readouterr().out == (
        "file,label,score,angry,sad,audio_weight,text_weight,video_weight,error\n"
        "a.mp4,sad,0.75,0.25,0.75,0.5,0.0,0.5,\n"
        "file,start,end,words,label,score,angry,sad,audio_weight,text_weight,video_weight,face_presence,blendshapes,error\n"
        "a.mp4,0.0,0.5,so sad,sad,0.75,0.25,0.75,0.5,0.0,0.5,0.6,jawOpen=0.40 browDownLeft=0.31,\n"
        "b.mp4,,,,silence,,,,0.0,0.0,0.0,,,\n"
    )


def test_the_prediction_set_is_a_column(capsys):
    writer = PredictionWriter("csv", ItemLayout(LABELS, has_label_set=True))
    writer.add("a.wav", None, {**RESULT, "label": "uncertain", "label_set": ["sad", "angry"]})

    assert capsys.readouterr().out.splitlines()[1] == "a.wav,uncertain,0.75,sad angry,0.25,0.75,"
    uncertain = describe_scores({**RESULT, "label": "uncertain", "label_set": ["sad"]})
    assert uncertain == "uncertain, sad 0.75, angry 0.25; prediction set sad"


def test_a_resumed_run_skips_predicted_inputs_and_repeats_failed_ones(kind, output):
    writer = PredictionWriter(kind, ItemLayout(LABELS), output)
    for name in ("a.wav", STRANGE, NOT_UNICODE):
        writer.add(name, None, RESULT)
    complete = output.read_bytes()
    writer.add_error("b\n.wav", None, "It is\nempty.")
    writer.add("c.wav", None, RESULT)

    writer = PredictionWriter(kind, ItemLayout(LABELS), output)

    assert {"a.wav", STRANGE, "c.wav"} <= writer.done and "b\n.wav" not in writer.done
    assert output.read_bytes().startswith(complete) and names(kind, output) == ["a.wav", STRANGE, NOT_UNICODE, "c.wav"]
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_an_interrupted_write_is_repeated(kind, output):
    writer = PredictionWriter(kind, ItemLayout(LABELS), output)
    writer.add("a.wav", None, RESULT)
    complete = output.read_bytes()
    writer.add(STRANGE, None, RESULT)
    whole = output.read_bytes()

    for length in range(len(complete) + 1, len(whole)):
        output.write_bytes(whole[:length])

        assert PredictionWriter(kind, ItemLayout(LABELS), output).done == {"a.wav"}, whole[:length]
        assert output.read_bytes() == complete


def test_the_last_timeline_is_repeated_as_its_rows_may_be_missing(tmp_path):
    output = tmp_path / "timelines.csv"
    writer = PredictionWriter("csv", TimelineLayout(LABELS), output)
    for name in ("a.wav", STRANGE):
        writer.add(name, None, TIMELINE)

    assert PredictionWriter("csv", TimelineLayout(LABELS), output).done == {"a.wav"}
    assert names("csv", output) == ["a.wav", "a.wav"]


def test_standard_input_and_texts_are_never_skipped(kind, output):
    writer = PredictionWriter(kind, ItemLayout(LABELS), output)
    writer.add("-", None, RESULT)
    writer.add(None, "so sad", RESULT)

    assert PredictionWriter(kind, ItemLayout(LABELS), output).done == set()
    assert len(names(kind, output)) == 2


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("csv", "file,label,score,angry,sad\na.wav,sad,1,0,1\n", r"its columns are \['file', 'label', .* expected"),
        ("csv", "file,label,score,angry,sad,error\na.wav,b\nc.wav,sad,1,0,1,\n", "a row has 2 columns, expected 6"),
        ("csv", "\x00\xff", "its columns are"),
        ("json", '{"file": "a.wav", "label": "sad"}\n', "a line has no 'error'"),
        ("json", '{"file": "a.wav", "timeline": [], "error": null}\n', "the line of 'a.wav' was written with other"),
        ("json", "[1]\n", "a line has no 'error'"),
        ("json", "something else\n", "Expecting value"),
    ],
)
def test_other_output_files_are_not_touched(tmp_path, kind, content, message):
    output = tmp_path / "predictions"
    output.write_text(content)

    with pytest.raises(ValueError, match=rf"does not contain predictions of such a run \({message}.*choose another"):
        PredictionWriter(kind, ItemLayout(LABELS), output)
    assert output.read_text() == content
