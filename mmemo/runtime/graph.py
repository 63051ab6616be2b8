"""
Exported graphs: finding, checking and running them. NumPy in, NumPy out.

Deliberate choices:
- The graph's metadata describes the model it contains; without metadata, or with another format, it raises an error.
- Missing inputs are filled in here, for all callers.
- Tensors are allocated by the system. ONNX Runtime's arena would keep the memory of a long clip, and its plans of
  memory, one for each shape, let a process that predicts clips of many lengths grow by hundreds of MiB. Neither makes
  predictions faster.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmemo.modalities import MASKS


# The two packages are installed side by side; importing `modeling_mmemo` would import torch.
EMBEDDED_MODEL = Path(__file__).parents[2] / "modeling_mmemo" / "default"
# Incremented when graphs of earlier versions become incompatible.
FORMAT = 1
METADATA_KEY = "mmemo"
# In order of preference, in the folder itself or in its subfolder `onnx`.
GRAPH_FILES = ("model_int8.onnx", "model.onnx")
# Window, filterbank and cosines of the feature extractor.
ANALYSIS_FILE = "features.safetensors"
EXPORTED_FILES = ("*.json", "*.onnx", "*.onnx.data", f"*{ANALYSIS_FILE}")
# The mask of each modality, and the inputs that it covers, by the axis of their positions.
MASKED_AXES = {
    "audio": {"input_features": 2, "input_values": 1},
    "text": {"input_ids": 1},
    "video": {"video_features": 1, "pixel_values": 1},
}
# Times of positions, by the mask over them.
TIMES = {"token_times": "attention_mask", "video_times": "video_attention_mask"}
# Length of a missing waveform: the receptive field of convolutional encoders is 25 ms at most.
MISSING_SAMPLES = 400
EXPORT_REMEDY = "Export the model: mmemo export MODEL --output FOLDER (pip install 'mmemo[onnx]')."


def local_folder(model: str | os.PathLike, **options: Any) -> Path:
    """
    Returns the folder of a model, downloaded from the Hub if it does not exist locally.

    Args:
        model (`str` or `os.PathLike`): A folder or a repository of the Hub.
        options: Passed on to `huggingface_hub.snapshot_download`, such as `revision`.

    Raises:
        ImportError: If it must be downloaded and huggingface_hub is not installed.
        FileNotFoundError: If `model` is neither a folder nor a possible name on the Hub.
        OSError: If the download fails.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{model} is not a local folder, and downloading it from the Hub needs huggingface_hub: pip install "
            "huggingface_hub."
        ) from error
    try:
        return Path(snapshot_download(str(model), allow_patterns=list(EXPORTED_FILES), **options))
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{model} is neither a folder nor a name on the Hub (owner/name); paths are relative to {Path.cwd()}."
        ) from error
    except RevisionNotFoundError as error:
        raise OSError(f"{model} has no revision {options.get('revision')!r} on the Hub.") from error
    except RepositoryNotFoundError as error:
        raise OSError(
            f"{model} is neither a folder in {Path.cwd()} nor a public repository on the Hub; correct the name, or "
            "log in for a private one: hf auth login."
        ) from error
    except LocalEntryNotFoundError as error:
        # The Hub cannot be reached, or HF_HUB_OFFLINE is set.
        raise OSError(
            f"{model} is neither a folder in {Path.cwd()} nor in the cache of the Hub, and the Hub cannot be reached; "
            "correct the path, or connect to the Internet (and unset HF_HUB_OFFLINE)."
        ) from error


def find_graph(folder: str | os.PathLike, file_name: str | None = None) -> Path:
    """
    Returns the path of the graph in a folder, or in its subfolder `onnx`.

    Args:
        folder (`str` or `os.PathLike`): The folder of a model.
        file_name (`str`, *optional*): File name of the graph; `model_int8.onnx`, else `model.onnx`, by default.

    Raises:
        FileNotFoundError: If there is no graph.
    """
    folder = Path(folder)
    names = GRAPH_FILES if file_name is None else (file_name,)
    for name in names:
        if (path := find_exported(folder, name)) is not None:
            return path
    there = sorted(str(path.relative_to(folder)) for path in folder.glob("**/*.onnx"))
    raise FileNotFoundError(
        f"{folder} has no {' and no '.join(names)}" + (f", but {there}" if there else "") + f". {EXPORT_REMEDY}"
    )


def find_exported(folder: Path, name: str) -> Path | None:
    """Returns the path of an exported file in a folder or in its subfolder `onnx`, `None` if there is none."""
    return next((path for path in (folder / name, folder / "onnx" / name) if path.is_file()), None)


def checksum(path: Path) -> int:
    """Returns the CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**24):
            value = zlib.crc32(block, value)
    return value


class EmotionGraph:
    """
    An exported model in a session of ONNX Runtime: predicts from any of its modalities.

    Args:
        path (`str` or `os.PathLike`): The `.onnx` file.
        num_threads (`int`, *optional*): Threads of one operator; ONNX Runtime's default is one per core.
        providers (`list[str]`, *optional*): Execution providers of ONNX Runtime; the CPU by default.

    Attributes:
        metadata (`dict`): Description of the model, written at export.
        input_shapes, output_shapes (`dict[str, list]`): Axes by name: an `int` if fixed, a `str` if dynamic.
        input_types, output_types (`dict[str, str]`): Types by name, such as `"tensor(float)"`.
        modality_inputs (`dict[str, str]`): The input of each modality of the graph: `{"audio": "input_features"}`.

    Raises:
        ImportError: If ONNX Runtime is not installed.
        ValueError: If the file is not a graph of this package, or of an incompatible version.
    """

    def __init__(self, path: str | os.PathLike, num_threads: int | None = None, providers: list[str] | None = None):
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError("Running a graph needs ONNX Runtime: pip install onnxruntime.") from error
        self.path = Path(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.path), options, providers=providers or ["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no public base class
            raise ValueError(
                f"ONNX Runtime {onnxruntime.__version__} cannot open {self.path}: {error} Copy the complete file "
                "with the files next to it. A graph with a newer operator set needs a newer onnxruntime."
            ) from error
        self.metadata = self._checked_metadata()
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self.input_shapes, self.output_shapes = ({one.name: one.shape for one in some} for some in (inputs, outputs))
        self.input_types, self.output_types = ({one.name: one.type for one in some} for some in (inputs, outputs))
        self.modality_inputs = modality_inputs(self.input_shapes)

    def _checked_metadata(self) -> dict[str, Any]:
        found = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if found is None:
            raise ValueError(f"{self.path} is not a graph of mmemo: it has no mmemo metadata. {EXPORT_REMEDY}")
        metadata = json.loads(found)
        if metadata["format"] != FORMAT:
            raise ValueError(
                f"{self.path} has format {metadata['format']}, written by mmemo {metadata['versions']['mmemo']}; this "
                f"version runs format {FORMAT}. Export the model again, or install that version."
            )
        if shared := metadata.get("shares"):
            weights = self.path.with_name(shared["file"])
            if checksum(weights) != shared["checksum"]:
                raise ValueError(
                    f"{self.path} uses the weights in {weights}, which changed after the export. Export the model "
                    "again, or restore the file."
                )
        return metadata

    @property
    def is_batch_dependent(self) -> bool:
        """Whether a prediction depends on the rest of its batch: dynamic int8 measures ranges over the whole batch."""
        return self.metadata.get("approach") == "dynamic"

    @property
    def similarity_scale(self) -> float | None:
        """The learned factor of similarities in the shared space; `None` if the export has none."""
        return self.metadata.get("similarity_scale")

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph on all of its inputs and returns all of its outputs, by name."""
        return dict(zip(self.output_shapes, self._session.run(None, dict(feed))))

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        Runs the graph on a batch.

        Args:
            inputs (`Mapping[str, np.ndarray]`): The processor's output for a batch, by name: at least one modality.

        Returns:
            `dict[str, np.ndarray]`: The outputs of [`MMEmoEmotionOutput`]; with `segment_times` those of segments.

        Raises:
            ValueError: If an input is unknown, or all modalities are missing.
        """
        if unknown := sorted(inputs.keys() - self.input_shapes.keys()):
            raise ValueError(f"The graph {self.path.name} has no inputs {unknown}; it has {list(self.input_shapes)}.")
        if not inputs.keys() & set(self.modality_inputs.values()):
            takes = " nor ".join(f"{modality} ({name})" for modality, name in self.modality_inputs.items())
            raise ValueError(f"Got neither {takes}; pass at least one.")
        outputs = self.run(self.complete(inputs))
        if "segment_times" not in inputs:
            outputs = {name: values for name, values in outputs.items() if not name.startswith("segment_")}
        return outputs

    def complete(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Adds the missing inputs; see [`complete_inputs`]."""
        return complete_inputs(inputs, self.input_shapes)


def modality_inputs(shapes: Iterable[str]) -> dict[str, str]:
    """Returns the input of each modality among the names of all inputs: `{"audio": "input_features"}`."""
    names = set(shapes)
    return {modality: name for modality, axes in MASKED_AXES.items() for name in axes if name in names}


def complete_inputs(inputs: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """
    Adds the missing inputs of a graph: zeros under masks of zeros, timestamps of -1, no segments.

    Args:
        inputs (`Mapping[str, np.ndarray]`): The processor's output for a batch, by name.
        shapes (`Mapping[str, Sequence]`):
            Axes of all inputs of the graph, by name: a positive `int` if fixed. The first is the batch.

    Returns:
        `dict[str, np.ndarray]`: Every input of the graph.
    """
    batch = len(next(iter(inputs.values())))
    feed = {name: np.ascontiguousarray(values) for name, values in inputs.items()}
    for modality, name in modality_inputs(shapes).items():
        mask = MASKS[modality]
        if name not in feed:
            least = MISSING_SAMPLES if name == "input_values" else 1
            shape = [axis if isinstance(axis, int) and axis > 0 else least for axis in shapes[name][1:]]
            feed[name] = np.zeros((batch, *shape), np.int64 if name == "input_ids" else np.float32)
        if mask not in feed:
            # Without a mask, everything is real.
            length = feed[name].shape[MASKED_AXES[modality][name]]
            feed[mask] = np.full((batch, length), name in inputs, np.int64)
    for name in shapes.keys() - feed.keys():
        if name in TIMES:
            feed[name] = np.full((*feed[TIMES[name]].shape, 2), -1, np.float32)
        elif name == "context_mask":
            feed[name] = np.zeros_like(feed["input_ids"])
        elif name == "segment_times":
            feed[name] = np.zeros((batch, 0, 2), np.float32)
    return feed
