"""
Hidden states of encoders over training data: cached for frozen encoders, and their statistics for new branches.

Deliberate choices:
- A frozen encoder gives the same states in every epoch, and computing them is nearly the whole cost of training the
  parts on top of it. They are cached on disk in half precision.
- The key of the cache holds everything that the states depend on: the weights of the encoder, the settings of the
  processor, the texts, and of each audio or video file its path, size and time of modification. Contents of files are
  not hashed, which would read the whole corpus at every start.
- A clip is cut to its speech, which moves the frames of its video in time. Cached with the states of the clip are
  therefore the times of the frames.
- Statistics are running sums over one input at a time, so memory does not grow with the number of inputs.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mmemo.items import AUDIO_SETTINGS, TEXT_SETTINGS, VIDEO_SETTINGS
from mmemo.modalities import MASKS
from modeling_mmemo.data.faces import Faces
from modeling_mmemo.data.fingerprints import audio_fingerprint
from modeling_mmemo.data.schema import text_of
from modeling_mmemo.fusion_mmemo import ModalityBranch
from modeling_mmemo.modeling_mmemo import MMEmoForEmotionRecognition
from modeling_mmemo.processing_mmemo import MMEmoProcessor
from modeling_mmemo.towers_mmemo import ENCODE, encode_text, num_hidden_states
from modeling_mmemo.training.collator import EmotionCollator, without_crops


# A second of video is several pictures for an image encoder.
BATCH_SIZES = {"audio": 32, "text": 32, "video": 4}


class TowerStates:
    """
    The cached states of one encoder over a list of inputs; `self[i]` is an array of shape `(layers, positions,
    hidden)`.

    Args:
        folder (`Path`):
            Folder with `states.bin`, half-precision states of shape `(all positions, layers, hidden)`, and
            `offsets.npy`, where the positions of each input begin. For clips with videos also `times.npy`, of shape
            `(all frames, 2)`, and `time_offsets.npy`, where the frames of each video begin.
        layers, hidden (`int`): Number of hidden states of the encoder, and their size.
    """

    def __init__(self, folder: Path, layers: int, hidden: int):
        self._offsets = np.load(folder / "offsets.npy")
        shape = (int(self._offsets[-1]), layers, hidden)
        self._states = np.memmap(folder / "states.bin", dtype=np.float16, mode="r", shape=shape)
        self._times = None
        if (folder / "times.npy").is_file():
            self._times, self._time_offsets = np.load(folder / "times.npy"), np.load(folder / "time_offsets.npy")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def length(self, index: int) -> int:
        """Returns the number of positions of one input; 0 if it was missing."""
        return int(self._offsets[index + 1] - self._offsets[index])

    def __getitem__(self, index: int) -> np.ndarray:
        return self._states[self._offsets[index] : self._offsets[index + 1]].transpose(1, 0, 2)

    def frame_times(self, index: int) -> np.ndarray | None:
        """Returns start and end of each frame of the video of a clip, `(frames, 2)`, in seconds of the encoded clip;
        `None` without a clip or a video."""
        if self._times is None or not self.length(index):
            return None
        times = self._times[self._time_offsets[index] : self._time_offsets[index + 1]]
        return times if len(times) else None


class PooledStates:
    """
    The cached statistics of the states of an audio encoder over a list of clips and augmented copies of them, in place
    of [`TowerStates`]; `self[i]` is the clip itself, an array of shape `(layers, positions, hidden)`.

    One position is the mean of a clip's states; two have their mean and standard deviation.

    Args:
        parts (`Sequence[tuple[Sequence[int], Path]]`):
            Rows and the folder of their statistics; every row is in one part. A folder has `states.bin`,
            single-precision statistics of shape `(clips and copies, layers, positions, hidden)`, and `places.npy`, of
            shape `(rows, 1 + copies)`: the place of each row's clip and of its copies there, -1 for one that does not
            exist.
        layers, positions, hidden (`int`): Number of layers and of positions, and size of a state.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[int], Path]], layers: int, positions: int, hidden: int):
        self._shape = (layers, positions, hidden)
        self._rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for indices, folder in parts:
            places = np.load(folder / "places.npy")
            shape = (int(places.max()) + 1, *self._shape)
            # A file without clips cannot be mapped.
            is_empty, file = shape[0] == 0, folder / "states.bin"
            states = np.zeros(shape) if is_empty else np.memmap(file, np.float32, mode="r", shape=shape)
            self._rows.update((index, (states, own)) for index, own in zip(indices, places))

    def __len__(self) -> int:
        return len(self._rows)

    def length(self, index: int) -> int:
        """Returns the number of positions of one clip, the same for all; 0 if it was missing."""
        _, places = self._rows[index]
        return self._shape[1] if places[0] >= 0 else 0

    def num_copies(self, index: int) -> int:
        """Returns the number of augmented copies of one clip."""
        _, places = self._rows[index]
        return int((places[1:] >= 0).sum())

    def __getitem__(self, index: int) -> np.ndarray:
        return self.copy(index, 0)

    def copy(self, index: int, number: int) -> np.ndarray:
        """Returns an augmented copy of a clip, counted from 1; 0 is the clip itself."""
        states, places = self._rows[index]
        if places[number] < 0:
            return np.zeros((self._shape[0], 0, self._shape[2]), np.float32)
        return states[places[number]]

    def draw(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Returns a clip or one of its copies, each with the same probability."""
        return self.copy(index, int(rng.integers(self.num_copies(index) + 1)))


@torch.inference_mode()
def tower_states(
    modality: str,
    tower: PreTrainedModel,
    processor: MMEmoProcessor,
    rows: Dataset,
    cache_dir: str | Path,
    faces: Faces | None = None,
) -> TowerStates:
    """
    Returns the states of a frozen encoder over one modality of all rows, from the cache or computed now.

    A row without the modality has no positions. The positions of a text do not include those of its context, the
    positions of a video are the frames with a face.

    Args:
        modality (`str`): `"audio"`, `"text"` or `"video"`.
        tower (`PreTrainedModel`): The encoder; states are computed on its device.
        processor (`MMEmoProcessor`): Converts clips, texts and faces to model inputs.
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        cache_dir (`str` or `Path`): Folder of the cache.
        faces (`Faces`, *optional*): The faces of the rows, for video, and for the times of their frames in clips.
    """
    options = None
    if modality == "audio" and faces is not None:
        videos = [*map(audio_fingerprint, rows["video"])]
        options = {"videos": videos, "frames_per_second": processor.frames_per_second}
    folder = Path(cache_dir) / f"{modality}-{cache_key(modality, tower, processor, rows, options)}"
    if not (folder / "offsets.npy").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _compute(modality, tower.eval(), processor, rows, folder, faces)
    return TowerStates(folder, num_hidden_states(tower.config), tower.config.hidden_size)


def _compute(
    modality: str,
    tower: PreTrainedModel,
    processor: MMEmoProcessor,
    rows: Dataset,
    folder: Path,
    faces: Faces | None,
) -> None:
    present = [index for index, value in enumerate(rows[modality]) if value]
    lengths, batch_size = np.zeros(len(rows), dtype=np.int64), BATCH_SIZES[modality]
    # Of a clip with a video only the times of the frames are needed.
    processor = without_crops(processor) if modality == "audio" else processor
    times: dict[int, np.ndarray] = {}
    with (folder / "states.bin").open("wb") as file:
        for start in tqdm(range(0, len(present), batch_size), desc=f"Encoding {modality}"):
            indices = present[start : start + batch_size]
            inputs = processor(**_processor_inputs(modality, rows, indices, faces), return_tensors="pt")
            if modality == "audio" and "video_times" in inputs:
                times |= {i: of_row[: faces.length(i)] for i, of_row in zip(indices, inputs["video_times"].numpy())}
            states, mask = run_tower(modality, tower, inputs)
            file.write(torch.stack(states, dim=2)[mask].half().cpu().numpy().tobytes())
            lengths[indices] = mask.sum(dim=1).cpu().numpy()
    if times:
        counts = [len(times.get(index, ())) for index in range(len(rows))]
        np.save(folder / "times.npy", np.concatenate([times[index] for index in sorted(times)]))
        np.save(folder / "time_offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
    # Written last: a cache without it is incomplete, and computed again.
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))


def _processor_inputs(modality: str, rows: Dataset, indices: list[int], faces: Faces | None) -> dict[str, list]:
    """Returns the arguments of the processor for some rows."""
    if modality == "video":
        return {"video": [faces[index] for index in indices]}
    if modality == "audio":
        videos = None if faces is None else [faces.without_crops(index) for index in indices]
        return {"audio": list(rows.select(indices)["audio"]), "video": videos if videos and any(videos) else None}
    texts = [text_of(row) for row in rows.select(indices)]
    return {name: [text.get(name) for text in texts] for name in ("text", "context", "speaker")}


def run_tower(
    modality: str, tower: PreTrainedModel, inputs: Mapping[str, torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """
    Encodes a batch on the device of the encoder.

    Args:
        modality (`str`): `"audio"`, `"text"` or `"video"`.
        tower (`PreTrainedModel`): The encoder.
        inputs (`Mapping[str, torch.Tensor]`): Inputs of the model, as the processor returns them.

    Returns:
        The states, one tensor of shape `(batch, positions, hidden)` per layer, and their mask `(batch, positions)`.
    """
    inputs = {name: value.to(tower.device) for name, value in inputs.items()}
    mask = inputs[MASKS[modality]]
    if modality in ENCODE:
        return ENCODE[modality](tower, inputs[tower.main_input_name], mask)
    states = encode_text(tower, inputs["input_ids"], mask)
    return states, mask.bool() & ~inputs.get("context_mask", torch.zeros_like(mask)).bool()


def cache_key(
    modality: str,
    tower: PreTrainedModel,
    processor: MMEmoProcessor,
    rows: Dataset,
    options: Mapping[str, Any] | None = None,
) -> str:
    """
    Returns a hash of everything that the states of a frozen encoder depend on.

    Args:
        modality (`str`): `"audio"`, `"text"` or `"video"`.
        tower (`PreTrainedModel`): The encoder.
        processor (`MMEmoProcessor`): Converts clips, texts and faces to model inputs.
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        options (`Mapping`, *optional*): Other options that what is cached depends on.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    if modality == "audio":
        settings = processor.feature_extractor.to_dict() | {name: getattr(processor, name) for name in AUDIO_SETTINGS}
        values = map(audio_fingerprint, rows["audio"])
    elif modality == "video":
        settings = {name: getattr(processor, name) for name in VIDEO_SETTINGS}
        values = map(audio_fingerprint, rows["video"])
    else:
        settings = {"tokenizer": repr(processor.tokenizer), "vocabulary": processor.tokenizer.get_vocab()}
        settings |= {name: getattr(processor, name) for name in TEXT_SETTINGS}
        values = map(repr, zip(rows["text"], rows["context"], rows["said_by"]))
    settings |= options or {}
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for value in values:
        digest.update(value.encode())
    return digest.hexdigest()[:16]


class RunningStatistics:
    """
    Mean and standard deviation of vectors that arrive in batches; the vectors are not kept.

    Batches are summed on their own device, the batches' sums in double precision on the CPU.

    Source: Chan et al., "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)

    def update(self, values: torch.Tensor) -> None:
        """Adds vectors, a tensor of shape `(count, ...)`."""
        values = values.float()
        batch_mean = values.mean(dim=0)
        squares = (values - batch_mean).square().sum(dim=0).cpu().double()
        count = self.count + len(values)
        difference = batch_mean.cpu().double() - self.mean
        self._squares = self._squares + squares + difference.square() * self.count * len(values) / count
        self.mean = self.mean + difference * len(values) / count
        self.count = count

    @property
    def std(self) -> torch.Tensor:
        """The standard deviation, without Bessel's correction."""
        return (self._squares / self.count).sqrt()


@torch.inference_mode()
def standardize(
    model: MMEmoForEmotionRecognition,
    modalities: Collection[str],
    rows: torch.utils.data.Dataset,
    collator: EmotionCollator,
    max_inputs: int = 1000,
) -> None:
    """
    Sets the statistics of new branches to those of a random sample of the training inputs.

    The first pass over the sample computes the statistics of each layer over all positions, the second those of the
    pooled layer mix, which depends on the first, over the inputs.

    Args:
        model (`MMEmoForEmotionRecognition`): The model; states are computed on its device.
        modalities (`Collection[str]`): The modalities whose branches are new.
        rows (`torch.utils.data.Dataset`): The training rows.
        collator (`EmotionCollator`): Collates them.
        max_inputs (`int`, *optional*, defaults to 1000): Size of the sample.
    """
    model.eval()
    branches = {modality: getattr(model.mmemo, f"{modality}_branch") for modality in modalities}
    layers = {modality: RunningStatistics() for modality in modalities}
    for modality, states in _sample_states(model, modalities, rows, collator, max_inputs, "layer statistics"):
        layers[modality].update(states.transpose(0, 1))
    layers = {modality: statistics for modality, statistics in layers.items() if statistics.count}
    for modality, statistics in layers.items():
        mix = branches[modality].mix
        num_layers = len(mix.weights)
        mix.standardization.set(statistics.mean[-num_layers:], statistics.std[-num_layers:].clamp(min=1e-4))

    pooled = {modality: RunningStatistics() for modality in layers}
    for modality, states in _sample_states(model, layers, rows, collator, max_inputs, "pooled statistics"):
        pooled[modality].update(_pool(branches[modality], states))
    for modality, statistics in pooled.items():
        branches[modality].standardization.set(statistics.mean, statistics.std.clamp(min=1e-4))


def _sample_states(
    model: MMEmoForEmotionRecognition,
    modalities: Collection[str],
    rows: torch.utils.data.Dataset,
    collator: EmotionCollator,
    max_inputs: int,
    purpose: str,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the states `(layers, positions, hidden)` of each sampled input with its modality, the same every time."""
    if not modalities:
        return
    towers = model.mmemo.towers
    for row in tqdm(_sample(rows, max_inputs), desc=f"Computing {purpose}"):
        present = [modality for modality in modalities if modality in row]
        inputs = collator([row]) if present else {}
        for modality in present:
            states = inputs.get(f"{modality}_hidden_states")
            if states is None:
                states, mask = run_tower(modality, towers[modality], _tensors(inputs))
                yield modality, torch.stack([layer[mask] for layer in states])
            else:
                yield modality, torch.stack([layer[0] for layer in states])


def _sample(rows: torch.utils.data.Dataset, max_inputs: int) -> Iterator[dict]:
    if isinstance(rows, torch.utils.data.IterableDataset):
        yield from islice(rows, max_inputs)
        return
    for position in np.random.default_rng(0).permutation(len(rows))[:max_inputs]:
        yield rows[int(position)]


def _tensors(inputs: Mapping) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def _pool(branch: ModalityBranch, states: torch.Tensor) -> torch.Tensor:
    """Returns the pooled layer mix `(1, pooled_size)` of the states `(layers, positions, hidden)` of one input."""
    layers = states.to(branch.mix.weights).unsqueeze(1).unbind()
    mixed = branch.mix(layers)
    return branch.pool(layers, mixed, torch.ones(mixed.shape[:2], device=mixed.device))
