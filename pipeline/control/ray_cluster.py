"""Ray for a run: what it has, how Ray Data is set up, and the receipts that come out."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import site
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset
from ray.data._internal.execution import backpressure_policy as backpressure
from ray.data._internal.execution import streaming_executor_state
from ray.job_config import JobConfig

import pipeline
from pipeline.control.pools import SPARE_CPUS, Cluster, Pools, block_bytes, largest_chunk_bytes, pools
from pipeline.control.ray_objects import on_every_node
from pipeline.control.ray_start import running
from pipeline.control.same_disk import OnEveryNode
from pipeline.errors import EncoderError
from pipeline.output.rows import from_table
from pipeline.receipts import NoEncoderReceipt, Receipt
from pipeline.runs.stop import STATUS, GraceOverError, Stop
from pipeline.settings import overlap
from pipeline.settings.job import Job, Workers, local_cpus
from vae.info import VAEInfo

IDLE_WORKERS_PER_CPU = 8
"""Worker processes that a local Ray keeps. By default it ends idle ones beyond one per CPU after a second, and the next
task waits for a new process (measured: 22 started in a run of 40 s on 2 cores, 11 with this setting)."""

A_ROW_A_CALL: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": 1}
"""How encoders are called. A whole block a call, as elsewhere, is what Ray Data refuses for actors on GPUs."""


def check_cluster(address: str, check: Callable[[OnEveryNode], None]) -> None:
    """Look at the cluster at an address, and check it if it has several nodes. A local Ray, or one that is joined, is
    not looked at.

    Raises:
        ConfigError: no cluster answers; or what `check` raises.
        SystemExit: a signal asked for a stop.
    """
    if address == "local" or ray.is_initialized():
        return
    with Stop(0) as stop:
        try:
            with running(_options(address), stop, ours=False):
                if sum(node["Alive"] for node in ray.nodes()) > 1:
                    check(on_every_node)
        except GraceOverError:
            raise SystemExit(STATUS[stop.by]) from None


def _options(address: str) -> dict[str, Any]:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    return {"address": address, "job_config": _job_config()} | quiet


@contextlib.contextmanager
def ray_for(job: Job, info: VAEInfo, stop: Stop) -> Iterator[Pools]:
    """Start a local Ray, or join the cluster at the address. Yield how many workers of each kind it can hold.

    Raises:
        ConfigError: the workers or the chunks do not fit, or no cluster answers.
        EncoderError: the local Ray does not start.
        GraceOverError: a signal asked for a stop before Ray had started.
    """
    with cluster_of(job.workers, stop) as cluster:
        chunk_bytes = largest_chunk_bytes(job.clip, job.latent, info)
        sizes = pools(job.workers, chunk_bytes, cluster, overlap.bytes_held(job.clip))
        set_up_data(block_bytes(chunk_bytes))
        yield sizes


@contextlib.contextmanager
def cluster_of(workers: Workers, stop: Stop) -> Iterator[Cluster]:
    """Start a local Ray, or join the cluster at the address. Yield what it has. Raises the errors of `ray_for`."""
    ours = workers.ray_address == "local"
    options = _options(workers.ray_address)
    if ours:
        # Ray Data's default autoscaler drops fractions of a CPU when it distributes them (2 - 1 - 0.5 leaves 0, seen
        # in Ray 2.60: one decode task on a core instead of two). A local Ray never grows, so V2 requests nothing.
        os.environ.setdefault("RAY_DATA_CLUSTER_AUTOSCALER", "V2")
        cpus = local_cpus() + SPARE_CPUS
        options["num_cpus"] = cpus
        options["_system_config"] = {"num_workers_soft_limit": IDLE_WORKERS_PER_CPU * cpus}
        if workers.object_store_gb:
            options["object_store_memory"] = int(workers.object_store_gb * 1e9)
    joined = ray.is_initialized()
    with contextlib.nullcontext() if joined else running(options, stop, ours=ours):
        has = ray.cluster_resources()
        nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        yield Cluster(
            cpus=has.get("CPU", 0.0),
            gpus=has.get("GPU", 0.0),
            object_store=has.get("object_store_memory", 0.0),
            memory=has.get("memory", math.inf),
            largest_node=max(nodes) if len(nodes) > 1 else 0.0,
            spare_cpus=SPARE_CPUS if ours and not joined else 0,
        )


def set_up_data(target_block_bytes: int) -> None:
    """Set up Ray Data for a stream."""
    context = DataContext.get_current()
    context.target_max_block_size = target_block_bytes
    context.max_errored_blocks = -1  # the ledger notices what is missing; the shard stays open
    context.enable_progress_bars = False  # they cannot know our totals
    context.print_on_execution_start = False
    policies = [*backpressure.ENABLED_BACKPRESSURE_POLICIES, ShortQueues]
    context.set_config(backpressure.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    logging.getLogger(streaming_executor_state.__name__).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the 70 lines for each block that was lost with its encoder: the guard told of that encoder."""
    return not (record.exc_info and isinstance(record.exc_info[1], ray.exceptions.ActorDiedError))


@contextlib.contextmanager
def ray_for_tasks(address: str, stop: Stop) -> Iterator[int]:
    """Start a local Ray, or join the cluster at the address, for tasks of one CPU. Yield how many run at a time.

    Raises:
        ConfigError: no cluster answers.
        EncoderError: the local Ray does not start.
        GraceOverError: a signal asked for a stop before Ray had started.
    """
    ours = address == "local"
    options = _options(address)
    if ours:
        options["num_cpus"] = local_cpus()
    with contextlib.nullcontext() if ray.is_initialized() else running(options, stop, ours=ours):
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))


def _job_config() -> JobConfig | None:
    """Return where workers import this code from: the place where the driver has it, never the working folder.

    Ray puts the working folder first on the path of its workers, except for jobs of Ray's client, so this job claims to
    be one. A job with its own working folder (`ray job submit --working-dir`) imports the code from that folder.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    root = str(Path(pipeline.__file__).resolve().parents[1])
    is_found = root in (*site.getsitepackages(), site.getusersitepackages()) and sys.path[0] != root
    return JobConfig(_client_job=True, _py_driver_sys_path=[] if is_found else [root])  # see latentmill.command


def one_by_one(rows: list[dict[str, Any]]) -> Dataset:
    """Return a lazy dataset with one row per block: 100,000 rows cost 27 MB. Its task reserves no CPU."""
    dataset = ray.data.from_items(rows, override_num_blocks=1).repartition(target_num_rows_per_block=1)
    dataset._logical_plan.dag.ray_remote_args["num_cpus"] = (
        0  # no public way; the task would reserve a CPU until its last row
    )
    return dataset


class ShortQueues(backpressure.BackpressurePolicy):  # type: ignore[misc]
    """Pause an operator while as many of its blocks wait as the next operator can process at a time.

    Ray Data itself limits the bytes that wait. Addresses have almost no bytes, so without this policy all shards would
    be read, and claimed, before the first video is decoded.
    """

    def can_add_input(self, op: Any) -> bool:
        return all(self._has_room(after) for after in op.output_dependencies)

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        return None if self.can_add_input(op) else 0

    def _has_room(self, op: Any) -> bool:
        at_a_time = op.get_max_concurrency_limit()
        return at_a_time is None or self._topology[op].total_enqueued_input_blocks() < at_a_time


def receipts(rows: Dataset) -> Iterator[Receipt]:
    """Run a dataset of receipts and yield them as they come.

    Raises:
        EncoderError: no encoder can start, or none is left.
    """
    for table in tables(rows):
        for receipt in from_table(table):
            if isinstance(receipt, NoEncoderReceipt):
                raise EncoderError(f"no encoder is left: {receipt.message}")
            yield receipt  # type: ignore[misc]


def tables(rows: Dataset) -> Iterator[pa.Table]:
    """Run a dataset and yield its blocks as they come.

    Raises:
        EncoderError: no encoder can start.
    """
    try:
        yield from rows.iter_batches(batch_format="pyarrow", batch_size=None)
    except ray.exceptions.ActorDiedError as error:  # raised by its constructor: an encoder that dies later is restarted
        raise EncoderError(f"no encoder can start: {str(error).strip().splitlines()[-1]}") from None
