"""An exported graph with the interface of the PyTorch model, for the pipeline."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from optimum.modeling_base import OptimizedModel

from mmemo.modalities import MODALITIES
from mmemo.runtime.graph import EmotionGraph, find_graph, local_folder
from modeling_mmemo.configuration_mmemo import MMEmoConfig
from modeling_mmemo.outputs_mmemo import MMEmoEmotionOutput


class MMEmoOnnxModel(OptimizedModel):
    """
    An exported model that runs on ONNX Runtime and has the outputs of [`MMEmoForEmotionRecognition`].

    Example:

    ```python
    >>> from modeling_mmemo import load_pipeline
    >>> from modeling_mmemo.exporters import MMEmoOnnxModel

    >>> model = MMEmoOnnxModel.from_pretrained("exported", num_threads=1)
    >>> emotion = load_pipeline(model, processor="exported")
    ```
    """

    config_class = MMEmoConfig
    main_input_name = "input_ids"
    input_modalities = MODALITIES
    # A graph contains all its weights.
    missing_keys_on_load: tuple[str, ...] = ()

    def __init__(self, model: EmotionGraph, config: MMEmoConfig):
        super().__init__(model, config)
        self.device = torch.device("cpu")
        self.dtype = torch.float32

    @classmethod
    def from_pretrained(
        cls,
        model_id: str | Path,
        *,
        file_name: str | None = None,
        num_threads: int | None = None,
        providers: list[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "MMEmoOnnxModel":
        """
        Loads an exported model.

        Args:
            model_id (`str` or `Path`): A folder or Hub repository.
            file_name (`str`, *optional*): Name of the graph; `model_int8.onnx`, or else `model.onnx`, by default.
            num_threads (`int`, *optional*), providers (`list[str]`, *optional*): See [`EmotionGraph`].
            revision, token, cache_dir, local_files_only (*optional*): See `transformers`, for the Hub.

        Raises:
            FileNotFoundError: If there is no graph.
            ImportError, ValueError: See [`EmotionGraph`].
        """
        folder = local_folder(
            model_id, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        graph = EmotionGraph(find_graph(folder, file_name), num_threads, providers)
        config = MMEmoConfig.from_pretrained(folder)
        # `load_pipeline` loads the processor from here.
        config.name_or_path = str(folder)
        return cls(graph, config)

    @property
    def similarity_scale(self) -> float | None:
        """See [`EmotionGraph.similarity_scale`]."""
        return self.model.similarity_scale

    def forward(self, **inputs: torch.Tensor | None) -> MMEmoEmotionOutput:
        """
        Args:
            inputs (`torch.Tensor`): Inputs of [`MMEmoForEmotionRecognition`], without labels, of at least one
                modality.

        Returns:
            [`MMEmoEmotionOutput`]: The outputs of the graph, on the CPU.

        Raises:
            ValueError: If an input is unknown, or all modalities are missing.
        """
        given = {name: value.cpu().numpy() for name, value in inputs.items() if value is not None}
        outputs = self.model.predict(given)
        return MMEmoEmotionOutput(**{name: torch.from_numpy(values) for name, values in outputs.items()})

    def can_generate(self) -> bool:
        return False

    def to(self, *args: Any, **kwargs: Any) -> "MMEmoOnnxModel":
        """Returns the model unchanged; the session determines the device."""
        return self

    def _save_pretrained(self, save_directory: str | os.PathLike) -> None:
        path = self.model.path
        for file in (path, path.with_name(f"{path.name}.data")):
            if file.is_file():
                shutil.copy(file, save_directory)
