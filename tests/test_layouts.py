import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from modeling_mmemo.data import layouts
from modeling_mmemo.data.corpora import CORPORA, read_corpus


@pytest.fixture
def make_tree(tmp_path):
    """Creates files in a folder: clips of silence, other files with the given text or bytes."""

    def make(files, folder=tmp_path):
        for name, content in files.items() if isinstance(files, dict) else dict.fromkeys(files).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None and path.suffix == ".wav":
                soundfile.write(path, np.zeros(160, np.float32), 16_000)
            else:
                path.write_bytes(content if isinstance(content, bytes) else (content or "").encode())
        return folder

    return make


def fields(records, *names):
    return [tuple(record[name] for name in names) for record in records]


def as_csv(*rows):
    return "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)


def test_ravdess_without_duplicates_and_songs(make_tree):
    folder = make_tree(
        [
            "Actor_12/03-01-06-01-02-01-12.wav",
            "audio_speech_actors_01-24/Actor_12/03-01-06-01-02-01-12.wav",  # Kaggle's copy
            "Actor_01/03-01-02-01-01-01-01.wav",
            "Actor_01/03-02-02-01-01-01-01.wav",  # sung
            "Actor_01/02-01-02-01-01-01-01.mp4",
        ]
    )

    records = list(layouts.read_ravdess(folder))

    assert fields(records, "label", "speaker", "text") == [
        ("calm", "01", "Kids are talking by the door."),
        ("fearful", "12", "Dogs are sitting by the door."),
    ]
    assert soundfile.info(records[0]["audio"]).samplerate == 16_000


def test_crema_d_with_its_sentences(make_tree):
    folder = make_tree(
        ["AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1040_ITH_SAD_X.wav", "AudioWAV/._1001_DFA_ANG_XX.wav"]
    )

    assert fields(layouts.read_crema_d(folder), "label", "speaker", "text") == [
        ("angry", "1001", "Don't forget a jacket."),
        ("sad", "1040", "I think I have a doctor's appointment."),
    ]


def test_tess_without_duplicates_in_nested_folders(make_tree):
    nested = "TESS Toronto emotional speech set data"
    folder = make_tree(
        [
            "OAF_angry/OAF_back_angry.wav",
            f"{nested}/OAF_angry/OAF_back_angry.wav",
            f"{nested}/OAF_neutral/OA_bite_neutral.wav",
            f"{nested}/YAF_pleasant_surprised/YAF_gaze_ps.wav",
            f"{nested}/YAF_pleasant_surprised/YAF_gin_pleasant_surprise.wav",
        ]
    )

    assert fields(layouts.read_tess(folder), "label", "speaker", "text") == [
        ("angry", "OAF", "Say the word back."),
        ("neutral", "OAF", "Say the word bite."),
        ("ps", "YAF", "Say the word gaze."),
        ("pleasant_surprise", "YAF", "Say the word gin."),
    ]


@pytest.mark.parametrize("separator", ["_", "/"])
def test_savee_flat_and_in_folders(make_tree, separator):
    folder = make_tree([f"DC{separator}a01.wav", f"DC{separator}sa01.wav", f"KL{separator}su15.wav"])

    assert fields(layouts.read_savee(folder), "label", "speaker") == [
        ("anger", "DC"),
        ("sadness", "DC"),
        ("surprise", "KL"),
    ]


def test_emodb_with_its_sentences(make_tree):
    folder = make_tree(["wav/03a01Fa.wav", "wav/16b10Lb.wav"])

    assert fields(layouts.read_emodb(folder), "label", "speaker", "text") == [
        ("happiness", "03", "Der Lappen liegt auf dem Eisschrank."),
        ("boredom", "16", "Die wird auf dem Platz sein, wo wir sie immer hinlegen."),
    ]


def test_nemo_from_its_table(make_tree):
    table = "file_id\temotion\traw_text\tspeaker_id\nSM0_anger_1.wav\tanger\tLubię czytać.\tSM0\n"
    folder = make_tree({"data.tsv": table, "samples/SM0_anger_1.wav": None})

    (record,) = layouts.read_nemo(folder)

    assert record["text"] == "Lubię czytać."
    assert record["speaker"] == "SM0"
    assert Path(record["audio"]).is_file()


@pytest.fixture
def iemocap(make_tree, tmp_path):
    dialog = "iemocap/Session1/dialog"
    turns = "iemocap/Session1/sentences"
    return make_tree(
        {
            f"{dialog}/EmoEvaluation/Ses01F_impro01.txt": "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
            "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n\n"
            "[10.0100 - 11.3925]\tSes01F_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]\n\n"
            "[14.8872 - 18.0175]\tSes01F_impro01_F001\txxx\t[2.5000, 2.5000, 2.5000]\n",
            f"{dialog}/EmoEvaluation/._Ses01F_impro01.txt": b"\x00\x05",
            f"{dialog}/EmoEvaluation/Categorical/e2_Ses01F_impro01_cat.anvil": "",
            f"{dialog}/transcriptions/Ses01F_impro01.txt": "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me, sir.\n"
            "M: aside\nSes01F_impro01_M001 [010.0100-011.3925]: Yeah!\n"
            "Ses01F_impro01_F001 [014.8872-018.0175]: Is there a problem?\n",
            f"{turns}/ForcedAlignment/Ses01F_impro01/Ses01F_impro01_F000.wdseg": "\t SFrm  EFrm    SegAScr Word\n"
            "\t    0    18     -77582 <s>\n\t   19    32    -203933 EXCUSE(2)\n\t   33    40      -1000 ++GASP++\n"
            "\t   41    60     -52399 ME\n\t   61    99     -52399 SIR\n Total score:    -501498\n",
            f"{turns}/wav/Ses01F_impro01/Ses01F_impro01_F000.wav": None,
        },
        tmp_path,
    )


def test_iemocap_with_word_times(iemocap):
    first, second, third = layouts.read_iemocap(iemocap / "iemocap")

    assert Path(first["audio"]).is_file()
    assert first["text"] == "Excuse me, sir."
    # The words are those of the text: the processor looks for them there.
    assert [(word["word"], word["start"], word["end"]) for word in first["word_times"]] == [
        ("Excuse", 0.19, 0.33),
        ("me,", 0.41, 0.61),
        ("sir.", 0.61, 1.0),
    ]
    assert [record["speaker"] for record in (first, second, third)] == ["Ses01F", "Ses01M", "Ses01F"]
    assert [record["label"] for record in (first, second, third)] == ["neutral", "excited", "no agreement"]
    assert second["word_times"] is None


def test_label_map_makes_excited_happy(iemocap):
    assert read_corpus("iemocap", iemocap)["label"] == ["neutral"]
    assert read_corpus("iemocap", iemocap, label_map={"excited": "happy"})["label"] == ["neutral", "happy"]
    assert set(read_corpus("iemocap", iemocap, fold=1)["split"]) == {"test"}


def test_words_that_the_aligner_did_not_find_have_no_times():
    alignment = "SFrm EFrm SegAScr Word\n 0 9 -1 WELL\n 10 19 -1 I'M\n 20 29 -1 UH\n 30 39 -1 FINE\n"

    assert [word["word"] for word in layouts._aligned_words(alignment, "I'm just fine.")] == ["I'm", "fine."]


def test_meld_finds_the_clips_of_each_split(make_tree):
    header = ("Sr No.", "Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
    folder = make_tree(
        {
            "train_sent_emo.csv": as_csv(header, (1, "You\x92ve had it\x85", "Joey", "joy", 0, 3)),
            "dev_sent_emo.csv": as_csv(header, (1, "No!", "Ross", "anger", 0, 3)),
            # As saved by a spreadsheet.
            "test_sent_emo.csv": as_csv(header, (1, "It\x92s a café", "Ross", "fear", 0, 3)).encode("latin-1"),
            "train_splits/dia0_utt3.mp4": "",
            "train_splits/dia0_utt3.wav": None,
            "output_repeated_splits_test/dia0_utt3.mp4": "",
            "output_repeated_splits_test/final_videos_testdia0_utt3.mp4": "",
            "output_repeated_splits_test/._dia0_utt3.wav": "",
        }
    )

    records = list(layouts.read_meld(folder))

    assert [record["audio"] and Path(record["audio"]).relative_to(folder).as_posix() for record in records] == [
        "train_splits/dia0_utt3.wav",
        None,
        "output_repeated_splits_test/dia0_utt3.mp4",
    ]
    assert fields(records, "text", "label", "speaker", "split") == [
        ("You\u2019ve had it\u2026", "joy", "Joey", "train"),
        ("No!", "anger", "Ross", "dev"),
        ("It\u2019s a café", "fear", "Ross", "test"),
    ]


def test_mosei_label_is_the_strongest_emotion(make_tree, tmp_path):
    header = ("file", "index", "start", "end", "text", "sentiment", "happy", "sad", "anger", "split")
    rows = [
        ("abc", 0, 0.0, 2.5, "Great.", 2.0, 0.67, 0.33, 0.0, "train"),
        ("abc", 1, 2.5, 4.0, "Well.", 0.0, 0, 0, 0, "valid"),
        ("xyz", 0, 0.0, 1.0, "Both.", 0.0, 1.0, 1.0, 0, "test"),
    ]
    make_tree({"mosei/labels.csv": as_csv(header, *rows), "mosei/Segmented_Audio/train/abc_0.wav": None}, tmp_path)

    records = list(layouts.read_mosei(tmp_path / "mosei"))

    assert fields(records, "label", "speaker") == [("happy", "abc"), ("neutral", "abc"), ("happy|sad", "xyz")]
    assert Path(records[0]["audio"]).name == "abc_0.wav"
    assert records[1]["audio"] is None
    assert read_corpus("mosei", tmp_path)["split"] == ["train", "dev"]  # without the segment of two emotions


def test_mosei_with_label_column_and_clip_names(make_tree):
    table = as_csv(("video", "file", "text", "label"), ("abc", "clip7.wav", "Great.", "joy"))
    folder = make_tree({"labels.csv": table, "clips/clip7.wav": None})

    (record,) = layouts.read_mosei(folder)

    assert (record["label"], record["speaker"], Path(record["audio"]).name) == ("joy", "abc", "clip7.wav")


def test_mosei_without_segment_names_raises(make_tree):
    folder = make_tree({"labels.csv": as_csv(("text", "label"), ("Great.", "joy"))})

    with pytest.raises(ValueError, match=r"column `file` or `video` .* it has \['text', 'label'\]"):
        list(layouts.read_mosei(folder))


def test_goemotions_official_splits(make_tree):
    folder = make_tree(
        {
            "emotions.txt": "admiration\nanger\nneutral\n",
            "train.tsv": 'So "good\t0\tid1\nWow, no\t0,1\tid2\n',
            "dev.tsv": "ok\t2\tid3\n",
            "test.tsv": "",
        }
    )

    assert fields(layouts.read_goemotions(folder), "text", "label", "split") == [
        ('So "good', "admiration", "train"),
        ("Wow, no", "admiration|anger", "train"),
        ("ok", "neutral", "dev"),
    ]


def test_goemotions_raw_needs_two_raters(make_tree, tmp_path):
    header = ("text", "id", "rater_id", "example_very_unclear", "admiration", "anger", "neutral")
    rows = [
        ("Nice", "a", 1, "False", 1, 0, 0),
        ("Nice", "a", 2, "False", 1, 1, 0),
        ("Huh", "b", 1, "True", 0, 0, 0),
        ("Grr", "c", 1, "False", 0, 1, 0),
    ]
    more = [("Grr", "c", 2, "False", 0, 1, 0)]
    make_tree(
        {
            "goemotions/goemotions_1.csv": as_csv(header, *rows),
            "goemotions/goemotions_2.csv": as_csv(header, *more),
        },
        tmp_path,
    )

    assert fields(layouts.read_goemotions(tmp_path / "goemotions"), "text", "label") == [
        ("Nice", "admiration"),
        ("Huh", ""),
        ("Grr", "anger"),
    ]
    rows = read_corpus("goemotions", tmp_path)
    assert rows["label"] == ["happy", "angry"]
    assert rows["split"] == ["train", "train"]


@pytest.mark.corpora
@pytest.mark.parametrize("name", ["ravdess", "emodb"])
def test_real_file_names_agree_with_the_real_table(name, corpora_dir):
    table, published = CORPORA[name].layouts

    described = {record["audio"]: record for record in table.read(corpora_dir / table.path)}
    named = {record["audio"]: record for record in published.read(corpora_dir / published.path)}

    assert named == described


@pytest.mark.corpora
def test_real_file_names_of_tess_agree_with_the_real_table(corpora_dir, make_tree):
    with (corpora_dir / "tess" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["original_name"]: row for row in csv.DictReader(file)}
    folder = make_tree(list(rows))

    records = {Path(record["audio"]).name: record for record in layouts.read_tess(folder)}

    assert records.keys() == rows.keys()
    assert all(records[name]["text"] == row["text"] for name, row in rows.items())
    assert all(records[name]["speaker"] == row["speaker"] for name, row in rows.items())
