"""Rows of an archive's output: outcomes, the user's own columns, and three formats of them."""

import csv
import datetime
import decimal
import io
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from mmemo.archives.archive_rows import (
    FORMATS,
    archive_schema,
    check_partitions,
    column_type,
    own_columns,
    partition_of,
    row_of,
)
from mmemo.archives.tasks import ArchiveItem, Outcome, Task
from mmemo.runtime.predictor import EmotionPredictor


LABELS, MODALITIES = ("angry", "sad"), ("audio", "text", "video")
SCORES = [{"label": "sad", "score": 0.75}, {"label": "angry", "score": 0.25}]
WEIGHTS = {"audio": 0.5, "text": 0.0, "video": 0.5}
RESULT = {"label": "sad", "scores": SCORES, "modality_weights": WEIGHTS, "duration": 2.5}
FACE = {"presence": 0.9, "blendshapes": [{"name": "jawOpen", "score": 0.4}]}
SPAN = {"start": 0.0, "end": 0.5, "words": ["so", 'sad, "very"\n'], "face": FACE, **RESULT}
SILENCE = {"start": 0.5, "end": 1.0, "words": [], "label": "silence", "scores": [], "modality_weights": WEIGHTS}
TIMELINE = {
    **RESULT,
    "timeline": [SPAN, SILENCE],
    "spans": [{"start": 0.0, "end": 0.5, "label": "sad", "score": 0.75}],
    "speech": [(0.0, 0.4)],
}
TYPES = {
    "agent": "string",
    "month": "int64",
    "rating": "double",
    "paid": "bool",
    "day": "date32[day]",
    "begun": "timestamp[us, tz=UTC]",
    "price": "decimal128(5, 2)",
}
VALUES = {
    "agent": "007",
    "month": 7,
    "rating": 0.1,
    "paid": True,
    "day": datetime.date(2026, 1, 31),
    "begun": datetime.datetime(2026, 1, 31, 22, 0, 0, 5, tzinfo=datetime.UTC),
    "price": decimal.Decimal("1.50"),
}


@pytest.fixture(scope="module")
def schema():
    return archive_schema(LABELS, MODALITIES, TYPES)


@pytest.fixture(params=FORMATS)
def part_format(request, schema):
    return FORMATS[request.param](schema)


def outcome(result=None, name="a.wav", columns=VALUES, attempts=1, **rest):
    return Outcome(Task(ArchiveItem(name, f"calls/{name}", columns=columns), attempts=attempts), result, **rest)


def test_the_row_of_a_prediction(schema):
    row = row_of(outcome(RESULT | {"label_set": ["sad"]}, warnings=("no speech",)), schema)

    assert list(row) == schema.names
    assert row["id"] == "a.wav" and row["path"] == "calls/a.wav"
    assert (
        row["label"] == "sad"
        and row["score"] == 0.75
        and list(row["scores"].items())
        == [
            ("angry", 0.25),
            ("sad", 0.75),
        ]
    )
    assert row["label_set"] == ["sad"] and row["modality_weights"] == WEIGHTS and row["duration"] == 2.5
    assert row["timeline"] is row["spans"] is row["speech"] is row["error"] is None
    assert row["warnings"] == ["no speech"] and row["attempts"] == 1
    assert {name: row[name] for name in VALUES} == VALUES


def test_the_row_of_a_timeline(schema):
    row = row_of(outcome(TIMELINE), schema)

    first, silence = row["timeline"]
    assert first["words"] == SPAN["words"] and first["face_presence"] == 0.9
    assert first["blendshapes"] == FACE["blendshapes"] and first["scores"] == {"angry": 0.25, "sad": 0.75}
    assert silence["label"] == "silence" and silence["score"] is silence["scores"] is silence["blendshapes"] is None
    assert row["spans"] == TIMELINE["spans"] and row["speech"] == [{"start": 0.0, "end": 0.4}]


def test_the_row_of_an_error(schema):
    row = row_of(outcome(error="It is empty.", attempts=3, columns={}), schema)

    assert {name: value for name, value in row.items() if value is not None} == {
        "id": "a.wav",
        "path": "calls/a.wav",
        "error": "It is empty.",
        "attempts": 3,
    }


def test_names_that_are_not_unicode_are_escaped(schema, part_format):
    columns = {**VALUES, "agent": "Jos\udce9"}
    row = row_of(outcome(name="caf\udce9.wav", error="caf\udce9.wav is empty.", columns=columns), schema)

    assert (
        row["id"] == "caf\\udce9.wav" and row["error"] == "caf\\udce9.wav is empty." and row["agent"] == "Jos\\udce9"
    )
    assert list(part_format.rows(io.BytesIO(part_format.join([part_format.encode(row)])))) == [row]


@pytest.fixture(scope="module")
def predicted(exported, example_audio):
    """The schema of a model, and its predictions of a recording: as a whole, and over time."""
    predictor = EmotionPredictor(exported)
    requests = ({"return_modality_weights": True, "threshold": 0.9}, {"return_timeline": True, "threshold": 0.9})
    results = [predictor(example_audio, "I am so happy", **request) for request in requests]
    return archive_schema(predictor.answers.labels, predictor.answers.modalities, {}), results


def test_predictions_of_a_model_fit(predicted, part_format):
    schema, results = predicted
    part_format = type(part_format)(schema)
    rows = [row_of(outcome(result), schema) for result in results]
    found = list(part_format.rows(io.BytesIO(part_format.join(map(part_format.encode, rows)))))

    assert found == rows
    for row, result in zip(found, results):
        assert row["label"] == result["label"] and row["score"] == result["scores"][0]["score"]
        assert sum(row["scores"].values()) == pytest.approx(1) and sum(row["modality_weights"].values()) > 0.9
    assert found[0]["timeline"] is None
    assert [entry["start"] for entry in found[1]["timeline"]] == [entry["start"] for entry in results[1]["timeline"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("month", "7"),
        ("month", 7.5),
        ("month", 2**70),
        ("agent", 7),
        ("paid", 1),
        ("day", datetime.datetime(2026, 1, 31, 5)),
        ("price", decimal.Decimal("1.555")),
        ("rating", "high"),
        ("begun", "2026-01-31"),
    ],
)
def test_a_value_that_does_not_fit_names_column_value_and_id(name, value, schema):
    with pytest.raises(ValueError) as raised:
        row_of(outcome(RESULT, columns={**VALUES, name: value}), schema)

    message = str(raised.value)
    assert message.startswith(f"a.wav: the column {name!r} has the type {TYPES[name]}, got ")
    assert str(value) in message and "correct the value" in message


def test_missing_values_and_those_of_numpy(schema):
    row = row_of(outcome(columns={"agent": math.nan, "month": np.int64(7), "rating": math.nan}), schema)

    assert row["agent"] is row["rating"] is row["day"] is None and row["month"] == 7


@pytest.mark.parametrize("name", ["label", "ID", "Agent"])
def test_names_of_columns_differ(name):
    with pytest.raises(ValueError, match=f"The column '{name}' has the name of another column of the output; rename"):
        archive_schema(LABELS, MODALITIES, {"agent": "string", name: "string"})


def test_types_of_columns():
    names = [*TYPES.values(), "large_string", "uint8", "float", "timestamp[ns]", "date64[ms]"]
    assert [str(column_type(name)) for name in names] == names
    assert column_type("dictionary<values=string, indices=int8, ordered=0>") == pa.string()
    assert [field.name for field in own_columns(archive_schema(LABELS, MODALITIES, TYPES))] == list(TYPES)
    for name in ("list<item: string>", "binary", "null", "number"):
        with pytest.raises(
            ValueError, match=r"The column 'x' cannot be in the output: The type .* is not one of text,"
        ):
            archive_schema(LABELS, MODALITIES, {"x": name})


@pytest.mark.parametrize(
    "found",
    [
        outcome(RESULT),
        outcome(TIMELINE),
        outcome({**TIMELINE, "timeline": [], "spans": [], "speech": []}),
        outcome(error='"quoted",\nbroken\r\n\u2028'),
        outcome(error="a carriage return\rand nothing else to quote"),
        outcome(RESULT, columns=dict.fromkeys(VALUES)),
    ],
)
def test_every_format_returns_what_was_written(found, part_format, schema):
    row = row_of(found, schema)
    encoded = part_format.encode(row)
    content = part_format.join([encoded, part_format.encode(row | {"id": "b.wav"})])

    assert list(part_format.rows(io.BytesIO(content))) == [row, row | {"id": "b.wav"}]
    states = list(part_format.states(io.BytesIO(content)))
    assert states[0] == ("a.wav", found.error is not None, 1) and len(states) == 2
    assert isinstance(encoded, bytes)


def test_long_timelines_are_written_in_batches(schema, monkeypatch):
    monkeypatch.setattr("mmemo.archives.archive_rows.BATCH_BYTES", 5000)
    part_format = FORMATS["parquet"](schema)
    rows = [row_of(outcome(TIMELINE, name=str(number)), schema) for number in range(30)]
    encoded = list(map(part_format.encode, rows))

    assert 2 < len(list(part_format._batches(encoded))) < 15
    assert list(part_format.rows(io.BytesIO(part_format.join(encoded)))) == rows


def test_rows_are_replaced_in_place(part_format, schema):
    failed = [row_of(outcome(name=name, error="Failed."), schema) for name in ("a", "b", "c")]
    better = row_of(outcome(RESULT, name="b", attempts=2), schema)
    content = part_format.join(map(part_format.encode, failed))
    content = part_format.replace(io.BytesIO(content), {"b": part_format.encode(better)})

    assert list(part_format.rows(io.BytesIO(content))) == [failed[0], better, failed[2]]


def test_truncated_parts_raise(part_format, schema):
    rows = [part_format.encode(row_of(outcome(TIMELINE, name=name), schema)) for name in ("a", "b")]
    content = part_format.join(rows)

    for length in (len(content) - 1, len(content) - 20, len(content) // 3, 5):
        with pytest.raises((ValueError, OSError, csv.Error)):
            list(part_format.states(io.BytesIO(content[:length])))


def test_other_columns_raise(part_format):
    other = type(part_format)(archive_schema(LABELS, MODALITIES, {"queue": "string"}))
    content = other.join([other.encode(row_of(outcome(RESULT), other.schema))])

    with pytest.raises(ValueError, match=r"its columns are \['id', .*'queue'\], expected \['id'"):
        list(part_format.states(io.BytesIO(content)))


def test_text_formats_have_no_nan():
    schema = archive_schema(LABELS, MODALITIES, {"rating": "double"})
    row = row_of(
        outcome(RESULT | {"scores": [{"label": "sad", "score": math.nan}]}, columns={"rating": -math.inf}), schema
    )

    line = json.loads(FORMATS["json"](schema).encode(row), parse_constant=pytest.fail)
    assert line["rating"] is line["score"] is line["scores"]["sad"] is None
    assert b"NaN" not in FORMATS["csv"](schema).encode(row)


def test_partitions_are_named_as_by_hive():
    row = {"id": "a.wav", "agent": "Ann/a é=%", "month": 7, "paid": True, "day": datetime.date(2026, 1, 31), "x": None}

    assert partition_of(row, []) == ""
    assert partition_of(row, ["agent", "month"]) == "agent=Ann%2Fa%20%C3%A9%3D%25/month=7"
    assert partition_of(row, ["paid", "day", "x"]) == "paid=true/day=2026-01-31/x=__HIVE_DEFAULT_PARTITION__"
    assert partition_of({".x": 1, "_y": ".z"}, [".x", "_y"]) == "%2Ex=1/%5Fy=.z"  # neither is a hidden folder
    with pytest.raises(ValueError, match=r"a\.wav: the column 'agent' has 300 bytes, 'zzz.*too many"):
        partition_of(row | {"agent": "z" * 300}, ["agent"])


def test_partitions_need_suitable_columns(schema):
    check_partitions(["agent", "month", "paid", "day"], schema)
    with pytest.raises(ValueError, match="partition_by='label' is none of the input's own columns; choose one of"):
        check_partitions(["label"], schema)
    with pytest.raises(ValueError, match="partition_by='rating' has the type double; choose a column of text"):
        check_partitions(["rating"], schema)
