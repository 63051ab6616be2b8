"""Two encoders, one emotion: what is heard and what is said, pooled, attended across, weighed.

Deliberate choices:
  - each modality keeps a head of its own, so an answer from one modality is that head's answer and nothing else;
  - a modality is missing, per sample, where its mask is all zero; nothing it holds reaches the answer;
  - logits come out divided by the fitted temperature, so their softmax is the calibrated score everywhere.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .configuration_mmemo import PRESENCES, MMEmoConfig
from .fusion_mmemo import CrossModalLayer, LayerMix, ModalityBranch, ModalityGate, SequencePooling, Standardization
from .towers_mmemo import (
    build_tower,
    encode_audio,
    encode_text,
    load_language_model,
    load_tower,
    position_times,
    seconds_per_position,
    strip_tower,
    token_logits,
)


logger = logging.get_logger(__name__)

MODALITY_INPUTS = {"audio": ("input_features", "input_values"), "text": ("input_ids",)}


@dataclass
class MMEmoModelOutput(ModelOutput):
    """What [`MMEmoModel`] gives; a field whose tower or fusion the model lacks is `None`.

    Args:
        modality_mask (`torch.Tensor` of shape `(batch, 2)`): Whether audio and text are there.
        fused_embeds (`torch.Tensor` of shape `(batch, fusion_hidden_size)`): Both modalities in one vector.
        audio_embeds, text_embeds (`torch.Tensor` of shape `(batch, fusion_hidden_size)`): Each alone, zero if missing.
        fusion_weights (`torch.Tensor` of shape `(batch, 2)`): Shares of audio and text in `fused_embeds`.
        text_last_state (`torch.Tensor` of shape `(batch, hidden)`): The text tower's last state at the last token,
            if the model has `label_token_ids`; zero if missing.
        text_to_audio_attentions (`tuple` of `torch.Tensor` of shape `(batch, heads, tokens, audio_positions)`): One a
            cross-modal layer: where each token listens.
        audio_to_text_attentions (`tuple` of `torch.Tensor` of shape `(batch, heads, audio_positions, tokens)`): One a
            cross-modal layer: which tokens each sound reads.
        audio_hidden_states, text_hidden_states (`tuple` of `torch.Tensor` of shape `(batch, positions, hidden)`): The
            towers' layers, embeddings first.
        segments ([`MMEmoModelOutput`]): The first five of each segment asked for, in rows, `(batch * segments, ...)`.
    """

    modality_mask: torch.Tensor
    fused_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    fusion_weights: torch.Tensor | None = None
    text_last_state: torch.Tensor | None = None
    text_to_audio_attentions: tuple[torch.Tensor, ...] | None = None
    audio_to_text_attentions: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None
    segments: "MMEmoModelOutput | None" = None


@dataclass
class MMEmoEmotionOutput(ModelOutput):
    """What [`MMEmoForEmotionRecognition`] gives.

    Args:
        loss (`torch.Tensor` of shape `()`): The answer's loss and `modality_loss_weight` times the heads' own.
        logits (`torch.Tensor` of shape `(batch, num_labels)`): The answer, divided by the temperature.
        audio_logits, text_logits (`torch.Tensor` of shape `(batch, num_labels)`): What either modality says alone,
            divided by its temperature; meaningless where that modality is missing.
        modality_weights (`torch.Tensor` of shape `(batch, 2)`): Shares of audio and text in the answer; they sum to 1,
            a missing one has 0.
        segment_logits (`torch.Tensor` of shape `(batch, segments, num_labels)`): The answer for each segment asked
            for, from what is heard and said in it, divided by the temperature.
        segment_modality_weights (`torch.Tensor` of shape `(batch, segments, 2)`): Shares of audio and text in those
            answers; both are 0, and the answer says nothing, where a segment holds neither.
        text_to_audio_attentions, audio_to_text_attentions, audio_hidden_states, text_hidden_states: As in
            [`MMEmoModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    audio_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None
    modality_weights: torch.Tensor | None = None
    segment_logits: torch.Tensor | None = None
    segment_modality_weights: torch.Tensor | None = None
    text_to_audio_attentions: tuple[torch.Tensor, ...] | None = None
    audio_to_text_attentions: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None


class MMEmoPreTrainedModel(PreTrainedModel):
    """Loading, initialisation and what `transformers` asks of a model."""

    config: MMEmoConfig
    config_class = MMEmoConfig
    base_model_prefix = "mmemo"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    # Names of weights that the checkpoint did not hold; [`MultimodalEmotionPipeline`] refuses a model that has any.
    missing_keys_on_load: tuple[str, ...] = ()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves the model and its code; see [`~PreTrainedModel.save_pretrained`]."""
        # Either class loads what the other saved; the class that saves would name itself alone.
        self.config.auto_map = {
            auto_class: f"{__name__.rpartition('.')[2]}.{name}"
            for auto_class, name in (
                ("AutoModel", "MMEmoModel"),
                ("AutoModelForAudioClassification", "MMEmoForEmotionRecognition"),
            )
        }
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Loads a model, as [`PreTrainedModel.from_pretrained`] does, and remembers what its checkpoint lacked."""
        with_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        mismatched = {key for key, *_ in info["mismatched_keys"]}
        model.missing_keys_on_load = tuple(sorted(set(info["missing_keys"]) | mismatched))
        return (model, info) if with_info else model

    @classmethod
    def from_audio_text_pretrained(
        cls,
        audio: str | PreTrainedModel | None = None,
        text: str | PreTrainedModel | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        audio_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **config: Any,
    ):
        """Builds a model from two pretrained encoders; branches, fusion and heads are new and want training.

        Args:
            audio, text (`str` or `PreTrainedModel`, *optional*): Hub names, folders, or encoders already loaded. One
                of them may be absent. With `label_token_ids`, `text` is the name of a causal language model, whose
                output layer becomes the text's head; beside an encoder already loaded that head is new.
            dtype (`torch.dtype`, defaults to `torch.float32`): Data type of the whole model.
            audio_kwargs, text_kwargs (`dict`, *optional*): For each tower's own `from_pretrained` (`revision`, ...).
            config: Fields of [`MMEmoConfig`].

        Example:

        ```python
        >>> from modeling_mmemo import MMEmoAudioEncoder, MMEmoForEmotionRecognition

        >>> model = MMEmoForEmotionRecognition.from_audio_text_pretrained(
        ...     MMEmoAudioEncoder.from_pretrained("openai/whisper-base", num_hidden_layers=4),
        ...     "sentence-transformers/all-MiniLM-L6-v2",
        ...     fusion="hybrid",
        ... )
        ```"""
        towers, rows = [], None
        token_ids = config.get("label_token_ids")
        for source, kwargs in ((audio, audio_kwargs), (text, text_kwargs)):
            if isinstance(source, str) and source is text and token_ids is not None:
                source, rows = load_language_model(source, token_ids, dtype, **(kwargs or {}))
            elif isinstance(source, str):
                source = load_tower(source, dtype, **(kwargs or {}))
            elif source is not None:
                source = strip_tower(source).to(dtype)
            towers.append(source)
        configs = [None if tower is None else tower.config.to_dict() for tower in towers]
        for tower_config in filter(None, configs):
            # Where a tower came from may be a folder of this machine; its data type is now the whole model's.
            tower_config.pop("_name_or_path", None)
            tower_config.pop("dtype", None)
            # Weights of 4 bits are for training alone.
            tower_config.pop("quantization_config", None)
        logger.warning("Branches, fusion and heads are new; train the model before you use its answers.")
        model_config = cls.config_class(audio_config=configs[0], text_config=configs[1], dtype=dtype, **config)
        model = cls(model_config, *towers).to(dtype)
        if rows is not None and isinstance(model, MMEmoForEmotionRecognition):
            model.get_submodule("text_classifier").load_state_dict({"weight": rows})
        return model


class MMEmoModel(MMEmoPreTrainedModel):
    """Towers, branches and fusion, without heads."""

    def __init__(
        self,
        config: MMEmoConfig,
        audio_tower: PreTrainedModel | None = None,
        text_tower: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.audio_tower, self.audio_branch = self._make_branch("audio", audio_tower)
        self.text_tower, self.text_branch = self._make_branch("text", text_tower)
        num_layers = config.fusion_num_layers if config.attends_across else 0
        self.layers = nn.ModuleList(CrossModalLayer(config) for _ in range(num_layers))
        self.fuses = config.is_bimodal and config.fusion != "late"
        if self.fuses:
            width = config.fusion_hidden_size
            self.sequence_pooling = SequencePooling("mean", width)
            self.gate = ModalityGate(width, num_voters=2)
            self.fusion = nn.Sequential(
                nn.Linear(2 * width, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(config.fusion_dropout)
            )
        self.post_init()

    def _make_branch(self, modality: str, tower: PreTrainedModel | None):
        tower_config = getattr(self.config, f"{modality}_config")
        if tower_config is None:
            return None, None
        if tower is None:
            tower = build_tower(tower_config)
        if tower.main_input_name not in MODALITY_INPUTS[modality]:
            raise ValueError(
                f"A {tower_config.model_type} reads {tower.main_input_name}, so it is no {modality} tower; those read "
                f"{' or '.join(MODALITY_INPUTS[modality])}. Are audio and text swapped?"
            )
        # One object, so that a later change of the composite's configuration reaches the tower.
        tower_config._attn_implementation = tower.config._attn_implementation
        if getattr(tower_config, "use_cache", False):
            # A decoder would keep keys and values for a next token, which nobody asks for.
            tower_config.use_cache = False
        tower.config = tower_config
        pooling, layer_mix = (getattr(self.config, f"{modality}_{name}") for name in ("pooling", "layer_mix"))
        return tower, ModalityBranch(tower_config, pooling, layer_mix, self.config)

    def get_input_embeddings(self) -> nn.Module:
        return (self.audio_tower if self.text_tower is None else self.text_tower).get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        (self.audio_tower if self.text_tower is None else self.text_tower).set_input_embeddings(value)

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        token_times: torch.Tensor | None = None,
        segment_times: torch.Tensor | None = None,
        audio_hidden_states: tuple[torch.Tensor, ...] | None = None,
        text_hidden_states: tuple[torch.Tensor, ...] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MMEmoModelOutput | tuple:
        """
        Args:
            input_features, input_values (`torch.Tensor`, *optional*): The audio, under the name that the audio tower
                reads, shaped as its feature extractor gives it.
            audio_attention_mask (`torch.Tensor` of shape `(batch, frames or samples)`, *optional*): 1 for real,
                padding on the right; a row of zeros is a missing clip. All real where absent.
            input_ids (`torch.Tensor` of shape `(batch, tokens)`, *optional*): The text.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for real tokens, padding on
                either side; a row of zeros is a missing text. All real where absent.
            context_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for real tokens of what was said
                before the text: the tower reads them, and nothing else looks at them. None are where absent.
            token_times (`torch.Tensor` of shape `(batch, tokens, 2)`, *optional*): Start and end, in seconds, of the
                word each token belongs to; -1 where unknown.
            segment_times (`torch.Tensor` of shape `(batch, segments, 2)`, *optional*): Start and end, in seconds, of
                stretches to answer for one by one, each in the light of the whole; -1 for padding. A text without
                times counts as said in every segment. A model with `label_token_ids` answers for the whole text in all
                segments that hold some of it.
            audio_hidden_states, text_hidden_states (`tuple` of `torch.Tensor` of shape `(batch, positions, hidden)`,
                *optional*): What the towers gave before, instead of their inputs; the masks are then over positions.
            output_attentions (`bool`, *optional*): Return the cross-modal attention maps.
            output_hidden_states (`bool`, *optional*): Return the towers' hidden states.
            return_dict (`bool`, *optional*): Return an output object (the default) rather than a tuple.

        Raises:
            ValueError: If neither modality is given, or one that the model has no tower for.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict

        audio_states, audio_mask = self._hear(input_features, input_values, audio_hidden_states, audio_attention_mask)
        text_states, text_mask = self._read(input_ids, text_hidden_states, attention_mask, context_mask)
        if audio_mask is None and text_mask is None:
            raise ValueError(
                "Got neither audio (input_features or input_values) nor text (input_ids); give one of them."
            )

        output = MMEmoModelOutput(
            **self._fuse(
                audio_states, audio_mask, text_states, text_mask, token_times, segment_times, output_attentions
            ),
            audio_hidden_states=audio_states if output_hidden_states else None,
            text_hidden_states=text_states if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()

    def _hear(self, input_features, input_values, hidden_states, mask):
        """The audio tower's states and their mask `(batch, audio_positions)`; `None` twice without audio."""
        given = {"input_features": input_features, "input_values": input_values, "audio_hidden_states": hidden_states}
        given = [name for name, value in given.items() if value is not None]
        if not given:
            return None, None
        if self.audio_tower is None:
            raise ValueError(f"Got {given[0]}, but this model has no audio tower; leave the audio out.")
        if hidden_states is not None:
            return hidden_states, _ones_if_none(mask, hidden_states[-1]).bool()
        reads = self.audio_tower.main_input_name
        if given != [reads]:
            raise ValueError(f"Got {' and '.join(given)}, but the audio tower reads {reads} alone.")
        if reads == "input_features":
            return encode_audio(self.audio_tower, input_features, _ones_if_none(mask, input_features.transpose(1, 2)))
        return encode_audio(self.audio_tower, input_values, _ones_if_none(mask, input_values))

    def _read(self, input_ids, hidden_states, mask, context_mask):
        """The text tower's states and the mask of the text itself, `(batch, tokens)`; `None` twice without text."""
        if input_ids is None and hidden_states is None:
            return None, None
        if self.text_tower is None:
            raise ValueError("Got a text, but this model has no text tower; leave the text out.")
        mask = _ones_if_none(mask, input_ids if hidden_states is None else hidden_states[-1])
        if hidden_states is None:
            hidden_states = encode_text(self.text_tower, input_ids, mask)
        mask = mask.bool()
        return hidden_states, mask if context_mask is None else mask & ~context_mask.bool()

    def _fuse(
        self, audio_states, audio_mask, text_states, text_mask, token_times, segment_times, output_attentions
    ) -> dict:
        """Pools either modality, then brings both together. A modality absent from the batch counts as masked out."""
        there = audio_mask if audio_mask is not None else text_mask
        nothing = there.new_zeros(there.shape[0], 1, dtype=torch.bool)
        audio_mask = nothing if audio_mask is None else audio_mask
        text_mask = nothing if text_mask is None else text_mask
        if self.training and self.config.modality_dropout > 0:
            audio_mask, text_mask = self._drop_modalities(audio_mask, text_mask)

        # One mask for the whole and one a segment: `(batch, 1 + segments, positions)`.
        audio_masks, text_masks = audio_mask.unsqueeze(1), text_mask.unsqueeze(1)
        if segment_times is not None:
            if audio_states is not None:
                audio_masks = self._with_segments(audio_masks, self._position_times(audio_mask), segment_times)
            if text_states is not None:
                text_masks = self._with_segments(text_masks, token_times, segment_times)
            # A modality that the batch lacks is missing in every segment.
            audio_masks, text_masks = (
                masks.expand(-1, 1 + segment_times.shape[1], -1) for masks in (audio_masks, text_masks)
            )
        audio, audio_embeds = self._branch(self.audio_branch, audio_states, audio_masks)
        text, text_embeds = self._branch(self.text_branch, text_states, text_masks)
        is_there = torch.stack([audio_masks.any(dim=-1), text_masks.any(dim=-1)], dim=-1)
        pooled = {"modality_mask": is_there, "audio_embeds": audio_embeds, "text_embeds": text_embeds}
        if self.config.label_token_ids is not None:
            pooled["text_last_state"] = self._last_state(text_states, text_mask, is_there[..., 1:])

        maps: dict[str, tuple] = {}
        if self.fuses:
            audio_vectors, text_vectors = audio_embeds, text_embeds
            if self.config.attends_across:
                timed = token_times is not None and audio_states is not None and text_states is not None
                distance = self._distance(token_times, audio_mask) if timed else None
                audio, text, maps = self._attend(audio, text, audio_mask, text_mask, distance, output_attentions)
                audio_vectors = self.sequence_pooling(audio, audio_masks)
                text_vectors = self.sequence_pooling(text, text_masks)
            weights = self.gate(audio_vectors, text_vectors, is_there)
            shares = 2 * weights.unsqueeze(-1)
            vectors = torch.cat([shares[..., 0, :] * audio_vectors, shares[..., 1, :] * text_vectors], dim=-1)
            pooled |= {"fusion_weights": weights, "fused_embeds": self.fusion(vectors)}
        whole = {name: values[:, 0] for name, values in pooled.items() if values is not None}
        if segment_times is None:
            return whole | maps
        rows = {name: values[:, 1:].flatten(0, 1) for name, values in pooled.items() if values is not None}
        return whole | maps | {"segments": MMEmoModelOutput(**rows)}

    def _last_state(self, states, mask: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
        """The tower's last state at each text's last token, wherever text `is_there`, `(batch, masks, 1)`: a language
        model says a label's word after the whole text."""
        hidden_size = self.text_tower.config.hidden_size
        if states is None:
            return is_there.new_zeros(*is_there.shape[:2], hidden_size, dtype=self.text_branch.mix.weights.dtype)
        return SequencePooling("last", hidden_size)(states[-1], mask).unsqueeze(1) * is_there

    def _attend(self, audio, text, audio_mask, text_mask, distance, output_attentions):
        """Both sequences behind the cross-modal layers, and on request the layers' attention maps by output field."""
        maps: dict[str, tuple] = {"text_to_audio_attentions": (), "audio_to_text_attentions": ()}
        for layer in self.layers:
            audio, text, *layer_maps = layer(audio, text, audio_mask, text_mask, distance, output_attentions)
            maps = {name: (*found, layer_map) for (name, found), layer_map in zip(maps.items(), layer_maps)}
        return audio, text, maps if output_attentions else {}

    def _branch(self, branch: ModalityBranch | None, states, masks: torch.Tensor):
        """The sequence `(batch, positions, width)` and vectors `(batch, masks, width)`; zeros if there is none."""
        if branch is None:
            return None, None
        if states is None:
            zeros = branch.mix.weights.new_zeros(*masks.shape[:2], self.config.fusion_hidden_size)
            return zeros[:, :1], zeros
        return branch(states, masks)

    def _with_segments(
        self, mask: torch.Tensor, times: torch.Tensor | None, segment_times: torch.Tensor
    ) -> torch.Tensor:
        """Puts a mask for each segment behind that of the whole, `(batch, 1, positions)`.

        Args:
            times (`torch.Tensor` of shape `(batch or 1, positions, 2)`, *optional*): Start and end of what stands at
                each position, -1 where it has no time. Such a position counts in every segment that holds a timed one,
                and in all segments if the whole sample has none.

        Returns:
            `torch.Tensor` of shape `(batch, 1 + segments, positions)`.
        """
        asked = segment_times[:, :, :1] >= 0
        if times is None:
            return torch.cat([mask, mask & asked], dim=1)
        start, end = times.unsqueeze(1).unbind(dim=-1)
        timed = mask & (start >= 0)
        # A word of no length is where it starts.
        inside = (start < segment_times[:, :, 1:]) & (torch.maximum(end, start + 1e-3) > segment_times[:, :, :1])
        inside = timed & inside
        untimed = mask & ~timed & (inside.any(dim=-1, keepdim=True) | ~timed.any(dim=-1, keepdim=True))
        return torch.cat([mask, (inside | untimed) & asked], dim=1)

    def _drop_modalities(self, audio_mask: torch.Tensor, text_mask: torch.Tensor):
        """Takes, from a sample that has both, one modality with probability `modality_dropout`."""
        chance = torch.rand(audio_mask.shape[0], 1, device=audio_mask.device)
        both = audio_mask.any(dim=1, keepdim=True) & text_mask.any(dim=1, keepdim=True)
        half = self.config.modality_dropout / 2
        drop_audio, drop_text = both & (chance < half), both & (chance >= half) & (chance < 2 * half)
        return audio_mask & ~drop_audio, text_mask & ~drop_text

    def _position_times(self, audio_mask: torch.Tensor) -> torch.Tensor:
        """The time, in seconds, at the middle of each audio position, twice; -1 for no time. `(1, positions, 2)`"""
        audio_config = self.audio_tower.config
        seconds = self.config.audio_frame_seconds or seconds_per_position(audio_config)
        if seconds is None:
            raise ValueError(
                f"Word and segment times need the seconds between two outputs of the {audio_config.model_type} tower; "
                "set audio_frame_seconds in the configuration."
            )
        times = position_times(audio_config, audio_mask.shape[1], seconds).to(audio_mask.device)
        return times[None, :, None].expand(-1, -1, 2)

    def _distance(self, token_times: torch.Tensor, audio_mask: torch.Tensor) -> torch.Tensor:
        """Gaps in time between words and sounds, in segments; 0 where either has no time.

        Args:
            token_times (`torch.Tensor` of shape `(batch, tokens, 2)`): Start and end in seconds, -1 where unknown.
            audio_mask (`torch.Tensor` of shape `(batch, audio_positions)`): Of the positions.

        Returns:
            `torch.Tensor` of shape `(batch, tokens, audio_positions)`.
        """
        times = self._position_times(audio_mask)[..., 0].to(token_times).unsqueeze(1)
        start, end = token_times[:, :, :1], token_times[:, :, 1:]
        gap = torch.maximum(start - times, times - end).clamp(min=0) / self.config.segment_seconds
        return gap * ((start >= 0) & (times >= 0))


def _ones_if_none(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """The mask, or one that calls everything in `like`, `(batch, length, ...)`, real."""
    return like.new_ones(like.shape[:2], dtype=torch.long) if mask is None else mask


class MMEmoForEmotionRecognition(MMEmoPreTrainedModel):
    """The model with its heads: one for either modality, and the fusion's own.

    A sample with one modality gets that modality's head as its answer, in late and hybrid fusion; one with neither
    gets an answer that says nothing, where all labels are as likely.
    """

    def __init__(
        self,
        config: MMEmoConfig,
        audio_tower: PreTrainedModel | None = None,
        text_tower: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.mmemo = MMEmoModel(config, audio_tower, text_tower)
        width, num_labels = config.fusion_hidden_size, config.num_labels
        self.audio_classifier = None if config.audio_config is None else nn.Linear(width, num_labels)
        self.text_classifier = None if config.text_config is None else nn.Linear(width, num_labels)
        if config.label_token_ids is not None:
            self.text_classifier = nn.Linear(self.mmemo.text_tower.config.hidden_size, num_labels, bias=False)
        self.fused_classifier = nn.Linear(width, num_labels) if self.mmemo.fuses else None
        votes = config.is_bimodal and config.fusion in ("late", "hybrid") and config.late_fusion_weights is None
        self.vote = ModalityGate(width, num_voters=3 if self.mmemo.fuses else 2) if votes else None
        self.post_init()

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        token_times: torch.Tensor | None = None,
        segment_times: torch.Tensor | None = None,
        audio_hidden_states: tuple[torch.Tensor, ...] | None = None,
        text_hidden_states: tuple[torch.Tensor, ...] | None = None,
        labels: torch.Tensor | None = None,
        label_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MMEmoEmotionOutput | tuple:
        """
        Args:
            labels (`torch.Tensor`, *optional*): `(batch,)` class indices (-100 is ignored) for a single label,
                `(batch, num_labels)` of 0 and 1 for several, `(batch, num_labels)` of values for regression.
            label_mask (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): 1 for labels that the sample's
                corpus knows; the others take no part in its loss, so that their absence there teaches nothing.
            The others are those of [`MMEmoModel.forward`].
        """
        features = self.mmemo(
            input_features=input_features,
            input_values=input_values,
            audio_attention_mask=audio_attention_mask,
            input_ids=input_ids,
            attention_mask=attention_mask,
            context_mask=context_mask,
            token_times=token_times,
            segment_times=segment_times,
            audio_hidden_states=audio_hidden_states,
            text_hidden_states=text_hidden_states,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        there = features.modality_mask
        heads = self._heads(features)
        logits, modality_weights = self._answer(heads, features)
        segments: dict[str, torch.Tensor] = {}
        if features.segments is not None:
            answers = self._answer(self._heads(features.segments), features.segments)
            names = ("segment_logits", "segment_modality_weights")
            segments = {name: rows.unflatten(0, (logits.shape[0], -1)) for name, rows in zip(names, answers)}

        loss = None
        if labels is not None:
            rows = {"audio": there[:, 0], "text": there[:, 1], "fused": there.all(dim=1)}
            loss = self._loss(logits, labels, label_mask, there.any(dim=1))
            own = sum(self._loss(head, labels, label_mask, rows[name]) for name, head in heads.items())
            loss = loss + self.config.modality_loss_weight * own

        output = MMEmoEmotionOutput(
            loss=loss,
            logits=logits,
            audio_logits=heads["audio"] / self.config.temperature_of("audio") if "audio" in heads else None,
            text_logits=heads["text"] / self.config.temperature_of("text") if "text" in heads else None,
            modality_weights=modality_weights,
            **segments,
            text_to_audio_attentions=features.text_to_audio_attentions,
            audio_to_text_attentions=features.audio_to_text_attentions,
            audio_hidden_states=features.audio_hidden_states,
            text_hidden_states=features.text_hidden_states,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def _heads(self, features: MMEmoModelOutput) -> dict[str, torch.Tensor]:
        """What each head says, `(batch, num_labels)`."""
        says_words = self.config.label_token_ids is not None
        heads = {
            name: classifier(embeds)
            for name, classifier, embeds in (
                ("audio", self.audio_classifier, features.audio_embeds),
                ("text", self.text_classifier, features.text_last_state if says_words else features.text_embeds),
                ("fused", self.fused_classifier, features.fused_embeds),
            )
            if classifier is not None
        }
        if says_words:
            heads["text"] = token_logits(self.config.text_config, heads["text"])
        return heads

    def _answer(self, heads: dict[str, torch.Tensor], features: MMEmoModelOutput):
        """The logits `(batch, num_labels)`, divided by the temperature, and the modalities' shares `(batch, 2)`."""
        there = features.modality_mask
        logits, weights = self._fused_answer(heads, features)
        return logits / self._temperatures(logits)[there[:, 0] + 2 * there[:, 1] - 1].unsqueeze(1), weights

    def _fused_answer(self, heads: dict[str, torch.Tensor], features: MMEmoModelOutput):
        """The logits `(batch, num_labels)` by the configured fusion, and the modalities' shares `(batch, 2)`."""
        there = features.modality_mask
        if not self.config.is_bimodal:
            (logits,) = heads.values()
            return logits, there.to(logits.dtype)
        if self.config.fusion in ("early", "cross_attention"):
            return heads["fused"], features.fusion_weights

        voters = [heads["audio"], heads["text"]]
        may_vote = there
        if "fused" in heads:
            voters.append(heads["fused"])
            may_vote = torch.cat([there, there.all(dim=1, keepdim=True)], dim=1)
        if self.vote is None:
            # A modality of weight 0 still answers where it is the only one.
            weights = torch.tensor(self.config.late_fusion_weights).to(voters[0])
            votes = there * weights.clamp(min=torch.finfo(weights.dtype).tiny)
            votes = votes / votes.sum(dim=1, keepdim=True).clamp(min=torch.finfo(votes.dtype).tiny)
        else:
            votes = self.vote(features.audio_embeds, features.text_embeds, may_vote)
        if self._problem_type() == "single_label_classification":
            voters = [voter.log_softmax(dim=1) for voter in voters]
        logits = torch.einsum("bv,bvl->bl", votes, torch.stack(voters, dim=1))
        weights = votes[:, :2]
        if features.fusion_weights is not None:
            weights = weights + votes[:, 2:] * features.fusion_weights
        return logits, weights

    def _temperatures(self, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor([self.config.temperature_of(presence) for presence in PRESENCES]).to(like)

    def _problem_type(self) -> str:
        if self.config.problem_type is not None:
            return self.config.problem_type
        return "regression" if self.config.num_labels == 1 else "single_label_classification"

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, label_mask: torch.Tensor | None, rows: torch.Tensor
    ) -> torch.Tensor:
        """The loss of those `rows`, `(batch,)`, that have a label, summed and divided by the size of the batch.

        So every sample weighs the same, whichever modalities the others have: batches on several processes, or
        accumulated ones, add up to the loss of one batch of them all.
        """
        known = torch.ones_like(logits, dtype=torch.bool) if label_mask is None else label_mask.bool()
        if self._problem_type() == "single_label_classification":
            rows = rows & (labels != -100)
            losses = self._cross_entropy(logits, labels.clamp(min=0), known)
        else:
            labels = labels.to(logits.dtype).view_as(logits)
            if self._problem_type() == "regression":
                losses = nn.functional.mse_loss(logits, labels, reduction="none")
            else:
                losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            losses = (losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        return (losses * rows).sum() / len(rows)

    def _cross_entropy(self, logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """The loss `(batch,)` of class indices, over the `known` labels `(batch, num_labels)` of each sample.

        Source: Lin et al., "Focal Loss for Dense Object Detection", 2017; Szegedy et al., "Rethinking the Inception
        Architecture for Computer Vision", 2016 (label smoothing).
        """
        log_probs = logits.masked_fill(~known, torch.finfo(logits.dtype).min).log_softmax(dim=1)
        answered = log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)
        others = log_probs.masked_fill(~known, 0).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        smoothing = self.config.label_smoothing
        losses = -((1 - smoothing) * answered + smoothing * others)
        if self.config.focal_gamma > 0:
            losses = losses * (1 - answered.exp()) ** self.config.focal_gamma
        if self.config.class_weights is not None:
            losses = losses * torch.tensor(self.config.class_weights).to(losses)[labels]
        return losses
