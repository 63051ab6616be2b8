"""
An exported graph: found, checked, opened and run. NumPy in, NumPy out.

Deliberate choices:
- What a graph is stands in its own metadata; a graph without them, or of another format, is refused before it answers.
- The inputs that a caller leaves out are filled in here, once for all who run graphs.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


# The two packages are installed side by side; importing `modeling_mmemo` would import torch.
EMBEDDED_MODEL = Path(__file__).parents[2] / "modeling_mmemo" / "default"
# Raised when a graph of an earlier version would be fed wrongly.
FORMAT = 1
METADATA_KEY = "mmemo"
# Looked for in this order, in the folder itself and in its folder `onnx`.
GRAPH_FILES = ("model_int8.onnx", "model.onnx")
# What the feature extractor multiplies by: window, filterbank, cosines.
ANALYSIS_FILE = "features.safetensors"
EXPORTED_FILES = ("*.json", "*.onnx", "*.onnx.data", f"*{ANALYSIS_FILE}")
MASKED_BY = {
    "input_features": "audio_attention_mask",
    "input_values": "audio_attention_mask",
    "input_ids": "attention_mask",
}
# A missing waveform is so long: no encoder's convolutions reach further than 25 ms.
MISSING_SAMPLES = 400
EXPORT_REMEDY = "Export the model: mmemo export MODEL --output FOLDER (pip install 'mmemo[onnx]')."


def local_folder(model: str | os.PathLike, patterns: Iterable[str] = EXPORTED_FILES, **options: Any) -> Path:
    """
    The folder of a model, fetched from the Hub if it is none here.

    Args:
        model (`str` or `os.PathLike`): A folder or a repository of the Hub.
        patterns (`Iterable[str]`, *optional*): Which files to fetch.
        options: Of `huggingface_hub.snapshot_download`, such as `revision`.

    Raises:
        ImportError: If it has to be fetched and huggingface_hub is not installed.
        OSError: If it cannot be fetched.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{model} is no folder here, and fetching it from the Hub needs huggingface_hub: pip install "
            "huggingface_hub."
        ) from error
    return Path(snapshot_download(str(model), allow_patterns=list(patterns), **options))


def find_graph(folder: str | os.PathLike, file_name: str | None = None) -> Path:
    """
    The graph in a folder, or in its folder `onnx`.

    Args:
        folder (`str` or `os.PathLike`): Of a model.
        file_name (`str`, *optional*): Of the graph; by default `model_int8.onnx`, or else `model.onnx`.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(folder)
    names = GRAPH_FILES if file_name is None else (file_name,)
    for name in names:
        if (path := find_exported(folder, name)) is not None:
            return path
    there = sorted(str(path.relative_to(folder)) for path in folder.glob("**/*.onnx"))
    raise FileNotFoundError(
        f"{folder} holds no {' and no '.join(names)}" + (f", but {there}" if there else "") + f". {EXPORT_REMEDY}"
    )


def find_exported(folder: Path, name: str) -> Path | None:
    """A file that an export wrote to a folder, or to its folder `onnx`."""
    return next((path for path in (folder / name, folder / "onnx" / name) if path.is_file()), None)


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            value = zlib.crc32(block, value)
    return value


class OnnxGraph:
    """
    An exported graph in a session of ONNX Runtime.

    Args:
        path (`str` or `os.PathLike`): Of the `.onnx` file.
        num_threads (`int`, *optional*): Threads for one operator; by default as many as the machine has cores.
        providers (`list[str]`, *optional*): Execution providers of ONNX Runtime; the CPU by default.

    Attributes:
        metadata (`dict`): What the graph is, as its export wrote it.
        input_shapes, output_shapes (`dict[str, list]`): By name, an `int` for a fixed axis and a `str` for any other.

    Raises:
        ImportError: If ONNX Runtime is not installed.
        ValueError: If the file is no graph of this package, or one of another version.
    """

    def __init__(self, path: str | os.PathLike, num_threads: int | None = None, providers: list[str] | None = None):
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError("Running a graph needs ONNX Runtime: pip install onnxruntime.") from error
        self.path = Path(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.path), options, providers=providers or ["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own errors have no base class that it makes public
            raise ValueError(
                f"ONNX Runtime {onnxruntime.__version__} cannot open {self.path}: {error} Was it copied whole, with "
                "the files beside it? A graph of a newer operator set needs a newer onnxruntime."
            ) from error
        # What a long clip took is given back, rather than kept for the next one.
        self._run_options = onnxruntime.RunOptions()
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.metadata = self._checked_metadata()
        self.input_shapes = {value.name: value.shape for value in self._session.get_inputs()}
        self.output_shapes = {value.name: value.shape for value in self._session.get_outputs()}

    def _checked_metadata(self) -> dict[str, Any]:
        found = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if found is None:
            raise ValueError(f"{self.path} does not say that it is a graph of mmemo. {EXPORT_REMEDY}")
        metadata = json.loads(found)
        if metadata["format"] != FORMAT:
            raise ValueError(
                f"{self.path} has format {metadata['format']}, made by mmemo {metadata['versions']['mmemo']}; this "
                f"version runs format {FORMAT}. Export the model again, or install that version."
            )
        if shared := metadata.get("shares"):
            weights = self.path.with_name(shared["file"])
            if checksum(weights) != shared["checksum"]:
                raise ValueError(
                    f"{self.path} reads weights from {weights}, which has changed since. Export the model again, or "
                    "put the graph and the file that it was made of back together."
                )
        return metadata

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph on all of its inputs; all of its outputs, by name."""
        return dict(zip(self.output_shapes, self._session.run(None, dict(feed), self._run_options)))


class EmotionGraph(OnnxGraph):
    """The graph of a model, which answers for audio, text, or both."""

    def answer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        Answers for a batch.

        Args:
            inputs (`Mapping[str, np.ndarray]`): What the processor gives for a batch, by name: one modality or both.

        Returns:
            `dict[str, np.ndarray]`: The outputs of [`MMEmoEmotionOutput`]; those of segments if there are any.

        Raises:
            ValueError: If there is an input that the graph does not have, or none.
        """
        if unknown := sorted(inputs.keys() - self.input_shapes.keys()):
            raise ValueError(f"The graph {self.path.name} has no inputs {unknown}; it has {list(self.input_shapes)}.")
        if not inputs.keys() & MASKED_BY.keys():
            raise ValueError("Got neither audio (input_features or input_values) nor text (input_ids).")
        outputs = self.run(self.complete(inputs))
        if "segment_times" not in inputs:
            outputs = {name: values for name, values in outputs.items() if not name.startswith("segment_")}
        return outputs

    def complete(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The inputs, and what says that the others are missing: masks of zeros, times of -1."""
        batch = len(next(iter(inputs.values())))
        feed: dict[str, np.ndarray] = {}
        for name, (_, *shape) in self.input_shapes.items():
            if name in inputs:
                feed[name] = np.ascontiguousarray(inputs[name])
            elif name in MASKED_BY.values():
                masked = next(other for other, mask in MASKED_BY.items() if mask == name and other in feed)
                length = shape[0] if isinstance(shape[0], int) else feed[masked].shape[-1]
                # A mask that is left out calls everything real.
                feed[name] = np.full((batch, length), masked in inputs, np.int64)
            elif name == "context_mask":
                feed[name] = np.zeros_like(feed["input_ids"])
            elif name == "segment_times":
                feed[name] = np.zeros((batch, 0, 2), np.float32)
            elif name == "token_times":
                feed[name] = np.full((batch, feed["input_ids"].shape[1], 2), -1, np.float32)
            else:
                least = MISSING_SAMPLES if name == "input_values" else 1
                shape = [axis if isinstance(axis, int) else least for axis in shape]
                feed[name] = np.zeros((batch, *shape), np.int64 if name == "input_ids" else np.float32)
        return feed
