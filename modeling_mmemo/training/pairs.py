"""Rows of frozen features for the Trainer, with voices and words of the same label paired at random.

No corpus at hand has natural words and an emotional voice at once. Pairs are therefore simulated: a voice is given a
random text of its own label, anew in every epoch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from modeling_mmemo.configuration_mmemo import EMOTIONS
from modeling_mmemo.training.features import TowerStates


class EmotionRows(torch.utils.data.Dataset):
    """Voices, some with a text, and then the texts alone.

    Args:
        audio_rows, text_rows (`datasets.Dataset`): Rows with `label` and `corpus`.
        audio_states, text_states (`TowerStates`): Their towers' states, row by row.
        audio_indices, text_indices (`list[int]`): Which of the rows belong to this split.
        pair_probability (`float`): How often a voice gets a text of its label.
        texts_alone (`bool`): Whether the texts also stand alone.
        seed (`int`): Of the pairing.
    """

    def __init__(
        self,
        audio_rows: Dataset,
        audio_states: TowerStates,
        audio_indices: list[int],
        text_rows: Dataset,
        text_states: TowerStates,
        text_indices: list[int],
        pair_probability: float,
        texts_alone: bool = True,
        seed: int = 0,
    ):
        self.audio_states, self.text_states = audio_states, text_states
        self.audio_indices = audio_indices
        self.text_indices = text_indices if texts_alone else []
        self.pair_probability = pair_probability
        self.random = np.random.default_rng(seed)
        self.audio_labels, self.text_labels = _label_ids(audio_rows), _label_ids(text_rows)
        self.label_masks = _label_masks(audio_rows, self.audio_labels)
        self.corpora = list(audio_rows["corpus"])
        self.texts_of = [[i for i in text_indices if self.text_labels[i] == label] for label in range(len(EMOTIONS))]

    def __len__(self) -> int:
        return len(self.audio_indices) + len(self.text_indices)

    def __getitem__(self, index: int) -> dict:
        if index >= len(self.audio_indices):
            text = self.text_indices[index - len(self.audio_indices)]
            return {"text": self.text_states[text], "labels": self.text_labels[text], "label_mask": _ALL_LABELS}
        audio = self.audio_indices[index]
        label = self.audio_labels[audio]
        row = {
            "audio": self.audio_states[audio],
            "labels": label,
            "label_mask": self.label_masks[self.corpora[audio]],
        }
        texts = self.texts_of[label]
        if texts and self.random.random() < self.pair_probability:
            row["text"] = self.text_states[int(self.random.choice(texts))]
        return row


class ModalityBatches(torch.utils.data.Sampler[int]):
    """Shuffled rows, ordered so that a batch holds voices or texts alone, and the batches of either come mixed.

    A text beside a voice would be padded with a voice's length of nothing.
    """

    def __init__(self, rows: EmotionRows, batch_size: int, seed: int):
        self.parts = (len(rows.audio_indices), len(rows.text_indices))
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return sum(self.parts)

    def __iter__(self) -> Iterator[int]:
        whole, rest, start = [], [], 0
        for size in self.parts:
            order = (start + torch.randperm(size, generator=self.generator)).tolist()
            cut = size - size % self.batch_size
            whole += [order[i : i + self.batch_size] for i in range(0, cut, self.batch_size)]
            rest += order[cut:]
            start += size
        for batch in torch.randperm(len(whole), generator=self.generator).tolist():
            yield from whole[batch]
        yield from rest


_ALL_LABELS = torch.ones(len(EMOTIONS), dtype=torch.long)


def _label_ids(rows: Dataset) -> list[int]:
    return [EMOTIONS.index(label) for label in rows["label"]]


def _label_masks(rows: Dataset, labels: list[int]) -> dict[str, torch.Tensor]:
    """For each corpus, 1 for the labels that it knows."""
    masks = {corpus: torch.zeros(len(EMOTIONS), dtype=torch.long) for corpus in set(rows["corpus"])}
    for corpus, label in zip(rows["corpus"], labels):
        masks[corpus][label] = 1
    return masks


def collate(rows: list[dict]) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
    """Pads states to one length; a modality that no row of the batch has is left out."""
    batch = {
        "labels": torch.tensor([row["labels"] for row in rows]),
        "label_mask": torch.stack([row["label_mask"] for row in rows]),
    }
    for modality, mask_name in (("audio", "audio_attention_mask"), ("text", "attention_mask")):
        present = [torch.from_numpy(row[modality].copy()) for row in rows if modality in row]
        if not present:
            continue
        layers, _, hidden = present[0].shape
        nothing = present[0].new_zeros(layers, 1, hidden)
        states = iter(present)
        padded = pad_sequence(
            [(next(states) if modality in row else nothing).transpose(0, 1) for row in rows], batch_first=True
        )
        lengths = torch.tensor([row[modality].shape[1] if modality in row else 0 for row in rows])
        batch[f"{modality}_hidden_states"] = tuple(padded.unbind(dim=2))
        batch[mask_name] = (torch.arange(padded.shape[1]) < lengths.unsqueeze(1)).long()
    return batch
