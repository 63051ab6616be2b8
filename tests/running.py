"""A service in a process of its own, as `mmemo serve` starts it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx


class Running:
    """A service that runs: where it listens, and what it takes of the machine."""

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
        """MiB that it holds now, or with VmHWM held at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1024

    def forget_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metric(self, name):
        line = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{self.address}/metrics").text, re.MULTILINE)
        return float(line[1]) if line else 0.0

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextmanager
def running(log, model=None, **settings):
    """Runs `mmemo serve`; `settings` are those of [`ServiceSettings`], by environment variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {f"MMEMO_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "mmemo.cli", "serve", "--port", str(port)]
    command += ["--model", str(model)] if model is not None else []
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=file)
    service = Running(process, f"http://127.0.0.1:{port}", log)
    try:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx.get(f"{service.address}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            raise AssertionError(f"The service did not start:\n{service.log}")
        yield service
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
