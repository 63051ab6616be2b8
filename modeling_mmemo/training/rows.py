"""What the Trainer draws from: rows of voices, words or both, with simulated pairs, in batches of like rows.

Acted corpora have a voice with emotion and words without, the others words alone. Where `pair_probability` says so, a
voice is therefore given a random text of its own label, anew in every epoch: a simulated pair.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import soundfile
import torch
from datasets import Dataset, IterableDataset

from modeling_mmemo.data.augmentation import NOISE_COLORS, Augmentation, add_noise
from modeling_mmemo.data.schema import text_of
from modeling_mmemo.processing_mmemo import MMEmoProcessor
from modeling_mmemo.training.features import TowerStates


# So many batches are sorted by length at once: fewer would pad more, more would part the corpora from each other.
BATCHES_SORTED = 8


class EmotionRows(torch.utils.data.Dataset):
    """Rows as the collator takes them; `self[i]` has `labels`, `label_mask` and those of `audio`, `text` it has.

    Beside a text stand its `context` and its `speaker`, where there are any.

    Args:
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`; a modality that carries nothing is `None`.
        indices (`Sequence[int]`): Which of the rows to draw.
        labels (`Sequence[str]`): The model's labels.
        states (`dict[str, TowerStates]`): For modalities whose tower is frozen: its states over all `rows`.
        processor (`MMEmoProcessor`): Loads clips.
        augmentation (`Augmentation`, *optional*): What happens to clips.
        pair_probability (`float`): How often a voice without words gets a text of its label.
        pair_texts (`Sequence[int]`): The rows whose texts it may be; those without a voice are taken.
        blank_probability (`float`): How often the voice beside a text is noise alone.
        context_dropout (`float`): How often a text comes without its context and speaker.
        weights (`Sequence[float]`, *optional*): For each of `indices`, how often an epoch goes through its like. Those
            of one weight are gone through in turn: of 0.5, half are drawn in one epoch and half in the next.
        seed (`int`): Of pairs and augmentation; a row's are drawn from it, the epoch and the row alone.
        by_length (`bool`): Sort from long to short, so that batches in order pad little.
    """

    def __init__(
        self,
        rows: Dataset,
        indices: Sequence[int],
        labels: Sequence[str],
        states: dict[str, TowerStates],
        processor: MMEmoProcessor,
        augmentation: Augmentation | None = None,
        pair_probability: float = 0.0,
        pair_texts: Sequence[int] = (),
        blank_probability: float = 0.0,
        context_dropout: float = 0.0,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        by_length: bool = False,
    ):
        self.rows = rows
        self.states = states
        self.processor = processor
        self.augmentation = augmentation
        self.pair_probability = pair_probability
        self.blank_probability = blank_probability
        self.context_dropout = context_dropout
        self.seed = seed
        self.by_length = by_length
        self.epoch = 0
        self.label_ids = [labels.index(label) for label in rows["label"]]
        self.label_masks = known_labels(zip(rows["corpus"], rows["label"]), labels)
        self.corpora = list(rows["corpus"])
        self.has = {
            "audio": [audio is not None for audio in rows["audio"]],
            "text": [bool(text and text.strip()) for text in rows["text"]],
        }
        self.lengths = self._row_lengths(indices)
        self.groups: dict[float, list[int]] = {}
        for index, weight in zip(indices, [1.0] * len(indices) if weights is None else weights):
            self.groups.setdefault(weight, []).append(index)
        self.indices = self._drawn()
        self.texts_of: list[list[int]] = [[] for _ in labels]
        for index in pair_texts:
            if self.kind_of(index) == (False, True):
                self.texts_of[self.label_ids[index]].append(index)

    def _drawn(self) -> list[int]:
        """The rows of this epoch, as many in each."""
        drawn = []
        for weight, group in self.groups.items():
            size = max(round(weight * len(group)), 1 if weight > 0 else 0)
            if size == len(group):
                drawn += group
                continue
            # A cut from the endless row of all shuffles.
            shuffles = {}
            for place in range(self.epoch * size, (self.epoch + 1) * size):
                turn = place // len(group)
                if turn not in shuffles:
                    shuffles[turn] = np.random.default_rng((self.seed, turn)).permutation(group).tolist()
                drawn.append(shuffles[turn][place % len(group)])
        return sorted(drawn, key=lambda index: -self.lengths[index]) if self.by_length else drawn

    def _row_lengths(self, indices: Sequence[int]) -> dict[int, int]:
        """Positions of states, or samples, bytes or characters: comparable within a corpus and modality, no more."""
        lengths = {}
        audio, texts, contexts = (self.rows[name] for name in ("audio", "text", "context"))
        for index in set(indices):
            modality = "audio" if self.has["audio"][index] else "text"
            if modality in self.states:
                lengths[index] = self.states[modality].length(index)
            elif modality == "text":
                lengths[index] = len(texts[index]) + sum(len(turn["text"]) for turn in contexts[index] or ())
            else:
                stored = audio[index]
                lengths[index] = len(stored["bytes"]) if stored["bytes"] else soundfile.info(stored["path"]).frames
        return lengths

    def __len__(self) -> int:
        return len(self.indices)

    def kind_of(self, index: int) -> tuple[bool, bool]:
        """Whether the row of that number has a voice, and words of its own."""
        return self.has["audio"][index], self.has["text"][index]

    def set_epoch(self, epoch: int) -> None:
        """Draws other rows, pairs and augmentations from now on."""
        self.epoch = epoch
        self.indices = self._drawn()

    def __getitem__(self, position: int) -> dict:
        index = self.indices[position]
        rng = np.random.default_rng((self.seed, self.epoch, position))
        label = self.label_ids[index]
        row = {"labels": label, "label_mask": self.label_masks[self.corpora[index]]}
        text = index if self.has["text"][index] else None
        if text is None and self.texts_of[label] and rng.random() < self.pair_probability:
            text = int(rng.choice(self.texts_of[label]))
        if text is not None:
            if "text" in self.states:
                row["text"] = self.states["text"][text]
            else:
                row |= drop_context(text_of(self.rows[text]), self.context_dropout, rng)
        if "audio" in self.states and self.has["audio"][index]:
            row["audio"] = self.states["audio"][index]
        elif self.has["audio"][index]:
            words = self.rows[index]["word_times"] if text == index else None
            row |= load_clip(self.rows[index]["audio"], words, self.processor, self.augmentation, rng)
            if text is not None and rng.random() < self.blank_probability:
                row |= {"audio": _noise_of_length(row["audio"], rng), "label_mask": torch.ones_like(row["label_mask"])}
        return row


def drop_context(text: dict, probability: float, rng: np.random.Generator) -> dict:
    """A text as `text_of` gives it; so often, where it is part of a dialogue, without its `context` and `speaker`."""
    is_in_dialogue = text.keys() != {"text"}
    if probability > 0 and is_in_dialogue and rng.random() < probability:
        return {"text": text["text"]}
    return text


def _noise_of_length(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of some colour, as long as a clip."""
    impulse = np.zeros_like(audio)
    impulse[0] = 1.0
    return add_noise(impulse, -60.0, rng, rng.choice(NOISE_COLORS))


def load_clip(
    audio: dict,
    word_times: list[dict] | None,
    processor: MMEmoProcessor,
    augmentation: Augmentation | None,
    rng: np.random.Generator,
) -> dict:
    """The samples of a clip, `audio`, with the times of its words, `word_times`, moved as its speed was.

    What was augmented carries the `seed` of what is left to do to its features.
    """
    samples = processor.load_audio(audio)
    speed, row = 1.0, {}
    if augmentation is not None:
        augmented = augmentation.augment_audio(samples, processor.feature_extractor.sampling_rate, rng)
        speed, samples = len(samples) / len(augmented), augmented
        row["seed"] = rng.integers(2**32)
    if word_times:
        row["word_times"] = [(word["word"], word["start"] / speed, word["end"] / speed) for word in word_times]
    return row | {"audio": samples}


def known_labels(pairs: Iterable[tuple[str, str]], labels: Sequence[str]) -> dict[str, torch.Tensor]:
    """For each corpus, 1 for the labels that it has: what it lacks is masked in its loss, not taught never to be.

    Args:
        pairs (`Iterable[tuple[str, str]]`): Corpus and label of every row.
        labels (`Sequence[str]`): The model's labels.
    """
    masks: dict[str, torch.Tensor] = {}
    for corpus, label in pairs:
        masks.setdefault(corpus, torch.zeros(len(labels), dtype=torch.long))[labels.index(label)] = 1
    return masks


class EmotionStream(torch.utils.data.IterableDataset):
    """Rows as the collator takes them, as they come, from sets larger than memory; there are no simulated pairs.

    Args:
        rows (`datasets.IterableDataset`): Rows with the columns of `FEATURES`.
        labels (`Sequence[str]`): The model's labels.
        processor (`MMEmoProcessor`): Loads clips.
        augmentation (`Augmentation`, *optional*): What happens to clips.
        seed (`int`): Of order and augmentation.
        context_dropout (`float`): How often a text comes without its context and speaker.
    """

    # So many rows are held and shuffled; and so many looked at for the labels that a corpus has.
    BUFFER = 1000

    def __init__(
        self,
        rows: IterableDataset,
        labels: Sequence[str],
        processor: MMEmoProcessor,
        augmentation: Augmentation | None,
        seed: int,
        context_dropout: float = 0.0,
    ):
        self.rows = rows.shuffle(seed=seed, buffer_size=self.BUFFER)
        self.labels, self.processor, self.augmentation, self.seed = labels, processor, augmentation, seed
        self.context_dropout = context_dropout
        self.epoch = 0
        first = rows.take(self.BUFFER)
        self.label_masks = known_labels(((row["corpus"], row["label"]) for row in first), labels)

    def set_epoch(self, epoch: int) -> None:
        """Shuffles otherwise from now on; called by the Trainer."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict]:
        for position, row in enumerate(self.rows):
            label = self.labels.index(row["label"])
            item = {"labels": label, "label_mask": self._label_mask(row["corpus"], label)}
            rng = np.random.default_rng((self.seed, self.epoch, position))
            if row["text"] is not None:
                item |= drop_context(text_of(row), self.context_dropout, rng)
            if row["audio"] is not None:
                item |= load_clip(row["audio"], row["word_times"], self.processor, self.augmentation, rng)
            yield item

    def _label_mask(self, corpus: str, label: int) -> torch.Tensor:
        """What the corpus was seen to have, which by now may be more."""
        mask = self.label_masks.setdefault(corpus, torch.zeros(len(self.labels), dtype=torch.long))
        mask[label] = 1
        return mask.clone()


class LikeBatches(torch.utils.data.Sampler[int]):
    """Shuffled rows in an order whose batches hold voices, words or both alone, and rows of like length.

    A text beside a voice would be padded with a voice's length of nothing, and cost as much.

    Args:
        rows (`EmotionRows`): What is drawn from.
        batch_size (`int`): Rows of one batch of one process.
        seed (`int`): Of the order; every epoch has its own.
        by_length (`bool`): Whether the rows of a batch are of like length.
    """

    def __init__(self, rows: EmotionRows, batch_size: int, seed: int, by_length: bool):
        self.rows, self.batch_size, self.seed, self.by_length = rows, batch_size, seed, by_length
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Shuffles otherwise from now on; called by the Trainer."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        parts: dict[tuple[bool, bool], list[int]] = {}
        for position, index in enumerate(self.rows.indices):
            parts.setdefault(self.rows.kind_of(index), []).append(position)
        whole, rest = [], []
        for _, part in sorted(parts.items()):
            order = rng.permutation(part)
            cut = len(order) - len(order) % self.batch_size
            rest.extend(order[cut:])
            if cut:
                order = self._sort_in_part(order[:cut]) if self.by_length else order[:cut]
                whole += np.split(order, cut // self.batch_size)
        for batch in rng.permutation(len(whole)):
            yield from whole[batch].tolist()
        yield from map(int, rest)

    def _sort_in_part(self, order: np.ndarray) -> np.ndarray:
        lengths = np.array([self.rows.lengths[self.rows.indices[position]] for position in order])
        size = BATCHES_SORTED * self.batch_size
        pieces = [
            order[start : start + size][lengths[start : start + size].argsort(kind="stable")]
            for start in range(0, len(order), size)
        ]
        return np.concatenate(pieces)
