"""
Speaker turns from a diarization.

Deliberate choices:
- Times are rounded to microseconds, so rounding errors in start + duration do not separate two turns.
- Turns of different speakers may overlap; turns of the same speaker that overlap or touch are merged.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator
from numbers import Real
from operator import itemgetter
from typing import Any, Protocol, TypeAlias, runtime_checkable


logger = logging.getLogger(__name__)


@runtime_checkable
class Diarization(Protocol):
    """The part of `pyannote.core.Annotation` that is used."""

    def itertracks(self, yield_label: bool = False) -> Iterator[tuple[Any, Any, Any]]:
        """Yields `(segment, track, label)`; segments have `start` and `end` in seconds."""


SpeakerTurns: TypeAlias = str | os.PathLike | list[tuple[str, float, float]] | list[dict[str, Any]] | Diarization
"""
The turns of one recording, in any of these forms:

- a list of `(speaker, start, end)` or of `{"speaker": ..., "start": ..., "end": ...}`, in seconds;
- the content of an RTTM file, or a path that ends in .rttm;
- a `pyannote.core.Annotation`.
"""

SPEAKER_TURNS_FORMS = (
    "a list of (speaker, start, end) or {'speaker', 'start', 'end'} in seconds, RTTM as a str, a path ending in .rttm "
    "or a pyannote Annotation"
)
RTTM_LINE = "SPEAKER file channel start duration <NA> <NA> name <NA> <NA>"
RTTM_FIELDS = (8, 10)  # some writers omit the last two, which turns do not use
UNKNOWN_SPEAKER = "<NA>"
# The position of a turn for error messages ("turn 0", "line 1"), its speaker, start and end.
PlacedTurn: TypeAlias = tuple[str, Any, Any, Any]


def read_speaker_turns(speaker_turns: SpeakerTurns) -> list[tuple[str, float, float]]:
    """
    Converts and validates the turns of one recording.

    Args:
        speaker_turns (`SpeakerTurns`):
            The turns in any order, in any of the forms that [`SpeakerTurns`] lists. In RTTM, comments and lines of
            other types than SPEAKER are ignored; all channels belong to one recording.

    Returns:
        `list[tuple[str, float, float]]`: speaker, start and end in seconds, sorted by start. Turns of different
        speakers may overlap; turns of the same speaker that overlap or touch are merged.

    Raises:
        ValueError: If the turns have no accepted form or there are none; if a time is negative or not finite, a turn
            does not end after its start, or a speaker is blank; if RTTM cannot be read or contains several recordings.

    Source: RTTM as in NIST's evaluation plan of 2009 for Rich Transcription, appendix A.
    """
    if isinstance(speaker_turns, Diarization):
        placed: Iterable[PlacedTurn] = _annotated_turns(speaker_turns)
    elif isinstance(speaker_turns, (str, os.PathLike)):
        placed = _rttm_turns(_rttm_text(speaker_turns))
    elif isinstance(speaker_turns, (list, tuple)):
        placed = _listed_turns(speaker_turns)
    else:
        raise ValueError(f"{type(speaker_turns).__name__} does not contain speaker turns; pass {SPEAKER_TURNS_FORMS}.")
    turns = [_checked_turn(*turn) for turn in placed]
    if not turns:
        raise ValueError(f"There are no speaker turns; pass at least one, as {SPEAKER_TURNS_FORMS}.")
    return _merge_turns(turns)


def _annotated_turns(diarization: Diarization) -> Iterator[PlacedTurn]:
    for position, (segment, _, label) in enumerate(diarization.itertracks(yield_label=True)):
        yield f"turn {position}", str(label), segment.start, segment.end  # labels may be numbers


def _listed_turns(turns: list[Any] | tuple[Any, ...]) -> Iterator[PlacedTurn]:
    for position, turn in enumerate(turns):
        try:
            speaker, start, end = (turn["speaker"], turn["start"], turn["end"]) if isinstance(turn, dict) else turn
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"turn {position} is {turn!r}; expected (speaker, start, end) or {{'speaker', 'start', 'end'}}, in "
                "seconds."
            ) from error
        yield f"turn {position}", speaker, start, end


def _rttm_text(source: str | os.PathLike) -> str:
    """Returns the content of an RTTM file, given as path or content."""
    name = os.fspath(source)
    is_path = len(name.splitlines()) == 1 and name.lower().endswith(".rttm")
    if not is_path and isinstance(source, str):
        return source
    if not is_path:
        raise ValueError(f"{name} is not the path of an RTTM file, which ends in .rttm; pass {SPEAKER_TURNS_FORMS}.")
    try:
        with open(name, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read {name} ({error}); pass {SPEAKER_TURNS_FORMS}.") from error


def _rttm_turns(text: str) -> Iterator[PlacedTurn]:
    files: dict[str, None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        try:
            if not RTTM_FIELDS[0] <= len(fields) <= RTTM_FIELDS[1]:
                raise ValueError(f"{len(fields)} fields")
            start, duration = float(fields[3]), float(fields[4])
        except ValueError as error:
            raise ValueError(
                f"line {number} is not RTTM ({error}): {line.strip()[:200]!r}; expected {RTTM_LINE!r}, start and "
                "duration in seconds, no blanks in names."
            ) from error
        files[fields[1]] = None
        yield f"line {number}", fields[7], start, start + duration
    if len(files) > 1:
        named = ", ".join(list(files)[:5]) + (", ..." if len(files) > 5 else "")
        raise ValueError(f"The RTTM contains turns of {len(files)} recordings: {named}; pass the lines of one.")


def _checked_turn(place: str, speaker: Any, start: Any, end: Any) -> tuple[str, float, float]:
    if not isinstance(speaker, str) or speaker.strip() in ("", UNKNOWN_SPEAKER):
        raise ValueError(
            f"{place} has speaker={speaker!r}; expected a str that is not blank. Name the speaker, or drop the turn."
        )
    numbers = isinstance(start, Real) and isinstance(end, Real)
    if not numbers or not 0 <= round(float(start), 6) < round(float(end), 6) < math.inf:
        raise ValueError(
            f"{place}, of {speaker!r}, has start={start!r} and end={end!r}; expected finite seconds with "
            "0 <= start < end. Correct or drop it."
        )
    return speaker.strip(), round(float(start), 6), round(float(end), 6)


def _merge_turns(turns: list[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Merges overlapping or touching turns of each speaker, and sorts all by start."""
    merged: list[tuple[str, float, float]] = []
    overlapping = 0
    for speaker, start, end in sorted(turns):
        previous, previous_start, previous_end = merged[-1] if merged else ("", 0.0, 0.0)
        if speaker == previous and start <= previous_end:
            merged[-1] = (speaker, previous_start, max(end, previous_end))
            overlapping += start < previous_end
        else:
            merged.append((speaker, start, end))
    if overlapping:
        logger.warning(
            f"{overlapping} of {len(turns)} turns overlapped another turn of the same speaker and were merged with it."
        )
    return sorted(merged, key=itemgetter(1, 2))
