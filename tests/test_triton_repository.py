"""Model repositories for Triton: their configuration parses by its protobuf schema and describes the graph."""

import importlib.metadata
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from test_docs import blocks_of
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.cli import app
from mmemo.runtime.graph import METADATA_KEY, EmotionGraph, complete_inputs
from mmemo.runtime.processor import OnnxProcessor
from modeling_mmemo import exporters
from modeling_mmemo.exporters import save_repository
from modeling_mmemo.exporters.triton_repository import configuration


ROOT = Path(__file__).parents[1]
DTYPES = {"TYPE_FP32": np.dtype(np.float32), "TYPE_INT64": np.dtype(np.int64)}
CLIENT_FILES = {
    "config.json",
    "features.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def schema():
    """Triton's protobuf schema, from a file of its client; the rest of that package needs another protobuf."""
    path = importlib.metadata.distribution("tritonclient").locate_file("tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_export(exported, graph, folder):
    """Copies the exported model with one of its graphs."""
    folder.mkdir()
    for path in exported.iterdir():
        if path.is_file() and (path.suffix != ".onnx" or path.name == graph):
            shutil.copy(path, folder)
    return folder


@pytest.fixture
def exported_folder(exported, tmp_path):
    return copy_export(exported, "model.onnx", tmp_path / "exported")


@pytest.fixture(scope="module")
def servers(exported, schema, tmp_path_factory):
    """Servers of the float and the int8 graph, by file name, and the predictors of these graphs."""
    found = {}
    for graph in ("model.onnx", "model_int8.onnx"):
        folder = tmp_path_factory.mktemp("triton")
        save_repository(copy_export(exported, graph, folder / "exported"), folder / "repository")
        found[graph] = Triton(folder / "repository", schema), EmotionPredictor(folder / "exported")
    return found


class Triton:
    """
    Serves a repository as Triton does, without HTTP: the model has the name of its folder, and a request must have
    exactly the inputs of the configuration, with their types and shapes.
    """

    def __init__(self, repository, schema):
        (folder,) = [path for path in repository.iterdir() if path.is_dir()]
        self.repository, self.processor = repository, OnnxProcessor(repository)
        self.schema = schema
        self.configuration = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
        assert self.configuration.name == folder.name
        (version,) = [path for path in folder.iterdir() if path.is_dir()]
        assert version.name == "1"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(self.configuration.parameters["intra_op_thread_count"].string_value)
        self.session = onnxruntime.InferenceSession(version / "model.onnx", options)
        self.labels = (folder / "labels.txt").read_text().splitlines()

    @property
    def metadata(self):
        return {
            field: [
                {
                    "name": tensor.name,
                    "datatype": self.type_name(tensor).removeprefix("TYPE_"),
                    "shape": [-1, *tensor.dims],
                }
                for tensor in tensors
            ]
            for field, tensors in (("inputs", self.configuration.input), ("outputs", self.configuration.output))
        }

    def type_name(self, tensor):
        return self.schema.DataType.Name(tensor.data_type)

    def infer(self, feed):
        assert feed.keys() == {tensor.name for tensor in self.configuration.input}
        for tensor in self.configuration.input:
            self.check(tensor, feed[tensor.name])
        assert len({len(values) for values in feed.values()}) == 1
        names = [tensor.name for tensor in self.configuration.output]
        outputs = dict(zip(names, self.session.run(names, feed)))
        for tensor in self.configuration.output:
            self.check(tensor, outputs[tensor.name])
        return outputs

    def check(self, tensor, values):
        assert values.dtype == DTYPES[self.type_name(tensor)], tensor.name
        batch, *axes = values.shape
        assert 1 <= batch <= self.configuration.max_batch_size
        assert len(axes) == len(tensor.dims)
        assert all(dim in (-1, axis) for dim, axis in zip(tensor.dims, axes)), tensor.name

    def get(self, url):
        assert url == "http://127.0.0.1:8000/v2/models/mmemo"
        return SimpleNamespace(json=lambda: json.loads(json.dumps(self.metadata)))

    def post(self, url, json):
        assert url == "http://127.0.0.1:8000/v2/models/mmemo/infer"
        names = {"FP32": np.float32, "INT64": np.int64}
        feed = {
            given["name"]: np.array(given["data"], names[given["datatype"]]).reshape(given["shape"])
            for given in json["inputs"]
        }
        outputs = self.infer(feed)
        wanted = [output["name"] for output in json["outputs"]]
        found = [{"name": name, "data": outputs[name].ravel().tolist()} for name in wanted]
        return SimpleNamespace(json=lambda: {"outputs": found})

    def feed(self, *items):
        """Returns the inputs of a client for a batch of items."""
        shapes = {value["name"]: value["shape"] for value in self.metadata["inputs"]}
        return complete_inputs(self.processor.collate([self.processor.prepare(**item) for item in items]), shapes)


def test_files(exported_folder, tmp_path):
    written = save_repository(exported_folder, tmp_path / "repository")

    relative = {str(path.relative_to(tmp_path / "repository")) for path in written}
    assert relative == CLIENT_FILES | {"mmemo/1/model.onnx", "mmemo/config.pbtxt", "mmemo/labels.txt"}
    assert all(path.is_file() for path in written)
    # Triton takes every folder for a model.
    assert [path.name for path in (tmp_path / "repository").iterdir() if path.is_dir()] == ["mmemo"]


@pytest.mark.parametrize("graph", ["model.onnx", "model_int8.onnx"])
def test_the_configuration_declares_the_tensors_of_the_graph(graph, servers):
    server, _ = servers[graph]

    for tensors, values in (
        (server.configuration.input, server.session.get_inputs()),
        (server.configuration.output, server.session.get_outputs()),
    ):
        assert [(tensor.name, list(tensor.dims)) for tensor in tensors] == [
            (value.name, [axis if isinstance(axis, int) else -1 for axis in value.shape[1:]]) for value in values
        ]
        types = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
        assert [server.type_name(tensor) for tensor in tensors] == [types[value.type] for value in values]
    assert not any(tensor.optional for tensor in server.configuration.input)
    (group,) = server.configuration.instance_group
    assert group.kind == server.schema.ModelInstanceGroup.KIND_CPU
    assert server.configuration.backend == "onnxruntime"


def test_only_independent_predictions_are_batched(servers):
    float32, int8 = (servers[graph][0].configuration for graph in ("model.onnx", "model_int8.onnx"))

    assert float32.max_batch_size == 8 and float32.HasField("dynamic_batching")
    assert int8.max_batch_size == 1 and not int8.HasField("dynamic_batching")


def test_a_typing_error_in_the_configuration_is_found(schema, exported):
    text = configuration(EmotionGraph(exported / "model.onnx"))

    for right, wrong in (("data_type", "datatype"), ("TYPE_FP32", "TYPE_FLOAT"), ("KIND_CPU", "CPU")):
        with pytest.raises(text_format.ParseError):
            text_format.Parse(text.replace(right, wrong), schema.ModelConfig())


@pytest.mark.parametrize("graph", ["model.onnx", "model_int8.onnx"])
@pytest.mark.parametrize("given", [("audio", "text"), ("audio",), ("text",)])
def test_a_client_gets_the_prediction_of_the_predictor(graph, given, servers, make_clip):
    item = {"audio": make_clip(0.6), "text": "so happy"}
    item = {name: item[name] for name in given}
    server, predictor = servers[graph]

    outputs = server.infer(server.feed(item))

    expected = predictor.run([predictor.prepare(item)])
    for name in ("logits", "audio_logits", "text_logits", "modality_weights"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-6, err_msg=name)
    assert server.labels == predictor.answers.labels


def test_a_batch_of_different_modalities(servers, make_clip):
    server, _ = servers["model.onnx"]
    items = [{"text": "so happy"}, {"audio": make_clip(0.6)}, {"audio": make_clip(0.4, 1), "text": "not sad ."}]

    together = server.infer(server.feed(*items))

    for row, item in enumerate(items):
        alone = server.infer(server.feed(item))
        np.testing.assert_allclose(together["logits"][row], alone["logits"][0], atol=1e-5)


def test_labels_are_those_of_classes(servers):
    server, _ = servers["model.onnx"]
    labelled = {tensor.name for tensor in server.configuration.output if tensor.label_filename == "labels.txt"}

    assert labelled == {"logits", "audio_logits", "text_logits"}


def test_a_model_with_video(video_model, schema, tmp_path):
    save_repository(video_model, tmp_path / "repository")
    server = Triton(tmp_path / "repository", schema)

    feed = server.feed({"text": "so happy"}, {"text": "sad"})

    assert feed["video_features"].shape == (2, 1, 52)
    assert server.infer(feed)["logits"].shape == (2, 4)


def test_weights_in_another_file_go_along(exported_folder, schema, tmp_path):
    folder = exported_folder
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data")

    save_repository(folder, tmp_path / "repository")

    assert (tmp_path / "repository" / "mmemo" / "1" / "model.onnx.data").stat().st_size > 1000
    Triton(tmp_path / "repository", schema)


def test_shared_weights_raise(exported_folder, tmp_path):
    folder = exported_folder
    model = onnx.load(folder / "model.onnx")
    (properties,) = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    facts = json.loads(properties.value)
    (folder / "model.safetensors").write_bytes(b"")
    properties.value = json.dumps(facts | {"shares": {"file": "model.safetensors", "checksum": 0}})
    onnx.save(model, folder / "model.onnx")

    with pytest.raises(
        ValueError, match=re.escape("reads weights from model.safetensors, which Triton does not find")
    ):
        save_repository(folder, tmp_path / "repository")


def test_other_types_raise(exported):
    graph = EmotionGraph(exported / "model.onnx")
    graph.input_types["input_ids"] = "tensor(complex64)"

    with pytest.raises(ValueError, match=re.escape("input_ids has the type tensor(complex64); Triton's")):
        configuration(graph)


@pytest.mark.parametrize(
    ("int8", "precision"),
    [pytest.param((), "int8", marks=pytest.mark.slow), (("--int8", "none"), "float32")],
)
def test_the_command(int8, precision, trained, exported, schema, tmp_path, monkeypatch):
    def copy_graph(model, processor, folder):
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        return Path(shutil.copy(exported / "model.onnx", folder))

    monkeypatch.setattr(exporters, "export_onnx", copy_graph, raising=False)
    output = tmp_path / "repository"

    result = CliRunner().invoke(app, ["export", str(trained), "--output", str(output), "--to", "triton", *int8])

    assert result.exit_code == 0, result.stderr
    printed = {line.partition("  ")[0] for line in result.stdout.splitlines()}
    assert str(output / "mmemo" / "config.pbtxt") in printed and str(output / "tokenizer.json") in printed
    Triton(output, schema)
    assert EmotionGraph(output / "mmemo" / "1" / "model.onnx").metadata["precision"] == precision


def test_in_place_contradicts_a_repository(trained):
    result = CliRunner().invoke(app, ["export", str(trained), "--in-place", "--to", "triton"])

    assert result.exit_code == 2
    assert "--to triton writes a model repository; pass --output" in " ".join(result.stderr.replace("│", "").split())


def test_the_client_of_the_page_works(servers, tmp_path, monkeypatch):
    (code,) = [block.code for block in blocks_of(ROOT / "docs" / "export.md") if "/v2/models/" in block.code]
    server, predictor = servers["model.onnx"]
    (tmp_path / "repository").symlink_to(server.repository)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("httpx.get", server.get)
    monkeypatch.setattr("httpx.post", server.post)
    namespace = {}

    exec(compile(code, "export.md", "exec"), namespace)

    (expected, *_) = predictor("examples/audio/03b01Wa.flac", "What are those bags?")
    assert namespace["labels"][namespace["scores"].argmax()] == expected["label"]
    assert namespace["scores"].max() == pytest.approx(expected["score"], abs=1e-5)
