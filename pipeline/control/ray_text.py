"""The graph of `latentmill text`: three operators over shards, of which the middle one is a pool of actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from pipeline.control.encoder_pool import EncoderPool
from pipeline.control.ray_cluster import A_ROW_A_CALL, one_by_one, tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Operators:
    """The functions of the graph; each takes a table and yields tables."""

    read: Callable[[pa.Table], Iterator[pa.Table]]
    encoder: type
    encoder_args: tuple[Any, ...]
    """Arguments of its constructor."""
    store: Callable[[pa.Table], Iterator[pa.Table]]


def stream(shards: Sequence[str], operators: Operators, pool: EncoderPool) -> Iterator[pa.Table]:
    """Run the graph over the shards and yield what `store` yields.

    Reading and storing wait for storage, so they reserve no CPU. While an encoder works, the next shards are read.

    Raises:
        EncoderError: no encoder can start.
    """
    waiting = max(2, 2 * pool.size[1])
    encoders = ActorPoolStrategy(min_size=pool.size[0], max_size=pool.size[1], initial_size=pool.first)
    encoding: dict[str, Any] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, **A_ROW_A_CALL}
    whole: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": None}  # a block a call
    return tables(
        one_by_one([{"shard": shard} for shard in shards])
        .map_batches(operators.read, compute=TaskPoolStrategy(waiting), num_cpus=0, **whole)
        .map_batches(operators.encoder, fn_constructor_args=operators.encoder_args, compute=encoders, **encoding)
        .map_batches(operators.store, compute=TaskPoolStrategy(waiting), num_cpus=0, **whole)
    )
