"""mmemo: multimodal emotion recognition from voice and words, in the manner of `transformers`."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoProcessor,
    pipeline,
)

from .audio_encoder_mmemo import MMEmoAudioEncoder
from .audio_loading_mmemo import AudioInput, load_audio
from .configuration_mmemo import EMOTIONS, MMEmoAudioConfig, MMEmoConfig
from .feature_extraction_mmemo import MMEmoFeatureExtractor
from .modeling_mmemo import MMEmoEmotionOutput, MMEmoForEmotionRecognition, MMEmoModel, MMEmoModelOutput
from .processing_mmemo import MMEmoProcessor


__version__ = "0.1.0"

AutoConfig.register(MMEmoAudioConfig.model_type, MMEmoAudioConfig)
AutoConfig.register(MMEmoConfig.model_type, MMEmoConfig)
AutoModel.register(MMEmoAudioConfig, MMEmoAudioEncoder)
AutoModel.register(MMEmoConfig, MMEmoModel)
AutoModelForAudioClassification.register(MMEmoConfig, MMEmoForEmotionRecognition)
AutoFeatureExtractor.register(MMEmoAudioConfig, MMEmoFeatureExtractor)
AutoFeatureExtractor.register(MMEmoConfig, MMEmoFeatureExtractor)
AutoProcessor.register(MMEmoConfig, MMEmoProcessor)

# Whatever is saved or pushed brings its code along, for those who have not installed this package.
MMEmoConfig.register_for_auto_class()
MMEmoAudioConfig.register_for_auto_class()
MMEmoModel.register_for_auto_class("AutoModel")
MMEmoAudioEncoder.register_for_auto_class("AutoModel")
MMEmoForEmotionRecognition.register_for_auto_class("AutoModelForAudioClassification")
MMEmoFeatureExtractor.register_for_auto_class()
MMEmoProcessor.register_for_auto_class()

# Registers the task, and needs the names above.
from .pipelines import MultimodalEmotionPipeline, load_pipeline  # noqa: E402
from .streaming import EmotionStream  # noqa: E402


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
    "MultimodalEmotionPipeline",
    "load_audio",
    "load_pipeline",
    "pipeline",
]
