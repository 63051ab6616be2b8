"""
From scores to labels: label lists, uncertain labels, prediction sets and timelines.

Deliberate choices:
- It needs the configuration of a model, neither the model nor torch.
- A stretch without speech has the label `"silence"`; a prediction below the threshold has the label `"uncertain"`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmemo.modalities import MODALITIES, presence_of
from mmemo.timeline.recording import Recording, Source
from mmemo.timeline.windows import SILENCE, UNCERTAIN, Span
from mmemo.video.face import FaceSequence


FUNCTIONS = ("softmax", "sigmoid", "none")
# Blendshapes of the face in an entry of a timeline.
NUM_BLENDSHAPES = 3


class AnswerFormatter:
    """
    Formats the scores of one model.

    Args:
        labels (`Sequence[str]`): The model's labels, in order.
        problem_type (`str`, *optional*): As in the model's configuration.
        conformal_quantiles (`Mapping[str, Sequence[float]]`, *optional*): As in the model's configuration.
        modalities (`Sequence[str]`): The modalities that the model has encoders for.
    """

    def __init__(
        self,
        labels: Sequence[str],
        problem_type: str | None,
        conformal_quantiles: Mapping[str, Sequence[float]] | None,
        modalities: Sequence[str],
    ):
        self.labels = list(labels)
        self.modalities = tuple(modalities)
        self._quantiles = conformal_quantiles or {}
        if problem_type == "regression" or (problem_type is None and len(self.labels) == 1):
            self.default_function = "none"
        else:
            self.default_function = "sigmoid" if problem_type == "multi_label_classification" else "softmax"

    def check_options(
        self,
        function_to_apply: str | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
        top_k: int | None = None,
    ) -> None:
        """
        Checks options of a call.

        Args:
            function_to_apply, threshold, coverage, top_k: See [`~MultimodalEmotionPipeline.__call__`].

        Raises:
            ValueError: If an option is invalid, or contradicts the model or another option.
        """
        if function_to_apply is not None and function_to_apply not in FUNCTIONS:
            raise ValueError(f"function_to_apply={function_to_apply!r} is unknown; choose one of {list(FUNCTIONS)}.")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k={top_k!r} must be an integer of at least 1, or None for all labels.")
        if threshold is None and coverage is None:
            return
        if (function_to_apply or self.default_function) != "softmax":
            raise ValueError(
                "threshold and coverage need softmax scores of a single label; this model, or function_to_apply, "
                "gives other scores. Leave them out."
            )
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold!r} must be a score between 0 and 1.")
        if coverage is not None:
            self.lowest_score(self.modalities[0], coverage)

    def scores(self, logits: np.ndarray, function_to_apply: str | None = None) -> np.ndarray:
        """
        Returns the scores of logits.

        Args:
            logits (`np.ndarray` of shape `(..., num_labels)`): The logits.
            function_to_apply (`str`, *optional*): `"softmax"`, `"sigmoid"` or `"none"`; by default by problem type.

        Returns:
            `np.ndarray` of shape `(..., num_labels)`: float32.
        """
        function = function_to_apply or self.default_function
        logits = np.asarray(logits, np.float32)
        if function == "none":
            return logits
        if function == "sigmoid":
            return np.exp(-np.logaddexp(0, -logits))
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Returns logits of which [`~AnswerFormatter.scores`] returns these scores; the inverse of that function."""
        scores = np.asarray(scores, np.float64)
        if self.default_function == "none":
            return scores
        tiny = np.finfo(np.float32).tiny
        logits = np.log(np.maximum(scores, tiny))
        return logits if self.default_function == "softmax" else logits - np.log(np.maximum(1 - scores, tiny))

    def lowest_score(self, presence: str, coverage: float) -> float:
        """
        Returns the lowest score that a label of a prediction set with the requested coverage may have.

        Args:
            presence (`str`): The modalities of the prediction, named as by [`presence_of`].
            coverage (`float`): Between 0 and 1, rounded up to a whole percentage.

        Raises:
            ValueError: If the coverage is invalid, or the model has no quantiles for these modalities.

        Source: Sadinle et al., "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels", 2019.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage={coverage!r} must lie between 0 and 1, such as 0.9.")
        quantiles = self._quantiles.get(presence)
        if quantiles is None:
            raise ValueError(
                f"coverage needs this model's conformal_quantiles for {presence!r}, which train.py fits to "
                "development data; train the model further, or use threshold."
            )
        # 0.07 * 100 is slightly more than 7.
        return 1 - quantiles[math.ceil(round(100 * coverage, 6))]

    def format_item(
        self,
        scores: np.ndarray,
        weights: Any,
        has_speech: bool = True,
        top_k: int | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
        return_modality_weights: bool = False,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """
        Formats the prediction of one item as [`~MultimodalEmotionPipeline.__call__`] returns it.

        Args:
            scores (`np.ndarray` of shape `(num_labels,)`): The scores.
            weights (`Sequence[float]`): The modality weights, in the order of the model.
            has_speech (`bool`): Whether the item contains speech or words; without, the label is uncertain.
            top_k, threshold, coverage, return_modality_weights: As in the call.

        Raises:
            ValueError: If the model has no quantiles for a coverage of these modalities.
        """
        answer = self.format_scores(scores, weights, top_k, threshold, coverage)
        if not has_speech:
            answer["label"] = UNCERTAIN
            if coverage is not None:
                answer["label_set"] = list(self.labels)
        if threshold is None and coverage is None:
            del answer["label"]
        if not return_modality_weights:
            del answer["modality_weights"]
        return answer if len(answer) > 1 else answer["scores"]

    def format_scores(
        self,
        scores: np.ndarray,
        weights: Any,
        top_k: int | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
    ) -> dict[str, Any]:
        """Returns `label`, `scores`, `modality_weights` and, with a coverage, `label_set` of one prediction."""
        best = np.argsort(-scores, kind="stable").tolist()
        by_modality = self._by_modality(weights)
        is_sure = threshold is None or scores[best[0]] >= threshold
        answer = {
            "label": self.labels[best[0]] if is_sure else UNCERTAIN,
            "scores": [{"label": self.labels[index], "score": float(scores[index])} for index in best[:top_k]],
            "modality_weights": by_modality,
        }
        if coverage is not None:
            present = [modality for modality, weight in by_modality.items() if weight]
            lowest = self.lowest_score(presence_of(present or self.modalities[:1]), coverage)
            # The set is never empty: it always contains the label with the highest score.
            answer["label_set"] = [self.labels[index] for index in best if index == best[0] or scores[index] >= lowest]
        return answer

    def format_recording(self, recording: Recording, **options: Any) -> dict[str, Any]:
        """
        Formats the predictions of a recording.

        Args:
            recording ([`Recording`]): A recording of which all windows are predicted.
            options: `top_k`, `threshold` and `coverage`.

        Returns:
            `dict`: As [`~MultimodalEmotionPipeline.__call__`] returns it for a timeline.
        """
        result: dict[str, Any] = {"duration": recording.duration}
        if recording.sources[0].speaker is None:
            (source,) = recording.sources
            faces = {} if recording.face is None else {"face": recording.face}
            return result | {"speech": source.speech, **self.format_timeline(source.spans, **faces, **options)}
        by_speaker: dict[str, list[Source]] = {}
        for source in recording.sources:
            by_speaker.setdefault(str(source.speaker), []).append(source)
        result["speakers"] = {}
        for speaker, sources in by_speaker.items():
            spans = [span for source in sources for span in source.spans]
            predicted = self.format_timeline(spans, **options) if sources[0].is_selected else {}
            result["speakers"][speaker] = {
                "speech": [stretch for source in sources for stretch in source.speech],
                **predicted,
            }
        if recording.has_turns:
            result["turns"] = [
                {
                    "speaker": source.speaker,
                    "start": source.start,
                    "end": source.end,
                    **self._format_turn(source, **options),
                }
                for source in recording.sources
            ]
        return result

    def _format_turn(self, source: Source, **options: Any) -> dict[str, Any]:
        if not source.is_selected:
            return {}
        summary = self.format_timeline(source.spans, **options)
        del summary["timeline"], summary["spans"]
        return summary | {"words": source.words}

    def format_timeline(self, spans: list[Span], face: FaceSequence | None = None, **options: Any) -> dict[str, Any]:
        """Returns the mean prediction over the speech, the `timeline`, and its merged `spans`."""
        timeline = [self.format_span(span, face, **options) for span in spans]
        mean = mean_prediction(spans)
        summary = self._silence() if mean is None else self.format_scores(*mean, **options)
        return summary | {"timeline": timeline, "spans": _merge(timeline)}

    def format_span(self, span: Span, face: FaceSequence | None = None, **options: Any) -> dict[str, Any]:
        """Returns one entry of a timeline; with a face also its `presence` and its strongest blendshapes."""
        answer = (
            self._silence()
            if span.scores is None
            else self.format_scores(span.scores, span.modality_weights, **options)
        )
        entry = {"start": span.start, "end": span.end, "words": list(span.words), **answer}
        if face is not None:
            entry["face"] = format_face(face, span.start, span.end)
        return entry

    def _by_modality(self, weights: Any) -> dict[str, float]:
        """Returns modality weights by name: audio, text and, of a model with a video encoder, video."""
        return dict(zip(MODALITIES, map(float, weights)))

    def _silence(self) -> dict[str, Any]:
        """Returns the prediction of silence."""
        weights = np.zeros(3 if "video" in self.modalities else 2)
        return {"label": SILENCE, "scores": [], "modality_weights": self._by_modality(weights)}


def format_face(face: FaceSequence, start: float, end: float) -> dict[str, Any]:
    """Returns the `presence` of a face from `start` to `end`, in seconds, and its strongest `blendshapes`."""
    strongest = face.strongest(start, end, NUM_BLENDSHAPES)
    return {
        "presence": face.presence(start, end),
        "blendshapes": [{"name": name, "score": score} for name, score in strongest],
    }


def mean_prediction(spans: list[Span]) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the mean scores and modality weights of spans over time, `None` if no span has a prediction."""
    predicted = [span for span in spans if span.scores is not None]
    if not predicted:
        return None
    seconds = [max(span.end - span.start, 1e-6) for span in predicted]
    scores, weights = (
        np.average([getattr(span, name) for span in predicted], axis=0, weights=seconds)
        for name in ("scores", "modality_weights")
    )
    return scores, weights


def _merge(timeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges adjacent entries of one label, except silence; `score` is the label's mean over time."""
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
