import csv

import pytest

from modeling_mmemo import EMOTIONS
from modeling_mmemo.data.corpora import FEATURES, read_corpus
from modeling_mmemo.data.labels import shared_label


@pytest.fixture
def data_dir(tmp_path):
    """A miniature of RAVDESS and of MELD's text, in the layout that `read_corpus` describes."""
    tables = {
        "ravdess/metadata.csv": [
            {"file_name": "a.flac", "label": "calm", "speaker": "01", "text": "Dogs.", "emobox_fold_1": "test"},
            {"file_name": "b.flac", "label": "fearful", "speaker": "02", "text": "Dogs.", "emobox_fold_1": "train"},
            {"file_name": "c.flac", "label": "surprised", "speaker": "05", "text": "Dogs.", "emobox_fold_1": "train"},
        ],
        "text/meld_text.csv": [
            {"text": "Oh, joy, \u201cjoy\u201d!", "label": "joy", "speaker": "Ross", "split": "dev"},
            {"text": "So bored.", "label": "boredom", "speaker": "Ross", "split": "train"},
        ],
    }
    for name, rows in tables.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return tmp_path


@pytest.mark.parametrize(
    ("label", "shared"),
    [
        ("Anger", "angry"),
        ("calm", "neutral"),
        ("pleasant_surprise", "surprise"),
        ("boredom", None),
        ("joy|fear", None),
    ],
)
def test_a_label_maps_to_its_shared_counterpart(label, shared):
    assert shared_label(label) == shared


def test_shared_labels_map_to_themselves():
    assert tuple(map(shared_label, EMOTIONS)) == EMOTIONS


def test_an_audio_corpus_comes_out_in_the_schema(data_dir):
    rows = read_corpus("ravdess", data_dir)

    assert rows.features == FEATURES
    assert rows["label"] == ["neutral", "fear", "surprise"]
    assert rows["split"] == ["test", "dev", "train"]  # speaker 02 is set aside for development
    assert rows["speaker"] == ["ravdess-01", "ravdess-02", "ravdess-05"]
    assert rows[0]["audio"] == {"path": str(data_dir / "ravdess" / "a.flac"), "bytes": None}


def test_a_text_corpus_leaves_out_labels_without_counterpart(data_dir):
    rows = read_corpus("meld", data_dir)

    assert rows["text"] == ["Oh, joy, \u201cjoy\u201d!"]
    assert rows["audio"] == [None]


def test_an_unknown_or_absent_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'iemocap'; the known ones are .*'ravdess'"):
        read_corpus("iemocap", tmp_path)
    with pytest.raises(ValueError, match=r"nemo/metadata.csv does not exist; .*--data_dir"):
        read_corpus("nemo", tmp_path)


@pytest.mark.corpora
@pytest.mark.parametrize("name", ["ravdess", "nemo", "tess", "emodb"])
def test_no_speaker_of_a_real_corpus_is_in_two_splits(name, corpora_dir):
    rows = read_corpus(name, corpora_dir)

    splits = {}
    for speaker, split in zip(rows["speaker"], rows["split"]):
        splits.setdefault(speaker, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
