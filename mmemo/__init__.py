"""The command `mmemo`, and prediction without torch; models are trained and exported with `modeling_mmemo`."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from mmemo.runtime.predictor import EmotionPredictor
    from mmemo.timeline.streaming import EmotionStream

# Disables ONNX Runtime's telemetry; it must be set before ONNX Runtime is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Imported on first access, so that `mmemo --help` does not load NumPy.
_MODULES = {"EmotionPredictor": "mmemo.runtime.predictor", "EmotionStream": "mmemo.timeline.streaming"}
__all__ = ["EmotionPredictor", "EmotionStream"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}.")
    return getattr(import_module(_MODULES[name]), name)
