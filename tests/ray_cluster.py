"""Clusters of Ray on this machine, of several nodes, whose workers and nodes can be killed."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster


TEST_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # `"auto"` uses the token in the home folder, if there is one, which these clusters do not.
    "RAY_AUTH_MODE": "disabled",
    # Ray's default, 15, lets its workers starve on a busy machine.
    "RAY_worker_niceness": "0",
    # For workers to import the files of tests.
    "PYTHONPATH": str(Path(__file__).parent),
}


class LocalCluster:
    """
    A head without workers, and nodes of one core each.

    Args:
        nodes (`int`): Number of nodes.
    """

    def __init__(self, nodes: int):
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self._cluster.add_node(num_cpus=1, wait=False) for _ in range(nodes)]
        self._cluster.wait_for_nodes(timeout=300)

    @property
    def address(self) -> str:
        return self._cluster.address

    def add_node(self, environment: dict[str, str] | None = None) -> None:
        """Adds a node of one core, whose processes have further environment variables."""
        self.nodes.append(self._cluster.add_node(num_cpus=1, env_vars=environment, wait=False))
        self._cluster.wait_for_nodes(timeout=300)

    def kill_node(self) -> None:
        """Kills all processes of the last node."""
        self._cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def pids(self, name: str = "ray::MapWorker") -> list[int]:
        """Returns the processes that run an actor or a task, by the start of their title."""
        raylets = {node.all_processes["raylet"][0].process.pid for node in [*self.nodes, self._cluster.head_node]}
        return [pid for pid, parent, title in processes() if parent in raylets and title.startswith(name)]

    def kill_worker(self, name: str = "ray::MapWorker") -> int:
        """Kills a process of a name, and returns its id."""
        pid = self.pids(name)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def shutdown(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def processes() -> Iterator[tuple[int, int, str]]:
    """Yields the id, the parent's id and the title of each process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
            yield int(folder.name), parent, (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile


@contextmanager
def local_cluster(nodes: int = 2) -> Iterator[LocalCluster]:
    """A cluster within a context, to which `"auto"` refers too. Its files are removed."""
    # Short, for the paths of sockets.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        for name, value in TEST_ENVIRONMENT.items():
            patch.setenv(name, value)
        try:
            cluster = LocalCluster(nodes)
            try:
                yield cluster
            finally:
                cluster.shutdown()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
