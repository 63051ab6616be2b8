"""Audio files made to overload a service."""

import io
import struct
from fractions import Fraction

import numpy as np
import soundfile


def endless_opus(seconds, bitrate=6_000):
    """Ogg Opus of any duration, made quickly: the same packet of 60 ms repeated."""
    import av

    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = 48_000, "mono", "s16", bitrate
    encoder.options = {"frame_duration": "60", "vbr": "off"}
    samples = np.random.default_rng(0).integers(-9_000, 9_000, 2880 * 8, np.int16)
    packets = []
    for first in range(0, len(samples), 2880):
        frame = av.AudioFrame.from_ndarray(samples[None, first : first + 2880], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = 48_000, Fraction(1, 48_000), first
        packets += encoder.encode(frame)
    payload = bytes(packets[-1])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000)
        stream.codec_context.layout = "mono"
        for number in range(round(seconds / 0.06)):
            packet = av.Packet(payload)
            packet.stream, packet.time_base = stream, Fraction(1, 48_000)
            packet.pts = packet.dts = 2880 * number
            packet.duration = 2880
            container.mux(packet)
    return buffer.getvalue()


def forged_flac(rate=655_350, channels=8, samples=2**36 - 1):
    """FLAC with a header that announces more samples than the file has."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((4096, 2)), 16_000, format="FLAC")
    data = bytearray(buffer.getvalue())
    # STREAMINFO follows "fLaC" and a header of 4 bytes. After 10 bytes it has 20 bits of sampling rate, 3 of channels
    # minus one, 5 of bits per sample minus one, and 36 of samples. Source: RFC 9639, section 8.2.
    data[18:26] = struct.pack(">Q", rate << 44 | (channels - 1) << 41 | 15 << 36 | samples)
    return bytes(data)


def forged_wav(rate=16_000, channels=1024, data_bytes=2**31):
    """WAV with a header that announces more samples than the file has."""
    block = 2 * channels
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + data_bytes,
        b"WAVE",
        b"fmt ",
        16,
        1,
        channels,
        rate,
        min(rate * block, 2**32 - 1),
        block,
        16,
        b"data",
        data_bytes,
    )
    return header + bytes(block * 100)


def noise(seconds, rate=16_000, channels=1, kind="WAV"):
    """A 16-bit file of noise."""
    buffer = io.BytesIO()
    samples = np.random.default_rng(0).normal(scale=0.1, size=(round(seconds * rate), channels)).astype(np.float32)
    soundfile.write(buffer, samples, rate, format=kind, subtype="PCM_16")
    return buffer.getvalue()
