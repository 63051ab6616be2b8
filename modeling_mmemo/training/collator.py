"""Collates rows to one batch of model inputs."""

import copy

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from mmemo.modalities import MASKS
from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.processing_mmemo import MMEmoProcessor


class EmotionCollator:
    """
    Computes features and pads; a modality that is missing from all rows is left out of the batch.

    Args:
        processor (`MMEmoProcessor`): Converts clips, texts and faces to model inputs.
        augmentation (`Augmentation`, *optional*): Augments the log-mel frames of clips that have a `seed`.
    """

    def __init__(self, processor: MMEmoProcessor, augmentation: Augmentation | None = None):
        self.processor = processor
        self.augmentation = augmentation

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """
        Args:
            rows (`list[dict]`):
                Rows with `labels` and `label_mask`, and optionally `audio` (samples, or states of a frozen encoder
                of shape `(layers, positions, hidden)`), `text` (a string, or states), `video` (a [`FaceSequence`], or
                states, whose positions are the frames of `face`), `word_times`, `context` and `speaker` (for a text
                in a dialogue), `seed` (for an augmented clip), and `loss_weight`.

        Returns:
            `dict`: The inputs of [`MMEmoForEmotionRecognition.forward`].

        Raises:
            ValueError: If SpecAugment is on and the audio encoder does not take `input_features`.
        """
        batch = {
            "labels": torch.tensor([row["labels"] for row in rows]),
            "label_mask": torch.stack([row["label_mask"] for row in rows]),
        }
        if all("loss_weight" in row for row in rows):
            batch["loss_weight"] = torch.tensor([row["loss_weight"] for row in rows])
        raw = []
        for modality, mask_name in MASKS.items():
            present = [index for index, row in enumerate(rows) if modality in row]
            if not present:
                continue
            values = [rows[index][modality] for index in present]
            if isinstance(values[0], np.ndarray) and values[0].ndim == 3:
                states, mask = _pad_states(values)
                batch[f"{modality}_hidden_states"] = tuple(_scatter(layer, present, len(rows)) for layer in states)
                batch[mask_name] = _scatter(mask, present, len(rows))
            else:
                raw.append(modality)
        if raw or any("face" in row for row in rows):
            # All modalities in one call, because trimming a clip shifts the timestamps of its words and frames.
            present = [index for index, row in enumerate(rows) if any(name in row for name in (*raw, "face"))]
            inputs = self.prepare(raw, [rows[index] for index in present])
            batch |= {name: _scatter(value, present, len(rows)) for name, value in inputs.items()}
        return batch

    def prepare(self, modalities: list[str], rows: list[dict]) -> dict[str, torch.Tensor]:
        """
        Returns the model inputs of rows with clips, texts or faces, without their labels; of a `face`, whose states
        are cached, its times.

        Args:
            modalities (`list[str]`): The modalities to convert.
            rows (`list[dict]`): Rows as in a call, with samples, strings and faces.
        """
        has_states = any("face" in row for row in rows)
        processor = without_crops(self.processor) if has_states else self.processor
        values: dict = {modality: [row.get(modality) for row in rows] for modality in modalities}
        for name in ("word_times", "context", "speaker"):
            if "text" in modalities and any(row.get(name) for row in rows):
                values[name] = [row.get(name) if "text" in row else None for row in rows]
        if "audio" in modalities:
            values["sampling_rate"] = self.processor.feature_extractor.sampling_rate
        if has_states:
            values["video"] = [row.get("face") for row in rows]
        inputs = dict(processor(**values, return_tensors="pt"))
        if has_states:
            del inputs["video_features"], inputs[MASKS["video"]]
        seeds = [row["seed"] for row in rows if "seed" in row]
        if self.augmentation is not None and self.augmentation.spec_augment_probability > 0 and seeds:
            if "input_features" not in inputs:
                raise ValueError(
                    f"spec_augment_probability={self.augmentation.spec_augment_probability} needs an audio encoder "
                    f"that takes log-mel input_features; this one takes {sorted(inputs)}. Set it to 0."
                )
            inputs["input_features"] = self.augmentation.augment_features(
                inputs["input_features"], inputs[MASKS["audio"]], np.random.default_rng(seeds[0])
            )
        return inputs


def without_crops(processor: MMEmoProcessor) -> MMEmoProcessor:
    """Returns a copy of a processor that takes faces without pictures: for their times, or their blendshapes."""
    processor = copy.copy(processor)
    processor.crop_size = None
    return processor


def _pad_states(values: list[np.ndarray]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Returns the padded layers, each `(batch, positions, hidden)`, and their mask `(batch, positions)`."""
    sequences = [torch.from_numpy(value.copy()).transpose(0, 1) for value in values]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = pad_sequence(sequences, batch_first=True)
    return padded.unbind(dim=2), (torch.arange(padded.shape[1]) < lengths.unsqueeze(1)).long()


def _scatter(values: torch.Tensor, present: list[int], size: int) -> torch.Tensor:
    """Returns a batch of `size` with `values` in the rows `present`; the others are zero, masked as missing."""
    if len(present) == size:
        return values
    scattered = values.new_zeros(size, *values.shape[1:])
    scattered[present] = values
    return scattered
