"""Loading, saving and initialisation of the models."""

import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .adapter_mmemo import find_adapter, load_adapted, resolve_embedded
from .configuration_mmemo import MMEmoConfig
from .fusion_mmemo import CrossModalLayer, LayerMix, ModalityGate, Standardization
from .shared_space_mmemo import SharedSpace
from .towers_mmemo import load_language_model, load_tower, strip_tower


logger = logging.get_logger(__name__)

AUTO_MAP = {
    "AutoModel": "modeling_mmemo.MMEmoModel",
    "AutoModelForAudioClassification": "modeling_mmemo.MMEmoForEmotionRecognition",
}


class MMEmoPreTrainedModel(PreTrainedModel):
    """Base of both models."""

    config: MMEmoConfig
    config_class = MMEmoConfig
    base_model_prefix = "mmemo"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text", "video")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    # Names of weights that the checkpoint lacks; [`MultimodalEmotionPipeline`] raises for a model that has any.
    missing_keys_on_load: tuple[str, ...] = ()

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recomputes activations in the backward pass; see [`~PreTrainedModel.activation_checkpointing_enable`].

        Raises:
            ValueError: If `use_reentrant=True` is requested. With it, encoders that return all hidden states (WavLM)
                do not finish their backward pass, and DDP counts the gradients of missing modalities twice.
        """
        chosen = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if chosen["use_reentrant"]:
            raise ValueError(
                f"{type(self).__name__} does not support use_reentrant=True, with which some encoders never finish "
                "their backward pass; pass use_reentrant=False."
            )
        super().activation_checkpointing_enable(chosen, every_n_layers, offload)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the model and its code; see [`~PreTrainedModel.save_pretrained`]."""
        # Each class loads what the other saved; by default the saving class would register itself alone.
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LayerMix):
            init.zeros_(module.weights)
        elif isinstance(module, Standardization):
            init.zeros_(module.mean)
            init.ones_(module.std)
        elif isinstance(module, CrossModalLayer):
            init.zeros_(module.slope)
        elif isinstance(module, ModalityGate):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SharedSpace):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Loads a model as [`PreTrainedModel.from_pretrained`] does, and records the weights its checkpoint lacks.

        A LoRA adapter is loaded as the whole model: its base, with the configuration that is saved with the adapter,
        and the adapter merged into it. Arguments that change the configuration override that one; `config` does not,
        if the Auto classes have read it from the base of an adapter on the Hub.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub name of a model or of an adapter, or `"mmemo-embedded"`, the embedded model.

        Raises:
            ImportError: If an adapter is given, and peft is not installed.
            ValueError: If an adapter does not fit its base model, or the embedded model has another revision.
        """
        with_info = kwargs.pop("output_loading_info", False)
        name, kwargs = resolve_embedded(pretrained_model_name_or_path, kwargs)
        adapter = find_adapter(name, kwargs)
        if adapter is not None:
            config = kwargs.pop("config", None)
            # The Auto classes pass the base of an adapter on the Hub, and the configuration of that base.
            is_of_adapter = str(name) == adapter.name
            model = load_adapted(cls, adapter, config if is_of_adapter else None, kwargs)
            info = dict.fromkeys(("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"), ())
            return (model, info | {"missing_keys": model.missing_keys_on_load}) if with_info else model
        model, info = super().from_pretrained(name, *model_args, output_loading_info=True, **kwargs)
        mismatched = {key for key, *_ in info["mismatched_keys"]}
        model.missing_keys_on_load = tuple(sorted(set(info["missing_keys"]) | mismatched))
        return (model, info) if with_info else model

    @classmethod
    def from_pretrained_towers(
        cls,
        audio: str | PreTrainedModel | None = None,
        text: str | PreTrainedModel | None = None,
        video: str | PreTrainedModel | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        audio_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        video_kwargs: dict[str, Any] | None = None,
        **config: Any,
    ):
        """Builds a model from pretrained encoders. Fusion layers and heads are newly initialised.

        Args:
            audio, text, video (`str` or `PreTrainedModel`, *optional*): Hub names, folders, or loaded encoders, at
                least one of them. With `label_token_ids`, `text` is the name of a causal language model, whose output
                layer becomes the text head; with a loaded encoder that head is newly initialised. `video` is an image
                encoder (ViT, CLIP, DINOv2) or a [`MMEmoVideoEncoder`].
            dtype (`torch.dtype`, defaults to `torch.float32`): Data type of the whole model.
            audio_kwargs, text_kwargs, video_kwargs (`dict`, *optional*): Passed to `from_pretrained` of each encoder
                (`revision`, ...).
            config: Fields of [`MMEmoConfig`].

        Example:

        ```python
        >>> from modeling_mmemo import MMEmoAudioEncoder, MMEmoForEmotionRecognition

        >>> model = MMEmoForEmotionRecognition.from_pretrained_towers(
        ...     audio=MMEmoAudioEncoder.from_pretrained("openai/whisper-base", num_hidden_layers=4),
        ...     text="sentence-transformers/all-MiniLM-L6-v2",
        ...     fusion="hybrid",
        ... )
        ```"""
        sources = {"audio": (audio, audio_kwargs), "text": (text, text_kwargs), "video": (video, video_kwargs)}
        towers: dict[str, PreTrainedModel] = {}
        label_rows = None
        token_ids = config.get("label_token_ids")
        for modality, (source, kwargs) in sources.items():
            if isinstance(source, str) and modality == "text" and token_ids is not None:
                towers[modality], label_rows = load_language_model(source, token_ids, dtype, **(kwargs or {}))
            elif isinstance(source, str):
                towers[modality] = load_tower(source, dtype, modality, **(kwargs or {}))
            elif source is not None:
                towers[modality] = strip_tower(source).to(dtype)
        configs = {f"{modality}_config": tower.config.to_dict() for modality, tower in towers.items()}
        for tower_config in configs.values():
            # The source may be a local folder, the data type is that of the whole model, and 4-bit weights are for
            # training alone.
            for name in ("_name_or_path", "dtype", "quantization_config"):
                tower_config.pop(name, None)
        logger.warning("The fusion layers and heads are newly initialised and must be trained.")
        model_config = cls.config_class(**configs, dtype=dtype, **config)
        model = cls(model_config, **{f"{modality}_tower": tower for modality, tower in towers.items()}).to(dtype)
        if label_rows is not None:
            model._init_text_head(label_rows)
        return model

    def _init_text_head(self, weight: torch.Tensor) -> None:
        """Copies rows of a language model's output layer, `(num_labels, hidden)`, to the text head, if any."""
