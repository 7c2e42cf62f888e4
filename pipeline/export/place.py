"""The place of an export: whose it is, which run works in it, and which pieces are finished.

    _export/export.json             what decides the files, and of which output they are; another export is refused
    _export/claim                   the run that works here; a second one is refused
    _export/rows/<selection>.index  the index of the exported rows, named by the digest of the rows: never replaced
    _export/pieces/<shard>.json     {"digest", "counts", "files"}: EXISTS = FINISHED, as long as the digest is that of
                                    the plan, and each file is there in its size

Correctness never depends on the claim. Two runs that both believe to hold a place write the same bytes for the same
rows, each piece names its rows by a digest, and the one whose plan is older finds pieces that it does not know.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, NotFoundError, StorageError
from pipeline.export.plan import Plan
from pipeline.export.trainer import RECORDS, Counts, Piece
from pipeline.records import canonical_json
from pipeline.runs.claims import RENEW_SECONDS, STALE_SECONDS, Claims, Owner
from pipeline.runs.timer import every
from pipeline.settings import frozen
from pipeline.storage import TEMPORARY, Storage
from pipeline.storage.addresses import redacted
from pipeline.storage.parallel import in_parallel

JOB_PATH = f"{RECORDS}export.json"
CLAIM_PATH = f"{RECORDS}claim"
PIECES = f"{RECORDS}pieces/"
ROWS = f"{RECORDS}rows/"

OUTPUT, OUTPUT_DIGEST = "output", "output_sha256"
"""Fields of export.json: the address of the output, for people, and a digest that it keeps when it is moved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceRecord:
    """What is known of a piece that was finished."""

    digest: str
    """Of its rows."""
    counts: dict[str, int]
    files: dict[str, int]
    """The size of each file by its path. Pieces may share a file of equal content."""

    @staticmethod
    def parse(text: bytes) -> PieceRecord | None:
        """Return the record, or None if it is damaged or of a version that named no files."""
        try:
            record = PieceRecord(**json.loads(text))
            return record if dict(record.counts) and isinstance(record.files, dict) else None
        except (TypeError, ValueError):
            return None

    def put(self, into: Storage, piece: str) -> None:
        """Say that a piece is finished."""
        into.put(_record_path(piece), canonical_json(asdict(self)).encode())


def index_path(selection: str) -> str:
    """Return the path of the index of the exported rows: Parquet, under a name that no trainer takes for its own."""
    return f"{ROWS}{selection[:32]}.index"


def finished(into: Storage, plan: Plan) -> dict[str, Counts]:
    """Return the counts of each finished piece. Writes nothing.

    A piece is not finished if its shard has other rows by now, or if one of its files is missing or cut.

    Raises:
        ConfigError: the place holds something else, an export with other settings, or one of another output.
    """
    if not _is_begun(into, plan.record):
        return {}
    refuse_strangers(into, plan)
    there = {entry.path: entry.size for entry in into.list()}
    return {
        piece.name: Counts(record.counts)
        for piece, record in _records(into, (piece for piece in plan.pieces if _record_path(piece.name) in there))
        if record
        and record.digest == piece.digest
        and all(there.get(path) == size for path, size in record.files.items())
    }


def refuse_strangers(into: Storage, plan: Plan) -> None:
    """Refuse pieces that the plan does not name.

    Raises:
        ConfigError: there are some. The message names them.
    """
    names = {_record_path(piece.name) for piece in plan.pieces}
    strangers = [entry.path for entry in into.list(PIECES) if entry.path not in names]
    if strangers:
        shown = ", ".join(path.removeprefix(PIECES).removesuffix(".json") for path in strangers[:3])
        raise ConfigError(
            f"--into {redacted(into.uri)} has {len(strangers)} pieces of shards of which {plan.record[OUTPUT]} has no "
            f"row for this export: {shown}. If the output has grown meanwhile, run the same command again; otherwise "
            "use another place"
        )


@contextlib.contextmanager
def claimed(into: Storage) -> Iterator[None]:
    """Hold a place for this run. A run that was killed on this machine holds nothing.

    Raises:
        StorageError: another run holds it.
    """
    claims = Claims(into, Owner.this_process(uuid.uuid4().hex[:12]), claim=lambda _: CLAIM_PATH, done=None)
    if not claims.take(JOB_PATH):
        raise StorageError(
            f"--into {redacted(into.uri)}: another run exports to this place{_who(into)}. Run the same command again "
            f"when it has ended; if its machine died, {STALE_SECONDS / 60:.0f} minutes after that"
        )
    try:
        with every(RENEW_SECONDS, claims.renew):
            yield
    finally:
        with contextlib.suppress(StorageError):  # a claim also becomes stale
            claims.release_all()


def begin(into: Storage, plan: Plan, there: Iterable[str]) -> None:
    """Write down what is exported, pin its rows, and delete what earlier runs wrote of shards that have other rows.

    Args:
        there: the finished pieces.
    """
    into.sweep_temporary()
    content = canonical_json(plan.record).encode()
    if not into.create(JOB_PATH, content):
        _is_begun(into, plan.record)  # another run was faster
        if into.read(JOB_PATH) != content:  # the output was moved, or the record is of an older version
            into.put(JOB_PATH, content)
    _clear(into, plan, set(there))
    path = index_path(plan.selection)
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "rows.parquet")
        plan.latents.save_index(index)
        if not into.create(path, index):  # damaged, or of another release of Arrow: the rows are the same
            into.put(path, index)


def end(into: Storage, plan: Plan) -> None:
    """Delete the indexes of earlier runs, once every piece is finished.

    Raises:
        StorageError: another run, whose plan is newer, has worked here meanwhile.
    """
    try:
        refuse_strangers(into, plan)
    except ConfigError as error:
        raise StorageError(f"another run worked here meanwhile: {error}") from None
    for entry in into.list(ROWS):
        if entry.path != index_path(plan.selection):
            into.delete(entry.path)


def _is_begun(into: Storage, record: dict[str, Any]) -> bool:
    """Return whether the place holds this export already. Raises ConfigError if it holds anything else."""
    damaged = "is damaged, so nobody knows what is exported there: restore it, or use an empty place"
    theirs: dict[str, Any] | None = frozen.load(into, JOB_PATH, lambda text: dict(json.loads(text)), damaged)
    if theirs is None:
        ours = (TEMPORARY, CLAIM_PATH)
        if first := next((entry.path for entry in into.list() if not entry.path.startswith(ours)), None):
            raise ConfigError(
                f"--into {redacted(into.uri)} holds {first} and is no export of latentmill: use an empty place"
            )
        return False
    names = record.keys() - {OUTPUT, OUTPUT_DIGEST}
    settings, others = ({name: one.get(name) for name in names} for one in (record, theirs))
    why = f"--into {redacted(into.uri)} holds an export with other settings; use another place"
    frozen.refuse_others(canonical_json(settings), canonical_json(others), why)
    # A record of an older version names no output. What it exported is then known by the pieces alone.
    if theirs.get(OUTPUT_DIGEST, record[OUTPUT_DIGEST]) != record[OUTPUT_DIGEST]:
        raise ConfigError(
            f"--into {redacted(into.uri)} holds an export of another output, {theirs.get(OUTPUT)}; this is "
            f"{record[OUTPUT]}: use another place"
        )
    return True


def _clear(into: Storage, plan: Plan, there: set[str]) -> None:
    """Delete the files and the record of each piece whose shard has other rows by now, but no file of a finished one.

    They would stay in the data set of a trainer that takes every file of a folder. The record goes last, so that a
    killed run leaves it to the next one.
    """
    listed = {entry.path for entry in into.list(PIECES)}
    records = list(_records(into, (piece for piece in plan.pieces if _record_path(piece.name) in listed)))
    stale = [(piece, record) for piece, record in records if record and record.digest != piece.digest]
    if not stale:
        return
    kept = {path for piece, record in records if record and piece.name in there for path in record.files}
    for piece, record in stale:
        for path in record.files.keys() - kept:
            into.delete(path)
        into.delete(_record_path(piece.name))


def _records(into: Storage, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, PieceRecord | None]]:
    return in_parallel(lambda piece: (piece, PieceRecord.parse(into.read(_record_path(piece.name)))), pieces)


def _record_path(piece: str) -> str:
    return f"{PIECES}{piece}.json"


def _who(into: Storage) -> str:
    """Return who holds the claim, as far as that is known."""
    try:
        owner = Owner.parse(into.read(CLAIM_PATH))
    except NotFoundError:
        return ""
    here = Owner.this_process("").machine
    return f" (process {owner.pid} of {'this' if owner.machine == here else 'another'} machine)" if owner else ""
