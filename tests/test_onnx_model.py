import numpy as np
import pytest
import torch
from transformers import pipeline

from modeling_mmemo import MultimodalEmotionPipeline, load_pipeline
from modeling_mmemo.exporters import MMEmoOnnxModel


@pytest.fixture(scope="module")
def graph_model(exported):
    return MMEmoOnnxModel.from_pretrained(exported, file_name="model.onnx")


@pytest.fixture
def graph_emotion(graph_model, processor):
    return MultimodalEmotionPipeline(model=graph_model, processor=processor, task="multimodal-emotion")


@pytest.fixture
def item(make_clip):
    words = [("you", 0, 0.2), ("happy", 0.5, 0.8)]
    return {"audio": make_clip(1.8, 4), "text": "you are not happy", "word_times": words}


def assert_same(output, expected):
    """Compares nested outputs; numbers within 1e-4, lists of labels in any order."""
    if isinstance(expected, dict):
        assert output.keys() == expected.keys()
        for key in expected:
            assert_same(output[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(output) == len(expected)
        if expected and isinstance(expected[0], dict) and expected[0].keys() == {"label", "score"}:
            output, expected = (sorted(entries, key=lambda entry: entry["label"]) for entries in (output, expected))
        for one, other in zip(output, expected):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert output == pytest.approx(expected, abs=1e-4, nan_ok=True)
    else:
        assert output == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 4, "return_modality_weights": True},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "none"},
        {"threshold": 0.99},
        {"return_timeline": True, "voice_activity": False},
        {"return_timeline": True, "segment_s": 0.4, "hop_s": 0.3, "window_batch_size": 2, "voice_activity": False},
        {"granularity": "word", "voice_activity": False},
    ],
)
def test_outputs_equal_the_models_with_every_option(graph_emotion, emotion, item, options):
    assert_same(graph_emotion(item, **options), emotion(item, **options))


def test_batches_and_missing_modalities(graph_emotion, emotion, item, make_clip):
    items = [item, {"text": "so happy!"}, make_clip(0.3, 3), {"audio": make_clip(0.9, 5), "text": " "}]

    assert_same(graph_emotion(items, batch_size=3), emotion(items, batch_size=3))


def test_a_recording_with_two_channels(graph_emotion, emotion, make_clip):
    call = np.stack([make_clip(2.0, 1), make_clip(2.0, 2)])

    options = {"channels": "split", "customer": 1, "voice_activity": False}
    assert_same(graph_emotion(call, **options), emotion(call, **options))


def test_transformers_pipeline_accepts_it(exported, graph_model, emotion, item):
    assert_same(pipeline("multimodal-emotion", model=graph_model, processor=str(exported))(item), emotion(item))


def test_the_onnx_backend_loads_the_int8_graph(exported, item):
    emotion = load_pipeline(exported, backend="onnx")

    assert isinstance(emotion.model, MMEmoOnnxModel)
    assert emotion.model.model.path == exported / "model_int8.onnx"
    assert_same(emotion(item), emotion([item])[0])


def test_the_embedded_model_has_a_graph(example_audio):
    answer = load_pipeline(backend="onnx")({"audio": example_audio, "text": "I hate you, leave me alone!"})
    expected = load_pipeline()({"audio": example_audio, "text": "I hate you, leave me alone!"})

    assert answer[0]["label"] == expected[0]["label"]
    for label in ("angry", "happy", "sad"):
        (one,), (other,) = ([e["score"] for e in entries if e["label"] == label] for entries in (answer, expected))
        assert one == pytest.approx(other, abs=0.05)


def test_saved_and_loaded_the_scores_are_identical(graph_emotion, item, tmp_path):
    graph_emotion.save_pretrained(tmp_path)

    assert load_pipeline(tmp_path, backend="onnx")(item) == graph_emotion(item)


def test_outputs_are_tensors(graph_model):
    outputs = graph_model(input_ids=torch.tensor([[2, 5, 3]]), token_times=None)

    assert outputs.logits.shape == (1, 4) and outputs.logits.dtype == torch.float32
    assert outputs.modality_weights.tolist() == [[0, 1]]
    assert outputs.segment_logits is None


def test_invalid_backends_raise(exported, graph_model, tmp_path):
    with pytest.raises(ValueError, match=r"backend='tflite' is unknown; choose one of \('torch', 'onnx'\)"):
        load_pipeline(exported, backend="tflite")
    with pytest.raises(
        ValueError, match="backend='onnx' needs the folder or Hub name of a model, got a loaded MMEmoOnnxModel"
    ):
        load_pipeline(graph_model, backend="onnx")
    with pytest.raises(FileNotFoundError, match=r"has no model_int8.onnx and no model.onnx. Export the model"):
        load_pipeline(tmp_path, backend="onnx")
