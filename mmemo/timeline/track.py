"""
A track of one voice: takes samples and words, yields windows, and returns spans whose predictions are final.

Deliberate choices:
- Segments without speech and without a face get no prediction. Windows begin where speech begins, so pauses cost next
  to nothing.
- Memory is bounded: about one window of samples and the open spans are kept, however long the recording.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np

from mmemo.audio.loading import MIN_AUDIO_SECONDS, is_silent
from mmemo.audio.voice_activity import FRAME_SAMPLES, SAMPLING_RATE, SPEECH_PROBABILITY, VoiceActivityDetector
from mmemo.modalities import MODALITIES
from mmemo.timeline.windows import EPSILON, FRAME_SECONDS, Span, TimelineOptions, Window, Word
from mmemo.video.face import FaceSequence
from mmemo.words.times import split_sentences


# A smaller share of speech in a segment is a breath or the edge of a word in the next segment.
MIN_SPEECH_SHARE = 0.2
# Pauses up to this many seconds belong to the speech around them.
SPEECH_GAP = 0.3


class SampleBuffer:
    """The latest samples of a recording, of which the oldest can be dropped. Indices count from its beginning."""

    def __init__(self):
        self.samples = np.zeros(0, np.float32)
        self.start = 0

    @property
    def end(self) -> int:
        """Index after the last sample."""
        return self.start + len(self.samples)

    def append(self, samples: np.ndarray) -> None:
        self.samples = np.concatenate([self.samples, samples])

    def read(self, first: int, last: int) -> np.ndarray:
        """Returns the samples from index `first` (inclusive) to `last` (exclusive)."""
        return self.samples[first - self.start : last - self.start]

    def drop_before(self, first: int) -> None:
        """Drops the samples before index `first`."""
        surplus = min(first - self.start, len(self.samples))
        if surplus > 0:
            self.samples, self.start = self.samples[surplus:], self.start + surplus


class SpeechActivity:
    """
    Speech in the latest frames of a recording, and the stretches of speech found so far.

    Args:
        detector (`Callable`): Returns the speech probabilities of the frames that its samples complete.
    """

    def __init__(self, detector: Callable[[np.ndarray], np.ndarray]):
        self.detector = detector
        self.voiced = np.zeros(0, bool)
        self.start = 0  # index of the first frame in `voiced`
        self.stretches: list[tuple[float, float]] = []

    @property
    def end(self) -> float:
        """End of the last frame that was analysed, in seconds."""
        return (self.start + len(self.voiced)) * FRAME_SECONDS

    def feed(self, samples: np.ndarray) -> None:
        """Runs the detector over the next samples."""
        first = self.start + len(self.voiced)
        voiced = self.detector(samples) >= SPEECH_PROBABILITY
        self.voiced = np.concatenate([self.voiced, voiced])
        for frame in (np.flatnonzero(voiced) + first).tolist():
            start, end = frame * FRAME_SECONDS, (frame + 1) * FRAME_SECONDS
            if self.stretches and start - self.stretches[-1][1] <= SPEECH_GAP:
                start = self.stretches.pop()[0]
            self.stretches.append((start, end))

    def next_speech(self, start: float) -> float | None:
        """Returns the time of the first known speech at or after `start`, in seconds; `None` if there is none."""
        first = max(int(start / FRAME_SECONDS + EPSILON), self.start)
        frames = np.flatnonzero(self.voiced[first - self.start :])
        return max((first + int(frames[0])) * FRAME_SECONDS, start) if len(frames) else None

    def seconds_between(self, start: float, end: float) -> float:
        """Returns the seconds of known speech from `start` to `end`."""
        first = max(int(start / FRAME_SECONDS), self.start)
        voiced = self.voiced[first - self.start : math.ceil(end / FRAME_SECONDS) - self.start]
        starts = (first + np.flatnonzero(voiced)) * FRAME_SECONDS
        return (np.minimum(starts + FRAME_SECONDS, end) - np.maximum(starts, start)).sum()

    def pop_stretches(self, keep_last: bool) -> list[tuple[float, float]]:
        """Returns and drops the stretches, except for the last one if that may still grow."""
        done = max(len(self.stretches) - 1, 0) if keep_last else len(self.stretches)
        stretches, self.stretches = self.stretches[:done], self.stretches[done:]
        return stretches

    def drop_before(self, seconds: float) -> None:
        """Drops the frames before a time."""
        surplus = min(int(seconds / FRAME_SECONDS) - self.start, len(self.voiced))
        if surplus > 0:
            self.voiced, self.start = self.voiced[surplus:], self.start + surplus


class Track:
    """
    Cuts one voice into windows and spans: takes samples, yields windows, and returns spans once their windows are
    predicted.

    The state moves from left to right with the recording:

    ```
    spans    ..|..|..|..|..|..|..|..|--|--|--|--|               popped (..) and open (--)
    windows       [=== last window ====]                        yielded
                                    [=== next window ====]      yielded when samples and speech reach its end
    samples                [####################]               kept for the next window, and for the very last one
    speech                 [#####----#######---#]               one bool per frame, kept for these and the open spans
    time     0                                  ^ duration
    ```

    - `feed` appends samples, detects speech, opens segments, and yields the windows that are complete.
    - The next window starts one hop after the last one. If nobody speaks before that, it moves on to the next speech
      or word, and starts earlier than that by the overlap of two windows.
    - A span is open until it has the predictions of its windows and no later window can count for it; then `pop`
      returns it.
    - After `finish` no samples follow. The very last window ends with the recording and starts one window length
      before its end.

    So the state is bounded: about one window of samples and the open spans, however long the recording.

    Args:
        options ([`TimelineOptions`]): How the recording is cut.
        sampling_rate (`int`): Sampling rate of the samples in Hz.
        words (`list` of `(word, start, end)`, *optional*): Words with timestamps in seconds.
        text (`str`, *optional*): Text without timestamps; it is part of every window.
        face ([`FaceSequence`], *optional*): The face in a video of the recording.
        yields_windows (`bool`, *optional*, defaults to `True`):
            Whether to yield windows; otherwise only speech is detected.
        encodes_text (`bool`, *optional*, defaults to `True`):
            Whether the model encodes text; otherwise words only define the spans.

    Raises:
        ValueError: If the granularity needs words and there are none, or if speech detection does not support the
            sampling rate.
    """

    def __init__(
        self,
        options: TimelineOptions,
        sampling_rate: int,
        words: Iterable[Word] = (),
        text: str | None = None,
        face: FaceSequence | None = None,
        yields_windows: bool = True,
        encodes_text: bool = True,
    ):
        if options.voice_activity and sampling_rate != SAMPLING_RATE:
            raise ValueError(
                f"Speech detection needs audio at {SAMPLING_RATE} Hz, but this model takes {sampling_rate} Hz; pass "
                "voice_activity=False."
            )
        self.options = options
        self.sampling_rate = sampling_rate
        self.text = text
        self.face = face
        self.words: deque[Word] = deque(words)
        self.duration = 0.0
        self.audio = SampleBuffer()
        self.speech = SpeechActivity(VoiceActivityDetector()) if options.voice_activity else None
        self._yields_windows = yields_windows
        self._encodes_text = encodes_text
        self._has_all_samples = False
        self._has_all_windows = False
        self._last_window = (-options.window_hop_s, 0.0)  # its start and end in seconds
        self._num_segments = 0
        self._open: deque[Span] = deque(self._known_spans() if yields_windows else ())

    def _known_spans(self) -> list[Span]:
        """Returns the spans that do not depend on the length of the recording."""
        if self.options.granularity == "segment":
            return []
        if self.options.granularity == "utterance":
            return [Span(0.0, math.inf)]
        if not self.words:
            raise ValueError(
                f"granularity={self.options.granularity!r} needs words with timestamps; pass word_times, subtitles or "
                "a transcriber, or choose 'segment'."
            )
        words = list(self.words)
        is_sentence = self.options.granularity == "sentence"
        ranges = split_sentences(words) if is_sentence else [(index, index + 1) for index in range(len(words))]
        return [
            Span(words[begin][1], words[stop - 1][2], [word for word, _, _ in words[begin:stop]])
            for begin, stop in ranges
        ]

    def add_words(self, words: Iterable[Word]) -> None:
        """Appends words that became known later; they affect the windows that were not yielded yet."""
        self.words.extend(words)

    def feed(self, samples: np.ndarray) -> Iterator[Window]:
        """Appends samples of shape `(samples,)`; returns the windows that are complete now."""
        self.audio.append(samples)
        self.duration = self.audio.end / self.sampling_rate
        if self.speech is not None:
            self.speech.feed(samples)
        return self._complete_windows()

    def advance(self, seconds: float) -> Iterator[Window]:
        """Advances the time without audio, for words alone; returns the windows that are complete now."""
        self.duration += seconds
        return self._complete_windows()

    def finish(self) -> Iterator[Window]:
        """Ends the recording; returns the last windows, of which the very last ends with the recording."""
        self._has_all_samples = True
        if self.speech is not None:
            self.speech.feed(np.zeros(FRAME_SAMPLES, np.float32))
        yield from self._complete_windows()
        for span in self._open:
            span.end = max(min(span.end, self.duration), span.start)
        start, is_needed = self._next_window()
        if is_needed and self.duration > self._last_window[1] + EPSILON:
            # Spans that were final before stay as they are: a live stream has returned them already.
            final = [span for span in self._open if self._is_final(span, start)]
            yield from self._window(max(0.0, self.duration - self.options.window_s), self.duration, final)
        self._has_all_windows = True

    def pop(self) -> Iterator[Span]:
        """Returns, in order, the spans whose predictions no later window will change."""
        start = self._next_window()[0]
        while self._open and not self._open[0].num_pending:
            span = self._open[0]
            if not self._has_all_windows and span.end > self._known_end:
                break
            is_silent = self._is_silent(span)
            if not (self._has_all_windows or is_silent or self._is_final(span, start)):
                break
            self._open.popleft()
            span.words = self._words_in(span)
            if is_silent:
                span.scores = span.modality_weights = None
            yield span
        self._drop_unneeded()

    def pop_speech(self) -> list[tuple[float, float]]:
        """Returns the stretches of speech since the last call, `(start, end)` in seconds; an unfinished one stays."""
        stretches = [] if self.speech is None else self.speech.pop_stretches(keep_last=not self._has_all_samples)
        return [
            (round(start, 6), round(min(end, self.duration), 6)) for start, end in stretches if start < self.duration
        ]

    def _next_window(self) -> tuple[float, bool]:
        """
        Returns the start of the next window in seconds, and whether it is certain. Without speech or a word since the
        last window it is not: the window starts then or later.
        """
        last_start, covered = self._last_window
        next_voice = self._next_voice(covered)
        known = self._known_end if next_voice is None else next_voice
        overlap, step = self.options.window_s - self.options.window_hop_s, self.options.segment_hop
        # Where a segment starts, so that windows hold whole segments.
        ahead = math.floor((known - overlap) / step + EPSILON) * step
        return max(last_start + self.options.window_hop_s, ahead), next_voice is not None

    def _next_voice(self, start: float) -> float | None:
        """Returns the time of the first known speech, word or face at or after `start`; `None` if there is none."""
        if self.speech is None:
            return start
        times = [self.speech.next_speech(start), None if self.face is None else self.face.next_present(start)]
        for _, begin, stop in self.words:
            if max(stop, begin + FRAME_SECONDS) > start:
                times.append(max(begin, start))
                break
        return min((time for time in times if time is not None and time < self.duration), default=None)

    @property
    def _known_end(self) -> float:
        """End of the samples whose speech is known, in seconds."""
        return self.duration if self.speech is None else min(self.duration, self.speech.end)

    def _is_voiced(self, start: float, end: float) -> bool:
        """Whether a stretch has enough known speech for a prediction."""
        if self.speech is None:
            return True
        end = min(end, self.duration)
        least = MIN_SPEECH_SHARE * min(end - start, self.options.segment_s)
        return bool(self.speech.seconds_between(start, end) >= least - EPSILON)

    def _is_late(self, span: Span, window_end: float) -> bool:
        """Whether a window ends too late to count for a span; the first window that contains it always counts."""
        latency_s = self.options.latency_s
        return latency_s is not None and span.num_windows > 0 and window_end > span.end + latency_s + EPSILON

    def _is_final(self, span: Span, window_start: float) -> bool:
        """Whether neither the window that starts at `window_start` nor a later one counts for a span."""
        return window_start >= span.reach - EPSILON or self._is_late(span, window_start + self.options.window_s)

    def _is_silent(self, span: Span) -> bool:
        is_voiced = self._is_voiced(span.start, span.end)
        return not (is_voiced or self._words_in(span) or self._has_face(span.start, span.end))

    def _has_face(self, start: float, end: float) -> bool:
        return self.face is not None and self.face.presence(start, end) > 0

    def _words_in(self, span: Span) -> list[str]:
        """Returns the words that define a span, or those whose middle lies in it."""
        if self.options.granularity in ("word", "sentence"):
            return span.words
        words = []
        for word, start, end in self.words:
            if start >= span.end:
                break
            if span.start <= (start + end) / 2 < span.end:
                words.append(word)
        return words

    def _has_words(self, start: float, end: float) -> bool:
        """Whether a word overlaps a stretch."""
        for _, begin, stop in self.words:
            if begin >= end:
                return False
            if max(stop, begin + EPSILON) > start:
                return True
        return False

    def _complete_windows(self) -> Iterator[Window]:
        if not self._yields_windows:
            self._drop_unneeded()
            return
        self._open_segments()
        while True:
            start, is_certain = self._next_window()
            end = start + self.options.window_s
            if not is_certain or end > self._known_end + EPSILON:
                return
            self._last_window = (start, end)
            yield from self._window(start, end)

    def _open_segments(self) -> None:
        """Opens the segments that start before the current end."""
        if self.options.granularity != "segment":
            return
        while (start := self._num_segments * self.options.segment_hop) < self.duration - EPSILON:
            self._open.append(Span(start, start + self.options.segment_s))
            self._num_segments += 1

    def _window(self, start: float, end: float, final: Collection[Span] = ()) -> Iterator[Window]:
        """Yields the window from `start` to `end`, unless it has no spans to predict besides the `final` ones."""
        spans, seconds, times = [], [], []
        for span in self._open:
            if span.start >= end - EPSILON:
                break
            begin, stop = max(span.start, start), min(span.reach, end)
            if stop <= begin + EPSILON or self._is_late(span, end) or span in final:
                continue
            if not (self._has_words(begin, stop) or self._is_voiced(begin, stop) or self._has_face(begin, stop)):
                continue
            if span.end <= self._known_end and self._is_silent(span):
                continue
            middle, reach = (span.start + span.end) / 2, self.options.context_s / 2
            spans.append(span)
            seconds.append(stop - begin)
            if span.end < math.inf:
                begin, stop = min(begin, middle - reach), max(stop, middle + reach)
            times.append((max(begin - start, 0.0), min(stop - start, end - start)))
        item = self._item(start, end)
        if spans and any(item[name] is not None for name in MODALITIES):
            window = Window(start, end, item | {"segment_times": times}, spans, seconds)
            for span in spans:
                span.num_windows += 1
                span.num_pending += 1
            yield window

    def _item(self, start: float, end: float) -> dict[str, Any]:
        """Returns the audio, words and face from `start` to `end`, in the form that the processor accepts."""
        samples = self.audio.read(*(round(time * self.sampling_rate) for time in (start, end)))
        is_audible = len(samples) >= MIN_AUDIO_SECONDS * self.sampling_rate and not is_silent(samples)
        audio = samples if is_audible and self._is_voiced(start, end) else None
        face = None if self.face is None else self.face.between(start, end)
        video = face if face is not None and face.is_present.any() else None
        if self.text is not None or not self._encodes_text:
            return {"audio": audio, "text": self.text, "video": video, "word_times": None}
        words = []
        for word, begin, stop in self.words:
            if begin >= end:
                break
            if max(stop, begin + EPSILON) > start:
                begin = max(begin - start, 0.0)
                words.append((word, begin, max(min(stop, end) - start, begin)))
        text = " ".join(word for word, _, _ in words) or None
        return {"audio": audio, "text": text, "video": video, "word_times": words or None}

    def _drop_unneeded(self) -> None:
        """Drops the samples, frames and words that neither a later window nor an open span needs."""
        needed = self.duration
        if self._yields_windows:
            # The very last window starts one window length before the end, wherever that will be.
            needed = max(min(self._next_window()[0], self._known_end - self.options.window_s), 0.0)
        self.audio.drop_before(round(needed * self.sampling_rate))
        needed = min(needed, self._open[0].start) if self._open else needed
        if self.speech is not None:
            self.speech.drop_before(needed)
        while self.words and self.words[0][2] < needed:
            self.words.popleft()
