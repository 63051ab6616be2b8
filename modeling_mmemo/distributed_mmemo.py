"""Training on several devices with batches that lack a modality.

Under DDP every process waits in the backward pass for the gradients of all parameters of all processes. A process
whose batch has no text has none for the text encoder, and the others wait for it until they time out; unless it takes
part with gradients of zero, as here.
"""

import torch
from torch import distributed, nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging


logger = logging.get_logger(__name__)


def is_distributed() -> bool:
    """Whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP or ZeRO-3 gathers parameters layer by layer, so that they cannot be used outside their layers."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    parts = (FullyShardedDataParallel, FSDPModule)
    return is_deepspeed_zero3_enabled() or any(isinstance(module, parts) for module in model.modules())


def with_all_parameters(loss: torch.Tensor, model: nn.Module, is_complete: bool) -> torch.Tensor:
    """
    Returns the loss, with a gradient of zero for every trained parameter that did not contribute to it.

    Args:
        loss (`torch.Tensor`): The loss of this process.
        model (`nn.Module`): The model.
        is_complete (`bool`): Whether the batch has all modalities of the model.
    """
    if not is_distributed():
        return loss
    if not is_sharded(model):
        return loss + 0.0 * sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad)
    if not is_complete:
        logger.warning_once(
            "A batch of this process lacks audio or text. Under FSDP and ZeRO-3 the processes wait for each other "
            "forever unless the batches of all of them lack it: train with EmotionTrainer (train.py), or give every "
            "batch both modalities, with a mask of zeros for the missing one."
        )
    return loss
