"""
Live emotion recognition: takes samples as they arrive, and returns segments as soon as they are final.

Deliberate choices:
- It is the timeline of a recording, fed chunk by chunk: the same windows give the same predictions.
- The backend may be the pipeline, or an [`EmotionPredictor`], which needs no torch.
- Windows are shorter and closer together than offline: a segment is final 1.5 s after its end.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from mmemo.audio.inputs import AudioChunk
from mmemo.audio.loading import LiveAudio
from mmemo.timeline.track import Track
from mmemo.timeline.windows import FRAME_SECONDS, LABEL_OPTIONS, TimelineOptions, Window
from mmemo.words.times import WordTimes, read_word_times


class EmotionStream:
    """
    Predicts the emotions of one live voice.

    It keeps a few seconds of audio in memory, however long it runs, and many streams may share one pipeline.

    Args:
        emotion ([`MultimodalEmotionPipeline`] or [`EmotionPredictor`]):
            The backend.
        sampling_rate (`float`, *optional*, defaults to 16000):
            Sampling rate of the chunks in Hz.
        encoding (`str`, *optional*, defaults to `"pcm_s16le"`), channels (`int`, *optional*, defaults to 1):
            The samples in chunks of raw bytes, as PyAudio returns them: `"pcm_s16le"`, `"pcm_f32le"` or `"mulaw"`; and
            the number of channels that are interleaved there. Arrays have their own type and channels.
        window_s (`float`, defaults to 3.0), window_hop_s (`float`, defaults to 1.5), latency_s (`float`, defaults to
        1.5), segment_s, hop_s, context_s, voice_activity (*optional*):
            How the stream is cut into windows; see [`TimelineOptions`].
        options: `top_k`, `threshold`, `coverage`, `candidate_labels`, `hypothesis_template` and `none_label`, as in
            the pipeline.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is invalid, or the model has no audio encoder.

    Example:

    ```python
    >>> from modeling_mmemo import EmotionStream, load_pipeline

    >>> stream = EmotionStream(load_pipeline())
    >>> for chunk in microphone:  # arrays of sounddevice, bytes of PyAudio, ...
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
        encoding: str = "pcm_s16le",
        channels: int = 1,
        **options: Any,
    ):
        valid = {"top_k", "threshold", "coverage", *LABEL_OPTIONS}
        if unknown := options.keys() - valid:
            raise TypeError(f"Unknown arguments {sorted(unknown)}; valid options of predictions are {sorted(valid)}.")
        labels = {name: options.pop(name) for name in LABEL_OPTIONS if name in options}
        self.emotion = emotion.with_labels(**labels) if labels else emotion
        if "audio" not in self.emotion.answers.modalities:
            raise ValueError("A stream needs audio, and this model has no audio encoder; choose a model that has one.")
        self.options = TimelineOptions(
            segment_s=segment_s,
            hop_s=hop_s,
            window_s=window_s,
            window_hop_s=window_hop_s,
            context_s=context_s,
            latency_s=latency_s,
            voice_activity=voice_activity,
        )
        self.emotion.answers.check_options(**options)
        self._answer_options = options
        self.sampling_rate = sampling_rate
        self.encoding = encoding
        self.channels = channels
        self.reset()

    @property
    def latency_seconds(self) -> float:
        """
        The longest time from the end of a segment until it is returned, in seconds of audio, without the run time of
        the model. Segments of the first window may take as long as that window.
        """
        options = self.options
        longest = options.window_s if options.latency_s is None else max(options.latency_s, options.window_hop_s)
        return longest + (FRAME_SECONDS if self.options.voice_activity else 0.0)

    def reset(self) -> None:
        """Discards all state; the next chunk starts a new stream at 0 s."""
        rate = self.emotion.processor.feature_extractor.sampling_rate
        self._audio = LiveAudio(self.sampling_rate, rate, self.encoding, self.channels)
        self._track = Track(self.options, rate, encodes_text="text" in self.emotion.answers.modalities)
        self._last_word = 0.0

    def feed(self, chunk: AudioChunk, word_times: WordTimes | None = None) -> list[dict[str, Any]]:
        """
        Takes the next samples, and words recognised since the last call.

        Args:
            chunk ([`AudioChunk`]):
                Any number of samples: an array of shape `(samples,)`, `(channels, samples)` or `(samples, channels)`,
                floats in [-1, 1] or PCM; or raw bytes in the stream's `encoding`.
            word_times (`WordTimes`, *optional*):
                Words with timestamps in seconds from the start of the stream, after those passed before. They apply to
                segments that have not been returned yet.

        Returns:
            `list[dict]`: The segments that are final now, as in the pipeline's `timeline`.

        Raises:
            ValueError: If the samples are invalid, or the words start before earlier ones.
        """
        samples = self._audio(chunk)
        if word_times is not None:
            words = read_word_times(word_times)
            if words and words[0][1] < self._last_word:
                raise ValueError(
                    f"The word {words[0][0]!r} starts at {words[0][1]} s, before the last one at {self._last_word} s; "
                    "pass words in order, each once."
                )
            if words:
                self._last_word = words[-1][1]
                self._track.add_words(words)
        return self._predict(self._track.feed(samples))

    def flush(self) -> list[dict[str, Any]]:
        """Ends the stream: returns the remaining segments, and resets."""
        rest = self._audio(np.zeros(0, np.float32), is_last=True)
        segments = self._predict(self._track.feed(rest)) + self._predict(self._track.finish())
        self.reset()
        return segments

    def _predict(self, windows: Iterable[Window]) -> list[dict[str, Any]]:
        segments = []
        for window in windows:
            self.emotion.predict_windows([window])
            segments += self._final_segments()
        return segments + self._final_segments()

    def _final_segments(self) -> list[dict[str, Any]]:
        self._track.pop_speech()
        return [self.emotion.answers.format_span(span, **self._answer_options) for span in self._track.pop()]
