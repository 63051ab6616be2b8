"""
Emotion live: samples go in as they come, and segments come out as soon as they can be known.

Deliberate choices:
- It is the pipeline's own timeline, fed bit by bit: the same windows give the same answers.
- What answers may be the pipeline, or an [`EmotionPredictor`], which needs no torch.
- Shorter windows, more often, than offline: a segment is known 1.5 s after it ended. Offline, windows come less often.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mmemo.audio.loading import LiveAudio
from mmemo.timeline.track import Track
from mmemo.timeline.windows import FRAME_SECONDS, TimelineOptions
from mmemo.words.times import WordTimes, read_word_times


class EmotionStream:
    """
    Follows one live voice.

    It holds a few seconds of sound, however long it runs, and many of them may share one pipeline.

    Args:
        emotion ([`MultimodalEmotionPipeline`] or [`EmotionPredictor`]):
            What answers.
        sampling_rate (`float`, *optional*, defaults to 16000):
            Of the samples to come, in Hz.
        window_s (`float`, defaults to 3.0), window_hop_s (`float`, defaults to 1.5), latency_s (`float`, defaults to
        1.5), segment_s, hop_s, context_s, voice_activity (*optional*):
            How the stream is cut; see [`TimelineOptions`].
        answer: `top_k`, `threshold` and `coverage` of the pipeline.

    Raises:
        ValueError: If an option is impossible, or asks for what a stream cannot know.

    Example:

    ```python
    >>> from modeling_mmemo import EmotionStream, load_pipeline

    >>> stream = EmotionStream(load_pipeline())
    >>> for chunk in microphone:
    ...     for segment in stream.feed(chunk):
    ...         print(segment["start"], segment["label"])
    >>> rest = stream.flush()
    ```
    """

    def __init__(
        self,
        emotion: Any,
        sampling_rate: float = 16_000,
        window_s: float = 3.0,
        window_hop_s: float = 1.5,
        latency_s: float | None = 1.5,
        segment_s: float = 0.5,
        hop_s: float | None = None,
        context_s: float = 3.5,
        voice_activity: bool = True,
        **answer: Any,
    ):
        self.emotion = emotion
        if "audio" not in self.emotion.answers.modalities:
            raise ValueError("A stream is heard, and this model has no audio encoder; choose one that has.")
        self.options = TimelineOptions(
            segment_s=segment_s,
            hop_s=hop_s,
            window_s=window_s,
            window_hop_s=window_hop_s,
            context_s=context_s,
            latency_s=latency_s,
            voice_activity=voice_activity,
        )
        valid = {"top_k", "threshold", "coverage"}
        if unknown := answer.keys() - valid:
            raise TypeError(f"Unknown arguments {sorted(unknown)}; those about the answer are {sorted(valid)}.")
        self.emotion.answers.check(**answer)
        self._answer = answer
        self.sampling_rate = sampling_rate
        self.reset()

    @property
    def latency_seconds(self) -> float:
        """
        How long after its end a segment is given out at most, in seconds of sound; what the model takes is added. Only
        what the first window holds may take as long as that window.
        """
        options = self.options
        longest = options.window_s if options.latency_s is None else max(options.latency_s, options.window_hop_s)
        return longest + (FRAME_SECONDS if self.options.voice_activity else 0.0)

    def reset(self) -> None:
        """Forgets everything; the next chunk begins a new stream at 0 s."""
        rate = self.emotion.processor.feature_extractor.sampling_rate
        self._audio = LiveAudio(self.sampling_rate, rate)
        self._track = Track(self.options, rate, reads="text" in self.emotion.answers.modalities)
        self._last_word = 0.0

    def feed(self, chunk: ArrayLike, word_times: WordTimes | None = None) -> list[dict[str, Any]]:
        """
        Takes the next samples, and words that were recognised meanwhile.

        Args:
            chunk (`ArrayLike`):
                Any number of samples, of shape `(samples,)` or `(channels, samples)`, as floats in [-1, 1] or PCM.
            word_times (`WordTimes`, *optional*):
                Words with their times in seconds from the beginning of the stream, behind those given before. They
                count for segments that have not been given out.

        Returns:
            `list[dict]`: the segments that are known now, as in the pipeline's `timeline`.

        Raises:
            ValueError: If the chunk is no samples, or the words are not behind those before.
        """
        samples = self._audio(chunk)
        if word_times is not None:
            words = read_word_times(word_times)
            if words and words[0][1] < self._last_word:
                raise ValueError(
                    f"The word {words[0][0]!r} starts at {words[0][1]} s, before the last one at {self._last_word} s; "
                    "pass words in their order, each once."
                )
            if words:
                self._last_word = words[-1][1]
                self._track.add_words(words)
        return self._run(self._track.feed(samples))

    def flush(self) -> list[dict[str, Any]]:
        """Ends the stream: returns the segments that are left, and resets."""
        rest = self._audio(np.zeros(0, np.float32), is_last=True)
        segments = self._run(self._track.feed(rest)) + self._run(self._track.finish())
        self.reset()
        return segments

    def _run(self, windows: Any) -> list[dict[str, Any]]:
        segments = []
        for window in windows:
            self.emotion.answer([window])
            segments += self._take()
        return segments + self._take()

    def _take(self) -> list[dict[str, Any]]:
        self._track.pop_speech()
        return [self.emotion.answers.describe(span, **self._answer) for span in self._track.pop()]
