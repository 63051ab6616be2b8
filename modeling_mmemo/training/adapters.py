"""What of a model is trained: towers frozen, whole or from some layer on, or adapted with LoRA through peft."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from modeling_mmemo.modeling_mmemo import MMEmoForEmotionRecognition
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.training_arguments import ModelArguments


logger = logging.get_logger(__name__)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_DECODER_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# All of the attention, and instead of what peft knows, which is often two of its four.
LORA_TARGET_MODULES = {
    "mmemo_audio": _ATTENTION,
    "whisper": _ATTENTION,
    "wav2vec2": _ATTENTION,
    "hubert": _ATTENTION,
    # Its attention reads the weights of its projections past peft, which could not adapt them.
    "wavlm": ("intermediate_dense", "output_dense"),
    "audio-spectrogram-transformer": ("q_proj", "v_proj"),
    "distilbert": ("q_lin", "k_lin", "v_lin"),
    "mpnet": ("q", "k", "v", "o"),
    "llama": _DECODER_ATTENTION,
    "mistral": _DECODER_ATTENTION,
    "qwen2": _DECODER_ATTENTION,
    "qwen3": _DECODER_ATTENTION,
    "gemma": _DECODER_ATTENTION,
    "gemma2": _DECODER_ATTENTION,
    "gemma3_text": _DECODER_ATTENTION,
    "gpt2": ("c_attn",),
}
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|block)\.(\d+)\.")


def set_trainable(
    model: MMEmoForEmotionRecognition, args: ModelArguments, new_branches: Collection[str]
) -> MMEmoForEmotionRecognition | PeftModel:
    """Freezes what is not trained and adds LoRA where it is asked for; all behind the towers is trained.

    A frozen half of another mmemo model keeps its branch and its head, too, and with them its own answers.

    Args:
        model (`MMEmoForEmotionRecognition`): As built.
        args (`ModelArguments`): How the towers are trained.
        new_branches (`Collection[str]`): The modalities whose branches are new.

    Raises:
        ValueError: If the modules for LoRA are not known for a tower, or it has none of those named.
    """
    towers = {
        modality: tower
        for modality, tower in (("audio", model.mmemo.audio_tower), ("text", model.mmemo.text_tower))
        if tower is not None
    }
    adapted = [modality for modality in towers if args.is_adapted(modality)]
    if model.config.label_token_ids is not None:
        # The language model's own output layer, which answers as it always did.
        model.text_classifier.requires_grad_(False)
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if adapted:
        whole = [f"mmemo.{modality}_tower" for modality in towers if args.mode_of(modality) == "full"]
        config = LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=[
                f"mmemo.{modality}_tower.{name}"
                for modality in adapted
                for name in lora_modules(towers[modality], args.lora_target_modules)
            ],
            modules_to_save=[*whole, *heads(model)],
            base_model_name_or_path=args.model_name_or_path,
        )
        model = get_peft_model(model, config)
        _fix_again(model, fixed)
    for modality in towers:
        if not args.is_adapted(modality):
            frozen = args.freeze_layers_of(modality) if args.mode_of(modality) == "full" else float("inf")
            _freeze(model, f"{modality}_tower", frozen)
        if args.mode_of(modality) == "frozen" and args.model_name_or_path is None and modality not in new_branches:
            for name, parameter in model.named_parameters():
                if f"{modality}_classifier." in name or (f"{modality}_branch." in name and ".projection." not in name):
                    parameter.requires_grad_(False)
    return model


def _fix_again(model: PeftModel, fixed: set[str]) -> None:
    """Freezes the parameters that were `fixed` (Whisper's positions): peft trains all of a module that it saves."""
    for name, parameter in model.named_parameters():
        if name.removeprefix("base_model.model.").replace("modules_to_save.default.", "") in fixed:
            parameter.requires_grad_(False)


def unquantized(trained: PeftModel, args: ModelArguments, labels: Sequence[str]) -> PeftModel:
    """What was `trained` over weights of 4 bits, over the weights that those were rounded from.

    LoRA that is merged into 4 bits would be rounded with them; over the whole weights nothing of it is lost.
    """
    whole_args = replace(args, text_mode="lora")
    model, _, new_branches = build_model(whole_args, labels)
    model.config.class_weights = trained.get_base_model().config.class_weights
    whole = set_trainable(model, whole_args, new_branches)
    set_peft_model_state_dict(whole, get_peft_model_state_dict(trained, save_embedding_layers=False))
    return whole


def frozen_towers(model: nn.Module) -> list[nn.Module]:
    """The towers of which nothing is trained."""
    towers = [module for name, module in model.named_modules() if name.endswith("_tower")]
    return [tower for tower in towers if not any(parameter.requires_grad for parameter in tower.parameters())]


def lora_modules(tower: PreTrainedModel, names: list[str]) -> list[str]:
    """The full names of the linear layers of a tower that get LoRA: those of `names`, or those usual for it."""
    model_type = tower.config.model_type
    usual = LORA_TARGET_MODULES.get(model_type) or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    wanted = names or usual
    if wanted is None:
        raise ValueError(
            f"It is not known which layers of a {model_type} get LoRA; name some with lora_target_modules, such as "
            "q_proj v_proj."
        )
    if isinstance(wanted, str):
        found = [name for name, _ in tower.named_modules() if re.fullmatch(wanted, name)]
    else:
        found = [name for name, _ in tower.named_modules() if name.rpartition(".")[2] in wanted]
    if not found:
        linear = sorted({name.rpartition(".")[2] for name, m in tower.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(f"A {model_type} has no layers called {list(wanted)} for LoRA; it has {linear}.")
    return found


def heads(model: MMEmoForEmotionRecognition) -> list[str]:
    """The names of all modules behind the towers; peft can neither wrap a list of modules nor leave one out."""
    names = []
    for prefix, parent in (("", model), ("mmemo.", model.mmemo)):
        for name, module in parent.named_children():
            if module is model.mmemo or name.endswith("_tower"):
                continue
            if isinstance(module, nn.ModuleList):
                names += [f"{prefix}{name}.{index}" for index in range(len(module))]
            else:
                names.append(f"{prefix}{name}")
    return names


def _freeze(model: nn.Module, tower: str, layers: float | None) -> None:
    """Freezes the first `layers` of a tower and what stands before them; nothing if `None`."""
    if layers is None:
        return
    for name, parameter in model.named_parameters():
        _, found, rest = name.partition(f"{tower}.")
        layer = _LAYER.search(rest)
        if found and (layer is None or int(layer[1]) < layers):
            parameter.requires_grad_(False)


def log_trainable(model: nn.Module) -> None:
    """Logs how many parameters are trained, and how many of each tower."""
    for part in ("audio_tower.", "text_tower.", ""):
        # Of a module that peft saves whole it keeps the original, which nothing reads.
        parameters = [p for name, p in model.named_parameters() if part in name and "original_module." not in name]
        total = sum(_size(p) for p in parameters)
        trained = sum(_size(p) for p in parameters if p.requires_grad)
        if total:
            logger.warning(
                f"{part.rstrip('.') or 'model'}: {trained:,} of {total:,} parameters trained "
                f"({100 * trained / total:.2f} %)."
            )


def _size(parameter: torch.nn.Parameter) -> int:
    # bitsandbytes packs two weights of 4 bits into one number.
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
