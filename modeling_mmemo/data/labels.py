"""The seven shared labels, and what corpora call them."""

from collections.abc import Mapping, Sequence

from modeling_mmemo.configuration_mmemo import EMOTIONS


# IEMOCAP's "excited" is not here: counting it as happy is common practice, but the user's choice (label_map).
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
    """The one of `labels` that a corpus' own name stands for, `None` where there is none (boredom, say).

    A name that is in `labels` stands for itself, so that a model of finer labels gets them; any other stands for its
    shared counterpart. Case and surrounding blanks do not count.
    """
    name = raw.strip().lower()
    known = {label.lower(): label for label in labels}
    return known.get(name) or known.get(_ALIASES.get(name, name))


def single_label(raw: str, labels: Sequence[str] = EMOTIONS, label_map: Mapping[str, str] | None = None) -> str | None:
    """[`label_of`] for a cell that may hold several names joined by `|`: `None` unless all stand for one label.

    Args:
        raw (`str`): `"joy"`, or `"anger|annoyance"`.
        labels (`Sequence[str]`): The labels to choose from.
        label_map (`Mapping[str, str]`, *optional*): Other names for a corpus' own; looked up first.
    """
    renamed = {theirs.strip().lower(): ours for theirs, ours in (label_map or {}).items()}
    names = [name.strip().lower() for name in raw.split("|")]
    found = {label_of(renamed.get(name, name), labels) for name in names}
    return found.pop() if len(found) == 1 else None
