import json
import os
import shutil
import subprocess
import sys

import httpx
import numpy as np
import onnx
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from mmemo.runtime.graph import FORMAT, METADATA_KEY, EmotionGraph, find_graph, local_folder


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def rewrite_metadata(path, change):
    model = onnx.load(path)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    metadata = json.loads(entry.value)
    change(metadata)
    entry.value = json.dumps(metadata)
    onnx.save(model, path)


def test_find_graph_prefers_int8_and_searches_the_subfolder_onnx(folder):
    assert find_graph(folder) == folder / "model_int8.onnx"
    assert find_graph(folder, "model.onnx") == folder / "model.onnx"

    (folder / "model_int8.onnx").unlink()
    (folder / "onnx").mkdir()
    (folder / "model.onnx").rename(folder / "onnx" / "model.onnx")

    assert find_graph(folder) == folder / "onnx" / "model.onnx"


def test_a_folder_without_the_graph_raises(folder):
    with pytest.raises(FileNotFoundError, match=r"no other.onnx, but \['model.onnx', .*\]. Export the model: mmemo"):
        find_graph(folder, "other.onnx")
    for path in folder.glob("*.onnx"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model_int8.onnx and no model.onnx. Export the model: mmemo"):
        find_graph(folder)


def test_a_graph_without_metadata_raises(folder):
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, folder / "model.onnx")

    with pytest.raises(
        ValueError, match=r"is not a graph of mmemo: it has no mmemo metadata. Export the model: mmemo export"
    ):
        EmotionGraph(folder / "model.onnx")


def test_a_graph_of_another_format_raises(folder):
    rewrite_metadata(folder / "model.onnx", lambda metadata: metadata.update(format=99, versions={"mmemo": "9.1"}))

    with pytest.raises(
        ValueError, match=r"has format 99, written by mmemo 9.1; this version runs format 1. Export the"
    ):
        EmotionGraph(folder / "model.onnx")


def test_a_truncated_file_raises(folder):
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(ValueError, match=r"cannot open .*model.onnx: .* Copy the complete file"):
        EmotionGraph(path)


def test_missing_onnx_runtime_raises(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(ImportError, match="needs ONNX Runtime: pip install onnxruntime"):
        EmotionGraph(exported / "model.onnx")


def test_metadata_describes_the_model(exported):
    graph, int8 = EmotionGraph(exported / "model.onnx"), EmotionGraph(exported / "model_int8.onnx")

    assert graph.metadata["precision"] == "float32" and graph.metadata["versions"].keys() >= {"mmemo", "torch"}
    assert int8.metadata["precision"] == "int8" and int8.metadata["approach"] == "dynamic"


def test_a_missing_mask_counts_as_ones(exported, model):
    graph = EmotionGraph(exported / "model.onnx")
    inputs = {"input_ids": np.array([[2, 5, 6, 3], [2, 7, 9, 3]]), "input_features": np.ones((2, 16, 30), np.float32)}

    outputs = graph.predict(inputs)

    expected = model(**{name: torch.from_numpy(values) for name, values in inputs.items()})
    np.testing.assert_allclose(outputs["logits"], expected.logits.detach().numpy(), atol=1e-4)
    assert "segment_logits" not in outputs


def test_invalid_inputs_raise(exported):
    graph = EmotionGraph(exported / "model.onnx")

    with pytest.raises(ValueError, match=r"has no inputs \['input_values'\]; it has \['input_features'"):
        graph.predict({"input_values": np.zeros((1, 400), np.float32)})
    with pytest.raises(ValueError, match=r"Got neither audio \(input_features\) nor text \(input_ids\); pass"):
        graph.predict({"segment_times": np.zeros((1, 1, 2), np.float32)})


@pytest.fixture
def three_modalities(tmp_path):
    """A graph that returns its tokens."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 20]>
        three (
            float[batch, 8, frames] input_features, int64[batch, frames] audio_attention_mask,
            int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask, float[batch, tokens, 2] token_times,
            float[batch, segments, 2] segment_times, float[batch, pictures, 3, 4, 4] pixel_values,
            int64[batch, pictures] video_attention_mask, float[batch, pictures, 2] video_times
        ) => (int64[batch, tokens] output) { output = Identity(input_ids) }
    """)
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps({"format": FORMAT})})
    onnx.save(model, tmp_path / "model.onnx")
    return EmotionGraph(tmp_path / "model.onnx")


def test_missing_modalities_are_filled_in(three_modalities):
    feed = three_modalities.complete({"input_ids": np.array([[2, 5, 3]] * 2)})

    assert feed.keys() == three_modalities.input_shapes.keys()
    expected = {
        "input_features": np.zeros((2, 8, 1)),
        "audio_attention_mask": np.zeros((2, 1)),
        "attention_mask": np.ones((2, 3)),
        "token_times": np.full((2, 3, 2), -1),
        "pixel_values": np.zeros((2, 1, 3, 4, 4)),
        "video_attention_mask": np.zeros((2, 1)),
        "video_times": np.full((2, 1, 2), -1),
        "segment_times": np.zeros((2, 0, 2)),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(feed[name], values, err_msg=name)


def test_a_video_without_mask_and_times(three_modalities):
    feed = three_modalities.complete({"pixel_values": np.ones((1, 5, 3, 4, 4), np.float32)})

    np.testing.assert_array_equal(feed["video_attention_mask"], np.ones((1, 5)))
    np.testing.assert_array_equal(feed["video_times"], np.full((1, 5, 2), -1))
    np.testing.assert_array_equal(feed["attention_mask"], [[0]])


@pytest.mark.parametrize(
    "program",
    [
        "from mmemo import EmotionPredictor; EmotionPredictor()(text='so')",
        pytest.param(
            "from modeling_mmemo import load_pipeline; load_pipeline(backend='onnx')({'text': 'so'})",
            marks=pytest.mark.slow,
        ),
        pytest.param("from modeling_mmemo.exporters import export_onnx; import onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_no_telemetry_is_sent(program, tmp_path):
    """ONNX Runtime writes an identifier of the machine to the home folder as soon as its telemetry is active."""
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"HOME": str(tmp_path)})

    assert not [path for path in tmp_path.rglob("*") if "icrosoft" in str(path)]


CLIPS_OF_MANY_LENGTHS = """
import os
from pathlib import Path
import numpy as np
from mmemo import EmotionPredictor

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

predict = EmotionPredictor(num_threads=1)
noise = np.random.default_rng(0).normal(scale=0.1, size=9 * 16_000).astype(np.float32)
predict(noise, sampling_rate=16_000)
before = resident_mib()
for length in range(16_000, len(noise), 1_000):
    predict(noise[:length], sampling_rate=16_000)
print(resident_mib() - before)
"""


@pytest.mark.slow
def test_clips_of_many_lengths_take_no_more_memory():
    found = subprocess.run([sys.executable, "-c", CLIPS_OF_MANY_LENGTHS], capture_output=True, text=True, check=True)

    assert float(found.stdout) < 80  # ten times that with a plan of memory for each length


def test_a_model_that_is_neither_a_folder_nor_on_the_hub_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(OSError, match=rf"^runs/none is neither a folder in {tmp_path} nor in the cache of the Hub"):
        local_folder("runs/none")
    with pytest.raises(FileNotFoundError, match=r"no/such/folder is neither a folder nor a name on the Hub"):
        local_folder("no/such/folder")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("RepoNotFound", r"me/calls is neither a folder in .* nor a public repository on the Hub; .* hf auth login"),
        ("RevisionNotFound", r"me/calls has no revision 'v9' on the Hub"),
    ],
)
def test_answers_of_the_hub_are_one_sentence(monkeypatch, code, message):
    errors = {"RepoNotFound": RepositoryNotFoundError, "RevisionNotFound": RevisionNotFoundError}

    def download(*_, **options):
        request = httpx.Request("GET", "https://hub.invalid/me/calls")
        raise errors[code]("404 Client Error.\n\nRequest ID: x", response=httpx.Response(404, request=request))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)

    with pytest.raises(OSError, match=message):
        local_folder("me/calls", revision="v9")
