"""A trained model as a small and fast one: ONNX, int8, and what runs them."""

from importlib import import_module
from typing import Any

import mmemo  # noqa: F401  before ONNX Runtime is imported, as it keeps that from reporting its use


# Each is imported when it is asked for: who runs a graph need not have what it takes to make one.
_MODULES = {
    "MMEmoOnnxModel": "onnx_model",
    "MMEmoQuantizer": "quantizer",
    "export_features": "feature_graph",
    "export_onnx": "onnx_export",
    "load_torch_int8": "torch_int8",
    "quantize_torch": "torch_int8",
    "save_analysis": "feature_graph",
    "save_torch_int8": "torch_int8",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}.")
    try:
        module = import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs the package {error.name}: pip install 'mmemo[onnx]'.") from error
    return getattr(module, name)
