"""Make tensors of rows: read the latents of a batch, draw from moments, undo the scaling, collate. Imports torch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from latentmill.errors import DamagedRowError
from latentmill.rows import Rows
from latentmill.sampler import Batch
from latentmill.store.memory import take
from latentmill.store.range import Range
from latentmill.store.ranges import RangeReader
from latentmill.tracks.join import Kind


class Sample(dict[str, Any]):
    """One row. `collate` makes a batch of several."""

    whole: tuple[dict[str, Tensor], int, int] | None = None
    """The tensors of the batch that the row was read with, its number of rows, and the row's position in it."""
    lists: frozenset[str] = frozenset()
    """Columns that become a list in a batch."""
    pads: Mapping[str, int | None] = MappingProxyType({})
    """Columns that a batch pads with zeros on their first axis, to this length; None: to the longest."""
    damaged: list[str] | None = None
    """Ids of the damaged rows that the batch leaves out; None if a damaged row raises."""


def collate(samples: Sequence[Sample], *, collate_fn_map: object = None) -> dict[str, Any]:  # noqa: ARG001 (torch's)
    """Make one batch: stack tensors, make a tensor of numbers, and a list of texts and of columns with gaps.

    "latent" is [B, C, T', H', W']. If the rows were read as one batch, nothing is copied.

    Raises:
        ValueError: the rows have different shapes.
    """
    first = samples[0]
    batch: dict[str, Any] = {}
    as_read = first.whole and [s.whole and (id(s.whole[0]), s.whole[2]) for s in samples] == [
        (id(first.whole[0]), i) for i in range(first.whole[1])
    ]
    for name, value in first.items():
        values = [sample[name] for sample in samples]
        if name in first.pads:
            batch[name] = padded(values, first.pads[name])
        elif name in first.lists:
            batch[name] = values
        elif as_read and first.whole and name in first.whole[0]:
            batch[name] = first.whole[0][name]
        elif isinstance(value, Tensor):
            if len({tuple(one.shape) for one in values}) > 1:
                shapes = ", ".join(sorted({"x".join(map(str, one.shape)) for one in values}))
                raise ValueError(f"a batch holds one shape, got {name} of {shapes}: use latentmill.BatchSampler")
            batch[name] = torch.stack(values)
        elif isinstance(value, int | float):
            batch[name] = torch.from_numpy(np.array(values, np.float32 if isinstance(value, float) else None))
        else:
            batch[name] = values
    if first.damaged is not None:
        batch["damaged"] = first.damaged
    return batch


def padded(values: Iterable[Tensor], length: int | None) -> Tensor:
    """Return [B, S, E] of tensors [S, E], filled up with zeros to the longest of them, or to `length`."""
    values = list(values)
    longest = max(len(value) for value in values) if length is None else length
    batch = torch.zeros(len(values), longest, values[0].shape[1], dtype=values[0].dtype)
    for row, value in zip(batch, values, strict=True):
        row[: len(value)] = value
    return batch


def teach_torch() -> None:
    """Let torch's default collate function make batches of samples by `collate`, as its documentation proposes.

    Only a DataLoader that is made without our Loader and without a `collate_fn` needs this.
    """
    from torch.utils.data._utils.collate import default_collate_fn_map

    default_collate_fn_map.setdefault(Sample, collate)


class ReadAhead:
    """Reads batches, and meanwhile those that the sampler names as the next ones of this process.

    It pickles without what it reads: another process begins anew, and so does a fork.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._waiting: dict[tuple[int, ...], _Pending] = {}

    def __reduce__(self) -> tuple[type[ReadAhead], tuple[()]]:
        return ReadAhead, ()

    def samples(self, rows: Rows, positions: Sequence[int]) -> list[Sample]:
        """Read a batch of rows, and start to read its `ahead`. Call it with the same rows each time."""
        if self._pid != os.getpid():
            self.__init__()  # type: ignore[misc]
        batch = positions if isinstance(positions, Batch) else Batch(positions)
        pending = self._waiting.pop(tuple(batch), None) or _Pending(rows, batch)
        upcoming = map(tuple, batch.ahead)
        self._waiting = {one: self._waiting.get(one) or _Pending(rows, one) for one in upcoming}
        return pending.samples(rows.damaged, batch.seed, batch.epoch)


def read_batch(rows: Rows, positions: Sequence[int], damaged: str) -> list[Sample]:
    """Read a batch, and nothing ahead of it."""
    batch = positions if isinstance(positions, Batch) else Batch(positions)
    return _Pending(rows, batch).samples(damaged, batch.seed, batch.epoch)


class _Pending:
    """A batch whose bytes are being read into its tensors."""

    def __init__(self, rows: Rows, positions: Sequence[int]) -> None:
        self._rows = rows
        self._positions = list(positions)
        ranges, kinds = rows.ranges(self._positions)
        self._ids = [one.row for one in ranges]
        self._tensors: dict[str, list[Tensor | None]] = {}
        self._wholes: dict[str, Tensor] = {}
        self._reads: list[tuple[int, Future[None]]] = []
        self._add("latent", rows.reader, ranges, kinds)
        for join in rows.joins.values():
            for name, (places, types) in join.ranges(rows.rows(self._positions)).items():
                self._add(name, join.reader, places, types)

    def _add(
        self, name: str, reader: RangeReader, ranges: Sequence[Range | None], kinds: Sequence[Kind | None]
    ) -> None:
        """Start to read one tensor a row. If all rows have one dtype and shape, they share one tensor [B, ...]."""
        there = [(i, one, kind) for i, (one, kind) in enumerate(zip(ranges, kinds, strict=True)) if one and kind]
        tensors: list[Tensor | None] = [None] * len(ranges)
        views: list[memoryview] = []
        if len(there) == len(ranges) and len({kind for *_, kind in there}) == 1:
            _, one, (dtype, shape) = there[0]
            buffer = _empty(one.length * len(there))
            self._wholes[name] = buffer.view(getattr(torch, dtype)).view(len(there), *shape)
            tensors = list(self._wholes[name])
            views = [_view(buffer)[i * one.length : (i + 1) * one.length] for i in range(len(there))]
        else:
            for i, one, (dtype, shape) in there:
                buffer = _empty(one.length)
                tensors[i] = buffer.view(getattr(torch, dtype)).view(shape)
                views.append(_view(buffer))
        self._tensors[name] = tensors
        futures = reader.submit([one for _, one, _ in there], views)
        self._reads += zip((i for i, *_ in there), futures, strict=True)

    def samples(self, damaged: str, seed: int, epoch: int) -> list[Sample]:
        """Wait for the bytes, and return one Sample for each undamaged row."""
        bad: dict[int, DamagedRowError] = {}
        for owner, future in self._reads:
            try:
                future.result()
            except DamagedRowError as error:
                if damaged == "raise":
                    raise
                bad[owner] = error
        good = [i for i in range(len(self._positions)) if i not in bad]
        if not good:
            raise next(iter(bad.values()))
        rows = self._rows
        facts = rows.facts(self._positions)
        lists = rows.list_columns
        if _needs_change(rows):
            self._change(seed, epoch)
        samples = []
        for place, i in enumerate(good):
            sample = Sample({name: tensors[i] for name, tensors in self._tensors.items()})
            for name, values in facts.items():
                is_gap = values[i] is None and name not in lists
                sample[name] = math.nan if is_gap else values[i]
            sample.lists = lists
            if rows.text:
                sample.pads = rows.text.pads
            if not bad:
                sample.whole = (self._wholes, len(good), place)
            if damaged == "skip":
                sample.damaged = [self._ids[i] for i in sorted(bad)]
            samples.append(sample)
        return samples

    def _change(self, seed: int, epoch: int) -> None:
        latents = zip(self._tensors["latent"], self._ids, strict=True)
        changed = [_changed(self._rows, stored, id_, seed, epoch) for stored, id_ in latents if stored is not None]
        self._tensors["latent"] = list(changed)
        if self._wholes.pop("latent", None) is not None:
            self._wholes["latent"] = torch.stack(changed)


def _empty(num_bytes: int) -> Tensor:
    """Return uint8 [num_bytes]. A worker shares its memory with the trainer's process, so it is not copied again."""
    if get_worker_info() is None:
        return torch.from_numpy(take(num_bytes))
    storage = torch.UntypedStorage._new_shared(num_bytes)  # type: ignore[no-untyped-call]  # as torch's own collate function does
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (num_bytes,))  # type: ignore[call-overload, no-any-return]


def _view(buffer: Tensor) -> memoryview:
    return memoryview(buffer.numpy())  # type: ignore[arg-type]


def _needs_change(rows: Rows) -> bool:
    return rows.is_unscaled or (rows.stored_posterior == "moments" and rows.draw != "moments")


def _changed(rows: Rows, stored: Tensor, id_: str, seed: int, epoch: int) -> Tensor:
    """Return the latent of a row from the stored one: [C, T', H', W'] in the stored dtype."""
    if rows.draw == "moments":
        return stored
    z = converted(stored, rows.spec, rows.draw, f"{seed}/{epoch}/{id_}", is_unscaled=rows.is_unscaled)
    return z.to(stored.dtype)


def converted(stored: Tensor, spec: dict[str, Any], draw: str, noise: str, *, is_unscaled: bool) -> Tensor:
    """Return the latent [C, T', H', W'] from the stored one or from stored moments, computed in float32.

    Args:
        stored: as it stands in the output: [C, T', H', W'], or [2C, T', H', W'] for moments.
        spec: the Spec of the output.
        draw: "mean" or "sample"; it decides for stored moments only.
        noise: the name of the noise of a sample. Equal names give equal noise.
        is_unscaled: give what the VAE gives, z = latent / scale + shift, and not what training sees.
    """
    vae, z = spec["vae"], stored.float()
    if spec["latent"]["posterior"] != "moments":
        return z / factors(vae["scale"], z) + factors(vae["shift"], z) if is_unscaled else z
    mean, logvar = z.chunk(2)
    z = mean
    if draw == "sample":
        noise_seed = hashlib.sha256(noise.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(noise_seed[:8], "big"))
        z = mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * torch.randn(mean.shape, generator=generator)
    if not is_unscaled:
        z = (z - factors(vae["shift"], z)) * factors(vae["scale"], z)
    return z


def factors(value: Any, z: Tensor) -> Tensor:
    """Return a scale or shift that broadcasts over [C, T', H', W'].

    The Spec has one number, one for each channel, or one for each channel and latent frame.
    """
    factors = torch.tensor(value, dtype=torch.float32)
    if factors.ndim == 2:
        factors = factors[:, : z.shape[1]]
    return factors.reshape(factors.shape + (1,) * (4 - factors.ndim)) if factors.ndim else factors
