"""Ray itself, beside Ray Data: one of our own or a cluster, and objects that every worker reaches."""

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

import ray
from ray.data import DataContext, Dataset
from ray.data._internal.execution import backpressure_policy as backpressure
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import pipeline
from pipeline.control.pools import SPARE_CPUS, Cluster, Pools, block_bytes, largest_chunk_bytes, pools
from pipeline.control.stop import GraceOverError, Stop
from pipeline.errors import ConfigError, EncoderError, StorageError
from pipeline.guard.strikes import Strikes
from pipeline.receipts import Receipt
from pipeline.rows import from_table
from pipeline.settings import overlap
from pipeline.settings.job import Job, local_cpus
from vae.info import VAEInfo

IDLE_WORKERS_PER_CPU = 8
"""Worker processes that a Ray of our own keeps. By default it ends idle ones beyond one per CPU after a second, and the
next task waits for a new one (measured: 22 started in a run of 40 s on 2 cores, 11 with this)."""

CONNECT_SECONDS = 60.0
"""How long a cluster may take to answer."""

START_SECONDS = 600.0
"""How long a Ray of our own may take to start: 5 s on an idle machine, a minute on a busy one."""


@contextlib.contextmanager
def ray_for(job: Job, info: VAEInfo, stop: Stop) -> Iterator[Pools]:
    """A Ray of our own, or the cluster at the address; how many workers of each kind it can hold.

    Raises:
        ConfigError: the workers or the chunks do not fit, or no cluster answers.
        EncoderError: a Ray of our own does not start.
        GraceOverError: a stop was asked for before Ray stood.
    """
    workers = job.workers
    ours = workers.ray_address == "local"
    options: dict[str, Any] = {"address": workers.ray_address, "logging_level": "ERROR", "log_to_driver": False}
    options |= {"job_config": _job_config()}
    if ours:
        # Ray Data's default autoscaler drops fractions of a CPU when it shares them out (2 - 1 - 0.5 leaves 0, seen in
        # Ray 2.60: one decode task on a core instead of two). Our own Ray never grows; V2 asks for nothing there.
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
        cluster = Cluster(
            cpus=has.get("CPU", 0.0),
            gpus=has.get("GPU", 0.0),
            object_store=has.get("object_store_memory", 0.0),
            memory=has.get("memory", math.inf),
            largest_node=max(nodes) if len(nodes) > 1 else 0.0,
            spare_cpus=SPARE_CPUS if ours and not joined else 0,
        )
        chunk_bytes = largest_chunk_bytes(job.clip, job.latent, info)
        sizes = pools(workers, chunk_bytes, cluster, overlap.bytes_held(job.clip))
        context = DataContext.get_current()
        context.target_max_block_size = block_bytes(chunk_bytes)
        context.max_errored_blocks = -1  # the ledger notices what is missing; the shard stays open
        context.enable_progress_bars = False  # they cannot know our totals
        context.print_on_execution_start = False
        policies = [*backpressure.ENABLED_BACKPRESSURE_POLICIES, ShortQueues]
        context.set_config(backpressure.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
        yield sizes


@contextlib.contextmanager
def _ray(options: dict[str, Any], stop: Stop, *, ours: bool) -> Iterator[None]:
    """Start or join a Ray, in a thread: in the main one it would take SIGTERM for good, and its wait has no end."""
    started: Future[None] = Future()
    over = threading.Event()

    def start() -> None:
        _thread.starts_ray = ours
        try:
            ray.init(**options)
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)
        over.wait()  # the kernel ends the processes of our own Ray with the thread that started them

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
        if started.done() and not started.exception():
            ray.shutdown()
        over.set()


_thread = threading.local()


def _own_group() -> None:
    """In a process that was just forked: what is Ray's gets no signals from the terminal or the group of the driver,
    which would end it while the driver finishes what is open."""
    if getattr(_thread, "starts_ray", False):
        os.setpgrp()


os.register_at_fork(after_in_child=_own_group)


def _job_config() -> JobConfig | None:
    """Where workers look for this code: where it is here, and never first in the working folder.

    Ray puts the working folder first on the path of its workers, unless the job came through Ray's client, which is
    what we say. A job with a working folder of its own (`ray job submit --working-dir`) finds the code in that.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    root = str(Path(pipeline.__file__).resolve().parents[1])
    installed = root in (*site.getsitepackages(), site.getusersitepackages())
    return JobConfig(_client_job=True, _py_driver_sys_path=[] if installed else [root])


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray on 127.0.0.1 only, as it is on a Mac by default: elsewhere it listens on every interface."""
    kept = ray._private.ray_constants.ENABLE_RAY_CLUSTER
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for the processes that it starts
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        del os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]
        ray._private.ray_constants.ENABLE_RAY_CLUSTER = kept


def one_by_one(rows: list[dict[str, Any]]) -> Dataset:
    """Make a dataset of one row a block, lazily: 100,000 rows cost 27 MB. Making it takes no CPU from decoding."""
    dataset = ray.data.from_items(rows, override_num_blocks=1).repartition(target_num_rows_per_block=1)
    dataset._logical_plan.dag.ray_remote_args["num_cpus"] = 0  # no public way; it would hold one until its last row
    return dataset


class ShortQueues(backpressure.BackpressurePolicy):  # type: ignore[misc]
    """Hold an operator back while as many of its blocks wait as the next operator can take up at a time.

    Ray Data itself bounds the bytes that wait. Addresses weigh next to nothing: all shards would be read, and claimed,
    before the first video is decoded.
    """

    def can_add_input(self, op: Any) -> bool:
        return all(self._has_room(after) for after in op.output_dependencies)

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        return None if self.can_add_input(op) else 0

    def _has_room(self, op: Any) -> bool:
        at_a_time = op.get_max_concurrency_limit()
        return at_a_time is None or self._topology[op].total_enqueued_input_blocks() < at_a_time


def receipts(rows: Dataset) -> Iterator[Receipt]:
    """Run a dataset of receipts, and hand them on as they come.

    Raises:
        EncoderError: no encoder can start.
    """
    try:
        for table in rows.iter_batches(batch_format="pyarrow", batch_size=None):
            yield from from_table(table)  # type: ignore[misc]
    except ray.exceptions.ActorDiedError as error:  # raised in its constructor: those that die are restarted
        raise EncoderError(f"no encoder can start: {str(error).strip().splitlines()[-1]}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray's chatter off while it starts, and no worker started through `uv run` (ray#50961)."""
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


RESTARTS = 100
"""How often a `Remote` begins again, and a call of it is repeated. Ray's memory monitor ended one, seen."""


def answer(reference: Any) -> Any:
    """The result of a remote call, or the exception that it raised, as if it had been made here.

    Raises:
        StorageError: the worker died in it, again and again.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # its text is a remote traceback
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise StorageError(f"{type(error).__name__}: its worker died, and so did the next ones") from None


def remotely(function: Callable[..., Any], *, retries: int) -> Callable[..., Any]:
    """The function, called on a worker that reserves no CPU, and again when that worker dies."""
    call = ray.remote(num_cpus=0, max_retries=retries)(function).remote
    return lambda *args: answer(call(*args))


class Remote:
    """An object kept by an actor beside the driver, with its methods as if it were here. Pickles.

    The methods in `told` have no answer and are not waited for. Calls of one process arrive in their order. Should the
    actor die (Ray's memory monitor took it, seen), a new one goes on without what this one knew.
    """

    def __init__(self, kind: type, *args: Any, told: tuple[str, ...] = ()) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": RESTARTS}
        options["max_task_retries"] = RESTARTS
        self._actor = ray.remote(kind).options(**options).remote(*args)
        self._told = told

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._actor, name)
        return method.remote if name in self._told else lambda *args: answer(method.remote(*args))


class RemoteStrikes(Remote):
    """The strike counter. It is told which process makes an attempt, so that it can excuse what Ray itself ended."""

    def __init__(self) -> None:
        super().__init__(Strikes, ended_for_memory, told=("end", "started"))

    def begin(self, key: str) -> int:
        standing: int = answer(self._actor.begin.remote(key, ray.get_runtime_context().get_worker_id()))
        return standing


def ended_for_memory(worker: str) -> bool:
    """Whether Ray's memory monitor ended that worker. The one public call that tells needs a dashboard."""
    try:
        from ray._private.state import state
        from ray.core.generated import common_pb2, gcs_pb2

        known = state._connect_and_get_accessor().get_worker_info(ray.WorkerID(bytes.fromhex(worker)))
    except (ImportError, AttributeError):  # another Ray, which has it elsewhere: a strike only raises suspicion
        return False
    exit_type = gcs_pb2.WorkerTableData.FromString(known).exit_type if known else None
    return bool(exit_type == common_pb2.WorkerExitType.NODE_OUT_OF_MEMORY)
