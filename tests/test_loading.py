"""Audio loading in every form, as a whole and in blocks."""

import functools
import http.server
import io
import itertools
import math
import os
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import librosa
import numpy as np
import pytest
import soundfile
import torch

from mmemo.audio.loading import (
    AUDIO_SUFFIXES,
    MAX_BLOCK_SAMPLES,
    VIDEO_SUFFIXES,
    AudioBlocks,
    is_silent,
    load_audio,
)


RATE = 16_000
RNG = np.random.default_rng(0)
PCM = (RNG.normal(0, 0.1, 8000) * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
SAMPLES = PCM.astype(np.float32) / 2**15
# Low-frequency noise in two channels.
WALK = np.cumsum(RNG.normal(0, 0.01, (100_123, 2)), axis=0)
WALK = (WALK - WALK.mean(axis=0)) / np.abs(WALK).max() / 2
USUAL_CODINGS = {
    "WAV": {"PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW", "ALAW"},
    "FLAC": {"PCM_16", "PCM_24"},
    "OGG": {"VORBIS", "OPUS"},
    "MP3": {"MPEG_LAYER_III"},
}
BLOCK_SECONDS = (0.01, 0.5, 30.0)


def wav_bytes(samples, rate=RATE, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **{"format": "WAV", **kwargs})
    return file.getvalue()


def flac_of_frames(frames):
    """A FLAC of `PCM` whose header declares this number of frames, of 36 bits; 0 means unknown."""
    flac = bytearray(wav_bytes(PCM, format="FLAC"))
    flac[21] = flac[21] & 0xF0 | frames >> 32
    flac[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(flac)


def decoder(data, sample_rate):
    """A stand-in for a torchcodec `AudioDecoder`."""
    return SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(data), sample_rate=sample_rate)
    )


def join(recording):
    """Concatenates the blocks of a recording to shape `(channels, samples)`."""
    return np.concatenate(list(recording), axis=1)


def test_channels():
    stereo = np.stack([SAMPLES, SAMPLES[::-1]])
    np.testing.assert_array_equal(load_audio(stereo), stereo.mean(axis=0))
    np.testing.assert_array_equal(load_audio(stereo, channel=1), SAMPLES[::-1])
    np.testing.assert_array_equal(load_audio(wav_bytes(stereo.T), channel=1), SAMPLES[::-1])
    np.testing.assert_array_equal(join(AudioBlocks(stereo, block_seconds=0.3)), stereo)
    np.testing.assert_array_equal(join(AudioBlocks(wav_bytes(stereo.T), block_seconds=0.3)), stereo)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_resampling_is_librosas(rate):
    expected = librosa.resample(SAMPLES, orig_sr=rate, target_sr=RATE)
    np.testing.assert_array_equal(load_audio(SAMPLES, sampling_rate=rate), expected)
    np.testing.assert_array_equal(load_audio(wav_bytes(PCM, rate)), expected)
    np.testing.assert_array_equal(load_audio({"array": SAMPLES, "sampling_rate": rate}, sampling_rate=1), expected)
    np.testing.assert_array_equal(load_audio(decoder(SAMPLES[None], rate)), expected)


@pytest.mark.parametrize(
    "pcm", [PCM, PCM.astype(np.int32) << 16, ((PCM >> 8) + 128).astype(np.uint8)], ids=["int16", "int32", "uint8"]
)
def test_integer_pcm_is_scaled(pcm):
    expected = (PCM >> 8).astype(np.float32) / 2**7 if pcm.dtype == np.uint8 else SAMPLES
    np.testing.assert_array_equal(load_audio(pcm), expected)
    np.testing.assert_array_equal(join(AudioBlocks(pcm, block_seconds=0.3))[0], expected)


FORMS = {
    "path": lambda path: path,
    "str": str,
    "bytes": lambda path: path.read_bytes(),
    "flac bytes": lambda path: wav_bytes(PCM, format="FLAC"),
    "array": lambda path: SAMPLES,
    "float64": lambda path: SAMPLES.astype(np.float64),
    "one channel": lambda path: SAMPLES[None],
    "list": lambda path: SAMPLES.tolist(),
    "tensor": lambda path: torch.from_numpy(SAMPLES),
    "array dict": lambda path: {"array": SAMPLES, "sampling_rate": RATE, "path": None},
    "raw dict": lambda path: {"raw": SAMPLES, "sampling_rate": RATE},
    "undecoded bytes": lambda path: {"path": "elsewhere.wav", "bytes": path.read_bytes()},
    "undecoded path": lambda path: {"path": str(path), "bytes": None},
    "decoder": lambda path: decoder(SAMPLES[None], RATE),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form, tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_bytes(PCM))
    audio = FORMS[form](path)
    samples = load_audio(audio)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, SAMPLES)
    recording = AudioBlocks(audio, block_seconds=0.2)
    assert (recording.channels, recording.duration) == (1, 0.5)
    for _ in range(2):
        blocks = list(recording)
        assert [block.shape for block in blocks] == [(1, 3200), (1, 3200), (1, 1600)]
        assert {block.dtype for block in blocks} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(np.concatenate(blocks, axis=1)[0], SAMPLES)


def test_two_iterations_at_once_are_independent(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(wav_bytes(PCM))
    for audio in (path, path.read_bytes(), SAMPLES):
        recording = AudioBlocks(audio, block_seconds=0.2)
        for first, second in zip(recording, recording):
            np.testing.assert_array_equal(first, second)


def test_a_files_name_does_not_matter(tmp_path):
    for name in ("clip.raw", "clip.mp3", "clip"):
        (tmp_path / name).write_bytes(wav_bytes(PCM))
        np.testing.assert_array_equal(load_audio(tmp_path / name), SAMPLES)


# RAW and SD2 files do not contain their sampling rate.
@pytest.mark.parametrize("container", sorted(set(soundfile.available_formats()) - {"RAW", "SD2"}))
def test_blocks_equal_the_whole(container):
    rates = ((44_100, 2), (48_000, 2), (16_000, 1), (8_000, 1))
    tried = set()
    for coding, (rate, channels) in itertools.product(soundfile.available_subtypes(container), rates):
        try:
            samples = WALK[: 2 * rate, :channels] - WALK[: 2 * rate, :channels].mean(axis=0)
            data = wav_bytes(samples, rate, format=container, subtype=coding)
        except soundfile.LibsndfileError:
            continue  # not every coding supports every rate and stereo
        tried.add(coding)
        expected = load_audio(data)
        for block_seconds in BLOCK_SECONDS:
            recording = AudioBlocks(data, block_seconds=block_seconds)
            samples = join(recording)
            assert samples.shape == (channels, len(expected))
            assert recording.duration == pytest.approx(len(expected) / RATE, abs=1e-4)
            np.testing.assert_allclose(samples.mean(axis=0), expected, rtol=0, atol=1e-5)
    assert tried >= USUAL_CODINGS.get(container, set())
    assert tried


@pytest.mark.parametrize("rate", [1_000, 11_025, 22_050.5, 192_000, 1_000_000])
@pytest.mark.parametrize("length", [1, 2, 5, 20_000])
def test_blocks_of_any_rate_have_the_length_of_the_whole(rate, length):
    samples = WALK[:length].T if length > 1 else WALK[:1, :1]
    expected = librosa.resample(samples.mean(axis=0), orig_sr=rate, target_sr=RATE)
    for block_seconds in (1e-9, *BLOCK_SECONDS) if length < 10 else BLOCK_SECONDS:
        blocks = list(AudioBlocks(samples, rate, block_seconds=block_seconds))
        assert all(block.shape[1] for block in blocks)
        joined = np.concatenate(blocks, axis=1).mean(axis=0)
        assert joined.shape == expected.shape
        np.testing.assert_allclose(joined, expected, rtol=0, atol=1e-4)


def test_blocks_at_another_target_rate():
    samples = join(AudioBlocks(SAMPLES, target_sampling_rate=8_000, sampling_rate=RATE, block_seconds=0.1))
    np.testing.assert_allclose(samples[0], load_audio(SAMPLES, RATE, target_sampling_rate=8_000), rtol=0, atol=1e-4)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """URL of a loopback server for `tmp_path`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_url(server, tmp_path, temporary_folder):
    (tmp_path / "clip.wav").write_bytes(wav_bytes(PCM))
    np.testing.assert_array_equal(load_audio(f"{server}/clip.wav"), SAMPLES)
    assert not list(temporary_folder.iterdir())
    recording = AudioBlocks({"path": f"{server}/clip.wav"}, block_seconds=0.2)
    assert len(list(temporary_folder.iterdir())) == 1
    for _ in range(2):
        np.testing.assert_array_equal(join(recording)[0], SAMPLES)
    del recording
    assert not list(temporary_folder.iterdir())


@pytest.mark.parametrize("load", [load_audio, AudioBlocks])
def test_invalid_urls_raise(load, server, tmp_path, monkeypatch, temporary_folder):
    with pytest.raises(ValueError, match=r"none\.wav \(HTTP Error 404"):
        load(f"{server}/none.wav")
    (tmp_path / "junk.wav").write_bytes(b"junk" * 99)
    with pytest.raises(ValueError, match=r"http.*junk\.wav is not readable audio"):
        load(f"{server}/junk.wav")
    (tmp_path / "clip.wav").write_bytes(wav_bytes(PCM))
    monkeypatch.setattr(
        http.server.SimpleHTTPRequestHandler, "copyfile", lambda self, source, out: out.write(source.read(9000))
    )
    with pytest.raises(ValueError, match=r"Cannot read http.*clip\.wav \(.*7044"):
        load(f"{server}/clip.wav")
    assert not list(temporary_folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipe(tmp_path, temporary_folder):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for load in (load_audio, lambda path: join(AudioBlocks(path))[0]):
        writer = threading.Thread(target=pipe.write_bytes, args=(wav_bytes(PCM),))
        writer.start()
        np.testing.assert_array_equal(load(pipe), SAMPLES)
        writer.join()
    assert not list(temporary_folder.iterdir())


def test_a_streamed_wav_of_unknown_size_is_loaded_completely():
    streamed = bytearray(wav_bytes(PCM))
    streamed[4:8] = streamed[40:44] = b"\xff" * 4
    np.testing.assert_array_equal(load_audio(bytes(streamed)), SAMPLES)
    recording = AudioBlocks(bytes(streamed))
    assert recording.duration == 0.5
    np.testing.assert_array_equal(join(recording)[0], SAMPLES)


def with_data_size(data, size):
    """A file whose data chunk declares another size, as those of programs that cannot seek in their output."""
    place = data.index(b"data") + 4
    return data[:place] + size + data[place + len(size) :]


@pytest.mark.parametrize("coding", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_streamed_wav_of_size_0_is_loaded_completely(coding):
    data = wav_bytes(PCM, subtype=coding)
    streamed = with_data_size(data, bytes(4))
    for start in (streamed, streamed[:4] + bytes(4) + streamed[8:]):
        expected = load_audio(data)
        # libsndfile appends a chunk with the peak to floats, where it could be samples.
        np.testing.assert_array_equal(load_audio(start)[: len(expected)], expected)
        assert AudioBlocks(start).duration is None


def test_a_streamed_caf_is_loaded_completely():
    for size in (b"\xff" * 8, bytes(8)):
        streamed = with_data_size(wav_bytes(PCM, format="CAF", subtype="PCM_16"), size)
        np.testing.assert_array_equal(load_audio(streamed), SAMPLES)


def test_a_constant_offset_is_removed_and_silence_found_without_it():
    with_offset = SAMPLES + np.float32(0.3)
    np.testing.assert_allclose(load_audio(with_offset), SAMPLES - SAMPLES.mean(), rtol=0, atol=1e-6)
    resampled, expected = load_audio(with_offset, 8_000), load_audio(SAMPLES, 8_000)
    np.testing.assert_allclose(resampled[200:-200], expected[200:-200], rtol=0, atol=1e-3)
    small = SAMPLES + np.float32(0.005)
    np.testing.assert_array_equal(load_audio(small), small)
    assert is_silent(np.full(100, -0.5, np.float32)) and is_silent(np.zeros(0, np.float32))
    assert not is_silent(with_offset)


def test_suffixes_are_those_of_folders():
    assert {".wav", ".m4a", ".amr", ".wma"} < AUDIO_SUFFIXES
    assert {".mp4", ".mov", ".webm", ".mkv"} < VIDEO_SUFFIXES
    assert not AUDIO_SUFFIXES & VIDEO_SUFFIXES


def test_a_flac_of_unknown_length_is_loaded_completely():
    np.testing.assert_array_equal(load_audio(flac_of_frames(0)), SAMPLES)
    recording = AudioBlocks(flac_of_frames(0), block_seconds=0.1)
    assert recording.duration is None
    np.testing.assert_array_equal(join(recording)[0], SAMPLES)


def failing_decoder():
    def get_all_samples():
        raise RuntimeError("no such stream")

    return SimpleNamespace(get_all_samples=get_all_samples)


WITH_NAN = np.where(np.arange(8000) == 5, np.nan, SAMPLES)
ERRORS = {
    "missing file": ("nowhere/a.wav", {}, r"Cannot read nowhere/a\.wav \(.*No such file.*check the path"),
    "folder": (Path(__file__).parent, {}, "Cannot read .*directory"),
    "long string": ("x" * 100_000, {}, "Cannot read xxx.*check the path"),
    "corrupt": (b"RIFF" + bytes(100), {}, "the audio file is not readable audio .* Convert it"),
    "corrupt, named": ({"path": "a.wav", "bytes": b"junk" * 99}, {}, r"a\.wav is not readable audio"),
    "empty file": (b"", {}, r"empty \(0 bytes\)"),
    "no samples in file": (wav_bytes(PCM[:0]), {}, "has no samples"),
    "truncated wav": (wav_bytes(PCM)[:8000], {}, "is truncated.*Use the whole file"),
    "truncated aiff": (wav_bytes(PCM, format="AIFF")[:8000], {}, "is truncated"),
    "truncated flac": (wav_bytes(PCM, format="FLAC")[:8000], {}, "not readable audio.*truncated"),
    "flac that declares too much": (flac_of_frames(2**36 - 1), {}, "is truncated"),
    "truncated mp3": (wav_bytes(PCM, format="MP3")[:1500], {}, "is truncated"),
    "truncated ogg": (wav_bytes(PCM, format="OGG")[:-99], {}, "is truncated"),
    "None": (None, {}, "NoneType is not an audio input; pass a path"),
    "number": (3.5, {}, "float is not an audio input"),
    "strings": (np.array(["a", "b"]), {}, "ndarray is not an audio input"),
    "ragged": ([[0.1], [0.1, 0.2]], {}, "list cannot be read as samples"),
    "decoder": (failing_decoder(), {}, "SimpleNamespace cannot decode its audio: no such stream"),
    "int64": (PCM.astype(np.int64), {}, r"shape \(8000,\) has dtype int64.*int16"),
    "complex": (SAMPLES.astype(np.complex64), {}, "dtype complex64"),
    "array without rate": ({"array": SAMPLES}, {}, r"\['array'\] is not audio.*'sampling_rate'"),
    "rate without array": ({"sampling_rate": RATE}, {}, r"\['sampling_rate'\] is not audio.*'array'"),
    "path and bytes None": ({"path": None, "bytes": None}, {}, "must not be None"),
    "NaN": (WITH_NAN, {}, r"shape \(8000,\) contains NaN or infinite"),
    "infinity": (np.full(100, -np.inf), {}, "contains NaN or infinite"),
    "empty array": (np.zeros(0), {}, r"shape \(0,\) has no samples"),
    "no channels": (np.zeros((0, 100)), {}, r"shape \(0, 100\) has no samples"),
    "rate in kHz": (SAMPLES, {"sampling_rate": 16}, "sampling_rate=16 is out of range.* Is it in kHz"),
    "rate too high": (SAMPLES, {"sampling_rate": 10**9}, "sampling_rate=1000000000 is out of range"),
    "rate 0": (SAMPLES, {"sampling_rate": 0}, "sampling_rate=0 must be a positive number"),
    "rate negative": ({"array": SAMPLES, "sampling_rate": -8000}, {}, "sampling_rate=-8000 must"),
    "rate not a number": (SAMPLES, {"sampling_rate": "16k"}, "sampling_rate='16k' must"),
    "rate NaN": (SAMPLES, {"sampling_rate": float("nan")}, "sampling_rate=nan must"),
    "dimensions swapped": (SAMPLES[:32].reshape(8, 4), {}, r"shape \(8, 4\).*\(channels, samples\): transpose"),
    "many columns": (SAMPLES.reshape(-1, 10), {}, r"shape \(800, 10\).*\(channels, samples\): transpose"),
    "batch": (SAMPLES.reshape(4, -1), {}, r"shape \(4, 2000\) has 4 rows and could be a batch; pass .* as a list"),
    "three dimensions": (SAMPLES.reshape(1, 2, -1), {}, r"shape \(1, 2, 4000\) is not one clip.*as a list"),
    "channel too high": (SAMPLES, {"channel": 1}, r"has 1 channel\(s\), so channel=1 .*valid are 0 to 0"),
    "channel negative": (SAMPLES[None], {"channel": -1}, "channel=-1 does not exist"),
    "channel not a number": (SAMPLES[None], {"channel": "left"}, "channel='left' does not exist"),
    "silence": (np.zeros(100), {}, r"silent: its peak is 0.*must reach 0\.0001 \(-80 dBFS\) around its mean"),
    "hiss": (np.tile([9e-5, -9e-5], 50), {}, r"silent: its peak is 9\.0e-05"),
    "constant": (np.full(32_000, 0.3, np.float32), {}, r"silent: its peak is 0\.0e\+00"),
    "constant at another rate": (np.full(44_100, 0.3), {"sampling_rate": 44_100}, r"silent: its peak"),
    "offset and hiss": (0.3 + np.tile([9e-5, -9e-5], 50), {}, r"silent: its peak is 9\.0e-05"),
    "phases that cancel": (np.stack([SAMPLES, -SAMPLES]), {}, "silent.*select one channel"),
}


# Checked by `load_audio` only.
WHOLE_CLIP_CASES = ("channel", "silence", "hiss", "constant", "offset", "phases")


@pytest.mark.parametrize("case", ERRORS)
def test_invalid_audio_raises(case):
    audio, kwargs, words = ERRORS[case]
    with pytest.raises(ValueError, match=words) as error:
        load_audio(audio, **kwargs)
    assert len(str(error.value)) < 700
    if not case.startswith(WHOLE_CLIP_CASES):
        with pytest.raises(ValueError, match=words):
            list(AudioBlocks(audio, **kwargs))


@pytest.mark.parametrize("case", [case for case in ERRORS if case.startswith(("corrupt", "empty f", "truncated wav"))])
def test_header_errors_raise_before_the_first_block(case):
    with pytest.raises(ValueError, match=ERRORS[case][2]):
        AudioBlocks(ERRORS[case][0])


def test_other_errors_raise_at_their_block():
    blocks = iter(AudioBlocks(WITH_NAN[::-1], block_seconds=0.1))
    assert [next(blocks).shape for _ in range(4)] == [(1, 1600)] * 4
    with pytest.raises(ValueError, match="contains NaN"):
        next(blocks)
    blocks = iter(AudioBlocks(wav_bytes(PCM, format="MP3")[:1500], block_seconds=0.01))
    assert next(blocks).shape == (1, 160)
    with pytest.raises(ValueError, match="is truncated"):
        list(blocks)


@pytest.mark.parametrize("block_seconds", [0, -1.0, float("nan"), float("inf")])
def test_invalid_block_lengths_raise(block_seconds):
    with pytest.raises(ValueError, match=f"block_seconds={block_seconds} must be a positive"):
        AudioBlocks(SAMPLES, block_seconds=block_seconds)


def test_silence_is_not_an_error_in_blocks():
    np.testing.assert_array_equal(join(AudioBlocks(np.zeros(100))), np.zeros((1, 100)))


def peak_bytes(recording):
    """Peak memory of Python and NumPy while a recording is read, and its number of samples."""
    tracemalloc.start()
    samples = sum(block.shape[1] for block in recording)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, samples


@pytest.fixture(scope="module")
def long_files(tmp_path_factory):
    """Paths of one and four minutes of noise: 48 kHz, stereo, floats."""
    folder = tmp_path_factory.mktemp("long")
    second = RNG.normal(0, 0.1, (48_000, 2)).astype(np.float32)
    for seconds in (60, 240):
        with soundfile.SoundFile(folder / f"{seconds}.wav", "w", 48_000, 2, "FLOAT") as file:
            for _ in range(seconds):
                file.write(second)
    return folder / "60.wav", folder / "240.wav"


@pytest.mark.parametrize("target_sampling_rate", [16_000, 48_000])
def test_memory_does_not_grow_with_the_length(target_sampling_rate, long_files):
    short, long = (
        AudioBlocks(path, target_sampling_rate=target_sampling_rate, block_seconds=5.0) for path in long_files
    )
    block_bytes = 5 * 48_000 * 2 * 4
    short_peak, _ = peak_bytes(short)
    long_peak, samples = peak_bytes(long)
    assert samples == 240 * target_sampling_rate
    assert long_peak < 4 * block_bytes
    assert long_peak < 1.1 * short_peak


def test_memory_is_independent_of_the_declared_length_and_the_channels():
    recording = AudioBlocks(flac_of_frames(2**36 - 1), block_seconds=0.1)
    tracemalloc.start()
    with pytest.raises(ValueError, match="is truncated"):
        sum(block.shape[1] for block in recording)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000

    wide = wav_bytes(np.full((20_000, 1024), 99, np.int16), 200_000)
    peak, samples = peak_bytes(AudioBlocks(wide))
    assert samples == 1600
    assert peak < 4 * 4 * MAX_BLOCK_SAMPLES


def test_a_recording_is_loaded_as_a_clip_if_it_is_short_enough(tmp_path, make_clip):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([make_clip(2.0, 1, 44_100), make_clip(2.0, 2, 44_100)], axis=1), 44_100)
    blocks = AudioBlocks(path, block_seconds=0.3)
    for channel in (None, 1):
        np.testing.assert_array_equal(blocks.load_clip(2.0, channel), load_audio(path, channel=channel))
    assert blocks.load_clip(1.9) is None
    assert blocks.load_up_to(1.9) is None
    np.testing.assert_allclose(blocks.load_up_to(2.1), load_audio(path), atol=1e-4)
    with pytest.raises(ValueError, match="channel=2 does not exist"):
        blocks.load_clip(2.0, 2)


# The whole and its parts are decoded by different calls.
PART_CODINGS = (("WAV", "PCM_16"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM"), ("FLAC", "PCM_24"), ("AIFF", "FLOAT"))
PART_CODINGS += (("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("CAF", "ALAC_16"), ("W64", "DOUBLE"))


@pytest.mark.parametrize(("container", "coding"), PART_CODINGS)
@pytest.mark.parametrize("block_seconds", [0.07, 30.0])
def test_a_part_has_the_samples_of_the_whole(container, coding, block_seconds):
    data = wav_bytes(WALK[: 3 * RATE] - WALK[: 3 * RATE].mean(axis=0), format=container, subtype=coding)
    whole = AudioBlocks(data, block_seconds=block_seconds)
    samples = join(whole)

    for start, end in ((0.0, 0.5), (0.5, 1.25), (1.0, math.inf), (2.5, 99.0), (2.999, math.inf)):
        part = whole.between(start, end)
        expected = samples[:, round(start * RATE) : None if end == math.inf else round(end * RATE)]

        np.testing.assert_array_equal(join(part), expected)
        assert part.duration == pytest.approx(expected.shape[1] / RATE)
        assert part.decoded_duration == expected.shape[1] / RATE
    assert list(whole.between(3.5)) == [] and whole.between(3.5).duration == 0
    np.testing.assert_array_equal(join(whole.between(1.0).between(0.5, 0.75)), samples[:, 24_000:28_000])
    assert whole.duration == whole.declared_duration == whole.decoded_duration == samples.shape[1] / RATE


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_part_is_resampled_as_the_whole(rate):
    whole = AudioBlocks(WALK[: 3 * rate].T, rate, block_seconds=0.3)
    samples = join(whole)

    part = join(whole.between(1.0, 2.0))

    assert part.shape[1] == RATE
    inside = slice(RATE // 50, -RATE // 50)
    np.testing.assert_allclose(part[:, inside], samples[:, RATE : 2 * RATE][:, inside], rtol=0, atol=1e-5)


def test_a_part_ends_where_decoding_need_not_continue():
    data = wav_bytes(PCM, format="MP3")[:1500]  # truncated
    assert join(AudioBlocks(data).between(0.0, 0.01)).shape == (1, 160)
    with pytest.raises(ValueError, match="is truncated"):
        join(AudioBlocks(data).between(0.01))
    with pytest.raises(ValueError, match="contains NaN"):
        join(AudioBlocks(WITH_NAN).between(0.0, 0.1))


def test_a_part_keeps_the_copy_of_its_recording(temporary_folder):
    part = AudioBlocks(io.BytesIO(wav_bytes(PCM))).between(0.25)
    assert len(list(temporary_folder.iterdir())) == 1
    np.testing.assert_array_equal(join(part)[0], SAMPLES[4_000:])
    del part
    assert not list(temporary_folder.iterdir())


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (math.inf, math.inf)]
)
def test_invalid_parts_raise(start_s, end_s):
    with pytest.raises(ValueError, match="is not a part of a recording; valid is 0 <= start_s < end_s"):
        AudioBlocks(SAMPLES).between(start_s, end_s)


def test_the_memory_of_a_part_does_not_grow_with_what_precedes_it(long_files):
    short, long = (AudioBlocks(path, block_seconds=5.0) for path in long_files)
    peaks = [peak_bytes(blocks.between(start, start + 20.0)) for blocks, start in ((short, 12.0), (long, 204.0))]
    assert [samples for _, samples in peaks] == [20 * RATE] * 2
    assert peaks[1][0] < 1.1 * peaks[0][0]


def test_the_decoded_duration_is_that_of_complete_iterations():
    recording = AudioBlocks(wav_bytes(PCM, 8_000), block_seconds=0.1)
    blocks = iter(recording)
    next(blocks)
    assert recording.decoded_duration is None
    assert sum(block.shape[1] for block in blocks) and recording.decoded_duration == 1.0
    recording = AudioBlocks(wav_bytes(PCM, 8_000))
    assert recording.load_clip(0.5) is None and recording.decoded_duration is None
    assert recording.load_up_to(0.5) is None and recording.decoded_duration is None
    assert recording.load_clip(1.0) is not None and recording.decoded_duration == 1.0
