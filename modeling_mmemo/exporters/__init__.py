"""A trained model as a small and fast one: ONNX, int8, and what runs them."""

from .onnx_export import export_onnx
from .onnx_model import MMEmoOnnxModel
from .quantizer import MMEmoQuantizer


__all__ = ["MMEmoOnnxModel", "MMEmoQuantizer", "export_onnx"]
