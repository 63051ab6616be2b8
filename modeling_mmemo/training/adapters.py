"""Selects the trained parameters: encoders frozen, trained fully or from some layer on, or adapted with LoRA."""

import copy
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from mmemo.modalities import MODALITIES
from modeling_mmemo.adapter_mmemo import reference
from modeling_mmemo.configuration_mmemo import MMEmoConfig
from modeling_mmemo.modeling_mmemo import MMEmoForEmotionRecognition
from modeling_mmemo.pretrained_mmemo import AUTO_MAP
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.training_arguments import NEW_VIDEO_ENCODER, ModelArguments


logger = logging.get_logger(__name__)

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_DECODER_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# The feed-forward layers of these encoders have a layer called `dense`, too.
_BERT_ATTENTION = ("query", "key", "value", "attention.output.dense")
# All attention projections, where peft's own defaults are often query and value only.
LORA_TARGET_MODULES = {
    "mmemo_audio": _ATTENTION,
    "whisper": _ATTENTION,
    "wav2vec2": _ATTENTION,
    "hubert": _ATTENTION,
    # Feed-forward layers: WavLM's attention uses the weights of its projections directly, so LoRA would have no
    # effect.
    "wavlm": ("intermediate_dense", "output_dense"),
    "audio-spectrogram-transformer": _DECODER_ATTENTION,
    # All linear layers: this one has no attention.
    "mmemo_video": ("embedding", "feed_forward.1", "feed_forward.3"),
    "vit": _DECODER_ATTENTION,
    "clip_vision_model": _ATTENTION,
    "dinov2": _DECODER_ATTENTION,
    "dinov2_with_registers": _DECODER_ATTENTION,
    "bert": _BERT_ATTENTION,
    "roberta": _BERT_ATTENTION,
    "xlm-roberta": _BERT_ATTENTION,
    "camembert": _BERT_ATTENTION,
    "electra": _BERT_ATTENTION,
    "deberta-v2": ("query_proj", "key_proj", "value_proj", "attention.output.dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "mpnet": ("q", "k", "v", "o"),
    "llama": _DECODER_ATTENTION,
    "mistral": _DECODER_ATTENTION,
    "qwen2": _DECODER_ATTENTION,
    "qwen3": _DECODER_ATTENTION,
    "gemma": _DECODER_ATTENTION,
    "gemma2": _DECODER_ATTENTION,
    "gemma3_text": _DECODER_ATTENTION,
    # `c_attn` computes query, key and value; the feed-forward layers have a `c_proj`, too.
    "gpt2": ("attn.c_attn", "attn.c_proj"),
}
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|block)\.(\d+)\.")


class EmotionAdapter(PeftModel):
    """
    LoRA around an emotion model, saved with the configuration of that model.

    `MMEmoForEmotionRecognition.from_pretrained` and pipelines load the folder as the whole model.
    """

    encoders: dict[str, str]  # the encoders of a model that has no base model, by modality

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        save_embedding_layers: bool = False,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Saves the adapter, and the configuration of its model; see [`~peft.PeftModel.save_pretrained`]."""
        super().save_pretrained(
            str(save_directory),
            save_embedding_layers=save_embedding_layers,
            is_main_process=is_main_process,
            **kwargs,
        )
        if is_main_process:
            self.save_config(save_directory, self.get_base_model().config)

    def save_config(self, folder: str | os.PathLike, config: MMEmoConfig) -> None:
        """
        Saves a configuration with the adapter.

        Args:
            folder (`str` or `os.PathLike`): The adapter's folder.
            config (`MMEmoConfig`): The configuration of the trained model, with its temperatures and quantiles.
        """
        config = copy.deepcopy(config)
        config.architectures = [MMEmoForEmotionRecognition.__name__]
        config.auto_map = dict(AUTO_MAP)
        for modality, name in self.encoders.items():
            getattr(config, f"{modality}_config").name_or_path = name
        config.save_pretrained(folder)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Writes no card: peft's is an empty template with the local path of the base; [`push`] writes one."""


def set_trainable(
    model: MMEmoForEmotionRecognition, args: ModelArguments, new_branches: Collection[str]
) -> MMEmoForEmotionRecognition | PeftModel:
    """
    Freezes parameters and adds LoRA as the arguments specify; everything on top of the encoders is trained.

    Exception: the branch and the head of a frozen half of an mmemo model stay frozen, so that its own predictions
    stay the same.

    Args:
        model (`MMEmoForEmotionRecognition`): The model, as built.
        args (`ModelArguments`): How to train the encoders.
        new_branches (`Collection[str]`): The modalities whose branches are newly initialised.

    Returns:
        The model itself, or a `PeftModel` around it if an encoder gets LoRA.

    Raises:
        ValueError: If the layers for LoRA are unknown for an architecture, or an encoder has none of the given names.
    """
    towers = model.mmemo.towers
    if model.config.label_token_ids is not None:
        # The output layer of the pretrained language model stays as it is.
        model.text_classifier.requires_grad_(False)
    if any(args.is_adapted(modality) for modality in towers):
        model = _add_lora(model, args, towers)
    for modality in towers:
        if not args.is_adapted(modality):
            frozen = args.freeze_layers_of(modality) if args.mode_of(modality) == "full" else float("inf")
            _freeze(model, f"{modality}_tower", frozen)
        if args.mode_of(modality) == "frozen" and args.model_name_or_path is None and modality not in new_branches:
            for name, parameter in model.named_parameters():
                if f"{modality}_classifier." in name or (f"{modality}_branch." in name and ".projection." not in name):
                    parameter.requires_grad_(False)
    return model


def _add_lora(
    model: MMEmoForEmotionRecognition, args: ModelArguments, towers: dict[str, PreTrainedModel]
) -> PeftModel:
    """Adds LoRA to the encoders that get it; everything else that is trained is saved with the adapter."""
    fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    adapted = {
        modality: lora_modules(tower, args.lora_target_modules)
        for modality, tower in towers.items()
        if args.is_adapted(modality)
    }
    full = [f"mmemo.{modality}_tower" for modality in towers if args.mode_of(modality) == "full"]
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=[f"mmemo.{modality}_tower.{name}" for modality, names in adapted.items() for name in names],
        modules_to_save=[*full, *heads(model)],
    )
    if args.model_name_or_path is not None:
        config.base_model_name_or_path, config.revision = reference(args.model_name_or_path)
    adapter = EmotionAdapter(model, config)
    adapter.encoders = {}
    for modality in towers if args.model_name_or_path is None else ():
        name = getattr(args, f"{modality}_encoder")
        if name == NEW_VIDEO_ENCODER:
            # Newly initialised: the adapter holds all of its weights.
            continue
        adapter.encoders[modality], revision = reference(name)
        config.revision = config.revision or revision
    for name, parameter in adapter.named_parameters():
        # peft unfreezes all parameters of a module in `modules_to_save`, such as Whisper's fixed positions.
        if name.removeprefix("base_model.model.").replace("modules_to_save.default.", "") in fixed:
            parameter.requires_grad_(False)
    return adapter


def unquantized(trained: PeftModel, args: ModelArguments, labels: Sequence[str]) -> PeftModel:
    """
    Moves LoRA that was trained over 4-bit weights to the full-precision weights of the same encoder.

    Merged into 4-bit weights LoRA would be rounded with them; merged into full precision it is exact.

    Args:
        trained (`PeftModel`): The model trained with `text_mode="qlora"`.
        args (`ModelArguments`): The arguments that it was built from.
        labels (`Sequence[str]`): Its labels.
    """
    whole_args = replace(args, text_mode="lora")
    model, _, new_branches = build_model(whole_args, labels)
    model.config.class_weights = trained.get_base_model().config.class_weights
    whole = set_trainable(model, whole_args, new_branches)
    set_peft_model_state_dict(whole, get_peft_model_state_dict(trained, save_embedding_layers=False))
    return whole


def frozen_towers(model: nn.Module) -> list[nn.Module]:
    """Returns the encoders that have no trained parameter."""
    towers = [module for name, module in model.named_modules() if name.endswith("_tower")]
    return [tower for tower in towers if not any(parameter.requires_grad for parameter in tower.parameters())]


def lora_modules(tower: PreTrainedModel, names: Sequence[str] = ()) -> list[str]:
    """
    Returns the full names of the layers of an encoder that get LoRA.

    Args:
        tower (`PreTrainedModel`): The encoder.
        names (`Sequence[str]`, *optional*):
            Last parts of the names of layers, such as `"q_proj"` or `"attention.output.dense"`. By default all
            attention projections of the architectures in `LORA_TARGET_MODULES`, and peft's defaults for others.

    Raises:
        ValueError: If there are no defaults for the architecture, or no layer has one of the names.
    """
    model_type = tower.config.model_type
    defaults = LORA_TARGET_MODULES.get(model_type) or TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(
        model_type
    )
    wanted = names or defaults
    if wanted is None:
        raise ValueError(
            f"There are no default LoRA layers for a {model_type}; name some with lora_target_modules, such as q_proj "
            "v_proj."
        )
    if isinstance(wanted, str):
        found = [name for name, _ in tower.named_modules() if re.fullmatch(wanted, name)]
    else:
        endings = tuple(f".{name}" for name in wanted)
        found = [name for name, _ in tower.named_modules() if f".{name}".endswith(endings)]
    if not found:
        linear = sorted({name.rpartition(".")[2] for name, m in tower.named_modules() if isinstance(m, nn.Linear)})
        raise ValueError(f"A {model_type} has no layers called {list(wanted)} for LoRA; it has {linear}.")
    return found


def heads(model: MMEmoForEmotionRecognition) -> list[str]:
    """Returns the names of all modules on top of the encoders, for peft, which cannot wrap a `ModuleList`."""
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
    """Freezes the embeddings and the first `layers` of an encoder; nothing if `None`."""
    if layers is None:
        return
    for name, parameter in model.named_parameters():
        _, found, rest = name.partition(f"{tower}.")
        layer = _LAYER.search(rest)
        if found and (layer is None or int(layer[1]) < layers):
            parameter.requires_grad_(False)


def log_trainable(model: nn.Module) -> None:
    """Logs the number of trained parameters of each encoder and of the whole model."""
    for part, name in (*((f"{modality}_tower.", f"{modality} encoder") for modality in MODALITIES), ("", "model")):
        # peft keeps the original of a module that it saves, and does not use it.
        parameters = [p for full, p in model.named_parameters() if part in full and "original_module." not in full]
        total = sum(_size(p) for p in parameters)
        trained = sum(_size(p) for p in parameters if p.requires_grad)
        if not total:
            continue
        logger.warning(f"Training {trained:,} of {total:,} parameters of the {name} ({100 * trained / total:.2f} %).")


def _size(parameter: torch.nn.Parameter) -> int:
    # bitsandbytes packs two 4-bit weights into one number.
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
