"""The CUDA path without a GPU: its kernels in Triton's interpreter and through Triton's compiler, and when it is taken.

What they take in time, and what a GPU makes of a convolution without its bias, only a GPU shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vae
from tests.vae.test_cost import real_encoder
from tests.vae.test_selfcheck import MODELS, on_meta
from vae import kernels
from vae.encoder import Encoder3D, EncoderCache

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from vae import fused
from vae.kernels import cuda, selfcheck
from vae.kernels.traffic import Traffic

ROOT = Path(__file__).parents[2]

FAMILIES = MODELS | {"MoVQ": lambda dtype: on_meta(real_encoder(attn_resolutions=[32]), "whole", dtype)}
"""All encoders that launch kernels. MoVQ takes a clip in one pass, which keeps no frames, and may have attention."""


def interpret(amount: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-m", "tests.vae.interpreted", amount], check=True, env=environment, cwd=ROOT)


def test_the_kernels_and_the_walk_are_exact() -> None:
    interpret("quick")


@pytest.mark.slow
def test_the_kernels_and_the_walk_are_exact_in_every_dtype() -> None:
    interpret("full")


def special(kernel: Any, arguments: Any) -> Iterator[object]:
    """For each argument, by what Triton compiles the kernel apart (its `create_specialize_impl`)."""
    for parameter, value in zip(kernel.params, arguments, strict=False):
        if isinstance(value, Tensor):
            yield value.dtype
        elif isinstance(value, int):
            yield value >= 2**31
            yield None if parameter.do_not_specialize else (value == 1, value % 16 == 0)


def real_windows(
    height: int = 480, width: int = 720, lengths: tuple[int, ...] = (9, 8)
) -> Callable[[torch.dtype], None]:
    """Encode windows of a real CogVideoX without data."""

    def run(dtype: torch.dtype) -> None:
        encoder, cache = real_encoder().to(dtype), EncoderCache()
        for length in lengths:
            encoder.step(torch.empty(1, 3, length, height, width, dtype=dtype, device="meta"), cache)

    return run


def encode(model: vae.VideoVAE, size: tuple[int, int]) -> Tensor:
    """Encode all kinds of windows of frames of this height and width, on the model's device."""
    windows = {"batched8": (9, 8), "causal4": (1, 4, 4), "whole": (17,)}[model.info.schedule]
    frames = torch.empty(sum(windows), *size, 3, dtype=torch.uint8, device=model.device)
    return model.encode_windows(frames.permute(3, 0, 1, 2).unsqueeze(0), windows, 0)


def launches(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, *runs: Callable[[torch.dtype], object]
) -> dict[object, tuple[Any, dict[str, object]]]:
    """Every launch that Triton compiles apart: the kernel and all of its arguments. Of two windows of 480x720."""
    found: dict[object, tuple[Any, dict[str, object]]] = {}
    inner: Callable[..., None] = cuda._launch

    def spy(kind: str, kernel: Any, grid: object, arguments: Any, constants: Any, **tensors: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        found.setdefault((kernel.__name__, *constants.items(), *special(kernel, arguments)), (kernel, named))
        inner(kind, kernel, grid, arguments, constants, **tensors)

    monkeypatch.setattr(cuda, "_launch", spy)
    with torch.no_grad(), kernels.workspace():
        for run in runs or (real_windows(),):
            run(dtype)
    monkeypatch.setattr(cuda, "_launch", inner)
    return found


def test_the_selfcheck_compiles_all_that_a_job_of_many_buckets_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, 480x720 took 44 compilations, and these five buckets 88."""
    buckets = [(480, 720), (720, 480), (512, 512), (384, 640), (264, 440)]
    first = launches(monkeypatch, torch.bfloat16)
    every = launches(monkeypatch, torch.bfloat16, *(real_windows(*bucket, (13, 8, 8)) for bucket in buckets))
    checked = launches(
        monkeypatch, torch.bfloat16, lambda dtype: selfcheck.compare(MODELS["CogVideoX"](dtype), (9, 240, 368))
    )
    assert len(first) == len(every) == 24
    assert set(first) == set(every) <= set(checked)


def compile_for(kernel: Any, named: dict[str, object], architecture: int) -> dict[str, Any]:
    """Compile a launch as Triton's runtime would, and return the code of each step."""
    import triton
    from triton.backends.compiler import GPUTarget

    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    signature, constants, divisible = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = named[name]
        if isinstance(value, Tensor):
            signature[name], divisible[i,] = types[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif name.isupper() or (value == 1 and not kernel.params[i].do_not_specialize):
            signature[name], constants[name] = "constexpr", value
        else:
            assert isinstance(value, int)
            signature[name] = "i64" if value >= 2**31 else "i32"
            if value % 16 == 0 and not kernel.params[i].do_not_specialize:
                divisible[i,] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    options = {"enable_fp_fusion": True}
    return dict(triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm)


def check_compiled(asm: dict[str, Any], kernel: Any) -> None:
    assert asm["cubin"]
    reads_wide = kernel.__name__ == "finalise" or "ld.global.v4" in asm["ptx"] or ".v4.b32" in asm["ptx"]
    assert reads_wide, f"{kernel.__name__} does not load 16 bytes at a time"
    atomics = [word for word in ("atom.", "red.global") if word in asm["ptx"]]
    assert atomics == [], f"{kernel.__name__} depends on the order of its programs"


@pytest.mark.parametrize("architecture", [80, 90])
def test_each_kernel_compiles(architecture: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    first = {kernel.__name__: (kernel, named) for kernel, named in launches(monkeypatch, torch.bfloat16).values()}
    assert set(first) == {"statistics", "add", "finalise", "scale_shift_silu", "pool_time"}
    for kernel, named in first.values():
        check_compiled(compile_for(kernel, named, architecture), kernel)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_launch_of_a_real_clip_compiles(
    name: str, dtype: torch.dtype, architecture: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with Traffic():
        every = launches(monkeypatch, dtype, lambda dtype: encode(FAMILIES[name](dtype), (480, 720)))
    assert len(every) >= (3 if name.startswith("Wan") else 20)
    for kernel, named in every.values():
        check_compiled(compile_for(kernel, named, architecture), kernel)


def test_blocks_fill_the_card_and_depend_on_the_shape_alone() -> None:
    level_0, level_3 = 8 * 480 * 720, 2 * 60 * 90
    assert cuda.block_rows(level_0, 128) == cuda.MOST_BLOCK_ROWS
    assert level_3 / cuda.block_rows(level_3, 512) >= cuda.ENOUGH_BLOCKS
    for rows, channels in ((1, 32), (1000, 96), (level_3, 512), (level_0, 128), (2**32, 1024)):
        block = cuda.block_rows(rows, channels)
        assert block & (block - 1) == 0
        assert cuda.TILE_ELEMENTS // 1024 <= block <= cuda.MOST_BLOCK_ROWS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fused_walk_is_taken_by_every_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    found = launches(monkeypatch, dtype)
    assert any(name == "add" for name, *_ in found)  # type: ignore[misc]


def disturb_hook(encoder: Encoder3D) -> None:
    encoder.mid.block_1.conv1.conv.register_forward_hook(lambda module, inputs, output: output)


def disturb_forward(encoder: Encoder3D) -> None:
    encoder.norm_out.forward = lambda x: x  # type: ignore[method-assign]


def disturb_kind(encoder: Encoder3D) -> None:
    encoder.conv_in.conv = nn.Sequential(encoder.conv_in.conv)  # type: ignore[assignment]


def disturb_dropout(encoder: Encoder3D) -> None:
    encoder.mid.block_2.dropout.p = 0.1
    encoder.train()


@pytest.mark.parametrize("disturb", [disturb_hook, disturb_forward, disturb_kind, disturb_dropout])
def test_a_module_of_somebody_elses_is_never_walked_around(disturb: Callable[[Encoder3D], None]) -> None:
    encoder = real_encoder()
    assert fused.applies(encoder)
    disturb(encoder)
    assert not fused.applies(encoder)
