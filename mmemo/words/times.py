"""
Word timestamps, from a list, the output of an ASR tool, or subtitles.

Deliberate choices:
- Every form is converted to a list of single words, `(word, start, end)` in seconds, sorted and without overlaps.
  Converting that list again changes nothing and logs nothing.
- The time of a phrase is divided among its words by their numbers of characters: word times within it are estimates.
  Words without timestamps are such a phrase between their neighbours.
- Time and memory are linear in the length of the input.
"""

import json
import logging
import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import accumulate, groupby, pairwise
from numbers import Real
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from mmemo.storage import name_of
from mmemo.words.decoding import decode_text, read_text_file
from mmemo.words.subtitles import is_subtitles, read_subtitles


logger = logging.getLogger(__name__)

WordTimes: TypeAlias = (
    list[tuple[str, float | None, float | None]] | list[dict[str, Any]] | dict[str, Any] | str | bytes | os.PathLike
)
"""
The words of one text with timestamps in seconds, in any of these forms:

- a list of words or phrases in order, each with start and end: `("hello", 0.3, 0.7)`;
- the same as dictionaries, dataclasses or named tuples with `word` or `text`, and with `start` and `end` or
  `timestamp`: `{"word": "hello", "start": 0.3, "end": 0.7}`, `{"text": "hello", "timestamp": (0.3, 0.7)}`; segments
  may have `words`;
- the whole output of an ASR tool: a dictionary with `segments`, `words`, `word_segments` or `chunks`, as Whisper,
  whisperX, the API of OpenAI and the ASR pipeline of `transformers` return it, or a path or URL (`str` or
  `os.PathLike`) that ends in .json;
- subtitles, SRT or WebVTT: a path or URL that ends in .srt or .vtt, or their content as a `str` or `bytes`.

The time of a phrase is divided among its words by their numbers of characters. Words without timestamps (`None`, or
without the keys) are spread over the time between their neighbours. Words of the text may be missing.
"""

WORD_TIMES_FORMS = (
    "a list of (word, start, end) in seconds, the output of an ASR tool with its chunks, segments or words, or SRT or "
    "WebVTT subtitles, as their content or as a path that ends in .srt, .vtt or .json"
)
SUBTITLE_SUFFIXES = (".srt", ".vtt")
JSON_SUFFIX = ".json"
TEXT_KEYS = ("word", "text")
# Where the outputs of ASR tools hold their words or phrases.
OUTPUT_KEYS = ("segments", "words", "word_segments", "chunks")
# How many seconds after the end of the audio a word may start, and its end may lie without a warning.
LATE_START_SECONDS = 0.5
ROUNDING_SECONDS = 0.01
SENTENCE_PAUSE_SECONDS = 1.0
# The longest duration of a word whose end is unknown.
OPEN_WORD_SECONDS = 1.0
# How far after its first occurrence inside a longer word a word is searched for as a whole word.
WHOLE_WORD_CHARACTERS = 10_000

_WORD_CHARACTER = re.compile(r"\w")
_SENTENCE_END = re.compile(r"""[.?!…。？！]["'”’»›)\]}」』）】》〉]*$""")  # noqa: RUF001


class Phrase(NamedTuple):
    """One or several words; the times are in seconds, and `None` if unknown."""

    text: str
    start: float | None
    end: float | None


@runtime_checkable
class NamedRecord(Protocol):
    """A named tuple, such as the words of older versions of faster-whisper."""

    def _asdict(self) -> dict[str, Any]: ...


def read_word_times(word_times: WordTimes, duration: float | None = None) -> list[tuple[str, float, float]]:
    """
    Converts word timestamps of any form.

    Args:
        word_times (`WordTimes`): Words with timestamps, in any of the forms that [`WordTimes`] lists.
        duration (`float`, *optional*):
            Length of the audio in seconds. Words and phrases that end more than 10 ms, which may be rounding, after
            it are clipped with a warning.

    Returns:
        `list[tuple[str, float, float]]`: single words with start and end in seconds, sorted and without overlaps.

        - An entry that overlaps the next one is cut at its start, with a warning.
        - An entry without an end lasts until the next one starts; the last one until the end of the audio, for at most
          1 s a word, or, if `duration` is unknown, with zero length.
        - Words without timestamps are spread over the time from the end of the previous word, or the start of their
          segment, to the start of the next word, or the end of their segment; without such a neighbour, or time
          between them, they have zero length.
        - Entries of ASR tools and subtitles without text are dropped.

    Raises:
        ValueError: If the input has no accepted form, or a file cannot be read; if a time is negative, NaN or
            infinite, or an end is before its start; if a list is not sorted by start; if no word has a timestamp, or
            one starts more than 0.5 s after the end of the audio.
    """
    phrases = _place_untimed(_read_phrases(_entries(word_times)))
    if phrases and phrases[0].start is None:
        raise ValueError(f"None of the words has a timestamp: {_shown(phrases[0].text)}; pass {WORD_TIMES_FORMS}.")
    starts = [start for _, start, _ in phrases if start is not None]
    timed, overlaps = [], 0
    for (text, _, end), start, limit in zip(phrases, starts, [*starts[1:], math.inf]):
        if end is None:
            end = limit if limit < math.inf else _open_end(text, start, duration)
        overlaps += end > limit
        timed.append((text, start, min(end, limit)))
    if overlaps:
        logger.warning(f"{overlaps} of {len(timed)} words or phrases overlapped the next and were cut at its start.")
    if duration is not None:
        timed = _clip(timed, duration)
    return [word for phrase in timed for word in _spread(*phrase)]


def _entries(word_times: WordTimes) -> Sequence[Any]:
    """Returns the words, phrases or segments of any form, which are not yet validated."""
    if isinstance(word_times, (str, bytes, bytearray, os.PathLike)):
        return _load_entries(word_times)
    if isinstance(word_times, Mapping):
        return _output_entries(word_times)
    if isinstance(word_times, Iterator):  # faster-whisper yields its segments
        return list(word_times)
    if isinstance(word_times, (list, tuple)):
        return word_times
    raise ValueError(f"expected {WORD_TIMES_FORMS}; got {type(word_times).__name__}.")


def _load_entries(source: str | bytes | bytearray | os.PathLike) -> Sequence[Any]:
    """Reads subtitles, given as content or path, or a JSON file; blank content is valid."""
    if isinstance(source, (bytes, bytearray)):
        source = decode_text(source, "The subtitles")
        path = ""
    else:
        path = os.fsdecode(source)
    if isinstance(source, str) and (is_subtitles(source) or not source.strip("\ufeff \t\r\n")):
        return read_subtitles(source)
    name = name_of(path).lower()
    if name.endswith(JSON_SUFFIX):
        return _json_entries(path)
    if not name.endswith(SUBTITLE_SUFFIXES):
        raise ValueError(f"{_shown(path or source)} does not contain word timestamps; expected {WORD_TIMES_FORMS}.")
    content = read_text_file(path)
    if content.strip() and not is_subtitles(content):
        raise ValueError(
            f"{path} does not contain subtitles; expected SRT, with lines such as 00:00:01,000 --> 00:00:02,500, or "
            "WebVTT, which begins with WEBVTT."
        )
    return read_subtitles(content)


def _json_entries(path: str) -> Sequence[Any]:
    try:
        output = json.loads(read_text_file(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); pass {WORD_TIMES_FORMS}.") from error
    if not isinstance(output, (dict, list)):
        raise ValueError(f"{path} contains {_shown(output)}; expected {WORD_TIMES_FORMS}.")
    return _entries(output)


def _output_entries(output: Mapping[str, Any]) -> Sequence[Any]:
    """Returns the words of an ASR tool's output, or else its phrases."""
    lists = {key: output[key] for key in OUTPUT_KEYS if isinstance(output.get(key), (list, tuple))}
    if not lists:
        raise ValueError(
            f"dict with keys {_shown(list(output))} has no list of 'chunks', 'segments' or 'words'; call the ASR "
            "pipeline of transformers with return_timestamps='word', or Whisper with word_timestamps=True."
        )
    segments = lists.get("segments", ())
    if any((record := _as_mapping(segment)) and record.get("words") for segment in segments):
        return segments
    return lists.get("words") or lists.get("word_segments") or lists.get("chunks") or segments


def _as_mapping(entry: Any) -> Mapping[str, Any] | None:
    """Returns the fields of a word or segment that has names for them."""
    if type(entry) in (tuple, list):  # the most frequent, and much faster than to test for a protocol
        return None
    if isinstance(entry, Mapping):
        return entry
    if is_dataclass(entry) and not isinstance(entry, type):
        return {field.name: getattr(entry, field.name) for field in fields(entry)}
    if isinstance(entry, NamedRecord) and not isinstance(entry, type):
        record = entry._asdict()
        return record if any(key in record for key in TEXT_KEYS) else None
    return None


def is_timed_entry(entry: Any) -> bool:
    """Whether an entry of a list is a word, phrase or segment of one text, rather than all words of another."""
    record = _as_mapping(entry)
    if record is not None:
        return "start" in record or not any(key in record for key in OUTPUT_KEYS)
    return isinstance(entry, (list, tuple)) and bool(entry) and isinstance(entry[0], str)


def _read_phrases(entries: Sequence[Any]) -> list[Phrase]:
    """Validates words, phrases and segments; the words of segments are placed within them."""
    phrases: list[Phrase] = []
    latest = 0.0
    for position, entry in enumerate(entries):
        place = f"word {position}"
        segment = _as_mapping(entry) or {}
        if isinstance(segment.get("words"), (list, tuple)) and segment["words"]:
            place = f"segment {position}"
            start, end = _checked_times(place, segment, *_times(segment))
            words = [_read_phrase(f"word {index} of {place}", word) for index, word in enumerate(segment["words"])]
            read = _place_untimed([word for word in words if word is not None], start, end)
        else:
            phrase = _read_phrase(place, entry)
            read = [] if phrase is None else [phrase]
        for text, start, _ in read:
            if start is not None and start < latest:
                raise ValueError(
                    f"{place}, {_shown(text)}, starts at {start} s, before the previous word, which starts at "
                    f"{latest} s; sort the words by start."
                )
            latest = latest if start is None else start
        phrases += read
    return phrases


def _read_phrase(place: str, entry: Any) -> Phrase | None:
    """Validates a word or phrase; returns `None` for one of an ASR tool without text."""
    record = _as_mapping(entry)
    try:
        text, start, end = entry if record is None else (_text(record), *_times(record))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{place} is {_shown(entry)}; expected (word, start, end), a dict with 'word' "
            "or 'text', and 'start' and 'end' or 'timestamp': (start, end), in seconds."
        ) from error
    if record is not None and isinstance(text, str) and not text.strip():
        return None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place} is {_shown(text)}; expected a str that is not blank.")
    return Phrase(text, *_checked_times(place, text, start, end))


def _text(record: Mapping[str, Any]) -> Any:
    return record["word"] if "word" in record else record["text"]


def _times(record: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns start and end, `None` where they are missing."""
    if record.get("timestamp") is None:
        return record.get("start"), record.get("end")
    start, end = record["timestamp"]
    return start, end


def _checked_times(place: str, content: Any, start: Any, end: Any) -> tuple[float | None, float | None]:
    if start is None and end is None:
        return None, None
    last = start if end is None else end
    numbers = all(isinstance(time, Real) and not isinstance(time, bool) for time in (start, last))
    if not numbers or not 0 <= start <= last < math.inf:
        raise ValueError(
            f"{place}, {_shown(content)}, has start={start!r} and end={end!r}; expected finite seconds with "
            "0 <= start <= end."
        )
    return float(start), None if end is None else float(end)


def _place_untimed(
    phrases: Sequence[Phrase], earliest: float | None = None, latest: float | None = None
) -> list[Phrase]:
    """Joins words without timestamps to phrases between their neighbours, or between the limits of their segment."""
    groups = [list(group) for _, group in groupby(phrases, key=lambda phrase: phrase.start is None)]
    placed: list[Phrase] = []
    for index, group in enumerate(groups):
        if group[0].start is not None:
            placed += group
            continue
        text = " ".join(phrase.text for phrase in group)
        following = groups[index + 1][0].start if index + 1 < len(groups) else None
        if placed and placed[-1].end is None:
            # It lasts until the next word with a timestamp, and so do these.
            placed[-1] = placed[-1]._replace(text=f"{placed[-1].text} {text}")
            continue
        _, earliest_start, start = placed[-1] if placed else Phrase("", 0.0, earliest)
        if following is not None:
            start = following if start is None else max(earliest_start or 0.0, min(start, following))
        end = latest if following is None else following
        placed.append(Phrase(text, start, end if start is None or end is None else max(start, end)))
    return placed


def _open_end(text: str, start: float, duration: float | None) -> float:
    """Returns the end of a last phrase that has none: the end of the audio, if it is known and close enough."""
    return start if duration is None else max(start, min(start + OPEN_WORD_SECONDS * len(text.split()), duration))


def _spread(text: str, start: float, end: float) -> list[tuple[str, float, float]]:
    """Divides the time of a text among its words, by their numbers of characters."""
    words = text.split()
    *inner, total = accumulate(map(len, words))
    edges = [start, *(start + (end - start) * part / total for part in inner), end]
    return [(word, *times) for word, times in zip(words, pairwise(edges))]


def _shown(value: Any) -> str:
    """Returns the beginning of a value, for messages."""
    if isinstance(value, str):
        return repr(value if len(value) <= 200 else f"{value[:200]}...")
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


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
    if text is not None and not isinstance(text, (str, bytes, bytearray, os.PathLike, dict, list, tuple)):
        raise ValueError(f"text{place}: expected a str, word times or None, got {type(text).__name__}.")
    if text is None or (isinstance(text, str) and not is_subtitles(text)):
        return text, word_times
    if word_times:
        raise ValueError(
            f"text{place} and word_times{place} both contain word timestamps; pass a plain str as text, or leave "
            "word_times out."
        )
    return None, text


def _clip(words: list[tuple[str, float, float]], duration: float) -> list[tuple[str, float, float]]:
    """Clips words and phrases to the length of the audio; raises if one starts clearly after its end."""
    for position, (word, start, _) in enumerate(words):
        if start > duration + LATE_START_SECONDS:
            raise ValueError(
                f"word {position}, {_shown(word)}, starts at {start:.2f} s, but the audio lasts {duration:.2f} s; the "
                "transcript seems to belong to another recording, or its times are in ms: pass seconds."
            )
    beyond = sum(end > duration + ROUNDING_SECONDS for _, _, end in words)
    if beyond:
        logger.warning(
            f"{beyond} of {len(words)} words or phrases ended after the audio, which lasts {duration:.2f} s; they "
            "were cut there."
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

    Each word is searched for after the previous one, ignoring case: directly after it, else as a whole word, up to
    10,000 characters after its first occurrence, else inside a word. The time is linear in the length of the text.

    Raises:
        ValueError: If a word is not in the text after the previous words.
    """
    folded = _fold(text)
    searched: dict[str, int] = {}
    spans, cursor = [], 0
    for position, word in enumerate(words):
        begin = _find_word(folded, _fold(word), cursor, searched)
        if begin < 0:
            raise ValueError(
                f"word {position}, {_shown(word)}, does not occur in the text after the previous words; the words "
                "must be those of the text, in order. Leave the text out to use the words as the text."
            )
        cursor = begin + len(word)
        spans.append((begin, cursor))
    return spans


def _fold(text: str) -> str:
    """Removes differences of case, and keeps the number of characters."""
    if text.isascii():
        return text.lower()
    folded = {character: character.casefold() for character in set(text)}
    return "".join(folded[character] if len(folded[character]) == 1 else character for character in text)


def _find_word(text: str, word: str, cursor: int, searched: dict[str, int]) -> int:
    """
    Returns where a word begins after the cursor, or -1; see [`locate_words`].

    `searched` holds for each word the position up to which it was found inside of other words only.
    """
    first = text.find(word, cursor)
    if first < 0 or _WORD_CHARACTER.search(text, cursor, first) is None:
        return first
    limit = first + WHOLE_WORD_CHARACTERS
    begin = text.find(word, max(first, searched.get(word, 0)), limit + len(word))
    while begin >= 0:
        is_inside = begin > 0 and _WORD_CHARACTER.match(text, begin - 1)
        if not is_inside and not _WORD_CHARACTER.match(text, begin + len(word)):
            return begin
        begin = text.find(word, begin + 1, limit + len(word))
    searched[word] = limit
    return first


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
