"""The emotion model: two encoders, pooling, cross-modal attention, fusion and heads.

Deliberate choices:
  - each modality keeps its own head, so the prediction for a single modality is the output of that head alone;
  - a modality is missing, per sample, where its mask is all zero; its values never reach the prediction;
  - logits are divided by the fitted temperature, so their softmax is the calibrated score everywhere.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .alignment_mmemo import audio_times, segment_masks, time_gaps
from .configuration_mmemo import PRESENCES, MMEmoConfig
from .distributed_mmemo import with_all_parameters
from .fusion_mmemo import CrossModalLayer, ModalityBranch, ModalityGate, SequencePooling
from .losses_mmemo import emotion_loss, problem_type
from .outputs_mmemo import MMEmoEmotionOutput, MMEmoModelOutput
from .pretrained_mmemo import MMEmoPreTrainedModel
from .towers_mmemo import build_tower, encode_audio, encode_text, token_logits


MODALITY_INPUTS = {"audio": ("input_features", "input_values"), "text": ("input_ids",)}


class MMEmoModel(MMEmoPreTrainedModel):
    """Encoders, branches and fusion, without heads."""

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
        self.last_pooling = None
        if config.label_token_ids is not None:
            self.last_pooling = SequencePooling("last", self.text_tower.config.hidden_size)
        self.post_init()

    def _make_branch(self, modality: str, tower: PreTrainedModel | None):
        """Returns the encoder of a modality, newly initialised unless given, and its branch; `None` twice if the model
        has no such encoder."""
        tower_config = getattr(self.config, f"{modality}_config")
        if tower_config is None:
            return None, None
        if tower is None:
            tower = build_tower(tower_config)
        if tower.main_input_name not in MODALITY_INPUTS[modality]:
            raise ValueError(
                f"A {tower_config.model_type} encoder takes {tower.main_input_name}, but the {modality} encoder must "
                f"take {' or '.join(MODALITY_INPUTS[modality])}. Are audio and text swapped?"
            )
        # One object, so that later changes of the composite's configuration reach the encoder.
        tower_config._attn_implementation = tower.config._attn_implementation
        if getattr(tower_config, "use_cache", False):
            # A decoder would keep keys and values for a next token that is never generated.
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
            input_features, input_values (`torch.Tensor`, *optional*): The audio, under the name and in the shape that
                the audio encoder takes, as its feature extractor returns it.
            audio_attention_mask (`torch.Tensor` of shape `(batch, frames or samples)`, *optional*): 1 for real frames
                or samples, padding on the right; a row of zeros is a missing clip. Defaults to all ones.
            input_ids (`torch.Tensor` of shape `(batch, tokens)`, *optional*): The text.
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for real tokens, padding on
                either side; a row of zeros is a missing text. Defaults to all ones.
            context_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for real tokens of the context
                before the text: the text encoder attends to them, no other module uses them. Defaults to all zeros.
            token_times (`torch.Tensor` of shape `(batch, tokens, 2)`, *optional*): Start and end, in seconds, of the
                word of each token; -1 where unknown.
            segment_times (`torch.Tensor` of shape `(batch, segments, 2)`, *optional*): Start and end, in seconds, of
                segments that are predicted separately, each after attention over the whole clip; -1 for padding. A
                text without timestamps applies to every segment. With `label_token_ids`, the text head predicts from
                the whole text for every segment that has some of it.
            audio_hidden_states, text_hidden_states (`tuple` of `torch.Tensor` of shape `(batch, positions, hidden)`,
                *optional*): Hidden states returned by an earlier call, in place of the encoders' inputs; the masks are
                then over their positions.
            output_attentions (`bool`, *optional*): Return the cross-modal attention maps.
            output_hidden_states (`bool`, *optional*): Return the encoders' hidden states.
            return_dict (`bool`, *optional*): Return an output object (the default) rather than a tuple.

        Raises:
            ValueError: If neither modality is given, or one that the model has no encoder for.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict

        audio_states, audio_mask = self._encode_audio(
            input_features, input_values, audio_hidden_states, audio_attention_mask
        )
        text_states, text_mask = self._encode_text(input_ids, text_hidden_states, attention_mask, context_mask)
        given = text_mask if audio_mask is None else audio_mask
        if given is None:
            raise ValueError(
                "Got neither audio (input_features or input_values) nor text (input_ids); give one of them."
            )
        # A modality that the whole batch lacks is one masked position.
        absent = given.new_zeros(given.shape[0], 1)
        audio_mask = absent if audio_mask is None else audio_mask
        text_mask = absent if text_mask is None else text_mask
        if self.training and self.config.modality_dropout > 0:
            audio_mask, text_mask = self._drop_modalities(audio_mask, text_mask)

        # The whole clip is one span to fuse, each segment another; one call shares their matrix products.
        states, masks = (audio_states, text_states), (audio_mask, text_mask)
        spans = tuple(mask.unsqueeze(1) for mask in masks)
        if segment_times is not None:
            of_segments = self._segment_masks(states, masks, token_times, segment_times)
            spans = tuple(torch.cat(pair, dim=1) for pair in zip(spans, of_segments))
        fused, attentions = self._fuse(states, masks, spans, token_times, output_attentions)
        clip = {name: values[:, 0] for name, values in fused.items()}
        segments = None
        if segment_times is not None:
            segments = MMEmoModelOutput(**{name: values[:, 1:].flatten(0, 1) for name, values in fused.items()})
        output = MMEmoModelOutput(
            **clip,
            **attentions,
            audio_hidden_states=audio_states if output_hidden_states else None,
            text_hidden_states=text_states if output_hidden_states else None,
            segments=segments,
        )
        return output if return_dict else output.to_tuple()

    def _encode_audio(self, input_features, input_values, hidden_states, mask):
        """Returns the audio encoder's states and their mask `(batch, audio_positions)`; `None` twice without audio."""
        inputs = {"input_features": input_features, "input_values": input_values, "audio_hidden_states": hidden_states}
        given = [name for name, value in inputs.items() if value is not None]
        if not given:
            return None, None
        if self.audio_tower is None:
            raise ValueError(f"Got {given[0]}, but this model has no audio encoder; leave the audio out.")
        if hidden_states is not None:
            return hidden_states, _ones_if_none(mask, hidden_states[-1]).bool()
        name = self.audio_tower.main_input_name
        if given != [name]:
            raise ValueError(f"Got {' and '.join(given)}, but the audio encoder takes only {name}.")
        values = inputs[name]
        # A spectrogram named `input_features` is `(batch, channels, frames)`; all other inputs have time first.
        mask = _ones_if_none(mask, values.transpose(1, 2) if name == "input_features" else values)
        return encode_audio(self.audio_tower, values, mask)

    def _encode_text(self, input_ids, hidden_states, mask, context_mask):
        """Returns the text encoder's states and the mask of the text without its context, `(batch, tokens)`; `None`
        twice without text."""
        if input_ids is None and hidden_states is None:
            return None, None
        if self.text_tower is None:
            raise ValueError("Got a text, but this model has no text encoder; leave the text out.")
        mask = _ones_if_none(mask, input_ids if hidden_states is None else hidden_states[-1])
        if hidden_states is None:
            hidden_states = encode_text(self.text_tower, input_ids, mask)
        mask = mask.bool()
        return hidden_states, mask if context_mask is None else mask & ~context_mask.bool()

    def _drop_modalities(self, audio_mask: torch.Tensor, text_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks one modality of samples that have both, with probability `modality_dropout`."""
        chance = torch.rand(audio_mask.shape[0], 1, device=audio_mask.device)
        both = audio_mask.any(dim=1, keepdim=True) & text_mask.any(dim=1, keepdim=True)
        half = self.config.modality_dropout / 2
        drop_audio, drop_text = both & (chance < half), both & (chance >= half) & (chance < 2 * half)
        return audio_mask & ~drop_audio, text_mask & ~drop_text

    def _segment_masks(self, states, masks, token_times, segment_times) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the audio positions and the tokens of each segment, each `(batch, segments, positions)`."""
        (audio_states, text_states), (audio_mask, text_mask) = states, masks
        position_times = None
        if audio_states is not None:
            position_times = self._audio_times(audio_mask)[None, :, None].expand(-1, -1, 2)
        return (
            segment_masks(audio_mask, position_times, segment_times),
            segment_masks(text_mask, None if text_states is None else token_times, segment_times),
        )

    def _fuse(self, states, masks, spans, token_times, output_attentions) -> tuple[dict[str, Any], dict[str, Any]]:
        """Pools and fuses spans of the clips, after cross-modal attention over the whole clips.

        Args:
            states (`tuple`): Hidden states of the audio and of the text encoder, each `None` if the batch has none.
            masks (`tuple` of `torch.Tensor` of shape `(batch, positions)`): The real audio positions and tokens.
            spans (`tuple` of `torch.Tensor` of shape `(batch, spans, positions)`): The real positions in each span.
            token_times, output_attentions: As in [`MMEmoModel.forward`].

        Returns:
            The first six fields of [`MMEmoModelOutput`], each `(batch, spans, ...)`, and the attention maps.
        """
        (audio_states, text_states), (audio_spans, text_spans) = states, spans
        audio, audio_embeds = self._apply_branch(self.audio_branch, audio_states, audio_spans)
        text, text_embeds = self._apply_branch(self.text_branch, text_states, text_spans)
        is_present = torch.stack([audio_spans.any(dim=-1), text_spans.any(dim=-1)], dim=-1)
        fields = {"modality_mask": is_present, "audio_embeds": audio_embeds, "text_embeds": text_embeds}
        if self.last_pooling is not None:
            fields["text_last_state"] = self._last_state(text_states, masks[1], is_present[..., 1:])

        attentions: dict[str, tuple] = {}
        if self.fuses:
            audio_vectors, text_vectors = audio_embeds, text_embeds
            if self.config.attends_across:
                distance = self._distance(states, masks, token_times)
                audio, text, attentions = self._attend(audio, text, masks, distance, output_attentions)
                audio_vectors = self.sequence_pooling(audio, audio_spans).to(audio.dtype)
                text_vectors = self.sequence_pooling(text, text_spans).to(text.dtype)
            weights = self.gate(audio_vectors, text_vectors, is_present)
            # Equal weights leave the vectors as they are.
            scales = 2 * weights.unsqueeze(-1)
            vectors = torch.cat([scales[..., 0, :] * audio_vectors, scales[..., 1, :] * text_vectors], dim=-1)
            fields |= {"fusion_weights": weights, "fused_embeds": self.fusion(vectors)}
        return {name: values for name, values in fields.items() if values is not None}, attentions

    def _apply_branch(self, branch, states, spans):
        """Returns the sequence `(batch, positions, width)` and vectors `(batch, spans, width)`, both zero without
        states; `None` twice without a branch."""
        if branch is None:
            return None, None
        if states is None:
            zeros = branch.mix.weights.new_zeros(*spans.shape[:2], self.config.fusion_hidden_size)
            return zeros[:, :1], zeros
        return branch(states, spans)

    def _last_state(self, states, mask, is_present):
        """Returns the text encoder's last state at the last token of the whole text, `(batch, spans, hidden)`, as a
        language model predicts the word of a label after the whole text; 0 for spans without text, which `is_present`
        masks, `(batch, spans, 1)`."""
        dtype = self.text_branch.mix.weights.dtype
        if states is None:
            hidden_size = self.text_tower.config.hidden_size
            return is_present.new_zeros(*is_present.shape[:2], hidden_size, dtype=dtype)
        return self.last_pooling(states[-1], mask).to(dtype).unsqueeze(1) * is_present

    def _attend(self, audio, text, masks, distance, output_attentions):
        """Returns both sequences after the cross-modal layers and, on request, the attention maps by output field."""
        maps: dict[str, tuple] = {"text_to_audio_attentions": (), "audio_to_text_attentions": ()}
        for layer in self.layers:
            audio, text, *layer_maps = layer(audio, text, *masks, distance, output_attentions)
            maps = {name: (*earlier, layer_map) for (name, earlier), layer_map in zip(maps.items(), layer_maps)}
        return audio, text, maps if output_attentions else {}

    def _distance(self, states, masks, token_times: torch.Tensor | None) -> torch.Tensor | None:
        """Returns the gaps in time between words and audio positions, in segments, `(batch, tokens, audio_positions)`;
        `None` unless the batch has audio, text and timestamps."""
        if token_times is None or any(modality is None for modality in states):
            return None
        return time_gaps(token_times, self._audio_times(masks[0])) / self.config.segment_seconds

    def _audio_times(self, audio_mask: torch.Tensor) -> torch.Tensor:
        """Returns the time of each audio position; see [`audio_times`]."""
        seconds = self.config.audio_frame_seconds
        return audio_times(self.audio_tower.config, seconds, audio_mask.shape[1]).to(audio_mask.device)


def _ones_if_none(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Returns the mask, or ones over the first two dimensions of `like`."""
    return like.new_ones(like.shape[:2], dtype=torch.long) if mask is None else mask


class MMEmoForEmotionRecognition(MMEmoPreTrainedModel):
    """The model with its heads: one per modality and one for the fused vector.

    In late and hybrid fusion, a sample with one modality is predicted by the head of that modality. A sample with
    neither gets equal scores for all labels.
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

    def _init_text_head(self, weight: torch.Tensor) -> None:
        self.get_submodule("text_classifier").load_state_dict({"weight": weight})

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
        loss_weight: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> MMEmoEmotionOutput | tuple:
        """
        Args:
            labels (`torch.Tensor`, *optional*): `(batch,)` class indices (-100 is ignored) for a single label,
                `(batch, num_labels)` of 0 and 1 for several, `(batch, num_labels)` of values for regression; NaN is
                ignored in the last two. In training with several processes (DDP) the loss gives every trained
                parameter a gradient, of zero if its modality is missing from the batch; otherwise the other processes
                would wait for it forever.
            label_mask (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): 1 for the labels that the sample's
                corpus annotates; its loss excludes the others.
            loss_weight (`torch.Tensor` of shape `(batch,)`, *optional*): Weight of each sample in the loss; 1 by
                default. The loss is divided by the batch size, not by the sum of the weights, so that the losses of
                several processes add up.
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
        heads = self._head_logits(features)
        logits, modality_weights = self._predict(heads, features)
        segments: dict[str, torch.Tensor] = {}
        if features.segments is not None:
            predictions = self._predict(self._head_logits(features.segments), features.segments)
            names = ("segment_logits", "segment_modality_weights")
            segments = {name: rows.unflatten(0, (logits.shape[0], -1)) for name, rows in zip(names, predictions)}

        loss = None
        if labels is not None:
            loss = self._loss(logits, heads, features.modality_mask, labels, label_mask, loss_weight)
        if loss is not None and self.training:
            has_audio = any(values is not None for values in (input_features, input_values, audio_hidden_states))
            has_text = input_ids is not None or text_hidden_states is not None
            is_complete = not self.config.is_bimodal or (has_audio and has_text)
            loss = with_all_parameters(loss, self, is_complete)
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

    def _head_logits(self, features: MMEmoModelOutput) -> dict[str, torch.Tensor]:
        """Returns the logits of each head by its name, `(batch, num_labels)`."""
        uses_label_tokens = self.config.label_token_ids is not None
        heads = {
            name: classifier(embeds)
            for name, classifier, embeds in (
                ("audio", self.audio_classifier, features.audio_embeds),
                (
                    "text",
                    self.text_classifier,
                    features.text_last_state if uses_label_tokens else features.text_embeds,
                ),
                ("fused", self.fused_classifier, features.fused_embeds),
            )
            if classifier is not None
        }
        if uses_label_tokens:
            heads["text"] = token_logits(self.config.text_config, heads["text"])
        return heads

    def _predict(self, heads: dict[str, torch.Tensor], features: MMEmoModelOutput):
        """Returns the logits `(batch, num_labels)`, divided by the temperature, and the modality weights
        `(batch, 2)`."""
        logits, weights = self._combine_heads(heads, features)
        temperatures = torch.tensor([self.config.temperature_of(presence) for presence in PRESENCES]).to(logits)
        has_audio, has_text = features.modality_mask.unbind(dim=1)
        return logits / temperatures[has_audio + 2 * has_text - 1].unsqueeze(1), weights

    def _combine_heads(self, heads: dict[str, torch.Tensor], features: MMEmoModelOutput):
        """Returns the logits `(batch, num_labels)` by the configured fusion, and the modality weights `(batch, 2)`."""
        is_present = features.modality_mask
        if not self.config.is_bimodal:
            (logits,) = heads.values()
            return logits, is_present.to(logits.dtype)
        if self.config.fusion in ("early", "cross_attention"):
            return heads["fused"], features.fusion_weights

        voters = [heads["audio"], heads["text"]]
        may_vote = is_present
        if "fused" in heads:
            voters.append(heads["fused"])
            may_vote = torch.cat([is_present, is_present.all(dim=1, keepdim=True)], dim=1)
        if self.vote is None:
            # A modality of weight 0 still predicts where it is the only one.
            weights = torch.tensor(self.config.late_fusion_weights).to(voters[0])
            votes = is_present * weights.clamp(min=torch.finfo(weights.dtype).tiny)
            votes = votes / votes.sum(dim=1, keepdim=True).clamp(min=torch.finfo(votes.dtype).tiny)
        else:
            votes = self.vote(features.audio_embeds, features.text_embeds, may_vote)
        if problem_type(self.config) == "single_label_classification":
            voters = [voter.log_softmax(dim=1) for voter in voters]
        logits = torch.einsum("bv,bvl->bl", votes, torch.stack(voters, dim=1))
        weights = votes[:, :2]
        if features.fusion_weights is not None:
            weights = weights + votes[:, 2:] * features.fusion_weights
        return logits, weights

    def _loss(
        self,
        logits: torch.Tensor,
        heads: dict[str, torch.Tensor],
        is_present: torch.Tensor,
        labels: torch.Tensor,
        label_mask: torch.Tensor | None,
        loss_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """Returns the loss of the prediction plus those of the heads, each over the samples that have its inputs."""
        rows = {"audio": is_present[:, 0], "text": is_present[:, 1], "fused": is_present.all(dim=1)}
        loss = emotion_loss(self.config, logits, labels, label_mask, is_present.any(dim=1), loss_weight)
        head_losses = [
            emotion_loss(self.config, head, labels, label_mask, rows[name], loss_weight)
            for name, head in heads.items()
        ]
        return loss + self.config.modality_loss_weight * sum(head_losses)
