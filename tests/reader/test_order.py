"""Laws of the order: a pure function of (seed, epoch, step), the same for all worlds; once each; resumable."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentmill.errors import StateError
from latentmill.index.selection import Bucket
from latentmill.order import Last, Order
from latentmill.sampler import BatchSampler, DropLast

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)
batch_sizes = st.integers(1, 7)
seeds = st.integers(0, 1 << 40)
drop_lasts: st.SearchStrategy[DropLast] = st.sampled_from([True, False, "wrap"])
worlds = st.sampled_from([1, 2, 3, 4, 8])


@dataclass
class Rows:
    """What a sampler asks of a dataset: buckets of rows that lie one after the other."""

    sizes: list[int]
    digest: str = "rows"

    @property
    def buckets(self) -> list[Bucket]:
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        return [
            Bucket(f"bucket {i}", (i,), _Positions(start), size)  # type: ignore[arg-type]
            for i, (start, size) in enumerate(zip(starts, self.sizes, strict=True))
        ]


class _Positions:
    def __init__(self, start: int) -> None:
        self._start = start

    @property
    def values(self) -> Any:
        start = self._start

        class Shifted:
            def __getitem__(self, places: Any) -> Any:
                return places + start

        return Shifted()


def sampler(rows: list[int], **options: Any) -> BatchSampler:
    return BatchSampler(Rows(rows), **options)  # type: ignore[arg-type]


def dealt(rows: list[int], world: int, parallel: int = 1, state: Any = None, **options: Any) -> list[list[int]]:
    """The global batches, put together again from what each rank of a world gets."""
    each = []
    for rank in range(0, world * parallel, parallel):
        one = sampler(rows, rank=rank, world_size=world * parallel, context_parallel_size=parallel, **options)
        if state:
            one.load_state_dict(state)
        each.append([list(batch) for batch in one])
    return [batch for step in zip_longest(*each) for batch in step if batch is not None]


def order(rows: list[int], batch_size: int, last: Last, run: int = 1, seed: int = 0) -> Order:
    names = tuple(f"bucket {i}" for i in range(len(rows)))
    return Order(sizes=tuple(rows), names=names, batch_size=batch_size, seed=seed, last=last, shape_run=run)


@pytest.mark.filterwarnings("ignore:never seen")
@settings(deadline=None, max_examples=60)
@given(rows=sizes, batch_size=batch_sizes, seed=seeds, drop_last=drop_lasts, world=worlds, run=st.integers(1, 3))
def test_global_batches_are_the_same_for_every_world(
    rows: list[int], batch_size: int, seed: int, drop_last: DropLast, world: int, run: int
) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "drop_last": drop_last, "shape_run": run}
    alone = dealt(rows, 1, **options)
    together = dealt(rows, world, **options)
    if drop_last is True:  # what fills no step is left out
        assert together == alone[: len(alone) // world * world]
    elif drop_last == "wrap":
        assert together == alone + alone[: len(together) - len(alone)] or len(alone) < world
        assert len(together) % world == 0
    else:
        assert together == alone
    assert dealt(rows, world, parallel=2, **options) == together


@settings(deadline=None, max_examples=60)
@given(rows=sizes, batch_size=batch_sizes, seed=seeds, world=worlds, run=st.integers(1, 3))
def test_every_row_comes_once(rows: list[int], batch_size: int, seed: int, world: int, run: int) -> None:
    batches = dealt(rows, world, batch_size=batch_size, seed=seed, drop_last=False, shape_run=run)
    assert sorted(row for batch in batches for row in batch) == list(range(sum(rows)))


@pytest.mark.filterwarnings("ignore:never seen")
@settings(deadline=None, max_examples=60)
@given(rows=sizes, batch_size=batch_sizes, seed=seeds, run=st.integers(1, 3))
def test_dropping_leaves_out_less_than_a_run_a_bucket_and_repeats_nothing(
    rows: list[int], batch_size: int, seed: int, run: int
) -> None:
    batches = dealt(rows, 1, batch_size=batch_size, seed=seed, shape_run=run)
    seen = [row for batch in batches for row in batch]
    assert len(seen) == len(set(seen)) == sum(size // (batch_size * run) * batch_size * run for size in rows)
    assert {len(batch) for batch in batches} <= {batch_size}
    assert order(rows, batch_size, "drop", run).num_dropped == sum(rows) - len(seen)


@settings(deadline=None, max_examples=60)
@given(rows=sizes, batch_size=batch_sizes, seed=seeds, run=st.integers(1, 3))
def test_wrapping_fills_every_batch_and_leaves_out_nothing(
    rows: list[int], batch_size: int, seed: int, run: int
) -> None:
    batches = dealt(rows, 1, batch_size=batch_size, seed=seed, drop_last="wrap", shape_run=run)
    assert {len(batch) for batch in batches} == {batch_size}
    assert {row for batch in batches for row in batch} == set(range(sum(rows)))
    assert len(batches) * batch_size < sum(rows) + len(rows) * batch_size * run


@settings(deadline=None, max_examples=60)
@given(rows=sizes, batch_size=batch_sizes, drop_last=drop_lasts, run=st.integers(1, 4))
def test_a_run_of_batches_has_one_shape(rows: list[int], batch_size: int, drop_last: DropLast, run: int) -> None:
    last: Last = {True: "drop", False: "short", "wrap": "wrap"}[drop_last]  # type: ignore[assignment]
    made = order(rows, batch_size, last, run)
    buckets = [made.batch(0, number)[0] for number in range(made.num_batches)]
    whole = len(buckets) if last != "short" else sum(size // (batch_size * run) for size in rows) * run
    assert all(len(set(buckets[i : i + run])) == 1 for i in range(0, whole, run))


@pytest.mark.filterwarnings("ignore:never seen")
@settings(deadline=None, max_examples=60)
@given(
    rows=sizes, batch_size=batch_sizes, seed=seeds, drop_last=drop_lasts, before=worlds, after=worlds, data=st.data()
)
def test_resumed_with_another_world_the_rest_is_what_it_would_have_been(
    rows: list[int], batch_size: int, seed: int, drop_last: DropLast, before: int, after: int, data: st.DataObject
) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "drop_last": drop_last, "epoch": 5}
    one = sampler(rows, world_size=before, **options)
    steps = data.draw(st.integers(0, len(one)))
    iter_ = iter(one)
    for _ in range(steps):
        next(iter_)
        one.advance(1)
    state = one.state_dict()
    if steps < len(one):
        assert state["batches"] == steps * before
    whole = dealt(rows, 1, **options)
    rest = dealt(rows, after, state=state, **options)
    left = whole[steps * before :]
    if drop_last == "wrap":
        assert rest[: len(left)] == left
    else:
        assert rest == (left[: len(left) // after * after] if drop_last is True else left)


@settings(deadline=None, max_examples=30)
@given(rows=sizes, seed=seeds, epoch=st.integers(0, 1 << 30), step=st.integers(0, 1 << 30))
def test_a_batch_depends_on_nothing_that_came_before(rows: list[int], seed: int, epoch: int, step: int) -> None:
    step %= order(rows, 2, "short").num_batches
    fresh = order(rows, 2, "short", seed=seed)
    used = order(rows, 2, "short", seed=seed)
    for number in range(used.num_batches):
        used.batch(epoch, number)
    assert used.batch(epoch, step)[1].tolist() == fresh.batch(epoch, step)[1].tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [dealt([50, 30], 1, batch_size=2, seed=seed, epoch=epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert all(one != other for one in orders for other in orders if one is not other)
    assert all({frozenset(batch) for batch in one} != {frozenset(batch) for batch in orders[0]} for one in orders[1:])


def test_buckets_are_mixed_over_the_epoch() -> None:
    made = order([400, 400], 4, "drop")
    buckets = [made.batch(0, number)[0] for number in range(made.num_batches)]
    assert 60 < sum(one != other for one, other in pairwise(buckets)) < 140


def test_the_next_epoch_follows_by_itself_and_set_epoch_goes_anywhere() -> None:
    one = sampler([20], batch_size=2)
    first, second = list(one), list(one)
    assert first != second
    assert one.epoch == 2
    one.set_epoch(0)
    assert list(one) == first


def test_set_epoch_right_after_a_load_stays_where_the_state_says() -> None:
    """The usual loop: for epoch in range(start, n): loader.set_epoch(epoch); for batch in loader: ..."""
    saved = sampler([20], batch_size=2, epoch=3)
    whole = list(saved)
    saved.set_epoch(3)
    saved.advance(4)
    resumed = sampler([20], batch_size=2)
    resumed.load_state_dict(saved.state_dict())
    resumed.set_epoch(3)
    assert list(resumed) == whole[4:]
    resumed.set_epoch(3)
    assert list(resumed) == whole


def test_a_plain_dataloader_says_how_many_batches_it_got() -> None:
    one = sampler([20], batch_size=2, world_size=2, rank=1)
    whole = list(one)  # a DataLoader asks ahead, up to the end
    assert one.state_dict(steps=2)["batches"] == 4
    assert one.state_dict(steps=2)["epoch"] == 0
    assert one.state_dict(steps=5) | {"batches": 0, "epoch": 1} == one.state_dict(steps=5)
    again = sampler([20], batch_size=2, world_size=2, rank=1)
    again.load_state_dict(one.state_dict(steps=2))
    assert list(again) == whole[2:]


def test_length_is_what_comes() -> None:
    for drop_last in (True, False, "wrap"):
        for rank in range(3):
            one = sampler([10, 9], batch_size=4, rank=rank, world_size=3, drop_last=drop_last)
            assert len(list(one)) == len(one)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 4}, "batch_size was 2, is 4"),
        ({"drop_last": "wrap"}, "drop_last was True, is 'wrap'"),
    ],
)
def test_a_state_of_another_order_is_refused_by_name(change: dict[str, Any], names: str) -> None:
    state = sampler([20], batch_size=2).state_dict()
    with pytest.raises(StateError, match=names):
        sampler([20], **{"batch_size": 2, **change}).load_state_dict(state)


def test_a_state_of_other_rows_is_refused_and_says_what_to_do() -> None:
    state = sampler([20], batch_size=2).state_dict()
    with pytest.raises(StateError, match=r"rows was 'rows', is 'grown'.*save_index"):
        BatchSampler(Rows([20], "grown"), batch_size=2).load_state_dict(state)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", [{}, {"version": 99}, None])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(StateError, match="not a state"):
        sampler([20], batch_size=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"batch_size": 2, "shape_run": 0}, "shape_run"),
        ({"batch_size": 2, "drop_last": "no"}, "drop_last must be True, False or 'wrap', got 'no'"),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, "rank must lie in 0..world_size - 1, got rank 2 of 2"),
        ({"batch_size": 2, "world_size": 4, "context_parallel_size": 3}, "must divide world_size 4, got 3"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sampler([20], **options)


def test_a_bucket_that_is_always_dropped_is_named() -> None:
    with pytest.warns(UserWarning, match="never seen: .* rows: bucket 1; drop_last=False"):
        sampler([20, 3], batch_size=4)


@pytest.mark.parametrize("name", ["epoch", "batches"])
@pytest.mark.parametrize("value", [-1, "1", 1.5, 2.0, True, None, [1], float("nan")])
def test_a_state_whose_place_is_no_whole_number_is_refused(name: str, value: Any) -> None:
    one = sampler([30], batch_size=3)
    one.load_state_dict(one.state_dict() | {"epoch": 2, "batches": 4})
    with pytest.raises(StateError, match=f"{name} must be a whole number of at least 0, got "):
        one.load_state_dict(one.state_dict() | {name: value})
    assert one.state_dict()["batches"] == 4, "a refused state changes nothing"


@pytest.mark.parametrize("value", [-1, "1", 1.5, True])
def test_an_epoch_that_is_no_whole_number_is_refused(value: Any) -> None:
    one = sampler([30], batch_size=3)
    for refused in (lambda: sampler([30], batch_size=3, epoch=value), lambda: one.set_epoch(value)):
        with pytest.raises(ValueError, match="epoch must be a whole number of at least 0"):
            refused()


def test_set_epoch_after_a_load_may_come_twice() -> None:
    """Lightning tells the epoch to the loader and to its sampler."""
    saved = sampler([30], batch_size=3, seed=1)
    saved.set_epoch(3)
    want = list(saved)
    resumed = sampler([30], batch_size=3, seed=1)
    resumed.load_state_dict(saved.state_dict() | {"epoch": 3, "batches": 4})
    resumed.set_epoch(3)
    resumed.set_epoch(3)
    assert list(resumed) == want[4:]


def test_the_same_epoch_comes_each_time_even_after_a_break() -> None:
    """A validation loop that looks at the first batches only."""
    one = sampler([30], batch_size=3, seed=1, epoch=2, same_epoch=True)
    whole = list(one)
    steps = iter(one)
    assert [next(steps), next(steps)] == whole[:2]
    one.set_epoch(7)
    one.advance(2)
    assert one.remaining() == len(whole)
    assert list(one) == whole
    assert one.epoch == 2


def test_the_length_is_of_a_whole_epoch_and_remaining_of_the_rest() -> None:
    one = sampler([30], batch_size=3)
    one.load_state_dict(one.state_dict() | {"batches": 4})
    assert (len(one), one.remaining()) == (10, 6)
