"""The seven shared labels, and what corpora call them."""

from modeling_mmemo.configuration_mmemo import EMOTIONS


_ALIASES = {
    "anger": "angry",
    "calm": "neutral",
    "fearful": "fear",
    "happiness": "happy",
    "joy": "happy",
    "pleasant_surprise": "surprise",
    "sadness": "sad",
    "surprised": "surprise",
}


def shared_label(label: str) -> str | None:
    """The shared label that a corpus' own `label` stands for, `None` where it has no counterpart (boredom, say)."""
    label = label.strip().lower()
    label = _ALIASES.get(label, label)
    return label if label in EMOTIONS else None
