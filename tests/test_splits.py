import pytest
from datasets import concatenate_datasets

from modeling_mmemo.data.corpora import read_corpus
from modeling_mmemo.data.schema import as_dataset, split_of
from modeling_mmemo.data.splits import leak_check, split_by_speaker


def make_rows(*rows):
    """Makes rows from `(speaker, split, text, has_audio)`."""
    return as_dataset(
        [
            {
                "audio": {"path": f"{index}.wav", "bytes": None} if has_audio else None,
                "text": text,
                "word_times": None,
                "label": "happy",
                "speaker": speaker,
                "corpus": "c",
                "split": split,
            }
            for index, (speaker, split, text, has_audio) in enumerate(rows)
        ]
    )


def test_rows_without_a_leak_pass():
    rows = make_rows(("a", "train", "One", True), ("b", "test", "Two", True), (None, "dev", None, True))

    leak_check(rows, by=("speaker", "text"))


def test_a_speaker_in_two_splits_is_named():
    rows = make_rows(("a", "train", "", True), ("b", "train", "", True), ("A ", "test", "", True))

    with pytest.raises(
        ValueError, match=r"1 speaker value\(s\) occur in both train and test, such as \['a'\]: .*leaks"
    ):
        leak_check(rows)
    leak_check(rows, between=[("train", "dev")])


def test_speakers_without_audio_and_missing_speakers_do_not_leak():
    rows = make_rows(
        ("Ross", "train", "Hi.", False),
        ("Ross", "test", "Ho.", True),
        (None, "train", "A.", True),
        (None, "test", "B.", True),
    )

    leak_check(rows)


def test_speakers_of_silent_videos_leak():
    rows = [
        {"video": {"path": f"{split}.mp4", "bytes": None}, "speaker": "a", "split": split}
        for split in ("train", "test")
    ]

    with pytest.raises(ValueError, match=r"1 speaker value\(s\) occur in both train and test"):
        leak_check(as_dataset(rows))


def test_rows_of_one_video_stay_together():
    rows = [
        {"video": {"path": f"{index % 2}.mp4", "bytes": None}, "label": "sad", "split": "train"} for index in range(8)
    ]

    moved = split_by_speaker(as_dataset(rows), 0.5, seed=0)

    splits = {video["path"]: split for video, split in zip(moved["video"], moved["split"])}
    assert sorted(splits.values()) == ["dev", "train"]
    assert list(moved["split"]).count("dev") == 4


def test_texts_are_compared_without_case_and_whitespace():
    rows = make_rows((None, "train", "Oh  my\nGod", False), (None, "dev", "oh my god ", False))

    with pytest.raises(ValueError, match=r"1 text value\(s\) occur in both train and dev, such as \['oh my god'\]"):
        leak_check(rows, by=["text"])


def test_unknown_leak_column_raises():
    with pytest.raises(ValueError, match=r"not by \['label'\]"):
        leak_check(make_rows(("a", "train", "", True)), by=["label"])


def test_whole_speakers_are_set_aside():
    rows = make_rows(*((speaker, "train", "", True) for speaker in "abcde" for _ in range(4)), ("t", "test", "", True))

    moved = split_by_speaker(rows, dev_share=0.3, seed=0)

    splits = {speaker: set() for speaker in "abcdet"}
    for speaker, split in zip(moved["speaker"], moved["split"]):
        splits[speaker].add(split)
    assert sorted(map(sorted, splits.values())) == [["dev"]] * 2 + [["test"]] + [["train"]] * 3
    assert splits["t"] == {"test"}
    assert moved.features == rows.features
    leak_check(moved)


def test_a_seed_fixes_the_split_and_another_changes_it():
    rows = make_rows(*((speaker, "train", "", True) for speaker in "abcdefgh"))

    splits = [tuple(split_by_speaker(rows, 0.5, seed)["split"]) for seed in (0, 0, 1, 2, 3)]

    assert splits[0] == splits[1]
    assert len(set(splits)) > 1


def test_at_least_one_speaker_in_each_split():
    rows = make_rows(("a", "train", "", True), ("b", "train", "", True), ("c", "train", "", True))

    assert list(split_by_speaker(rows, 0.01, seed=0)["split"]).count("dev") == 1
    assert list(split_by_speaker(rows, 0.99, seed=0)["split"]).count("train") == 1


def test_rows_without_speaker_are_split_individually():
    rows = make_rows(*((None, "train", str(index), False) for index in range(10)))

    assert list(split_by_speaker(rows, 0.2, seed=0)["split"]).count("dev") == 2


def test_few_rows_without_speaker_still_give_a_development_row():
    rows = make_rows(*((None, "train", str(index), False) for index in range(4)))

    assert list(split_by_speaker(rows, 0.1, seed=0)["split"]).count("dev") == 1


def test_rows_of_one_file_stay_together(monkeypatch):
    warnings = []
    monkeypatch.setattr("modeling_mmemo.data.splits.logger.warning", warnings.append)
    rows = make_rows(*((None, "train", str(index), True) for index in range(5)))
    rows = concatenate_datasets([rows] * 4)

    for seed in range(5):
        moved = split_by_speaker(rows, 0.2, seed)
        files = {split: set() for split in ("train", "dev")}
        for audio, split in zip(moved["audio"], moved["split"]):
            files[split].add(audio["path"])
        assert (len(files["dev"]), files["dev"] & files["train"]) == (1, set())
    assert warnings[0].startswith("20 clips have no speaker and are set aside one by one: the development scores are")


def test_one_speaker_per_row():
    rows = make_rows(*((str(index), "train", "", True) for index in range(20)))

    moved = split_by_speaker(rows, 0.1, seed=0)

    assert list(moved["split"]).count("dev") == 2
    leak_check(moved)


def test_impossible_splits_raise():
    rows = make_rows(("a", "train", "", True))

    with pytest.raises(ValueError, match=r"dev_share=1\.5 must be in \(0, 1\)"):
        split_by_speaker(rows, 1.5, seed=0)
    with pytest.raises(ValueError, match=r"'a' is the only speaker of the training rows"):
        split_by_speaker(rows, 0.5, seed=0)
    with pytest.raises(ValueError, match=r"only one clip or text, which cannot be set aside"):
        split_by_speaker(make_rows((None, "train", "", True)), 0.5, seed=0)
    with pytest.raises(ValueError, match=r"Unknown split 'holdout'; .*'validation'"):
        split_of("holdout")


@pytest.mark.slow
@pytest.mark.corpora
def test_the_real_splits_do_not_leak(corpora_dir):
    for name in ("ravdess", "nemo", "meld", "iesc", "turev", "brighter", "xed"):
        leak_check(read_corpus(name, corpora_dir))
