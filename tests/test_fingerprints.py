import os

import pytest

from modeling_mmemo.data.fingerprints import audio_fingerprint, file_fingerprint, rows_fingerprint


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(b"RIFF")
    os.utime(path, (0, 0))
    return path


def test_a_file_changes_with_its_size_and_time(clip):
    before = file_fingerprint(clip)
    assert file_fingerprint(clip) == before

    os.utime(clip, (0, 1))
    later = file_fingerprint(clip)
    clip.write_bytes(b"RIFFRIFF")
    os.utime(clip, (0, 1))

    assert len({before, later, file_fingerprint(clip)}) == 3


def test_audio_by_path_bytes_and_url(clip):
    url = {"bytes": None, "path": "https://example.org/clip.wav"}
    cells = [None, {"bytes": None, "path": str(clip)}, {"bytes": b"a", "path": "x"}, {"bytes": b"b", "path": "x"}, url]

    assert len(set(map(audio_fingerprint, cells))) == len(cells)
    assert audio_fingerprint(url) == url["path"]


def test_rows_change_with_every_column_and_their_order(clip):
    row = {"audio": {"bytes": None, "path": str(clip)}, "video": None, "label": "sad"}
    others = [[row, row], [row | {"label": "happy"}], [row | {"audio": None}], [row | {"video": row["audio"]}]]

    assert rows_fingerprint([row]) == rows_fingerprint([dict(reversed(row.items()))])
    assert len({rows_fingerprint(rows) for rows in ([row], *others)}) == 5


def test_rows_change_with_the_file_of_a_video(clip):
    row = {"audio": None, "video": {"bytes": None, "path": str(clip)}}
    before = rows_fingerprint([row])

    clip.write_bytes(b"RIFFRIFF")

    assert rows_fingerprint([row]) != before
