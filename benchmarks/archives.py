"""
Compares the engines of `mmemo predict SOURCE --output FOLDER`, and makes large archives to run it on.

    python benchmarks/archives.py path/to/folder --files 1500 --repetitions 3
    python benchmarks/archives.py path/to/folder --files 20000 --repetitions 1 --engines processes:2
    python benchmarks/archives.py path/to/folder --files 40 --minutes 10 --engines processes:2
    python benchmarks/archives.py path/to/folder --files 100000 --make archive

Every run is a process of its own and predicts the same clips, drawn from the folder at random and written with other
loudness. With `--minutes` the files are recordings of that length, such clips with pauses between them, and their
timelines are predicted. The runs of a repetition follow one another, so that other load on the machine affects all of
them. Start-up is the time of a run of one file; files per second are those of the others. The memory is the largest
resident set of a worker, and its growth is counted from the tenth part of the files on, when all buffers have their
size. `--make` writes such an archive, with subfolders of 1000 files, some MP3 files and a table of them, and runs
nothing.
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path


AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
CLIPS = Path(__file__).parents[1] / "examples" / "audio"
ENGINES = ("local:1", "processes:1", "processes:2", "ray:1", "ray:2")
FILES_PER_FOLDER = 1000
SAMPLING_RATE = 16_000
MP3_EVERY = 10
QUEUES = ("billing", "orders", "support", "returns")
POLL_SECONDS = 0.25


def make_archive(folder, archive, files, minutes=0.0, seed=0):
    """
    Writes clips of `folder`, at random loudness, or recordings of `minutes` that consist of them, to subfolders of
    `archive`, and `archive/calls.csv`, a table of them with a date and a queue. Returns the path of the table.
    """
    import numpy as np
    import soundfile

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise SystemExit(f"No audio files ({', '.join(sorted(AUDIO_SUFFIXES))}) in {folder}; pass a folder with some.")
    rng = np.random.default_rng(seed)
    archive.mkdir(parents=True, exist_ok=True)
    with (archive / "calls.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "date", "queue"])
        for number in range(files):
            if minutes:
                samples, rate = make_recording(paths, minutes, rng), SAMPLING_RATE
            else:
                samples, rate = read_clip(paths, rng)
            suffix = "mp3" if number % MP3_EVERY == 0 else "flac"
            path = Path(f"{number // FILES_PER_FOLDER:04d}") / f"{number:07d}.{suffix}"
            (archive / path).parent.mkdir(exist_ok=True)
            soundfile.write(archive / path, samples, rate)
            date = f"2026-{number % 12 + 1:02d}-{number % 28 + 1:02d}"
            table.writerow([path.as_posix(), date, QUEUES[rng.integers(len(QUEUES))]])
    return archive / "calls.csv"


def read_clip(paths, rng):
    """Returns the samples of one of the files, drawn at random, at random loudness, and their sampling rate."""
    import numpy as np
    import soundfile

    samples, rate = soundfile.read(paths[rng.integers(len(paths))], dtype="float32")
    return samples * rng.uniform(0.3, 0.9) / max(float(np.abs(samples).max()), 1e-3), rate


def make_recording(paths, minutes, rng):
    """Returns the samples of a recording of clips at `SAMPLING_RATE` and pauses of 0.2 to 1 s."""
    import numpy as np

    parts, missing = [], round(minutes * 60 * SAMPLING_RATE)
    while missing > 0:
        samples, rate = read_clip(paths, rng)
        if rate == SAMPLING_RATE and samples.ndim == 1:
            parts += [samples, np.zeros(rng.integers(SAMPLING_RATE // 5, SAMPLING_RATE), np.float32)]
            missing -= len(parts[-2]) + len(parts[-1])
    return np.concatenate(parts)


@dataclass
class Run:
    """Seconds of a run, and the largest resident set of a worker and its growth in MB."""

    seconds: float
    memory: float
    growth: float


def run_engine(engine, table, output, has_timeline):
    """Runs `mmemo predict` on the files of a table and watches its processes."""
    name, workers = engine.split(":")
    command = [sys.executable, "-m", "mmemo.cli", "predict", str(table), "--output", str(output), "--engine", name]
    command += [] if name == "local" else ["--workers", workers]
    command += ["--timeline"] if has_timeline else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid, name)
    watch.start()
    _, errors = process.communicate()
    seconds = time.perf_counter() - begin
    watch.stop()
    if process.returncode:
        raise SystemExit(f"{engine} failed: {errors[-1000:]}")
    return Run(seconds, *watch.memory_and_growth())


class MemoryWatch(threading.Thread):
    """Reads the resident sets of the workers of a run until it is stopped."""

    def __init__(self, pid, engine):
        super().__init__(daemon=True)
        self._pid, self._engine = pid, engine
        self._has_ended = threading.Event()
        self._read = {}

    def run(self):
        import psutil

        driver = psutil.Process(self._pid)
        while not self._has_ended.wait(POLL_SECONDS):
            try:
                for process in [driver] if self._engine == "local" else driver.children(recursive=True):
                    if self._engine == "local" or self._is_worker(process):
                        self._read.setdefault(process.pid, []).append(process.memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                continue

    def _is_worker(self, process):
        shown = " ".join(process.cmdline())
        return "spawn_main" in shown if self._engine == "processes" else shown.startswith("ray::MapWorker")

    def stop(self):
        self._has_ended.set()
        self.join()

    def memory_and_growth(self):
        """Returns the largest resident set, and the largest growth of one after a tenth of its life."""
        read = [values for values in self._read.values() if len(values) > 1] or [[0.0]]
        return max(map(max, read)), max(max(values) - max(values[: len(values) // 10 + 1]) for values in read)


def compare(folder, files, minutes, repetitions, engines):
    """Yields the rows of the table: engine, start-up, files per second, ratio to `local`, memory and growth."""
    with tempfile.TemporaryDirectory() as place:
        table = make_archive(folder, Path(place) / "archive", files, minutes)
        single = table.with_name("one.csv")
        single.write_text("".join(itertools.islice(table.open(encoding="utf-8"), 2)), encoding="utf-8")
        startups = {engine: [] for engine in engines}
        runs = {engine: [] for engine in engines}
        for repetition, engine in itertools.product(range(repetitions), engines):
            output = Path(place) / f"{engine.replace(':', '-')}-{repetition}"
            startups[engine].append(
                run_engine(engine, single, output.with_name(f"{output.name}-one"), minutes).seconds
            )
            runs[engine].append(run_engine(engine, table, output, minutes))
        rates = {
            engine: [
                (files - 1) / max(run.seconds - startup, 1e-3) for run, startup in zip(runs[engine], startups[engine])
            ]
            for engine in engines
        }
        for engine in engines:
            ratios = [rate / base for rate, base in zip(rates[engine], rates[engines[0]])]
            yield (
                engine,
                statistics.median(startups[engine]),
                statistics.median(rates[engine]),
                statistics.median(ratios),
                max(run.memory for run in runs[engine]),
                max(run.growth for run in runs[engine]),
            )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=CLIPS, help="Folder with audio clips.")
    parser.add_argument("--files", type=int, default=1500)
    parser.add_argument("--minutes", type=float, default=0, help="Length of recordings; 0, the default, for clips.")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=ENGINES, help="Engines with their workers; first the base.")
    parser.add_argument("--make", type=Path, help="Write an archive to this folder instead.")
    args = parser.parse_args(argv)
    if args.make is not None:
        print(make_archive(args.folder, args.make, args.files, args.minutes))
        return
    print(f"{args.files} files, median of {args.repetitions} runs, ratios to {args.engines[0]}")
    print(f"{'engine':<14} {'start-up s':>10} {'files/s':>8} {'ratio':>6} {'worker MB':>10} {'growth MB':>10}")
    for engine, startup, rate, ratio, memory, growth in compare(
        args.folder, args.files, args.minutes, args.repetitions, args.engines
    ):
        print(f"{engine:<14} {startup:>10.1f} {rate:>8.1f} {ratio:>6.2f} {memory:>10.0f} {growth:>10.1f}")


if __name__ == "__main__":
    main()
