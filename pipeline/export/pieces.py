"""Write one piece of an export. A killed piece is written again, to the same bytes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from latentmill.dataset import LatentDataset
from pipeline.errors import ChangedError
from pipeline.export.place import PieceRecord, index_path
from pipeline.export.plan import DIGESTED, ExportJob, digest_of, opened
from pipeline.export.row import read_rows
from pipeline.export.trainer import Counts, Piece, trainer_of
from pipeline.runs.work import writing
from pipeline.storage import Storage


def write_piece(job: ExportJob, selection: str, piece: Piece) -> Counts:
    """Write the files of a piece, and then its record, which names them.

    Args:
        selection: the digest of all exported rows, which names the index that the positions of the piece point into.

    Raises:
        ChangedError: the index has other rows at these positions. Nothing was written.
        DamagedRowError: the bytes of a latent or of an embedding are not those that were written.
        StorageError: the storage failed, and so did every retry.
    """
    trainer, into = trainer_of(job.to), _Noting(job.into)
    latents, positions = _opened(job, selection), range(piece.start, piece.stop)
    if _digest_at(latents, positions) != piece.digest:
        raise ChangedError(f"{into.address(index_path(selection))} is not the index of these rows: run again")
    rows = read_rows(latents, positions, trainer.conversion, piece.text_room)
    counts = trainer.write(piece, rows, into)
    PieceRecord(digest=piece.digest, counts=dict(counts), files=into.sizes).put(Storage(job.into), piece.name)
    return counts


class _Noting(Storage):
    """A storage that notes what is put, because the record of a piece names its files."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.sizes: dict[str, int] = {}

    def put(self, path: str, data: bytes | Path) -> None:
        with writing():
            super().put(path, data)
        self.sizes[path] = len(data) if isinstance(data, bytes) else data.stat().st_size


@lru_cache(maxsize=1)
def _opened(job: ExportJob, selection: str) -> LatentDataset:
    """Open the selected rows, once in each process."""
    return opened(job.output, job.text, Storage(job.into).address(index_path(selection)))


def _digest_at(latents: LatentDataset, positions: range) -> str:
    if positions.stop > len(latents):
        return ""
    facts = latents.select(DIGESTED).facts(positions)
    return digest_of(*(facts[name] for name in DIGESTED))
