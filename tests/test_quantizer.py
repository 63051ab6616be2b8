import shutil
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper
from safetensors.numpy import save_file

from mmemo.runtime.graph import EmotionGraph
from modeling_mmemo.exporters import MMEmoQuantizer
from modeling_mmemo.exporters.absent_modalities import inline
from modeling_mmemo.exporters.quantizer import (
    HEADS,
    LEAST_VALUES,
    OUTLIERS,
    round_in_pairs,
    share_weights,
    store_in_half,
)
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
    """
    6 multiplications in each of 2 text layers are blockwise; 5 of 6 in each of 2 audio layers and those of the fusion
    have one scale per channel.
    """
    model = load_flat(exported / "model_int8.onnx")
    count = Counter(node.op_type for node in model.graph.node)
    weights = {tensor.name for tensor in model.graph.initializer}

    in_float = [
        node.name for node in model.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    ]
    assert all(HEADS.search(name) or OUTLIERS.search(name) for name in in_float)
    assert sum(bool(OUTLIERS.search(name)) for name in in_float) == 2 and len(in_float) >= 5
    assert count["MatMulNBits"] == 12 and count["MatMulInteger"] > 10
    assert count["Conv"] == operators(exported / "model.onnx")["Conv"] == 2
    assert count["LayerNormalization"] == operators(exported / "model.onnx")["LayerNormalization"]


def test_the_embedded_graph_is_int8(exported):
    """The multiplications of the 6 text layers by blocks, those of the 3 audio layers and of the fusion without."""
    count = operators(f"{DEFAULT_MODEL}/model_int8.onnx")

    assert (count["MatMulNBits"], count["MatMulInteger"]) == (36, 30)


def test_the_embedded_graph_has_no_large_float_weights_of_its_own():
    graph = onnx.load(f"{DEFAULT_MODEL}/model_int8.onnx", load_external_data=False).graph

    large = [
        tensor
        for tensor in graph.initializer
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and np.prod(tensor.dims) >= LEAST_VALUES
    ]
    assert len(large) > 5 and not [tensor.name for tensor in large if tensor.raw_data]


def test_no_pair_of_products_overflows_16_bits(exported):
    """Two neighbouring weights times the largest activation, 255; weights of 7 bits would not exceed 64."""
    model = load_flat(exported / "model_int8.onnx")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}

    multiplied = [
        numpy_helper.to_array(weights[node.input[1]]) for node in model.graph.node if node.op_type == "MatMulInteger"
    ]

    assert multiplied
    for values in multiplied:
        assert values.dtype == np.int8 and len(values) % 2 == 0 and np.abs(values).max() > 64
        pairs = values.astype(int).reshape(-1, 2, values.shape[1])
        assert 255 * np.maximum(pairs, 0).sum(axis=1).max() < 2**15
        assert 255 * np.minimum(pairs, 0).sum(axis=1).min() >= -(2**15)


def test_rounding_in_pairs_is_exact_to_half_a_step():
    """The pairs of rows are (0, 1), whose sum of 6 sets the scale of the first column, (2, 3) and (4, none)."""
    weights = np.array([[2, 0.5], [4, -1], [-3, 0], [2, 0], [1, 0]], np.float32)
    float_graph, graph = onnx.GraphProto(), onnx.GraphProto()
    float_graph.initializer.append(numpy_helper.from_array(weights, "w"))
    graph.initializer.append(numpy_helper.from_array(np.zeros_like(weights, np.int8), "w_quantized"))
    graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w_scale"))

    round_in_pairs(graph, float_graph)

    codes, scales = (numpy_helper.to_array(tensor) for tensor in graph.initializer)
    np.testing.assert_allclose(scales, [6 / 127, 1 / 127], rtol=1e-6)
    assert np.abs(codes * scales - weights).max() <= scales.max() / 2 + 1e-6
    assert codes[:, 1].tolist() == [64, -127, 0, 0, 0]


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


def test_shared_weights_may_be_transposed_and_have_other_names(tmp_path):
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(128, 128)).astype(np.float32) for name in ("a", "b", "c", "other")}
    weights["b"] = weights["b"].astype(np.float16).astype(np.float32)
    stored = {"linear.a": weights["a"].T, "linear.b": weights["b"].astype(np.float16).T, "c": weights["c"]}
    save_file({name: np.ascontiguousarray(values) for name, values in stored.items()}, tmp_path / "model.safetensors")
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["": 20]>
        product (float[batch, 128] x) => (float[batch, 128] y) {
            xa = MatMul(x, a)
            xb = MatMul(xa, b)
            xc = MatMul(xb, c)
            y = MatMul(xc, other)
        }
    """)
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    x = rng.normal(size=(2, 128)).astype(np.float32)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})

    store_in_half(model.graph)
    share_weights(model.graph, tmp_path / "model.safetensors")
    onnx.save(model, tmp_path / "graph.onnx")

    assert [tensor.name for tensor in model.graph.initializer if tensor.raw_data] == ["other"]
    found = onnxruntime.InferenceSession(tmp_path / "graph.onnx").run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)


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
