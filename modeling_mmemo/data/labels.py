"""Maps the label names of corpora to the seven shared labels."""

from collections.abc import Mapping, Sequence

from modeling_mmemo.configuration_mmemo import EMOTIONS


# IEMOCAP's "excited" is not here: mapping it to happy is common practice, but the user's choice (label_map).
_ALIASES = {
    "anger": "angry",
    "calm": "neutral",
    "disgusted": "disgust",
    "fearful": "fear",
    "happiness": "happy",
    "joy": "happy",
    "joyful": "happy",
    "neutrality": "neutral",
    "pleasant_surprise": "surprise",
    "pleasant_surprised": "surprise",
    "ps": "surprise",
    "sadness": "sad",
    "surprised": "surprise",
}


def label_of(raw: str, labels: Sequence[str] = EMOTIONS) -> str | None:
    """
    Returns the label for a label name of a corpus, or `None` if there is none, as for boredom.

    A name in `labels` is its own label, so that a model can have finer labels; any other name is mapped to a shared
    label. Case and surrounding whitespace are ignored.
    """
    name = raw.strip().lower()
    known = {label.lower(): label for label in labels}
    return known.get(name) or known.get(_ALIASES.get(name, name))


def single_label(raw: str, labels: Sequence[str] = EMOTIONS, label_map: Mapping[str, str] | None = None) -> str | None:
    """
    Returns [`label_of`] for a cell with one or several names, joined by `|`; `None` unless all have the same label.

    Args:
        raw (`str`): `"joy"`, or `"anger|annoyance"`.
        labels (`Sequence[str]`, *optional*): The valid labels.
        label_map (`Mapping[str, str]`, *optional*): Replacements for names of the corpus, applied first.
    """
    renamed = {theirs.strip().lower(): ours for theirs, ours in (label_map or {}).items()}
    names = [name.strip().lower() for name in raw.split("|")]
    found = {label_of(renamed.get(name, name), labels) for name in names}
    return found.pop() if len(found) == 1 else None
