from dataclasses import fields
from math import log

import pytest
import torch
from tiny import (
    AUDIO_ONLY,
    BOTH,
    PAIRS,
    TEXT_ONLY,
    WHOLE,
    alone,
    audio_config,
    make_config,
    make_inputs,
    make_model,
    pad_left,
    rows,
    text_config,
)

from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition, MMEmoModel
from modeling_mmemo.configuration_mmemo import FUSIONS, POOLINGS
from modeling_mmemo.towers_mmemo import encode_audio


# Rows with both modalities, one of them, and all of these in one batch.
MIXTURES = {
    "both": [BOTH, WHOLE],
    "audio": [AUDIO_ONLY],
    "text": [TEXT_ONLY],
    "mixed": [BOTH, WHOLE, TEXT_ONLY, AUDIO_ONLY],
}
fusions = pytest.mark.parametrize("fusion", FUSIONS)
pairs = pytest.mark.parametrize("audio, text", PAIRS)


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=atol, rtol=0)


def assert_independent_of_the_batch(model, inputs, fixed_length=False):
    """Compares every sample alone with the batch, with padding on either side."""
    logits = model(**inputs).logits
    assert logits.isfinite().all()
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # equal logits for all samples would prove nothing
    assert_close(model(**pad_left(inputs)).logits, logits)
    for row in range(len(logits)):
        assert_close(model(**alone(inputs, row, fixed_length)).logits[0], logits[row])


@torch.no_grad()
@fusions
@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits_do_not_depend_on_the_batch(fusion, pooling):
    model = make_model(fusion=fusion, audio_pooling=pooling, text_pooling=pooling, fusion_num_layers=2)
    assert_independent_of_the_batch(model, make_inputs())


@torch.no_grad()
@pairs
def test_logits_of_every_encoder_do_not_depend_on_the_batch(audio, text):
    model = make_model(audio, text, text_pooling="last", audio_frame_seconds=0.02)
    assert_independent_of_the_batch(model, make_inputs(audio), fixed_length=audio == "whisper")


@torch.no_grad()
@fusions
def test_logits_do_not_depend_on_the_order_of_the_batch(fusion):
    model, inputs, order = make_model(fusion=fusion), make_inputs(), [2, 0, 3, 1]
    assert_close(model(**rows(inputs, order)).logits, model(**inputs).logits[order])


@torch.no_grad()
@pytest.mark.parametrize("modality", ["audio", "text"])
@fusions
def test_model_with_one_modality(fusion, modality):
    model = make_model(**{"audio": None, "text": None, modality: {"audio": "mmemo_audio", "text": "bert"}[modality]})
    inputs = rows(make_inputs(), [BOTH, WHOLE, AUDIO_ONLY if modality == "audio" else TEXT_ONLY])
    names = {"audio": ["input_features", "audio_attention_mask"], "text": ["input_ids", "attention_mask"]}[modality]
    inputs = {name: inputs[name] for name in names}
    output = model(**inputs)
    assert torch.equal(output.logits, output[f"{modality}_logits"])
    assert output.modality_weights.tolist() == [[1.0, 0.0] if modality == "audio" else [0.0, 1.0]] * 3
    for row in range(3):
        assert_close(model(**alone(inputs, row)).logits[0], output.logits[row])


@fusions
@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_no_nan_in_outputs_and_gradients(fusion, mixture):
    model = make_model(fusion=fusion).train()
    output = model(**rows(make_inputs(), mixture), labels=torch.tensor([0, 3, 5, 6])[: len(mixture)])
    output.loss.backward()
    values = [output.loss, output.logits, output.audio_logits, output.text_logits, output.modality_weights]
    assert all(value.isfinite().all() for value in values)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []


@torch.no_grad()
@fusions
def test_modality_weights_sum_to_one_and_are_zero_for_a_missing_modality(fusion):
    weights = make_model(fusion=fusion)(**make_inputs()).modality_weights
    assert_close(weights.sum(dim=1), torch.ones(4))
    assert weights[:2].gt(0).all()
    assert weights[TEXT_ONLY].tolist() == [0, 1]
    assert weights[AUDIO_ONLY].tolist() == [1, 0]


@torch.no_grad()
@pytest.mark.parametrize(
    "fields", [*({"fusion": fusion} for fusion in FUSIONS), {"fusion": "late", "late_fusion_weights": [1.0, 3.0]}]
)
def test_modality_weights_are_zero_without_any_modality(fields):
    inputs = make_inputs()
    inputs["attention_mask"][TEXT_ONLY] = 0
    output = make_model(**fields)(**inputs)
    assert output.logits.isfinite().all()
    assert output.modality_weights[TEXT_ONLY].tolist() == [0, 0]


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_one_modality_gets_the_scores_of_its_head(fusion):
    output = make_model(fusion=fusion, temperature={"audio": 2.0, "text": 3.0, "both": 5.0})(**make_inputs())
    scores = output.logits.softmax(dim=1)
    assert_close(scores[TEXT_ONLY], output.text_logits.softmax(dim=1)[TEXT_ONLY], atol=1e-6)
    assert_close(scores[AUDIO_ONLY], output.audio_logits.softmax(dim=1)[AUDIO_ONLY], atol=1e-6)
    assert (scores - output.text_logits.softmax(dim=1))[:2].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_one_modality_gets_the_logits_of_its_head_in_multi_label_classification(fusion):
    output = make_model(fusion=fusion, problem_type="multi_label_classification")(**make_inputs())
    assert_close(output.logits[TEXT_ONLY], output.text_logits[TEXT_ONLY])
    assert_close(output.logits[AUDIO_ONLY], output.audio_logits[AUDIO_ONLY])


@torch.no_grad()
def test_fixed_late_fusion_weights():
    output = make_model(fusion="late", late_fusion_weights=[1.0, 3.0])(**make_inputs())
    audio, text = output.audio_logits.log_softmax(dim=1), output.text_logits.log_softmax(dim=1)
    assert_close(output.logits[:2], 0.25 * audio[:2] + 0.75 * text[:2])
    assert_close(output.logits[TEXT_ONLY], text[TEXT_ONLY])
    assert_close(output.logits[AUDIO_ONLY], audio[AUDIO_ONLY])
    assert_close(output.modality_weights, [[0.25, 0.75], [0.25, 0.75], [0.0, 1.0], [1.0, 0.0]])


@torch.no_grad()
def test_a_modality_of_weight_zero_still_predicts_alone():
    output = make_model(fusion="late", late_fusion_weights=[1.0, 0.0])(**make_inputs())
    assert_close(output.modality_weights, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert_close(output.logits[TEXT_ONLY], output.text_logits[TEXT_ONLY].log_softmax(dim=0))


@torch.no_grad()
@fusions
def test_a_new_model_weighs_the_modalities_equally(fusion):
    model = MMEmoForEmotionRecognition(make_config(fusion=fusion)).eval()
    assert_close(model(**make_inputs()).modality_weights[:2], [[0.5, 0.5], [0.5, 0.5]])


def test_modality_dropout_masks_one_of_two_modalities_in_training_only():
    torch.manual_seed(0)
    model = MMEmoModel(make_config(modality_dropout=0.5))
    states = {
        "audio_hidden_states": tuple(torch.randn(3, 800, 2, 16)),
        "text_hidden_states": tuple(torch.randn(3, 800, 2, 16)),
        "attention_mask": torch.tensor([[1, 1]]).repeat(800, 1),
    }
    states["attention_mask"][:200] = 0  # audio only: dropout leaves it
    is_present = model.train()(**states).modality_mask
    assert is_present[:200].tolist() == [[True, False]] * 200
    shares = [(is_present[200:] == torch.tensor(kind)).all(dim=1).float().mean() for kind in ([1, 1], [1, 0], [0, 1])]
    # Standard errors are 0.02, 0.018 and 0.018.
    assert [float(share) for share in shares] == pytest.approx([0.5, 0.25, 0.25], abs=0.06)
    assert model.eval()(**states).modality_mask[200:].all()


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["cross_attention", "hybrid"])
def test_attention_maps(fusion):
    model, inputs = make_model(fusion=fusion, fusion_num_layers=2), make_inputs()
    output = model(**inputs, output_attentions=True)
    assert_close(output.logits, model(**inputs).logits)
    assert [m.shape for m in output.text_to_audio_attentions] == [(4, 2, 9, 38)] * 2
    assert [m.shape for m in output.audio_to_text_attentions] == [(4, 2, 38, 9)] * 2
    audio_mask, text_mask = inputs["audio_attention_mask"][:, ::2], inputs["attention_mask"]
    for maps, keys in (
        (output.text_to_audio_attentions, audio_mask),
        (output.audio_to_text_attentions, text_mask),
    ):
        for attention in maps:
            real = attention * keys[:, None, None, :]
            assert torch.equal(attention, real)
            assert_close(real.sum(dim=-1), keys.any(dim=1).float()[:, None, None].expand(attention.shape[:3]))


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["early", "late"])
def test_no_attention_maps_without_cross_modal_attention(fusion):
    output = make_model(fusion=fusion)(**make_inputs(), output_attentions=True)
    assert output.text_to_audio_attentions is None
    assert output.audio_to_text_attentions is None


@torch.no_grad()
def test_timestamps_bias_attention_by_the_distance_in_segments():
    # Audio positions at 0.5, 1.5 and 2.5 s; a new slope is ln 2: each segment of 0.5 s away halves the weight.
    model = make_model(audio_frame_seconds=1.0, segment_seconds=0.5)
    query = model.mmemo.layers[0].text_to_audio.q_proj
    query.weight.zero_()
    query.bias.zero_()
    times = [[1.0, 2.0], [0.0, 0.5], [-1.0, -1.0]]
    maps = model(
        audio_hidden_states=tuple(torch.randn(3, 1, 3, 16)),
        text_hidden_states=tuple(torch.randn(3, 1, 3, 16)),
        token_times=torch.tensor([times]),
        output_attentions=True,
    ).text_to_audio_attentions[0]
    # Gaps in segments: (1, 0, 1) around the first word; (0, 2, 4) after the second; 0 without a time.
    expected = torch.tensor([[1 / 4, 2 / 4, 1 / 4], [16 / 21, 4 / 21, 1 / 21], [1 / 3, 1 / 3, 1 / 3]])
    assert_close(maps[0], expected.expand(2, 3, 3))


@torch.no_grad()
def test_the_prediction_follows_the_audio_at_the_time_of_a_word():
    """One word and four audio positions of 0.5 s; the second is angry, the fourth happy."""
    model = make_model(fusion="cross_attention", audio_frame_seconds=0.5, segment_seconds=0.5, num_labels=2)
    (layer,), identity = model.mmemo.layers, torch.eye(16)
    for module in (*layer.text_to_audio.children(), *layer.audio_to_text.children()):
        module.weight.zero_()
        module.bias.zero_()
    # Attention depends on time alone; the attended audio is added to the word.
    layer.slope.fill_(5.0)
    layer.text_to_audio.v_proj.weight.copy_(identity)
    layer.text_to_audio.out_proj.weight.copy_(identity)
    for module in (model.mmemo.audio_branch.projection[0], model.mmemo.text_branch.projection[0]):
        module.weight.copy_(identity)
    layer.text_feed_forward[-1].weight.zero_()
    # The logits are the first two dimensions of the word: angry (0) and happy (1).
    model.mmemo.fusion[0].weight.copy_(torch.cat([0 * identity, identity], dim=1))
    model.fused_classifier.weight.copy_(identity[:2])
    audio_states = torch.zeros(1, 4, 16)
    audio_states[0, 1, 0] = audio_states[0, 3, 1] = 10.0
    word = torch.zeros(1, 1, 16)
    word[0, 0, 2] = 1.0

    def predict(start, end):
        output = model(
            audio_hidden_states=(audio_states,) * 3,
            text_hidden_states=(word,) * 3,
            token_times=torch.tensor([[[start, end]]]),
            output_attentions=True,
        )
        return output.logits[0], output.text_to_audio_attentions[0][0].mean(dim=0)[0]

    angry, angry_map = predict(0.5, 1.0)
    happy, happy_map = predict(1.5, 2.0)
    early, early_map = predict(0.0, 0.5)
    unknown, unknown_map = predict(-1.0, -1.0)
    assert angry_map[1] > 0.8
    assert happy_map[3] > 0.8
    assert early_map[0] > 0.8
    assert_close(unknown_map, [0.25] * 4)
    assert angry[0] - angry[1] > 1
    assert happy[1] - happy[0] > 1
    for between in (early, unknown):
        assert abs(between[0] - between[1]) < 0.2


@torch.no_grad()
@fusions
def test_a_segment_of_the_whole_clip_has_the_logits_of_the_clip(fusion):
    model, inputs = make_model(fusion=fusion), make_inputs()
    inputs["segment_times"] = torch.tensor([[[0.0, 9.0], [-1.0, -1.0]]]).expand(4, -1, -1)
    output = model(**inputs)
    assert_close(output.segment_logits[:, 0], output.logits)
    assert_close(output.segment_modality_weights[:, 0], output.modality_weights)
    assert not output.segment_modality_weights[:, 1].any()


@torch.no_grad()
@fusions
def test_segment_logits_do_not_depend_on_the_batch(fusion):
    model, inputs = make_model(fusion=fusion), make_inputs()
    inputs["segment_times"] = torch.tensor([[[0.0, 0.2], [0.1, 0.4]]]).expand(4, -1, -1)
    whole = model(**inputs)
    assert (whole.segment_logits[:, 0] - whole.segment_logits[:, 1]).abs().max() > 1e-3
    for row in range(4):
        assert_close(model(**alone(inputs, row)).segment_logits[0], whole.segment_logits[row])
    assert_close(model(**pad_left(inputs)).segment_logits, whole.segment_logits)


@torch.no_grad()
@pytest.mark.parametrize("audio, text", [("wav2vec2", "bert"), ("ast", "bert"), ("mmemo_audio", "gpt2")])
def test_segments_of_other_encoders(audio, text):
    model, inputs = make_model(audio, text), make_inputs(audio)
    inputs["segment_times"] = torch.tensor([[[0.0, 0.05], [0.0, 9.0]]]).expand(4, -1, -1)
    output = model(**inputs)
    assert output.segment_logits.isfinite().all()
    assert_close(output.segment_logits[:, 1], output.logits)


@torch.no_grad()
def test_a_segment_is_pooled_from_its_own_audio_and_text():
    model = make_model(fusion="late", audio_frame_seconds=1.0, audio_pooling="mean")
    audio, text = torch.randn(1, 4, 16), torch.randn(1, 3, 16)
    # One word is in the first two seconds, one later; the last token has no time.
    times = torch.tensor([[[0.5, 1.0], [2.5, 3.0], [-1.0, -1.0]]])

    def predict(audio, text, segments):
        states = {"audio_hidden_states": (audio,) * 3, "text_hidden_states": (text,) * 3}
        return model(**states, token_times=times, segment_times=torch.tensor([segments]))

    first, second, none = predict(audio, text, [[0.0, 2.0], [2.0, 4.0], [5.0, 6.0]]).segment_logits[0]
    states = {"audio_hidden_states": (audio[:, :2],) * 3, "text_hidden_states": (text[:, [0, 2]],) * 3}
    assert_close(model(**states).logits[0], first)
    changed = torch.cat([audio[:, :2], torch.randn(1, 2, 16)], dim=1)
    other = torch.cat([text[:, :1], torch.randn(1, 1, 16), text[:, 2:]], dim=1)
    found = predict(changed, other, [[0.0, 2.0], [2.0, 4.0]]).segment_logits[0]
    assert_close(found[0], first)
    assert (found[1] - second).abs().max() > 1e-3
    assert_close(none.softmax(dim=0), torch.full((7,), 1 / 7))


@torch.no_grad()
def test_timestamps_change_the_logits_and_unknown_ones_do_not():
    model, inputs = make_model(), make_inputs()
    model.mmemo.layers[0].slope.fill_(5.0)
    timed = model(**inputs).logits
    inputs["token_times"] = torch.full_like(inputs["token_times"], -1.0)
    unknown = model(**inputs).logits
    del inputs["token_times"]
    assert_close(model(**inputs).logits, unknown)
    assert (timed - unknown)[:2].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("audio", ["mmemo_audio", "ast"])
def test_timestamps_without_audio(audio):
    model, inputs = make_model(audio), alone(make_inputs(audio), TEXT_ONLY)
    inputs["token_times"][0, 1] = torch.tensor([0.1, 0.3])
    output = model(**inputs)
    assert_close(output.logits.softmax(dim=1), output.text_logits.softmax(dim=1))


@torch.no_grad()
def test_timestamps_in_half_precision():
    model, inputs = make_model().to(torch.bfloat16), make_inputs()
    inputs["input_features"] = inputs["input_features"].to(torch.bfloat16)
    exact = make_model()(**make_inputs()).logits.softmax(dim=1)
    assert_close(model(**inputs).logits.softmax(dim=1).float(), exact, atol=0.02)


@torch.no_grad()
@fusions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_missing_modalities_and_attention_maps_in_half_precision(fusion, dtype):
    model, inputs = make_model(fusion=fusion).to(dtype), make_inputs()
    inputs["input_features"] = inputs["input_features"].to(dtype)
    inputs["segment_times"] = torch.tensor([[[0.0, 0.2], [0.1, 0.4]]]).expand(4, -1, -1)
    output = model(**inputs, output_attentions=True)
    assert {value.dtype for name, value in output.items() if name.endswith("logits")} == {dtype}
    assert all(value.isfinite().all() for value in output.values() if isinstance(value, torch.Tensor))
    assert_close(output.logits.float(), model(**inputs).logits.float(), atol=0.02)
    exact = make_model(fusion=fusion)(**make_inputs()).logits.softmax(dim=1)
    assert_close(output.logits.softmax(dim=1).float(), exact, atol=0.03)


@torch.no_grad()
def test_the_last_state_of_a_long_text_in_half_precision():
    model = make_model(text="gpt2", label_token_ids=[5, 6, 7], num_labels=3).to(torch.bfloat16)
    states = tuple(torch.randn(3, 2, 700, 16).to(torch.bfloat16))
    mask = (torch.arange(700) < torch.tensor([[301], [700]])).long()
    output = model.mmemo(text_hidden_states=states, attention_mask=mask)
    assert torch.equal(output.text_last_state, torch.stack([states[-1][0, 300], states[-1][1, 699]]))


@torch.no_grad()
def test_hidden_states_of_another_dtype():
    model, inputs = make_model(text="gpt2", label_token_ids=[5, 6, 7], num_labels=3), make_inputs()
    output = model(**inputs, output_hidden_states=True)
    states = {
        "audio_hidden_states": tuple(layer.half() for layer in output.audio_hidden_states),
        "audio_attention_mask": inputs["audio_attention_mask"][:, ::2],
        "text_hidden_states": tuple(layer.half() for layer in output.text_hidden_states),
    }
    inputs = {name: inputs[name] for name in ("attention_mask", "token_times")}
    assert_close(model(**inputs, **states).logits, output.logits, atol=0.02)


@torch.no_grad()
def test_the_logits_of_the_clip_are_the_same_with_segments():
    model, inputs = make_model(), make_inputs()
    expected = model(**inputs)
    for segments in ([], [[0.0, 0.2]], [[0.0, 0.2], [0.1, 0.4], [-1.0, -1.0]]):
        times = torch.tensor(segments).reshape(1, -1, 2).expand(4, -1, -1)
        output = model(**inputs, segment_times=times)
        assert_close(output.logits, expected.logits)
        assert output.segment_logits.shape == (4, len(segments), 7)


@torch.no_grad()
@pairs
def test_returned_hidden_states_reproduce_the_logits_as_inputs(audio, text):
    model, inputs = make_model(audio, text), make_inputs(audio)
    output = model(**inputs, output_hidden_states=True)
    assert len(output.audio_hidden_states) == 3
    assert len(output.text_hidden_states) == model.config.text_config.num_hidden_layers + 1
    values = next(inputs[name] for name in ("input_features", "input_values") if name in inputs)
    _, positions_mask = encode_audio(model.mmemo.audio_tower, values, inputs["audio_attention_mask"])
    again = model(
        audio_hidden_states=output.audio_hidden_states,
        audio_attention_mask=positions_mask,
        text_hidden_states=output.text_hidden_states,
        attention_mask=inputs["attention_mask"],
        token_times=inputs["token_times"],
    )
    assert torch.equal(again.logits, output.logits)
    assert model(**inputs).audio_hidden_states is None


@torch.no_grad()
@fusions
def test_temperature_divides_the_logits(fusion):
    inputs = make_inputs()
    cold = make_model(fusion=fusion)(**inputs)
    warm = make_model(fusion=fusion, temperature=2.0)(**inputs)
    for name in ("logits", "audio_logits", "text_logits"):
        assert_close(warm[name], cold[name] / 2)

    warm = make_model(fusion=fusion, temperature={"audio": 2.0, "text": 4.0, "both": 8.0})(**inputs)
    assert_close(warm.logits, cold.logits / torch.tensor([[8.0], [8.0], [4.0], [2.0]]))
    assert_close(warm.audio_logits, cold.audio_logits / 2)
    assert_close(warm.text_logits, cold.text_logits / 4)


@fusions
def test_every_parameter_has_a_gradient_in_a_mixed_batch(fusion):
    model = make_model(fusion=fusion, audio_pooling="attention")
    model(**make_inputs(), labels=torch.tensor([0, 3, 5, 6])).loss.backward()
    unused = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    # A constant added to all scores does not change the softmax.
    assert {name for name in unused if not name.endswith("attention.bias")} == set()


@pytest.mark.parametrize(
    "fields, inputs, message",
    [
        ({}, {}, "neither audio .* nor text .*; give one of them"),
        ({}, {"attention_mask": torch.ones(1, 3)}, "neither audio .* nor text"),
        (
            {},
            {"input_values": torch.zeros(1, 100)},
            "Got input_values, but the audio encoder takes only input_features",
        ),
        (
            {"audio": "wav2vec2"},
            {"input_features": torch.zeros(1, 8, 60)},
            "Got input_features, but the audio encoder takes only input_values",
        ),
        (
            {},
            {"input_features": torch.zeros(1, 8, 60), "input_values": torch.zeros(1, 100)},
            "Got input_features and input_values, but",
        ),
        ({"audio": None}, {"input_features": torch.zeros(1, 8, 60)}, "Got input_features, but .* no audio encoder"),
        ({"text": None}, {"input_ids": torch.zeros(1, 3).long()}, "Got a text, but this model has no text encoder"),
        (
            {},
            {"input_ids": torch.zeros(1, 65).long()},
            "The text has 65 tokens, but the bert encoder has 64 positions",
        ),
    ],
)
def test_invalid_inputs_raise(fields, inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**fields)(**inputs)


@torch.no_grad()
def test_return_dict_false_returns_a_tuple():
    model, inputs = make_model(), make_inputs()
    output = model(**inputs, labels=torch.tensor([0, 1, 2, 3]))
    values = model(**inputs, labels=torch.tensor([0, 1, 2, 3]), return_dict=False)
    assert isinstance(values, tuple)
    heads = ["loss", "logits", "audio_logits", "text_logits", "modality_weights"]
    assert list(output) == [*heads, "audio_embeds", "text_embeds", "fused_embeds"]
    assert all(torch.equal(value, output[name]) for name, value in zip(output, values))
    assert len(values) == len(output)
    assert torch.equal(model(**inputs, return_dict=False)[0], output.logits)


@torch.no_grad()
def test_outputs_requested_in_the_configuration():
    model, inputs = make_model(), make_inputs()
    for name in ("output_attentions", "output_hidden_states"):
        setattr(model.config, f"_{name}" if name == "output_attentions" else name, True)
    output = model(**inputs)
    assert len(output.text_to_audio_attentions) == 1
    assert len(output.audio_hidden_states) == 3
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple)


@torch.no_grad()
@fusions
def test_outputs_are_in_documented_order(fusion):
    model, inputs = make_model(fusion=fusion), make_inputs()
    for part in (model, model.mmemo):
        output = part(**inputs, output_attentions=True, output_hidden_states=True)
        assert list(output) == [field.name for field in fields(output) if getattr(output, field.name) is not None]


@torch.no_grad()
def test_early_fusion_concatenates_the_weighted_vectors():
    model = make_model(fusion="early").mmemo
    model.gate.weight.zero_()
    model.gate.bias.copy_(torch.tensor([log(3), 0.0]))
    output = model(**make_inputs())
    # Weights of 3/4 and 1/4, doubled: equal weights leave the vectors unchanged.
    scales = torch.tensor([[1.5, 0.5], [1.5, 0.5], [0.0, 2.0], [2.0, 0.0]])
    expected = torch.cat([scales[:, :1] * output.audio_embeds, scales[:, 1:] * output.text_embeds], dim=1)
    assert_close(output.fusion_weights, scales / 2)
    assert_close(output.fused_embeds, model.fusion(expected))


@torch.no_grad()
def test_modality_mask_of_the_model_without_heads():
    output = MMEmoModel(make_config()).eval()(**make_inputs())
    assert output.modality_mask.tolist() == [[True, True], [True, True], [False, True], [True, False]]
    assert output.audio_embeds.any(dim=1).tolist() == [True, True, False, True]
    assert output.text_embeds.any(dim=1).tolist() == [True, True, True, False]
    assert output.fused_embeds.shape == (4, 16)


def test_input_embeddings_are_those_of_the_text_encoder():
    assert make_model().get_input_embeddings().weight.shape == (50, 16)
    model = make_model(text=None)
    assert model.get_input_embeddings() is model.mmemo.audio_tower.conv1


def test_swapped_encoders_raise():
    config = MMEmoConfig(audio_config=text_config("bert"), text_config=audio_config("wav2vec2"))

    with pytest.raises(
        ValueError, match=r"A bert encoder takes input_ids, but the audio encoder must take .* swapped"
    ):
        MMEmoForEmotionRecognition(config)
