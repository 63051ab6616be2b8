import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mmemo.runtime.graph import EmotionGraph
from modeling_mmemo.exporters import MMEmoQuantizer
from modeling_mmemo.exporters.absent_modalities import inline
from modeling_mmemo.exporters.quantizer import HEADS
from modeling_mmemo.pipelines import DEFAULT_MODEL


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture
def batches(processor, make_clip):
    """Two batches of graph inputs for calibration."""
    return [
        dict(
            processor(
                audio=[make_clip(0.4 + 0.1 * seed, seed), make_clip(0.7, seed + 10)],
                text=["I am so happy!", "you are not waiting."],
                return_tensors="np",
            )
        )
        for seed in range(2)
    ]


def load_flat(path):
    """Returns the graph with the nodes that only run if a modality is present."""
    model = onnx.load(path, load_external_data=False)
    inline(model.graph)
    return model


def operators(path):
    return Counter(node.op_type for node in load_flat(path).graph.node)


def test_multiplications_by_weights_are_int8(exported):
    """6 multiplications per layer; the text layers and the first two audio layers, here all, are blockwise."""
    model = load_flat(exported / "model_int8.onnx")
    count = Counter(node.op_type for node in model.graph.node)
    weights = {tensor.name for tensor in model.graph.initializer}

    in_float = [
        node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    ]
    assert all(HEADS.search(name) for name in in_float) and len(in_float) >= 3
    assert count["MatMulNBits"] == 24 and count["MatMulInteger"] > 0
    assert count["Conv"] == operators(exported / "model.onnx")["Conv"] == 2
    assert count["LayerNormalization"] == operators(exported / "model.onnx")["LayerNormalization"]


def test_the_embedded_graph_is_int8(exported):
    """All 60 multiplications of 10 layers and those of the fusion; attention and heads stay in float."""
    count = operators(f"{DEFAULT_MODEL}/model_int8.onnx")

    assert (count["MatMulNBits"], count["MatMulInteger"]) == (50, 27)


def test_weights_are_within_seven_bits(exported):
    """8-bit weights would overflow the 16-bit accumulation of CPUs without VNNI."""
    model = load_flat(exported / "model_int8.onnx")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}

    multiplied = [
        numpy_helper.to_array(weights[node.input[1]]) for node in model.graph.node if node.op_type == "MatMulInteger"
    ]

    assert multiplied and all(values.dtype == np.int8 and np.abs(values).max() <= 64 for values in multiplied)


def assert_near(graph, float_graph, batches, mean):
    for inputs in batches:
        outputs, expected = graph.predict(inputs), float_graph.predict(inputs)
        assert outputs.keys() == expected.keys()
        differences = np.abs(outputs["logits"] - expected["logits"])
        assert 0 < differences.mean() < mean
        assert (outputs["logits"].argmax(axis=1) == expected["logits"].argmax(axis=1)).all()


def test_outputs_change_little(exported, batches):
    assert_near(EmotionGraph(exported / "model_int8.onnx"), EmotionGraph(exported / "model.onnx"), batches, 0.1)


def test_static_ranges_are_fixed_by_calibration(folder, batches):
    path = MMEmoQuantizer.from_pretrained(folder).quantize(
        folder, "static", approach="static", calibration=iter(batches)
    )

    assert path == folder / "static_int8.onnx"
    assert operators(path)["DynamicQuantizeLinear"] == 0 and operators(path)["DequantizeLinear"] > 0
    graph = EmotionGraph(path)
    assert graph.metadata["approach"] == "static"
    assert_near(graph, EmotionGraph(folder / "model.onnx"), batches, 0.3)


def test_shared_weights_are_read_from_the_models_file(folder, model, batches):
    model.half().save_pretrained(folder)
    shared = folder / "model_int8.onnx"
    alone = shutil.copy(shared, folder / "alone.onnx")

    MMEmoQuantizer.from_pretrained(folder).quantize(folder, shares_weights=True)

    graph = EmotionGraph(shared)
    assert graph.metadata["shares"]["file"] == "model.safetensors"
    for inputs in batches:
        np.testing.assert_allclose(
            graph.predict(inputs)["logits"], EmotionGraph(alone).predict(inputs)["logits"], atol=0.1
        )

    model.fused_classifier.bias.data += 1
    model.save_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"uses the weights in .*model.safetensors, which changed after the export. Export"
    ):
        EmotionGraph(shared)


def test_invalid_arguments_raise(folder, batches):
    quantizer = MMEmoQuantizer.from_pretrained(folder)

    with pytest.raises(ValueError, match=r"approach='int4' is unknown; choose one of \('dynamic', 'static'\)"):
        quantizer.quantize(folder, approach="int4")
    with pytest.raises(
        ValueError, match=r"approach='static' with calibration inputs: none. \"static\" needs calibration inputs"
    ):
        quantizer.quantize(folder, approach="static")
    with pytest.raises(ValueError, match="approach='dynamic' with calibration inputs: some"):
        quantizer.quantize(folder, calibration=batches)
    with pytest.raises(ValueError, match=r"is already int8; quantize the float32 graph, model.onnx"):
        MMEmoQuantizer.from_pretrained(folder, "model_int8.onnx")
    (folder / "model.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.onnx, but .* mmemo export"):
        MMEmoQuantizer.from_pretrained(folder)
