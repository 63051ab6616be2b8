"""Transcription with ASR pipelines, faster-whisper and functions."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    AutomaticSpeechRecognitionPipeline,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from mmemo.words.times import read_word_times
from mmemo.words.transcription import transcribe


def chunk(text, start, end):
    return {"text": text, "timestamp": (start, end)}


@pytest.fixture
def speech(tmp_path):
    """An ASR pipeline with a tiny random CTC model, and the list of lengths in samples of the model's inputs."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6, "c": 7}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 8),
        conv_kernel=(20, 16),
        conv_stride=(20, 16),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        initializer_range=1.0,
    )
    model = Wav2Vec2ForCTC(config).eval()
    lengths = []
    model.register_forward_pre_hook(
        lambda _, args, values: lengths.append(values["input_values"].shape[1]), with_kwargs=True
    )
    pipeline = AutomaticSpeechRecognitionPipeline(
        model=model,
        tokenizer=Wav2Vec2CTCTokenizer(tmp_path / "vocab.json"),
        feature_extractor=Wav2Vec2FeatureExtractor(),
        device="cpu",
    )
    return pipeline, lengths


def test_a_ctc_pipeline_gets_long_recordings_in_chunks(speech):
    pipeline, lengths = speech
    noise = np.random.default_rng(0).normal(scale=0.1, size=16_000 * 65).astype(np.float32)
    words = transcribe(pipeline, noise, 16_000)
    assert len(lengths) == 3 and max(lengths) == 16_000 * 30
    assert words == read_word_times(words)
    assert 40 < words[-1][1] < words[-1][2] <= 65
    lengths.clear()
    short = transcribe(pipeline, noise[: 16_000 * 2], 16_000)
    assert lengths == [16_000 * 2]
    assert " ".join(word for word, _, _ in short) == " ".join(pipeline(noise[: 16_000 * 2])["text"].split()) != ""


def test_a_pipeline_gets_its_own_sampling_rate(speech, make_clip):
    pipeline, lengths = speech
    transcribe(pipeline, make_clip(1.0, sampling_rate=8_000), 8_000)
    assert lengths == [16_000]
    assert transcribe(pipeline, np.zeros(16_000, np.float32), 16_000) == []
    assert transcribe(pipeline, np.zeros(0, np.float32), 16_000) == []
    assert lengths == [16_000]


def test_times_of_models_are_corrected(speech, make_clip, monkeypatch):
    chunks = [chunk(" so", 0.2, 0.4), chunk(" ", 0.4, 0.4), chunk(" sad", 0.1, 0.3), chunk(" you", 29.98, 29.98)]
    monkeypatch.setattr(
        AutomaticSpeechRecognitionPipeline, "__call__", lambda *_, **__: {"text": "", "chunks": chunks}
    )
    expected = [("so", 0.2, 0.2), ("sad", 0.2, 0.3), ("you", 0.5, 0.5)]
    assert transcribe(speech[0], make_clip(0.5), 16_000) == expected


def test_faster_whisper(make_clip):
    calls = []

    class WhisperModel:
        __module__ = "faster_whisper.transcribe"

        def transcribe(self, audio, word_timestamps):
            calls.append((audio.shape, audio.dtype, word_timestamps))
            words = [
                SimpleNamespace(word=" so", start=0.1, end=0.2),
                SimpleNamespace(word=" sad.", start=0.2, end=0.4),
            ]
            return iter([SimpleNamespace(words=words), SimpleNamespace(words=None)]), None

    words = transcribe(WhisperModel(), make_clip(0.5, sampling_rate=8_000), 8_000)
    assert words == [("so", 0.1, 0.2), ("sad.", 0.2, 0.4)]
    assert calls == [((8_000,), np.float32, True)]


@pytest.mark.parametrize(
    "returned",
    [
        [("a b", 0, 4)],
        {"chunks": [chunk("a", 0, 2), chunk("b", 2, 4)]},
        {"segments": [{"text": " a b", "start": 0.0, "end": 4.0}]},
        "00:00:01,000 --> 00:00:02,000\na",
        [],
    ],
)
def test_any_function_may_transcribe(returned, make_clip):
    calls = []

    def transcriber(samples, sampling_rate):
        calls.append((len(samples), sampling_rate))
        return returned

    assert transcribe(transcriber, make_clip(5), 16_000) == read_word_times(returned)
    assert calls == [(80_000, 16_000)]


def test_the_segments_of_a_function_are_clipped_to_the_audio(make_clip):
    words = transcribe(lambda *_: iter([("ab", 0.0, 1.0), ("cd ef", 1.5, 9.0)]), make_clip(2.0), 16_000)
    assert words == [("ab", 0, 1), ("cd", 1.5, 1.75), ("ef", 1.75, 2)]


def test_other_objects_raise(speech, emotion, make_clip):
    for wrong in ("openai/whisper-base", None, speech[0].model, emotion):
        with pytest.raises(ValueError, match=r"is not a transcriber; pass pipeline\(\"automatic-speech-recognition\""):
            transcribe(wrong, make_clip(), 16_000)
