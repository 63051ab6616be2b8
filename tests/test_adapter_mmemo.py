"""An adapter loads as the model that it was trained as, from its folder alone."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForAudioClassification

from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition, MMEmoProcessor, load_pipeline, pipeline
from modeling_mmemo.adapter_mmemo import EMBEDDED_MODEL, embedded_revision
from modeling_mmemo.pipelines import DEFAULT_MODEL
from modeling_mmemo.training.adapters import set_trainable
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.training_arguments import ModelArguments


LABELS = ["sad", "happy", "angry"]
TEMPERATURE = {"audio": 2.0, "text": 0.5, "both": 0.25}
QUANTILES = {"text": [index / 100 for index in range(101)]}


def train(folder, labels=LABELS, **options):
    """Saves an adapter as a training run does; returns the trained model around it."""
    paths = {name: str(value) for name, value in options.items() if isinstance(value, Path)}
    args = ModelArguments(lora_dropout=0.0, **{**options, **paths})
    model, processor, new_branches = build_model(args, labels)
    trained = set_trainable(model, args, new_branches).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(folder)
    model.config.temperature, model.config.conformal_quantiles = TEMPERATURE, QUANTILES
    trained.save_config(folder, model.config)
    processor.save_pretrained(folder)
    return trained


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "adapter"


@pytest.fixture
def adapted(trained, folder):
    """The trained model; the adapter, with other labels than its base, is in `folder`."""
    return train(folder, model_name_or_path=trained)


@torch.no_grad()
def logits(model, folder):
    inputs = MMEmoProcessor.from_pretrained(folder)(text=["i am so happy !", "wait"], return_tensors="pt")
    return model.eval()(**inputs).logits


def assert_is_the_trained_model(model, adapted, folder):
    # Logits are divided by temperatures, which may be well below 1.
    torch.testing.assert_close(logits(model, folder), logits(adapted, folder), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "load",
    [
        MMEmoForEmotionRecognition.from_pretrained,
        AutoModelForAudioClassification.from_pretrained,
        lambda folder: pipeline("multimodal-emotion", model=str(folder)).model,
        lambda folder: load_pipeline(folder).model,
    ],
    ids=["class", "auto class", "pipeline", "load_pipeline"],
)
def test_an_adapter_loads_as_the_model_it_was_trained_as(load, adapted, folder, caplog):
    caplog.clear()

    model = load(folder)

    assert type(model) is MMEmoForEmotionRecognition and not model.training
    assert [model.config.id2label[index] for index in range(3)] == LABELS and model.config.label2id["angry"] == 2
    assert (model.config.temperature, model.config.conformal_quantiles) == (TEMPERATURE, QUANTILES)
    assert model.missing_keys_on_load == () and not caplog.records
    assert_is_the_trained_model(model, adapted, folder)


def test_the_documented_base_gives_peft_the_same_answers(trained, adapted, folder):
    config = MMEmoConfig.from_pretrained(folder)
    base = MMEmoForEmotionRecognition.from_pretrained(trained, config=config, ignore_mismatched_sizes=True)

    assert_is_the_trained_model(PeftModel.from_pretrained(base, folder), adapted, folder)


@pytest.mark.parametrize("text", ["encoder", "mmemo model"])
def test_an_adapter_of_new_encoders_needs_no_base_model(text, encoders, trained, folder, tmp_path):
    text_encoder = {"encoder": encoders[1], "mmemo model": trained}[text]
    labels = LABELS if text == "encoder" else ["angry", "happy", "neutral", "sad"]
    adapted = train(folder, labels, audio_encoder=encoders[0], text_encoder=text_encoder, fusion_hidden_size=16)

    model = MMEmoForEmotionRecognition.from_pretrained(folder)

    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert model.missing_keys_on_load == ()
    assert_is_the_trained_model(model, adapted, folder)
    model.save_pretrained(tmp_path / "merged")
    assert str(tmp_path) not in (tmp_path / "merged" / "config.json").read_text()


def test_an_adapted_model_is_trained_and_saved_like_any_other(trained, adapted, folder, tmp_path):
    plain = MMEmoForEmotionRecognition.from_pretrained(trained)

    model = MMEmoForEmotionRecognition.from_pretrained(folder)

    flags = {name: parameter.requires_grad for name, parameter in plain.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    model.save_pretrained(tmp_path / "merged")
    merged = MMEmoForEmotionRecognition.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(merged, folder), logits(model, folder))
    # An adapter may be the base of another one.
    again = train(tmp_path / "again", ["sad", "glad"], model_name_or_path=folder)
    model = MMEmoForEmotionRecognition.from_pretrained(tmp_path / "again")
    assert_is_the_trained_model(model, again, tmp_path / "again")


def test_arguments_override_the_configuration_of_the_adapter(adapted, folder):
    model, info = MMEmoForEmotionRecognition.from_pretrained(
        folder, temperature=1.0, dtype=torch.bfloat16, output_loading_info=True
    )

    assert model.config.temperature == 1.0 and model.dtype == torch.bfloat16 and not info["missing_keys"]
    config = MMEmoConfig.from_pretrained(folder, label_smoothing=0.3)
    assert MMEmoForEmotionRecognition.from_pretrained(folder, config=config).config.label_smoothing == 0.3


@pytest.mark.slow
def test_an_adapter_of_the_embedded_model_works_in_any_folder(folder):
    adapted = train(folder, model_name_or_path=DEFAULT_MODEL, audio_mode="frozen")
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())

    assert (settings["base_model_name_or_path"], settings["revision"]) == (EMBEDDED_MODEL, embedded_revision())
    assert_is_the_trained_model(MMEmoForEmotionRecognition.from_pretrained(folder), adapted, folder)
    path.write_text(json.dumps(settings | {"revision": "0123456789ab"}))
    with pytest.raises(ValueError, match="needs revision 0123456789ab of the embedded model, but the installed mmemo"):
        MMEmoForEmotionRecognition.from_pretrained(folder)


def test_an_adapter_without_a_configuration_warns(trained, folder, caplog):
    adapted = train(folder, ["angry", "happy", "neutral", "sad"], model_name_or_path=trained)
    (folder / "config.json").unlink()

    model = MMEmoForEmotionRecognition.from_pretrained(folder)

    assert f"{folder} has no config.json, so its labels, temperatures and quantiles are those of" in caplog.text
    adapted.get_base_model().config.temperature = model.config.temperature
    assert_is_the_trained_model(model, adapted, folder)


def change_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda w: {k: v for k, v in w.items() if "fused_classifier.weight" not in k},
            "lacks weights .*fused_classif",
        ),
        (lambda w: {k: v for k, v in w.items() if "lora_A" not in k}, "lacks weights .*lora_A"),
        (lambda w: {**w, "base_model.model.other": torch.zeros(1)}, "has unknown weights .*model.other"),
        (lambda w: {k: v[:2] if "classifier.bias" in k else v for k, v in w.items()}, "has weights of other sizes"),
    ],
)
def test_weights_that_do_not_fit_the_base_raise(change, problem, adapted, folder):
    change_weights(folder, change)

    with pytest.raises(ValueError, match=f"The adapter {folder} {problem}.*or .*trained is not the model that it was"):
        MMEmoForEmotionRecognition.from_pretrained(folder)


def test_heads_of_another_size_are_missing(adapted, folder):
    model = MMEmoForEmotionRecognition.from_pretrained(folder, num_labels=2, ignore_mismatched_sizes=True)

    assert {name.partition("_classifier.")[0] for name in model.missing_keys_on_load} == {"audio", "text", "fused"}


def test_errors_say_what_to_do(trained, adapted, folder, monkeypatch):
    with pytest.raises(ValueError, match="is an adapter of MMEmoForEmotionRecognition; load it with that class"):
        AutoModel.from_pretrained(folder)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        with pytest.raises(ImportError, match="is a LoRA adapter, which needs the package peft: pip install peft"):
            MMEmoForEmotionRecognition.from_pretrained(folder)
    shutil.rmtree(trained)
    with pytest.raises(OSError, match=r"is an adapter of .*trained, which cannot be loaded. Set base_model_name_or"):
        MMEmoForEmotionRecognition.from_pretrained(folder)


def test_an_adapter_contains_no_card_of_peft(adapted, folder):
    assert not (folder / "README.md").exists()
    assert {"config.json", "adapter_config.json", "adapter_model.safetensors", "modeling_mmemo.py"} <= {
        path.name for path in Path(folder).iterdir()
    }
