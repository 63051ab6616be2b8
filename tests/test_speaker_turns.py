"""Speaker turns in every form, merged, and invalid ones."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest

from mmemo.timeline.speaker_turns import read_speaker_turns


TURNS = [("agent", 0.0, 2.5), ("customer", 2.0, 4.75), ("agent", 5.0, 6.0)]
RTTM = """;; made by hand
SPKR-INFO call 1 <NA> <NA> <NA> unknown agent <NA> <NA>
SPEAKER call 1 0.000 2.500 <NA> <NA> agent <NA> <NA>

SPEAKER call 1 5.0 1.0 <NA> <NA> agent <NA> <NA>
SPEAKER call 2 2.0 2.75 <NA> <NA> customer <NA> <NA>
"""


class Annotation:
    """A stand-in for `pyannote.core.Annotation`."""

    def __init__(self, turns):
        self.turns = turns

    def itertracks(self, yield_label=False):
        assert yield_label
        for track, (label, start, end) in enumerate(self.turns):
            yield SimpleNamespace(start=start, end=end), track, label


@pytest.fixture
def warnings(caplog, monkeypatch):
    """Returns the logged messages, whether or not transformers propagates its records."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


def test_every_form_gives_the_same_turns(tmp_path, warnings):
    path = tmp_path / "call.rttm"
    path.write_text(RTTM, encoding="utf-8")
    with_mark = tmp_path / "Windows.RTTM"
    with_mark.write_text(RTTM.partition("\n\n")[2], encoding="utf-8-sig")
    forms = {
        "tuples": TURNS,
        "tuple": tuple(TURNS),
        "lists in any order": [list(turn) for turn in reversed(TURNS)],
        "dicts": [dict(zip(("speaker", "start", "end"), turn)) | {"text": "hello"} for turn in TURNS],
        "numpy": [(speaker, np.float32(start), np.float64(end)) for speaker, start, end in TURNS],
        "rttm": RTTM,
        "rttm of Windows": "\ufeff" + RTTM.partition("\n")[2].partition("\n")[2].replace("\n", "\r\n"),
        "rttm without the last fields": RTTM.replace(" <NA> <NA>\n", "\n"),
        "str": str(path),
        "os.PathLike": path,
        "pyannote": Annotation(TURNS),
    }
    for name, form in forms.items():
        turns = read_speaker_turns(form)
        assert turns == TURNS, name
        assert all(type(time) is float for turn in turns for time in turn[1:]), name
    assert read_speaker_turns(with_mark) == [TURNS[1], TURNS[2]]
    assert not warnings()


@pytest.mark.parametrize("form", [Annotation, list, lambda turns: [dict(zip(("speaker", "start", "end"), turns[0]))]])
def test_speakers_may_be_numbers(form):
    assert read_speaker_turns(form([(0, 0, 1)])) == [("0", 0.0, 1.0)]


def test_turns_of_zero_length_are_dropped(warnings):
    rttm = "SPEAKER call 1 0.5 0 <NA> <NA> a <NA> <NA>\nSPEAKER call 1 0.7 0.1 <NA> <NA> b <NA> <NA>"

    assert read_speaker_turns(rttm) == [("b", 0.7, 0.8)] == read_speaker_turns([("a", 0.5, 0.5), ("b", 0.7, 0.8)])
    assert warnings() == ["1 of 2 turns had zero length and were dropped."] * 2


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("SPEAKER call 1 0 1 <NA> <NA> Mr Smith <NA> <NA>", "Mr Smith"),
        ("SPEAKER call 1 0 1 <NA> <NA> Mr  John Smith", "Mr John Smith"),
        ("SPEAKER call 1 0 1 <NA> <NA> speaker 1 <NA> <NA>", "speaker 1"),
        ("SPEAKER call 1 0 1 <NA> <NA> speaker 1", "speaker 1"),
        ("SPEAKER call 1 0 1 <NA> <NA> Mr Smith 0.9 <NA>", "Mr Smith"),
        ("SPEAKER call 1 0 1 <NA> <NA> a 1 <NA>", "a"),
        ("SPEAKER call 1 0 1 <NA> <NA> a 0.75", "a"),
        ("SPEAKER call 1 0 1 <NA> <NA> 3 <NA> <NA>", "3"),
        ("SPEAKER my call 2 1 0 1 <NA> <NA> a <NA> <NA>", "a"),
        ("SPEAKER my call 1 0 1 <NA> <NA> Mr Smith <NA> <NA>", "Mr Smith"),
        ("SPEAKER call <NA> 0 1 speech <NA> a <NA> <NA>", "a"),
    ],
)
def test_names_in_rttm_may_contain_blanks(line, name):
    assert read_speaker_turns(line) == [(name, 0.0, 1.0)]


def test_rttm_files_may_have_other_encodings(tmp_path):
    path = tmp_path / "call.rttm"
    for encoding in ("utf-16", "utf-16-le", "utf-8-sig", "gb18030"):
        path.write_bytes("SPEAKER call 1 0 1 <NA> <NA> 王小姐 <NA> <NA>\r\n".encode(encoding))
        assert read_speaker_turns(path) == [("王小姐", 0.0, 1.0)]


def test_overlapping_or_touching_turns_of_one_speaker_are_merged(warnings):
    turns = [("a", 0, 2), ("a", 1, 3), ("a", 1.5, 2), ("b", 2.5, 4), ("a", 3, 3.5), (" a ", 3.6, 4)]

    assert read_speaker_turns(turns) == [("a", 0.0, 3.5), ("b", 2.5, 4.0), ("a", 3.6, 4.0)]
    assert warnings() == ["2 of 6 turns overlapped another turn of the same speaker and were merged with it."]


def test_touching_turns_are_merged_without_a_warning_despite_rounding(warnings):
    rttm = "SPEAKER call 1 0.7 0.1 <NA> <NA> a <NA> <NA>\nSPEAKER call 1 0.8 0.2 <NA> <NA> a <NA> <NA>"

    assert 0.7 + 0.1 < 0.8
    assert read_speaker_turns(rttm) == [("a", 0.7, 1.0)]
    assert not warnings()


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("a", 0, 1), ("b", -0.5, 1)], r"turn 1, of 'b', has start=-0.5 and end=1; expected .* 0 <= start <= end"),
        ([("a", math.nan, 1)], "turn 0, of 'a', has start=nan"),
        ([("a", 0, math.nan)], "turn 0, of 'a', has start=0 and end=nan"),
        ([("a", 0, math.inf)], "turn 0, of 'a', has start=0 and end=inf"),
        ([("a", 1, 1), ("b", 2, 2)], "All 2 speaker turns have zero length; pass at least one"),
        ([("a", False, True)], "turn 0, of 'a', has start=False"),
        ([("a", 2, 1)], "turn 0, of 'a', has start=2 and end=1"),
        ([("a", "0", "1")], "turn 0, of 'a', has start='0'"),
        ([("  ", 0, 1)], "turn 0 has speaker='  '; expected a str that is not blank"),
        ([(3.5, 0, 1)], "turn 0 has speaker=3.5"),
        ([(True, 0, 1)], "turn 0 has speaker=True"),
        ([("a", 0)], r"turn 0 is \('a', 0\); expected \(speaker, start, end\)"),
        ([{"speaker": "a", "start": 0}], "turn 0 is .*'speaker', 'start', 'end'"),
        ([5], "turn 0 is 5"),
        ([], "There are no speaker turns; pass at least one"),
        ("", "There are no speaker turns"),
        ("turns.txt", "There are no speaker turns; .* path ending in .rttm"),
        (Annotation([]), "There are no speaker turns"),
        (Annotation([("a", 1, 0)]), "turn 0, of 'a', has start=1 and end=0"),
        (5, "int does not contain speaker turns; pass a list"),
        (None, "NoneType does not contain speaker turns"),
        ("SPEAKER call 1 0 1 <NA> <NA>", r"line 1 is not RTTM \(7 fields\).*expected 'SPEAKER file channel start"),
        (";;\nSPEAKER call 1 x 1 <NA> <NA> Mr Smith <NA> <NA>", "line 2 is not RTTM .*'x'"),
        ("\nSPEAKER call 1 0 one <NA> <NA> a <NA> <NA>", "line 2 is not RTTM .could not convert .*'one'"),
        ("SPEAKER call 1 0 0 <NA> <NA> a <NA> <NA>", "All 1 speaker turns have zero length"),
        ("SPEAKER call 1 0 -1 <NA> <NA> a <NA> <NA>", "line 1, of 'a', has start=0.0 and end=-1.0"),
        ("SPEAKER call 1 nan 1 <NA> <NA> a <NA> <NA>", "line 1, of 'a', has start=nan"),
        ("SPEAKER call 1 0 1 <NA> <NA> <NA> <NA> <NA>", "line 1 has speaker='<NA>'"),
        (RTTM + RTTM.replace("call", "other"), "turns of 2 recordings: call, other; pass the lines of one"),
    ],
)
def test_invalid_turns_raise(turns, message):
    with pytest.raises(ValueError, match=message):
        read_speaker_turns(turns)


def test_unreadable_files_raise(tmp_path):
    text = tmp_path / "turns.txt"
    text.write_text(RTTM)
    with pytest.raises(ValueError, match=r"turns.txt is not the path of an RTTM file, which ends in .rttm"):
        read_speaker_turns(text)
    with pytest.raises(ValueError, match=r"Cannot read .*missing.rttm: No such file"):
        read_speaker_turns(str(tmp_path / "missing.rttm"))
    binary = tmp_path / "binary.rttm"
    binary.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ValueError, match=r"binary\.rttm is not UTF-16"):
        read_speaker_turns(binary)
