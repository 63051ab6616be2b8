"""
Quantization of an exported graph to int8, with Optimum's interface.

Deliberate choices:
- Multiplications by weights become int8, with one scale per output channel of the weights and one per tensor of
  activations. CPUs without VNNI add two products in 16 bits, which 8-bit weights could overflow. `round_in_pairs`
  chooses the smallest scales at which none does, so all CPUs give the same results, and the weights keep two thirds of
  a bit more than with `reduce_range`, which limits them to 7 bits.
- The layers of `BLOCKWISE`, the text encoder, get one scale per block of weights and per row of activations: single
  tokens have outliers that would cost all others their precision. For the many frames of audio this would be no faster
  than float, so there, and for the many patches of an image encoder, the layers of `OUTLIERS`, the outputs of
  feed-forward blocks, stay in float.
- Convolutions and layer norms stay in float, too. Embeddings are stored in int8 with one scale per row. Other float
  weights are stored in half precision if this is lossless. Both reduce size, not time.
- The heads, the layers that pooled vectors pass and the small network over features of a face stay in float: they take
  no time, and the first two determine the scores.
- Nodes that only run if a modality is present are quantized in a flat graph, and made conditional again afterwards.
"""

import hashlib
import json
import logging
import os
import re
import struct
import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from optimum.quantization_base import OptimumQuantizer

from mmemo.runtime.graph import METADATA_KEY, EmotionGraph, checksum, find_graph
from modeling_mmemo.exporters.absent_modalities import inline, nest
from modeling_mmemo.exporters.onnx_export import FLOAT_FILE, MAX_FILE_BYTES, describe, keep_quiet


INT8_FILE = "model_int8.onnx"
WEIGHTS_FILE = "model.safetensors"
APPROACHES = ("dynamic", "static")
OPERATORS = ["MatMul", "Gemm"]
HEADS = re.compile(r"(^|\.)(\w+_branch\.embedding\.\d+|\w*classifier|vote|gate|projections\.\w+)/")
FACE = re.compile(r"(^|\.)video_tower\.(embedding|layers\.\d+\.feed_forward\.\d+)/")
# The inputs of these layers have outliers that one scale per tensor would not fit.
OUTLIERS = re.compile(r"(^|\.)(audio|video)_tower\..*(fc2|output_dense|output\.dense)/")
IN_FLOAT = (HEADS, FACE, OUTLIERS)
BLOCKWISE = re.compile(r"(^|\.)text_tower\.")
# Their tables are of positions, which are few.
OTHER_TOWERS = re.compile(r"(^|\.)(audio|video)_tower\.")
BLOCK_SIZE = 64
# Smaller tensors are not worth an extra operator.
LEAST_VALUES = 2**14
# The largest sum of two neighbouring weights of one sign: 255 times this, after rounding of both, fits into 16 bits.
LARGEST_PAIR = 127
# Suffixes of the names of weights that are stored in another way.
HALF, TRANSPOSED = "_half", "_transposed"
OPTIONS: dict[str, Any] = {
    "op_types_to_quantize": OPERATORS,
    "per_channel": True,
    "reduce_range": True,
    "weight_type": QuantType.QInt8,
}


class MMEmoQuantizer(OptimumQuantizer):
    """
    Quantizes an exported `model.onnx` to `model_int8.onnx`.

    Args:
        path (`str` or `os.PathLike`): Path of the float32 graph.

    Raises:
        ValueError: If the file is not a float32 graph of this package.

    Example:

    ```python
    >>> from modeling_mmemo.exporters import MMEmoQuantizer

    >>> MMEmoQuantizer.from_pretrained("exported").quantize("exported")
    ```
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        metadata = EmotionGraph(self.path).metadata
        precision = metadata["precision"]
        if precision != "float32":
            raise ValueError(f"{self.path} is already {precision}; quantize the float32 graph, {FLOAT_FILE}.")
        # What the quantized graph shares with this one.
        self._facts = {name: metadata[name] for name in ("similarity_scale",) if name in metadata}

    @classmethod
    def from_pretrained(cls, model_or_path: str | Path, file_name: str | None = None) -> "MMEmoQuantizer":
        """
        Loads the graph of a folder.

        Args:
            model_or_path (`str` or `Path`): Output folder of `export_onnx`.
            file_name (`str`, *optional*, defaults to `"model.onnx"`): Name of the graph.

        Raises:
            FileNotFoundError: If the folder has no such graph.
        """
        return cls(find_graph(model_or_path, file_name or FLOAT_FILE))

    def quantize(
        self,
        save_dir: str | Path,
        file_prefix: str | None = None,
        *,
        approach: str = "dynamic",
        calibration: Iterable[dict[str, np.ndarray]] | None = None,
        shares_weights: bool = False,
    ) -> Path:
        """
        Quantizes the graph.

        Args:
            save_dir (`str` or `Path`): Output folder, created if needed.
            file_prefix (`str`, *optional*, defaults to `"model"`): The file is named `{file_prefix}_int8.onnx`.
            approach (`str`, *optional*, defaults to `"dynamic"`):
                `"dynamic"` computes the range of activations at run time; `"static"` fixes the ranges beforehand, with
                the `calibration` inputs.
            calibration (`Iterable[dict[str, np.ndarray]]`, *optional*):
                Batches of graph inputs, as returned by the processor for training data.
            shares_weights (`bool`, *optional*, defaults to `False`):
                Whether the graph reads the weights that stay in float from `model.safetensors` in `save_dir`. The
                package is smaller, and the graph runs only next to this file.

        Returns:
            `Path`: Path of the graph.

        Raises:
            ValueError: If the approach is unknown, or `calibration` is missing or not needed.
        """
        if approach not in APPROACHES:
            raise ValueError(f"approach={approach!r} is unknown; choose one of {APPROACHES}.")
        if (approach == "static") != (calibration is not None):
            given = "none" if calibration is None else "some"
            raise ValueError(
                f'approach={approach!r} with calibration inputs: {given}. "static" needs calibration inputs for the '
                'ranges of activations, and "dynamic" does not use any; pass them with "static" only.'
            )
        path = Path(save_dir) / (INT8_FILE if file_prefix is None else f"{file_prefix}_int8.onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        model = onnx.load(self.path)
        conditionals = inline(model.graph)
        model = self._quantize_multiplications(model, calibration)
        facts: dict[str, Any] = {"precision": "int8", "approach": approach, **self._facts}
        if shares_weights:
            store_in_half(model.graph)
            weights = path.with_name(WEIGHTS_FILE)
            share_weights(model.graph, weights)
            facts["shares"] = {"file": WEIGHTS_FILE, "checksum": checksum(weights)}
        else:
            quantize_embeddings(model.graph)
            store_in_half(model.graph)
        nest(model.graph, conditionals)
        _describe(model, **facts)
        _save(model, path)
        return path

    def _quantize_multiplications(
        self, model: onnx.ModelProto, calibration: Iterable[dict[str, np.ndarray]] | None
    ) -> onnx.ModelProto:
        """Returns a flat graph with int8 multiplications by weights; static ranges if there are calibration inputs."""
        # Quantization transposes weights, which would contradict the recorded shapes.
        del model.graph.value_info[:]
        add_pre_process_metadata(model)
        # `quantize_dynamic` would do so itself, and transpose weights that `round_in_pairs` looks up.
        ONNXModel(model).replace_gemm_with_matmul()
        multiplications = [node.name for node in model.graph.node if node.op_type in OPERATORS]
        in_float = [name for name in multiplications if any(part.search(name) for part in IN_FLOAT)]
        blockwise = list(filter(BLOCKWISE.search, multiplications))
        options = OPTIONS | {
            "nodes_to_exclude": in_float + blockwise,
            "use_external_data_format": model.ByteSize() > MAX_FILE_BYTES,
            # Leaves multiplications of two activations, in attention, in float.
            "extra_options": {"MatMulConstBOnly": True},
        }
        with tempfile.TemporaryDirectory() as folder:
            prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
            _save(model, prepared)
            if calibration is None:
                quantize_dynamic(prepared, quantized, **options)
            else:
                quantize_static(prepared, quantized, _Calibration(self.path, calibration), QuantFormat.QDQ, **options)
            found = onnx.load(quantized)
        round_in_pairs(found.graph, model.graph)
        return quantize_blockwise(found, blockwise)


class _Calibration(CalibrationDataReader):
    """Passes complete graph inputs to `quantize_static`, one batch at a time."""

    def __init__(self, path: Path, batches: Iterable[dict[str, np.ndarray]]):
        graph = EmotionGraph(path)
        self._feeds = map(graph.complete, batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def round_in_pairs(graph: onnx.GraphProto, float_graph: onnx.GraphProto) -> None:
    """
    Rounds the int8 weights of `graph` again, in place, from those of `float_graph`.

    The scale of an output channel is the smallest at which 255 times the sum of two neighbouring weights of one sign
    fits into 16 bits, since instructions of x86 without VNNI add the products of input channels `2i` and `2i + 1`
    in 16 bits. Weights are at most 127, and most scales are 1.5 to 1.7 times smaller than for weights of at most 64.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in float_graph.initializer:
        codes, scale = (tensors.get(f"{tensor.name}_{part}") for part in ("quantized", "scale"))
        if codes is None or scale is None or len(tensor.dims) != 2:
            continue
        weights = numpy_helper.to_array(tensor)
        pairs = np.pad(weights, ((0, len(weights) % 2), (0, 0))).reshape(-1, 2, weights.shape[1])
        largest = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)).max(axis=0)
        scales = np.maximum(largest, 1e-12).astype(np.float32) / LARGEST_PAIR
        codes.CopyFrom(numpy_helper.from_array(np.round(weights / scales).astype(np.int8), codes.name))
        scale.CopyFrom(numpy_helper.from_array(scales, scale.name))


def quantize_blockwise(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Quantizes the named multiplications with one scale per `BLOCK_SIZE` weights and per row of activations."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # This import configures the root logger; its state is restored afterwards.
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    root.handlers[:] = handlers
    root.setLevel(level)
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in names]
    with keep_quiet():
        quantizer = MatMulNBitsQuantizer(
            model, bits=8, block_size=BLOCK_SIZE, is_symmetric=True, accuracy_level=4, nodes_to_exclude=others
        )
        quantizer.process()
    return quantizer.model.model


def quantize_embeddings(graph: onnx.GraphProto) -> None:
    """Replaces the embedding tables of the text encoder by int8 tables with one scale per row."""
    tables = {
        tensor.name: tensor
        for tensor in graph.initializer
        if _is_large_float(tensor) and not OTHER_TOWERS.search(tensor.name)
    }
    nodes = []
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        table, ids, (rows,) = node.input[0], node.input[1], node.output
        if f"{table}_scale" not in {tensor.name for tensor in graph.initializer}:
            values = numpy_helper.to_array(tables[table])
            scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12) / 127
            codes = np.round(values / scale).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(codes, f"{table}_quantized"))
            graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{table}_scale"))
        nodes += [
            helper.make_node("Gather", [f"{table}_quantized", ids], [f"{rows}_codes"], axis=0),
            helper.make_node("Cast", [f"{rows}_codes"], [f"{rows}_float"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{table}_scale", ids], [f"{rows}_scale"], axis=0),
            helper.make_node("Mul", [f"{rows}_float", f"{rows}_scale"], [rows]),
        ]
    _replace_nodes(graph, nodes)


def store_in_half(graph: onnx.GraphProto) -> None:
    """
    Stores large float weights in half precision if this is lossless.

    Rows looked up in a table are cast to float at run time; all other weights are cast once, when the session opens.
    """
    halves = set()
    for tensor in graph.initializer:
        if _is_large_float(tensor):
            values = numpy_helper.to_array(tensor)
            if np.array_equal(values.astype(np.float16).astype(np.float32), values):
                halves.add(tensor.name)
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name + HALF))
    nodes, cast = [], set()
    for node in graph.node:
        for name in node.input:
            if name not in halves:
                continue
            if node.op_type == "Gather":
                (rows,) = node.output
                node.input[0], node.output[0] = name + HALF, rows + HALF
                nodes += [node, helper.make_node("Cast", [rows + HALF], [rows], to=TensorProto.FLOAT)]
                break
            if name not in cast:
                cast.add(name)
                nodes.append(helper.make_node("Cast", [name + HALF], [name], to=TensorProto.FLOAT))
        else:
            nodes.append(node)
    _replace_nodes(graph, nodes)


def share_weights(graph: onnx.GraphProto, path: Path) -> None:
    """
    Replaces large float weights by references to the same bytes in the model's safetensors file.

    Linear layers store the transpose of the matrix that a multiplication takes; ONNX Runtime transposes it once, when
    the session opens.
    """
    stored = _stored_weights(path)
    transposes = []
    for tensor in graph.initializer:
        if not _is_large_float(tensor, (TensorProto.FLOAT, TensorProto.FLOAT16)):
            continue
        # The exporter renames weights that it transposes, so they are found by their values.
        values = numpy_helper.to_array(tensor)
        place = stored.get(_digest(values))
        if place is None and (place := stored.get(_digest(values.T))) is not None:
            transposes.append(helper.make_node("Transpose", [tensor.name + TRANSPOSED], [tensor.name]))
            tensor.name += TRANSPOSED
            tensor.dims[:] = values.T.shape
        if place is not None:
            offset, length = place
            onnx.external_data_helper.set_external_data(tensor, path.name, offset=offset, length=length)
            tensor.ClearField("raw_data")
    _replace_nodes(graph, [*transposes, *graph.node])


def _stored_weights(path: Path) -> dict[bytes, tuple[int, int]]:
    """Returns offset and length, in bytes, of each tensor in a safetensors file, by the digest of its values."""
    contents = np.memmap(path, np.uint8, "r")
    (header_bytes,) = struct.unpack("<Q", contents[:8])
    start = 8 + header_bytes
    header = json.loads(contents[8:start].tobytes())
    places = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            places[_digest(contents[start + first : start + end])] = start + first, end - first
    return places


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values)).digest()


def _is_large_float(tensor: TensorProto, types: Collection[int] = (TensorProto.FLOAT,)) -> bool:
    return tensor.data_type in types and np.prod(tensor.dims) >= LEAST_VALUES


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replaces the nodes of the graph, and removes weights that no node uses any more."""
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _describe(model: onnx.ModelProto, **facts: Any) -> None:
    metadata: dict[str, str] = {}
    describe(metadata, **facts)
    del model.metadata_props[:]
    helper.set_model_props(model, {METADATA_KEY: metadata[METADATA_KEY]})


def _save(model: onnx.ModelProto, path: Path) -> None:
    is_large = model.ByteSize() > MAX_FILE_BYTES
    onnx.save(model, path, save_as_external_data=is_large, location=f"{path.name}.data" if is_large else None)
