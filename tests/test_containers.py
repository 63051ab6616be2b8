"""Containers that FFmpeg decodes: samples and lengths, truncation, and files made to fail."""

import builtins
import functools
import io
import struct
import subprocess
import sys

import av
import numpy as np
import pytest
import soundfile
from encoded import CODINGS, Coding, encode

from mmemo.audio import containers
from mmemo.audio.containers import open_container
from mmemo.audio.loading import AudioBlocks, load_audio


RATE = 16_000
# No container declares the encoder's delay and the rest of the last frame; then players play both, and so do we.
MAX_PADDING = 2_048


@pytest.fixture(scope="module")
def speech(example_audio):
    """One utterance, as int16 of shape `(1, samples)`."""
    samples, rate = soundfile.read(example_audio, dtype="int16")
    assert rate == RATE
    return samples[None]


@pytest.fixture(scope="module")
def encoded(speech):
    """A function that returns the utterance in one of the `CODINGS`, as bytes."""
    return functools.cache(lambda name: encode(speech, RATE, CODINGS[name]))


def join(recording):
    return np.concatenate(list(recording), axis=1)


def similarity(found, expected):
    """Returns the highest correlation of two clips over all shifts, and the shift in samples."""
    size = 2 ** int(np.ceil(np.log2(len(found) + len(expected))))
    spectra = np.fft.rfft(found, size) * np.fft.rfft(expected, size).conj()
    products = np.fft.irfft(spectra, size) / (np.linalg.norm(found) * np.linalg.norm(expected))
    shift = int(np.argmax(products))
    return products[shift], shift if shift < size // 2 else shift - size


@pytest.mark.parametrize("name", CODINGS)
def test_every_container_is_decoded(name, encoded, speech, tmp_path):
    coding, data = CODINGS[name], encoded(name)
    expected = load_audio(speech)
    path = tmp_path / "recording.bin"
    path.write_bytes(data)

    samples = load_audio(data)

    np.testing.assert_array_equal(load_audio(path), samples)
    recording = AudioBlocks(path, block_seconds=0.3)
    assert (recording.channels, recording.source_rate, recording.duration) == (1, coding.rate, None)
    np.testing.assert_allclose(join(recording)[0], samples, rtol=0, atol=1e-4)
    np.testing.assert_allclose(join(recording)[0], samples, rtol=0, atol=1e-4)
    if coding.is_lossless:
        np.testing.assert_array_equal(samples, expected)
    correlation, shift = similarity(samples, expected)
    assert correlation > (0.8 if coding.rate == 8_000 else 0.95)
    assert abs(shift) <= (1_200 if coding.has_padding else 25)
    assert abs(len(samples) - len(expected)) <= (MAX_PADDING if coding.has_padding else 2)


# Browsers record without knowing the length, and raw streams do not declare it.
UNDECLARED = {"webm of a browser", "mp4, fragmented"}


@pytest.mark.parametrize("name", CODINGS)
def test_a_part_has_the_samples_of_the_whole(name, encoded):
    rate = CODINGS[name].rate
    whole = AudioBlocks(encoded(name), target_sampling_rate=rate, block_seconds=0.3)
    samples = join(whole)

    for start, end in ((0.0, 0.25), (0.5, 1.1), (1.5, np.inf)):
        part = join(whole.between(start, end))
        last = None if end == np.inf else round(end * rate)
        np.testing.assert_array_equal(part, samples[:, round(start * rate) : last])
    assert list(whole.between(60.0)) == []
    if whole.declared_duration is None:
        assert name in UNDECLARED
    else:
        assert whole.declared_duration == pytest.approx(whole.decoded_duration, rel=0.15)


def test_blocks_have_the_requested_length(encoded):
    lengths = [block.shape for block in AudioBlocks(encoded("ogg flac"), block_seconds=0.1)]

    assert set(lengths[:-1]) == {(1, 1600)}
    assert 0 < lengths[-1][1] <= 1600


@pytest.mark.parametrize("name", ["m4a", "mkv with video", "webm", "ogg flac"])
def test_channels_are_kept(name, speech):
    stereo = np.concatenate([speech, speech[:, ::-1]])
    data = encode(stereo, RATE, CODINGS[name])

    assert AudioBlocks(data).channels == 2
    for channel in (0, 1):
        assert similarity(load_audio(data, channel=channel), stereo[channel])[0] > 0.95


@pytest.mark.parametrize(
    ("coding", "channels"),
    [
        (CODINGS["aac"], 8),
        (CODINGS["m4a"], 8),
        (Coding("matroska", "flac"), 8),
        (Coding("matroska", "pcm_s16le"), 16),
        (Coding("matroska", "wavpack"), 16),
    ],
)
def test_eight_and_more_channels_are_decoded(coding, channels):
    """PyAV reads invalid memory in `to_ndarray` of the frames of AAC, Opus and WavPack."""
    time = np.arange(RATE) / RATE
    tones = 300 + 100 * np.arange(channels)
    samples = (8_000 * np.sin(2 * np.pi * tones[:, None] * time)).astype(np.int16)

    found = join(AudioBlocks(encode(samples, RATE, coding)))

    assert len(found) == channels
    peaks = np.abs(np.fft.rfft(found[:, 2_000:10_000])).argmax(axis=1) * RATE / 8_000
    is_full_band = np.arange(channels) != 3  # the fourth channel of 7.1 has low frequencies only
    np.testing.assert_allclose(peaks[is_full_band], tones[is_full_band], atol=2)


def test_the_length_of_an_mp4_is_exact(speech):
    for samples in (1_000, 12_345):
        assert len(load_audio(encode(speech[:, :samples], RATE, CODINGS["m4a"]))) == samples


# Files of these kinds say how long they are, or end with a frame that is cut.
UNDECLARED = {"webm of a browser", "mp2", "ac3", "mpeg", "mpegts", "mp3 without its length", "flv"}


@pytest.mark.parametrize("name", sorted(CODINGS.keys() - UNDECLARED))
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_truncated_files_raise(name, share, encoded):
    data = encoded(name)

    with pytest.raises(ValueError, match=r"is truncated: it declares more|is not readable audio \("):
        load_audio(data[: round(share * len(data))])


def test_an_mp3_without_a_frame_has_nothing_to_decode(speech, tmp_path):
    path = tmp_path / "cut.mp3"
    soundfile.write(path, speech[0], RATE)
    path.write_bytes(path.read_bytes()[:40])

    with pytest.raises(ValueError, match=r"is not readable audio \(nothing in it can be decoded\)"):
        load_audio(path)


def test_an_mp4_for_streaming_is_decoded_and_its_truncation_detected(speech, tmp_path):
    coding = CODINGS["m4a"]._replace(options=(("movflags", "faststart"),))
    data = encode(speech, RATE, coding, str(tmp_path / "a.m4a"))
    assert data.index(b"moov") < data.index(b"mdat")

    assert len(load_audio(data)) == speech.shape[1]
    for end in (-1, -2_000):
        with pytest.raises(ValueError, match="is truncated"):
            load_audio(data[:end])


def test_video_without_sound_raises():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(25):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            picture.pts = number
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))

    with pytest.raises(ValueError, match="the audio file has no audio track; use a file with sound"):
        load_audio(buffer.getvalue())


def test_files_that_refer_to_others_are_refused(tmp_path, speech):
    (tmp_path / "clip.wav").write_bytes(encode(speech, RATE, Coding("wav", "pcm_s16le")))
    for name, content in {
        "concat": f"ffconcat version 1.0\nfile {tmp_path}/clip.wav\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\n{tmp_path}/clip.wav\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    }.items():
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(ValueError, match=r"is not readable audio \(Format not recognised"):
            load_audio(path)


def test_a_codec_outside_of_the_list_is_named(speech):
    data = bytearray(encode(speech, RATE, Coding("matroska", "pcm_s16le")))
    data = data.replace(b"A_PCM/INT/LIT", b"A_TRUEHD\0\0\0\0\0")

    with pytest.raises(ValueError, match=r"is not readable audio \(its codec is truehd\)"):
        load_audio(bytes(data))


def test_a_change_of_the_format_raises(speech):
    stereo = np.concatenate([speech, speech])
    data = encode(speech, RATE, CODINGS["aac"]) + encode(stereo, RATE, CODINGS["aac"])

    with pytest.raises(ValueError, match=r"changes from 1 channel\(s\) at 16000 Hz to 2 at 16000 Hz after 2\.\d s"):
        load_audio(data)


def test_metadata_in_any_encoding_is_ignored(encoded):
    data = encoded("ogg flac").replace(b"Lavf", b"\xff\xfe\xe9\xe8", 1)

    with open_container(io.BytesIO(data), "clip", None) as track:
        assert track.channels == 1


def test_tables_larger_than_the_file_are_refused(encoded, speech, tmp_path):
    """FFmpeg takes 2.8 GB for the index of each."""
    coding = CODINGS["m4a"]._replace(options=(("movflags", "faststart"),))
    sizes = bytearray(encode(speech, RATE, coding, str(tmp_path / "a.m4a")))
    place = sizes.index(b"stsz")
    sizes[place + 8 : place + 16] = struct.pack(">II", 1, 80_000_000)
    runs = bytearray(encoded("mp4, fragmented"))
    place = runs.index(b"trun")
    runs[place + 8 : place + 12] = struct.pack(">I", 80_000_000)

    for data in (sizes, runs):
        with pytest.raises(ValueError, match=r"is not readable audio \(it declares 80000\d{3} samples in 2\d{4}"):
            AudioBlocks(bytes(data))


def test_compressed_headers_and_endless_boxes_are_refused(monkeypatch):
    monkeypatch.setattr(containers, "MAX_BOXES", 1_000)
    box = struct.pack(">I4s", 8, b"free")
    with pytest.raises(ValueError, match="its header is compressed"):
        AudioBlocks(box + struct.pack(">I4s", 16, b"moov") + struct.pack(">I4s", 8, b"cmov"))
    with pytest.raises(ValueError, match="it has more than 1000 parts"):
        AudioBlocks(box * 1_001)


def test_without_pyav_the_error_names_it(encoded, monkeypatch, speech):
    def import_without_av(name, *args):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return imported(name, *args)

    data, flac = encoded("m4a"), encode(speech, RATE, Coding("flac", "flac"))
    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", import_without_av)

    assert len(load_audio(flac)) == speech.shape[1]
    with pytest.raises(ValueError, match=r"is not readable audio \(formats other than .* need PyAV; pip install av\)"):
        load_audio(data)


def test_nothing_is_printed_and_importing_is_light(encoded, tmp_path):
    (tmp_path / "clip.m4a").write_bytes(encoded("m4a"))
    (tmp_path / "bad.m4a").write_bytes(encoded("m4a")[:9_000] + bytes(12_254))
    code = (
        "import sys; from mmemo.audio.loading import load_audio\n"
        "assert 'av' not in sys.modules\n"
        "load_audio('clip.m4a')\n"
        "try: load_audio('bad.m4a')\n"
        "except ValueError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("refused\n", "")
