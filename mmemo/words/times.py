"""
Word timestamps, from a list, the output of an ASR pipeline, or subtitles.

Deliberate choices:
- Every form is converted to a list of single words, `(word, start, end)` in seconds, sorted and without overlaps.
  Converting that list again changes nothing and logs nothing.
- The time of a phrase is divided among its words by their numbers of characters: word times within it are estimates.
"""

import html
import logging
import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np


logger = logging.getLogger(__name__)

WordTimes: TypeAlias = list[tuple[str, float, float]] | list[dict[str, Any]] | dict[str, Any] | str | os.PathLike
"""
The words of one text with timestamps in seconds, in any of these forms:

- a list of words or phrases in order, each with start and end: `("hello", 0.3, 0.7)`;
- the chunks of an ASR pipeline, `{"text": "hello", "timestamp": (0.3, 0.7)}`, or its whole output with `"chunks"`;
- subtitles, SRT or WebVTT: a path (`str` or `os.PathLike`) that ends in .srt or .vtt, or their content as a `str`.

The time of a phrase is divided among its words by their numbers of characters. Words of the text may be missing.
"""

WORD_TIMES_FORMS = (
    "a list of (word, start, end) in seconds, the output of an ASR pipeline with its chunks, or SRT or WebVTT "
    "subtitles, as their content or as a path that ends in .srt or .vtt"
)
SUBTITLE_SUFFIXES = (".srt", ".vtt")
# How many seconds after the end of the audio a word may start, and its end may lie without a warning.
LATE_START_SECONDS = 0.5
ROUNDING_SECONDS = 0.01
SENTENCE_PAUSE_SECONDS = 1.0

_TIME = r"(?:\d{1,4}:)?\d{1,2}:\d{1,2}[.,]\d{1,3}"
_CUE_TIMES = re.compile(rf"{_TIME}[ \t]*-->[ \t]*{_TIME}")
_INLINE_TIME = re.compile(rf"<{_TIME}>")
_VTT_HEADER = re.compile(r"\s*WEBVTT(?:[ \t][^\n]*\n|\n|\s*$)")
_SENTENCE_END = re.compile(r"""[.?!…。？！]["'”’»›)\]}」』）】》〉]*$""")  # noqa: RUF001


def read_word_times(word_times: WordTimes) -> list[tuple[str, float, float]]:
    """
    Converts word timestamps of any form.

    Args:
        word_times (`WordTimes`): Words with timestamps, in any of the forms that [`WordTimes`] lists.

    Returns:
        `list[tuple[str, float, float]]`: single words with start and end in seconds, sorted and without overlaps.
        An entry that overlaps the next one is cut at its start, with a warning. An ASR chunk without an end lasts
        until the next one starts, and the last one has zero length; chunks and subtitles without text are dropped.

    Raises:
        ValueError: If the input has no accepted form, a file cannot be read, or pysubs2, which parses subtitles, is
            missing; if a time is negative, NaN or infinite, or an end is before its start; if a list is not sorted by
            start.
    """
    if isinstance(word_times, (str, os.PathLike)):
        entries = _read_entries(_read_subtitles(word_times))
    elif isinstance(word_times, dict):
        if not isinstance(word_times.get("chunks"), (list, tuple)):
            raise ValueError(
                f"dict with keys {list(word_times)} has no list of 'chunks'; call the ASR pipeline with "
                "return_timestamps='word'."
            )
        entries = _read_entries(word_times["chunks"])
    elif isinstance(word_times, (list, tuple)):
        entries = _read_entries(word_times)
    else:
        raise ValueError(f"expected {WORD_TIMES_FORMS}; got {type(word_times).__name__}.")

    words, overlaps = [], 0
    for position, (text, start, end) in enumerate(entries):
        limit = entries[position + 1][1] if position + 1 < len(entries) else math.inf
        if end is None:
            end = start if math.isinf(limit) else limit
        overlaps += end > limit
        words += _spread(text, start, min(end, limit))
    if overlaps:
        logger.warning(f"{overlaps} of {len(entries)} words or phrases overlapped the next and were cut at its start.")
    return words


def _read_entries(entries: list[Any] | tuple[Any, ...]) -> list[tuple[str, float, float | None]]:
    """Validates words or phrases and returns `(text, start, end)`; the end of an ASR chunk may be `None`."""
    read: list[tuple[str, float, float | None]] = []
    for position, entry in enumerate(entries):
        is_chunk = isinstance(entry, dict)
        try:
            text, start, end = (entry["text"], *entry["timestamp"]) if is_chunk else entry
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"entry {position} is {entry!r}; expected (word, start, end) or "
                "{'text': word, 'timestamp': (start, end)}, in seconds."
            ) from error
        if is_chunk and isinstance(text, str) and not text.strip():
            continue
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"word {position} is {text!r}; expected a str that is not blank.")
        is_open = is_chunk and end is None
        last = start if is_open else end
        numbers = isinstance(start, Real) and isinstance(last, Real)
        if not numbers or not 0 <= start <= last < math.inf:
            raise ValueError(
                f"word {position}, {text!r}, has start={start!r} and end={end!r}; expected finite seconds with "
                "0 <= start <= end."
            )
        if read and start < read[-1][1]:
            raise ValueError(
                f"word {position}, {text!r}, starts at {start} s, before the previous word, which starts at "
                f"{read[-1][1]} s; sort the words by start."
            )
        read.append((text, float(start), None if is_open else float(last)))
    return read


def _spread(text: str, start: float, end: float) -> list[tuple[str, float, float]]:
    """Divides the time of a text among its words, by their numbers of characters."""
    words = text.split()
    ends = np.cumsum([0, *map(len, words)])
    edges = np.interp(ends, ends[[0, -1]], [start, end]).tolist()
    return [(word, *times) for word, times in zip(words, pairwise(edges))]


def is_subtitles(text: str) -> bool:
    """Whether a text is SRT or WebVTT: it begins with a line WEBVTT, or contains `-->` between two times."""
    text = _with_plain_lines(text)
    return _VTT_HEADER.match(text) is not None or _CUE_TIMES.search(text) is not None


def separate_word_times(
    text: str | WordTimes | None, word_times: WordTimes | None, place: str = ""
) -> tuple[str | None, WordTimes | None]:
    """
    Separates a text from timestamps of words, which may be passed in its place.

    Args:
        text (`str` or `WordTimes`, *optional*): A text, or words with timestamps; a `str` may be subtitles.
        word_times (`WordTimes`, *optional*): Words with timestamps.
        place (`str`, *optional*): Position in a batch, for error messages: `"[2]"`.

    Returns:
        `tuple`: The plain text and the timestamps; `None` if missing.

    Raises:
        ValueError: If the text has another type, or both arguments contain timestamps.
    """
    if text is not None and not isinstance(text, (str, os.PathLike, dict, list, tuple)):
        raise ValueError(f"text{place}: expected a str, word times or None, got {type(text).__name__}.")
    if text is None or (isinstance(text, str) and not is_subtitles(text)):
        return text, word_times
    if word_times:
        raise ValueError(
            f"text{place} and word_times{place} both contain word timestamps; pass a plain str as text, or leave "
            "word_times out."
        )
    return None, text


def _with_plain_lines(text: str) -> str:
    return re.sub(r"\r\n?", "\n", text.removeprefix("\ufeff"))


def _read_subtitles(subtitles: str | os.PathLike) -> list[tuple[str, float, float]]:
    """Parses SRT or WebVTT, given as content or path, to `(text, start, end)` in seconds, sorted by start."""
    content = _with_plain_lines(_load_subtitles(subtitles))
    try:
        import pysubs2
    except ImportError as error:
        raise ValueError(
            "subtitles need the package pysubs2: pip install pysubs2. Or pass a list of (word, start, end)."
        ) from error

    content = _INLINE_TIME.sub("", content)
    cues = content.count("-->")
    is_vtt = _VTT_HEADER.match(content) is not None
    # pysubs2 appends everything before the next cue to the text: in WebVTT also cue identifiers, notes and styles.
    blocks = re.split(r"\n\n+", content) if is_vtt else [content]
    blocks = [block[times.start() :] for block in blocks if (times := _CUE_TIMES.search(block))]
    # It also drops a last line of digits, as the number of the next cue; this adds one to drop.
    parsed = pysubs2.SSAFile.from_string("".join(f"{block}\n\n0\n" for block in blocks), "vtt" if is_vtt else "srt")
    if len(parsed) != cues:
        raise ValueError(
            f"the subtitles contain '-->' {cues} times, but {len(parsed)} cues could be parsed; expected cue times as "
            "HH:MM:SS,mmm in SRT, and as MM:SS.mmm or HH:MM:SS.mmm after a first line WEBVTT in WebVTT."
        )
    timed = [(html.unescape(cue.plaintext), cue.start / 1000, cue.end / 1000) for cue in parsed if cue.is_text]
    return sorted((cue for cue in timed if cue[0].strip()), key=lambda cue: cue[1])


def _load_subtitles(subtitles: str | os.PathLike) -> str:
    """Returns the content of subtitles given as content or path; blank content is valid."""
    if isinstance(subtitles, str) and (is_subtitles(subtitles) or not subtitles.strip("\ufeff \t\r\n")):
        return subtitles
    path = os.fsdecode(subtitles)
    if not path.lower().endswith(SUBTITLE_SUFFIXES):
        shown = path if len(path) <= 200 else f"{path[:200]}..."
        raise ValueError(f"{shown!r} does not contain word timestamps; expected {WORD_TIMES_FORMS}.")
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}); convert it from its encoding, for instance "
            "with iconv -f LATIN1 -t UTF-8, or decode it and pass its content."
        ) from error
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error.strerror}.") from error
    if content.strip() and not is_subtitles(content):
        raise ValueError(
            f"{path} does not contain subtitles; expected SRT, with lines such as 00:00:01,000 --> 00:00:02,500, or "
            "WebVTT, which begins with WEBVTT."
        )
    return content


def clip_word_times(words: list[tuple[str, float, float]], duration: float) -> list[tuple[str, float, float]]:
    """
    Clips word timestamps to the length of the audio, with a warning if words end more than 10 ms, which may be
    rounding, after it.

    Args:
        words (`list[tuple[str, float, float]]`): Words with start and end in seconds.
        duration (`float`): Length of the audio in seconds.

    Raises:
        ValueError: If a word starts more than 0.5 s after the end of the audio.
    """
    for position, (word, start, _) in enumerate(words):
        if start > duration + LATE_START_SECONDS:
            raise ValueError(
                f"word {position}, {word!r}, starts at {start:.2f} s, but the audio lasts {duration:.2f} s; the "
                "transcript seems to belong to another recording, or its times are in ms: pass seconds."
            )
    beyond = sum(end > duration + ROUNDING_SECONDS for _, _, end in words)
    if beyond:
        logger.warning(
            f"{beyond} of {len(words)} words ended after the audio, which lasts {duration:.2f} s; they were cut there."
        )
    return [(word, min(start, duration), min(end, duration)) for word, start, end in words]


def split_sentences(words: list[tuple[str, float, float]]) -> list[tuple[int, int]]:
    """
    Splits words into sentences. A sentence ends after `.`, `?`, `!`, `…` or their full-width forms, with or without
    closing quotes and brackets, and before a pause of `SENTENCE_PAUSE_SECONDS`. Abbreviations are not recognized:
    "Dr. Who" is split after "Dr.".

    Args:
        words (`list[tuple[str, float, float]]`): Words with start and end in seconds.

    Returns:
        `list[tuple[int, int]]`: for each sentence the index of its first word and the index after its last word.
    """
    stops = [
        index
        for index, ((word, _, end), (_, start, _)) in enumerate(pairwise(words), start=1)
        if _SENTENCE_END.search(word) or start - end >= SENTENCE_PAUSE_SECONDS
    ]
    return list(zip([0, *stops], [*stops, len(words)])) if words else []


def locate_words(words: list[str], text: str) -> list[tuple[int, int]]:
    """
    Returns the start and end of each word in the text, in characters.

    Each word is searched for after the previous one: directly after it, else as a whole word, else inside a word.

    Raises:
        ValueError: If a word is not in the text after the previous words.
    """
    spans, cursor = [], 0
    for position, word in enumerate(words):
        word_pattern = f"({re.escape(word)})"
        match = (
            re.compile(rf"\W*?{word_pattern}", re.IGNORECASE).match(text, cursor)
            or re.compile(rf"(?<!\w){word_pattern}(?!\w)", re.IGNORECASE).search(text, cursor)
            or re.compile(word_pattern, re.IGNORECASE).search(text, cursor)
        )
        if match is None:
            raise ValueError(
                f"word {position}, {word!r}, does not occur in the text after the previous words; the words must be "
                "those of the text, in order. Leave the text out to use the words as the text."
            )
        spans.append(match.span(1))
        cursor = match.end(1)
    return spans


def token_times(
    word_times: Sequence[tuple[str, float, float]],
    word_spans: Sequence[tuple[int, int]],
    offsets: Sequence[tuple[int, int]],
    start_seconds: float = 0.0,
) -> np.ndarray:
    """
    Returns the time of each token: from the start of the first word that it overlaps to the end of the last.

    Args:
        word_times (`Sequence` of `(word, start, end)`): Words with their timestamps in seconds.
        word_spans (`Sequence` of `(begin, end)`): The characters of the text that each word covers.
        offsets (`Sequence` of `(begin, end)`): The characters that each token covers; `(0, 0)` for special tokens.
        start_seconds (`float`): Time of the first audio frame; earlier times are moved to it.

    Returns:
        `np.ndarray` of shape `(tokens, 2)`: float32, start and end in seconds from the first frame; -1 for tokens
        outside of all words.
    """
    times = np.full((len(offsets), 2), -1.0, np.float32)
    begins, stops = zip(*word_spans)
    for token, (begin, stop) in enumerate(offsets):
        # Words follow each other in the text, and so do those of one token.
        spoken = word_times[bisect_right(stops, begin) : bisect_left(begins, stop)]
        if spoken:
            span = min(start for _, start, _ in spoken), max(end for _, _, end in spoken)
            times[token] = np.maximum(np.subtract(span, start_seconds), 0)
    return times
