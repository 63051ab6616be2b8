"""
Runs the steps of the Dockerfile without Docker: builds, starts, checks and stops the service.

It runs COPY and RUN of the first stage, and ENV, HEALTHCHECK and CMD of the last, in a temporary folder. It cannot
check what Docker provides: the base image, the user, and the read-only file system. Instead of the last, it checks
that the service has written no files.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PLACE = "/opt/mmemo"
UNWANTED = ("torch", "transformers", "librosa")


def main(argv: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.strip().partition("\n")[0]).parse_args(argv)
    first, last = stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = build(first, folder)
        there = {path.name for path in place.glob("lib/python*/site-packages/*")}
        if found := there & set(UNWANTED):
            raise SystemExit(f"{', '.join(found)} must not be installed.")
        print(f"{sum(path.lstat().st_size for path in place.rglob('*')) / 1e6:.0f} MB installed")
        run(last, place, folder)


def stages(text: str) -> list[list[tuple[str, str]]]:
    """Returns the instructions of each stage as pairs such as `("RUN", "...")`."""
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]
    starts = [index for index, (word, _) in enumerate(lines) if word == "FROM"]
    return [lines[start:stop] for start, stop in zip(starts, [*starts[1:], len(lines)])]


def build(stage: list[tuple[str, str]], folder: Path) -> Path:
    """Runs COPY and RUN of a stage, and returns the folder that replaces /opt/mmemo."""
    source, place = folder / "src", folder / PLACE.strip("/")
    ignored = shutil.ignore_patterns("__pycache__")
    for word, rest in stage:
        if word == "COPY":
            *names, target = rest.split()
            for name in names:
                to = source / target / (ROOT / name).name if target.endswith("/") else source / target
                to.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, to, ignore=ignored)
                else:
                    shutil.copy(ROOT / name, to)
        if word == "RUN":
            command = re.sub(r"--mount=\S+", "", rest).replace(PLACE, str(place))
            subprocess.run(["sh", "-c", command], cwd=source, check=True)
    return place


def run(stage: list[tuple[str, str]], place: Path, folder: Path) -> None:
    """Runs HEALTHCHECK and CMD of a stage, sends requests, and stops the service."""
    scratch, home = folder / "tmp", folder / "home"
    scratch.mkdir()
    home.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = dict(pair.split("=", 1) for word, rest in stage if word == "ENV" for pair in shlex.split(rest))
    environment = {name: value.replace(PLACE, str(place)) for name, value in given.items()}
    environment |= {
        "PATH": environment["PATH"].replace("$PATH", os.environ["PATH"]),
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "HF_HOME": str(scratch),
        "MMEMO_SERVE__PORT": str(port),
    }
    command = next(json.loads(rest) for word, rest in stage if word == "CMD")
    health = next(json.loads(rest.partition("CMD ")[2]) for word, rest in stage if word == "HEALTHCHECK")
    before = files(place)
    clip = ROOT / "examples" / "audio" / "03b01Wa.flac"
    for words in (["info"], ["predict", str(clip), "--text", "What are those bags?"]):
        subprocess.run(["mmemo", *words], env=environment, check=True)

    def is_healthy() -> bool:
        return subprocess.run(health, env=environment, stderr=subprocess.DEVNULL, check=False).returncode == 0

    if is_healthy():
        raise SystemExit("The HEALTHCHECK succeeds although no service runs.")
    service = subprocess.Popen(command, env=environment)
    try:
        deadline = time.monotonic() + 30
        while not is_healthy():
            if service.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("The service did not start.")
        status = Path(f"/proc/{service.pid}/status").read_text()
        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
        print(f"{int(resident[1]) / 1024:.0f} MiB of memory, idle")
        smoke = ["python", str(ROOT / "docker" / "smoke.py"), f"http://127.0.0.1:{port}"]
        subprocess.run(smoke, env=environment, check=True)
        service.send_signal(signal.SIGTERM)
        if code := service.wait(timeout=60):
            raise SystemExit(f"The service exited with status {code} after SIGTERM.")
    finally:
        if service.poll() is None:
            service.kill()
    if written := (files(place) ^ before) | files(scratch) | files(home):
        raise SystemExit(f"The service has written files: {sorted(name for name, _ in written)}.")


def files(folder: Path) -> set[tuple[str, int]]:
    """Returns the name and the modification time of each file in a folder."""
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()
