import numpy as np
import pytest
from datasets import Dataset

from modeling_mmemo.evaluation.scoring import held_out, restrict_scores, row_lengths, score_items


TEXTS = ["wait", "i am so happy", "you are sad !", "i am not so happy . you wait ."]


def test_scores_are_in_the_order_of_rows_and_labels(emotion):
    scored = []

    def make_item(row):
        scored.append(row)
        return {"text": TEXTS[row]}

    scores = score_items(emotion, make_item, np.array([len(text) for text in TEXTS]), batch_size=2)

    assert scored == [3, 1, 2, 0]  # the longest first
    labels = emotion.model.config.id2label
    for row, text in enumerate(TEXTS):
        alone = {entry["label"]: entry["score"] for entry in emotion({"text": text})}
        assert scores[row] == pytest.approx([alone[labels[index]] for index in range(4)], abs=1e-5)


def test_a_row_of_which_nothing_is_left_has_equal_scores(emotion, caplog):
    def make_item(row):
        return None if row == 1 else {"text": TEXTS[row]}

    lengths = np.array([len(text) for text in TEXTS])
    scores = score_items(emotion, make_item, lengths, batch_size=2, description="blurred face")

    whole = score_items(emotion, lambda row: {"text": TEXTS[row]}, lengths, batch_size=2)
    assert scores[1].tolist() == [0.25] * 4
    assert scores[[0, 2, 3]] == pytest.approx(whole[[0, 2, 3]], abs=1e-6)
    assert "blurred face: no face is found in 1 of 4 videos without audio and text" in caplog.text
    assert score_items(emotion, lambda row: None, lengths).tolist() == [[0.25] * 4] * 4


def test_row_lengths(emotion, example_audio):
    rows = Dataset.from_dict({"audio": [{"path": str(example_audio), "bytes": None}] * 2, "text": ["ab", "abc"]})

    assert row_lengths(emotion, rows, "text").tolist() == [2, 3]
    assert row_lengths(emotion, rows, "audio").tolist() == [len(emotion.processor.load_audio(example_audio))] * 2


def test_held_out_rows_are_the_test_part_or_the_whole_corpus():
    rows, part = held_out(Dataset.from_dict({"split": ["train", "test", "dev"], "text": ["a", "b", "c"]}))
    assert (rows["text"][:], part) == (["b"], "test part")

    rows, part = held_out(Dataset.from_dict({"split": ["train", "train"]}))
    assert (len(rows), part) == (2, "whole corpus (it has no test part)")


def test_restricted_scores_sum_to_one():
    scores = np.array([[0.5, 0.4, 0.1], [0.0, 1.0, 0.0], [0.0, 0.25, 0.75]])

    restricted = restrict_scores(scores, [0, 2])

    assert restricted == pytest.approx(np.array([[5 / 6, 1 / 6], [0.5, 0.5], [0.0, 1.0]]))
