"""Say which rows are exported, and in which pieces. What can be refused is refused here, before anything is written.

A piece is what an export takes of one shard of the output. The rows of all pieces are pinned: the driver puts their
index beside the export, and every worker opens the output with it, whatever is committed meanwhile. Each piece has the
digest of its rows.
"""

from __future__ import annotations

import hashlib
import operator
import re
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import latentmill
from latentmill.dataset import LatentDataset
from latentmill.errors import ReadError
from latentmill.format import shard_of
from pipeline.errors import ConfigError, NotFoundError
from pipeline.export.families import described, family_of, foreign_scaling
from pipeline.export.text import captions_of, check_captions, check_text, without
from pipeline.export.trainer import Piece, Target, Trainer, shape_name, trainer_of
from pipeline.export.where import expression_of
from pipeline.output.captions import Captions
from pipeline.output.layout import plan_path
from pipeline.records import canonical_json
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted
from pipeline.storage.store import is_at

MOST_SHOWN = 5
"""Shapes that a message lists."""

DIGESTED = ("id", "caption", "latent_crc32")
"""The columns that tell whether a row is the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """What is exported, and where to."""

    output: str
    """The output of `latentmill encode`: a path or URL."""
    to: Target
    """The trainer that will read the files; `webdataset` and `pt` are for any."""
    into: str
    """Where the files go: a folder, or any URL that can be written. Run the same command again to resume."""
    text: str | None = None
    """The embeddings that `latentmill text --name` made. Every trainer needs some; `webdataset` and `pt` do not."""
    where: str | None = None
    """Export only the rows for which this is true, such as "height >= 480 and caption != None": an expression over the
    columns of the index."""
    bucket: str | None = None
    """Export only the latents of this shape, such as 16x13x60x90."""
    model: str = ""
    """The model's name in the paths of `cogvideo`, such as cogvideox1.5-5b-t2v: the trainer's --model_name."""

    any_text: bool = False
    """Take any text: also of another encoder, layer, length or cleaning than the trainer's models learned from. For
    models of your own, and for tests."""
    strict: bool = False
    """Refuse the rows if more than a tenth of their captions are empty. Without it, the command warns."""

    @property
    def record(self) -> dict[str, Any]:
        """What decides the files of an export, as JSON."""
        return {"to": self.to, "text": self.text, "where": self.where, "bucket": self.bucket, "model": self.model}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an export does."""

    latents: LatentDataset
    """The rows, with their text."""
    pieces: list[Piece]
    record: dict[str, Any]
    """What decides the files, and of which output they are, as JSON."""
    captions: Captions
    """Of the rows."""
    note: str
    """What is to be said about the text."""

    @property
    def selection(self) -> str:
        """The digest of all rows."""
        return _sha256([piece.digest for piece in self.pieces])


def plan_export(job: ExportJob) -> Plan:
    """Return what an export does.

    Raises:
        ConfigError: the output, or what was asked, does not suit the trainer. The message says what it takes.
    """
    trainer, output = trainer_of(job.to), Storage(job.output)
    _check_apart(output, Storage(job.into))
    latents = _selected(job, trainer)
    _check_shapes(latents, trainer)
    _check_flags(latents, trainer, job)
    record, note = job.record | {"spec_sha256": _sha256(latents.spec)}, ""
    record |= {"output": redacted(output.uri), "output_sha256": _identity(output)}
    if job.text:
        selected, latents = latents, _selected(job, trainer, job.text)
        assert latents.text
        note = check_text(latents, trainer, selected, where=job.where, any_text=job.any_text)
        record["text_spec_sha256"] = _sha256(latents.text.spec)
    column = latents.text.spec["caption_column"] if latents.text else "caption"
    captions = check_captions(latents, column, where=job.where, strict=job.strict)
    index = latents.to_arrow().select([*DIGESTED, "file"]).combine_chunks()
    pieces = [
        Piece(
            name=name,
            start=start,
            stop=stop,
            digest=digest_of(*(index[name].slice(start, stop - start).to_pylist() for name in DIGESTED)),
            text_room=latents.text.spec["max_length"] if latents.text else 0,
            model=job.model,
        )
        for name, start, stop in _shards(index)
    ]
    return Plan(latents=latents, pieces=pieces, record=record, captions=captions, note=note)


def digest_of(*columns: list[Any]) -> str:
    """Return the digest of rows by their DIGESTED columns."""
    return _sha256(columns)


def opened(output: str, text: str | None, index: str | None = None) -> LatentDataset:
    """Open an output with the columns that an export needs."""
    latents = latentmill.open(output, text=text, index=index)
    if latents.spec["clip"]["fps"] == "native":  # the rows have no rate, so it follows from the frames' times
        names = [name for name in latents.index.columns.schema.names if not name.startswith("_")]
        latents = latentmill.open(output, text=text, index=index, columns=[*names, "timestamps_sec"])
    return latents


def _selected(job: ExportJob, trainer: Trainer, text: str | None = None) -> LatentDataset:
    try:
        latents = opened(job.output, text)
        _check_vae(latents.spec, trainer)
        if job.where:
            latents = latents.where(expression_of(job.where))
        return _in_bucket(latents, job.bucket)
    except latentmill.StorageError:
        raise
    except ReadError as error:
        raise ConfigError(str(error)) from error


def _check_apart(output: Storage, into: Storage) -> None:
    """Refuse a place inside the output: what a reader finds there would be the export's."""
    inner, outer = into.uri, output.uri
    if "://" not in inner:
        inner, outer = (str(Path(uri).resolve()) for uri in (inner, outer))
    if is_at(inner, outer):
        raise ConfigError(
            f"--into {redacted(into.uri)} is inside the output {redacted(output.uri)}: use a place of its own"
        )


def _identity(output: Storage) -> str:
    """Return a digest that an output keeps when it is moved or copied: of the first file of its plan.

    The plan and the Spec decide all rows. An output that has lost its plan is known by its address.
    """
    try:
        return hashlib.sha256(output.read(plan_path(0))).hexdigest()
    except NotFoundError:
        return _sha256(redacted(output.uri))


def _check_vae(spec: dict[str, Any], trainer: Trainer) -> None:
    if not trainer.takes:
        return
    vae = spec["vae"]
    family = family_of(vae, trainer.takes)
    if family is None:
        raise ConfigError(
            f"{trainer.title} takes latents of {' or '.join(map(str, trainer.takes))}; this output has those of "
            f"{described(vae)}. Its models cannot train on them; --to pt or webdataset export them for other models"
        )
    if not trainer.conversion.is_raw and (difference := foreign_scaling(vae, family)):
        raise ConfigError(
            f"{trainer.title} takes latents scaled as {family.title} scales them, and this output is not: {difference}"
        )


def _in_bucket(latents: LatentDataset, bucket: str | None) -> LatentDataset:
    if bucket is None:
        return latents
    shape = next((shape for shape in latents.shapes if shape_name(shape) == bucket), None)
    if shape is None:
        raise ConfigError(f"--bucket {bucket!r} is no shape of these rows; there are {_shapes(latents)}")
    same = [pc.list_element(pc.field("latent_shape"), i) == length for i, length in enumerate(shape)]
    return latents.where(reduce(operator.and_, same))


def _check_shapes(latents: LatentDataset, trainer: Trainer) -> None:
    shapes = list(latents.shapes)
    if trainer.one == "shape" and len(shapes) > 1:
        raise ConfigError(
            f"{trainer.title} takes one latent shape in a data set, because its batches mix all rows; choose one with "
            f"--bucket: {_shapes(latents)}"
        )
    if trainer.one == "length" and len({shape[1] for shape in shapes}) > 1:
        raise ConfigError(
            f"{trainer.title} takes one number of latent frames in a data set, because its buckets differ in height "
            f"and width only; choose a shape with --bucket, or a length with --where 'num_frames == ...': "
            f"{_shapes(latents)}"
        )
    space = latents.spec["vae"]["space_compression"]
    odd = [shape for shape in shapes if shape[2] * space % trainer.step or shape[3] * space % trainer.step]
    if odd:
        name, height, width = shape_name(odd[0]), odd[0][2] * space, odd[0][3] * space
        raise ConfigError(
            f"{trainer.title} takes heights and widths that are multiples of {trainer.step}; a latent of {name} has "
            f"{height}x{width} pixels. Leave it out with --bucket or --where"
        )


def _check_flags(latents: LatentDataset, trainer: Trainer, job: ExportJob) -> None:
    if trainer.takes and job.text is None:
        raise ConfigError(
            f"{trainer.title} trains on text embeddings, and none are named: make them with `latentmill text`, and "
            "give their name with --text"
        )
    if trainer.needs_caption:
        blank = [caption for caption in captions_of(latents, "caption") if not (caption or "").strip()]
        if blank:
            raise ConfigError(
                f"{trainer.title} finds the embedding of a clip by its caption, and {len(blank)} of {len(latents)} "
                f"rows have none: {without(blank, job.where)}"
            )
    if trainer.needs_model != bool(job.model):
        raise ConfigError(
            f"{trainer.title} has the name of the model in its paths: give its --model_name with --model"
            if trainer.needs_model
            else f"--model is for cogvideo, got {job.model!r} for {trainer.title}"
        )
    if job.model and (not re.fullmatch(r"[\w.-]+", job.model) or set(job.model) == {"."}):
        raise ConfigError(
            f"--model must be the name of one folder, of letters, digits and . - _, such as cogvideox1.5-5b-t2v; got "
            f"{job.model!r}"
        )


def _shards(index: pa.Table) -> list[tuple[str, int, int]]:
    """Return (shard, first row, row after the last) of each shard in an index."""
    files = index["file"].combine_chunks()
    shards = [shard_of(name) for name in files.dictionary.to_pylist()]
    names = sorted(set(shards))
    place = {name: number for number, name in enumerate(names)}
    numbers = np.array([place[name] for name in shards])[files.indices.to_numpy()]
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [(names[numbers[start]], start, stop) for start, stop in pairwise(edges)]


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _shapes(latents: LatentDataset) -> str:
    counts = sorted(latents.shapes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{shape_name(shape)} ({count} rows)" for shape, count in counts[:MOST_SHOWN])
    return shown + (f" and {len(counts) - MOST_SHOWN} more" if len(counts) > MOST_SHOWN else "")
