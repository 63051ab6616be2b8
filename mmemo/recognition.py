"""
Emotion recognition over any backend: one path from items and recordings to predictions.

Deliberate choices:
- The pipeline (torch) and [`EmotionPredictor`] (ONNX Runtime) inherit it and supply `run`; all else is shared, so both
  accept the same items, raise the same errors and return the same predictions.
- Nothing here needs torch or `transformers`.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
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
# Options of a call: of loading, of timelines, of predictions.
LOADING_OPTIONS = ("channel",)
RECORDING_OPTIONS = (
    *(option.name for option in fields(TimelineOptions)),
    *(option.name for option in fields(SpeakerOptions) if option.name not in LOADING_OPTIONS),
    "transcriber",
)
TIMELINE_OPTIONS = ("return_timeline", "window_batch_size", *RECORDING_OPTIONS)
ANSWER_OPTIONS = ("top_k", "function_to_apply", "threshold", "coverage")
ITEM_ANSWER_OPTIONS = (*ANSWER_OPTIONS, "return_modality_weights")


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
        item = {"audio": inputs} if _is_audio(inputs) else inputs
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
        if item.get("word_times") and "text" not in self.answers.modalities:
            raise ValueError("this model has no text encoder; leave 'word_times' out.")
        try:
            prepared = self.processor.prepare(**item, channel=channel)
        except ValueError as error:
            audio = item.get("audio")
            if isinstance(audio, str) and item.get("text") is None and not os.path.exists(audio):
                raise ValueError(f"{error} A str is the path of an audio file; pass a text as 'text'.") from error
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
            timeline: See [`TimelineOptions`]; `None` is the default.

        Returns:
            `dict`: See [`~AnswerFormatter.format_recording`].

        Raises:
            ValueError: If the item or an option is invalid.
        """
        size = self.window_batch_size if window_batch_size is None else window_batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"window_batch_size={size!r} must be an integer of at least 1.")
        speakers = SpeakerOptions(channel, channels, speaker_turns, customer, everyone)
        options = TimelineOptions(**{name: value for name, value in timeline.items() if value is not None})
        item = self.as_item(inputs)
        recording = open_recording(self.processor, item, self.answers.modalities, speakers, options, transcriber)
        windows, shown = iter(recording), 0.0
        with self._progress(recording.expected_duration) as bar:
            while batch := list(islice(windows, size)):
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
        """Returns a context with a progress bar over a recording of that duration, or with `None`."""
        return nullcontext()


def _is_audio(inputs: Any) -> bool:
    """Whether inputs are an audio input by themselves, not an item; `sampling_rate` is a key of both."""
    if not isinstance(inputs, dict):
        return True
    keys = inputs.keys() - {"sampling_rate"}
    return bool(keys) and keys <= AUDIO_KEYS


def check_option_names(names: Iterable[str]) -> None:
    """Raises a `TypeError` if an option of a call is unknown."""
    valid = LOADING_OPTIONS + TIMELINE_OPTIONS + ITEM_ANSWER_OPTIONS
    if unknown := sorted(set(names) - set(valid)):
        raise TypeError(f"Unknown parameters {unknown}; valid ones are {valid}.")


def given_recording_options(options: Mapping[str, Any]) -> list[str]:
    """Returns the names of the options that request a timeline; `everyone=False` and `None` do not."""
    return [
        name
        for name in RECORDING_OPTIONS
        if options.get(name) is not None and not (name == "everyone" and not options[name])
    ]


def may_be_uncertain(options: Mapping[str, Any]) -> bool:
    """Whether options of a call allow the label `"uncertain"`, so that speech must be detected."""
    return options.get("threshold") is not None or options.get("coverage") is not None


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
