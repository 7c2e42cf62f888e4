"""Every path under OUTPUT. What a reader needs, `latentmill.format` spells; this module spells the rest.

    spec.json                                   the Spec
    plan/000000.parquet                         shards, one file for each growth of the sources
    data/<shard>.parquet                        EXISTS = DONE
    data/<shard>.<shape>.<sha256[:12]>.npy      with format npy: the latents of one shape
    index/<shard>.parquet                       derived of the data file
    rejected/<shard>.jsonl                      derived of the data file, for people
    index.parquet                               the indexes of all shards
    runs/<time>-<run>.json                      what each run did
    _claims/<shard>                             which run works on it
    _staging/<shard>/...                        parts, verdicts and faults, until the shard is committed

Paths of temporary files under `_staging/` are the store's (storage.TEMPORARY).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from latentmill.format import DATA as DATA
from latentmill.format import INDEX as INDEX
from latentmill.format import SEAL_PATH as SEAL_PATH
from latentmill.format import SPEC_PATH as SPEC_PATH
from latentmill.format import data_path as data_path
from latentmill.format import index_path as index_path
from latentmill.format import npy_path as npy_path
from latentmill.format import shard_of as shard_of
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
"""Name of a note of faults: video, number of runs."""


def plan_path(number: int) -> str:
    """Where the plan file of this number stands."""
    return f"{PLAN}{number:06d}{PARQUET}"


def rejected_path(shard: str) -> str:
    """Where the rejections of a shard stand, for people."""
    return f"{REJECTED}{shard}{JSONL}"


def run_path(ended: datetime, run: str) -> str:
    """Where a run's record stands. Names sort by time."""
    return f"{RUNS}{ended:%Y%m%dT%H%M%S%f}-{run}.json"


def claim_path(shard: str) -> str:
    """Where the claim on a shard stands."""
    return f"{CLAIMS}{shard}"


def staging_of(shard: str) -> str:
    """The folder of what is staged of a shard."""
    return f"{STAGING}{shard}/"


def part_path(id: ChunkId) -> str:
    """Where the part of a chunk is staged."""
    return f"{staging_of(id.shard)}v{id.video:06d}.c{id.clip:06d}.k{id.chunk:04d}of{id.num_chunks:04d}.part"


def verdict_path(shard: str, video: int, clip: int) -> str:
    """Where the guard's rejection of a clip is staged."""
    return f"{staging_of(shard)}v{video:06d}.c{clip:06d}.verdict.json"


def faults_path(shard: str, video: int, runs: int) -> str:
    """Where it is noted that a video could not be fetched in so many runs."""
    return f"{staging_of(shard)}v{video:06d}.faults{runs:04d}"


def list_shards(output: Storage, folder: str, suffix: str = PARQUET) -> Iterator[tuple[str, Entry]]:
    """Each shard with a file `<folder><shard><suffix>`, and that file."""
    for entry in output.list(folder):
        if entry.path.endswith(suffix):
            yield entry.path[len(folder) : -len(suffix)], entry
