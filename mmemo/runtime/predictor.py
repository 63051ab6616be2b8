"""
Answers from an exported model with onnxruntime, numpy, tokenizers, soundfile, soxr and safetensors; neither torch nor
transformers.

Deliberate choices:
- It gives the answers of the pipeline over the same graph, as it shares all that comes before and after the model.
- One item at a time: an int8 graph measures its activations over a batch, so that neighbours would move an answer.
- What is called once a request may be called from several threads.
"""

import json
import os
from itertools import islice
from typing import Any

import numpy as np

from mmemo.answers import Answers
from mmemo.runtime.graph import EMBEDDED_MODEL, EmotionGraph, find_graph, local_folder
from mmemo.runtime.processor import OnnxProcessor


MODALITIES = {"audio": "audio_attention_mask", "text": "input_ids"}
WINDOW_BATCH_SIZE = 8


class EmotionPredictor:
    """
    Says which emotions are in a clip, in its words, or in both; once, or over time.

    Args:
        model (`str` or `os.PathLike`, *optional*):
            The folder of an exported model, or a repository of the Hub; the embedded model by default.
        file_name (`str`, *optional*): Of the graph; by default `model_int8.onnx`, or else `model.onnx`.
        num_threads (`int`, *optional*): See [`OnnxGraph`].
        revision (`str`, *optional*): Branch, tag or commit of a repository.

    Attributes:
        answers ([`Answers`]): What puts its answers in words; knows its labels.
        processor ([`OnnxProcessor`]): What makes inputs of items.

    Raises:
        FileNotFoundError: If there is no graph, or the tokenizer is missing.
        ImportError, ValueError: See [`OnnxGraph`].

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
        self.answers = Answers(
            [self.config["id2label"][str(index)] for index in range(len(self.config["id2label"]))],
            self.config.get("problem_type"),
            self.config.get("conformal_quantiles"),
            [modality for modality, name in MODALITIES.items() if name in self.graph.input_shapes],
        )

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
        return_timeline: bool = False,
        context: Any = None,
        speaker: str | None = None,
        **recording: Any,
    ) -> Any:
        """
        Answers for one clip, its words, or both.

        Args:
            audio (*optional*): A path, the bytes of a file, samples, or any other form that [`AudioInput`] lists.
            text (`str`, *optional*): What is said; blank counts as missing.
            sampling_rate (`float`, *optional*): Rate of bare samples in Hz; the model's own, 16 kHz, by default.
            word_times (*optional*): When the words are said; see [`WordTimes`].
            context (*optional*), speaker (`str`, *optional*): What was said before the text, oldest first, and who
                says it; see [`DialogueTurn`]. For models that were trained with dialogues.
            top_k, return_modality_weights, channel, threshold, coverage, return_timeline (*optional*), recording:
                As in [`~MultimodalEmotionPipeline.__call__`]; `recording` is how a timeline is cut and who is heard in
                it, but for transcribers.

        Returns:
            What the pipeline returns for one item.

        Raises:
            ValueError: If the clip, the text or an option is refused, or both are missing.
        """
        options: dict[str, Any] = {"top_k": top_k, "threshold": threshold, "coverage": coverage}
        self.answers.check(**options)
        item = {
            "audio": audio,
            "text": text,
            "word_times": word_times,
            "sampling_rate": sampling_rate,
            "context": context,
            "speaker": speaker,
        }
        if return_timeline:
            return self.follow(item, channel=channel, **options, **recording)
        if recording:
            raise ValueError(f"{sorted(recording)} are about timelines; pass return_timeline=True, or leave them out.")
        prepared = self.prepare(item, channel, threshold is not None or coverage is not None)
        return self.answer_item(prepared, return_modality_weights=return_modality_weights, **options)

    def prepare(self, item: dict[str, Any], channel: int | None = None, find_voice: bool = False) -> dict[str, Any]:
        """
        Loads and checks one item; see [`~ItemProcessing.prepare`].

        Args:
            item (`dict`): Those of `audio`, `text`, `word_times`, `sampling_rate`, `context` and `speaker` there are.
            channel (`int`, *optional*): See [`~EmotionPredictor.__call__`].
            find_voice (`bool`, *optional*, defaults to `False`): Whether to listen for a voice in the audio.
        """
        self._refuse_missing_towers(item)
        prepared = self.processor.prepare(**item, channel=channel)
        return self.processor.check_voice(prepared) if find_voice else prepared | {"has_voice": True}

    def answer_item(self, prepared: dict[str, Any], **options: Any) -> Any:
        """Answers for what [`~EmotionPredictor.prepare`] returned; `options` are those of [`~Answers.whole`]."""
        outputs = self.run([prepared])
        scores = self.answers.scores(outputs["logits"][0])
        return self.answers.whole(scores, outputs["modality_weights"][0], prepared["has_voice"], **options)

    def follow(
        self,
        item: dict[str, Any],
        top_k: int | None = None,
        threshold: float | None = None,
        coverage: float | None = None,
        window_batch_size: int = WINDOW_BATCH_SIZE,
        **recording: Any,
    ) -> dict[str, Any]:
        """Follows an item over time; see [`~EmotionPredictor.__call__`]."""
        self._refuse_missing_towers(item)
        opened = self.processor.open_recording(**item, **recording)
        windows = iter(opened)
        while batch := list(islice(windows, window_batch_size)):
            self.answer(batch)
        opened.collect()
        return self.answers.account(opened, top_k=top_k, threshold=threshold, coverage=coverage)

    def answer(self, windows: list[Any]) -> None:
        """Runs the model over windows of recordings, see [`Window`], and hands each its answers."""
        outputs = self.run([window.item for window in windows])
        scores = self.answers.scores(outputs["segment_logits"])
        for window, *answers in zip(windows, scores, outputs["segment_modality_weights"]):
            window.set_predictions(*(rows[: len(window.spans)] for rows in answers))

    def run(self, items: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Runs the model over items that are prepared; what it returns has a row for each."""
        columns = {name: [item[name] for item in items] for name in items[0] if name != "has_voice"}
        inputs = self.processor.make_inputs(**columns)
        return self.graph.answer({name: np.asarray(values) for name, values in inputs.items()})

    def _refuse_missing_towers(self, item: dict[str, Any]) -> None:
        for modality in MODALITIES:
            if item.get(modality) is not None and modality not in self.answers.modalities:
                raise ValueError(f"this model has no {modality} encoder; leave {modality!r} out.")
        if item.get("audio") is not None and self.processor.feature_extractor is None:
            raise ValueError(
                f"{self.graph.path.parent} holds no features.safetensors: an earlier version exported it, or its "
                "feature extractor cannot be exported. Export it again, or run it with "
                "modeling_mmemo.load_pipeline(..., backend='onnx')."
            )
