"""Modules between the encoders and the heads: layer mix, pooling, cross-modal attention and gates.

Deliberate choices:
  - every encoder layer is standardised, then mixed by learned weights: emotion is in the middle layers of an encoder;
  - every module takes masks, and a modality that is fully masked contributes exactly 0;
  - positions are counted as integers and pooled in float32, in half-precision models too.
"""

from collections.abc import Sequence
from itertools import combinations, permutations

import torch
from torch import nn
from transformers import PreTrainedConfig

from .audio_encoder_mmemo import attendable
from .configuration_mmemo import MMEmoConfig
from .towers_mmemo import num_hidden_states


def upcast(values: torch.Tensor) -> torch.Tensor:
    """Casts values of `float16`, `bfloat16` and integer types to `float32`; returns others unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Standardization(nn.Module):
    """Shifts and scales features to mean 0 and standard deviation 1 by statistics of the training data.

    The identity until [`~Standardization.set`] is called. The scale of encoder features differs by orders of magnitude
    between dimensions, which no single learning rate suits.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def set(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Copies statistics of the same shape as the features."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.std


class LayerMix(nn.Module):
    """Standardises the layers of an encoder and sums them by learned weights.

    Source: Yang et al., "SUPERB", 2021 (weighted sum of layers).
    """

    def __init__(self, num_layers: int, hidden_size: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.standardization = Standardization(num_layers, hidden_size)

    def forward(self, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Mixes the last `num_layers` states, each `(batch, positions, hidden)`, into one tensor of that shape.

        The result is `float32` or wider: the layers' means can be hundreds of times their standard deviations.
        """
        # The weighted sum of (states - mean) / std, in one pass over each layer.
        scales = upcast(self.weights).softmax(dim=0).unsqueeze(1) / self.standardization.std
        mixed = -(scales * self.standardization.mean).sum(dim=0)
        for states, scale in zip(hidden_states[-len(scales) :], scales):
            mixed = mixed + states.to(scale.dtype) * scale
        return mixed


class SequencePooling(nn.Module):
    """Pools `(batch, positions, hidden)` over its real positions into `(batch, output_size)`; padding alone gives 0.

    With a mask per segment, `(batch, segments, positions)`, it pools each segment: `(batch, segments, output_size)`.
    The result is `float32` or wider.

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
        mask = mask.bool()
        weights = self._weights(sequence, mask)
        sequence = sequence.to(weights.dtype)
        # Autocast would round to bfloat16, and dimensions with a large mean would lose their signal.
        with torch.autocast(sequence.device.type, enabled=False):
            if self.kind != "mean_std":
                return weights @ sequence
            # Centred on the mean of all pooled positions, for the same reason.
            center = _mean_weights(mask.any(dim=1, keepdim=True), weights.dtype) @ sequence
            centered = sequence - center
            offset = weights @ centered
            variance = (weights @ centered**2 - offset**2).clamp(min=0)
        has_positions = mask.any(dim=-1, keepdim=True)
        std = torch.sqrt(variance + 1e-6) * has_positions
        return torch.cat([center * has_positions + offset, std], dim=-1)

    def _weights(self, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns the weight of each position, `(batch, segments, positions)`."""
        dtype = torch.promote_types(sequence.dtype, torch.float32)
        if self.attention is not None:
            scores = self.attention(sequence.to(self.attention.weight.dtype)).transpose(1, 2).to(dtype)
            return scores.masked_fill(~mask, torch.finfo(dtype).min).softmax(dim=-1) * mask
        if self.kind == "mean" or self.kind == "mean_std":
            return _mean_weights(mask, dtype)
        # Booleans are counted in int64.
        ordinal = mask.cumsum(dim=-1)
        chosen = 1 if self.kind == "cls" else mask.sum(dim=-1, keepdim=True)
        return (mask & (ordinal == chosen)).to(dtype)


def _mean_weights(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns equal weights over the real positions, with sum 1, or 0 where there are none."""
    return mask.to(dtype) / mask.sum(dim=-1, keepdim=True).clamp(min=1)


class ModalityBranch(nn.Module):
    """Turns the layers of one encoder into a sequence for cross-modal attention and a vector for the heads.

    With the layer mix `"concat"`, each layer is pooled separately and the vectors are concatenated; the sequence is
    still the weighted sum of the layers.
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

    def forward(
        self, hidden_states: tuple[torch.Tensor, ...], mask: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """
        Args:
            hidden_states (`tuple` of `torch.Tensor` of shape `(batch, positions, hidden)`): The encoder's layers.
            mask (`torch.Tensor` of shape `(batch, spans, positions)`): The positions of each span to pool.

        Returns:
            The sequence `(batch, positions, width)`, or `None` without cross-modal attention, and a vector for each
            span, `(batch, spans, width)`, 0 for a span without positions.
        """
        dtype = self.mix.weights.dtype
        mixed = self.mix(hidden_states)
        pooled = self.standardization(self.pool(hidden_states, mixed, mask))
        embeds = self.embedding(pooled.to(dtype)) * mask.any(dim=-1, keepdim=True)
        return (None if self.projection is None else self.projection(mixed.to(dtype))), embeds

    def pool(self, hidden_states: tuple[torch.Tensor, ...], mixed: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pools the layers, or their mix `mixed`, over the positions of each span: `(batch, spans, pooled_size)`."""
        layers = hidden_states if self.pools_each_layer else (mixed,)
        return torch.cat([self.pooling(states.to(mixed.dtype), mask) for states in layers], dim=-1)


class CrossAttention(nn.Module):
    """Attention of one modality to another; a missing context adds exactly 0."""

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
            queries (`torch.Tensor` of shape `(batch, q, width)`): The sequence that attends.
            context (`torch.Tensor` of shape `(batch, k, width)`): The sequence that is attended to.
            context_mask (`torch.Tensor` of shape `(batch, k)`): Its real positions.
            bias (`torch.Tensor` of shape `(batch, heads, q, k)`, *optional*): Added to the scores.
            output_attentions (`bool`): Return the attention map.

        Returns:
            The attended values `(batch, q, width)` and, with `output_attentions`, the map `(batch, heads, q, k)`.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, queries), (self.k_proj, context), (self.v_proj, context))
        )
        bias = q.new_zeros(1, 1, 1, 1) if bias is None else bias
        bias = torch.where(attendable(context_mask)[:, None, None, :], bias, torch.finfo(q.dtype).min)
        has_context = context_mask.any(dim=1)[:, None, None, None]
        weights = None
        if output_attentions:
            scores = upcast(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5) + bias
            weights = scores.softmax(dim=-1).to(q.dtype) * has_context
            attended = weights @ v
        else:
            attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)) * has_context
        return self.out_proj(attended.transpose(1, 2).flatten(2)) * has_context.squeeze(-1), weights


class CrossModalLayer(nn.Module):
    """Each modality attends to every other one, then passes through its own feed-forward layer.

    With timestamps, the scores carry a bias from the distance in time: the gap between two positions, in segments,
    times a slope that is learned per pair of modalities and head, so that a word attends most to the audio around it.

    Source: Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", 2019 (cross-modal
    attention); Press et al., "Train Short, Test Long", 2022 (linear biases).
    """

    def __init__(self, config: MMEmoConfig):
        super().__init__()
        width = config.fusion_hidden_size
        modalities = [modality for modality in config.modalities if config.has_encoder(modality)]
        self.modalities = tuple(modalities)
        self.pairs = tuple(combinations(modalities, 2))
        self.slope = nn.Parameter(torch.zeros(len(self.pairs) * config.num_attention_heads))
        for context, query in permutations(modalities, 2):
            self.add_module(f"{query}_to_{context}", CrossAttention(config))
        for modality in modalities:
            self.add_module(f"{modality}_norm", nn.LayerNorm(width))
        for modality in modalities:
            self.add_module(f"{modality}_feed_forward", self._feed_forward(width))
        self.dropout = nn.Dropout(config.fusion_dropout)

    @staticmethod
    def _feed_forward(width: int) -> nn.Sequential:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(
        self,
        sequences: dict[str, torch.Tensor],
        masks: dict[str, torch.Tensor],
        distances: dict[tuple[str, str], torch.Tensor],
        output_attentions: bool,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | None]]:
        """
        Args:
            sequences (`dict` of `torch.Tensor` of shape `(batch, positions, width)`): By modality.
            masks (`dict` of `torch.Tensor` of shape `(batch, positions)`): Their real positions.
            distances (`dict` of `torch.Tensor` of shape `(batch, positions of the second, positions of the first)`):
                In segments, by pair of modalities, for the pairs of which both have times.
            output_attentions (`bool`): Return the attention maps.

        Returns:
            The sequences, and the maps by name (`"text_to_audio"`), `None` unless requested.
        """
        normed = {name: self.get_submodule(f"{name}_norm")(sequence) for name, sequence in sequences.items()}
        attended, maps = dict(sequences), {}
        slopes = nn.functional.softplus(self.slope).unflatten(0, (len(self.pairs), -1))
        for (first, second), slope in zip(self.pairs, slopes):
            bias = None
            if (first, second) in distances:
                bias = -slope[:, None, None] * distances[first, second].unsqueeze(1)
            reverse = None if bias is None else bias.transpose(-1, -2)
            for query, context, query_bias in ((second, first, bias), (first, second, reverse)):
                attention = self.get_submodule(f"{query}_to_{context}")
                values, maps[f"{query}_to_{context}"] = attention(
                    normed[query], normed[context], masks[context], query_bias, output_attentions
                )
                attended[query] = attended[query] + self.dropout(values)
        for name, sequence in attended.items():
            attended[name] = sequence + self.dropout(self.get_submodule(f"{name}_feed_forward")(sequence))
        return attended, maps


class ModalityGate(nn.Module):
    """Weights of several voters given all modalities, `(..., voters)`; they sum to 1, a missing voter has 0.

    A newly initialised gate weighs all voters equally.
    """

    def __init__(self, width: int, num_modalities: int, num_voters: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_voters, num_modalities * width))
        self.bias = nn.Parameter(torch.zeros(num_voters))

    def forward(self, vectors: Sequence[torch.Tensor], voters: torch.Tensor) -> torch.Tensor:
        """
        Args:
            vectors (`Sequence` of `torch.Tensor` of shape `(..., width)`): The vector of each modality.
            voters (`torch.Tensor` of shape `(..., voters)`): Which voters are present.
        """
        scores = nn.functional.linear(torch.cat(list(vectors), dim=-1), self.weight, self.bias)
        return scores.masked_fill(~voters, torch.finfo(scores.dtype).min).softmax(dim=-1) * voters
