import pickle

import numpy as np
import pytest
import soundfile

from modeling_mmemo.data.noise_recordings import NoiseRecordings


RATE = 16_000


@pytest.fixture
def folder(tmp_path, make_clip):
    """Recordings of 0.5 s and of 0.25 s at another sampling rate, and a file that is not audio."""
    soundfile.write(tmp_path / "a.wav", make_clip(0.5), RATE)
    soundfile.write(tmp_path / "b.ogg", np.stack([make_clip(0.25)] * 2, axis=1), RATE // 2)
    (tmp_path / "LICENSE").write_text("CC0")
    return tmp_path


@pytest.mark.parametrize("num_samples", [1, 3000, 8000, 40_000])
def test_stretch_has_the_requested_length_and_sound(folder, num_samples):
    recordings = NoiseRecordings(folder)

    for seed in range(20):
        stretch = recordings.draw(num_samples, RATE, np.random.default_rng(seed))
        assert (stretch.dtype, stretch.shape) == (np.float32, (num_samples,))
        assert np.abs(stretch).max() > 1e-3


def test_short_recordings_are_repeated(tmp_path, make_clip):
    soundfile.write(tmp_path / "short.wav", make_clip(0.1), RATE)

    stretch = NoiseRecordings(tmp_path).draw(8000, RATE, np.random.default_rng(0))

    np.testing.assert_array_equal(stretch[:1600], stretch[1600:3200])


def test_memory_is_bounded(folder):
    recordings, random = NoiseRecordings(folder, max_samples=9000), np.random.default_rng(0)

    for _ in range(10):
        recordings.draw(100, RATE, random)
        assert 0 < recordings.num_samples <= 9000


def test_loaded_recordings_are_not_sent_to_workers(folder):
    recordings = NoiseRecordings(folder)
    recordings.draw(100, RATE, np.random.default_rng(0))

    copied = pickle.loads(pickle.dumps(recordings))

    assert (recordings.num_samples > 0, copied.num_samples, copied.paths) == (True, 0, recordings.paths)


def test_long_recordings_are_used_for_one_minute(tmp_path, make_clip):
    soundfile.write(tmp_path / "long.wav", np.tile(make_clip(1.0)[:8000], 130), 8000)

    recordings = NoiseRecordings(tmp_path)
    recordings.draw(100, 8000, np.random.default_rng(0))

    assert recordings.num_samples == 60 * 8000


def test_silent_recordings_raise(tmp_path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(RATE), RATE)

    with pytest.raises(ValueError, match=r"zeros.wav in noise_dir is silent"):
        NoiseRecordings(tmp_path).draw(100, RATE, np.random.default_rng(0))


def test_a_folder_without_recordings_raises(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")

    with pytest.raises(ValueError, match=f"noise_dir='{tmp_path}' contains no audio files; name a folder"):
        NoiseRecordings(tmp_path)
