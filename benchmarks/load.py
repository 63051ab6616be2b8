"""
Measures throughput and latency of `mmemo serve` over the network.

    python benchmarks/load.py                      1, 8 and 32 clients, with and without batches
    python benchmarks/load.py --growth 20000       memory over 20000 requests

Each client sends a clip of 3 s and a sentence, waits for the response, and sends the next request. The service runs
the embedded model in a process of its own on the same machine, so the clients use a part of the cores. Each row is the
median of the repetitions, which alternate between the rows.
"""

import argparse
import asyncio
import io
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import soundfile


SENTENCE = "I have been waiting for an hour and nobody answers!"
SECONDS = 3
PORT = 8765
ADDRESS = f"http://127.0.0.1:{PORT}"
CLIENTS = (1, 8, 32)


def clips() -> list[bytes]:
    """Returns the example clips as FLAC, each cut or repeated to 3 s."""
    found = []
    for path in sorted((Path(str(files("modeling_mmemo.examples"))) / "audio").glob("*.flac")):
        samples, rate = soundfile.read(path, dtype="float32")
        buffer = io.BytesIO()
        soundfile.write(buffer, np.resize(samples, SECONDS * rate), rate, format="FLAC")
        found.append(buffer.getvalue())
    return found


@contextmanager
def service(**settings):
    """Runs a service with settings of [`ServiceSettings`], and yields its process."""
    environment = {f"MMEMO_SERVE__{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "mmemo.cli", "serve", "--port", str(PORT)]
    with open(os.devnull, "wb") as nowhere:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=nowhere, stderr=nowhere)
    try:
        while True:
            try:
                httpx.get(f"{ADDRESS}/ready").raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None:
                    raise SystemExit("The service did not start; run `mmemo serve` to see the error.") from None
                time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait()


def memory(process: subprocess.Popen) -> float:
    """Returns the resident memory of a process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def ask(clients: int, requests: int) -> tuple[list[float], float]:
    """Returns the duration of each request and of the whole run, in seconds."""
    audio, seconds, sent = clips(), [], 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal sent
        while sent < requests:
            sent += 1
            started = time.perf_counter()
            form = {"audio_file": ("clip.flac", audio[sent % len(audio)])}
            response = await http.post("/predict", files=form, data={"text": SENTENCE})
            response.raise_for_status()
            seconds.append(time.perf_counter() - started)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=ADDRESS, timeout=120, limits=limits) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        return seconds, time.perf_counter() - started


def compare(requests: int, repetitions: int, batches: list[int]) -> None:
    """Prints throughput and latency for each batch size and number of clients."""
    found: dict[tuple[int, int], list] = {}
    for _ in range(repetitions):
        for size in batches:
            with service(max_batch_size=size):
                asyncio.run(ask(1, 20))
                for clients in CLIENTS:
                    found.setdefault((size, clients), []).append(asyncio.run(ask(clients, requests)))
    print(f"{requests} requests of {SECONDS} s and a sentence, {os.cpu_count()} CPUs, median of {repetitions} runs\n")
    print(f"{'max_batch_size':<20}{'clients':>8}{'requests/s':>12}{'p50, ms':>10}{'p95, ms':>10}{'p99, ms':>10}")
    for (size, clients), runs in sorted(found.items()):
        rate = statistics.median(len(seconds) / total for seconds, total in runs)
        quantiles = np.median([np.quantile(seconds, (0.5, 0.95, 0.99)) for seconds, _ in runs], axis=0) * 1e3
        print(f"{size:<20}{clients:>8}{rate:>12.1f}" + "".join(f"{value:>10.1f}" for value in quantiles))


def grow(requests: int) -> None:
    """Prints the memory of the service over a number of requests."""
    with service() as process:
        asyncio.run(ask(8, 500))
        first = memory(process)
        print(f"after 500 requests: {first:.1f} MiB", flush=True)
        done = 500
        while done < requests:
            step = min(2500, requests - done)
            asyncio.run(ask(8, step))
            done += step
            print(f"after {done} requests: {memory(process):.1f} MiB, {memory(process) - first:+.1f}", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="Requests for each row.")
    parser.add_argument("--repetitions", type=int, default=3, help="Runs of which to take the median.")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="Values of max_batch_size to compare.")
    parser.add_argument("--growth", type=int, help="Measure memory over this number of requests instead.")
    args = parser.parse_args(argv)
    if args.growth:
        grow(args.growth)
    else:
        compare(args.requests, args.repetitions, args.batches)


if __name__ == "__main__":
    main()
