"""Finds the audio and video files of clips in the folder of a corpus."""

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypedDict, TypeVar

from transformers.utils import logging

from modeling_mmemo.data.schema import is_video


logger = logging.get_logger(__name__)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg")
# Number of clips that a warning lists.
LISTED = 10

Key = TypeVar("Key", bound=Hashable)


class Files(TypedDict):
    """The files of a clip: `audio` and `video`, the same one if the sound is that of the video."""

    audio: Path | None
    video: Path | None


NO_FILES: Files = {"audio": None, "video": None}


def named_files(folder: Path, pattern: str, prefix: str = "") -> Iterator[tuple[Files, tuple[str, ...]]]:
    """
    Yields the files of each clip whose name matches, with the groups of the match.

    Files whose names differ only in the prefix, the suffix or the folder are one clip.
    """
    name = re.compile(rf"(?:^|/){prefix}({pattern})$")

    def key(file: PurePosixPath) -> tuple[str, ...] | None:
        match = name.search(file.with_suffix("").as_posix())
        return None if match is None else match.groups()

    for (_, *groups), files in find_files(folder, key).items():
        yield files, tuple(groups)


def find_files(folder: Path, key: Callable[[PurePosixPath], Key | None]) -> dict[Key, Files]:
    """
    Returns the files of each clip in a folder, in the order of the paths.

    Args:
        folder (`Path`): The folder, with any subfolders.
        key (`Callable`):
            Returns the same value for all files of a clip, given the path relative to the folder; `None` for others.
            Of several audio or video files of a clip, the one whose name sorts first is used.
    """
    found: dict[Key, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.*")):
        kind = "video" if is_video(path) else "audio" if path.suffix in AUDIO_SUFFIXES else None
        clip = key(PurePosixPath(path.relative_to(folder).as_posix())) if kind else None
        if kind and clip is not None:
            files = found.setdefault(clip, {})
            files[kind] = min(files.get(kind, path), path, key=lambda file: file.name)
    return {
        clip: {"audio": files.get("audio", files.get("video")), "video": files.get("video")}
        for clip, files in found.items()
    }


def warn_missing(folder: Path, missing: Sequence[str], rows: int) -> None:
    """Logs the rows of a table that have no clip, once."""
    if missing:
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        logger.warning_once(
            f"{folder}: {len(missing)} of {rows} rows have no clip, and keep only their text: "
            f"{', '.join(missing[:LISTED])}{more}."
        )
