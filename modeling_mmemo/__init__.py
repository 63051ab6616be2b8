"""mmemo: multimodal emotion recognition from audio, text and video, with the interfaces of `transformers`."""

from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoProcessor,
    pipeline,
)

from mmemo.audio.loading import AudioInput, load_audio
from mmemo.timeline.streaming import EmotionStream

from .audio_encoder_mmemo import MMEmoAudioEncoder
from .configuration_mmemo import EMOTIONS, MMEmoAudioConfig, MMEmoConfig, MMEmoVideoConfig
from .feature_extraction_mmemo import MMEmoFeatureExtractor
from .hub.remote_code import saves_remote_code
from .modeling_mmemo import MMEmoEmotionOutput, MMEmoForEmotionRecognition, MMEmoModel, MMEmoModelOutput
from .processing_mmemo import MMEmoProcessor
from .video_encoder_mmemo import MMEmoVideoEncoder


__version__ = "0.1.0"

AutoConfig.register(MMEmoAudioConfig.model_type, MMEmoAudioConfig)
AutoConfig.register(MMEmoVideoConfig.model_type, MMEmoVideoConfig)
AutoConfig.register(MMEmoConfig.model_type, MMEmoConfig)
AutoModel.register(MMEmoAudioConfig, MMEmoAudioEncoder)
AutoModel.register(MMEmoVideoConfig, MMEmoVideoEncoder)
AutoModel.register(MMEmoConfig, MMEmoModel)
AutoModelForAudioClassification.register(MMEmoConfig, MMEmoForEmotionRecognition)
AutoFeatureExtractor.register(MMEmoAudioConfig, MMEmoFeatureExtractor)
AutoFeatureExtractor.register(MMEmoConfig, MMEmoFeatureExtractor)
AutoProcessor.register(MMEmoConfig, MMEmoProcessor)

# The pipeline registers the task, and needs the names above.
from .pipelines import MultimodalEmotionPipeline, load_pipeline  # noqa: E402


# Saved files carry the code, for processes in which this package is not installed.
SAVED_CLASSES: dict[Any, str] = {
    MMEmoConfig: "AutoConfig",
    MMEmoAudioConfig: "AutoConfig",
    MMEmoVideoConfig: "AutoConfig",
    MMEmoModel: "AutoModel",
    MMEmoAudioEncoder: "AutoModel",
    MMEmoVideoEncoder: "AutoModel",
    MMEmoForEmotionRecognition: "AutoModelForAudioClassification",
    MMEmoFeatureExtractor: "AutoFeatureExtractor",
    MMEmoProcessor: "AutoProcessor",
}
for saved_class, auto_class in SAVED_CLASSES.items():
    saved_class.register_for_auto_class(auto_class)
    saves_remote_code(saved_class)
saves_remote_code(MultimodalEmotionPipeline)


__all__ = [
    "EMOTIONS",
    "AudioInput",
    "EmotionStream",
    "MMEmoAudioConfig",
    "MMEmoAudioEncoder",
    "MMEmoConfig",
    "MMEmoEmotionOutput",
    "MMEmoFeatureExtractor",
    "MMEmoForEmotionRecognition",
    "MMEmoModel",
    "MMEmoModelOutput",
    "MMEmoProcessor",
    "MMEmoVideoConfig",
    "MMEmoVideoEncoder",
    "MultimodalEmotionPipeline",
    "load_audio",
    "load_pipeline",
    "pipeline",
]
