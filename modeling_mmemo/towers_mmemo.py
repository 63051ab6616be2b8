"""Running any encoder of the Hub so that a sample gives the same states alone and in any batch.

What differs from one architecture to the next stands in this file and nowhere else:
  - an encoder-decoder (Whisper, T5) is reduced to its encoder, a pooler that nothing reads is left out;
  - text is turned right-padded before its tower and back after it, so positions are right under either padding side;
  - audio encoders whose first norm runs over time (wav2vec 2.0 and HuBERT base) see clips of one length at a time, for
    padding would leak into that norm;
  - the Audio Spectrogram Transformer has no mask: it was trained on padded patches.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .audio_encoder_mmemo import MMEmoAudioEncoder, attendable
from .configuration_mmemo import MMEmoAudioConfig


AST = "audio-spectrogram-transformer"


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A tower with new weights, of the architecture that its `config` names."""
    dtype = torch.get_default_dtype()
    if config.model_type == MMEmoAudioConfig.model_type:
        return MMEmoAudioEncoder._from_config(config, dtype=dtype)
    return strip_tower(AutoModel.from_config(config, dtype=dtype))


def load_tower(name_or_path: str, dtype: torch.dtype, **kwargs) -> PreTrainedModel:
    """The pretrained tower of a Hub name or folder.

    Raises:
        ValueError: If the checkpoint lacks weights that the tower needs.
    """
    model, info = AutoModel.from_pretrained(name_or_path, dtype=dtype, output_loading_info=True, **kwargs)
    tower = strip_tower(model)
    _refuse_incomplete(name_or_path, model, tower, info)
    return tower


@torch.no_grad()
def load_language_model(
    name_or_path: str, token_ids: Sequence[int], dtype: torch.dtype, **kwargs
) -> tuple[PreTrainedModel, torch.Tensor]:
    """The tower of a causal language model, and the rows `(tokens, hidden)` of its output layer for some tokens.

    Raises:
        ValueError: If the checkpoint lacks weights, if the model reads what comes after a token, or if it says how
            likely a token is otherwise than by those rows.
    """
    model, info = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, output_loading_info=True, **kwargs)
    model, tower = model.eval(), model.base_model
    read = torch.tensor([[*token_ids[:1], *token_ids]], device=tower.device)
    states, fewer = (encode_text(tower, ids, torch.ones_like(ids))[-1] for ids in (read, read[:, :1]))
    if _differ(fewer, states[:, :1]):
        raise ValueError(
            f"{name_or_path} reads what comes after a word, so it is no causal language model; it predicts no words."
        )
    _refuse_incomplete(name_or_path, model, model, info)
    rows = model.get_output_embeddings().weight[list(token_ids)].detach().clone()
    said = model(read).logits[0, -1, list(token_ids)]
    if _differ(token_logits(tower.config, states[0, -1] @ rows.T), said):
        raise ValueError(
            f"The {tower.config.model_type} {name_or_path} does more to its logits than is known here, so its "
            "tower and label_token_ids would answer otherwise than it does; train a head instead."
        )
    return tower, rows


def _differ(values: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether by more than what weights of 4 bits, computed in bfloat16, may differ from call to call."""
    return bool((values - expected).norm() > 0.02 * expected.norm())


def token_logits(config: PreTrainedConfig, logits: torch.Tensor) -> torch.Tensor:
    """What a language model makes of the products of a state with the rows of its output layer.

    Source: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", 2024 (soft-capping).
    """
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _refuse_incomplete(name_or_path: str, model: PreTrainedModel, tower: PreTrainedModel, info: dict) -> None:
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if module is tower)
    kept = {f"{prefix}{key}" for key in tower.state_dict()}
    if missing := sorted(kept & set(info["missing_keys"])):
        raise ValueError(f"{name_or_path} lacks weights: {missing}. Give a complete checkpoint.")


def strip_tower(model: PreTrainedModel) -> PreTrainedModel:
    """Reduces a model to the encoder whose states are read."""
    tower = model.get_encoder() if model.config.is_encoder_decoder else model
    if "pooler" in dict(tower.named_children()):
        tower.pooler = None
    return tower


def num_hidden_states(config: PreTrainedConfig) -> int:
    """How many hidden states a tower returns: its embeddings, then one a layer."""
    return config.num_hidden_layers + 1


def _states(output: BaseModelOutput) -> tuple[torch.Tensor, ...]:
    """The hidden states, the last one behind the tower's closing norm, which some towers leave out of their list."""
    return (*output.hidden_states[:-1], output.last_hidden_state)


def max_tokens(tower: PreTrainedModel) -> int | None:
    """How many tokens a text tower has positions for; `None` if they are not counted out."""
    limit = getattr(tower.config, "max_position_embeddings", None)
    for module in tower.modules():
        # RoBERTa and its kin count positions from behind the padding index.
        if isinstance(module, nn.Embedding) and module.num_embeddings == limit and module.padding_idx is not None:
            return limit - module.padding_idx - 1
    return limit


def encode_text(tower: PreTrainedModel, input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Hidden states of a text tower, each `(batch, tokens, hidden)`, under left or right padding.

    Args:
        input_ids (`torch.Tensor` of shape `(batch, tokens)`): Token ids.
        mask (`torch.Tensor` of shape `(batch, tokens)`): 1 for real tokens; a row of zeros is a missing text.

    Raises:
        ValueError: If there are more tokens than the tower has positions for.
    """
    limit = max_tokens(tower)
    if limit is not None and input_ids.shape[1] > limit:
        raise ValueError(
            f"The text has {input_ids.shape[1]} tokens, but the {tower.config.model_type} tower has {limit} "
            "positions; truncate it in the processor (truncation=True, max_length=...)."
        )
    # A padding token that was added to the tokenizer alone has no row among the tower's embeddings.
    input_ids = input_ids * mask.bool()
    mask = attendable(mask)
    # Where each token goes: the real ones to the front, the padding behind them. No sort, which ONNX has not.
    is_real = mask.bool()
    target = torch.where(is_real, is_real.cumsum(dim=1), is_real.sum(dim=1, keepdim=True) + (~is_real).cumsum(dim=1))
    target = target - 1
    output = tower(
        input_ids=torch.zeros_like(input_ids).scatter(1, target, input_ids),
        attention_mask=torch.zeros_like(mask).scatter(1, target, mask),
        output_hidden_states=True,
        return_dict=True,
    )
    target = target.unsqueeze(-1)
    return tuple(states.gather(1, target.expand_as(states)) for states in _states(output))


def encode_audio(
    tower: PreTrainedModel, inputs: torch.Tensor, mask: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Hidden states of an audio tower, each `(batch, positions, hidden)`, and their mask `(batch, positions)`.

    Args:
        inputs (`torch.Tensor`): What the tower reads: `(batch, samples)` for a waveform, `(batch, channels, frames)`
            or `(batch, frames, channels)` for a spectrogram.
        mask (`torch.Tensor` of shape `(batch, samples or frames)`): 1 for real ones, padding on the right; a row of
            zeros is a missing clip.
    """
    if tower.config.model_type == AST:
        states = _states(tower(inputs, output_hidden_states=True, return_dict=True))
        return states, mask.any(dim=1, keepdim=True).expand(-1, states[-1].shape[1])

    if getattr(tower.config, "feat_extract_norm", None) == "group":
        states = _encode_by_length(tower, inputs, attendable(mask).sum(dim=1))
    else:
        states = _states(tower(inputs, attention_mask=attendable(mask), output_hidden_states=True, return_dict=True))
    lengths = tower._get_feat_extract_output_lengths(mask.sum(dim=1))
    positions = torch.arange(states[-1].shape[1], device=mask.device)
    return states, (positions < lengths.unsqueeze(1)) & mask.any(dim=1, keepdim=True)


def _encode_by_length(tower: PreTrainedModel, inputs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Encodes the clips of each length apart, without padding, and pads their states to one length."""
    positions = int(tower._get_feat_extract_output_lengths(lengths.max()))
    order, groups = [], []
    for length in lengths.unique():
        rows = (lengths == length).nonzero().squeeze(1)
        group = _states(tower(inputs[rows, :length], output_hidden_states=True, return_dict=True))
        order.append(rows)
        groups.append([nn.functional.pad(states, (0, 0, 0, positions - states.shape[1])) for states in group])
    back = torch.cat(order).argsort()
    return tuple(torch.cat(layer)[back] for layer in zip(*groups))


def seconds_per_position(config: PreTrainedConfig) -> float | None:
    """Seconds between two positions of an audio tower; `None` if its configuration does not tell."""
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
    """The time, in seconds, at the middle of each position; -1 for positions that stand for no time. `(positions,)`"""
    if config.model_type != AST:
        return (torch.arange(num_positions) + 0.5) * seconds
    # Two special tokens, then the patches, all times of the lowest band first.
    columns = (config.max_length - config.patch_size) // config.time_stride + 1
    times = torch.arange(num_positions - 2) % columns * seconds + config.patch_size / 2 * 0.01
    return torch.cat([times.new_full((2,), -1.0), times])
