"""
Emotion recognition over any backend: one path from items and recordings to predictions.

Deliberate choices:
- The pipeline (torch) and [`EmotionPredictor`] (ONNX Runtime) inherit it and supply `run`; all else is shared, so both
  accept the same items, raise the same errors and return the same predictions.
- Nothing here needs torch or `transformers`.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from mmemo.answers import AnswerFormatter
from mmemo.audio.loading import resample
from mmemo.audio.voice_activity import SAMPLING_RATE, has_voice
from mmemo.items import ITEM_KEYS, ItemProcessing, PreparedItem
from mmemo.timeline.recording import SpeakerOptions, open_recording
from mmemo.timeline.windows import TimelineOptions, Window


# A dictionary of only these keys is an audio input itself, as `datasets` returns it.
AUDIO_KEYS = {"array", "raw", "sampling_rate", "bytes", "path"}


class EmotionRecognition:
    """
    Predicts emotions in items and in recordings.

    Attributes:
        processor ([`ItemProcessing`]): Prepares and collates items.
        answers ([`AnswerFormatter`]): Converts scores to labels.
        window_batch_size (`int`): Number of windows of a recording that the model encodes at once.
    """

    processor: ItemProcessing
    answers: AnswerFormatter
    window_batch_size: int

    def run(self, items: list[PreparedItem]) -> dict[str, np.ndarray]:
        """
        Runs the model.

        Args:
            items (`list[PreparedItem]`): A batch.

        Returns:
            `dict[str, np.ndarray]`: `logits`, `(batch, num_labels)`, and `modality_weights`, `(batch, 2)`; with
            segments also `segment_logits`, `(batch, segments, num_labels)`, and `segment_modality_weights`.
        """
        raise NotImplementedError

    def as_item(self, inputs: Any) -> dict[str, Any]:
        """
        Returns one item as a dictionary with some of the keys `ITEM_KEYS`.

        Args:
            inputs: A dictionary, or an audio input by itself.

        Raises:
            ValueError: If a key is unknown, or the model has no encoder for a modality of the item.
        """
        is_audio = not isinstance(inputs, dict) or (inputs and inputs.keys() <= AUDIO_KEYS)
        item = {"audio": inputs} if is_audio else inputs
        if unknown := [key for key in item if key not in ITEM_KEYS]:
            raise ValueError(
                f"unknown keys {unknown}; an item may have {ITEM_KEYS}, or be an audio input by itself, with "
                f"{sorted(AUDIO_KEYS)}. channel= and other options are arguments of the call."
            )
        for modality in ("audio", "text"):
            if item.get(modality) is not None and modality not in self.answers.modalities:
                raise ValueError(f"this model has no {modality} encoder; leave {modality!r} out.")
        return item

    def prepare(self, inputs: Any, channel: int | None = None, detect_speech: bool = False) -> PreparedItem:
        """
        Loads and checks one item; see [`~ItemProcessing.prepare`].

        Args:
            inputs: See [`~EmotionRecognition.as_item`].
            channel (`int`, *optional*): The audio channel; the mean of all channels by default.
            detect_speech (`bool`, *optional*, defaults to `False`):
                Whether to detect if the audio contains speech; see [`without_silent_audio`].

        Raises:
            ValueError: If the item is invalid.
        """
        item = self.as_item(inputs)
        try:
            prepared = self.processor.prepare(**item, channel=channel)
        except ValueError as error:
            if isinstance(inputs, str):
                raise ValueError(
                    f"{error} A str is the path of an audio file; to pass a text, use {{'text': ...}}."
                ) from error
            raise
        if detect_speech and prepared.audio is not None:
            return without_silent_audio(prepared, self.processor.feature_extractor.sampling_rate)
        return prepared

    def predict_item(self, prepared: PreparedItem, function_to_apply: str | None = None, **options: Any) -> Any:
        """
        Predicts one prepared item.

        Args:
            prepared ([`PreparedItem`]): The item.
            function_to_apply (`str`, *optional*): See [`~AnswerFormatter.scores`].
            options: See [`~AnswerFormatter.format_item`].
        """
        outputs = self.run([prepared])
        scores = self.answers.scores(outputs["logits"][0], function_to_apply)
        return self.answers.format_item(scores, outputs["modality_weights"][0], prepared.has_speech, **options)

    def predict_timeline(
        self,
        inputs: Any,
        channel: int | None = None,
        channels: str | None = None,
        speaker_turns: Any = None,
        customer: int | str | None = None,
        everyone: bool = False,
        transcriber: Any = None,
        function_to_apply: str | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
        window_batch_size: int | None = None,
        **timeline: Any,
    ) -> dict[str, Any]:
        """
        Predicts a recording of any length over time.

        Args:
            inputs: See [`~EmotionRecognition.as_item`].
            channel, channels, speaker_turns, customer, everyone: See [`SpeakerOptions`].
            transcriber (*optional*): Transcribes a recording without words; see [`transcribe`].
            function_to_apply, top_k, threshold, coverage: See [`AnswerFormatter`].
            window_batch_size (`int`, *optional*): Number of windows that the model encodes at once.
            timeline: See [`TimelineOptions`].

        Returns:
            `dict`: See [`~AnswerFormatter.format_recording`].

        Raises:
            ValueError: If the item or an option is invalid.
        """
        speakers = SpeakerOptions(channel, channels, speaker_turns, customer, everyone)
        options = TimelineOptions(**timeline)
        recording = open_recording(self.processor, self.as_item(inputs), speakers, options, transcriber)
        windows, shown = iter(recording), 0.0
        with self._progress(recording.expected_duration) as bar:
            while batch := list(islice(windows, window_batch_size or self.window_batch_size)):
                self.predict_windows(batch, function_to_apply)
                if bar is not None:
                    bar.update(recording.duration - shown)
                    shown = recording.duration
        recording.collect()
        return self.answers.format_recording(recording, top_k=top_k, threshold=threshold, coverage=coverage)

    def predict_windows(self, windows: list[Window], function_to_apply: str | None = None) -> None:
        """Runs the model over windows of recordings and adds the predictions to their spans; see [`Window`]."""
        outputs = self.run([self.processor.prepare(**window.item) for window in windows])
        scores = self.answers.scores(outputs["segment_logits"], function_to_apply)
        for window, *predictions in zip(windows, scores, outputs["segment_modality_weights"]):
            window.set_predictions(*(rows[: len(window.spans)] for rows in predictions))

    def _progress(self, seconds: float | None) -> AbstractContextManager[Any]:
        """Returns a progress bar over a recording of so many seconds, or a context of `None`."""
        return nullcontext()


def without_silent_audio(item: PreparedItem, sampling_rate: int) -> PreparedItem:
    """
    Marks an item whose audio contains no speech; if it has a text, the audio counts as missing.

    Args:
        item ([`PreparedItem`]): An item with audio.
        sampling_rate (`int`): Of its audio, in Hz.
    """
    if item.audio is None or has_voice(resample(item.audio, sampling_rate, SAMPLING_RATE)):
        return item
    return replace(item, has_speech=False) if item.text is None else replace(item, audio=None)
