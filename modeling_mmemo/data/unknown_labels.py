"""Rows whose label is not among those of the model: counted by label, and an error if there are many of them."""

import shlex
from collections.abc import Mapping, Sequence

from transformers.utils import logging

from modeling_mmemo.data.labels import single_label


logger = logging.get_logger(__name__)

MAX_UNKNOWN_SHARE = 0.05
# Number of label names that a message lists.
NAMED = 20


def check_unknown_labels(
    source: str,
    counts: Mapping[str, int],
    labels: Sequence[str],
    label_map: Mapping[str, str] | None = None,
    expected: Sequence[str] = (),
    allow: bool = False,
) -> None:
    """
    Logs the rows that are left out because of their label, by label, and raises an error if they are many.

    Args:
        source (`str`): Name of the source, for messages.
        counts (`Mapping[str, int]`): Number of rows by the label name of the source; several names joined by `|`.
        labels (`Sequence[str]`): The labels to keep.
        label_map (`Mapping[str, str]`, *optional*): Replacements for label names, see [`single_label`].
        expected (`Sequence[str]`): Label names that are left out by the protocol of a known corpus, without an error.
        allow (`bool`, *optional*, defaults to `False`): Whether any number of rows may be left out.

    Raises:
        ValueError: If more than 5 % of the rows have a label that is neither kept nor expected.
    """
    unknown = {name: count for name, count in counts.items() if single_label(name, labels, label_map) is None}
    if not unknown:
        return
    rows = sum(counts.values())
    unexpected = {name: count for name, count in unknown.items() if name not in expected}
    if sum(unexpected.values()) > MAX_UNKNOWN_SHARE * rows and not allow:
        raise ValueError(
            f"{source}: {_share(unexpected, rows)} have a label that is not one of {list(labels)}: "
            f"{listed(unexpected)}. {remedy(counts, unexpected, labels)}, or leave these rows out "
            "(--allow_unknown_labels)."
        )
    logger.warning(
        f"{source}: left out {_share(unknown, rows)}, whose label is not one of {list(labels)} or is ambiguous: "
        f"{listed(unknown)}."
    )


def listed(counts: Mapping[str, int]) -> str:
    """Returns label names with their numbers of rows, the most frequent first: `"calm (12), bored (3)"`."""
    ranked = _ranked(counts)
    names = [f"{name or '(no label)'} ({counts[name]})" for name in ranked[:NAMED]]
    rest = len(ranked) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest else "")


def _ranked(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def _share(counts: Mapping[str, int], rows: int) -> str:
    left_out = sum(counts.values())
    return f"{left_out} of {rows} rows ({left_out / rows:.1%})"


def remedy(counts: Mapping[str, int], unknown: Mapping[str, int], labels: Sequence[str]) -> str:
    """Returns what to do about rows with unknown labels, given the numbers of all rows and of these, by label name."""
    found = sorted(name for name in counts if name and "|" not in name)
    example = next(filter(None, _ranked(unknown)), "theirs")
    own = shlex.join(found) if 0 < len(found) <= NAMED else "LABEL LABEL ..."
    return (
        f"Train a model with the labels of the data (--labels {own}), map label names to those of the model "
        f"(--label_map {shlex.quote(f'{example}={labels[0]}')})"
    )
