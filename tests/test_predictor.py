import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tiny

from mmemo import EmotionPredictor
from mmemo.predictor import load_samples
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


def test_answers_are_those_of_the_pipeline(predict, emotion, example_audio, make_clip):
    for item in (
        {"audio": str(example_audio), "text": "I am so sad."},
        {"audio": make_clip(0.7, 1)},
        {"audio": make_clip(1.3, 2, 8_000), "sampling_rate": 8_000},
        {"audio": np.stack([make_clip(0.5, 1), make_clip(0.5, 2)]), "text": "  "},
        {"text": "you are not happy, wait!" * 20},  # more than the tokenizer's 64 tokens
    ):
        audio, rate = item.get("audio"), item.get("sampling_rate")
        given = item if rate is None else {"audio": {"array": audio, "sampling_rate": rate}}

        answer = predict(audio, item.get("text"), rate)

        assert by_label(answer) == pytest.approx(by_label(emotion(given)), abs=1e-4)
        scores = [entry["score"] for entry in answer]
        assert scores == sorted(scores, reverse=True)


def test_every_form_of_a_file_is_the_same_clip(predict, make_clip, tmp_path):
    path = tmp_path / "clip.flac"
    soundfile.write(path, make_clip(0.5), 16_000)

    assert predict(path) == predict(str(path)) == predict(path.read_bytes()) == predict(soundfile.read(path)[0])


def test_top_k_and_modality_weights(predict, emotion, make_clip):
    clip = make_clip(0.5)

    answer = predict(clip, "so sad", top_k=2, return_modality_weights=True)

    expected = emotion({"audio": clip, "text": "so sad"}, top_k=2, return_modality_weights=True)
    assert [entry["label"] for entry in answer["scores"]] == [entry["label"] for entry in expected["scores"]]
    assert answer["modality_weights"] == pytest.approx(expected["modality_weights"], abs=1e-4)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "single_label_classification"])
def test_scores_follow_the_problem(folder, problem):
    set_config(folder, problem_type=problem)

    answer = EmotionPredictor(folder)(text="you are not happy")

    assert by_label(answer) == pytest.approx(by_label(load_pipeline(folder, "onnx")({"text": "you are not happy"})))


def test_the_embedded_model_answers_without_torch_and_transformers(example_audio):
    program = (
        "import json, sys; from mmemo import EmotionPredictor; "
        "answer = EmotionPredictor()(sys.argv[1], 'I hate you, leave me alone!'); "
        "print(json.dumps([answer, sorted(name.partition('.')[0] for name in sys.modules)]))"
    )

    run = subprocess.run([sys.executable, "-c", program, example_audio], capture_output=True, text=True, check=True)

    answer, modules = json.loads(run.stdout)
    assert not {"torch", "transformers", "librosa", "modeling_mmemo", "huggingface_hub"} & set(modules)
    emotion = load_pipeline(backend="onnx")
    expected = emotion({"audio": example_audio, "text": "I hate you, leave me alone!"})
    assert by_label(answer) == pytest.approx(by_label(expected), abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "audio and text are both missing; pass at least one"),
        ({"text": " "}, ValueError, "A blank text counts as missing"),
        ({"text": "so", "top_k": 0}, ValueError, "top_k=0 must be an integer of at least 1, or None"),
        ({"audio": "missing.wav"}, ValueError, "missing.wav is not a file"),
        ({"audio": b"RIFFnothing"}, ValueError, "The file cannot be read: .* Convert it to WAV: ffmpeg -i"),
        ({"audio": np.ones(100)}, ValueError, "The array lasts 0.0063 s, but at least 0.04 s are needed"),
        ({"audio": np.zeros(16_000)}, ValueError, r"The array is silent: its peak is 0.0e\+00, and it must reach"),
        ({"audio": np.full(16_000, np.nan)}, ValueError, "The array holds NaN or infinity"),
    ],
)
def test_bad_input_is_refused_in_words(predict, arguments, error, message):
    with pytest.raises(error, match=message):
        predict(**arguments)


def test_resampling_needs_soxr(make_clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)

    assert len(load_samples(make_clip(), 16_000, 16_000)) == 8_000
    with pytest.raises(ImportError, match=r"The array has 8000 Hz and the model hears 16000 Hz; .* pip install soxr"):
        load_samples(make_clip(sampling_rate=8_000), 8_000, 16_000)


def test_a_model_of_text_alone_refuses_audio(tokenizer, make_clip, tmp_path):
    model = tiny.make_model(None, "bert")
    export_onnx(model, MMEmoProcessor(None, tokenizer), tmp_path)
    predict = EmotionPredictor(tmp_path)

    assert len(predict(text="so happy")) == model.config.num_labels
    with pytest.raises(ValueError, match="This model has no audio encoder; leave the audio out"):
        predict(make_clip(), "so happy")


def test_folders_that_lack_something(folder, make_clip, tmp_path):
    (folder / "features.onnx").unlink()
    (folder / "tokenizer.json").unlink()
    predict = EmotionPredictor(folder)

    with pytest.raises(ValueError, match=r"holds no features.onnx: its .*load_pipeline\(..., backend='onnx'\)"):
        predict(make_clip())
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer.json. Export the model: mmemo export"):
        predict(text="so")
    with pytest.raises(
        FileNotFoundError, match=r"holds no model_int8.onnx and no model.onnx, but .* Export the model"
    ):
        EmotionPredictor(tmp_path)
