import csv
from collections import Counter

import pytest
from tiny import write_table

from modeling_mmemo import EMOTIONS
from modeling_mmemo.data.corpora import CORPORA, find_layout, read_corpus
from modeling_mmemo.data.labels import label_of, single_label
from modeling_mmemo.data.schema import FEATURES


@pytest.fixture
def data_dir(tmp_path):
    """Small tables in the layouts of RAVDESS and of two text corpora."""
    tables = {
        "ravdess/metadata.csv": [
            {"file_name": "a.flac", "label": "calm", "speaker": "01", "text": "Dogs."},
            {"file_name": "b.flac", "label": "fearful", "speaker": "02", "text": "Dogs."},
            {"file_name": "c.flac", "label": "surprised", "speaker": "05", "text": "Dogs."},
        ],
        "text/meld_text.csv": [
            {"text": "Oh, joy, \u201cjoy\u201d!", "label": "joy", "speaker": "Ross", "split": "dev"},
            {"text": "So bored.", "label": "boredom", "speaker": "Ross", "split": "train"},
        ],
        "text/goemotions.csv": [
            {"text": "Thanks!", "label": "gratitude", "speaker": "", "split": "train"},
            {"text": "Stop it.", "label": "anger|annoyance", "speaker": "", "split": "train"},
            {"text": "Oh.", "label": "joy|surprise", "speaker": "", "split": "train"},
        ],
    }
    for name, rows in tables.items():
        write_table(tmp_path / name, rows)
    return tmp_path


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ("Anger ", "angry"),
        ("calm", "neutral"),
        ("pleasant_surprise", "surprise"),
        ("ps", "surprise"),
        ("boredom", None),
        ("excited", None),
        ("joy|fear", None),
    ],
)
def test_label_names_map_to_shared_labels(raw, label):
    assert label_of(raw) == label


def test_shared_labels_map_to_themselves():
    assert tuple(map(label_of, EMOTIONS)) == EMOTIONS


def test_requested_labels_are_kept():
    labels = ("Joy", "boredom", "sad")

    assert [label_of(raw, labels) for raw in ("joy", "boredom", "sadness", "happy")] == ["Joy", "boredom", "sad", None]


def test_several_names_of_the_same_label():
    assert single_label("joy|happy") == "happy"
    assert single_label("joy|annoyed", label_map={"Annoyed": "happy"}) == "happy"
    assert single_label("joy|boredom") is None


def test_audio_corpus_has_the_columns_of_the_schema(data_dir):
    rows = read_corpus("ravdess", data_dir)

    assert rows.features == FEATURES
    assert rows["label"] == ["neutral", "fear", "surprise"]
    assert rows["split"] == ["test", "dev", "train"]  # speakers 01 and 02 are set aside
    assert rows["speaker"] == ["ravdess-01", "ravdess-02", "ravdess-05"]
    assert rows[0]["audio"] == {"path": str(data_dir / "ravdess" / "a.flac"), "bytes": None}


def test_fold_holds_out_its_speakers_only(data_dir):
    assert read_corpus("ravdess", data_dir, fold=4)["split"] == ["train", "train", "test"]


def test_rows_without_a_shared_label_are_left_out(data_dir):
    rows = read_corpus("meld", data_dir)

    assert rows["text"] == ["Oh, joy, \u201cjoy\u201d!"]
    assert rows["audio"] == [None]
    assert rows["split"] == ["dev"]


def test_requested_fine_labels_are_not_grouped(data_dir):
    assert read_corpus("goemotions", data_dir)["label"] == ["happy", "angry"]
    fine = ("gratitude", "annoyance")
    rows = read_corpus("goemotions", data_dir, labels=fine, allow_unknown_labels=True)
    assert rows["label"] == ["gratitude"]


def test_label_map(data_dir):
    rows = read_corpus("meld", data_dir, label_map={"boredom": "neutral"})

    assert rows["label"] == ["happy", "neutral"]


def test_modality_is_that_of_the_existing_layout(data_dir, tmp_path):
    (tmp_path / "other" / "meld").mkdir(parents=True)

    assert find_layout("meld", data_dir).modality == "text"
    assert find_layout("meld", tmp_path / "other").modality == "both"


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if corpus.folds])
def test_every_speaker_is_tested_once(name):
    speakers = Counter(speaker for fold in CORPORA[name].folds for speaker in fold)

    assert set(speakers.values()) == {1}
    assert set(CORPORA[name].test_speakers + CORPORA[name].dev_speakers) <= set(speakers)


def test_missing_corpora_and_folds_raise(data_dir):
    with pytest.raises(ValueError, match=r"'msp'; the known ones are .*'ravdess'"):
        read_corpus("msp", data_dir)
    with pytest.raises(ValueError, match=r"no nemo/metadata.csv nor nemo; .*--data_dir"):
        read_corpus("nemo", data_dir)
    with pytest.raises(ValueError, match=r"ravdess has no fold 7; .*'ravdess': 6"):
        read_corpus("ravdess", data_dir, fold=7)
    with pytest.raises(ValueError, match=r"meld has no fold 1"):
        read_corpus("meld", data_dir, fold=1)
    (data_dir / "savee").mkdir()
    with pytest.raises(ValueError, match=r"None of the 0 rows .*savee.*layouts\.read_savee"):
        read_corpus("savee", data_dir)


@pytest.mark.corpora
@pytest.mark.parametrize("name", ["ravdess", "nemo", "tess", "emodb"])
def test_no_speaker_of_a_real_corpus_is_in_two_splits(name, corpora_dir):
    rows = read_corpus(name, corpora_dir)

    splits = {}
    for speaker, split in zip(rows["speaker"], rows["split"]):
        splits.setdefault(speaker, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.corpora
@pytest.mark.parametrize("name", ["ravdess", "nemo", "emodb"])
def test_the_folds_of_a_real_corpus_name_all_its_speakers(name, corpora_dir):
    rows = read_corpus(name, corpora_dir)

    assert {f"{name}-{speaker}" for fold in CORPORA[name].folds for speaker in fold} == set(rows["speaker"])


@pytest.mark.corpora
def test_real_folds_equal_those_of_emobox(corpora_dir):
    with (corpora_dir / "ravdess" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        clips = list(csv.DictReader(file))

    for number, fold in enumerate(CORPORA["ravdess"].folds, start=1):
        assert {clip["speaker"] for clip in clips if clip[f"emobox_fold_{number}"] == "test"} == set(fold)


@pytest.mark.corpora
def test_real_emotions_are_grouped_as_in_the_paper(corpora_dir):
    with (corpora_dir / "text" / "goemotions.csv").open(newline="", encoding="utf-8") as file:
        groups = Counter(row["ekman"] for row in csv.DictReader(file))

    counts = Counter(read_corpus("goemotions", corpora_dir)["label"])
    assert counts == {label_of(group): count for group, count in groups.items() if "|" not in group}
