"""The number of CPU cores that this process may use."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def available_cores(root: Path = Path("/")) -> int:
    """
    Returns the number of cores in the CPU affinity of this process, or the CPU quota of its cgroups if that is less.

    Containers set a quota, which `os.cpu_count()` ignores. A fraction of a core counts as one.

    Args:
        root (`Path`, *optional*, defaults to `Path("/")`): Where `proc` and `sys` are found; for tests.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """
    Yields the quotas, in cores, of the cgroups of this process and their ancestors, of version 1 and 2.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html and
    https://docs.kernel.org/scheduler/sched-bwc.html
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            for folder in _with_ancestors(mounts, path):
                yield from _quota(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _with_ancestors(mounts / "cpu", path):
                yield from _quota(_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))


def _with_ancestors(mount: Path, path: str) -> Iterator[Path]:
    """
    Yields the folder of a cgroup and those above it up to `mount`. In a container the path may be that on the host,
    while `mount` is the cgroup of the container, so that folders may be missing.
    """
    folder = mount / path.strip("/")
    yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(mount)))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _quota(words: list[str]) -> Iterator[float]:
    """Yields the quota of `[microseconds, period]`, unless it is unlimited: `max` in version 2, -1 in version 1."""
    if len(words) == 2 and words[0] != "max" and int(words[0]) > 0:
        yield int(words[0]) / int(words[1])
