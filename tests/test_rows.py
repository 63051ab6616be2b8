from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from mmemo.video.face import FaceSequence
from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.data.schema import FEATURES, STORED_FEATURES, as_dataset
from modeling_mmemo.training.rows import EmotionRows, LikeBatches, StreamedRows
from modeling_mmemo.training.training_run import balanced_weights, corpus_loss_weights


LABELS = ("angry", "happy", "sad")
RATE = 16_000


@pytest.fixture
def make_row(tmp_path, make_clip):
    """Makes a row with a clip of `seconds`, a `text`, or both."""
    made = iter(range(1000))

    def make(label, seconds=None, text=None, **columns):
        audio = None
        if seconds is not None:
            seed = next(made)
            audio = {"bytes": None, "path": str(tmp_path / f"{seed}.wav")}
            soundfile.write(audio["path"], make_clip(seconds, seed), RATE)
        row = {**dict.fromkeys(FEATURES), "corpus": "one", "split": "train"}
        return {**row, "audio": audio, "text": text, "label": label, **columns}

    return make


@pytest.fixture
def select(processor):
    def make(rows, **options):
        return EmotionRows(as_dataset(rows), range(len(rows)), LABELS, {}, processor, **options)

    return make


def test_row_has_the_keys_of_its_modalities(make_row, select):
    rows = select([make_row("sad", 0.25), make_row("angry", text="wait !"), make_row("angry", 0.5, " ")])

    assert rows[0].keys() == {"labels", "label_mask", "audio"}
    assert rows[0]["labels"] == 2
    assert rows[0]["audio"].shape == (0.25 * RATE,)
    assert rows[1]["text"] == "wait !"
    assert "audio" not in rows[1]
    assert "text" not in rows[2]


def test_a_missing_clip_raises(make_row, select):
    row = make_row("sad", 0.25)
    path = row["audio"]["path"]
    Path(path).unlink()

    with pytest.raises(ValueError, match=f"Cannot read {path} .*No such file"):
        select([row])


def test_labels_that_a_corpus_lacks_are_masked(make_row, select):
    rows = select([make_row("sad", text="a"), make_row("angry", text="b"), make_row("happy", text="c", corpus="two")])

    assert rows[0]["label_mask"].tolist() == [1, 0, 1]
    assert rows[2]["label_mask"].tolist() == [0, 1, 0]


def test_corpus_weights_give_labels_equal_and_corpora_root_weights(make_row, select):
    """One corpus of 16 rows, 12 and 4 of a label, and one of 4 rows of another label, half of which is drawn."""
    table = [make_row("sad", text="a") for _ in range(12)] + [make_row("happy", text="b") for _ in range(4)]
    table += [make_row("angry", text="c", corpus="two") for _ in range(8)]
    rows = select(table, weights=[1.0] * 16 + [0.5] * 8)

    rows.loss_weights = corpus_loss_weights(rows)

    weights = [row["loss_weight"] for row in rows]
    assert (len(weights), np.mean(weights)) == (20, pytest.approx(1))
    sad, happy, angry = sum(weights[:12]), sum(weights[12:16]), sum(weights[16:])
    assert sad == pytest.approx(happy)
    assert (sad + happy) / angry == pytest.approx(2)
    assert "loss_weight" not in select(table)[0]


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 3.0), (0.5, 3**0.5), (1.0, 1.0)])
def test_power_of_class_weights_by_hand(make_row, select, power, ratio):
    """12 and 4 rows of a label: the ratio of their total weights shrinks from 3 to 1."""
    table = [make_row("sad", text="a") for _ in range(12)] + [make_row("happy", text="b") for _ in range(4)]
    rows = select(table)

    balanced = balanced_weights(rows, 3, power)
    corpus = corpus_loss_weights(rows, power)

    sad, happy = LABELS.index("sad"), LABELS.index("happy")
    assert 12 * balanced[sad] / (4 * balanced[happy]) == pytest.approx(ratio)
    assert 12 * corpus["one", sad] / (4 * corpus["one", happy]) == pytest.approx(ratio)
    assert 12 * balanced[sad] + 4 * balanced[happy] == pytest.approx(16)
    assert 12 * corpus["one", sad] + 4 * corpus["one", happy] == pytest.approx(16)


def test_clip_is_paired_with_texts_of_its_label(make_row, select):
    rows = [make_row("sad", 0.25), make_row("angry", 0.25), make_row("sad", 0.25, "mine")]
    rows += [make_row("sad", text="one"), make_row("sad", text="two"), make_row("happy", text="three")]

    paired = select(rows, pair_probability=1.0, pair_texts=range(len(rows)))

    drawn = []
    for epoch in range(10):
        paired.set_epoch(epoch)
        drawn.append(paired[0]["text"])
        assert "text" not in paired[1]
        assert paired[2]["text"] == "mine"
    assert set(drawn) == {"one", "two"}
    assert "text" not in select(rows, pair_texts=range(len(rows)))[0]


def test_texts_of_simulated_pairs_are_neutral_with_their_probability(make_row, processor):
    rows = [make_row("sad", 0.25)] + [make_row(label, text=label) for label in ("sad", "neutral", "happy")]

    def texts(**options):
        pairs = EmotionRows(
            as_dataset(rows), [0], ("sad", "neutral", "happy"), {}, processor, pair_texts=range(4), **options
        )
        drawn = []
        for epoch in range(40):
            pairs.set_epoch(epoch)
            assert pairs[0]["labels"] == 0
            drawn.append(pairs[0].get("text"))
        return drawn

    assert set(texts(pair_probability=1.0, neutral_text_probability=1.0)) == {"neutral"}
    assert 5 < texts(pair_probability=1.0, neutral_text_probability=0.5).count("sad") < 35
    assert set(texts(pair_probability=0.5, neutral_text_probability=1.0)) == {"neutral", None}


def test_cached_states_are_paired_by_the_index_of_the_row(make_row, processor):
    class States:
        def __getitem__(self, index):
            return np.full((2, index + 1, 3), index, np.float16)

        def length(self, index):
            return index + 1

    rows = as_dataset([make_row("sad", 0.25), make_row("happy", text="no"), make_row("sad", text="yes")])
    cached = EmotionRows(
        rows, range(3), LABELS, {"audio": States(), "text": States()}, processor, None, 1.0, pair_texts=range(3)
    )

    assert cached[0]["audio"][0, 0, 0] == 0
    assert cached[0]["text"].shape == (2, 3, 3)
    assert cached.lengths == {0: 1, 1: 2, 2: 3}


@pytest.mark.parametrize(("weight", "epochs"), [(0.5, 2), (1.5, 2), (0.25, 4), (2.0, 1)])
def test_weights_draw_all_rows_in_turn(make_row, select, weight, epochs):
    rows = select([make_row("sad", text=str(index)) for index in range(8)], weights=[weight] * 8)

    drawn = []
    for epoch in range(epochs):
        rows.set_epoch(epoch)
        assert len(rows) == 8 * weight
        drawn += rows.indices

    assert sorted(drawn) == sorted(list(range(8)) * round(weight * epochs))


def test_each_corpus_has_its_own_weight(make_row, select):
    rows = select([make_row("sad", text="a")] * 2 + [make_row("sad", text="b")] * 4, weights=[2.0] * 2 + [0.5] * 4)

    texts = [rows[position]["text"] for position in range(len(rows))]

    assert sorted(texts) == ["a"] * 4 + ["b"] * 2


def test_running_workers_draw_the_rows_of_the_epoch(make_row, select):
    rows = select([make_row("sad", text=str(index)) for index in range(8)], weights=[0.5] * 8)
    loader = DataLoader(rows, batch_size=None, num_workers=1, persistent_workers=True)

    texts = []
    for epoch in range(4):
        rows.set_epoch(epoch)
        texts += [row["text"] for row in loader]

    assert sorted(texts[:8]) == sorted(texts[8:]) == [str(index) for index in range(8)]
    assert texts[:8] != texts[8:]


def test_running_workers_stream_the_order_of_the_epoch(stream):
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)

    drawn = []
    for epoch in (0, 1, 1):
        stream.set_epoch(epoch)
        drawn.append([(row["text"], float(torch.as_tensor(row.get("audio", 0.0)).abs().sum())) for row in loader])

    first, second, again = drawn
    assert second == again
    assert [text for text, _ in first] != [text for text, _ in second]
    # The same clips, with other gains.
    assert sorted(first) != sorted(second)


def test_augmentation_depends_only_on_seed_epoch_and_position(make_row, select):
    table = [make_row("sad", 0.25) for _ in range(4)]
    augmentation = Augmentation(noise_probability=0.7, gain_probability=0.7)

    def clips(order, seed, epoch):
        rows = select(table, augmentation=augmentation, seed=seed)
        rows.set_epoch(epoch)
        drawn = {position: rows[position]["audio"] for position in order}
        return np.stack([drawn[position] for position in range(4)])

    first = clips(range(4), 0, 1)
    assert np.array_equal(clips((3, 1, 0, 2), 0, 1), first)
    assert not np.array_equal(clips(range(4), 0, 2), first)
    assert not np.array_equal(clips(range(4), 1, 1), first)


def test_word_times_scale_with_the_speed_of_the_clip(make_row, select):
    row = make_row("sad", 0.5, "wait", word_times=[{"word": "wait", "start": 0.1, "end": 0.4}])

    ((word, start, end),) = select([row], augmentation=Augmentation(speed_probability=1.0, speed=[2.0, 2.0]))[0][
        "word_times"
    ]

    assert word == "wait"
    assert (start, end) == pytest.approx((0.05, 0.2))


def test_clips_with_word_times_are_not_cropped(make_row, select):
    words = [{"word": "wait", "start": 0.1, "end": 0.4}]
    table = [make_row("sad", 0.5, "wait", word_times=words), make_row("sad", 0.5, "wait")]

    timed, cropped = select(table, augmentation=Augmentation(crop_probability=1.0, crop_s=[0.2, 0.3]))

    assert len(timed["audio"]) == 0.5 * RATE
    assert timed["word_times"] == [("wait", pytest.approx(0.1), pytest.approx(0.4))]
    assert 0.2 * RATE <= len(cropped["audio"]) <= 0.3 * RATE + 1


def test_audio_of_a_pair_is_replaced_by_noise_without_label(make_row, select):
    rows = select([make_row("sad", 0.25, "wait"), make_row("sad", 0.25)], blank_probability=1.0)
    plain = select([make_row("sad", 0.25, "wait")])[0]

    assert rows[0]["audio"].shape == plain["audio"].shape
    assert abs(np.corrcoef(rows[0]["audio"], plain["audio"])[0, 1]) < 0.2
    assert rows[0]["label_mask"].tolist() == [1, 1, 1]
    assert rows[1]["label_mask"].tolist() == [0, 0, 1]


def test_rows_are_sorted_by_length_in_every_epoch(make_row, select):
    rows = select([make_row("sad", seconds) for seconds in (0.1, 0.3, 0.2)], by_length=True)

    for epoch in range(2):
        rows.set_epoch(epoch)
        assert [len(rows[position]["audio"]) for position in range(3)] == [4800, 3200, 1600]


@pytest.fixture
def mixed(make_row, select):
    """10 clips of increasing length, 7 texts, 5 rows with both."""
    table = [make_row("sad", 0.1 + 0.01 * index) for index in range(10)]
    table += [make_row("sad", text="a" * index) for index in range(1, 8)]
    return select(table + [make_row("sad", 0.1, "wait")] * 5)


@pytest.mark.parametrize("by_length", [True, False])
def test_batches_have_rows_of_one_kind_and_every_row_once(mixed, by_length):
    sampler = LikeBatches(mixed, batch_size=3, seed=0, by_length=by_length)

    order = list(sampler)

    assert sorted(order) == list(range(22)) == list(range(len(sampler)))
    # 3 full batches of clips, 2 of texts, 1 of both; then the rest.
    batches = [order[start : start + 3] for start in range(0, 18, 3)]
    assert all(len({mixed.kind_of(index) for index in batch}) == 1 for batch in batches)
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert list(sampler) != order
    assert mixed.epoch == 1


def test_batches_by_length_have_less_padding(mixed):
    def padding(by_length):
        order = list(LikeBatches(mixed, batch_size=3, seed=0, by_length=by_length))
        batches = [[mixed.lengths[index] for index in order[start : start + 3]] for start in range(0, 18, 3)]
        return sum(max(lengths) - length for lengths in batches for length in lengths)

    assert padding(by_length=True) < 0.5 * padding(by_length=False)


@pytest.fixture
def stream(make_row, processor):
    table = [make_row("sad", 0.1, text="b"), make_row("happy", text="a"), make_row("sad", text="c", corpus="two")]
    rows = as_dataset(table * 4).cast(STORED_FEATURES).to_iterable_dataset()
    return StreamedRows(rows, LABELS, processor, Augmentation(gain_probability=0.5), seed=0)


def test_stream_has_every_row_in_another_order_every_epoch(stream):
    first = list(stream)
    again = list(stream)
    stream.set_epoch(1)
    second = list(stream)

    assert sorted(row["text"] for row in first) == sorted("abc" * 4)
    assert [row["text"] for row in again] == [row["text"] for row in first]
    assert [row["text"] for row in second] != [row["text"] for row in first]
    for row in first:
        assert row["labels"] == LABELS.index("happy" if row["text"] == "a" else "sad")
        assert row["label_mask"].tolist() == ([0, 0, 1] if row["text"] == "c" else [0, 1, 1])
        assert ("audio" in row) == (row["text"] == "b")


class Followed:
    """Faces of two frames in the videos of some rows."""

    def __init__(self, *present):
        self.present = present

    def __getitem__(self, index):
        times = np.array([[0.0, 0.2], [0.2, 0.4]], np.float32)
        found = np.array([True, False])
        return FaceSequence(times, found, np.full((2, 52), index, np.float32), np.zeros((2, 4)), None, 0.4)

    def length(self, index):
        return 2 if index in self.present else 0


def test_rows_with_videos(make_row, select):
    table = [make_row("sad", 0.5), make_row("sad", 0.5, "no"), make_row("happy", text="yes"), make_row("happy")]
    rows = select(table, faces=Followed(1, 2, 3))

    assert [rows.kind_of(index) for index in range(4)] == [
        ("audio",),
        ("audio", "text", "video"),
        ("text", "video"),
        ("video",),
    ]
    assert rows.lengths[3] == 2
    assert "video" not in rows[0] and rows[3].keys() == {"labels", "label_mask", "video"}
    assert (rows[2]["video"].blendshapes == 2).all()
    alone = select(table[1:], faces=Followed(0, 1, 2), modalities=("video",))
    assert alone.kind_of(0) == ("video",) and alone[0].keys() == {"labels", "label_mask", "video"}
    pieces = {rows.kind_of(index) for index in LikeBatches(rows, batch_size=1, seed=0, by_length=True)}
    assert len(pieces) == 4


def test_frames_follow_the_speed_of_an_augmented_clip(make_row, select):
    rows = select(
        [make_row("sad", 1.0), make_row("sad", 1.0)],
        faces=Followed(0),
        augmentation=Augmentation(speed_probability=1.0, speed=[0.8, 0.8], silence_probability=1.0),
    )

    timed, free = rows[0], rows[1]

    assert timed["video"].times[-1, 1] == pytest.approx(0.4 * len(timed["audio"]) / RATE)
    assert len(timed["audio"]) != RATE
    # Only a clip without timestamps is surrounded by silence.
    assert len(free["audio"]) > len(timed["audio"])


def test_stream_adds_labels_to_the_mask_of_a_corpus(make_row, processor, monkeypatch):
    monkeypatch.setattr(StreamedRows, "BUFFER", 1)
    rows = as_dataset([make_row("sad", text="a"), make_row("happy", text="b")]).cast(STORED_FEATURES)

    items = list(StreamedRows(rows.to_iterable_dataset(), LABELS, processor, None, seed=0))

    assert torch.stack([item["label_mask"] for item in items]).tolist() == [[0, 0, 1], [0, 1, 1]]
