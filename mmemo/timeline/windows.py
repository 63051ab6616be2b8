"""
Emotion over time: a recording is cut into windows, the model predicts each window by itself, and the predictions of
overlapping windows are averaged per span.

Deliberate choices:
- A window is a clip: the model predicts it as it would predict a file of that length. So a live stream and the same
  recording offline agree, and so do a batch of windows and a single one.
- The encoder runs once per window; the segments inside are pooled from its hidden states. Windows overlap by half a
  second by default, so encoding an hour costs a sixth more than its audio.
- Segments without speech get no prediction. Windows begin where speech begins, so pauses cost next to nothing.
"""

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from mmemo.audio.voice_activity import FRAME_SAMPLES, SAMPLING_RATE


# Labels in a timeline that are not emotions: no speech, and a score below the threshold.
SILENCE, UNCERTAIN = "silence", "uncertain"
# Options of a prediction with labels in one's own words.
LABEL_OPTIONS = ("candidate_labels", "hypothesis_template", "none_label")
GRANULARITIES = ("word", "segment", "sentence", "utterance")
FRAME_SECONDS = FRAME_SAMPLES / SAMPLING_RATE
EPSILON = 1e-6  # seconds; sums of hops are not exact

Word = tuple[str, float, float]


@dataclass(frozen=True)
class TimelineOptions:
    """
    How a recording is cut into windows and spans.

    Args:
        segment_s (`float`, *optional*, defaults to 0.5), hop_s (`float`, *optional*):
            Length of a segment, and the time from the start of one to the next, in seconds; `hop_s` defaults to
            `segment_s`.
        granularity (`str`, *optional*, defaults to `"segment"`):
            The spans to predict: every `"segment"`, every `"word"` or `"sentence"` of a transcript with timestamps, or
            the whole `"utterance"`.
        window_s (`float`, *optional*, defaults to 3.5), window_hop_s (`float`, *optional*, defaults to 3.0):
            Length of the windows that the model encodes, and the time from the start of one to the next, in seconds. A
            span's prediction is the mean over the windows that contain it, so a shorter hop is more accurate and costs
            more.
        context_s (`float`, *optional*, defaults to 3.5):
            Spans shorter than this are pooled over this many seconds around their middle, clipped to the window. With
            the defaults, the prediction for half a second is therefore pooled over a whole window.
        latency_s (`float`, *optional*):
            Only uses windows that end at most this many seconds after a span, and always the first window that
            contains it. By default all windows that contain a span count.
        voice_activity (`bool`, *optional*, defaults to `True`):
            Whether to skip audio without speech and label it as silence.

    Raises:
        ValueError: If an option is out of range, or two options contradict each other.
    """

    segment_s: float = 0.5
    hop_s: float | None = None
    granularity: str = "segment"
    window_s: float = 3.5
    window_hop_s: float = 3.0
    context_s: float = 3.5
    latency_s: float | None = None
    voice_activity: bool = True

    def __post_init__(self):
        if self.granularity not in GRANULARITIES:
            raise ValueError(f"granularity={self.granularity!r} is unknown; choose one of {GRANULARITIES}.")
        for name in ("segment_s", "hop_s", "window_s", "window_hop_s", "context_s", "latency_s"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and 0 < value < math.inf):
                raise ValueError(f"{name}={value!r} must be a positive number of seconds.")
        if self.window_hop_s > self.window_s:
            raise ValueError(
                f"window_hop_s={self.window_hop_s} exceeds window_s={self.window_s}, so audio between two windows "
                "would be skipped; shorten the hop."
            )
        if self.segment_s > self.window_s:
            raise ValueError(f"segment_s={self.segment_s} exceeds window_s={self.window_s}; lengthen the window.")
        if self.latency_s is not None and self.latency_s + EPSILON < self.window_hop_s - self.segment_hop:
            raise ValueError(
                f"latency_s={self.latency_s} is too short for a window every window_hop_s={self.window_hop_s} s: with "
                f"segments every {self.segment_hop} s it must be at least {self.window_hop_s - self.segment_hop:g}."
            )

    @property
    def segment_hop(self) -> float:
        """Time from the start of one segment to the next, in seconds."""
        return self.segment_s if self.hop_s is None else self.hop_s


@dataclass(eq=False)
class Span:
    """
    A stretch of a recording with a prediction of its own.

    Args:
        start, end (`float`): In seconds from the beginning of the recording.
        words (`list[str]`): The words spoken in it.
        scores (`np.ndarray` of shape `(num_labels,)`, *optional*):
            Mean scores over the windows that contain it; `None` where there is neither speech nor a word.
        modality_weights (`np.ndarray` of shape `(modalities,)`, *optional*): Weights of the modalities in the scores.
        seconds_predicted (`float`): Seconds of it in the windows predicted so far; they weight the mean.
        num_windows (`int`): Windows that contain it.
        num_pending (`int`): Those of them without predictions yet.
    """

    start: float
    end: float
    words: list[str] = field(default_factory=list)
    scores: np.ndarray | None = None
    modality_weights: np.ndarray | None = None
    seconds_predicted: float = 0.0
    num_windows: int = 0
    num_pending: int = 0

    @property
    def reach(self) -> float:
        """Its end for the choice of windows, in seconds: a word of zero length lasts one frame."""
        return max(self.end, self.start + FRAME_SECONDS)

    def add(self, scores: np.ndarray, modality_weights: np.ndarray, seconds: float) -> None:
        """Adds the predictions of a window that contains this many `seconds` of the span to the mean."""
        self.seconds_predicted += seconds
        share = seconds / self.seconds_predicted
        if self.scores is None or self.modality_weights is None:
            self.scores, self.modality_weights = scores, modality_weights
        else:
            self.scores = self.scores + share * (scores - self.scores)
            self.modality_weights = self.modality_weights + share * (modality_weights - self.modality_weights)


@dataclass(eq=False)
class Window:
    """
    One input of the model.

    Args:
        start, end (`float`): In seconds from the beginning of the track.
        item (`dict`):
            `audio`, `text`, `word_times`, `video` and `segment_times`, in the form that the processor accepts.
        spans (`list[Span]`): The spans to predict in it.
        seconds (`list[float]`): How much of each span it contains.
    """

    start: float
    end: float
    item: dict[str, Any]
    spans: list[Span]
    seconds: list[float]

    def set_predictions(self, scores: np.ndarray, modality_weights: np.ndarray) -> None:
        """
        Adds predictions to the spans.

        Args:
            scores (`np.ndarray` of shape `(spans, num_labels)`): One row per span.
            modality_weights (`np.ndarray` of shape `(spans, modalities)`):
                Rows of zeros mark spans in which all modalities are missing; their scores are ignored.
        """
        for span, span_scores, weights, seconds in zip(self.spans, scores, modality_weights, self.seconds):
            span.num_pending -= 1
            if weights.any():
                span.add(span_scores, weights, seconds)
