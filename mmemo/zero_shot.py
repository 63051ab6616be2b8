"""
Labels in one's own words: candidate labels as vectors in the space that modalities share, and their scores.

Deliberate choices:
- The vectors of the labels come from the model's own text encoder. They are computed once per set of labels, so a
  prediction costs no more than one of the model's own labels.
- A prediction is the mean of the projections of the modalities present: modalities have equal weights.
- "None of these" is only offered with scores that development data calibrate: similarities alone do not tell whether
  any label applies.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from threading import Lock
from typing import Any

import numpy as np

from mmemo.answers import AnswerFormatter
from mmemo.items import ItemProcessing, PreparedItem, prefixed
from mmemo.modalities import MODALITIES, presence_of
from mmemo.timeline.windows import SILENCE, UNCERTAIN
from mmemo.words.dialogue import check_characters


HYPOTHESIS_TEMPLATE = "This person feels {}."
NONE_LABEL = "none of these"
MAX_LABELS, MAX_TEMPLATES = 500, 20
# Labels in all their templates: the model encodes some hundred sentences a second.
MAX_SENTENCES = 1000
# Sets of labels whose vectors are kept.
MAX_LABEL_SETS = 32
# Projections have a length of 1, or 0 if the modality is missing.
LEAST_LENGTH = 0.5

Run = Callable[[list[PreparedItem]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class CandidateLabels:
    """
    The labels of a call and the sentences around them, as [`read_labels`] returns them.

    Args:
        labels (`tuple[str, ...]`): The labels.
        templates (`tuple[str, ...]`): Sentences with `{}` in place of the label.
        none_label (`str`, *optional*): The label of items to which none of the labels applies; `None` for none.
    """

    labels: tuple[str, ...]
    templates: tuple[str, ...] = (HYPOTHESIS_TEMPLATE,)
    none_label: str | None = NONE_LABEL

    def hypotheses(self) -> list[tuple[str, str]]:
        """Returns each label with each of its sentences, label by label."""
        return [(label, template.replace("{}", label)) for label in self.labels for template in self.templates]


def read_labels(
    candidate_labels: str | Sequence[str],
    hypothesis_template: str | Sequence[str] = HYPOTHESIS_TEMPLATE,
    none_label: str | None = NONE_LABEL,
) -> CandidateLabels:
    """
    Checks candidate labels.

    Args:
        candidate_labels (`str` or `Sequence[str]`): The labels, as a list or separated by commas.
        hypothesis_template (`str` or `Sequence[str]`, *optional*): A sentence with `{}`, or several.
        none_label (`str`, *optional*): The label of items to which none of them applies; `None` leaves it out.

    Raises:
        ValueError: If there are no labels, too many, blank or equal ones, if a label has another meaning in results,
            if a template has no `{}`, or if labels and templates give too many sentences.
    """
    if isinstance(candidate_labels, str):
        candidate_labels = [label for label in candidate_labels.split(",") if label.strip()]
    labels = [label.strip() for label in _checked_list("candidate_labels", candidate_labels, MAX_LABELS)]
    is_single = isinstance(hypothesis_template, str)
    templates = _checked_list(
        "hypothesis_template", [hypothesis_template] if is_single else hypothesis_template, MAX_TEMPLATES
    )
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"hypothesis_template={template!r} has no {{}} in place of the label; write it as in "
                f"{HYPOTHESIS_TEMPLATE!r}."
            )
    sentences = len(labels) * len(templates)
    if sentences > MAX_SENTENCES:
        raise ValueError(
            f"{len(labels)} candidate_labels in {len(templates)} templates are {sentences} sentences; at most "
            f"{MAX_SENTENCES} are allowed. Leave labels or templates out."
        )
    if none_label is not None:
        (none_label,) = (label.strip() for label in _checked_list("none_label", [none_label], 1))
    _check_distinct(labels, none_label)
    return CandidateLabels(tuple(labels), tuple(templates), none_label)


def _checked_list(name: str, values: Any, most: int) -> list[str]:
    """Returns values as a list; raises a `ValueError` if they are not 1 to `most` texts, none of them blank."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name}={values!r} must be a str or a list of str, not {type(values).__name__}.")
    if not values:
        raise ValueError(f"{name} is empty; pass at least one.")
    if len(values) > most:
        raise ValueError(f"{name} has {len(values)} entries; at most {most} are allowed. Leave some out.")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{name}[{index}]={value!r} must be a str, not {type(value).__name__}.")
        if not value.strip():
            raise ValueError(f"{name}[{index}]={value!r} is blank; write a word or a phrase, or leave it out.")
        with prefixed(f"{name}[{index}]"):
            check_characters(value)
    return list(values)


def _check_distinct(labels: list[str], none_label: str | None) -> None:
    """Raises a `ValueError` if labels are equal apart from case, or equal to a label with another meaning."""
    reserved = {SILENCE: "stretches without speech", UNCERTAIN: "scores below the threshold"}
    if none_label is not None:
        folded = none_label.casefold()
        if folded in reserved:
            raise ValueError(f"none_label={none_label!r} is the label of {reserved[folded]}; rename it.")
        reserved[folded] = "items to which none of the labels applies (none_label)"
    seen: dict[str, str] = {}
    for label in labels:
        folded = label.casefold()
        if folded in reserved:
            raise ValueError(f"The candidate label {label!r} is the label of {reserved[folded]}; rename it.")
        if folded in seen:
            raise ValueError(
                f"candidate_labels has {seen[folded]!r} and {label!r}, which are the same label; leave one out."
            )
        seen[folded] = label


def check_unused(hypothesis_template: Any, none_label: str | None) -> None:
    """Raises a `ValueError` for options of candidate labels in a call without any."""
    given = {"hypothesis_template": hypothesis_template, "none_label": none_label}
    for name, default in (("hypothesis_template", HYPOTHESIS_TEMPLATE), ("none_label", NONE_LABEL)):
        if given[name] != default:
            raise ValueError(f"{name}={given[name]!r} needs candidate_labels; pass them, or leave it out.")


@dataclass(frozen=True)
class Similarity:
    """
    How a model turns cosines in its shared space into logits.

    Args:
        projection_dim (`int`, *optional*): Width of the shared space; `None` for a model that has none.
        scale (`float`, *optional*): The learned factor; `None` if an export lacks it.
        calibration (`Mapping[str, Sequence[float]]`, *optional*):
            Factor and addend for each set of modalities, named as by [`presence_of`], fitted on development data.
    """

    projection_dim: int | None
    scale: float | None
    calibration: Mapping[str, Sequence[float]] | None = None

    def check(self, modalities: Sequence[str]) -> None:
        """Raises a `ValueError` if a model with encoders for `modalities` cannot score candidate labels."""
        if self.projection_dim is None:
            raise ValueError(
                "candidate_labels: this model has no shared space of voice and words (projection_dim); use a model "
                "that has one, or adapt this one to your labels with mmemo adapt."
            )
        if "text" not in modalities:
            raise ValueError(
                "candidate_labels: this model has no text encoder, which candidate labels need; use a model that has "
                "one, or adapt the model to your labels with mmemo adapt."
            )
        if self.scale is None:
            raise ValueError(
                "candidate_labels: an earlier version exported this model, without the scale of its shared space; "
                "export it again: mmemo export MODEL --output FOLDER."
            )

    def is_calibrated(self, modalities: Sequence[str]) -> bool:
        """Whether there is a calibration for every set of the modalities."""
        present = (subset for size in range(len(modalities)) for subset in combinations(modalities, size + 1))
        return self.calibration is not None and {presence_of(subset) for subset in present} <= self.calibration.keys()


class LabelCache:
    """
    The vectors of the sets of labels that were used last; for many threads.

    A set that is there is returned at once. Threads that need others encode them one after the other, so that none is
    encoded twice. A copy, also in another process, starts empty.
    """

    def __init__(self) -> None:
        self._vectors: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._access, self._encoding = Lock(), Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def __reduce__(self) -> Any:
        return type(self), ()

    def get(self, key: Any, encode: Callable[[], np.ndarray]) -> np.ndarray:
        """Returns the vectors of a set, from `encode` unless they are there."""
        vectors = self._find(key)
        if vectors is not None:
            return vectors
        with self._encoding:
            vectors = self._find(key)
            if vectors is None:
                vectors = encode()
                with self._access:
                    self._vectors[key] = vectors
                    while len(self._vectors) > MAX_LABEL_SETS:
                        self._vectors.popitem(last=False)
        return vectors

    def _find(self, key: Any) -> np.ndarray | None:
        with self._access:
            if key in self._vectors:
                self._vectors.move_to_end(key)
            return self._vectors.get(key)


def encode_labels(candidates: CandidateLabels, processor: ItemProcessing, run: Run, batch_size: int) -> np.ndarray:
    """
    Returns the vectors of labels: the mean over the templates, scaled to length 1.

    Args:
        candidates ([`CandidateLabels`]): The labels.
        processor ([`ItemProcessing`]): The processor of the model.
        run (`Callable`): See [`~EmotionRecognition.run`].
        batch_size (`int`): Number of sentences that the model encodes at once.

    Returns:
        `np.ndarray` of shape `(labels, projection_dim)`: float32.

    Raises:
        ValueError: If the text encoder does not take a label as a whole, or its tokenizer knows no token of it.
    """
    hypotheses = candidates.hypotheses()
    for label in candidates.labels:
        unknown, visible = processor.count_unknown(label)
        if unknown == visible:
            raise ValueError(f"The tokenizer of this model knows no token of the label {label!r}; write it in words.")
    for label, hypothesis in hypotheses:
        if excess := processor.excess_tokens(hypothesis):
            raise ValueError(
                f"The label {label[:40]!r} in its template is {excess} tokens longer than the text encoder takes; "
                "shorten it."
            )
    items = [PreparedItem(text=hypothesis) for _, hypothesis in hypotheses]
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    vectors = np.concatenate([run(batch)["text_projection"] for batch in batches])
    return _normalized(vectors.reshape(len(candidates.labels), len(candidates.templates), -1).mean(axis=1))


class LabelScorer:
    """
    Scores candidate labels from the outputs of a model.

    Args:
        candidates ([`CandidateLabels`]): The labels.
        vectors (`np.ndarray` of shape `(labels, projection_dim)`): Their vectors, as [`encode_labels`] returns them.
        similarity ([`Similarity`]): That of the model.
        modalities (`Sequence[str]`): The modalities that the model has encoders for.

    Attributes:
        answers ([`LabelFormatter`]): Formats the scores.
    """

    def __init__(
        self, candidates: CandidateLabels, vectors: np.ndarray, similarity: Similarity, modalities: Sequence[str]
    ):
        self._vectors = vectors
        self._similarity = similarity
        self._is_calibrated = similarity.is_calibrated(modalities)
        self._has_none = self._is_calibrated and candidates.none_label is not None
        none = [str(candidates.none_label)] if self._has_none else []
        self.answers = LabelFormatter([*candidates.labels, *none], "single_label_classification", None, modalities)

    def __call__(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        Converts the outputs of a model to those of [`~EmotionRecognition.run`], with the candidate labels in place of
        the model's own.
        """
        predictions: dict[str, np.ndarray] = {}
        for prefix in ("", "segment_"):
            if f"{prefix}modality_weights" in outputs:
                names = MODALITIES[: outputs[f"{prefix}modality_weights"].shape[-1]]
                logits, weights = self._score([outputs.get(f"{prefix}{name}_projection") for name in names])
                predictions |= {f"{prefix}logits": logits, f"{prefix}modality_weights": weights}
        return predictions

    def _score(self, projections: list[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits `(..., labels)` and weights `(..., modalities)` of projections, `(..., projection_dim)`."""
        nothing = np.zeros_like(next(vectors for vectors in projections if vectors is not None))
        stacked = np.stack([nothing if vectors is None else vectors for vectors in projections], axis=-2)
        is_present = np.linalg.norm(stacked, axis=-1) > LEAST_LENGTH
        weights = is_present / np.maximum(is_present.sum(axis=-1, keepdims=True), 1)
        cosines = _normalized((weights[..., None] * stacked).sum(axis=-2)) @ self._vectors.T
        factors, addends = self._coefficients(is_present)
        logits = factors * cosines + addends
        if self._has_none:
            logits = np.concatenate([logits, np.zeros_like(logits[..., :1])], axis=-1)
        return logits.astype(np.float32), weights.astype(np.float32)

    def _coefficients(self, is_present: np.ndarray) -> np.ndarray:
        """Returns factors and addends of cosines, `(2, ..., 1)`, for the modalities present, `(..., modalities)`."""
        calibration = self._similarity.calibration
        coefficients = np.zeros((2, *is_present.shape[:-1], 1))
        if not self._is_calibrated or calibration is None:
            coefficients[0] = self._similarity.scale
            return coefficients
        for row in np.ndindex(is_present.shape[:-1]):
            present = [name for name, is_there in zip(MODALITIES, is_present[row]) if is_there]
            if present:
                coefficients[(slice(None), *row, 0)] = calibration[presence_of(present)]
        return coefficients


class LabelFormatter(AnswerFormatter):
    """Formats the scores of candidate labels, for which there are no prediction sets."""

    def lowest_score(self, presence: str, coverage: float) -> float:
        raise ValueError(
            f"coverage={coverage!r} contradicts candidate_labels: prediction sets are calibrated for the model's own "
            "labels. Leave coverage out, or use threshold."
        )


def _normalized(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors scaled to length 1; 0 of 0."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
