"""Clips of rows: checks of their files before anything is computed from them, and warnings about them."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmemo.audio.loading import AudioBlocks


# Number of unreadable files that an error lists.
LISTED = 10
THREADS = 8


def clip_seconds(audio: Mapping[str, Any]) -> float:
    """
    Returns the duration of a stored clip in seconds, from its header; a clip whose header has none is decoded.

    Args:
        audio (`Mapping`): A cell of the column `audio`, `{"bytes", "path"}`.

    Raises:
        ValueError: If the clip does not exist, is not readable audio, or has no samples.
    """
    blocks = AudioBlocks(dict(audio), target_sampling_rate=16_000)
    return blocks.duration or sum(block.shape[1] for block in blocks) / 16_000


def check_clips(audio: Iterable[Mapping[str, Any] | None]) -> None:
    """
    Reads the header of every clip.

    Args:
        audio (`Iterable[Mapping]`): The column `audio` of rows, undecoded; `None` for rows without audio.

    Raises:
        ValueError: If clips are missing or unreadable; the message lists the first 10 and the number of all.
    """
    problems, paths = [], {}
    for stored in audio:
        if stored is not None and stored["bytes"] is None:
            paths[stored["path"]] = stored
        elif stored is not None:
            problems += _problems(stored)
    with ThreadPoolExecutor(THREADS) as threads:
        for found in threads.map(_problems, paths.values()):
            problems += found
    if problems:
        rest = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        listed = "\n".join(f"  {problem}" for problem in problems[:LISTED])
        raise ValueError(
            f"{len(problems)} audio file(s) cannot be read. Correct their paths, which are relative to the table, or "
            f"leave their rows out:\n{listed}{rest}"
        )


def _problems(audio: Mapping[str, Any]) -> list[str]:
    """Returns why a clip is not readable; empty if it is."""
    if audio["bytes"] is None and not Path(audio["path"]).exists():
        return [f"{audio['path']} does not exist."]
    try:
        clip_seconds(audio)
    except ValueError as error:
        return [str(error)]
    return []


@contextmanager
def without_item_warnings() -> Iterator[None]:
    """Hides warnings about single items: augmentation and test conditions remove speech and texts on purpose."""
    loggers = [logging.getLogger(name) for name in ("mmemo.items", "mmemo.recognition")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
