import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import Wav2Vec2FeatureExtractor

from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor
from modeling_mmemo.exporters import save_analysis
from modeling_mmemo.pipelines import DEFAULT_MODEL


@pytest.mark.parametrize(
    "extractor",
    [
        MMEmoFeatureExtractor(),
        MMEmoFeatureExtractor(features=("mfcc", "log_mel"), n_mels=40, loudness_dbfs=-26.0),
        MMEmoFeatureExtractor("librosa", features=("log_mel", "mfcc")),
        MMEmoFeatureExtractor("librosa", features=("mel",), n_fft=1024),
        MMEmoFeatureExtractor.from_pretrained(DEFAULT_MODEL),
    ],
    ids=["whisper", "loudness", "librosa", "mel", "embedded"],
)
def test_the_saved_arrays_are_those_of_the_extractor(extractor, tokenizer, tmp_path):
    arrays = load_file(save_analysis(MMEmoProcessor(extractor, tokenizer), tmp_path / "new"))

    assert arrays.keys() == {"window", "mel_filters", "cosines"}
    for name, array in arrays.items():
        expected = getattr(extractor.analysis, name)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("extractor", [MMEmoFeatureExtractor(trim_db=35.0), Wav2Vec2FeatureExtractor()])
def test_other_feature_extractors_raise(extractor, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported; only MMEmoFeatureExtractor without trim_db can"):
        save_analysis(MMEmoProcessor(extractor, tokenizer), tmp_path)
