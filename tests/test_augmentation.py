import numpy as np
import pytest
import soundfile
import torch
from transformers import HfArgumentParser

from mmemo.video.face import FaceSequence
from modeling_mmemo.data.augmentation import (
    NOISE_RMS,
    Augmentation,
    add_noise,
    change_speed,
    crop,
    equalize,
    gain,
    make_noise,
    mix_noise,
    reverberate,
    spec_augment,
    surround_with_silence,
    telephone,
)


RATE = 16_000
EVERYTHING = Augmentation(
    speed_probability=1,
    crop_probability=1,
    crop_s=[0.2, 0.3],
    silence_probability=1,
    room_probability=1,
    noise_probability=1,
    equalizer_probability=1,
    gain_probability=1,
    telephone_probability=1,
    spec_augment_probability=1,
)


@pytest.fixture
def clip(make_clip):
    """A read-only clip of half a second."""
    samples = make_clip(0.5)
    samples.flags.writeable = False
    return samples


@pytest.fixture
def batch():
    """Log-mel frames of 40, 25 and 0 real frames and their mask; the padding is NaN."""
    mask = (torch.arange(40) < torch.tensor([[40], [25], [0]])).long()
    features = torch.randn(3, 10, 40, generator=torch.Generator().manual_seed(0))
    return features.masked_fill(mask[:, None] == 0, torch.nan), mask


def tone(hertz, seconds=1.0):
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def power(samples):
    return np.mean(np.square(samples, dtype=np.float64))


def level_db(samples):
    return 10 * np.log10(power(samples))


def band_power(samples, lowest, highest):
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return spectrum[(lowest <= hertz) & (hertz < highest)].sum()


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("color", ["white", "pink"])
@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 5.0, 30.0])
def test_noise_has_the_requested_snr(clip, snr_db, color):
    noisy = add_noise(clip, snr_db, rng(), color)
    assert noisy.dtype == np.float32
    assert level_db(clip) - level_db(noisy.astype(np.float64) - clip) == pytest.approx(snr_db, abs=1e-3)


@pytest.mark.parametrize("color", ["white", "pink"])
@pytest.mark.parametrize("num_samples", [1, 2, 4801])
def test_silence_stays_silent_under_noise(num_samples, color):
    assert not add_noise(np.zeros(num_samples, np.float32), 5.0, rng(), color).any()


@pytest.mark.parametrize(("color", "octaves"), [("white", 2.0), ("pink", 1.0)])
def test_noise_has_its_color(color, octaves):
    quiet = tone(100, seconds=20)
    noise = add_noise(quiet, 0.0, rng(), color) - quiet
    for hertz in (500, 1000, 2000):
        ratio = band_power(noise, 2 * hertz, 4 * hertz) / band_power(noise, hertz, 2 * hertz)
        assert ratio == pytest.approx(octaves, rel=0.1)


@pytest.mark.parametrize("color", ["white", "pink"])
@pytest.mark.parametrize("num_samples", [1, 2, 4801])
def test_noise_has_its_level(num_samples, color):
    noise = make_noise(num_samples, rng(), color)

    assert (noise.dtype, noise.shape) == (np.float32, (num_samples,))
    assert level_db(noise) == pytest.approx(20 * np.log10(NOISE_RMS), abs=1e-3)


def test_gain_is_in_decibels(clip):
    louder = gain(clip, 6.0)
    assert louder.dtype == np.float32
    assert level_db(louder) - level_db(clip) == pytest.approx(6.0, abs=1e-4)
    np.testing.assert_allclose(gain(np.array([0.5, -1.0], np.float32), -20.0), [0.05, -0.1], rtol=1e-6)


def test_equalizer_gains_by_frequency():
    """Slaney's mel scale is linear to 1 kHz, which is 15 mel, and 8 kHz are 45.2 mel: 15.08 of them are 1005.5 Hz."""
    gains_db = [-6.0, 3.0, 8.0, 0.0]
    for hertz, db in {1005.5: 3.0, 502.75: -1.5, 20.0: -5.8}.items():
        colored = equalize(tone(hertz), RATE, gains_db)
        assert colored.dtype == np.float32 and len(colored) == RATE
        assert level_db(colored) - level_db(tone(hertz)) == pytest.approx(db, abs=0.1)


def test_equalizer_has_no_delay():
    click = np.zeros(4801, np.float32)
    click[2400] = 1
    assert np.abs(equalize(click, RATE, [-8, 8, -8, 8, -8, 8])).argmax() == 2400
    np.testing.assert_allclose(equalize(click, RATE, [6.0, 6.0]), gain(click, 6.0), atol=1e-6)
    assert equalize(np.ones(1, np.float32), RATE, [0.0, 0.0]).shape == (1,)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 1.25])
def test_speed_changes_length_and_pitch_together(factor):
    faster = change_speed(tone(440), RATE, factor)
    assert faster.dtype == np.float32
    assert len(faster) == pytest.approx(RATE / factor, abs=1)
    peak = np.abs(np.fft.rfft(faster * np.hanning(len(faster)), n=8 * RATE)).argmax() / 8
    assert peak == pytest.approx(440 * factor, abs=0.5)


def test_telephone_removes_everything_out_of_its_band():
    kept = telephone(tone(1000), RATE)
    assert kept.dtype == np.float32
    assert level_db(kept) == pytest.approx(level_db(tone(1000)), abs=0.2)
    assert band_power(kept, 990, 1010) > 0.99 * band_power(kept, 0, RATE)
    for hertz in (50, 6000):
        assert power(telephone(tone(hertz), RATE)) < 1e-4 * power(tone(hertz))


def test_telephone_has_the_levels_of_mu_law():
    fading = (np.geomspace(3, 1e-4, 40_000) * rng().standard_normal(40_000)).astype(np.float32)
    levels = np.unique(telephone(fading, sampling_rate=8000))  # at its own rate nothing comes after the quantization
    expected = np.sign(np.arange(-127, 128)) * (256 ** (np.abs(np.arange(-127, 128)) / 127) - 1) / 255
    np.testing.assert_allclose(levels, expected, atol=1e-6)


@pytest.mark.parametrize("sampling_rate", [6000, 8000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("num_samples", [1, 4799, 4801])
def test_telephone_keeps_the_number_of_samples(num_samples, sampling_rate):
    assert telephone(np.ones(num_samples, np.float32), sampling_rate).shape == (num_samples,)


def test_telephone_clips_at_full_scale():
    assert level_db(telephone(gain(tone(1000), 40.0), RATE)) == pytest.approx(0, abs=1.0)


def test_spec_augment_replaces_real_frames_by_their_mean(batch):
    features, mask = batch
    augmented = spec_augment(features, mask, rng())
    real = (mask == 1)[:, None].expand_as(features)
    assert augmented[~real].isnan().all()
    for row in (0, 1):
        before, after = features[row][real[row]], augmented[row][real[row]]
        changed = before != after
        assert 0 < changed.sum() < changed.numel()
        torch.testing.assert_close(after[changed], before.mean().expand_as(after[changed]))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_spec_augment_spans_are_no_wider_than_their_share(batch, share):
    features, mask = batch
    widest = torch.zeros(2, 2, dtype=torch.long)
    for seed in range(200):
        in_time = spec_augment(features, mask, rng(seed), 1, share, 0)[:2] != features[:2]
        in_frequency = spec_augment(features, mask, rng(seed), 0, 1.0, 1, share)[:2] != features[:2]
        real = mask[:2, None] == 1
        times, bands = (in_time & real).any(dim=1), (in_frequency & real).any(dim=2)
        assert torch.equal(in_time & real, (times[:, None] & real).expand_as(in_time))
        assert torch.equal(in_frequency & real, bands[:, :, None] & real)
        for spans in (times, bands):
            assert (spans.int().diff(dim=1) == 1).sum(dim=1).max() <= 1  # one span, in one piece
        widest = torch.maximum(widest, torch.stack([times.sum(dim=1), bands.sum(dim=1)]))
    assert widest.tolist() == [[int(40 * share), int(25 * share)], [int(10 * share)] * 2]


def test_nothing_changes_by_default(clip, batch):
    off = Augmentation()
    assert off.augment_audio(clip, RATE, rng()) is clip
    torch.testing.assert_close(off.augment_features(*batch, rng()), batch[0], rtol=0, atol=0, equal_nan=True)


def test_a_seed_reproduces_everything(clip, batch):
    audio = [EVERYTHING.augment_audio(clip, RATE, rng(seed)) for seed in (0, 0, 1)]
    assert audio[0].dtype == np.float32
    assert np.array_equal(audio[0], audio[1])
    assert not np.array_equal(audio[0], audio[2])
    features = [EVERYTHING.augment_features(*batch, rng(seed)).nan_to_num() for seed in (0, 0, 1)]
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


@pytest.mark.parametrize("name", ["speed", "crop", "silence", "room", "noise", "equalizer", "gain", "telephone"])
def test_augmentation_probabilities_per_clip(make_clip, name):
    augmentation = Augmentation(**{f"{name}_probability": 0.3}, crop_s=[0.04, 0.05])
    clip, random = make_clip(0.1), rng()
    changed = [augmentation.augment_audio(clip, RATE, random) is not clip for _ in range(300)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.08)


def test_spec_augment_probability_per_clip():
    features, mask = torch.randn(400, 10, 20), torch.ones(400, 20)
    augmentation = Augmentation(spec_augment_probability=0.3, time_share=1.0, time_masks=5)
    changed = (augmentation.augment_features(features, mask, rng()) != features).any(dim=2).any(dim=1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize(
    "options",
    [
        {"time_masks": 0, "frequency_masks": 0},
        {"time_masks": 0, "frequency_share": 0.0},
        {"time_share": 0.0, "frequency_masks": 0},
    ],
)
def test_spec_augment_without_spans_changes_nothing(batch, options):
    augmented = Augmentation(spec_augment_probability=1, **options).augment_features(*batch, rng())
    torch.testing.assert_close(augmented, batch[0], rtol=0, atol=0, equal_nan=True)


def test_noise_is_drawn_in_both_colors():
    quiet, random = tone(100), rng()
    noisy = Augmentation(noise_probability=1)
    noises = [noisy.augment_audio(quiet, RATE, random) - quiet for _ in range(10)]
    ratios = [band_power(noise, 2000, 4000) / band_power(noise, 1000, 2000) for noise in noises]
    assert min(ratios) == pytest.approx(1, abs=0.3) and max(ratios) == pytest.approx(2, abs=0.3)


def test_values_cover_their_ranges(clip):
    noisy, random = Augmentation(noise_probability=1, snr_db=[10, 20]), rng()
    ratios = [level_db(clip) - level_db(noisy.augment_audio(clip, RATE, random) - clip) for _ in range(100)]
    assert 10 - 1e-3 < min(ratios) < 11 and 19 < max(ratios) < 20 + 1e-3
    louder = Augmentation(gain_probability=1, gain_db=(-3, 6))
    gains = [level_db(louder.augment_audio(clip, RATE, random)) - level_db(clip) for _ in range(100)]
    assert -3 - 1e-3 < min(gains) < -2.5 and 5.5 < max(gains) < 6 + 1e-3
    colored = Augmentation(equalizer_probability=1, equalizer_db=(5, 5))
    assert level_db(colored.augment_audio(clip, RATE, random)) - level_db(clip) == pytest.approx(5, abs=0.1)
    faster = Augmentation(speed_probability=1, speed=(0.8, 1.25))
    lengths = [len(faster.augment_audio(clip, RATE, random)) / len(clip) for _ in range(100)]
    assert 0.8 <= min(lengths) < 0.83 and 1.2 < max(lengths) <= 1.25 + 1e-3


def test_telephone_is_applied_last(clip):
    """A gain before the telephone changes its clipping; after it, it would only scale."""
    both = Augmentation(gain_probability=1, gain_db=(20, 20), telephone_probability=1).augment_audio(clip, RATE, rng())
    np.testing.assert_array_equal(both, telephone(gain(clip, 20.0), RATE))


def test_flags_make_an_augmentation():
    flags = ["--noise_probability", "0.5", "--snr_db", "0", "20", "--gain_db", "-3", "3", "--time_masks", "1"]
    (augmentation,) = HfArgumentParser(Augmentation).parse_args_into_dataclasses(flags)
    assert augmentation == Augmentation(noise_probability=0.5, snr_db=[0, 20], gain_db=[-3, 3], time_masks=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_probability": 1.5}, r"noise_probability=1.5 must be between 0 and 1\."),
        ({"telephone_probability": float("nan")}, "telephone_probability=nan"),
        ({"snr_db": [30, 5]}, r"snr_db=\[30, 5\] must be two numbers, .*between -100.0 and 100.0 dB"),
        ({"snr_db": 20.0}, "snr_db=20.0 must be two numbers"),
        ({"equalizer_db": [8, -8]}, r"equalizer_db=\[8, -8\]"),
        ({"gain_db": [0, float("inf")]}, r"gain_db=\[0, inf\]"),
        ({"speed": [0, 1]}, r"speed=\[0, 1\] .*between 0.5 and 2.0"),
        ({"crop_s": [0.01, 2]}, r"crop_s=\[0.01, 2\] .*between 0.04 and 60.0 s"),
        ({"silence_s": [-1, 2]}, r"silence_s=\[-1, 2\] .*between 0.0 and 60.0 s"),
        ({"reverberation_s": [0, 1]}, r"reverberation_s=\[0, 1\] .*between 0.01 and 10.0 s"),
        ({"direct_db": [12, 0]}, r"direct_db=\[12, 0\]"),
        ({"recorded_noise_share": 2}, "recorded_noise_share=2 must be between 0 and 1"),
        ({"noise_dir": "/missing"}, "noise_dir='/missing' contains no audio files; name a folder"),
        ({"time_share": -0.1}, "time_share=-0.1 must be between 0 and 1"),
        ({"frequency_masks": -1}, "frequency_masks=-1 must be at least 0"),
    ],
)
def test_invalid_augmentations_raise(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda clip: add_noise(clip, float("inf"), rng()), "snr_db=inf must be between"),
        (lambda clip: add_noise(clip, 5.0, rng(), "brown"), r"'brown' is unknown; choose one of \('white', 'pink'\)"),
        (lambda clip: add_noise((clip * 32767).astype(np.int16), 5.0, rng()), r"int16 of shape \(8000,\).*float32"),
        (lambda clip: gain(clip[None], 3.0), r"float32 of shape \(1, 8000\)"),
        (lambda clip: gain(clip, float("nan")), "db=nan"),
        (lambda clip: gain([0.5, 0.5], 3.0), "audio is list"),
        (lambda clip: mix_noise(clip, clip[1:], 5.0), "noise of 7999 samples, .*cannot be added to audio of 8000"),
        (lambda clip: mix_noise(clip, 0 * clip, 5.0), "of which 0 are not 0, cannot be added"),
        (lambda clip: mix_noise(clip, clip[None], 5.0), r"noise is float32 of shape \(1, 8000\)"),
        (lambda clip: reverberate(clip, RATE, 0.0, 5.0, rng()), "reverberation_s=0.0 must be between 0.01 and 10.0 s"),
        (lambda clip: crop(clip, RATE, 0.0, rng()), "seconds=0.0 must be between 0.04 and 60.0 s"),
        (lambda clip: surround_with_silence(clip, RATE, 0.0, -1.0, -60.0, rng()), "after_s=-1.0 must be between"),
        (lambda clip: telephone(clip[:0], RATE), r"shape \(0,\); .*at least one sample"),
        (lambda clip: telephone(clip, 16), r"sampling_rate=16 must be .* Hz \(not kHz\)"),
        (lambda clip: equalize(clip, RATE, [0.0]), r"gains_db=\[0.0\] must have gains at two or more frequencies"),
        (lambda clip: equalize(clip, RATE, [0.0, 200.0]), "gains_db=200.0 must be between -100.0 and 100.0 dB"),
        (lambda clip: equalize(clip, 16, [0.0, 0.0]), r"sampling_rate=16 must be .* Hz \(not kHz\)"),
        (lambda clip: change_speed(clip, RATE, 0.0), "factor=0.0 must be between 0.5 and 2.0"),
    ],
)
def test_invalid_calls_raise(clip, call, message):
    with pytest.raises(ValueError, match=message):
        call(clip)


def test_spec_augment_raises_for_shapes_that_do_not_match(batch):
    features, mask = batch
    with pytest.raises(ValueError, match=r"\(3, 10, 40\) and mask of shape \(3, 10\) do not match"):
        spec_augment(features, mask[:, :10], rng())
    with pytest.raises(ValueError, match=r"frequency_share=2\.0"):
        spec_augment(features, mask, rng(), frequency_share=2.0)


@pytest.mark.parametrize("reverberation_s", [0.2, 0.6])
def test_room_decays_by_60_db_in_its_reverberation_time(reverberation_s):
    """The response to a click is the direct sound and a tail; the slope of its level is that of the definition."""
    click = np.zeros(RATE, np.float32)
    click[1000] = 0.5

    response = reverberate(click, RATE, reverberation_s, 3.0, rng())

    assert (response.dtype, response.shape) == (np.float32, click.shape)
    assert response[1000] == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(response[:1000], 0, atol=1e-6)
    tail = response[1001:]
    assert 10 * np.log10(0.5**2 / np.sum(tail.astype(np.float64) ** 2)) == pytest.approx(3.0, abs=0.01)
    half = round(reverberation_s * RATE / 4)
    first, second = (level_db(tail[start : start + half]) for start in (0, 2 * half))
    assert first - second == pytest.approx(30, abs=1.5)
    np.testing.assert_allclose(tail[4 * half + 1 :], 0, atol=1e-6)


def test_room_neither_delays_nor_shortens(clip):
    room = reverberate(clip, RATE, 0.4, 6.0, rng())

    assert len(room) == len(clip)
    lags = np.correlate(room, clip[100:-100].copy(), "valid")
    assert lags.argmax() == 100
    assert not np.array_equal(room, reverberate(clip, RATE, 0.4, 6.0, rng(1)))


def test_crop_is_a_stretch_of_the_clip():
    ramp = np.linspace(0.5, 1, 2 * RATE, dtype=np.float32)
    starts = []
    for seed in range(50):
        stretch = crop(ramp, RATE, 0.5, rng(seed))
        assert len(stretch) == RATE // 2
        starts.append(int(np.abs(ramp - stretch[0]).argmin()))
        np.testing.assert_array_equal(stretch, ramp[starts[-1] :][: RATE // 2])
    assert min(starts) < 0.2 * RATE and max(starts) > 1.3 * RATE


def test_clips_are_not_cropped_to_pauses_or_below_the_range(clip):
    assert crop(clip, RATE, 0.5, rng()) is clip
    mostly_pause = np.concatenate([1e-3 * tone(100, 0.3), tone(100, 0.1)])
    for seed in range(20):
        cropped = crop(mostly_pause, RATE, 0.2, rng(seed))
        assert cropped is mostly_pause or level_db(cropped) > level_db(mostly_pause) - 20


def test_silence_surrounds_the_clip(clip):
    surrounded = surround_with_silence(clip, RATE, 0.25, 0.5, -60.0, rng())

    assert surrounded.dtype == np.float32
    np.testing.assert_array_equal(surrounded[RATE // 4 : -RATE // 2], clip)
    for part in (surrounded[: RATE // 4], surrounded[-RATE // 2 :]):
        assert level_db(part) == pytest.approx(level_db(clip) - 60, abs=0.3)


def test_timed_clips_keep_their_length(clip):
    augmentation = Augmentation(crop_probability=1, crop_s=[0.1, 0.2], silence_probability=1)

    assert augmentation.augment_audio(clip, RATE, rng(), is_timed=True) is clip
    assert len(augmentation.augment_audio(clip, RATE, rng())) > 0.4 * RATE + 0.1 * RATE


@pytest.fixture
def noise_dir(tmp_path):
    """A folder with a tone of 1 kHz, padded with zeros, and one of 3 kHz in a subfolder."""
    (tmp_path / "more").mkdir()
    padded = np.concatenate([np.zeros(RATE, np.float32), tone(1000, 0.2), np.zeros(2 * RATE, np.float32)])
    soundfile.write(tmp_path / "one.wav", padded, RATE)
    soundfile.write(tmp_path / "more" / "two.flac", tone(3000, 0.2), RATE)
    return tmp_path


def test_recorded_noise_has_the_drawn_snr(noise_dir, clip):
    noisy = Augmentation(noise_probability=1, noise_dir=str(noise_dir), recorded_noise_share=1, snr_db=[7, 7])
    found = set()
    for seed in range(12):
        noise = noisy.augment_audio(clip, RATE, rng(seed)).astype(np.float64) - clip
        assert level_db(clip) - level_db(noise) == pytest.approx(7, abs=0.01)
        found.add(int(band_power(noise, 2500, 3500) > band_power(noise, 500, 1500)))
    assert found == {0, 1}


def test_recorded_and_synthetic_noise_have_their_shares(noise_dir):
    noisy, random = Augmentation(noise_probability=1, noise_dir=str(noise_dir)), rng()
    quiet = tone(100, 0.1)
    noises = [noisy.augment_audio(quiet, RATE, random) - quiet for _ in range(300)]
    # Of the recordings nothing is above 5 kHz; the pure tones of the shorter stretches have a little.
    recorded = [band_power(noise, 5000, 8001) < 0.02 * band_power(noise, 500, 3500) for noise in noises]
    assert np.mean(recorded) == pytest.approx(0.7, abs=0.08)


def test_a_seed_reproduces_recorded_noise_in_another_process(noise_dir, clip):
    options = {"noise_probability": 1, "noise_dir": str(noise_dir), "recorded_noise_share": 1}
    one, other = Augmentation(**options), Augmentation(**options)
    one.augment_audio(clip, RATE, rng(5))

    np.testing.assert_array_equal(one.augment_audio(clip, RATE, rng()), other.augment_audio(clip, RATE, rng()))
    assert one == other
    assert one.settings() == other.settings()


def test_settings_name_the_recordings(noise_dir):
    options = {"noise_probability": 1, "noise_dir": str(noise_dir)}
    before = Augmentation(**options).settings()
    soundfile.write(noise_dir / "three.wav", tone(100), RATE)

    assert Augmentation(**options).settings() != before
    assert before.keys() >= {"noise_dir", "recorded_noise_share", "crop_s", "recordings"}


def test_noise_is_added_after_the_room(clip):
    both = Augmentation(room_probability=1, noise_probability=1, reverberation_s=[0.3, 0.3], direct_db=[5, 5])
    random = rng()
    random.random(), random.random()
    random.uniform(0, 1), random.uniform(0, 1)
    room = reverberate(clip, RATE, 0.3, 5.0, random)
    random.random()
    expected = add_noise(room, random.uniform(5, 30), random, random.choice(["white", "pink"]))

    np.testing.assert_allclose(both.augment_audio(clip, RATE, rng()), expected, atol=1e-6)


def test_faces_are_mirrored_with_a_probability():
    face = FaceSequence(
        times=np.zeros((1, 2), np.float32),
        is_present=np.ones(1, bool),
        blendshapes=np.linspace(0, 1, 52, dtype=np.float32)[None],
        boxes=np.float32([[0.1, 0.2, 0.4, 0.8]]),
        crops=None,
        duration=0.2,
    )
    rng = np.random.default_rng(0)
    mirrored = [Augmentation(mirror_probability=0.25).augment_face(face, rng) is not face for _ in range(400)]
    assert np.mean(mirrored) == pytest.approx(0.25, abs=0.06)
    state = rng.bit_generator.state
    assert Augmentation().augment_face(face, rng) is face
    assert rng.bit_generator.state == state, "runs without mirroring stay what they were"
