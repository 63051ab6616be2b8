"""
Pipeline `multimodal-emotion`: a voice, its words, or both, to emotions and how sure the model is.

Deliberate choices:
- The file is stand-alone: it is copied to the Hub and imports nothing of its package.
- `preprocess` loads and checks one item; the features of a batch are extracted together, so that items with audio,
  with text and with both share a batch.
"""

import copy
import os
from collections.abc import Callable, Iterable, Sized
from functools import partial
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
ITEM_KEYS = ("audio", "text", "word_times", "sampling_rate")
# A dictionary of nothing but these is itself an audio, as `datasets` yields it.
AUDIO_KEYS = {"array", "raw", "sampling_rate", "bytes", "path"}
AUDIO_INPUTS = ("input_features", "input_values")
# What is one item, although it can be iterated over.
ITEM_TYPES = (str, bytes, os.PathLike, dict, np.ndarray, torch.Tensor)

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": partial(torch.softmax, dim=-1),
    "sigmoid": torch.sigmoid,
    "none": torch.clone,
}

PREPROCESS_PARAMETERS = ("channel",)
POSTPROCESS_PARAMETERS = ("top_k", "function_to_apply", "return_modality_weights")


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

    def _sanitize_parameters(self, **parameters):
        known = PREPROCESS_PARAMETERS + POSTPROCESS_PARAMETERS
        if unknown := parameters.keys() - set(known):
            raise TypeError(f"Unknown parameters {sorted(unknown)}; valid ones are {known}.")
        function, top_k = parameters.get("function_to_apply"), parameters.get("top_k")
        if function is not None and function not in FUNCTIONS:
            raise ValueError(f"function_to_apply={function!r} is unknown; choose one of {list(FUNCTIONS)}.")
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise ValueError(f"top_k={top_k!r} must be an integer of at least 1, or None for all labels.")
        preprocess_parameters, postprocess_parameters = (
            {name: parameters[name] for name in names if name in parameters}
            for names in (PREPROCESS_PARAMETERS, POSTPROCESS_PARAMETERS)
        )
        return preprocess_parameters, {}, postprocess_parameters

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
                - **word_times** -- `[(word, start, end), ...]` in seconds, or the chunks of an ASR pipeline;
                - **sampling_rate** (`float`) -- rate in Hz of an audio that is a bare array.
            top_k (`int`, *optional*):
                How many labels to return, those with the highest scores; all by default.
            function_to_apply (`str`, *optional*):
                `"softmax"`, `"sigmoid"` or `"none"`. By default, what the model's `problem_type` takes: sigmoid for
                multi-label classification, nothing for regression, softmax otherwise.
            return_modality_weights (`bool`, *optional*, defaults to `False`):
                Whether to return how much the audio and the text had to say.
            channel (`int`, *optional*):
                The channel of the audio to take, counted from 0; by default the mean of all.
            batch_size (`int`, *optional*, defaults to 1), num_workers (`int`, *optional*, defaults to 0):
                Items that the model sees at once, and processes that load them.

        Returns:
            For one item a list of `{"label": str, "score": float}`, highest score first, or with
            `return_modality_weights` a dictionary `{"scores": that list, "modality_weights": {"audio": float, "text":
            float}}`. For a list a list of these; for anything else that holds many, an iterator.

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
        model_inputs = self._collate([self.preprocess(inputs, **preprocess_params)])
        return self.postprocess(self.forward(model_inputs, **forward_params), **postprocess_params)

    def get_iterator(
        self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params
    ) -> PipelineIterator:
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
        outputs = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(outputs, self.postprocess, postprocess_params)

    def _preprocess_numbered(self, numbered: tuple[int, Any], **parameters) -> dict[str, Any]:
        index, item = numbered
        try:
            return self.preprocess(item, **parameters)
        except ValueError as error:
            raise ValueError(f"Item {index}: {error}") from error

    def preprocess(self, given: Any, channel: int | None = None) -> dict[str, Any]:
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
        try:
            return self.processor.prepare(**item, channel=channel)
        except ValueError as error:
            if isinstance(given, str):
                raise ValueError(
                    f"{error} A str is the path of an audio; to give a text, pass {{'text': ...}}."
                ) from error
            raise

    def _collate(self, items: list[dict[str, Any]]) -> BatchFeature:
        return self.processor(**{key: [item[key] for item in items] for key in items[0]}, return_tensors="pt")

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Only the audio takes the model's precision: half of it would blur the word times.
        audio = {key: model_inputs[key].to(self.dtype) for key in AUDIO_INPUTS if key in model_inputs}
        outputs = self.model(**{**model_inputs, **audio})
        return {"logits": outputs.logits, "modality_weights": outputs.modality_weights}

    def postprocess(
        self,
        outputs: dict[str, torch.Tensor],
        top_k: int | None = None,
        function_to_apply: str | None = None,
        return_modality_weights: bool = False,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        scores = FUNCTIONS[function_to_apply or self._default_function()](outputs["logits"][0].float())
        best = scores.argsort(descending=True, stable=True)[:top_k].tolist()
        result = [{"label": self.model.config.id2label[index], "score": scores[index].item()} for index in best]
        if not return_modality_weights:
            return result
        weights = dict(zip(("audio", "text"), outputs["modality_weights"][0].tolist()))
        return {"scores": result, "modality_weights": weights}

    def _default_function(self) -> str:
        config = self.model.config
        if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
            return "none"
        return "sigmoid" if config.problem_type == "multi_label_classification" else "softmax"

    def save_pretrained(self, save_directory: str | os.PathLike, remote_code: bool = False, **kwargs):
        """
        Saves the model and the processor.

        Args:
            save_directory (`str` or `os.PathLike`): The folder, made if need be.
            remote_code (`bool`, *optional*, defaults to `False`):
                Whether to add this pipeline's code, which who has not installed the package needs. `pipeline()` then
                loads the folder with `trust_remote_code=True` only.
            kwargs: Passed on to the model's `save_pretrained`.
        """
        implementation = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        entry = {"impl": implementation, "pt": ["AutoModelForAudioClassification"]}
        self.model.config.custom_pipelines = {TASK: entry} if remote_code else {}
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)
        if remote_code:
            custom_object_save(self, save_directory)

    def push_to_hub(self, *args, **kwargs) -> str:
        """Pushes the model, the processor and the code of this pipeline; see [`~utils.PushToHubMixin.push_to_hub`]."""
        shared = copy.copy(self)
        shared.save_pretrained = partial(self.save_pretrained, remote_code=True)  # type: ignore[method-assign]
        return super(MultimodalEmotionPipeline, shared).push_to_hub(*args, **kwargs)


class _Numbered(Dataset):
    """Pairs the items of a list or dataset with their positions, as `enumerate` does for a stream."""

    def __init__(self, items: Any):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.items[index]
