"""Writes short video files with PyAV, for tests."""

from fractions import Fraction

import av
import numpy as np


RAW = {"gif": "rgb8", "mjpeg": "yuvj420p", "png": "rgb24"}  # others: yuv420p
FAST = {
    "libx264": {"crf": "18", "preset": "ultrafast"},
    "libvpx-vp9": {"crf": "20", "b": "0", "cpu-used": "8", "deadline": "realtime"},
}
# Of the times of `write_video`; every container can represent them.
TICKS = 1000


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
