"""A sequence that makes its items on demand: thousands of clips take the memory of their start times only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

T_co = TypeVar("T_co", covariant=True)


class LazySequence(Sequence[T_co]):
    """The sequence of `make(key)` for each key. No item is stored."""

    def __init__(self, make: Callable[[Any], T_co], keys: Sequence[Any]) -> None:
        self._make, self._keys = make, keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | Sequence[T_co]:
        if isinstance(index, slice):
            return LazySequence(self._make, self._keys[index])
        return self._make(self._keys[index])
