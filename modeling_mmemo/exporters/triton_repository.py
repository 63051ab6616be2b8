"""
Model repositories for Triton Inference Server, made from an exported model.

Deliberate choices:
- The inputs and outputs of the configuration are those of the graph, all of them required: ONNX Runtime does not run a
  graph without one of its inputs. Clients fill in a missing modality with [`complete_inputs`].
- Triton batches requests only if predictions do not depend on the other items of a batch; see
  [`~EmotionGraph.is_batch_dependent`].
- An instance has one thread, as a worker of `mmemo serve` has, so that instances do not compete for cores.
- What clients need lies at the top of the repository, where Triton reads folders only.

Source: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmemo.runtime.graph import EXPORTED_FILES, EmotionGraph, find_graph


NAME, VERSION = "mmemo", "1"
GRAPH_FILE, CONFIGURATION_FILE, LABELS_FILE = "model.onnx", "config.pbtxt", "labels.txt"
TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}
# As in `mmemo serve`; see `QueuedPredictor`.
MAX_BATCH_SIZE = 8
# Of the backend, by their names there; memory as in [`EmotionGraph`].
PARAMETERS = {"intra_op_thread_count": "1", "enable_mem_arena": "0", "enable_mem_pattern": "0"}


def save_repository(exported: str | Path, save_directory: str | Path) -> list[Path]:
    """
    Writes a model repository: the graph with its configuration and labels in `mmemo/`, and what clients need to
    prepare inputs, the configuration and the processor, next to it.

    Args:
        exported (`str` or `Path`): The folder of an exported model, of which the int8 graph is taken if there is one.
        save_directory (`str` or `Path`): Output folder, created if needed.

    Returns:
        `list[Path]`: The files written.

    Raises:
        FileNotFoundError: If the folder has no graph.
        ValueError: If the graph reads weights from the model's own file, or has an input of another type.
    """
    exported, repository = Path(exported), Path(save_directory)
    path = find_graph(exported)
    graph = EmotionGraph(path)
    if shared := graph.metadata.get("shares"):
        raise ValueError(
            f"{path} reads weights from {shared['file']}, which Triton does not find; export the model with --output."
        )
    labels = json.loads((exported / "config.json").read_text(encoding="utf-8"))["id2label"]
    folder = repository / NAME
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    written = [Path(shutil.copy(path, folder / VERSION / GRAPH_FILE))]
    # The graph refers to the file of its weights by name.
    written += [Path(shutil.copy(data, folder / VERSION)) for data in path.parent.glob(f"{path.name}.data")]
    contents = {
        CONFIGURATION_FILE: configuration(graph),
        LABELS_FILE: "".join(f"{labels[str(index)]}\n" for index in range(len(labels))),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
        written.append(folder / name)
    weights = {".onnx", ".data"}
    for pattern in EXPORTED_FILES:
        written += [
            Path(shutil.copy(file, repository)) for file in exported.glob(pattern) if file.suffix not in weights
        ]
    return written


def configuration(graph: EmotionGraph) -> str:
    """
    Returns the configuration of a graph in the text format of protobuf.

    Args:
        graph ([`EmotionGraph`]): The graph.

    Raises:
        ValueError: If a tensor has a type that the configuration cannot name.
    """
    size = 1 if graph.is_batch_dependent else MAX_BATCH_SIZE
    num_labels = graph.output_shapes["logits"][-1]
    # Triton names the classes of an output of one score per label.
    labelled = [name for name, shape in graph.output_shapes.items() if shape[1:] == [num_labels]]
    outputs = {name: {"label_filename": f'"{LABELS_FILE}"'} for name in labelled if name.endswith("logits")}
    blocks = [
        f'name: "{NAME}"\nbackend: "onnxruntime"\nmax_batch_size: {size}\n',
        _tensors("input", graph.input_shapes, graph.input_types, {}),
        _tensors("output", graph.output_shapes, graph.output_types, outputs),
        "# Each instance runs on one core; set the number of cores.\n"
        "instance_group [\n  {\n    count: 1\n    kind: KIND_CPU\n  }\n]\n",
        *(
            f'parameters {{\n  key: "{key}"\n  value {{ string_value: "{value}" }}\n}}\n'
            for key, value in PARAMETERS.items()
        ),
    ]
    # Triton only joins requests whose tensors have equal shapes.
    return "".join(blocks + (["dynamic_batching { }\n"] if size > 1 else []))


def _tensors(
    field: str, shapes: Mapping[str, list[Any]], types: Mapping[str, str], more: Mapping[str, Mapping[str, str]]
) -> str:
    """Returns the entries of one field; the axis of the batch is left out, since `max_batch_size` implies it."""
    entries = []
    for name, (_, *axes) in shapes.items():
        if types[name] not in TYPES:
            raise ValueError(f"{name} has the type {types[name]}; Triton's configuration needs one of {list(TYPES)}.")
        dims = ", ".join(str(axis if isinstance(axis, int) else -1) for axis in axes)
        values = {"name": f'"{name}"', "data_type": TYPES[types[name]], "dims": f"[ {dims} ]", **more.get(name, {})}
        entries.append(_message(f"{key}: {value}" for key, value in values.items()))
    return f"{field} [\n" + ",\n".join(entries) + "\n]\n"


def _message(lines: Iterable[str]) -> str:
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"
