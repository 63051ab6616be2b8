import json
import shutil

import pytest
import torch
from faces import read_portrait
from PIL import Image
from tiny import ENCODER, make_config, video_config
from transformers import AutoModel, CLIPConfig, CLIPTextConfig

from modeling_mmemo import MMEmoForEmotionRecognition
from modeling_mmemo.configuration_mmemo import EMOTIONS
from modeling_mmemo.training.adapters import set_trainable
from modeling_mmemo.training.build import build_model, choose_labels
from modeling_mmemo.training.training_arguments import ModelArguments


LABELS = ("angry", "happy", "sad")


def arguments(**options):
    width = {} if "model_name_or_path" in options else {"fusion_hidden_size": 16}
    return ModelArguments(**{"audio_mode": "frozen", "text_mode": "frozen", **width, **options})


@pytest.fixture
def halves(encoders, tmp_path):
    """Folders of an audio model and a text model, with distinct scores."""
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
def predict(model, processor, modality, inputs):
    batch = processor(**{modality: inputs}, return_tensors="pt")
    return model.eval()(**batch).logits


def test_two_encoders(encoders):
    audio, text = map(str, encoders)
    model, processor, new = build_model(arguments(audio_encoder=audio, audio_layers=2, text_encoder=text), LABELS)

    assert new == ["audio", "text"]
    assert model.config.audio_config.encoder_layers == 2
    assert list(model.config.id2label.values()) == list(LABELS)
    assert processor.feature_extractor.loudness_dbfs == -23.0
    assert (model.config.audio_layer_mix, processor.feature_extractor.trim_db) == ("weighted_sum", None)


@pytest.mark.parametrize("modality", ["audio", "text"])
def test_one_encoder(encoders, modality):
    encoder = str(encoders[modality == "text"])
    model, processor, new = build_model(arguments(**{f"{modality}_encoder": encoder}), LABELS)

    assert new == [modality]
    assert not model.config.is_multimodal
    assert (processor.tokenizer is None) == (modality == "audio")


@pytest.fixture(scope="module")
def image_encoders(tmp_path_factory):
    """Folders of a tiny ViT, DINOv2 and CLIP with the settings of their pictures."""
    settings = {
        "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}},
        "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 12}, "crop_size": 8},
        "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8}, "crop_size": 8},
    }
    statistics = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    folders = {}
    for name, options in settings.items():
        folders[name] = tmp_path_factory.mktemp(name)
        config = video_config(name)
        if name == "clip":
            # As released, with an encoder of texts.
            config = CLIPConfig(text_config=CLIPTextConfig(**ENCODER).to_dict(), vision_config=config.to_dict())
        AutoModel.from_config(config).save_pretrained(folders[name])
        (folders[name] / "preprocessor_config.json").write_text(json.dumps(options | statistics))
    return folders


@pytest.mark.parametrize("name", ["vit", "dinov2", "clip"])
def test_image_encoders(image_encoders, name):
    args = arguments(video_encoder=str(image_encoders[name]), video_pooling="mean", frames_per_second=2.0)
    model, processor, new = build_model(args, LABELS)

    assert new == ["video"] and model.config.video_pooling == "mean"
    assert (processor.frames_per_second, processor.crop_size) == (2.0, 8)
    assert (processor.image_mean, processor.image_std) == ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
    face = Image.fromarray(read_portrait())
    assert model.eval()(**processor(video=face, return_tensors="pt")).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"height": 16, "width": 16}, "encodes pictures of 8 pixels, but its image processor returns 16"),
        ({"height": 8, "width": 16}, "but those of faces are square"),
    ],
)
def test_pictures_that_do_not_fit_raise(image_encoders, tmp_path, size, message):
    shutil.copytree(image_encoders["vit"], tmp_path / "vit")
    settings = {"image_processor_type": "ViTImageProcessor", "size": size}
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))

    with pytest.raises(ValueError, match=message):
        build_model(arguments(video_encoder=str(tmp_path / "vit")), LABELS)


def test_a_new_face_encoder_beside_another_encoder(encoders):
    args = arguments(text_encoder=str(encoders[1]), video_encoder="mmemo_video")
    model, processor, new = build_model(args, LABELS)

    assert new == ["text", "video"]
    assert (model.config.video_config.model_type, model.config.video_config.num_features) == ("mmemo_video", 52)
    assert (processor.frames_per_second, processor.crop_size) == (5.0, None)
    trained = {name for name, p in set_trainable(model, args, new).named_parameters() if p.requires_grad}
    assert {name for name in trained if "_tower." in name} == {
        name for name, _ in model.named_parameters() if "video_tower." in name
    }


def test_a_trained_face_determines_its_settings(image_encoders, tmp_path):
    model, processor, _ = build_model(arguments(video_encoder=str(image_encoders["vit"])), LABELS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    _, half, new = build_model(arguments(video_encoder=str(tmp_path)), LABELS)

    assert new == [] and (half.crop_size, half.image_std) == (8, [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"frames_per_second=2\.0 contradicts video_encoder=.*mmemo model determines"):
        build_model(arguments(video_encoder=str(tmp_path), frames_per_second=2.0), LABELS)
    with pytest.raises(ValueError, match=r"audio_encoder=.* is an mmemo model without audio"):
        build_model(arguments(audio_encoder=str(tmp_path)), LABELS)
    with pytest.raises(ValueError, match=r"labels=\['angry', 'sad'\] contradicts video_encoder"):
        choose_labels(arguments(video_encoder=str(tmp_path)), ("angry", "sad"))


def test_joined_halves_predict_the_same_as_before(halves, make_clip):
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
        expected = predict(half, half_processor, modality, inputs)
        torch.testing.assert_close(predict(joined, processor, modality, inputs).softmax(1), expected.softmax(1))
        assert expected.std() > 0.01


def test_branches_and_heads_of_frozen_halves_are_frozen(halves):
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


def test_labels_of_a_checkpoint_are_the_default(halves):
    args = arguments(model_name_or_path=str(halves[0]))

    for labels in ((), LABELS):
        model, _, new = build_model(args, labels)
        assert (list(model.config.id2label.values()), new) == (list(LABELS), [])
    assert choose_labels(args) == list(LABELS)


def test_labels_default_to_the_seven_emotions(encoders):
    assert choose_labels(arguments(text_encoder=str(encoders[1]))) == list(EMOTIONS)


def test_reordered_labels_of_a_checkpoint_raise(halves):
    message = (
        r"labels=\['sad', 'happy', 'angry'\] reorders the labels of model_name_or_path=.*, which are \['angry', "
        r"'happy', 'sad'\]: .* Leave labels out"
    )
    with pytest.raises(ValueError, match=message):
        build_model(arguments(model_name_or_path=str(halves[0])), ("sad", "happy", "angry"))
    with pytest.raises(ValueError, match="reorders the labels of text_encoder="):
        build_model(arguments(text_encoder=str(halves[1])), ("sad", "happy", "angry"))


# Fewer labels, more, and as many: a head of the same size would keep the weights of other labels.
@pytest.mark.parametrize("labels", [("sad", "angry"), EMOTIONS, ("angry", "happy", "calm")])
def test_other_labels_get_a_new_head(halves, labels, caplog):
    args = arguments(model_name_or_path=str(halves[0]))
    before, _, _ = build_model(args)

    model, _, new = build_model(args, labels)

    assert new == []
    assert list(model.config.id2label.values()) == list(labels)
    weight = model.audio_classifier.weight
    assert len(weight) == len(labels)
    assert not torch.isclose(weight[:2], before.audio_classifier.weight[:2]).all(dim=1).any()
    assert torch.equal(model.mmemo.audio_branch.embedding[1].weight, before.mmemo.audio_branch.embedding[1].weight)
    assert "the classifiers are newly initialised and must be trained" in caplog.text


def test_other_labels_contradict_label_words(encoders, tmp_path):
    config = make_config(audio=None, text="llama", id2label={0: "angry", 1: "sad"}, label_token_ids=[1, 2])
    MMEmoForEmotionRecognition(config).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"labels=\['angry', 'calm'\] contradicts .* the words of its labels"):
        build_model(arguments(model_name_or_path=str(tmp_path)), ("angry", "calm"))


def test_joined_halves_must_have_the_same_labels_in_the_same_order(encoders, halves, tmp_path):
    other, processor, _ = build_model(arguments(text_encoder=str(encoders[1])), LABELS[::-1])
    other.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")

    joined = arguments(audio_encoder=str(halves[0]), text_encoder=str(halves[1]))
    assert choose_labels(joined) == list(LABELS)
    reordered = arguments(audio_encoder=str(halves[0]), text_encoder=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"has the labels \['angry', 'happy', 'sad'\], but text_encoder=.*\['sad'"):
        build_model(reordered)


@pytest.mark.parametrize("options", [{"audio_layers": 1}, {"audio_layer_mix": "last"}, {"trim_db": 20.0}])
def test_options_that_a_half_determines_raise(halves, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=.* contradicts audio_encoder=.* an mmemo model determines"):
        build_model(arguments(audio_encoder=str(halves[0]), **options), LABELS)


def test_half_without_the_modality_raises(halves):
    audio = str(halves[0])
    with pytest.raises(ValueError, match=r"text_encoder=.* is an mmemo model without text"):
        build_model(arguments(text_encoder=audio), LABELS)


def test_half_with_other_labels_raises(halves):
    with pytest.raises(
        ValueError, match=r"contradicts audio_encoder=.* head has the labels \['angry', 'happy', 'sad'\]"
    ):
        build_model(arguments(audio_encoder=str(halves[0])), EMOTIONS)


def test_text_half_keeps_context_and_pooling(encoders, tmp_path):
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


def test_tokenizer_is_capped_at_the_maximum_length_of_its_encoder(encoders, tmp_path):
    folder = shutil.copytree(encoders[1], tmp_path / "unlimited")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**30}))

    model, processor, _ = build_model(arguments(text_encoder=str(folder)), LABELS)

    limit = model.config.text_config.max_position_embeddings
    assert processor.tokenizer.model_max_length == limit
    inputs = processor(text="so sad " * limit, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == limit and model.eval()(**inputs).logits.isfinite().all()


def test_qlora_needs_a_gpu(encoders, monkeypatch):
    args = arguments(text_encoder=str(encoders[1]), text_mode="qlora")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="text_mode=qlora needs a CUDA GPU, and there is none; choose text_mode=lora"):
        build_model(args, LABELS)


def test_qlora_needs_bitsandbytes(encoders, monkeypatch):
    args = arguments(text_encoder=str(encoders[1]), text_mode="qlora")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("modeling_mmemo.training.build.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'mmemo\[qlora\]'"):
        build_model(args, LABELS)


def test_qlora_of_an_mmemo_model_raises(halves):
    with pytest.raises(ValueError, match="text_mode=qlora contradicts text_encoder="):
        build_model(arguments(text_encoder=str(halves[1]), text_mode="qlora"), LABELS)
