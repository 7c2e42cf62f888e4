"""A cluster of three raylets on this machine, of which one is killed: what a spot machine does."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.chaos.lab import Lab
from tests.chaos.scenarios import OK, Result, moment, resume, watched

NUM_NODES = 3
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
"""CPUs must be a whole number for `Cluster`."""


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """`ray.cluster_utils.Cluster` with a head and two more nodes, in a folder of its own."""
    folder = tempfile.mkdtemp(prefix="lm", dir=tempfile.gettempdir())
    os.environ["RAY_TMPDIR"] = folder  # before Ray is imported
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    try:
        for _ in range(NUM_NODES - 1):
            nodes.add_node(**NODE)
        yield nodes
    finally:
        nodes.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(folder, ignore_errors=True)


def kill_raylet(lab: Lab, result: Result, kills: int) -> None:
    """SIGKILL of one raylet of three in each run; a new one takes its place for the next."""
    rng = lab.rng("raylet")
    while result.kills < kills:
        with cluster() as nodes, watched(lab, result) as output:
            run = lab.start(output, ray_address=nodes.address)
            if moment(lab, run, output, rng) and run.alive:
                _kill_one(nodes, rng)
                result.kills += 1
            if run.end() != OK:
                result.note = "a run had to be resumed"
                resume(lab, result, output)


def _kill_one(nodes: Any, rng: random.Random) -> None:
    victim = rng.choice(sorted(nodes.worker_nodes, key=lambda node: str(node.unique_id)))
    (raylet,) = victim.all_processes["raylet"]
    os.kill(raylet.process.pid, signal.SIGKILL)
    raylet.process.wait()
