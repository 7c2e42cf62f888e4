"""One torch file a clip, for a trainer of one's own.

    <shard>/<id>.pt     {"latent": [C, T', H', W'], "id", "key", "caption", "num_frames", "height", "width", "fps"}, and
                        with --text also "text" [S, E], S without padding; loaded with weights_only=True

Latents are as the reader gives them: scaled as the Spec says, in the stored dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from pipeline.export.row import ExportRow
from pipeline.export.trainer import Counts, Piece, Trainer, put_each, saved, shape_name
from pipeline.storage import Storage


def write(piece: Piece, rows: Iterator[ExportRow], into: Storage) -> Counts:
    """Put one file for each row."""
    counts = Counts()

    def files() -> Iterator[tuple[str, Callable[[], bytes]]]:
        for row in rows:
            counts[shape_name(row.latent.shape)] += 1
            content = {"latent": row.latent, **row.facts}
            if row.text is not None:
                content["text"] = row.text
            yield f"{piece.name}/{row.id}.pt", partial(saved, content)

    put_each(into, files())
    return counts


TRAINER = Trainer(title="torch files", write=write)
