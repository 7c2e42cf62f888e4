"""Make a checkpoint available on the local disk; an fsspec URL or a Hugging Face repository is copied."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vae.errors import CheckpointError

_SUFFIXES = (".json", ".safetensors", ".pt", ".pth", ".ckpt", ".bin")
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


@contextmanager
def local_checkpoint(where: str) -> Iterator[Path]:
    """Yield a local file or folder with the checkpoint; a temporary copy is deleted at the end of the context.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    if "://" in where:
        with tempfile.TemporaryDirectory(prefix="latentmill-") as folder:
            yield _fetch(where, Path(folder))
    elif Path(where).exists():
        yield Path(where)
    elif _REPO_ID.fullmatch(where):
        yield _fetch_repository(where)
    else:
        raise CheckpointError(f"{where!r} not found; expected 'tiny', a path, an fsspec URL or a repository id (a/b)")


def _fetch(url: str, folder: Path) -> Path:
    import fsspec

    fs, root = fsspec.core.url_to_fs(url)
    if fs.isfile(root):
        target: Path = folder / root.rstrip("/").rsplit("/", 1)[-1]
        fs.get_file(root, str(target))
        return target
    if not fs.isdir(root):
        raise CheckpointError(f"{url!r} not found")
    for source in (root, f"{root.rstrip('/')}/vae"):
        if not fs.isdir(source):
            continue
        target = folder if source == root else folder / "vae"
        target.mkdir(exist_ok=True)
        for path in fs.ls(source, detail=False):
            name = path.rstrip("/").rsplit("/", 1)[-1]
            if name.endswith(_SUFFIXES) and fs.isfile(path):
                fs.get_file(path, str(target / name))
    return folder


def _fetch_repository(repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"no path {repo_id!r}; to load it as a Hugging Face repository, install latentmill[diffusers]"
        ) from error
    patterns = ["config.json", "model_index.json", "diffusion_pytorch_model*.safetensors*", "vae/*"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except Exception as error:  # The hub client has many error classes; each of them means that the load failed.
        raise CheckpointError(f"no path {repo_id!r}, and no Hugging Face repository with this id: {error}") from error
