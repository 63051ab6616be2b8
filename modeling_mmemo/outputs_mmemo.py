"""Output classes of the models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class MMEmoModelOutput(ModelOutput):
    """Output of [`MMEmoModel`]. Fields of an encoder or a fusion that the model lacks are `None`.

    `modalities` is 2, audio and text, or 3 for a model with a video encoder; see [`~MMEmoConfig.modalities`].

    Args:
        modality_mask (`torch.Tensor` of shape `(batch, modalities)`): Whether each modality is present.
        fused_embeds (`torch.Tensor` of shape `(batch, fusion_hidden_size)`): All modalities in one vector.
        audio_embeds, text_embeds, video_embeds (`torch.Tensor` of shape `(batch, fusion_hidden_size)`): Each alone,
            zero if missing.
        fusion_weights (`torch.Tensor` of shape `(batch, modalities)`): Weights of the modalities in `fused_embeds`.
        text_last_state (`torch.Tensor` of shape `(batch, hidden)`): The text encoder's last state at the last token,
            if the model has `label_token_ids`; zero if missing.
        text_to_audio_attentions, audio_to_text_attentions, video_to_audio_attentions, audio_to_video_attentions,
        video_to_text_attentions, text_to_video_attentions (`tuple` of `torch.Tensor` of shape `(batch, heads,
        positions of the first, positions of the second)`): For each cross-modal layer, the weights with which each
            position of the first modality attends to the second. Positions are tokens of a text, frames of a video.
        audio_hidden_states, text_hidden_states, video_hidden_states (`tuple` of `torch.Tensor` of shape `(batch,
        positions, hidden)`): The encoders' layers, embeddings first.
        segments ([`MMEmoModelOutput`]): The first seven fields for each requested segment, `(batch * segments, ...)`.
    """

    modality_mask: torch.Tensor
    fused_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    fusion_weights: torch.Tensor | None = None
    text_last_state: torch.Tensor | None = None
    text_to_audio_attentions: tuple[torch.Tensor, ...] | None = None
    audio_to_text_attentions: tuple[torch.Tensor, ...] | None = None
    video_to_audio_attentions: tuple[torch.Tensor, ...] | None = None
    audio_to_video_attentions: tuple[torch.Tensor, ...] | None = None
    video_to_text_attentions: tuple[torch.Tensor, ...] | None = None
    text_to_video_attentions: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None
    video_hidden_states: tuple[torch.Tensor, ...] | None = None
    segments: "MMEmoModelOutput | None" = None


@dataclass
class MMEmoEmotionOutput(ModelOutput):
    """Output of [`MMEmoForEmotionRecognition`].

    Args:
        loss (`torch.Tensor` of shape `()`): The loss of the prediction plus `modality_loss_weight` times those of the
            heads.
        logits (`torch.Tensor` of shape `(batch, num_labels)`): The prediction, divided by the temperature.
        audio_logits, text_logits, video_logits (`torch.Tensor` of shape `(batch, num_labels)`): The prediction from
            each modality alone, divided by its temperature; meaningless where that modality is missing.
        modality_weights (`torch.Tensor` of shape `(batch, modalities)`): Weights of audio, text and, for a model with
            a video encoder, video in the prediction; they sum to 1, a missing modality has 0.
        segment_logits (`torch.Tensor` of shape `(batch, segments, num_labels)`): The prediction for each requested
            segment, from its own part of every modality, divided by the temperature.
        segment_modality_weights (`torch.Tensor` of shape `(batch, segments, modalities)`): The weights in those
            predictions; all are 0, and all labels equally likely, where a segment has no modality.
        audio_embeds, text_embeds, video_embeds, fused_embeds (`torch.Tensor` of shape `(batch, fusion_hidden_size)`):
            As in [`MMEmoModelOutput`].
        audio_projection, text_projection, video_projection (`torch.Tensor` of shape `(batch, projection_dim)`): Each
            modality in the shared space, a vector of length 1, or 0 if missing; for models with a `projection_dim`.
        segment_audio_projection, segment_text_projection, segment_video_projection (`torch.Tensor` of shape `(batch,
            segments, projection_dim)`): The same for each requested segment.
        text_to_audio_attentions, audio_to_text_attentions, video_to_audio_attentions, audio_to_video_attentions,
        video_to_text_attentions, text_to_video_attentions, audio_hidden_states, text_hidden_states,
        video_hidden_states: As in [`MMEmoModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    audio_logits: torch.Tensor | None = None
    text_logits: torch.Tensor | None = None
    video_logits: torch.Tensor | None = None
    modality_weights: torch.Tensor | None = None
    segment_logits: torch.Tensor | None = None
    segment_modality_weights: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    video_embeds: torch.Tensor | None = None
    fused_embeds: torch.Tensor | None = None
    audio_projection: torch.Tensor | None = None
    text_projection: torch.Tensor | None = None
    video_projection: torch.Tensor | None = None
    segment_audio_projection: torch.Tensor | None = None
    segment_text_projection: torch.Tensor | None = None
    segment_video_projection: torch.Tensor | None = None
    text_to_audio_attentions: tuple[torch.Tensor, ...] | None = None
    audio_to_text_attentions: tuple[torch.Tensor, ...] | None = None
    video_to_audio_attentions: tuple[torch.Tensor, ...] | None = None
    audio_to_video_attentions: tuple[torch.Tensor, ...] | None = None
    video_to_text_attentions: tuple[torch.Tensor, ...] | None = None
    text_to_video_attentions: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None
    video_hidden_states: tuple[torch.Tensor, ...] | None = None
