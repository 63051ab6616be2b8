from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import audio_config, spread
from transformers import (
    AutoModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_mmemo import MMEmoAudioEncoder


WHISPER_BASE = Path(__file__).parents[2] / "shared" / "encoders" / "whisper-base-encoder"


def write_complete(model, folder):
    model.save_pretrained(folder)


def write_base(model, folder):
    model.model.save_pretrained(folder)


def write_encoder_only(model, folder):
    model.config.save_pretrained(folder)
    weights = {f"model.encoder.{key}": value for key, value in model.model.encoder.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def whisper():
    return spread(WhisperForConditionalGeneration(audio_config("whisper")))


@pytest.fixture
def encoder():
    return spread(MMEmoAudioEncoder(audio_config("mmemo_audio")))


@pytest.fixture
def features():
    """One window of 60 frames."""
    return torch.randn(2, 8, 60, generator=torch.Generator().manual_seed(1))


def assert_same_states(ours, theirs):
    """Compares all layers, the last one after the closing norm."""
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    torch.testing.assert_close(ours.hidden_states[:-1], theirs.hidden_states[:-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-4, rtol=0)
    assert torch.equal(ours.hidden_states[-1], ours.last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize("write", [write_complete, write_base, write_encoder_only])
def test_equals_the_whisper_encoder_of_the_checkpoint(whisper, features, tmp_path, write):
    write(whisper, tmp_path)
    encoder, info = MMEmoAudioEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    theirs = whisper.model.encoder(features, output_hidden_states=True)
    assert_same_states(encoder(features, output_hidden_states=True), theirs)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.corpora
@pytest.mark.skipif(not WHISPER_BASE.is_dir(), reason=f"needs the weights of Whisper base in {WHISPER_BASE}")
def test_equals_whisper_base_on_thirty_seconds(example_audio):
    samples, _ = librosa.load(example_audio, sr=16_000)
    extractor = WhisperFeatureExtractor.from_pretrained(WHISPER_BASE)
    features = extractor(np.resize(samples, 480_000), sampling_rate=16_000, return_tensors="pt").input_features
    whisper = WhisperEncoder(WhisperConfig.from_pretrained(WHISPER_BASE)).eval()
    weights = load_file(WHISPER_BASE / "model.safetensors")
    whisper.load_state_dict({key.removeprefix("model.encoder."): value.float() for key, value in weights.items()})
    encoder = MMEmoAudioEncoder.from_pretrained(WHISPER_BASE, dtype=torch.float32)

    theirs = whisper(features, output_hidden_states=True)
    # Values of Whisper's middle layers reach several hundred, so the tolerance is relative too.
    ours = encoder(features, output_hidden_states=True)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.hidden_states[:-1], theirs.hidden_states[:-1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 39, 60, 61, 75, 120])
def test_states_do_not_depend_on_the_batch(encoder, length):
    padded = torch.randn(2, 8, 130, generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(130) < torch.tensor([[length], [130]])).long()
    alone = encoder(padded[:1, :, :length], output_hidden_states=True)
    batch = encoder(padded, mask, output_hidden_states=True)
    positions = (length + 1) // 2
    assert alone.last_hidden_state.shape == (1, positions, 16)
    for one, many in zip(alone.hidden_states, batch.hidden_states):
        torch.testing.assert_close(many[:1, :positions], one, atol=1e-5, rtol=0)
        assert not many[0, positions:].any()


@torch.no_grad()
def test_a_long_clip_is_encoded_window_by_window(encoder):
    features = torch.randn(1, 8, 135, generator=torch.Generator().manual_seed(3))
    windows = [encoder(part).last_hidden_state for part in features.split(60, dim=2)]
    assert [w.shape[1] for w in windows] == [30, 30, 8]
    torch.testing.assert_close(encoder(features).last_hidden_state, torch.cat(windows, dim=1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_missing_clip_gives_zeros(encoder, features):
    mask = torch.tensor([[1], [0]]).expand(2, 60)
    states = encoder(features, mask).last_hidden_state
    assert states.isfinite().all()
    assert states[0].any()
    assert not states[1].any()


@torch.no_grad()
def test_loads_the_first_layers_of_a_checkpoint(whisper, features, tmp_path):
    whisper.save_pretrained(tmp_path)
    encoder = MMEmoAudioEncoder.from_pretrained(tmp_path, num_hidden_layers=1)
    states = encoder(features, output_hidden_states=True).hidden_states
    first = whisper.model.encoder(features, output_hidden_states=True).hidden_states[:2]
    assert len(encoder.layers) == 1
    torch.testing.assert_close(states[0], first[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(states[1], whisper.model.encoder.layer_norm(first[1]), atol=1e-4, rtol=0)


def test_more_layers_than_the_checkpoint_has_raise(whisper, tmp_path):
    whisper.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights of the audio encoder: \['layers.2."):
        MMEmoAudioEncoder.from_pretrained(tmp_path, num_hidden_layers=3)


@pytest.mark.parametrize("shape", [(2, 80, 60), (2, 60, 8), (8, 60)])
def test_features_of_another_shape_raise(encoder, shape):
    with pytest.raises(ValueError, match=r"the encoder takes \(batch, num_mel_bins=8, frames\)"):
        encoder(torch.zeros(shape))


@torch.no_grad()
def test_saved_and_loaded_bit_for_bit(encoder, features, tmp_path):
    encoder.save_pretrained(tmp_path)
    loaded = MMEmoAudioEncoder.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert torch.equal(loaded(features).last_hidden_state, encoder(features).last_hidden_state)
    assert type(AutoModel.from_pretrained(tmp_path)) is MMEmoAudioEncoder


def test_positions_are_the_fixed_sinusoids_of_whisper():
    whisper = WhisperModel(audio_config("whisper"))
    positions = MMEmoAudioEncoder(audio_config("mmemo_audio")).embed_positions.weight
    torch.testing.assert_close(positions, whisper.encoder.embed_positions.weight)
    assert not positions.requires_grad


def test_gradient_checkpointing_gives_the_same_gradients(encoder, features):
    def gradients():
        encoder.zero_grad()
        encoder(features).last_hidden_state.square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.requires_grad]

    encoder.train()
    plain = gradients()
    encoder.activation_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in encoder.layers)
    torch.testing.assert_close(gradients(), plain)


def test_return_dict_false_returns_a_tuple(encoder, features):
    last, states = encoder(features, output_hidden_states=True, return_dict=False)
    assert torch.equal(last, states[-1])
    assert len(states) == 3


@torch.no_grad()
def test_attentions_equal_those_of_whisper(whisper, features, tmp_path):
    whisper.save_pretrained(tmp_path)
    encoder = MMEmoAudioEncoder.from_pretrained(tmp_path, attn_implementation="eager")
    whisper.set_attn_implementation("eager")
    theirs = whisper.model.encoder(features, output_attentions=True)
    ours = encoder(features, output_attentions=True)
    assert ours.hidden_states is None
    torch.testing.assert_close(ours.attentions, theirs.attentions, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, atol=1e-4, rtol=0)

    last, states, attentions = encoder(
        input_features=features, output_attentions=True, output_hidden_states=True, return_dict=False
    )
    assert torch.equal(last, states[-1])
    torch.testing.assert_close(attentions, theirs.attentions, atol=1e-5, rtol=0)


@torch.no_grad()
def test_attentions_of_windows_and_padding(encoder):
    encoder.set_attn_implementation("eager")
    features = torch.randn(2, 8, 75, generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(75) < torch.tensor([[75], [40]])).long()
    output = encoder(features, mask, output_attentions=True)
    assert torch.equal(output.last_hidden_state, encoder(features, mask).last_hidden_state)
    for layer, weights in enumerate(output.attentions):
        assert weights.shape == (2, 2, 38, 38)
        # A window of 60 frames and one of 15 in the first clip; 20 real positions in the second.
        for row, windows in ((0, [slice(0, 30), slice(30, 38)]), (1, [slice(0, 20)])):
            expected = torch.zeros(2, 38, 38)
            for window in windows:
                frames = slice(2 * window.start, min(2 * window.stop, 75))
                alone = encoder(features[row : row + 1, :, frames], output_attentions=True)
                expected[:, window, window] = alone.attentions[layer][0]
            torch.testing.assert_close(weights[row], expected, atol=1e-5, rtol=0)


def test_attentions_need_eager_attention(encoder, features):
    encoder.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match=r"needs eager attention, .* uses 'sdpa'; call set_attn_implementation"):
        encoder(features, output_attentions=True)


@torch.no_grad()
def test_outputs_requested_in_the_configuration(encoder, features):
    encoder.set_attn_implementation("eager")
    encoder.config.output_attentions = encoder.config.output_hidden_states = True
    output = encoder(features)
    assert (len(output.attentions), len(output.hidden_states)) == (2, 3)
    encoder.config.return_dict = False
    assert isinstance(encoder(features), tuple)
    assert not any(module._forward_hooks for module in encoder.modules())
