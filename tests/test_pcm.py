"""Raw samples: encodings, channels, and chunks that end within a sample."""

import io

import numpy as np
import pytest
import soundfile

from mmemo.audio.pcm import PcmDecoder, as_floats


def test_every_mu_law_code_decodes_as_by_libsndfile():
    codes = bytes(range(256))
    expected, _ = soundfile.read(
        io.BytesIO(codes), dtype="float32", format="RAW", subtype="ULAW", samplerate=8_000, channels=1, endian="FILE"
    )

    assert np.array_equal(PcmDecoder("mulaw")(codes), expected)


def test_a_chunk_may_end_within_a_sample():
    data = np.array([[-(2**15), 0], [2**14, 2**14]], "<i2").tobytes()
    decode = PcmDecoder("pcm_s16le", 2)

    assert [decode(data[:3]).tolist(), decode(data[3:5]).tolist(), decode(data[5:]).tolist()] == [[], [-0.5], [0.5]]


def test_floats_are_returned_as_they_are():
    samples = np.array([0.5, -0.25], "<f4")

    assert PcmDecoder("pcm_f32le")(samples.tobytes()).tolist() == [0.5, -0.25]


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8"])
def test_integers_are_scaled(dtype):
    limits = np.iinfo(dtype)
    middle = (limits.max + 1) // 2 if limits.min == 0 else 0

    assert as_floats(np.array([limits.min, middle], dtype)).tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("encoding", "channels", "message"),
    [
        ("opus", 1, "encoding='opus' must be one of"),
        ("int16", 1, "encoding='int16' must be one of"),
        ("mulaw", 0, "channels=0 must be"),
        ("mulaw", True, "channels=True must be"),
        ("mulaw", 2.0, "channels=2.0 must be"),
    ],
)
def test_invalid_arguments_raise(encoding, channels, message):
    with pytest.raises(ValueError, match=message):
        PcmDecoder(encoding, channels)
