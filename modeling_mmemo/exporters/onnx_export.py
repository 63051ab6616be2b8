"""
Export of a trained model, heads included, to one ONNX graph for audio, text, video and any subset of them.

Deliberate choices:
- `transformers.exporters` traces the model; this module declares the inputs and their dynamic axes.
- One graph also handles a missing modality: a single frame or token with a mask of zeros, whose encoder does not run;
  see [`skip_absent`]. A graph for each subset would cost the same time and many times the size.
- Attention is traced as basic operators: ONNX Runtime's fused ones are not faster, and other runtimes lack them.
- The graph's metadata describes the model it contains, so that it survives moving and renaming the file.
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
import onnx
import onnx_ir
import onnxruntime
import torch
from transformers.exporters import OnnxConfig, OnnxExporter

from mmemo.modalities import MODALITIES
from mmemo.runtime.graph import FORMAT, METADATA_KEY, EmotionGraph
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor, __version__
from modeling_mmemo.exporters.absent_modalities import skip_absent


FLOAT_FILE = "model.onnx"
# Dynamic axes: the batch and a length.
DYNAMIC_AXES = {
    "input_features": (0, 2),
    "input_values": (0, 1),
    "audio_attention_mask": (0, 1),
    "input_ids": (0, 1),
    "attention_mask": (0, 1),
    "context_mask": (0, 1),
    "token_times": (0, 1),
    "video_features": (0, 1),
    "pixel_values": (0, 1),
    "video_attention_mask": (0, 1),
    "video_times": (0, 1),
    "segment_times": (0, 1),
}
AUDIO_INPUTS = ("input_features", "input_values", "audio_attention_mask")
# Encoders with a fixed input length.
FIXED_LENGTH = ("whisper", "audio-spectrogram-transformer")
# Larger graphs store their weights in a file of their own: protobuf's limit, with a margin.
MAX_FILE_BYTES = 2**31 - 2**24
TOLERANCE = 1e-4


def export_onnx(
    model: MMEmoForEmotionRecognition, processor: MMEmoProcessor, save_directory: str | Path, opset: int | None = None
) -> Path:
    """
    Exports a model to `model.onnx`, and saves the configuration and the processor to the same folder.

    The graph has all inputs that the processor returns for the modalities of the model. Masks of zeros stand for a
    missing modality, times of -1 for missing timestamps, and an axis of length 0 for no segments; [`MMEmoOnnxModel`]
    and [`EmotionPredictor`] fill them in.

    Args:
        model (`MMEmoForEmotionRecognition`): The model; it is not modified.
        processor (`MMEmoProcessor`): Its processor.
        save_directory (`str` or `Path`): Output folder, created if needed.
        opset (`int`, *optional*): ONNX opset version; by default the latest that the exporter supports.

    Returns:
        `Path`: Path of the graph.

    Raises:
        ValueError: If an encoder cannot be exported, or the outputs of the graph differ from the model's.
    """
    _check_encoders(model)
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
    space = {} if model.similarity_scale is None else {"similarity_scale": model.similarity_scale}
    describe(graph.metadata_props, precision="float32", **space)
    path = save_directory / FLOAT_FILE
    is_large = sum(value.const_value.nbytes for value in graph.graph.initializers.values()) > MAX_FILE_BYTES
    onnx_ir.save(graph, path, external_data=f"{FLOAT_FILE}.data" if is_large else None)
    nested = onnx.load(path, load_external_data=False)
    skip_absent(nested)
    onnx.save(nested, path)
    model.config.save_pretrained(save_directory)
    processor.save_pretrained(save_directory)
    _verify(path, model, inputs)
    return path


def describe(metadata: Any, **facts: Any) -> None:
    """Adds `facts` about a graph and the versions that exported it to its metadata, a mapping of `str`."""
    versions = {"mmemo": __version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    metadata[METADATA_KEY] = json.dumps({"format": FORMAT, "versions": versions, **facts})


def sample_inputs(model: MMEmoForEmotionRecognition, processor: MMEmoProcessor) -> dict[str, torch.Tensor]:
    """
    Returns model inputs of three items of different lengths, with every input that the graph supports.

    Encoders that split long clips into windows get more than two windows: a single one would be traced as a constant.
    """
    segments = [[(0.0, 0.5), (0.5, 1.0)]] * 3
    given: dict[str, Any] = {}
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
    inputs = {"segment_times": torch.tensor(segments)}
    if given:
        inputs = dict(processor(**given, segment_times=segments, return_tensors="pt"))
    if model.config.has_encoder("video"):
        inputs |= _sample_video(model)
    return inputs


def _sample_video(model: MMEmoForEmotionRecognition) -> dict[str, torch.Tensor]:
    """Returns the video inputs of three items: of five, three and four frames, one of them without a face."""
    encoder = model.config.video_config
    name = model.mmemo.video_tower.main_input_name
    if name == "pixel_values":
        size = encoder.image_size
        shape = (encoder.num_channels, *((size, size) if isinstance(size, int) else size))
    else:
        shape = (encoder.num_features,)
    is_frame = torch.arange(5) < torch.tensor([[5], [3], [4]])
    mask = is_frame.long()
    mask[0, 1] = 0
    starts = 0.1 * torch.arange(5)
    times = torch.stack([starts, starts + 0.1], dim=1).where(is_frame.unsqueeze(-1), -1.0)
    values = torch.rand(3, 5, *shape, generator=torch.Generator().manual_seed(0))
    return {name: values, "video_attention_mask": mask, "video_times": times}


def _dynamic_axes(model: MMEmoForEmotionRecognition, name: str) -> dict[int, Any]:
    audio_config = model.config.audio_config
    is_fixed = name in AUDIO_INPUTS and audio_config.model_type in FIXED_LENGTH
    return dict.fromkeys((0,) if is_fixed else DYNAMIC_AXES[name], torch.export.Dim.DYNAMIC)


def _check_encoders(model: MMEmoForEmotionRecognition) -> None:
    """Raises if the outputs of an encoder depend on the padding."""
    audio_config = model.config.audio_config
    if getattr(audio_config, "feat_extract_norm", None) == "group":
        raise ValueError(
            f"The {audio_config.model_type} encoder has feat_extract_norm='group': its first norm runs over time, "
            "padding included, so one graph cannot serve clips of different lengths. Choose an encoder with "
            "feat_extract_norm='layer' (the large ones), or mmemo_audio."
        )


def strip(graph: onnx_ir.Model) -> None:
    """Removes the source location of each node, a tenth of a small graph; its module becomes part of its name."""
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
    """Raises if the outputs of the graph differ from the model's, on fewer items than it was traced with."""
    inputs = {name: value[:1] for name, value in inputs.items()}
    with torch.inference_mode():
        expected = model(**inputs)
    found = EmotionGraph(path).predict({name: value.numpy() for name, value in inputs.items()})
    configs = (getattr(model.config, f"{modality}_config") for modality in MODALITIES)
    encoders = [config.model_type for config in configs if config is not None]
    for name, values in found.items():
        difference = float(np.abs(values - expected[name].numpy()).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The graph's {name} differ by {difference:.2g} from the model's (allowed: {TOLERANCE}): the encoders "
                f"{encoders} cannot be exported with these versions. Run the model in PyTorch, or choose others."
            )


@contextmanager
def keep_quiet() -> Iterator[None]:
    """Suppresses the progress output of the exporters, and their warnings about operators that our models lack."""
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
