"""
Pipeline `multimodal-emotion`: predicts emotions from audio, text, video, or several of them.

Deliberate choices:
- `preprocess` loads and checks one item; `collate` extracts the features of a batch together, so items with different
  modalities may share a batch.
- Everything but running the model is [`EmotionRecognition`], shared with the predictor over ONNX Runtime.
"""

import os
import sys
from collections.abc import Iterable, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature, Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging

from mmemo.answers import AnswerFormatter
from mmemo.audio.inputs import is_audio_object
from mmemo.items import PreparedItem
from mmemo.modalities import MODALITIES
from mmemo.recognition import (
    ANSWER_OPTIONS,
    ITEM_ANSWER_OPTIONS,
    LOADING_OPTIONS,
    PROGRESS_FROM,
    TIMELINE_OPTIONS,
    EmotionRecognition,
    check_on_error,
    check_option_names,
    check_timeline_options,
    is_timeline,
    with_position,
)
from mmemo.timeline.windows import LABEL_OPTIONS
from mmemo.zero_shot import Similarity


logger = logging.get_logger(__name__)

TASK = "multimodal-emotion"
# Inputs that take the model's precision.
FEATURE_INPUTS = ("input_features", "input_values", "video_features", "pixel_values")
PREDICTIONS = ("logits", "modality_weights")
OUTPUTS = (
    *PREDICTIONS,
    *(f"segment_{name}" for name in PREDICTIONS),
    *(f"{name}_embeds" for name in (*MODALITIES, "fused")),
    *(f"{prefix}{modality}_projection" for prefix in ("", "segment_") for modality in MODALITIES),
)

WINDOW_BATCH_SIZE_CPU, WINDOW_BATCH_SIZE = 8, 32


@dataclass(frozen=True, eq=False)
class _Entry:
    """
    One of many items, with its position; prepared, or with the error that it raised.

    A dataclass, since `Pipeline` moves what tuples and dictionaries contain to its device.
    """

    position: int
    item: PreparedItem | None = None
    error: str | None = None

    @property
    def is_recording(self) -> bool:
        """Whether it is predicted window by window."""
        return self.item is not None and self.item.recording is not None

    @property
    def has_speech(self) -> bool:
        return self.item is not None and self.item.has_speech


class MultimodalEmotionPipeline(EmotionRecognition, Pipeline):
    """
    Predicts emotions from audio, text, video, or several of them.

    Example:

    ```python
    >>> from modeling_mmemo import pipeline

    >>> emotion = pipeline("multimodal-emotion")
    >>> emotion({"audio": "call.wav", "text": "I have been waiting for an hour."}, top_k=2)
    [{'label': 'angry', 'score': 0.83}, {'label': 'sad', 'score': 0.07}]
    ```
    """

    processor: Any  # any class with the methods of [`MMEmoProcessor`]

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model, processor, local_files_only: bool = False, **kwargs):
        if model.config.model_type != "mmemo":
            raise ValueError(
                f"This pipeline runs models of type 'mmemo', not {model.config.model_type!r}; build one from your "
                "encoders with MMEmoForEmotionRecognition.from_pretrained_towers, and train it."
            )
        # `pipeline()` passes `local_files_only` on, which only matters for loading.
        if missing := model.missing_keys_on_load:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"{len(missing)} weights of {type(model).__name__} are missing from its checkpoint and are newly "
                f"initialised, so its predictions would be random: {named}. Load a checkpoint saved after training."
            )
        if isinstance(model, torch.nn.Module):  # an exported model is not
            model.eval()
        # `_sanitize_parameters` needs them before they have a value.
        self._forward_params: dict[str, Any] = {}
        self._postprocess_params: dict[str, Any] = {}
        super().__init__(model=model, processor=processor, **kwargs)

    @property
    def answers(self) -> AnswerFormatter:  # type: ignore[override]
        """Converts the model's scores to labels, following its current configuration."""
        config = self.model.config
        return AnswerFormatter(
            [config.id2label[index] for index in range(config.num_labels)],
            config.problem_type,
            config.conformal_quantiles,
            list(filter(config.has_encoder, config.modalities)),
        )

    @property
    def similarity(self) -> Similarity:
        config = self.model.config
        return Similarity(config.projection_dim, self.model.similarity_scale, config.zero_shot_calibration)

    @property
    def window_batch_size(self) -> int:  # type: ignore[override]
        """Number of windows that the model encodes at once by default."""
        if self.is_batch_dependent:
            return 1
        return WINDOW_BATCH_SIZE_CPU if self.device.type == "cpu" else WINDOW_BATCH_SIZE

    @property
    def is_batch_dependent(self) -> bool:  # type: ignore[override]
        """Whether a prediction depends on the rest of its batch; see [`EmotionGraph`]."""
        return not isinstance(self.model, torch.nn.Module) and self.model.model.is_batch_dependent

    def _sanitize_parameters(self, on_error: str | None = None, **parameters):
        check_option_names(parameters)
        if on_error is not None:
            check_on_error(on_error)
        # Options of the call override those of the pipeline, so they are checked together.
        merged = {**self._forward_params, **self._postprocess_params, **parameters}
        has_labels = merged.get("candidate_labels") is not None
        answers = self.with_labels(**_label_options(merged if has_labels else parameters)).answers
        answers.check_options(**{name: merged.get(name) for name in ANSWER_OPTIONS})
        check_timeline_options(parameters)
        preprocess, forward, postprocess = (
            {name: parameters[name] for name in names if name in parameters}
            for names in (LOADING_OPTIONS, TIMELINE_OPTIONS + LABEL_OPTIONS, ITEM_ANSWER_OPTIONS)
        )
        return preprocess, forward if on_error is None else {**forward, "on_error": on_error}, postprocess

    def __call__(self, inputs: Any, **kwargs):
        """
        Predicts the emotions of one item or of many.

        Args:
            inputs:
                One item, or items as a list, a generator, a `Dataset` of torch or of `datasets`, or any other
                iterable. An item is either an audio input (a path or URL, the bytes of a file, an array at the model's
                sampling rate of shape `(samples,)` or `(channels, samples)`, and the other forms that [`AudioInput`]
                lists), a video or image file for models with a video encoder, or a dictionary with at least one of the
                first three of
                - **audio** -- the same. The prediction rests on the speech in it; if there is none, the audio counts
                  as missing next to a text, and is encoded whole otherwise;
                - **text** (`str`) -- the text; NaN, a blank text and one of which the tokenizer knows no token count
                  as missing;
                - **video** -- the path or bytes of a video or image, frames, and the other forms that [`VideoInput`]
                  lists. One face in it is followed; without any, the video counts as missing. Its sound is the audio
                  of an item without the key `audio`;
                - **word_times** -- `[(word, start, end), ...]` in seconds, an ASR pipeline's output, or subtitles;
                - **sampling_rate** (`float`) -- sampling rate in Hz of audio that is a bare array;
                - **fps** (`float`) -- frames per second of a video of bare frames;
                - **context** -- the previous turns of a dialogue, oldest first: a list of texts, of `(speaker, text)`,
                  or of `{"speaker", "text"}`; for models trained with dialogue context, and not for timelines;
                - **speaker** (`str`) -- the speaker of the text, by the name used in `context`.
            top_k (`int`, *optional*):
                Number of labels to return, highest scores first; all by default.
            function_to_apply (`str`, *optional*):
                `"softmax"`, `"sigmoid"` or `"none"`. By default it follows the model's `problem_type`: sigmoid for
                multi-label classification, none for regression, softmax otherwise.
            return_modality_weights (`bool`, *optional*, defaults to `False`):
                Whether to return the weights of the modalities in the prediction.
            channel (`int`, *optional*):
                The audio channel, counted from 0; the mean of all channels by default.
            face (`int`, *optional*):
                The face in a video. Faces rank by how long their mouth moves, then by size; 0, the first, by default.
            threshold (`float`, *optional*):
                The score below which the label is `"uncertain"`. Items without speech and words are uncertain, too.
            coverage (`float`, *optional*):
                The requested coverage, such as 0.9, of the prediction set `label_set`: the share of items whose set
                contains the true label, calibrated on development data. Other voices and rooms may lower it.
            candidate_labels (`str` or `list[str]`, *optional*):
                Labels in one's own words, a list or separated by commas, in place of the model's own: up to 500, for
                models with a shared space of voice and words.
            hypothesis_template (`str` or `list[str]`, *optional*, defaults to `"This person feels {}."`):
                The sentence in which the model encodes each label. Of several, the mean is used.
            none_label (`str`, *optional*, defaults to `"none of these"`):
                A further label, of items to which no candidate label applies; `None` leaves it out. Only models whose
                candidate labels are calibrated have it.
            return_timeline (`bool`, *optional*):
                Whether to predict every half second of a recording of any length. Most of the following options
                request it, too.
            segment_s, hop_s, granularity, window_s, window_hop_s, context_s, latency_s, voice_activity (*optional*):
                How the recording is cut; see [`TimelineOptions`].
            channels, speaker_turns, customer, everyone (*optional*):
                The speakers of the recording that get predictions; see [`SpeakerOptions`].
            transcriber (*optional*):
                Transcribes a recording that comes without words; see [`transcribe`].
            window_batch_size (`int`, *optional*):
                Number of windows of a recording that the model encodes at once: 8 on a CPU, 32 elsewhere, and 1 for
                dynamic int8 graphs, whose scores depend on the batch, by default.
            on_error (`str`, *optional*, defaults to `"raise"`):
                `"return"` returns `{"error": message}` for an invalid item instead of raising a `ValueError`.
            batch_size (`int`, *optional*, defaults to 1), num_workers (`int`, *optional*, defaults to 0):
                Number of items that the model encodes at once, and number of processes that load them. Dynamic int8
                graphs encode one item at a time, since their scores depend on the batch.

        Returns:
            For one item a list of `{"label": str, "score": float}`, highest score first. For audio with more speech
            than the processor's `max_speech_s`, it is the mean over its speech in windows, in bounded memory.

            With `return_modality_weights`, `threshold` or `coverage` a dictionary of that list as `scores` and, as
            requested, `modality_weights` (`{"audio": float, "text": float}`, and `"video"` for models with a video
            encoder), `label` and `label_set`.

            With a timeline a dictionary of `duration`, in seconds; `speech`, the stretches with speech; `label`,
            `scores` and `modality_weights` of the recording, the mean over its entries; `timeline`, a list of
            `{"start", "end", "words", "label", "scores", "modality_weights"}`, in which stretches without speech and
            without a face have the label `"silence"` and no `scores`; and `spans`, adjacent entries of one label
            merged, `{"start", "end", "label", "score"}`. With a video, entries of the timeline have a `face`: its
            `presence`, the share of the frames that show it, and its three strongest `blendshapes`, `{"name",
            "score"}`.

            With channels or turns a dictionary of `duration` and `speakers`: by name the stretches of `speech`, and
            the same as above for the speakers that get predictions. With turns also `turns`, one prediction per turn.

            For a list a list of these; for any other iterable, an iterator.

        Raises:
            TypeError: If an option is unknown.
            ValueError: If an option is invalid or contradicts another, or if an item is invalid; with its position, if
                it is one of many.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        inputs = _undecoded(inputs)
        # The base class streams only generators and torch datasets, and takes anything else as one item.
        is_one = isinstance(inputs, dict) or is_audio_object(inputs)
        if isinstance(inputs, Iterable) and not is_one and not isinstance(inputs, (list, Dataset)):
            inputs = (item for item in inputs)
        return super().__call__(inputs, **kwargs)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        try:
            if is_timeline(forward_params):
                return self._timeline(inputs, preprocess_params, forward_params, postprocess_params)
            prepared = self.preprocess(inputs, **preprocess_params)
            return self._labelled(forward_params).predict_item(prepared, **postprocess_params)
        except ValueError as error:
            if forward_params.get("on_error") != "return":
                raise
            return {"error": str(error)}

    def get_iterator(
        self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
    ) -> Iterable:
        returns_errors = forward_params.get("on_error") == "return"
        if is_timeline(forward_params):
            parameters = (preprocess_params, forward_params, postprocess_params)
            return (
                self._numbered_timeline(index, item, parameters, returns_errors) for index, item in enumerate(inputs)
            )
        if self.is_batch_dependent:
            batch_size = 1
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(_Numbered(inputs), self._preprocess_numbered, preprocess_params)
        else:
            if num_workers > 1:
                logger.warning(f"An iterator is read by one process: num_workers={num_workers} becomes 1.")
                num_workers = 1
            dataset = PipelineIterator(enumerate(inputs), self._preprocess_numbered, preprocess_params)
        if num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=self._collate_entries)
        recognition = self._labelled(forward_params)
        options = {"returns_errors": returns_errors, "recognition": recognition}
        outputs = PipelineIterator(loader, self.forward, options, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, {**postprocess_params, "recognition": recognition})

    def _labelled(self, options: dict[str, Any]) -> EmotionRecognition:
        """Returns this pipeline with the candidate labels among the options of a call; itself without any."""
        return self if options.get("candidate_labels") is None else self.with_labels(**_label_options(options))

    def _preprocess_numbered(self, numbered: tuple[int, Any], **parameters) -> _Entry:
        position, item = numbered
        try:
            return _Entry(position, self.preprocess(item, **parameters))
        except ValueError as error:
            # Raised, if it is to be, in `_forward`: an error of a worker process would have that process's traceback.
            return _Entry(position, error=with_position(position, error))

    def preprocess(self, inputs: Any, channel: int | None = None, face: int | None = None) -> PreparedItem:
        return self.prepare(inputs, channel, face)

    def collate(self, items: list[PreparedItem]) -> BatchFeature:
        """Extracts the features of a batch as torch tensors."""
        return BatchFeature(self.processor.collate(items), tensor_type="pt")

    def _collate_entries(self, entries: list[_Entry]) -> BatchFeature:
        """Extracts the features of the entries that the model encodes as a whole, and adds all `entries`."""
        items = [entry.item for entry in entries if entry.item is not None and not entry.is_recording]
        inputs = self.collate(items) if items else BatchFeature()
        inputs["entries"] = entries
        return inputs

    def _forward(
        self,
        model_inputs: dict[str, Any],
        returns_errors: bool = False,
        recognition: EmotionRecognition | None = None,
    ) -> dict[str, Any]:
        inputs = {key: value for key, value in model_inputs.items() if key != "entries"}
        # Only features take the model's precision: half precision would blur the timestamps.
        features = {key: inputs[key].to(self.dtype) for key in FEATURE_INPUTS if key in inputs}
        outputs = self.model(**{**inputs, **features}) if inputs else {}
        predictions = {key: value for key, value in outputs.items() if key in OUTPUTS}
        if "entries" not in model_inputs:
            return predictions
        return self._with_recordings(predictions, model_inputs["entries"], returns_errors, recognition or self)

    def _with_recordings(
        self,
        outputs: dict[str, torch.Tensor],
        entries: list[_Entry],
        returns_errors: bool,
        recognition: EmotionRecognition,
    ) -> dict[str, Any]:
        """Returns `logits`, `modality_weights`, `has_speech` and `error` of all entries, one row each."""
        predictions = recognition.to_predictions(_as_arrays(outputs)) if outputs else {}
        rows = zip(*(torch.from_numpy(predictions[name]) for name in PREDICTIONS)) if outputs else iter(())
        nothing = torch.zeros(len(recognition.answers.labels)), torch.zeros(len(self.model.config.modalities))
        logits, weights, errors = [], [], []
        for entry in entries:
            error, row = entry.error, nothing
            if error is not None and not returns_errors:
                raise ValueError(error)
            if entry.item is not None and entry.is_recording:
                try:
                    mean = recognition.predict_recording(entry.item)
                    row = torch.as_tensor(mean[0]), torch.as_tensor(mean[1])
                except ValueError as failure:
                    error = with_position(entry.position, failure)
                    if not returns_errors:
                        raise ValueError(error) from failure
            elif entry.item is not None:
                row = next(rows)
            logits.append(row[0])
            weights.append(row[1])
            errors.append(error)
        return {
            "logits": torch.stack([values.double() for values in logits]),
            "modality_weights": torch.stack([values.double() for values in weights]),
            "has_speech": torch.tensor([entry.has_speech for entry in entries]),
            "error": errors,
        }

    def postprocess(
        self,
        outputs: dict[str, torch.Tensor],
        function_to_apply: str | None = None,
        recognition: EmotionRecognition | None = None,
        **options: Any,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        # The base class takes a batch of several apart, but not one of a single item.
        error = outputs["error"][0] if isinstance(outputs["error"], list) else outputs["error"]
        if error is not None:
            return {"error": error}
        answers = (recognition or self).answers
        scores = answers.scores(outputs["logits"][0].numpy(), function_to_apply)
        weights = outputs["modality_weights"][0].tolist()
        return answers.format_item(scores, weights, bool(outputs["has_speech"][0]), **options)

    def run(self, items: list[PreparedItem]) -> dict[str, np.ndarray]:
        return _as_arrays(self.forward(self.collate(items)))

    def embed(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = _undecoded(inputs)
        if isinstance(inputs, Dataset):
            inputs = (inputs[index] for index in range(len(inputs)))  # type: ignore[arg-type]
        return super().embed(inputs, *args, **kwargs)

    def _numbered_timeline(
        self, position: int, inputs: Any, parameters: tuple[dict, dict, dict], returns_errors: bool
    ) -> dict[str, Any]:
        try:
            return self._timeline(inputs, *parameters)
        except ValueError as error:
            message = with_position(position, error)
            if not returns_errors:
                raise ValueError(message) from error
            return {"error": message}

    def _timeline(
        self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict
    ) -> dict[str, Any]:
        timeline = {
            name: value
            for name, value in forward_params.items()
            if name not in ("return_timeline", "on_error", *LABEL_OPTIONS)
        }
        answer = {name: value for name, value in postprocess_params.items() if name in ANSWER_OPTIONS}
        recognition = self._labelled(forward_params)
        return recognition.predict_timeline(inputs, **preprocess_params, **answer, **timeline)

    def _progress(self, seconds: float | None) -> AbstractContextManager[Any]:
        return logging.tqdm(total=seconds, unit="s", disable=seconds is None or seconds < PROGRESS_FROM)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """
        Saves the model, the processor and this pipeline's code.

        Args:
            save_directory (`str` or `os.PathLike`): The output folder, created if needed.
            kwargs: Passed on to the model's `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        custom_object_save(self, save_directory)


def _label_options(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of candidate labels among those of a call."""
    return {name: options[name] for name in LABEL_OPTIONS if name in options}


def _as_arrays(outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: values.float().cpu().numpy() for name, values in outputs.items()}


def _undecoded(inputs: Any) -> Any:
    """Returns a dataset of `datasets` whose audio and video are not decoded, which would need torchcodec; else the
    inputs."""
    datasets = sys.modules.get("datasets")
    if datasets is None or not isinstance(inputs, (datasets.Dataset, datasets.IterableDataset)):
        return inputs
    for name, feature in (inputs.features or {}).items():
        if isinstance(feature, (datasets.Audio, datasets.Video)) and feature.decode:
            inputs = inputs.cast_column(name, type(feature)(decode=False))
    return inputs


class _Numbered(Dataset):
    """Pairs the items of a list or dataset with their positions, as `enumerate` does for an iterator."""

    def __init__(self, items: Any):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.items[index]
