"""Video files made to fail: corrupt and truncated ones, forged headers, limits."""

import io
import struct
import subprocess
import sys
import zlib

import av
import numpy as np
import pytest
from PIL import Image
from videos import FPS, FRAMES, image_bytes, number_of, numbered, numbers, write_video

from mmemo.video import video_files
from mmemo.video.frames import open_video
from mmemo.video.video_files import DecodingLimits, VideoLimitError


def test_corrupt_frames_are_skipped_with_one_warning(tmp_path, caplog):
    write_video(tmp_path / "a.mov", numbered(20), FPS, codec="mjpeg")
    data = with_zeros((tmp_path / "a.mov").read_bytes(), {0, 9, 10, 15})

    video = open_video(data)
    assert numbers(video) == [1, *range(1, 9), 8, 8, *range(11, 15), 14, *range(16, 20)]
    # Frames before the first one are missing from recordings that start anywhere.
    assert [record.message for record in caplog.records] == ["the video file: 3 corrupt frame(s) were skipped."]
    assert numbers(video, start=1.2, end=1.4) == [12, 13]
    assert len(caplog.records) == 1


def with_zeros(data, packets):
    """Overwrites these packets of a video."""
    data = bytearray(data)
    with av.open(io.BytesIO(data)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux() if packet.size]
    for index in packets:
        place, size = places[index]
        data[place : place + size] = bytes(size)
    return bytes(data)


def test_a_file_without_any_decodable_frame_raises(tmp_path):
    write_video(tmp_path / "a.mov", numbered(5), FPS, codec="mjpeg")
    data = with_zeros((tmp_path / "a.mov").read_bytes(), range(5))

    with pytest.raises(ValueError, match=r"the video file is not readable video \(Invalid data found"):
        open_video(data)


@pytest.mark.parametrize("name", ["mp4", "mov", "mkv, open groups", "webm", "avi", "flv"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_truncated_files_raise_as_for_audio(name, share, encoded_video):
    data = encoded_video(name).read_bytes()

    with pytest.raises(
        ValueError, match=r"is truncated: it declares more video than it contains\. Use the whole file"
    ):
        numbers(open_video(data[: round(share * len(data))]))


def test_the_end_of_an_indexed_file_may_be_missing(tmp_path):
    """The frames before it are decoded first."""
    write_video(tmp_path / "a.flv", numbered(40), FPS, g="7")
    data = (tmp_path / "a.flv").read_bytes()
    frames = open_video(data[: round(0.6 * len(data))]).frames(FPS)

    assert [number_of(next(frames)[1]) for _ in range(15)] == list(range(15))
    with pytest.raises(ValueError, match="is truncated"):
        list(frames)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_images_raise(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    data = image_bytes(kind, Image.fromarray(pixels))

    assert open_video(data).size == (800, 600)
    with pytest.raises(ValueError, match=r"is truncated|is not readable video \("):
        open_video(data[: len(data) // 2])


def png(width, height):
    """A PNG of black pixels, of few bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compressor = zlib.compressobj()
    row = bytes(1 + 3 * width)
    rows = b"".join([*(compressor.compress(row) for _ in range(height)), compressor.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.slow
def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path):
    """FFmpeg takes 600 MB to decode the first."""
    write_video(tmp_path / "a.mov", np.zeros((1, 48, 64, 3), np.uint8), FPS, codec="png")
    data = (tmp_path / "a.mov").read_bytes()
    with av.open(io.BytesIO(data)) as container:
        packet = next(container.demux())
        place, size = packet.pos, packet.size
    large = png(16_000, 16_000)
    # In the header of the track its size is still 64 x 48.
    sample_size = data.index(b"stsz") + 8
    forged = bytearray(data[:place] + large + data[place + size :])
    forged[place - 8 : place - 4] = struct.pack(">I", len(large) + 8)
    shift = len(large) - size
    forged[sample_size + shift : sample_size + shift + 4] = struct.pack(">I", len(large))
    gif = b"GIF89a" + struct.pack("<HH", 16_000, 16_000) + image_bytes("GIF")[10:]

    for content in (large, bytes(forged), gif):
        code = (
            "import resource, sys; from mmemo.video.frames import open_video\n"
            "import av; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: open_video(sys.stdin.buffer.read())\n"
            "except ValueError as error: print(error)\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
        )
        done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
        message, grown = done.stdout.decode().splitlines()
        assert message.startswith("the video file is not readable video (")
        assert int(grown) < 60, "MB"


def test_the_size_of_frames_is_limited(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(2), FPS)

    with pytest.raises(
        VideoLimitError, match=r"a\.mp4 has frames of 64 x 48 pixels; at most 3071 are decoded\. Scale"
    ):
        open_video(tmp_path / "a.mp4", limits=DecodingLimits(max_pixels=64 * 48 - 1))


def test_decoding_ends_at_a_limit_of_seconds_or_on_request(tmp_path):
    write_video(tmp_path / "a.mp4", numbered(20), FPS)
    decoded = []

    def check():
        decoded.append(1)
        if len(decoded) > 5:
            raise LookupError

    short = open_video(tmp_path / "a.mp4", limits=DecodingLimits(max_seconds=1))
    with pytest.raises(VideoLimitError, match=r"has frames up to 1 s; at most 1 s are decoded\. Cut it"):
        list(short.frames(FPS))
    with pytest.raises(LookupError):
        list(open_video(tmp_path / "a.mp4", limits=DecodingLimits(check=check)).frames(FPS))
    assert len(list(open_video(tmp_path / "a.mp4", limits=DecodingLimits(max_seconds=2)).frames(FPS))) == 20


def test_tables_larger_than_the_file_are_refused(encoded_video):
    data = bytearray(encoded_video("mp4").read_bytes())
    place = data.index(b"stsz")
    data[place + 8 : place + 16] = struct.pack(">II", 1, 80_000_000)

    with pytest.raises(ValueError, match=r"is not readable video \(it declares 80000\d{3} samples in \d+ bytes\)"):
        open_video(bytes(data))


def test_times_are_limited(tmp_path):
    write_video(tmp_path / "long.mkv", numbered(3), FPS, times=[0, 1, 90_000])
    write_video(tmp_path / "dense.mkv", numbered(60), FPS, times=np.arange(60) / 1000)
    video = open_video(tmp_path / "dense.mkv")

    assert numbers(video, 1000)[:9] == [min(index + 1, 59) for index in range(9)]
    with pytest.raises(ValueError, match=r"has frames up to 9\d{4} s; at most 86400 s are decoded\. Cut it"):
        list(open_video(tmp_path / "long.mkv").frames(0.001))


def test_the_number_of_frames_per_second_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(video_files, "MAX_FPS", 9)
    write_video(tmp_path / "a.mp4", numbered(60), 60)

    with pytest.raises(ValueError, match=r"has 1\d frames in 0\.\d+ s; at most 9 frames per second are decoded"):
        list(open_video(tmp_path / "a.mp4").frames(1))


def test_without_pyav_the_error_names_it(encoded_video, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)

    assert numbers(open_video(FRAMES, fps=FPS)) == list(range(20))
    with pytest.raises(ValueError, match=r"is not readable video \(video needs PyAV; pip install av\)"):
        open_video(encoded_video("mp4"))


def test_tracks_that_appear_midway_are_ignored(tmp_path):
    """PyAV raises an `IndexError` at the end of such recordings of broadcasts."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 480, 640, 3), np.uint8)
    write_video(tmp_path / "a.ts", noise, FPS)
    broadcast = (tmp_path / "a.ts").read_bytes()
    assert len(broadcast) > 5_000_000, "FFmpeg would find all tracks when it opens the file"
    sound = io.BytesIO()
    with av.open(sound, "w", format="mpegts", options={"mpegts_start_pid": "512"}) as container:
        stream = container.add_stream("mp2", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    video = open_video(broadcast + sound.getvalue() + broadcast)

    assert not video.has_audio
    assert len(numbers(video)) == 30
