"""A Ray cluster on this machine: nodes are real raylets, GPUs are counted but not there.

Run as a script, in a process of its own, it holds the cluster and follows its lines of input:
`add RESOURCES` (JSON) answers with the node's number, `lose NUMBER` takes a node away as a power
cut would.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil

from vllm_caption.config import RunConfig
from vllm_caption.engines.executors.base import Executor


class RayCluster:
    """The cluster, seen from a test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._nodes: set[int] = set()
        self.address = self._line()

    def add_node(self, **resources: Any) -> int:
        """Returns its number."""
        number = int(self._ask(f"add {json.dumps(resources)}"))
        self._nodes.add(number)
        return number

    def lose_node(self, number: int) -> None:
        """Kill everything on a node."""
        self._ask(f"lose {number}")
        self._nodes.remove(number)

    def lose_all_nodes(self) -> None:
        """The nodes other than the head."""
        for number in sorted(self._nodes):
            self.lose_node(number)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the cluster ended"
        return line.strip()


@contextmanager
def lock(operation: int) -> Iterator[None]:
    """A lock that clusters share, in all processes of the tests. Raises BlockingIOError."""
    with open(__file__) as file:
        fcntl.flock(file, operation)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # forks have the file, too


@contextmanager
def only_ray() -> Iterator[bool]:
    """Whether no Ray is running on this machine; if so, no test starts one meanwhile."""
    with ExitStack() as held:
        try:
            held.enter_context(lock(fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield "raylet" not in [p.info["name"] for p in psutil.process_iter(["name"])]


@contextmanager
def ray_cluster(**head: Any) -> Iterator[RayCluster]:
    """One node with these resources; gone with everything on it at the end."""
    with lock(fcntl.LOCK_SH), _ray_cluster(head) as cluster:
        yield cluster


@contextmanager
def _ray_cluster(head: dict[str, Any]) -> Iterator[RayCluster]:
    import ray

    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(head)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        start_new_session=True,
    )
    with process:
        try:
            cluster = RayCluster(process)
            os.environ["RAY_ADDRESS"] = cluster.address  # the address that `auto` stands for
            yield cluster
        finally:
            os.environ.pop("RAY_ADDRESS", None)
            ray.shutdown()
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=60)


def on_ray(config: RunConfig, tell: Callable[[str], None]) -> Executor:
    """The executor of a run whose engines take the cluster's GPUs."""
    from vllm_caption.engines.executors.ray import RayExecutor

    return RayExecutor(config.engine, config.output / "logs", tell, on_cpu=False)


def main() -> None:
    """Hold a cluster until the input ends."""
    from ray.cluster_utils import Cluster

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray also prints
    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    head = json.loads(sys.argv[1]) | small
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes: list[Any] = []
    print(cluster.address, file=answers, flush=True)
    for line in sys.stdin:
        command, _, argument = line.partition(" ")
        if command == "add":
            nodes.append(cluster.add_node(**json.loads(argument), **small))
            print(len(nodes) - 1, file=answers, flush=True)
        else:
            cluster.remove_node(nodes[int(argument)], allow_graceful=False)
            print("lost", file=answers, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
