"""Tars in WebDataset form: one tar a piece, and in it the files of each clip side by side.

    <shard>.tar
        <id>.latent.pth     tensor [C, T', H', W'], as the reader gives it: scaled as the Spec says, in the stored dtype
        <id>.text.pth       with --text: tensor [S, E], S without padding
        <id>.txt            the caption; absent where there is none
        <id>.json           id, key, caption, num_frames, height, width, fps

`webdataset.WebDataset(...).decode()` gives tensors, a text and a dict.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator

from pipeline.export.row import ExportRow
from pipeline.export.trainer import Counts, Piece, Trainer, saved, shape_name
from pipeline.export.whole_file import whole_file
from pipeline.storage import Storage


def write(piece: Piece, rows: Iterator[ExportRow], into: Storage) -> Counts:
    """Put one tar. Its members have no time, owner or mode of the machine."""
    counts = Counts()
    with (
        whole_file(into, f"{piece.name}.tar", piece.num_bytes) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for row in rows:
            counts[shape_name(row)] += 1
            for extension, content in _members(row):
                member = tarfile.TarInfo(f"{row.id}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return counts


def _members(row: ExportRow) -> Iterator[tuple[str, bytes]]:
    yield "latent.pth", saved(row.latent)
    if row.text is not None:
        yield "text.pth", saved(row.text)
    if row.caption is not None:
        yield "txt", row.caption.encode()
    yield "json", json.dumps(row.facts).encode()


TRAINER = Trainer(title="WebDataset tars", write=write)
