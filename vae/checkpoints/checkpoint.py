"""Read a checkpoint strictly, in any of these formats. The content decides the format, never the file name.

a folder with config.json      diffusers (also <folder>/vae of a pipeline): AutoencoderKLCogVideoX, Wan, Qwen-Image
a safetensors file             ours if its metadata has a `latentmill` entry, else decided by the tensor names
a torch file                   SAT's 3d-vae.pt, also inside a full checkpoint, MoVQ's or Wan's; `weights_only` always
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vae.checkpoints.configs import check_scaling, config_from_diffusers, config_from_tensors
from vae.checkpoints.keys import encoder_part
from vae.checkpoints.wan import WAN_CLASSES, WAN_NAME, config_from_wan, is_wan, read_original, wan_part
from vae.errors import CheckpointError
from vae.info import Scaling

log = logging.getLogger(__name__)

_METADATA = "latentmill"
_WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderCheckpoint:
    """An encoder as read from a checkpoint: configuration, scaling and tensors."""

    name: str
    """Class of the VAE."""
    config: dict[str, Any]
    """Arguments of Encoder3D, or of WanEncoder if the name is one of Wan's classes."""
    scale: Scaling
    shift: Scaling
    tensors: dict[str, Tensor]
    """Tensors under our names (MoVQ's for Encoder3D), with their stored dtypes."""


def read_encoder(path: Path) -> EncoderCheckpoint:
    """Read the encoder of a checkpoint file or folder.

    Raises:
        CheckpointError: the file is unreadable or truncated, contains code, or has another model or a configuration
            that Encoder3D does not implement.
    """
    config = diffusers_config(path)
    if config is not None:
        return _read_diffusers(model_folder(path), config)
    metadata, raw = read_tensors(model_file(path))
    if is_wan(raw):
        wan_config, scale, shift, tensors = read_original(raw, path)
        return EncoderCheckpoint(name=WAN_NAME, config=wan_config, scale=scale, shift=shift, tensors=tensors)
    tensors = encoder_part(raw)
    if _METADATA in metadata:
        return _read_ours(metadata[_METADATA], tensors, path)
    log.warning("scale=1.0 shift=0.0 path=%s: this format has no scaling factor, so latents are not scaled", path)
    return EncoderCheckpoint(
        name="Encoder3D", config=config_from_tensors(tensors, path), scale=1.0, shift=0.0, tensors=tensors
    )


def write_encoder(path: Path, checkpoint: EncoderCheckpoint) -> None:
    """Write our own format: one safetensors file with MoVQ names, and everything else in its metadata."""
    about = {key: getattr(checkpoint, key) for key in ("name", "config", "scale", "shift")}
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, path, metadata={_METADATA: json.dumps(about, sort_keys=True)})


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Load exactly the tensors that the module has, all of them finite. The module may be on the meta device.

    Raises:
        CheckpointError: the message lists the first five missing, unexpected and wrongly shaped tensors, or names the
            tensor with NaN or infinity.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    complaints = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", sorted(set(expected) - set(found))),
            ("unexpected", sorted(set(found) - set(expected))),
            ("of another shape", [n for n in expected if n in found and expected[n] != found[n]]),
        )
        if names
    ]
    if complaints:
        raise CheckpointError(f"{path} does not fit {type(module).__name__}; {'; '.join(complaints)}")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path} has NaN or infinity in {name}")
    module.load_state_dict(dict(tensors), strict=True, assign=True)


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of names, dtypes, shapes and little-endian bytes, in the order of names.

    For encoder tensors under their MoVQ names and with their stored dtypes (before any cast), the digest of the same
    weights does not depend on the file format, the path or the device.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_folder(folder: Path) -> Path:
    """Return the folder itself, or its `vae` if it stores a whole pipeline."""
    inner = folder / "vae"
    return inner if inner.is_dir() and not (folder / "config.json").is_file() else folder


def diffusers_config(path: Path) -> dict[str, Any] | None:
    """Return the config of a diffusers folder (or of a pipeline's `vae`), or None for anything else."""
    config_path = model_folder(path) / "config.json"
    return read_json(config_path) if config_path.is_file() else None


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a diffusers folder, from one file or from the shards that an index lists."""
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        tensors |= read_tensors(path)[1]
    return tensors


def model_file(path: Path) -> Path:
    """Return the file itself, or the only weights file of a folder.

    Raises:
        CheckpointError: the folder has no weights file, or several.
    """
    if path.is_file():
        return path
    folder = model_folder(path)
    found = sorted(inner for inner in folder.iterdir() if inner.is_file() and _is_weights(inner))
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} must contain one weights file (or a config.json of a VAE); found {len(found)}: "
            f"{', '.join(inner.name for inner in found[:5])}"
        )
    return found[0]


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: the file is not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} contains a {type(content).__name__}, expected a JSON object")
    return content


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata (safetensors only) and tensors of one file, unwrapped from `state_dict`, `model` and `module`.

    Raises:
        CheckpointError: the file is truncated, of an unknown format, or a pickle with anything but tensors.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        try:
            with safe_open(path, "pt") as reader:
                return dict(reader.metadata() or {}), {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path} is a damaged safetensors file: {error}") from error
    if not (head.startswith((b"PK", b"\x80"))):
        raise CheckpointError(f"{path} is neither safetensors nor a torch file (it starts with {head!r})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or contains objects other than tensors, which are not loaded: {error}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is a damaged torch file: {error}") from error
    return {}, _unwrap(content, path)


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    while isinstance(content, dict):
        inner = next(
            (content[key] for key in ("state_dict", "model", "module") if isinstance(content.get(key), dict)), None
        )
        if inner is None:
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        content = inner
    raise CheckpointError(f"{path} contains a {type(content).__name__}, expected a dict of tensors")


def _read_diffusers(folder: Path, config: dict[str, Any]) -> EncoderCheckpoint:
    if (name := config.get("_class_name")) in WAN_CLASSES:
        encoder_config, scale, shift = config_from_wan(config, folder)
        tensors = wan_part(read_folder(folder), encoder_config["num_res_blocks"])
        return EncoderCheckpoint(name=name, config=encoder_config, scale=scale, shift=shift, tensors=tensors)
    encoder_config, scale, shift = config_from_diffusers(config, folder)
    tensors = read_folder(folder)
    return EncoderCheckpoint(
        name=config["_class_name"], config=encoder_config, scale=scale, shift=shift, tensors=encoder_part(tensors)
    )


def _read_ours(metadata: str, tensors: dict[str, Tensor], path: Path) -> EncoderCheckpoint:
    try:
        about = json.loads(metadata)
        scale, shift = (_tuples(about[key]) for key in ("scale", "shift"))
        name, config = str(about["name"]), dict(about["config"])
        scale, shift = check_scaling(scale, path), check_scaling(shift, path, may_be_zero=True)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: metadata {_METADATA!r}: a value is missing or invalid: {error!r}") from error
    return EncoderCheckpoint(name=name, config=config, scale=scale, shift=shift, tensors=tensors)


def _weight_files(folder: Path) -> list[Path]:
    """List the shards in the index, or else the one weights file; safetensors before torch files, variants last."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        try:
            names = sorted(Path(name).name for name in set(read_json(indexes[0])["weight_map"].values()))
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{indexes[0]}: weight_map (the file of each tensor) is missing or invalid"
            ) from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(f"{folder} lacks {', '.join(missing[:5])}, listed in {indexes[0].name}")
        return [folder / name for name in names]
    for pattern in (f"{_WEIGHTS}.safetensors", "*.safetensors", f"{_WEIGHTS}.bin", "*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found[:1]
    raise CheckpointError(f"{folder} has config.json but no weights (*.safetensors or *.bin)")


def _is_weights(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:9] == b"{" or head.startswith((b"PK", b"\x80"))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(inner) for inner in value) if isinstance(value, list) else float(value)
