"""
One voice on its way through the model: samples go in, windows come out, and their predictions become spans.

Deliberate choices:
- Segments without speech get no prediction. Windows begin where speech begins, so pauses cost next to nothing.
- Memory is bounded: one window of samples and the open spans are kept, however long the recording.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np

from mmemo.audio.loading import MIN_AUDIO_SECONDS, SILENCE_PEAK
from mmemo.audio.voice_activity import FRAME_SAMPLES, SAMPLING_RATE, SPEECH_PROBABILITY, VoiceActivityDetector
from mmemo.timeline.windows import EPSILON, FRAME_SECONDS, Span, TimelineOptions, Window, Word
from mmemo.words.times import split_sentences


# Speech in less of a segment is a breath or the edge of a word next to it.
MIN_SPEECH_SHARE = 0.2
# Pauses up to this long belong to the speech around them, seconds.
SPEECH_GAP = 0.3


class Track:
    """
    One voice on its way through the model: samples go in, windows come out; once those are answered, so are the spans.

    Its state is bounded: about a window of samples and what is open, however long the recording.

    Args:
        options ([`TimelineOptions`]): How it is cut.
        sampling_rate (`int`): Of its samples, in Hz.
        words (`list` of `(word, start, end)`, *optional*): What is said when, in seconds.
        text (`str`, *optional*): What is said, if nobody knows when; it counts in every window.
        answers (`bool`, *optional*, defaults to `True`): Whether there are windows; without, it only finds speech.
        reads (`bool`, *optional*, defaults to `True`): Whether the model reads; else words only say where spans are.

    Raises:
        ValueError: If the options ask for words and there are none, or for a detector that the rate does not suit.
    """

    def __init__(
        self,
        options: TimelineOptions,
        sampling_rate: int,
        words: Iterable[Word] = (),
        text: str | None = None,
        answers: bool = True,
        reads: bool = True,
    ):
        if options.voice_activity and sampling_rate != SAMPLING_RATE:
            raise ValueError(
                f"Speech is told from silence at {SAMPLING_RATE} Hz, but this model hears {sampling_rate} Hz; pass "
                "voice_activity=False."
            )
        self.options = options
        self.sampling_rate = sampling_rate
        self.text = text
        self.detector = VoiceActivityDetector() if options.voice_activity else None
        self.words: deque[Word] = deque(words)
        self.duration = 0.0
        self._answers = answers
        self._reads = reads
        self._is_finished = False  # there is no more to hear
        self._is_cut = False  # and no more window to come
        # Samples from `_buffer_start` on, and which frames hold speech from `_voiced_start` on.
        self._buffer = np.zeros(0, np.float32)
        self._buffer_start = 0
        self._voiced = np.zeros(0, bool)
        self._voiced_start = 0
        # Where the last window began and where it ended.
        self._last_start, self._covered = -options.window_hop_s, 0.0
        self._num_segments = 0
        self._open: deque[Span] = deque(self._known_spans() if answers else ())
        self._speech: list[tuple[float, float]] = []

    def _known_spans(self) -> list[Span]:
        """The spans that do not depend on how long the recording is."""
        if self.options.granularity == "segment":
            return []
        if self.options.granularity == "utterance":
            return [Span(0.0, math.inf)]
        if not self.words:
            raise ValueError(
                f"granularity={self.options.granularity!r} needs to know when words are said; pass word_times, "
                "subtitles or a transcriber, or choose 'segment'."
            )
        words = list(self.words)
        is_sentence = self.options.granularity == "sentence"
        ranges = split_sentences(words) if is_sentence else [(index, index + 1) for index in range(len(words))]
        return [
            Span(words[begin][1], words[stop - 1][2], [word for word, _, _ in words[begin:stop]])
            for begin, stop in ranges
        ]

    def add_words(self, words: Iterable[Word]) -> None:
        """Takes words that became known on the way; they count for what is not answered yet."""
        self.words.extend(words)

    def feed(self, samples: np.ndarray) -> Iterator[Window]:
        """Takes the next samples, `(samples,)`; returns the windows that are complete now."""
        self._buffer = np.concatenate([self._buffer, samples])
        self.duration = (self._buffer_start + len(self._buffer)) / self.sampling_rate
        if self.detector is not None:
            self._listen(self.detector(samples))
        return self._complete_windows()

    def advance(self, seconds: float) -> Iterator[Window]:
        """Lets time pass in which there are words and no audio; returns the windows that are complete now."""
        self.duration += seconds
        return self._complete_windows()

    def finish(self) -> Iterator[Window]:
        """Ends the recording; returns the last window, which reaches back as far as the others are long."""
        self._is_finished = True
        if self.detector is not None:
            self._listen(self.detector(np.zeros(FRAME_SAMPLES, np.float32)))
        yield from self._complete_windows()
        for span in self._open:
            span.end = max(min(span.end, self.duration), span.start)
        start, is_needed = self._next_window()
        if is_needed and self.duration > self._covered + EPSILON:
            # What was settled before stays so, as who listens live has it already.
            settled = [span for span in self._open if self._is_settled(span, start)]
            yield from self._window(max(0.0, self.duration - self.options.window_s), self.duration, settled)
        self._is_cut = True

    def pop(self) -> Iterator[Span]:
        """Returns, in their order, the spans whose answers no window will change any more."""
        start = self._next_window()[0]
        while self._open and not self._open[0].num_unanswered:
            span = self._open[0]
            if not self._is_cut and span.end > self._known:
                break
            is_silent = self._is_silent(span)
            if not (self._is_cut or is_silent or self._is_settled(span, start)):
                break
            self._open.popleft()
            span.words = self._words_in(span)
            if is_silent:
                span.scores = span.modality_weights = None
            yield span
        self._forget()

    def pop_speech(self) -> list[tuple[float, float]]:
        """Returns where a voice was heard since the last call, start and end in seconds; an open stretch stays."""
        done = len(self._speech) if self._is_finished else max(len(self._speech) - 1, 0)
        speech, self._speech = self._speech[:done], self._speech[done:]
        return [(round(start, 6), round(min(end, self.duration), 6)) for start, end in speech if start < self.duration]

    def _next_window(self) -> tuple[float, bool]:
        """
        Where the next window begins, in seconds, and whether that is certain: if nobody has spoken since the last one,
        it begins there or later.

        It begins a hop behind the last one, or, if nobody speaks before, as far ahead of the next voice as windows
        overlap, where a segment begins.
        """
        voice = self._next_voice(self._covered)
        known = self._known if voice is None else voice
        overlap, step = self.options.window_s - self.options.window_hop_s, self.options.segment_hop
        ahead = math.floor((known - overlap) / step + EPSILON) * step
        return max(self._last_start + self.options.window_hop_s, ahead), voice is not None

    def _next_voice(self, start: float) -> float | None:
        """When somebody speaks, or a word is said, at or after `start`; `None` if not as far as is known."""
        if self.detector is None:
            return start
        first = max(int(start / FRAME_SECONDS + EPSILON), self._voiced_start)
        frames = np.flatnonzero(self._voiced[first - self._voiced_start :])
        times = [max((first + int(frames[0])) * FRAME_SECONDS, start)] if len(frames) else []
        for _, begin, stop in self.words:
            if max(stop, begin + FRAME_SECONDS) > start:
                times.append(max(begin, start))
                break
        return min((time for time in times if time < self.duration), default=None)

    @property
    def _known(self) -> float:
        """Up to when all is known of the recording, in seconds."""
        if self.detector is None:
            return self.duration
        return min(self.duration, (self._voiced_start + len(self._voiced)) * FRAME_SECONDS)

    def _listen(self, probabilities: np.ndarray) -> None:
        first = self._voiced_start + len(self._voiced)
        voiced = probabilities >= SPEECH_PROBABILITY
        self._voiced = np.concatenate([self._voiced, voiced])
        for frame in (np.flatnonzero(voiced) + first).tolist():
            start, end = frame * FRAME_SECONDS, (frame + 1) * FRAME_SECONDS
            if self._speech and start - self._speech[-1][1] <= SPEECH_GAP:
                start = self._speech.pop()[0]
            self._speech.append((start, end))

    def _is_voiced(self, start: float, end: float) -> bool:
        """Whether a voice is heard in a stretch, as far as is known."""
        if self.detector is None:
            return True
        end = min(end, self.duration)
        first = max(int(start / FRAME_SECONDS), self._voiced_start)
        voiced = self._voiced[first - self._voiced_start : math.ceil(end / FRAME_SECONDS) - self._voiced_start]
        starts = (first + np.flatnonzero(voiced)) * FRAME_SECONDS
        seconds = (np.minimum(starts + FRAME_SECONDS, end) - np.maximum(starts, start)).sum()
        return bool(seconds >= MIN_SPEECH_SHARE * min(end - start, self.options.segment_s) - EPSILON)

    def _is_late(self, span: Span, window_end: float) -> bool:
        """Whether a window ends too late to count for a span; the first that holds it never does."""
        latency_s = self.options.latency_s
        return latency_s is not None and span.num_windows > 0 and window_end > span.end + latency_s + EPSILON

    def _is_settled(self, span: Span, window_start: float) -> bool:
        """Whether neither the window that begins there, nor any behind it, counts for a span."""
        return window_start >= span.reach - EPSILON or self._is_late(span, window_start + self.options.window_s)

    def _is_silent(self, span: Span) -> bool:
        return not self._words_in(span) and not self._is_voiced(span.start, span.end)

    def _words_in(self, span: Span) -> list[str]:
        """The words of a span: those that it was made from, or those whose middles lie in it."""
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
        """Whether a word reaches into a stretch."""
        for _, begin, stop in self.words:
            if begin >= end:
                return False
            if max(stop, begin + EPSILON) > start:
                return True
        return False

    def _complete_windows(self) -> Iterator[Window]:
        if not self._answers:
            self._forget()
            return
        self._open_segments()
        while True:
            start, is_certain = self._next_window()
            end = start + self.options.window_s
            if not is_certain or end > self._known + EPSILON:
                return
            self._last_start, self._covered = start, end
            yield from self._window(start, end)

    def _open_segments(self) -> None:
        """Opens the segments that begin in what is there so far."""
        if self.options.granularity != "segment":
            return
        while (start := self._num_segments * self.options.segment_hop) < self.duration - EPSILON:
            self._open.append(Span(start, start + self.options.segment_s))
            self._num_segments += 1

    def _window(self, start: float, end: float, settled: Collection[Span] = ()) -> Iterator[Window]:
        """Yields the window from `start` to `end`, unless there is nothing but the `settled` to answer for in it."""
        spans, seconds, times = [], [], []
        for span in self._open:
            if span.start >= end - EPSILON:
                break
            begin, stop = max(span.start, start), min(span.reach, end)
            if stop <= begin + EPSILON or self._is_late(span, end) or span in settled:
                continue
            if not (self._has_words(begin, stop) or self._is_voiced(begin, stop)):
                continue
            if span.end <= self._known and self._is_silent(span):
                continue
            middle, reach = (span.start + span.end) / 2, self.options.context_s / 2
            spans.append(span)
            seconds.append(stop - begin)
            if span.end < math.inf:
                begin, stop = min(begin, middle - reach), max(stop, middle + reach)
            times.append((max(begin - start, 0.0), min(stop - start, end - start)))
        item = self._item(start, end)
        if spans and (item["audio"] is not None or item["text"] is not None):
            window = Window(start, end, item | {"segment_times": times}, spans, seconds)
            for span in spans:
                span.num_windows += 1
                span.num_unanswered += 1
            yield window

    def _item(self, start: float, end: float) -> dict[str, Any]:
        """What is heard and said from `start` to `end`, in the processor's form."""
        first, last = (round(time * self.sampling_rate) - self._buffer_start for time in (start, end))
        samples = self._buffer[first:last]
        is_heard = len(samples) >= MIN_AUDIO_SECONDS * self.sampling_rate and np.abs(samples).max() >= SILENCE_PEAK
        audio = samples if is_heard and self._is_voiced(start, end) else None
        if self.text is not None or not self._reads:
            return {"audio": audio, "text": self.text, "word_times": None}
        words = []
        for word, begin, stop in self.words:
            if begin >= end:
                break
            if max(stop, begin + EPSILON) > start:
                begin = max(begin - start, 0.0)
                words.append((word, begin, max(min(stop, end) - start, begin)))
        text = " ".join(word for word, _, _ in words) or None
        return {"audio": audio, "text": text, "word_times": words or None}

    def _forget(self) -> None:
        """Drops what neither a window nor an open span can ask for any more."""
        # The last window begins a window before the end, wherever that is.
        needed = self.duration
        if self._answers:
            needed = max(min(self._next_window()[0], self._known - self.options.window_s), 0.0)
        surplus = round(needed * self.sampling_rate) - self._buffer_start
        if 0 < surplus <= len(self._buffer):
            self._buffer, self._buffer_start = self._buffer[surplus:], self._buffer_start + surplus
        needed = min(needed, self._open[0].start) if self._open else needed
        surplus = min(int(needed / FRAME_SECONDS) - self._voiced_start, len(self._voiced))
        if surplus > 0:
            self._voiced, self._voiced_start = self._voiced[surplus:], self._voiced_start + surplus
        while self.words and self.words[0][2] < needed:
            self.words.popleft()
