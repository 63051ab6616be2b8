"""
Training rows: clips, texts, videos or several of them, with simulated pairs, drawn in batches of rows of the same
kind.

Acted corpora have clips with emotion and texts without, other corpora have texts only. With `pair_probability` a clip
therefore gets a random text of its own label, a new one in every epoch: a simulated pair. Words are often neutral
where the voice is not, so with `neutral_text_probability` it gets a neutral text instead.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset, IterableDataset

from mmemo.modalities import MODALITIES
from modeling_mmemo.data.augmentation import NOISE_COLORS, Augmentation, make_noise
from modeling_mmemo.data.clips import clip_seconds
from modeling_mmemo.data.faces import FaceCache, Faces
from modeling_mmemo.data.schema import text_of
from modeling_mmemo.processing_mmemo import MMEmoProcessor
from modeling_mmemo.training.features import PooledStates, TowerStates


# Number of batches that are sorted by length together: fewer would pad more, more would separate the corpora.
BATCHES_SORTED = 16
# The label of texts that contradict no voice.
NEUTRAL = "neutral"


class SharedEpoch:
    """The number of the epoch, in memory shared with the workers of a `DataLoader`, which may outlive an epoch."""

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.long).share_memory_()

    def get(self) -> int:
        return int(self._value)

    def set(self, epoch: int) -> None:
        self._value.fill_(epoch)


class EmotionRows(torch.utils.data.Dataset):
    """
    Rows for the collator; `self[i]` has `labels`, `label_mask` and, unless missing, `audio`, `text` and `video`.

    A text in a dialogue also has `context` and `speaker`. With `loss_weights`, a `dict` of weights by corpus and label
    id that may be set at any time, a row also has its `loss_weight`.

    Args:
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`; a modality without emotion is `None`.
        indices (`Sequence[int]`): The rows to draw from.
        labels (`Sequence[str]`): The model's labels.
        states (`dict[str, TowerStates | PooledStates]`):
            For modalities with a frozen encoder: its cached states over all `rows`.
        processor (`MMEmoProcessor`): Loads clips.
        augmentation (`Augmentation`, *optional*):
            Augments clips. Of cached clips with augmented copies, a copy or the clip itself is drawn instead.
        pair_probability (`float`): Probability that a clip without text gets a text of its label.
        pair_texts (`Sequence[int]`): The rows with these texts; rows with audio are ignored.
        neutral_text_probability (`float`):
            Probability that the text of such a pair is neutral, whatever the label of the clip; needs this label.
        blank_probability (`float`): Probability that the audio of a row with text is replaced by noise.
        context_dropout (`float`): Probability that a text loses its context and speaker.
        weights (`Sequence[float]`, *optional*):
            For each of `indices`, the number of passes over rows of this weight per epoch. They are drawn in turn:
            with 0.5 one half in one epoch and the other half in the next.
        seed (`int`): Seed of pairs and augmentation, which depend only on it, the epoch and the position.
        by_length (`bool`): Sort from long to short, so that batches in order have little padding.
        faces (`Faces`, *optional*): The faces in the videos of all `rows`; without them no row has a video.
        modalities (`Collection[str]`): The modalities that are used of a row.
    """

    def __init__(
        self,
        rows: Dataset,
        indices: Sequence[int],
        labels: Sequence[str],
        states: Mapping[str, TowerStates | PooledStates],
        processor: MMEmoProcessor,
        augmentation: Augmentation | None = None,
        pair_probability: float = 0.0,
        pair_texts: Sequence[int] = (),
        neutral_text_probability: float = 0.0,
        blank_probability: float = 0.0,
        context_dropout: float = 0.0,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        by_length: bool = False,
        faces: Faces | None = None,
        modalities: Collection[str] = MODALITIES,
    ):
        self.rows = rows
        self.states = states
        self.processor = processor
        self.faces = faces
        self.augmentation = augmentation
        self.pair_probability = pair_probability
        self.neutral_text_probability = neutral_text_probability
        self.blank_probability = blank_probability
        self.context_dropout = context_dropout
        self.labels = labels
        self.seed = seed
        self.by_length = by_length
        self.label_ids = [labels.index(label) for label in rows["label"]]
        self.label_masks = label_masks(zip(rows["corpus"], rows["label"]), labels)
        self.corpora = list(rows["corpus"])
        self.loss_weights: Mapping[tuple[str, int], float] | None = None
        self.has = {
            "audio": [audio is not None for audio in rows["audio"]],
            "text": [bool(text and text.strip()) for text in rows["text"]],
            "video": [faces is not None and faces.length(index) > 0 for index in range(len(rows))],
        }
        self.has |= {name: [False] * len(rows) for name in MODALITIES if name not in modalities}
        self.lengths = self._row_lengths(indices)
        self.groups: dict[float, list[int]] = {}
        for index, weight in zip(indices, [1.0] * len(indices) if weights is None else weights):
            self.groups.setdefault(weight, []).append(index)
        self.texts_of: list[list[int]] = [[] for _ in labels]
        for index in pair_texts:
            if self.kind_of(index) == ("text",):
                self.texts_of[self.label_ids[index]].append(index)
        self._epoch = SharedEpoch()
        self._drawn_epoch, self._drawn = 0, self._draw(0)

    @property
    def epoch(self) -> int:
        """The epoch whose rows are drawn."""
        return self._epoch.get()

    def set_epoch(self, epoch: int) -> None:
        """Draws other rows, pairs and augmentations from now on, also in workers that are running already."""
        self._epoch.set(epoch)

    @property
    def indices(self) -> list[int]:
        """The rows of this epoch, the same number in every epoch."""
        if self._drawn_epoch != self.epoch:
            self._drawn_epoch, self._drawn = self.epoch, self._draw(self.epoch)
        return self._drawn

    def _draw(self, epoch: int) -> list[int]:
        drawn = []
        for weight, group in self.groups.items():
            size = max(round(weight * len(group)), 1 if weight > 0 else 0)
            if size == len(group):
                drawn += group
                continue
            # Epochs are consecutive slices of an endless sequence of shuffles.
            shuffles: dict[int, list[int]] = {}
            for place in range(epoch * size, (epoch + 1) * size):
                turn = place // len(group)
                if turn not in shuffles:
                    shuffles[turn] = np.random.default_rng((self.seed, turn)).permutation(group).tolist()
                drawn.append(shuffles[turn][place % len(group)])
        return sorted(drawn, key=lambda index: -self.lengths[index]) if self.by_length else drawn

    def _row_lengths(self, indices: Sequence[int]) -> dict[int, int]:
        """Returns positions of states, tokens, frames or samples at 16 kHz: comparable within a modality only."""
        modality_of = {index: next(iter(self.kind_of(index)), "text") for index in set(indices)}
        read = [index for index, name in modality_of.items() if name == "text" and name not in self.states]
        lengths = dict(zip(read, self._num_tokens(read)))
        audio = self.rows["audio"]
        for index, name in modality_of.items():
            if name in self.states:
                lengths[index] = self.states[name].length(index)
            elif name == "audio":
                lengths[index] = round(16_000 * clip_seconds(audio[index]))
            elif name == "video":
                lengths[index] = self.faces.length(index)
        return lengths

    def _num_tokens(self, indices: Sequence[int]) -> list[int]:
        """Returns the number of tokens of texts with their context: characters do not compare between scripts."""
        # A column reads single rows slowly, so it is read as a whole.
        texts, contexts = self.rows["text"][:], self.rows["context"][:]
        said = [" ".join([*(turn["text"] for turn in contexts[i] or ()), texts[i]]) for i in indices]
        return [len(ids) for ids in self.processor.tokenizer(said, truncation=True)["input_ids"]] if said else []

    def __len__(self) -> int:
        return len(self.indices)

    def kind_of(self, index: int) -> tuple[str, ...]:
        """Returns the modalities that the row of this index has itself, in the order of `MODALITIES`."""
        return tuple(modality for modality in MODALITIES if self.has[modality][index])

    def __getitem__(self, position: int) -> dict:
        index = self.indices[position]
        rng = np.random.default_rng((self.seed, self.epoch, position))
        text_index = self._draw_text(index, rng)
        row = {"labels": self.label_ids[index], "label_mask": self.label_masks[self.corpora[index]]}
        if self.loss_weights is not None:
            row["loss_weight"] = self.loss_weights[self.corpora[index], self.label_ids[index]]
        if text_index is not None:
            row |= self._text(text_index, rng)
        speed = 1.0
        if self.has["audio"][index]:
            audio = self._audio(index, text_index, rng)
            speed = audio.pop("speed", speed)
            row |= audio
        if self.has["video"][index]:
            row |= self._video(index, speed, rng)
        return row

    def _draw_text(self, index: int, rng: np.random.Generator) -> int | None:
        """Returns the row that has the text for a row: itself, one drawn for a simulated pair, or none."""
        if self.has["text"][index]:
            return index
        is_neutral = rng.random() < self.neutral_text_probability
        texts = self.texts_of[self.labels.index(NEUTRAL) if is_neutral else self.label_ids[index]]
        if texts and rng.random() < self.pair_probability:
            return int(rng.choice(texts))
        return None

    def _text(self, index: int, rng: np.random.Generator) -> dict:
        if "text" in self.states:
            return {"text": self.states["text"][index]}
        return drop_context(text_of(self.rows[index]), self.context_dropout, rng)

    def _audio(self, index: int, text_index: int | None, rng: np.random.Generator) -> dict:
        if "audio" in self.states:
            states = self.states["audio"]
            is_drawn = self.augmentation is not None and isinstance(states, PooledStates)
            return {"audio": states.draw(index, rng) if is_drawn else states[index]}
        row = self.rows[index]
        word_times = row["word_times"] if text_index == index else None
        is_timed = bool(word_times) or self.has["video"][index]
        audio = load_clip(row["audio"], word_times, self.processor, self.augmentation, rng, is_timed)
        if text_index is not None and rng.random() < self.blank_probability:
            # Noise has no emotion, so the loss includes all labels.
            noise = make_noise(len(audio["audio"]), rng, rng.choice(NOISE_COLORS))
            audio |= {"audio": noise, "label_mask": torch.ones_like(self.label_masks[self.corpora[index]])}
        return audio

    def _video(self, index: int, speed: float, rng: np.random.Generator) -> dict:
        """Returns the face of a row, augmented unless its states are cached, with the times of its frames in the clip,
        which is played at this speed."""
        has_states = "video" in self.states
        face = self.faces.without_crops(index) if has_states else self.faces[index]
        audio = self.states.get("audio")
        times = audio.frame_times(index) if isinstance(audio, TowerStates) and self.has["audio"][index] else None
        face = replace(face, times=face.times / np.float32(speed) if times is None else times)
        if not has_states:
            return {"video": face if self.augmentation is None else self.augmentation.augment_face(face, rng)}
        found = face.is_present
        face = replace(
            face, times=face.times[found], is_present=found[found], blendshapes=face.blendshapes[found], crops=None
        )
        return {"video": self.states["video"][index], "face": face}


def drop_context(text: dict, probability: float, rng: np.random.Generator) -> dict:
    """Returns a text as [`text_of`] gives it, with this probability without its `context` and `speaker`."""
    is_in_dialogue = text.keys() != {"text"}
    if probability > 0 and is_in_dialogue and rng.random() < probability:
        return {"text": text["text"]}
    return text


def load_clip(
    audio: dict,
    word_times: list[dict] | None,
    processor: MMEmoProcessor,
    augmentation: Augmentation | None,
    rng: np.random.Generator,
    is_timed: bool = False,
) -> dict:
    """
    Loads and augments a clip. It is not cut to its speech, which the processor does when it converts the samples.

    Args:
        audio (`dict`): A cell of the column `audio`.
        word_times (`list[dict]`, *optional*): The words of its text with their `start` and `end` in seconds.
        processor (`MMEmoProcessor`): Loads the clip.
        augmentation (`Augmentation`, *optional*): Augments the samples.
        rng (`np.random.Generator`): Draws the augmentation.
        is_timed (`bool`, *optional*, defaults to `False`):
            Whether other timestamps than those of words refer to the clip, which excludes some augmentations.

    Returns:
        `dict` with the samples, `audio`; with `word_times`, scaled as the speed of the clip; and for an augmented clip
        with its `speed` and the `seed` of the augmentation of its features.
    """
    samples = processor.load_audio(audio)
    speed, row = 1.0, {}
    if augmentation is not None:
        rate = processor.feature_extractor.sampling_rate
        augmented = augmentation.augment_audio(samples, rate, rng, is_timed or bool(word_times))
        speed, samples = len(samples) / len(augmented), augmented
        row |= {"seed": rng.integers(2**32), "speed": speed}
    if word_times:
        row["word_times"] = [(word["word"], word["start"] / speed, word["end"] / speed) for word in word_times]
    return row | {"audio": samples}


def label_masks(pairs: Iterable[tuple[str, str]], labels: Sequence[str]) -> dict[str, torch.Tensor]:
    """
    Returns for each corpus a mask of the labels that it has; the loss of its rows ignores all others.

    Args:
        pairs (`Iterable[tuple[str, str]]`): Corpus and label of every row.
        labels (`Sequence[str]`): The model's labels.

    Returns:
        `dict[str, torch.Tensor]`: Masks of shape `(num_labels,)` by corpus.
    """
    masks: dict[str, torch.Tensor] = {}
    for corpus, label in pairs:
        masks.setdefault(corpus, torch.zeros(len(labels), dtype=torch.long))[labels.index(label)] = 1
    return masks


class StreamedRows(torch.utils.data.IterableDataset):
    """
    Rows for the collator from datasets larger than memory; without simulated pairs.

    Args:
        rows (`datasets.IterableDataset`): Rows with the columns of `FEATURES`.
        labels (`Sequence[str]`): The model's labels.
        processor (`MMEmoProcessor`): Loads clips.
        augmentation (`Augmentation`, *optional*): Augments clips.
        seed (`int`): Seed of order and augmentation.
        context_dropout (`float`): Probability that a text loses its context and speaker.
        faces (`FaceCache`, *optional*): Follows the faces in videos; without it no row has a video.
    """

    # Number of rows that are held and shuffled, and that are read at first for the labels of each corpus.
    BUFFER = 1000

    def __init__(
        self,
        rows: IterableDataset,
        labels: Sequence[str],
        processor: MMEmoProcessor,
        augmentation: Augmentation | None,
        seed: int,
        context_dropout: float = 0.0,
        faces: FaceCache | None = None,
    ):
        self.rows = rows.shuffle(seed=seed, buffer_size=self.BUFFER)
        self.labels, self.processor, self.augmentation, self.seed = labels, processor, augmentation, seed
        self.faces = faces
        self.context_dropout = context_dropout
        self._epoch = SharedEpoch()
        first = rows.take(self.BUFFER)
        self.label_masks = label_masks(((row["corpus"], row["label"]) for row in first), labels)

    def set_epoch(self, epoch: int) -> None:
        """Changes the order and the augmentation; called by the Trainer."""
        self._epoch.set(epoch)
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict]:
        epoch = self._epoch.get()
        for position, row in enumerate(self.rows):
            label = self.labels.index(row["label"])
            item = {"labels": label, "label_mask": self._label_mask(row["corpus"], label)}
            rng = np.random.default_rng((self.seed, epoch, position))
            if row["text"] is not None:
                item |= drop_context(text_of(row), self.context_dropout, rng)
            face = None
            if self.faces is not None and row["video"] is not None:
                face = self.faces.read(row["video"])
                face = face if face.is_present.any() else None
            if row["audio"] is not None:
                is_timed = face is not None
                item |= load_clip(row["audio"], row["word_times"], self.processor, self.augmentation, rng, is_timed)
            speed = item.pop("speed", 1.0)
            if face is not None:
                face = replace(face, times=face.times / np.float32(speed))
                item["video"] = face if self.augmentation is None else self.augmentation.augment_face(face, rng)
            # A video without a face and without sound has nothing to train on.
            if item.keys() & set(MODALITIES):
                yield item

    def _label_mask(self, corpus: str, label: int) -> torch.Tensor:
        """Returns the mask of the labels that a corpus had so far, this one included."""
        mask = self.label_masks.setdefault(corpus, torch.zeros(len(self.labels), dtype=torch.long))
        mask[label] = 1
        return mask.clone()


class LikeBatches(torch.utils.data.Sampler[int]):
    """
    Shuffles rows so that the rows of a batch have the same modalities and similar lengths.

    In a mixed batch a text would be padded with a missing clip, at the cost of a clip.

    Args:
        rows (`EmotionRows`): The rows.
        batch_size (`int`): Number of rows in a batch of one process.
        seed (`int`): Seed of the order, which differs in every epoch.
        by_length (`bool`): Whether to batch rows of similar length.
    """

    def __init__(self, rows: EmotionRows, batch_size: int, seed: int, by_length: bool):
        self.rows, self.batch_size, self.seed, self.by_length = rows, batch_size, seed, by_length
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Changes the order and the rows; called by the Trainer."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch))
        parts: dict[tuple[bool, ...], list[int]] = {}
        for position, index in enumerate(self.rows.indices):
            kind = tuple(modality in self.rows.kind_of(index) for modality in MODALITIES)
            parts.setdefault(kind, []).append(position)
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
