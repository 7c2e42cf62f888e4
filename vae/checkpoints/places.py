"""Make a checkpoint available on the local disk: what lies elsewhere is fetched once per machine and kept.

Copies lie in `$XDG_CACHE_HOME/latentmill` (by default `~/.cache/latentmill`), each under a name that follows from the
address and from the version of every file: a changed checkpoint is fetched anew. A copy appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vae.errors import CheckpointError

_SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def local_checkpoint(where: str) -> Path:
    """Return a local file or folder with the checkpoint.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    if "://" in where:
        return _fetch(where)
    if Path(where).exists():
        return Path(where)
    if _REPO_ID.fullmatch(where):
        return _fetch_repository(where)
    raise CheckpointError(f"{where!r} not found; expected 'tiny', a path, an fsspec URL or a repository id (a/b)")


def _fetch(url: str) -> Path:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    fs, root = fsspec.core.url_to_fs(url)
    if isinstance(fs, LocalFileSystem):
        return local_checkpoint(root)
    files = _files(fs, root)
    if not files:
        raise CheckpointError(f"{url!r} not found")
    versions = json.dumps([url, [(name, fs.ukey(path)) for name, path in files.items()]])
    copy = _cache() / hashlib.sha256(versions.encode()).hexdigest()[:24]
    with _alone(copy.with_suffix(".lock")):
        if not copy.exists():
            with tempfile.TemporaryDirectory(dir=copy.parent) as begun:
                part = Path(begun) / "copy"
                for name, path in files.items():
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    fs.get_file(path, str(part / name))
                part.rename(copy)
    return copy / next(iter(files)) if fs.isfile(root) else copy


def _files(fs: Any, root: str) -> dict[str, str]:
    """Return the files of a checkpoint: their names in the copy, and their paths. {} if there is nothing."""
    if fs.isfile(root):
        return {root.rstrip("/").rsplit("/", 1)[-1]: root}
    files = {}
    for prefix, folder in (("", root), ("vae/", f"{root.rstrip('/')}/vae")):
        for path in sorted(fs.ls(folder, detail=False)) if fs.isdir(folder) else ():
            name = path.rstrip("/").rsplit("/", 1)[-1]
            if name.endswith(_SUFFIXES) and fs.isfile(path):
                files[prefix + name] = path
    return files


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "latentmill"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"no place to keep the checkpoint: {error} (set XDG_CACHE_HOME)") from error
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock among the processes of this machine: one fetches, the others wait for it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch_repository(repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"no path {repo_id!r}; to load it as a Hugging Face repository: pip install huggingface-hub"
        ) from error
    patterns = ["config.json", "model_index.json", "diffusion_pytorch_model*.safetensors*", "vae/*"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except Exception as error:  # The hub client has many error classes; each of them means that the load failed.
        raise CheckpointError(f"no path {repo_id!r}, and no Hugging Face repository with this id: {error}") from error
