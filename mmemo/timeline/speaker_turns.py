"""
Speaker turns from a diarization.

Deliberate choices:
- Times are rounded to microseconds, so rounding errors in start + duration do not separate two turns.
- Turns of different speakers may overlap; turns of the same speaker that overlap or touch are merged.
- Turns of zero length, which some diarizations contain, are dropped with a warning: they have no audio.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator
from numbers import Integral, Real
from operator import itemgetter
from typing import Any, Protocol, TypeAlias, runtime_checkable

from mmemo.storage import name_of
from mmemo.words.decoding import read_text_file


logger = logging.getLogger(__name__)


@runtime_checkable
class Diarization(Protocol):
    """The part of `pyannote.core.Annotation` that is used."""

    def itertracks(self, yield_label: bool = False) -> Iterator[tuple[Any, Any, Any]]:
        """Yields `(segment, track, label)`; segments have `start` and `end` in seconds."""


SpeakerTurns: TypeAlias = str | os.PathLike | list[tuple[str | int, float, float]] | list[dict[str, Any]] | Diarization
"""
The turns of one recording, in any of these forms:

- a list of `(speaker, start, end)` or of `{"speaker": ..., "start": ..., "end": ...}`, in seconds; speakers may be
  numbers;
- the content of an RTTM file, or a path that ends in .rttm;
- a `pyannote.core.Annotation`.
"""

SPEAKER_TURNS_FORMS = (
    "a list of (speaker, start, end) or {'speaker', 'start', 'end'} in seconds, RTTM as a str, a path ending in .rttm "
    "or a pyannote Annotation"
)
RTTM_LINE = "SPEAKER file channel start duration <NA> <NA> name <NA> <NA>"
RTTM_LEAST_FIELDS = 8  # some writers omit the last two, which turns do not use
NOT_AVAILABLE = "<NA>"
# The position of a turn for error messages ("turn 0", "line 1"), its speaker, start and end.
PlacedTurn: TypeAlias = tuple[str, Any, Any, Any]


def read_speaker_turns(speaker_turns: SpeakerTurns) -> list[tuple[str, float, float]]:
    """
    Converts and validates the turns of one recording.

    Args:
        speaker_turns (`SpeakerTurns`):
            The turns in any order, in any of the forms that [`SpeakerTurns`] lists. In RTTM, comments and lines of
            other types than SPEAKER are ignored; all channels belong to one recording; names may contain blanks.

    Returns:
        `list[tuple[str, float, float]]`: speaker, start and end in seconds, sorted by start. Turns of different
        speakers may overlap; turns of the same speaker that overlap or touch are merged. Turns of zero length are
        dropped with a warning.

    Raises:
        ValueError: If the turns have no accepted form, or all have zero length or there are none; if a time is
            negative or not finite, a turn ends before its start, or a speaker is blank; if RTTM cannot be read or
            contains several recordings.

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
    checked = [_checked_turn(*turn) for turn in placed]
    turns = [turn for turn in checked if turn[1] < turn[2]]
    if dropped := len(checked) - len(turns):
        logger.warning(f"{dropped} of {len(checked)} turns had zero length and were dropped.")
    if not turns:
        found = f"All {dropped} speaker turns have zero length" if dropped else "There are no speaker turns"
        raise ValueError(f"{found}; pass at least one, as {SPEAKER_TURNS_FORMS}.")
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
    is_path = len(name.splitlines()) == 1 and name_of(name).lower().endswith(".rttm")
    if not is_path and isinstance(source, str):
        return source
    if not is_path:
        raise ValueError(f"{name} is not the path of an RTTM file, which ends in .rttm; pass {SPEAKER_TURNS_FORMS}.")
    return read_text_file(name)


def _rttm_turns(text: str) -> Iterator[PlacedTurn]:
    files: dict[str, None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        try:
            if len(fields) < RTTM_LEAST_FIELDS:
                raise ValueError(f"{len(fields)} fields")
            times = _rttm_times(fields)
            start, duration = float(fields[times]), float(fields[times + 1])
        except ValueError as error:
            raise ValueError(
                f"line {number} is not RTTM ({error}): {line.strip()[:200]!r}; expected {RTTM_LINE!r}, start and "
                "duration in seconds."
            ) from error
        files[" ".join(fields[1 : times - 1])] = None
        yield f"line {number}", _rttm_name(fields[times + 4 :]), start, start + duration
    if len(files) > 1:
        named = ", ".join(list(files)[:5]) + (", ..." if len(files) > 5 else "")
        raise ValueError(f"The RTTM contains turns of {len(files)} recordings: {named}; pass the lines of one.")


def _rttm_times(fields: list[str]) -> int:
    """Returns the position of the start, which two unavailable fields follow; file names may contain blanks."""
    for position in range(3, len(fields) - 4):
        is_before_text = fields[position + 2 : position + 4] == [NOT_AVAILABLE, NOT_AVAILABLE]
        if is_before_text and _is_number(fields[position]) and _is_number(fields[position + 1]):
            return position
    return 3


def _rttm_name(fields: list[str]) -> str:
    """Returns the name, with blanks, before up to two scores, which are decimals or unavailable."""
    if len(fields) == 3 and all(field == NOT_AVAILABLE or _is_number(field) for field in fields[1:]):
        return fields[0]
    stop = len(fields)
    while stop > max(1, len(fields) - 2) and (
        fields[stop - 1] == NOT_AVAILABLE or ("." in fields[stop - 1] and _is_number(fields[stop - 1]))
    ):
        stop -= 1
    return " ".join(fields[:stop])


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _checked_turn(place: str, speaker: Any, start: Any, end: Any) -> tuple[str, float, float]:
    name = str(speaker) if isinstance(speaker, Integral) and not isinstance(speaker, bool) else speaker
    if not isinstance(name, str) or name.strip() in ("", NOT_AVAILABLE):
        raise ValueError(
            f"{place} has speaker={speaker!r}; expected a str that is not blank. Name the speaker, or drop the turn."
        )
    numbers = all(isinstance(time, Real) and not isinstance(time, bool) for time in (start, end))
    if not numbers or not 0 <= round(float(start), 6) <= round(float(end), 6) < math.inf:
        raise ValueError(
            f"{place}, of {name!r}, has start={start!r} and end={end!r}; expected finite seconds with "
            "0 <= start <= end. Correct or drop it."
        )
    return name.strip(), round(float(start), 6), round(float(end), 6)


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
