from math import log

import pytest
import torch
from tiny import video_config, video_inputs

from modeling_mmemo import MMEmoVideoConfig, MMEmoVideoEncoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return MMEmoVideoEncoder(video_config("mmemo_video")).eval()


def encode(encoder, features, mask=None):
    with torch.no_grad():
        return encoder(features, attention_mask=mask, output_hidden_states=True).hidden_states


def test_states_do_not_depend_on_padding_or_on_masked_frames(encoder):
    inputs = video_inputs()
    features, mask = inputs["video_features"], inputs["video_attention_mask"]
    states = encode(encoder, features, mask)
    assert len(states) == encoder.config.num_hidden_layers + 1
    for layer, alone in zip(states, encode(encoder, features[3:, :3])):
        torch.testing.assert_close(layer[3:, :3], alone, atol=1e-6, rtol=0)
        assert not layer[mask == 0].any()
    noise = torch.where(mask.bool().unsqueeze(2), features, float("nan"))
    for layer, expected in zip(encode(encoder, noise, mask), states):
        assert torch.equal(layer, expected)


def test_changes_are_those_between_frames_with_a_face():
    encoder = MMEmoVideoEncoder(MMEmoVideoConfig(num_features=1, hidden_size=2, num_hidden_layers=1)).eval()
    with torch.no_grad():
        encoder.embedding.weight.copy_(torch.eye(2))  # the feature itself, then its change
    # Logits of 0, ln 3, one that does not count, ln 3 and 0; standardised with mean -5 and standard deviation 3.
    features = torch.tensor([[[0.5], [0.75], [9.0], [0.75], [0.5]]])
    first = encode(encoder, features, torch.tensor([[1, 1, 0, 1, 1]]))[0][0] - encoder.embedding.bias.detach()
    low, high, change = 5 / 3, (5 + log(3)) / 3, log(3) / 3
    expected = [[low, 0.0], [high, change], [high, 0.0], [low, -change]]
    torch.testing.assert_close(first[[0, 1, 3, 4]], torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blendshapes_of_0_and_1_are_finite(encoder, dtype):
    for value in (0.0, 1.0):
        features = torch.full((1, 2, 6), value, dtype=dtype)
        assert encode(encoder.to(dtype), features)[-1].isfinite().all()


def test_one_picture_is_a_video_of_one_frame(encoder):
    assert encode(encoder, torch.rand(2, 1, 6))[-1].shape == (2, 1, 16)


@pytest.mark.parametrize(
    "fields, message", [({"kernel_size": 4}, "kernel_size=4 must be odd"), ({"hidden_size": 0}, "hidden_size=0")]
)
def test_invalid_configurations_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        MMEmoVideoConfig(**fields)


def test_features_of_another_size_raise(encoder):
    with pytest.raises(ValueError, match=r"shape \(1, 3, 52\).*num_features=6"):
        encoder(torch.rand(1, 3, 52))


def test_an_encoder_is_saved_and_reloaded(encoder, tmp_path):
    from transformers import AutoModel

    encoder.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    features = torch.rand(1, 4, 6)
    assert torch.equal(encode(reloaded, features)[-1], encode(encoder, features)[-1])
