"""Checkpoints: one set of weights in five forms is one VAE; what does not fit is refused with its names."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file
from torch import Tensor

import vae
from vae.autoencoder import VideoVAE
from vae.checkpoints.checkpoint import weights_sha256
from vae.checkpoints.keys import from_diffusers, to_diffusers
from vae.checkpoints.places import local_checkpoint

SMALL = {
    "ch": 32,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "in_channels": 3,
    "resolution": 256,
    "z_channels": 4,
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(vae.Encoder3D(**SMALL).state_dict())


@pytest.fixture(scope="module")
def forms(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights as SAT, full SAT, MoVQ, bare safetensors, diffusers (plain, sharded, in a pipeline) and ours."""
    root = tmp_path_factory.mktemp("forms")
    sat = {f"encoder.{name}": tensor for name, tensor in weights.items()}
    sat |= {"decoder.conv_in.conv.weight": torch.zeros(1), "loss.logvar": torch.zeros(1)}
    torch.save({"state_dict": sat, "epoch": 3}, root / "3d-vae.pt")
    full = {f"first_stage_model.{name}": tensor for name, tensor in sat.items()}
    full["model.diffusion_model.w"] = torch.zeros(2)
    torch.save({"module": full, "iteration": 1}, root / "full.pt")
    torch.save(weights, root / "movq.bin", _use_new_zipfile_serialization=False)
    save_file(weights, root / "no_suffix_at_all")
    config = {
        "_class_name": "AutoencoderKLCogVideoX",
        "block_out_channels": [32, 64, 64],
        "layers_per_block": 1,
        "latent_channels": 4,
        "in_channels": 3,
        "scaling_factor": 1.0,
    }
    theirs = {f"encoder.{to_diffusers(name)}": tensor for name, tensor in weights.items()}
    theirs["decoder.conv_in.conv.weight"] = torch.zeros(1)
    for folder in ("diffusers", "sharded", "pipeline/vae"):
        (root / folder).mkdir(parents=True)
        (root / folder / "config.json").write_text(json.dumps(config))
    (root / "pipeline/model_index.json").write_text("{}")
    for folder in ("diffusers", "pipeline/vae"):
        save_file(theirs, root / folder / "diffusion_pytorch_model.safetensors")
    names = sorted(theirs)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: theirs[name] for name in part}, root / "sharded" / shard)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (root / "sharded/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    vae.save_vae(vae.load_vae(str(root / "diffusers")), root / "ours.bin")
    return {path.name: path for path in root.iterdir()}


FORMS = ["3d-vae.pt", "full.pt", "movq.bin", "no_suffix_at_all", "diffusers", "sharded", "pipeline", "ours.bin"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_vae(forms: dict[str, Path], weights: dict[str, Tensor], form: str) -> None:
    model = vae.load_vae(str(forms[form]))
    first = vae.load_vae(str(forms["3d-vae.pt"]))
    assert model.info.weights_sha256 == first.info.weights_sha256
    pixels = torch.rand(1, 3, 9, 8, 12) * 2 - 1
    assert torch.equal(model.encode(pixels).parameters, first.encode(pixels).parameters)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert model.info.config["ch_mult"] == [1, 2, 2]


def test_urls_are_places(forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    memory = fsspec.filesystem("memory")
    memory.put(str(forms["pipeline"]) + "/", "/models/pipeline/", recursive=True)
    memory.put_file(str(forms["3d-vae.pt"]), "/models/some.file")
    expected = vae.load_vae(str(forms["diffusers"])).info
    assert vae.load_vae("memory://models/pipeline").info == expected
    assert vae.load_vae("memory://models/some.file").info.weights_sha256 == expected.weights_sha256
    assert vae.load_vae(f"file://{forms['ours.bin']}").info == expected


def test_a_checkpoint_is_fetched_once_and_again_when_it_changed(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched, get = [], MemoryFileSystem.get_file
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda *args, **kw: (fetched.append(args[1]), get(*args, **kw)))
    memory = fsspec.filesystem("memory")
    memory.put_file(str(forms["3d-vae.pt"]), "/models/once.pt")
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(local_checkpoint, ["memory://models/once.pt"] * 4))
    assert len(found) == len(fetched) == 1
    assert found.pop().read_bytes() == forms["3d-vae.pt"].read_bytes()
    memory.pipe_file("/models/once.pt", b"another one")
    assert local_checkpoint("memory://models/once.pt").read_bytes() == b"another one"
    assert len(fetched) == 2


def test_half_a_copy_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fsspec.filesystem("memory").pipe({"/half/a.json": b"a", "/half/b.json": b"b"})
    get = MemoryFileSystem.get_file

    def broken(store: MemoryFileSystem, path: str, *args: Any, **kw: Any) -> None:
        if path.endswith("b.json"):
            raise TimeoutError(path)
        get(store, path, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", broken)
        with pytest.raises(TimeoutError):
            local_checkpoint("memory://half")
    assert sorted(path.name for path in local_checkpoint("memory://half").iterdir()) == ["a.json", "b.json"]


def test_our_format_keeps_everything(tmp_path: Path) -> None:
    tiny = vae.load_vae("tiny")
    other = VideoVAE(tiny.encoder, replace(tiny.info, scale=(0.5,) * 16, shift=0.25))
    vae.save_vae(other, tmp_path / "vae")
    assert vae.load_vae(str(tmp_path / "vae")).info == other.info


def test_attention_is_found_in_bare_weights(tmp_path: Path) -> None:
    config = SMALL | {"attn_resolutions": [128]}
    encoder = vae.Encoder3D(**config)
    save_file(encoder.state_dict(), tmp_path / "w")
    assert vae.load_vae(str(tmp_path / "w")).info.config["attn_resolutions"] == [128]


def test_the_digest_sees_names_dtypes_and_values(weights: dict[str, Tensor]) -> None:
    digest = weights_sha256(weights)
    assert weights_sha256(dict(reversed(weights.items()))) == digest
    name = "conv_in.conv.bias"
    changed = [
        weights | {name: weights[name] + 1e-6},
        weights | {name: weights[name].bfloat16()},
        weights | {name: weights[name][None]},
        {f"x{n}": t for n, t in weights.items()},
    ]
    assert len({digest, *map(weights_sha256, changed)}) == 5


def test_keys_round_trip_on_the_real_architecture() -> None:
    # Named before the device is set: diffusers imports lazily, and would make its module-level tensors there.
    their_class = pytest.importorskip("diffusers").AutoencoderKLCogVideoX
    with torch.device("meta"):
        theirs = their_class(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(128, 256, 256, 512),
            layers_per_block=3,
        ).state_dict()
        ours = vae.Encoder3D(
            ch=128,
            ch_mult=(1, 2, 2, 4),
            num_res_blocks=3,
            attn_resolutions=(),
            in_channels=3,
            resolution=256,
            z_channels=16,
        ).state_dict()
    assert len(theirs) == 436
    renamed = {from_diffusers(name): tensor.shape for name, tensor in theirs.items()}
    assert len(renamed) == 436
    assert [to_diffusers(name) for name in renamed] == list(theirs)
    encoder = {name.removeprefix("encoder."): shape for name, shape in renamed.items() if name.startswith("encoder.")}
    assert encoder == {name: tensor.shape for name, tensor in ours.items()}
    assert len(encoder) == 128
    assert sum(shape.numel() for shape in encoder.values()) == 92_215_456


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("down.1.block.0.nin_shortcut.bias", "down_blocks.1.resnets.0.conv_shortcut.bias"),
        ("down.1.block.0.conv_shortcut.conv.bias", "down_blocks.1.resnets.0.conv_shortcut.conv.bias"),
        ("encoder.mid.block_2.norm1.weight", "encoder.mid_block.resnets.1.norm1.weight"),
        ("decoder.up.0.upsample.conv.bias", "decoder.up_blocks.3.upsamplers.0.conv.bias"),
        ("decoder.up.3.block.3.norm1.conv_y.conv.bias", "decoder.up_blocks.0.resnets.3.norm1.conv_y.conv.bias"),
    ],
)
def test_renames(ours: str, theirs: str) -> None:
    assert to_diffusers(ours) == theirs
    assert from_diffusers(theirs) == ours


@pytest.mark.parametrize("name", ["down.0.attn.0.q.weight", "quant_conv.weight", "encoder.foo"])
def test_names_without_a_counterpart_are_refused(name: str) -> None:
    with pytest.raises(KeyError):
        to_diffusers(name)
    with pytest.raises(KeyError):
        from_diffusers(name)


def saved(path: Path, tensors: dict[str, Tensor]) -> str:
    save_file(tensors, path / "w.safetensors")
    return str(path / "w.safetensors")


def test_missing_and_unexpected_names_are_listed(weights: dict[str, Tensor], tmp_path: Path) -> None:
    changed = {name: tensor for name, tensor in weights.items() if not name.startswith("mid.block_2")}
    changed["quant_conv.weight"] = torch.zeros(1)
    with pytest.raises(vae.CheckpointError, match=r"missing: mid.block_2.* and 3 more; unexpected: quant_conv.weight"):
        vae.load_vae(saved(tmp_path, changed))


def test_wrong_shapes_are_listed(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(vae.CheckpointError, match=r"of another shape: mid.block_1.norm1.bias"):
        vae.load_vae(saved(tmp_path, weights | {"mid.block_1.norm1.bias": torch.zeros(3)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(weights: dict[str, Tensor], tmp_path: Path, value: float) -> None:
    broken = weights["conv_out.conv.bias"].clone()
    broken[1] = value
    with pytest.raises(vae.CheckpointError, match=r"NaN or infinity in conv_out.conv.bias"):
        vae.load_vae(saved(tmp_path, weights | {"conv_out.conv.bias": broken}))


@pytest.mark.parametrize("form", ["3d-vae.pt", "movq.bin", "no_suffix_at_all", "ours.bin"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(forms: dict[str, Path], tmp_path: Path, form: str, part: float) -> None:
    content = forms[form].read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(vae.CheckpointError, match="cut"):
        vae.load_vae(str(tmp_path / "cut"))


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Code()}, "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(vae.CheckpointError, match="objects other than tensors"):
        vae.load_vae("evil.pt")
    assert not (tmp_path / "pwned").exists()


def test_diffusers_weights_alone_ask_for_their_config(tmp_path: Path) -> None:
    weights = {"encoder.conv_in.conv.weight": torch.zeros(8, 3, 3, 3, 3), "encoder.down_blocks.0.x": torch.zeros(1)}
    with pytest.raises(vae.CheckpointError, match=r"put the config\.json of the checkpoint's `vae` folder beside them"):
        vae.load_vae(saved(tmp_path, weights))


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vae.CheckpointError, match=r"no causal 3D encoder.*lm_head"):
        vae.load_vae(saved(tmp_path, {"lm_head.weight": torch.zeros(2, 2)}))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(vae.CheckpointError, match="contains a list"):
        vae.load_vae(str(tmp_path / "list.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_eps": 1e-5}, "norm_eps must be 1e-06, got 1e-05"),
        ({"use_quant_conv": True}, "use_quant_conv must be False"),
        ({"block_out_channels": [32, 48]}, "multiples of the first"),
        ({"layers_per_block": None}, "a value in config.json is missing or invalid"),
        ({"temporal_compression_ratio": 3}, "power of two, got 3"),
        ({"layers_per_block": 10**9}, "3000000000 residual blocks"),
        ({"layers_per_block": "many"}, "a value in config.json is missing or invalid"),
        ({"block_out_channels": [32] * 1000}, "1000 residual blocks"),
        ({"block_out_channels": [32, 64, 32 * 10**17]}, "."),
        ({"block_out_channels": [0, 0, 0]}, "a value in config.json is missing or invalid"),
        ({"latent_channels": 10**18}, "."),
        ({"latent_channels": 10**30}, "."),
        ({"latent_channels": -4}, "."),
        ({"latent_channels": float("inf")}, "a value in config.json is missing or invalid"),
        ({"temporal_compression_ratio": 2**60}, "at most 4"),
        ({"scaling_factor": float("nan")}, "scale not 0, got nan"),
        ({"scaling_factor": 0}, "scale not 0, got 0.0"),
        ({"shift_factor": float("inf")}, "finite numbers"),
    ],
)
def test_configs_that_we_do_not_implement_are_refused(
    forms: dict[str, Path], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    config = json.loads((forms["diffusers"] / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(forms["diffusers"] / "diffusion_pytorch_model.safetensors"), tmp_path / "w.safetensors")
    with pytest.raises(vae.CheckpointError, match=message):
        vae.load_vae(str(tmp_path))


GOOD = {"name": "x", "config": SMALL, "scale": 1.0, "shift": 0.0}


@pytest.mark.parametrize(
    "about",
    [
        "{",
        "[]",
        "7",
        "{}",
        *(
            json.dumps(GOOD | change)
            for change in ({"scale": None}, {"scale": "x"}, {"scale": [[1], 2]}, {"config": 5})
        ),
        *(json.dumps(GOOD | {"config": SMALL | change}) for change in ({"num_res_blocks": 10**9}, {"ch_mult": 3})),
        json.dumps(GOOD | {"config": {}}),
        json.dumps(GOOD | {"config": SMALL | {"ch": None}}),
        json.dumps(GOOD | {"scale": 0}),
    ],
)
def test_odd_metadata_of_our_format_is_refused(weights: dict[str, Tensor], tmp_path: Path, about: str) -> None:
    save_file(weights, tmp_path / "odd", metadata={"latentmill": about})
    with pytest.raises(vae.CheckpointError, match="odd"):
        vae.load_vae(str(tmp_path / "odd"))


@pytest.mark.parametrize("index", ["{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "b"}}'])
def test_an_odd_index_of_shards_is_refused(forms: dict[str, Path], tmp_path: Path, index: str) -> None:
    (tmp_path / "config.json").write_text((forms["sharded"] / "config.json").read_text())
    (tmp_path / "w.safetensors.index.json").write_text(index)
    with pytest.raises(vae.CheckpointError, match=r"w\.safetensors\.index\.json"):
        vae.load_vae(str(tmp_path))


def test_names_of_a_depth_that_the_file_does_not_have_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    for name in ("down.0.block.999999999.conv1.conv.weight", "down.999999999.block.0.conv1.conv.weight"):
        with pytest.raises(vae.CheckpointError):
            vae.load_vae(saved(tmp_path, weights | {name: torch.zeros(1)}))


def test_places_with_nothing_are_refused(tmp_path: Path, forms: dict[str, Path]) -> None:
    for where in ("nothing", "memory://no/such", str(tmp_path / "none")):
        with pytest.raises(vae.CheckpointError, match="not found"):
            vae.load_vae(where)
    with pytest.raises(vae.CheckpointError, match=r"must contain one weights file .* found 0"):
        vae.load_vae(str(tmp_path))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(vae.CheckpointError, match="expected a JSON object"):
        vae.load_vae(str(tmp_path))
    (tmp_path / "config.json").write_text((forms["diffusers"] / "config.json").read_text())
    with pytest.raises(vae.CheckpointError, match="no weights"):
        vae.load_vae(str(tmp_path))
    with pytest.raises(ValueError, match="batched8, whole"):
        vae.load_vae("tiny", schedule="every")  # type: ignore[arg-type]
