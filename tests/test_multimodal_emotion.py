import json
import logging
import traceback
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import Dataset
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    GPT2Config,
    GPT2Model,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

import modeling_mmemo
from mmemo.timeline.calls import summarize_call
from modeling_mmemo import (
    MMEmoConfig,
    MMEmoForEmotionRecognition,
    MMEmoProcessor,
    MultimodalEmotionPipeline,
    load_pipeline,
)


DEFAULT_MODEL = modeling_mmemo.pipelines.DEFAULT_MODEL
LABELS = {"angry", "happy", "neutral", "sad"}


@pytest.fixture
def items(make_clip):
    """Items with audio, with text and with both, of different lengths."""
    return [
        {"audio": make_clip(0.5, 1), "text": "I am so sad."},
        {"audio": {"array": make_clip(1.1, 2, 8_000), "sampling_rate": 8_000}},
        {"text": "so happy!", "word_times": [("so", 0, 0.1), ("happy", 0.2, 0.4)]},
        make_clip(0.3, 3),
        {
            "audio": make_clip(0.8, 4),
            "text": "you are not happy",
            "word_times": [("you", 0, 0.2), ("happy", 0.5, 0.8)],
        },
        {"audio": make_clip(0.7, 5, 22_050), "text": " ", "sampling_rate": 22_050},
        {"text": "waiting"},
    ]


def assert_same(actual, expected):
    """Compares lists of predictions within 1e-5; the labels may be in any order."""
    assert len(actual) == len(expected)
    for found, other in zip(actual, expected):
        assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(
            {entry["label"]: entry["score"] for entry in other}, abs=1e-5
        )


def test_labels_are_sorted_by_score(emotion, items):
    prediction = emotion(items[0])
    scores = [entry["score"] for entry in prediction]
    assert {entry["label"] for entry in prediction} == LABELS
    assert all(set(entry) == {"label", "score"} for entry in prediction)
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-5)
    assert scores[0] - scores[-1] > 1e-3  # the scores of the labels differ


def test_scores_are_the_softmax_of_the_logits(emotion, items):
    inputs = emotion.processor(audio=items[0]["audio"], text=items[0]["text"], return_tensors="pt")
    expected = emotion.model(**inputs).logits.softmax(dim=-1)[0].tolist()
    prediction = {entry["label"]: entry["score"] for entry in emotion(items[0])}
    assert [prediction[emotion.model.config.id2label[i]] for i in range(4)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_predictions_do_not_depend_on_the_batch(emotion, items, batch_size):
    alone = [emotion(item) for item in items]
    assert_same(emotion(items, batch_size=batch_size), alone)
    assert_same(emotion(items[::-1], batch_size=batch_size), alone[::-1])
    assert len({tuple(entry["score"] for entry in prediction) for prediction in alone}) == len(items)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOWERS = {
    "whisper": (
        WhisperFeatureExtractor,
        WhisperConfig(
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_layers=1,
            decoder_attention_heads=2,
        ),
    ),
    "wav2vec2": (
        Wav2Vec2FeatureExtractor,
        Wav2Vec2Config(**SMALL, conv_dim=[16] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2),
    ),
    "ast": (lambda: ASTFeatureExtractor(num_mel_bins=32), ASTConfig(**SMALL, num_mel_bins=32)),
}


@pytest.mark.parametrize("audio", TOWERS)
def test_hub_encoders_do_not_depend_on_the_batch(audio, byte_tokenizer, items):
    torch.manual_seed(0)
    extractor, audio_config = TOWERS[audio]
    text_config = GPT2Config(vocab_size=257, n_embd=16, n_layer=2, n_head=2, eos_token_id=0)
    config = MMEmoConfig(audio_config=audio_config, text_config=text_config, fusion_hidden_size=16)
    plugged = MultimodalEmotionPipeline(
        model=MMEmoForEmotionRecognition(config), processor=MMEmoProcessor(extractor(), byte_tokenizer), device="cpu"
    )
    alone = [plugged(item) for item in items]
    assert_same(plugged(items, batch_size=4), alone)
    assert len({tuple(entry["score"] for entry in prediction) for prediction in alone}) == len(items)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_workers_do_not_change_predictions(emotion, items, batch_size):
    expected = emotion(items, batch_size=batch_size)
    assert_same(emotion(items, batch_size=batch_size, num_workers=2), expected)
    assert_same(list(emotion((item for item in items), batch_size=batch_size, num_workers=2)), expected)


def test_all_audio_forms_have_the_same_prediction(emotion, audio_forms):
    forms = list(audio_forms.values())
    expected = emotion({"audio": audio_forms["array"]})
    for form in forms:
        assert_same([emotion(form), emotion({"audio": form})], [expected] * 2)
    assert_same(emotion(forms, batch_size=4), [expected] * len(forms))


def test_a_path_equals_an_item_with_the_path(emotion, example_audio):
    assert_same([emotion(example_audio)], [emotion({"audio": str(example_audio)})])


def test_iterables_are_streamed(emotion, items):
    expected = emotion(items)
    taken = []

    def stream():
        for item in items:
            taken.append(item)
            yield item

    predictions = emotion(stream())
    assert_same([next(iter(predictions))], expected[:1])
    assert len(taken) < len(items)
    for many in (tuple(items), map(dict, items[4:5])):
        predictions = list(emotion(many, batch_size=2))
        assert_same(predictions, expected if len(predictions) > 1 else expected[4:5])
    assert emotion([]) == []


def test_datasets_are_accepted(emotion, make_clip, tmp_path):
    paths = [tmp_path / f"{seed}.wav" for seed in range(3)]
    for seed, path in enumerate(paths):
        soundfile.write(path, make_clip(0.3 + seed / 10, seed), 16_000)
    texts = ["so sad", None, "happy"]
    rows = datasets.Dataset.from_dict({"audio": [str(path) for path in paths], "text": texts})
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    both = emotion([{"audio": str(path), "text": text} for path, text in zip(paths, texts)])
    audio = emotion([str(path) for path in paths])
    assert_same(list(emotion(rows, batch_size=2)), both)
    assert_same([emotion(row) for row in rows], both)
    assert_same(list(emotion(KeyDataset(rows, "audio"), batch_size=2)), audio)
    assert_same(list(emotion(KeyDataset(rows, "audio"), batch_size=2, num_workers=2)), audio)

    class Paths(Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return paths[index]

    assert_same(list(emotion(Paths(), batch_size=2)), audio)


def test_top_k(emotion, items):
    every = emotion(items[0])
    assert emotion(items[0], top_k=1) == every[:1]
    assert emotion(items[0], top_k=99) == every
    set_up = MultimodalEmotionPipeline(model=emotion.model, processor=emotion.processor, top_k=2, device="cpu")
    assert set_up(items[0]) == every[:2]
    assert set_up(items[0], top_k=None) == every


def scores_by_label(emotion, item, **kwargs):
    return torch.tensor([e["score"] for e in sorted(emotion(item, **kwargs), key=lambda e: e["label"])])


def test_function_to_apply(emotion, items):
    logits = scores_by_label(emotion, items[0], function_to_apply="none")
    for name, expected in (("softmax", logits.softmax(0)), ("sigmoid", logits.sigmoid())):
        torch.testing.assert_close(scores_by_label(emotion, items[0], function_to_apply=name), expected)
    assert not torch.allclose(logits, logits.softmax(0))


@pytest.mark.parametrize(
    ("problem_type", "function"),
    [
        (None, "softmax"),
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
        ("regression", "none"),
    ],
)
def test_the_default_function_follows_the_problem_type(emotion, items, problem_type, function):
    emotion.model.config.problem_type = problem_type
    by_default = scores_by_label(emotion, items[0])
    torch.testing.assert_close(by_default, scores_by_label(emotion, items[0], function_to_apply=function))


def test_modality_weights(emotion, items):
    predictions = emotion(items, batch_size=3, return_modality_weights=True)
    for prediction in predictions:
        assert set(prediction) == {"scores", "modality_weights"}
        assert sum(prediction["modality_weights"].values()) == pytest.approx(1, abs=1e-5)
    assert_same([prediction["scores"] for prediction in predictions], emotion(items))
    weights = [prediction["modality_weights"] for prediction in predictions]
    assert [w["audio"] for w in weights[1:4]] == [1, 0, 1]
    assert 0 < weights[0]["text"] < 1


def test_channel_selects_one_channel(emotion, make_clip):
    stereo = np.stack([make_clip(seed=1), make_clip(seed=2)])
    assert emotion(stereo, channel=1) == emotion(stereo[1])
    assert emotion([stereo], channel=0) == [emotion(stereo[0])]


def test_items_are_not_modified(emotion, items):
    before = dict(items[4])
    emotion(items[4])
    assert items[4] is not before and list(items[4]) == list(before)
    assert all(items[4][key] is before[key] for key in before)


def test_bfloat16_scores_are_close(emotion, items):
    expected = emotion(items)
    emotion.model.bfloat16()
    for some, others in zip(emotion(items, batch_size=3), expected):
        scores = {entry["label"]: entry["score"] for entry in some}
        assert scores == pytest.approx({entry["label"]: entry["score"] for entry in others}, abs=0.1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({}, "audio and text are both missing"),
        ({"text": " "}, "audio and text are both missing"),
        (None, "audio and text are both missing"),
        ({"text": "so", "label": 1, "id": 2}, r"unknown keys \['label', 'id'\]; an item may have \('audio', 'text'"),
        (
            "no_such.wav",
            "audio: Cannot read no_such.wav .*A str is the path of an audio file; pass a text as 'text'",
        ),
        (object(), "audio: object is not an audio input; pass a path"),
        (np.zeros(99, np.float32), "audio: .*silent"),
        ({"path": "call.wav", "text": "so"}, r"unknown keys \['path'\]"),
        ({"text": 7}, "text: expected a str, word times or None, got int"),
        ({"text": ["so"]}, "text: word 0"),
        ({"text": "so", "word_times": [("sad", 0, 1)]}, "word_times: word 0, 'sad', does not occur"),
    ],
)
def test_an_invalid_item_raises_with_its_position(emotion, items, item, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        emotion(item)
    many = [items[0], items[6], item, items[2]]
    with pytest.raises(ValueError, match=f"^Item 2: {message}"):
        emotion(many, batch_size=2)
    predictions = iter(emotion(item for item in many))
    assert len([next(predictions), next(predictions)]) == 2
    with pytest.raises(ValueError, match=f"^Item 2: {message}"):
        next(predictions)


def test_an_invalid_item_in_a_worker_raises_with_its_position(emotion, items):
    with pytest.raises(ValueError, match=r"Item 2: audio: Cannot read no_such\.wav") as raised:
        emotion([*items[:2], "no_such.wav"], num_workers=1)
    traceback.clear_frames(raised.tb)  # otherwise the garbage collector waits 5 s for the worker


def test_invalid_parameters_raise(emotion, items):
    with pytest.raises(ValueError, match=r"function_to_apply='tanh' is unknown; choose one of \['softmax', 'sigmoid'"):
        emotion(items[0], function_to_apply="tanh")
    with pytest.raises(ValueError, match="top_k=0 must be an integer of at least 1"):
        emotion(items[0], top_k=0)
    with pytest.raises(TypeError, match=r"Unknown parameters \['topk'\]; valid ones are"):
        emotion(items[0], topk=1)


def test_options_of_pipeline_and_call_are_checked_together(emotion, items):
    emotion.model.config.problem_type = "multi_label_classification"
    built = MultimodalEmotionPipeline(
        model=emotion.model, processor=emotion.processor, device="cpu", threshold=0.5, function_to_apply="softmax"
    )
    assert "label" in built(items[0])
    assert "label" in built(items[0], threshold=0.1)
    with pytest.raises(ValueError, match="threshold and coverage need softmax scores of a single label"):
        built(items[0], function_to_apply="none")
    assert len(built(items[0], function_to_apply="none", threshold=None)) == 4


@pytest.mark.parametrize("is_timeline", [True, False])
def test_words_are_not_encoded_by_a_model_without_text_encoder(emotion, make_clip, is_timeline):
    config = emotion.model.config.to_dict() | {"text_config": None}
    model = MMEmoForEmotionRecognition(MMEmoConfig(**config)).eval()
    single = MultimodalEmotionPipeline(model=model, processor=emotion.processor, device="cpu")
    item = {"audio": make_clip(1.0), "word_times": [("so", 0.1, 0.4)]}
    if is_timeline:
        (entry,) = single(item, granularity="word", voice_activity=False)["timeline"]
        assert entry["words"] == ["so"] and entry["modality_weights"] == {"audio": 1, "text": 0}
    else:
        with pytest.raises(ValueError, match=r"^this model has no text encoder; leave 'word_times' out"):
            single(item)


@pytest.mark.parametrize("absent", ["audio", "text"])
def test_a_model_of_one_modality_raises_for_the_other(emotion, items, absent):
    config = emotion.model.config.to_dict() | {f"{absent}_config": None}
    model = MMEmoForEmotionRecognition(MMEmoConfig(**config)).eval()
    single = MultimodalEmotionPipeline(model=model, processor=emotion.processor, device="cpu")
    with pytest.raises(ValueError, match=f"^this model has no {absent} encoder; leave '{absent}' out"):
        single(items[0])
    present = {"audio": "text", "text": "audio"}[absent]
    assert len(single({present: items[0][present]}, return_modality_weights=True)["scores"]) == 4


def test_newly_initialised_weights_raise(model, processor):
    for missing, named in ((("a",), "a"), (tuple("abcdefg"), r"a, b, c, d, e, \.\.\.")):
        model.missing_keys_on_load = missing
        message = f"^{len(missing)} weights of MMEmoForEmotionRecognition .*be random: {named}\\. Load a checkpoint"
        with pytest.raises(ValueError, match=message):
            MultimodalEmotionPipeline(model=model, processor=processor)


def test_a_model_in_training_mode_predicts_without_dropout(model, processor, emotion, items):
    model.train()
    assert_same(MultimodalEmotionPipeline(model=model, processor=processor, device="cpu")(items), emotion(items))


def test_a_saved_pipeline_predicts_the_same(emotion, items, tmp_path):
    expected = emotion(items)
    emotion.save_pretrained(tmp_path)
    assert str(Path(DEFAULT_MODEL).parent) not in (tmp_path / "config.json").read_text()
    for loaded in (
        pipeline("multimodal-emotion", model=str(tmp_path), device="cpu", local_files_only=True),
        load_pipeline(tmp_path, device="cpu"),
        load_pipeline(emotion.model, processor=emotion.processor, device="cpu"),
    ):
        assert type(loaded) is MultimodalEmotionPipeline
        assert_same(loaded(items), expected)


def test_a_saved_pipeline_with_remote_code_loads_the_installed_class(emotion, items, tmp_path):
    """Processes without the package are tested in `test_remote_code.py`."""
    expected = emotion(items)
    emotion.save_pretrained(tmp_path)
    entry = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert entry == {
        "multimodal-emotion": {
            "impl": "multimodal_emotion.MultimodalEmotionPipeline",
            "pt": ["AutoModelForAudioClassification"],
        }
    }
    for options in ({}, {"trust_remote_code": True}):
        loaded = pipeline("multimodal-emotion", model=str(tmp_path), device="cpu", **options)
        assert type(loaded) is MultimodalEmotionPipeline
        assert_same(loaded(items), expected)


def test_push_to_hub_uploads_the_code(emotion, monkeypatch):
    class Hub:
        def create_repo(self, repo_id, **kwargs):
            return type("Url", (), {"repo_id": repo_id})

    pushed = {}

    def upload(self, folder, repo_id, **kwargs):
        pushed[repo_id] = {path.name for path in Path(folder).iterdir()}

    card = type("Card", (), {"save": lambda self, path: None})()
    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *args, **kwargs: card)
    monkeypatch.setattr(MultimodalEmotionPipeline, "_upload_modified_files", upload)
    emotion.push_to_hub("someone/emotion")
    assert {"multimodal_emotion.py", "model.safetensors", "processor_config.json"} <= pushed["someone/emotion"]


def test_the_embedded_model_is_the_default(emotion, items, tmp_path, monkeypatch, caplog):
    assert Path(DEFAULT_MODEL) == Path(modeling_mmemo.__file__).parent / "default"
    task = PIPELINE_REGISTRY.supported_tasks["multimodal-emotion"]
    assert task["default"] == {"model": (DEFAULT_MODEL, None)}
    expected = emotion(items)
    emotion.save_pretrained(tmp_path)
    monkeypatch.setitem(task, "default", {"model": (str(tmp_path), None)})
    monkeypatch.setattr(modeling_mmemo.pipelines, "DEFAULT_MODEL", str(tmp_path))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for loaded in (pipeline("multimodal-emotion", device="cpu"), load_pipeline(device="cpu")):
        assert type(loaded) is MultimodalEmotionPipeline
        assert_same(loaded(items), expected)
    assert {record.name for record in caplog.records} <= {"mmemo.items"}  # about a blank text
    logging.getLogger("transformers.pipelines").warning("defaulted to some other model")
    assert caplog.records[-1].name == "transformers.pipelines"


def test_a_model_of_another_type_raises(processor):
    other = GPT2Model(GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))

    with pytest.raises(ValueError, match=r"models of type 'mmemo', not 'gpt2'; .*from_pretrained_towers"):
        MultimodalEmotionPipeline(model=other, processor=processor)


def test_a_timeline_has_a_segment_every_half_second(emotion, make_clip):
    words = [("i", 0.1, 0.4), ("am", 0.6, 0.8), ("happy", 3.0, 3.4)]
    result = emotion({"audio": make_clip(6.2), "word_times": words}, return_timeline=True, voice_activity=False)
    assert result.keys() == {"duration", "speech", "label", "scores", "modality_weights", "timeline", "spans"}
    assert result["duration"] == pytest.approx(6.2)
    timeline = result["timeline"]
    assert [entry["start"] for entry in timeline] == [index * 0.5 for index in range(13)]
    assert timeline[-1]["end"] == pytest.approx(6.2)
    assert [entry["words"] for entry in timeline if entry["words"]] == [["i"], ["am"], ["happy"]]
    for entry in timeline:
        assert sum(score["score"] for score in entry["scores"]) == pytest.approx(1, abs=1e-5)
        assert entry["label"] == entry["scores"][0]["label"]
        assert sum(entry["modality_weights"].values()) == pytest.approx(1, abs=1e-5)
    assert result["spans"][0]["start"] == 0
    assert result["spans"][-1]["end"] == pytest.approx(6.2)


def test_segments_of_a_short_clip_equal_the_segments_of_the_model(emotion, make_clip):
    clip = make_clip(2.0)
    inputs = emotion.processor(clip, segment_times=[[(0.0, 2.0), (0.0, 1.0)]], return_tensors="pt")
    outputs = emotion.model(**inputs)
    torch.testing.assert_close(outputs.segment_logits[:, 0], outputs.logits)
    (entry,) = emotion(clip, segment_s=2.0, voice_activity=False)["timeline"]
    scores = {score["label"]: score["score"] for score in entry["scores"]}
    expected = outputs.logits.softmax(dim=-1)[0]
    for index, label in emotion.model.config.id2label.items():
        assert scores[label] == pytest.approx(expected[index].item(), abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 32])
def test_a_timeline_does_not_depend_on_the_window_batch_size(emotion, make_clip, size):
    item = {"audio": make_clip(9.7), "word_times": [("so", 1.0, 1.5), ("sad", 6.0, 6.5)]}
    expected = emotion(item, return_timeline=True, voice_activity=False)
    found = emotion(item, return_timeline=True, voice_activity=False, window_batch_size=size)
    for entry, other in zip(found["timeline"], expected["timeline"], strict=True):
        scores, others = ({score["label"]: score["score"] for score in one["scores"]} for one in (entry, other))
        assert scores == pytest.approx(others, abs=1e-5)


def test_timelines_of_lists_generators_and_built_pipelines(emotion, make_clip):
    clips = [make_clip(1.0), make_clip(1.6, 1)]
    results = emotion(clips, return_timeline=True, voice_activity=False)
    assert [len(result["timeline"]) for result in results] == [2, 4]
    stream = emotion((clip for clip in clips), hop_s=0.25, voice_activity=False)
    assert [len(result["timeline"]) for result in stream] == [4, 7]
    with pytest.raises(ValueError, match="Item 1: "):
        emotion([clips[0], "missing.wav"], return_timeline=True)
    built = MultimodalEmotionPipeline(emotion.model, emotion.processor, return_timeline=True, voice_activity=False)
    assert len(built(clips[0])["timeline"]) == 2
    assert isinstance(built(clips[0], return_timeline=False), list)
    assert isinstance(emotion(clips[0], everyone=False, segment_s=None), list)


@pytest.mark.parametrize(
    "granularity, expected",
    [
        ("word", [["I"], ["am"], ["sad."], ["You"], ["wait!"]]),
        ("sentence", [["I", "am", "sad."], ["You", "wait!"]]),
        ("utterance", [["I", "am", "sad.", "You", "wait!"]]),
    ],
)
def test_granularity_defines_the_spans(emotion, make_clip, granularity, expected):
    words = [("I", 0, 0.3), ("am", 0.3, 0.5), ("sad.", 0.5, 1), ("You", 1.2, 1.5), ("wait!", 1.5, 2)]
    result = emotion(
        {"audio": make_clip(2.5), "word_times": words}, granularity=granularity, voice_activity=False, top_k=1
    )
    assert [entry["words"] for entry in result["timeline"]] == expected
    assert all(len(entry["scores"]) == 1 for entry in result["timeline"])


def test_a_silent_recording_is_labelled_silence(emotion):
    result = emotion(np.zeros(32_000, np.float32), return_timeline=True)
    assert result["label"] == "silence"
    assert result["scores"] == result["spans"] == []
    assert [entry["label"] for entry in result["timeline"]] == ["silence"] * 4


def test_channels_of_a_call_get_predictions_of_their_own(emotion, make_clip):
    call = np.stack([make_clip(3.0), make_clip(3.0, 1)])
    result = emotion(call, channels="split", customer=1, voice_activity=False)
    assert result["speakers"].keys() == {"channel_0", "channel_1"}
    assert result["speakers"]["channel_0"].keys() == {"speech"}
    assert len(result["speakers"]["channel_1"]["timeline"]) == 6
    alone = emotion(call[1], return_timeline=True, voice_activity=False)
    assert result["speakers"]["channel_1"]["scores"] == alone["scores"]


def test_turns_of_a_call_get_predictions_of_their_own(emotion, make_clip):
    turns = [("ann", 0.0, 1.0), ("bob", 1.0, 2.2), ("ann", 2.5, 3.0)]
    item = {"audio": make_clip(3.0), "word_times": [("so", 0.2, 0.4), ("sad", 2.6, 2.8)]}
    result = emotion(item, speaker_turns=turns, customer="ann", voice_activity=False)
    assert [(turn["speaker"], turn["start"], turn["end"]) for turn in result["turns"]] == turns
    assert "label" not in result["turns"][1]
    assert [result["turns"][index]["words"] for index in (0, 2)] == [["so"], ["sad"]]
    assert result["turns"][0]["label"] in LABELS
    assert len(result["speakers"]["ann"]["timeline"]) == 3
    assert result["speakers"]["bob"] == {"speech": [(1.0, 2.2)]}
    assert summarize_call(result)["speakers"]["ann"]["talk_seconds"] == pytest.approx(1.5)


def test_scores_below_the_threshold_are_uncertain(emotion):
    item = {"text": "you are so sad"}
    (best,) = emotion(item, top_k=1)
    above, below = (emotion(item, threshold=best["score"] + step) for step in (-1e-4, 1e-4))
    assert above["label"] == best["label"]
    assert below["label"] == "uncertain"
    assert below["scores"] == above["scores"] == emotion(item)


def test_audio_without_speech_is_uncertain(make_clip, example_audio):
    embedded = load_pipeline()
    time = np.arange(48_000) / 16_000
    chord = sum(np.sin(2 * np.pi * tone * time) for tone in (220.0, 277.2, 329.6)) / 6
    sounds = {
        "tone": np.sin(2 * np.pi * 440 * time) / 2,
        "music": chord * (0.6 + 0.4 * np.sin(2 * np.pi * 2 * time)),
        "noise": np.random.default_rng(0).normal(scale=0.1, size=len(time)),
    }
    for sound in sounds.values():
        sound = sound.astype(np.float32)
        prediction = embedded(sound, threshold=0.3, coverage=0.9)
        assert prediction["label"] == "uncertain"
        assert len(prediction["label_set"]) == 7
        assert {entry["label"] for entry in embedded(sound, return_timeline=True)["timeline"]} == {"silence"}
        # If there is text, it counts as missing.
        assert embedded({"audio": sound, "text": "What a lovely day!"}, threshold=0.3)["label"] == "happy"
    assert embedded(str(example_audio), threshold=0.3)["label"] == "angry"


def test_coverage_returns_a_prediction_set(emotion, items):
    steps = [index / 100 for index in range(101)]
    emotion.model.config.conformal_quantiles = {"text": steps, "both": steps, "audio": [1.0] * 101}
    item = {"text": "you are so sad"}
    scores = emotion(item)
    prediction = emotion(item, coverage=0.9)
    # Nine in ten true labels had a score of at least 1 - 0.9.
    assert prediction["label_set"] == [entry["label"] for entry in scores if entry["score"] >= 0.1]
    assert emotion(item, coverage=0.01)["label_set"] == [scores[0]["label"]]
    assert set(emotion({"audio": items[0]["audio"]}, coverage=0.5)["label_set"]) == LABELS
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        emotion(item, coverage=1.5)
    emotion.model.config.conformal_quantiles = None
    with pytest.raises(ValueError, match="needs this model's conformal_quantiles"):
        emotion(item, coverage=0.9)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"threshold": 1.5}, "threshold=1.5 must be a score"),
        ({"threshold": 0.5, "function_to_apply": "none"}, "need softmax scores of a single label"),
        ({"return_timeline": False, "segment_s": 1.0}, r"return_timeline=False contradicts \['segment_s'\]"),
        ({"return_timeline": False, "customer": 0}, r"return_timeline=False contradicts \['customer'\]"),
        ({"window_batch_size": -1, "return_timeline": True}, "window_batch_size=-1 must be an integer of at least 1"),
        ({"channel": 0.0, "return_timeline": True}, "channel=0.0 does not exist"),
        ({"segment_s": 9.0}, "segment_s=9.0 exceeds window_s=3.5"),
    ],
)
def test_invalid_options_of_timelines_and_uncertainty_raise(emotion, make_clip, parameters, message):
    with pytest.raises(ValueError, match=message):
        emotion(make_clip(1.0), **parameters)
