"""The task `multimodal-emotion` for `transformers.pipeline`; import it as `modeling_mmemo.pipelines`."""

import logging
from importlib.resources import files
from typing import Any

from transformers import AutoModelForAudioClassification, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .multimodal_emotion import TASK, MultimodalEmotionPipeline


__all__ = ["DEFAULT_MODEL", "TASK", "MultimodalEmotionPipeline", "load_pipeline"]

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


def load_pipeline(model: Any = None, **kwargs: Any) -> MultimodalEmotionPipeline:
    """
    Returns the `multimodal-emotion` pipeline of a model.

    It is `transformers.pipeline`, but with this package's pipeline even if the model brings code of its own along.

    Args:
        model (`str`, `os.PathLike` or `PreTrainedModel`, *optional*):
            A folder, a repository of the Hub, or a model (with `processor=` then); the embedded model by default.
        kwargs: As in `transformers.pipeline`.
    """
    return pipeline(TASK, model=model, pipeline_class=MultimodalEmotionPipeline, **kwargs)
