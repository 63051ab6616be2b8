"""
What a model says, in words: labels, scores, sets of labels, timelines.

Deliberate choices:
- It needs what the configuration of a model says, and neither the model nor torch.
- Where nobody speaks, the label is `"silence"`; where the model is not sure, `"uncertain"`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmemo.timeline.recording import Recording, Source
from mmemo.timeline.windows import SILENCE, UNCERTAIN, Span


FUNCTIONS = ("softmax", "sigmoid", "none")


class Answers:
    """
    Puts the numbers of one model in words.

    Args:
        labels (`Sequence[str]`): The model's labels, in their order.
        problem_type (`str`, *optional*): As in the configuration.
        conformal_quantiles (`dict[str, list[float]]`, *optional*): As in the configuration; see [`MMEmoConfig`].
        modalities (`Sequence[str]`): What the model takes: `"audio"`, `"text"`, or both.
    """

    def __init__(
        self,
        labels: Sequence[str],
        problem_type: str | None,
        conformal_quantiles: dict[str, list[float]] | None,
        modalities: Sequence[str],
    ):
        self.labels = list(labels)
        self.modalities = tuple(modalities)
        self._quantiles = conformal_quantiles or {}
        if problem_type == "regression" or (problem_type is None and len(self.labels) == 1):
            self.default_function = "none"
        else:
            self.default_function = "sigmoid" if problem_type == "multi_label_classification" else "softmax"

    def check(
        self,
        function_to_apply: str | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
        top_k: int | None = None,
    ) -> None:
        """
        Refuses what the answers of this model cannot be given like; see [`~MultimodalEmotionPipeline.__call__`].

        Raises:
            ValueError: If an option is impossible, or contradicts the model or another.
        """
        if function_to_apply is not None and function_to_apply not in FUNCTIONS:
            raise ValueError(f"function_to_apply={function_to_apply!r} is unknown; choose one of {list(FUNCTIONS)}.")
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise ValueError(f"top_k={top_k!r} must be an integer of at least 1, or None for all labels.")
        if threshold is None and coverage is None:
            return
        if (function_to_apply or self.default_function) != "softmax":
            raise ValueError(
                "threshold= and coverage= are about the softmax of a single label; this model, or function_to_apply, "
                "gives other scores. Leave them out."
            )
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold!r} must be a score between 0 and 1.")
        if coverage is not None:
            # Refuses what it cannot promise.
            self.least_score(self.modalities[0], coverage)

    def scores(self, logits: np.ndarray, function_to_apply: str | None = None) -> np.ndarray:
        """The scores of logits, `(..., num_labels)`."""
        function = function_to_apply or self.default_function
        logits = np.asarray(logits, np.float32)
        if function == "none":
            return logits
        if function == "sigmoid":
            return np.exp(-np.logaddexp(0, -logits))
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)

    def least_score(self, presence: str, coverage: float) -> float:
        """The least score of a label in a set of labels that holds the true one with probability `coverage`.

        Args:
            presence (`str`): What the answer is given from, one of `"audio"`, `"text"`, `"both"`.
            coverage (`float`): Between 0 and 1, rounded up to whole percents.

        Raises:
            ValueError: If the coverage is impossible, or the model does not know its own mistakes.

        Source: Sadinle et al., "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", 2019.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage={coverage!r} must lie between 0 and 1, such as 0.9.")
        quantiles = self._quantiles.get(presence)
        if quantiles is None:
            raise ValueError(
                f"coverage= needs this model's conformal_quantiles for {presence!r}, which train.py fits to "
                "development data; train the model further, or use threshold=."
            )
        # 0.07 * 100 is a little more than 7.
        return 1 - quantiles[math.ceil(round(100 * coverage, 6))]

    def whole(
        self,
        scores: np.ndarray,
        weights: Any,
        has_voice: bool = True,
        top_k: int | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
        return_modality_weights: bool = False,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """
        The answer for one item, as [`~MultimodalEmotionPipeline.__call__`] gives it.

        Args:
            scores (`np.ndarray` of shape `(num_labels,)`), weights (two of `float`): What the model says, and from
                which modalities.
            has_voice (`bool`): Whether there is a voice or a word in it.
        """
        answer = self.in_words(scores, weights, top_k, threshold, coverage)
        if not has_voice:
            answer["label"] = UNCERTAIN
            if coverage is not None:
                answer["label_set"] = list(self.labels)
        if threshold is None and coverage is None:
            del answer["label"]
        if not return_modality_weights:
            del answer["modality_weights"]
        return answer if len(answer) > 1 else answer["scores"]

    def in_words(
        self,
        scores: np.ndarray,
        weights: Any,
        top_k: int | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
    ) -> dict[str, Any]:
        """What the model says, `(num_labels,)`, and from which modalities, `(2,)`, as `label`, `scores`, ..."""
        best = np.argsort(-scores, kind="stable").tolist()
        audio, text = map(float, weights)
        is_sure = threshold is None or scores[best[0]] >= threshold
        answer = {
            "label": self.labels[best[0]] if is_sure else UNCERTAIN,
            "scores": [{"label": self.labels[index], "score": float(scores[index])} for index in best[:top_k]],
            "modality_weights": {"audio": audio, "text": text},
        }
        if coverage is not None:
            presence = "both" if audio and text else "text" if text else "audio"
            least = self.least_score(presence, coverage)
            # The set is never empty: the likeliest label is always in it.
            answer["label_set"] = [self.labels[index] for index in best if index == best[0] or scores[index] >= least]
        return answer

    def account(self, recording: Recording, **parameters: Any) -> dict[str, Any]:
        """What was found in a recording, with `top_k`, `threshold` and `coverage`."""
        result: dict[str, Any] = {"duration": recording.duration}
        if recording.sources[0].speaker is None:
            (source,) = recording.sources
            return result | {"speech": source.speech, **self.summarize(source.spans, **parameters)}
        by_speaker: dict[str, list[Source]] = {}
        for source in recording.sources:
            by_speaker.setdefault(str(source.speaker), []).append(source)
        result["speakers"] = {}
        for speaker, sources in by_speaker.items():
            spans = [span for source in sources for span in source.spans]
            found = self.summarize(spans, **parameters) if sources[0].is_asked_for else {}
            result["speakers"][speaker] = {
                "speech": [stretch for source in sources for stretch in source.speech],
                **found,
            }
        if recording.has_turns:
            result["turns"] = [
                {
                    "speaker": source.speaker,
                    "start": source.start,
                    "end": source.end,
                    **self._turn(source, **parameters),
                }
                for source in recording.sources
            ]
        return result

    def _turn(self, source: Source, **parameters: Any) -> dict[str, Any]:
        if not source.is_asked_for:
            return {}
        whole = self.summarize(source.spans, **parameters)
        del whole["timeline"], whole["spans"]
        return whole | {"words": source.words}

    def summarize(self, spans: list[Span], **parameters: Any) -> dict[str, Any]:
        """A timeline of spans, its stretches of one label, and the mean over its speech."""
        timeline = [self.describe(span, **parameters) for span in spans]
        heard = [span for span in spans if span.scores is not None]
        seconds = [max(span.end - span.start, 1e-6) for span in heard]
        scores, weights = (
            np.average([getattr(span, name) for span in heard], axis=0, weights=seconds) if heard else None
            for name in ("scores", "modality_weights")
        )
        whole = _nothing() if scores is None else self.in_words(scores, weights, **parameters)
        return whole | {"timeline": timeline, "spans": _merge(timeline)}

    def describe(self, span: Span, **parameters: Any) -> dict[str, Any]:
        """An entry of a timeline."""
        answer = _nothing() if span.scores is None else self.in_words(span.scores, span.modality_weights, **parameters)
        return {"start": span.start, "end": span.end, "words": list(span.words), **answer}


def _nothing() -> dict[str, Any]:
    """What is said of silence."""
    return {"label": SILENCE, "scores": [], "modality_weights": {"audio": 0.0, "text": 0.0}}


def _merge(timeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins what follows on each other with the same label, except silence; `score` is the label's mean over time."""
    merged: list[dict[str, Any]] = []
    for entry in timeline:
        if entry["label"] == SILENCE:
            continue
        start, end, label, score = entry["start"], entry["end"], entry["label"], entry["scores"][0]["score"]
        last = merged[-1] if merged else None
        if last and last["label"] == label and start <= last["end"] + 1e-6:
            seconds, added = last["end"] - last["start"], max(end - last["end"], 0.0)
            if added:
                last["score"] += (score - last["score"]) * added / (seconds + added)
            last["end"] = max(end, last["end"])
        else:
            merged.append({"start": start, "end": end, "label": label, "score": score})
    return merged
