"""Graphs of three modalities, float and int8: every subset has the model's outputs, and no other encoder runs."""

import json
import re
from itertools import combinations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_modeling_mmemo_video import COMPLETE, SUBSETS, of_subset, subsets
from test_onnx_export import assert_same_outputs
from tiny import alone, make_inputs, make_model, rows
from typer.testing import CliRunner

from mmemo.cli import app
from mmemo.modalities import MODALITIES
from mmemo.runtime.graph import EmotionGraph
from modeling_mmemo import (
    MMEmoConfig,
    MMEmoFeatureExtractor,
    MMEmoForEmotionRecognition,
    MMEmoProcessor,
    MMEmoVideoConfig,
)
from modeling_mmemo.configuration_mmemo import FUSIONS
from modeling_mmemo.exporters import MMEmoQuantizer, export_onnx
from modeling_mmemo.exporters.absent_modalities import inline
from modeling_mmemo.exporters.export_command import export_graphs


pytestmark = pytest.mark.slow  # the fixture traces five models
TRACED = [*((fusion, "mmemo_video") for fusion in FUSIONS), ("hybrid", "vit")]
PRODUCTS = ("MatMul", "Gemm", "Conv", "MatMulInteger", "MatMulNBits")


@pytest.fixture(scope="module", params=TRACED, ids=lambda traced: "-".join(traced))
def traced(request, session_tokenizer, tmp_path_factory):
    """A folder with the graphs of a model, the model, and the samples of `tiny`."""
    fusion, video = request.param
    folder, model = tmp_path_factory.mktemp("traced"), make_model(video=video, fusion=fusion)
    processor = MMEmoProcessor(MMEmoFeatureExtractor(n_mels=8), session_tokenizer, speech_padding_s=None)
    export_onnx(model, processor, folder)
    MMEmoQuantizer.from_pretrained(folder).quantize(folder)
    segments = torch.tensor([[0.0, 0.3], [0.3, 0.6]]).expand(4, -1, -1)
    return folder, model, {**make_inputs(video=video), "segment_times": segments}


def as_arrays(inputs):
    return {name: values.numpy() for name, values in inputs.items()}


@subsets
@pytest.mark.parametrize("more", [(), ("segment_times",)])
def test_every_subset_has_the_models_outputs(traced, subset, more):
    folder, model, inputs = traced
    graph = EmotionGraph(folder / "model.onnx")

    for samples in (inputs, rows(inputs, [1, 3]), alone(inputs, COMPLETE)):
        given = of_subset(samples, subset) | {name: samples[name] for name in more}
        assert_same_outputs(graph, model, as_arrays(given), tolerance=1e-5)


def test_videos_of_any_length(traced):
    folder, model, inputs = traced
    graph = EmotionGraph(folder / "model.onnx")
    name = graph.modality_inputs["video"]

    for batch, frames in ((1, 1), (1, 40), (2, 12)):
        values = np.random.default_rng(frames).normal(size=(batch, frames, *inputs[name].shape[2:]))
        assert_same_outputs(graph, model, {name: values.astype(np.float32)}, tolerance=1e-5)


def executed(path, inputs, folder):
    """Returns the names of the multiplications and convolutions that run."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, EmotionGraph(path).complete(as_arrays(inputs)))
    with open(session.end_profiling(), encoding="utf-8") as file:
        events = json.load(file)
    return {event["name"] for event in events if event.get("args", {}).get("op_name") in PRODUCTS}


@subsets
@pytest.mark.parametrize("name", ["model.onnx", "model_int8.onnx"])
def test_only_encoders_of_given_modalities_and_attention_between_them_run(traced, subset, name, tmp_path):
    folder, model, inputs = traced
    found = executed(folder / name, of_subset(alone(inputs, COMPLETE), subset), tmp_path)

    encoders = {modality for modality in MODALITIES if any(f"{modality}_tower." in node for node in found)}
    assert encoders == set(subset)
    pairs = combinations(subset, 2) if model.config.attends_across else ()
    attentions = {match[0] for node in found if (match := re.search("[a-z]+_to_[a-z]+", node))}
    assert attentions == {name for one, other in pairs for name in (f"{one}_to_{other}", f"{other}_to_{one}")}


def test_int8_changes_outputs_of_every_subset_little(traced):
    folder, _, inputs = traced
    graph, float_graph = EmotionGraph(folder / "model_int8.onnx"), EmotionGraph(folder / "model.onnx")

    for subset in SUBSETS:
        given = as_arrays(of_subset(alone(inputs, COMPLETE), subset))
        outputs, expected = graph.predict(given), float_graph.predict(given)
        assert np.abs(outputs["logits"] - expected["logits"]).max() < 0.1
        np.testing.assert_allclose(outputs["modality_weights"], expected["modality_weights"], atol=0.05)


def test_an_image_encoder_is_int8_and_the_face_network_is_not(traced):
    folder, model, _ = traced
    int8 = onnx.load(folder / "model_int8.onnx")
    inline(int8.graph)

    kinds = {node.op_type for node in int8.graph.node if "video_tower." in node.name and node.op_type in PRODUCTS}
    is_image_encoder = model.config.video_config.model_type == "vit"
    assert ("MatMulInteger" in kinds) == is_image_encoder
    assert "MatMulNBits" not in kinds


def test_a_model_of_faces_only_is_exported_and_predicts_videos(portrait, tmp_path):
    config = MMEmoConfig(video_config=MMEmoVideoConfig(hidden_size=16), id2label={0: "happy", 1: "sad"})
    model, processor = MMEmoForEmotionRecognition(config).eval(), MMEmoProcessor(frames_per_second=5)

    export_graphs(model, processor, tmp_path)

    values = np.random.default_rng(0).random((2, 7, 52)).astype(np.float32)
    assert_same_outputs(EmotionGraph(tmp_path / "model.onnx"), model, {"video_features": values}, tolerance=1e-5)
    command = ["predict", str(portrait), "--model", str(tmp_path)]
    result = CliRunner().invoke(app, [*command, "--video"])
    assert (result.exit_code, result.stderr) == (0, "") and "happy" in result.stdout
    sound = CliRunner().invoke(app, command)
    assert sound.exit_code == 1 and "has no audio encoder" in sound.stderr and "add --video" in sound.stderr
