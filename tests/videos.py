"""Writes short videos and images, for tests."""

import io
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image


RAW = {"gif": "rgb8", "mjpeg": "yuvj420p", "png": "rgb24"}  # others: yuv420p
FAST = {
    "libx264": {"crf": "18", "preset": "ultrafast"},
    "libvpx-vp9": {"crf": "20", "b": "0", "cpu-used": "8", "deadline": "realtime"},
}
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
# Of the times of `write_video`; every container can represent them.
TICKS = 1000


@cache
def short_video(suffix=".mp4", has_sound=True):
    """Returns the bytes of a video of 0.5 s: 5 pictures of 32 x 32 pixels, and a tone."""
    tone = np.sin(np.arange(8000) / 10).astype(np.float32) / 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"short{suffix}"
        write_video(path, np.full((5, 32, 32, 3), 128, np.uint8), samples=tone if has_sound else None)
        return path.read_bytes()


def write_video(
    path,
    frames,
    fps=10,
    samples=None,
    sampling_rate=16_000,
    rotation=0,
    times=None,
    codec="libx264",
    pixel_format=None,
    sound_start=0.0,
    aspect=None,
    **options,
):
    """
    Writes a video file, by default H.264; with an AAC or Opus track if there are samples.

    Args:
        path (`Path`): Where to write; its suffix names the container.
        frames (`np.ndarray` of shape `(frames, height, width, 3)`): uint8 RGB, height and width even.
        fps (`int`): Frames per second.
        samples (`np.ndarray` of shape `(samples,)`, *optional*): float32 mono sound, in [-1, 1].
        sampling_rate (`int`): Of the samples, in Hz.
        rotation (`int`): The rotation in degrees, counterclockwise, that the file asks a player for.
        times (`list[float]`, *optional*): Start of each frame in seconds, for a variable frame rate or a late start.
        codec (`str`): FFmpeg's name of the encoder.
        pixel_format (`str`, *optional*): FFmpeg's name of the format that is encoded.
        sound_start (`float`): Start of the sound in seconds.
        aspect (`Fraction`, *optional*): Width of a pixel, relative to its height.
        options: Options of the encoder.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=fps, options=FAST.get(codec, {}) | options)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = pixel_format or RAW.get(codec, "yuv420p")
        if times is not None:
            video.codec_context.time_base = Fraction(1, TICKS)
        if aspect is not None:
            video.codec_context.sample_aspect_ratio = aspect
        if rotation:
            video.set_display_rotation(rotation)
        sound = None
        if samples is not None:
            sound = container.add_stream("libopus" if codec.startswith("libvpx") else "aac", rate=sampling_rate)
            sound.codec_context.layout = "mono"
        packets = []
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if pixel_format is not None or codec == "gif":
                frame = frame.reformat(format=video.pix_fmt)
            if times is not None:
                frame.time_base, frame.pts = Fraction(1, TICKS), round(TICKS * times[index])
            packets += video.encode(frame)
        packets += video.encode()
        if sound is not None:
            packets += _encode_sound(sound, samples, sampling_rate, sound_start)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


def _encode_sound(sound, samples, sampling_rate, start):
    resampler = av.AudioResampler(sound.codec_context.format, "mono", sampling_rate)
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis].astype(np.float32), "fltp", "mono")
    frame.sample_rate, frame.time_base, frame.pts = sampling_rate, Fraction(1, sampling_rate), 0
    packets = []
    for part in resampler.resample(frame):
        part.pts += round(start * sampling_rate)
        packets += sound.encode(part)
    return packets + sound.encode()


def numbered(count, height=48, width=64):
    """Returns frames of shape `(count, height, width, 3)` whose grey level is their number; at most 60."""
    levels = (20 + 4 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def number_of(pixels):
    """Returns the number of a decoded frame of `numbered`."""
    return round((float(pixels.mean()) - 20) / 4)


FRAMES = np.array(numbered(20))


def encode_numbered(name, folder):
    """Returns the path of 40 numbered frames at 10 frames per second in one of the `CODINGS`."""
    codec, options = CODINGS[name]
    path = folder / f"{name}.{name.split(',')[0]}"
    write_video(path, numbered(40), FPS, codec=codec, **options)
    return path


def numbers(video, rate=FPS, **window):
    """Returns the numbers of the frames of a `VideoSource` on a grid."""
    return [number_of(pixels) for _, pixels in video.frames(rate, **window)]


def tone(seconds, rate=48_000):
    return (0.2 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def image_bytes(kind="PNG", image=None, **options):
    buffer = io.BytesIO()
    (image or two_colours()).save(buffer, kind, **options)
    return buffer.getvalue()


def two_colours():
    """Red above blue, 80 x 60."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:30], pixels[30:] = (250, 10, 10), (10, 10, 250)
    return Image.fromarray(pixels)
