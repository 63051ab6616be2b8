"""Clips of rows: checks of their files before anything is computed from them, and warnings about them."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import av

from mmemo.audio.containers import MP4_DEMUXER
from mmemo.audio.files import open_stream
from mmemo.audio.loading import AudioBlocks
from mmemo.video.video_files import DEMUXERS


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


def has_sound(video: Mapping[str, Any]) -> bool:
    """
    Reads the header of a stored video or image, and returns whether the file has an audio track.

    Args:
        video (`Mapping`): A cell of the column `video`, `{"bytes", "path"}`.

    Raises:
        ValueError: If the video does not exist, is not a readable video, or has no video track.
    """
    name = video["path"] or "video"
    options = {"format_whitelist": f"{MP4_DEMUXER},{DEMUXERS}", "protocol_whitelist": "none"}
    with open_stream(video["path"] if video["bytes"] is None else video["bytes"]) as stream:
        try:
            with av.open(stream, container_options=options, metadata_errors="replace") as container:
                has_video_track, has_audio_track = bool(container.streams.video), bool(container.streams.audio)
        except av.error.FFmpegError as error:
            raise ValueError(
                f"{name} is not a readable video ({error.strerror}): it is corrupt, truncated, or in an unknown "
                "format. Convert it (ffmpeg -i INPUT output.mp4)."
            ) from error
    if not has_video_track:
        raise ValueError(f"{name} has no video track; use it as audio, or a file with pictures.")
    return has_audio_track


def check_clips(audio: Iterable[Mapping[str, Any] | None], video: Iterable[Mapping[str, Any] | None] = ()) -> None:
    """
    Reads the header of every clip.

    Args:
        audio (`Iterable[Mapping]`): The column `audio` of rows, undecoded; `None` for rows without audio.
        video (`Iterable[Mapping]`, *optional*): The column `video` of rows, likewise.

    Raises:
        ValueError: If clips are missing or unreadable; the message lists the first 10 and the number of all.
    """
    found = {"audio": _all_problems(audio, clip_seconds), "video": _all_problems(video, has_sound)}
    if problems := [problem for of_kind in found.values() for problem in of_kind]:
        raise unreadable(" and ".join(kind for kind, of_kind in found.items() if of_kind), problems)


def unreadable(kinds: str, problems: Sequence[str]) -> ValueError:
    """Returns an error that lists why files of some kinds (`"audio"`, `"video"`) cannot be read, the first 10."""
    rest = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    listed = "\n".join(f"  {problem}" for problem in problems[:LISTED])
    return ValueError(
        f"{len(problems)} {kinds} file(s) cannot be read. Correct their paths, which are relative to the table, or "
        f"leave their rows out:\n{listed}{rest}"
    )


def _all_problems(clips: Iterable[Mapping[str, Any] | None], check: Callable[[Mapping[str, Any]], Any]) -> list[str]:
    """Returns why clips are not readable; a file that several rows share is read once."""
    problems, paths = [], {}
    for stored in clips:
        if stored is not None and stored["bytes"] is None:
            paths[stored["path"]] = stored
        elif stored is not None:
            problems += _problems(stored, check)
    with ThreadPoolExecutor(THREADS) as threads:
        for found in threads.map(_problems, paths.values(), repeat(check)):
            problems += found
    return problems


def _problems(stored: Mapping[str, Any], check: Callable[[Mapping[str, Any]], Any]) -> list[str]:
    """Returns why a clip is not readable; empty if it is."""
    if stored["bytes"] is None and not Path(stored["path"]).exists():
        return [f"{stored['path']} does not exist."]
    try:
        check(stored)
    except ValueError as error:
        return [str(error)]
    return []


@contextmanager
def without_item_warnings() -> Iterator[None]:
    """Hides warnings about single items: augmentation and test conditions remove speech, text and faces on purpose."""
    loggers = [logging.getLogger(name) for name in ("mmemo.items", "mmemo.recognition", "mmemo.video.face")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
