"""Simulated pairs: held-out voices given a held-out text at random, since no corpus at hand has emotion in both.

Agreeing pairs have one label. In conflicting pairs voice and words say different things, and what the answer follows
shows which of the two the model trusts.
"""

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers.utils import logging


logger = logging.get_logger(__name__)


def simulated_pairs(audio_rows: Dataset, text_rows: Dataset, agreeing: bool, seed: int = 0) -> Dataset:
    """Gives each voice a random text: of its own label, or of another one, drawn evenly from the labels with texts.

    Args:
        audio_rows, text_rows (`datasets.Dataset`): Rows of the shared schema.
        agreeing (`bool`): Whether both have the same label.
        seed (`int`, *optional*, defaults to 0): Of the pairing.

    Returns:
        `datasets.Dataset`: the voices (`label` and `speaker` are theirs) with the texts as `text`, their `context` and
        `said_by`, and their labels as `text_label`. Voices without a fitting text are left out, and counted in the
        log.

    Raises:
        ValueError: If no voice finds a text.
    """
    rng = np.random.default_rng(seed)
    text_labels = list(text_rows["label"])
    texts_of: dict[str, list[int]] = {}
    for index, label in enumerate(text_labels):
        texts_of.setdefault(label, []).append(index)
    voices, texts = [], []
    for index, label in enumerate(audio_rows["label"]):
        fitting = [other for other in sorted(texts_of) if (other == label) is agreeing]
        if fitting:
            voices.append(index)
            texts.append(int(rng.choice(texts_of[rng.choice(fitting)])))
    kind = "the same label" if agreeing else "another label"
    if not voices:
        raise ValueError(
            f"No text has {kind}: the voices have {sorted(set(audio_rows['label']))}, the texts {sorted(texts_of)}. "
            "Choose corpora that share labels."
        )
    if len(voices) < len(audio_rows):
        logger.warning(f"{len(audio_rows) - len(voices)} of {len(audio_rows)} voices have no text of {kind}.")
    words = text_rows.select(texts).select_columns(["text", "context", "said_by"]).flatten_indices()
    words = words.add_column("text_label", [text_labels[index] for index in texts])
    # The word times of the voice are those of other words.
    own = audio_rows.select(voices).remove_columns([*words.column_names[:3], "word_times"])
    return concatenate_datasets([own, words], axis=1)


def follows(scores: np.ndarray, audio_truth: np.ndarray, text_truth: np.ndarray) -> np.ndarray:
    """What the answers to conflicting pairs follow.

    Args:
        scores (`np.ndarray` of shape `(rows, labels)`): Of the pairs.
        audio_truth, text_truth (`np.ndarray` of shape `(rows,)`): Indices of the labels of voice and words.

    Returns:
        `np.ndarray` of shape `(rows, 3)`: 1 in one column each: audio, text, neither.
    """
    answers = scores.argmax(axis=-1)
    audio, text = answers == audio_truth, answers == text_truth
    return np.stack([audio, text, ~(audio | text)], axis=-1).astype(float)
