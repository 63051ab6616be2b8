"""
Subtitles: SRT and WebVTT, as tools and video sites write them.

Deliberate choices:
- Time and memory are linear in the length of the content: no regular expression rescans what it has passed, and no
  tag is parsed, only removed. Parsers of subtitles for video players are quadratic in nested or unclosed tags.
- Times are accepted in either notation, with and without hours, counters or milliseconds; a line that resembles cue
  times and is not raises an error, because its words would otherwise be appended to the previous cue.
- Rolling captions, which repeat the lines on the screen in the next cue, give every line once.
"""

import html
import logging
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple


logger = logging.getLogger(__name__)

TimedText = tuple[str, float, float]
"""A text with its start and end in seconds."""

# A caption has few lines; more are not compared.
MAX_CAPTION_LINES = 4
# Rolling captions follow each other without a longer gap.
ROLLING_GAP_SECONDS = 0.1

_TIME = r"(?:\d{1,4}:)?\d{1,2}:\d{1,2}[.,]\d{1,9}"
_WHOLE_TIME = r"\d{1,4}:\d{1,2}:\d{1,2}"
_CUE_TIME = rf"(?<![\d:])({_TIME}|{_WHOLE_TIME}|\d{{1,2}}:\d{{1,2}})(?![\d:]|[.,]\d)"
_CUE_TIMES = re.compile(rf"{_CUE_TIME}[ \t]*-->[ \t]*{_CUE_TIME}")
# Without hours and milliseconds, "10:30 --> 11:00" may be a sentence.
_UNMISTAKABLE_TIMES = re.compile(rf"(?:{_TIME}|{_WHOLE_TIME})[ \t]*-->[ \t]*(?:{_TIME}|{_WHOLE_TIME})")
_LIKE_CUE_TIMES = re.compile(r"\d[ \t]*-->|-->[ \t]*\d")
_INLINE_TIME = re.compile(rf"<({_TIME})>")
_VTT_HEADER = re.compile(r"\s*WEBVTT(?:(?:[ \t][^\r\n]*)?[\r\n]|\s*$)")
# None of these classes contains the character that begins the match, so no part is scanned twice.
_TAG = re.compile(r"<[ /]*[A-Za-z][^<>]*>")
_OVERRIDE = re.compile(r"\{\\[^{}]*\}")
_DRAWING = re.compile(r"\{[^{}]*\\p[1-9]")
# Bounded: a number of any length would not be converted.
_CHARACTER_REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});?")


class Cue(NamedTuple):
    """A cue: start and end in seconds, and its lines with their markup."""

    start: float
    end: float
    lines: list[str]


def is_subtitles(text: str) -> bool:
    """Whether a text is SRT or WebVTT: it begins with a line WEBVTT, or contains `-->` between two times."""
    text = text.removeprefix("\ufeff")
    return _VTT_HEADER.match(text) is not None or ("-->" in text and _UNMISTAKABLE_TIMES.search(text) is not None)


def read_subtitles(content: str) -> list[TimedText]:
    """
    Parses SRT or WebVTT.

    Args:
        content (`str`): The content of a subtitle file; see [`is_subtitles`].

    Returns:
        `list` of `(text, start, end)`: the text of each cue without its markup, in seconds, sorted by start. A cue
        with timestamps inside, as video sites export them, gives a text for each. Cues without text, and lines that
        rolling captions repeat, are dropped, the latter with a warning.

    Raises:
        ValueError: If a line resembles the times of a cue but cannot be parsed.
    """
    cues = [cue for cue in _parse_cues(_with_plain_lines(content)) if not _DRAWING.search("\n".join(cue.lines))]
    cues = _drop_repeated_lines(sorted(cues, key=lambda cue: cue.start))
    return [timed for cue in cues for timed in _timed_texts(cue) if timed[0].strip()]


def _with_plain_lines(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _parse_cues(content: str) -> list[Cue]:
    is_vtt = _VTT_HEADER.match(content) is not None
    cues: list[Cue] = []
    lines: list[str] | None = None  # of the current cue; None before the first cue, and after the end of one
    for number, line in enumerate(content.split("\n"), start=1):
        times = _CUE_TIMES.search(line) if "-->" in line else None
        if times is not None:
            # The counter of this cue, not a line of the previous one.
            if lines and not is_vtt and lines[-1].strip().isdecimal():
                lines.pop()
            lines = []
            cues.append(Cue(_seconds(times[1]), _seconds(times[2]), lines))
        elif "-->" in line and _LIKE_CUE_TIMES.search(line):
            raise ValueError(
                f"line {number} of the subtitles is {line[:200]!r}; expected cue times as HH:MM:SS,mmm --> "
                "HH:MM:SS,mmm, or with a point in place of the comma, without hours or without milliseconds."
            )
        elif lines is not None and (line.strip() or not is_vtt):
            lines.append(line)
        elif lines or not line:
            # In WebVTT, notes, styles and identifiers follow the end of a cue. Video sites begin cues with a blank.
            lines = None
    return cues


def _seconds(time: str) -> float:
    """Returns `[[HH:]MM:]SS[.mmm]` in seconds, correctly rounded."""
    whole, _, decimals = time.replace(",", ".").partition(".")
    seconds = 0
    for part in whole.split(":"):
        seconds = 60 * seconds + int(part)
    return int(f"{seconds}{decimals}") / 10 ** len(decimals)


def _plain(text: str) -> str:
    """Removes markup; linear in the length of the text."""
    if "<" in text:
        text = _TAG.sub("", text)
    if "\\" in text:
        text = _OVERRIDE.sub("", text).replace("\\N", "\n").replace("\\h", " ")
    if "&" in text:
        text = _CHARACTER_REFERENCE.sub(lambda reference: html.unescape(reference[0]), text)
    return text


def _drop_repeated_lines(cues: list[Cue]) -> list[Cue]:
    """
    Drops repeated cues of the same text and times, and the lines that rolling captions repeat.

    Captions roll if at least half of the cues of several lines begin with the last lines of the previous cue.
    """
    distinct: dict[tuple[tuple[str, ...], float, float], Cue] = {}
    for cue in cues:
        by_text = [(" ".join(_plain(_INLINE_TIME.sub("", line)).split()), line) for line in cue.lines]
        shown = tuple(text for text, _ in by_text if text)
        if shown:
            cue = cue._replace(lines=[line for text, line in by_text if text])
            distinct.setdefault((shown, cue.start, cue.end), cue)
    shown_lines = [shown for shown, _, _ in distinct]
    kept = list(distinct.values())
    repeats = [0]
    for (before, after), (shown_before, shown_after) in zip(pairwise(kept), pairwise(shown_lines)):
        follows = after.start <= before.end + ROLLING_GAP_SECONDS
        repeats.append(_overlap(shown_before, shown_after) if follows else 0)
    several = [repeated for shown, repeated in zip(shown_lines, repeats) if len(shown) > 1]
    rolling = sum(0 < repeated < len(shown) for shown, repeated in zip(shown_lines, repeats))
    if not rolling or 2 * rolling < len(several):
        return kept
    logger.warning(
        f"{sum(repeats)} lines of the subtitles repeat the previous cue, as rolling captions do; each was taken once."
    )
    return [cue._replace(lines=cue.lines[repeated:]) for cue, repeated in zip(kept, repeats)]


def _overlap(before: tuple[str, ...], after: tuple[str, ...]) -> int:
    """Returns the largest number of last lines of one cue that are the first lines of the next."""
    most = min(len(before), len(after), MAX_CAPTION_LINES)
    return next((count for count in range(most, 0, -1) if before[-count:] == after[:count]), 0)


def _timed_texts(cue: Cue) -> Iterator[TimedText]:
    """Yields the texts between the timestamps inside a cue; times outside of it are moved to its borders."""
    text, *pieces = _INLINE_TIME.split("\n".join(cue.lines))
    start = cue.start
    for time, following in zip(pieces[::2], pieces[1::2]):
        end = min(max(_seconds(time), start), max(cue.end, start))
        yield _plain(text), start, end
        text, start = following, end
    yield _plain(text), start, cue.end
