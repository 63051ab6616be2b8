"""Tables: types of whole columns, values without loss, and one sentence for each way to be unreadable."""

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmemo.archives import tables
from mmemo.archives.tables import is_media, open_table


UTC = datetime.UTC


@pytest.fixture
def opened(tmp_path):
    """Writes a table and opens it."""

    def write(name, content, encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return open_table(str(path), name)

    return write


def all_rows(table, strings=()):
    return list(table.rows(list(table.types), strings))


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (("1", "-20", ""), pa.int64(), [1, -20, None]),
        (("1", "2.5", "-1e-3"), pa.float64(), [1.0, 2.5, -0.001]),
        (("true", "False", "TRUE"), pa.bool_(), [True, False, True]),
        (
            ("2026-05-01", "2026-12-31", ""),
            pa.date32(),
            [datetime.date(2026, 5, 1), datetime.date(2026, 12, 31), None],
        ),
        (
            ("2026-05-01 10:30", "2026-05-01T10:30:00.5", ""),
            pa.timestamp("us"),
            [datetime.datetime(2026, 5, 1, 10, 30), datetime.datetime(2026, 5, 1, 10, 30, 0, 500_000), None],
        ),
        (
            ("2026-05-01T10:30:00Z", "2026-05-01T10:30:00+02:00", ""),
            pa.timestamp("us", "UTC"),
            [
                datetime.datetime(2026, 5, 1, 10, 30, tzinfo=UTC),
                datetime.datetime(2026, 5, 1, 8, 30, tzinfo=UTC),
                None,
            ],
        ),
        (("", "", ""), pa.null(), [None] * 3),
    ],
)
def test_types_of_cells(opened, cells, kind, values):
    table = opened("calls.csv", "column,other\n" + "".join(f"{cell},x\n" for cell in cells))

    assert table.types == {"column": kind, "other": pa.string()}
    assert [row["column"] for row in all_rows(table)] == values


@pytest.mark.parametrize(
    "cells",
    [
        ("00123", "1"),
        ("+4912345", "1"),
        ("12345678901234567890", "1"),  # a float would lose digits
        ("1", "1,5"),
        ("2026-02-30", "2026-02-01"),
        ("2026-05-01", "2026-05-01 10:00"),
        ("2026-05-01T10:00:00.123456789", "2026-05-01T10:00:00"),
        ("true", "1"),
        ("0x10", "1"),
        ("1", "A2"),
        ("NA", "1"),
        ("nan", "1"),
        (" 1", "2"),
    ],
)
def test_cells_that_would_lose_something_remain_text(opened, cells):
    table = opened("calls.csv", "column,x\n" + "".join(f'"{cell}",\n' for cell in cells))

    assert table.types["column"] == pa.string()
    assert [row["column"] for row in all_rows(table)] == list(cells)


def test_types_are_those_of_the_whole_table(opened, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 64)
    monkeypatch.setattr(tables, "BLOCK_ROWS", 4)
    numbers = [*range(50), 0.5]

    csv = opened("calls.csv", "agent,minutes\n" + "".join(f"{n},{n}\n" for n in numbers) + "A51,51\n")
    lines = opened(
        "calls.jsonl", "".join(json.dumps({"agent": n, "minutes": n}) + "\n" for n in numbers) + '{"new": 1}'
    )

    assert csv.types == {"agent": pa.string(), "minutes": pa.float64()}
    assert (csv.count, [row["minutes"] for row in all_rows(csv)]) == (52, [*numbers, 51])
    assert lines.types == {"agent": pa.float64(), "minutes": pa.float64(), "new": pa.int64()}
    assert [row["agent"] for row in all_rows(lines)] == [*numbers, None]


def test_strings_are_read_as_written(opened):
    csv = opened("calls.csv", "id,n\n007,1.50\n2026-05-01,2\n")
    lines = opened("calls.jsonl", '{"id": "007", "n": 1}\n{"id": 12}\n')

    assert all_rows(csv, {"id", "n"}) == [{"id": "007", "n": "1.50"}, {"id": "2026-05-01", "n": "2"}]
    assert all_rows(lines, {"id", "n"}) == [{"id": "007", "n": "1"}, {"id": "12", "n": None}]


@pytest.mark.parametrize(
    ("name", "encoding", "separator"),
    [
        ("calls.csv", "utf-8", ","),
        ("calls.csv", "utf-8-sig", ","),
        ("calls.csv", "utf-16", ";"),
        ("calls.CSV", "utf-8", ";"),
        ("calls.tsv", "utf-16", "\t"),
    ],
)
def test_forms_of_csv(opened, name, encoding, separator):
    content = f'path{separator}text\nä.wav{separator}"So, {separator} ""sad""\nI am"\n'

    assert all_rows(opened(name, content, encoding)) == [{"path": "ä.wav", "text": f'So, {separator} "sad"\nI am'}]


def test_paths_may_have_bytes_that_are_not_unicode(opened):
    csv = opened("calls.csv", b"path,n\ncaf\xe9.wav,1\nb.wav,2\n")
    lines = opened("calls.jsonl", b'{"path": "caf\xe9.wav", "own": "\\udce9"}\n{"path": "caf\\udce9.wav"}\n')

    assert csv.not_utf8 == {"path"}
    assert all_rows(csv, {"path"}) == [{"path": "caf\udce9.wav", "n": 1}, {"path": "b.wav", "n": 2}]
    assert all_rows(lines, {"path"}) == [
        {"path": "caf\udce9.wav", "own": "\\udce9"},
        {"path": "caf\udce9.wav", "own": None},
    ]


def test_values_of_json_lines(opened):
    records = [
        {"tags": ["a"], "meta": {"queue": 1}, "mixed": 1, "empty": {}, "flag": True},
        {"meta": {"name": "ä"}, "mixed": "A1", "flag": None},
        {"mixed": [1.5, "ß"]},
    ]
    table = opened("calls.jsonl", "\ufeff" + "\n\n".join(map(json.dumps, records)))

    assert table.types == {
        "tags": pa.list_(pa.string()),
        "meta": pa.struct({"queue": pa.int64(), "name": pa.string()}),
        "mixed": pa.string(),
        "empty": pa.string(),
        "flag": pa.bool_(),
    }
    rows = all_rows(table)
    assert [row["mixed"] for row in rows] == ["1", "A1", '[1.5, "ß"]']
    assert [row["empty"] for row in rows] == ["{}", None, None]
    assert [row["meta"] for row in rows] == [{"queue": 1}, {"name": "ä"}, None]
    pa.Table.from_pylist(rows, pa.schema(table.types))


def test_types_of_parquet_are_kept(tmp_path):
    columns = {
        "id": pa.array([7, 8], pa.int16()),
        "agent": pa.array(["a", None]).dictionary_encode(),
        "price": pa.array([decimal.Decimal("1.10"), None], pa.decimal128(5, 2)),
        "day": pa.array([datetime.date(2026, 5, 1), None], pa.date32()),
        "words": pa.array([[{"word": "hi"}], None]),
    }
    pq.write_table(pa.table(columns), tmp_path / "calls.parquet")

    table = open_table(str(tmp_path / "calls.parquet"), "calls.parquet")

    assert table.types == {name: column.type for name, column in columns.items()} | {"agent": pa.string()}
    assert all_rows(table, {"id"}) == [
        {
            "id": "7",
            "agent": "a",
            "price": decimal.Decimal("1.10"),
            "day": datetime.date(2026, 5, 1),
            "words": [{"word": "hi"}],
        },
        {"id": "8", "agent": None, "price": None, "day": None, "words": None},
    ]


def test_recordings_in_parquet_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    clips = [{"bytes": bytes([n]), "path": f"{n}.wav"} for n in range(40)]
    pq.write_table(pa.table({"audio": clips, "n": list(range(40))}), tmp_path / "calls.parquet")
    table = open_table(str(tmp_path / "calls.parquet"), "calls.parquet")
    sizes = []
    records = tables._records
    monkeypatch.setattr(tables, "_records", lambda values, count: sizes.append(count) or records(values, count))

    assert [row["audio"] for row in all_rows(table)] == clips
    assert max(sizes) == tables.MEDIA_BLOCK_ROWS
    assert is_media(table.types["audio"]) and not is_media(table.types["n"])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("calls.csv", "", r"calls\.csv is not a readable CSV table \(Empty CSV file\)"),
        ("calls.csv", "path,n\n", r"calls\.csv has no rows; it needs at least one"),
        ("calls.csv", "path,n\na.wav,1\nb.wav\n", r"\(CSV parse error: .*Expected 2 columns, got 1: b\.wav"),
        ("calls.csv", "n,n\n1,2\n", r"calls\.csv has several columns 'n'; rename all but one of them\."),
        ("calls.jsonl", "\n", r"calls\.jsonl has no rows"),
        ("calls.jsonl", '{"path": "a.wav"}\n{"path"', r"calls\.jsonl, line 2, is not JSON \(.*\); correct it\."),
        ("calls.jsonl", "[1]\n", r"calls\.jsonl, line 1, is not a JSON object; write one object a line\."),
        ("calls.parquet", "PAR1", r"calls\.parquet is not a readable Parquet file \(.*\); check it\."),
    ],
)
def test_unreadable_tables_raise(opened, name, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        opened(name, content)
