from itertools import combinations

import numpy as np
import onnx
import onnxruntime
import pytest
from test_onnx_export import random_inputs

from mmemo.runtime.graph import MASKS, EmotionGraph
from modeling_mmemo.exporters.absent_modalities import inline, nest, skip_absent


# `query` is traced once for the attention of the text to both others, in the scope of the first.
THREE_MODALITIES = """
<ir_version: 8, opset_import: ["": 20]>
three (
    float[batch, length, 2] audio, int64[batch, length] audio_attention_mask,
    float[batch, length, 2] text, int64[batch, length] attention_mask,
    float[batch, length, 2] video, int64[batch, length] video_attention_mask
) => (float[batch, length, 2] output)
<
    int64[1] axis = {2}, float[batch, length, 2] audio_states, float[batch, length, 2] text_states,
    float[batch, length, 2] video_states, float[batch, length, 2] query, float[batch, length, 2] to_audio,
    float[batch, length, 2] to_video
>
{
    ["mmemo.audio_branch/Exp"] audio_states = Exp(audio)
    ["mmemo.text_branch/Exp"] text_states = Exp(text)
    ["mmemo.video_branch/Exp"] video_states = Exp(video)
    ["mmemo/Cast_audio"] audio_floats = Cast<to = 1>(audio_attention_mask)
    ["mmemo/Cast_text"] text_floats = Cast<to = 1>(attention_mask)
    ["mmemo/Cast_video"] video_floats = Cast<to = 1>(video_attention_mask)
    ["mmemo/Unsqueeze_audio"] audio_mask = Unsqueeze(audio_floats, axis)
    ["mmemo/Unsqueeze_text"] text_mask = Unsqueeze(text_floats, axis)
    ["mmemo/Unsqueeze_video"] video_mask = Unsqueeze(video_floats, axis)
    ["mmemo/Mul_audio"] masked_audio = Mul(audio_states, audio_mask)
    ["mmemo/Mul_text"] masked_text = Mul(text_states, text_mask)
    ["mmemo/Mul_video"] masked_video = Mul(video_states, video_mask)
    ["mmemo.layers.0.text_to_audio/Neg"] query = Neg(masked_text)
    ["mmemo.layers.0.text_to_audio/Mul"] to_audio = Mul(query, masked_audio)
    ["mmemo.layers.0.text_to_video/Mul"] to_video = Mul(query, masked_video)
    ["mmemo/Sum"] output = Sum(masked_audio, masked_text, masked_video, to_audio, to_video)
}
"""
SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(MASKS, size)]


@pytest.fixture(scope="module", params=["model.onnx", "model_int8.onnx"])
def graphs(exported, request, tmp_path_factory):
    """The exported graph, and the same graph in which all nodes run always."""
    model = onnx.load(exported / request.param)
    inline(model.graph)
    flat = tmp_path_factory.mktemp("flat") / request.param
    onnx.save(model, flat)
    return exported / request.param, flat


def run(path, inputs):
    """Returns the outputs without the fusions of ONNX Runtime, whose rounding differs between the two graphs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, EmotionGraph(path).complete(inputs))


def branches(path):
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == "If"]
    return {
        node.input[0]: {attribute.name: {inner.op_type for inner in attribute.g.node} for attribute in node.attribute}
        for node in nodes
    }


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("absent", [None, "audio_attention_mask", "attention_mask"])
def test_the_outputs_are_those_of_a_graph_that_runs_all_nodes(graphs, batch, absent):
    inputs = random_inputs(batch, 60, seed=batch)
    if absent is not None:
        inputs[absent] = np.zeros_like(inputs[absent])

    for values, expected in zip(*(run(path, inputs) for path in graphs)):
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("given", ["input_features", "input_ids"])
@pytest.mark.parametrize("more", [(), ("segment_times",)])
def test_a_single_modality(graphs, given, more):
    inputs = {name: values for name, values in random_inputs(3, 60).items() if name in (given, *more)}

    for values, expected in zip(*(run(path, inputs) for path in graphs)):
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-6)


def test_no_encoder_runs_for_a_missing_modality(graphs):
    products = {"MatMul", "MatMulInteger", "MatMulNBits"}
    found = branches(graphs[0])

    assert found.keys() == {"has_audio", "has_text", "has_both"}
    for branch in found.values():
        assert branch["then_branch"] & products
        assert branch["else_branch"] == {"Shape", "Concat", "ConstantOfShape"}
    towers = [node.name for node in onnx.load(graphs[0]).graph.node if "_tower" in node.name]
    # Lengths and masks remain.
    assert not [name for name in towers if "attn" in name or "attention" in name or "conv" in name]


def test_nesting_again_restores_the_graph(graphs):
    model = onnx.load(graphs[0])
    expected = branches(graphs[0])

    nest(model.graph, inline(model.graph))

    onnx.save(model, graphs[1].with_name("again.onnx"))
    assert branches(graphs[1].with_name("again.onnx")) == expected


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_attention_runs_for_each_pair_of_three(subset):
    model = onnx.parser.parse_model(THREE_MODALITIES)
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=(2, 3, 2)).astype(np.float32) for name in MASKS}
    feed |= {mask: np.full((2, 3), name in subset, np.int64) for name, mask in MASKS.items()}
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)

    skip_absent(model)

    conditions = {node.input[0] for node in model.graph.node if node.op_type == "If"}
    assert conditions == {"has_audio", "has_text", "has_video", "has_both", "has_text+video"}
    np.testing.assert_allclose(onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed), expected)
