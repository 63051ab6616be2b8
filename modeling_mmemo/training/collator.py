"""From drawn rows to one batch of model inputs."""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.processing_mmemo import MMEmoProcessor


MASKS = {"audio": "audio_attention_mask", "text": "attention_mask"}


class EmotionCollator:
    """Computes features and pads; a modality that no row of the batch has is left out.

    Args:
        processor (`MMEmoProcessor`): Turns clips and texts into inputs.
        augmentation (`Augmentation`, *optional*): What happens to the log-mel frames of clips.
    """

    def __init__(self, processor: MMEmoProcessor, augmentation: Augmentation | None = None):
        self.processor = processor
        self.augmentation = augmentation

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """
        Args:
            rows (`list[dict]`): With `labels` and `label_mask`, and those of `audio` (samples, or states of a frozen
                tower of shape `(layers, positions, hidden)`), `text` (a string, or states), `word_times`,
                `context` and `speaker` (of a text in a dialogue), and `seed` (of an augmented clip) that there are.

        Returns:
            `dict` of the inputs of [`MMEmoForEmotionRecognition.forward`].
        """
        batch = {
            "labels": torch.tensor([row["labels"] for row in rows]),
            "label_mask": torch.stack([row["label_mask"] for row in rows]),
        }
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
        if raw:
            # Both at once: where a clip's frames begin moves the times of its words.
            present = [index for index, row in enumerate(rows) if any(modality in row for modality in raw)]
            inputs = self._process(raw, [rows[index] for index in present])
            batch |= {name: _scatter(value, present, len(rows)) for name, value in inputs.items()}
        return batch

    def _process(self, modalities: list[str], rows: list[dict]) -> dict[str, torch.Tensor]:
        values: dict = {modality: [row.get(modality) for row in rows] for modality in modalities}
        for name in ("word_times", "context", "speaker"):
            if "text" in modalities and any(row.get(name) for row in rows):
                values[name] = [row.get(name) if "text" in row else None for row in rows]
        if "audio" in modalities:
            values["sampling_rate"] = self.processor.feature_extractor.sampling_rate
        inputs = dict(self.processor(**values, return_tensors="pt"))
        seeds = [row["seed"] for row in rows if "seed" in row]
        if self.augmentation is not None and self.augmentation.spec_augment_probability > 0 and seeds:
            if "input_features" not in inputs:
                raise ValueError(
                    f"spec_augment_probability={self.augmentation.spec_augment_probability} needs an audio encoder "
                    f"that reads log-mel input_features; this one reads {sorted(inputs)}. Set it to 0."
                )
            inputs["input_features"] = self.augmentation.augment_features(
                inputs["input_features"], inputs[MASKS["audio"]], np.random.default_rng(seeds[0])
            )
        return inputs


def _pad_states(values: list[np.ndarray]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Layers, each `(batch, positions, hidden)`, and the mask `(batch, positions)`."""
    sequences = [torch.from_numpy(value.copy()).transpose(0, 1) for value in values]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = pad_sequence(sequences, batch_first=True)
    return padded.unbind(dim=2), (torch.arange(padded.shape[1]) < lengths.unsqueeze(1)).long()


def _scatter(values: torch.Tensor, present: list[int], size: int) -> torch.Tensor:
    """Puts the rows of those `present` into a batch of `size`; the others are zero, which a mask calls missing."""
    if len(present) == size:
        return values
    scattered = values.new_zeros(size, *values.shape[1:])
    scattered[present] = values
    return scattered
