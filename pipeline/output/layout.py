"""Every path under OUTPUT. `latentmill.format` defines the paths that a reader needs; this module defines the rest.

    spec.json                                   the Spec
    plan/000000.parquet                         shards; one file for each time that the sources grew
    data/<shard>.parquet                        EXISTS = DONE
    data/<shard>.<shape>.<sha256[:12]>.npy      with format npy: the latents of one shape
    index/<shard>.parquet                       derived from the data file
    rejected/<shard>.jsonl                      derived from the data file, for people
    index.parquet                               the indexes of all shards
    text/NAME/spec.json                         the TextSpec
    text/NAME/<shard>.parquet                   the embeddings of a shard's captions. EXISTS = DONE
    text/NAME/empty.parquet                     the embedding of the empty prompt
    text/NAME/runs/<time>-<run>.json            what each run of `latentmill text` did
    runs/<time>-<run>.json                      what each run did
    _claims/<shard>                             the run that works on the shard
    _claims/text/NAME/<shard>                   the run that works on the text of the shard
    _staging/<shard>/...                        parts, verdicts and faults, until the shard is committed

The store chooses the paths of its temporary files under `_staging/` (storage.TEMPORARY).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from latentmill.format import DATA as DATA
from latentmill.format import INDEX as INDEX
from latentmill.format import SEAL_PATH as SEAL_PATH
from latentmill.format import SPEC_PATH as SPEC_PATH
from latentmill.format import TEXT as TEXT
from latentmill.format import data_path as data_path
from latentmill.format import index_path as index_path
from latentmill.format import npy_path as npy_path
from latentmill.format import shard_of as shard_of
from latentmill.format import text_empty_path as text_empty_path
from latentmill.format import text_of as text_of
from latentmill.format import text_path as text_path
from latentmill.format import text_spec_path as text_spec_path
from pipeline.records import ChunkId
from pipeline.storage import Entry, Storage

PLAN = "plan/"
REJECTED = "rejected/"
RUNS = "runs/"
CLAIMS = "_claims/"
STAGING = "_staging/"

PARQUET = ".parquet"
NPY = ".npy"
JSONL = ".jsonl"

PART = re.compile(r"v(\d{6,})\.c(\d{6,})\.k(\d{4,})of(\d{4,})\.part")
"""Name of a part: video, clip, chunk, number of chunks."""
VERDICT = re.compile(r"v(\d{6,})\.c(\d{6,})\.verdict\.json")
"""Name of a verdict: video, clip."""
FAULTS = re.compile(r"v(\d{6,})\.faults(\d{4,})")
"""Name of a fault note: video, number of runs."""


def plan_path(number: int) -> str:
    """Return the path of the plan file with this number."""
    return f"{PLAN}{number:06d}{PARQUET}"


def rejected_path(shard: str) -> str:
    """Return the path of the rejections of a shard, for people."""
    return f"{REJECTED}{shard}{JSONL}"


def text_runs(name: str) -> str:
    """Return the folder of the run records of a text."""
    return f"{text_of(name)}{RUNS}"


def run_path(ended: datetime, run: str, folder: str = RUNS) -> str:
    """Return the path of a run's record. The names sort by time."""
    return f"{folder}{ended:%Y%m%dT%H%M%S%f}-{run}.json"


def claim_path(shard: str) -> str:
    """Return the path of the claim on a shard."""
    return f"{CLAIMS}{shard}"


def text_claim_path(name: str, shard: str) -> str:
    """Return the path of the claim on the text of a shard."""
    return f"{CLAIMS}{text_of(name)}{shard}"


def staging_of(shard: str) -> str:
    """Return the staging folder of a shard."""
    return f"{STAGING}{shard}/"


def part_path(id: ChunkId) -> str:
    """Return the path of a chunk's part."""
    return f"{staging_of(id.shard)}v{id.video:06d}.c{id.clip:06d}.k{id.chunk:04d}of{id.num_chunks:04d}.part"


def verdict_path(shard: str, video: int, clip: int) -> str:
    """Return the path of a verdict: the guard's rejection of a clip."""
    return f"{staging_of(shard)}v{video:06d}.c{clip:06d}.verdict.json"


def faults_path(shard: str, video: int, runs: int) -> str:
    """Return the path of the note that a video could not be fetched in this number of runs."""
    return f"{staging_of(shard)}v{video:06d}.faults{runs:04d}"


def list_shards(output: Storage, folder: str, suffix: str = PARQUET) -> Iterator[tuple[str, Entry]]:
    """Yield each shard that has a file `<folder><shard><suffix>`, with the entry of that file."""
    for entry in output.list(folder):
        if entry.path.endswith(suffix):
            yield entry.path[len(folder) : -len(suffix)], entry
