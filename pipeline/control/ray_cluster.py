"""Ray itself: start a local one or join a cluster, set up Ray Data, and hand on receipts."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import site
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, Dataset
from ray.data._internal.execution import backpressure_policy as backpressure
from ray.job_config import JobConfig

import pipeline
from pipeline.control.pools import SPARE_CPUS, Cluster, Pools, block_bytes, largest_chunk_bytes, pools
from pipeline.control.ray_objects import on_every_node
from pipeline.control.same_disk import OnEveryNode
from pipeline.control.stop import STATUS, GraceOverError, Stop
from pipeline.errors import ConfigError, EncoderError
from pipeline.receipts import Receipt
from pipeline.rows import from_table
from pipeline.settings import overlap
from pipeline.settings.job import Job, Workers, local_cpus
from vae.info import VAEInfo

IDLE_WORKERS_PER_CPU = 8
"""Worker processes that a local Ray keeps. By default it ends idle ones beyond one per CPU after a second, and the next
task waits for a new process (measured: 22 started in a run of 40 s on 2 cores, 11 with this setting)."""

CONNECT_SECONDS = 60.0
"""How long a cluster may take to answer."""

START_SECONDS = 600.0
"""How long a local Ray may take to start. It takes 5 s on an idle machine and a minute on a busy one."""


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
            with _ray(_options(address), stop, ours=False):
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
        options |= {"num_cpus": cpus, "include_dashboard": False}
        options |= {"_system_config": {"num_workers_soft_limit": IDLE_WORKERS_PER_CPU * cpus}}
        if workers.object_store_gb:
            options["object_store_memory"] = int(workers.object_store_gb * 1e9)
    joined = ray.is_initialized()
    with contextlib.nullcontext() if joined else _ray(options, stop, ours=ours):
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
        options |= {"num_cpus": local_cpus(), "include_dashboard": False}
    with contextlib.nullcontext() if ray.is_initialized() else _ray(options, stop, ours=ours):
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextlib.contextmanager
def _ray(options: dict[str, Any], stop: Stop, *, ours: bool) -> Iterator[None]:
    """Start or join Ray, and end it, in a thread: in the main thread Ray would take over SIGTERM, and its wait has no
    limit."""
    started: Future[None] = Future()
    ended: Future[None] = Future()
    over = threading.Event()

    def start() -> None:
        _thread.starts_ray = ours
        try:
            ray.init(**options)
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)
        over.wait()  # the kernel ends the processes of a local Ray with the thread that started them
        try:
            if not started.exception():
                ray.shutdown()
        finally:
            ended.set_result(None)

    patience = START_SECONDS if ours else CONNECT_SECONDS
    try:
        with _quiet(), _on_loopback() if ours else contextlib.nullcontext():
            threading.Thread(target=start, daemon=True).start()
            done = stop.done(started, patience)
        if stop.asked:
            raise GraceOverError
        if not done:
            raise ConfigError(f"ray-address {options['address']!r}: no answer in {patience:g} s")
        try:
            started.result()
        except Exception as error:  # a bare one where its processes do not come up
            first_line = str(error).strip().partition("\n")[0]
            kind = EncoderError if ours and not isinstance(error, ValueError) else ConfigError
            raise kind(f"ray-address {options['address']!r}: Ray says: {first_line}") from error
        yield
    finally:
        over.set()
        if started.done():
            stop.sit_out(ended)


_thread = threading.local()


def _own_group() -> None:
    """Move a process of Ray, just forked, to a process group of its own: a signal from the terminal must not end it
    while the driver finishes open shards."""
    if getattr(_thread, "starts_ray", False):
        os.setpgrp()


os.register_at_fork(after_in_child=_own_group)


def _job_config() -> JobConfig | None:
    """Return where workers import this code from: the place where the driver has it, never the working folder.

    Ray puts the working folder first on the path of its workers, except for jobs of Ray's client, so this job claims to
    be one. A job with its own working folder (`ray job submit --working-dir`) imports the code from that folder.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    root = str(Path(pipeline.__file__).resolve().parents[1])
    installed = root in (*site.getsitepackages(), site.getusersitepackages())
    return JobConfig(_client_job=True, _py_driver_sys_path=[] if installed else [root])


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make Ray listen on 127.0.0.1 only, as it does on a Mac. By default it listens on every interface elsewhere."""
    kept = ray._private.ray_constants.ENABLE_RAY_CLUSTER
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for the processes that it starts
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        del os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = kept


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
    """Run a dataset of receipts and yield them as they come. Raises the error of `tables`."""
    for table in tables(rows):
        yield from from_table(table)  # type: ignore[misc]


def tables(rows: Dataset) -> Iterator[pa.Table]:
    """Run a dataset and yield its blocks as they come.

    Raises:
        EncoderError: no encoder can start.
    """
    try:
        yield from rows.iter_batches(batch_format="pyarrow", batch_size=None)
    except ray.exceptions.ActorDiedError as error:  # raised by its constructor: an encoder that dies later is restarted
        raise EncoderError(f"no encoder can start: {str(error).strip().splitlines()[-1]}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Ray while it starts, and start no worker through `uv run` (ray#50961)."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)  # logs in full what is then raised
    warnings.filterwarnings("ignore", module=r"ray\.")
    kept = os.dup(2)  # the C++ side announces its log level on stderr, whatever the level
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
