"""Names of the modalities, and of the sets of them that an item can have."""

from collections.abc import Collection
from itertools import combinations


MODALITIES = ("audio", "text", "video")
# The model input that marks the real positions of each.
MASKS = {"audio": "audio_attention_mask", "text": "attention_mask", "video": "video_attention_mask"}


def presence_of(modalities: Collection[str]) -> str:
    """
    Returns the name of a set of modalities, a key of `temperature` and `conformal_quantiles` of a configuration.

    Args:
        modalities (`Collection[str]`): Some of `MODALITIES`, in any order; at least one.

    Returns:
        `str`: `"both"` for audio and text; otherwise the names, joined by `"+"`: `"text"`, `"audio+video"`.
    """
    present = [modality for modality in MODALITIES if modality in modalities]
    return "both" if present == ["audio", "text"] else "+".join(present)


PRESENCES = tuple(
    presence_of(present) for size in range(1, len(MODALITIES) + 1) for present in combinations(MODALITIES, size)
)
