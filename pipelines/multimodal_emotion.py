"""
Pipeline `multimodal-emotion`: a voice, its words, or both, to emotions and how sure the model is.

Deliberate choices:
- The file is stand-alone: it is copied to the Hub and imports nothing of its package.
- `preprocess` loads and checks one item; the features of a batch are extracted together, so that items with audio,
  with text and with both share a batch.
- For a timeline the processor cuts a recording into windows; here they pass the model. What it says is put in words by
  `self.answers`, which the processor makes: see [`Answers`].
"""

import os
from collections.abc import Iterable, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature, Pipeline
from transformers.dynamic_module_utils import custom_object_save
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import logging


logger = logging.get_logger(__name__)

TASK = "multimodal-emotion"
ITEM_KEYS = ("audio", "text", "word_times", "sampling_rate", "context", "speaker")
# A dictionary of nothing but these is itself an audio, as `datasets` yields it.
AUDIO_KEYS = {"array", "raw", "sampling_rate", "bytes", "path"}
AUDIO_INPUTS = ("input_features", "input_values")
ANSWERS = ("logits", "modality_weights", "segment_logits", "segment_modality_weights")
# What is one item, although it can be iterated over.
ITEM_TYPES = (str, bytes, os.PathLike, dict, np.ndarray, torch.Tensor)

PREPROCESS_PARAMETERS = ("channel",)
# How a recording is cut in time, and who is heard in it; see `MMEmoProcessor.open_recording`.
CUTTING_PARAMETERS = (
    "segment_s",
    "hop_s",
    "granularity",
    "window_s",
    "window_hop_s",
    "context_s",
    "latency_s",
    "voice_activity",
)
RECORDING_PARAMETERS = (*CUTTING_PARAMETERS, "channels", "speaker_turns", "customer", "everyone", "transcriber")
TIMELINE_PARAMETERS = ("return_timeline", "window_batch_size", *RECORDING_PARAMETERS)
ANSWER_PARAMETERS = ("top_k", "function_to_apply", "threshold", "coverage")
POSTPROCESS_PARAMETERS = (*ANSWER_PARAMETERS, "return_modality_weights")

# Shorter recordings are done before a progress bar is read, seconds.
PROGRESS_FROM = 60.0


class MultimodalEmotionPipeline(Pipeline):
    """
    Says which emotions are in a voice, in its words, or in both.

    Example:

    ```python
    >>> from modeling_mmemo import pipeline

    >>> emotion = pipeline("multimodal-emotion")
    >>> emotion({"audio": "call.wav", "text": "I have been waiting for an hour."}, top_k=2)
    [{'label': 'angry', 'score': 0.83}, {'label': 'sad', 'score': 0.07}]
    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model, processor, local_files_only: bool = False, **kwargs):
        if model.config.model_type != "mmemo":
            raise ValueError(
                f"This pipeline runs models of type 'mmemo', not {model.config.model_type!r}; build one over your "
                "encoders with MMEmoForEmotionRecognition.from_audio_text_pretrained, and train it."
            )
        # `pipeline()` hands on `local_files_only`, which is about loading and done with.
        if missing := model.missing_keys_on_load:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"{len(missing)} weights of {type(model).__name__} were not in its checkpoint and are random, so its "
                f"answers would mean nothing: {named}. Load a checkpoint that has them: one saved after training."
            )
        if isinstance(model, torch.nn.Module):  # an exported model is not
            model.eval()
        super().__init__(model=model, processor=processor, **kwargs)

    @property
    def answers(self) -> Any:
        """What puts the model's answers in words, as its configuration is now; see [`Answers`]."""
        return self.processor.answers(self.model.config)

    def _sanitize_parameters(self, **parameters):
        known = PREPROCESS_PARAMETERS + TIMELINE_PARAMETERS + POSTPROCESS_PARAMETERS
        if unknown := parameters.keys() - set(known):
            raise TypeError(f"Unknown parameters {sorted(unknown)}; valid ones are {known}.")
        self.answers.check(**{name: parameters.get(name) for name in ANSWER_PARAMETERS})
        asked = [name for name in RECORDING_PARAMETERS if parameters.get(name)]
        if asked and parameters.get("return_timeline") is False:
            raise ValueError(f"return_timeline=False contradicts {asked}, which are about timelines; leave one out.")
        size = parameters.get("window_batch_size")
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"window_batch_size={size!r} must be an integer of at least 1.")
        preprocess_parameters, forward_parameters, postprocess_parameters = (
            {name: parameters[name] for name in names if name in parameters}
            for names in (PREPROCESS_PARAMETERS, TIMELINE_PARAMETERS, POSTPROCESS_PARAMETERS)
        )
        return preprocess_parameters, forward_parameters, postprocess_parameters

    def __call__(self, inputs: Any, **kwargs):
        """
        Says which emotions are in one item or in many.

        Args:
            inputs:
                One item, or items as a list, a generator, a `Dataset` of torch or of `datasets`, or any other
                iterable. An item is either an audio (a path or URL, the bytes of a file, an array at the model's rate
                of shape `(samples,)` or `(channels, samples)`, `{"array", "sampling_rate"}`, `{"path", "bytes"}` or a
                torchcodec `AudioDecoder`), or a dictionary with at least one of the first two of
                - **audio** -- the same;
                - **text** (`str`) -- what is said; blank counts as missing;
                - **word_times** -- `[(word, start, end), ...]` in seconds, an ASR pipeline's output, or subtitles;
                - **sampling_rate** (`float`) -- rate in Hz of an audio that is a bare array;
                - **context** -- what was said before the text, oldest first: a list of texts, of `(speaker, text)`, or
                  of `{"speaker", "text"}`; for models that were trained with dialogues, and not for timelines;
                - **speaker** (`str`) -- who says the text, as in `context`.
            top_k (`int`, *optional*):
                How many labels to return, those with the highest scores; all by default.
            function_to_apply (`str`, *optional*):
                `"softmax"`, `"sigmoid"` or `"none"`. By default, what the model's `problem_type` takes: sigmoid for
                multi-label classification, nothing for regression, softmax otherwise.
            return_modality_weights (`bool`, *optional*, defaults to `False`):
                Whether to return how much the audio and the text had to say.
            channel (`int`, *optional*):
                The channel of the audio to take, counted from 0; by default the mean of all.
            threshold (`float`, *optional*):
                The score below which the label is `"uncertain"`. What holds no voice and no words is uncertain too.
            coverage (`float`, *optional*):
                A share of answers, such as 0.9: `label_set` then holds the labels among which the true one is found so
                often, by the scores on development data. Voices and rooms of another kind may fall short of it.
            return_timeline (`bool`, *optional*):
                Whether to answer for every half second of a recording, of any length. Most of what follows asks
                for it too: how the recording is cut, and who is heard in it.
            segment_s, hop_s, granularity, window_s, window_hop_s, context_s, latency_s, voice_activity (*optional*):
                How the recording is cut; see [`TimelineOptions`].
            channels, speaker_turns, customer, everyone, transcriber (*optional*):
                Who is heard in it; see [`MMEmoProcessor.open_recording`].
            window_batch_size (`int`, *optional*):
                Windows of a recording that the model sees at once: 8 on a CPU, 32 elsewhere by default.
            batch_size (`int`, *optional*, defaults to 1), num_workers (`int`, *optional*, defaults to 0):
                Items that the model sees at once, and processes that load them.

        Returns:
            For one item a list of `{"label": str, "score": float}`, highest score first.

            With `return_modality_weights`, `threshold` or `coverage` a dictionary of that list as `scores` and, as
            asked for, `modality_weights` (`{"audio": float, "text": float}`), `label` and `label_set`.

            With a timeline a dictionary of `duration`, in seconds; `speech`, the stretches in which a voice is heard;
            `label`, `scores` and `modality_weights` of the whole, the mean over its speech; `timeline`, a list of
            `{"start", "end", "words", "label", "scores", "modality_weights"}`, in which `label` is `"silence"` and
            `scores` empty where nobody speaks; and `spans`, its stretches of one label, `{"start", "end", "label",
            "score"}`.

            With channels or turns a dictionary of `duration` and `speakers`: by name the stretches of `speech`, and
            the same as above for those whose emotions are asked for. With turns also `turns`, an answer each.

            For a list a list of these; for anything else that holds many, an iterator.

        Raises:
            ValueError: naming the item's position, if an item is refused.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        # The base class streams only generators and torch datasets, and takes anything else for one item.
        if isinstance(inputs, Iterable) and not isinstance(inputs, (*ITEM_TYPES, list, Dataset)):
            inputs = (item for item in inputs)
        return super().__call__(inputs, **kwargs)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        if _wants_timeline(forward_params):
            return self._follow(inputs, preprocess_params, forward_params, postprocess_params)
        doubts = _doubts(postprocess_params)
        model_inputs = self._collate([self.preprocess(inputs, **preprocess_params, find_voice=doubts)])
        return self.postprocess(self.forward(model_inputs), **postprocess_params)

    def get_iterator(
        self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
    ) -> PipelineIterator:
        if _wants_timeline(forward_params):
            parameters = (preprocess_params, forward_params, postprocess_params)
            return (self._follow_numbered(numbered, *parameters) for numbered in enumerate(inputs))
        preprocess_params = {**preprocess_params, "find_voice": _doubts(postprocess_params)}
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(_Numbered(inputs), self._preprocess_numbered, preprocess_params)
        else:
            if num_workers > 1:
                logger.warning(f"A stream is read by one process: num_workers={num_workers} becomes 1.")
                num_workers = 1
            dataset = PipelineIterator(enumerate(inputs), self._preprocess_numbered, preprocess_params)
        if num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
        loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=self._collate)
        outputs = PipelineIterator(loader, self.forward, {}, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def _preprocess_numbered(self, numbered: tuple[int, Any], **parameters) -> dict[str, Any]:
        index, item = numbered
        try:
            return self.preprocess(item, **parameters)
        except ValueError as error:
            raise ValueError(f"Item {index}: {error}") from error

    def preprocess(self, given: Any, channel: int | None = None, find_voice: bool = False) -> dict[str, Any]:
        item = self._as_item(given)
        try:
            prepared = self.processor.prepare(**item, channel=channel)
        except ValueError as error:
            if isinstance(given, str):
                raise ValueError(
                    f"{error} A str is the path of an audio; to give a text, pass {{'text': ...}}."
                ) from error
            raise
        return self.processor.check_voice(prepared) if find_voice else prepared | {"has_voice": True}

    def _as_item(self, given: Any) -> dict[str, Any]:
        """The item as a dictionary of what it has; refuses what the model cannot take."""
        is_audio = not isinstance(given, dict) or (given and given.keys() <= AUDIO_KEYS)
        item = {"audio": given} if is_audio else given
        if unknown := [key for key in item if key not in ITEM_KEYS]:
            raise ValueError(
                f"unknown keys {unknown}; an item may have {ITEM_KEYS}, or be an audio "
                f"alone, with {sorted(AUDIO_KEYS)}. channel= and the like are arguments of the call."
            )
        for modality, tower in (("audio", self.model.config.audio_config), ("text", self.model.config.text_config)):
            if item.get(modality) is not None and tower is None:
                raise ValueError(f"this model has no {modality} encoder; leave {modality!r} out.")
        return item

    def _collate(self, items: list[dict[str, Any]]) -> BatchFeature:
        columns = {key: [item[key] for item in items] for key in items[0]}
        has_voice = columns.pop("has_voice", [True] * len(items))
        inputs = self.processor(**columns, return_tensors="pt")
        inputs["has_voice"] = torch.tensor(has_voice)
        return inputs

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = {key: value for key, value in model_inputs.items() if key != "has_voice"}
        # Only the audio takes the model's precision: half of it would blur the word times.
        audio = {key: inputs[key].to(self.dtype) for key in AUDIO_INPUTS if key in inputs}
        outputs = self.model(**{**inputs, **audio})
        answers = {key: value for key, value in outputs.items() if key in ANSWERS}
        return {**answers, "has_voice": model_inputs["has_voice"]}

    def postprocess(
        self,
        outputs: dict[str, torch.Tensor],
        function_to_apply: str | None = None,
        **parameters: Any,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        scores = self.answers.scores(outputs["logits"][0].float().numpy(), function_to_apply)
        weights = outputs["modality_weights"][0].tolist()
        return self.answers.whole(scores, weights, bool(outputs["has_voice"][0]), **parameters)

    def _follow_numbered(self, numbered: tuple[int, Any], *parameters) -> dict[str, Any]:
        index, item = numbered
        try:
            return self._follow(item, *parameters)
        except ValueError as error:
            raise ValueError(f"Item {index}: {error}") from error

    def _follow(self, given: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> dict:
        """Hears one recording window by window: its timeline."""
        options = {name: value for name, value in forward_params.items() if name in RECORDING_PARAMETERS}
        options = {name: value for name, value in options.items() if value is not None}
        recording = self.processor.open_recording(**self._as_item(given), **preprocess_params, **options)
        batch_size = forward_params.get("window_batch_size") or (8 if self.device.type == "cpu" else 32)
        expected = recording.expected_duration
        windows, shown = iter(recording), 0.0
        with logging.tqdm(total=expected, unit="s", disable=expected is None or expected < PROGRESS_FROM) as bar:
            while batch := list(islice(windows, batch_size)):
                self.answer(batch, postprocess_params.get("function_to_apply"))
                bar.update(recording.duration - shown)
                shown = recording.duration
            bar.update(recording.duration - shown)
        recording.collect()
        parameters = {name: postprocess_params.get(name) for name in ("top_k", "threshold", "coverage")}
        return self.answers.account(recording, **parameters)

    def answer(self, windows: list[Any], function_to_apply: str | None = None) -> None:
        """Runs the model over windows of recordings, see [`Window`], and hands each its answers."""
        outputs = self.forward(self._collate([window.item for window in windows]))
        scores = self.answers.scores(outputs["segment_logits"].float().numpy(), function_to_apply)
        weights = outputs["segment_modality_weights"].float().numpy()
        for window, *answers in zip(windows, scores, weights):
            window.set_predictions(*(rows[: len(window.spans)] for rows in answers))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """
        Saves the model, the processor and this pipeline's code.

        Args:
            save_directory (`str` or `os.PathLike`): Output folder, created if needed.
            kwargs: Passed on to the model's `save_pretrained`.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        custom_object_save(self, save_directory)


def _wants_timeline(parameters: dict[str, Any]) -> bool:
    if parameters.get("return_timeline") is not None:
        return parameters["return_timeline"]
    return any(parameters.get(name) is not None for name in RECORDING_PARAMETERS if name != "everyone") or bool(
        parameters.get("everyone")
    )


def _doubts(parameters: dict[str, Any]) -> bool:
    """Whether an answer may be `"uncertain"`."""
    return parameters.get("threshold") is not None or parameters.get("coverage") is not None


class _Numbered(Dataset):
    """Pairs the items of a list or dataset with their positions, as `enumerate` does for a stream."""

    def __init__(self, items: Any):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.items[index]
