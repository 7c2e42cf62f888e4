"""Write one piece of an export, and know which pieces are finished.

    _export/export.json             what decides the files; a later run with other settings is refused
    _export/rows.index              the index of the exported rows
    _export/pieces/<shard>.json     {"digest", "counts"}: EXISTS = FINISHED, as long as its digest is that of the plan

The record of a piece is put last, when all its files are there. A killed piece is written again, to the same bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from latentmill.dataset import LatentDataset
from pipeline.errors import ConfigError, NotFoundError
from pipeline.export.plan import ROWS_PATH, ExportJob, opened
from pipeline.export.row import read_rows
from pipeline.export.trainer import RECORDS, Counts, Piece, trainer_of
from pipeline.records import canonical_json
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted
from pipeline.storage.parallel import in_parallel

JOB_PATH = f"{RECORDS}export.json"
PIECES = f"{RECORDS}pieces/"


def write_piece(job: ExportJob, selection: str, piece: Piece) -> Counts:
    """Write the files of a piece and then its record.

    Args:
        selection: the digest of the selected rows, so that a worker that is used again opens no older ones.

    Raises:
        DamagedRowError: the bytes of a latent or of an embedding are not those that were written.
        StorageError: the storage failed, and so did every retry.
    """
    trainer, into = trainer_of(job.to), Storage(job.into)
    latents, positions = _opened(job, selection), range(piece.start, piece.stop)
    rows = read_rows(latents, positions, trainer.conversion, piece.text_room)
    counts = trainer.write(piece, rows, into)
    into.put(_record_path(piece.name), canonical_json({"digest": piece.digest, "counts": counts}).encode())
    return counts


def finished(into: Storage, pieces: Iterable[Piece]) -> dict[str, Counts]:
    """Return the counts of each finished piece. The piece of a shard that has other rows by now is not finished."""
    there = {entry.path for entry in into.list(PIECES)}
    candidates = [piece for piece in pieces if _record_path(piece.name) in there]
    records = in_parallel(lambda piece: (piece, json.loads(into.read(_record_path(piece.name)))), candidates)
    return {piece.name: Counts(record["counts"]) for piece, record in records if record["digest"] == piece.digest}


def check_place(into: Storage, record: dict[str, Any]) -> bool:
    """Return whether the place holds this export already. Writes nothing.

    Raises:
        ConfigError: it holds something else, or an export with other settings.
    """
    try:
        theirs = json.loads(into.read(JOB_PATH))
    except NotFoundError:
        if (first := next(into.list(), None)) is not None:
            raise ConfigError(
                f"--into {redacted(into.uri)} holds {first.path} and is no export of latentmill: use an empty place"
            ) from None
        return False
    if names := [name for name in sorted(record) if record[name] != theirs.get(name)]:
        differences = "; ".join(f"{name}: {record[name]} in this run, {theirs.get(name)} there" for name in names)
        raise ConfigError(
            f"--into {redacted(into.uri)} holds an export with other settings; use another place: {differences}"
        )
    return True


def claim_place(into: Storage, record: dict[str, Any], latents: LatentDataset) -> None:
    """Write down the settings of an export, and the rows that it has in this run."""
    if not into.create(JOB_PATH, canonical_json(record).encode()):
        check_place(into, record)  # another run was faster
    with tempfile.TemporaryDirectory() as folder:
        latents.save_index(f"{folder}/rows.parquet")
        into.put(ROWS_PATH, Path(folder, "rows.parquet"))


@lru_cache(maxsize=1)
def _opened(job: ExportJob, selection: str) -> LatentDataset:
    """Open the selected rows, once in each process."""
    del selection
    return opened(job.output, job.text, Storage(job.into).address(ROWS_PATH))


def _record_path(piece: str) -> str:
    return f"{PIECES}{piece}.json"
