"""Law: the permutation is one at every size, uniform, fixed by its key, and the same for ever."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentmill.permutation import Permutation


def _is_bijection(size: int, key: int) -> bool:
    return bool((np.sort(Permutation(size, key)(np.arange(size))) == np.arange(size)).all())


def test_it_is_a_bijection() -> None:
    assert [size for size in (*range(1, 200), 4095, 4096, 4097, 10_000) if not _is_bijection(size, 3)] == []


@pytest.mark.slow
def test_it_is_a_bijection_at_every_size_up_to_ten_thousand() -> None:
    assert [size for size in range(1, 10_001) if not _is_bijection(size, size)] == []


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 1 << 62), seed=st.integers(), data=st.data())
def test_at_any_size_different_elements_go_to_different_places(size: int, seed: int, data: st.DataObject) -> None:
    elements = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    places = Permutation(size, seed)(elements)
    assert len(set(places.tolist())) == len(elements)
    assert ((places >= 0) & (places < size)).all()


@pytest.mark.parametrize("size", [1, 2, 65, 1000, 5000, 10**7, 10**15, (1 << 62) - 1])
def test_few_elements_go_where_many_would(size: int) -> None:
    """Few are computed one by one, many by numpy."""
    elements = np.random.default_rng(0).integers(0, size, 200)
    permutation = Permutation(size, 5)
    assert permutation(elements).tolist() == [int(permutation([element])[0]) for element in elements]


def _chi_square(counts: np.ndarray) -> float:
    """In standard deviations from what chance gives."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("size", [2, 3, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_every_order_of_few_elements_is_as_likely_as_any_other(size: int) -> None:
    orders = math.factorial(size)
    seen = Counter(tuple(Permutation(size, key)(np.arange(size)).tolist()) for key in range(80 * orders))
    counts = np.array([seen[order] for order in itertools.permutations(range(size))])
    assert _chi_square(counts) < 5


@pytest.mark.parametrize("size", [7, 30, 100, 5000])
def test_every_element_goes_to_every_place_as_often(size: int) -> None:
    """In 16 x 16 cells of (element, place), over many keys."""
    counts = np.zeros((16, 16))
    elements = np.arange(size)
    cells = min(size, 16)
    for key in range(300):
        places = Permutation(size, key)(elements)
        np.add.at(counts, (elements * cells // size, places * cells // size), 1)
    counts = counts[:cells, :cells]
    of_cell = np.bincount(elements * cells // size, minlength=cells)
    expected = 300 * np.outer(of_cell, of_cell) / size
    # A permutation fixes the sums of rows and columns, so (cells - 1)**2 are free.
    freedom = (cells - 1) ** 2
    chi_square = ((counts - expected) ** 2 / expected).sum() * (size - 1) / size
    assert abs(chi_square - freedom) / math.sqrt(2 * freedom) < 5


@pytest.mark.parametrize("size", [100, 10_000])
def test_neighbours_do_not_stay_neighbours(size: int) -> None:
    places = Permutation(size, 0, 0, "batches")(np.arange(size))
    assert (np.abs(np.diff(places)) == 1).mean() < 0.05


def test_keys_give_different_orders() -> None:
    elements = np.arange(1000)
    orders = [Permutation(1000, *key)(elements) for key in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]]
    assert all((one == other).mean() < 0.02 for one, other in itertools.combinations(orders, 2))


def test_the_order_is_the_same_for_ever() -> None:
    """A state that was saved by an older version must go on in the same order."""
    assert Permutation(10, 0, 0, "batches")(np.arange(10)).tolist() == [1, 5, 7, 3, 0, 9, 2, 6, 8, 4]
    large = Permutation(10**9, 7, 3, "batches")([0, 1, 2, 10**9 - 1])
    assert large.tolist() == [157861423, 65028243, 131292487, 18267258]


@pytest.mark.parametrize("element", [5, -1])
def test_elements_outside_are_refused(element: int) -> None:
    with pytest.raises((IndexError, OverflowError)):
        Permutation(5, 0)([element])
