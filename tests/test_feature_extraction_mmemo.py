"""Loading of audio in every form, and features against librosa and Whisper."""

import functools
import http.server
import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from modeling_mmemo import feature_extraction_mmemo
from modeling_mmemo.feature_extraction_mmemo import MMEmoFeatureExtractor, load_audio


RATE = 16_000
RNG = np.random.default_rng(0)
TONE = (0.3 * np.sin(2 * np.pi * 440 * np.arange(20_000) / RATE)).astype(np.float32)
NOISE = RNG.normal(0, 0.1, 30_001).astype(np.float32)
PCM = (NOISE[:8000] * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
SAMPLES = PCM.astype(np.float32) / 2**15


def wav_bytes(samples, rate=RATE, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **kwargs})
    return file.getvalue()


def decoder(data, sample_rate):
    """What the extractor uses of a torchcodec `AudioDecoder`."""
    return SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(data), sample_rate=sample_rate)
    )


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
    return whisper._np_extract_fbank_features([clip], "cpu")[0]  # torch cannot reflect so short a clip


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
def test_chunks_do_not_show(preset, clips, monkeypatch):
    extractor = MMEmoFeatureExtractor(preset, features=("log_mel", "mfcc"))
    expected = extractor(clips).input_features
    monkeypatch.setattr(feature_extraction_mmemo, "CHUNK_SAMPLES", 3 * extractor.n_fft)
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
    np.testing.assert_array_equal(cut.input_features[1], extractor(NOISE[:2400]).input_features[0])
    ragged = extractor(pair, padding=False)
    assert [features.shape for features in ragged.input_features] == [(80, 10), (80, 20)]
    assert [mask.tolist() for mask in ragged.attention_mask] == [[1] * 10, [1] * 20]


def test_attention_mask_can_be_left_out():
    assert set(MMEmoFeatureExtractor()(NOISE, return_attention_mask=False)) == {"input_features"}
    extractor = MMEmoFeatureExtractor(return_attention_mask=False)
    assert set(extractor(NOISE)) == {"input_features"}
    assert set(extractor(NOISE, return_attention_mask=True)) == {"input_features", "attention_mask"}


def test_loudness_brings_every_clip_to_the_level_asked_for():
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


def test_trimming_leaves_the_sound_and_tells_where_it_began(make_clip):
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


def test_channels():
    stereo = np.stack([SAMPLES, SAMPLES[::-1]])
    np.testing.assert_array_equal(load_audio(stereo), stereo.mean(axis=0))
    np.testing.assert_array_equal(load_audio(stereo, channel=1), SAMPLES[::-1])
    np.testing.assert_array_equal(load_audio(wav_bytes(stereo.T), channel=1), SAMPLES[::-1])
    one, both = (MMEmoFeatureExtractor()(stereo, channel=channel).input_features for channel in (0, None))
    np.testing.assert_array_equal(one, MMEmoFeatureExtractor()(SAMPLES).input_features)
    assert one.shape == both.shape
    assert np.abs(one - both).max() > 0.01


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_resampling_is_librosas(rate):
    expected = librosa.resample(SAMPLES, orig_sr=rate, target_sr=RATE)
    np.testing.assert_array_equal(load_audio(SAMPLES, sampling_rate=rate), expected)
    np.testing.assert_array_equal(load_audio(wav_bytes(PCM, rate)), expected)
    np.testing.assert_array_equal(load_audio({"array": SAMPLES, "sampling_rate": rate}, sampling_rate=1), expected)
    np.testing.assert_array_equal(load_audio(decoder(SAMPLES[None], rate)), expected)
    features = MMEmoFeatureExtractor()(SAMPLES, sampling_rate=rate).input_features
    np.testing.assert_array_equal(features, MMEmoFeatureExtractor()(expected).input_features)


@pytest.mark.parametrize(
    "pcm", [PCM, PCM.astype(np.int32) << 16, ((PCM >> 8) + 128).astype(np.uint8)], ids=["int16", "int32", "uint8"]
)
def test_integer_pcm_is_scaled(pcm):
    expected = (PCM >> 8).astype(np.float32) / 2**7 if pcm.dtype == np.uint8 else SAMPLES
    np.testing.assert_array_equal(load_audio(pcm), expected)


FORMS = {
    "path": lambda path: path,
    "str": str,
    "bytes": lambda path: path.read_bytes(),
    "flac bytes": lambda path: wav_bytes(PCM, format="FLAC"),
    "array": lambda path: SAMPLES,
    "float64": lambda path: SAMPLES.astype(np.float64),
    "one channel": lambda path: SAMPLES[None],
    "list": lambda path: SAMPLES.tolist(),
    "tensor": lambda path: torch.from_numpy(SAMPLES),
    "array dict": lambda path: {"array": SAMPLES, "sampling_rate": RATE, "path": None},
    "raw dict": lambda path: {"raw": SAMPLES, "sampling_rate": RATE},
    "undecoded bytes": lambda path: {"path": "elsewhere.wav", "bytes": path.read_bytes()},
    "undecoded path": lambda path: {"path": str(path), "bytes": None},
    "decoder": lambda path: decoder(SAMPLES[None], RATE),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form, tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_bytes(PCM))
    audio = FORMS[form](path)
    samples = load_audio(audio)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, SAMPLES)
    expected = MMEmoFeatureExtractor()(SAMPLES).input_features
    np.testing.assert_array_equal(MMEmoFeatureExtractor()(audio).input_features, expected)
    np.testing.assert_array_equal(MMEmoFeatureExtractor()([audio, NOISE[:400]]).input_features[:1], expected)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of a loopback server of `tmp_path`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_url(server, tmp_path):
    (tmp_path / "clip.wav").write_bytes(wav_bytes(PCM))
    np.testing.assert_array_equal(load_audio(f"{server}/clip.wav"), SAMPLES)
    with pytest.raises(ValueError, match=r"none\.wav \(HTTP Error 404"):
        load_audio(f"{server}/none.wav")


def test_streamed_wav_of_unknown_size_is_whole():
    streamed = bytearray(wav_bytes(PCM))
    streamed[4:8] = streamed[40:44] = b"\xff" * 4
    np.testing.assert_array_equal(load_audio(bytes(streamed)), SAMPLES)


def failing_decoder():
    def get_all_samples():
        raise RuntimeError("no such stream")

    return SimpleNamespace(get_all_samples=get_all_samples)


WITH_NAN = np.where(np.arange(8000) == 5, np.nan, SAMPLES)
ERRORS = {
    "missing file": ("nowhere/a.wav", {}, r"Cannot read nowhere/a\.wav \(.*No such file.*pass a path"),
    "folder": (Path(__file__).parent, {}, "Cannot read .*directory"),
    "long string": ("x" * 100_000, {}, "Cannot read xxx.*pass a path"),
    "corrupt": (b"RIFF" + bytes(100), {}, "file in bytes is not readable audio .* Convert it"),
    "corrupt, named": ({"path": "a.wav", "bytes": b"junk" * 99}, {}, r"a\.wav is not readable audio"),
    "empty file": (b"", {}, r"empty \(0 bytes\)"),
    "no samples in file": (wav_bytes(PCM[:0]), {}, "has no samples"),
    "truncated wav": (wav_bytes(PCM)[:8000], {}, "is truncated.*Fetch the whole file"),
    "truncated aiff": (wav_bytes(PCM, format="AIFF")[:8000], {}, "is truncated"),
    "truncated flac": (wav_bytes(PCM, format="FLAC")[:8000], {}, "not readable audio.*truncated"),
    "truncated mp3": (wav_bytes(PCM, format="MP3")[:1500], {}, "is truncated"),
    "None": (None, {}, "NoneType is not an audio input; pass a path"),
    "number": (3.5, {}, "float is not an audio input"),
    "strings": (np.array(["a", "b"]), {}, "ndarray is not an audio input"),
    "ragged": ([[0.1], [0.1, 0.2]], {}, "list cannot be read as samples"),
    "tensor with gradient": (torch.ones(9, requires_grad=True), {}, "Tensor cannot be read as samples.*detach"),
    "decoder": (failing_decoder(), {}, "SimpleNamespace cannot decode its audio: no such stream"),
    "int64": (PCM.astype(np.int64), {}, r"shape \(8000,\) has dtype int64.*int16"),
    "complex": (SAMPLES.astype(np.complex64), {}, "dtype complex64"),
    "array without rate": ({"array": SAMPLES}, {}, r"\['array'\] is not audio.*'sampling_rate'"),
    "rate without array": ({"sampling_rate": RATE}, {}, r"\['sampling_rate'\] is not audio.*'array'"),
    "path and bytes None": ({"path": None, "bytes": None}, {}, "must not be None"),
    "NaN": (WITH_NAN, {}, r"shape \(8000,\) holds NaN or infinite"),
    "infinity": (np.full(100, -np.inf), {}, "holds NaN or infinite"),
    "empty array": (np.zeros(0), {}, r"shape \(0,\) has no samples"),
    "no channels": (np.zeros((0, 100)), {}, r"shape \(0, 100\) has no samples"),
    "rate in kHz": (SAMPLES, {"sampling_rate": 16}, "sampling_rate=16 is not the rate .* Is it in kHz"),
    "rate beyond reason": (SAMPLES, {"sampling_rate": 10**9}, "sampling_rate=1000000000 is not the rate"),
    "rate 0": (SAMPLES, {"sampling_rate": 0}, "sampling_rate=0 must be a positive number"),
    "rate negative": ({"array": SAMPLES, "sampling_rate": -8000}, {}, "sampling_rate=-8000 must"),
    "rate no number": (SAMPLES, {"sampling_rate": "16k"}, "sampling_rate='16k' must"),
    "rate NaN": (SAMPLES, {"sampling_rate": float("nan")}, "sampling_rate=nan must"),
    "wrong way round": (SAMPLES.reshape(-1, 2), {}, r"shape \(4000, 2\).*must be \(channels, samples\): transpose"),
    "three dimensions": (SAMPLES.reshape(1, 2, -1), {}, r"shape \(1, 2, 4000\) is not one clip.*as a list"),
    "channel too high": (SAMPLES, {"channel": 1}, r"has 1 channel\(s\), so channel=1 .*pass 0 to 0"),
    "channel negative": (SAMPLES[None], {"channel": -1}, "channel=-1 does not exist"),
    "channel no number": (SAMPLES[None], {"channel": "left"}, "channel='left' does not exist"),
    "silence": (np.zeros(100), {}, r"silent: its peak is 0.*must reach 0\.0001 \(-80 dBFS\)"),
    "hiss": (np.full(100, -9e-5), {}, r"silent: its peak is 9\.0e-05"),
    "phases that cancel": (np.stack([SAMPLES, -SAMPLES]), {}, "silent.*choose one with channel="),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_audio_is_refused_in_words(case):
    audio, kwargs, words = ERRORS[case]
    with pytest.raises(ValueError, match=words) as refusal:
        load_audio(audio, **kwargs)
    assert len(str(refusal.value)) < 700
    with pytest.raises(ValueError, match=words):
        MMEmoFeatureExtractor()([SAMPLES, audio], **kwargs)


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
def test_bad_calls_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        MMEmoFeatureExtractor()(SAMPLES, **kwargs)


def test_empty_batches_and_unknown_arguments_are_refused():
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
        ({"features": ("mel", "mel")}, "different names"),
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
def test_bad_configurations_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        MMEmoFeatureExtractor(**kwargs)


def test_feature_size_is_not_an_argument():
    with pytest.raises(TypeError, match="feature_size"):
        MMEmoFeatureExtractor(feature_size=80)


def test_features_are_stacked_in_the_order_asked_for():
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
