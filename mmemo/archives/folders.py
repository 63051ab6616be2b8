"""
Finds recordings in folders, and the files that belong to them: subtitles, speaker turns, plots.

Deliberate choices:
- In a folder, every file with the suffix of an audio or video format is an input, so that one that cannot be read is
  reported and not passed over. Other files are ignored, as are hidden ones, such as the `._x.wav` of macOS.
- A file belongs to a recording if it has its name: at the same place in its folder, or at the top of its folder.
"""

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

from mmemo.audio.loading import AUDIO_SUFFIXES, VIDEO_SUFFIXES
from mmemo.storage import (
    RemoteFile,
    exists,
    is_remote,
    is_web,
    list_folder,
    list_matches,
    local_path,
    name_of,
)


SUBTITLE_SUFFIXES = (".srt", ".vtt")
TURNS_SUFFIXES = (".rttm",)
MAX_NAMED = 20


class Input(NamedTuple):
    """One input of a command."""

    name: str | None
    """Its name in the output; `None` for a text alone."""
    audio: Any
    """The recording, in one of the forms that [`AudioInput`] lists; `None` for a text alone."""
    place: Path
    """Its path in the folder that was searched; for a single file its name."""


TEXT_INPUT = Input(None, None, Path("text"))


def check_exists(path: Path) -> None:
    """Raises a `ValueError` if there is no such file; it may have vanished since the folder was searched."""
    if not path.exists():
        raise ValueError(f"There is no such file; paths are relative to {Path.cwd()}.")


def find_files(
    patterns: Iterable[str], recursive: bool = True, suffixes: Set[str] = AUDIO_SUFFIXES | VIDEO_SUFFIXES
) -> tuple[list[Input], list[str]]:
    """
    Returns the recordings that paths, folders and globs refer to, in order, each once.

    Args:
        patterns (`Iterable[str]`):
            Paths, folders and globs, of this machine or as URLs of remote storage; http(s) URLs of single files.
        recursive (`bool`, *optional*, defaults to `True`): Whether to search the subfolders of folders.
        suffixes (`Set[str]`, *optional*): Suffixes of the recordings in folders; audio and video by default.

    Returns:
        The inputs, and a message for each subfolder that cannot be read, and for each pipe, socket and device.

    Raises:
        ValueError: If a pattern matches no file, there is no such folder, or a folder cannot be read.
    """
    found: dict[str, Input] = {}
    problems: list[str] = []
    for pattern in patterns:
        path = Path(local_path(pattern) or pattern)
        if is_web(pattern):
            inputs = [Input(pattern, pattern, Path(name_of(pattern) or "download"))]
        elif is_remote(pattern):
            inputs = _find_remote(pattern, recursive, suffixes)
        elif path.is_dir():
            inputs = _search(path, recursive, suffixes, problems)
        elif path.exists() or not glob.has_magic(str(path)):
            # A recording that is missing is reported when it is opened; this looks like a folder.
            if not path.suffix and not os.path.lexists(path):
                raise ValueError(f"There is no file or folder {pattern}; paths are relative to {Path.cwd()}.")
            inputs = [Input(str(path), path, Path(path.name))]
        else:
            files = (file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if not file.is_dir())
            inputs = [Input(str(file), file, Path(file.name)) for file in files if _is_regular(file, problems)]
        if not inputs and not path.is_dir():
            raise ValueError(f"{pattern} matches no file.")
        for one in inputs:
            found.setdefault(str(one.audio), one)
    return list(found.values()), problems


def _search(folder: Path, recursive: bool, suffixes: Set[str], problems: list[str]) -> list[Input]:
    """Returns the recordings in a folder, and appends a message for what cannot be read; see [`find_files`]."""
    inputs, skipped = [], 0
    for file in _walk(folder, recursive, problems):
        if file.suffix.lower() not in suffixes:
            skipped += 1
        elif _is_regular(file, problems):
            inputs.append(Input(str(file), file, file.relative_to(folder)))
    if not inputs and not problems:
        raise _without_recordings(str(folder), recursive, suffixes, skipped)
    return sorted(inputs, key=lambda one: one.audio)


def _is_regular(file: Path, problems: list[str]) -> bool:
    """Whether a file can be read without waiting for another program; missing ones are reported when opened."""
    if file.is_file() or not file.exists():
        return True
    problems.append(f"{file} is a pipe, socket or device and is left out; pass it by name if it is a recording.")
    return False


def _find_remote(pattern: str, recursive: bool, suffixes: Set[str]) -> list[Input]:
    """Returns the recordings that the URL of a file, folder or glob of remote storage refers to."""
    files = list_folder(pattern, recursive)
    if files is not None:
        inputs = [_remote_input(file) for file in files if Path(file.place).suffix.lower() in suffixes]
        if not inputs:
            raise _without_recordings(pattern, recursive, suffixes, len(files))
        return inputs
    if glob.has_magic(pattern) and not exists(pattern):
        if not (files := list_matches(pattern)):
            raise ValueError(f"{pattern} matches no file.")
        return [_remote_input(file) for file in files]
    # A missing recording is reported when it is opened, as of this machine.
    if Path(name_of(pattern)).suffix.lower() not in suffixes and not exists(pattern):
        raise ValueError(f"There is no file or folder {pattern}; check the URL and your credentials for it.")
    return [_remote_input(RemoteFile(pattern, name_of(pattern)))]


def _remote_input(file: RemoteFile) -> Input:
    return Input(file.location, file.location, Path(file.place))


def _without_recordings(folder: str, recursive: bool, suffixes: Set[str], skipped: int) -> ValueError:
    where = "" if recursive else " itself, and --no-recursive leaves its subfolders out"
    kind = "video" if suffixes == VIDEO_SUFFIXES else "audio or video"
    others = f" Pass files with other suffixes by name; it has {skipped}." if skipped else ""
    return ValueError(f"{folder} contains no {kind} file{where}; valid suffixes are {sorted(suffixes)}.{others}")


def _walk(folder: Path, recursive: bool, problems: list[str]) -> Iterator[Path]:
    """Yields the files below a folder that are not hidden; follows links to folders, each folder once."""

    def report(error: OSError) -> None:
        message = f"{error.filename} cannot be read ({error.strerror})"
        if Path(error.filename) == folder:
            raise ValueError(f"{message}; correct its permissions, or pass another folder.") from error
        problems.append(f"{message}; its recordings are missing.")

    seen = set()
    for place, folders, files in os.walk(folder, onerror=report, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        yield from (Path(place) / name for name in files if not name.startswith("."))


def find_companion(source: Path | None, one: Input, suffixes: tuple[str, ...]) -> Path | None:
    """
    Returns the file that belongs to a recording.

    Args:
        source (`Path`, *optional*): The file itself, or a folder of such files.
        one ([`Input`]): The recording.
        suffixes (`tuple[str, ...]`): Suffixes of such files, in order of preference.

    Returns:
        `Path`: For a folder, the first of `PLACE/NAME.srt`, `PLACE/NAME.wav.srt`, `NAME.srt` and `NAME.wav.srt` in
        it; `None` if there is none.
    """
    if source is None or not source.is_dir():
        return source
    candidates = (source / f"{base}{suffix}" for base in _bases(one) for suffix in suffixes)
    return next((path for path in candidates if path.is_file()), None)


def find_channel_companions(source: Path, one: Input, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """
    Returns the files in a folder that belong to the channels of a recording, `NAME.channel_0.srt` and so on, by
    channel; see [`find_companion`].
    """
    found: dict[int, Path] = {}
    for base in _bases(one):
        for path in sorted(source.glob(f"{glob.escape(str(base))}.channel_*")):
            number = path.stem.rpartition(".channel_")[2]
            if path.suffix in suffixes and number.isdecimal():
                found.setdefault(int(number), path)
    return found


def _bases(one: Input) -> list[Path]:
    """Returns the names, without suffix, of files that belong to a recording, in order of preference."""
    place, name = one.place, Path(one.place.name)
    return list(dict.fromkeys([place.with_suffix(""), place, name.with_suffix(""), name]))


def check_companions(option: str, source: Path | None, inputs: list[Input], suffixes: tuple[str, ...]) -> list[str]:
    """
    Checks that files can be assigned to recordings.

    Args:
        option (`str`): The option that passes them, for messages.
        source, suffixes: See [`find_companion`].
        inputs (`list[Input]`): The recordings.

    Returns:
        `list[str]`: The names of the recordings without such a file.

    Raises:
        ValueError: If `source` does not exist, is one file for several recordings, or a file in it has the name of
            several recordings in different folders.
    """
    if source is None:
        return []
    if not source.exists():
        raise ValueError(f"{option} {source} does not exist.")
    if not source.is_dir():
        if len(inputs) > 1:
            raise ValueError(f"{option} {source} belongs to one recording, got {len(inputs)}; pass a folder of files.")
        return []
    owners: dict[Path | None, list[Input]] = defaultdict(list)
    for one in inputs:
        owners[find_companion(source, one, suffixes)].append(one)
    missing = [str(one.name) for one in owners.pop(None, [])]
    for path, shared in owners.items():
        if len({Path(str(one.name)).parent for one in shared}) > 1:
            raise ValueError(
                f"{path} has the name of {len(shared)} recordings, {named(one.name for one in shared)}; sort the "
                f"files in {source} into the same folders as the recordings, or run the command for each folder."
            )
    return missing


def plot_paths(folder: Path, inputs: list[Input]) -> dict[str | None, Path]:
    """
    Returns the path without suffix of each input's plot, below `folder` as the inputs are below theirs.

    Raises:
        ValueError: If two inputs would have the same plot.
    """
    plain = [one.place.with_suffix("") for one in inputs]
    places = [one.place if plain.count(base) > 1 else base for one, base in zip(inputs, plain)]
    owners: dict[Path, list[Input]] = defaultdict(list)
    for one, place in zip(inputs, places):
        owners[place].append(one)
    for place, shared in owners.items():
        if len(shared) > 1:
            raise ValueError(
                f"{folder / place} would be the plot of {len(shared)} recordings, "
                f"{named(one.name for one in shared)}; pass the folder that contains them, or predict them separately."
            )
    return {one.name: folder / place for one, place in zip(inputs, places)}


def named(names: Iterable[str | None]) -> str:
    """Returns names as a list in words; of many, the first."""
    listed = list(map(str, names))
    rest = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + rest
