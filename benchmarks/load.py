"""
Measures throughput and latency of `mmemo serve` with concurrent clients.

    python benchmarks/load.py                      1, 8 and 32 clients, with and without batching
    python benchmarks/load.py --growth 20000       memory of the service over this many requests

Each client sends a clip of 3 s and a sentence, waits for the response, and sends the next. The service runs in its own
process with the embedded model, on the same machine: the clients use part of the CPU. Each row is the median of the
repetitions, which alternate between the rows.
"""

import argparse
import asyncio
import io
import os
import re
import socket
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
WARM_UP = 20
# Requests before the first measurement of memory, and between two of them.
GROWTH_START, GROWTH_STEP = 500, 2500


def clips() -> list[bytes]:
    """Returns the example clips as FLAC, repeated or cut to 3 s."""
    encoded = []
    for path in sorted((Path(str(files("modeling_mmemo.examples"))) / "audio").glob("*.flac")):
        samples, rate = soundfile.read(path, dtype="float32")
        buffer = io.BytesIO()
        soundfile.write(buffer, np.resize(samples, SECONDS * rate), rate, format="FLAC")
        encoded.append(buffer.getvalue())
    return encoded


@contextmanager
def service(*options: str):
    """Runs `mmemo serve` with further options on a free port; yields the process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mmemo.cli", "serve", "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                httpx.get(f"{address}/ready").raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None:
                    raise SystemExit("The service did not start; run `mmemo serve` to see the error.") from None
                time.sleep(0.1)
        yield process, address
    finally:
        process.terminate()
        process.wait()


def memory(process: subprocess.Popen) -> float:
    """Returns the resident memory of a process in MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def send(address: str, clients: int, requests: int) -> tuple[list[float], float]:
    """Sends requests from concurrent clients; returns the seconds of each request, and of all together."""
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
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as http:
        started = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        return seconds, time.perf_counter() - started


def compare(requests: int, repetitions: int, batches: list[int], clients: list[int]) -> None:
    """Prints requests per second and quantiles of the latency, by maximum batch size and number of clients."""
    measured: dict[tuple[int, int], list] = {}
    for _ in range(repetitions):
        for size in batches:
            with service("--max-batch-size", str(size)) as (_, address):
                asyncio.run(send(address, 1, WARM_UP))
                for count in clients:
                    measured.setdefault((size, count), []).append(asyncio.run(send(address, count, requests)))
    print(f"{requests} requests of {SECONDS} s and a sentence, {os.cpu_count()} CPUs, median of {repetitions} runs\n")
    print(f"{'max. batch size':<20}{'clients':>8}{'requests/s':>12}{'p50, ms':>10}{'p95, ms':>10}{'p99, ms':>10}")
    for (size, count), runs in sorted(measured.items()):
        rate = statistics.median(len(seconds) / total for seconds, total in runs)
        quantiles = np.median([np.quantile(seconds, (0.5, 0.95, 0.99)) for seconds, _ in runs], axis=0) * 1e3
        print(f"{size:<20}{count:>8}{rate:>12.1f}" + "".join(f"{value:>10.1f}" for value in quantiles))


def grow(requests: int) -> None:
    """Prints the memory of the service over many requests."""
    with service() as (process, address):
        done = min(GROWTH_START, requests)
        asyncio.run(send(address, 8, done))
        first = memory(process)
        print(f"after {done} requests: {first:.1f} MiB", flush=True)
        while done < requests:
            step = min(GROWTH_STEP, requests - done)
            asyncio.run(send(address, 8, step))
            done += step
            print(f"after {done} requests: {memory(process):.1f} MiB, {memory(process) - first:+.1f}", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300, help="requests of each row")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="values of max_batch_size")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32], help="numbers of concurrent clients")
    parser.add_argument("--growth", type=int, help="measure memory over this many requests instead")
    args = parser.parse_args(argv)
    if args.growth:
        grow(args.growth)
    else:
        compare(args.requests, args.repetitions, args.batches, args.clients)


if __name__ == "__main__":
    main()
