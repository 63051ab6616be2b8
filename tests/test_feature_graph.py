import numpy as np
import pytest
from transformers import Wav2Vec2FeatureExtractor

from mmemo.runtime.graph import OnnxGraph
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor, load_audio
from modeling_mmemo.exporters import export_features
from modeling_mmemo.pipelines import DEFAULT_MODEL


@pytest.mark.parametrize(
    "extractor",
    [
        MMEmoFeatureExtractor(),
        MMEmoFeatureExtractor(features=("mfcc", "log_mel"), n_mels=40, loudness_dbfs=-26.0),
        MMEmoFeatureExtractor("librosa", features=("log_mel", "mfcc")),
        MMEmoFeatureExtractor("librosa", features=("mel",), n_fft=1024),
    ],
    ids=["whisper", "loud", "librosa", "mel"],
)
def test_features_are_those_of_the_extractor(extractor, tokenizer, make_clip, example_audio, tmp_path):
    graph = OnnxGraph(export_features(MMEmoProcessor(extractor, tokenizer), tmp_path))

    for clip in (load_audio(example_audio), make_clip(0.05), make_clip(2.345, 3)):
        expected = extractor(clip, sampling_rate=16_000, return_tensors="np")["input_features"]
        features = graph.run({"samples": clip[None]})["features"]
        assert features.shape == expected.shape
        # Whisper's features are within 2 of 0, decibels and powers are as large as they are.
        scale = max(1.0, float(np.abs(expected).max()) / 10)
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-3 * scale)


def test_the_embedded_models_features(example_audio, tokenizer, tmp_path):
    extractor = MMEmoFeatureExtractor.from_pretrained(DEFAULT_MODEL)
    clip = load_audio(example_audio)

    features = OnnxGraph(export_features(MMEmoProcessor(extractor, tokenizer), tmp_path)).run({"samples": clip[None]})[
        "features"
    ]

    expected = extractor(clip, sampling_rate=16_000, return_tensors="np")["input_features"]
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("extractor", [MMEmoFeatureExtractor(trim_db=35.0), Wav2Vec2FeatureExtractor()])
def test_other_features_are_refused(extractor, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported; only those of MMEmoFeatureExtractor without trim_db"):
        export_features(MMEmoProcessor(extractor, tokenizer), tmp_path)
