import subprocess
import sys
from dataclasses import fields
from math import log

import pytest
import torch
from safetensors.torch import load_file, save_file
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
    spread,
    text_config,
)
from transformers import BertForMaskedLM, BertModel, Wav2Vec2ForCTC

from modeling_mmemo import MMEmoAudioEncoder, MMEmoConfig, MMEmoForEmotionRecognition, MMEmoModel
from modeling_mmemo.configuration_mmemo import FUSIONS, POOLINGS
from modeling_mmemo.towers_mmemo import encode_audio


# Either modality, both, and all of them in one batch; rows 0 and 1 have both.
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


def assert_same_alone(model, inputs, fixed_length=False):
    """Checks every sample alone against the batch, with its padding on either side."""
    logits = model(**inputs).logits
    assert logits.isfinite().all()
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # a model that says the same of everything proves nothing
    assert_close(model(**pad_left(inputs)).logits, logits)
    for row in range(len(logits)):
        assert_close(model(**alone(inputs, row, fixed_length)).logits[0], logits[row])


@torch.no_grad()
@fusions
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sample_gives_the_same_alone_and_in_any_batch(fusion, pooling):
    model = make_model(fusion=fusion, audio_pooling=pooling, text_pooling=pooling, fusion_num_layers=2)
    assert_same_alone(model, make_inputs())


@torch.no_grad()
@pairs
def test_every_tower_gives_the_same_alone_and_in_any_batch(audio, text):
    model = make_model(audio, text, text_pooling="last", audio_frame_seconds=0.02)
    assert_same_alone(model, make_inputs(audio), fixed_length=audio == "whisper")


@torch.no_grad()
@fusions
def test_the_order_of_a_batch_does_not_matter(fusion):
    model, inputs, order = make_model(fusion=fusion), make_inputs(), [2, 0, 3, 1]
    assert_close(model(**rows(inputs, order)).logits, model(**inputs).logits[order])


@torch.no_grad()
@pytest.mark.parametrize("modality", ["audio", "text"])
@fusions
def test_a_model_of_one_modality(fusion, modality):
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
def test_modality_weights_sum_to_one_and_a_missing_one_has_none(fusion):
    weights = make_model(fusion=fusion)(**make_inputs()).modality_weights
    assert_close(weights.sum(dim=1), torch.ones(4))
    assert weights[:2].gt(0).all()
    assert weights[TEXT_ONLY].tolist() == [0, 1]
    assert weights[AUDIO_ONLY].tolist() == [1, 0]


@torch.no_grad()
@pytest.mark.parametrize(
    "fields", [*({"fusion": fusion} for fusion in FUSIONS), {"fusion": "late", "late_fusion_weights": [1.0, 3.0]}]
)
def test_a_sample_with_neither_modality_weighs_nothing(fields):
    inputs = make_inputs()
    inputs["attention_mask"][TEXT_ONLY] = 0
    output = make_model(**fields)(**inputs)
    assert output.logits.isfinite().all()
    assert output.modality_weights[TEXT_ONLY].tolist() == [0, 0]


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_one_modality_gets_the_answer_of_its_head(fusion):
    output = make_model(fusion=fusion, temperature={"audio": 2.0, "text": 3.0, "both": 5.0})(**make_inputs())
    scores = output.logits.softmax(dim=1)
    assert_close(scores[TEXT_ONLY], output.text_logits.softmax(dim=1)[TEXT_ONLY], atol=1e-6)
    assert_close(scores[AUDIO_ONLY], output.audio_logits.softmax(dim=1)[AUDIO_ONLY], atol=1e-6)
    assert (scores - output.text_logits.softmax(dim=1))[:2].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["late", "hybrid"])
def test_one_modality_gets_the_logits_of_its_head_where_labels_are_independent(fusion):
    output = make_model(fusion=fusion, problem_type="multi_label_classification")(**make_inputs())
    assert_close(output.logits[TEXT_ONLY], output.text_logits[TEXT_ONLY])
    assert_close(output.logits[AUDIO_ONLY], output.audio_logits[AUDIO_ONLY])


@torch.no_grad()
def test_given_late_fusion_weights():
    output = make_model(fusion="late", late_fusion_weights=[1.0, 3.0])(**make_inputs())
    audio, text = output.audio_logits.log_softmax(dim=1), output.text_logits.log_softmax(dim=1)
    assert_close(output.logits[:2], 0.25 * audio[:2] + 0.75 * text[:2])
    assert_close(output.logits[TEXT_ONLY], text[TEXT_ONLY])
    assert_close(output.logits[AUDIO_ONLY], audio[AUDIO_ONLY])
    assert_close(output.modality_weights, [[0.25, 0.75], [0.25, 0.75], [0.0, 1.0], [1.0, 0.0]])


@torch.no_grad()
def test_a_weight_of_zero_leaves_a_modality_its_answer_where_it_is_alone():
    output = make_model(fusion="late", late_fusion_weights=[1.0, 0.0])(**make_inputs())
    assert_close(output.modality_weights, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert_close(output.logits[TEXT_ONLY], output.text_logits[TEXT_ONLY].log_softmax(dim=0))


@torch.no_grad()
@fusions
def test_a_new_model_weighs_the_modalities_alike(fusion):
    model = MMEmoForEmotionRecognition(make_config(fusion=fusion)).eval()
    assert_close(model(**make_inputs()).modality_weights[:2], [[0.5, 0.5], [0.5, 0.5]])


def test_modality_dropout_takes_one_of_two_in_training_alone():
    torch.manual_seed(0)
    model = MMEmoModel(make_config(modality_dropout=0.5))
    states = {
        "audio_hidden_states": tuple(torch.randn(3, 800, 2, 16)),
        "text_hidden_states": tuple(torch.randn(3, 800, 2, 16)),
        "attention_mask": torch.tensor([[1, 1]]).repeat(800, 1),
    }
    states["attention_mask"][:200] = 0  # nothing to choose from
    there = model.train()(**states).modality_mask
    assert there[:200].tolist() == [[True, False]] * 200
    shares = [(there[200:] == torch.tensor(kind)).all(dim=1).float().mean() for kind in ([1, 1], [1, 0], [0, 1])]
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
def test_no_attention_maps_where_nothing_attends(fusion):
    output = make_model(fusion=fusion)(**make_inputs(), output_attentions=True)
    assert output.text_to_audio_attentions is None
    assert output.audio_to_text_attentions is None


@torch.no_grad()
def test_word_times_steer_attention_by_the_distance_in_segments():
    # Sounds at 0.5, 1.5 and 2.5 s; new slopes of ln 2: each segment of 0.5 s away counts a half.
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
    # Gaps in segments: (1, 0, 1) around the word; (0, 2, 4) behind its end; none without times.
    expected = torch.tensor([[1 / 4, 2 / 4, 1 / 4], [16 / 21, 4 / 21, 1 / 21], [1 / 3, 1 / 3, 1 / 3]])
    assert_close(maps[0], expected.expand(2, 3, 3))


@torch.no_grad()
def test_the_answer_follows_the_sound_that_a_word_coincides_with():
    """One word among four sounds of half a second: an angry one comes second, a happy one fourth."""
    model = make_model(fusion="cross_attention", audio_frame_seconds=0.5, segment_seconds=0.5, num_labels=2)
    (layer,), identity = model.mmemo.layers, torch.eye(16)
    for module in (*layer.text_to_audio.children(), *layer.audio_to_text.children()):
        module.weight.zero_()
        module.bias.zero_()
    # Who is asked does not depend on what it says, only on when; what is heard is added to the word.
    layer.slope.fill_(5.0)
    layer.text_to_audio.v_proj.weight.copy_(identity)
    layer.text_to_audio.out_proj.weight.copy_(identity)
    for module in (model.mmemo.audio_branch.projection[0], model.mmemo.text_branch.projection[0]):
        module.weight.copy_(identity)
    layer.text_feed_forward[-1].weight.zero_()
    # The answer reads the word alone, and of it what is angry (0) and what is happy (1).
    model.mmemo.fusion[0].weight.copy_(torch.cat([0 * identity, identity], dim=1))
    model.fused_classifier.weight.copy_(identity[:2])
    sounds = torch.zeros(1, 4, 16)
    sounds[0, 1, 0] = sounds[0, 3, 1] = 10.0
    word = torch.zeros(1, 1, 16)
    word[0, 0, 2] = 1.0

    def hear(start, end):
        output = model(
            audio_hidden_states=(sounds,) * 3,
            text_hidden_states=(word,) * 3,
            token_times=torch.tensor([[[start, end]]]),
            output_attentions=True,
        )
        return output.logits[0], output.text_to_audio_attentions[0][0].mean(dim=0)[0]

    angry, angry_map = hear(0.5, 1.0)
    happy, happy_map = hear(1.5, 2.0)
    nothing, nothing_map = hear(0.0, 0.5)
    unknown, unknown_map = hear(-1.0, -1.0)
    assert angry_map[1] > 0.8
    assert happy_map[3] > 0.8
    assert nothing_map[0] > 0.8
    assert_close(unknown_map, [0.25] * 4)
    assert angry[0] - angry[1] > 1
    assert happy[1] - happy[0] > 1
    for between in (nothing, unknown):
        assert abs(between[0] - between[1]) < 0.2


@torch.no_grad()
@fusions
def test_a_segment_that_holds_everything_has_the_answer_of_the_whole(fusion):
    model, inputs = make_model(fusion=fusion), make_inputs()
    inputs["segment_times"] = torch.tensor([[[0.0, 9.0], [-1.0, -1.0]]]).expand(4, -1, -1)
    output = model(**inputs)
    assert_close(output.segment_logits[:, 0], output.logits)
    assert_close(output.segment_modality_weights[:, 0], output.modality_weights)
    assert not output.segment_modality_weights[:, 1].any()


@torch.no_grad()
@fusions
def test_segments_are_the_same_alone_and_in_any_batch(fusion):
    model, inputs = make_model(fusion=fusion), make_inputs()
    inputs["segment_times"] = torch.tensor([[[0.0, 0.2], [0.1, 0.4]]]).expand(4, -1, -1)
    whole = model(**inputs)
    assert (whole.segment_logits[:, 0] - whole.segment_logits[:, 1]).abs().max() > 1e-3
    for row in range(4):
        assert_close(model(**alone(inputs, row)).segment_logits[0], whole.segment_logits[row])
    assert_close(model(**pad_left(inputs)).segment_logits, whole.segment_logits)


@torch.no_grad()
@pytest.mark.parametrize("audio, text", [("wav2vec2", "bert"), ("ast", "bert"), ("mmemo_audio", "gpt2")])
def test_segments_of_other_towers(audio, text):
    model, inputs = make_model(audio, text), make_inputs(audio)
    inputs["segment_times"] = torch.tensor([[[0.0, 0.05], [0.0, 9.0]]]).expand(4, -1, -1)
    output = model(**inputs)
    assert output.segment_logits.isfinite().all()
    assert_close(output.segment_logits[:, 1], output.logits)


@torch.no_grad()
def test_a_segment_is_pooled_from_its_own_sounds_and_words():
    model = make_model(fusion="late", audio_frame_seconds=1.0, audio_pooling="mean")
    audio, text = torch.randn(1, 4, 16), torch.randn(1, 3, 16)
    # One word is said in the first two seconds, one later; the last token belongs to none.
    times = torch.tensor([[[0.5, 1.0], [2.5, 3.0], [-1.0, -1.0]]])

    def answer(audio, text, segments):
        states = {"audio_hidden_states": (audio,) * 3, "text_hidden_states": (text,) * 3}
        return model(**states, token_times=times, segment_times=torch.tensor([segments]))

    first, second, none = answer(audio, text, [[0.0, 2.0], [2.0, 4.0], [5.0, 6.0]]).segment_logits[0]
    states = {"audio_hidden_states": (audio[:, :2],) * 3, "text_hidden_states": (text[:, [0, 2]],) * 3}
    assert_close(model(**states).logits[0], first)
    changed = torch.cat([audio[:, :2], torch.randn(1, 2, 16)], dim=1)
    other = torch.cat([text[:, :1], torch.randn(1, 1, 16), text[:, 2:]], dim=1)
    found = answer(changed, other, [[0.0, 2.0], [2.0, 4.0]]).segment_logits[0]
    assert_close(found[0], first)
    assert (found[1] - second).abs().max() > 1e-3
    assert_close(none.softmax(dim=0), torch.full((7,), 1 / 7))


@torch.no_grad()
def test_word_times_matter_and_unknown_ones_do_not():
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
def test_word_times_without_audio(audio):
    model, inputs = make_model(audio), alone(make_inputs(audio), TEXT_ONLY)
    inputs["token_times"][0, 1] = torch.tensor([0.1, 0.3])
    output = model(**inputs)
    assert_close(output.logits.softmax(dim=1), output.text_logits.softmax(dim=1))


@torch.no_grad()
def test_word_times_in_half_precision():
    model, inputs = make_model().to(torch.bfloat16), make_inputs()
    inputs["input_features"] = inputs["input_features"].to(torch.bfloat16)
    exact = make_model()(**make_inputs()).logits.softmax(dim=1)
    assert_close(model(**inputs).logits.softmax(dim=1).float(), exact, atol=0.02)


@torch.no_grad()
@pairs
def test_hidden_states_given_back_reproduce_the_logits(audio, text):
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


def constant_model(logits, audio_logits=None, text_logits=None, **fields):
    """An early-fusion model whose heads say the same of everything."""
    model = make_model(fusion="early", num_labels=len(logits), **fields)
    for head, says in (
        (model.fused_classifier, logits),
        (model.audio_classifier, audio_logits or logits),
        (model.text_classifier, text_logits or logits),
    ):
        head.weight.data.zero_()
        head.bias.data = torch.tensor(says)
    return model


def loss_of(model, samples, labels, **kwargs):
    return model(**rows(make_inputs(), samples), labels=torch.tensor(labels), **kwargs).loss.item()


@torch.no_grad()
def test_loss_of_the_answer_and_of_every_head_by_hand():
    # Probabilities of label 0: 1/4 fused, 1/2 audio, 3/4 text.
    model = constant_model([0.0, log(3)], [0.0, 0.0], [log(3), 0.0], modality_loss_weight=0.3)
    own = log(2) + log(4 / 3) + log(4)
    assert loss_of(model, [BOTH, WHOLE], [0, 0]) == pytest.approx(log(4) + 0.3 * own)
    # Each head learns from the samples that have what it reads: audio from 0 and 2, text from 0 and 1, fused from 0.
    # Labels 0, 1, 1: text has 3/4 and 1/4. All are divided by the three samples.
    own = (2 * log(2) + log(4 / 3) + log(4) + log(4)) / 3
    answer = (log(4) + log(4 / 3) + log(4 / 3)) / 3
    assert loss_of(model, [BOTH, TEXT_ONLY, AUDIO_ONLY], [0, 1, 1]) == pytest.approx(answer + 0.3 * own)


@torch.no_grad()
def test_multi_label_loss_by_hand():
    model = constant_model([0.0, log(3)], problem_type="multi_label_classification", modality_loss_weight=0)
    # -ln 1/2 for the first label, -ln(1 - 3/4) for the second.
    assert loss_of(model, [BOTH], [[1, 0]]) == pytest.approx((log(2) + log(4)) / 2)


@torch.no_grad()
def test_regression_loss_by_hand():
    model = constant_model([1.0, 2.0], problem_type="regression", modality_loss_weight=0)
    assert loss_of(model, [BOTH, WHOLE], [[0.0, 4.0], [1.0, 2.0]]) == pytest.approx(((1 + 4) / 2 + 0) / 2)


@torch.no_grad()
def test_one_label_is_a_regression():
    model = constant_model([1.0], modality_loss_weight=0)
    assert loss_of(model, [BOTH, WHOLE], [3.0, 1.0]) == pytest.approx((4 + 0) / 2)


@torch.no_grad()
@pytest.mark.parametrize("labels, loss", [([0, -100], log(4)), ([-100, 1], log(4 / 3)), ([-100, -100], 0.0)])
def test_a_label_of_minus_100_is_ignored(labels, loss):
    model = constant_model([0.0, log(3)], modality_loss_weight=1.0)
    # The answer and three heads that say the same, over two samples.
    assert loss_of(model, [BOTH, WHOLE], labels) == pytest.approx(4 * loss / 2)


def test_losses_of_parts_of_a_batch_add_up():
    model = make_model(modality_loss_weight=0.3).double()
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in make_inputs().items()}
    labels = torch.tensor([0, 3, 5, 6])
    parts = [model(**rows(inputs, part), labels=labels[part]).loss for part in ([0, 1], [2, 3])]
    torch.testing.assert_close(sum(parts) / 2, model(**inputs, labels=labels).loss)


@torch.no_grad()
def test_label_smoothing_by_hand():
    mask = torch.tensor([[1, 0, 1]])
    model = constant_model([0.0, log(96), log(3)], modality_loss_weight=0, label_smoothing=0.2)
    # 1/4 and 3/4 of the two labels that are known; a tenth of the target goes to either.
    expected = 0.9 * log(4) + 0.1 * log(4 / 3)
    assert loss_of(model, [BOTH], [0], label_mask=mask) == pytest.approx(expected)


@torch.no_grad()
def test_focal_loss_by_hand():
    model = constant_model([0.0, log(3)], modality_loss_weight=0, focal_gamma=2.0)
    assert loss_of(model, [BOTH, WHOLE], [0, 1]) == pytest.approx((0.75**2 * log(4) + 0.25**2 * log(4 / 3)) / 2)


@torch.no_grad()
def test_class_weights_by_hand():
    model = constant_model([0.0, log(3)], modality_loss_weight=0, class_weights=[1.5, 0.5])
    assert loss_of(model, [BOTH, WHOLE], [0, 1]) == pytest.approx((1.5 * log(4) + 0.5 * log(4 / 3)) / 2)


@torch.no_grad()
def test_labels_unknown_to_a_corpus_take_no_part():
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]])
    model = constant_model([0.0, log(96), log(3)], modality_loss_weight=0)
    # 1 of 1 + 3 where the second label is unknown, 1 of 1 + 96 + 3 where it is known.
    loss = loss_of(model, [BOTH, WHOLE], [0, 0], label_mask=mask)
    assert loss == pytest.approx((log(4) + log(100)) / 2)

    model = constant_model([0.0, log(96), log(3)], problem_type="multi_label_classification", modality_loss_weight=0)
    loss = loss_of(model, [BOTH], [[1, 0, 0]], label_mask=mask[:1])
    assert loss == pytest.approx((log(2) + log(4)) / 2)


def test_labels_unknown_to_a_corpus_have_no_gradient():
    model = make_model(num_labels=3)
    mask = torch.tensor([[1, 0, 1]]).repeat(4, 1)
    model(**make_inputs(), labels=torch.tensor([0, 2, 0, 2]), label_mask=mask).loss.backward()
    gradient = model.fused_classifier.bias.grad
    assert gradient[[0, 2]].abs().min() > 1e-4
    assert gradient.isfinite().all()


@fusions
def test_every_parameter_takes_part_in_a_mixed_batch(fusion):
    model = make_model(fusion=fusion, audio_pooling="attention")
    model(**make_inputs(), labels=torch.tensor([0, 3, 5, 6])).loss.backward()
    idle = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    # One number added to all scores changes no softmax.
    assert {name for name in idle if not name.endswith("attention.bias")} == set()


@pytest.mark.parametrize(
    "fields, inputs, message",
    [
        ({}, {}, "neither audio .* nor text .*; give one of them"),
        ({}, {"attention_mask": torch.ones(1, 3)}, "neither audio .* nor text"),
        (
            {},
            {"input_values": torch.zeros(1, 100)},
            "Got input_values, but the audio tower reads input_features alone",
        ),
        (
            {"audio": "wav2vec2"},
            {"input_features": torch.zeros(1, 8, 60)},
            "Got input_features, but the audio tower reads input_values alone",
        ),
        (
            {},
            {"input_features": torch.zeros(1, 8, 60), "input_values": torch.zeros(1, 100)},
            "Got input_features and input_values, but",
        ),
        ({"audio": None}, {"input_features": torch.zeros(1, 8, 60)}, "Got input_features, but .* no audio tower"),
        ({"text": None}, {"input_ids": torch.zeros(1, 3).long()}, "Got a text, but this model has no text tower"),
        ({}, {"input_ids": torch.zeros(1, 65).long()}, "The text has 65 tokens, but the bert tower has 64 positions"),
    ],
)
def test_inputs_are_refused_in_words(fields, inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**fields)(**inputs)


@torch.no_grad()
def test_return_dict_false_gives_a_tuple():
    model, inputs = make_model(), make_inputs()
    output = model(**inputs, labels=torch.tensor([0, 1, 2, 3]))
    values = model(**inputs, labels=torch.tensor([0, 1, 2, 3]), return_dict=False)
    assert isinstance(values, tuple)
    assert list(output) == ["loss", "logits", "audio_logits", "text_logits", "modality_weights"]
    assert all(torch.equal(value, output[name]) for name, value in zip(output, values))
    assert len(values) == 5
    assert torch.equal(model(**inputs, return_dict=False)[0], output.logits)


@torch.no_grad()
@fusions
def test_outputs_come_in_the_order_in_which_they_are_documented(fusion):
    model, inputs = make_model(fusion=fusion), make_inputs()
    for part in (model, model.mmemo):
        output = part(**inputs, output_attentions=True, output_hidden_states=True)
        assert list(output) == [field.name for field in fields(output) if getattr(output, field.name) is not None]


@torch.no_grad()
def test_early_fusion_concatenates_what_the_gate_weighs():
    model = make_model(fusion="early").mmemo
    model.gate.weight.zero_()
    model.gate.bias.copy_(torch.tensor([log(3), 0.0]))
    output = model(**make_inputs())
    # Shares of 3/4 and 1/4, twice: even shares leave the vectors as they are.
    shares = torch.tensor([[1.5, 0.5], [1.5, 0.5], [0.0, 2.0], [2.0, 0.0]])
    expected = torch.cat([shares[:, :1] * output.audio_embeds, shares[:, 1:] * output.text_embeds], dim=1)
    assert_close(output.fusion_weights, shares / 2)
    assert_close(output.fused_embeds, model.fusion(expected))


@torch.no_grad()
def test_the_model_without_heads_says_what_is_there():
    output = MMEmoModel(make_config()).eval()(**make_inputs())
    assert output.modality_mask.tolist() == [[True, True], [True, True], [False, True], [True, False]]
    assert output.audio_embeds.any(dim=1).tolist() == [True, True, False, True]
    assert output.text_embeds.any(dim=1).tolist() == [True, True, True, False]
    assert output.fused_embeds.shape == (4, 16)


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
def test_what_a_model_lacks_is_not_missed(fields, tmp_path):
    model = make_model(**fields)
    model.save_pretrained(tmp_path)
    loaded, info = MMEmoForEmotionRecognition.from_pretrained(tmp_path, output_loading_info=True)
    assert loaded.missing_keys_on_load == ()
    assert not info["unexpected_keys"]
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


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
    assert_close(logits, model(**inputs).logits, atol=1e-6)
    assert_close(fused_embeds, model.mmemo(**inputs).fused_embeds, atol=1e-6)


@pytest.mark.parametrize(
    "prefix, lacking",
    [
        ("audio_classifier.", ("audio_classifier.bias", "audio_classifier.weight")),
        ("mmemo.audio_branch.standardization.mean", ("mmemo.audio_branch.standardization.mean",)),
    ],
)
def test_what_a_checkpoint_lacks_is_named(prefix, lacking, tmp_path):
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {key: value for key, value in load_file(file).items() if not key.startswith(prefix)}
    save_file(weights, file, metadata={"format": "pt"})
    model = MMEmoForEmotionRecognition.from_pretrained(tmp_path)
    assert model.missing_keys_on_load == lacking


def test_heads_of_another_size_are_named(tmp_path):
    make_model().save_pretrained(tmp_path)
    model = MMEmoForEmotionRecognition.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 3
    assert model.missing_keys_on_load == tuple(
        f"{head}_classifier.{part}" for head in ("audio", "fused", "text") for part in ("bias", "weight")
    )


@torch.no_grad()
def test_towers_of_two_folders_keep_their_weights(tmp_path):
    audio, text = spread(Wav2Vec2ForCTC(audio_config("wav2vec2"))), spread(BertForMaskedLM(text_config("bert")))
    audio.save_pretrained(tmp_path / "audio")
    text.save_pretrained(tmp_path / "text")
    model = MMEmoForEmotionRecognition.from_audio_text_pretrained(
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
def test_an_encoder_of_one_modality_makes_a_model(modality, row):
    towers = {"audio": MMEmoAudioEncoder(audio_config("mmemo_audio")), "text": BertModel(text_config("bert"))}
    weights = {key: value.clone() for key, value in towers[modality].state_dict().items() if "pooler" not in key}
    model = MMEmoForEmotionRecognition.from_audio_text_pretrained(**{modality: towers[modality]}).eval()
    tower = getattr(model.mmemo, f"{modality}_tower")
    assert tower.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in tower.state_dict().items())
    output = model(**alone(make_inputs(), row))
    assert torch.equal(output.logits, output[f"{modality}_logits"])


def test_a_data_type_holds_for_the_whole_model():
    model = MMEmoForEmotionRecognition.from_audio_text_pretrained(
        MMEmoAudioEncoder(audio_config("mmemo_audio")), BertModel(text_config("bert")), dtype=torch.bfloat16
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype == torch.bfloat16


def test_towers_share_the_configuration_of_their_model():
    model = MMEmoForEmotionRecognition.from_audio_text_pretrained(
        MMEmoAudioEncoder(audio_config("mmemo_audio")), BertModel(text_config("bert"))
    )
    assert model.mmemo.audio_tower.config is model.config.audio_config
    assert model.mmemo.text_tower.config is model.config.text_config


def test_input_embeddings_are_the_texts():
    assert make_model().get_input_embeddings().weight.shape == (50, 16)
    model = make_model(text=None)
    assert model.get_input_embeddings() is model.mmemo.audio_tower.conv1


def test_swapped_towers_are_refused():
    config = MMEmoConfig(audio_config=text_config("bert"), text_config=audio_config("wav2vec2"))

    with pytest.raises(ValueError, match=r"bert reads input_ids, so it is no audio tower.* swapped"):
        MMEmoForEmotionRecognition(config)
