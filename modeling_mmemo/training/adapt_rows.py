"""Rows that a model is adapted with: their labels, the drawn ones, and their vectors."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from mmemo.modalities import MODALITIES
from modeling_mmemo.data.clips import clip_seconds, unreadable
from modeling_mmemo.data.corpora import CORPORA, find_layout
from modeling_mmemo.data.faces import with_sounds
from modeling_mmemo.data.schema import text_of
from modeling_mmemo.data.source_arguments import SourceArguments, as_mapping
from modeling_mmemo.data.unknown_labels import listed
from modeling_mmemo.evaluation.bootstrap import speaker_groups
from modeling_mmemo.evaluation.conditions import ABLATIONS, is_present
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


MAX_LABELS = 500
BATCH_SIZE = 16
# The name of the head of several modalities.
FUSED = "fused"


@dataclass(frozen=True, eq=False)
class EmbeddedRows:
    """
    Rows with the vectors of the model.

    Args:
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        ids (`np.ndarray` of shape `(rows,)`): Indices of the labels.
        groups (`np.ndarray` of shape `(rows,)`): The speaker of each row, numbered.
        vectors (`dict[str, np.ndarray]`):
            For each head its vectors, `(rows, width)`, NaN in rows without one.
    """

    rows: Dataset
    ids: np.ndarray
    groups: np.ndarray
    vectors: dict[str, np.ndarray]

    def has(self, name: str) -> np.ndarray:
        """Returns which rows have the vector of a head, `(rows,)`."""
        return ~np.isnan(self.vectors[name]).any(axis=1)

    def presences(self) -> list[tuple[str, ...]]:
        """Returns the modalities that each row has."""
        flags = {name: self.has(name) for name in self.vectors if name != FUSED}
        return [tuple(name for name in flags if flags[name][row]) for row in range(len(self.ids))]


def find_labels(data: str, sources: SourceArguments) -> list[str]:
    """
    Returns the labels of the data, sorted, or those that `sources` names.

    Rows with several labels are ignored here. Names that differ in case only are one label.

    Raises:
        ValueError: If there are not at least two labels, or more than 500.
    """
    counts = sources.label_counts(data)
    renamed = {theirs.strip().lower(): ours for theirs, ours in as_mapping(sources.label_map).items()}
    names: dict[str, str] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        if name and "|" not in name:
            label = renamed.get(name.lower(), name)
            names.setdefault(label.lower(), label)
    labels = sources.labels or sorted(names.values())
    if len(labels) < 2:
        raise ValueError(
            f"{data} has the labels {listed(counts)}, but at least 2 are needed; add rows of another label, or map "
            "the column with columns, as in label=emotion."
        )
    if len(labels) > MAX_LABELS:
        raise ValueError(
            f"{data} has {len(labels)} labels, at most {MAX_LABELS} are possible: {listed(counts)}. Is the label in "
            "another column? Map it with columns, as in label=emotion."
        )
    return labels


def read_labelled(
    data: str, sources: SourceArguments, modalities: Sequence[str], context_turns: int = 0
) -> tuple[Dataset, list[str]]:
    """
    Returns the rows of the data, without test rows and modalities that are not used, and the modalities.

    Args:
        data (`str`): See [`read_source`].
        sources (`SourceArguments`): How to read it, with its labels.
        modalities (`Sequence[str]`): The modalities to use; if empty, those that the rows have, and of a known corpus
            those that carry its emotion.
        context_turns (`int`): Number of dialogue turns that the model takes before a text.

    Raises:
        ValueError: If a modality is unknown or no row has it, a label has no usable row, or files cannot be read.
    """
    if unknown := [name for name in modalities if name not in MODALITIES]:
        raise ValueError(f"modalities={unknown} are unknown; choose among {list(MODALITIES)}.")
    rows = sources.read(data, context_turns)
    rows = rows.filter(lambda split: split != "test", input_columns="split")
    carriers = ABLATIONS[find_layout(data, sources.data_dir).modality].needs if data in CORPORA else MODALITIES
    wanted = modalities or carriers
    if "audio" in wanted:
        rows = with_sounds(rows)
    has = {name: np.array([is_present(value) for value in rows[name]], bool) for name in MODALITIES}
    used = [name for name in MODALITIES if name in wanted and (name in modalities or has[name].any())]
    if missing := [name for name in used if not has[name].any()]:
        raise ValueError(f"No row of {data} has {' or '.join(missing)}; leave it out of modalities.")
    usable = np.any([has[name] for name in used], axis=0) if used else np.zeros(len(rows), bool)
    counts = Counter(np.array(rows["label"], dtype=object)[usable].tolist())
    if lacking := [label for label in sources.labels if not counts[label]]:
        raise ValueError(
            f"{data} has no usable row of the labels {lacking}, which needs {' or '.join(used or wanted)}; add rows, "
            "or name the labels to use."
        )
    rows = rows.select(np.flatnonzero(usable))
    for name in set(MODALITIES) - set(used):
        rows = rows.remove_columns(name).add_column(name, [None] * len(rows))
    return rows, used


def take_shots(ids: np.ndarray, groups: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """
    Draws rows of each label, in turn from its speakers.

    Args:
        ids (`np.ndarray` of shape `(rows,)`): Indices of the labels.
        groups (`np.ndarray` of shape `(rows,)`): The speaker of each row, numbered.
        shots (`int`): Rows of each label; all of a label that has fewer.
        seed (`int`): Seed of the draws.

    Returns:
        `np.ndarray` of shape `(chosen,)`: Ascending indices of the rows.
    """
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for label in np.unique(ids):
        drawn = rng.permutation(np.flatnonzero(ids == label))
        turns: Counter[int] = Counter()
        turn_of = []
        for group in groups[drawn].tolist():
            turn_of.append(turns[group])
            turns[group] += 1
        chosen += drawn[np.argsort(turn_of, kind="stable")][:shots].tolist()
    return np.sort(chosen)


def embed_rows(emotion: MultimodalEmotionPipeline, rows: Dataset, ids: np.ndarray) -> EmbeddedRows:
    """
    Computes the vectors of rows, in batches of similar length.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline; its model has the encoders of the rows' modalities.
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        ids (`np.ndarray` of shape `(rows,)`): Indices of their labels.

    Raises:
        ValueError: If rows cannot be embedded; the message lists the first 10.
    """
    items = [_item(row) for row in rows]
    lengths = [
        (clip_seconds(item["audio"]) if item["audio"] is not None else 0.0, len(item["text"] or "")) for item in items
    ]
    order = sorted(range(len(items)), key=lengths.__getitem__, reverse=True)
    names = [name for name in MODALITIES if emotion.model.config.has_encoder(name)]
    names += [FUSED] if emotion.model.mmemo.fuses else []
    vectors = {name: np.full((len(items), emotion.model.config.fusion_hidden_size), np.nan) for name in names}
    problems = []
    outputs = emotion.embed((items[row] for row in order), batch_size=BATCH_SIZE, on_error="return")
    for row, output in zip(order, outputs):
        if "error" in output:
            problems.append(f"row {row}: {output['error'].partition(': ')[2]}")
            continue
        for name, vector in output.items():
            vectors[name][row] = vector
    if problems:
        raise unreadable(" or ".join(name for name in names if name != FUSED), problems)
    return EmbeddedRows(rows, ids, speaker_groups(list(rows["speaker"]))[0], vectors)


def _item(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row as an item of the pipeline."""
    item: dict[str, Any] = {"audio": row["audio"], "text": None, "video": row["video"]}
    if row["text"] is not None:
        item |= text_of(dict(row))
        if row["word_times"]:
            item["word_times"] = [(word["word"], word["start"], word["end"]) for word in row["word_times"]]
    return item
