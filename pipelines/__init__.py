"""The task `multimodal-emotion` for `transformers.pipeline`; import it as `modeling_mmemo.pipelines`."""

import logging
import os
from importlib.resources import files
from typing import Any

from transformers import AutoModelForAudioClassification, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .multimodal_emotion import TASK, MultimodalEmotionPipeline


__all__ = ["BACKENDS", "DEFAULT_MODEL", "TASK", "MultimodalEmotionPipeline", "load_pipeline"]

BACKENDS = ("torch", "onnx", "torch-int8")
DEFAULT_MODEL = str(files("modeling_mmemo") / "default")

PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=MultimodalEmotionPipeline,
    pt_model=AutoModelForAudioClassification,
    default={"model": (DEFAULT_MODEL, None)},
    type="multimodal",
)
# transformers warns of a default model without a revision; this one lies in the package and changes with it alone.
logging.getLogger("transformers.pipelines").addFilter(lambda record: DEFAULT_MODEL not in record.getMessage())


def load_pipeline(model: Any = None, backend: str = "torch", **kwargs: Any) -> MultimodalEmotionPipeline:
    """
    Returns the `multimodal-emotion` pipeline of a model.

    It is `transformers.pipeline`, but with this package's pipeline even if the model brings code of its own along, and
    with what else can run the model.

    Args:
        model (`str`, `os.PathLike` or model, *optional*):
            A folder, a repository of the Hub, or a model (with `processor=` then); the embedded model by default.
        backend (`str`, *optional*, defaults to `"torch"`):
            What runs a model that is named: `"torch"`; `"onnx"`, its exported graph, int8 if there is one; or
            `"torch-int8"`, its exported int8 weights.
        kwargs: As in `transformers.pipeline`.

    Raises:
        ValueError: If the backend is unknown, or a model that is no name comes with one.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {BACKENDS}.")
    if backend != "torch":
        if model is not None and not isinstance(model, (str, os.PathLike)):
            raise ValueError(
                f"backend={backend!r} is about a model that is named; {type(model).__name__} is loaded already. Leave "
                "backend out."
            )
        options = {name: kwargs.get(name) for name in ("revision", "token")}
        model = _load_exported(model or DEFAULT_MODEL, backend, **options)
        kwargs.setdefault("processor", model.config.name_or_path)
    return pipeline(TASK, model=model, pipeline_class=MultimodalEmotionPipeline, **kwargs)


def _load_exported(model: str | os.PathLike, backend: str, **options: Any) -> Any:
    # Not needed by those who run torch alone.
    from modeling_mmemo import exporters

    if backend == "onnx":
        return exporters.MMEmoOnnxModel.from_pretrained(model, **options)
    return exporters.load_torch_int8(model, **options)
