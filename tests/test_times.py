"""Word timestamps: every form, subtitles, clipping, sentences."""

import sys

import numpy as np
import pytest

from mmemo.words.times import clip_word_times, is_subtitles, read_word_times, split_sentences


SRT = "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n2\n00:01:00,500 --> 01:00:00,000\nyou\n"
VTT = "WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n\n00:01:00.500 --> 01:00:00.000\nyou\n"
FIRST, SECOND = "00:00:01,000 --> 00:00:02,000", "00:00:02,000 --> 00:00:03,000"
HELLO_YOU = [("hello", 1.0, 2.0), ("you", 60.5, 3600.0)]


def chunk(text, start, end):
    return {"text": text, "timestamp": (start, end)}


def vtt(*blocks):
    return "\n\n".join(["WEBVTT", *blocks]) + "\n"


def texts(words):
    return [word for word, _, _ in words]


@pytest.mark.parametrize(
    "word_times",
    [
        HELLO_YOU,
        [list(word) for word in HELLO_YOU],
        [(" hello ", np.float64(1), 2), ("you", 60.5, 3600)],
        [chunk(*word) for word in HELLO_YOU],
        [chunk(" hello", 1, 2), chunk(" ", 3, 4), chunk(" you", 60.5, 3600)],
        {"text": " hello you", "chunks": [chunk(*word) for word in HELLO_YOU]},
        SRT,
        VTT,
    ],
)
def test_all_forms_give_the_same_words(word_times, caplog):
    words = read_word_times(word_times)
    assert words == HELLO_YOU == read_word_times(words)
    assert {type(value) for word in words for value in word} == {str, float}
    assert not caplog.records


@pytest.mark.parametrize("empty", [[], (), "", " \n", "\ufeff", "WEBVTT", vtt(), {"text": "", "chunks": []}])
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
        "2 of 4 words or phrases overlapped the next; they were cut at its start."
    ]
    assert read_word_times(words) == words
    assert len(caplog.records) == 1


def test_a_chunk_without_an_end_lasts_until_the_next_one(caplog):
    chunks = [chunk("so", 0.1, None), chunk("happy", 0.4, 0.6), chunk("you", 2, None)]
    assert read_word_times(chunks) == [("so", 0.1, 0.4), ("happy", 0.4, 0.6), ("you", 2, 2)]
    assert not caplog.records


@pytest.mark.parametrize(
    ("word_times", "message"),
    [
        (3, r"expected a list of \(word, start, end\) .* ends in .srt or .vtt; got int"),
        ({"text": "so"}, r"keys \['text'\] has no list of 'chunks'; .* return_timestamps='word'"),
        ([("so", 0)], r"entry 0 is \('so', 0\); expected \(word, start, end\)"),
        ([{"text": "so"}], r"entry 0 is \{'text': 'so'\}"),
        ([chunk("so", 0, 1), {"text": "so", "timestamp": None}], "entry 1 is"),
        ([("so", 0, 1), ("", 1, 2)], "word 1 is ''; expected a str that is not blank"),
        ([chunk(None, 0, 1)], "word 0 is None"),
        ([("so", 0, None)], "word 0, 'so', has start=0 and end=None"),
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
        (VTT.replace("WEBVTT", ""), "contain '-->' 2 times, but 1 cues could be parsed; .* a first line WEBVTT"),
        (VTT.replace("00:01.000", "00:01,000"), "contain '-->' 2 times, but 1 cues could be parsed"),
        (vtt("00:01 --> 00:02\nso"), "contain '-->' 1 times, but 0 cues could be parsed"),
        (
            f"{FIRST}\nso\n\n{FIRST}\nfrom 00:00:01,000 to 00:00:02,000",
            "contain '-->' 2 times, but 3 cues could be parsed",
        ),
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
        ("call.srt", SRT.replace("hello", "héllo").encode("latin-1"), r"call.srt is not UTF-8 .*iconv -f LATIN1"),
        ("call.srt", SRT.encode("utf-16"), "call.srt is not UTF-8"),
        (
            "call.srt",
            b"hello you",
            "does not contain subtitles; expected SRT, with lines such as 00:00:01,000 -->",
        ),
        ("call.ass", SRT.encode(), "call.ass' does not contain word timestamps; expected .* ends in .srt or .vtt"),
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


@pytest.mark.parametrize(("start", "line_end"), [("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r")])
@pytest.mark.parametrize("subtitles", [SRT, VTT, SRT.removeprefix("1\n"), SRT.replace(",", ".")])
def test_bom_and_line_ends_do_not_matter(subtitles, start, line_end):
    assert read_word_times(start + subtitles.replace("\n", line_end)) == HELLO_YOU


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SRT, True),
        (VTT, True),
        ("WEBVTT", True),
        ("\ufeffWEBVTT Kind: captions\r\n", True),
        ("00:01.000 --> 00:02.000", True),
        ("WEBVTTX\n", False),
        ("WEBVTT is a format", False),
        ("from 00:01.000 to 00:02.000", False),
        ("a --> b", False),
        ("see you at 10:30", False),
        ("", False),
    ],
)
def test_subtitles_are_recognized_by_their_times(text, expected):
    assert is_subtitles(text) is expected


@pytest.mark.parametrize(
    ("subtitles", "expected"),
    [
        # markup, entities, and positions
        (f"1\n{FIRST} X1:1 X2:2\n{{\\an8}}<i>so</i> <font color='red'>sad</font>\n", ["so", "sad"]),
        (vtt("00:01.000 --> 00:02.000 align:start position:0%\n<v Ann>R&amp;B&nbsp;<c.red>so</c>"), ["R&B", "so"]),
        # notes, styles and cue identifiers
        (vtt("NOTE by me", "STYLE\n::cue { color: red }", "intro\n00:01.000 --> 00:02.000\nso", "NOTE end"), ["so"]),
        (vtt("00:01.000 --> 00:02.000\nso", "second\n00:02.000 --> 00:03.000\nsad"), ["so", "sad"]),
        ("WEBVTT - of a call\nKind: captions\n\n00:01.000 --> 00:02.000\nso", ["so"]),
        # cues without words
        (vtt("00:01.000 --> 00:02.000", "NOTE pause", "00:02.000 --> 00:03.000\nso"), ["so"]),
        (f"1\n{FIRST}\n\n2\n{SECOND}\nso\n\n3\n00:00:03,000 --> 00:00:04,000\n", ["so"]),
        (f"{FIRST}\n{{\\p1}}m 0 0 l 1 1{{\\p0}}\n\n{SECOND}\nso", ["so"]),
        # digits are words
        (vtt("00:01.000 --> 00:02.000\nhow many?\n10", "00:02.000 --> 00:03.000\n20"), ["how", "many?", "10", "20"]),
        (f"1\n{FIRST}\nhow many?\n10\n\n2\n{SECOND}\nno\n20", ["how", "many?", "10", "no", "20"]),
        # with the times of single words, as video sites export them
        (
            vtt("00:01.000 --> 00:02.000 align:start\n \nso<00:01.200><c> very</c><00:01.500><c> sad</c>"),
            ["so", "very", "sad"],
        ),
    ],
)
def test_markup_notes_and_styles_are_not_words(subtitles, expected):
    assert texts(read_word_times(subtitles)) == expected


def test_cues_are_sorted_and_overlaps_cut(caplog):
    cues = ["00:05.000 --> 00:06.000\nlast", "00:01.000 --> 00:03.000\na bc", "00:02.500 --> 00:04.000\nd"]
    assert read_word_times(vtt(*cues)) == [("a", 1, 1.5), ("bc", 1.5, 2.5), ("d", 2.5, 4), ("last", 5, 6)]
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 3 words or phrases overlapped the next; they were cut at its start."
    ]


def test_missing_pysubs2_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysubs2", None)
    with pytest.raises(ValueError, match="pip install pysubs2"):
        read_word_times(SRT)


def test_words_are_clipped_to_the_audio(caplog):
    words = [("a", 0, 1.0), ("b", 1.0, 2.005), ("c", 1.5, 3.0), ("d", 2.25, 2.75)]
    clipped = clip_word_times(words, 2.0)
    assert clipped == [("a", 0, 1), ("b", 1, 2), ("c", 1.5, 2), ("d", 2, 2)] == clip_word_times(clipped, 2.0)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 4 words ended after the audio, which lasts 2.00 s; they were cut there."
    ]
    assert clip_word_times(words[:2], 2.0) == clipped[:2]  # within rounding
    assert len(caplog.records) == 1
    assert clip_word_times([("a", 2.5, 3)], 2.0) == [("a", 2, 2)]
    with pytest.raises(
        ValueError, match=r"word 1, 'b', starts at 2.51 s, .* lasts 2.00 s; .* another recording.* in ms"
    ):
        clip_word_times([("a", 1, 2), ("b", 2.51, 3)], 2.0)


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
