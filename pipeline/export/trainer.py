"""What the format of a trainer is: the VAE that it takes, what becomes of a latent, and who writes its files."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.export.families import Family
from pipeline.export.recipes import Recipe
from pipeline.export.row import Conversion, ExportRow
from pipeline.storage import Storage
from pipeline.storage.addresses import scheme_of
from pipeline.storage.parallel import in_parallel, read_ahead

Target = Literal["automodel", "ltx", "fastvideo", "musubi", "cogvideo", "webdataset", "pt"]

Counts = Counter[str]
"""How many clips the trainer will find in each of its buckets, by the name that the trainer gives to the bucket."""

RECORDS = "_export/"
"""Folder of what an export knows about itself, below its address."""

WRITERS = 4
"""Files of one piece that are written at a time: each waits for the disk or the network."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """A format. Each module of this package that is named for a trainer has one, TRAINER."""

    title: str
    """As people call it."""
    takes: dict[Family, Recipe] = field(default_factory=dict)
    """The VAEs whose latents its models understand, each with the text that these models learned from. Empty: the
    format is for any trainer, with or without text."""
    conversion: Conversion = field(default_factory=Conversion)
    one: Literal["", "length", "shape"] = ""
    """What all clips of an export share, because its batches do not sort by it: the latent frames, or the shape."""
    step: int = 1
    """Height and width of a clip are multiples of this."""
    mixed: str = ""
    """What the user must set where clips differ in shape."""
    text_step: int = 1
    """The room of an embedding, --max-length of `latentmill text`, is a multiple of this."""
    needs_caption: bool = False
    """Whether it finds an embedding by its caption."""
    needs_model: bool = False
    """Whether its paths have the name of the model, --model."""
    write: Callable[[Piece, Iterator[ExportRow], Storage], Counts]
    """Write the files of one piece. A second call writes the same bytes to the same places."""
    finish: Callable[[list[str], Counts, Storage], None] | None = None
    """Write what the trainer needs beside the pieces, when all are there: (names of the pieces, counts, into)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of an export that is finished or not: the exported rows of one shard of the output."""

    name: str
    """The shard."""
    start: int
    stop: int
    """Positions of its rows in the selection."""
    digest: str
    """Of its rows: ids and checksums."""
    text_room: int = 0
    """The most tokens of an embedding."""
    model: str = ""
    """The name of the model, for a trainer that has it in its paths."""


def trainer_of(name: Target) -> Trainer:
    """Return the format of this name."""
    trainer: Trainer = import_module(f"pipeline.export.{name}").TRAINER
    return trainer


def put_each(into: Storage, files: Iterable[tuple[str, Callable[[], bytes]]]) -> None:
    """Put (path, its bytes when called) of each file, WRITERS at a time. A file is made in the thread that puts it."""

    def put(path: str, content: Callable[[], bytes]) -> None:
        into.put(path, content())

    for written in read_ahead((partial(put, *file) for file in files), WRITERS):
        written.result()


def list_path(piece: str, kind: str = "items") -> str:
    """Return the path of a list of the clips of a piece, one a line, until `joined_lists` makes one file of all."""
    return f"{RECORDS}{kind}/{piece}"


def joined_lists(pieces: Iterable[str], into: Storage, path: str, kind: str = "items") -> None:
    """Put the lists of all pieces as one file."""
    with tempfile.NamedTemporaryFile("wb") as whole:
        for lines in in_parallel(into.read, (list_path(piece, kind) for piece in pieces)):
            whole.write(lines)
        whole.flush()
        into.put(path, Path(whole.name))


def local_path(into: Storage, path: str) -> str:
    """Return the absolute path of an exported file, or, where the export is not on this machine, the path in it."""
    return path if scheme_of(into.uri) else into.address(path)


def shape_name(shape: Sequence[int]) -> str:
    """Return the shape of a latent as text, "16x13x60x90": the bucket of formats that have no buckets."""
    return "x".join(map(str, shape))


def saved(content: Any) -> bytes:
    """Return what torch.save writes. It holds tensors, numbers and texts only, so `weights_only=True` loads it."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
