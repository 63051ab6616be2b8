"""The parts between towers and heads: layer mix, pooling, cross-modal attention, gates.

Deliberate choices:
  - every layer of a tower is standardized, then mixed by learned weights: emotion sits in the middle of an encoder;
  - every part takes masks, and a modality that is masked out whole adds exactly nothing.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig

from .configuration_mmemo import MMEmoConfig
from .towers_mmemo import num_hidden_states


class Standardization(nn.Module):
    """Brings features to mean 0 and standard deviation 1 by statistics of training data; does nothing until set.

    What encoders give differs by orders of magnitude between dimensions, which no learning rate suits.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def set(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Takes over statistics of the features' shape."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.std


class LayerMix(nn.Module):
    """Standardizes the layers of a tower and sums them by learned weights.

    Source: Yang et al., "SUPERB", 2021 (weighted sum of layers).
    """

    def __init__(self, num_layers: int, hidden_size: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.standardization = Standardization(num_layers, hidden_size)

    def forward(self, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Mixes the last `layers` of the states, each `(batch, positions, hidden)`, into one such tensor."""
        # The weighted sum of (states - mean) / std, in one pass over each layer.
        scales = self.weights.softmax(dim=0).unsqueeze(1) / self.standardization.std
        mixed = -(scales * self.standardization.mean).sum(dim=0)
        for states, scale in zip(hidden_states[-len(scales) :], scales):
            mixed = mixed + states.to(scale.dtype) * scale
        return mixed


class SequencePooling(nn.Module):
    """Pools `(batch, positions, hidden)` over its real positions into `(batch, output_size)`; all-padding gives 0.

    With a mask a segment, `(batch, segments, positions)`, it pools each segment: `(batch, segments, output_size)`.

    Source: Desplanques et al., "ECAPA-TDNN", 2020 (statistics pooling); Lin et al., "A Structured Self-attentive
    Sentence Embedding", 2017 (`"attention"`).
    """

    def __init__(self, kind: str, hidden_size: int):
        super().__init__()
        self.kind = kind
        self.output_size = 2 * hidden_size if kind == "mean_std" else hidden_size
        self.attention = nn.Linear(hidden_size, 1) if kind == "attention" else None

    def forward(self, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if mask.dim() == 2:
            return self(sequence, mask.unsqueeze(1)).squeeze(1)
        mask = mask.to(sequence.dtype)
        if self.attention is not None:
            scores = self.attention(sequence).transpose(1, 2).to(sequence.dtype)
            weights = scores.masked_fill(mask == 0, torch.finfo(sequence.dtype).min).softmax(dim=-1) * mask
        elif self.kind == "cls":
            weights = mask * (mask.cumsum(dim=-1) == 1)
        elif self.kind == "last":
            weights = mask * (mask.cumsum(dim=-1) == mask.sum(dim=-1, keepdim=True))
        else:
            weights = mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)
        # Autocast would round to bfloat16, and dimensions of large mean would lose their signal.
        with torch.autocast(sequence.device.type, enabled=False):
            if self.kind != "mean_std":
                return weights @ sequence
            # Around the mean of all that is pooled, for the same reason.
            there = mask.any(dim=1, keepdim=True).to(sequence.dtype)
            center = (there / there.sum(dim=-1, keepdim=True).clamp(min=1)) @ sequence
            centered = sequence - center
            offset = weights @ centered
            variance = (weights @ centered**2 - offset**2).clamp(min=0)
        is_there = mask.any(dim=-1, keepdim=True)
        std = torch.sqrt(variance + 1e-6) * is_there
        return torch.cat([center * is_there + offset, std], dim=-1)


class ModalityBranch(nn.Module):
    """From the layers of one tower to a sequence to attend to and a vector to classify.

    With the layer mix `"concat"` the vector is made of all layers, each pooled by itself; the sequence is their
    weighted sum all the same.
    """

    def __init__(self, tower_config: PreTrainedConfig, pooling: str, layer_mix: str, config: MMEmoConfig):
        super().__init__()
        width = config.fusion_hidden_size
        num_layers = 1 if layer_mix == "last" else num_hidden_states(tower_config)
        self.pools_each_layer = layer_mix == "concat"
        self.mix = LayerMix(num_layers, tower_config.hidden_size)
        self.pooling = SequencePooling(pooling, tower_config.hidden_size)
        pooled_size = self.pooling.output_size * (num_layers if self.pools_each_layer else 1)
        self.standardization = Standardization(pooled_size)
        self.embedding = nn.Sequential(
            nn.Dropout(config.fusion_dropout),
            nn.Linear(pooled_size, width),
            nn.LayerNorm(width),
            nn.GELU(),
            nn.Dropout(config.fusion_dropout),
        )
        self.projection = None
        if config.attends_across:
            self.projection = nn.Sequential(nn.Linear(tower_config.hidden_size, width), nn.LayerNorm(width))

    def forward(self, hidden_states: tuple[torch.Tensor, ...], mask: torch.Tensor):
        """The sequence `(batch, positions, width)`, or `None` if nothing attends, and a vector for each mask.

        Args:
            hidden_states (`tuple` of `torch.Tensor` of shape `(batch, positions, hidden)`): The tower's layers.
            mask (`torch.Tensor` of shape `(batch, masks, positions)`): What each vector, `(batch, masks, width)`, is
                pooled over.
        """
        mixed = self.mix(hidden_states)
        pooled = self.pool(hidden_states, mixed, mask)
        embeds = self.embedding(self.standardization(pooled)) * mask.any(dim=-1, keepdim=True)
        return (None if self.projection is None else self.projection(mixed)), embeds

    def pool(self, hidden_states: tuple[torch.Tensor, ...], mixed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The layers, or what they are `mixed` into, over each mask's positions: `(batch, masks, pooled_size)`."""
        layers = hidden_states if self.pools_each_layer else (mixed,)
        return torch.cat([self.pooling(states.to(mixed.dtype), mask) for states in layers], dim=-1)


class CrossAttention(nn.Module):
    """Attention of one modality to the other; where the other is missing it adds nothing."""

    def __init__(self, config: MMEmoConfig):
        super().__init__()
        width = config.fusion_hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        queries: torch.Tensor,
        context: torch.Tensor,
        context_mask: torch.Tensor,
        bias: torch.Tensor | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            queries (`torch.Tensor` of shape `(batch, q, width)`): Who asks.
            context (`torch.Tensor` of shape `(batch, k, width)`): Who is asked.
            context_mask (`torch.Tensor` of shape `(batch, k)`): What of it is real.
            bias (`torch.Tensor` of shape `(batch, heads, q, k)`, *optional*): Added to the scores.

        Returns:
            The attended values `(batch, q, width)` and, on request, the map `(batch, heads, q, k)`.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, queries), (self.k_proj, context), (self.v_proj, context))
        )
        bias = q.new_zeros(1, 1, 1, 1) if bias is None else bias
        bias = torch.where(context_mask[:, None, None, :], bias, torch.finfo(q.dtype).min)
        there = context_mask.any(dim=1)[:, None, None, None]
        weights = None
        if output_attentions:
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(dim=-1) * there
            attended = weights @ v
        else:
            attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias) * there
        return self.out_proj(attended.transpose(1, 2).flatten(2)) * there.squeeze(-1), weights


class CrossModalLayer(nn.Module):
    """Text asks audio and audio asks text, then each passes through a feed-forward layer of its own.

    With word times the scores carry a bias from the distance in time: the gap between a word and a sound, in segments,
    times a learned slope a head, so that a word looks first at the sound around it.

    Source: Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", 2019 (cross-modal
    attention); Press et al., "Train Short, Test Long", 2022 (linear biases).
    """

    def __init__(self, config: MMEmoConfig):
        super().__init__()
        width = config.fusion_hidden_size
        self.slope = nn.Parameter(torch.zeros(config.num_attention_heads))
        self.text_to_audio = CrossAttention(config)
        self.audio_to_text = CrossAttention(config)
        self.audio_norm = nn.LayerNorm(width)
        self.text_norm = nn.LayerNorm(width)
        self.audio_feed_forward = self._feed_forward(width)
        self.text_feed_forward = self._feed_forward(width)
        self.dropout = nn.Dropout(config.fusion_dropout)

    @staticmethod
    def _feed_forward(width: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(
        self,
        audio: torch.Tensor,
        text: torch.Tensor,
        audio_mask: torch.Tensor,
        text_mask: torch.Tensor,
        distance: torch.Tensor | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            audio, text (`torch.Tensor` of shape `(batch, audio_positions or tokens, width)`): The two sequences.
            audio_mask, text_mask (`torch.Tensor` of shape `(batch, audio_positions or tokens)`): Their real positions.
            distance (`torch.Tensor` of shape `(batch, tokens, audio_positions)`, *optional*): In segments.

        Returns:
            Both sequences, and both attention maps or `None`.
        """
        text_bias = audio_bias = None
        if distance is not None:
            text_bias = -nn.functional.softplus(self.slope)[:, None, None] * distance.unsqueeze(1)
            audio_bias = text_bias.transpose(-1, -2)
        asking_audio, asking_text = self.audio_norm(audio), self.text_norm(text)
        heard, text_map = self.text_to_audio(asking_text, asking_audio, audio_mask, text_bias, output_attentions)
        read, audio_map = self.audio_to_text(asking_audio, asking_text, text_mask, audio_bias, output_attentions)
        audio, text = audio + self.dropout(read), text + self.dropout(heard)
        audio = audio + self.dropout(self.audio_feed_forward(audio))
        text = text + self.dropout(self.text_feed_forward(text))
        return audio, text, text_map, audio_map


class ModalityGate(nn.Module):
    """Weights over voters from what was heard and read; `(..., voters)`, sum 1, 0 for a voter who is not there.

    A new gate weighs all voters alike.
    """

    def __init__(self, width: int, num_voters: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_voters, 2 * width))
        self.bias = nn.Parameter(torch.zeros(num_voters))

    def forward(self, audio: torch.Tensor, text: torch.Tensor, voters: torch.Tensor) -> torch.Tensor:
        scores = nn.functional.linear(torch.cat([audio, text], dim=-1), self.weight, self.bias)
        return scores.masked_fill(~voters, torch.finfo(scores.dtype).min).softmax(dim=-1) * voters
