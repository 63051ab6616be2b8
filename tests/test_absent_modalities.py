import numpy as np
import onnx
import onnxruntime
import pytest
from test_onnx_export import random_inputs

from mmemo.runtime.graph import EmotionGraph
from modeling_mmemo.exporters.absent_modalities import inline, nest


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
