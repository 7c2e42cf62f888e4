"""The laws, checked on an output that is through, and the reader that watches it on the way."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentmill.format import FOOTER_SHARD

Verdicts = dict[tuple[str, int], str]
"""(video key, clip) -> reason: what a poison is to cost."""

Files = dict[str, bytes]
"""Name of a file, in the folder where a job puts what it makes -> content."""


@dataclass(slots=True)
class Findings:
    """What the laws found."""

    lost: int = 0
    twice: int = 0
    broken: list[str] = field(default_factory=list)


def check(files: Files, expected: Files, verdicts: Verdicts, paths: list[str]) -> Findings:
    """Hold the data files of an output against the undisturbed run's.

    Args:
        files, expected: what stands under `data/`, here and there.
        verdicts: the clips that the guard had to reject, and only those.
        paths: every path of the output.
    """
    found = Findings()
    if files.keys() != expected.keys():
        found.broken.append(f"data/ holds {sorted(files)}, expected {sorted(expected)}")
    ids = Counter(identity for data in files.values() for identity in _rows(data).column("id").to_pylist())
    wanted: set[str] = set()
    costs = dict(verdicts)
    for name, data in expected.items():
        keep, poisoned = _without(_rows(data), verdicts)
        wanted |= set(keep.column("id").to_pylist())
        if name in files:
            found.broken += _compare(name, files[name], data, keep, poisoned, costs)
    found.lost = len(wanted - ids.keys())
    found.twice = sum(n - 1 for n in ids.values())
    if costs:
        found.broken.append(f"not rejected as they should be: {costs}")
    found.broken += [f"left behind: {path}" for path in paths if path.startswith("_staging/")]
    for folder in ("index", "runs"):
        if not any(path.startswith(f"{folder}/") for path in paths):
            found.broken.append(f"nothing under {folder}/")
    return found


def _compare(
    name: str, data: bytes, reference: bytes, keep: pa.Table, poisoned: set[tuple[str, int]], costs: Verdicts
) -> list[str]:
    broken = []
    if not poisoned and data != reference:
        broken.append(f"{name}: {len(data)} bytes differ from the undisturbed run's {len(reference)}")
    rows, footer, before = _rows(data), _footer(data), _footer(reference)
    if not rows.equals(keep):
        broken.append(f"{name}: {rows.num_rows} rows differ from the undisturbed run's {keep.num_rows}")
    if footer["planned"] != rows.num_rows + len(footer["rejections"]):
        broken.append(f"{name}: planned {footer['planned']}, {rows.num_rows} rows, {len(footer['rejections'])} refused")
    for rejection in footer["rejections"]:
        if rejection in before["rejections"]:
            continue
        if costs.pop((rejection["key"], rejection["clip"]), None) != rejection["reason"]:
            broken.append(f"{name}: rejected without need: {rejection}")
    return broken


def _without(rows: pa.Table, verdicts: Verdicts) -> tuple[pa.Table, set[tuple[str, int]]]:
    clips = list(zip(rows.column("key").to_pylist(), rows.column("clip_index").to_pylist(), strict=True))
    kept = [clip not in verdicts for clip in clips]
    return rows.filter(pa.array(kept, pa.bool_())), {clip for clip in clips if clip in verdicts}


def _rows(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data)).replace_schema_metadata(None)


def _footer(data: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(pq.read_metadata(io.BytesIO(data)).metadata[FOOTER_SHARD.encode()])
    return facts


def local_files(output: Path, folder: str = "data/") -> Files:
    """What a reader's glob over the files of a local output gives."""
    found: Files = {}
    for path in sorted(output.glob(f"{folder}*.parquet")):
        with contextlib.suppress(FileNotFoundError):
            found[path.name] = path.read_bytes()
    return found


def local_paths(output: Path) -> list[str]:
    """Every file of a local output."""
    paths = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    return [str(path) for path in paths]


@contextlib.contextmanager
def reader(read: Callable[[], Files], expected: Files, poisoned: bool) -> Iterator[list[str]]:
    """Read the files over and over while the body runs; yields the list that fills with what was wrong.

    With poison a shard's bytes may differ from the undisturbed run's; then a file must be whole and never change.
    """
    wrong: list[str] = []
    over = threading.Event()
    seen: dict[str, str] = {}

    def look() -> None:
        now = read()
        wrong.extend(f"the reader lost sight of {name}" for name in seen.keys() - now.keys())
        for name, data in now.items():
            digest = hashlib.sha256(data).hexdigest()
            if seen.setdefault(name, digest) != digest:
                wrong.append(f"the reader saw {name} change")
            elif not poisoned and data != expected.get(name):
                wrong.append(f"the reader saw a wrong {name}: {len(data)} bytes")
            elif poisoned:
                try:
                    _footer(data), _rows(data)
                except (OSError, pa.ArrowException, KeyError) as error:
                    wrong.append(f"the reader saw a broken {name}: {error}")

    def loop() -> None:
        while not over.wait(0.1):
            try:
                look()
            except Exception as error:  # a reader that died would see nothing wrong any more
                wrong.append(f"the reader failed: {error!r}")

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield wrong
    finally:
        over.set()
        thread.join()
        look()


def repeated(diary: Path) -> tuple[int, int]:
    """(chunks that were begun again, chunks begun in all), from the encoders' diary."""
    lines = diary.read_text().splitlines() if diary.exists() else []
    return len(lines) - len(set(lines)), len(lines)
