"""
Measures what a video costs: the parts of a prediction, the speed of following a face, and memory. Linux only.

    python benchmarks/video.py
    python benchmarks/video.py path/to/folder --repetitions 9
    python benchmarks/video.py --memory --minutes 60

The video has 10 s of 1280 x 720 pixels at 25 frames per second, H.264, with sound: a portrait that moves and grows
over a background, and the folder's clips. The model has the embedded audio and text encoders and a face encoder, with
random weights; time does not depend on them. Times are CPU times of all threads, so that other load on the machine
counts little. The rows of a repetition run one after the other. `--memory` follows the face through a long video of
320 x 240 pixels, at the model's rate and in a new process, and prints the memory of that process.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path

from timeline import SAMPLING_RATE, make_recording


PORTRAIT = Path(__file__).parents[1] / "tests" / "faces" / "astronaut.jpg"
HEAD = (96, 0, 352, 256)  # left, top, right and bottom of its part
SECONDS, FPS = 10, 25
SPEECH_SECONDS = 9  # more than ten are predicted in several windows
SIZE, SMALL_SIZE = (1280, 720), (320, 240)
MODEL_FPS = 5  # frames per second that the model encodes
TRACKED_FRAMES = 75
SENTENCE = "I have been waiting for an hour and nobody answers the phone."
# Side of the portrait relative to the picture's height: its mean, and the change of it.
SIDE, ZOOM = 0.8, 0.2


def draw_frames(size, seconds):
    """Yields the frames; the last one is followed by the first one without a jump."""
    import numpy as np
    from PIL import Image

    portrait = Image.open(PORTRAIT).crop(HEAD)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (size[1] // 20, size[0] // 20, 3), np.uint8)
    background = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    for index in range(round(seconds * FPS)):
        phase = 2 * np.pi * index / (seconds * FPS)
        side = round(size[1] * (SIDE + ZOOM * np.sin(2 * phase)))
        frame = background.copy()
        left = round((size[0] - side) * (0.5 + 0.4 * np.sin(phase)))
        frame.paste(portrait.resize((side, side), Image.Resampling.BILINEAR), (left, (size[1] - side) // 2))
        yield frame


def write_video(path, size, seconds, folder):
    """Writes a video with the sound of the folder's clips."""
    import av

    samples, _ = make_recording(folder, seconds / 60)
    with av.open(str(path), "w") as container:
        # Without frames that depend on later ones, so that copies can follow each other.
        video = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "bf": "0"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLING_RATE, layout="mono")
        sound = av.AudioFrame.from_ndarray(samples[None, : SPEECH_SECONDS * SAMPLING_RATE], "fltp", "mono")
        sound.sample_rate, sound.time_base, sound.pts = SAMPLING_RATE, Fraction(1, SAMPLING_RATE), 0
        for frame in draw_frames(size, seconds):
            container.mux(video.encode(av.VideoFrame.from_image(frame)))
        container.mux(video.encode())
        container.mux([*audio.encode(sound), *audio.encode()])


def repeat_video(source, path, repetitions):
    """Writes the video track several times, one after the other, without encoding it again."""
    import av

    with av.open(str(path), "w") as container:
        copy = None
        for repetition in range(repetitions):
            with av.open(str(source)) as original:
                track = original.streams.video[0]
                copy = copy or container.add_stream_from_template(track)
                for packet in original.demux(track):
                    if packet.dts is None:
                        continue
                    shift = round(repetition * track.frames / FPS / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    container.mux(packet)


def load_emotion():
    """Returns the pipeline of a newly initialised model with three encoders."""
    import torch

    from mmemo.runtime.graph import EMBEDDED_MODEL
    from modeling_mmemo import (
        MMEmoConfig,
        MMEmoForEmotionRecognition,
        MMEmoProcessor,
        MMEmoVideoConfig,
        load_pipeline,
    )

    torch.set_num_threads(1)
    config = MMEmoConfig.from_pretrained(EMBEDDED_MODEL, video_config=MMEmoVideoConfig())
    known = MMEmoProcessor.from_pretrained(EMBEDDED_MODEL)
    processor = MMEmoProcessor(known.feature_extractor, known.tokenizer, frames_per_second=MODEL_FPS)
    return load_pipeline(MMEmoForEmotionRecognition(config), processor=processor)


def decode(path):
    """Decodes all frames as `mmemo.video` does; returns those that the model's rate needs."""
    import av

    from mmemo.video.video_files import DECODING_THREADS

    with av.open(str(path)) as container:
        track = container.streams.video[0]
        track.codec_context.thread_type, track.codec_context.thread_count = "AUTO", DECODING_THREADS
        return [frame for index, frame in enumerate(container.decode(track)) if index % (FPS // MODEL_FPS) == 0]


def make_parts(emotion, path):
    """Returns the parts of a prediction as functions by name; an indented one is part of the one above."""
    from mmemo.video.face import read_face
    from mmemo.video.frames import open_video
    from mmemo.video.landmarks import load_landmarker
    from mmemo.video.pixels import FrameConverter

    landmarker, frames, convert = load_landmarker(), decode(path), FrameConverter()
    followed = list(open_video(path).frames(MODEL_FPS))
    pictures = [picture for _, picture in followed]
    regions = [landmarker.detect(picture)[0] for picture in pictures]
    item = {"video": path, "text": SENTENCE}
    inputs = emotion.collate([emotion.prepare(item)])

    def prepare_sound():
        emotion.collate([emotion.processor.prepare(audio=str(path), text=SENTENCE)])

    return {
        f"decode {SECONDS * FPS} frames": partial(decode, path),
        f"convert {len(frames)} frames": lambda: [convert(frame) for frame in frames],
        f"follow the face in {len(followed)} frames": partial(read_face, followed, MODEL_FPS),
        f"  detect, once a second, {SECONDS} frames": lambda: [
            landmarker.detect(picture) for picture in pictures[::MODEL_FPS]
        ],
        f"  landmarks, blendshapes, {len(followed)} frames": lambda: [
            landmarker.face(picture, region) for picture, region in zip(pictures, regions)
        ],
        "sound and text to model inputs": prepare_sound,
        "model, PyTorch": lambda: emotion.forward(dict(inputs)),
        "whole call": lambda: emotion(item),
    }


def compare(args):
    from mmemo.video.face import read_face
    from mmemo.video.frames import open_video

    emotion = load_emotion()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, SIZE, SECONDS, args.folder)
        parts = make_parts(emotion, path)
        tracked = list(islice(open_video(path).frames(FPS), TRACKED_FRAMES))
        parts["every frame"] = partial(read_face, tracked, FPS)
        seconds = {name: [] for name in parts}
        for repetition in range(args.repetitions + 1):
            for name, run in parts.items():
                start = time.process_time()
                run()
                if repetition:  # the first one warms up
                    seconds[name].append(time.process_time() - start)

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    speed, whole = len(tracked) / medians.pop("every frame"), medians.pop("whole call")
    medians["rest of the call"] = whole - sum(value for name, value in medians.items() if not name.startswith(" "))
    medians["whole call"] = whole
    width, height = SIZE
    print(f"{SECONDS} s of {width} x {height} at {FPS} frames per second, {MODEL_FPS} per second followed")
    print(f"CPU time, median of {args.repetitions} repetitions on {os.cpu_count()} CPUs")
    print(f"\n{'':<44}{'ms':>8}{'share':>9}{'real-time factor':>20}")
    for name, value in medians.items():
        print(f"  {name:<42}{1000 * value:8.1f}{value / whole:9.1%}{value / SECONDS:20.4f}")
    print(f"\nfollowing the face in every frame: {speed:.1f} frames per second on one core")


def measure_memory(args):
    with tempfile.TemporaryDirectory() as folder:
        short, path = Path(folder) / "short.mp4", Path(folder) / "long.mp4"
        write_video(short, SMALL_SIZE, SECONDS, args.folder)
        repeat_video(short, path, max(1, round(60 * args.minutes / SECONDS)))
        # This process has loaded torch, which the package does not need to follow a face.
        command = [sys.executable, __file__, "--memory-of", str(path)]
        print(subprocess.run(command, capture_output=True, check=True, text=True).stdout, end="")


def print_memory(path):
    from mmemo.video.face import read_face
    from mmemo.video.frames import open_video

    by_minute = []

    def frames():
        for start, picture in open_video(path).frames(MODEL_FPS):
            if start >= 60 * len(by_minute):
                by_minute.append(memory("VmRSS"))
            yield start, picture

    begin = time.process_time()
    face = read_face(frames(), MODEL_FPS)
    seconds = time.process_time() - begin
    by_minute.append(memory("VmRSS"))
    first, last, peak = by_minute[1], by_minute[-1], memory("VmHWM")
    print(f"{face.duration / 60:.1f} minutes, the face is in {face.is_present.mean():.1%} of {len(face.times)} frames")
    print(f"real-time factor {seconds / face.duration:.4f}, in CPU time")
    print(f"memory {first:.0f} MiB after the first minute, {last:.0f} MiB at the end, {peak:.0f} MiB at its peak")
    print(f"growth after the first minute {last - first:.1f} MiB")


def memory(name):
    """Returns the memory of this process in MiB, `VmRSS`, or its peak, `VmHWM`."""
    # `getrusage` includes the memory that the parent process had when it started this one.
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "examples" / "audio")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--minutes", type=float, default=60, help="length of the video for --memory")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        print_memory(args.memory_of)
    elif args.memory:
        measure_memory(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
