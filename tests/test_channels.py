"""Channels with different voices are told from stereo recordings of one voice."""

import tracemalloc

import numpy as np
import pytest
import soundfile

from mmemo.audio import channels
from mmemo.audio.loading import AudioBlocks


@pytest.fixture(scope="module")
def voices(example_audio):
    """Two utterances of different speakers, of the same length."""
    first, second = (
        soundfile.read(path, dtype="float32")[0] for path in sorted(example_audio.parent.glob("*.flac"))[:2]
    )
    length = min(len(first), len(second))
    return first[:length], second[:length]


def channels_differ(audio):
    return channels.channels_differ(AudioBlocks(audio))


def noise(length, level, seed=0):
    return level * np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def test_two_voices_differ(voices):
    first, second = voices
    silent = np.zeros_like(first)

    in_turn = np.stack([np.concatenate([first, silent]), np.concatenate([silent, second])])
    assert channels_differ(np.stack([first, second]))
    assert channels_differ(in_turn)
    assert channels_differ(in_turn + noise(in_turn.shape[1], 0.01))
    assert channels_differ(in_turn + 0.3 * in_turn[::-1])  # crosstalk of -10 dB
    three = np.stack([silent, first, second])
    assert channels_differ({"array": three, "sampling_rate": 16_000})


def test_one_voice_does_not(voices):
    voice, _ = voices
    echoes = np.random.default_rng(0).standard_normal((2, 6_400)).astype(np.float32)
    echoes *= 0.1 * np.exp(-np.arange(6_400) / 1_500, dtype=np.float32)
    echoes[:, 0] = 1

    assert not channels_differ(voice)
    assert not channels_differ(np.stack([voice, voice]))
    assert not channels_differ(np.stack([voice, np.roll(voice, 80) / 2]))  # the second microphone is 1.7 m farther
    assert not channels_differ(np.stack([np.convolve(voice, echo)[: len(voice)] for echo in echoes]))
    assert not channels_differ(np.stack([voice, np.zeros_like(voice)]))
    assert not channels_differ(np.stack([voice, np.full_like(voice, 0.2)]))  # an offset
    assert not channels_differ(np.stack([voice, noise(len(voice), 1e-3)]))
    assert not channels_differ(np.zeros((2, 16_000)))
    assert not channels_differ(np.ones((2, 100)) / 2)  # shorter than a frame


def test_memory_does_not_depend_on_the_length(voices, tmp_path):
    voice, other = voices
    with soundfile.SoundFile(tmp_path / "call.wav", "w", 16_000, 2) as file:
        for _ in range(100):
            file.write(np.stack([voice, other], axis=1))
    assert (tmp_path / "call.wav").stat().st_size > 10_000_000

    tracemalloc.start()
    assert channels_differ(tmp_path / "call.wav")
    assert tracemalloc.get_traced_memory()[1] < 16_000_000
    tracemalloc.stop()
