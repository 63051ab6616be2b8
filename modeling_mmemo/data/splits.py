"""Splits without leaks: no speaker or text of the development or test rows occurs in the training rows."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, Value

from modeling_mmemo.data.schema import FEATURES


SPLIT_PAIRS = (("train", "dev"), ("train", "test"), ("dev", "test"))


def leak_check(
    rows: Dataset, by: Sequence[str] = ("speaker",), between: Sequence[tuple[str, str]] = SPLIT_PAIRS
) -> None:
    """
    Checks that no value of a column occurs in two splits.

    Missing values are not compared. Speakers are compared only in rows with audio, because a text does not reveal
    the speaker's voice. Case and runs of whitespace in a value are ignored.

    Args:
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        by (`Sequence[str]`): Columns to compare, of `"speaker"` and `"text"`.
        between (`Sequence[tuple[str, str]]`): The pairs of splits to compare.

    Raises:
        ValueError: If a value occurs in both splits of a pair; the message names the first few.
    """
    unknown = [column for column in by if column not in ("speaker", "text")]
    if unknown:
        raise ValueError(f"Leaks are checked by 'speaker' and 'text', not by {unknown}.")
    # Without loading the bytes of the clips.
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
                    f"{len(shared)} {column} value(s) occur in both {one} and {other}, such as {shared[:3]}: scores "
                    f"on {other} would be too good. Split by {column}, or pass --allow_leaks."
                )


def split_by_speaker(rows: Dataset, dev_share: float, seed: int) -> Dataset:
    """
    Moves training rows to the development split: whole speakers, at least one, and single rows without a speaker.

    Args:
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`; only rows of the split `"train"` are moved.
        dev_share (`float`): Approximate share of the training rows, in (0, 1); speakers are added until it is reached.
        seed (`int`): Seed of the choice of speakers.

    Raises:
        ValueError: If `dev_share` is not in (0, 1), or there is only one speaker.
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
            f"{next(iter(indices_of))!r} is the only speaker of the training rows, and cannot be set aside. Add "
            "another speaker, or a split column."
        )
    speakers = sorted(indices_of)
    wanted = dev_share * sum(map(len, indices_of.values()))
    dev: list[int] = []
    # At least one speaker is left for training.
    for position in rng.permutation(len(speakers))[:-1]:
        if len(dev) < wanted:
            dev += indices_of[speakers[position]]
    dev += rng.permutation(without_speaker)[: round(dev_share * len(without_speaker))].tolist()
    for index in dev:
        splits[index] = "dev"
    moved = rows.remove_columns("split").add_column("split", splits, feature=Value("string"))
    return moved.select_columns(list(FEATURES))
