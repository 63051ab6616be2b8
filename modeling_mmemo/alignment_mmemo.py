"""Alignment of audio positions, tokens, video frames and segments in time.

Times are in seconds from the start of the clip; a negative time is unknown. They are compared in float32 or wider, in
half-precision models too: at 100 s, neighbouring `bfloat16` numbers are half a second apart.
"""

import torch
from transformers import PreTrainedConfig

from .fusion_mmemo import upcast
from .towers_mmemo import position_times, seconds_per_position


# The duration, in seconds, of a word that starts and ends at one time.
SHORTEST_WORD = 1e-3


def audio_times(audio_config: PreTrainedConfig, frame_seconds: float | None, num_positions: int) -> torch.Tensor:
    """Returns the time of the middle of each audio position, `(num_positions,)`; -1 for one without a time.

    Args:
        audio_config (`PreTrainedConfig`): Configuration of the audio encoder.
        frame_seconds (`float`, *optional*): Seconds between two positions, if its configuration lacks them.
        num_positions (`int`): The number of positions.

    Raises:
        ValueError: If neither of them defines the seconds between two positions.
    """
    seconds = frame_seconds or seconds_per_position(audio_config)
    if seconds is None:
        raise ValueError(
            "Word and segment timestamps need the seconds between two outputs of the "
            f"{audio_config.model_type} encoder; set audio_frame_seconds in the configuration."
        )
    return position_times(audio_config, num_positions, seconds)


def segment_masks(mask: torch.Tensor, times: torch.Tensor | None, segment_times: torch.Tensor) -> torch.Tensor:
    """Returns the positions of each segment, `(batch, segments, positions)`.

    Args:
        mask (`torch.Tensor` of shape `(batch, positions)`): The real positions of the clip.
        times (`torch.Tensor` of shape `(batch or 1, positions, 2)`, *optional*): Start and end of each position.
            A position without a time is in every segment that holds a timed one, and in all segments if no position of
            the sample has a time.
        segment_times (`torch.Tensor` of shape `(batch, segments, 2)`): Start and end of each segment; a negative start
            is padding, a segment without positions.
    """
    mask = mask.unsqueeze(1)
    segment_start, segment_end = upcast(segment_times).split(1, dim=-1)
    is_real = segment_start >= 0
    if times is None:
        return mask & is_real
    start, end = upcast(times).unsqueeze(1).unbind(dim=-1)
    is_timed = mask & (start >= 0)
    inside = is_timed & (start < segment_end) & (torch.maximum(end, start + SHORTEST_WORD) > segment_start)
    untimed = mask & ~is_timed & (inside.any(dim=-1, keepdim=True) | ~is_timed.any(dim=-1, keepdim=True))
    return (inside | untimed) & is_real


def time_gaps(times: torch.Tensor, other_times: torch.Tensor) -> torch.Tensor:
    """Returns the seconds between positions of two modalities, `(batch, positions, other_positions)`.

    The gap is 0 where the positions overlap, or where either has no time.

    Args:
        times (`torch.Tensor` of shape `(batch or 1, positions, 2)`): Start and end of each position, such as those of
            the word of a token.
        other_times (`torch.Tensor` of shape `(batch or 1, other_positions, 2)`): Those of the other modality.
    """
    start, end = upcast(times).split(1, dim=-1)
    other_start, other_end = upcast(other_times).unsqueeze(1).unbind(dim=-1)
    gaps = torch.maximum(start - other_end, other_start - end).clamp(min=0)
    return gaps * ((start >= 0) & (other_start >= 0))
