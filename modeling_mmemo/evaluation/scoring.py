"""Scores of a pipeline, row by row."""

from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from modeling_mmemo.pipelines import MultimodalEmotionPipeline


def held_out(rows: Dataset) -> tuple[Dataset, str]:
    """The rows to score, and what they are: the test part, or the whole of a corpus that has none.

    A corpus without a test part is expected to be one that the model was not trained on.
    """
    if "test" not in set(rows["split"]):
        return rows, "whole corpus (it has no test part)"
    return rows.filter(lambda split: split == "test", input_columns="split"), "test part"


def row_lengths(emotion: MultimodalEmotionPipeline, rows: Dataset, modality: str) -> np.ndarray:
    """How long rows are in one modality, to batch them by: samples of `"audio"`, characters of `"text"`."""
    measure = emotion.processor.load_audio if modality == "audio" else str
    return np.array([len(measure(value)) for value in rows[modality]])


def score_items(
    emotion: MultimodalEmotionPipeline,
    make_item: Callable[[int], dict[str, Any]],
    lengths: np.ndarray,
    batch_size: int = 16,
    description: str | None = None,
) -> np.ndarray:
    """Scores items in batches of like length; the model's answers do not depend on the batch.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline.
        make_item (`Callable[[int], dict]`): Gives the item of a row; called once a row, shortly before it is scored.
        lengths (`np.ndarray` of shape `(rows,)`): Of the rows, in any unit.
        batch_size (`int`, *optional*, defaults to 16): Items that the model sees at once.
        description (`str`, *optional*): Of the progress bar.

    Returns:
        `np.ndarray` of shape `(rows, labels)`: the scores in the order of rows and of the model's labels.
    """
    # The longest first: what does not fit in memory fails at once.
    order = np.argsort(-lengths, kind="stable").tolist()
    label2id = emotion.model.config.label2id
    scores = np.zeros((len(order), len(label2id)))
    answers = emotion((make_item(row) for row in order), batch_size=batch_size)
    for row, answer in zip(order, tqdm(answers, description, total=len(order))):
        for entry in answer:
            scores[row, label2id[entry["label"]]] = entry["score"]
    return scores
