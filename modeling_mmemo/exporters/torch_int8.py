"""
The model in int8 on PyTorch, for those who have torch at hand and cannot run ONNX: linear layers by `torch.ao`.

The weights are kept as plain int8 tensors and scales in a safetensors file, since torch would pickle its own.
"""

import copy
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.ao.nn.quantized import dynamic

from mmemo.runtime.graph import local_folder
from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition, MMEmoProcessor


TORCH_INT8_FILE = "model_int8.safetensors"
FORMAT = "mmemo-torch-int8-1"
HEADS = ("audio_classifier", "text_classifier", "fused_classifier")


def quantize_torch(model: MMEmoForEmotionRecognition) -> MMEmoForEmotionRecognition:
    """A copy of the model whose linear layers, but for the heads, are int8, each output channel by its own scale.

    It runs on the CPU, and cannot be trained.
    """
    model = copy.deepcopy(model).to("cpu", torch.float32).eval()
    for name, linear in _linear_layers(model):
        weight = linear.weight.detach()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        codes = (weight / scales.unsqueeze(1)).round().to(torch.int8)
        _put(model, name, codes, scales, linear.bias)
    return model


def save_torch_int8(model: MMEmoForEmotionRecognition, processor: MMEmoProcessor, save_directory: str | Path) -> Path:
    """Writes the model as `model_int8.safetensors`, with the configuration and the processor beside it.

    Args:
        model (`MMEmoForEmotionRecognition`): In full precision, or what [`quantize_torch`] gave.
        processor (`MMEmoProcessor`): Its processor.
        save_directory (`str` or `Path`): The folder, made if need be.

    Returns:
        `Path`: of the weights.
    """
    if not any(isinstance(module, dynamic.Linear) for module in model.modules()):
        model = quantize_torch(model)
    tensors, biases = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, dynamic.Linear):
            weight, bias = module._weight_bias()
            tensors[f"{name}.codes"] = weight.int_repr()
            tensors[f"{name}.scales"] = weight.q_per_channel_scales().float()
            if bias is not None:
                biases[f"{name}.bias"] = bias.detach()
    rest = {
        # What came from half precision goes back to it.
        name: value.half()
        if value.is_floating_point() and torch.equal(value.half().float(), value)
        else value.detach()
        for name, value in (*model.named_parameters(), *model.named_buffers())
    }
    path = Path(save_directory) / TORCH_INT8_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = {name: value.contiguous() for name, value in (rest | tensors | biases).items()}
    save_file(contents, path, metadata={"format": FORMAT})
    model.config.save_pretrained(save_directory)
    processor.save_pretrained(save_directory)
    return path


def load_torch_int8(
    model_id: str | Path, revision: str | None = None, token: str | bool | None = None
) -> MMEmoForEmotionRecognition:
    """
    Loads what [`save_torch_int8`] wrote.

    Args:
        model_id (`str` or `Path`): A folder or a repository of the Hub.
        revision, token (*optional*): As in `transformers`, for the Hub.

    Raises:
        FileNotFoundError: If the folder does not hold it.
        ValueError: If the file is of another kind, or does not have all weights.
    """
    folder = local_folder(model_id, ["*.json", TORCH_INT8_FILE], revision=revision, token=token)
    path = folder / TORCH_INT8_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {TORCH_INT8_FILE}. Export the model: mmemo export MODEL --to torch-int8 --output "
            "FOLDER."
        )
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("format") != FORMAT:
            raise ValueError(f"{path} is not of the format {FORMAT}; export the model again with this version.")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    config = MMEmoConfig.from_pretrained(folder)
    # Where `load_pipeline` looks for the processor.
    config.name_or_path = str(folder)
    model = MMEmoForEmotionRecognition(config).float().eval()
    for name, _ in _linear_layers(model):
        try:
            codes, scales = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scales")
        except KeyError as error:
            raise ValueError(f"{path} lacks {error}; export the model again.") from error
        _put(model, name, codes, scales, tensors.pop(f"{name}.bias", None))
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    if parameters.keys() != tensors.keys():
        raise ValueError(
            f"{path} lacks {sorted(parameters.keys() - tensors.keys())} and has too many "
            f"{sorted(tensors.keys() - parameters.keys())}; export the model again."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return model


def _linear_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [
        (name, module) for name, module in model.named_modules() if type(module) is nn.Linear and name not in HEADS
    ]


def _put(model: nn.Module, name: str, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Puts an int8 layer in the place of the linear one of that name."""
    with warnings.catch_warnings():
        # That torch means to move such tensors elsewhere.
        warnings.simplefilter("ignore")
        weight = torch._make_per_channel_quantized_tensor(
            codes, scales.double(), torch.zeros(len(scales), dtype=torch.long), 0
        )
        layer = dynamic.Linear(codes.shape[1], codes.shape[0], bias is not None)
    layer.set_weight_bias(weight, None if bias is None else bias.detach().float())
    model.set_submodule(name, layer)
