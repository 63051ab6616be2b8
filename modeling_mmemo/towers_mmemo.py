"""Runs any encoder of the Hub (a "tower") so that a sample gets the same states alone and in any batch.

All differences between architectures are handled in this file:
  - an encoder-decoder (Whisper, T5) is reduced to its encoder, and an unused pooler is dropped;
  - text is moved to right padding before its encoder and back afterwards, so positions are correct for either padding
    side;
  - audio encoders whose first norm runs over time (wav2vec 2.0 and HuBERT base) encode clips of one length at a time,
    because padding would leak into that norm;
  - the Audio Spectrogram Transformer takes no mask: it was trained on padded patches.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .audio_encoder_mmemo import MMEmoAudioEncoder, attendable
from .configuration_mmemo import MMEmoAudioConfig, MMEmoVideoConfig
from .video_encoder_mmemo import MMEmoVideoEncoder


AST = "audio-spectrogram-transformer"
# The input of image encoders, for which a video is a batch of pictures.
IMAGE_INPUT = "pixel_values"
# Weights of 4 bits, computed in bfloat16, differ by this much, relatively, from call to call.
STATE_TOLERANCE = 0.02


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Returns a newly initialised encoder of the architecture of `config`."""
    dtype = torch.get_default_dtype()
    if config.model_type == MMEmoAudioConfig.model_type:
        return MMEmoAudioEncoder._from_config(config, dtype=dtype)
    if config.model_type == MMEmoVideoConfig.model_type:
        return MMEmoVideoEncoder._from_config(config, dtype=dtype)
    return strip_tower(AutoModel.from_config(config, dtype=dtype))


def load_tower(name_or_path: str, dtype: torch.dtype, modality: str, **kwargs: Any) -> PreTrainedModel:
    """Loads a pretrained encoder of a modality from the Hub or a folder.

    For video, a checkpoint with encoders of images and of text (CLIP) is reduced to its image encoder.

    Raises:
        ValueError: If the checkpoint lacks weights of the encoder.
    """
    if modality == "video" and "config" not in kwargs:
        config = AutoConfig.from_pretrained(name_or_path, **kwargs)
        kwargs["config"] = getattr(config, "vision_config", config)
    model, info = AutoModel.from_pretrained(name_or_path, dtype=dtype, output_loading_info=True, **kwargs)
    tower = strip_tower(model)
    _check_complete(name_or_path, model, tower, info)
    return tower


@torch.no_grad()
def load_language_model(
    name_or_path: str, token_ids: Sequence[int], dtype: torch.dtype, **kwargs: Any
) -> tuple[PreTrainedModel, torch.Tensor]:
    """Loads the encoder of a causal language model, and the rows of its output layer for some tokens.

    Args:
        name_or_path (`str`): Hub name or folder.
        token_ids (`Sequence[int]`): The tokens.
        dtype (`torch.dtype`): Data type of the weights.
        kwargs: Passed to `from_pretrained`.

    Returns:
        The encoder and the rows `(tokens, hidden)`.

    Raises:
        ValueError: If the checkpoint lacks weights, if the model attends to later tokens, or if its logits are not the
            products of the last state with those rows.
    """
    model, info = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, output_loading_info=True, **kwargs)
    model, tower = model.eval(), model.base_model
    probe = torch.tensor([[*token_ids[:1], *token_ids]], device=tower.device)
    states, first_state = (encode_text(tower, ids, torch.ones_like(ids))[-1] for ids in (probe, probe[:, :1]))
    if _differ(first_state, states[:, :1]):
        raise ValueError(
            f"{name_or_path} attends to later tokens, so it is not a causal language model; label_token_ids needs one."
        )
    _check_complete(name_or_path, model, model, info)
    rows = model.get_output_embeddings().weight[list(token_ids)].detach().clone()
    expected = model(probe).logits[0, -1, list(token_ids)]
    if _differ(token_logits(tower.config, states[0, -1] @ rows.T), expected):
        raise ValueError(
            f"The {tower.config.model_type} model {name_or_path} transforms its logits in an unsupported way, so "
            "label_token_ids would give other predictions than the model itself; train a head instead."
        )
    return tower, rows


def _differ(values: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((values - expected).norm() > STATE_TOLERANCE * expected.norm())


def token_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    """Returns a language model's logits, given the products of its last state with rows of its output layer.

    Source: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024 (soft-capping).
    """
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _check_complete(name_or_path: str, model: PreTrainedModel, tower: PreTrainedModel, info: dict) -> None:
    """Raises if the checkpoint of `model` lacks weights of its part `tower`."""
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is tower)
    needed = {f"{prefix}{key}" for key in tower.state_dict()}
    if missing := sorted(needed & set(info["missing_keys"])):
        raise ValueError(f"{name_or_path} lacks weights: {missing}. Give a complete checkpoint.")


def strip_tower(model: PreTrainedModel) -> PreTrainedModel:
    """Reduces a model to the encoder whose hidden states are used."""
    tower = model.get_encoder() if model.config.is_encoder_decoder else model
    if "pooler" in dict(tower.named_children()):
        tower.pooler = None
    return tower


def num_hidden_states(config: PreTrainedConfig) -> int:
    """Returns the number of hidden states of an encoder: its embeddings, then one per layer."""
    return config.num_hidden_layers + 1


def _states(output: BaseModelOutput) -> tuple[torch.Tensor, ...]:
    """Returns the hidden states, the last one after the closing norm, which some encoders leave out of their list."""
    return (*output.hidden_states[:-1], output.last_hidden_state)


def max_tokens(tower: PreTrainedModel) -> int | None:
    """Returns the maximum number of tokens of a text encoder; `None` if its positions are not a table."""
    limit = getattr(tower.config, "max_position_embeddings", None)
    for module in tower.modules():
        # RoBERTa and its relatives count positions from the padding index on.
        if isinstance(module, nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None:
            return limit - module.padding_idx - 1
    return limit


def encode_text(tower: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns the hidden states of a text encoder, each `(batch, tokens, hidden)`, for left or right padding.

    Args:
        tower (`PreTrainedModel`): The encoder.
        input_ids (`torch.Tensor` of shape `(batch, tokens)`): Token ids.
        mask (`torch.Tensor` of shape `(batch, tokens)`): 1 for real tokens; a row of zeros is a missing text.

    Raises:
        ValueError: If there are more tokens than the encoder has positions.
    """
    limit = max_tokens(tower)
    if limit is not None and input_ids.shape[1] > limit:
        raise ValueError(
            f"The text has {input_ids.shape[1]} tokens, but the {tower.config.model_type} encoder has {limit} "
            "positions; truncate it in the processor (truncation=True, max_length=...)."
        )
    # A padding token that was added to the tokenizer alone has no row in the embeddings.
    input_ids = input_ids * mask.bool()
    is_real = attendable(mask)
    # The target of each token: real ones move to the front, padding after them. No sort: ONNX has no such operator.
    target = torch.where(is_real, is_real.cumsum(dim=1), is_real.sum(dim=1, keepdim=True) + (~is_real).cumsum(dim=1))
    target = target - 1
    output = tower(
        input_ids=torch.zeros_like(input_ids).scatter(1, target, input_ids),
        attention_mask=torch.zeros_like(target).scatter(1, target, is_real.long()),
        output_hidden_states=True,
        return_dict=True,
    )
    target = target.unsqueeze(-1)
    return tuple(states.gather(1, target.expand_as(states)) for states in _states(output))


def encode_audio(
    tower: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Returns the hidden states of an audio encoder, each `(batch, positions, hidden)`, and their mask
    `(batch, positions)`.

    Args:
        tower (`PreTrainedModel`): The encoder.
        inputs (`torch.Tensor`): The encoder's input: `(batch, samples)` for a waveform, `(batch, channels, frames)` or
            `(batch, frames, channels)` for a spectrogram.
        mask (`torch.Tensor` of shape `(batch, samples or frames)`): 1 for real samples or frames, padding on the
            right; a row of zeros is a missing clip.
    """
    # Lengths are sums of the mask, which half precision could not count.
    mask = mask.bool().long()
    if tower.config.model_type == AST:
        states = _states(tower(inputs, output_hidden_states=True, return_dict=True))
        return states, mask.any(dim=1, keepdim=True).expand(-1, states[-1].shape[1])

    if getattr(tower.config, "feat_extract_norm", None) == "group":
        states = _encode_by_length(tower, inputs, attendable(mask).sum(dim=1))
    else:
        attention_mask = attendable(mask).long()
        states = _states(tower(inputs, attention_mask=attention_mask, output_hidden_states=True, return_dict=True))
    lengths = tower._get_feat_extract_output_lengths(mask.sum(dim=1))
    positions = torch.arange(states[-1].shape[1], device=mask.device)
    return states, (positions < lengths.unsqueeze(1)) & mask.any(dim=1, keepdim=True)


def encode_video(
    tower: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Returns the hidden states of a video encoder, each `(batch, frames, hidden)`, and their mask `(batch, frames)`.

    An image encoder encodes each frame separately; a frame's state is the mean over its patches.

    Args:
        tower (`PreTrainedModel`): The encoder.
        inputs (`torch.Tensor`): `(batch, frames, num_features)` for a network over frames, or
            `(batch, frames, channels, height, width)` for an image encoder.
        mask (`torch.Tensor` of shape `(batch, frames)`): 1 for frames with a face; a row of zeros is a missing video.

    Raises:
        ValueError: If the layers of an image encoder differ in width, as those of convolutional networks do.
    """
    mask = mask.bool()
    if tower.main_input_name != IMAGE_INPUT:
        output = tower(inputs, attention_mask=mask.long(), output_hidden_states=True, return_dict=True)
        return _states(output), mask
    # Frames without a face are not encoded, except in a graph, which has no branches.
    is_whole = torch.compiler.is_compiling() or not mask.any()
    images = inputs.flatten(0, 1) if is_whole else inputs[mask]
    states = _states(tower(images, output_hidden_states=True, return_dict=True))
    shapes = {tuple(layer.shape[2:]) for layer in states}
    if shapes != {(tower.config.hidden_size,)}:
        raise ValueError(
            f"The layers of the {tower.config.model_type} encoder differ in shape: {sorted(shapes)}; use an image "
            "encoder whose layers have one width, such as ViT, CLIP or DINOv2."
        )
    frames = [layer.mean(dim=1) for layer in states]
    if is_whole:
        return tuple(layer.unflatten(0, mask.shape) for layer in frames), mask
    placed = [layer.new_zeros(*mask.shape, layer.shape[1]) for layer in frames]
    return tuple(zeros.masked_scatter(mask.unsqueeze(-1), layer) for zeros, layer in zip(placed, frames)), mask


def _encode_by_length(tower: PreTrainedModel, inputs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Encodes the clips of each length separately, without padding, and pads their states to one length."""
    positions = int(tower._get_feat_extract_output_lengths(lengths.max()))
    order, groups = [], []
    for length in lengths.unique():
        rows = (lengths == length).nonzero().squeeze(1)
        group = _states(tower(inputs[rows, :length], output_hidden_states=True, return_dict=True))
        order.append(rows)
        groups.append([nn.functional.pad(states, (0, 0, 0, positions - states.shape[1])) for states in group])
    original_order = torch.cat(order).argsort()
    return tuple(torch.cat(layer)[original_order] for layer in zip(*groups))


# Text has other arguments.
ENCODE = {"audio": encode_audio, "video": encode_video}


def seconds_per_position(config: PreTrainedConfig) -> float | None:
    """Returns the seconds between two positions of an audio encoder; `None` if its configuration lacks them."""
    if config.model_type == MMEmoAudioConfig.model_type:
        return 2 * config.frame_seconds
    if config.model_type == "whisper":
        return 0.02
    if config.model_type == AST:
        return 0.01 * config.time_stride
    if conv_stride := getattr(config, "conv_stride", None):
        return math.prod(conv_stride) / 16_000
    return None


def position_times(config: PreTrainedConfig, num_positions: int, seconds: float) -> torch.Tensor:
    """Returns the time, in seconds, of the middle of each position, `(positions,)`; -1 for one without a time."""
    if config.model_type != AST:
        return (torch.arange(num_positions) + 0.5) * seconds
    # Two special tokens, then the patches: all times of the lowest band, then of the next.
    columns = (config.max_length - config.patch_size) // config.time_stride + 1
    times = torch.arange(num_positions - 2) % columns * seconds + config.patch_size / 2 * 0.01
    return torch.cat([times.new_full((2,), -1.0), times])
