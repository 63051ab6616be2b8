"""Splits without leaks: no speaker or text of the development or test rows occurs in the training rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as compute
from datasets import Dataset, Value
from transformers.utils import logging

from modeling_mmemo.data.schema import FEATURES, FILE_COLUMNS, comparable_text


logger = logging.get_logger(__name__)

SPLIT_PAIRS = (("train", "dev"), ("train", "test"), ("dev", "test"))


def leak_check(
    rows: Dataset, by: Sequence[str] = ("speaker",), between: Sequence[tuple[str, str]] = SPLIT_PAIRS
) -> None:
    """
    Checks that no value of a column occurs in two splits.

    Missing values are not compared. Speakers are compared only in rows with audio or video, because a text reveals
    neither voice nor face of the speaker. Case and runs of whitespace in a value are ignored.

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
    stored = rows.select_columns(list(FILE_COLUMNS)).with_format("arrow")[:]
    has_file = compute.or_(stored["audio"].is_valid(), stored["video"].is_valid()).to_pylist()
    for column in by:
        found: dict[str, set[str]] = {}
        for value, split, is_recorded in zip(rows[column], rows["split"], has_file):
            if value is not None and (is_recorded or column != "speaker"):
                found.setdefault(split, set()).add(comparable_text(value))
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

    Rows without a speaker that share a file stay together. A warning gives the number of clips without a speaker,
    because their speakers may be in both splits.

    Args:
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`; only rows of the split `"train"` are moved.
        dev_share (`float`): Approximate share of the training rows, in (0, 1); speakers are added until it is reached.
        seed (`int`): Seed of the choice of speakers.

    Raises:
        ValueError: If `dev_share` is not in (0, 1), or there is only one speaker, or only one clip or text without a
            speaker.
    """
    if not 0 < dev_share < 1:
        raise ValueError(f"dev_share={dev_share} must be in (0, 1).")
    rng = np.random.default_rng(seed)
    splits = list(rows["split"])
    speakers: dict[str, list[int]] = {}
    without: dict[str | int, list[int]] = {}
    files = _files(rows)
    for index, (speaker, split) in enumerate(zip(rows["speaker"], splits)):
        if split == "train" and speaker is not None:
            speakers.setdefault(speaker, []).append(index)
        elif split == "train":
            without.setdefault(files[index] or index, []).append(index)
    if len(speakers) == 1:
        raise ValueError(
            f"{next(iter(speakers))!r} is the only speaker of the training rows, and cannot be set aside. Add "
            "another speaker, or a split column."
        )
    if not speakers and len(without) == 1:
        raise ValueError(
            "The training rows have only one clip or text, which cannot be set aside. Add rows, or a split column."
        )
    fewest = 0 if speakers else 1
    dev = _draw_groups([speakers[speaker] for speaker in sorted(speakers)], dev_share * _size(speakers), rng)
    dev += _draw_groups(list(without.values()), max(round(dev_share * _size(without)), fewest), rng)
    if clips := sum(len(group) for key, group in without.items() if isinstance(key, str)):
        logger.warning(
            f"{clips} clips have no speaker and are set aside one by one: the development scores are too good if a "
            "voice is in both splits. Add a column speaker (--columns speaker=NAME)."
        )
    for index in dev:
        splits[index] = "dev"
    moved = rows.remove_columns("split").add_column("split", splits, feature=Value("string"))
    return moved.select_columns(list(FEATURES))


def _size(groups: Mapping[Any, list[int]]) -> int:
    return sum(map(len, groups.values()))


def _draw_groups(groups: list[list[int]], wanted: float, rng: np.random.Generator) -> list[int]:
    """Returns the rows of random groups, until there are as many as wanted; one group is always left."""
    drawn: list[int] = []
    for position in rng.permutation(len(groups))[:-1]:
        if len(drawn) < wanted:
            drawn += groups[position]
    return drawn


def _files(rows: Dataset) -> list[str | None]:
    """Returns the path of each clip, or else of each video, that is a file, without loading the bytes of others."""
    found: list[str | None] = [None] * len(rows)
    for name in FILE_COLUMNS:
        stored = rows.select_columns(name).with_format("arrow")[:][name]
        is_file = compute.is_null(compute.struct_field(stored, "bytes")).to_pylist()
        paths = compute.struct_field(stored, "path").to_pylist()
        found = [known or (path if alone else None) for known, path, alone in zip(found, paths, is_file)]
    return found
