"""Audio inputs as other libraries hand them over: samples, files, and what is refused."""

import array
import io
import mmap
import tempfile
import zipfile
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
import torch

from mmemo.audio.inputs import AUDIO_INPUT_FORMS, is_audio_object
from mmemo.audio.loading import AudioBlocks, load_audio


RATE = 16_000
RNG = np.random.default_rng(0)
PCM = (RNG.normal(0, 0.1, 8_000) * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
SAMPLES = PCM.astype(np.float32) / 2**15
STEREO = np.stack([SAMPLES, SAMPLES[::-1]])


def wav_bytes(samples=PCM, **kwargs):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, **{"format": "WAV", **kwargs})
    return file.getvalue()


def mapped(data):
    file = mmap.mmap(-1, len(data))
    file.write(data)
    return file


def temporary(data):
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115
    file.write(data)
    return file


def zipped(data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("clip.wav", data)
    return zipfile.ZipFile(buffer).open("clip.wav")


def read_to_the_end(data):
    file = io.BytesIO(data)
    file.read()
    return file


FILES = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "np.bytes_": np.bytes_,
    "mmap": mapped,
    "arrow buffer": pa.py_buffer,
    "BytesIO": io.BytesIO,
    "BytesIO at its end": read_to_the_end,
    "buffered reader": lambda data: io.BufferedReader(io.BytesIO(data)),
    "temporary file": temporary,
    "file in an archive": zipped,
    "dict of bytearray": lambda data: {"bytes": bytearray(data), "path": None},
    "arrow row": lambda data: pa.array([{"bytes": data, "path": None}])[0],
}


@pytest.mark.parametrize("form", FILES)
def test_every_form_of_a_file_gives_the_same_samples(form):
    audio = FILES[form](wav_bytes())

    assert is_audio_object(audio)
    recording = AudioBlocks(audio, block_seconds=0.2)
    for _ in range(2):
        np.testing.assert_array_equal(load_audio(audio), SAMPLES)
        np.testing.assert_array_equal(np.concatenate(list(recording), axis=1)[0], SAMPLES)


ARRAYS = {
    "memoryview of floats": memoryview(SAMPLES),
    "memoryview of int16": memoryview(PCM),
    "array.array": array.array("h", PCM.tolist()),
    "big-endian float32": SAMPLES.astype(">f4"),
    "big-endian int16": PCM.astype(">i2"),
    "strided": np.repeat(SAMPLES, 2)[::2],
    "read-only": np.frombuffer(SAMPLES.tobytes(), np.float32),
    "tensor that requires grad": torch.tensor(SAMPLES, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.tensor(SAMPLES)),
    "float64 tensor": torch.tensor(SAMPLES, dtype=torch.float64),
    "int16 tensor": torch.tensor(PCM),
    "pandas Series": pd.Series(SAMPLES),
    "nullable Series": pd.Series(SAMPLES, dtype="Float32"),
    "arrow Series": pd.Series(SAMPLES, dtype="float32[pyarrow]"),
    "arrow array": pa.array(SAMPLES),
    "chunked arrow array": pa.chunked_array([SAMPLES[:100], SAMPLES[100:]]),
    "arrow row": pa.array([SAMPLES])[0],
    "frames of sounddevice": SAMPLES[:, None],
    "frames of 8 channels": np.repeat(SAMPLES[:, None], 8, axis=1),
    "Gradio": (RATE, PCM),
    "Gradio, frames first": (RATE, np.stack([PCM, PCM], axis=1)),
    "torchaudio": (torch.tensor(SAMPLES)[None], RATE),
    "soundfile": (SAMPLES, RATE),
    "scipy": (np.int64(RATE), PCM),
    "list with its rate": (SAMPLES.tolist(), float(RATE)),
    "decoded samples": SimpleNamespace(data=torch.tensor(SAMPLES)[None], sample_rate=RATE),
    "five channels": {"array": np.stack([SAMPLES] * 4 + [SAMPLES]), "sampling_rate": RATE},
}


@pytest.mark.parametrize("form", ARRAYS)
def test_every_form_of_samples_gives_the_same_samples(form):
    audio = ARRAYS[form]

    assert is_audio_object(audio)
    np.testing.assert_allclose(load_audio(audio), SAMPLES, rtol=0, atol=1e-7)
    np.testing.assert_allclose(np.concatenate(list(AudioBlocks(audio)), axis=1).mean(axis=0), SAMPLES, atol=1e-7)


@pytest.mark.parametrize(
    "samples",
    [
        SAMPLES.astype(np.float16),
        SAMPLES.astype(ml_dtypes.bfloat16),
        torch.tensor(SAMPLES, dtype=torch.bfloat16),
        torch.tensor(SAMPLES, dtype=torch.float16),
    ],
)
def test_half_precision_is_accepted(samples):
    np.testing.assert_allclose(load_audio(samples), SAMPLES, rtol=0, atol=2e-3)


def test_the_rate_of_a_pair_is_used():
    for audio in ((48_000, np.repeat(PCM, 3)), (np.repeat(SAMPLES, 3), 48_000)):
        assert len(load_audio(audio, sampling_rate=1)) == len(SAMPLES)
        assert AudioBlocks(audio).source_rate == 48_000


def test_frames_first_is_recognised():
    np.testing.assert_array_equal(load_audio(STEREO.T, channel=1), STEREO[1])
    assert AudioBlocks(STEREO.T).channels == 2
    assert AudioBlocks(SAMPLES[:5, None]).channels == 1


REFUSED = {
    "numbers": ([1, -2, 3], "has dtype int64, of unknown scale"),
    "zeros": ([0] * 100, "has dtype int64, of unknown scale"),
    "booleans": (np.zeros(100, bool), "has dtype bool, of unknown scale"),
    "boolean tensor": (torch.zeros(100, dtype=torch.bool), "has dtype bool, of unknown scale"),
    "batch": (np.stack([SAMPLES] * 3), r"has 3 rows and could be a batch; pass a batch as a list of clips"),
    "batch of a tensor": (torch.zeros(8, 16_000), r"has 8 rows and could be a batch"),
    "batch of images": (torch.zeros(2, 3, 16, 16), "is not one clip"),
    "ambiguous frames": (np.ones((6, 3)), r"must be \(channels, samples\): transpose it"),
    "missing values": (pd.Series([0.1, None, 0.2], dtype="Float32"), "NaN or infinite|cannot be read as samples"),
    "paths": (pd.Series(["a.wav", "b.wav"]), "Series is not an audio input; pass a path"),
    "sparse tensor": (torch.eye(9).to_sparse(), "Tensor cannot be read as samples"),
    "text file": (io.StringIO("RIFF"), "StringIO returns str instead of bytes; open the file with"),
    "closed file": (io.BytesIO(), "BytesIO cannot be read .*closed"),
    "pair without samples": ((16_000, "clip.wav"), "str is not an audio input"),
    "pair with another rate": ((3, SAMPLES), "sampling_rate=3 is out of range"),
    "generator": ((value for value in SAMPLES), "generator is not an audio input"),
    "object": (object(), "object is not an audio input; pass a path"),
}
REFUSED["closed file"][0].close()


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_at_once(case):
    audio, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        load_audio(audio)
    with pytest.raises(ValueError, match=message):
        list(AudioBlocks(audio))


@pytest.mark.parametrize(
    "value",
    [
        "clip.wav",
        {"path": "clip.wav"},
        {"array": SAMPLES, "sampling_rate": RATE},
        torch.zeros(9),
        pd.DataFrame({"a": [1]}),
    ],
)
def test_single_objects(value):
    assert is_audio_object(value)


@pytest.mark.parametrize(
    "value",
    [
        ["clip.wav"],
        SAMPLES.tolist(),
        ("a.wav", "b.wav"),
        (SAMPLES, SAMPLES),
        {"text": "so"},
        {"audio": "clip.wav"},
        {"sampling_rate": RATE},
        {"path": "clip.wav", "text": "so"},
        np.array(["a.wav", "b.wav"]),
        pd.Series(["a.wav", "b.wav"]),
        pa.array(["a.wav", "b.wav"]),
        (value for value in ["a.wav"]),
        torch.utils.data.TensorDataset(torch.zeros(2)),
        None,
    ],
)
def test_collections_and_items(value):
    assert not is_audio_object(value)


def test_errors_about_the_content_speak_of_the_file():
    nan = np.where(np.arange(8_000) == 5, np.nan, SAMPLES)
    for content in (
        b"junk" * 99,
        wav_bytes()[:-99],
        wav_bytes(PCM[:0]),
        wav_bytes(nan, subtype="FLOAT"),
        wav_bytes(PCM * 0),
    ):
        with pytest.raises(ValueError) as error:
            load_audio(content)
        assert str(error.value).startswith("the audio file ")
        for word in (AUDIO_INPUT_FORMS, "np.", "=", "array", "pass ", "torchcodec"):
            assert word not in str(error.value)
