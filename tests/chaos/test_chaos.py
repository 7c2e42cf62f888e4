"""Chaos, the quick part: a few kills and the poisons. The whole of it: `make chaos`.

The laws themselves are tested, too: each of them is broken once here, and must be found broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.__main__ import SCENARIOS, TEXT_SCENARIOS
from tests.chaos.lab import Lab, lab
from tests.chaos.laws import check, local_files, local_paths, reader
from tests.chaos.scenarios import Result
from tests.chaos.text import TEXT
from tests.chaos.work import ENCODE

pytestmark = pytest.mark.slow

OTHERS = ["index/s.parquet", "runs/r.json"]


@pytest.fixture(scope="module")
def place() -> Iterator[Lab]:
    with lab(7, ENCODE) as ready:
        yield ready


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("driver", 2),
        ("decode-worker", 3),
        ("encode-actor", 1),
        ("poison-decode", 0),
        ("poison-encode", 0),
        ("after-put", 1),
        ("full-disk", 0),
        ("read-only", 0),
    ],
)
def test_no_law_breaks(place: Lab, name: str, kills: int) -> None:
    result = Result(name)
    SCENARIOS[name][0](place, result, kills)
    if result.skipped:
        pytest.skip(result.skipped)
    assert (result.lost, result.twice, result.broken) == (0, 0, [])
    assert result.kills >= kills


@pytest.fixture(scope="module")
def texts() -> Iterator[Lab]:
    with lab(7, TEXT) as ready:
        yield ready


@pytest.mark.parametrize(
    ("name", "kills"), [("driver", 2), ("growth", 2), ("encode-actor", 2), ("after-put", 1), ("full-disk", 0)]
)
def test_no_law_breaks_for_texts(texts: Lab, name: str, kills: int) -> None:
    result = Result(name)
    TEXT_SCENARIOS[name][0](texts, result, kills)
    if result.skipped:
        pytest.skip(result.skipped)
    assert (result.lost, result.twice, result.broken) == (0, 0, [])
    assert result.kills >= kills


def test_a_lost_a_wrong_a_strange_text_and_a_left_claim_are_found(texts: Lab) -> None:
    files, paths = texts.expected, local_paths(texts.undisturbed)
    first, second, *_ = files
    sound = TEXT.check(files, files, {}, paths)
    assert (sound.lost, sound.twice, sound.broken) == (0, 0, [])
    assert TEXT.check({**files, first: files[second]}, files, {}, paths).lost > 0
    assert TEXT.check({**files, "more.parquet": files[first]}, files, {}, paths).twice > 0
    assert TEXT.check({name: data for name, data in files.items() if name != first}, files, {}, paths).broken
    assert TEXT.check(files, files, {}, [*paths, "_claims/text/t5/000000-000000000000"]).broken


def test_the_undisturbed_run_keeps_the_laws(place: Lab) -> None:
    files = local_files(place.undisturbed)
    found = check(files, files, {}, local_paths(place.undisturbed))
    assert (found.lost, found.twice, found.broken) == (0, 0, [])


def test_a_lost_row_a_double_row_and_a_left_part_are_found(place: Lab) -> None:
    files = local_files(place.undisturbed)
    first, second, *_ = files
    assert check(files | {first: files[second]}, files, {}, OTHERS).lost > 0
    assert check(files | {"more.parquet": files[first]}, files, {}, OTHERS).twice > 0
    assert check(files, files, {}, [*OTHERS, "_staging/s/v000000.part"]).broken
    assert check(files, files, {("plain-00", 0): "decode_crashed"}, OTHERS).broken


@pytest.mark.parametrize("poisoned", [False, True])
def test_the_reader_sees_partial_changing_and_vanishing_files(poisoned: bool, tmp_path: Path) -> None:
    whole = b"the file as it should be"
    for wrong in ({"a": whole[:5]}, {}):
        states = iter([{"a": whole}])
        with reader(lambda states=states, wrong=wrong: next(states, wrong), {"a": whole}, poisoned) as seen:
            while not seen:
                tmp_path.exists()
        assert seen
