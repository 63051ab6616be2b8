"""The command `mmemo`, and answers without torch; everything else is in `modeling_mmemo`."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from mmemo.runtime.predictor import EmotionPredictor
    from mmemo.timeline.streaming import EmotionStream

# ONNX Runtime would report its use to its makers otherwise; to be said before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Each is imported when it is asked for: the command has an answer to `--help` before NumPy is there.
_MODULES = {"EmotionPredictor": "mmemo.runtime.predictor", "EmotionStream": "mmemo.timeline.streaming"}
__all__ = ["EmotionPredictor", "EmotionStream"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}.")
    return getattr(import_module(_MODULES[name]), name)
