"""The embedded model of `pipeline("multimodal-emotion")`."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoProcessor

import modeling_mmemo
from mmemo import EmotionPredictor
from mmemo.audio.loading import load_audio
from modeling_mmemo import (
    MMEmoConfig,
    MMEmoFeatureExtractor,
    MMEmoForEmotionRecognition,
    MMEmoModel,
    MMEmoProcessor,
    pipeline,
)


DEFAULT = Path(modeling_mmemo.__file__).parent / "default"
CLIPS = Path(__file__).parents[1] / "examples" / "audio"


@pytest.fixture(scope="module")
def emotion():
    return pipeline("multimodal-emotion")


@pytest.fixture(scope="module")
def clips():
    with (CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        return [{**row, "audio": str(CLIPS / row["file_name"])} for row in csv.DictReader(file)]


def test_labels_and_their_order_are_stable():
    config = json.loads((DEFAULT / "config.json").read_text())

    assert list(config["id2label"].values()) == ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]


def test_auto_classes_load_it():
    assert isinstance(AutoConfig.from_pretrained(DEFAULT), MMEmoConfig)
    assert isinstance(AutoModel.from_pretrained(DEFAULT), MMEmoModel)
    assert isinstance(AutoModelForAudioClassification.from_pretrained(DEFAULT), MMEmoForEmotionRecognition)
    assert isinstance(AutoProcessor.from_pretrained(DEFAULT), MMEmoProcessor)
    assert isinstance(AutoFeatureExtractor.from_pretrained(DEFAULT), MMEmoFeatureExtractor)


def test_no_weight_is_newly_initialised():
    model = MMEmoForEmotionRecognition.from_pretrained(DEFAULT)

    assert model.missing_keys_on_load == ()
    assert model.dtype == torch.float32


def test_most_example_clips_are_predicted_correctly(emotion, clips):
    """The speakers and the language are not in the training data."""
    predicted = [answer[0]["label"] for answer in emotion([clip["audio"] for clip in clips], top_k=1)]

    assert sum(label == clip["label"] for label, clip in zip(predicted, clips)) >= 4


@pytest.mark.parametrize(
    ("sentence", "label"),
    [
        ("I hate you, leave me alone!", "angry"),
        ("That is wonderful news, I am so glad!", "happy"),
        ("She died last night and I cannot stop crying.", "sad"),
        ("我今天真的很开心", "happy"),
        ("奶奶昨晚去世了 我一直在哭", "sad"),
        ("Das macht mich so wütend!", "angry"),
        ("Estoy muy triste, no puedo dejar de llorar.", "sad"),
        ("J'ai très peur.", "fear"),
        ("मुझे बहुत गुस्सा आ रहा है।", "angry"),
        ("Estou muito feliz hoje!", "happy"),
        ("Мне очень страшно.", "fear"),
    ],
)
def test_simple_sentences(emotion, sentence, label):
    assert emotion({"text": sentence})[0]["label"] == label


def test_a_text_in_a_script_that_it_does_not_read_counts_as_missing(emotion, clips, caplog):
    clip = clips[0]["audio"]

    assert emotion({"audio": clip, "text": "오늘 정말 행복해요"}) == emotion(clip)
    assert "the tokenizer knows no token of '오늘 정말 행복해요'" in caplog.text


def test_scores_do_not_depend_on_the_batch(emotion, clips):
    items = [
        clips[0]["audio"],
        {"text": clips[1]["text"]},
        {"audio": clips[2]["audio"], "text": "I am not at all sure about this."},
        {"audio": clips[5]["audio"], "text": clips[5]["text"]},
    ]

    together = emotion(items, batch_size=4)
    reversed_order = emotion(items[::-1], batch_size=4)[::-1]

    for item, one, other in zip(items, together, reversed_order):
        alone = {answer["label"]: answer["score"] for answer in emotion(item)}
        for answers in (one, other):
            assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(alone, abs=1e-5)


def padded(clip, seed):
    """Yields a clip with 10 s of zeros, of noise at -60 dBFS and of hold silence, before it and after it."""
    rng, length = np.random.default_rng(seed), 160_000
    noise, hold = 1e-3 * rng.standard_normal(length), rng.uniform(-2e-4, 2e-4, length)
    for silence in (np.zeros(length), noise, hold):
        silence = silence.astype(np.float32)
        yield np.concatenate([silence, clip])
        yield np.concatenate([clip, silence])


def label(predict, clip):
    return predict(clip, top_k=1)[0]["label"]


@pytest.mark.slow
def test_silence_around_the_example_clips_does_not_change_their_labels(emotion, clips):
    predict = EmotionPredictor()
    for seed, clip in enumerate(clips):
        samples = load_audio(clip["audio"])
        expected = label(predict, samples)
        assert expected == label(emotion, samples)
        assert [label(predict, long) for long in padded(samples, seed)] == [expected] * 6
    zeros_before = np.concatenate([np.zeros(160_000, np.float32), samples])
    assert emotion(zeros_before) == emotion(samples)


@pytest.mark.slow
@pytest.mark.corpora
def test_silence_around_200_clips_changes_at_most_one_percent_of_their_labels(corpora_dir):
    predict = EmotionPredictor()
    changed, count = 0, 0
    for corpus in ("ravdess", "emodb"):
        paths = sorted((corpora_dir / corpus).rglob("*.flac"))
        for seed, path in enumerate(paths[:: len(paths) // 100][:100]):
            samples = load_audio(path)
            expected = label(predict, samples)
            changed += sum(label(predict, long) != expected for long in padded(samples, seed))
            count += 6
    assert count == 1200
    assert changed <= 0.01 * count


@pytest.mark.slow
def test_saved_and_loaded_in_a_new_process_the_scores_are_identical(emotion, clips, tmp_path):
    emotion.save_pretrained(tmp_path)
    item = {"audio": clips[0]["audio"], "text": "Stop it."}
    program = (
        "import json, sys, torch; from modeling_mmemo import pipeline; torch.set_num_threads(1); "
        "print(json.dumps(pipeline('multimodal-emotion', model=sys.argv[1])(json.loads(sys.argv[2]))))"
    )

    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), json.dumps(item)], capture_output=True, text=True, check=True
    )

    assert json.loads(run.stdout) == emotion(item)


def test_a_checkpoint_without_a_head_raises(tmp_path):
    model = MMEmoForEmotionRecognition.from_pretrained(DEFAULT)
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("text_classifier")}
    model.save_pretrained(tmp_path, state_dict=weights)
    MMEmoProcessor.from_pretrained(DEFAULT).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"text_classifier\.bias, text_classifier\.weight"):
        pipeline("multimodal-emotion", model=str(tmp_path))
