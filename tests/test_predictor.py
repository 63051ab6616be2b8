import json
import shutil
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import soundfile
import tiny

from mmemo import EmotionPredictor, EmotionStream
from modeling_mmemo import MMEmoProcessor, load_pipeline
from modeling_mmemo.exporters import export_onnx


@pytest.fixture(scope="module")
def predict(exported):
    return EmotionPredictor(exported, file_name="model.onnx")


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def by_label(scores):
    return {entry["label"]: entry["score"] for entry in scores}


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def pipe(exported):
    """The pipeline over the int8 graph, which is the default of the predictor."""
    return load_pipeline(exported, "onnx")


def speech(example_audio, copies=4):
    samples, _ = soundfile.read(example_audio, dtype="float32")
    return np.tile(np.concatenate([samples, np.zeros(8_000, np.float32)]), copies)


def test_scores_equal_the_torch_pipeline(predict, emotion, example_audio, make_clip):
    for item in (
        {"audio": str(example_audio), "text": "I am so sad."},
        {"audio": make_clip(0.7, 1)},
        {"audio": make_clip(1.3, 2, 8_000), "sampling_rate": 8_000},
        {"audio": np.stack([make_clip(0.5, 1), make_clip(0.5, 2)]), "text": "  "},
        {"text": "you are not happy, wait!" * 20},  # more than the 64 tokens of the tokenizer
    ):
        audio, rate = item.get("audio"), item.get("sampling_rate")
        given = item if rate is None else {"audio": {"array": audio, "sampling_rate": rate}}

        scores = predict(audio, item.get("text"), rate)

        assert by_label(scores) == pytest.approx(by_label(emotion(given)), abs=1e-4)
        scores = [entry["score"] for entry in scores]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    "item",
    [
        {"text": "you are not happy, wait!"},
        {"word_times": [("you", 0.1, 0.3), ("wait", 0.4, 0.9)]},
        {"audio": "speech", "text": "I am so sad."},
        {"audio": "speech", "text": "I am so sad.", "word_times": [("am", 0.1, 0.3), ("sad", 0.6, 0.9)]},
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 2, "return_modality_weights": True}, {"threshold": 0.6}, {"channel": 0}]
)
def test_int8_predictions_equal_the_pipeline(exported, pipe, example_audio, item, options):
    """To the bit: both share all code but the call of the graph."""
    item = {**item, "audio": str(example_audio)} if "audio" in item else item

    assert EmotionPredictor(exported)(**item, **options) == pipe(item, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1, "threshold": 0.5},
        {"segment_s": 1.0, "window_hop_s": 1.0, "voice_activity": False},
        {"word_times": "1\n00:00:00,500 --> 00:00:02,000\nI am not happy.\n", "granularity": "sentence"},
        {"speaker_turns": [("ann", 0.0, 2.0), ("bob", 2.5, 5.0)], "customer": "bob"},
    ],
)
def test_timelines_equal_the_pipeline(exported, pipe, example_audio, options):
    samples = speech(example_audio)
    item = {"audio": samples, "word_times": options.pop("word_times", None)}

    timeline = EmotionPredictor(exported)(**item, return_timeline=True, **options)

    assert timeline == pipe(item, return_timeline=True, **options)


def test_split_channels_equal_the_pipeline(exported, pipe, example_audio):
    stereo = np.stack([speech(example_audio), np.roll(speech(example_audio), 9_000)])
    options = {"channels": "split", "customer": 1}

    assert EmotionPredictor(exported)(stereo, return_timeline=True, **options) == pipe(stereo, **options)


def test_streams_equal_the_pipeline(exported, pipe, example_audio):
    samples = speech(example_audio)

    def stream_segments(emotion):
        stream = EmotionStream(emotion)
        chunks = [stream.feed(samples[start : start + 5_000]) for start in range(0, len(samples), 5_000)]
        return [*chain.from_iterable(chunks), *stream.flush()]

    segments = stream_segments(EmotionPredictor(exported))
    assert len(segments) > 10 and segments == stream_segments(pipe)


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_and_padding_equal_transformers(exported, tokenizer, folder, side):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": side, "truncation_side": side}))
    texts = ["you are not happy, wait!" * 20, "so sad"]
    tokenizer.padding_side = tokenizer.truncation_side = side

    for truncation in (True, False):
        expected = tokenizer(texts, padding=True, truncation=truncation, return_token_type_ids=False)
        processor = EmotionPredictor(folder).processor
        found = processor.collate([processor.prepare(text=text) for text in texts], truncation=truncation)
        assert found == dict(expected)


def test_all_audio_forms_of_a_file_give_the_same_scores(predict, make_clip, tmp_path):
    path = tmp_path / "clip.flac"
    soundfile.write(path, make_clip(0.5), 16_000)

    assert predict(path) == predict(str(path)) == predict(path.read_bytes()) == predict(soundfile.read(path)[0])


def test_top_k_and_modality_weights(predict, emotion, make_clip):
    clip = make_clip(0.5)

    found = predict(clip, "so sad", top_k=2, return_modality_weights=True)

    expected = emotion({"audio": clip, "text": "so sad"}, top_k=2, return_modality_weights=True)
    assert [entry["label"] for entry in found["scores"]] == [entry["label"] for entry in expected["scores"]]
    assert found["modality_weights"] == pytest.approx(expected["modality_weights"], abs=1e-4)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "single_label_classification"])
def test_scores_follow_the_problem_type(folder, problem):
    set_config(folder, problem_type=problem)

    scores = EmotionPredictor(folder)(text="you are not happy")

    assert by_label(scores) == pytest.approx(by_label(load_pipeline(folder, "onnx")({"text": "you are not happy"})))


def test_the_embedded_model_runs_without_torch_and_transformers(example_audio):
    program = (
        "import json, sys; from mmemo import EmotionPredictor; "
        "scores = EmotionPredictor()(sys.argv[1], 'I hate you, leave me alone!'); "
        "print(json.dumps([scores, sorted(name.partition('.')[0] for name in sys.modules)]))"
    )

    run = subprocess.run([sys.executable, "-c", program, example_audio], capture_output=True, text=True, check=True)

    scores, modules = json.loads(run.stdout)
    assert not {"torch", "transformers", "librosa", "modeling_mmemo", "huggingface_hub"} & set(modules)
    emotion = load_pipeline(backend="onnx")
    expected = emotion({"audio": example_audio, "text": "I hate you, leave me alone!"})
    assert scores == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "audio and text are both missing; pass at least one"),
        ({"text": " "}, ValueError, "A blank text counts as missing"),
        ({"text": "so", "top_k": 0}, ValueError, "top_k=0 must be an integer of at least 1, or None"),
        ({"audio": "missing.wav"}, ValueError, "Cannot read missing.wav .*No such file"),
        ({"audio": b"RIFFnothing"}, ValueError, "the audio file is not readable audio .*ffmpeg -i"),
        (
            {"audio": np.resize([1.0, -1.0], 100)},
            ValueError,
            "the clip lasts 0.0063 s, but at least 0.04 s are needed",
        ),
        ({"audio": np.zeros(16_000)}, ValueError, r"is silent: its peak is 0.0e\+00, and audio must reach"),
        (
            {"text": "so", "segment_s": 1.0, "return_timeline": False},
            ValueError,
            r"return_timeline=False contradicts \['segment_s'\], which are options of timelines",
        ),
        ({"audio": np.ones(100), "return_timeline": True, "transcriber": 1}, ValueError, "int is not a transcriber"),
    ],
)
def test_invalid_inputs_raise(predict, arguments, error, message):
    with pytest.raises(error, match=message):
        predict(**arguments)


@pytest.mark.slow
def test_a_text_model_raises_for_audio(tokenizer, make_clip, tmp_path):
    model = tiny.make_model(None, "bert")
    export_onnx(model, MMEmoProcessor(None, tokenizer), tmp_path)
    predict = EmotionPredictor(tmp_path)

    assert len(predict(text="so happy")) == model.config.num_labels
    with pytest.raises(ValueError, match="this model has no audio encoder; leave 'audio' out"):
        predict(make_clip(), "so happy")


def test_incomplete_folders_raise(folder, make_clip, tmp_path):
    (folder / "features.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has no features.safetensors: .*load_pipeline\(..., backend='onnx'\)"):
        EmotionPredictor(folder)(make_clip())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json. Export the model: mmemo export"):
        EmotionPredictor(folder)
    with pytest.raises(FileNotFoundError, match=r"has no model_int8.onnx and no model.onnx, but .* Export the model"):
        EmotionPredictor(tmp_path)
