"""
Compares the batched feature extractor with a loop over librosa and with Whisper's feature extractor.

    python benchmarks/feature_extraction.py
    python benchmarks/feature_extraction.py path/to/folder --repetitions 30

All rows use the same clips of 3 s in memory. The rows of a repetition run one after the other, so that other load on
the machine affects all of them. The table shows the median over the repetitions.
"""

import argparse
import itertools
import os
import statistics
import time
from pathlib import Path


CLIPS = 64
SECONDS = 3
SAMPLING_RATE = 16_000
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}


def load_clips(folder, count=CLIPS):
    """Returns `count` clips of `SECONDS`: the folder's files, repeated or cut to this length."""
    import numpy as np

    from mmemo.audio.loading import load_audio

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise SystemExit(f"No audio files ({', '.join(sorted(AUDIO_SUFFIXES))}) in {folder}; pass a folder with some.")
    files = [load_audio(path, target_sampling_rate=SAMPLING_RATE) for path in paths[:count]]
    return [np.resize(file, SECONDS * SAMPLING_RATE) for file in itertools.islice(itertools.cycle(files), count)]


def contestants(clips):
    """Returns the functions to time by group; the first one of a group is ours, and the reference of the others."""
    import librosa
    from transformers import WhisperFeatureExtractor

    from modeling_mmemo.feature_extraction_mmemo import MMEmoFeatureExtractor

    librosa_preset = MMEmoFeatureExtractor("librosa", features=("mel", "mfcc"))
    whisper_preset = MMEmoFeatureExtractor("whisper")
    whisper = WhisperFeatureExtractor()

    def librosa_loop():
        for clip in clips:
            librosa.feature.melspectrogram(y=clip, sr=SAMPLING_RATE, n_mels=128)
            librosa.feature.mfcc(y=clip, sr=SAMPLING_RATE, n_mfcc=13)

    def whisper_padded_to(padding):
        return lambda: whisper(clips, sampling_rate=SAMPLING_RATE, padding=padding, return_tensors="np")

    return {
        "128 mel bands and 13 MFCCs": {
            "mmemo, preset librosa": lambda: librosa_preset(clips),
            "loop over librosa.feature": librosa_loop,
        },
        "80 log-mel bands": {
            "mmemo, preset whisper": lambda: whisper_preset(clips),
            "WhisperFeatureExtractor, 30 s padding": whisper_padded_to("max_length"),
            "WhisperFeatureExtractor, no padding": whisper_padded_to("longest"),
        },
    }


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1] / "examples" / "audio")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--clips", type=int, default=CLIPS, help="number of clips in a batch")
    args = parser.parse_args(argv)

    groups = contestants(load_clips(args.folder, args.clips))
    timings = {name: [] for group in groups.values() for name in group}
    for repetition in range(args.repetitions + 1):
        for name, extract in itertools.chain.from_iterable(group.items() for group in groups.values()):
            start = time.perf_counter()
            extract()
            if repetition:  # the first one is a warm-up
                timings[name].append(1000 * (time.perf_counter() - start))

    print(
        f"{args.clips} clips of {SECONDS} s, {os.cpu_count()} CPUs, median (fastest) of {args.repetitions} repetitions"
    )
    for title, group in groups.items():
        print(f"\n{title}")
        ours = statistics.median(timings[next(iter(group))])
        for name in group:
            median = statistics.median(timings[name])
            print(f"  {name:<40}{median:8.1f} ms  ({min(timings[name]):.1f}){median / ours:8.2f} x")


if __name__ == "__main__":
    main()
