"""Items of an archive from folders, globs, URLs, tables and remote storage; ids are unique before the first item."""

import json
import os
import pickle
import subprocess
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import write_table

from mmemo.archives.archive_items import read_archive
from mmemo.archives.tasks import ArchiveItem
from mmemo.storage import fetch


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Recordings and subtitles in a folder, which is the working directory."""
    for name in ("calls/a.wav", "calls/may/b.mp4", "calls/notes.txt", "words/may/b.srt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def storage():
    yield fsspec.filesystem("memory")
    fsspec.filesystem("memory").rm("/", recursive=True)


def ids(*sources, **options):
    return [item.id for item in read_archive(sources, **options)]


def test_files_of_folders_and_globs(folder):
    archive = read_archive(["calls", "calls/*.wav", "calls/notes.txt", "https://example.com/c.wav"])

    assert list(archive) == [
        ArchiveItem("calls/a.wav", path=f"{folder}/calls/a.wav"),
        ArchiveItem("calls/may/b.mp4", path=f"{folder}/calls/may/b.mp4"),
        ArchiveItem("calls/notes.txt", path=f"{folder}/calls/notes.txt"),
        ArchiveItem("https://example.com/c.wav", path="https://example.com/c.wav"),
    ]
    assert (archive.count, archive.columns, archive.problems, archive.warnings) == (4, {}, [], [])
    assert list(archive) == list(archive)
    assert ids("calls", recursive=False) == ["calls/a.wav"]
    assert ids("calls", video=True) == ["calls/may/b.mp4"]


def test_folders_that_cannot_be_read_are_problems(folder, monkeypatch):
    scan = os.scandir

    def scandir(path):
        if os.path.basename(os.fspath(path)) == "may":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)

    assert read_archive(["calls"]).problems == [
        "calls/may cannot be read (Permission denied); its recordings are missing."
    ]


def test_subtitles_belong_to_files_and_rows(folder):
    write_table(
        folder / "calls" / "calls.csv", [{"path": "a.wav", "srt": "own.vtt"}, {"path": "may/b.mp4", "srt": ""}]
    )

    archive = read_archive(["calls"], srt=folder / "words")
    assert [item.word_times for item in archive] == [None, f"{folder}/words/may/b.srt"]
    assert archive.warnings == [
        f"1 of 2 recordings have no subtitles in {folder}/words and are predicted without words: calls/a.wav."
    ]
    rows = read_archive(["calls/calls.csv"], srt=folder / "words")
    assert [item.word_times for item in rows] == [f"{folder}/calls/own.vtt", f"{folder}/words/may/b.srt"]
    single = read_archive(["calls/a.wav"], srt=folder / "words/may/b.srt")
    assert [item.word_times for item in single] == [f"{folder}/words/may/b.srt"]
    for sources in (["calls"], ["calls/calls.csv"], ["calls/a.wav", "calls/calls.csv"]):
        with pytest.raises(ValueError, match=r"b\.srt belongs to one recording, got \d; pass a folder of files"):
            read_archive(sources, srt=folder / "words/may/b.srt")


def test_names_that_are_not_unicode_open_after_transport(folder):
    name = os.fsencode(folder) + b"/calls/caf\xe9.wav"
    with open(name, "wb") as file:
        file.write(b"sound")
    write_table(folder / "calls.jsonl", [{"path": "calls/caf\udce9.wav"}])

    for source, id in (("calls", "calls/caf\\udce9.wav"), ("calls.jsonl", "calls/caf\\udce9.wav")):
        (item,) = (item for item in read_archive([source]) if item.id == id)
        for path in (pickle.loads(pickle.dumps(item)).path, json.loads(json.dumps(item.path))):
            with fetch(path) as stream:
                assert stream.read() == b"sound"


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_of_tables(folder, suffix):
    rows = [
        {"call": "007", "recording": "a.wav", "said": "So sad.", "agent": "anna", "minutes": 1.5, "label": "sad"},
        {"call": "008", "recording": "s3://b/b.wav", "said": "", "agent": "bob", "minutes": 2.0, "label": "angry"},
        {"call": "009", "recording": "/c.wav", "said": "", "agent": "", "minutes": None, "label": "sad"},
        {"call": "010", "recording": "", "said": "", "agent": "", "minutes": 3.0, "label": ""},
    ]
    write_table(folder / "tables" / f"calls{suffix}", rows)
    columns = {"id": "call", "path": "recording", "text": "said"}

    archive = read_archive([f"tables/calls{suffix}"], columns=columns)

    assert archive.count == 4
    assert archive.columns == {
        "said": pa.string(),
        "agent": pa.string(),
        "minutes": pa.float64(),
        "input_label": pa.string(),
    }
    empty = "" if suffix in (".jsonl", ".parquet") else None
    items = list(archive)
    assert [(item.id, item.path, item.text) for item in items] == [
        ("007", f"{folder}/tables/a.wav", "So sad."),
        ("008", "s3://b/b.wav", None),
        ("009", "/c.wav", None),
        ("010", None, None),
    ]
    assert items[0].columns == {"said": "So sad.", "agent": "anna", "minutes": 1.5, "input_label": "sad"}
    assert items[2].columns == {"said": empty, "agent": empty, "minutes": None, "input_label": "sad"}
    pa.Table.from_pylist([dict(item.columns) for item in items], pa.schema(archive.columns))


def test_rows_of_texts_have_the_number_of_the_row_as_id(folder):
    write_table(folder / "comments.csv", [{"text": "So sad."}, {"text": "Wait!"}])

    assert list(read_archive(["comments.csv"])) == [
        ArchiveItem("comments.csv/0", text="So sad.", columns={"text": "So sad."}),
        ArchiveItem("comments.csv/1", text="Wait!", columns={"text": "Wait!"}),
    ]


def test_tables_are_read_as_they_are_needed(folder, monkeypatch):
    rows = [{"path": f"{n}.wav", "n": n} for n in range(5_000)]
    write_table(folder / "calls.csv", rows)
    archive = read_archive(["calls.csv"])
    read = []
    from mmemo.archives import tables

    records = tables._records
    monkeypatch.setattr(tables, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(tables, "_records", lambda values, count: read.append(count) or records(values, count))

    items = iter(archive)
    assert [next(items).id for _ in range(3)] == ["0.wav", "1.wav", "2.wav"]
    assert sum(read) < 1000
    assert sum(1 for _ in items) == 4_997


def test_globs_of_tables_and_columns_of_several_tables(folder):
    write_table(folder / "may.csv", [{"path": "a.wav", "agent": "1", "minutes": "1", "note": ""}])
    write_table(folder / "june.csv", [{"path": "b.wav", "agent": "2", "minutes": "1.5"}])

    archive = read_archive(["*.csv", "may.csv"])

    assert [item.id for item in archive] == ["b.wav", "a.wav"]
    assert archive.columns == {"agent": pa.int64(), "minutes": pa.float64(), "note": pa.string()}
    write_table(folder / "july.csv", [{"path": "c.wav", "agent": "A3"}])
    with pytest.raises(
        ValueError, match=r"'agent' is string in july\.csv and int64 in may\.csv; rename or convert one"
    ):
        read_archive(["may.csv", "july.csv"])


def test_recordings_in_a_parquet_file(folder):
    rows = {"audio": [{"bytes": b"1", "path": "a.wav"}], "image": [{"bytes": b"2", "path": "a.png"}], "n": [1]}
    pq.write_table(pa.table(rows), folder / "calls.parquet")

    archive = read_archive(["calls.parquet"])

    assert list(archive) == [ArchiveItem("a.wav", content=b"1", columns={"n": 1})]
    assert archive.warnings == ["calls.parquet: image contain files or bytes and are not carried."]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_repeated_ids_are_named_with_their_rows(folder, suffix):
    write_table(folder / f"a{suffix}", [{"path": path} for path in ("a.wav", "b.wav", "a.wav")])
    write_table(folder / f"b{suffix}", [{"path": path} for path in ("b.wav", "c.wav")])
    (folder / "c.wav").touch()

    with pytest.raises(
        ValueError,
        match=rf"^3 id\(s\) occur more than once \(rows are numbered from 0\): 'c\.wav', 'c\.wav', row 1 of "
        rf"b\{suffix}; 'a\.wav', row 0 of a\{suffix}, row 2 of a\{suffix}; "
        rf"'b\.wav', row 1 of a\{suffix}, row 0 of b\{suffix}\. "
        r"Remove the repeated items, or name a column of unique values with --columns id=NAME\.$",
    ):
        read_archive([f"a{suffix}", f"b{suffix}", "c.wav"])


def test_ids_whose_hashes_are_equal_are_not_repeated(folder, monkeypatch):
    monkeypatch.setattr("mmemo.archives.archive_items.hash", lambda _: 1, raising=False)
    write_table(folder / "calls.csv", [{"path": "a.wav"}, {"path": "b.wav"}])

    assert ids("calls.csv") == ["a.wav", "b.wav"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_tables_and_folders_of_remote_storage(folder, storage, suffix):
    table = write_table(folder / f"calls{suffix}", [{"path": "may/a.wav", "n": 1}, {"path": "../b.wav", "n": 2}])
    storage.pipe(f"/calls/table{suffix}", table.read_bytes())
    storage.pipe("/calls/may/a.wav", b"sound")

    archive = read_archive([f"memory://calls/*{suffix}"])

    assert [(item.id, item.path) for item in archive] == [
        ("may/a.wav", "memory:///calls/may/a.wav"),
        ("../b.wav", "memory:///b.wav"),
    ]
    storage.rm(f"/calls/table{suffix}")  # read from one copy
    assert len(list(archive)) == 2
    assert [(item.id, item.path) for item in read_archive(["memory://calls"])] == [
        ("memory:///calls/may/a.wav", "memory:///calls/may/a.wav")
    ]
    with pytest.raises(ValueError, match=r"There is no file or folder memory://calls/gone\.csv; check the URL"):
        read_archive(["memory://calls/gone.csv"])


@pytest.mark.parametrize(
    ("sources", "options", "sentence"),
    [
        ([], {}, r"An archive needs a source: a folder, glob, table, URL or dataset of the Hub"),
        (["gone.csv"], {}, r"Cannot read gone\.csv \(.*No such file or directory.*\); check the path or URL"),
        (["*.csv"], {}, r"\*\.csv matches no file"),
        (
            ["calls"],
            {"columns": {"id": "call"}},
            r"columns=\{'id': 'call'\} applies to tables and datasets",
        ),
        (
            ["calls"],
            {"split": "test"},
            r"split='test' applies to datasets of the Hub, and there is none",
        ),
        (["calls"], {"srt": "nowhere"}, r"--srt nowhere does not exist"),
    ],
)
def test_sources_and_options_that_do_not_fit_raise(folder, sources, options, sentence):
    if "srt" in options:
        options = {"srt": folder.relative_to(folder) / options["srt"]}
    with pytest.raises(ValueError, match=sentence):
        read_archive(sources, **options)


def test_columns_in_another_encoding_raise(folder):
    (folder / "calls.csv").write_bytes(b"path,agent\na.wav,Ren\xe9\n")

    with pytest.raises(ValueError, match=r"calls\.csv: the column 'agent' is not UTF-8; save the table as UTF-8\."):
        read_archive(["calls.csv"])


def test_a_bad_channel_is_found_before_the_first_item(folder):
    write_table(folder / "calls.jsonl", [{"path": "a.wav", "channel": 1}, {"path": "b.wav", "channel": 0.5}])

    with pytest.raises(ValueError, match=r"row 1 of calls\.jsonl has the channel 0\.5; expected a whole number"):
        read_archive(["calls.jsonl"])


def test_folders_need_no_pyarrow_and_tables_name_it(folder):
    write_table(folder / "calls.csv", [{"path": "a.wav"}])
    code = """
import sys
sys.modules["pyarrow"] = None
from mmemo.archives.archive_items import read_archive
print(len(list(read_archive(["calls"]))))
try:
    read_archive(["calls.csv"])
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == [
        "2",
        "ImportError Tables and datasets need the package pyarrow: pip install 'mmemo[archives]'.",
    ]
