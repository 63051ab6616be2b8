"""Scores of a pipeline for the rows of a dataset."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from modeling_mmemo.data.faces import FaceCache
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


logger = logging.get_logger(__name__)


def held_out(rows: Dataset, split: str | None = None) -> tuple[Dataset, str]:
    """
    Returns the rows to score and a description: one split, by default the test part, or all rows without one.

    A corpus without a test part should be one that the model was not trained on.

    Raises:
        ValueError: If there are no rows of `split`.
    """
    found = set(rows["split"])
    if split is None and "test" not in found:
        return rows, "whole corpus (it has no test part)"
    wanted = split or "test"
    if wanted not in found:
        raise ValueError(
            f"There are no rows of split={wanted}; the splits are {sorted(found)}. Choose one of them, or for dev set "
            "--dev_share as in the training run."
        )
    return rows.filter(lambda split: split == wanted, input_columns="split"), f"{wanted} part"


def restrict_scores(scores: np.ndarray, columns: Sequence[int]) -> np.ndarray:
    """
    Restricts scores to some of the labels.

    Args:
        scores (`np.ndarray` of shape `(rows, labels)`): Probabilities.
        columns (`Sequence[int]`): Indices of the labels to keep.

    Returns:
        `np.ndarray` of shape `(rows, len(columns))`: the scores of these labels, divided by their sum; equal scores in
        a row whose sum is 0.
    """
    kept = scores[:, columns]
    total = kept.sum(axis=1, keepdims=True)
    return np.divide(kept, total, out=np.full(kept.shape, 1 / len(columns)), where=total > 0)


def row_lengths(
    emotion: MultimodalEmotionPipeline, rows: Dataset, modality: str, faces: FaceCache | None = None
) -> np.ndarray:
    """Returns the lengths of rows in one modality: samples of `"audio"`, characters of `"text"`, frames of `"video"`,
    in which `faces` follows the face; 0 if missing."""

    def measure(value: Any) -> int:
        if modality == "video":
            return len(faces.read(value, with_crops=False).times)
        return len(emotion.processor.load_audio(value) if modality == "audio" else value)

    return np.array([measure(value) if value else 0 for value in rows[modality]])


def score_items(
    emotion: MultimodalEmotionPipeline,
    make_item: Callable[[int], dict[str, Any] | None],
    lengths: np.ndarray,
    batch_size: int = 16,
    description: str | None = None,
) -> np.ndarray:
    """
    Scores items in batches of similar length; the scores do not depend on the batch.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline.
        make_item (`Callable[[int], dict]`):
            Returns the item of a row, `None` if nothing is left of it; called once per row, just before scoring.
        lengths (`np.ndarray` of shape `(rows,)`): Lengths of the rows, in any unit.
        batch_size (`int`, *optional*, defaults to 16): Items per batch.
        description (`str`, *optional*): Description of the progress bar.

    Returns:
        `np.ndarray` of shape `(rows, labels)`: scores, in the order of the rows and of the model's labels; equal ones
        for a row without an item.
    """
    # Longest first: a batch that does not fit in memory fails at once.
    order = np.argsort(-lengths, kind="stable").tolist()
    label2id = emotion.model.config.label2id
    scores = np.full((len(order), len(label2id)), 1 / len(label2id))
    made: list[int] = []

    def items() -> Iterator[dict[str, Any]]:
        for row in order:
            if (item := make_item(row)) is not None:
                made.append(row)
                yield item

    outputs = emotion(items(), batch_size=batch_size)
    for place, output in enumerate(tqdm(outputs, description, total=len(order))):
        for entry in output:
            scores[made[place], label2id[entry["label"]]] = entry["score"]
    if len(made) < len(order):
        logger.warning(
            f"{description}: no face is found in {len(order) - len(made)} of {len(order)} videos without audio and "
            "text, which get equal scores for all labels."
        )
    return scores
