"""
The feature extractor for processes without librosa: what [`MelAnalysis`] needs, and a graph for any language.

The graph, samples in and what the model hears out, runs in single precision, where the extractor's FFT has double:
bins 80 dB below a clip's maximum are off by up to 1e-3 dB, the model's scores by less than 1e-4.
"""

from pathlib import Path

import numpy as np
import onnx_ir
import torch
from safetensors.numpy import save
from torch import nn

from mmemo.audio.mel import LOWEST_POWER
from mmemo.runtime.graph import ANALYSIS_FILE, FEATURES_FILE
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor
from modeling_mmemo.exporters.onnx_export import describe, keep_quiet, strip


class FeatureGraph(nn.Module):
    """The features of one clip; see [`MMEmoFeatureExtractor`] for the formulas."""

    def __init__(self, extractor: MMEmoFeatureExtractor):
        super().__init__()
        self.extractor = extractor
        size = extractor.n_fft
        # The spectrum as a convolution: cosines, then sines, under the window.
        angles = 2 * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size
        waves = np.concatenate([np.cos(angles), np.sin(angles)]) * extractor.analysis.window
        self.register_buffer("waves", torch.tensor(waves, dtype=torch.float32).unsqueeze(1))
        self.register_buffer("mel_filters", torch.tensor(extractor.analysis.mel_filters))
        self.register_buffer("cosines", torch.tensor(extractor.analysis.cosines, dtype=torch.float32))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """
        Args:
            samples (`torch.Tensor` of shape `(1, samples)`): Mono, at the extractor's rate.

        Returns:
            `torch.Tensor` of shape `(1, feature_size, frames)`.
        """
        extractor = self.extractor
        if extractor.loudness_dbfs is not None:
            rms = samples.double().square().mean().sqrt()
            samples = samples * (10 ** (extractor.loudness_dbfs / 20) / rms).float()
        mode = "reflect" if extractor.preset == "whisper" else "constant"
        padded = nn.functional.pad(samples.unsqueeze(1), (extractor.n_fft // 2, extractor.n_fft // 2), mode=mode)
        real, imaginary = nn.functional.conv1d(padded, self.waves, stride=extractor.hop_length).chunk(2, dim=1)
        power = real.square() + imaginary.square()
        if extractor.preset == "whisper":
            power = power[..., :-1]
        mel = self.mel_filters @ power
        return torch.cat([self._feature(name, mel) for name in extractor.features], dim=1)

    def _feature(self, name: str, mel: torch.Tensor) -> torch.Tensor:
        if name == "mel":
            return mel
        logarithm = mel.clamp(min=LOWEST_POWER).log10()
        if name == "log_mel" and self.extractor.preset == "whisper":
            return (torch.maximum(logarithm, logarithm.max() - 8) + 4) / 4
        decibels = torch.maximum(10 * logarithm, 10 * logarithm.max() - 80)
        return decibels if name == "log_mel" else self.cosines @ decibels


def can_export(processor: MMEmoProcessor) -> bool:
    """Whether the processor's features can be a graph: those of [`MMEmoFeatureExtractor`], without `trim_db`."""
    extractor = processor.feature_extractor
    return isinstance(extractor, MMEmoFeatureExtractor) and extractor.trim_db is None


def save_analysis(processor: MMEmoProcessor, save_directory: str | Path) -> Path:
    """
    Writes what the feature extractor multiplies by as `features.safetensors`, for [`EmotionPredictor`].

    Args:
        processor (`MMEmoProcessor`): One that [`can_export`] agrees to.
        save_directory (`str` or `Path`): The folder, made if need be.
    """
    _refuse_others(processor)
    analysis = processor.feature_extractor.analysis
    path = Path(save_directory) / ANALYSIS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"window": analysis.window, "mel_filters": analysis.mel_filters, "cosines": analysis.cosines}
    # `save_file` would leave a file that nobody else may read.
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    return path


def export_features(processor: MMEmoProcessor, save_directory: str | Path) -> Path:
    """
    Writes the feature extractor as `features.onnx`.

    Args:
        processor (`MMEmoProcessor`): One that [`can_export`] agrees to.
        save_directory (`str` or `Path`): The folder, made if need be.

    Returns:
        `Path`: of the graph, from `samples`, `(1, samples)`, to `features`, `(1, feature_size, frames)`.

    Raises:
        ValueError: If the processor has another feature extractor.
    """
    _refuse_others(processor)
    extractor = processor.feature_extractor
    path = Path(save_directory) / FEATURES_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with keep_quiet():
        program = torch.onnx.export(
            FeatureGraph(extractor).eval(),
            (torch.randn(1, extractor.sampling_rate),),
            input_names=["samples"],
            output_names=["features"],
            dynamic_shapes=({1: torch.export.Dim.DYNAMIC},),
            verbose=False,
        )
    strip(program.model)
    describe(program.model.metadata_props, sampling_rate=extractor.sampling_rate)
    onnx_ir.save(program.model, path)
    return path


def _refuse_others(processor: MMEmoProcessor) -> None:
    if not can_export(processor):
        raise ValueError(
            f"The features of {type(processor.feature_extractor).__name__} cannot be exported; only those of "
            "MMEmoFeatureExtractor without trim_db can."
        )
