"""The task `multimodal-emotion` for `transformers.pipeline`; import it as `modeling_mmemo.pipelines`."""

import logging
import os
from importlib.resources import files
from typing import Any

from transformers import AutoModelForAudioClassification, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_mmemo.adapter_mmemo import find_adapter
from modeling_mmemo.modeling_mmemo import MMEmoForEmotionRecognition

from .multimodal_emotion import TASK, MultimodalEmotionPipeline


__all__ = ["BACKENDS", "DEFAULT_MODEL", "TASK", "MultimodalEmotionPipeline", "load_pipeline"]

BACKENDS = ("torch", "onnx")
DEFAULT_MODEL = str(files("modeling_mmemo") / "default")

PIPELINE_REGISTRY.register_pipeline(
    TASK,
    pipeline_class=MultimodalEmotionPipeline,
    pt_model=AutoModelForAudioClassification,
    default={"model": (DEFAULT_MODEL, None)},
    type="multimodal",
)
# transformers warns about default models without a revision; this one is part of the package.
logging.getLogger("transformers.pipelines").addFilter(lambda record: DEFAULT_MODEL not in record.getMessage())


def load_pipeline(model: Any = None, backend: str = "torch", **kwargs: Any) -> MultimodalEmotionPipeline:
    """
    Returns the `multimodal-emotion` pipeline of a model.

    Like `transformers.pipeline`, but always with this package's pipeline class, even if the model's repository
    contains its own code, and with a choice of backends.

    Args:
        model (`str`, `os.PathLike` or model, *optional*):
            A folder or Hub repository of a model or a LoRA adapter, or a loaded model (then pass `processor=` too);
            the embedded model by default.
        backend (`str`, *optional*, defaults to `"torch"`):
            `"torch"`, or `"onnx"` for the exported graph, the int8 one if available.
        kwargs: See `transformers.pipeline`.

    Raises:
        ValueError: If the backend is unknown, or `"onnx"` is passed with a model that is already loaded.
        ImportError: If the backend needs a package that is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} is unknown; choose one of {BACKENDS}.")
    if backend == "onnx":
        if model is not None and not isinstance(model, (str, os.PathLike)):
            raise ValueError(
                f"backend={backend!r} needs the folder or Hub name of a model, got a loaded {type(model).__name__}. "
                "Leave backend out."
            )
        # Needs ONNX Runtime and optimum, which the torch backend does not.
        try:
            from modeling_mmemo.onnx_model import MMEmoOnnxModel
        except ModuleNotFoundError as error:
            raise ImportError(f"backend='onnx' needs the package {error.name}: pip install 'mmemo[onnx]'.") from error

        options = {name: kwargs.get(name) for name in ("revision", "token")}
        model = MMEmoOnnxModel.from_pretrained(model or DEFAULT_MODEL, **options)
        kwargs.setdefault("processor", model.config.name_or_path)
    elif isinstance(model, (str, os.PathLike)):
        options = {name: kwargs[name] for name in ("revision", "token") if name in kwargs}
        if find_adapter(model, options) is not None:
            # Of an adapter on the Hub transformers would load configuration and processor of its base model.
            kwargs.setdefault("processor", str(model))
            options |= {"dtype": kwargs.pop("dtype", "auto"), **kwargs.pop("model_kwargs", {})}
            model = MMEmoForEmotionRecognition.from_pretrained(model, **options)
    return pipeline(TASK, model=model, pipeline_class=MultimodalEmotionPipeline, **kwargs)
