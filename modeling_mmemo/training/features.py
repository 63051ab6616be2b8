"""States of frozen towers, computed once and kept on disk.

A frozen encoder gives the same states in every epoch, and computing them is nearly the whole cost of training what
stands behind it. They are kept as half-precision arrays, keyed by the tower's weights, the processor's settings and
the inputs.
"""

import hashlib
import itertools
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mmemo.items import TEXT_SETTINGS
from modeling_mmemo.data.schema import text_of
from modeling_mmemo.fusion_mmemo import ModalityBranch
from modeling_mmemo.modeling_mmemo import MMEmoForEmotionRecognition
from modeling_mmemo.processing_mmemo import MMEmoProcessor
from modeling_mmemo.towers_mmemo import encode_audio, encode_text, num_hidden_states
from modeling_mmemo.training.collator import EmotionCollator


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

    def length(self, index: int) -> int:
        """Number of positions of one input; 0 where it was missing."""
        return int(self._offsets[index + 1] - self._offsets[index])

    def __getitem__(self, index: int) -> np.ndarray:
        return self._states[self._offsets[index] : self._offsets[index + 1]].transpose(1, 0, 2)


@torch.inference_mode()
def tower_states(
    modality: str, tower: PreTrainedModel, processor: MMEmoProcessor, rows: Dataset, cache_dir: str | Path
) -> TowerStates:
    """The states of a frozen `tower` over the `"audio"` or `"text"` of all `rows`, from the cache if it has them.

    A row that lacks the modality has none. Those of a text are its own, read with its context before it.
    """
    key = _key(modality, tower, processor, rows)
    folder = Path(cache_dir) / f"{modality}-{key}"
    if not (folder / "offsets.npy").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _compute(modality, tower.eval(), processor, rows, folder)
    return TowerStates(folder, num_hidden_states(tower.config), tower.config.hidden_size)


def _compute(
    modality: str, tower: PreTrainedModel, processor: MMEmoProcessor, rows: Dataset, folder: Path, batch_size: int = 32
) -> None:
    present = [index for index, value in enumerate(rows[modality]) if value]
    lengths = np.zeros(len(rows), dtype=np.int64)
    with (folder / "states.bin").open("wb") as file:
        for start in tqdm(range(0, len(present), batch_size), desc=f"{modality} states"):
            indices = present[start : start + batch_size]
            inputs = processor(**_given(modality, rows, indices), return_tensors="pt")
            states, mask = run_tower(modality, tower, inputs)
            file.write(torch.stack(states, dim=2)[mask].half().numpy().tobytes())
            lengths[indices] = mask.sum(dim=1).numpy()
    # Written last: a cache without it is computed anew.
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))


def _given(modality: str, rows: Dataset, indices: list[int]) -> dict[str, list]:
    """What the processor takes for some rows."""
    if modality == "audio":
        return {"audio": list(rows.select(indices)["audio"])}
    texts = [text_of(row) for row in rows.select(indices)]
    return {name: [text.get(name) for text in texts] for name in ("text", "context", "speaker")}


def run_tower(
    modality: str, tower: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The tower's states, each `(batch, positions, hidden)`, over a batch, and their mask `(batch, positions)`."""
    if modality == "audio":
        return encode_audio(tower, inputs[tower.main_input_name], inputs["audio_attention_mask"])
    mask = inputs["attention_mask"]
    states = encode_text(tower, inputs["input_ids"], mask)
    return states, mask.bool() & ~inputs.get("context_mask", torch.zeros_like(mask)).bool()


def _key(modality: str, tower: PreTrainedModel, processor: MMEmoProcessor, rows: Dataset) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy().tobytes())
    if modality == "audio":
        settings = processor.feature_extractor.to_dict()
    else:
        settings = {"tokenizer": repr(processor.tokenizer), "vocabulary": processor.tokenizer.get_vocab()}
        settings |= {name: getattr(processor, name) for name in TEXT_SETTINGS}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for column in (modality,) if modality == "audio" else ("text", "context", "said_by"):
        for value in rows[column]:
            digest.update(str(value).encode())
    return digest.hexdigest()[:16]


@torch.inference_mode()
def standardize(
    model: MMEmoForEmotionRecognition,
    modalities: Collection[str],
    rows: torch.utils.data.Dataset,
    collator: EmotionCollator,
    most: int = 1000,
) -> None:
    """Sets the statistics of the branches of `modalities` to those of `most` training inputs, drawn at random.

    First those of each layer over all positions, then those of the pooled mix over the inputs.
    """
    drawn = _draw(rows, most) if modalities else []
    model.eval()
    for modality, tower, branch in (
        ("audio", model.mmemo.audio_tower, model.mmemo.audio_branch),
        ("text", model.mmemo.text_tower, model.mmemo.text_branch),
    ):
        present = [row for row in drawn if modality in row]
        if modality not in modalities or not present:
            continue
        states = []
        for row in tqdm(present, desc=f"{modality} statistics"):
            inputs = collator([row])
            kept = inputs.get(f"{modality}_hidden_states")
            if kept is None:
                layers, mask = run_tower(
                    modality, tower, {name: value.to(tower.device) for name, value in inputs.items()}
                )
                kept = [layer[mask].unsqueeze(0) for layer in layers]
            states.append(torch.stack(list(kept)).float().cpu())
        _set_statistics(branch, states)


def _draw(rows: torch.utils.data.Dataset, most: int) -> list[dict]:
    if isinstance(rows, torch.utils.data.IterableDataset):
        return list(itertools.islice(rows, most))
    return [rows[int(position)] for position in np.random.default_rng(0).permutation(len(rows))[:most]]


def _set_statistics(branch: ModalityBranch, states: list[torch.Tensor]) -> None:
    """`states` are the tower's over each input alone, `(layers, 1, positions, hidden)`."""
    count = sum(layers.shape[2] for layers in states)
    mean = sum(layers.double().sum(dim=(1, 2)) for layers in states) / count
    squares = sum((layers.double() ** 2).sum(dim=(1, 2)) for layers in states) / count
    std = (squares - mean**2).clamp(min=1e-8).sqrt()
    num_layers = len(branch.mix.weights)
    branch.mix.standardization.set(mean[-num_layers:], std[-num_layers:])

    pooled = []
    for layers in states:
        mixed = branch.mix(layers.unbind())
        pooled.append(branch.pool(layers.unbind(), mixed, torch.ones(mixed.shape[:2])))
    pooled = torch.cat(pooled)
    branch.standardization.set(pooled.mean(dim=0), pooled.std(dim=0, correction=0).clamp(min=1e-4))
