"""`mmemo info`: a summary of a model, read from its files."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from mmemo.runtime.graph import EMBEDDED_MODEL, GRAPH_FILES, EmotionGraph, find_exported, local_folder


def describe(model: str | None = None, revision: str | None = None) -> str:
    """
    Returns a summary of a model, one property per line.

    Args:
        model (`str`, *optional*): A folder or a Hub repository; defaults to the embedded model.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository.

    Raises:
        ValueError: If it is not an mmemo model.
        OSError: If the model cannot be downloaded.
    """
    folder = EMBEDDED_MODEL if model is None else local_folder(model, revision=revision)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("model_type") != "mmemo":
        raise ValueError(
            f"{model} is not an mmemo model; its model_type is {config.get('model_type')!r}, and must be 'mmemo'."
        )
    weights = sorted(folder.glob("model*.safetensors"))
    lines = {
        "model": model or "embedded",
        "labels": ", ".join(config["id2label"][str(index)] for index in range(len(config["id2label"]))),
        "audio": _tower(config.get("audio_config")),
        "text": _tower(config.get("text_config")),
        "video": _tower(config.get("video_config")),
        "fusion": config.get("fusion"),
        "problem": config.get("problem_type") or "single_label_classification",
        "temperature": _rounded(config.get("temperature")),
        "coverage": ", ".join(sorted(config.get("conformal_quantiles") or ())) or None,
        "weights": _sizes(weights),
        **{name: _graph(folder, name) for name in GRAPH_FILES},
        "made with": f"transformers {config.get('transformers_version', 'unknown')}",
        "installed": ", ".join(_versions("mmemo", "onnxruntime", "torch", "transformers")),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items() if value is not None)


def _tower(config: dict[str, Any] | None) -> str | None:
    if config is None:
        return None
    sizes = {name: config.get(name) for name in ("num_hidden_layers", "encoder_layers", "hidden_size", "d_model")}
    return ", ".join([config["model_type"], *(f"{name} {size}" for name, size in sizes.items() if size is not None)])


def _rounded(temperature: Any) -> str | None:
    if isinstance(temperature, dict):
        return ", ".join(f"{name} {value:.2f}" for name, value in temperature.items())
    return None if temperature is None else f"{temperature:.2f}"


def _sizes(paths: list[Path]) -> str | None:
    if not paths:
        return None
    return f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB in {', '.join(path.name for path in paths)}"


def _graph(folder: Path, name: str) -> str | None:
    path = find_exported(folder, name)
    if path is None:
        return None
    metadata = EmotionGraph(path).metadata
    external = f", weights in {metadata['shares']['file']}" if metadata.get("shares") else ""
    approach = f" ({metadata['approach']})" if metadata.get("approach") else ""
    return f"{path.stat().st_size / 1e6:.1f} MB{external}, {metadata['precision']}{approach}"


def _versions(*names: str) -> list[str]:
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return found
