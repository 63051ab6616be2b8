import copy
import re

import pytest
import torch
from peft import PeftModel
from tiny import (
    AUDIO,
    DECODER,
    ENCODER,
    PAIRS,
    TEXT,
    VIDEO,
    audio_config,
    make_inputs,
    make_model,
    text_config,
    video_config,
)
from transformers import CamembertConfig, DebertaV2Config, ElectraConfig, Gemma2Config, MistralConfig

from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition
from modeling_mmemo.towers_mmemo import build_tower
from modeling_mmemo.training.adapters import frozen_towers, log_trainable, lora_modules, set_trainable, unquantized
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.training_arguments import ModelArguments


# Architectures of which only the names of the layers matter here.
MORE = {
    "camembert": lambda: CamembertConfig(**ENCODER),
    "electra": lambda: ElectraConfig(**ENCODER),
    "deberta-v2": lambda: DebertaV2Config(**ENCODER),
    "mistral": lambda: MistralConfig(**DECODER),
    "gemma2": lambda: Gemma2Config(**DECODER, head_dim=8),
}
FAMILIES = [*(("audio", name) for name in AUDIO), *(("text", name) for name in TEXT)]
FAMILIES += [("video", name) for name in VIDEO]


def adapt(model, **options):
    args = ModelArguments(**{"audio_encoder": "a", "text_encoder": "b", "lora_dropout": 0.0, **options})
    return set_trainable(model, args, new_branches=("audio", "text"))


def without_randomness(model):
    """Turns off everything random in training."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for tower in (model.mmemo.audio_tower, model.mmemo.text_tower):
        tower.config.update({"layerdrop": 0.0, "apply_spec_augment": False})
    return model


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def change_trained_parameters(model):
    """Changes all trained parameters, and the statistics that are saved with them."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "standardization" in name and "original_module" not in name:
                buffer.add_(0.1)
    return model.eval()


@torch.no_grad()
def predict(model, inputs):
    return model.eval()(**inputs).logits


@pytest.mark.parametrize(("audio", "text"), PAIRS)
def test_every_adapter_gets_a_gradient(audio, text):
    model = adapt(without_randomness(make_model(audio, text)))

    model.train()(**make_inputs(audio), labels=torch.arange(4)).loss.backward()

    adapters = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    for tower in (".audio_tower.", ".text_tower."):
        assert any(tower in name for name in adapters)
    for name, parameter in adapters.items():
        assert parameter.grad is not None, name
        # The gradient of the first matrix is zero at first, as the second one is.
        assert parameter.grad.any() or "lora_A" in name, name


def test_only_adapters_and_heads_are_trained():
    model = adapt(make_model())

    names = trained_names(model)
    assert all(".lora_" in name or ".modules_to_save." in name for name in names)
    assert all(".lora_" in name for name in names if "_tower." in name)
    heads = {name for name, _ in make_model().named_parameters() if "_tower." not in name}
    saved = {name.replace("modules_to_save.default.", "").removeprefix("base_model.model.") for name in names}
    assert heads <= saved


@pytest.mark.parametrize(
    "modes",
    [("lora", "lora"), ("lora", "frozen"), ("frozen", "lora"), ("full", "lora"), ("lora", "full")],
)
def test_saved_adapter_restores_the_model(modes, tmp_path):
    inputs = make_inputs()
    model = change_trained_parameters(adapt(make_model(), audio_mode=modes[0], text_mode=modes[1]))
    expected = predict(model, inputs)
    model.save_pretrained(tmp_path, save_embedding_layers=False)

    fresh = make_model()
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if "_tower." not in name:
                parameter.normal_()
    loaded = PeftModel.from_pretrained(fresh, tmp_path)

    assert torch.equal(predict(loaded, inputs), expected)
    merged = loaded.merge_and_unload()
    assert type(merged) is MMEmoForEmotionRecognition
    assert not any("lora" in name for name in merged.state_dict())
    torch.testing.assert_close(predict(merged, inputs), expected, atol=1e-5, rtol=0)


def test_lora_in_many_layers_is_only_in_its_encoder():
    """peft shortens long lists of names, which must not match layers of the same name in the fusion."""
    config = audio_config("mmemo_audio")
    config.encoder_layers = 6
    torch.manual_seed(0)
    model = MMEmoForEmotionRecognition(
        MMEmoConfig(
            audio_config=config, text_config=text_config("llama"), fusion_hidden_size=16, num_attention_heads=2
        )
    )

    names = trained_names(adapt(model, text_mode="frozen"))

    adapters = {name for name in names if ".lora_" in name}
    assert len(adapters) == 6 * 4 * 2
    assert all(".audio_tower.layers." in name for name in adapters)


def test_lora_target_modules_override_the_defaults():
    model = adapt(make_model(), text_mode="frozen", lora_target_modules=["fc1"])

    assert {name.split(".")[6] for name in trained_names(model) if ".lora_" in name} == {"fc1"}


def test_missing_lora_target_modules_raise():
    with pytest.raises(ValueError, match=r"mmemo_audio has no layers called \['wq'\] for LoRA; it has .*'q_proj'"):
        adapt(make_model(), lora_target_modules=["wq"])


def test_unknown_architecture_needs_lora_target_modules():
    model = make_model()
    model.mmemo.text_tower.config.model_type = "novel"

    with pytest.raises(ValueError, match="no default LoRA layers for a novel; name some with lora_target_mod"):
        adapt(model)


@pytest.mark.parametrize(("modality", "family"), FAMILIES)
def test_first_layers_stay_frozen(modality, family):
    model = make_model(**{"audio": None, "text": None, modality: family})

    adapt(model, **{f"{modality}_mode": "full", f"{modality}_freeze_layers": 1})

    names = [name for name in trained_names(model) if "_tower." in name]
    layers = {int(re.search(r"\.(?:layers?|h)\.(\d+)\.", name)[1]) for name in names}
    assert layers == set(range(1, model.mmemo.towers[modality].config.num_hidden_layers))


def test_full_and_frozen_encoders():
    model = make_model()
    before = trained_names(model)

    assert trained_names(adapt(make_model(), audio_mode="full", text_mode="full")) == before
    frozen = adapt(model, audio_mode="frozen", text_mode="frozen")
    assert trained_names(frozen) == {name for name in before if "_tower." not in name}
    assert frozen_towers(frozen) == [frozen.mmemo.audio_tower, frozen.mmemo.text_tower]
    assert frozen_towers(make_model()) == []


def test_fixed_positions_stay_frozen_beside_lora():
    model = adapt(make_model(), audio_mode="full", text_mode="lora")

    names = {name for name in trained_names(model) if ".audio_tower." in name}
    assert any("fc1" in name for name in names)
    assert not any("embed_positions" in name for name in names)
    assert frozen_towers(model) == []


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_activation_checkpointing_gives_the_same_gradients(mode):
    model = adapt(without_randomness(make_model()), audio_mode=mode, text_mode=mode)
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    calls = []
    attentions = [layer.self_attn for layer in checkpointed.mmemo.audio_tower.layers]
    attentions += [layer.attention for layer in checkpointed.mmemo.text_tower.encoder.layer]
    for attention in attentions:
        attention.register_forward_pre_hook(lambda *_: calls.append(1))

    for each in (model, checkpointed):
        each.train()(**make_inputs(), labels=torch.arange(4)).loss.backward()

    assert len(calls) == 8  # every layer ran again in the backward pass
    for (name, one), (_, other) in zip(model.named_parameters(), checkpointed.named_parameters()):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, msg=name, rtol=1e-5, atol=1e-7)


def test_number_of_trained_parameters_is_logged(caplog):
    model = make_model()
    whole = sum(p.numel() for p in model.mmemo.audio_tower.parameters())
    fixed = model.mmemo.audio_tower.embed_positions.weight.numel()

    log_trainable(adapt(model, audio_mode="full", text_mode="lora"))

    assert f"Training {whole - fixed:,} of {whole:,} parameters of the audio encoder" in caplog.text


ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
DECODER_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
BERT_ATTENTION = ("self.query", "self.key", "self.value", "attention.output.dense")


@pytest.mark.parametrize(
    ("modality", "name", "layers"),
    [
        ("audio", "mmemo_audio", ATTENTION),
        ("audio", "whisper", ATTENTION),
        ("audio", "wav2vec2", ATTENTION),
        ("audio", "hubert", ATTENTION),
        ("audio", "ast", DECODER_ATTENTION),
        ("text", "bert", BERT_ATTENTION),
        ("text", "roberta", BERT_ATTENTION),
        ("text", "xlm-roberta", BERT_ATTENTION),
        ("text", "camembert", BERT_ATTENTION),
        ("text", "electra", BERT_ATTENTION),
        ("text", "deberta-v2", ("self.query_proj", "self.key_proj", "self.value_proj", "attention.output.dense")),
        ("text", "distilbert", ("q_lin", "k_lin", "v_lin", "out_lin")),
        ("text", "mpnet", ("attn.q", "attn.k", "attn.v", "attn.o")),
        ("text", "llama", DECODER_ATTENTION),
        ("text", "mistral", DECODER_ATTENTION),
        ("text", "qwen2", DECODER_ATTENTION),
        ("text", "qwen3", DECODER_ATTENTION),
        ("text", "gemma", DECODER_ATTENTION),
        ("text", "gemma2", DECODER_ATTENTION),
        ("text", "gemma3_text", DECODER_ATTENTION),
        ("text", "gpt2", ("attn.c_attn", "attn.c_proj")),
        ("video", "vit", DECODER_ATTENTION),
        ("video", "clip", ATTENTION),
        ("video", "dinov2", DECODER_ATTENTION),
    ],
)
def test_lora_covers_all_attention_projections(modality, name, layers):
    configs = {"audio": audio_config, "text": text_config, "video": video_config}
    tower = build_tower(MORE[name]() if name in MORE else configs[modality](name))

    found = lora_modules(tower)

    for layer in layers:
        assert sum(module.endswith(layer) for module in found) == tower.config.num_hidden_layers, layer
    assert len(found) == len(layers) * tower.config.num_hidden_layers
    assert all("attn" in module or "attention" in module for module in found)


@pytest.mark.parametrize("video", VIDEO)
def test_every_adapter_of_a_video_encoder_gets_a_gradient(video):
    model = adapt(without_randomness(make_model(video=video)), video_encoder="v", text_mode="frozen")

    model.train()(**make_inputs(video=video), labels=torch.arange(4)).loss.backward()

    adapters = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    assert any(".video_tower." in name for name in adapters)
    assert all(parameter.grad.any() or "lora_A" in name for name, parameter in adapters.items())


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2"])
def test_activation_checkpointing_of_decoders_gives_the_same_gradients(name):
    """Adapters get gradients although nothing before the first layer is trained."""
    gradients = []
    for recomputes in (False, True):
        model = adapt(without_randomness(make_model(text=name)))
        if recomputes:
            model.activation_checkpointing_enable({"use_reentrant": False})
            assert model.get_base_model().mmemo.text_tower.is_activation_checkpointing
        model.train()(**make_inputs(), labels=torch.arange(4)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})

    plain, recomputed = gradients
    assert any(".text_tower." in parameter and plain[parameter].any() for parameter in plain)
    for parameter, gradient in plain.items():
        torch.testing.assert_close(recomputed[parameter], gradient, msg=parameter)


def test_lora_moves_from_four_bit_to_full_precision_weights(encoders):
    """The base stands in for its 4-bit copy, which needs a GPU."""
    args = ModelArguments(text_encoder=str(encoders[1]), fusion_hidden_size=16)
    labels = ("angry", "happy", "sad")
    model, processor, new = build_model(args, labels)
    model.config.class_weights = [1.0, 2.0, 3.0]
    trained = change_trained_parameters(set_trainable(model, args, new))
    inputs = processor(text=["I am so happy!", "Leave me alone."], return_tensors="pt")

    whole = unquantized(trained, args, labels)

    assert whole.get_base_model() is not trained.get_base_model()
    assert whole.get_base_model().config.class_weights == [1.0, 2.0, 3.0]
    assert torch.equal(predict(whole, inputs), predict(trained, inputs))
