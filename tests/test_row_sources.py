"""Rows of datasets of the Hub as items: streamed, with ids of our own; rows of tables are tested with archives."""

import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, ClassLabel, Dataset, Features, Image, IterableDatasetDict, List, Value
from hub_server import serve

from mmemo.archives.archive_items import read_archive
from mmemo.archives.tasks import ArchiveItem


FEATURES = {
    "audio": {"bytes": Value("binary"), "path": Value("string")},
    "image": {"bytes": Value("binary"), "path": Value("string")},
    "text": Value("string"),
    "id": Value("int64"),
    "label": ClassLabel(names=["sad", "angry"]),
    "votes": List(ClassLabel(names=["sad", "angry"])),
}


def split_of(*rows):
    """Returns a split of a dataset of the Hub, whose recordings `datasets` would decode."""
    rows = Dataset.from_list([dict.fromkeys(FEATURES) | row for row in rows], features=Features(FEATURES))
    return rows.cast_column("audio", Audio()).cast_column("image", Image()).to_iterable_dataset()


@pytest.fixture
def hub(monkeypatch):
    """Datasets by their names, and the requests for them."""
    stored, requests = {}, []

    def load_dataset(name, config, split, streaming):
        requests.append((name, config, split, streaming))
        if name not in stored:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist.")
        return stored[name] if split is None else stored[name][split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return stored, requests


def sound(content, path="a.wav"):
    return {"audio": {"bytes": content, "path": path}}


def test_rows_of_all_splits(hub):
    first = sound(b"1") | {"text": "So sad.", "id": 7, "label": 0, "votes": [0, 1]}
    hub[0]["someone/calls"] = IterableDatasetDict(
        train=split_of(first, {"label": -1}), test=split_of(sound(None, "hf://datasets/someone/calls/b.wav"))
    )

    archive = read_archive(["someone/calls:raw"])

    assert hub[1] == [("someone/calls", "raw", None, True)]
    assert archive.columns == {
        "text": pa.string(),
        "input_id": pa.int64(),
        "input_label": pa.string(),
        "votes": pa.list_(pa.string()),
    }
    assert archive.warnings == ["someone/calls:raw: image contain files or bytes and are not carried."]
    none = dict.fromkeys(archive.columns)
    own = {"text": "So sad.", "input_id": 7, "input_label": "sad", "votes": ["sad", "angry"]}
    items = list(archive)
    assert items == [
        ArchiveItem("someone/calls:raw/train/0", content=b"1", text="So sad.", columns=own),
        ArchiveItem("someone/calls:raw/train/1", columns=none),
        ArchiveItem("someone/calls:raw/test/0", path="hf://datasets/someone/calls/b.wav", columns=none),
    ]
    assert list(archive) == items


def test_one_split_with_a_column_of_ids(hub):
    hub[0]["someone/calls"] = {"test": split_of(sound(b"1") | {"id": 7}, sound(b"2") | {"id": 8})}

    archive = read_archive(["someone/calls"], split="test", columns={"id": "id"})

    assert hub[1] == [("someone/calls", None, "test", True)]
    assert [(item.id, item.content) for item in archive] == [("7", b"1"), ("8", b"2")]
    assert archive.count is None

    hub[0]["someone/calls"] = {"test": split_of(sound(b"1") | {"id": 7}, sound(b"2") | {"id": 7})}
    items = iter(read_archive(["someone/calls"], split="test", columns={"id": "id"}))
    assert next(items).id == "7"
    with pytest.raises(ValueError, match=r"someone/calls has the id '7' more than once; leave id out of --columns"):
        next(items)


def test_rows_are_streamed(hub):
    read = []

    def endless():
        for number in range(10**9):
            read.append(number)
            yield {"text": f"text {number}", "file": f"{number}.wav"}

    rows = datasets.IterableDataset.from_generator(endless)
    hub[0]["someone/calls"] = {"train": rows}

    archive = read_archive(["someone/calls"])  # declares no types
    read.clear()
    items = iter(archive)

    assert next(items) == ArchiveItem(
        "someone/calls/train/0",
        path="hf://datasets/someone/calls/0.wav",
        text="text 0",
        columns={"text": "text 0"},
    )
    assert len(read) < 10


def test_errors_of_a_dataset_are_sentences(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def broken():
        yield {"text": "a"}
        raise ConnectionResetError("Connection reset by peer")

    for source in ("someone/nothing", "calls/may"):
        with pytest.raises(ValueError, match=rf"^{source} is neither an existing file or folder nor a readable"):
            read_archive([source])
    hub[0]["someone/calls"] = {
        "train": datasets.IterableDataset.from_generator(broken, features=Features({"text": Value("string")}))
    }
    items = iter(read_archive(["someone/calls"]))
    assert next(items).text == "a"
    with pytest.raises(ValueError, match=r"someone/calls/train is neither .* \(Connection reset by peer\); check"):
        next(items)
    with pytest.raises(ValueError, match=r"--srt .* does not apply to the dataset someone/calls; map its column"):
        read_archive(["someone/calls"], srt=tmp_path)


def test_a_local_path_wins_over_a_dataset(hub, tmp_path, monkeypatch):
    (tmp_path / "someone" / "calls").mkdir(parents=True)
    (tmp_path / "someone" / "calls" / "a.wav").touch()
    monkeypatch.chdir(tmp_path)

    assert [item.id for item in read_archive(["someone/calls"])] == ["someone/calls/a.wav"]
    assert [item.id for item in read_archive(["someone/missing.wav"])] == ["someone/missing.wav"]  # is no dataset
    assert not hub[1]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(ImportError, match=r"^someone/calls is neither .* needs the package datasets: pip"):
        read_archive(["someone/calls"])


READER = """
import json, sys
from mmemo.archives.archive_items import read_archive
from mmemo.audio.loading import load_audio

found = []
for source in sys.argv[1:]:
    items = list(read_archive([source]))
    lengths = [len(load_audio(item.content or item.path)) for item in items]
    found.append([[item.id, dict(item.columns), length] for item, length in zip(items, lengths)])
try:
    read_archive(["hf://datasets/someone/other"])
except ValueError as error:
    found.append(str(error))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_datasets_files_and_tables_of_a_hub(example_audio, tmp_path):
    clip = example_audio.read_bytes()
    pq.write_table(
        pa.table({"audio": [{"bytes": clip, "path": "a.wav"}], "agent": ["anna"]}), tmp_path / "train.parquet"
    )
    files = {
        "data/train-00000.parquet": (tmp_path / "train.parquet").read_bytes(),
        "clips/a.flac": clip,
        "clips/calls.csv": b"path,agent\na.flac,bob\n",
    }
    with serve() as (hub, address):
        hub.create("someone/calls")
        hub.repositories["someone/calls"]["commits"][hub.find("someone/calls", "main")[0]] = files
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "no_proxy": "127.0.0.1",
        }
        base = "hf://datasets/someone/calls"
        sources = ["someone/calls", f"{base}/clips", f"{base}/clips/calls.csv"]
        command = [sys.executable, "-c", READER, *sources]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    rows, found, table, error = json.loads(done.stdout)
    length = rows[0][2]
    assert rows == [["someone/calls/train/0", {"agent": "anna"}, length]] and length > 16_000
    assert found == [[f"{base}/clips/a.flac", {}, length]]
    assert table == [["a.flac", {"agent": "bob"}, length]]
    assert error.startswith("There is no file or folder hf://datasets/someone/other; check the URL")
