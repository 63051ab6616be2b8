import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    AUDIO_ONLY,
    PAIRS,
    TEXT_ONLY,
    alone,
    audio_config,
    audio_inputs,
    make_inputs,
    make_model,
    spread,
    text_config,
)
from transformers import BertForMaskedLM, BertModel, Wav2Vec2ForCTC

from modeling_mmemo import MMEmoAudioEncoder, MMEmoForEmotionRecognition


pairs = pytest.mark.parametrize("audio, text", PAIRS)


@torch.no_grad()
@pairs
def test_saved_and_loaded_bit_for_bit(audio, text, tmp_path):
    model, inputs = make_model(audio, text, audio_frame_seconds=0.02), make_inputs(audio)
    model.save_pretrained(tmp_path)
    loaded = MMEmoForEmotionRecognition.from_pretrained(tmp_path)
    assert loaded.missing_keys_on_load == ()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{"fusion": "early"}, {"fusion": "late"}, {"audio": None}, {"text": None}])
def test_absent_parts_are_not_reported_as_missing(fields, tmp_path):
    model = make_model(**fields)
    model.save_pretrained(tmp_path)
    loaded, info = MMEmoForEmotionRecognition.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.missing_keys_on_load == ()
    assert not info["unexpected_keys"]
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@torch.no_grad()
def test_auto_classes_load_it_in_a_fresh_process(tmp_path):
    model, inputs = make_model(), make_inputs()
    model.save_pretrained(tmp_path)
    torch.save(inputs, tmp_path / "inputs.pt")
    code = """
import sys
import torch
import modeling_mmemo
from transformers import AutoModel, AutoModelForAudioClassification
folder = sys.argv[1]
inputs = torch.load(f"{folder}/inputs.pt")
model, features = AutoModelForAudioClassification.from_pretrained(folder), AutoModel.from_pretrained(folder)
print(type(model).__name__, type(features).__name__)
torch.save((model(**inputs).logits, features(**inputs).fused_embeds), f"{folder}/outputs.pt")
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert run.stdout.split() == ["MMEmoForEmotionRecognition", "MMEmoModel"], run.stderr
    logits, fused_embeds = torch.load(tmp_path / "outputs.pt")
    torch.testing.assert_close(logits, model(**inputs).logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(fused_embeds, model.mmemo(**inputs).fused_embeds, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "prefix, lacking",
    [
        ("audio_classifier.", ("audio_classifier.bias", "audio_classifier.weight")),
        ("mmemo.audio_branch.standardization.mean", ("mmemo.audio_branch.standardization.mean",)),
    ],
)
def test_weights_that_a_checkpoint_lacks_are_reported(prefix, lacking, tmp_path):
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {key: value for key, value in load_file(file).items() if not key.startswith(prefix)}
    save_file(weights, file, metadata={"format": "pt"})
    model = MMEmoForEmotionRecognition.from_pretrained(tmp_path)
    assert model.missing_keys_on_load == lacking


def test_heads_of_another_size_are_reported(tmp_path):
    make_model().save_pretrained(tmp_path)
    model = MMEmoForEmotionRecognition.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 3
    assert model.missing_keys_on_load == tuple(
        f"{head}_classifier.{part}" for head in ("audio", "fused", "text") for part in ("bias", "weight")
    )


@torch.no_grad()
def test_encoders_of_two_folders_keep_their_weights(tmp_path):
    audio, text = spread(Wav2Vec2ForCTC(audio_config("wav2vec2"))), spread(BertForMaskedLM(text_config("bert")))
    audio.save_pretrained(tmp_path / "audio")
    text.save_pretrained(tmp_path / "text")
    model = MMEmoForEmotionRecognition.from_pretrained_towers(
        str(tmp_path / "audio"), str(tmp_path / "text"), fusion="late", fusion_hidden_size=16, num_labels=3
    ).eval()
    assert (model.config.fusion, model.config.num_labels) == ("late", 3)
    assert model.config.audio_config.model_type == "wav2vec2"
    for tower, whole in ((model.mmemo.audio_tower, audio.wav2vec2), (model.mmemo.text_tower, text.bert)):
        assert tower.state_dict().keys() == whole.state_dict().keys()
        assert all(torch.equal(value, whole.state_dict()[key]) for key, value in tower.state_dict().items())

    model.save_pretrained(tmp_path / "both")
    loaded = MMEmoForEmotionRecognition.from_pretrained(tmp_path / "both")
    assert loaded.missing_keys_on_load == ()
    assert torch.equal(loaded(**make_inputs("wav2vec2")).logits, model(**make_inputs("wav2vec2")).logits)


@torch.no_grad()
@pytest.mark.parametrize("modality, row", [("audio", AUDIO_ONLY), ("text", TEXT_ONLY)])
def test_model_from_one_encoder(modality, row):
    towers = {"audio": MMEmoAudioEncoder(audio_config("mmemo_audio")), "text": BertModel(text_config("bert"))}
    weights = {key: value.clone() for key, value in towers[modality].state_dict().items() if "pooler" not in key}
    model = MMEmoForEmotionRecognition.from_pretrained_towers(**{modality: towers[modality]}).eval()
    tower = getattr(model.mmemo, f"{modality}_tower")
    assert tower.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in tower.state_dict().items())
    output = model(**alone(make_inputs(), row))
    assert torch.equal(output.logits, output[f"{modality}_logits"])


def test_dtype_applies_to_the_whole_model():
    model = MMEmoForEmotionRecognition.from_pretrained_towers(
        MMEmoAudioEncoder(audio_config("mmemo_audio")), BertModel(text_config("bert")), dtype=torch.bfloat16
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16


def test_encoders_share_the_configuration_of_the_model():
    model = MMEmoForEmotionRecognition.from_pretrained_towers(
        MMEmoAudioEncoder(audio_config("mmemo_audio")), BertModel(text_config("bert"))
    )
    assert model.mmemo.audio_tower.config is model.config.audio_config
    assert model.mmemo.text_tower.config is model.config.text_config


@pytest.mark.parametrize("audio", ["mmemo_audio", "wavlm"])
@pytest.mark.parametrize("options", [None, {}, {"preserve_rng_state": False}])
def test_activations_are_recomputed_without_reentrant_checkpoints(audio, options):
    """WavLM's backward pass does not finish with them."""
    model = make_model(audio, None)
    model.activation_checkpointing_enable(options)

    model.train()(**audio_inputs(audio), labels=torch.arange(4)).loss.backward()

    assert model.is_activation_checkpointing


@pytest.mark.parametrize("enable", ["activation_checkpointing_enable", "gradient_checkpointing_enable"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_reentrant_checkpoints_raise(enable):
    model = make_model()

    with pytest.raises(ValueError, match=r"does not support use_reentrant=True, .*; pass use_reentrant=False"):
        getattr(model, enable)({"use_reentrant": True})
