"""The emotion model: up to three encoders, pooling, cross-modal attention, fusion and heads.

Deliberate choices:
  - each modality keeps its own head, so the prediction for a single modality is the output of that head alone;
  - a modality is missing, per sample, where its mask is all zero; its values never reach the prediction;
  - logits are divided by the fitted temperature, so their softmax is the calibrated score everywhere.
"""

from itertools import combinations, compress, product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mmemo.modalities import MODALITIES, presence_of

from .alignment_mmemo import audio_times, segment_masks, time_gaps
from .configuration_mmemo import MMEmoConfig
from .distributed_mmemo import with_all_parameters
from .fusion_mmemo import CrossModalLayer, ModalityBranch, ModalityGate, SequencePooling
from .losses_mmemo import emotion_loss, problem_type
from .outputs_mmemo import MMEmoEmotionOutput, MMEmoModelOutput
from .pretrained_mmemo import MMEmoPreTrainedModel
from .shared_space_mmemo import SharedSpace, contrastive_loss, hash_texts
from .towers_mmemo import ENCODE, build_tower, encode_text, token_logits


MODALITY_INPUTS = {
    "audio": ("input_features", "input_values"),
    "text": ("input_ids",),
    "video": ("video_features", "pixel_values"),
}


class MMEmoModel(MMEmoPreTrainedModel):
    """Encoders, branches and fusion, without heads."""

    def __init__(
        self,
        config: MMEmoConfig,
        audio_tower: PreTrainedModel | None = None,
        text_tower: PreTrainedModel | None = None,
        video_tower: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.audio_tower, self.audio_branch = self._make_branch("audio", audio_tower)
        self.text_tower, self.text_branch = self._make_branch("text", text_tower)
        self.video_tower, self.video_branch = self._make_branch("video", video_tower)
        num_layers = config.fusion_num_layers if config.attends_across else 0
        self.layers = nn.ModuleList(CrossModalLayer(config) for _ in range(num_layers))
        self.fuses = config.is_multimodal and config.fusion != "late"
        if self.fuses:
            width, num_modalities = config.fusion_hidden_size, len(config.modalities)
            self.sequence_pooling = SequencePooling("mean", width)
            self.gate = ModalityGate(width, num_modalities, num_voters=num_modalities)
            self.fusion = nn.Sequential(
                nn.Linear(num_modalities * width, width),
                nn.LayerNorm(width),
                nn.GELU(),
                nn.Dropout(config.fusion_dropout),
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
                f"take {' or '.join(MODALITY_INPUTS[modality])}. Are two encoders swapped?"
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
        return self._embedding_tower.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._embedding_tower.set_input_embeddings(value)

    @property
    def _embedding_tower(self) -> PreTrainedModel:
        """The encoder whose input embeddings count as the model's: the text encoder's, if there is one."""
        return self.text_tower or self.audio_tower or self.video_tower

    @property
    def towers(self) -> dict[str, PreTrainedModel]:
        """The encoders that the model has, by modality."""
        named = {modality: getattr(self, f"{modality}_tower") for modality in MODALITIES}
        return {modality: tower for modality, tower in named.items() if tower is not None}

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        audio_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        token_times: torch.Tensor | None = None,
        video_features: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        video_attention_mask: torch.Tensor | None = None,
        video_times: torch.Tensor | None = None,
        segment_times: torch.Tensor | None = None,
        audio_hidden_states: tuple[torch.Tensor, ...] | None = None,
        text_hidden_states: tuple[torch.Tensor, ...] | None = None,
        video_hidden_states: tuple[torch.Tensor, ...] | None = None,
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
            video_features (`torch.Tensor` of shape `(batch, frames, num_features)`), pixel_values (`torch.Tensor` of
                shape `(batch, frames, channels, height, width)`), *optional*: The video, as the video encoder takes
                it: features of the face in each frame, or for an image encoder its picture.
            video_attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*): 1 for frames with a face, 0
                for frames without and for padding; a row of zeros is a missing video. Defaults to all ones.
            video_times (`torch.Tensor` of shape `(batch, frames, 2)`, *optional*): Start and end, in seconds, of each
                frame; -1 where unknown.
            segment_times (`torch.Tensor` of shape `(batch, segments, 2)`, *optional*): Start and end, in seconds, of
                segments that are predicted separately, each after attention over the whole clip; -1 for padding. A
                text or a video without timestamps applies to every segment. With `label_token_ids`, the text head
                predicts from the whole text for every segment that has some of it.
            audio_hidden_states, text_hidden_states, video_hidden_states (`tuple` of `torch.Tensor` of shape
                `(batch, positions, hidden)`, *optional*): Hidden states returned by an earlier call, in place of the
                encoders' inputs; the masks are then over their positions.
            output_attentions (`bool`, *optional*): Return the cross-modal attention maps.
            output_hidden_states (`bool`, *optional*): Return the encoders' hidden states.
            return_dict (`bool`, *optional*): Return an output object (the default) rather than a tuple.

        Raises:
            ValueError: If no modality is given, or one that the model has no encoder for.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict

        encoded = {
            "audio": self._encode_signal(
                "audio",
                {"input_features": input_features, "input_values": input_values},
                audio_hidden_states,
                audio_attention_mask,
            ),
            "text": self._encode_text(input_ids, text_hidden_states, attention_mask, context_mask),
            "video": self._encode_signal(
                "video",
                {"video_features": video_features, "pixel_values": pixel_values},
                video_hidden_states,
                video_attention_mask,
            ),
        }
        given = next((mask for _, mask in encoded.values() if mask is not None), None)
        if given is None:
            raise ValueError(
                "Got neither audio (input_features or input_values) nor text (input_ids) nor video (video_features or "
                "pixel_values); give one of them."
            )
        # A modality that the whole batch lacks is one masked position.
        absent = given.new_zeros(given.shape[0], 1)
        states = {modality: encoded[modality][0] for modality in self.config.modalities}
        masks = {name: absent if encoded[name][1] is None else encoded[name][1] for name in states}
        if self.training and self.config.modality_dropout > 0:
            masks = self._drop_modalities(masks)

        # The whole clip is one span to fuse, each segment another; one call shares their matrix products.
        times = {"text": token_times, "video": video_times}
        spans = {name: mask.unsqueeze(1) for name, mask in masks.items()}
        if segment_times is not None:
            for name, mask in masks.items():
                of_segments = segment_masks(mask, self._times_of(name, states, masks, times), segment_times)
                spans[name] = torch.cat([spans[name], of_segments], dim=1)
        fused, attentions = self._fuse(states, masks, spans, times, output_attentions)
        clip = {name: values[:, 0] for name, values in fused.items()}
        segments = None
        if segment_times is not None:
            segments = MMEmoModelOutput(**{name: values[:, 1:].flatten(0, 1) for name, values in fused.items()})
        hidden_states = {f"{name}_hidden_states": states[name] for name in states if output_hidden_states}
        output = MMEmoModelOutput(**clip, **attentions, **hidden_states, segments=segments)
        return output if return_dict else output.to_tuple()

    def _encode_signal(self, modality, inputs, hidden_states, mask):
        """Returns the states of the audio or video encoder and their mask `(batch, positions)`; `None` twice without
        the modality."""
        inputs = {**inputs, f"{modality}_hidden_states": hidden_states}
        given = [name for name, value in inputs.items() if value is not None]
        if not given:
            return None, None
        tower = getattr(self, f"{modality}_tower")
        if tower is None:
            raise ValueError(f"Got {given[0]}, but this model has no {modality} encoder; leave the {modality} out.")
        if hidden_states is not None:
            return hidden_states, _ones_if_none(mask, hidden_states[-1]).bool()
        name = tower.main_input_name
        if given != [name]:
            raise ValueError(f"Got {' and '.join(given)}, but the {modality} encoder takes only {name}.")
        values = inputs[name]
        # A spectrogram named `input_features` is `(batch, channels, frames)`; all other inputs have time first.
        mask = _ones_if_none(mask, values.transpose(1, 2) if name == "input_features" else values)
        return ENCODE[modality](tower, values, mask)

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

    def _drop_modalities(self, masks: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Masks some modalities of samples that have several, with probability `modality_dropout`; each proper subset
        of them is equally likely to remain."""
        is_present = torch.stack([mask.any(dim=1) for mask in masks.values()], dim=1)
        count = is_present.sum(dim=1, keepdim=True)
        chance, share = torch.rand(2, count.shape[0], 1, device=count.device)
        # A random order of the modalities, missing ones last, of which the first 1 to `count - 1` remain.
        order = torch.rand(is_present.shape, device=count.device) + 2 * ~is_present
        is_kept = order.argsort(dim=1).argsort(dim=1) < 1 + (share * (count - 1)).floor()
        is_kept = is_kept | (chance >= self.config.modality_dropout) | (count < 2)
        return {name: mask & kept.unsqueeze(1) for (name, mask), kept in zip(masks.items(), is_kept.unbind(dim=1))}

    def _times_of(self, modality, states, masks, times) -> torch.Tensor | None:
        """Returns the start and end of each position of a modality, `(batch or 1, positions, 2)`; `None` if the batch
        lacks the modality or its times."""
        if states[modality] is None:
            return None
        if modality == "audio":
            return self._audio_times(masks["audio"])[None, :, None].expand(-1, -1, 2)
        return times[modality]

    def _fuse(self, states, masks, spans, times, output_attentions) -> tuple[dict[str, Any], dict[str, Any]]:
        """Pools and fuses spans of the clips, after cross-modal attention over the whole clips.

        Args:
            states (`dict`): Hidden states of each encoder, by modality, `None` where the batch has none.
            masks (`dict` of `torch.Tensor` of shape `(batch, positions)`): The real positions of each modality.
            spans (`dict` of `torch.Tensor` of shape `(batch, spans, positions)`): The real positions in each span.
            times (`dict` of `torch.Tensor`): `token_times` and `video_times` of [`MMEmoModel.forward`].
            output_attentions (`bool`): As there.

        Returns:
            The first seven fields of [`MMEmoModelOutput`], each `(batch, spans, ...)`, and the attention maps.
        """
        sequences, embeds = {}, {}
        for name, span in spans.items():
            sequences[name], embeds[name] = self._apply_branch(getattr(self, f"{name}_branch"), states[name], span)
        is_present = torch.stack([span.any(dim=-1) for span in spans.values()], dim=-1)
        fields = {"modality_mask": is_present} | {f"{name}_embeds": vectors for name, vectors in embeds.items()}
        if self.last_pooling is not None:
            fields["text_last_state"] = self._last_state(states["text"], masks["text"], is_present[..., 1:2])

        attentions: dict[str, tuple] = {}
        if self.fuses:
            vectors = embeds
            if self.config.attends_across:
                sequences, attentions = self._attend(sequences, states, masks, times, output_attentions)
                vectors = {
                    name: self.sequence_pooling(sequence, spans[name]).to(sequence.dtype)
                    for name, sequence in sequences.items()
                }
            voters = _fill_missing([vectors.get(name) for name in spans])
            weights = self.gate(voters, is_present)
            # Equal weights leave the vectors as they are.
            scales = len(voters) * weights.unsqueeze(-1)
            scaled = [scales[..., index, :] * vector for index, vector in enumerate(voters)]
            fields |= {"fusion_weights": weights, "fused_embeds": self.fusion(torch.cat(scaled, dim=-1))}
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

    def _attend(self, sequences, states, masks, times, output_attentions):
        """Returns the sequences after the cross-modal layers and, on request, the attention maps by output field."""
        sequences = {name: sequence for name, sequence in sequences.items() if sequence is not None}
        distances = self._distances(states, masks, times)
        maps: dict[str, tuple] = {}
        for layer in self.layers:
            sequences, layer_maps = layer(sequences, masks, distances, output_attentions)
            for name, layer_map in layer_maps.items():
                maps[f"{name}_attentions"] = (*maps.get(f"{name}_attentions", ()), layer_map)
        return sequences, maps if output_attentions else {}

    def _distances(self, states, masks, times) -> dict[tuple[str, str], torch.Tensor]:
        """Returns the gaps in time between the positions of pairs of modalities, in segments, `(batch, positions of
        the second, positions of the first)`; without pairs that the batch lacks or that have no timestamps."""
        distances = {}
        for first, second in combinations(states, 2):
            second_times = self._times_of(second, states, masks, times)
            # Audio positions have times of their own, but not every audio encoder defines them.
            first_times = None if second_times is None else self._times_of(first, states, masks, times)
            if second_times is not None and first_times is not None:
                distances[first, second] = time_gaps(second_times, first_times) / self.config.segment_seconds
        return distances

    def _audio_times(self, audio_mask: torch.Tensor) -> torch.Tensor:
        """Returns the time of each audio position; see [`audio_times`]."""
        seconds = self.config.audio_frame_seconds
        return audio_times(self.audio_tower.config, seconds, audio_mask.shape[1]).to(audio_mask.device)


def _ones_if_none(mask: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    """Returns the mask, or ones over the first two dimensions of `like`."""
    return like.new_ones(like.shape[:2], dtype=torch.long) if mask is None else mask


def _fill_missing(tensors: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """Replaces `None`, of modalities without an encoder, by zeros of the shape of the others."""
    zeros = torch.zeros_like(next(tensor for tensor in tensors if tensor is not None))
    return [zeros if tensor is None else tensor for tensor in tensors]


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
        video_tower: PreTrainedModel | None = None,
    ):
        super().__init__(config)
        self.mmemo = MMEmoModel(config, audio_tower, text_tower, video_tower)
        width, num_labels = config.fusion_hidden_size, config.num_labels
        self.audio_classifier, self.text_classifier, self.video_classifier = (
            nn.Linear(width, num_labels) if config.has_encoder(modality) else None for modality in MODALITIES
        )
        if config.label_token_ids is not None:
            self.text_classifier = nn.Linear(self.mmemo.text_tower.config.hidden_size, num_labels, bias=False)
        self.fused_classifier = nn.Linear(width, num_labels) if self.mmemo.fuses else None
        self.vote = None
        if config.is_multimodal and config.fusion in ("late", "hybrid") and config.late_fusion_weights is None:
            num_modalities = len(config.modalities)
            self.vote = ModalityGate(width, num_modalities, num_modalities + int(self.mmemo.fuses))
        self.shared_space = None if config.projection_dim is None else SharedSpace(config, config.projection_dim)
        self.post_init()

    @property
    def similarity_scale(self) -> float | None:
        """The learned factor of similarities in the shared space; `None` for a model without one."""
        return None if self.shared_space is None else self.shared_space.scale.item()

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
        video_features: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        video_attention_mask: torch.Tensor | None = None,
        video_times: torch.Tensor | None = None,
        segment_times: torch.Tensor | None = None,
        audio_hidden_states: tuple[torch.Tensor, ...] | None = None,
        text_hidden_states: tuple[torch.Tensor, ...] | None = None,
        video_hidden_states: tuple[torch.Tensor, ...] | None = None,
        labels: torch.Tensor | None = None,
        label_mask: torch.Tensor | None = None,
        loss_weight: torch.Tensor | None = None,
        caption_ids: torch.Tensor | None = None,
        caption_mask: torch.Tensor | None = None,
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
            caption_ids, caption_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): A text that belongs to
                each item, its transcript or a caption such as `"a loud, angry voice"`, as `input_ids` and
                `attention_mask`; a mask of zeros is a missing one. With it the loss is contrastive, over the pairs of
                each modality and the caption, and there must be no `labels`. Needs a text encoder and
                `config.projection_dim`.
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
            video_features=video_features,
            pixel_values=pixel_values,
            video_attention_mask=video_attention_mask,
            video_times=video_times,
            segment_times=segment_times,
            audio_hidden_states=audio_hidden_states,
            text_hidden_states=text_hidden_states,
            video_hidden_states=video_hidden_states,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        heads = self._head_logits(features)
        logits, modality_weights = self._predict(heads, features)
        segments: dict[str, Any] = {}
        if features.segments is not None:
            predicted = self._predict(self._head_logits(features.segments), features.segments)
            predictions = dict(zip(("segment_logits", "segment_modality_weights"), predicted))
            predictions |= {f"segment_{name}": vectors for name, vectors in self._project(features.segments).items()}
            segments = {name: rows.unflatten(0, (logits.shape[0], -1)) for name, rows in predictions.items()}
        projections = self._project(features)

        loss = None
        if caption_ids is not None and labels is not None:
            raise ValueError("Got labels and caption_ids, whose losses exclude each other; leave one of them out.")
        if labels is not None:
            loss = self._loss(logits, heads, features.modality_mask, labels, label_mask, loss_weight)
        if caption_ids is not None:
            loss = self._contrastive_loss(projections, features.modality_mask, caption_ids, caption_mask)
        if loss is not None and self.training:
            given = {
                "audio": (input_features, input_values, audio_hidden_states),
                "text": (input_ids, text_hidden_states),
                "video": (video_features, pixel_values, video_hidden_states),
            }
            is_complete = all(
                any(value is not None for value in values)
                for modality, values in given.items()
                if self.config.has_encoder(modality)
            )
            loss = with_all_parameters(loss, self, is_complete)
        of_heads: dict[str, Any] = {
            f"{name}_logits": heads[name] / self.config.temperature_of(name) for name in MODALITIES if name in heads
        }
        as_encoded: dict[str, Any] = {
            name: value for name, value in features.items() if name.endswith(("_attentions", "_states"))
        }
        embeds: dict[str, Any] = {name: values for name, values in features.items() if name.endswith("_embeds")}
        output = MMEmoEmotionOutput(
            loss=loss,
            logits=logits,
            **of_heads,
            modality_weights=modality_weights,
            **segments,
            **embeds,
            **projections,
            **as_encoded,
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def _head_logits(self, features: MMEmoModelOutput) -> dict[str, torch.Tensor]:
        """Returns the logits of each head by its name, `(batch, num_labels)`."""
        uses_label_tokens = self.config.label_token_ids is not None
        heads = {}
        for name in (*MODALITIES, "fused"):
            classifier = getattr(self, f"{name}_classifier")
            if classifier is not None:
                of_text = name == "text" and uses_label_tokens
                heads[name] = classifier(features.text_last_state if of_text else features[f"{name}_embeds"])
        if uses_label_tokens:
            heads["text"] = token_logits(self.config.text_config, heads["text"])
        return heads

    def _project(self, features: MMEmoModelOutput) -> dict[str, Any]:
        """Returns each modality in the shared space, `(batch, projection_dim)`, by the name of its output; nothing
        without such a space."""
        if self.shared_space is None:
            return {}
        return {
            f"{name}_projection": self.shared_space(name, features[f"{name}_embeds"])
            for name in MODALITIES
            if self.config.has_encoder(name)
        }

    def _contrastive_loss(
        self,
        projections: dict[str, Any],
        is_present: torch.Tensor,
        caption_ids: torch.Tensor,
        caption_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Returns the sum of the contrastive losses of each modality with the caption."""
        if self.shared_space is None or not self.config.has_encoder("text"):
            raise ValueError(
                f"Got caption_ids, but this model has projection_dim={self.config.projection_dim} and "
                f"{'a' if self.config.has_encoder('text') else 'no'} text encoder; the contrastive loss needs both."
            )
        caption_mask = _ones_if_none(caption_mask, caption_ids).bool()
        captions = self.mmemo(input_ids=caption_ids, attention_mask=caption_mask.long(), return_dict=True)
        vectors = self.shared_space("text", captions.text_embeds)
        texts = hash_texts(caption_ids, caption_mask)
        loss = vectors.new_zeros(())
        # Also for a modality that the batch lacks: in every loss the processes wait for each other.
        for name, has_modality in zip(self.config.modalities, is_present.unbind(dim=1)):
            if f"{name}_projection" in projections:
                rows = has_modality & caption_mask.any(dim=1)
                projected = projections[f"{name}_projection"]
                loss = loss + contrastive_loss(projected, vectors, rows, texts, self.shared_space.scale)
        return loss

    def _predict(self, heads: dict[str, torch.Tensor], features: MMEmoModelOutput):
        """Returns the logits `(batch, num_labels)`, divided by the temperature, and the modality weights
        `(batch, modalities)`."""
        logits, weights = self.combine_heads(heads, features)
        modalities, is_present = self.config.modalities, features.modality_mask
        # One for each set of modalities, the first modality counting fastest; that of all for a sample without any.
        sets = [set(compress(modalities, flags[::-1])) for flags in product((False, True), repeat=len(modalities))]
        temperatures = [self.config.temperature_of(presence_of(present or modalities)) for present in sets]
        powers = torch.tensor([2**index for index in range(len(modalities))]).to(is_present.device)
        chosen = torch.tensor(temperatures).to(logits)[(is_present * powers).sum(dim=1)]
        return logits / chosen.unsqueeze(1), weights

    def combine_heads(self, heads: dict[str, torch.Tensor], features: MMEmoModelOutput):
        """Returns the logits `(batch, num_labels)` by the configured fusion, before the division by a temperature, and
        the modality weights `(batch, modalities)`; `heads` has the logits of each head by its name."""
        is_present = features.modality_mask
        if not self.config.is_multimodal:
            (logits,) = heads.values()
            return logits, is_present.to(logits.dtype)
        if self.config.fusion in ("early", "cross_attention"):
            return heads["fused"], features.fusion_weights

        modalities = self.config.modalities
        voters = _fill_missing([heads.get(modality) for modality in modalities])
        may_vote = is_present
        if "fused" in heads:
            voters.append(heads["fused"])
            may_vote = torch.cat([is_present, is_present.sum(dim=1, keepdim=True) > 1], dim=1)
        if self.vote is None:
            # A modality of weight 0 still predicts where it is the only one.
            weights = torch.tensor(self.config.late_fusion_weights).to(voters[0])
            votes = is_present * weights.clamp(min=torch.finfo(weights.dtype).tiny)
            votes = votes / votes.sum(dim=1, keepdim=True).clamp(min=torch.finfo(votes.dtype).tiny)
        else:
            embeds = _fill_missing([features.get(f"{modality}_embeds") for modality in modalities])
            votes = self.vote(embeds, may_vote)
        if problem_type(self.config) == "single_label_classification":
            voters = [voter.log_softmax(dim=1) for voter in voters]
        logits = torch.einsum("bv,bvl->bl", votes, torch.stack(voters, dim=1))
        weights = votes[:, : len(modalities)]
        if features.fusion_weights is not None:
            weights = weights + votes[:, len(modalities) :] * features.fusion_weights
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
        rows = dict(zip(self.config.modalities, is_present.unbind(dim=1)))
        rows["fused"] = is_present.sum(dim=1) > 1
        loss = emotion_loss(self.config, logits, labels, label_mask, is_present.any(dim=1), loss_weight)
        head_losses = [
            emotion_loss(self.config, head, labels, label_mask, rows[name], loss_weight)
            for name, head in heads.items()
        ]
        return loss + self.config.modality_loss_weight * sum(head_losses)
