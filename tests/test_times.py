"""Word timestamps: every form, clipping, sentences, and the places of words in a text."""

import json
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mmemo.words.times import (
    is_timed_entry,
    locate_words,
    read_word_times,
    separate_word_times,
    split_sentences,
)


SRT = "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n2\n00:01:00,500 --> 01:00:00,000\nyou\n"
VTT = "WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n\n00:01:00.500 --> 01:00:00.000\nyou\n"
HELLO_YOU = [("hello", 1.0, 2.0), ("you", 60.5, 3600.0)]


def chunk(text, start, end):
    return {"text": text, "timestamp": (start, end)}


def word(text, start, end):
    return {"word": text, "start": start, "end": end, "probability": 0.9}


@dataclass
class Word:
    """A word of faster-whisper, whose older versions have named tuples."""

    start: float
    end: float
    word: str
    probability: float


@dataclass
class Segment:
    id: int
    start: float
    end: float
    text: str
    words: list | None


WordTuple = namedtuple("WordTuple", ["start", "end", "word", "probability"])
WORDS = [word(" hello", 1, 2), word(" you", 60.5, 3600)]
SEGMENTS = [
    {"id": 0, "start": 1, "end": 2, "text": " hello", "words": WORDS[:1]},
    {"id": 1, "start": 60.5, "end": 3600, "text": " you", "words": WORDS[1:]},
]


@pytest.mark.parametrize(
    "word_times",
    [
        HELLO_YOU,
        [list(word) for word in HELLO_YOU],
        [(" hello ", np.float64(1), 2), ("you", 60.5, 3600)],
        [chunk(*word) for word in HELLO_YOU],
        [chunk(" hello", 1, 2), chunk(" ", 3, 4), chunk(" you", 60.5, 3600)],
        {"text": " hello you", "chunks": [chunk(*word) for word in HELLO_YOU]},
        WORDS,
        SEGMENTS,
        [{name: value for name, value in segment.items() if name != "words"} for segment in SEGMENTS],
        {"text": " hello you", "segments": SEGMENTS, "language": "en"},
        {"segments": SEGMENTS, "word_segments": WORDS},
        {"word_segments": WORDS},
        {"text": "hello you", "words": WORDS, "segments": [{"start": 0, "end": 4000, "text": "hello you"}]},
        {"text": "hello you", "words": [], "segments": SEGMENTS},
        [Word(1, 2, " hello", 0.9), Word(60.5, 3600, " you", 0.9)],
        [WordTuple(1, 2, " hello", 0.9), WordTuple(60.5, 3600, " you", 0.9)],
        [namedtuple("Timed", ["what", "begin", "stop"])(*timed) for timed in HELLO_YOU],
        [
            Segment(0, 1, 2, " hello", [Word(1, 2, " hello", 0.9)]),
            Segment(1, 60.5, 3600, " you", None),
        ],
        SRT,
        VTT,
        SRT.encode(),
        bytearray(SRT.encode("utf-16")),
    ],
)
def test_all_forms_give_the_same_words(word_times, caplog):
    words = read_word_times(word_times)
    assert words == HELLO_YOU == read_word_times(words)
    assert {type(value) for word in words for value in word} == {str, float}
    assert not caplog.records


def test_generators_of_segments_are_read():
    segments = (Segment(index, *times, text, None) for index, (text, *times) in enumerate(HELLO_YOU))
    assert read_word_times(segments) == HELLO_YOU


@pytest.mark.parametrize("name", ["call.json", "call.JSON"])
@pytest.mark.parametrize("output", [{"segments": SEGMENTS}, WORDS, [list(word) for word in HELLO_YOU]])
def test_json_files_of_asr_tools_are_read(name, output, tmp_path):
    path = tmp_path / name
    path.write_text(json.dumps(output), encoding="utf-8-sig")
    assert read_word_times(path) == HELLO_YOU == read_word_times(str(path))


@pytest.mark.parametrize(
    "empty", [[], (), "", b"", " \n", "\ufeff", "WEBVTT", "WEBVTT\n", {"text": "", "chunks": []}, {"segments": []}]
)
def test_empty_input_has_no_words(empty):
    assert read_word_times(empty) == []


@pytest.mark.parametrize("phrase", [[("a  bcd", 1, 9)], [chunk(" a\nbcd", 1, 9)], "00:00:01,0 --> 00:00:09,0\na\nbcd"])
def test_the_time_of_a_phrase_is_divided_by_characters(phrase):
    words = read_word_times(phrase)
    assert words == [("a", 1, 3), ("bcd", 3, 9)] == read_word_times(words)
    assert read_word_times([("a bcd", 2, 2)]) == [("a", 2, 2), ("bcd", 2, 2)]
    thirds = read_word_times([("so we go", 1, 8)])
    np.testing.assert_allclose([times for _, *times in thirds], [[1, 10 / 3], [10 / 3, 17 / 3], [17 / 3, 8]])
    assert read_word_times(thirds) == thirds
    assert read_word_times([("今日は。", 0, 4)]) == [("今日は。", 0, 4)]


def test_an_overlap_is_cut_at_the_start_of_the_next(caplog):
    words = read_word_times([("a b", 0, 9), ("c", 1, 2), ("d", 1, 3), ("e", 3, 4)])
    assert words == [("a", 0, 0.5), ("b", 0.5, 1), ("c", 1, 1), ("d", 1, 3), ("e", 3, 4)]
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 words or phrases overlapped the next and were cut at its start."
    ]
    assert read_word_times(words) == words
    assert len(caplog.records) == 1


def test_a_chunk_without_an_end_lasts_until_the_next_one(caplog):
    chunks = [chunk("so", 0.1, None), chunk("happy", 0.4, 0.6), chunk("you", 2, None)]
    assert read_word_times(chunks) == [("so", 0.1, 0.4), ("happy", 0.4, 0.6), ("you", 2, 2)]
    assert not caplog.records


def test_the_last_entry_without_an_end_lasts_until_the_end_of_the_audio():
    chunks = [chunk("so", 0.1, 0.4), chunk(" ab cd", 2, None)]
    assert read_word_times(chunks) == [("so", 0.1, 0.4), ("ab", 2, 2), ("cd", 2, 2)]
    assert read_word_times(chunks, 2.5) == [("so", 0.1, 0.4), ("ab", 2, 2.25), ("cd", 2.25, 2.5)]
    # at most 1 s a word
    assert read_word_times(chunks, 60) == [("so", 0.1, 0.4), ("ab", 2, 3), ("cd", 3, 4)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # between two words, divided by characters; a word of whisperX without alignment has no times
        ([word("I", 0, 1), {"word": "£5"}, {"word": "1984"}, word("so", 4, 5)], [(0, 1), (1, 2), (2, 4), (4, 5)]),
        ([("I", 0, 1), ("owe", None, None), ("you", 1, 2)], [(0, 1), (1, 1), (1, 2)]),
        ([("I", 0, 3), ("owe", None, None), ("you", 2, 4)], [(0, 2), (2, 2), (2, 4)]),
        # first and last
        ([{"text": "5", "timestamp": None}, chunk("so", 1, 2), chunk("10", None, None)], [(1, 1), (1, 2), (2, 2)]),
        # after a word without an end
        ([chunk("ab", 1, None), {"word": "cd"}, chunk("so", 3, 4)], [(1, 2), (2, 3), (3, 4)]),
        # in a segment
        (
            [{"start": 1, "end": 5, "text": "-", "words": [{"word": "5"}, word("so", 2, 3), {"word": "10"}]}],
            [(1, 2), (2, 3), (3, 5)],
        ),
        ([{"start": 1, "end": 5, "text": "-", "words": [{"word": "ab"}, {"word": "cd"}]}], [(1, 3), (3, 5)]),
        # of a segment that has no times either
        ([("so", 0, 1), {"text": "-", "words": [{"word": "ab"}]}, ("I", 3, 4)], [(0, 1), (1, 3), (3, 4)]),
        # of a segment whose times do not contain its words
        ([{"start": 3, "end": 2, "words": None, "text": "x"} | {"end": 4}, ("so", 4, 5)], [(3, 4), (4, 5)]),
        (
            [{"start": 2, "end": 2.5, "words": [{"word": "5"}, word("so", 1, 3), {"word": "10"}]}],
            [(1, 1), (1, 3), (3, 3)],
        ),
    ],
)
def test_words_without_times_are_placed_between_their_neighbours(words, expected):
    read = read_word_times(words)
    assert [tuple(times) for _, *times in read] == expected
    assert read_word_times(read) == read
    assert [times[:2] for _, *times in read_word_times(iter(words))] == [list(times) for times in expected]


def test_trailing_words_without_times_last_until_the_end_of_the_audio():
    assert read_word_times([("so", 0, 1), ("ab", None, None), ("cd", None, None)], 2) == [
        ("so", 0, 1),
        ("ab", 1, 1.5),
        ("cd", 1.5, 2),
    ]


@pytest.mark.parametrize(
    ("word_times", "message"),
    [
        (3, r"expected a list of \(word, start, end\) .* ends in .srt, .vtt or .json; got int"),
        ({"text": "so"}, r"keys \['text'\] has no list of 'chunks', .* return_timestamps='word'"),
        ([("so", 0)], r"word 0 is \('so', 0\); expected \(word, start, end\)"),
        ([{"start": 0, "end": 1}], r"word 0 is \{'start': 0, 'end': 1\}; .* a dict with 'word' or 'text'"),
        ([{"text": "so"}], "None of the words has a timestamp: 'so'"),
        ({"segments": [{"text": "-", "words": [{"word": "so"}, {"word": "sad"}]}]}, "None of the words .*: 'so sad'"),
        ([chunk("so", 0, 1), {"text": "so", "timestamp": 3}], "word 1 is"),
        ([{"words": [word("so", 0, 1), {"start": 0}]}], r"word 1 of segment 0 is \{'start': 0\}"),
        ([{"words": [word("so", 0, 1), word("I", 2, 1)]}], "word 1 of segment 0, 'I', has start=2 and end=1"),
        ([{"start": 2, "end": 1, "words": [word("so", 0, 1)]}], "segment 0, .* has start=2 and end=1"),
        ([("so", 0, 1), {"words": [word("so", 2, 3), word("I", 1, 2)]}], "segment 1, 'I', starts at 1.0 s, before"),
        ([("so", 0, 1), ("", 1, 2)], "word 1 is ''; expected a str that is not blank"),
        ([chunk(None, 0, 1)], "word 0 is None"),
        ([("so", None, 0)], "word 0, 'so', has start=None and end=0"),
        ([("so", False, True)], "word 0, 'so', has start=False and end=True"),
        ([("so" * 999, 2, 1)], r"word 0, '(so){100}...', has"),
        ([("so", "0", "1")], "word 0, 'so', has start='0' and end='1'"),
        ([("so", 0, 1), ("sad", -1, 1)], "word 1, 'sad', has start=-1 and end=1; expected finite seconds"),
        ([chunk("so", -1, None)], "word 0, 'so', has start=-1 and end=None"),
        ([("so", 2, 1)], "word 0, 'so', has start=2 and end=1"),
        ([("so", float("nan"), 1)], "word 0, 'so', has start=nan"),
        ([("so", 0, float("inf"))], "word 0, 'so', has start=0 and end=inf"),
        (
            [("so", 1, 2), ("sad", 0.5, 3)],
            "word 1, 'sad', starts at 0.5 s, .* starts at 1.0 s; sort the words by start",
        ),
        (SRT.replace("00:00:02,000", "00:00:00,000"), "word 0, 'hello', has start=1.0 and end=0.0"),
        ("hello you", "'hello you' does not contain word timestamps; expected a list"),
        ("x" * 999, "'x{200}...' does not contain word timestamps"),
        ("call.wav", "'call.wav' does not contain word timestamps"),
        ("no_such.srt", "Cannot read no_such.srt: No such file"),
        (b"hello you", "'hello you' does not contain word timestamps"),
        ("no_such.json", "Cannot read no_such.json: No such file"),
    ],
)
def test_invalid_word_times_raise(word_times, message):
    with pytest.raises(ValueError, match=message):
        read_word_times(word_times)


@pytest.mark.parametrize("name", ["call.srt", "call.VTT"])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_subtitles_are_read_from_files(name, kind, tmp_path):
    path = tmp_path / name
    path.write_bytes(f"\ufeff{SRT if name == 'call.srt' else VTT}".replace("\n", "\r\n").encode())
    assert read_word_times(kind(path)) == HELLO_YOU
    path.write_bytes(b"")
    assert read_word_times(kind(path)) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("call.srt", SRT.encode("utf-16")[:-1], r"call.srt is not UTF-16-LE, .*truncated data"),
        ("call.json", b"hello", r"call.json is not JSON \(Expecting value"),
        ("call.json", b"[" * 99_999, r"call.json is not JSON \(maximum recursion"),
        ("call.json", b'"hello.srt"', r"call.json contains 'hello.srt'; expected a list"),
        ("call.json", b'{"text": "hello"}', r"dict with keys \['text'\]"),
        (
            "call.srt",
            b"hello you",
            "does not contain subtitles; expected SRT, with lines such as 00:00:01,000 -->",
        ),
        (
            "call.ass",
            SRT.encode(),
            "call.ass' does not contain word timestamps; expected .* ends in .srt, .vtt or .json",
        ),
    ],
)
def test_invalid_files_raise(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_word_times(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"Cannot read|does not contain word timestamps"):
        read_word_times(path)


def test_words_are_clipped_to_the_audio(caplog):
    words = [("a", 0, 1.0), ("b", 1.0, 1.5), ("c", 1.5, 3.0), ("d", 2.25, 2.75)]
    clipped = read_word_times([*words[:2], ("c", 1.5, 2.25), words[3]], 2.0)
    assert clipped == [("a", 0, 1), ("b", 1, 1.5), ("c", 1.5, 2), ("d", 2, 2)] == read_word_times(clipped, 2.0)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 words or phrases ended after the audio, which lasts 2.00 s; they were cut there."
    ]
    assert read_word_times([("a", 0, 2.005)], 2.0) == [("a", 0, 2)]  # within rounding
    assert len(caplog.records) == 1
    assert read_word_times([("a", 2.5, 3)], 2.0) == [("a", 2, 2)]
    with pytest.raises(
        ValueError, match=r"word 1, 'b', starts at 2.51 s, .* lasts 2.00 s; .* another recording.* in ms"
    ):
        read_word_times([("a", 1, 2), ("b", 2.51, 3)], 2.0)


def test_a_phrase_that_ends_after_the_audio_is_cut_before_it_is_divided():
    # The last segment of Whisper may end with its window of 30 s.
    words = read_word_times([chunk("I could tell you all of it tonight", 1.5, 5.0)], 2.9)
    assert [word for word, _, _ in words] == ["I", "could", "tell", "you", "all", "of", "it", "tonight"]
    assert (words[0][1], words[-1][2]) == (1.5, 2.9)
    assert all(start < end for _, start, end in words)


@pytest.mark.parametrize(
    ("words", "ranges"),
    [
        ("", []),
        ("hello", [(0, 1)]),
        ("I am. Are you? No! Well… yes", [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7)]),
        ('She said "no." Then (so it seems!) left.', [(0, 3), (3, 7), (7, 8)]),
        ("そう。 本当？ 「はい！」 ええ", [(0, 1), (1, 2), (2, 3), (3, 4)]),  # noqa: RUF001
        ("Dr. Who", [(0, 1), (1, 2)]),
        ("3.5 a.b ?x so", [(0, 4)]),
    ],
)
def test_sentences_end_at_punctuation(words, ranges):
    assert split_sentences([(word, index, index + 1) for index, word in enumerate(words.split())]) == ranges


def test_sentences_end_at_pauses():
    words = [("a", 0, 1), ("b", 1.9, 2), ("c", 3, 4), ("d", 3.5, 4)]
    assert split_sentences(words) == [(0, 2), (2, 4)]


@pytest.mark.parametrize(
    ("words", "text", "places"),
    [
        (["So", "sad"], "so SAD", [(0, 2), (3, 6)]),
        (["so", "sad"], "(so), «sad»!", [(1, 3), (7, 10)]),
        (["a", "cat"], "a category, a cat.", [(0, 1), (2, 5)]),  # directly after the previous word
        (["cat"], "the category of a cat", [(18, 21)]),
        (["cat"], "the category", [(4, 7)]),
        (["so", "so"], "also so, so", [(5, 7), (9, 11)]),
        (["don't", "R&B"], "I don't like xR&B, R&B", [(2, 7), (19, 22)]),
        (["ΟΔΟΣ", "straße", "İstanbul"], "οδος STRAßE İSTANBUL", [(0, 4), (5, 11), (12, 20)]),
        (["今日", "は"], "今日は。", [(0, 2), (2, 3)]),
        ([], "so", []),
    ],
)
def test_words_are_located_in_their_text(words, text, places):
    assert locate_words(words, text) == places


def test_a_word_that_is_not_in_the_text_raises():
    with pytest.raises(ValueError, match=r"word 1, 'so', does not occur in the text after the previous words"):
        locate_words(["sad", "so"], "so sad")


@pytest.mark.parametrize(
    ("entry", "is_one_text"),
    [
        (("so", 0, 1), True),
        (chunk("so", 0, 1), True),
        (WORDS[0], True),
        (SEGMENTS[0], True),
        (Word(0, 1, "so", 1.0), True),
        (WordTuple(0, 1, "so", 1.0), True),
        ({"text": "so", "chunks": []}, False),
        ({"text": "so", "segments": SEGMENTS}, False),
        ({"text": "so", "words": WORDS, "duration": 3600}, False),
        ([("so", 0, 1)], False),
        ("so", False),
        (Path("call.srt"), False),
        (None, False),
    ],
)
def test_a_list_is_one_text_or_a_batch(entry, is_one_text):
    assert is_timed_entry(entry) is is_one_text


@pytest.mark.parametrize("words", [WORDS, {"segments": SEGMENTS}, SRT, SRT.encode(), Path("call.srt")])
def test_word_times_in_place_of_a_text(words):
    assert separate_word_times(words, None) == (None, words)
    assert separate_word_times("so", words) == ("so", words)
    with pytest.raises(ValueError, match=r"text\[1\] and word_times\[1\] both contain word timestamps"):
        separate_word_times(words, WORDS, "[1]")


# In a process of its own, whose time and memory are limited: quadratic costs are minutes and gigabytes.
HOSTILE = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from mmemo.words.times import locate_words, read_word_times, split_sentences
heads = "WEBVTT\\n\\n00:00.000 --> 00:01.000\\n", "1\\n00:00:00,000 --> 00:00:01,000\\n"
bombs = (
    "<b>", "</", "<a", "< ", "{", "{\\\\", "{\\\\p", "\\\\N", "&", "&#9", "&" + "a" * 40, "\\n", "\\r", " ", "1\\n",
    "a\\n", "a --> ", "-->", "<00:00:00.500>", "0:0", "a", ".", '."', "\\n00:00:00,000 --> 00:00:01,000\\nx\\n",
)
for bomb in bombs:
    for head in heads:
        print(repr(bomb), flush=True)
        words = read_word_times(head + bomb * (180_000 // len(bomb)))
        texts = [word for word, _, _ in words]
        locate_words(texts, " ".join(texts))
        split_sentences(words)
print(len(read_word_times(heads[0] + "&#" + "9" * 180_000 + ";")))
distinct = [str(number) for number in range(20_000)]
for words, text in (
    (["a"] * 90_000, "xa" * 90_000), (["a"] * 60_000, "xa " * 60_000), (distinct, "x".join(["", *distinct])),
    (["a"] * 90_000, "!a" * 90_000), (["a" * 90_000 + "b"], "a" * 180_000 + "b"),
):
    print(text[:9], flush=True)
    locate_words(words, text)
read_word_times([{"word": "x"}] * 90_000 + [("a", 1, 2)])
"""


def test_hostile_words_cost_linear_time_and_memory():
    run = subprocess.run([sys.executable, "-c", HOSTILE], capture_output=True, text=True)
    assert run.returncode == 0, (run.returncode, run.stdout[-100:], run.stderr[-1000:])
