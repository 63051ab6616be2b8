"""
Simulated pairs: held-out audio paired with random held-out text, since no available corpus has emotion in both.

Agreeing pairs share a label. In conflicting pairs audio and text have different labels, and the prediction shows which
of the two the model relies on.
"""

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers.utils import logging


logger = logging.get_logger(__name__)


def simulated_pairs(audio_rows: Dataset, text_rows: Dataset, agreeing: bool, seed: int = 0) -> Dataset:
    """
    Pairs each audio row with a random text of the same label, or of another label drawn uniformly.

    Args:
        audio_rows, text_rows (`datasets.Dataset`): Rows of the shared schema.
        agreeing (`bool`): Whether both have the same label.
        seed (`int`, *optional*, defaults to 0): Seed of the pairing.

    Returns:
        `datasets.Dataset`: the audio rows, with their `label` and `speaker`, and of the text rows `text`, `context`,
        `said_by` and the label as `text_label`. Audio rows without a matching text are left out; a warning gives their
        number.

    Raises:
        ValueError: If no audio row has a matching text.
    """
    rng = np.random.default_rng(seed)
    text_labels = list(text_rows["label"])
    texts_of: dict[str, list[int]] = {}
    for index, label in enumerate(text_labels):
        texts_of.setdefault(label, []).append(index)
    audio_indices, text_indices = [], []
    for index, label in enumerate(audio_rows["label"]):
        matching = [other for other in sorted(texts_of) if (other == label) is agreeing]
        if matching:
            audio_indices.append(index)
            text_indices.append(int(rng.choice(texts_of[rng.choice(matching)])))
    kind = "the same label" if agreeing else "another label"
    if not audio_indices:
        raise ValueError(
            f"No text has {kind}: the audio labels are {sorted(set(audio_rows['label']))}, the text labels "
            f"{sorted(texts_of)}. Choose corpora that share labels."
        )
    if len(audio_indices) < len(audio_rows):
        missing = len(audio_rows) - len(audio_indices)
        logger.warning(f"{missing} of {len(audio_rows)} audio rows have no text with {kind} and are left out.")
    texts = text_rows.select(text_indices).select_columns(["text", "context", "said_by"]).flatten_indices()
    texts = texts.add_column("text_label", [text_labels[index] for index in text_indices])
    # The word timestamps of the audio belong to other words.
    audio = audio_rows.select(audio_indices).remove_columns([*texts.column_names[:3], "word_times"])
    return concatenate_datasets([audio, texts], axis=1)


def follows(scores: np.ndarray, audio_truth: np.ndarray, text_truth: np.ndarray) -> np.ndarray:
    """
    Finds the modality that the predictions for conflicting pairs follow.

    Args:
        scores (`np.ndarray` of shape `(rows, labels)`): Scores of the pairs.
        audio_truth, text_truth (`np.ndarray` of shape `(rows,)`): Label indices of audio and text.

    Returns:
        `np.ndarray` of shape `(rows, 3)`: each row has a 1 in one of the columns audio, text, neither.
    """
    predictions = scores.argmax(axis=-1)
    audio, text = predictions == audio_truth, predictions == text_truth
    return np.stack([audio, text, ~(audio | text)], axis=-1).astype(float)
