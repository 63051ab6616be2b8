"""States of frozen towers, computed once and kept on disk.

A frozen encoder gives the same states in every epoch, and computing them is nearly the whole cost of training what
stands behind it. They are kept as half-precision arrays, keyed by the tower's weights, the processor's settings and
the inputs.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_mmemo.fusion_mmemo import LayerMix
from modeling_mmemo.processing_mmemo import MMEmoProcessor
from modeling_mmemo.towers_mmemo import encode_audio, encode_text, num_hidden_states


class TowerStates:
    """The states of one tower over a list of inputs; `self[i]` is a `(layers, positions, hidden)` array.

    Args:
        folder (`Path`): Where `states.bin`, half-precision `(all positions, layers, hidden)`, and `offsets.npy` lie.
        layers, hidden (`int`): The tower's number of hidden states and their width.
    """

    def __init__(self, folder: Path, layers: int, hidden: int):
        self._offsets = np.load(folder / "offsets.npy")
        shape = (int(self._offsets[-1]), layers, hidden)
        self._states = np.memmap(folder / "states.bin", dtype=np.float16, mode="r", shape=shape)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self._states[self._offsets[index] : self._offsets[index + 1]].transpose(1, 0, 2)

    def statistics(self, indices: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation over the positions of `indices`, each `(layers, hidden)`."""
        count, total, squares = 0, 0.0, 0.0
        for index in indices:
            states = self[index].astype(np.float64)
            count += states.shape[1]
            total += states.sum(axis=1)
            squares += (states**2).sum(axis=1)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


@torch.inference_mode()
def tower_states(
    modality: str, tower: PreTrainedModel, processor: MMEmoProcessor, rows: Dataset, cache_dir: str | Path
) -> TowerStates:
    """The states of a frozen `tower` over the `"audio"` or `"text"` of all `rows`, from the cache if it has them."""
    key = _key(modality, tower, processor, rows)
    folder = Path(cache_dir) / f"{modality}-{key}"
    if not (folder / "offsets.npy").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _compute(modality, tower.eval(), processor, rows, folder)
    return TowerStates(folder, num_hidden_states(tower.config), tower.config.hidden_size)


def _compute(
    modality: str, tower: PreTrainedModel, processor: MMEmoProcessor, rows: Dataset, folder: Path, batch_size: int = 32
) -> None:
    lengths: list[int] = []
    with (folder / "states.bin").open("wb") as file:
        for start in tqdm(range(0, len(rows), batch_size), desc=f"{modality} states"):
            inputs = processor(**{modality: rows[start : start + batch_size][modality]}, return_tensors="pt")
            if modality == "audio":
                states, mask = encode_audio(tower, inputs[tower.main_input_name], inputs["audio_attention_mask"])
            else:
                mask = inputs["attention_mask"].bool()
                states = encode_text(tower, inputs["input_ids"], inputs["attention_mask"])
            file.write(torch.stack(states, dim=2)[mask].half().numpy().tobytes())
            lengths.extend(mask.sum(dim=1).tolist())
    # Written last: a cache without it is computed anew.
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))


def _key(modality: str, tower: PreTrainedModel, processor: MMEmoProcessor, rows: Dataset) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    if modality == "audio":
        digest.update(json.dumps(processor.feature_extractor.to_dict(), sort_keys=True, default=str).encode())
    for value in rows[modality]:
        digest.update(str(value).encode())
    return digest.hexdigest()[:16]


def standardise(mix: LayerMix, states: TowerStates, indices: Iterable[int]) -> None:
    """Sets the mean and standard deviation of a [`LayerMix`] to those of the training features."""
    mean, std = states.statistics(indices)
    mix.mean.copy_(mean[-len(mix.mean) :])
    mix.std.copy_(std[-len(mix.std) :])
