"""Voice activity: as the package that ships the weights has it, chunk by chunk, and blind to what is no voice."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from mmemo.audio import voice_activity
from mmemo.audio.voice_activity import FRAME_SAMPLES, VoiceActivityDetector, has_voice
from modeling_mmemo import load_audio


@pytest.fixture(scope="module")
def speech(example_audio):
    return load_audio(example_audio)


def test_agrees_with_the_packages_own_network(speech):
    # The safetensors and the TorchScript that the package ships are two trainings of one network.
    own = torch.jit.load(Path(find_spec("silero_vad").submodule_search_locations[0]) / "data" / "silero_vad.jit")
    frames = torch.tensor(speech)[: len(speech) // FRAME_SAMPLES * FRAME_SAMPLES].unflatten(0, (-1, 1, FRAME_SAMPLES))
    with torch.no_grad():
        expected = np.array([own(frame, 16_000).item() for frame in frames])
    found = VoiceActivityDetector()(speech)
    assert len(found) == len(expected)
    assert np.corrcoef(found, expected)[0, 1] > 0.97
    assert np.mean((found >= 0.5) == (expected >= 0.5)) > 0.95


@pytest.mark.parametrize("size", [1, 511, 512, 513, 5_000])
def test_chunks_of_any_size_give_what_the_whole_gives(speech, size):
    speech = speech[: 20 * FRAME_SAMPLES + 100]
    detector = VoiceActivityDetector()
    chunks = [detector(speech[start : start + size]) for start in range(0, len(speech), size)]
    whole = VoiceActivityDetector()(speech)
    assert len(whole) == 20
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-5)


def test_reset_forgets(speech):
    detector = VoiceActivityDetector()
    first = detector(speech)
    detector.reset()
    np.testing.assert_array_equal(detector(speech), first)


def test_speech_is_a_voice_and_what_is_none_is_not(speech):
    time = np.arange(3 * 16_000) / 16_000
    chord = sum(np.sin(2 * np.pi * tone * time) for tone in (220.0, 277.2, 329.6)) / 6
    beat = chord * (np.sin(2 * np.pi * 2 * time) > 0)
    noise = np.random.default_rng(0).normal(scale=0.1, size=len(time))
    assert has_voice(speech)
    for sound in (np.sin(2 * np.pi * 440 * time) / 2, chord, beat, noise, 0 * time, noise[:100]):
        assert not has_voice(sound.astype(np.float32))


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr(voice_activity, "find_spec", lambda name: None)
    voice_activity._load_network.cache_clear()
    with pytest.raises(ValueError, match="pip install silero-vad"):
        VoiceActivityDetector()


def test_does_not_take_torchs_threads():
    before = torch.get_num_threads()
    VoiceActivityDetector()
    assert torch.get_num_threads() == before
