"""Open an output: its Spec, its index as it is committed now, and what reads its latents."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from latentmill import format
from latentmill.dataset import ROW_COLUMNS, LatentDataset
from latentmill.errors import NotFoundError, OpenError
from latentmill.files import Files
from latentmill.index.build import default_cache, open_index
from latentmill.range_cache import RangeCache
from latentmill.ranges import RangeReader


def open(
    uri: str | os.PathLike[str],
    *,
    storage_options: dict[str, Any] | None = None,
    columns: Sequence[str] | None = None,
    index: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = 0,
    concurrency: int | None = None,
    verify: bool = True,
    damaged: Literal["raise", "skip"] = "raise",
) -> LatentDataset:
    """Open an output of `latentmill encode` as it is committed now. Later rows appear when it is opened again.

    Args:
        uri: the output: a local path, `s3://`, or any fsspec URL.
        storage_options: what fsspec takes for the URL, such as `{"profile": "train"}`. Left out: the standard chain.
        columns: the columns of the index to have, in filters and in rows. None: all but the widest for filters, and
            `ROW_COLUMNS` in rows.
        index: path or URL of rows saved with `save_index`: these, whatever was committed since.
        cache: a folder on a local disk for the index and for `cache_bytes`; None: $LATENTMILL_CACHE, or a folder of
            this user in the folder for temporary files.
        cache_bytes: keep this many bytes of latents in the cache, the least recently used go first. For remote outputs.
        concurrency: reads that each process has under way at once. None: 4 for a local disk, 32 otherwise.
        verify: compare each latent with its checksum.
        damaged: a row whose bytes are wrong raises DamagedRowError, or it is left out of its batch, and the batch
            names it in "damaged".

    Raises:
        OpenError: not an output, a newer format, a missing file, an unknown column.
        AccessError: no valid credentials, or they do not suffice.
        StorageError: storage failed, after retries.
    """
    if damaged not in ("raise", "skip"):
        raise ValueError(f"damaged must be 'raise' or 'skip', got {damaged!r}")
    files = Files(uri, storage_options)
    spec = _spec(files)
    folder = Path(cache) if cache else default_cache()
    opened = open_index(files, columns, folder, os.fspath(index) if index else None)
    if concurrency is None:
        concurrency = 4 if files.root else 32
    ranges = RangeCache(folder / "ranges", cache_bytes, files.uri) if cache_bytes and not files.root else None
    reader = RangeReader(files, concurrency=concurrency, verify=verify, cache=ranges)
    names = ROW_COLUMNS if columns is None else tuple(dict.fromkeys(("id", *columns)))
    hidden = (*format.INDEX_COLUMNS.names, "latent_shape", "latent_dtype", "latent_crc32")
    shown = tuple(name for name in names if name in opened.schema.names and (columns is not None or name not in hidden))
    return LatentDataset(opened, reader, spec, shown, folder, damaged)


def _spec(files: Files) -> dict[str, Any]:
    """The Spec of an output: spec.json, or where that is missing the footer of a data file."""
    try:
        text: bytes | str = files.read(format.SPEC_PATH)
    except NotFoundError:
        names = [path for path in files.list(format.DATA) if path.endswith(".parquet")]
        if not names:
            raise OpenError(f"{files.uri} is not an output of latentmill: it has no {format.SPEC_PATH}") from None
        try:
            with files.open(names[0]) as source:
                text = format.footer_of(source)[0]
        except (pa.ArrowException, KeyError):
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
