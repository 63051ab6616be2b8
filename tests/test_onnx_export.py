import copy

import numpy as np
import pytest
import tiny
import torch
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from mmemo.runtime.graph import EmotionGraph
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoForEmotionRecognition, MMEmoProcessor
from modeling_mmemo.exporters import export_onnx, onnx_export


AUDIO_MISSING, TEXT_MISSING = 1, 2


def random_inputs(batch, longest, mel_bands=16, vocabulary=13, seed=0):
    """A batch of random lengths in which some rows lack one modality, with word and segment times."""
    rng = np.random.default_rng(seed)
    frames, tokens = rng.integers(1, longest + 1, batch), rng.integers(1, 12, batch)
    frames[AUDIO_MISSING::5] = 0
    tokens[TEXT_MISSING::5] = 0
    if not frames.any():
        frames[0] = longest
    starts = rng.uniform(0, longest / 100, (batch, tokens.max(), 1))
    times = np.concatenate([starts, starts + 0.2], axis=2).astype(np.float32)
    times[rng.random(times.shape[:2]) < 0.3] = -1
    segments = np.arange(4)[:, None] * 0.5 + [[0, 0.5]]
    return {
        "input_features": rng.normal(size=(batch, mel_bands, frames.max())).astype(np.float32),
        "audio_attention_mask": (np.arange(frames.max()) < frames[:, None]).astype(np.int64),
        "input_ids": rng.integers(4, vocabulary, (batch, tokens.max())),
        "attention_mask": (np.arange(tokens.max()) < tokens[:, None]).astype(np.int64),
        "token_times": times,
        "segment_times": np.repeat(segments[None], batch, axis=0).astype(np.float32),
    }


def assert_same_outputs(graph, model, inputs, tolerance=1e-4):
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(values) for name, values in inputs.items()})
    outputs = graph.predict(inputs)
    assert {name for name, value in expected.items() if isinstance(value, torch.Tensor)} == outputs.keys()
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("batch", "longest"), [(1, 1), (1, 73), (2, 400), (5, 60), (16, 211), (32, 150)])
def test_the_graph_has_the_models_outputs(exported, model, batch, longest):
    graph = EmotionGraph(exported / "model.onnx")

    for seed in range(3):
        assert_same_outputs(graph, model, random_inputs(batch, longest, seed=seed))


@pytest.mark.slow
def test_clips_of_several_windows(exported, model):
    """The audio encoder splits clips of more than 30 s into windows, in the graph too."""
    graph = EmotionGraph(exported / "model.onnx")

    for batch, frames in ((1, 2999), (1, 3000), (2, 3001), (1, 3100), (2, 6000), (3, 7401)):
        inputs = random_inputs(batch, frames, seed=frames)
        rng = np.random.default_rng(frames)
        lengths = rng.integers(1, frames + 1, batch)
        lengths[0] = frames
        inputs["input_features"] = rng.normal(size=(batch, 16, frames)).astype(np.float32)
        inputs["audio_attention_mask"] = (np.arange(frames) < lengths[:, None]).astype(np.int64)

        assert_same_outputs(graph, model, inputs)


@pytest.mark.parametrize("names", [("input_features", "audio_attention_mask"), ("input_ids", "attention_mask")])
@pytest.mark.parametrize("more", [(), ("segment_times",)])
def test_a_single_modality(exported, model, names, more):
    graph = EmotionGraph(exported / "model.onnx")
    inputs = {name: values for name, values in random_inputs(3, 90).items() if name in (*names, *more)}
    for name in names:
        if name.endswith("mask"):
            inputs[name] = np.ones_like(inputs[name])

    assert_same_outputs(graph, model, inputs)


@pytest.mark.slow  # the fixture `exported` traces a model of both modalities in every run
@pytest.mark.parametrize(
    ("audio", "text", "extractor"),
    [
        ("wav2vec2_layer_norm", "llama", Wav2Vec2FeatureExtractor),
        ("whisper", "gpt2", lambda: WhisperFeatureExtractor(feature_size=8, chunk_length=2)),
        ("ast", "roberta", lambda: ASTFeatureExtractor(num_mel_bins=16, max_length=200)),
        ("mmemo_audio", None, lambda: MMEmoFeatureExtractor(n_mels=8)),
        (None, "distilbert", lambda: None),
    ],
)
def test_other_encoders(audio, text, extractor, byte_tokenizer, tmp_path):
    config = tiny.make_config(audio, text)
    if audio == "whisper":
        config.audio_config.max_source_positions = 100
    if audio == "ast":
        config.audio_config.max_length = 200
    if text is not None:
        config.text_config.vocab_size = len(byte_tokenizer)
    torch.manual_seed(0)
    model = tiny.spread(MMEmoForEmotionRecognition(config))
    processor = MMEmoProcessor(extractor(), None if text is None else byte_tokenizer)

    graph = EmotionGraph(export_onnx(model, processor, tmp_path))

    clips = [np.random.default_rng(seed).normal(0, 0.1, 9000 + 3000 * seed).astype(np.float32) for seed in range(4)]
    texts = ["so glad", "I have been waiting for an hour", "no", "stop it"]
    for rows in (slice(0, 1), slice(1, 4)):
        given = {"segment_times": [[(0.0, 0.5)]] * len(texts[rows])}
        given |= {} if audio is None else {"audio": clips[rows]}
        given |= {} if text is None else {"text": texts[rows]}
        assert_same_outputs(graph, model, dict(processor(**given, return_tensors="np")))


def test_the_model_is_not_modified(processor, session_model, tmp_path, monkeypatch):
    model = copy.deepcopy(session_model).train().half()
    traced = {}
    # Only the model that is passed to the tracing matters here.
    monkeypatch.setattr(onnx_export.OnnxExporter, "export", lambda _, model, *__: traced.update(model=model) or 1 / 0)

    with pytest.raises(ZeroDivisionError):
        export_onnx(model, processor, tmp_path)

    assert model.training and model.dtype == torch.float16 and model.config._attn_implementation == "sdpa"
    assert not traced["model"].training and traced["model"].dtype == torch.float32


def test_a_norm_over_time_raises(processor, tmp_path):
    with pytest.raises(ValueError, match=r"feat_extract_norm='group'.*Choose an encoder"):
        export_onnx(tiny.make_model("wav2vec2"), processor, tmp_path)


def test_a_graph_with_other_outputs_raises(exported, model, processor):
    for parameter in model.fused_classifier.parameters():
        torch.nn.init.normal_(parameter)
    inputs = onnx_export.sample_inputs(model, processor)

    with pytest.raises(
        ValueError, match=r"The graph's logits differ by .* encoders \['mmemo_audio', 'bert'\] cannot be"
    ):
        onnx_export._verify(exported / "model.onnx", model, inputs)


def test_the_graph_has_no_paths_of_the_machine_that_exported_it(exported):
    for path in exported.glob("*.onnx"):
        contents = path.read_bytes()
        assert b"site-packages" not in contents and str(exported).encode() not in contents
        assert __file__.rpartition("/tests")[0].encode() not in contents


def test_output_of_the_exporters_is_suppressed(processor, tmp_path, capfd):
    onnx_export.logging.getLogger("torch.onnx").setLevel("INFO")

    with onnx_export.keep_quiet():
        print("progress")
        onnx_export.logging.getLogger("torch.onnx").warning("progress")

    assert capfd.readouterr() == ("", "")
    assert onnx_export.logging.getLogger("torch.onnx").level == onnx_export.logging.INFO
