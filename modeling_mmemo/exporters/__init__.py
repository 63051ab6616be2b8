"""Export of trained models to ONNX, in float and int8, and the class that runs a graph in place of a model."""

from importlib import import_module
from typing import Any

import mmemo  # noqa: F401  must precede the import of ONNX Runtime, whose telemetry it disables


# Imported on first use: running a graph does not need the packages that export one.
_MODULES = {
    "MMEmoOnnxModel": "modeling_mmemo.onnx_model",
    "MMEmoQuantizer": "modeling_mmemo.exporters.quantizer",
    "export_onnx": "modeling_mmemo.exporters.onnx_export",
    "save_analysis": "modeling_mmemo.exporters.feature_analysis",
    "save_repository": "modeling_mmemo.exporters.triton_repository",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}.")
    try:
        module = import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} needs the package {error.name}: pip install 'mmemo[onnx]'.") from error
    return getattr(module, name)
