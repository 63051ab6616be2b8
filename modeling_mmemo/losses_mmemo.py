"""Training losses of the heads, over the labels that are known for each sample.

Deliberate choices:
  - losses are summed and divided by the batch size, so that every sample weighs the same whichever modalities the
    others have: batches on several processes, or accumulated ones, add up to the loss of one batch of them all;
  - losses are computed in float32 or wider, in half-precision models too;
  - ignored values are replaced before the loss is computed, so that they give neither a NaN nor a gradient.
"""

import torch
from torch import nn

from .configuration_mmemo import MMEmoConfig
from .fusion_mmemo import upcast


IGNORED_LABEL = -100


def problem_type(config: MMEmoConfig) -> str:
    """Returns `config.problem_type`, or its default: one label is a regression, several are classes."""
    if config.problem_type is not None:
        return config.problem_type
    return "regression" if config.num_labels == 1 else "single_label_classification"


def emotion_loss(
    config: MMEmoConfig,
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_mask: torch.Tensor | None,
    rows: torch.Tensor,
    loss_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the loss of some rows of a batch, divided by the size of the batch.

    Args:
        config (`MMEmoConfig`): Problem type, class weights, label smoothing and focal exponent.
        logits (`torch.Tensor` of shape `(batch, num_labels)`): The logits of one head.
        labels (`torch.Tensor`): `(batch,)` class indices, -100 for an ignored row, for a single label; otherwise
            `(batch, num_labels)` values, NaN for a missing one.
        label_mask (`torch.Tensor` of shape `(batch, num_labels)`, *optional*): 1 for the labels included in the
            loss. The true class of a row is always included.
        rows (`torch.Tensor` of shape `(batch,)`): A mask, true for the rows included in the loss.
        loss_weight (`torch.Tensor` of shape `(batch,)`, *optional*): Weight of each row; 1 by default.

    Returns:
        `torch.Tensor` of shape `()`: The loss.
    """
    logits = upcast(logits)
    known = torch.ones_like(logits, dtype=torch.bool) if label_mask is None else label_mask.bool()
    kind = problem_type(config)
    if kind == "single_label_classification":
        rows = rows & (labels != IGNORED_LABEL)
        losses = cross_entropy(config, logits, labels.masked_fill(~rows, 0), known)
    else:
        labels = labels.to(logits.dtype).view_as(logits)
        known = known & ~labels.isnan()
        labels = labels.masked_fill(~known, 0)
        loss_of = nn.functional.mse_loss if kind == "regression" else nn.functional.binary_cross_entropy_with_logits
        losses = loss_of(logits, labels, reduction="none")
        losses = (losses * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)
    if loss_weight is not None:
        losses = losses * loss_weight.to(losses)
    return (losses * rows).sum() / len(rows)


def cross_entropy(
    config: MMEmoConfig, logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """Returns the cross-entropy, `(batch,)`, of class indices over the labels that are `known`, `(batch, num_labels)`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017; Szegedy et al., "Rethinking the Inception
    Architecture for Computer Vision", 2016 (label smoothing).
    """
    labels = labels.unsqueeze(1)
    known = known.scatter(1, labels, True)
    log_probs = logits.masked_fill(~known, torch.finfo(logits.dtype).min).log_softmax(dim=1)
    target = log_probs.gather(1, labels).squeeze(1)
    mean = log_probs.masked_fill(~known, 0).sum(dim=1) / known.sum(dim=1)
    losses = -((1 - config.label_smoothing) * target + config.label_smoothing * mean)
    if config.focal_gamma > 0:
        # At a probability of exactly 1 a power below 1 has no finite gradient.
        error = (1 - target.exp()).clamp(min=torch.finfo(target.dtype).tiny)
        losses = losses * error**config.focal_gamma
    if config.class_weights is not None:
        losses = losses * torch.tensor(config.class_weights).to(losses)[labels.squeeze(1)]
    return losses
