import io
import json

import numpy as np
import PIL.Image
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, List, Value, Video
from tiny import write_table
from videos import short_video

from modeling_mmemo.data import sources
from modeling_mmemo.data.schema import FEATURES
from modeling_mmemo.data.sources import read_source


ROWS = [
    {"clip": "clips/a.wav", "words": "Yes!", "emotion": "joy", "actor": "01", "part": "train"},
    {"clip": "clips/b.wav", "words": "No.", "emotion": "gloom", "actor": "02", "part": "validation"},
    {"clip": "", "words": "NA", "emotion": "boredom", "actor": "", "part": ""},
    {"clip": "clips/d.wav", "words": "", "emotion": "anger", "actor": "", "part": ""},
]
ANY_LABEL = {"allow_unknown_labels": True}
COLUMNS = {"audio": "clip", "text": "words", "label": "emotion", "speaker": "actor", "split": "part"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Moves the cache of `datasets` to a temporary folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_clips(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.zeros(160, np.float32), 16_000)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_table_has_the_columns_of_the_schema(tmp_path, suffix, streaming):
    table = write_table(tmp_path / f"calls{suffix}", ROWS)

    rows = read_source(
        str(table), "data", columns=COLUMNS, label_map={"gloom": "sad"}, streaming=streaming, **ANY_LABEL
    )

    assert isinstance(rows, IterableDataset if streaming else Dataset)
    assert list(rows) == [
        {
            "audio": {"bytes": None, "path": str(tmp_path / path)},
            "text": text,
            "video": None,
            "word_times": None,
            "label": label,
            "speaker": speaker,
            "corpus": "calls",
            "split": split,
            "dialogue": None,
            "context": None,
            "said_by": None,
            "language": None,
        }
        for path, text, label, speaker, split in (
            ("clips/a.wav", "Yes!", "happy", "calls-01", "train"),
            ("clips/b.wav", "No.", "sad", "calls-02", "dev"),
            ("clips/d.wav", None, "angry", None, "train"),
        )
    ]
    assert list(rows.features) == list(FEATURES)
    if not streaming:
        assert rows.features == FEATURES


def test_usual_column_names_need_no_mapping(tmp_path):
    times = [{"word": "Hi", "start": 0.0, "end": 0.5}]
    row = {"path": "a.wav", "text": "Hi", "label": "Joy", "word_times": json.dumps(times), "take": "3"}
    table = write_table(tmp_path / "calls.csv", [row, row | {"word_times": ""}])

    rows = read_source(str(table), "data")

    assert rows[0]["audio"]["path"] == str(tmp_path / "a.wav")
    assert list(rows["word_times"]) == [times, None]


def test_streaming_is_lazy(tmp_path, monkeypatch):
    def endless(path, encoding):
        while True:
            yield {"text": "Hi", "label": "joy"}

    monkeypatch.setattr(sources, "read_csv", endless)
    (tmp_path / "endless.csv").touch()

    rows = read_source(str(tmp_path / "endless.csv"), "data", streaming=True)

    assert [row["label"] for row in rows.take(3)] == ["happy"] * 3


def test_the_text_na_is_not_missing(tmp_path):
    table = write_table(tmp_path / "calls.csv", ROWS)

    rows = read_source(str(table), "data", columns=COLUMNS, labels=("boredom",), **ANY_LABEL)

    assert rows["text"] == ["NA"]
    assert rows["audio"] == [None]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_audiofolder_with_tables(tmp_path, suffix):
    for split in ("train", "test"):
        write_table(tmp_path / "calls" / split / f"metadata{suffix}", [{"file_name": "a.wav", "label": "joy"}])

    rows = read_source(str(tmp_path / "calls"), "data")

    assert [row["audio"]["path"] for row in rows] == [
        str(tmp_path / "calls" / split / "a.wav") for split in ("test", "train")
    ]
    assert rows["split"] == ["test", "train"]


@pytest.mark.parametrize("streaming", [False, True])
def test_audiofolder_with_a_folder_per_label(tmp_path, streaming):
    write_clips(tmp_path / "calls", "test/angry/a.wav", "train/happy/b.wav", "sad/c.wav")

    rows = read_source(str(tmp_path / "calls"), "data", streaming=streaming)

    assert [(row["label"], row["split"]) for row in rows] == [("sad", "train"), ("angry", "test"), ("happy", "train")]
    assert soundfile.info(next(iter(rows))["audio"]["path"]).frames == 160


def clip_bytes():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(160, np.float32), 16_000, format="WAV")
    return buffer.getvalue()


def hub_split(**features):
    features = Features({"audio": {"bytes": Value("binary"), "path": Value("string")}, **features})
    rows = [
        {"audio": {"bytes": clip_bytes(), "path": "a.wav"}, "emotion": 1},
        {"audio": {"bytes": clip_bytes(), "path": "b.wav"}, "emotion": 0},
        {"audio": {"bytes": clip_bytes(), "path": "c.wav"}, "emotion": -1},
    ]
    return Dataset.from_list(rows, features=features).cast_column("audio", Audio())


@pytest.mark.parametrize("streaming", [False, True])
def test_dataset_in_the_layout_of_the_hub(tmp_path, streaming):
    part = hub_split(emotion=ClassLabel(names=["boredom", "joy"]))
    for split in ("train", "validation"):
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")

    columns = {"label": "emotion"}
    rows = list(read_source(str(tmp_path / "hub"), "data", columns=columns, streaming=streaming, **ANY_LABEL))

    assert [(row["label"], row["split"]) for row in rows] == [("happy", "train"), ("happy", "dev")]
    assert rows[0]["audio"] == {"bytes": clip_bytes(), "path": "a.wav"}


def stored(path):
    return {"bytes": None, "path": str(path)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_videos_of_a_table(tmp_path, suffix, streaming):
    rows = [
        {"film": "a.mp4", "audio": "a.wav", "label": "joy"},
        {"film": "b.mp4", "audio": "", "label": "joy"},
        {"film": "", "audio": "c.wav", "label": "joy"},
    ]
    table = write_table(tmp_path / f"calls{suffix}", rows)

    read = list(read_source(str(table), "data", columns={"video": "film"}, streaming=streaming))

    assert [(row["audio"], row["video"]) for row in read] == [
        (stored(tmp_path / "a.wav"), stored(tmp_path / "a.mp4")),
        (None, stored(tmp_path / "b.mp4")),
        (stored(tmp_path / "c.wav"), None),
    ]


@pytest.mark.parametrize(
    ("row", "columns", "audio", "video"),
    [
        ({"file_name": "a.mp4"}, {}, None, "a.mp4"),
        ({"file_name": "a.MOV"}, {}, None, "a.MOV"),
        ({"file_name": "a.jpg"}, {}, None, "a.jpg"),
        ({"file_name": "a.PNG"}, {}, None, "a.PNG"),
        ({"file_name": "a.wav", "video": "b.mp4"}, {}, "a.wav", "b.mp4"),
        ({"path": "a.mp4", "video": "b.mp4"}, {}, None, "b.mp4"),
        ({"audio": "a.mp4"}, {}, "a.mp4", None),
        ({"audio": "a.wav", "path": "b.mp4"}, {}, "a.wav", None),
        ({"file_name": "a.mp4"}, {"audio": "file_name"}, "a.mp4", None),
        ({"file_name": "a.mp4"}, {"audio": "file_name", "video": "file_name"}, "a.mp4", "a.mp4"),
        ({"file_name": "a.clip"}, {"video": "file_name"}, None, "a.clip"),
        ({"audio_file_name": "a.wav", "video_file_name": "b.mp4"}, {}, "a.wav", "b.mp4"),
        ({"file_name": "a.mp4", "audio_file_name": "a.wav"}, {"video": "file_name"}, "a.wav", "a.mp4"),
    ],
)
def test_columns_of_audio_and_video_files(tmp_path, row, columns, audio, video):
    table = write_table(tmp_path / "metadata.csv", [row | {"label": "joy"}])

    (read,) = read_source(str(table), "data", columns=columns)

    assert read["audio"] == (audio and stored(tmp_path / audio))
    assert read["video"] == (video and stored(tmp_path / video))


@pytest.mark.parametrize("streaming", [False, True])
def test_videofolder_with_a_folder_per_label(tmp_path, streaming):
    folder = tmp_path / "calls"
    write_clips(folder, "train/happy/b.wav", "train/happy/c.wav", "sad/d.wav")
    for name in ("test/angry/a.mp4", "train/happy/c.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(short_video())

    rows = list(read_source(str(folder), "data", streaming=streaming))

    assert [(row["label"], row["split"], row["audio"], row["video"]) for row in rows] == [
        ("sad", "train", stored(folder / "sad/d.wav"), None),
        ("angry", "test", None, stored(folder / "test/angry/a.mp4")),
        ("happy", "train", stored(folder / "train/happy/b.wav"), None),
        ("happy", "train", stored(folder / "train/happy/c.wav"), stored(folder / "train/happy/c.mp4")),
    ]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["video", "film"])
def test_videos_of_a_dataset_of_the_hub(tmp_path, name, streaming):
    rows = [{name: {"bytes": short_video(), "path": "a.mp4"}, "label": 0}, {name: None, "label": 0}]
    features = Features({name: Video(), "label": ClassLabel(names=["joy"])})
    (tmp_path / "hub").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")

    read = list(read_source(str(tmp_path / "hub"), "data", columns={"video": name}, streaming=streaming))

    assert [row["video"] for row in read] == [{"bytes": short_video(), "path": "a.mp4"}, None]
    assert [row["audio"] for row in read] == [None, None]


def test_images_of_a_dataset_of_the_hub_are_videos(tmp_path):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(buffer, "png")
    stored_image = {"bytes": buffer.getvalue(), "path": "a.png"}
    features = Features({"image": Image(), "label": ClassLabel(names=["joy"])})
    (tmp_path / "hub").mkdir()
    rows = Dataset.from_list([{"image": stored_image, "label": 0}], features=features)
    rows.to_parquet(tmp_path / "hub" / "train.parquet")

    (row,) = read_source(str(tmp_path / "hub"), "data", columns={"video": "image"})

    assert row["video"] == stored_image and row["audio"] is None


def test_videos_may_be_read_for_their_sound_only(tmp_path):
    features = Features({"video": Video(), "label": Value("string")})
    rows = [{"video": {"bytes": short_video(), "path": "a.mp4"}, "label": "joy"}]
    (tmp_path / "hub").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "hub" / "train.parquet")

    (row,) = read_source(str(tmp_path / "hub"), "data", columns={"audio": "video"})

    assert row["audio"] == {"bytes": short_video(), "path": "a.mp4"}


def test_hub_configuration_and_rows_with_several_labels(monkeypatch):
    requested = []

    def load_dataset(name, config, streaming):
        requested.append((name, config, streaming))
        features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["joy", "anger", "happiness"]))})
        rows = [{"text": "a", "labels": [0, 2]}, {"text": "b", "labels": [0, 1]}, {"text": "c", "labels": []}]
        return DatasetDict({"test": Dataset.from_list(rows, features=features)})

    monkeypatch.setattr(sources, "load_dataset", load_dataset)

    rows = read_source("someone/comments:raw", "data", columns={"label": "labels"}, **ANY_LABEL)

    assert requested == [("someone/comments", "raw", False)]
    assert [(row["text"], row["label"], row["split"], row["corpus"]) for row in rows] == [
        ("a", "happy", "test", "someone/comments:raw")
    ]


# The labels of "labels_dropped": 5 rows each.
OWN = [
    {"text": "I have been waiting.", "label": label, "speaker": str(index)}
    for index in range(5)
    for label in ("生气", "calm", "sad", "very happy")
]


@pytest.mark.parametrize("streaming", [False, True])
def test_many_rows_of_other_labels_raise(tmp_path, streaming, caplog):
    table = str(write_table(tmp_path / "calls.csv", OWN))

    with pytest.raises(
        ValueError,
        match=r"calls\.csv: 10 of 20 rows \(50\.0%\) have a label that is not one of \['angry', .*: very happy \(5\), "
        r"生气 \(5\)\. Train a model with the labels of the data \(--labels calm sad 'very happy' '生气'\), map .* "
        r"\(--label_map 'very happy=angry'\), or leave these rows out \(--allow_unknown_labels\)",
    ):
        read_source(table, "data", streaming=streaming)

    assert len(list(read_source(table, "data", streaming=streaming, **ANY_LABEL))) == 10
    assert (
        len(list(read_source(table, "data", streaming=streaming, labels=("calm", "sad", "very happy", "生气")))) == 20
    )


def test_few_rows_of_other_labels_are_counted_in_the_log(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("modeling_mmemo.data.unknown_labels.logger.warning", warnings.append)
    rows = [*({"text": "Hi", "label": "joy"} for _ in range(39)), {"text": "Ho", "label": ""}]
    table = write_table(tmp_path / "calls.csv", rows)

    assert len(read_source(str(table), "data")) == 39
    assert "left out 1 of 40 rows (2.5%)" in warnings[0] and warnings[0].endswith(": (no label) (1).")


def test_a_shared_label_that_the_model_lacks_raises_in_a_known_corpus_too(tmp_path):
    write_clips(tmp_path / "emodb", "03a01Wa.wav", "03a01Ta.wav", "03a01La.wav")

    for streaming in (False, True):
        # Boredom is excluded by the protocol of the corpus, anger is not.
        with pytest.raises(ValueError, match=r"emodb: 1 of 3 rows .* not one of \['sad', '生气'\]: anger \(1\)\. "):
            read_source("emodb", tmp_path, labels=("sad", "生气"), streaming=streaming)
    assert len(read_source("emodb", tmp_path)) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
@pytest.mark.parametrize("streaming", [False, True])
def test_chinese_tables(tmp_path, encoding, streaming):
    table = tmp_path / "calls.csv"
    table.write_text("text,label,speaker\n我等了很久,生气,张三\n谢谢你,高兴,李四\n", encoding=encoding)
    options = {"labels": ("生气", "高兴"), "streaming": streaming}

    if encoding == "gbk":
        with pytest.raises(ValueError, match=r"calls\.csv, line 2, is not UTF-8\. Name .* \(--encoding gbk"):
            list(read_source(str(table), "data", **options))
        options["encoding"] = "gbk"
    rows = list(read_source(str(table), "data", **options))

    assert [(row["text"], row["label"], row["speaker"]) for row in rows] == [
        ("我等了很久", "生气", "calls-张三"),
        ("谢谢你", "高兴", "calls-李四"),
    ]


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        ("text,label\nHi, you,sad\n", None, r"line 2: the row has more cells than the header; put double quotes"),
        ("text,label\n", None, "has no rows; it needs a header"),
        ("text,label\nHi,sad\n", "utf8x", "encoding='utf8x' is unknown"),
        ("text,label\nÄh,sad\n", "ascii", r"not in the encoding ascii \(ordinal not in range"),
    ],
)
def test_malformed_tables_raise(tmp_path, content, encoding, message):
    (tmp_path / "calls.csv").write_text(content, encoding="utf-8")

    with pytest.raises(ValueError, match=message):
        read_source(str(tmp_path / "calls.csv"), "data", encoding=encoding)


def test_semicolons_separate_cells_if_the_header_has_no_comma(tmp_path):
    (tmp_path / "calls.csv").write_text("text;label\nNo, thanks.;anger\n", encoding="cp1252")

    assert read_source(str(tmp_path / "calls.csv"), "data")["text"] == ["No, thanks."]


LANGUAGES = [
    {"text": "我等了很久", "label": "anger", "language": " ZH "},
    {"text": "Thanks.", "label": "joy", "language": "en"},
    {"text": "Gracias.", "label": "joy", "language": "es"},
    {"text": "Hm.", "label": "joy", "language": ""},
]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_in_the_wanted_languages_and_of_unknown_language_are_kept(tmp_path, streaming):
    table = str(write_table(tmp_path / "calls.csv", LANGUAGES))

    def texts(*languages):
        rows = read_source(table, "data", streaming=streaming, languages=languages)
        return [(row["text"], row["language"]) for row in rows]

    assert texts() == [("我等了很久", "zh"), ("Thanks.", "en"), ("Gracias.", "es"), ("Hm.", None)]
    assert texts("ZH", "es") == [("我等了很久", "zh"), ("Gracias.", "es"), ("Hm.", None)]


@pytest.mark.parametrize("streaming", [False, True])
def test_languages_that_no_row_has_raise(tmp_path, streaming):
    table = str(write_table(tmp_path / "calls.csv", LANGUAGES[:3]))

    with pytest.raises(
        ValueError,
        match=r"calls\.csv has no rows in the languages \['xx'\]; it has \['en', 'es', 'zh'\]\. Choose .*--languages",
    ):
        read_source(table, "data", streaming=streaming, languages=["xx"])


def test_languages_that_a_source_lacks_among_others_are_logged(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("modeling_mmemo.data.corpora.logger.warning", warnings.append)
    table = str(write_table(tmp_path / "calls.csv", LANGUAGES))

    assert len(read_source(table, "data", languages=["xx", "es"])) == 2
    assert warnings == [f"{table} has no rows in the languages ['xx']; it has ['en', 'es', 'zh']."]


def test_splits_without_rows_in_the_wanted_languages_are_left_out(tmp_path):
    for split, row in zip(("train", "test"), LANGUAGES):
        write_table(tmp_path / "calls" / split / "metadata.csv", [row])

    rows = read_source(str(tmp_path / "calls"), "data", languages=["zh"])

    assert rows["text"] == ["我等了很久"]


def test_sources_that_state_no_language_are_kept_whole(tmp_path):
    table = write_table(tmp_path / "calls.csv", [{"text": "Hi", "label": "joy"}])

    assert len(read_source(str(table), "data", languages=["zh"])) == 1


def test_languages_that_are_numbers_have_names(tmp_path):
    features = Features(
        {"text": Value("string"), "label": Value("string"), "tongue": ClassLabel(names=["zh-CN", "es"])}
    )
    rows = [{"text": text, "label": "joy", "tongue": tongue} for text, tongue in (("a", 1), ("b", 0), ("c", -1))]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "calls.parquet")

    table, columns = str(tmp_path / "calls.parquet"), {"language": "tongue"}

    assert read_source(table, "data", columns=columns)["language"] == ["es", "zh-cn", None]
    assert read_source(table, "data", columns=columns, languages=["es"])["text"] == ["a", "c"]


@pytest.mark.parametrize("streaming", [False, True])
def test_known_corpus_by_name(tmp_path, streaming):
    write_clips(tmp_path / "savee", "DC_a01.wav", "KL_n01.wav")

    rows = read_source("savee", tmp_path, labels=("angry", "neutral"), fold=4, streaming=streaming)

    assert [(row["label"], row["speaker"], row["split"]) for row in rows] == [
        ("angry", "savee-DC", "train"),
        ("neutral", "savee-KL", "test"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"label": "mood"}}, r"has no column \['mood'\]; it has \['clip', 'words', .*label=emotion"),
        ({}, r"has no column \['label'\]; it has \['clip', 'words', 'emotion', 'actor', 'part'\]"),
        (
            {"columns": {"mood": "emotion"}},
            r"columns names \['mood'\], but the columns of a row are \['audio', 'text'",
        ),
        (
            {"columns": COLUMNS, "labels": ("proud",)},
            r"has one of the labels \['proud'\]; .* are anger \(1\), boredom \(1\), gloom \(1\), .*--labels anger b",
        ),
        ({"columns": {"label": "emotion", "split": "words"}}, r"Unknown split 'Yes!'"),
        ({"columns": COLUMNS, "fold": 1}, r"fold=1 needs a corpus with folds"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_table_with_wrong_columns_raises(tmp_path, options, message, streaming):
    table = write_table(tmp_path / "calls.csv", ROWS)

    with pytest.raises(ValueError, match=message):
        read_source(str(table), "data", streaming=streaming, **ANY_LABEL, **options)


def test_missing_source_raises(tmp_path):
    with pytest.raises(ValueError, match=r"calls\.csv does not exist"):
        read_source(str(tmp_path / "calls.csv"), "data")
    with pytest.raises(
        ValueError, match=r"'ravdes' is neither one of the corpora .*'ravdess'.* nor an accessible dataset of the Hub"
    ):
        read_source("ravdes", "data")
    with pytest.raises(ValueError, match=r"columns=.* contradicts 'savee'"):
        read_source("savee", "data", columns={"label": "emotion"})
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"data has no savee/metadata\.csv nor savee"):
            read_source("savee", "data", streaming=streaming)


@pytest.mark.corpora
def test_a_real_corpus_is_also_an_audiofolder(corpora_dir):
    rows = read_source(str(corpora_dir / "emodb"), "data", labels=("boredom", "angry"), **ANY_LABEL)

    assert len(rows) == 81 + 127
    assert rows[0]["speaker"] == "emodb-03"
