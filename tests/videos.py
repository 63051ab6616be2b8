"""Writes short video files with PyAV, for tests."""

import tempfile
from functools import cache
from pathlib import Path

import av
import numpy as np


@cache
def short_video(suffix=".mp4", has_sound=True):
    """Returns the bytes of a video of 0.5 s: 5 pictures of 32 x 32 pixels, and a tone."""
    tone = np.sin(np.arange(8000) / 10).astype(np.float32) / 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"short{suffix}"
        write_video(path, np.full((5, 32, 32, 3), 128, np.uint8), samples=tone if has_sound else None)
        return path.read_bytes()


def write_video(path, frames, fps=10, samples=None, sampling_rate=16_000, rotation=0, times=None):
    """
    Writes an H.264 file, with an AAC track if there are samples; in the container that the suffix of `path` names.

    Args:
        path (`Path`): Where to write.
        frames (`np.ndarray` of shape `(frames, height, width, 3)`): uint8 RGB, height and width even.
        fps (`int`): Frames per second.
        samples (`np.ndarray` of shape `(samples,)`, *optional*): float32 mono sound, in [-1, 1].
        sampling_rate (`int`): Of the samples, in Hz.
        rotation (`int`): The rotation in degrees, counterclockwise, that the file asks a player for.
        times (`list[float]`, *optional*): Start of each frame in seconds, for a variable frame rate.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "ultrafast"})
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        sound = None
        if samples is not None:
            sound = container.add_stream("aac", rate=sampling_rate, layout="mono")
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times is not None:
                frame.time_base, frame.pts = av.time_base_fraction(1000), round(1000 * times[index])
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            track = av.AudioFrame.from_ndarray(samples[np.newaxis].astype(np.float32), "fltp", "mono")
            track.sample_rate = sampling_rate
            container.mux(sound.encode(track))
            container.mux(sound.encode())
