"""The manifest of an archive job: hashes of models, and jobs that differ."""

import dataclasses
import json
import re
import shutil
import time

import pytest

from mmemo.archives.job_manifest import JobManifest, _external_files, model_hash
from mmemo.archives.tasks import ScoringOptions
from mmemo.runtime.graph import EMBEDDED_MODEL


LABELS, MODALITIES = ("angry", "sad"), ("audio", "text")


@pytest.fixture
def copied(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.fixture
def manifest():
    return JobManifest(
        model="org/model",
        revision="main",
        model_hash="0123456789abcdef" * 4,
        options={"threshold": 0.5, "timeline": False},
        format="parquet",
        partition_by=("agent",),
        labels=LABELS,
        modalities=MODALITIES,
        columns={"agent": "string", "month": "int64"},
        versions={"mmemo": "1.0", "onnxruntime": "1.30"},
        created="2026-01-31T22:00:00+00:00",
        sources=("calls/",),
    )


def test_hashing_the_embedded_model_is_fast_and_includes_the_shared_weights():
    assert [path.name for path in _external_files(EMBEDDED_MODEL / "model_int8.onnx")] == ["model.safetensors"]
    model_hash()  # from disk
    start = time.process_time()
    digest = model_hash()

    assert time.process_time() - start < 0.5
    assert re.fullmatch("[0-9a-f]{64}", digest)


def test_copies_of_a_model_have_one_hash(exported, copied):
    (copied / "README.md").write_text("Notes")

    assert model_hash(str(copied)) == model_hash(exported)


@pytest.mark.parametrize(
    "name",
    ["model_int8.onnx", "config.json", "processor_config.json", "tokenizer.json", "features.safetensors"],
)
def test_every_file_that_determines_predictions_changes_the_hash(name, exported, copied):
    path = next(copied.rglob(name))
    path.write_bytes(path.read_bytes() + b" ")

    assert model_hash(copied) != model_hash(exported)


def test_external_weights_change_the_hash_and_must_exist(copied):
    graph = next(copied.rglob("model_int8.onnx"))
    name = f"{'weights' * 30}.data"  # its length takes two bytes
    entry = b"\n\x08location\x12" + bytes([len(name) & 0x7F | 0x80, len(name) >> 7]) + name.encode()
    graph.write_bytes(graph.read_bytes() + entry + b"\x12\x01x")
    with pytest.raises(FileNotFoundError, match=r"needs the weights in .*\.data, which do not exist; copy them"):
        model_hash(copied)

    hashes = set()
    for content in (b"a", b"b"):
        graph.with_name(name).write_bytes(content)
        hashes.add(model_hash(copied))
    assert len(hashes) == 2


def test_a_folder_without_a_graph_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model_int8\.onnx"):
        model_hash(tmp_path)


def test_a_new_manifest(exported):
    options = ScoringOptions(model=str(exported), threshold=0.5, timeline=True)
    created = JobManifest.create(options, list(LABELS), MODALITIES, {"agent": "string"}, sources=map(str, range(500)))

    assert created.model == str(exported) and created.model_hash == model_hash(exported)
    assert created.options["threshold"] == 0.5 and "model" not in created.options
    assert created.versions.keys() == {"mmemo", "onnxruntime"}
    assert created.created.endswith("+00:00") and len(created.sources) == 100
    assert json.loads(created.to_json())["fingerprint"] == created.fingerprint
    assert JobManifest.from_json(created.to_json(), "OUT") == created


def test_it_survives_json(manifest):
    assert JobManifest.from_json(manifest.to_json(), "OUT") == manifest
    strange = dataclasses.replace(manifest, sources=("caf\udce9",))
    assert JobManifest.from_json(strange.to_json().encode(), "OUT") == strange


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": "", "model": 1}', "\ud83d"])
def test_other_content_is_refused(content):
    with pytest.raises(ValueError, match=r"OUT/manifest\.json is not the manifest of an archive job"):
        JobManifest.from_json(content.encode("utf-8", "surrogatepass"), "OUT/manifest.json")


def test_when_it_was_created_and_its_sources_are_not_compared(manifest):
    later = dataclasses.replace(manifest, created="2027-01-01T00:00:00+00:00", sources=("more/",))

    later.check_same_job(manifest, "OUT")
    assert later.fingerprint == manifest.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model was 'org/model' and is None"),
        ({"revision": "v2"}, "revision was 'main' and is 'v2'"),
        ({"model_hash": "f" * 64}, "hash of the model was '0123456789ab' and is 'ffffffffffff'"),
        ({"options": {"threshold": 0.6, "timeline": False}}, "threshold was 0.5 and is 0.6"),
        ({"options": {"threshold": 0.5}}, "timeline was False and is None"),
        ({"format": "csv"}, "format was 'parquet' and is 'csv'"),
        ({"partition_by": ()}, "partition_by was ['agent'] and is []"),
        ({"labels": ("sad", "angry")}, "labels was ['angry', 'sad'] and is ['sad', 'angry']"),
        ({"modalities": ("audio",)}, "modalities was ['audio', 'text'] and is ['audio']"),
        ({"columns": {"agent": "string"}}, "columns was {'agent': 'string', 'month': 'int64'} and is"),
        ({"versions": {"mmemo": "1.1", "onnxruntime": "1.30"}}, "version of mmemo was '1.0' and is '1.1'"),
    ],
)
def test_another_job_is_refused_with_both_values(change, message, manifest):
    other = dataclasses.replace(manifest, **change)

    with pytest.raises(ValueError) as raised:
        other.check_same_job(manifest, "OUT")
    assert str(raised.value).startswith(f"OUT contains the predictions of another job: {message}")
    assert str(raised.value).endswith("Choose another --output, or run the job with the same settings.")
    assert other.fingerprint != manifest.fingerprint


def test_all_differences_are_named(manifest):
    other = dataclasses.replace(manifest, model="org/other", format="csv")

    with pytest.raises(
        ValueError, match="model was 'org/model' and is 'org/other'; format was 'parquet' and is 'csv'"
    ):
        other.check_same_job(manifest, "OUT")
