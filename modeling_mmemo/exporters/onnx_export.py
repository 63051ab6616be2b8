"""
A trained model as an ONNX graph, heads included: both modalities, audio alone and text alone through one graph.

Deliberate choices:
- `transformers.exporters` traces the model; what is declared here is the inputs and which of their axes vary.
- One graph serves a missing modality: a single frame or token under a mask of zeros costs next to nothing. So do three
  graphs, but at three times the size.
- Attention is traced as plain operators: ONNX Runtime is no faster with its own fused ones, and others run them too.
- What the graph is stands in its own metadata, so a file that is moved or renamed still knows.
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
from transformers.exporters import OnnxConfig, OnnxExporter

from mmemo.runtime.graph import FORMAT, METADATA_KEY, EmotionGraph
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor, __version__


FLOAT_FILE = "model.onnx"
# The axes that vary: the batch and a length.
DYNAMIC_AXES = {
    "input_features": (0, 2),
    "input_values": (0, 1),
    "audio_attention_mask": (0, 1),
    "input_ids": (0, 1),
    "attention_mask": (0, 1),
    "context_mask": (0, 1),
    "token_times": (0, 1),
    "segment_times": (0, 1),
}
AUDIO_INPUTS = ("input_features", "input_values", "audio_attention_mask")
# Encoders that read clips of one length and no other.
FIXED_LENGTH = ("whisper", "audio-spectrogram-transformer")
# A graph holds its weights itself up to protobuf's limit.
MAX_FILE_BYTES = 2**31 - 2**24
TOLERANCE = 1e-4


def export_onnx(
    model: MMEmoForEmotionRecognition, processor: MMEmoProcessor, save_directory: str | Path, opset: int | None = None
) -> Path:
    """
    Writes a model as `model.onnx`, with the configuration and the processor beside it.

    The graph's inputs are what the processor gives for the modalities of the model, all of them: a modality that is
    missing, words without times and segments that nobody asked for are said by masks of zeros, times of -1 and an axis
    of length 0. [`MMEmoOnnxModel`] and [`EmotionPredictor`] see to that.

    Args:
        model (`MMEmoForEmotionRecognition`): Of any two encoders, or of one; it is left as it is.
        processor (`MMEmoProcessor`): Its processor.
        save_directory (`str` or `Path`): The folder, made if need be.
        opset (`int`, *optional*): Version of the operators; by default the latest that the exporter knows.

    Returns:
        `Path`: of the graph.

    Raises:
        ValueError: If an encoder cannot be a graph, or the graph does not give the model's answers.
    """
    _refuse_by_length(model)
    save_directory = Path(save_directory)
    save_directory.mkdir(parents=True, exist_ok=True)
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    model.set_attn_implementation("eager")
    inputs = sample_inputs(model, processor)
    with keep_quiet():
        exported = OnnxExporter().export(
            model,
            dict(inputs),
            OnnxConfig(
                opset_version=opset,
                dynamic_shapes={name: _dynamic_axes(model, name) for name in inputs},
                prefer_deferred_runtime_asserts_over_guards=True,
            ),
        )
    graph = exported.program
    strip(graph)
    describe(graph.metadata_props, precision="float32")
    path = save_directory / FLOAT_FILE
    is_large = sum(value.const_value.nbytes for value in graph.graph.initializers.values()) > MAX_FILE_BYTES
    onnx_ir.save(graph, path, external_data=f"{FLOAT_FILE}.data" if is_large else None)
    model.config.save_pretrained(save_directory)
    processor.save_pretrained(save_directory)
    _verify(path, model, inputs)
    return path


def describe(metadata: Any, **facts: Any) -> None:
    """Writes into a graph's metadata, a mapping of `str`, what it is and who made it."""
    versions = {"mmemo": __version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    metadata[METADATA_KEY] = json.dumps({"format": FORMAT, "versions": versions, **facts})


def sample_inputs(model: MMEmoForEmotionRecognition, processor: MMEmoProcessor) -> dict[str, torch.Tensor]:
    """
    Inputs of three items, of different lengths, with everything that a graph can be given.

    Where an encoder hears long clips in windows there are two of them: of one, the exporter would make a constant.
    """
    given: dict[str, Any] = {"segment_times": [[(0.0, 0.5), (0.5, 1.0)]] * 3}
    if processor.feature_extractor is not None:
        rng = np.random.default_rng(0)
        extractor, encoder, window_s = processor.feature_extractor, model.config.audio_config, 0.0
        if encoder.model_type == "mmemo_audio":
            window_s = 2 * encoder.max_source_positions * extractor.frame_seconds
        given["audio"] = [
            rng.uniform(-0.1, 0.1, round((window_s + seconds) * extractor.sampling_rate)).astype(np.float32)
            for seconds in (1.63, 1.3, 0.9)
        ]
    if processor.tokenizer is not None:
        given["text"] = [
            [("so", 0.0, 0.2), ("glad", 0.2, 0.4)],
            [("I", 0.0, 0.1), ("have", 0.1, 0.2), ("waited", 0.3, 0.6), ("an", 0.6, 0.7), ("hour", 0.7, 0.8)],
            [("no", 0.1, 0.2)],
        ]
        if processor.context_turns:
            given["context"] = [[("A", "You have it.")], None, [("A", "Are you glad?")]]
    return dict(processor(**given, return_tensors="pt"))


def _dynamic_axes(model: MMEmoForEmotionRecognition, name: str) -> dict[int, Any]:
    audio_config = model.config.audio_config
    is_fixed = name in AUDIO_INPUTS and audio_config.model_type in FIXED_LENGTH
    return dict.fromkeys((0,) if is_fixed else DYNAMIC_AXES[name], torch.export.Dim.DYNAMIC)


def _refuse_by_length(model: MMEmoForEmotionRecognition) -> None:
    audio_config = model.config.audio_config
    if getattr(audio_config, "feat_extract_norm", None) == "group":
        raise ValueError(
            f"The {audio_config.model_type} encoder has feat_extract_norm='group': its first norm runs over time, so "
            "clips of different lengths cannot share a graph. Choose an encoder with feat_extract_norm='layer' (the "
            "large ones), or mmemo_audio."
        )


def strip(graph: onnx_ir.Model) -> None:
    """Removes where in the source each node came from, a tenth of a small graph, but for its module: a name."""
    for part in graph.graphs():
        for node in part:
            scopes = json.loads(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]").replace("'", '"'))
            module = next((scope for scope in reversed(scopes[:-1]) if scope), None)
            if module is not None:
                node.name = f"{module}/{node.name}"
            node.metadata_props.clear()
            node.doc_string = None
            for output in node.outputs:
                output.metadata_props.clear()
        part.metadata_props.clear()
        for value in (*part.inputs, *part.initializers.values()):
            value.metadata_props.clear()
    graph.metadata_props.clear()


def _verify(path: Path, model: MMEmoForEmotionRecognition, inputs: dict[str, torch.Tensor]) -> None:
    """Compares the graph with the model, on fewer items than it was traced with."""
    inputs = {name: value[:1] for name, value in inputs.items()}
    with torch.inference_mode():
        expected = model(**inputs)
    found = EmotionGraph(path).predict({name: value.numpy() for name, value in inputs.items()})
    for name, values in found.items():
        difference = float(np.abs(values - expected[name].numpy()).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The graph's {name} differ by {difference:.2g} from the model's (allowed: {TOLERANCE}): this pair of "
                f"encoders, {[tower.model_type for tower in _towers(model)]}, cannot be exported with these versions."
            )


def _towers(model: MMEmoForEmotionRecognition) -> list[Any]:
    return [config for config in (model.config.audio_config, model.config.text_config) if config is not None]


@contextmanager
def keep_quiet() -> Iterator[None]:
    """Keeps back the exporters' progress and their warnings about operators that no model of ours has."""
    names = (
        "onnxruntime.quantization.matmul_nbits_quantizer",
        "onnxscript",
        "torch.onnx",
        "torch.onnx._internal.exporter._registration",
        "transformers.exporters",
    )
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
