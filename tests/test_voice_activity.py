"""Voice activity: equal to Silero's own model, independent of the chunk size, and silent on sounds without speech."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mmemo.audio import voice_activity
from mmemo.audio.loading import load_audio
from mmemo.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector, VoiceActivityNetwork


PACKAGE_DATA = Path(find_spec("silero_vad").submodule_search_locations[0]) / "data"
# Tensors of the safetensors file by their name in the TorchScript.
TORCHSCRIPT_NAMES = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    "decoder.decoder.2.weight": "final_conv.weight",
    "decoder.decoder.2.bias": "final_conv.bias",
}
for kind in ("weight", "bias"):
    TORCHSCRIPT_NAMES |= {f"encoder.{index}.reparam_conv.{kind}": f"conv{index + 1}.{kind}" for index in range(4)}
    TORCHSCRIPT_NAMES |= {f"decoder.rnn.{kind}_{gate}": f"lstm_cell.{kind}_{gate}" for gate in ("ih", "hh")}
CLIPS = sorted((Path(__file__).parents[1] / "examples" / "audio").glob("*.flac"))


@pytest.fixture(scope="module")
def speech(example_audio):
    return load_audio(example_audio)


def torchscript_weights(model):
    """Views of the tensors of the 16 kHz network, by their names in the safetensors file."""
    tensors = model.state_dict()
    return {name: tensors[f"_model.{own_name}"] for own_name, name in TORCHSCRIPT_NAMES.items()}


@pytest.mark.parametrize("weights", ["safetensors", "torchscript"])
def test_probabilities_equal_those_of_silero(weights):
    # The package ships two trainings of one network: each is run by Silero's model and by ours.
    model = torch.jit.load(PACKAGE_DATA / "silero_vad.jit")
    own_weights = torchscript_weights(model)
    if weights == "safetensors":
        for name, tensor in load_file(PACKAGE_DATA / "silero_vad_16k.safetensors").items():
            own_weights.pop(name).copy_(torch.from_numpy(tensor))
        assert not own_weights
    network = VoiceActivityNetwork({name: tensor.numpy() for name, tensor in torchscript_weights(model).items()})
    for clip in CLIPS:
        samples = load_audio(clip)
        frames = torch.from_numpy(samples)[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].view(-1, 1, FRAME_SAMPLES)
        model.reset_states()
        with torch.no_grad():
            expected = [model(frame, 16_000).item() for frame in frames]
        detector = VoiceActivityDetector()
        if weights == "torchscript":  # the safetensors are what it loads itself
            detector.network = network
        assert 0.01 < np.mean(np.array(expected) >= 0.5) < 0.99
        np.testing.assert_allclose(detector(samples), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 5_000])
def test_chunk_sizes_do_not_change_the_probabilities(speech, size):
    speech = speech[: 20 * FRAME_SAMPLES + 100]
    detector = VoiceActivityDetector()
    chunks = [detector(speech[start : start + size]) for start in range(0, len(speech), size)]
    whole = VoiceActivityDetector()(speech)
    assert len(whole) == 20
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-5)


def test_reset_begins_a_new_stream(speech):
    detector = VoiceActivityDetector()
    first = detector(speech)
    detector.reset()
    np.testing.assert_array_equal(detector(speech), first)


@pytest.fixture
def nothing_loaded():
    voice_activity._load_network.cache_clear()
    voice_activity._state_after_silence.cache_clear()
    yield
    voice_activity._load_network.cache_clear()
    voice_activity._state_after_silence.cache_clear()


def test_a_missing_package_raises(monkeypatch, nothing_loaded):
    monkeypatch.setattr(voice_activity, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package silero-vad: pip install 'silero-vad>=6\.2\.3,<7'"):
        VoiceActivityDetector()


def test_a_version_without_the_weights_raises(monkeypatch, nothing_loaded):
    monkeypatch.setattr(voice_activity, "WEIGHTS_FILE", "renamed.safetensors")
    with pytest.raises(ValueError, match=r"has no .*renamed\.safetensors.*pip install 'silero-vad>=6\.2\.3,<7'"):
        VoiceActivityDetector()


def test_torch_keeps_its_threads():
    before = torch.get_num_threads()
    VoiceActivityDetector()
    assert torch.get_num_threads() == before
