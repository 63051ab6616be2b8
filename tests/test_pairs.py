from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset

from modeling_mmemo import EMOTIONS
from modeling_mmemo.training.pairs import EmotionRows, ModalityBatches, collate


LABEL_MASK = torch.ones(len(EMOTIONS), dtype=torch.long)


def states(*values):
    """For each value, states of 2 layers, as many positions as the value, and width 3, all of that value."""
    return [np.full((2, value, 3), value, np.float16) for value in values]


def make_rows(pair_probability):
    voices = Dataset.from_dict({"label": ["angry", "sad"], "corpus": ["one", "two"]})
    texts = Dataset.from_dict({"label": ["sad", "happy"], "corpus": ["three", "three"]})
    return EmotionRows(voices, states(4, 5), [0, 1], texts, states(1, 2), [0, 1], pair_probability)


def test_a_voice_is_paired_with_a_text_of_its_label():
    rows = make_rows(1.0)

    assert len(rows) == 4
    assert "text" not in rows[0]  # there is no angry text
    assert rows[1]["audio"][0, 0, 0] == 5
    assert rows[1]["text"][0, 0, 0] == 1
    assert "audio" not in rows[2]


def test_a_voice_is_left_alone_without_pairing():
    assert "text" not in make_rows(0.0)[1]


def test_a_corpus_masks_the_labels_that_it_lacks():
    assert make_rows(0.0)[1]["label_mask"].tolist() == [0, 0, 0, 0, 0, 1, 0]


def test_batches_hold_voices_or_texts_and_every_row_once():
    rows = SimpleNamespace(audio_indices=list(range(10)), text_indices=list(range(13)))
    sampler = ModalityBatches(rows, batch_size=4, seed=0)

    first, second = list(sampler), list(sampler)

    assert sorted(first) == list(range(23)) == list(range(len(sampler)))
    batches = [first[i : i + 4] for i in range(0, 20, 4)]
    kinds = [{index < 10 for index in batch} for batch in batches]
    assert all(len(kind) == 1 for kind in kinds)
    assert first != second


def test_collate_pads_and_masks_what_is_missing():
    voice, both = states(3)[0], states(1)[0]
    batch = collate(
        [
            {"audio": voice, "labels": 1, "label_mask": LABEL_MASK},
            {"audio": both, "text": states(2)[0], "labels": 0, "label_mask": LABEL_MASK},
        ]
    )

    assert batch["labels"].tolist() == [1, 0]
    assert batch["audio_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[0, 0], [1, 1]]
    assert [layer.shape for layer in batch["audio_hidden_states"]] == [(2, 3, 3)] * 2
    assert batch["audio_hidden_states"][0][:, :, 0].tolist() == [[3, 3, 3], [1, 0, 0]]


def test_collate_leaves_out_a_modality_that_no_row_has():
    batch = collate([{"audio": states(1)[0], "labels": 1, "label_mask": LABEL_MASK}])

    assert "text_hidden_states" not in batch
    assert "attention_mask" not in batch
