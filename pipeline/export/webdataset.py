"""Tars in WebDataset form: one tar a piece, and in it the files of each clip side by side.

    <shard>.tar
        <id>.latent.pth     tensor [C, T', H', W'], as the reader gives it: scaled as the Spec says, in the stored dtype
        <id>.text.pth       with --text: tensor [S, E], S without padding
        <id>.txt            the caption; absent where there is none
        <id>.json           id, key, caption, num_frames, height, width, fps

`webdataset.WebDataset(...).decode()` gives tensors, a text and a dict.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import partial

from pipeline.export.row import ExportRow
from pipeline.export.trainer import WRITERS, Counts, Piece, Trainer, saved, shape_name
from pipeline.export.whole_file import whole_file
from pipeline.storage import Storage
from pipeline.storage.parallel import read_ahead


def write(piece: Piece, rows: Iterator[ExportRow], into: Storage) -> Counts:
    """Put one tar. Its members have no time, owner or mode of the machine."""
    counts = Counts()
    with whole_file(into, f"{piece.name}.tar") as file:
        for made in read_ahead((partial(_members, row) for row in rows), WRITERS):
            shape, members = made.result()
            counts[shape] += 1
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                # TarFile.addfile would copy the content 16 KiB at a time.
                file.writelines([member.tobuf(tarfile.GNU_FORMAT), content, bytes(-len(content) % tarfile.BLOCKSIZE)])
        file.write(bytes(2 * tarfile.BLOCKSIZE))
    return counts


def _members(row: ExportRow) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the shape of a clip, and the name and content of each of its members."""
    members = [("latent.pth", saved(row.latent))]
    if row.text is not None:
        members.append(("text.pth", saved(row.text)))
    if row.caption is not None:
        members.append(("txt", row.caption.encode()))
    members.append(("json", json.dumps(row.facts).encode()))
    return shape_name(row.latent.shape), [(f"{row.id}.{extension}", content) for extension, content in members]


TRAINER = Trainer(title="WebDataset tars", write=write)
