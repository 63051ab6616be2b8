"""Figures of archives, on rows whose figures are worked out by hand."""

import json
import subprocess
import sys
from datetime import UTC, date, datetime

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored import LABELS, MODALITIES, row, write_archive

from mmemo.archives.archive_rows import archive_schema
from mmemo.archives.archive_summary import SummaryOptions, share_of, summarize_archive
from mmemo.archives.job_manifest import MANIFEST_FILE


ROWS = [
    row("#1.wav", "angry", 0.9, spans=[(0, 3, "angry"), (3, 4, "uncertain")], queue="billing", day="2026-01-31"),
    row("2.wav", "angry", 0.7, spans=[(0, 2, "sad")], queue="billing", day="2026-03-01T23:30:00-02:00"),
    row("3.wav", "sad", 0.6, spans=[], queue="sales, west", day="2026-03"),
    row("4.wav", "uncertain", 0.2, queue=None, day="yesterday"),
    row("5.wav", "silence", duration=108.0, queue="sales, west", day=None),
    row("6.wav", error="/data/6.wav is not readable audio: it lasts 0.01 s.", queue="billing", day="20260105"),
    row("7.wav", error="7.wav is not readable audio: it lasts 2 s.", queue="sales, west", attempts=3, day=""),
]
COLUMNS = {"queue": pa.string(), "day": pa.string()}


@pytest.fixture(params=["parquet", "json", "csv"])
def archive(request, tmp_path):
    return write_archive(tmp_path / "out", ROWS, COLUMNS, request.param)


def summarize(folder, *by, **options):
    return summarize_archive(str(folder), SummaryOptions(by=by, **options))


def counts(figures):
    return {label: share["rows"] for label, share in figures["labels"].items() if share["rows"]}


def test_all_rows(archive):
    summary = summarize(archive)

    assert (summary["rows"], summary["predicted"], summary["failed"]["rows"]) == (7, 5, 2)
    assert summary["failed"]["share"] == pytest.approx(2 / 7)
    assert summary["hours"] == pytest.approx((4 * 36 + 108) / 3600)
    assert summary["mean_score"] == pytest.approx((0.9 + 0.7 + 0.6 + 0.2) / 4)
    assert list(summary["labels"]) == ["angry", "sad", "uncertain", "silence"]
    assert counts(summary) == {"angry": 2, "sad": 1, "uncertain": 1, "silence": 1}
    assert summary["labels"]["angry"]["share"] == 0.4
    assert (summary["model"], summary["fingerprint"][:4]) == ("acme/calls", "0123")
    assert (summary["time"], summary["by"]) == (None, {})
    assert json.loads(json.dumps(summary)) == summary


def test_speaking_time(archive):
    speech = summarize(archive)["speech"]

    assert (speech["rows"], speech["hours"] * 3600) == (3, pytest.approx(6))
    assert {label: found["share"] for label, found in speech["labels"].items()} == {
        "angry": pytest.approx(3 / 6),
        "sad": pytest.approx(2 / 6),
        "uncertain": pytest.approx(1 / 6),
    }


def test_no_timelines(tmp_path):
    assert summarize(write_archive(tmp_path, [row("a.wav", "sad")]))["speech"] is None


def test_timelines_of_silence(tmp_path):
    speech = summarize(write_archive(tmp_path, [row("a.wav", "silence", spans=[])]))["speech"]

    assert (speech["hours"], speech["labels"]["sad"]) == (0, {"hours": 0, "share": None})


def test_groups(archive):
    groups = summarize(archive, "queue", "attempts", "queue")["by"]

    assert list(groups) == ["queue", "attempts"]
    assert [(one["value"], one["rows"], one["failed"]["rows"]) for one in groups["queue"]["groups"]] == [
        ("billing", 3, 1),
        ("sales, west", 3, 1),
        (None, 1, 0),
    ]
    assert counts(groups["queue"]["groups"][0]) == {"angry": 2}
    assert groups["queue"]["groups"][0]["labels"]["angry"]["share"] == 1
    assert groups["queue"]["groups"][0]["mean_score"] == pytest.approx(0.8)
    assert [(one["value"], one["rows"]) for one in groups["attempts"]["groups"]] == [("1", 6), ("3", 1)]


def test_other_groups_are_summed(archive):
    groups = summarize(archive, "id", top=5)["by"]["id"]

    assert (groups["total"], len(groups["groups"]), groups["others"]["number"]) == (7, 5, 2)
    assert (groups["others"]["rows"], groups["others"]["failed"]["rows"]) == (2, 2)
    assert [one["value"] for one in groups["groups"]][:2] == ["#1.wav", "2.wav"]
    assert summarize(archive, "id", top=7)["by"]["id"]["others"] is None


@pytest.mark.parametrize("kind", ["parquet", "json", "csv"])
def test_names_of_columns_are_not_sql(tmp_path, kind):
    names = ['x"; DROP TABLE counts; --', "it's a {name}", "SELECT", "列, 名"]
    rows = [row("a.wav", "sad", **dict.fromkeys(names, "1'); --"))]

    summary = summarize(write_archive(tmp_path, rows, dict.fromkeys(names, pa.string()), kind), *names)

    assert [groups["groups"][0]["value"] for groups in summary["by"].values()] == ["1'); --"] * 4


@pytest.mark.parametrize("kind", ["parquet", "json", "csv"])
@pytest.mark.parametrize("name", ["moment", "time_text", "unreadable"])
def test_names_of_columns_are_not_those_of_the_query(tmp_path, kind, name):
    rows = [row("a", "sad", day="2026-01-31", **{name: "u"}), row("b", "sad", day="yesterday", **{name: "v"})]
    summary = summarize(write_archive(tmp_path, rows, {name: pa.string(), "day": pa.string()}, kind), name, time="day")

    assert [group["value"] for group in summary["by"][name]["groups"]] == ["u", "v"]
    assert [period["name"] for period in summary["time"]["periods"]] == ["2026-01"]
    assert summary["time"]["unreadable"] == {"rows": 1, "example": "yesterday"}


def test_values_of_any_type(tmp_path):
    columns = {"number": pa.int64(), "flag": pa.bool_(), "when": pa.date32()}
    rows = [row("a.wav", "sad", number=7, flag=True, when=date(2026, 5, 1))]

    summary = summarize(write_archive(tmp_path, rows, columns), *columns)

    assert [groups["groups"][0]["value"] for groups in summary["by"].values()] == ["7", "true", "2026-05-01"]


def test_months(archive):
    time = summarize(archive, time="day")["time"]

    # The timestamp of 2.wav is on March 2 in UTC.
    assert [(one["name"], one["rows"], counts(one)) for one in time["periods"]] == [
        ("2026-01", 2, {"angry": 1}),
        ("2026-03", 2, {"angry": 1, "sad": 1}),
    ]
    assert time["periods"][1]["number"] - time["periods"][0]["number"] == 2
    # In CSV, an empty text is missing.
    is_csv = summarize_format(archive) == "csv"
    assert time["missing"] + time["unreadable"]["rows"] == 3
    assert time["unreadable"] == {"rows": 1 if is_csv else 2, "example": "yesterday" if is_csv else ""}


def summarize_format(archive):
    return json.loads((archive / MANIFEST_FILE).read_text())["format"]


@pytest.mark.parametrize(
    ("period", "names", "numbers"),
    [
        ("month", ["2026-12", "2027-01"], [683, 684]),
        ("week", ["2026-W53", "2027-W01"], [2973, 2974]),
        ("day", ["2026-12-31", "2027-01-04"], [20818, 20822]),
        ("weekday", ["Mon", "Thu"], [1, 4]),
        ("hour", ["09", "22"], [9, 22]),
    ],
)
@pytest.mark.parametrize("kind", [pa.string(), pa.timestamp("us"), pa.timestamp("ns", "Europe/Paris")])
def test_periods(tmp_path, period, names, numbers, kind):
    times = [datetime(2026, 12, 31, 22, 30), datetime(2027, 1, 4, 9)]
    values = [
        str(time) if kind == pa.string() else time.replace(tzinfo=UTC if kind != pa.timestamp("us") else None)
        for time in times
    ]
    rows = [row(f"{number}.wav", "sad", at=value) for number, value in enumerate(values)]

    time = summarize(write_archive(tmp_path, rows, {"at": kind}), time="at", period=period)["time"]

    assert [one["name"] for one in time["periods"]] == names
    assert [one["number"] for one in time["periods"]] == numbers


def test_the_time_zone_applies_to_times_with_an_offset(tmp_path):
    times = ["2026-07-01T23:30:00Z", "2026-07-01T23:30:00", "2026-07-01"]
    rows = [row(f"{number}.wav", "sad", at=at) for number, at in enumerate(times)]
    folder = write_archive(tmp_path, rows, {"at": pa.string()})

    time = summarize(folder, time="at", period="day", time_zone="Europe/Berlin")["time"]

    assert [(one["name"], one["rows"]) for one in time["periods"]] == [("2026-07-01", 2), ("2026-07-02", 1)]


def test_a_format_of_times(tmp_path):
    rows = [row("a.wav", "sad", at="31.12.2026"), row("b.wav", "sad", at="2026-12-31")]
    folder = write_archive(tmp_path, rows, {"at": pa.string()})

    time = summarize(folder, time="at", time_format="%d.%m.%Y")["time"]

    assert [(one["name"], one["rows"]) for one in time["periods"]] == [("2026-12", 1)]
    assert time["unreadable"] == {"rows": 1, "example": "2026-12-31"}


def test_no_times_at_all(tmp_path):
    rows = [row("a.wav", "sad", at=text) for text in ("infinity", "no")]

    time = summarize(write_archive(tmp_path, rows, {"at": pa.string()}), time="at")["time"]

    assert (time["periods"], time["unreadable"]["rows"]) == ([], 2)


def test_failures_by_reason(archive):
    summary = summarize(archive)

    assert summary["failures"] == {
        "rows": 2,
        "reasons": [
            {
                "reason": "FILE is not readable audio: it lasts N s.",
                "rows": 2,
                "example": {"id": "6.wav", "message": "/data/6.wav is not readable audio: it lasts 0.01 s."},
            }
        ],
        "others": None,
    }
    assert summary["attempts"] == [
        {"attempts": 1, "failed": 1, "predicted": 5},
        {"attempts": 3, "failed": 1, "predicted": 0},
    ]


@pytest.mark.parametrize(
    ("name", "path", "message", "reason"),
    [
        ("call (1).wav", "/d/call (1).wav", "audio: call (1).wav has 2 channels", "audio: FILE has N channels"),
        ("a/b+c.wav", "s3://x/a/b+c.wav", "s3://x/a/b+c.wav: no such key", "FILE: no such key"),
        ("17", "/d/17.wav", "17.wav lasts 17 s", "FILE lasts N s"),
        ("a", "/d/x.wav", "a: a clip is a file", "FILE: a clip is a file"),
        ("通话.wav", "/d/通话.wav", "通话.wav没有声音", "FILE没有声音"),
        ("x.wav", None, "Object <Stream at 0x7f00ab> in (/tmp/tmpk3/a.mp3).", "Object <Stream at N> in (FILE)."),
        ("x.wav", "/d/x.wav", "mp3 at 48kHz or 00:01:02 and/or 1,024", "mp3 at NkHz or N and/or N"),
        ("x.wav", "C:\\d\\x.wav", "C:\\other\\x2.wav vanished", "FILE vanished"),
    ],
)
def test_reasons_contain_no_names(tmp_path, name, path, message, reason):
    folder = write_archive(tmp_path, [row(name, path=path, error=message)])

    assert [one["reason"] for one in summarize(folder)["failures"]["reasons"]] == [reason]


def test_warnings_by_kind(tmp_path):
    rows = [
        row("a.wav", "sad", warnings=["a.wav has 2 channels", "a.wav has 3 channels", "no speech"]),
        row("b.wav", "sad", warnings=["b.wav has 2 channels"]),
        row("c.wav", "sad", warnings=["strange"]),
        row("d.wav", "sad", warnings=[]),
    ]

    found = summarize(write_archive(tmp_path, rows), top=1)["warnings"]

    assert (found["rows"], [(one["reason"], one["rows"]) for one in found["reasons"]]) == (
        3,
        [("FILE has N channels", 2)],
    )
    assert found["others"] == {"number": 2, "rows": 2}


@pytest.mark.parametrize(
    ("rows", "total", "interval"),
    # Source: Newcombe, "Two-Sided Confidence Intervals for the Single Proportion", 1998, Table I, method 3.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_the_interval_of_a_share(rows, total, interval):
    assert share_of(rows, total)["interval"] == pytest.approx(interval, abs=5e-5)


def test_a_share_of_nothing():
    assert share_of(0, 0) == {"rows": 0, "share": None, "interval": None}


def test_only_failed_rows(tmp_path):
    summary = summarize(write_archive(tmp_path, [row("a.wav", error="no")]), "label")

    assert (summary["predicted"], summary["hours"], summary["mean_score"]) == (0, 0, None)
    assert summary["labels"]["angry"]["share"] is None
    assert [group["value"] for group in summary["by"]["label"]["groups"]] == [None]


def test_labels_that_the_manifest_lacks(tmp_path):
    folder = write_archive(tmp_path, [row("a.wav", "bored"), row("b.wav", "sad")], labels=["sad"])

    assert list(summarize(folder)["labels"]) == ["sad", "bored", "uncertain", "silence"]


@pytest.mark.parametrize("kind", ["parquet", "json", "csv"])
def test_partitions_and_odd_folders(tmp_path, kind):
    folder = tmp_path / "queue=other" / "it's [a] *?"
    write_archive(folder, ROWS, COLUMNS, kind)
    for number, part in enumerate(sorted(folder.glob("part-*"))):
        place = folder / f"queue=%2F{number}"
        place.mkdir()
        part.rename(place / part.name)

    summary = summarize(folder, "queue")

    # The files contain the columns too; folders above the archive are not columns of it.
    assert [group["value"] for group in summary["by"]["queue"]["groups"]] == ["billing", "sales, west", None]


def test_an_archive_that_is_being_written(archive):
    part = next(archive.glob("part-*"))
    (archive / f".{part.name}.tmp").write_bytes(part.read_bytes()[:20])
    (archive / "notes.parquet").write_bytes(b"")

    assert summarize(archive)["rows"] == 7


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_url(tmp_path, kind):
    local = write_archive(tmp_path / "out", ROWS, COLUMNS, kind)
    url = f"memory://bucket/{tmp_path.name}/out [1]"
    fsspec.filesystem("memory").put(f"{local}/", f"{url}/", recursive=True)

    assert summarize(f"{url}/", "queue")["by"] == summarize(local, "queue")["by"]


def test_a_row_of_many_megabytes(tmp_path):
    folder = write_archive(tmp_path, [row("day.wav", "sad", spans=[(0, 1, "sad")])], kind="json")
    part = next(folder.glob("part-*"))
    found = json.loads(part.read_text())
    entry = json.dumps(found["timeline"][0])
    found["timeline"] = "here"
    part.write_text(f"{json.dumps(found)}\n".replace('"here"', f"[{', '.join([entry] * 250_000)}]"))

    assert part.stat().st_size > 40e6
    assert summarize(folder)["speech"]["hours"] * 3600 == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": ("queu",)}, r"--by queu is not a column of .*; choose one of \['queue', 'day', 'id', 'path', 'label'"),
        ({"by": ("timeline",)}, "--by timeline is not a column"),
        ({"by": ("Queue",)}, "--by Queue is not a column"),
        ({"time": "date"}, "--time date is not a column"),
        ({"time": "day", "time_format": "%Q"}, "time_format='%Q' is not a format of strptime"),
        ({"time_zone": "Mars'; --"}, "time_zone=.* is unknown; pass a name such as Europe/Berlin"),
        ({"period": "year"}, r"period='year' is unknown; choose one of \['month', 'week'"),
        ({"time_format": "%Y"}, "time_format='%Y' needs time"),
        ({"top": 0}, "top=0 must be at least 1"),
    ],
)
def test_invalid_options(tmp_path, options, message):
    folder = write_archive(tmp_path, ROWS, COLUMNS)

    with pytest.raises(ValueError, match=message):
        summarize_archive(str(folder), SummaryOptions(**options))


def test_no_archive(tmp_path):
    with pytest.raises(ValueError, match=r"has no .manifest.json; pass the folder that mmemo predict --output has"):
        summarize(tmp_path / "none")
    (tmp_path / MANIFEST_FILE).write_text('{"format": "xml"}')
    with pytest.raises(ValueError, match=r"manifest.json is not the manifest of an archive \(KeyError: 'xml'\)"):
        summarize(tmp_path)


def test_no_rows_yet(tmp_path):
    with pytest.raises(ValueError, match=r"has no rows yet; run the report again when mmemo predict has written some"):
        summarize(write_archive(tmp_path, []))


@pytest.mark.parametrize("kind", ["parquet", "json", "csv"])
def test_a_damaged_file_is_named(tmp_path, kind):
    folder = write_archive(tmp_path, ROWS, COLUMNS, kind)
    part = next(folder.glob("part-*"))
    part.write_bytes(part.read_bytes()[:60] if kind == "parquet" else b'{"id": {"x"\n\x00\xff"')

    with pytest.raises(OSError, match=part.name) as error:
        summarize(folder)
    assert len(str(error.value)) < 600 and "LINE" not in str(error.value)


@pytest.mark.parametrize("package", ["duckdb", "fsspec"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "mmemo.archives.archive_summary")

    with pytest.raises(ImportError, match=r"pip install 'mmemo\[archives\]'"):
        import mmemo.archives.archive_summary  # noqa: F401


MEASURE = """
import resource, sys, time
from mmemo.archives.archive_rows import archive_schema
from mmemo.archives.archive_summary import SummaryOptions, summarize_archive
base, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
summary = summarize_archive(sys.argv[1], SummaryOptions(by=("queue", "id"), time="day"))
print(summary["rows"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base, time.process_time() - start)
"""


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    write_archive(tmp_path, [], COLUMNS)
    schema = archive_schema(LABELS, MODALITIES, {name: str(kind) for name, kind in COLUMNS.items()})
    size = 50_000
    for part in range(20):
        numbers = range(part * size, (part + 1) * size)
        columns = {name: pa.nulls(size, schema.field(name).type) for name in schema.names} | {
            "id": pa.array([f"calls/{number:07d}.wav" for number in numbers]),
            "label": pa.array([("angry", "sad", "uncertain", None)[number % 4] for number in numbers]),
            "duration": pa.array([float(number % 600) for number in numbers]),
            "error": pa.array([f"calls/{number:07d}.wav: no" if number % 4 == 3 else None for number in numbers]),
            "queue": pa.array([f"queue {number % 40}" for number in numbers]),
            "day": pa.array([f"2026-{number % 12 + 1:02d}-01" for number in numbers]),
        }
        pq.write_table(pa.table(columns, schema), tmp_path / f"part-{part}-0a.parquet")

    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True
    ).stdout.split()

    rows, kilobytes, seconds = map(float, measured)
    assert rows == 1_000_000 and kilobytes < 1_000_000 and seconds < 60
