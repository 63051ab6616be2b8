import json
import shutil

import pytest
import torch

from modeling_mmemo.configuration_mmemo import EMOTIONS
from modeling_mmemo.training.adapters import set_trainable
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.training_arguments import ModelArguments


LABELS = ("angry", "happy", "sad")


def arguments(**options):
    width = {} if "model_name_or_path" in options else {"fusion_hidden_size": 16}
    return ModelArguments(**{"audio_mode": "frozen", "text_mode": "frozen", **width, **options})


@pytest.fixture
def halves(encoders, tmp_path):
    """Folders of a model that only hears and of one that only reads, with heads that say something."""
    torch.manual_seed(1)
    folders = []
    for name, encoder in zip(("audio", "text"), encoders):
        options = {f"{name}_encoder": str(encoder)}
        if name == "audio":
            options |= {"audio_layer_mix": "concat", "trim_db": 35.0}
        model, processor, _ = build_model(arguments(**options), LABELS)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        branch = model.mmemo.audio_branch if name == "audio" else model.mmemo.text_branch
        branch.standardization.mean += 1.0
        folders.append(tmp_path / name)
        model.save_pretrained(folders[-1])
        processor.save_pretrained(folders[-1])
    return folders


@torch.no_grad()
def answers(folder_or_model, processor, modality, inputs):
    batch = processor(**{modality: inputs}, return_tensors="pt")
    return folder_or_model.eval()(**batch).logits


def test_two_encoders_make_a_new_model(encoders):
    audio, text = map(str, encoders)
    model, processor, new = build_model(arguments(audio_encoder=audio, audio_layers=2, text_encoder=text), LABELS)

    assert new == ["audio", "text"]
    assert model.config.audio_config.encoder_layers == 2
    assert list(model.config.id2label.values()) == list(LABELS)
    assert processor.feature_extractor.loudness_dbfs == -23.0
    assert (model.config.audio_layer_mix, processor.feature_extractor.trim_db) == ("weighted_sum", None)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_one_encoder_makes_a_model_of_one_modality(encoders, modality):
    encoder = str(encoders[modality == "text"])
    model, processor, new = build_model(arguments(**{f"{modality}_encoder": encoder}), LABELS)

    assert new == [modality]
    assert not model.config.is_bimodal
    assert (processor.tokenizer is None) == (modality == "audio")


def test_joined_halves_answer_as_they_did_alone(halves, make_clip):
    audio, text = map(str, halves)
    args = arguments(audio_encoder=audio, text_encoder=text)
    joined, processor, new = build_model(args, LABELS)

    assert new == []
    assert (joined.config.audio_layer_mix, joined.config.text_layer_mix) == ("concat", "weighted_sum")
    assert processor.feature_extractor.trim_db == 35.0
    for modality, folder, inputs in (
        ("audio", audio, [make_clip(0.5), make_clip(0.3, seed=1)]),
        ("text", text, ["i am happy", "wait !"]),
    ):
        half, half_processor, _ = build_model(arguments(model_name_or_path=folder), LABELS)
        expected = answers(half, half_processor, modality, inputs)
        torch.testing.assert_close(answers(joined, processor, modality, inputs).softmax(1), expected.softmax(1))
        assert expected.std() > 0.01


def test_frozen_halves_keep_their_branches_and_heads(halves):
    audio, text = map(str, halves)
    args = arguments(audio_encoder=audio, text_encoder=text)
    model, _, new = build_model(args, LABELS)
    trained = {name for name, p in set_trainable(model, args, new).named_parameters() if p.requires_grad}

    assert not any("_tower" in name or "audio_classifier" in name or "text_classifier" in name for name in trained)
    assert {name for name in trained if "_branch" in name} == {
        f"mmemo.{modality}_branch.projection.{part}"
        for modality in ("audio", "text")
        for part in ("0.weight", "0.bias", "1.weight", "1.bias")
    }
    assert any("fused_classifier" in name for name in trained)


def test_training_on_keeps_the_weights_and_takes_other_labels(halves):
    model, _, new = build_model(arguments(model_name_or_path=str(halves[0])), EMOTIONS)
    before, _, _ = build_model(arguments(model_name_or_path=str(halves[0])), LABELS)

    assert new == []
    assert model.audio_classifier.out_features == len(EMOTIONS)
    assert torch.equal(model.mmemo.audio_branch.embedding[1].weight, before.mmemo.audio_branch.embedding[1].weight)


@pytest.mark.parametrize("options", [{"audio_layers": 1}, {"audio_layer_mix": "last"}, {"trim_db": 20.0}])
def test_what_a_half_has_already_is_refused(halves, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=.* contradicts audio_encoder=.* has its own already"):
        build_model(arguments(audio_encoder=str(halves[0]), **options), LABELS)


def test_a_half_of_the_other_modality_is_refused(halves):
    audio = str(halves[0])
    with pytest.raises(ValueError, match=r"text_encoder=.* is an mmemo model of audio alone"):
        build_model(arguments(text_encoder=audio), LABELS)


def test_a_half_with_other_labels_is_refused(halves):
    with pytest.raises(ValueError, match=r"tells \['angry', 'happy', 'sad'\] apart, in this order, but labels="):
        build_model(arguments(audio_encoder=str(halves[0])), EMOTIONS)


def test_a_text_half_keeps_its_window_and_its_pooling(encoders, tmp_path):
    options = {"text_encoder": str(encoders[1]), "context_turns": 3, "context_tokens": 40, "text_pooling": "last"}
    model, processor, _ = build_model(arguments(**options), LABELS)
    model.save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")

    joined = arguments(audio_encoder=str(encoders[0]), text_encoder=str(tmp_path / "half"))
    model, processor, _ = build_model(joined, LABELS)

    assert (processor.context_turns, processor.context_tokens) == (3, 40)
    assert model.config.text_pooling == "last"
    with pytest.raises(ValueError, match="context_turns=1 contradicts text_encoder="):
        build_model(arguments(text_encoder=str(tmp_path / "half"), context_turns=1), LABELS)
    with pytest.raises(ValueError, match="context_turns=1 contradicts text_encoder=None"):
        arguments(audio_encoder=str(encoders[0]), context_turns=1)


def test_a_tokenizer_without_limit_gets_that_of_its_tower(encoders, tmp_path):
    folder = shutil.copytree(encoders[1], tmp_path / "unlimited")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**30}))

    model, processor, _ = build_model(arguments(text_encoder=str(folder)), LABELS)

    limit = model.config.text_config.max_position_embeddings
    assert processor.tokenizer.model_max_length == limit
    inputs = processor(text="so sad " * limit, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == limit and model.eval()(**inputs).logits.isfinite().all()


def test_four_bits_want_a_gpu(encoders, monkeypatch):
    args = arguments(text_encoder=str(encoders[1]), text_mode="qlora")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="text_mode=qlora needs a CUDA GPU, and there is none; choose text_mode=lora"):
        build_model(args, LABELS)


def test_four_bits_want_bitsandbytes(encoders, monkeypatch):
    args = arguments(text_encoder=str(encoders[1]), text_mode="qlora")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("modeling_mmemo.training.build.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'mmemo\[qlora\]'"):
        build_model(args, LABELS)


def test_four_bits_are_for_an_encoder_as_it_was_released(halves):
    with pytest.raises(ValueError, match="text_mode=qlora contradicts text_encoder="):
        build_model(arguments(text_encoder=str(halves[1]), text_mode="qlora"), LABELS)
