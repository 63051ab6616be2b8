"""Which columns of a table are the parts of its items, and what becomes of the others."""

import pyarrow as pa
import pytest

from mmemo.archives.archive_items import ArchiveItem
from mmemo.archives.column_mapping import OUTPUT_COLUMNS, check_columns, map_columns


TEXT, MEDIA = pa.string(), pa.struct({"bytes": pa.binary(), "path": pa.string()})


def mapped(kinds, columns=(), **options):
    kinds = dict.fromkeys(kinds, TEXT) if isinstance(kinds, tuple) else kinds
    return map_columns(kinds, "calls.csv", dict(columns), **options)


@pytest.mark.parametrize(
    ("kinds", "video", "paths"),
    [
        (("path", "text"), False, ("path",)),
        (("file", "path", "file_name", "audio"), False, ("audio",)),
        (("file", "path", "file_name"), False, ("file_name",)),
        (("video", "audio"), False, ("audio", "video")),
        (("video", "audio"), True, ("video", "audio")),
        (("video_file_name",), False, ("video_file_name",)),
        ({"recording": MEDIA, "n": TEXT}, False, ("recording",)),
        ({"audio": MEDIA, "path": TEXT}, False, ("audio",)),
        (("text",), False, ()),
    ],
)
def test_columns_of_recordings(kinds, video, paths):
    assert mapped(kinds, video=video).paths == paths


def test_columns_are_mapped():
    mapping = mapped(("call_id", "id", "recording", "path", "said", "text"), {"path": "recording", "id": "call_id"})

    assert (mapping.id, mapping.paths, mapping.text) == ("call_id", ("recording",), "text")
    assert mapping.carried == {"id": "input_id", "path": "input_path", "said": "said", "text": "text"}
    assert mapped(("id", "path"), {"text": "id"}).text == "id"


def test_columns_that_the_output_has_are_carried_under_another_name():
    names = (*OUTPUT_COLUMNS, "", "Label", "input_label", "INPUT_SCORE", "agent", "Agent")

    mapping = mapped(names, {"path": "agent"})

    carried = list(mapping.carried.values())
    assert len({name.lower() for name in (*carried, *OUTPUT_COLUMNS)}) == len(carried) + len(OUTPUT_COLUMNS)
    assert mapping.carried[""] == "input_"  # DuckDB has no columns without a name
    assert mapping.carried["label"] == "input_label" and mapping.carried["Label"] == "input_Label".replace(
        "input_", "input_input_"
    )
    assert mapping.carried["error"] == "input_error" and mapping.carried["Agent"] == "Agent"
    assert mapping.types.keys() == set(carried)


def test_an_item_of_a_row():
    kinds = {"id": TEXT, "path": TEXT, "text": TEXT, "srt": TEXT, "channel": pa.float64(), "agent": pa.int64()}
    mapping = mapped(kinds)
    row = {"id": "7", "path": "a.wav", "text": "So sad.", "srt": "a.srt", "channel": 1.0, "agent": 12}

    assert mapping.item(row, "7", "row 0", "calls/{}".format) == ArchiveItem(
        "7",
        path="calls/a.wav",
        text="So sad.",
        word_times="calls/a.srt",
        channel=1,
        columns={"text": "So sad.", "srt": "a.srt", "channel": 1.0, "agent": 12},
    )
    empty = dict.fromkeys(kinds) | {"path": " ", "channel": float("nan")}
    assert mapping.item(empty, "x", "row 1", str) == ArchiveItem(
        "x", columns={"text": None, "srt": None, "channel": empty["channel"], "agent": None}
    )
    with pytest.raises(ValueError, match=r"^row 2 of calls\.csv has the channel 0\.5; expected a whole number from 0"):
        mapping.channel_of(row | {"channel": 0.5}, "row 2 of calls.csv")
    with pytest.raises(ValueError, match="has the channel inf; expected a whole number"):
        mapping.channel_of(row | {"channel": float("inf")}, "row 2 of calls.csv")


def test_ids_of_rows():
    mapping = mapped(("id", "path"))

    assert mapping.id_of({"id": "7", "path": "a.wav"}, "t/0") == "7"
    assert mapping.id_of({"id": None, "path": "caf\udce9.wav"}, "t/0") == "caf\\udce9.wav"
    assert mapping.id_of({"id": " ", "path": "a.wav"}, "t/0", is_named=False) == "t/0"
    assert mapping.id_of({"id": None, "path": ""}, "t/0") == "t/0"


def test_recordings_in_a_row():
    mapping = mapped({"audio": MEDIA, "image": MEDIA, "embedding": pa.binary()}, video=True)

    assert mapping.left_out == ("image", "embedding") and mapping.carried == {}
    row = {"audio": {"bytes": b"1", "path": "a.wav"}}
    assert mapping.item(row, "a", "row 0", str) == ArchiveItem("a", content=b"1")
    assert mapping.item({"audio": {"bytes": None, "path": "a.wav"}}, "a", "row 0", str).path == "a.wav"
    assert mapping.item({"audio": None}, "a", "row 0", str) == ArchiveItem("a")
    assert mapping.id_of(row, "t/0") == "a.wav"


@pytest.mark.parametrize(
    ("kinds", "columns", "sentence"),
    [
        (("path",), {"id": "call"}, r"calls\.csv has no column 'call'; it has \['path'\]\. Correct --columns\."),
        (
            ("name", "n"),
            {},
            r"no column of recordings or texts; it has \['n', 'name'\]\. Name one of them with --colu",
        ),
        ({"path": TEXT, "channel": TEXT}, {}, r"the column 'channel' is string, but channels are whole numbers"),
        ({"path": TEXT, "word_times": pa.list_(TEXT)}, {}, r"'word_times' is list<item: string>, not text; map anoth"),
    ],
)
def test_columns_that_do_not_fit_raise(kinds, columns, sentence):
    with pytest.raises(ValueError, match=sentence):
        mapped(kinds, columns)


def test_only_parts_of_an_item_are_mapped():
    check_columns({"path": "recording"})
    with pytest.raises(
        ValueError, match=r"columns maps \['label'\], but the columns of an archive are \['id', 'path'"
    ):
        check_columns({"label": "emotion"})
