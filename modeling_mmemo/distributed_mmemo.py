"""Training on several devices: batches that lack a modality, and losses over the batches of all processes.

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


def gather_rows(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """
    Gathers the rows of all processes, in the order of the processes, with their gradients.

    All processes must call it equally often; their numbers of rows may differ.

    Args:
        tensors (`torch.Tensor` of shape `(rows, ...)`): Tensors of as many rows each.

    Returns:
        `tuple[list[torch.Tensor], int]`: Tensors with the rows of all processes, and the position of the first row of
        this process among them.
    """
    if not is_distributed():
        return list(tensors), 0
    # Imported here: a build of torch without `distributed` lacks it.
    from torch.distributed.nn.functional import all_gather

    count = torch.tensor([len(tensors[0])], device=tensors[0].device)
    found = [torch.zeros_like(count) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, count)
    counts = [int(one) for one in found]
    gathered = []
    for tensor in tensors:
        missing = max(counts) - len(tensor)
        padded = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
        if tensor.requires_grad:
            parts = all_gather(padded)
        else:
            parts = [torch.zeros_like(padded) for _ in counts]
            distributed.all_gather(parts, padded)
        gathered.append(torch.cat([part[:size] for part, size in zip(parts, counts)]))
    return gathered, sum(counts[: distributed.get_rank()])
