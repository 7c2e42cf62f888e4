"""Open an output: read its Spec and its index, and prepare to read its latents."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow.parquet as pq

from latentmill import format
from latentmill.dataset import LatentDataset
from latentmill.errors import NotFoundError, OpenError
from latentmill.index.build import open_index
from latentmill.index.selection import Selection
from latentmill.rows import ROW_COLUMNS
from latentmill.store.cache.private_files import own_folder
from latentmill.store.cache.range_cache import RangeCache
from latentmill.store.files import Files
from latentmill.store.ranges import RangeReader
from latentmill.tracks.text import Text


def open(
    uri: str | os.PathLike[str],
    *,
    storage_options: dict[str, Any] | None = None,
    columns: Sequence[str] | None = None,
    index: str | os.PathLike[str] | None = None,
    text: str | None = None,
    pad_text: bool | int = False,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = 0,
    concurrency: int | None = None,
    verify: bool = True,
    damaged: Literal["raise", "skip"] = "raise",
) -> LatentDataset:
    """Open an output of `latentmill encode` as it is committed now. Later rows appear when it is opened again.

    Args:
        uri: the output: a local path, `s3://`, or any fsspec URL.
        storage_options: what fsspec takes for the URL, such as `{"profile": "train"}`. None: the client's own.
        columns: columns of the index that filters and rows may use. None: filters use all but the widest ones, and rows
            have `ROW_COLUMNS`.
        index: path or URL of rows that `save_index` wrote. The dataset has these rows, whatever was committed since.
        text: the name of a text that `latentmill text` wrote. Each row gets its embedding, "text" [S, E] without
            padding, and "text_length". Rows whose caption was dropped (`--drop-empty`) are left out of the dataset.
        pad_text: what a batch has of the embeddings. False: a list. True: [B, S, E], filled up with zeros to the
            longest of the batch. A number: to that many tokens.
        cache: a folder on a local disk for the index and for cached latents. None: $LATENTMILL_CACHE, or else a folder
            of this user in the folder for temporary files. If others may write it, a folder of this user in it.
        cache_bytes: most bytes of latents in the cache; the least recently used go first. Remote outputs only.
        concurrency: requests that each process sends at once. None: 4 for a local disk, 32 otherwise.
        verify: compare each latent with its checksum.
        damaged: what happens to a row whose bytes are wrong. "raise": it raises DamagedRowError. "skip": its batch
            leaves it out and names it in "damaged".

    Raises:
        OpenError: the place is no output, or a newer format, or a file or a column is missing; or some shard has no
            text yet.
        AccessError: the credentials are missing, wrong, or do not suffice.
        StorageError: the storage failed, and so did every retry.
    """
    if damaged not in ("raise", "skip"):
        raise ValueError(f"damaged must be 'raise' or 'skip', got {damaged!r}")
    files = Files(uri, storage_options)
    spec = _spec(files)
    folder = own_folder(cache)
    opened = open_index(files, columns, folder, os.fspath(index) if index else None, is_native=_is_native(spec))
    if concurrency is None:
        concurrency = 4 if files.root else 32
    ranges = RangeCache(folder / "ranges", cache_bytes, files.uri) if cache_bytes and not files.root else None
    reader = RangeReader(files, concurrency=concurrency, verify=verify, cache=ranges)
    names = ROW_COLUMNS if columns is None else tuple(dict.fromkeys(("id", *columns)))
    hidden = (*format.INDEX_COLUMNS.names, "latent_shape", "latent_dtype", "latent_crc32")
    shown = tuple(name for name in names if name in opened.schema.names and (columns is not None or name not in hidden))
    dataset = LatentDataset(
        selection=Selection(index=opened, cache=folder), reader=reader, spec=spec, columns=shown, damaged=damaged
    )
    return dataset if text is None else dataset.with_text(Text(files, reader, text, pad_text))


def _is_native(spec: dict[str, Any]) -> bool:
    clip = spec.get("clip")
    return isinstance(clip, dict) and clip.get("fps") == "native"


def _spec(files: Files) -> dict[str, Any]:
    """Return the Spec of an output from spec.json; where that is missing, from the footer of a data file."""
    try:
        text: bytes = files.read(format.SPEC_PATH)
    except NotFoundError:
        names = [path for path in files.list(format.DATA) if path.endswith(".parquet")]
        if not names:
            raise OpenError(f"{files.uri} is not an output of latentmill: it has no {format.SPEC_PATH}") from None
        footer = files.parsed(names[0], lambda source: pq.read_metadata(source).metadata or {})
        text = footer.get(format.FOOTER_SPEC.encode(), b"")
        if not text:
            raise OpenError(f"{files.uri} is not an output of latentmill: {names[0]} has no Spec") from None
    try:
        spec: dict[str, Any] = json.loads(text)
        version = spec["format_version"]
        spec["vae"]["scale"], spec["vae"]["shift"], spec["latent"]["posterior"]
    except (ValueError, TypeError, KeyError) as error:
        raise OpenError(f"{files.uri}: {format.SPEC_PATH} is not a Spec: {error!r}") from error
    if version not in format.READABLE_VERSIONS:
        known = ", ".join(map(str, format.READABLE_VERSIONS))
        raise OpenError(f"{files.uri} has format version {version}, this latentmill reads {known}: install a newer one")
    return spec
