"""Frames of a video on a uniform grid: containers, times, seeking, rotation, limits, and every form of input."""

import gc
import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from PIL import Image
from videos import number_of, numbered, write_video

from mmemo.audio.loading import load_audio
from mmemo.video import video_files
from mmemo.video.frames import is_video_object, open_video


FPS = 10
# Suffix, encoder and options of files with frames of different kinds, and key frames in the middle.
CODINGS = {
    "mp4": ("libx264", {"g": "7"}),
    "mp4, B-frames": ("libx264", {"preset": "medium", "g": "12", "bf": "3"}),
    "mp4, one key frame": ("libx264", {"preset": "medium", "g": "1000", "bf": "3"}),
    "mkv, open groups": ("libx264", {"preset": "medium", "g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "ts, open groups": ("libx264", {"preset": "medium", "g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "ts, intra refresh": ("libx264", {"preset": "medium", "x264-params": "intra-refresh=1:keyint=12"}),
    "mov": ("mpeg4", {"g": "7", "b": "4M"}),
    "avi": ("mpeg4", {"g": "7", "b": "4M"}),
    "ts, MPEG-2": ("mpeg2video", {"g": "7", "bf": "2", "b": "4M"}),
    "mpg": ("mpeg2video", {"g": "7", "b": "4M"}),
    "flv": ("libx264", {"preset": "medium", "g": "7", "bf": "3"}),
    "webm": ("libvpx-vp9", {"g": "7"}),
    "gif": ("gif", {}),
}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A function that returns the path of 40 numbered frames at 10 frames per second in one of the `CODINGS`."""
    folder, paths = tmp_path_factory.mktemp("encoded"), {}

    def encode(name):
        if name not in paths:
            codec, options = CODINGS[name]
            paths[name] = folder / f"{len(paths)}.{name.split(',')[0]}"
            write_video(paths[name], numbered(40), FPS, codec=codec, **options)
        return paths[name]

    return encode


def numbers(video, rate=FPS, **window):
    return [number_of(pixels) for _, pixels in video.frames(rate, **window)]


def times(video, rate=FPS, **window):
    return [time for time, _ in video.frames(rate, **window)]


def write_tone(seconds, rate=48_000):
    return (0.2 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def png(width, height):
    """A PNG of black pixels, of few bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compressor = zlib.compressobj()
    row = bytes(1 + 3 * width)
    rows = b"".join([*(compressor.compress(row) for _ in range(height)), compressor.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def image_bytes(kind="PNG", image=None, **options):
    buffer = io.BytesIO()
    (image or two_colours()).save(buffer, kind, **options)
    return buffer.getvalue()


def two_colours():
    """Red above blue, 80 x 60."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:30], pixels[30:] = (250, 10, 10), (10, 10, 250)
    return Image.fromarray(pixels)


# A program stream has few timestamps.
@pytest.mark.parametrize("name", sorted(CODINGS.keys() - {"mpg"}))
def test_the_grid_of_every_container_is_exact(name, encoded):
    video = open_video(encoded(name))

    assert video.size == (64, 48)
    assert not video.is_image and not video.has_audio
    assert video.duration == pytest.approx(4.0, abs=0.4)
    assert times(video) == [index / FPS for index in range(40)]
    assert numbers(video) == list(range(40))
    assert numbers(video, 5) == list(range(0, 40, 2))
    # At 4 frames per second the frames at 0, 0.25, 0.5, 0.75, ... are 0, 2, 5, 7, ...
    assert numbers(video, 4) == [int(index * 2.5) for index in range(16)]
    assert numbers(video, 20) == [index // 2 for index in range(80)]


@pytest.mark.parametrize("name", CODINGS)
def test_a_window_equals_that_part_of_the_whole(name, encoded):
    video = open_video(encoded(name))
    whole = list(video.frames(FPS))

    for start in (0, 3, 6, 7, 12, 13, 25, 31, 38):
        window = list(video.frames(FPS, start=start / FPS, end=(start + 4) / FPS))
        assert [time for time, _ in window] == [time for time, _ in whole[start : start + 4]]
        for (_, found), (_, expected) in zip(window, whole[start : start + 4]):
            np.testing.assert_array_equal(found, expected)
    assert list(video.frames(FPS, start=9.0)) == []


def test_windows_tile_the_grid(encoded):
    video = open_video(encoded("mp4"))
    step = 0.7  # 7 * 0.1, which is 0.7000000000000001

    tiled = [time for index in range(6) for time in times(video, start=index * step, end=(index + 1) * step)]
    assert tiled == times(video)
    assert times(video, start=0.05, end=0.31) == [0.1, 0.2, 0.3]


def test_rates_that_containers_round_show_each_frame_once(tmp_path):
    write_video(tmp_path / "a.mkv", numbered(40), 30)

    assert numbers(open_video(tmp_path / "a.mkv"), 30) == list(range(40))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rates(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered(6), FPS, times=[0, 0.1, 0.15, 0.7, 0.71, 1.5])

    assert numbers(open_video(path)) == [0, 1, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4, 5]
    assert numbers(open_video(path), start=0.6, end=0.9) == [2, 3, 4]


def test_a_frame_shown_twice_is_one_array(encoded):
    frames = [pixels for _, pixels in open_video(encoded("mp4")).frames(2 * FPS, end=0.4)]

    assert [frames[index] is frames[index + 1] for index in range(7)] == [True, False] * 3 + [True]


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mkv"])
def test_without_sound_time_starts_at_the_first_frame(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered(10), FPS, times=[3.3 + index / FPS for index in range(10)])

    assert numbers(open_video(path)) == list(range(10))
    assert numbers(open_video(path), start=0.4, end=0.7) == [4, 5, 6]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mov", "libx264"), ("mkv", "libx264"), ("ts", "libx264"), ("webm", "libvpx-vp9")],
)
@pytest.mark.parametrize(("sound_start", "first_frame"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])
def test_sound_and_frames_are_aligned(suffix, codec, sound_start, first_frame, tmp_path):
    """A flash and a tone start at 1 s of the file."""
    path = tmp_path / f"a.{suffix}"
    seconds = np.arange(first_frame, 2, 1 / 50)
    frames = np.where(seconds >= 0.999, 200, 20).astype(np.uint8)[:, None, None, None]
    tone = write_tone(2 - sound_start)
    tone[: round((1 - sound_start) * 48_000)] *= 1e-3
    write_video(
        path,
        np.broadcast_to(frames, (len(frames), 48, 64, 3)),
        50,
        samples=tone,
        sampling_rate=48_000,
        times=seconds,
        codec=codec,
        sound_start=sound_start,
    )

    video = open_video(path)
    assert video.has_audio
    samples = load_audio(path)
    heard = np.argmax(np.abs(samples) > 0.1) / 16_000
    seen = next(time for time, pixels in video.frames(100) if pixels.mean() > 100)

    assert seen == pytest.approx(heard, abs=0.035)


@pytest.mark.parametrize(("rotation", "corner"), [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
def test_rotation_is_applied(rotation, corner, tmp_path):
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :24, :32] = 250  # the top left quarter
    write_video(tmp_path / "a.mp4", frames, FPS, rotation=rotation)

    video = open_video(tmp_path / "a.mp4")
    _, pixels = next(video.frames(1))

    assert video.size == ((64, 48) if rotation % 180 == 0 else (48, 64))
    assert pixels.shape == (video.size[1], video.size[0], 3)
    for place in [(0, 0), (0, -1), (-1, 0), (-1, -1)]:
        assert (pixels[place] > 128).all() == (place == corner)


def test_pixels_become_square(tmp_path):
    write_video(tmp_path / "wide.mp4", numbered(3), FPS, aspect=Fraction(3, 2))
    write_video(tmp_path / "absurd.mp4", numbered(3), FPS, aspect=Fraction(200, 1))

    assert open_video(tmp_path / "wide.mp4").size == (96, 48)
    assert open_video(tmp_path / "absurd.mp4").size == (64, 48)


def test_large_frames_are_scaled_down(tmp_path):
    large = np.broadcast_to(np.uint8(100), (2, 640, 1920, 3))
    write_video(tmp_path / "a.mp4", large, FPS)

    for video in (open_video(tmp_path / "a.mp4"), open_video(large, fps=FPS), open_video(Image.fromarray(large[0]))):
        assert video.size == (1280, 427)
        assert abs(next(video.frames(1))[1].astype(int) - 100).max() <= 2


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p", "yuvj420p", "yuv422p", "gray"])
def test_pixel_formats(pixel_format, tmp_path):
    write_video(tmp_path / "a.mkv", numbered(5, 50, 66), FPS, pixel_format=pixel_format)

    video = open_video(tmp_path / "a.mkv")
    assert video.size == (66, 50)
    found = numbers(video)
    # Grey of an untagged file is of limited range.
    assert found == sorted(found) if pixel_format == "gray" else found == list(range(5))


def test_colours_are_rgb(tmp_path):
    colour = np.array([200, 60, 30], np.uint8)
    write_video(tmp_path / "a.mp4", np.broadcast_to(colour, (3, 48, 64, 3)), FPS)

    assert abs(next(open_video(tmp_path / "a.mp4").frames(1))[1].astype(int) - colour).max() <= 4


IMAGES = {
    "png": image_bytes("PNG"),
    "transparent": image_bytes("PNG", two_colours().convert("RGBA")),
    "jpeg": image_bytes("JPEG", quality=95),
    "webp": image_bytes("WEBP", lossless=True),
    "bmp": image_bytes("BMP"),
    "tiff": image_bytes("TIFF"),
    "pil": two_colours(),
    "array": np.asarray(two_colours()),
    "tensor": torch.tensor(np.asarray(two_colours())).permute(2, 0, 1),
}


@pytest.mark.parametrize("form", IMAGES)
def test_an_image_is_one_frame(form):
    assert is_video_object(IMAGES[form])
    image = open_video(IMAGES[form])

    ((time, pixels),) = image.frames(5)
    assert (image.is_image, image.has_audio, image.duration, image.size) == (True, False, 0.0, (80, 60))
    assert time == 0.0
    np.testing.assert_allclose(pixels[10, 10], (250, 10, 10), atol=5)
    np.testing.assert_allclose(pixels[-10, 10], (10, 10, 250), atol=5)
    assert list(image.frames(5, start=0.2)) == []


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_pil_images_of_any_mode(mode):
    assert open_video(two_colours().convert(mode)).size == (80, 60)


def test_exif_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    data = image_bytes("JPEG", exif=exif, quality=95)

    for image in (open_video(data), open_video(Image.open(io.BytesIO(data)))):
        assert image.size == (60, 80)
        pixels = next(image.frames(1))[1]
        assert pixels[40, -5, 0] > 200 and pixels[40, 5, 2] > 200


class Decoder:
    """The protocol of `torchcodec.decoders.VideoDecoder`, of frames at 10 per second whose times start at 2 s."""

    metadata = SimpleNamespace(begin_stream_seconds=2.0, end_stream_seconds=4.0, average_fps=10.0)

    def get_frames_played_at(self, seconds):
        if not all(2.0 <= second < 4.0 for second in seconds):
            raise RuntimeError("Invalid pts")
        frames = numbered(20)[[int((second - 2.0) * 10) for second in seconds]]
        return SimpleNamespace(data=torch.tensor(frames).permute(0, 3, 1, 2))


FRAMES = np.array(numbered(20))
BARE = {
    "array": FRAMES,
    "channels first": FRAMES.transpose(0, 3, 1, 2),
    "tensor": torch.tensor(FRAMES),
    "tensor, channels first": torch.tensor(FRAMES).permute(0, 3, 1, 2),
    "list of arrays": list(FRAMES),
    "list of tensors": list(torch.tensor(FRAMES)),
    "list of PIL images": [Image.fromarray(frame) for frame in FRAMES],
    "tuple": tuple(FRAMES),
    "dict": {"frames": FRAMES, "fps": FPS},
    "dict of images": {"frames": list(FRAMES), "fps": FPS},
}


@pytest.mark.parametrize("form", BARE)
def test_bare_frames(form):
    video = open_video(BARE[form], fps=None if "dict" in form else FPS)

    assert is_video_object(BARE[form])
    assert (video.duration, video.size, video.has_audio, video.is_image) == (2.0, (64, 48), False, False)
    assert numbers(video) == list(range(20))
    assert numbers(video, 4) == [0, 2, 5, 7, 10, 12, 15, 17]
    assert numbers(video, start=0.5, end=0.8) == [5, 6, 7]


def test_decoders():
    assert is_video_object(Decoder())
    video = open_video(Decoder())

    assert (video.duration, video.size, video.has_audio) == (2.0, (64, 48), False)
    assert numbers(video) == list(range(20))
    assert numbers(video, 4, start=0.5) == [5, 7, 10, 12, 15, 17]
    broken = Decoder()
    broken.get_frames_played_at = lambda seconds: Decoder.get_frames_played_at(broken, [9.0])
    with pytest.raises(ValueError, match=r"Decoder cannot decode its video at 0.0 s: Invalid pts"):
        open_video(broken)


def test_the_decoder_of_torchcodec(encoded):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))

    assert numbers(open_video(decoders.VideoDecoder(str(encoded("mp4"))))) == list(range(40))


FILES = {
    "path": lambda path: str(path),
    "os.PathLike": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "dict of a path": lambda path: {"path": str(path)},
    "dict of bytes": lambda path: {"path": None, "bytes": path.read_bytes()},
    "arrow row": lambda path: pa.array([{"bytes": path.read_bytes(), "path": None}])[0],
}


@pytest.mark.parametrize("form", FILES)
def test_every_form_of_a_file_gives_the_same_frames(form, encoded):
    value = FILES[form](encoded("webm"))

    assert is_video_object(value)
    video = open_video(value)
    gc.collect()
    for _ in range(2):
        assert numbers(video) == list(range(40))


@pytest.mark.parametrize(
    "value",
    [None, [], ["a.mp4", "b.mp4"], [FRAMES, FRAMES], {"video": "a.mp4"}, {"fps": 5}, 3.5, (0.1, 0.2), np.zeros(5)],
)
def test_collections_and_other_objects(value):
    assert not is_video_object(value)


def test_iterations_are_independent_and_close_their_files(encoded, monkeypatch):
    opened = []
    open_demuxer = video_files.open_demuxer
    monkeypatch.setattr(
        video_files, "open_demuxer", lambda *args, **kwargs: opened.append(open_demuxer(*args, **kwargs)) or opened[-1]
    )
    video = open_video(encoded("mp4"))
    first, second = video.frames(FPS), video.frames(FPS)

    assert [number_of(next(first)[1]), number_of(next(first)[1]), number_of(next(second)[1])] == [0, 1, 0]
    first.close()
    assert number_of(next(second)[1]) == 1
    second.close()
    assert len(opened) == 3
    for container in opened:
        with pytest.raises(AssertionError, match="not open"):
            container.seek(0)


def test_memory_does_not_grow_with_the_duration(tmp_path):
    frames = np.broadcast_to(numbered(60, 240, 320)[:, None], (60, FPS, 240, 320, 3)).reshape(-1, 240, 320, 3)
    write_video(tmp_path / "a.mp4", frames, FPS, g="50")
    frame_bytes = 240 * 320 * 3

    tracemalloc.start()
    shown = sum(1 for _ in open_video(tmp_path / "a.mp4").frames(FPS))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert shown == 600
    assert peak < 5 * frame_bytes


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
def test_truncated_files_raise_as_for_audio(name, share, encoded):
    data = encoded(name).read_bytes()

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


def test_the_size_of_frames_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(video_files, "MAX_PIXELS", 64 * 48 - 1)
    write_video(tmp_path / "a.mp4", numbered(2), FPS)

    with pytest.raises(ValueError, match=r"a\.mp4 has frames of 64 x 48 pixels; at most 3071 are decoded\. Scale it"):
        open_video(tmp_path / "a.mp4")


def test_tables_larger_than_the_file_are_refused(encoded):
    data = bytearray(encoded("mp4").read_bytes())
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


def wave_bytes(kind="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, write_tone(0.5), 48_000, format=kind)
    return buffer.getvalue()


def with_cover(mp3):
    """An MP3 with a picture in its ID3 tag."""
    picture = b"\0image/jpeg\0\x03\0" + image_bytes("JPEG")
    frame = b"APIC" + struct.pack(">I", len(picture)) + bytes(2) + picture
    size = bytes(len(frame) >> 7 * place & 127 for place in (3, 2, 1, 0))
    return b"ID3\x03\0\0" + size + frame + mp3


REFUSED = {
    "empty": (b"", r"the video file is empty \(0 bytes\); use a whole video file"),
    "text": (
        b"Happy? " * 99,
        r"the video file is not readable video \(.*: it is corrupt, truncated, or in an unknown f",
    ),
    "missing": ("absent.mp4", r"Cannot read absent\.mp4 \(.*No such file.*\); check the path or URL"),
    "folder": (".", r"Cannot read \. \(.*Is a directory.*\); check the path or URL"),
    "sound": (wave_bytes(), r"the video file has no video track; use a file with video"),
    "sound with a cover": (with_cover(wave_bytes("MP3")), r"the video file has no video track; use a file with video"),
    "playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\na.ts\n", r"is not readable video \("),
    "script": (b"ffconcat version 1.0\nfile a.mp4\n", r"is not readable video \("),
    "vector graphics": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", r"is not readable video"),
    "text file": (io.StringIO("RIFF"), r"StringIO returns str instead of bytes; open the file with"),
    "dict without a video": (
        {"path": None, "bytes": None},
        r"dict with keys \['path', 'bytes'\] is not a video: it needs",
    ),
    "dict of a file with fps": ({"path": "a.mp4", "fps": 5}, r"fps=5 does not apply to a file; leave it out"),
    "dict without fps": ({"frames": FRAMES}, r"array of shape \(20, 48, 64, 3\) needs fps, the number of frames per"),
    "array without fps": (
        FRAMES,
        r"array of shape \(20, 48, 64, 3\) needs fps, .*: pass fps=25, or \{'frames', 'fps'\}",
    ),
    "list without fps": (list(FRAMES), r"list of 20 images needs fps"),
    "floats": (FRAMES / 255, r"has dtype float64, of unknown scale; pass uint8 RGB in \[0, 255\]: \(255 \* frames\)"),
    "grey": (FRAMES[..., :1], r"array of shape \(48, 64, 1\) is not an image; it must be RGB of shape"),
    "batch": (
        FRAMES[None],
        r"array of shape \(1, 20, 48, 64, 3\) is not one video; .* Pass a batch as a list of videos",
    ),
    "no frames": (FRAMES[:0], r"array of shape \(0, 48, 64, 3\) has no frames"),
    "empty list": ([], r"list of 0 images has no frames"),
    "no pixels": (np.zeros((4, 0, 64, 3), np.uint8), r"array of shape \(0, 64, 3\) is not an image"),
    "list of sizes": (
        [FRAMES[0], FRAMES[0, :20]],
        r"list of 2 images has images of different sizes, \(20, 64, 3\) and \(48, 64, 3\); resize them to one",
    ),
    "list of paths": (["a.png", "b.png"], r"list of 2 images: 0 is a str, not an image; pass a path or http"),
    "number": (3.5, r"float is not a video input; pass a path or http\(s\) URL of a video or image file, its bytes"),
    "nothing": (None, r"NoneType is not a video input"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_at_once(case):
    video, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        open_video(video)


def test_fps_is_for_bare_frames_only(encoded):
    for video, message in (
        (encoded("mp4"), r"fps=25 does not apply to .*\.mp4, which has its own timestamps \(10 frames per second\)"),
        (Decoder(), r"fps=25 does not apply to Decoder, which has its own timestamps \(10 frames per second\)"),
        (two_colours(), r"fps=25 does not apply to one image; leave it out, or pass a list of frames"),
        ({"frames": FRAMES, "fps": 5}, r"fps=25 contradicts the fps=5 of the video's dict; leave one of them out"),
    ):
        with pytest.raises(ValueError, match=message):
            open_video(video, fps=25)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), True, "25", 1001])
def test_rates_are_checked(fps):
    with pytest.raises(ValueError, match=r"^fps=.* must be a positive number of frames|^fps=1001 is out of range"):
        open_video(FRAMES, fps=fps)
    with pytest.raises(
        ValueError, match=r"^frames_per_second=.* must be a positive|^frames_per_second=1001 is out of"
    ):
        open_video(FRAMES, fps=25).frames(fps)


@pytest.mark.parametrize("window", [(-1, None), (2, 1), (1, 1), (float("nan"), None), (float("inf"), None)])
def test_windows_are_checked(window):
    with pytest.raises(ValueError, match=r"is not a window of seconds; valid is 0 <= start < end"):
        open_video(FRAMES, fps=25).frames(5, *window)


def test_nothing_is_printed_and_importing_is_light(encoded):
    code = (
        "import sys; from mmemo.video.frames import open_video\n"
        "assert not {'av', 'torch', 'PIL'} & sys.modules.keys()\n"
        "print(len(list(open_video(sys.argv[1]).frames(5))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, encoded("mp4")], capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("20\n", "")


def test_without_pyav_the_error_names_it(encoded, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)

    assert numbers(open_video(FRAMES, fps=FPS)) == list(range(20))
    with pytest.raises(ValueError, match=r"is not readable video \(video needs PyAV; pip install av\)"):
        open_video(encoded("mp4"))
