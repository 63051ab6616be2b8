"""Encodes audio in containers that soundfile cannot write."""

import io
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np


class Coding(NamedTuple):
    """
    Args:
        container, codec (`str`): Names of FFmpeg.
        rate (`int`): Sampling rate in Hz; AMR and Opus have few.
        has_padding (`bool`): Whether the decoded clip is longer by the encoder's delay and the rest of its last frame.
        is_lossless (`bool`): Whether decoding gives the same samples.
        video (`str`, *optional*): Codec of a video track.
        options (`dict`): Options of the container.
    """

    container: str
    codec: str
    rate: int = 16_000
    has_padding: bool = False
    is_lossless: bool = False
    video: str | None = None
    options: tuple[tuple[str, str], ...] = ()


# Where the default is another.
FORMATS = {"wavpack": "s16p", "tta": "s16", "wmav1": "fltp", "wmav2": "fltp"}
BIT_RATES = {"wmav1": 64_000, "wmav2": 64_000, "libopencore_amrnb": 12_200}
LAYOUTS = {1: "mono", 2: "stereo", 8: "7.1", 16: "hexadecagonal"}
FRAGMENTED = (("movflags", "frag_keyframe+empty_moov+default_base_moof"),)
CODINGS = {
    "m4a": Coding("ipod", "aac"),
    "m4a, 48 kHz": Coding("ipod", "aac", 48_000),
    "m4a, lossless": Coding("ipod", "alac", is_lossless=True),
    "mp4 with video": Coding("mp4", "aac", video="mpeg4"),
    "mp4, fragmented": Coding("mp4", "aac", options=FRAGMENTED, has_padding=True),
    "mov": Coding("mov", "pcm_s16le", is_lossless=True),
    "3gp": Coding("3gp", "libopencore_amrnb", 8_000),
    "aac": Coding("adts", "aac", has_padding=True),
    "webm": Coding("webm", "libopus", 48_000),
    "webm of a browser": Coding("webm", "libopus", 48_000, options=(("live", "1"),)),
    "mkv with video": Coding("matroska", "flac", video="mpeg4", is_lossless=True),
    "wma": Coding("asf", "wmav2", has_padding=True),
    "wma 1": Coding("asf", "wmav1", has_padding=True),
    "ogg flac": Coding("ogg", "flac", is_lossless=True),
    "amr": Coding("amr", "libopencore_amrnb", 8_000, has_padding=True),
    "avi with video": Coding("avi", "mp3", video="mpeg4", has_padding=True),
    "wav with mp3": Coding("wav", "mp3", has_padding=True),
    "mp3 without its length": Coding("mp3", "mp3", has_padding=True, options=(("write_xing", "0"),)),
    "mp2": Coding("mp2", "mp2", 48_000, has_padding=True),
    "ac3": Coding("ac3", "ac3", 48_000, has_padding=True),
    "flv": Coding("flv", "aac", 44_100, has_padding=True),
    "mpeg": Coding("mpeg", "mp2", 48_000, has_padding=True),
    "mpegts": Coding("mpegts", "aac", has_padding=True),
    "wavpack": Coding("wv", "wavpack", is_lossless=True),
    "tta": Coding("tta", "tta", is_lossless=True),
}


def encode(samples: np.ndarray, rate: int, coding: Coding, file: str | None = None) -> bytes:
    """Encodes int16 samples of shape `(channels, samples)`; in a file, if its name is given, to rewrite headers."""
    buffer = io.BytesIO()
    layout = LAYOUTS[len(samples)]
    with av.open(file or buffer, "w", format=coding.container, options=dict(coding.options)) as container:
        video = container.add_stream(coding.video, rate=25) if coding.video else None
        if video is not None:
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        stream = container.add_stream(coding.codec, rate=coding.rate, layout=layout)
        stream.codec_context.format = FORMATS.get(coding.codec, stream.codec_context.format)
        if coding.codec in BIT_RATES:
            stream.codec_context.bit_rate = BIT_RATES[coding.codec]
        if video is not None:
            for number in range(25 * samples.shape[1] // rate):
                picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 256, np.uint8))
                picture.pts = number
                container.mux(video.encode(picture))
            container.mux(video.encode(None))
        for first in range(0, samples.shape[1], rate):
            part = np.ascontiguousarray(samples[:, first : first + rate].T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(part, "s16", layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return open(file, "rb").read() if file else buffer.getvalue()
