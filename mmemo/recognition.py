"""
Emotion recognition over any backend: one path from items and recordings to predictions.

Deliberate choices:
- The pipeline (torch) and [`EmotionPredictor`] (ONNX Runtime) inherit it and supply `run`; all else is shared, so both
  accept the same items, raise the same errors and return the same predictions.
- Nothing here needs torch or `transformers`.
"""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from mmemo.answers import AnswerFormatter, mean_prediction
from mmemo.audio.channels import channels_differ
from mmemo.audio.inputs import AUDIO_KEYS, is_audio_object
from mmemo.audio.loading import AudioBlocks, SilentAudioError
from mmemo.audio.voice_activity import SAMPLING_RATE
from mmemo.items import ITEM_KEYS, ItemProcessing, PreparedItem, given, prefixed
from mmemo.modalities import MODALITIES
from mmemo.storage import is_url
from mmemo.timeline.recording import Recording, SpeakerOptions, open_recording
from mmemo.timeline.windows import LABEL_OPTIONS, TimelineOptions, Window
from mmemo.video.face import FaceSequence
from mmemo.video.frames import VideoSource, is_video_object, open_video
from mmemo.words.subtitles import is_subtitles
from mmemo.zero_shot import (
    HYPOTHESIS_TEMPLATE,
    NONE_LABEL,
    LabelCache,
    LabelScorer,
    Similarity,
    check_unused,
    encode_labels,
    read_labels,
)


logger = logging.getLogger(__name__)

# Longer clips are loaded block by block. Up to this length the resampler has the clip as a whole, as in training.
WHOLE_CLIP_SECONDS = 30.0
# Longer recordings are predicted window by window whatever they contain, so that memory is bounded.
MAX_LOADED_SECONDS = 600.0
# Recordings shorter than this, in seconds, get no progress bar.
PROGRESS_FROM = 60.0
# Options of a call: of loading, of timelines, of predictions.
LOADING_OPTIONS = ("channel", "face")
RECORDING_OPTIONS = (
    *(option.name for option in fields(TimelineOptions)),
    *(option.name for option in fields(SpeakerOptions) if option.name not in LOADING_OPTIONS),
    "transcriber",
)
TIMELINE_OPTIONS = ("return_timeline", "window_batch_size", *RECORDING_OPTIONS)
ANSWER_OPTIONS = ("top_k", "function_to_apply", "threshold", "coverage")
ITEM_ANSWER_OPTIONS = (*ANSWER_OPTIONS, "return_modality_weights")
# What to do with an item that is invalid: raise its error, or return it in place of the result.
ON_ERROR = ("raise", "return")


class EmotionRecognition:
    """
    Predicts emotions in items and in recordings.

    Attributes:
        processor ([`ItemProcessing`]): Prepares and collates items.
        answers ([`AnswerFormatter`]): Converts scores to labels.
        window_batch_size (`int`): Number of windows of a recording that the model encodes at once.
        is_batch_dependent (`bool`): Whether a prediction depends on the rest of its batch; see [`EmotionGraph`].
    """

    processor: ItemProcessing
    answers: AnswerFormatter
    window_batch_size: int
    is_batch_dependent: bool

    def run(self, items: list[PreparedItem]) -> dict[str, np.ndarray]:
        """
        Runs the model.

        Args:
            items (`list[PreparedItem]`): A batch.

        Returns:
            `dict[str, np.ndarray]`: `logits`, `(batch, num_labels)`, and `modality_weights`, `(batch,
            modalities)`; with segments also `segment_logits`, `(batch, segments, num_labels)`, and
            `segment_modality_weights`. As far as the model has them also `audio_embeds`, `text_embeds`, `video_embeds`
            and `fused_embeds`, `(batch, width)`, and the projections of [`MMEmoEmotionOutput`].
        """
        raise NotImplementedError

    @property
    def similarity(self) -> Similarity:
        """How the model turns cosines in its shared space into logits."""
        raise NotImplementedError

    @cached_property
    def _label_cache(self) -> LabelCache:
        return LabelCache()

    def with_labels(
        self,
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str | Sequence[str] = HYPOTHESIS_TEMPLATE,
        none_label: str | None = NONE_LABEL,
    ) -> "EmotionRecognition":
        """
        Returns this model with labels in one's own words in place of its own.

        The vectors of the labels are computed once for each set of labels, by the model as it is then.

        Args:
            candidate_labels (`str` or `list[str]`, *optional*): See [`~MultimodalEmotionPipeline.__call__`]; this
                object is returned without.
            hypothesis_template, none_label (*optional*): See [`~MultimodalEmotionPipeline.__call__`].

        Returns:
            [`EmotionRecognition`]: Shares the model with this object.

        Raises:
            ValueError: If an option is invalid, or the model has no shared space; see [`read_labels`],
                [`encode_labels`] and [`Similarity`].
        """
        if candidate_labels is None:
            check_unused(hypothesis_template, none_label)
            return self
        candidates = read_labels(candidate_labels, hypothesis_template, none_label)
        similarity, modalities = self.similarity, self.answers.modalities
        similarity.check(modalities)
        vectors = self._label_cache.get(
            (candidates.labels, candidates.templates),
            lambda: encode_labels(candidates, self.processor, self.run, self.window_batch_size),
        )
        return LabelledRecognition(self, LabelScorer(candidates, vectors, similarity, modalities))

    def to_predictions(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the predictions of the labels of `answers` among or from the outputs of the model."""
        return outputs

    def as_item(self, inputs: Any) -> dict[str, Any]:
        """
        Returns one item as a dictionary with some of the keys `ITEM_KEYS`. A text of which the tokenizer knows no
        token counts as missing. A video is opened, and its sound is the audio of an item without the key `audio`.

        Args:
            inputs:
                A dictionary, or an audio input, a video or an image by itself. The audio of a dictionary may also be
                [`AudioBlocks`] at the sampling rate of the feature extractor.

        Raises:
            ValueError: If a key is unknown, or the model has no encoder for a modality of the item.
        """
        is_item = isinstance(inputs, dict) and not is_audio_object(inputs)
        item = dict(inputs) if is_item else self._as_file(inputs)
        if unknown := [key for key in item if key not in ITEM_KEYS]:
            raise ValueError(
                f"unknown keys {unknown}; an item may have {ITEM_KEYS}, or be an audio input by itself, with "
                f"{sorted(AUDIO_KEYS)}. channel= and other options are arguments of the call."
            )
        for part in (*MODALITIES, "word_times", "fps"):
            if part in item:
                item[part] = given(item[part], part)
        for modality in MODALITIES:
            if item.get(modality) is not None and modality not in self.answers.modalities:
                raise ValueError(
                    f"this model has no {modality} encoder; leave {modality!r} out, or train a model with "
                    f"--{modality}_encoder."
                )
        if item.get("video") is not None:
            item |= self._open_video(item)
        text = item.get("text")
        if isinstance(text, str) and not is_subtitles(text) and not self.processor.has_known_tokens(text):
            item["text"] = None
        return item

    def _as_file(self, inputs: Any) -> dict[str, Any]:
        """Returns an input by itself as an item: as a video if it is a video or an image and the model encodes video,
        otherwise as audio."""
        if "video" in self.answers.modalities and is_video_object(inputs):
            try:
                return {"video": open_video(inputs)}
            except ValueError as error:
                if "audio" not in self.answers.modalities:
                    raise ValueError(f"video: {error}") from error
                logger.debug(f"{error} It is loaded as audio.")
        return {"audio": inputs}

    def _open_video(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns the open video of an item and, unless its `audio` is given, the sound of the video."""
        if isinstance(item["video"], FaceSequence):
            return {}
        with prefixed("video"):
            video = item["video"]
            source = video if isinstance(video, VideoSource) else open_video(video, item.pop("fps", None))
        has_sound = "audio" not in item and source.sound is not None and "audio" in self.answers.modalities
        return {"video": source, **({"audio": source.sound} if has_sound else {})}

    def prepare(self, inputs: Any, channel: int | None = None, face: int | None = None) -> PreparedItem:
        """
        Loads and checks one item; see [`~ItemProcessing.prepare`].

        Args:
            inputs: See [`~EmotionRecognition.as_item`].
            channel (`int`, *optional*): The audio channel; the mean of all channels by default.
            face (`int`, *optional*): The face of a video, by rank; see [`read_face`].

        Returns:
            [`PreparedItem`]: The item. If it has more speech than the processor's `max_speech_s`, or lasts longer than
            `MAX_LOADED_SECONDS`, its `recording` is set instead of its audio and text.

        Raises:
            ValueError: If the item is invalid.
        """
        item = self.as_item(inputs)
        self.check_word_times(item)
        video = item.get("video")
        item |= self._follow_face(item, face)
        if item.get("audio") is None:
            return self.processor.prepare(**item)
        blocks = self._open_audio(item, video)
        clip = None
        with prefixed("audio"):
            try:
                clip = _load_clip(blocks, channel)
            except SilentAudioError:
                # Videos may have a track without sound.
                if video is None:
                    raise
                logger.warning("audio: it is silent, so it counts as missing.")
                item["audio"] = None
            warn_of_mixing(blocks, channel)
        if item["audio"] is None:
            return self.processor.prepare(**item)
        rate = blocks.target_rate
        recording = PreparedItem(recording={**item, "audio": blocks}, channel=channel)
        if clip is None:
            return recording
        prepared = self.processor.prepare(**{**item, "audio": clip, "sampling_rate": rate})
        if not prepared.has_speech:
            others = [name for name in ("text", "video") if getattr(prepared, name) is not None]
            only = f", so the {' and the '.join(others)} alone is predicted" if others else ""
            logger.warning(f"audio: no speech was detected{only}.")
            if others:
                return replace(prepared, audio=None, has_speech=True)
        longest = min(self.processor.max_speech_s * rate, self.processor.max_audio_samples or math.inf)
        # Windows have no dialogue context.
        is_long = prepared.audio is not None and len(prepared.audio) > longest and item.get("context") is None
        return replace(recording, has_speech=prepared.has_speech) if is_long else prepared

    def check_word_times(self, item: dict[str, Any]) -> None:
        """Raises a `ValueError` if an item, predicted as a whole, has timestamps of words that no encoder takes."""
        if item.get("word_times") and "text" not in self.answers.modalities:
            raise ValueError("this model has no text encoder; leave 'word_times' out.")

    def _follow_face(self, item: dict[str, Any], face: int | None) -> dict[str, Any]:
        """Returns the face in the video of an item; raises a `ValueError` for `face` without a video."""
        if item.get("video") is None:
            if face is not None:
                raise ValueError(f"face={face!r} is about a video, and the item has none; leave it out.")
            return {}
        with prefixed("video"):
            return {"video": self.processor.load_video(item["video"], face=face)}

    def _open_audio(self, item: dict[str, Any], video: Any) -> AudioBlocks:
        """Opens the audio of an item, which may be that of its open video; raises a `ValueError` if it is invalid."""
        if isinstance(item["audio"], AudioBlocks):
            return item["audio"]
        try:
            with prefixed("audio"):
                rate = self.processor.feature_extractor.sampling_rate
                return AudioBlocks(item["audio"], item.get("sampling_rate"), rate, owner=video)
        except ValueError as error:
            audio = item["audio"]
            is_missing = isinstance(audio, str) and not is_url(audio) and not os.path.exists(audio)
            if is_missing and item.get("text") is None:
                raise ValueError(f"{error} A str is the path of an audio file; pass a text as 'text'.") from error
            raise

    def predict_item(self, prepared: PreparedItem, function_to_apply: str | None = None, **options: Any) -> Any:
        """
        Predicts one prepared item.

        Args:
            prepared ([`PreparedItem`]): The item.
            function_to_apply (`str`, *optional*): See [`~AnswerFormatter.scores`].
            options: See [`~AnswerFormatter.format_item`].

        Raises:
            ValueError: If a recording contains no speech and has no text, or its text fits no window.
        """
        if prepared.recording is not None:
            logits, weights = self.predict_recording(prepared)
        else:
            outputs = self.run([prepared])
            logits, weights = outputs["logits"][0], outputs["modality_weights"][0]
        scores = self.answers.scores(logits, function_to_apply)
        return self.answers.format_item(scores, weights, prepared.has_speech, **options)

    def predict_recording(self, prepared: PreparedItem) -> tuple[np.ndarray, np.ndarray]:
        """
        Predicts an item with too much speech for one input: the mean over its windows, in bounded memory. Without
        speech, predicts its text alone.

        Args:
            prepared ([`PreparedItem`]): An item with a `recording`.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: Logits of shape `(num_labels,)`, whose scores are the mean scores of the
            speech in the recording, and modality weights of shape `(modalities,)`.

        Raises:
            ValueError: If the recording contains no speech and has no text, or its text fits no window.
        """
        recording = self._open_for_mean(prepared)
        self._run_windows(recording, self.window_batch_size)
        mean = mean_prediction(recording.sources[0].spans)
        self._warn_of_mean(prepared, recording, mean is not None)
        if mean is None:
            return self.predict_without_audio(prepared.recording or {})
        scores, weights = mean
        return self.answers.logits(scores), weights

    def _open_for_mean(self, prepared: PreparedItem) -> Recording:
        """Opens an item with a `recording` whose result is the mean over its windows."""
        return open_recording(
            self.processor,
            prepared.recording or {},
            self.answers.modalities,
            SpeakerOptions(prepared.channel),
            self.mean_options(prepared.has_speech),
        )

    def _warn_of_mean(self, prepared: PreparedItem, recording: Recording, has_speech: bool) -> None:
        """Logs [`explain_mean`] about an item with a `recording`, which raises if there is nothing to predict."""
        item = prepared.recording or {}
        others = [name for name in ("text", "video") if item.get(name) is not None]
        logger.warning(explain_mean(recording.duration, has_speech, others))

    def mean_options(self, has_speech: bool = True) -> TimelineOptions:
        """Returns how a recording is cut whose prediction is the mean over its windows."""
        rate = self.processor.feature_extractor.sampling_rate
        # Speech detection supports one sampling rate only. Where it found nothing, everything is predicted.
        can_detect = self.processor.speech_padding_s is not None and rate == SAMPLING_RATE
        return TimelineOptions(voice_activity=can_detect and has_speech)

    def predict_without_audio(self, item: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Predicts the text and the video of an item, as [`~EmotionRecognition.predict_recording`]."""
        outputs = self.run([self.processor.prepare(**{**item, "audio": None})])
        return outputs["logits"][0], outputs["modality_weights"][0]

    def embed(
        self,
        inputs: Any,
        batch_size: int = 1,
        channel: int | None = None,
        face: int | None = None,
        on_error: str = "raise",
    ) -> Any:
        """
        Returns the vectors of items before the heads of the model, such as for search, clustering or a classifier.

        Args:
            inputs:
                One item, or items as a list or any other iterable; see [`~MultimodalEmotionPipeline.__call__`].
            batch_size (`int`, *optional*, defaults to 1):
                Number of items that the model encodes at once. Dynamic int8 graphs encode one at a time.
            channel (`int`, *optional*): The audio channel; the mean of all channels by default.
            face (`int`, *optional*): The face of a video, by rank; see [`read_face`].
            on_error (`str`, *optional*, defaults to `"raise"`):
                `"return"` returns `{"error": message}` for an invalid item instead of raising a `ValueError`.

        Returns:
            For one item a `dict[str, np.ndarray]` of vectors of shape `(width,)`, float32: `audio`, `text` and
            `video`, as far as the item has them, and `fused` of several of them if the model fuses them in a vector.
            For audio with more speech than the processor's `max_speech_s`, they are the means over the windows of the
            recording, weighted by the seconds of speech. For a list a list of these; for any other iterable, an
            iterator.

        Raises:
            ValueError: If an option or an item is invalid, the latter with its position if it is one of many; or if
                the model is a graph of an earlier version, which has no such outputs.
        """
        check_on_error(on_error)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be an integer of at least 1.")
        is_one = isinstance(inputs, dict) or is_audio_object(inputs) or not isinstance(inputs, Iterable)
        if not is_one:
            size = 1 if self.is_batch_dependent else batch_size
            vectors = self._embed_many(inputs, size, channel, face, on_error)
            return list(vectors) if isinstance(inputs, list) else vectors
        try:
            prepared = self.prepare(inputs, channel, face)
            return self._embed_batch([prepared])[0] if prepared.recording is None else self._embed_recording(prepared)
        except ValueError as error:
            if on_error != "return":
                raise
            return {"error": str(error)}

    def _embed_many(
        self, inputs: Iterable[Any], batch_size: int, channel: int | None, face: int | None, on_error: str
    ) -> Iterator[dict[str, Any]]:
        """Yields the vectors of items, or errors; see [`~EmotionRecognition.embed`]."""
        numbered = enumerate(inputs)
        while batch := list(islice(numbered, batch_size)):
            clips: list[PreparedItem] = []
            # The vectors of recordings, errors, and `None` for clips.
            results: list[dict[str, Any] | None] = []
            for position, item in batch:
                try:
                    prepared = self.prepare(item, channel, face)
                    results.append(None if prepared.recording is None else self._embed_recording(prepared))
                except ValueError as error:
                    message = with_position(position, error)
                    if on_error != "return":
                        raise ValueError(message) from error
                    results.append({"error": message})
                else:
                    clips += [prepared] if prepared.recording is None else []
            vectors = iter(self._embed_batch(clips) if clips else ())
            yield from (next(vectors) if result is None else result for result in results)

    def _embed_batch(self, items: list[PreparedItem]) -> list[dict[str, np.ndarray]]:
        """Returns the vectors of prepared items that are no recordings."""
        outputs = self.run(items)
        return [
            {name: outputs[f"{name}_embeds"][row] for name in embedded_parts(vars(item), outputs)}
            for row, item in enumerate(items)
        ]

    def _embed_recording(self, prepared: PreparedItem) -> dict[str, np.ndarray]:
        """Returns the mean vectors of an item with too much speech for one input; without speech, those of its text
        and video."""
        recording = self._open_for_mean(prepared)
        sums: dict[str, np.ndarray] = {}
        seconds: dict[str, float] = {}

        def add(windows: list[Window], outputs: dict[str, np.ndarray]) -> None:
            for row, window in enumerate(windows):
                for name in embedded_parts(window.item, outputs):
                    weight = sum(window.seconds)
                    sums[name] = sums.get(name, 0.0) + weight * outputs[f"{name}_embeds"][row].astype(np.float64)
                    seconds[name] = seconds.get(name, 0.0) + weight

        self._run_windows(recording, self.window_batch_size, on_outputs=add)
        self._warn_of_mean(prepared, recording, bool(sums))
        if not sums:
            item = {**(prepared.recording or {}), "audio": None}
            return self._embed_batch([self.processor.prepare(**item)])[0]
        return {name: (total / seconds[name]).astype(np.float32) for name, total in sums.items()}

    def predict_timeline(
        self,
        inputs: Any,
        channel: int | None = None,
        face: int | None = None,
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
            face (`int`, *optional*): The face of a video, by rank; see [`read_face`].
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
        video = item.get("video")
        item |= self._follow_face(item, face)
        if item.get("audio") is not None:
            item["audio"] = self._open_audio(item, video)
        recording = open_recording(self.processor, item, self.answers.modalities, speakers, options, transcriber)
        if isinstance(recording.blocks, AudioBlocks) and channels is None:
            warn_of_mixing(recording.blocks, channel)
        self._run_windows(recording, size, function_to_apply)
        return self.answers.format_recording(recording, top_k=top_k, threshold=threshold, coverage=coverage)

    def _run_windows(
        self,
        recording: Recording,
        size: int,
        function_to_apply: str | None = None,
        on_outputs: Callable[[list[Window], dict[str, np.ndarray]], None] | None = None,
    ) -> None:
        """Predicts all windows of a recording, `size` at once, with a progress bar; `on_outputs` is called with each
        batch and its outputs."""
        windows, shown = iter(recording), 0.0
        with self._progress(recording.expected_duration) as bar:
            while batch := list(islice(windows, size)):
                outputs = self.predict_windows(batch, function_to_apply)
                if on_outputs is not None:
                    on_outputs(batch, outputs)
                if bar is not None:
                    bar.update(recording.duration - shown)
                    shown = recording.duration
        recording.collect()

    def predict_windows(self, windows: list[Window], function_to_apply: str | None = None) -> dict[str, np.ndarray]:
        """Runs the model over windows of recordings and adds the predictions to their spans, see [`Window`]; returns
        the outputs of [`~EmotionRecognition.run`]."""
        outputs = self.run([self.processor.prepare(**window.item) for window in windows])
        scores = self.answers.scores(outputs["segment_logits"], function_to_apply)
        for window, *predictions in zip(windows, scores, outputs["segment_modality_weights"]):
            window.set_predictions(*(rows[: len(window.spans)] for rows in predictions))
        return outputs

    def _progress(self, seconds: float | None) -> AbstractContextManager[Any]:
        """Returns a context with a progress bar over a recording of that duration, or with `None`."""
        return nullcontext()


class LabelledRecognition(EmotionRecognition):
    """
    A model that predicts candidate labels; see [`~EmotionRecognition.with_labels`].

    Args:
        model ([`EmotionRecognition`]): The model, with its own labels.
        scorer ([`LabelScorer`]): Scores the candidate labels.
    """

    def __init__(self, model: EmotionRecognition, scorer: LabelScorer):
        self._model = model
        self._scorer = scorer
        self.processor = model.processor
        self.answers = scorer.answers
        self.window_batch_size = model.window_batch_size

    @property
    def similarity(self) -> Similarity:
        return self._model.similarity

    def with_labels(self, *args: Any, **options: Any) -> EmotionRecognition:
        return self._model.with_labels(*args, **options)

    def as_item(self, inputs: Any) -> dict[str, Any]:
        return self._model.as_item(inputs)

    def run(self, items: list[PreparedItem]) -> dict[str, np.ndarray]:
        return self.to_predictions(self._model.run(items))

    def to_predictions(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._scorer(outputs)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.embed(*args, **kwargs)

    def _progress(self, seconds: float | None) -> AbstractContextManager[Any]:
        return self._model._progress(seconds)


def embedded_parts(item: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> list[str]:
    """
    Returns the names of an item's vectors: the modalities that it has and, if there are several, `"fused"`.

    Args:
        item (`Mapping`): An item, `None` for a modality that is missing.
        outputs (`Mapping`): Outputs of the model; without `fused_embeds` it has no vector of several modalities.

    Raises:
        ValueError: If the model has no vectors at all.
    """
    present = [name for name in MODALITIES if item.get(name) is not None]
    if missing := [f"{name}_embeds" for name in present if f"{name}_embeds" not in outputs]:
        raise ValueError(
            f"This graph has no outputs {missing}: an earlier version exported it. Export the model again: mmemo "
            "export MODEL --output FOLDER."
        )
    return [*present, *(["fused"] if len(present) > 1 and "fused_embeds" in outputs else [])]


def with_position(position: int, error: ValueError) -> str:
    """Returns the message of an error, prefixed with the position of the item."""
    return f"Item {position}: {error}"


def check_on_error(on_error: str) -> None:
    """Raises a `ValueError` if `on_error` of a call is unknown."""
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error!r} is unknown; choose one of {ON_ERROR}.")


def _load_clip(blocks: AudioBlocks, channel: int | None) -> np.ndarray | None:
    """Returns the samples of a recording, `None` if it lasts longer than `MAX_LOADED_SECONDS`."""
    if blocks.duration is not None and blocks.duration > MAX_LOADED_SECONDS:
        return None
    if blocks.duration is None or blocks.duration <= WHOLE_CLIP_SECONDS:
        # The resampler gives the same samples as for training only if it has the clip as a whole.
        clip = blocks.load_clip(WHOLE_CLIP_SECONDS, channel)
        if clip is not None:
            return clip
    return blocks.load_up_to(MAX_LOADED_SECONDS, channel)


def explain_mean(duration: float, has_speech: bool, others: Sequence[str]) -> str:
    """
    Returns the warning about the prediction of a recording with too much speech for one input.

    Args:
        duration (`float`): Its length in seconds.
        has_speech (`bool`): Whether anything in it was predicted.
        others (`Sequence[str]`): The other modalities of the item, which are predicted if there is no speech.

    Raises:
        ValueError: If there is neither speech nor another modality.
    """
    if has_speech:
        return (
            f"The recording lasts {duration:.0f} s. Its prediction is the mean over its speech, in windows of "
            f"{TimelineOptions.window_s} s; return_timeline=True returns the predictions over time."
        )
    problem = f"audio: no speech was detected in {duration:.1f} s"
    if not others:
        raise ValueError(f"{problem}; there is no prediction.")
    return f"{problem}, so the {' and the '.join(others)} alone is predicted."


def warn_of_mixing(blocks: AudioBlocks, channel: int | None) -> None:
    """Warns if the mean of the channels of a recording mixes different voices."""
    if channel is None and channels_differ(blocks):
        logger.warning(
            f"The {blocks.channels} channels contain different sounds, and their mean is predicted. Select a channel, "
            "or predict each speaker of a call: channels='split', or mmemo call."
        )


def check_option_names(names: Iterable[str]) -> None:
    """Raises a `TypeError` if an option of a call is unknown."""
    valid = LOADING_OPTIONS + TIMELINE_OPTIONS + ITEM_ANSWER_OPTIONS + LABEL_OPTIONS
    if unknown := sorted(set(names) - set(valid)):
        raise TypeError(f"Unknown parameters {unknown}; valid ones are {valid}.")


def check_timeline_options(options: Mapping[str, Any]) -> None:
    """Raises a `ValueError` if `return_timeline=False` of a call contradicts another option of it."""
    requested = given_recording_options(options)
    if requested and options.get("return_timeline") is False:
        raise ValueError(
            f"return_timeline=False contradicts {requested}, which are options of timelines; leave one out."
        )


def is_timeline(options: Mapping[str, Any]) -> bool:
    """Whether options request a timeline: `return_timeline`, or without it any option of timelines."""
    requested = options.get("return_timeline")
    return bool(given_recording_options(options)) if requested is None else bool(requested)


def given_recording_options(options: Mapping[str, Any]) -> list[str]:
    """Returns the names of the options that request a timeline; `everyone=False` and `None` do not."""
    return [
        name
        for name in RECORDING_OPTIONS
        if options.get(name) is not None and not (name == "everyone" and not options[name])
    ]
