import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from videos import short_video

from mmemo.audio.loading import load_audio
from modeling_mmemo.data import clip_files, layouts
from modeling_mmemo.data.clips import check_clips
from modeling_mmemo.data.corpora import CORPORA, read_corpus
from modeling_mmemo.data.schema import is_video
from modeling_mmemo.data.sources import read_source
from modeling_mmemo.data.splits import leak_check


@pytest.fixture
def make_tree(tmp_path):
    """Creates files in a folder: clips of silence, short videos, other files with the given text or bytes."""

    def make(files, folder=tmp_path):
        for name, content in files.items() if isinstance(files, dict) else dict.fromkeys(files).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None and path.suffix == ".wav":
                soundfile.write(path, np.zeros(160, np.float32), 16_000)
            elif content is None and is_video(path):
                path.write_bytes(short_video(path.suffix))
            else:
                path.write_bytes(content if isinstance(content, bytes) else (content or "").encode())
        return folder

    return make


def fields(records, *names):
    return [tuple(record[name] for name in names) for record in records]


def files(records, folder):
    """The audio and video files of records, relative to the folder."""
    return [
        tuple(record[name] and Path(record[name]).relative_to(folder).as_posix() for name in ("audio", "video"))
        for record in records
    ]


@pytest.fixture
def warnings(monkeypatch):
    logged = []
    monkeypatch.setattr(clip_files.logger, "warning_once", logged.append)
    return logged


def as_csv(*rows):
    return "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows)


def test_ravdess_without_duplicates_and_songs(make_tree):
    folder = make_tree(
        [
            "Actor_12/03-01-06-01-02-01-12.wav",
            "audio_speech_actors_01-24/Actor_12/03-01-06-01-02-01-12.wav",  # Kaggle's copy
            "Actor_01/03-01-02-01-01-01-01.wav",
            "Actor_01/03-02-02-01-01-01-01.wav",  # sung
        ]
    )

    records = list(layouts.read_ravdess(folder))

    assert fields(records, "label", "speaker", "text") == [
        ("calm", "01", "Kids are talking by the door."),
        ("fearful", "12", "Dogs are sitting by the door."),
    ]
    assert soundfile.info(records[0]["audio"]).samplerate == 16_000


def test_ravdess_pairs_sound_and_picture_of_a_performance(make_tree):
    folder = make_tree(
        {
            "Actor_01/03-01-02-01-01-01-01.wav": None,
            "Video_Speech_Actor_01/Actor_01/01-01-02-01-01-01-01.mp4": None,
            "Video_Speech_Actor_01/Actor_01/02-01-02-01-01-01-01.mp4": short_video(has_sound=False),
            "Video_Speech_Actor_02/Actor_02/01-01-05-02-02-01-02.mp4": None,
            "Video_Speech_Actor_02/Actor_02/02-01-05-02-02-01-02.mp4": short_video(has_sound=False),
            "Video_Speech_Actor_03/Actor_03/02-01-08-02-02-02-03.mp4": short_video(has_sound=False),
            "Video_Song_Actor_03/Actor_03/01-02-03-01-01-01-03.mp4": None,
        }
    )

    records = list(layouts.read_ravdess(folder))

    full = "Video_Speech_Actor_02/Actor_02/01-01-05-02-02-01-02.mp4"
    assert files(records, folder) == [
        ("Actor_01/03-01-02-01-01-01-01.wav", "Video_Speech_Actor_01/Actor_01/01-01-02-01-01-01-01.mp4"),
        (full, full),
        (None, "Video_Speech_Actor_03/Actor_03/02-01-08-02-02-02-03.mp4"),
    ]
    assert fields(records, "label", "speaker") == [("calm", "01"), ("angry", "02"), ("surprised", "03")]
    assert len(load_audio(records[1]["audio"])) >= 8_000


def test_crema_d_with_its_sentences(make_tree):
    folder = make_tree(
        ["AudioWAV/1001_DFA_ANG_XX.wav", "AudioWAV/1040_ITH_SAD_X.wav", "AudioWAV/._1001_DFA_ANG_XX.wav"]
    )

    assert fields(layouts.read_crema_d(folder), "label", "speaker", "text") == [
        ("angry", "1001", "Don't forget a jacket."),
        ("sad", "1040", "I think I have a doctor's appointment."),
    ]


def test_crema_d_pairs_audio_and_video(make_tree, tmp_path):
    folder = make_tree(
        [
            "crema-d/AudioMP3/1001_DFA_ANG_XX.mp3",
            "crema-d/AudioWAV/1001_DFA_ANG_XX.wav",
            "crema-d/VideoFlash/1001_DFA_ANG_XX.flv",
            "crema-d/VideoFlash/1002_IEO_HAP_HI.flv",
            "crema-d/VideoMP4/1002_IEO_HAP_HI.mp4",
        ]
    )

    rows = read_corpus("crema-d", folder)

    assert [row["audio"]["path"] for row in rows] == [
        str(folder / "crema-d/AudioWAV/1001_DFA_ANG_XX.wav"),
        str(folder / "crema-d/VideoFlash/1002_IEO_HAP_HI.flv"),
    ]
    assert rows["video"] == [
        {"bytes": None, "path": str(folder / f"crema-d/VideoFlash/{name}.flv")}
        for name in ("1001_DFA_ANG_XX", "1002_IEO_HAP_HI")
    ]
    assert rows["split"] == ["test", "dev"]
    check_clips(rows["audio"], rows["video"])


def test_table_of_an_acted_corpus_may_name_videos(make_tree, tmp_path):
    rows = [("file_name", "video_file_name", "label"), ("a.wav", "a.mp4", "calm"), ("b.mp4", "", "sad")]
    folder = make_tree({"ravdess/metadata.csv": as_csv(*rows), "ravdess/a.wav": None})

    records = list(layouts.read_metadata(folder / "ravdess" / "metadata.csv"))

    assert files(records, folder / "ravdess") == [("a.wav", "a.mp4"), ("b.mp4", "b.mp4")]


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


def test_meld_finds_the_clips_of_each_split(make_tree, warnings):
    header = ("Sr No.", "Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
    folder = make_tree(
        {
            "train_sent_emo.csv": as_csv(header, (1, "You\x92ve had it\x85", "Joey", "joy", 0, 3)),
            "dev_sent_emo.csv": as_csv(header, (1, "No!", "Ross", "anger", 0, 3)),
            # As saved by a spreadsheet.
            "test_sent_emo.csv": as_csv(header, (1, "It\x92s a café", "Ross", "fear", 0, 3)).encode("latin-1"),
            "train_splits/dia0_utt3.mp4": None,
            "train_splits/dia0_utt3.wav": None,
            "output_repeated_splits_test/dia0_utt3.mp4": None,
            "output_repeated_splits_test/final_videos_testdia0_utt3.mp4": None,
            "output_repeated_splits_test/._dia0_utt3.wav": "",
        }
    )

    records = list(layouts.read_meld(folder))

    test = "output_repeated_splits_test/dia0_utt3.mp4"
    assert files(records, folder) == [
        ("train_splits/dia0_utt3.wav", "train_splits/dia0_utt3.mp4"),
        (None, None),
        (test, test),
    ]
    assert warnings == [f"{folder}: 1 of 3 rows have no clip, and keep only their text: dev/dia0_utt3."]
    assert fields(records, "text", "label", "speaker", "split") == [
        ("You\u2019ve had it\u2026", "joy", "Joey", "train"),
        ("No!", "anger", "Ross", "dev"),
        ("It\u2019s a café", "fear", "Ross", "test"),
    ]


def test_meld_without_its_broken_and_missing_clips(make_tree, warnings):
    header = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
    folder = make_tree(
        {
            "meld/train/train_sent_emo.csv": as_csv(
                header, ("One", "Ross", "joy", 125, 2), ("Two", "Ross", "anger", 125, 3)
            ),
            "meld/dev_sent_emo.csv": as_csv(
                header, ("Three", "Joey", "fear", 110, 7), ("Four", "Joey", "joy", 125, 3)
            ),
            "meld/train/train_splits/dia125_utt2.mp4": None,
            "meld/train/train_splits/dia125_utt3.mp4": "cut",
            "meld/dev/dev_splits_complete/dia125_utt3.mp4": None,
            "meld/dev/dev_splits_complete/dia66_utt9.mp4": None,  # no row
        }
    )

    rows = read_corpus("meld", folder)

    assert [row and Path(row["path"]).name for row in rows["video"]] == [
        "dia125_utt2.mp4",
        None,
        None,
        "dia125_utt3.mp4",
    ]
    assert rows["text"] == ["One", "Two", "Three", "Four"]
    check_clips(rows["audio"], rows["video"])
    assert warnings == [
        f"{folder / 'meld'}: 2 of 4 rows have no clip, and keep only their text: train/dia125_utt3, dev/dia110_utt7."
    ]


def test_long_lists_of_missing_clips_are_cut(warnings, tmp_path):
    clip_files.warn_missing(tmp_path, [f"clip{index}" for index in range(12)], 40)

    assert warnings[0].endswith(
        "12 of 40 rows have no clip, and keep only their text: "
        + ", ".join(f"clip{index}" for index in range(10))
        + " and 2 more."
    )


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


def test_mosei_finds_videos_of_the_published_archive_and_of_mmsa(make_tree, warnings):
    header = ("video", "index", "text", "happy", "sad")
    rows = [
        ("-3g_y", 1, "One", 1, 0),
        ("-3g_y", 10, "Two", 0, 1),
        ("1DmN", 10, "Three", 0, 1),
        ("1DmN", 11, "Four", 1, 0),
    ]
    folder = make_tree(
        {
            "emotions.csv": as_csv(header, *rows),
            "label.csv": as_csv(MMSA, ("1DmN", 10, "Three", -1, "", "", "", "Negative", "train")),
            "Raw/Videos/Segmented/Combined/-3g_y_1.mp4": None,
            "Raw/-3g_y/10.mp4": None,
            "Raw/1DmN/10.mp4": None,
        }
    )

    records = list(layouts.read_mosei(folder))

    paths = ["Raw/Videos/Segmented/Combined/-3g_y_1.mp4", "Raw/-3g_y/10.mp4", "Raw/1DmN/10.mp4", None]
    assert files(records, folder) == [(path, path) for path in paths]
    assert fields(records, "label", "speaker") == [
        ("happy", "-3g_y"),
        ("sad", "-3g_y"),
        ("sad", "1DmN"),
        ("happy", "1DmN"),
    ]
    assert warnings == [f"{folder}: 1 of 4 rows have no clip, and keep only their text: 1DmN_11."]


def test_sentiments_of_mosei_are_no_emotions(make_tree, tmp_path):
    make_tree({"mosei/label.csv": as_csv(MMSA, ("abc", 1, "One", -1, "", "", "", "Negative", "train"))})

    with pytest.raises(
        ValueError, match=r"no table of emotions, only label\.csv .* mosei-sentiment, with --labels neg"
    ):
        read_corpus("mosei", tmp_path)


MMSA = ("video_id", "clip_id", "text", "label", "label_T", "label_A", "label_V", "annotation", "mode")
SENTIMENTS = ("negative", "neutral", "positive")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("corpus", "folder"), [("mosi", "mosi"), ("mosei-sentiment", "mosei")])
def test_sentiments_in_the_layout_of_mmsa(make_tree, tmp_path, corpus, folder, streaming):
    rows = [
        ("-3g5yACwYnA", 0, "Great, really.", 2.0, "", "", "", "Positive", "train"),
        ("-3g5yACwYnA", 10, "Well.", 0.0, "", "", "", "Neutral", "train"),
        ("03bSnISJMiM", 10, "Awful.", -1.6667, "", "", "", "Negative", "valid"),
        ("1DmNV9C1hbY", 1, "Good.", 1.0, "", "", "", "Positive", "test"),
    ]
    raw = [f"{folder}/Raw/{video}/{clip}.mp4" for video, clip, *_ in rows]
    make_tree({f"{folder}/label.csv": as_csv(MMSA, *rows), **dict.fromkeys(raw)}, tmp_path)

    read = list(read_source(corpus, tmp_path, labels=SENTIMENTS, streaming=streaming))

    assert fields(read, "text", "label", "split", "speaker") == [
        ("Great, really.", "positive", "train", f"{corpus}--3g5yACwYnA"),
        ("Well.", "neutral", "train", f"{corpus}--3g5yACwYnA"),
        ("Awful.", "negative", "dev", f"{corpus}-03bSnISJMiM"),
        ("Good.", "positive", "test", f"{corpus}-1DmNV9C1hbY"),
    ]
    for name in ("audio", "video"):
        assert [row[name] for row in read] == [{"bytes": None, "path": str(tmp_path / path)} for path in raw]


@pytest.mark.parametrize("streaming", [False, True])
def test_sentiments_raise_for_a_model_of_emotions(make_tree, tmp_path, streaming):
    rows = [
        ("abc", 1, "Good.", 1, "", "", "", "Positive", "train"),
        ("abc", 2, "Hm.", 0, "", "", "", "Neutral", "train"),
    ]
    make_tree({"mosi/label.csv": as_csv(MMSA, *rows)})

    with pytest.raises(ValueError, match=r"mosi: 1 of 2 rows .*: Positive \(1\)\. .*--labels Neutral Positive"):
        read_source("mosi", tmp_path, streaming=streaming)


def test_ch_sims_with_clip_numbers_of_a_spreadsheet(make_tree, tmp_path, warnings):
    rows = [
        ("video_0001", "0001", "我今天不想去", -1.0, -1.0, -1.0, -1.0, "Negative", "train"),
        ("video_0001", "20", "太好了谢谢你", 1.0, 1.0, 0.8, 1.0, "Positive", "test"),
        ("video_0002", "1", "这是什么", 0.0, 0.0, 0.2, 0.0, "Neutral", "valid"),
        ("video_0006", "0003", "走吧", 0.0, 0.0, 0.0, 0.0, "Neutral", "train"),
    ]
    raw = [f"ch-sims/Raw/{name}.mp4" for name in ("video_0001/0001", "video_0001/0020", "video_0002/0001")]
    make_tree({"ch-sims/label.csv": "\ufeff" + as_csv(MMSA, *rows), **dict.fromkeys(raw)})

    rows = read_corpus("ch-sims", tmp_path, SENTIMENTS)

    assert rows["label"] == ["negative", "positive", "neutral", "neutral"]
    assert rows["split"] == ["train", "test", "dev", "train"]
    assert rows["text"][1] == "太好了谢谢你"
    assert [video and video["path"] for video in rows["video"]] == [*(str(tmp_path / path) for path in raw), None]
    check_clips(rows["audio"], rows["video"])
    assert warnings[0].endswith("1 of 4 rows have no clip, and keep only their text: Raw/video_0006/0003.")
    with pytest.raises(ValueError, match=r"occur in both train and test, such as \['ch-sims-video_0001'\]"):
        leak_check(rows)
    folds = [read_corpus("ch-sims", tmp_path, SENTIMENTS, fold) for fold in (1, 2)]
    assert [fold["split"] for fold in folds] == [
        ["test", "test", "train", "test"],
        ["train", "train", "test", "train"],
    ]
    leak_check(folds[0])


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
