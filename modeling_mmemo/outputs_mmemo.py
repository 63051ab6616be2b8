"""Output classes of the models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class MMEmoModelOutput(ModelOutput):
    """Output of [`MMEmoModel`]. Fields of an encoder or a fusion that the model lacks are `None`.

    Args:
        modality_mask (`torch.Tensor` of shape `(batch, 2)`): Whether audio and text are present.
        fused_embeds (`torch.Tensor` of shape `(batch, fusion_hidden_size)`): Both modalities in one vector.
        audio_embeds, text_embeds (`torch.Tensor` of shape `(batch, fusion_hidden_size)`): Each alone, zero if missing.
        fusion_weights (`torch.Tensor` of shape `(batch, 2)`): Weights of audio and text in `fused_embeds`.
        text_last_state (`torch.Tensor` of shape `(batch, hidden)`): The text encoder's last state at the last token,
            if the model has `label_token_ids`; zero if missing.
        text_to_audio_attentions (`tuple` of `torch.Tensor` of shape `(batch, heads, tokens, audio_positions)`): For
            each cross-modal layer, the weights with which each token attends to the audio.
        audio_to_text_attentions (`tuple` of `torch.Tensor` of shape `(batch, heads, audio_positions, tokens)`): For
            each cross-modal layer, the weights with which each audio position attends to the text.
        audio_hidden_states, text_hidden_states (`tuple` of `torch.Tensor` of shape `(batch, positions, hidden)`): The
            encoders' layers, embeddings first.
        segments ([`MMEmoModelOutput`]): The first six fields for each requested segment, `(batch * segments, ...)`.
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
    """Output of [`MMEmoForEmotionRecognition`].

    Args:
        loss (`torch.Tensor` of shape `()`): The loss of the prediction plus `modality_loss_weight` times those of the
            heads.
        logits (`torch.Tensor` of shape `(batch, num_labels)`): The prediction, divided by the temperature.
        audio_logits, text_logits (`torch.Tensor` of shape `(batch, num_labels)`): The prediction from each modality
            alone, divided by its temperature; meaningless where that modality is missing.
        modality_weights (`torch.Tensor` of shape `(batch, 2)`): Weights of audio and text in the prediction; they sum
            to 1, a missing modality has 0.
        segment_logits (`torch.Tensor` of shape `(batch, segments, num_labels)`): The prediction for each requested
            segment, from its own audio and text, divided by the temperature.
        segment_modality_weights (`torch.Tensor` of shape `(batch, segments, 2)`): Weights of audio and text in those
            predictions; both are 0, and all labels equally likely, where a segment has neither.
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
