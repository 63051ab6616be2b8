"""
Compares the timeline of a long recording with predictions for separate pieces, and times a live stream.

    python benchmarks/timeline.py
    python benchmarks/timeline.py path/to/folder --minutes 60 --repetitions 3
    python benchmarks/timeline.py --memory --minutes 60

The recording consists of the folder's clips in random order, with pauses of 0.2 to 1 s and an artificial transcript.
The rows of a repetition run one after the other, so that other load on the machine affects all of them. `--memory`
predicts the timeline of such a recording in a new process per file format, and prints the peak memory of the process.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


SAMPLING_RATE = 16_000
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
SENTENCE = ["I", "have", "been", "waiting", "for", "an", "hour", "and", "nobody", "answers", "the", "phone"]
# Format, subtype, rate in Hz and channels of the files for --memory.
FORMATS = {
    "call.wav": ("WAV", "FLOAT", 48_000, 2),
    "call.flac": ("FLAC", "PCM_16", 44_100, 2),
    "call.mp3": ("MP3", "MPEG_LAYER_III", 44_100, 1),
    "call.ogg": ("OGG", "OPUS", 48_000, 1),
}


def make_recording(folder, minutes):
    """Returns the samples, and the words with their timestamps."""
    import numpy as np

    from modeling_mmemo import load_audio

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise SystemExit(f"No audio files ({', '.join(sorted(AUDIO_SUFFIXES))}) in {folder}; pass a folder with some.")
    clips = [load_audio(path) for path in paths[:200]]
    rng = np.random.default_rng(0)
    parts, words, samples = [], [], 0
    while samples < minutes * 60 * SAMPLING_RATE:
        clip = clips[rng.integers(len(clips))]
        start, step = samples / SAMPLING_RATE, len(clip) / SAMPLING_RATE / len(SENTENCE)
        words += [(word, start + n * step, start + (n + 1) * step) for n, word in enumerate(SENTENCE)]
        parts += [clip, np.zeros(rng.integers(SAMPLING_RATE // 5, SAMPLING_RATE), np.float32)]
        samples += len(clip) + len(parts[-1])
    return np.concatenate(parts), words


def contestants(emotion, samples, words):
    """Returns the functions to time, each with the share of the recording that it processes."""

    def pieces(length, hop, until):
        """Yields items of `length` samples; a small offset keeps pauses from being digital silence, which raises."""
        for start in range(0, until, hop):
            first, last = start / SAMPLING_RATE, (start + length) / SAMPLING_RATE
            text = " ".join(word for word, begin, end in words if begin < last and end > first)
            yield {"audio": samples[start : start + length] + 1e-4, "text": text}

    length, hop = round(3.5 * SAMPLING_RATE), round(0.5 * SAMPLING_RATE)
    whole, part = len(samples), len(samples) // 20
    return {
        "timeline, audio and text": (
            lambda: emotion({"audio": samples, "word_times": words}, return_timeline=True),
            1,
        ),
        "timeline, audio only": (lambda: emotion(samples, return_timeline=True), 1),
        "pipeline on pieces of 3.5 s": (lambda: list(emotion(pieces(length, length, whole), batch_size=8)), 1),
        "pipeline on 3.5 s around each 0.5 s": (
            lambda: list(emotion(pieces(length, hop, part), batch_size=8)),
            part / whole,
        ),
    }


def time_stream(emotion, samples, seconds):
    """Returns the milliseconds of each call with half a second of audio."""
    from modeling_mmemo import EmotionStream

    stream, half, calls = EmotionStream(emotion), SAMPLING_RATE // 2, []
    for start in range(0, min(seconds * SAMPLING_RATE, len(samples) - half), half):
        begin = time.perf_counter()
        stream.feed(samples[start : start + half])
        calls.append(1000 * (time.perf_counter() - begin))
    return calls


def compare(args):
    from modeling_mmemo import load_pipeline

    emotion = load_pipeline()
    samples, words = make_recording(args.folder, args.minutes)
    emotion({"audio": samples[: 60 * SAMPLING_RATE], "word_times": words[:100]}, return_timeline=True)  # warm-up
    rows = contestants(emotion, samples, words)
    factors = {name: [] for name in rows}
    calls = []
    for _ in range(args.repetitions):
        for name, (run, share) in rows.items():
            start = time.perf_counter()
            run()
            factors[name].append((time.perf_counter() - start) / (share * len(samples) / SAMPLING_RATE))
        calls += time_stream(emotion, samples, seconds=60)

    minutes = len(samples) / SAMPLING_RATE / 60
    print(f"{minutes:.1f} minutes, {os.cpu_count()} CPUs, median (fastest) of {args.repetitions} repetitions")
    print("\nreal-time factor: seconds of computing per second of audio")
    ours = statistics.median(next(iter(factors.values())))
    for name, values in factors.items():
        median = statistics.median(values)
        print(f"  {name:<40}{median:8.4f}  ({min(values):.4f}){median / ours:8.2f} x")
    print("\nlive: a call of EmotionStream.feed with 0.5 s of audio")
    # One call in three completes a window, which returns three segments.
    segments = [sum(three) / 3 for three in zip(calls[::3], calls[1::3], calls[2::3])]
    for name, values in (("a segment, over three of them", segments), ("a call", calls)):
        quantiles = statistics.quantiles(values, n=20)
        print(f"  {name:<40}{quantiles[9]:8.1f} ms median {quantiles[18]:8.1f} ms at 95 %")


def measure_memory(args):
    import numpy as np
    import soundfile

    samples, _ = make_recording(args.folder, args.minutes)
    print(f"{len(samples) / SAMPLING_RATE / 60:.1f} minutes; peak memory of the process")
    with tempfile.TemporaryDirectory() as folder:
        for name, (container, subtype, rate, channels) in FORMATS.items():
            path = Path(folder) / name
            with soundfile.SoundFile(path, "w", rate, channels, subtype, format=container) as file:
                for start in range(0, len(samples), SAMPLING_RATE * 10):
                    block = samples[start : start + SAMPLING_RATE * 10]
                    # Resampled without a filter: the sound does not matter here.
                    places = np.arange(len(block) * rate // SAMPLING_RATE) * SAMPLING_RATE // rate
                    file.write(np.repeat(block[places][:, None], channels, axis=1))
            size = path.stat().st_size / 2**20
            peak = subprocess.run(
                [sys.executable, __file__, "--peak-of", str(path)], capture_output=True, check=True, text=True
            ).stdout
            layout = f"{subtype:<16}{rate / 1000:5.1f} kHz x {channels}"
            print(f"  {name:<12}{layout}{size:9.0f} MiB{peak.strip():>8} MiB of memory")
            path.unlink()


def print_peak(path):
    from modeling_mmemo import load_pipeline

    load_pipeline()(str(path), return_timeline=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "examples" / "audio")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak_of:
        print_peak(args.peak_of)
    elif args.memory:
        measure_memory(args)
    else:
        compare(args)


if __name__ == "__main__":
    main()
