"""
Predictions of an exported model with onnxruntime, numpy, tokenizers, soundfile, soxr and safetensors; without torch
and transformers.

Deliberate choices:
- It returns the predictions of the pipeline over the same graph: everything but `run` is shared.
- Items run one by one: a dynamic int8 graph measures activation ranges over a whole batch, so other items of a batch
  would change a prediction.
- Methods that a server calls once per request are thread-safe.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmemo.answers import AnswerFormatter
from mmemo.items import PreparedItem
from mmemo.recognition import EmotionRecognition, check_option_names, check_timeline_options, is_timeline
from mmemo.runtime.graph import EMBEDDED_MODEL, EmotionGraph, find_graph, local_folder
from mmemo.runtime.processor import OnnxProcessor
from mmemo.zero_shot import HYPOTHESIS_TEMPLATE, NONE_LABEL, Similarity


WINDOW_BATCH_SIZE = 8


class EmotionPredictor(EmotionRecognition):
    """
    Predicts the emotions of a clip, its text, its video, or several of them; as a whole, or over time.

    Args:
        model (`str` or `os.PathLike`, *optional*):
            The folder of an exported model, or a repository of the Hub; the embedded model by default.
        file_name (`str`, *optional*): File name of the graph; `model_int8.onnx`, else `model.onnx`, by default.
        num_threads (`int`, *optional*): See [`EmotionGraph`].
        revision (`str`, *optional*): Branch, tag or commit of a repository.

    Attributes:
        answers ([`AnswerFormatter`]): Converts scores to labels; `answers.labels` lists the labels.
        processor ([`OnnxProcessor`]): Converts items to model inputs.

    Raises:
        FileNotFoundError: If the graph or the tokenizer is missing.
        ImportError, ValueError: See [`EmotionGraph`].

    Example:

    ```python
    >>> from mmemo import EmotionPredictor

    >>> predict = EmotionPredictor()
    >>> predict("call.wav", "I have been waiting for an hour.", top_k=2)
    [{'label': 'angry', 'score': 0.83}, {'label': 'sad', 'score': 0.07}]
    >>> predict("call.wav", word_times=Path("call.srt"), return_timeline=True)["spans"]
    [{'start': 0.0, 'end': 3.0, 'label': 'neutral', 'score': 0.98}, ...]
    ```
    """

    processor: OnnxProcessor

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        file_name: str | None = None,
        num_threads: int | None = None,
        revision: str | None = None,
    ):
        folder = EMBEDDED_MODEL if model is None else local_folder(model, revision=revision)
        self.graph = EmotionGraph(find_graph(folder, file_name), num_threads)
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.processor = OnnxProcessor(folder)
        self.answers = AnswerFormatter(
            [self.config["id2label"][str(index)] for index in range(len(self.config["id2label"]))],
            self.config.get("problem_type"),
            self.config.get("conformal_quantiles"),
            list(self.graph.modality_inputs),
        )
        self.is_batch_dependent = self.graph.is_batch_dependent
        self.window_batch_size = 1 if self.is_batch_dependent else WINDOW_BATCH_SIZE

    def __call__(
        self,
        audio: Any = None,
        text: Any = None,
        sampling_rate: float | None = None,
        top_k: int | None = None,
        return_modality_weights: bool = False,
        word_times: Any = None,
        channel: int | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
        return_timeline: bool | None = None,
        context: Any = None,
        speaker: str | None = None,
        function_to_apply: str | None = None,
        video: Any = None,
        fps: float | None = None,
        face: int | None = None,
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str | Sequence[str] = HYPOTHESIS_TEMPLATE,
        none_label: str | None = NONE_LABEL,
        **timeline: Any,
    ) -> Any:
        """
        Predicts one clip, its text, its video, or several of them.

        Args:
            audio (*optional*): A path, the bytes of a file, samples, or any other form that [`AudioInput`] lists; the
                sound of the video by default.
            text (`str`, *optional*): The text; blank counts as missing.
            sampling_rate (`float`, *optional*): Sampling rate of bare samples in Hz; the model's, 16 kHz, by default.
            word_times (*optional*): Timestamps of the words; see [`WordTimes`].
            context (*optional*), speaker (`str`, *optional*): The previous turns, oldest first, and the speaker of the
                text; see [`DialogueTurn`]. For models that were trained with dialogue context.
            video (*optional*): A path, frames, an image, or any other form that [`VideoInput`] lists.
            fps (`float`, *optional*): Frames per second of bare frames.
            top_k, return_modality_weights, channel, face, threshold, coverage, return_timeline, function_to_apply,
            candidate_labels, hypothesis_template, none_label (*optional*), timeline:
                As in [`~MultimodalEmotionPipeline.__call__`].

        Returns:
            The same as the pipeline for one item.

        Raises:
            TypeError: If an option is unknown.
            ValueError: If the audio, the text, the video or an option is invalid, or all are missing.
        """
        check_option_names(timeline)
        options: dict[str, Any] = {
            "top_k": top_k,
            "function_to_apply": function_to_apply,
            "threshold": threshold,
            "coverage": coverage,
        }
        recognition = self.with_labels(candidate_labels, hypothesis_template, none_label)
        recognition.answers.check_options(**options)
        item = {
            "text": text,
            "video": video,
            "word_times": word_times,
            "sampling_rate": sampling_rate,
            "fps": fps,
            "context": context,
            "speaker": speaker,
        }
        if audio is not None or video is None:
            item["audio"] = audio
        requested = {**timeline, "return_timeline": return_timeline}
        check_timeline_options(requested)
        if is_timeline(requested):
            return recognition.predict_timeline(item, channel=channel, face=face, **options, **timeline)
        prepared = recognition.prepare(item, channel, face)
        return recognition.predict_item(prepared, return_modality_weights=return_modality_weights, **options)

    @property
    def similarity(self) -> Similarity:
        calibration = self.config.get("zero_shot_calibration")
        return Similarity(self.config.get("projection_dim"), self.graph.similarity_scale, calibration)

    def as_item(self, inputs: Any) -> dict[str, Any]:
        item = super().as_item(inputs)
        if item.get("audio") is not None and self.processor.feature_extractor is None:
            raise ValueError(
                f"{self.graph.path.parent} has no features.safetensors: an earlier version exported it, or its "
                "feature extractor cannot be exported. Export it again, or run it with "
                "modeling_mmemo.load_pipeline(..., backend='onnx')."
            )
        return item

    def run(self, items: list[PreparedItem]) -> dict[str, np.ndarray]:
        inputs = self.processor.collate(items)
        return self.graph.predict({name: np.asarray(values) for name, values in inputs.items()})
