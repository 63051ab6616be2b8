from math import log

import pytest
import torch
from tiny import audio_config, make_config

from modeling_mmemo.fusion_mmemo import (
    CrossAttention,
    CrossModalLayer,
    LayerMix,
    ModalityBranch,
    ModalityGate,
    SequencePooling,
)


# The padding, 100, is after the first sample and before the second.
SEQUENCE = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[100.0, 100.0], [1.0, 2.0], [3.0, 6.0]]])
MASK = torch.tensor([[1, 1, 0], [0, 1, 1]]).bool()


def assert_close(actual, expected, **tolerance):
    torch.testing.assert_close(actual, torch.as_tensor(expected), **tolerance)


@torch.no_grad()
def set_linear(linear, weight, bias=0.0):
    linear.weight.copy_(torch.as_tensor(weight))
    linear.bias.copy_(torch.as_tensor(bias))


def cross_attention(num_heads=1):
    torch.manual_seed(0)
    return CrossAttention(make_config(fusion_hidden_size=2, num_attention_heads=num_heads))


def test_layer_mix_by_hand():
    mix = LayerMix(num_layers=2, hidden_size=2)
    mix.weights.data = torch.tensor([0.0, log(3)])  # weights 1/4 and 3/4
    mix.standardization.set(torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    first = torch.tensor([[[5.0, 6.0]]])  # standardised: 2, 4
    second = torch.tensor([[[4.0, 0.0]]])  # standardised: 4, -2
    unused = torch.full((1, 1, 2), 100.0)
    assert_close(mix((unused, first, second)), [[[0.5 + 3.0, 1.0 - 1.5]]])


def test_a_new_layer_mix_is_the_mean():
    states = torch.randn(3, 2, 4, 5)
    torch.testing.assert_close(LayerMix(3, 5)(tuple(states)), states.mean(dim=0))


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("mean", [2.0, 4.0]),
        ("mean_std", [2.0, 4.0, 1.0, 2.0]),
        ("cls", [1.0, 2.0]),
        ("last", [3.0, 6.0]),
        # Scores 0.5 ln 3 and 1.5 ln 3: weights 1/4 and 3/4.
        ("attention", [0.25 * 1 + 0.75 * 3, 0.25 * 2 + 0.75 * 6]),
    ],
)
def test_pooling_by_hand_over_real_positions(kind, expected):
    pooling = SequencePooling(kind, hidden_size=2)
    if kind == "attention":
        set_linear(pooling.attention, [[log(3) / 2, 0.0]])
    assert pooling.output_size == len(expected)
    assert_close(pooling(SEQUENCE, MASK), [expected, expected])


@pytest.mark.parametrize("kind", ["mean", "mean_std", "cls", "last", "attention"])
def test_pooling_padding_alone_gives_zero(kind):
    pooling = SequencePooling(kind, hidden_size=2)
    pooled = pooling(SEQUENCE, torch.zeros_like(MASK))
    assert torch.equal(pooled, torch.zeros(2, pooling.output_size))


def test_pooling_one_position_has_finite_gradients():
    sequence = SEQUENCE.clone().requires_grad_()
    SequencePooling("mean_std", 2)(sequence, torch.tensor([[1, 0, 0], [0, 0, 0]]).bool()).sum().backward()
    assert sequence.grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mean", "mean_std", "cls", "last", "attention"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_sequences_are_pooled_in_float32(kind, dtype):
    # Half precision does not count beyond 256 or 2,048 and rounds sums.
    lengths = (301, 3000)
    sequence, pooling = (30 + torch.randn(2, 3001, 2)).to(dtype), SequencePooling(kind, 2)
    mask = torch.arange(3001) < torch.tensor(lengths).unsqueeze(1)
    expected = pooling(sequence.double(), mask) if kind != "attention" else pooling(sequence.float(), mask)
    pooled = pooling.to(dtype)(sequence, mask)
    assert pooled.dtype == torch.float32
    tolerance = 0.05 if kind == "attention" else 1e-3  # its scores are in half precision
    torch.testing.assert_close(pooled.double(), expected.double(), atol=tolerance, rtol=0)
    if kind == "last":
        assert torch.equal(pooled, torch.stack([sequence[0, 300], sequence[1, 2999]]).float())


@torch.no_grad()
def test_pooling_counts_a_mask_of_any_dtype():
    sequence, mask = torch.randn(1, 600, 2), (torch.arange(600) < 555).unsqueeze(0)
    for kind in ("mean", "mean_std", "cls", "last"):
        pooling = SequencePooling(kind, 2)
        for dtype in (torch.bfloat16, torch.float16, torch.uint8, torch.long):
            assert torch.equal(pooling(sequence, mask.to(dtype)), pooling(sequence, mask))


@torch.no_grad()
@pytest.mark.parametrize("layer_mix", ["weighted_sum", "concat"])
def test_a_half_precision_branch_keeps_small_signals_on_large_means(layer_mix):
    """Layers whose mean is 100 times their standard deviation, as in Whisper."""
    branch = ModalityBranch(audio_config("mmemo_audio"), "mean_std", layer_mix, make_config()).eval()
    states = tuple((100 + torch.randn(3, 4, 50, 16)).to(torch.bfloat16))
    stacked = torch.stack(states).float()
    branch.mix.standardization.set(stacked.mean(dim=(1, 2)).bfloat16(), stacked.std(dim=(1, 2)).bfloat16())
    mask = torch.ones(4, 1, 50).bool()
    mean, std = (branch.pool(states, branch.mix(states), mask).mean(dim=0)[0].bfloat16() for _ in range(2))
    branch.standardization.set(mean.float(), torch.full_like(std, 0.3).float())
    _, expected = branch(tuple(layer.float() for layer in states), mask)
    _, embeds = branch.to(torch.bfloat16)(states, mask)
    assert embeds.dtype == torch.bfloat16
    torch.testing.assert_close(embeds.float(), expected, atol=0.05, rtol=0)


def test_branch_of_a_missing_modality_is_zero():
    config = make_config(fusion_hidden_size=4)
    branch = ModalityBranch(audio_config("mmemo_audio"), "mean_std", "weighted_sum", config).eval()
    states = tuple(torch.randn(3, 2, 3, 16))
    sequence, embeds = branch(states, torch.tensor([[1, 1, 0], [0, 0, 0]]).bool())
    assert sequence.shape == (2, 3, 4)
    assert embeds[0].any()
    assert not embeds[1].any()


@pytest.mark.parametrize("fusion, attends", [("early", False), ("late", False), ("cross_attention", True)])
def test_branch_projects_a_sequence_only_for_cross_modal_attention(fusion, attends):
    branch = ModalityBranch(audio_config("mmemo_audio"), "mean", "weighted_sum", make_config(fusion=fusion))
    assert (branch.projection is not None) == attends


def test_branch_with_the_last_layer_alone():
    branch = ModalityBranch(audio_config("mmemo_audio"), "mean", "last", make_config()).eval()
    states = list(torch.randn(3, 2, 3, 16))
    mask = torch.ones(2, 3).bool()
    _, before = branch(tuple(states), mask)
    assert torch.equal(branch((states[0] + 1, states[1] + 1, states[2]), mask)[1], before)
    assert not torch.equal(branch((states[0], states[1], states[2] + torch.randn(16)), mask)[1], before)


def test_branch_pools_each_layer_separately():
    branch = ModalityBranch(audio_config("mmemo_audio"), "mean_std", "concat", make_config())
    states = (torch.tensor([[[1.0] * 16, [3.0] * 16]]), torch.tensor([[[5.0] * 16, [5.0] * 16]]))
    pooled = branch.pool(states, states[0], torch.ones(1, 2))
    # Means and standard deviations of the first layer, then of the second; 1e-6 is added to the variance.
    expected = torch.cat([torch.full((16,), value) for value in (2.0, 1.0, 5.0, 1e-3)])
    assert_close(pooled, expected.unsqueeze(0))
    assert branch.standardization.mean.shape == (3 * 2 * 16,)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mean", "mean_std"])
def test_pooling_keeps_its_precision_under_autocast(kind):
    sequence = 1000 + torch.randn(2, 50, 4)
    pooling = SequencePooling(kind, 4)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooling(sequence, torch.ones(2, 50))
    torch.testing.assert_close(pooled, pooling(sequence, torch.ones(2, 50)))


@torch.no_grad()
def test_attention_pools_under_autocast():
    sequence, pooling = torch.randn(2, 50, 4), SequencePooling("attention", 4)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooling(sequence, torch.ones(2, 50))
    torch.testing.assert_close(pooled, pooling(sequence, torch.ones(2, 50)), atol=0.02, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mean", "mean_std", "cls", "last", "attention"])
def test_each_segment_is_pooled_like_a_sequence_of_its_own(kind):
    sequence, pooling = 100 + torch.randn(2, 6, 4), SequencePooling(kind, 4)
    masks = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool().expand(2, -1, -1)
    pooled = pooling(sequence, masks)
    for segment, positions in enumerate((slice(0, 2), slice(2, 5))):
        alone = pooling(sequence[:, positions], torch.ones(2, positions.stop - positions.start))
        torch.testing.assert_close(pooled[:, segment], alone, atol=1e-4, rtol=0)
    assert not pooled[:, 2].any()


@torch.no_grad()
@pytest.mark.parametrize("output_attentions", [False, True])
def test_cross_attention_by_hand(output_attentions):
    attention = cross_attention()
    set_linear(attention.q_proj, torch.eye(2))
    set_linear(attention.k_proj, torch.eye(2))
    set_linear(attention.v_proj, torch.eye(2))
    set_linear(attention.out_proj, 10 * torch.eye(2), [1.0, 2.0])
    # Scores, divided by the root of 2, of 0 and ln 3: weights 1/4 and 3/4; the third position is padding.
    queries = torch.tensor([[[1.0, 0.0]]])
    context = torch.tensor([[[0.0, 4.0], [log(3) * 2**0.5, 8.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]]).bool()
    attended, weights = attention(queries, context, mask, None, output_attentions)
    assert_close(attended, [[[10 * 0.75 * log(3) * 2**0.5 + 1, 10 * 7.0 + 2]]])
    if output_attentions:
        assert_close(weights, [[[[0.25, 0.75, 0.0]]]])
    else:
        assert weights is None


@torch.no_grad()
@pytest.mark.parametrize("output_attentions", [False, True])
def test_bias_is_added_to_the_scores(output_attentions):
    attention = cross_attention()
    set_linear(attention.q_proj, torch.zeros(2, 2))
    set_linear(attention.v_proj, torch.eye(2))
    set_linear(attention.out_proj, torch.eye(2))
    context = torch.tensor([[[4.0, 0.0], [0.0, 4.0]]])
    bias = torch.tensor([[[[log(3), 0.0]]]])
    attended, _ = attention(torch.ones(1, 1, 2), context, torch.ones(1, 2).bool(), bias, output_attentions)
    assert_close(attended, [[[3.0, 1.0]]])


@torch.no_grad()
@pytest.mark.parametrize("output_attentions", [False, True])
def test_missing_context_adds_exactly_zero(output_attentions):
    attention = cross_attention(num_heads=2)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()
    attended, weights = attention(torch.randn(2, 4, 2), torch.randn(2, 3, 2), mask, None, output_attentions)
    assert attended[0].all()
    assert not attended[1].any()
    if output_attentions:
        torch.testing.assert_close(weights[0].sum(dim=-1), torch.ones(2, 4))
        assert not weights[0, :, :, 1].any()
        assert not weights[1].any()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_missing_context_in_half_precision(dtype, output_attentions):
    attention = cross_attention().to(dtype)
    # Scores of -200: added to the lowest float16 they are -inf.
    set_linear(attention.q_proj, -100 * torch.eye(2))
    set_linear(attention.k_proj, 2 * torch.eye(2))
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()
    states = torch.ones(2, 3, 2, dtype=dtype)
    attended, weights = attention(states, states, mask, None, output_attentions)
    assert attended[0].isfinite().all()
    assert torch.equal(attended[1], torch.zeros_like(attended[1]))
    if output_attentions:
        assert weights.dtype == dtype
        assert weights[0, 0, 0].tolist() == [0.5, 0, 0.5]
        assert not weights[1].any()


PAIR_MASKS = {"audio": torch.ones(1, 3).bool(), "text": torch.ones(1, 2).bool()}


def pair():
    return {"audio": torch.randn(1, 3, 4), "text": torch.randn(1, 2, 4)}


@torch.no_grad()
@pytest.mark.parametrize("output_attentions", [False, True])
def test_time_distances_in_half_precision(output_attentions):
    layer = CrossModalLayer(make_config(fusion_hidden_size=4, num_attention_heads=2)).eval()
    sequences, distances = pair(), {("audio", "text"): torch.rand(1, 2, 3)}
    expected, _ = layer(sequences, PAIR_MASKS, distances, output_attentions)
    layer = layer.to(torch.bfloat16)
    halved = {name: sequence.bfloat16() for name, sequence in sequences.items()}
    output, _ = layer(halved, PAIR_MASKS, distances, output_attentions)
    for name in sequences:
        torch.testing.assert_close(output[name].float(), expected[name], atol=0.05, rtol=0)


@torch.no_grad()
def test_a_word_attends_most_to_the_audio_at_its_time():
    layer = CrossModalLayer(make_config(fusion_hidden_size=4, num_attention_heads=2)).eval()
    for attention in (layer.text_to_audio, layer.audio_to_text):
        set_linear(attention.q_proj, torch.zeros(4, 4))
    layer.slope.copy_(torch.tensor([0.0, log(3)]))  # softplus gives ln 2 and ln 4
    distance = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 2.0]]])
    _, maps = layer(pair(), PAIR_MASKS, {("audio", "text"): distance}, True)
    text_map, audio_map = maps["text_to_audio"], maps["audio_to_text"]
    # Each segment of distance halves the weight in the first head, and quarters it in the second.
    assert_close(text_map[0, 0], [[1 / 4, 2 / 4, 1 / 4], [4 / 7, 2 / 7, 1 / 7]])
    assert_close(text_map[0, 1], [[1 / 6, 4 / 6, 1 / 6], [16 / 21, 4 / 21, 1 / 21]])
    # Audio attends to the words in the same way: distances (1, 0), (0, 1), (1, 2).
    assert_close(audio_map[0, 0], [[1 / 3, 2 / 3], [2 / 3, 1 / 3], [2 / 3, 1 / 3]])


@torch.no_grad()
def test_cross_modal_layer_without_the_other_modality_is_the_feed_forward_layer():
    torch.manual_seed(0)
    layer = CrossModalLayer(make_config(fusion_hidden_size=4)).eval()
    sequences = pair()
    output, _ = layer(sequences, PAIR_MASKS | {"text": torch.zeros(1, 2).bool()}, {}, False)
    audio = sequences["audio"]
    torch.testing.assert_close(output["audio"], audio + layer.audio_feed_forward(audio))


@torch.no_grad()
def test_gate_by_hand():
    gate = ModalityGate(width=2, num_modalities=2, num_voters=3)
    # Scores: 0 for the first, ln 3 times the last value of the text for the second, ln 2 for the third.
    set_linear(gate, [[0.0] * 4, [0.0, 0.0, 0.0, log(3)], [0.0] * 4], [0.0, 0.0, log(2)])
    audio, text = torch.randn(4, 2), torch.tensor([[5.0, 1.0]]).expand(4, 2)
    voters = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
    weights = gate([audio, text], voters)
    assert_close(weights, [[1 / 6, 3 / 6, 2 / 6], [1 / 3, 0, 2 / 3], [0, 1.0, 0], [0, 0, 0]])
    assert not weights[~voters].any()


@torch.no_grad()
def test_with_three_modalities_each_attends_to_both_others():
    torch.manual_seed(0)
    layer = CrossModalLayer(make_config(video="mmemo_video", fusion_hidden_size=4)).eval()
    sequences = pair() | {"video": torch.randn(1, 5, 4)}
    masks = PAIR_MASKS | {"video": torch.ones(1, 5).bool()}
    output, maps = layer(sequences, masks, {}, True)
    assert {name: tuple(values.shape[2:]) for name, values in maps.items()} == {
        "text_to_audio": (2, 3),
        "audio_to_text": (3, 2),
        "video_to_audio": (5, 3),
        "audio_to_video": (3, 5),
        "video_to_text": (5, 2),
        "text_to_video": (2, 5),
    }
    normed = {name: layer.get_submodule(f"{name}_norm")(sequence) for name, sequence in sequences.items()}
    attended = sequences["video"]
    for context in ("audio", "text"):
        attention = layer.get_submodule(f"video_to_{context}")
        attended = attended + attention(normed["video"], normed[context], masks[context], None, False)[0]
    torch.testing.assert_close(output["video"], attended + layer.video_feed_forward(attended))


@torch.no_grad()
def test_each_pair_of_modalities_has_slopes_of_its_own():
    layer = CrossModalLayer(make_config(video="mmemo_video", fusion_hidden_size=4, num_attention_heads=2)).eval()
    for query, context in (("video", "audio"), ("video", "text")):
        set_linear(layer.get_submodule(f"{query}_to_{context}").q_proj, torch.zeros(4, 4))
    # softplus gives 0 to the slopes of audio and text, ln 4 to audio and video, ln 2 to text and video.
    layer.slope.copy_(torch.tensor([-100.0, -100.0, log(3), log(3), 0.0, 0.0]))
    sequences = {name: sequence[:, :2] for name, sequence in pair().items()} | {"video": torch.randn(1, 1, 4)}
    masks = {name: torch.ones(1, sequence.shape[1]).bool() for name, sequence in sequences.items()}
    distance = torch.tensor([[[0.0, 1.0]]])
    _, maps = layer(sequences, masks, {("audio", "video"): distance, ("text", "video"): distance}, True)
    assert_close(maps["video_to_audio"][0, 0], [[4 / 5, 1 / 5]])
    assert_close(maps["video_to_text"][0, 1], [[2 / 3, 1 / 3]])


def test_every_parameter_of_a_cross_modal_layer_has_a_gradient():
    layer = CrossModalLayer(make_config(fusion_hidden_size=4)).eval()
    output, _ = layer(pair(), PAIR_MASKS, {("audio", "text"): torch.rand(1, 2, 3)}, False)
    sum(sequence.square().sum() for sequence in output.values()).backward()
    assert [name for name, parameter in layer.named_parameters() if parameter.grad is None] == []
