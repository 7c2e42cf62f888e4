"""Calls to workers, and objects that every worker can call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import StorageError
from pipeline.guard.strikes import Strikes

RESTARTS = 100
"""How often a `Remote` is restarted, and a call of it repeated. (Seen: Ray's memory monitor ended one.)"""


def answer(reference: Any) -> Any:
    """Return the result of a remote call, or raise its exception as a local call would.

    Raises:
        StorageError: the worker died in the call, in every attempt.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # its text is a remote traceback
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise StorageError(f"{type(error).__name__}: its worker died, and so did the next ones") from None


def remotely(function: Callable[..., Any], *, retries: int) -> Callable[..., Any]:
    """Return the function as a call on a worker that reserves no CPU. The call is repeated if the worker dies."""
    call = ray.remote(num_cpus=0, max_retries=retries)(function).remote
    return lambda *args: answer(call(*args))


def on_every_node(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Call the function once on each node. Return its results by the address of the node; two nodes may share one.

    Raises:
        StorageError: a node died in the call.
    """
    call = ray.remote(num_cpus=0)(function)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"] = call.options(
                scheduling_strategy=there
            ).remote(*args)
    return {address: answer(reference) for address, reference in asked.items()}


class Remote:
    """An object in an actor beside the driver, with the methods of a local object. It pickles.

    The methods in `told` return nothing, and the caller does not wait for them. Calls of one process arrive in
    order, unless the kind takes several AT_A_TIME.
    If the actor dies (seen: Ray's memory monitor ended it), a new actor starts with an empty state.
    """

    def __init__(self, kind: type, *args: Any, told: tuple[str, ...] = (), **named: Any) -> None:
        node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": node, "max_restarts": RESTARTS}
        options |= {"max_task_retries": RESTARTS, "max_concurrency": getattr(kind, "AT_A_TIME", 1)}  # 1 keeps the order
        self._actor = ray.remote(kind).options(**options).remote(*args, **named)
        self._told = told

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        method = getattr(self._actor, name)
        return method.remote if name in self._told else lambda *args: answer(method.remote(*args))


class RemoteStrikes(Remote):
    """The strike counter. It knows the process of each attempt, so that it can excuse processes that Ray ended."""

    def __init__(self) -> None:
        super().__init__(Strikes, ended_for_memory, told=("end", "new_pass"))

    def me(self) -> str:
        """Return the name of this actor, which stays when it is restarted."""
        return str(ray.get_runtime_context().get_actor_id())

    def begin(self, key: str) -> int:
        standing: int = answer(self._actor.begin.remote(key, ray.get_runtime_context().get_worker_id()))
        return standing


def ended_for_memory(worker: str) -> bool:
    """Return whether Ray's memory monitor ended this worker. The only public call for it needs a dashboard."""
    try:
        from ray._private.state import state
        from ray.core.generated import common_pb2, gcs_pb2

        known = state._connect_and_get_accessor().get_worker_info(ray.WorkerID(bytes.fromhex(worker)))
    except (ImportError, AttributeError):  # another Ray, which has it elsewhere: a strike only raises suspicion
        return False
    exit_type = gcs_pb2.WorkerTableData.FromString(known).exit_type if known else None
    return bool(exit_type == common_pb2.WorkerExitType.NODE_OUT_OF_MEMORY)
