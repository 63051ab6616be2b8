"""The arrays of the feature extractor as a file, for [`EmotionPredictor`], which runs without librosa."""

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from mmemo.runtime.graph import ANALYSIS_FILE
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor


def can_export(processor: MMEmoProcessor) -> bool:
    """Whether the features can be computed without librosa: by [`MMEmoFeatureExtractor`] without `trim_db`."""
    extractor = processor.feature_extractor
    return isinstance(extractor, MMEmoFeatureExtractor) and extractor.trim_db is None


def save_analysis(processor: MMEmoProcessor, save_directory: str | Path) -> Path:
    """
    Writes window, mel filterbank and cosine table of the feature extractor to `features.safetensors`.

    Args:
        processor (`MMEmoProcessor`): A processor for which [`can_export`] is true.
        save_directory (`str` or `Path`): Output folder, created if needed.

    Returns:
        `Path`: Path of the file.

    Raises:
        ValueError: If the processor has another feature extractor.
    """
    if not can_export(processor):
        raise ValueError(
            f"The features of {type(processor.feature_extractor).__name__} cannot be exported; only "
            "MMEmoFeatureExtractor without trim_db can. Run the model with load_pipeline instead."
        )
    analysis = processor.feature_extractor.analysis
    path = Path(save_directory) / ANALYSIS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"window": analysis.window, "mel_filters": analysis.mel_filters, "cosines": analysis.cosines}
    # `save_file` would create a file that other users cannot read.
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    return path
