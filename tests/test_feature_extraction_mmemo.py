"""Features equal those of librosa and Whisper."""

import json
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from mmemo.audio import mel
from mmemo.audio.loading import load_audio
from modeling_mmemo.feature_extraction_mmemo import MMEmoFeatureExtractor


RATE = 16_000
RNG = np.random.default_rng(0)
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(20_000) / RATE)).astype(np.float32)
NOISE = RNG.normal(0, 0.1, 30_001).astype(np.float32)
SAMPLES = NOISE[:8000]


@pytest.fixture(scope="module")
def clips():
    """Clips of many lengths: recorded, a tone, noise, a tone fading by 100 dB, and some shorter than a window."""
    recorded = [load_audio(path) for path in sorted((Path(__file__).parents[1] / "examples" / "audio").iterdir())[:3]]
    fading = TONE * np.geomspace(1, 1e-5, len(TONE), dtype=np.float32)
    return [
        *recorded,
        0.01 * recorded[0],
        TONE,
        NOISE,
        fading,
        NOISE[:2000],
        NOISE[:399],
        NOISE[:160],
        NOISE[:100],
        NOISE[:1],
    ]


def librosa_features(clip):
    mel = librosa.feature.melspectrogram(y=clip, sr=RATE, n_mels=128)
    return mel, librosa.power_to_db(mel), librosa.feature.mfcc(y=clip, sr=RATE, n_mfcc=13)


def whisper_log_mel(clip):
    whisper = WhisperFeatureExtractor()
    if len(clip) > whisper.n_fft // 2:
        return whisper(clip, sampling_rate=RATE, padding="do_not_pad", return_tensors="np").input_features[0]
    return whisper._np_extract_fbank_features([clip], "cpu")[0]  # torch cannot reflect such a short clip


@pytest.mark.filterwarnings("ignore:n_fft=")
def test_librosa_preset_equals_librosa_alone_and_in_a_batch(clips):
    extractor = MMEmoFeatureExtractor("librosa", features=("mel", "log_mel", "mfcc"))
    assert extractor.feature_size == 128 + 128 + 13
    batch = extractor(clips)
    for clip, row, mask in zip(clips, batch.input_features, batch.attention_mask):
        alone = extractor(clip).input_features[0]
        mel, log_mel, mfcc = librosa_features(clip)
        assert alone.dtype == np.float32
        assert alone.shape == (269, 1 + len(clip) // 512)
        for features in (alone, row[:, mask == 1]):
            np.testing.assert_allclose(features[:128], mel, rtol=0, atol=1e-6 * mel.max())
            np.testing.assert_allclose(features[128:256], log_mel, rtol=0, atol=1e-4)
            np.testing.assert_allclose(features[256:], mfcc, rtol=0, atol=1e-6 * np.abs(mfcc).max())


def test_whisper_preset_equals_whisper_alone_and_in_a_batch(clips):
    clips = [clip for clip in clips if len(clip) >= 160]
    extractor = MMEmoFeatureExtractor()
    batch = extractor(clips)
    for clip, row, mask in zip(clips, batch.input_features, batch.attention_mask):
        expected = whisper_log_mel(clip)
        assert expected.shape == (80, len(clip) // 160)
        np.testing.assert_allclose(extractor(clip).input_features[0], expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(row[:, mask == 1], expected, rtol=0, atol=1e-4)


def test_whisper_preset_mel_and_mfcc():
    extractor = MMEmoFeatureExtractor(features=("mfcc", "mel"), n_mfcc=20)
    features = extractor(NOISE).input_features[0]
    mel = librosa.feature.melspectrogram(y=NOISE, sr=RATE, n_fft=400, hop_length=160, n_mels=80, pad_mode="reflect")[
        :, :-1
    ]
    np.testing.assert_allclose(features[20:], mel, rtol=0, atol=1e-6 * mel.max())
    mfcc = librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=20)
    np.testing.assert_allclose(features[:20], mfcc, rtol=0, atol=1e-6 * np.abs(mfcc).max())


@pytest.mark.parametrize("length", [1, 100, 159])
def test_whisper_preset_keeps_the_only_frame_of_a_clip_shorter_than_a_hop(length):
    batch = MMEmoFeatureExtractor()([NOISE[:length], NOISE])
    assert batch.attention_mask[0].tolist() == [1] + [0] * (len(NOISE) // 160 - 1)
    frame = np.pad(NOISE[:length], 200, mode="reflect")[:400] * np.hanning(401)[:-1]
    mel = librosa.filters.mel(sr=RATE, n_fft=400, n_mels=80) @ np.abs(np.fft.rfft(frame)) ** 2
    log_mel = np.log10(np.maximum(mel, 1e-10))
    expected = (np.maximum(log_mel, log_mel.max() - 8) + 4) / 4
    np.testing.assert_allclose(batch.input_features[0, :, 0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", ["whisper", "librosa"])
def test_chunks_do_not_change_the_features(preset, clips, monkeypatch):
    extractor = MMEmoFeatureExtractor(preset, features=("log_mel", "mfcc"))
    expected = extractor(clips).input_features
    monkeypatch.setattr(mel, "CHUNK_SAMPLES", 3 * extractor.n_fft)
    np.testing.assert_allclose(extractor(clips).input_features, expected, rtol=0, atol=1e-4)


def test_padding_mask_and_types():
    extractor = MMEmoFeatureExtractor(padding_value=-7.0)
    batch = extractor([NOISE[:1600], NOISE[:3200]], pad_to_multiple_of=16, return_tensors="pt")
    assert batch.input_features.dtype == torch.float32
    assert batch.input_features.shape == (2, 80, 32)
    assert batch.attention_mask.tolist() == [[1] * 10 + [0] * 22, [1] * 20 + [0] * 12]
    assert (batch.input_features[0, :, 10:] == -7).all()
    assert (batch.input_features[0, :, :10] > -7).all()


def test_padding_strategies():
    extractor = MMEmoFeatureExtractor()
    pair = [NOISE[:1600], NOISE[:3200]]
    assert extractor(pair, padding="max_length", max_length=4800).input_features.shape == (2, 80, 30)
    cut = extractor(pair, padding="max_length", max_length=2400, truncation=True)
    assert cut.attention_mask.tolist() == [[1] * 10 + [0] * 5, [1] * 15]
    # BLAS may sum a batch in another order than a clip.
    alone = extractor(NOISE[:2400]).input_features[0]
    np.testing.assert_allclose(cut.input_features[1], alone, rtol=0, atol=1e-6)
    ragged = extractor(pair, padding=False)
    assert [features.shape for features in ragged.input_features] == [(80, 10), (80, 20)]
    assert [mask.tolist() for mask in ragged.attention_mask] == [[1] * 10, [1] * 20]


def test_attention_mask_can_be_left_out():
    assert set(MMEmoFeatureExtractor()(NOISE, return_attention_mask=False)) == {"input_features"}
    extractor = MMEmoFeatureExtractor(return_attention_mask=False)
    assert set(extractor(NOISE)) == {"input_features"}
    assert set(extractor(NOISE, return_attention_mask=True)) == {"input_features", "attention_mask"}


def test_loudness_scales_every_clip_to_the_level():
    rms = np.sqrt(np.mean(TONE.astype(np.float64) ** 2))
    expected = MMEmoFeatureExtractor()(TONE * np.float32(10 ** (-23 / 20) / rms)).input_features
    extractor = MMEmoFeatureExtractor(loudness_dbfs=-23.0)
    for gain in (1.0, 0.01, 50.0):
        clip = TONE * np.float32(gain)
        np.testing.assert_allclose(extractor(clip).input_features, expected, rtol=0, atol=1e-4)
    assert np.abs(MMEmoFeatureExtractor()(TONE * np.float32(0.01)).input_features - expected).max() > 0.1


def test_loudness_is_set_before_truncation():
    clip = np.concatenate([np.zeros(1600, np.float32), TONE])
    features = MMEmoFeatureExtractor(loudness_dbfs=-23.0)(clip, truncation=True, max_length=1600).input_features
    assert np.isfinite(features).all()


def test_trimming_keeps_the_sound_and_returns_its_start(make_clip):
    quiet = np.zeros(16_000, np.float32)
    sound = make_clip(0.5)
    extractor = MMEmoFeatureExtractor(trim_db=35.0, loudness_dbfs=-23.0)
    trimmed = extractor(np.concatenate([quiet, sound, quiet]))
    # A span of 32 ms that touches the sound is kept, and 50 ms before it.
    assert 0.93 <= trimmed.start_seconds[0] <= 0.95
    assert 0.5 <= trimmed.input_features.shape[2] * extractor.frame_seconds <= 0.65
    alone = extractor(sound)
    assert alone.start_seconds[0] == 0.0
    assert alone.input_features.shape[2] == 50
    assert "start_seconds" not in MMEmoFeatureExtractor()(sound)


def test_every_form_of_audio_gives_the_same_features(audio_forms):
    extractor = MMEmoFeatureExtractor()
    expected = extractor(audio_forms["array"]).input_features
    for audio in audio_forms.values():
        np.testing.assert_array_equal(extractor(audio).input_features, expected)
        batched = extractor([audio, NOISE[:400]]).input_features[:1]
        np.testing.assert_allclose(batched, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(extractor(audio_forms["array"].tolist()).input_features, expected)


def test_clips_are_loaded_at_their_rate_and_channel():
    extractor = MMEmoFeatureExtractor()
    expected = extractor(load_audio(SAMPLES, 8_000)).input_features
    np.testing.assert_array_equal(extractor(SAMPLES, sampling_rate=8_000).input_features, expected)
    stereo = np.stack([SAMPLES, SAMPLES[::-1]])
    one, both = (extractor(stereo, channel=channel).input_features for channel in (0, None))
    np.testing.assert_array_equal(one, extractor(SAMPLES).input_features)
    assert one.shape == both.shape
    assert np.abs(one - both).max() > 0.01


@pytest.mark.parametrize(
    ("audio", "words"),
    [("nowhere/a.wav", "Cannot read"), (None, "NoneType is not an audio"), (np.zeros(100), "is silent")],
)
def test_invalid_audio_in_a_batch_raises(audio, words):
    with pytest.raises(ValueError, match=words):
        MMEmoFeatureExtractor()([SAMPLES, audio])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"truncation": True}, "truncation=True needs max_length"),
        ({"padding": "max_length"}, "max_length"),
        (
            {"padding": "max_length", "max_length": 100},
            "max_length=100 is exceeded by a clip of 8000.*truncation=True",
        ),
        ({"padding": "shortest"}, "shortest"),
        ({"max_length": 0, "truncation": True}, "max_length=0 must be at least 1"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of=0 must be at least 1"),
    ],
)
def test_invalid_calls_raise(kwargs, words):
    with pytest.raises(ValueError, match=words):
        MMEmoFeatureExtractor()(SAMPLES, **kwargs)


def test_empty_batches_and_unknown_arguments_raise():
    with pytest.raises(ValueError, match="batch is empty"):
        MMEmoFeatureExtractor()([])
    with pytest.raises(TypeError, match="chunk_length"):
        MMEmoFeatureExtractor()(SAMPLES, chunk_length=30)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"preset": "kaldi"}, r"preset='kaldi' is unknown.*\['whisper', 'librosa'\]"),
        ({"features": ()}, r"features=\(\) must be.*'mfcc'"),
        ({"features": "mfcc"}, "features='mfcc' must be a list"),
        ({"features": ("mel", "chroma")}, "chroma.*'log_mel'"),
        ({"features": ("mel", "mel")}, "distinct names"),
        ({"n_mels": 0}, "n_mels=0 must be a positive integer"),
        ({"n_fft": 401}, "n_fft=401 must be even"),
        ({"hop_length": 2.5}, r"hop_length=2\.5 must be a positive integer"),
        ({"sampling_rate": "16k"}, "sampling_rate='16k' must"),
        ({"features": ("mfcc",), "n_mfcc": 81}, "n_mfcc=81 must not exceed n_mels=80"),
        ({"loudness_dbfs": 3.0}, r"loudness_dbfs=3\.0 must be.*at most 0"),
        ({"trim_db": 0.0}, r"trim_db=0\.0 must be a positive"),
        ({"loudness_dbfs": float("nan")}, "loudness_dbfs=nan must"),
        ({"padding_side": "left"}, "padding_side='left' is not supported"),
    ],
)
def test_invalid_configurations_raise(kwargs, words):
    with pytest.raises(ValueError, match=words):
        MMEmoFeatureExtractor(**kwargs)


def test_feature_size_is_not_an_argument():
    with pytest.raises(TypeError, match="feature_size"):
        MMEmoFeatureExtractor(feature_size=80)


def test_features_are_stacked_in_the_given_order():
    both = MMEmoFeatureExtractor(features=("mfcc", "log_mel"))
    features = both(NOISE).input_features
    assert features.shape[1] == both.feature_size == 93
    np.testing.assert_array_equal(features[:, :13], MMEmoFeatureExtractor(features=("mfcc",))(NOISE).input_features)
    np.testing.assert_array_equal(features[:, 13:], MMEmoFeatureExtractor()(NOISE).input_features)


def test_frame_times():
    assert MMEmoFeatureExtractor().frame_seconds == 0.01
    assert MMEmoFeatureExtractor("librosa").frame_seconds == 0.032


def test_save_and_load(tmp_path):
    saved = MMEmoFeatureExtractor("librosa", features=("log_mel", "mfcc"), n_mels=40, loudness_dbfs=-23.0)
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert not {"feature_size", "window", "mel_filters"} & set(config)
    loaded = MMEmoFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == saved.to_dict()
    np.testing.assert_array_equal(loaded(NOISE).input_features, saved(NOISE).input_features)
    assert MMEmoFeatureExtractor.from_pretrained(tmp_path, n_mels=64).feature_size == 64 + 13
