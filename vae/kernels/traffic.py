"""Count the bytes that a run reads and writes, by kind of pass, without running it: on tensors of the device `meta`.

A kernel states what it reads and writes with `note`; torch's operations are seen by `Traffic`. Each byte counts as if
it came from memory: what a cache holds between two passes is not known here. `begin` names the part of the encoder that
follows, for whoever counts or times by parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Note = Callable[[str, Sequence[Tensor], Sequence[Tensor]], None]

_NOTE: ContextVar[Note | None] = ContextVar("latentmill_traffic", default=None)

_BEGIN: ContextVar[Callable[[str], None] | None] = ContextVar("latentmill_parts", default=None)

CONVOLUTION = "convolution"
BIAS = "bias of a convolution"

_WRITES_ONLY = {"copy_", "fill_", "zero_"}
"""Operations that do not read the tensor that they change."""

_ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def note(kind: str, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
    """Tell the count, if there is one, that a kernel passes over these tensors."""
    if (count := _NOTE.get()) is not None:
        count(kind, reads, writes)


def begin(part: str) -> None:
    """Tell whoever listens that this part of the encoder begins: "conv_in", "level 0", ..., "mid", "conv_out"."""
    if (listener := _BEGIN.get()) is not None:
        listener(part)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener` with the name of each part that begins inside this context."""
    token = _BEGIN.set(listener)
    try:
        yield
    finally:
        _BEGIN.reset(token)


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count bytes inside this context.

    A convolution counts as cuDNN's path runs it on CUDA: its output has the layout of its input, and a bias is a pass
    of its own over the output.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()
        """By kind of pass: a kernel's kind, or the name of torch's operation."""

    def add(self, kind: str, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Count one pass."""
        self.bytes[kind] += sum(map(_distinct_bytes, (*reads, *writes)))

    def __enter__(self) -> Self:
        self._token = _NOTE.set(self.add)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        _NOTE.reset(self._token)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count it, unless it only allocates or only views."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        returned = func._schema.returns
        is_view = bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write
        if is_view or name in _ALLOCATES or not isinstance(result, Tensor):
            return result
        reads = [value for value in args if isinstance(value, Tensor)]
        if name == "convolution":
            has_bias = args[2] is not None
            self.add(CONVOLUTION, args[:2], [result])
            self.add(BIAS, [result] * has_bias, [result] * has_bias)
            layout = {5: torch.channels_last_3d, 4: torch.channels_last}[result.ndim]
            return result.contiguous(memory_format=layout) if args[0].is_contiguous(memory_format=layout) else result
        joined = [value for part in args if isinstance(part, list | tuple) for value in part]
        reads = reads[1:] if name in _WRITES_ONLY else reads
        self.add(name, [*reads, *(value for value in joined if isinstance(value, Tensor))], [result])
        return result


def _distinct_bytes(x: Tensor) -> int:
    """Return the bytes of a tensor, each once: an expanded dimension is read from one place."""
    sizes = [size for size, stride in zip(x.shape, x.stride(), strict=True) if stride]
    return int(torch.Size(sizes).numel()) * x.element_size()
