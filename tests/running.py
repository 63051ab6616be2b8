"""Starts `mmemo serve` in a process of its own."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


PATIENCE_S = 120  # of tests; passes on a machine that is busy


class Running:
    """A running service: its address, log, memory and metrics."""

    def __init__(self, process, address, log):
        self.process = process
        self.address = address
        self.log_path = log

    @property
    def log(self):
        return self.log_path.read_text()

    @property
    def stream_address(self):
        return self.address.replace("http://", "ws://") + "/stream"

    def memory(self, name="VmRSS"):
        """Memory in MiB: now, or with `VmHWM` at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024

    def reset_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def get(self, path):
        return httpx.get(self.address + path, timeout=PATIENCE_S)

    def post(self, path, **request):
        return httpx.post(self.address + path, timeout=PATIENCE_S, **request)

    def is_ready(self):
        try:
            return self.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name):
        line = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(line[1]) if line else 0.0

    def wait_until(self, condition):
        """Waits for a condition. The limit ends a test that hangs; no test waits for it otherwise."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, "the condition was never true"
            time.sleep(0.02)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE_S)


@contextmanager
def running(log, model=None, max_files=None, **settings):
    """
    Runs `mmemo serve` with settings of [`ServiceSettings`], given as environment variables, and, like `ulimit -n`, a
    limit on open files.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {f"MMEMO_SERVE__{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "mmemo.cli", "serve", "--port", str(port)]
    command += ["--model", str(model)] if model is not None else []
    with log.open("wb") as file:
        limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (max_files, max_files)) if max_files else None
        process = subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=file, preexec_fn=limit)
    service = Running(process, f"http://127.0.0.1:{port}", log)
    try:
        service.wait_until(service.is_ready)
        yield service
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def exchange(address, start, messages, **headers):
    """Sends messages until the service closes the stream; returns all that it sent, and the close code."""
    with connect(address, additional_headers=headers) as socket:
        with suppress(ConnectionClosed):
            for message in [json.dumps(start), *messages]:
                socket.send(message)
        received = []
        with suppress(ConnectionClosed):
            while True:
                received.append(json.loads(socket.recv(timeout=PATIENCE_S)))
    return received, socket.close_code
