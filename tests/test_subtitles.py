"""Subtitles: SRT and WebVTT with all their markup, and the captions of video sites."""

import pytest

from mmemo.words.subtitles import is_subtitles, read_subtitles
from mmemo.words.times import read_word_times


SRT = "1\n00:00:01,000 --> 00:00:02,000\nhello\n\n2\n00:01:00,500 --> 01:00:00,000\nyou\n"
VTT = "WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n\n00:01:00.500 --> 01:00:00.000\nyou\n"
FIRST, SECOND = "00:00:01,000 --> 00:00:02,000", "00:00:02,000 --> 00:00:03,000"
HELLO_YOU = [("hello", 1.0, 2.0), ("you", 60.5, 3600.0)]


def vtt(*blocks):
    return "\n\n".join(["WEBVTT", *blocks]) + "\n"


def words_of(subtitles):
    return [word for text, _, _ in read_subtitles(subtitles) for word in text.split()]


@pytest.mark.parametrize(("start", "line_end"), [("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r")])
@pytest.mark.parametrize("subtitles", [SRT, VTT, SRT.removeprefix("1\n"), SRT.replace(",", ".")])
def test_bom_and_line_ends_do_not_matter(subtitles, start, line_end):
    assert read_subtitles(start + subtitles.replace("\n", line_end)) == HELLO_YOU


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ("00:00:01 --> 00:01:02", (1, 62)),
        ("0:0:1,5 --> 0:0:2,25", (1.5, 2.25)),
        ("00:01.250 --> 00:02", (1.25, 2)),
        ("00:01 --> 01:02", (1, 62)),
        ("  00:00:01,000-->00:00:02,000  X1:100 X2:200", (1, 2)),
        ("00:00:01.123456 --> 100:00:02.000", (1.123456, 360_002)),
        ("7 00:00:01,000 --> 00:00:02,000", (1, 2)),
        ("00:00:01,001 --> 00:00:04,100", (1.001, 4.1)),
    ],
)
@pytest.mark.parametrize("head", ["", "1\n", "WEBVTT\n\n", "WEBVTT\n\n1\n"])
def test_times_have_either_notation(times, expected, head):
    assert read_subtitles(f"{head}{times}\nso sad\n") == [("so sad", *expected)]


@pytest.mark.parametrize(
    "line", ["00:00:01:12 --> 00:00:02:13", "1 --> 2", "00:00:01,000 --> end", "00:00:01,0000000000 --> 00:00:02,000"]
)
def test_a_line_that_resembles_cue_times_raises(line):
    with pytest.raises(ValueError, match=rf"line 5 of the subtitles is '{line}'; expected cue times as HH:MM:SS,mmm"):
        read_subtitles(f"1\n{FIRST}\nso\n\n{line}\nsad")


def test_arrows_may_be_text():
    assert words_of(f"{FIRST}\npress A --> B\n\n{SECOND}\nso") == ["press", "A", "-->", "B", "so"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SRT, True),
        (VTT, True),
        ("WEBVTT", True),
        ("\ufeffWEBVTT Kind: captions\r\n", True),
        ("WEBVTT\r00:01 --> 00:02\rso", True),
        ("00:01.000 --> 00:02.000", True),
        ("1\n00:00:01 --> 00:00:02\nso", True),
        ("WEBVTTX\n", False),
        ("WEBVTT is a format", False),
        ("from 00:01.000 to 00:02.000", False),
        ("we are open 10:30 --> 18:00", False),
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
        (vtt("00:01.000 --> 00:02.000\n<v.loud Mary Ann><lang en>so</lang> <ruby>sad<rt></rt></v>"), ["so", "sad"]),
        (f"{FIRST}\nso\\Nvery\\hsad", ["so", "very", "sad"]),
        (f"{FIRST}\n&lt;b&gt; 1 < 2 <3 a<b", ["<b>", "1", "<", "2", "<3", "a<b"]),
        (f"{FIRST}\n{{laughs}} &#8230; &unknown; AT&T", ["{laughs}", "…", "&unknown;", "AT&T"]),
        (f"{FIRST}\n&#99999999;", ["\ufffd9;"]),
        # notes, styles and cue identifiers
        (vtt("NOTE by me", "STYLE\n::cue { color: red }", "intro\n00:01.000 --> 00:02.000\nso", "NOTE end"), ["so"]),
        (vtt("REGION\nid:fred\nwidth:40%", "NOTE\nseveral\nlines", "00:01.000 --> 00:02.000\nso"), ["so"]),
        (vtt("00:01.000 --> 00:02.000\nso", "second\n00:02.000 --> 00:03.000\nsad"), ["so", "sad"]),
        (vtt("00:01.000 --> 00:02.000\nso\n \n2\n00:02.000 --> 00:03.000\nsad"), ["so", "sad"]),
        ("WEBVTT - of a call\nKind: captions\n\n00:01.000 --> 00:02.000\nso", ["so"]),
        # cues without words
        (vtt("00:01.000 --> 00:02.000", "NOTE pause", "00:02.000 --> 00:03.000\nso"), ["so"]),
        (f"1\n{FIRST}\n\n2\n{SECOND}\nso\n\n3\n00:00:03,000 --> 00:00:04,000\n", ["so"]),
        (f"{FIRST}\n{{\\p1}}m 0 0 l 1 1{{\\p0}}\n\n{SECOND}\nso", ["so"]),
        # digits are words; counters and blank lines may be missing
        (vtt("00:01.000 --> 00:02.000\nhow many?\n10", "00:02.000 --> 00:03.000\n20"), ["how", "many?", "10", "20"]),
        (f"1\n{FIRST}\nhow many?\n10\n\n2\n{SECOND}\nno\n20", ["how", "many?", "10", "no", "20"]),
        (f"{FIRST}\nhow many?\n10\n\n{SECOND}\n20", ["how", "many?", "10", "20"]),
        (f"1\n{FIRST}\nso\n2\n{SECOND}\nsad", ["so", "sad"]),
        (f"1\n{FIRST}\nso\n\nvery\n\n2\n{SECOND}\nsad", ["so", "very", "sad"]),
    ],
)
def test_markup_notes_and_styles_are_not_words(subtitles, expected):
    assert words_of(subtitles) == expected


def test_cues_are_sorted_and_overlaps_cut(caplog):
    cues = ["00:05.000 --> 00:06.000\nlast", "00:01.000 --> 00:03.000\na bc", "00:02.500 --> 00:04.000\nd"]
    assert read_word_times(vtt(*cues)) == [("a", 1, 1.5), ("bc", 1.5, 2.5), ("d", 2.5, 4), ("last", 5, 6)]
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 3 words or phrases overlapped the next and were cut at its start."
    ]


def test_cues_of_zero_length_keep_their_words():
    assert read_word_times(f"{FIRST}\nso\n\n00:00:02,000 --> 00:00:02,000\nvery sad") == [
        ("so", 1, 2),
        ("very", 2, 2),
        ("sad", 2, 2),
    ]
    with pytest.raises(ValueError, match=r"word 0, 'so', has start=2.0 and end=1.0"):
        read_word_times("00:00:02,000 --> 00:00:01,000\nso")


YOUTUBE = """WEBVTT
Kind: captions
Language: en

00:00:00.000 --> 00:00:01.500 align:start position:0%
 
hello<00:00:00.500><c> my</c><00:00:01.000><c> friend</c>

00:00:01.500 --> 00:00:01.510 align:start position:0%
hello my friend
 

00:00:01.510 --> 00:00:03.000 align:start position:0%
hello my friend
how<00:00:02.000><c> are</c><00:00:02.500><c> you</c>
"""  # noqa: W293


def test_rolling_captions_of_video_sites_give_each_word_once(caplog):
    assert read_word_times(YOUTUBE) == [
        ("hello", 0, 0.5),
        ("my", 0.5, 1),
        ("friend", 1, 1.5),
        ("how", 1.51, 2),
        ("are", 2, 2.5),
        ("you", 2.5, 3),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "2 lines of the subtitles repeat the previous cue, as rolling captions do; each was taken once."
    ]


@pytest.mark.parametrize(
    "cues",
    [
        # converted to SRT, without times of words; the cues touch or overlap
        [(0, 2, "hello my friend"), (2, 2.01, "hello my friend"), (2.01, 4, "hello my friend\nhow are you")],
        [(0, 4, "hello my friend"), (2, 6, "hello my friend\nhow are you")],
        # several lines
        [(0, 2, "hello"), (2, 3, "hello\nmy friend"), (3, 4, "my friend\nhow"), (4, 5, "my friend\nhow\nare you")],
        # written twice
        [(0, 2, "hello my friend"), (0, 2, "hello my friend"), (2, 3, "how\nare you"), (2, 3, "how\nare <i>you</i>")],
    ],
)
def test_lines_on_the_screen_are_taken_once(cues):
    times = ["00:00:{:06.3f} --> 00:00:{:06.3f}".format(*cue) for cue in cues]
    subtitles = "\n\n".join(
        f"{number}\n{line}\n{text}" for number, (line, (_, _, text)) in enumerate(zip(times, cues))
    )
    assert words_of(subtitles) == ["hello", "my", "friend", "how", "are", "you"]


@pytest.mark.parametrize(
    "subtitles",
    [
        # a word is repeated, by one speaker or another
        f"{FIRST}\nno\n\n{SECOND}\nno",
        f"{FIRST}\nno\n\n00:00:09,000 --> 00:00:10,000\nno\nstop",
        f"{FIRST}\n- no\n- no\n\n{SECOND}\n- no\n- stop\n\n00:00:03,000 --> 00:00:04,000\nyou\nthere"
        "\n\n00:00:05,000 --> 00:00:06,000\nand\nyou",
    ],
)
def test_repeated_words_are_kept(subtitles):
    assert words_of(subtitles).count("no") == (3 if "- no" in subtitles else 2)


def test_times_inside_a_cue_are_those_of_its_words():
    cue = "00:01.000 --> 00:02.000 align:start\n \nso<00:01.200><c> very</c><00:01.500><c> sad</c>"
    assert read_subtitles(vtt(cue)) == [("so", 1, 1.2), (" very", 1.2, 1.5), (" sad", 1.5, 2)]
    # outside of the cue, and not in order
    cue = "00:01.000 --> 00:02.000\na<00:09.000>b<00:00.500>c"
    assert read_subtitles(vtt(cue)) == [("a", 1, 2), ("b", 2, 2), ("c", 2, 2)]
