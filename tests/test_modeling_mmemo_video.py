"""`modeling_mmemo` with a third modality; what holds for audio and text holds for every subset of three."""

from itertools import combinations

import pytest
import torch
from tiny import VIDEO, alone, make_config, make_inputs, make_model, rows

from mmemo.modalities import MODALITIES, PRESENCES, presence_of
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoVideoConfig, MMEmoVideoEncoder
from modeling_mmemo.configuration_mmemo import FUSIONS


SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(MODALITIES, size)]
INPUTS = {
    "audio": ("input_features", "audio_attention_mask"),
    "text": ("input_ids", "attention_mask", "token_times"),
    "video": ("video_features", "pixel_values", "video_attention_mask", "video_times"),
}
MASKS = {"audio": "audio_attention_mask", "text": "attention_mask", "video": "video_attention_mask"}
# The only sample that has all three.
COMPLETE = 0
fusions = pytest.mark.parametrize("fusion", FUSIONS)
subsets = pytest.mark.parametrize("subset", SUBSETS, ids="+".join)


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=atol, rtol=0)


def of_subset(inputs, subset):
    names = [name for modality in subset for name in INPUTS[modality]]
    return {name: values for name, values in inputs.items() if name in names}


def all_subsets():
    """The complete sample once for each subset, in one batch; the values of missing modalities remain."""
    inputs = rows(make_inputs(video="mmemo_video"), [COMPLETE] * len(SUBSETS))
    for modality, mask in MASKS.items():
        is_present = torch.tensor([modality in subset for subset in SUBSETS])
        inputs[mask] = inputs[mask] * is_present.unsqueeze(1)
    return inputs


@torch.no_grad()
@fusions
@pytest.mark.parametrize("video", VIDEO)
def test_logits_do_not_depend_on_the_batch(fusion, video):
    model, inputs = make_model(video=video, fusion=fusion, fusion_num_layers=2), make_inputs(video=video)
    logits = model(**inputs).logits
    assert (logits[0] - logits[2]).abs().max() > 1e-3  # equal logits for all samples would prove nothing
    for row in range(4):
        assert_close(model(**alone(inputs, row)).logits[0], logits[row])


@torch.no_grad()
@fusions
def test_every_subset_has_the_same_logits_alone_as_in_a_batch_of_all(fusion):
    model, inputs = make_model(video="mmemo_video", fusion=fusion), make_inputs(video="mmemo_video")
    output = model(**all_subsets())
    assert output.logits.isfinite().all()
    for index, subset in enumerate(SUBSETS):
        assert_close(model(**of_subset(alone(inputs, COMPLETE), subset)).logits[0], output.logits[index])
        weights = dict(zip(MODALITIES, output.modality_weights[index].tolist()))
        assert {name for name, weight in weights.items() if weight} == set(subset)
        assert sum(weights.values()) == pytest.approx(1)
    differences = (output.logits.unsqueeze(0) - output.logits.unsqueeze(1)).abs().amax(dim=2)
    assert (differences + torch.eye(len(SUBSETS)) > 1e-4).all()


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_one_modality_gets_the_scores_of_its_head(fusion, modality):
    model, inputs = make_model(video="mmemo_video", fusion=fusion), make_inputs(video="mmemo_video")
    output = model(**of_subset(alone(inputs, COMPLETE), [modality]))
    assert_close(output.logits.softmax(dim=1), output[f"{modality}_logits"].softmax(dim=1))


@torch.no_grad()
@subsets
@fusions
def test_a_model_with_any_subset_of_encoders(subset, fusion):
    towers = {"audio": "mmemo_audio", "text": "bert", "video": "mmemo_video"}
    model = make_model(**{name: tower if name in subset else None for name, tower in towers.items()}, fusion=fusion)
    inputs = of_subset(make_inputs(video="mmemo_video"), subset)
    output = model(**inputs)
    assert output.modality_weights.shape == (4, 3 if "video" in subset else 2)
    present = [row for row in range(4) if any(inputs[MASKS[name]][row].any() for name in subset)]
    for row in present:
        assert_close(model(**alone(inputs, row)).logits[0], output.logits[row])
    assert {name for name in MODALITIES if f"{name}_logits" in output} == set(subset)


@fusions
def test_no_nan_in_losses_and_gradients_of_any_subset(fusion):
    model = make_model(video="mmemo_video", fusion=fusion, modality_dropout=0.5).train()
    output = model(**all_subsets(), labels=torch.arange(len(SUBSETS)))
    output.loss.backward()
    assert output.loss.isfinite()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()] == []


def test_modality_dropout_keeps_each_proper_subset_equally_often():
    model = make_model(video="mmemo_video", modality_dropout=0.6).train().mmemo
    torch.manual_seed(0)
    size = 6000
    masks = {name: torch.ones(size, 2).bool() for name in MODALITIES}
    masks["video"][: size // 2] = False
    kept = torch.stack([mask.any(dim=1) for mask in model._drop_modalities(masks).values()], dim=1)
    pairs = kept[: size // 2, :2].float() @ torch.tensor([1.0, 2.0])
    assert_close(pairs.long().bincount(minlength=4) / (size // 2), [0.0, 0.3, 0.3, 0.4], atol=0.03)
    triples = kept[size // 2 :].float() @ torch.tensor([1.0, 2.0, 4.0])
    assert_close(triples.long().bincount(minlength=8) / (size // 2), [0.0, *[0.1] * 6, 0.4], atol=0.03)


@torch.no_grad()
@fusions
def test_each_subset_has_its_temperature(fusion):
    temperatures = {presence: 1.0 + index for index, presence in enumerate(PRESENCES)}
    model = make_model(video="mmemo_video", fusion=fusion)
    expected = model(**all_subsets()).logits
    model.config.temperature = temperatures
    divisors = torch.tensor([temperatures[presence_of(subset)] for subset in SUBSETS])
    assert_close(model(**all_subsets()).logits, expected / divisors.unsqueeze(1))


@torch.no_grad()
def test_times_of_frames_bias_attention_and_unknown_ones_do_not():
    model, inputs = make_model(video="mmemo_video"), alone(make_inputs(video="mmemo_video"), COMPLETE)
    unknown = model(**{**inputs, "video_times": torch.full_like(inputs["video_times"], -1.0)}).logits
    without = {name: values for name, values in inputs.items() if name != "video_times"}
    assert_close(model(**without).logits, unknown)
    assert (model(**inputs).logits - unknown).abs().max() > 1e-4


@torch.no_grad()
@fusions
def test_a_segment_is_pooled_from_its_own_frames(fusion):
    model = make_model(None, None, "mmemo_video", fusion=fusion, video_pooling="mean")
    inputs = alone(of_subset(make_inputs(video="mmemo_video"), ["video"]), COMPLETE)
    whole = model(**inputs, segment_times=torch.tensor([[[0.0, 1.0], [0.6, 0.8], [5.0, 6.0]]]))
    assert_close(whole.segment_logits[0, 0], whole.logits[0])
    states = model(**inputs, output_hidden_states=True).video_hidden_states
    last = tuple(layer[:, 3:] for layer in states)
    assert_close(whole.segment_logits[0, 1], model(video_hidden_states=last).logits[0])
    assert whole.segment_modality_weights[0, 2].tolist() == [0, 0, 0]


@torch.no_grad()
@pytest.mark.parametrize("video", VIDEO)
def test_returned_hidden_states_reproduce_the_logits_as_inputs(video):
    model, inputs = make_model(video=video), make_inputs(video=video)
    output = model(**inputs, output_hidden_states=True)
    mask, times = inputs["video_attention_mask"], inputs["video_times"]
    states = {name: output[name] for name in ("audio_hidden_states", "text_hidden_states", "video_hidden_states")}
    positions = torch.arange(states["audio_hidden_states"][0].shape[1])
    lengths = (inputs["audio_attention_mask"].sum(dim=1, keepdim=True) + 1) // 2
    again = model(
        **states,
        audio_attention_mask=(positions < lengths).long(),
        attention_mask=inputs["attention_mask"],
        token_times=inputs["token_times"],
        video_attention_mask=mask,
        video_times=times,
    )
    assert_close(again.logits, output.logits)


def test_fixed_weights_are_one_for_each_modality():
    model = make_model(video="mmemo_video", fusion="late", late_fusion_weights=[1.0, 2.0, 1.0])
    with torch.no_grad():
        weights = model(**all_subsets()).modality_weights
    assert_close(weights[SUBSETS.index(MODALITIES)], [0.25, 0.5, 0.25])
    assert_close(weights[SUBSETS.index(("text", "video"))], [0, 2 / 3, 1 / 3])
    with pytest.raises(ValueError, match="one weight for each of audio, text, video"):
        make_config(video="mmemo_video", fusion="late", late_fusion_weights=[1.0, 2.0])


@pytest.mark.parametrize(
    "fields, inputs, message",
    [
        ({"video": None}, {"video_features": torch.zeros(1, 2, 6)}, "has no video encoder"),
        ({"video": "vit"}, {"video_features": torch.zeros(1, 2, 6)}, "takes only pixel_values"),
        ({"video": "mmemo_video"}, {"video_features": torch.zeros(1, 2, 5)}, "num_features=6"),
    ],
)
def test_invalid_inputs_raise(fields, inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**fields)(**inputs)


def test_a_model_of_three_modalities_is_saved_and_reloaded_bit_for_bit(tmp_path):
    model, inputs = make_model(video="mmemo_video"), make_inputs(video="mmemo_video")
    model.save_pretrained(tmp_path)
    reloaded = MMEmoForEmotionRecognition.from_pretrained(tmp_path)
    assert reloaded.missing_keys_on_load == ()
    with torch.no_grad():
        assert torch.equal(reloaded(**inputs).logits, model(**inputs).logits)


def test_a_model_is_built_from_three_pretrained_encoders(tmp_path):
    source = make_model(video="vit")
    source.mmemo.video_tower.save_pretrained(tmp_path / "vit")
    video = MMEmoVideoEncoder(MMEmoVideoConfig(num_features=6))
    for encoder in (str(tmp_path / "vit"), video):
        model = MMEmoForEmotionRecognition.from_pretrained_towers(
            source.mmemo.audio_tower, source.mmemo.text_tower, encoder, fusion_hidden_size=16
        )
        assert model.config.modalities == MODALITIES
    again = MMEmoForEmotionRecognition.from_pretrained_towers(video=str(tmp_path / "vit"))
    for name, values in source.mmemo.video_tower.state_dict().items():
        assert torch.equal(again.mmemo.video_tower.state_dict()[name], values)


def test_the_image_encoder_of_a_checkpoint_of_images_and_text(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision, text = {**sizes, "image_size": 8, "patch_size": 4}, {**sizes, "vocab_size": 50}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
    clip.save_pretrained(tmp_path)
    model = MMEmoForEmotionRecognition.from_pretrained_towers(video=str(tmp_path))
    assert model.config.video_config.model_type == "clip_vision_model"
    expected = clip.vision_model.state_dict()
    for name, values in model.mmemo.video_tower.state_dict().items():
        assert torch.equal(expected[name.removeprefix("vision_model.")], values)


def test_an_encoder_whose_layers_differ_in_width_raises():
    from transformers import SwinConfig, SwinModel

    swin = SwinModel(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2)
    )
    model = MMEmoForEmotionRecognition.from_pretrained_towers(video=swin)
    with pytest.raises(ValueError, match="layers of the swin encoder differ"):
        model(pixel_values=torch.zeros(1, 2, 3, 16, 16))
