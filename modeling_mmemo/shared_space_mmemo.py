"""The space that contrastive pre-training shares between modalities: projections, similarities and their loss.

Deliberate choices:
  - the vectors of all processes are gathered with their gradients, so that the gradient of several processes is that
    of one process with their batches in one;
  - rows with the same text are not negatives of each other: a short description repeats within a batch;
  - the learned temperature is bounded as in CLIP: without a bound, similarities overflow in half precision.
"""

import math

import torch
from torch import nn

from .configuration_mmemo import MMEmoConfig
from .distributed_mmemo import gather_rows
from .fusion_mmemo import upcast


# Similarities are multiplied by 1 to 100.
MAX_LOGIT_SCALE = math.log(100)
# Odd, so that its powers modulo 2 ** 64 never become 0.
_HASH_BASE = 6364136223846793005


class SharedSpace(nn.Module):
    """Projects the vector of each modality into one space, in which the voice and the words of an item are close to
    each other and to a description of how it sounds.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
    """

    def __init__(self, config: MMEmoConfig, projection_dim: int):
        super().__init__()
        width = config.fusion_hidden_size
        names = [name for name in config.modalities if config.has_encoder(name)]
        self.projections = nn.ModuleDict({name: nn.Linear(width, projection_dim, bias=False) for name in names})
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))

    @property
    def scale(self) -> torch.Tensor:
        """The factor of similarities in the loss, the inverse of the temperature: 1 to 100."""
        return self.logit_scale.clamp(0, MAX_LOGIT_SCALE).exp()

    def forward(self, modality: str, embeds: torch.Tensor) -> torch.Tensor:
        """Returns vectors of length 1, `(..., projection_dim)`, of a modality's vectors, `(..., width)`; 0 of 0."""
        return nn.functional.normalize(self.projections[modality](embeds), dim=-1)


def contrastive_loss(
    first: torch.Tensor,
    second: torch.Tensor,
    rows: torch.Tensor,
    texts: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Returns the symmetric contrastive loss of pairs, divided by the size of the batch.

    Each vector of a pair is classified among all vectors of the other kind, over all processes: the other one of the
    pair is its class.

    Args:
        first, second (`torch.Tensor` of shape `(batch, projection_dim)`): The vectors of the pairs, of length 1.
        rows (`torch.Tensor` of shape `(batch,)`): A mask, true for the rows that are a pair.
        texts (`torch.Tensor` of shape `(batch,)`): An integer for the text of each pair, see [`hash_texts`]; rows with
            the same one are not negatives of each other.
        scale (`torch.Tensor` of shape `()`): The factor of the similarities.

    Returns:
        `torch.Tensor` of shape `()`: The mean of both directions, summed over the pairs.

    Source: Radford et al., 2021, as [`SharedSpace`].
    """
    first, second, scale = upcast(first), upcast(second), upcast(scale)
    (all_first, all_second, all_rows, all_texts), offset = gather_rows(first, second, rows, texts)
    own = torch.arange(len(rows), device=rows.device) + offset
    is_candidate = all_rows & (texts.unsqueeze(1) != all_texts)
    is_candidate = is_candidate.scatter(1, own.unsqueeze(1), True)
    losses = torch.zeros_like(scale)
    for queries, candidates in ((first, all_second), (second, all_first)):
        similarities = (scale * queries @ candidates.T).masked_fill(~is_candidate, torch.finfo(scale.dtype).min)
        losses = losses + nn.functional.cross_entropy(similarities, own, reduction="none")
    return (losses * rows).sum() / (2 * len(rows))


def hash_texts(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Returns an integer for each text, `(batch,)`, from its tokens, `(batch, tokens)`: the same for the same text,
    whatever its padding, and in practice for no other."""
    mask = attention_mask.bool()
    # Arithmetic of 64-bit integers modulo 2 ** 64.
    powers = torch.full_like(input_ids, _HASH_BASE, dtype=torch.long).masked_fill(~mask, 1).cumprod(dim=1)
    return ((input_ids.long() + 1) * powers * mask).sum(dim=1)
