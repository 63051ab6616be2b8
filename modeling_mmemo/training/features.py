"""States of frozen towers, computed once and kept on disk.

A frozen encoder gives the same states in every epoch, and computing them is nearly the whole cost of training what
stands behind it. They are kept as half-precision arrays, keyed by the tower's weights, the processor's settings and
the inputs.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from modeling_mmemo.fusion_mmemo import ModalityBranch
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
        settings = processor.feature_extractor.to_dict()
    else:
        settings = {"tokenizer": repr(processor.tokenizer), "vocabulary": processor.tokenizer.get_vocab()}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for value in rows[modality]:
        digest.update(str(value).encode())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def standardize(branch: ModalityBranch, states: TowerStates, indices: list[int], most: int = 5000) -> None:
    """Sets the statistics of a branch to those of the training features, of `most` of them drawn at random.

    First those of each layer over all positions, then those of the pooled mix over the inputs.
    """
    drawn = np.random.default_rng(0).permutation(indices)[:most]
    count, total, squares = 0, 0.0, 0.0
    for index in drawn:
        layers = torch.from_numpy(states[index].copy()).double()
        count += layers.shape[1]
        total += layers.sum(dim=1)
        squares += (layers**2).sum(dim=1)
    mean = total / count
    std = (squares / count - mean**2).clamp(min=1e-8).sqrt()
    num_layers = len(branch.mix.weights)
    branch.mix.standardization.set(mean[-num_layers:], std[-num_layers:])

    pooled = []
    for index in drawn:
        layers = torch.from_numpy(states[index].copy()).unsqueeze(1)
        mixed = branch.mix(layers.unbind())
        pooled.append(branch.pooling(mixed, torch.ones(mixed.shape[:2])))
    pooled = torch.cat(pooled)
    branch.standardization.set(pooled.mean(dim=0), pooled.std(dim=0).clamp(min=1e-4))
