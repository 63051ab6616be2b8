"""Splits without leaks: nothing that a model is judged by may stand in what it was trained on."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, Value

from modeling_mmemo.data.schema import FEATURES


SPLIT_PAIRS = (("train", "dev"), ("train", "test"), ("dev", "test"))


def leak_check(
    rows: Dataset, by: Sequence[str] = ("speaker",), between: Sequence[tuple[str, str]] = SPLIT_PAIRS
) -> None:
    """Checks that no value of a column stands in two splits.

    Rows without a value are not compared. Speakers are compared among rows with audio only: those of written dialogue
    lend no voice. Case and runs of blanks in a value do not count.

    Args:
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        by (`Sequence[str]`): Some of `"speaker"` and `"text"`.
        between (`Sequence[tuple[str, str]]`): The pairs of splits to compare.

    Raises:
        ValueError: If a value stands on both sides; the first few are named.
    """
    unknown = [column for column in by if column not in ("speaker", "text")]
    if unknown:
        raise ValueError(f"Leaks can be looked for by 'speaker' and 'text', not by {unknown}.")
    # The clips' bytes stay where they are.
    has_audio = rows.select_columns("audio").with_format("arrow")[:]["audio"].is_valid().to_pylist()
    for column in by:
        found: dict[str, set[str]] = {}
        for value, split, voiced in zip(rows[column], rows["split"], has_audio):
            if value is not None and (voiced or column != "speaker"):
                found.setdefault(split, set()).add(" ".join(value.lower().split()))
        for one, other in between:
            shared = sorted(found.get(one, set()) & found.get(other, set()))
            if shared:
                raise ValueError(
                    f"{len(shared)} {column} value(s) stand in both {one} and {other}, such as {shared[:3]}: scores "
                    f"on {other} would be too good. Split by {column}, or pass --allow_leaks."
                )


def split_by_speaker(rows: Dataset, dev_share: float, seed: int) -> Dataset:
    """Sets training rows aside for development: whole speakers, at least one; single rows of those without a speaker.

    Args:
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`; only those of split `"train"` are moved.
        dev_share (`float`): About how much of the training rows, in (0, 1). Speakers are added until it is reached.
        seed (`int`): The same seed sets the same speakers aside.

    Raises:
        ValueError: If `dev_share` is not in (0, 1), or a single speaker would be all that there is.
    """
    if not 0 < dev_share < 1:
        raise ValueError(f"dev_share={dev_share} must be in (0, 1).")
    rng = np.random.default_rng(seed)
    splits, indices_of = list(rows["split"]), {}
    for index, (speaker, split) in enumerate(zip(rows["speaker"], splits)):
        if split == "train":
            indices_of.setdefault(speaker, []).append(index)
    without_speaker = indices_of.pop(None, [])
    if len(indices_of) == 1:
        raise ValueError(
            f"All training rows with a speaker are of {next(iter(indices_of))!r}, who cannot be set aside. Add "
            "another speaker, or give the rows a split column."
        )
    speakers = sorted(indices_of)
    wanted = dev_share * sum(map(len, indices_of.values()))
    dev: list[int] = []
    # One speaker is always left to train on.
    for position in rng.permutation(len(speakers))[:-1]:
        if len(dev) < wanted:
            dev += indices_of[speakers[position]]
    dev += rng.permutation(without_speaker)[: round(dev_share * len(without_speaker))].tolist()
    for index in dev:
        splits[index] = "dev"
    moved = rows.remove_columns("split").add_column("split", splits, feature=Value("string"))
    return moved.select_columns(list(FEATURES))
