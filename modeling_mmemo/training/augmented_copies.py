"""
Augmented copies of training clips, encoded once by a frozen audio encoder and cached as statistics of their states.

Deliberate choices:
- Whole sequences of several copies would not fit on a disk. A branch that pools each layer by its mean and standard
  deviation needs no more than these: the two positions mean + std and mean - std have exactly that mean and standard
  deviation, so the model takes them as the states of a clip.
- Statistics are stored in single precision: the layers' means can be hundreds of times their standard deviations.
- A copy depends on the seed, its row in the corpus and its number only, and every batch is written to its own place in
  the file. An interrupted run therefore continues, and processes that compute the same cache write the same bytes.
- Each corpus has its own folder, so that runs on some of the same corpora share it.
"""

from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_mmemo.configuration_mmemo import MMEmoConfig
from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.data.clips import clip_seconds
from modeling_mmemo.processing_mmemo import MMEmoProcessor
from modeling_mmemo.towers_mmemo import num_hidden_states
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.features import PooledStates, cache_key, run_tower
from modeling_mmemo.training.rows import load_clip


def pooled_layers(config: MMEmoConfig) -> tuple[int, bool]:
    """
    Returns what the audio branch of a model needs of a clip: of how many last layers the mean over the positions, and
    whether also their standard deviation.

    Args:
        config (`MMEmoConfig`): The model.

    Raises:
        ValueError: If the branch needs more than that.
    """
    pooling, mix = config.audio_pooling, config.audio_layer_mix
    # The mean of a sum of layers is the sum of their means; the standard deviation is not.
    is_sufficient = pooling == "mean" or (pooling == "mean_std" and mix in ("concat", "last"))
    if config.audio_config is None or config.attends_across or not is_sufficient:
        raise ValueError(
            f"augmented_copies contradicts fusion={config.fusion}, audio_layer_mix={mix} and audio_pooling={pooling} "
            f"of a model with{'out' if config.audio_config is None else ''} audio: only the mean and standard "
            "deviation of each layer are cached. Use an audio encoder with fusion=early or late (or without text) and "
            "audio_layer_mix=concat or last (any with audio_pooling=mean), or set augmented_copies to 0."
        )
    return 1 if mix == "last" else num_hidden_states(config.audio_config), pooling == "mean_std"


@torch.inference_mode()
def augmented_copies(
    tower: PreTrainedModel,
    config: MMEmoConfig,
    processor: MMEmoProcessor,
    rows: Dataset,
    copied: Collection[int],
    copies: int,
    augmentation: Augmentation,
    seed: int,
    cache_dir: str | Path,
    num_workers: int = 0,
) -> PooledStates:
    """
    Returns the pooled states of all clips and of augmented copies of some, from the cache or computed now.

    Args:
        tower (`PreTrainedModel`): The frozen audio encoder; states are computed on its device.
        config (`MMEmoConfig`): The model, whose audio branch pools; see [`pooled_layers`].
        processor (`MMEmoProcessor`): Loads and converts clips.
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        copied (`Collection[int]`): The rows that get copies; those without audio are ignored.
        copies (`int`): Number of copies of each.
        augmentation (`Augmentation`): Augments them, as in a run without a cache.
        seed (`int`): Seed of the augmentation.
        cache_dir (`str` or `Path`): Folder of the cache.
        num_workers (`int`, *optional*, defaults to 0): Number of processes that load and augment clips.

    Raises:
        ValueError: If the audio branch needs more than the mean and standard deviation of each layer.
    """
    layers, has_std = pooled_layers(config)
    shape = (layers, 2 if has_std else 1, tower.config.hidden_size)
    members: dict[str, list[int]] = {}
    for index, corpus in enumerate(rows["corpus"]):
        members.setdefault(corpus, []).append(index)
    wanted, parts = set(copied), []
    for indices in members.values():
        own = [number for number, index in enumerate(indices) if index in wanted]
        clips = _Clips(rows.select(indices), own, copies, augmentation, processor, seed)
        settings = {"layers": layers, "has_std": has_std, **clips.settings()}
        folder = Path(cache_dir) / f"audio-copies-{cache_key('audio', tower, processor, clips.rows, settings)}"
        if not (folder / "places.npy").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "states.bin", tower.eval(), clips, shape, num_workers)
            # Written last: a cache without it is incomplete, and continued.
            np.save(folder / "places.npy", clips.places())
        parts.append((indices, folder))
    return PooledStates(parts, *shape)


class _Clips(torch.utils.data.Dataset):
    """
    The clips of a corpus and their copies in batches; `self[i]` has the inputs of the encoder for a batch.

    Args:
        rows (`datasets.Dataset`): The rows of the corpus.
        copied (`Sequence[int]`): The rows that get copies; those without audio are ignored.
        copies, augmentation, processor, seed: See [`augmented_copies`].
    """

    BATCH_SIZE = 32

    def __init__(
        self,
        rows: Dataset,
        copied: Sequence[int],
        copies: int,
        augmentation: Augmentation,
        processor: MMEmoProcessor,
        seed: int,
    ):
        self.rows, self.copies, self.augmentation, self.seed = rows, copies, augmentation, seed
        self.collator = EmotionCollator(processor, augmentation)
        self.present = [index for index, audio in enumerate(rows["audio"]) if audio is not None]
        self.copied = sorted(set(copied) & set(self.present))
        # Timestamps within a clip exclude some augmentations.
        texts = zip(rows["word_times"], rows["text"])
        self.timed = [index for index, (words, text) in enumerate(texts) if words and text]

    def settings(self) -> dict[str, Any]:
        """Returns what the copies depend on, apart from the clips, the encoder and the processor."""
        names = ("copied", "copies", "timed", "seed")
        return {name: getattr(self, name) for name in names} | {"augmentation": self.augmentation.settings()}

    @cached_property
    def batches(self) -> list[list[tuple[int, int]]]:
        """Batches of `(row, number of the copy)`, long clips first; 0 is the clip itself, never among copies."""
        seconds = {index: clip_seconds(self.rows[index]["audio"]) for index in self.present}
        batches = []
        for copy in range(self.copies + 1):
            indices = sorted(self.copied if copy else self.present, key=lambda index: -seconds[index])
            entries = [(index, copy) for index in indices]
            batches += [entries[i : i + self.BATCH_SIZE] for i in range(0, len(entries), self.BATCH_SIZE)]
        return batches

    def places(self) -> np.ndarray:
        """Returns the place of each row's clip and of its copies in the order of the batches; see [`PooledStates`]."""
        places = np.full((len(self.rows), self.copies + 1), -1)
        for place, (index, copy) in enumerate(entry for batch in self.batches for entry in batch):
            places[index, copy] = place
        return places

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        return self.collator.prepare(["audio"], [self._clip(index, copy) for index, copy in self.batches[number]])

    def _clip(self, index: int, copy: int) -> dict:
        row, rng = self.rows[index], np.random.default_rng((self.seed, index, copy))
        word_times = row["word_times"] if index in self.timed else None
        return load_clip(
            row["audio"], word_times, self.collator.processor, self.augmentation if copy > 0 else None, rng
        )


def _write(path: Path, tower: PreTrainedModel, inputs: _Clips, shape: tuple[int, ...], num_workers: int) -> None:
    """Encodes the batches that the file does not hold yet, and writes their statistics, `shape` for each clip."""
    path.touch()
    starts = np.cumsum([0, *map(len, inputs.batches)]) * int(np.prod(shape)) * np.dtype(np.float32).itemsize
    done = int(np.searchsorted(starts, path.stat().st_size, side="right")) - 1
    loader = DataLoader(inputs, batch_size=None, sampler=range(done, len(inputs)), num_workers=num_workers)
    layers, positions, _ = shape
    with path.open("r+b") as file:
        progress = tqdm(loader, desc="Encoding augmented copies", initial=done, total=len(inputs))
        for number, batch in enumerate(progress, start=done):
            states, mask = run_tower("audio", tower, batch)
            statistics = [pool_positions(layer, mask, has_std=positions == 2) for layer in states[-layers:]]
            file.seek(starts[number])
            file.write(torch.stack(statistics, dim=1).cpu().numpy().tobytes())
            file.flush()


def pool_positions(states: torch.Tensor, mask: torch.Tensor, has_std: bool) -> torch.Tensor:
    """
    Returns one or two positions with the mean, or the mean and standard deviation, of all real positions.

    Args:
        states (`torch.Tensor` of shape `(batch, positions, hidden)`): A layer.
        mask (`torch.Tensor` of shape `(batch, positions)`): 1 for real positions, 0 for padding.
        has_std (`bool`): Whether to return two positions: mean + std and mean - std.

    Returns:
        `torch.Tensor` of shape `(batch, 2 or 1, hidden)`: Float32.
    """
    states = states.float()
    weights = (mask.float() / mask.sum(dim=1, keepdim=True).clamp(min=1)).unsqueeze(1)
    mean = weights @ states
    if not has_std:
        return mean
    # Without the term that the model adds to the variance, which it adds to that of the two positions too.
    std = (weights @ (states - mean) ** 2).sqrt()
    return torch.cat([mean + std, mean - std], dim=1)
