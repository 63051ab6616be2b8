import csv
from collections import Counter

import pytest
from tiny import write_table

from modeling_mmemo import EMOTIONS
from modeling_mmemo.data.corpora import CORPORA, find_layout, read_corpus
from modeling_mmemo.data.labels import label_of, single_label
from modeling_mmemo.data.schema import FEATURES, comparable_text
from modeling_mmemo.data.sources import read_source
from modeling_mmemo.data.splits import leak_check


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


@pytest.fixture
def languages_dir(tmp_path):
    """Small tables of the corpora in several languages."""
    tables = {
        "iesc/metadata.csv": [
            {"file_name": "a.opus", "label": "calm", "speaker": "iesc_c7b43119", "language": "hi", "split": "train"},
            {
                "file_name": "b.opus",
                "label": "fearful",
                "speaker": "iesc_0e17afa3",
                "language": "en",
                "split": "train",
            },
            {"file_name": "c.opus", "label": "happy", "speaker": "iesc_00000000", "language": "", "split": "test"},
        ],
        "turev/metadata.csv": [
            {"file_name": "a.opus", "label": "angry", "speaker": "turev_1358", "language": "tr", "split": "train"},
            {"file_name": "b.opus", "label": "calm", "speaker": "turev_1984", "language": "tr", "split": "test"},
        ],
        "text/brighter.csv": [
            {"text": "谢谢你", "label": "joy", "language": "chn", "split": "train"},
            {"text": "Oi.", "label": "none", "language": "ptmz", "split": "dev"},
            {"text": "Oi, oi.", "label": "anger|disgust", "language": "ptbr", "split": "test"},
            {"text": "Wahala.", "label": "sadness", "language": "pcm", "split": "test"},
        ],
        "text/xed.csv": [
            {"text": "Come with me .", "label": "joy|trust", "language": "en", "source": "annotated"},
            {"text": "Soon .", "label": "trust|anticipation", "language": "en", "source": "annotated"},
            {"text": "Tule !", "label": "anger|anticipation|fear", "language": "fi", "source": "annotated"},
            {"text": "Ei .", "label": "neutral", "language": "fi", "source": "annotated"},
            {"text": "Vem .", "label": "anger", "language": "br", "source": "projected"},
            {"text": "过来", "label": "anticipation|sadness", "language": "tw", "source": "projected"},
        ],
        "text/cped_valid_test.csv": [
            {
                "dialogue": "32_000",
                "speaker": "于春晓",
                "text": "怎么了",
                "label": "astonished",
                "language": "zh",
                "split": "dev",
            },
            {
                "dialogue": "32_000",
                "speaker": "戴娜",
                "text": "没事",
                "label": "relaxed",
                "language": "zh",
                "split": "dev",
            },
            {
                "dialogue": "32_000",
                "speaker": "于春晓",
                "text": "走开",
                "label": "anger",
                "language": "zh",
                "split": "dev",
            },
        ],
    }
    for name, rows in tables.items():
        write_table(tmp_path / name, rows)
    return tmp_path


def columns(rows, *names):
    return list(zip(*(rows[name] for name in names)))


def test_command_words_of_iesc_and_turev(languages_dir):
    iesc, turev = read_corpus("iesc", languages_dir), read_corpus("turev", languages_dir)

    assert columns(iesc, "label", "split", "language") == [
        ("neutral", "dev", "hi"),
        ("fear", "train", "en"),
        ("happy", "test", None),
    ]
    assert columns(turev, "label", "split", "language") == [("angry", "dev", "tr"), ("neutral", "test", "tr")]
    assert {find_layout(name, languages_dir).modality for name in ("iesc", "turev")} == {"audio"}


def test_texts_of_brighter_with_one_emotion_or_none(languages_dir):
    assert columns(read_corpus("brighter", languages_dir), "text", "label", "language", "split") == [
        ("谢谢你", "happy", "zh", "train"),
        ("Oi.", "neutral", "pt", "dev"),
        ("Wahala.", "sad", "pcm", "test"),
    ]


def test_trust_and_anticipation_are_ignored_beside_other_emotions_of_xed(languages_dir):
    annotated, projected = (read_corpus(name, languages_dir) for name in ("xed", "xed-projected"))

    assert columns(annotated, "text", "label", "language") == [
        ("Come with me .", "happy", "en"),
        ("Ei .", "neutral", "fi"),
    ]
    assert columns(projected, "label", "language") == [("angry", "pt"), ("sad", "zh")]


def test_trust_is_not_ignored_if_it_is_wanted(languages_dir):
    rows = read_corpus("xed", languages_dir, labels=("trust", "neutral"), allow_unknown_labels=True)
    mapped = read_corpus("xed", languages_dir, label_map={"trust": "happy"})

    assert columns(rows, "text", "label") == [("Soon .", "trust"), ("Ei .", "neutral")]
    assert columns(mapped, "text", "label") == [
        ("Come with me .", "happy"),
        ("Soon .", "happy"),
        ("Ei .", "neutral"),
    ]


def test_the_splits_of_xed_depend_on_the_text_only(tmp_path):
    lines = [{"text": f"Line {n} .", "label": "joy", "language": "en", "source": "annotated"} for n in range(1000)]
    again = [{**line, "text": f"  {line['text'].upper()}"} for line in lines]
    write_table(tmp_path / "one" / "text" / "xed.csv", lines)
    write_table(tmp_path / "two" / "text" / "xed.csv", again[::-2])

    one, two = (read_corpus("xed", tmp_path / folder) for folder in ("one", "two"))

    splits = dict(zip(map(comparable_text, one["text"]), one["split"]))
    assert all(splits[comparable_text(text)] == split for text, split in zip(two["text"], two["split"]))
    # Another hash, or another share, would move texts between the splits of published figures.
    assert Counter(splits.values()) == {"train": 811, "dev": 94, "test": 95}


def test_dialogues_of_cped_keep_the_turns_without_a_shared_label(languages_dir):
    rows = read_corpus("cped", languages_dir, context_turns=2)

    assert columns(rows, "label", "split", "said_by") == [
        ("surprise", "dev", "于春晓"),
        ("angry", "dev", "于春晓"),
    ]
    assert rows["context"][1] == [{"speaker": "于春晓", "text": "怎么了"}, {"speaker": "戴娜", "text": "没事"}]


@pytest.mark.parametrize("streaming", [False, True])
def test_languages_of_a_corpus(languages_dir, streaming):
    def texts(name, *languages):
        rows = read_source(name, languages_dir, languages=languages, streaming=streaming)
        return [row["text"] for row in rows]

    assert texts("brighter", "zh", "PT") == ["谢谢你", "Oi."]
    with pytest.raises(
        ValueError, match=r"brighter has no rows in the languages \['chn'\]; it has \['pcm', 'pt', 'zh'\]"
    ):
        texts("brighter", "chn")
    with pytest.raises(ValueError, match=r"xed has no rows in the languages \['zh'\]; it has \['en', 'fi'\]"):
        texts("xed", "zh")


@pytest.mark.corpora
@pytest.mark.parametrize("name", ["ravdess", "nemo", "tess", "emodb", "iesc", "turev"])
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
@pytest.mark.parametrize(
    ("name", "counts", "dev_speakers"),
    [
        ("iesc", {"train": 1500, "dev": 192, "test": 328}, 8),
        ("turev", {"train": 806, "dev": 328, "test": 601}, 1),
    ],
)
def test_real_development_speakers_are_training_speakers(name, counts, dev_speakers, corpora_dir):
    rows = read_corpus(name, corpora_dir)

    assert Counter(rows["split"]) == counts
    assert len({speaker for speaker, split in columns(rows, "speaker", "split") if split == "dev"}) == dev_speakers


@pytest.mark.slow
@pytest.mark.corpora
@pytest.mark.parametrize("name", ["iesc", "turev", "brighter", "xed", "cped"])
def test_real_labels_equal_the_shared_ones_of_the_table(name, corpora_dir):
    with (corpora_dir / CORPORA[name].layouts[0].path).open(newline="", encoding="utf-8") as file:
        table = [row for row in csv.DictReader(file) if row.get("source") != "projected"]

    rows = read_corpus(name, corpora_dir)

    assert Counter(rows["label"]) == Counter(row["shared"] for row in table if label_of(row["shared"]))


@pytest.mark.slow
@pytest.mark.corpora
def test_no_text_of_the_real_xed_is_in_two_splits(corpora_dir):
    leak_check(read_corpus("xed", corpora_dir), by=["text"])


@pytest.mark.slow
@pytest.mark.corpora
def test_the_real_brighter_has_32_languages(corpora_dir):
    # Portuguese of Brazil and of Mozambique are one.
    languages = Counter(read_corpus("brighter", corpora_dir)["language"])

    assert len(languages) == 31
    assert languages["zh"] == 4173 and languages["pt"] == 6531
    assert {language for language in languages if len(language) > 2} == {"arq", "ary", "pcm", "vmw"}


@pytest.mark.corpora
def test_real_folds_equal_those_of_emobox(corpora_dir):
    with (corpora_dir / "ravdess" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        clips = list(csv.DictReader(file))

    for number, fold in enumerate(CORPORA["ravdess"].folds, start=1):
        assert {clip["speaker"] for clip in clips if clip[f"emobox_fold_{number}"] == "test"} == set(fold)


@pytest.mark.slow
@pytest.mark.corpora
def test_real_emotions_are_grouped_as_in_the_paper(corpora_dir):
    with (corpora_dir / "text" / "goemotions.csv").open(newline="", encoding="utf-8") as file:
        groups = Counter(row["ekman"] for row in csv.DictReader(file))

    counts = Counter(read_corpus("goemotions", corpora_dir)["label"])
    assert counts == {label_of(group): count for group, count in groups.items() if "|" not in group}
