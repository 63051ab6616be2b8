"""
Answers from an exported model with onnxruntime, numpy, tokenizers and soundfile alone; neither torch nor transformers.

Deliberate choices:
- It gives the pipeline's answers, for single clips and texts. Timelines, word times, thresholds and batches are the
  pipeline's: `modeling_mmemo.pipeline("multimodal-emotion")`.
- What a clip must be is checked as the full package checks it, in fewer words.
"""

import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mmemo.graph import EXPORT_REMEDY, FEATURES_FILE, EmotionGraph, OnnxGraph, find_graph, local_folder


AudioSource = str | os.PathLike | bytes | np.ndarray
MIN_SECONDS = 0.04
SILENCE_PEAK = 1e-4


def embedded_folder() -> Path:
    """Where the embedded model lies; found without importing the package that holds it."""
    spec = importlib.util.find_spec("modeling_mmemo")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("The package modeling_mmemo, which holds the embedded model, is not installed.")
    return Path(spec.submodule_search_locations[0]) / "default"


class EmotionPredictor:
    """
    Says which emotions are in a clip, in its words, or in both.

    Args:
        model (`str` or `os.PathLike`, *optional*):
            The folder of an exported model, or a repository of the Hub; the embedded model by default.
        file_name (`str`, *optional*): Of the graph; by default `model_int8.onnx`, or else `model.onnx`.
        num_threads (`int`, *optional*): See [`OnnxGraph`].
        revision (`str`, *optional*): Branch, tag or commit of a repository.

    Raises:
        FileNotFoundError: If there is no graph.
        ImportError, ValueError: See [`OnnxGraph`].

    Example:

    ```python
    >>> from mmemo import EmotionPredictor

    >>> predict = EmotionPredictor()
    >>> predict("call.wav", "I have been waiting for an hour.", top_k=2)
    [{'label': 'angry', 'score': 0.83}, {'label': 'sad', 'score': 0.07}]
    ```
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        file_name: str | None = None,
        num_threads: int | None = None,
        revision: str | None = None,
    ):
        folder = embedded_folder() if model is None else local_folder(model, revision=revision)
        graph_path = find_graph(folder, file_name)
        self.graph = EmotionGraph(graph_path, num_threads)
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.labels = [self.config["id2label"][str(index)] for index in range(len(self.config["id2label"]))]
        self._features: OnnxGraph | None = None
        self._folder = folder
        self._tokenizer: Any = None

    def __call__(
        self,
        audio: AudioSource | None = None,
        text: str | None = None,
        sampling_rate: float | None = None,
        top_k: int | None = None,
        return_modality_weights: bool = False,
    ) -> Any:
        """
        Answers for one clip, its words, or both.

        Args:
            audio (`str`, `os.PathLike`, `bytes` or `np.ndarray`, *optional*):
                The path or the bytes of a file, or samples of shape `(samples,)` or `(channels, samples)`.
            text (`str`, *optional*): What is said; blank counts as missing.
            sampling_rate (`float`, *optional*): Rate of bare samples in Hz; the model's own, 16 kHz, by default.
            top_k (`int`, *optional*): How many labels to return; all by default.
            return_modality_weights (`bool`, *optional*, defaults to `False`): Whether to return how much the audio and
                the text had to say.

        Returns:
            A list of `{"label": str, "score": float}`, highest score first; with `return_modality_weights` a
            dictionary of it as `scores` and of `modality_weights`.

        Raises:
            ValueError: If the clip or the text is refused, or both are missing.
        """
        if top_k is not None and not (isinstance(top_k, int) and top_k >= 1):
            raise ValueError(f"top_k={top_k!r} must be an integer of at least 1, or None for all labels.")
        inputs: dict[str, np.ndarray] = {}
        if audio is not None:
            inputs |= self._hear(audio, sampling_rate)
        if text is not None and text.strip():
            inputs |= self._read(text)
        if not inputs:
            raise ValueError("audio and text are both missing; pass at least one. A blank text counts as missing.")
        outputs = self.graph.answer(inputs)
        scores = self._scores(outputs["logits"][0].astype(np.float32))
        best = np.argsort(-scores, kind="stable").tolist()
        answer = [{"label": self.labels[index], "score": float(scores[index])} for index in best[:top_k]]
        if not return_modality_weights:
            return answer
        weights = dict(zip(("audio", "text"), map(float, outputs["modality_weights"][0])))
        return {"scores": answer, "modality_weights": weights}

    def _hear(self, audio: AudioSource, sampling_rate: float | None) -> dict[str, np.ndarray]:
        if "audio_attention_mask" not in self.graph.input_shapes:
            raise ValueError("This model has no audio encoder; leave the audio out.")
        if self._features is None:
            try:
                # One thread: more would spin on for a while, in the way of those of the model.
                self._features = OnnxGraph(find_graph(self._folder, FEATURES_FILE), num_threads=1)
            except FileNotFoundError as error:
                raise ValueError(
                    f"{self._folder} holds no {FEATURES_FILE}: its feature extractor could not be exported. Run it "
                    "with modeling_mmemo.load_pipeline(..., backend='onnx')."
                ) from error
        rate = self._features.metadata["sampling_rate"]
        samples = load_samples(audio, sampling_rate, rate)
        features = self._features.run({"samples": samples[None]})["features"]
        return {
            "input_features": features,
            "audio_attention_mask": np.ones((1, features.shape[-1]), np.int64),
        }

    def _read(self, text: str) -> dict[str, np.ndarray]:
        if "input_ids" not in self.graph.input_shapes:
            raise ValueError("This model has no text encoder; leave the text out.")
        if self._tokenizer is None:
            self._tokenizer = _load_tokenizer(self._folder)
        ids = self._tokenizer.encode(text).ids
        return {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        problem = self.config.get("problem_type")
        if problem == "regression" or (problem is None and len(self.labels) == 1):
            return logits
        if problem == "multi_label_classification":
            return 1 / (1 + np.exp(-logits))
        exponentials = np.exp(logits - logits.max())
        return exponentials / exponentials.sum()


def load_samples(audio: AudioSource, sampling_rate: float | None, target_rate: int) -> np.ndarray:
    """
    A clip as mono samples at the target rate, `(samples,)`, float32.

    Raises:
        ImportError: If the clip has another rate and soxr is not installed.
        ValueError: If the clip cannot be read, or is too short, silent or not finite.
    """
    if isinstance(audio, np.ndarray):
        name, rate, samples = "The array", sampling_rate or target_rate, np.atleast_2d(audio).T
    else:
        import soundfile

        name = "The file" if isinstance(audio, bytes) else str(audio)
        if not isinstance(audio, bytes) and not Path(audio).is_file():
            raise ValueError(f"{name} is not a file.")
        try:
            samples, rate = soundfile.read(
                io.BytesIO(audio) if isinstance(audio, bytes) else audio, dtype="float32", always_2d=True
            )
        except soundfile.SoundFileError as error:
            raise ValueError(f"{name} cannot be read: {error} Convert it to WAV: ffmpeg -i INPUT out.wav.") from error
    mono = samples.mean(axis=1, dtype=np.float32)
    if rate != target_rate:
        try:
            import soxr
        except ModuleNotFoundError as error:
            raise ImportError(
                f"{name} has {rate} Hz and the model hears {target_rate} Hz; resampling needs soxr: pip install soxr."
            ) from error
        mono = soxr.resample(mono, rate, target_rate)
    if len(mono) < MIN_SECONDS * target_rate:
        raise ValueError(f"{name} lasts {len(mono) / target_rate:.4f} s, but at least {MIN_SECONDS} s are needed.")
    peak = np.abs(mono).max()
    if not np.isfinite(peak):
        raise ValueError(f"{name} holds NaN or infinity.")
    if peak < SILENCE_PEAK:
        raise ValueError(f"{name} is silent: its peak is {peak:.1e}, and it must reach {SILENCE_PEAK}. Leave it out.")
    return mono


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer, cutting texts where the model's positions end."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no tokenizer.json. {EXPORT_REMEDY}")
    tokenizer = Tokenizer.from_file(str(path))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer.no_padding()
    limit = settings.get("model_max_length")
    # Tokenizers without a limit say 10^30.
    tokenizer.enable_truncation(limit) if limit and limit < 10**9 else tokenizer.no_truncation()
    return tokenizer
