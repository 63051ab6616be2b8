"""Clips are cut to their speech, so that what surrounds it does not matter."""

import numpy as np
import pytest
import soundfile

from mmemo.audio import speech as module
from mmemo.audio.speech import cut_to_speech, find_speech


RATE = 16_000


@pytest.fixture(scope="module")
def clip(example_audio):
    samples, _ = soundfile.read(example_audio, dtype="float32")
    return samples


def silence(seconds, rate=RATE):
    return np.zeros(round(seconds * rate), np.float32)


def test_speech_is_found_and_tones_and_noise_are_not(clip):
    time = np.arange(3 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * tone * time) for tone in (220.0, 277.2, 329.6)) / 6
    beat = chord * (np.sin(2 * np.pi * 2 * time) > 0)
    noise = np.random.default_rng(0).normal(scale=0.1, size=len(time))
    ((start, end),) = find_speech(clip)
    assert 0 <= start < end <= len(clip) + RATE
    for sound in (np.sin(2 * np.pi * 440 * time) / 2, chord, beat, noise, 0 * time, 0 * time + 0.3, noise[:100]):
        assert find_speech(sound.astype(np.float32)) == []
        assert cut_to_speech(sound.astype(np.float32), RATE, 0.4) is None


@pytest.mark.parametrize("before, after", [(10.0, 0.0), (0.0, 10.0), (0.01, 3.0)])
def test_zeros_around_a_clip_do_not_change_its_cut(clip, before, after):
    expected = cut_to_speech(clip, RATE, 0.4).samples
    found = cut_to_speech(np.concatenate([silence(before), clip, silence(after)]), RATE, 0.4).samples
    np.testing.assert_array_equal(found, expected)


def test_faint_noise_moves_a_cut_by_a_few_frames_at_most(clip):
    noise = np.random.default_rng(0).normal(scale=1e-3, size=10 * RATE).astype(np.float32)
    expected = len(cut_to_speech(clip, RATE, 0.4).samples)
    for padded in ([noise, clip], [clip, noise]):
        assert abs(len(cut_to_speech(np.concatenate(padded), RATE, 0.4).samples) - expected) <= 4 * 512


def test_the_padding_is_sound_of_the_clip_next_to_the_speech_and_zeros_beyond(clip):
    padded = np.concatenate([silence(0.5) + 0.001, clip, silence(0.5) + 0.001])
    ((start, end),) = find_speech(padded)

    cut = cut_to_speech(padded, RATE, 0.4)

    margin, zeros = round(0.1 * RATE), round(0.3 * RATE)
    np.testing.assert_array_equal(cut.samples[zeros:-zeros], padded[start - margin : end + margin])
    assert not cut.samples[:zeros].any() and not cut.samples[-zeros:].any()
    np.testing.assert_array_equal(
        cut_to_speech(padded, RATE, 0.05).samples, padded[start - margin // 2 : end + margin // 2]
    )
    np.testing.assert_array_equal(cut_to_speech(padded, RATE, 0).samples, padded[start:end])


def test_long_pauses_are_shortened_to_a_second_and_short_ones_are_kept(clip):
    ((start, end),) = find_speech(clip)
    voice = clip[start:end]
    short, long = (cut_to_speech(np.concatenate([voice, silence(pause), voice]), RATE, 0.4) for pause in (0.8, 8.0))
    assert len(short.clip_seconds) == 2
    assert len(long.clip_seconds) == 4
    assert len(long.samples) == pytest.approx(len(short.samples) + 0.2 * RATE, abs=4 * 512)


def test_times_move_with_the_speech(clip):
    seconds = len(clip) / RATE
    cut = cut_to_speech(np.concatenate([silence(5), clip, silence(8), clip]), RATE, 0.4)
    begin = cut.to_cut(5.0)
    assert 0 <= begin <= 0.4
    assert cut.to_cut(5.0 + seconds / 2) - begin == pytest.approx(seconds / 2, abs=0.2)
    # Times in what was cut out move to the next sound that was kept.
    assert cut.to_cut(1.0) == cut.to_cut(0.0) == begin
    assert begin < cut.to_cut(5.0 + seconds + 4.0) < cut.to_cut(13.0 + seconds + seconds / 2)
    assert cut.to_cut(1e9) <= len(cut.samples) / RATE


def test_other_sampling_rates(clip):
    import soxr

    low = soxr.resample(clip, RATE, 8_000)
    cut, expected = cut_to_speech(low, 8_000, 0.4), cut_to_speech(clip, RATE, 0.4)
    assert len(cut.samples) / 8_000 == pytest.approx(len(expected.samples) / RATE, abs=0.1)


def test_an_onset_that_is_not_found_again_is_kept(clip, monkeypatch):
    voiced = iter([np.array([40, 41, 42, 43]), np.array([], int), np.array([40, 41, 42, 43]), np.array([5])])
    monkeypatch.setattr(module, "_voiced_frames", lambda samples, silent_frames=0: next(voiced))
    first, second = find_speech(clip), find_speech(clip)
    assert first[0][1] == second[0][1]
    assert first[0][0] < first[0][1] and second[0][0] < second[0][1]
