"""
A graph in int8, through Optimum's interface.

Deliberate choices:
- What is multiplied by weights becomes int8, each output channel by a scale of its own. `reduce_range` keeps weights
  within 7 bits: CPUs without VNNI add products in 16 bits, which 8 would overflow, so all CPUs agree.
- Some layers take more care, see `BLOCKWISE`: each block of their weights has a scale, and each row of what they hear
  or read. That is slower for the many frames of audio, so most of the audio encoder has one scale a tensor.
- Convolutions and layer norms are left alone. Embeddings are looked up in int8, each row by a scale of its own, and
  what stays float is stored in half precision where that loses nothing: this is about size, not time.
- The heads are left alone: they take no time, and the answer is theirs.
"""

import json
import logging
import os
import re
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from optimum.quantization_base import OptimumQuantizer

from mmemo.runtime.graph import METADATA_KEY, EmotionGraph, checksum, find_graph
from modeling_mmemo.exporters.onnx_export import FLOAT_FILE, MAX_FILE_BYTES, describe, keep_quiet


INT8_FILE = "model_int8.onnx"
WEIGHTS_FILE = "model.safetensors"
APPROACHES = ("dynamic", "static")
OPERATORS = ["MatMul", "Gemm"]
HEADS = re.compile(r"(^|\.)(\w*classifier|vote|gate)/")
# Where int8 loses most: in the text encoder, whose few tokens cost little anyway; in the first audio layers, whose
# errors all others inherit; and behind the activation of its feed-forward parts, where outliers are.
BLOCKWISE = re.compile(
    r"(^|\.)(text_tower\..*|audio_tower\.(.*\.)?layers?\.[01]\..*|audio_tower\..*(fc2|output_dense|output\.dense))/"
)
BLOCK_SIZE = 64
# Smaller tensors are not worth an operator of their own.
LEAST_VALUES = 2**14
HALF = "_half"
OPTIONS: dict[str, Any] = {
    "op_types_to_quantize": OPERATORS,
    "per_channel": True,
    "reduce_range": True,
    "weight_type": QuantType.QInt8,
}


class MMEmoQuantizer(OptimumQuantizer):
    """
    Makes `model_int8.onnx` of an exported `model.onnx`.

    Example:

    ```python
    >>> from modeling_mmemo.exporters import MMEmoQuantizer

    >>> MMEmoQuantizer.from_pretrained("exported").quantize("exported")
    ```
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        # Refuses what is no graph of ours, in words.
        precision = EmotionGraph(self.path).metadata["precision"]
        if precision != "float32":
            raise ValueError(f"{self.path} is {precision} already; quantize the float32 graph, {FLOAT_FILE}.")

    @classmethod
    def from_pretrained(cls, model_or_path: str | Path, file_name: str | None = None) -> "MMEmoQuantizer":
        """
        Takes the graph of a folder.

        Args:
            model_or_path (`str` or `Path`): The folder that `export_onnx` wrote to.
            file_name (`str`, *optional*, defaults to `"model.onnx"`): Of the graph.

        Raises:
            FileNotFoundError: If the folder holds no graph.
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
        Writes the graph in int8.

        Args:
            save_dir (`str` or `Path`): The folder, made if need be.
            file_prefix (`str`, *optional*, defaults to `"model"`): The file is called `{file_prefix}_int8.onnx`.
            approach (`str`, *optional*, defaults to `"dynamic"`):
                `"dynamic"` measures the range of activations as it runs; `"static"` takes ranges that were measured
                beforehand, on the `calibration` inputs.
            calibration (`Iterable[dict[str, np.ndarray]]`, *optional*):
                Inputs of the graph, as the processor gives them for a batch of clips from the training data.

            shares_weights (`bool`, *optional*, defaults to `False`):
                Whether to read the embeddings and whatever else stays float from the `model.safetensors` in
                `save_dir`, in half precision, for a smaller package. The graph then runs beside that file alone.

        Returns:
            `Path`: of the graph.

        Raises:
            ValueError: If the approach is unknown, or `calibration` is missing or needless.
        """
        if approach not in APPROACHES:
            raise ValueError(f"approach={approach!r} is unknown; choose one of {APPROACHES}.")
        if (approach == "static") != (calibration is not None):
            given = "none" if calibration is None else "some"
            raise ValueError(
                f'approach={approach!r} with calibration inputs: {given}. "static" needs some to measure the ranges '
                'of activations on, and "dynamic" measures as it runs; give them to "static" alone.'
            )
        path = Path(save_dir) / (INT8_FILE if file_prefix is None else f"{file_prefix}_int8.onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
            model = onnx.load(self.path)
            # Stale shapes of weights that quantization transposes.
            del model.graph.value_info[:]
            add_pre_process_metadata(model)
            _save(model, prepared)
            multiplications = [node.name for node in model.graph.node if node.op_type in OPERATORS]
            heads, blockwise = (list(filter(part.search, multiplications)) for part in (HEADS, BLOCKWISE))
            options = OPTIONS | {
                # What ONNX Runtime calls a Gemm once it has split it.
                "nodes_to_exclude": [*heads, *(f"{name}_MatMul" for name in heads), *blockwise],
                "use_external_data_format": model.ByteSize() > MAX_FILE_BYTES,
                # What has no weights multiplies two activations: attention.
                "extra_options": {"MatMulConstBOnly": True},
            }
            if calibration is None:
                quantize_dynamic(prepared, quantized, **options)
            else:
                quantize_static(prepared, quantized, _Calibration(self.path, calibration), QuantFormat.QDQ, **options)
            model = quantize_blockwise(onnx.load(quantized), blockwise)
        facts: dict[str, Any] = {"precision": "int8", "approach": approach}
        if shares_weights:
            store_in_half(model.graph)
            weights = path.with_name(WEIGHTS_FILE)
            share_weights(model.graph, weights)
            facts["shares"] = {"file": WEIGHTS_FILE, "checksum": checksum(weights)}
        else:
            quantize_embeddings(model.graph)
            store_in_half(model.graph)
        _describe(model, **facts)
        _save(model, path)
        return path


class _Calibration(CalibrationDataReader):
    """Hands complete inputs to `quantize_static`, one batch at a time."""

    def __init__(self, path: Path, batches: Iterable[dict[str, np.ndarray]]):
        graph = EmotionGraph(path)
        self._feeds = map(graph.complete, batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize_blockwise(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """Puts the named multiplications by weights in int8 with a scale for each `BLOCK_SIZE` weights and each row."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # Its import sets up the logging of the whole process, which is not for a library to do.
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
    """Replaces each table of the text that rows are looked up in by one of int8, with a scale for every row."""
    tables = {
        tensor.name: tensor
        for tensor in graph.initializer
        if _is_large_float(tensor) and ".audio_tower." not in tensor.name
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
    """Stores large weights that stay float in half precision, if they came from it.

    Of a table the rows that are looked up are made float again; anything else the session makes float as it opens.
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
    """Has the weights in half precision read from the model's own safetensors file, which lies beside the graph."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
        for tensor in graph.initializer:
            entry = header.get(tensor.name.removesuffix(HALF))
            if not tensor.name.endswith(HALF) or entry is None or entry["dtype"] != "F16":
                continue
            start, end = entry["data_offsets"]
            file.seek(8 + header_bytes + start)
            if file.read(end - start) == tensor.raw_data:
                onnx.external_data_helper.set_external_data(
                    tensor, path.name, offset=8 + header_bytes + start, length=end - start
                )
                tensor.ClearField("raw_data")


def _is_large_float(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= LEAST_VALUES


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Puts the nodes in the place of the graph's, and drops the weights that none of them reads any more."""
    nodes = list(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
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
