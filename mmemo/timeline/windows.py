"""
Emotion over time: a recording is cut into windows that the model hears one by one, and their answers are put together.

Deliberate choices:
- A window is a clip: the model hears it as it would hear a file of that length, so live and offline agree, and so do a
  batch and one window.
- The encoder runs once a window; the segments inside are pooled from its states. Windows overlap by half a second
  by default, so an hour costs a sixth more than its sound, and not as many times more as a window has segments.
- What is not speech is never answered for. Windows begin where a voice does, so pauses cost next to nothing.
"""

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from mmemo.audio.voice_activity import FRAME_SAMPLES, SAMPLING_RATE


# Labels of a timeline that are no emotions: where nobody speaks, and where the scores do not suffice.
SILENCE, UNCERTAIN = "silence", "uncertain"
GRANULARITIES = ("word", "segment", "sentence", "utterance")
FRAME_SECONDS = FRAME_SAMPLES / SAMPLING_RATE
EPSILON = 1e-6  # seconds; sums of hops are not exact

Word = tuple[str, float, float]


@dataclass(frozen=True)
class TimelineOptions:
    """
    How a recording is cut.

    Args:
        segment_s (`float`, *optional*, defaults to 0.5), hop_s (`float`, *optional*):
            Length of a segment, and the time from the start of one to the next, in seconds; `segment_s` by default.
        granularity (`str`, *optional*, defaults to `"segment"`):
            What gets an answer: every `"segment"`, every `"word"` or `"sentence"` of a transcript with times, or the
            `"utterance"` as a whole.
        window_s (`float`, *optional*, defaults to 3.5), window_hop_s (`float`, *optional*, defaults to 3.0):
            Length of the windows that the model hears, and the time from one to the next. A segment's answer is the
            mean over the windows that hold it, so a shorter hop answers better and costs more.
        context_s (`float`, *optional*, defaults to 3.5):
            What is shorter is answered for from so many seconds around its middle, as far as the window reaches.
        latency_s (`float`, *optional*):
            Only the first window that holds a segment counts for it, and those that end by so many seconds after it;
            all that hold it by default.
        voice_activity (`bool`, *optional*, defaults to `True`):
            Whether what is no speech is left out, and marked as silence.

    Raises:
        ValueError: If a number is impossible, or two contradict each other.
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
                f"window_hop_s={self.window_hop_s} exceeds window_s={self.window_s}: what lies between two windows "
                "would never be heard."
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
        return self.segment_s if self.hop_s is None else self.hop_s


@dataclass(eq=False)
class Span:
    """A stretch of a recording that gets an answer of its own.

    Args:
        start, end (`float`): In seconds from the beginning of the recording.
        words (`list[str]`): What is said in it.
        scores (`np.ndarray` of shape `(num_labels,)`, *optional*): The answer; `None` where nothing is said.
        modality_weights (`np.ndarray` of shape `(2,)`, *optional*): Shares of audio and text in it.
    """

    start: float
    end: float
    words: list[str] = field(default_factory=list)
    scores: np.ndarray | None = None
    modality_weights: np.ndarray | None = None
    seconds_heard: float = 0.0
    # Windows that hold it, and those of them that are not answered yet.
    num_windows: int = 0
    num_unanswered: int = 0

    @property
    def reach(self) -> float:
        """Where it ends, as far as windows are concerned: a word of no length counts for a frame."""
        return max(self.end, self.start + FRAME_SECONDS)

    def add(self, scores: np.ndarray, modality_weights: np.ndarray, seconds: float) -> None:
        """Takes the answer of one more window, which holds so many seconds of it, into the mean."""
        self.seconds_heard += seconds
        share = seconds / self.seconds_heard
        if self.scores is None or self.modality_weights is None:
            self.scores, self.modality_weights = scores, modality_weights
        else:
            self.scores = self.scores + share * (scores - self.scores)
            self.modality_weights = self.modality_weights + share * (modality_weights - self.modality_weights)


@dataclass(eq=False)
class Window:
    """What the model is to hear at once.

    Args:
        start, end (`float`): In seconds from the beginning of the track.
        item (`dict`): `audio`, `text`, `word_times` and `segment_times`, as the processor takes them.
        spans (`list[Span]`), seconds (`list[float]`): What it answers for, and how much of each it holds.
    """

    start: float
    end: float
    item: dict[str, Any]
    spans: list[Span]
    seconds: list[float]

    def set_predictions(self, scores: np.ndarray, modality_weights: np.ndarray) -> None:
        """Hands the answers, of shapes `(spans, num_labels)` and `(spans, 2)`, to its spans.

        Where neither modality had a share there was nothing to answer for.
        """
        for span, said, weights, seconds in zip(self.spans, scores, modality_weights, self.seconds):
            span.num_unanswered -= 1
            if weights.any():
                span.add(said, weights, seconds)
