"""Read the golden files: reference inputs, parameters and outputs, as laid out in their README."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

TOLERANCE = 1e-5


@dataclass
class Case:
    """One call of the reference, with what went in and what came out."""

    name: str
    init: dict[str, Any]
    call: dict[str, Any]
    raises: bool
    input_shape: list[int]
    params: dict[str, Tensor]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def cases(folder: Path, stem: str, module: str | None = None) -> Iterator[Case]:
    """Every case of a golden file, in order."""
    with safe_open(folder / "golden" / f"{stem}.safetensors", "pt") as file:
        names = list(file.keys())
        for config in json.loads(file.metadata()["spec"])["configs"]:
            if module is not None and config["module"] != module:
                continue

            def part(prefix: str) -> dict[str, Tensor]:
                return {n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(prefix)}

            params = part(f"{config['name']}/params/")
            for case in config["cases"]:
                root = f"{config['name']}/{case['name']}"
                yield Case(
                    name=f"{stem}/{root}",
                    init=dict(config["init"]),
                    call=dict(case["call"]),
                    raises=case.get("raises", False),
                    input_shape=case.get("input_shape", []),
                    params=params,
                    inputs={n: part(f"{root}/in/")[n] for n in case["inputs"]},
                    outputs=part(f"{root}/out/"),
                    config=config,
                )


def assert_same(actual: Tensor, expected: Tensor, name: str) -> None:
    """Shapes equal and max|a-b| / max|b| <= 1e-5."""
    actual = actual.detach()
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} != {tuple(expected.shape)}"
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert error <= TOLERANCE, f"{name}: relative max error {error:.2e}"


def paths() -> Iterator[Any]:
    """The plain path (gradients on) and the fast one (gradients off), as contexts with a name."""
    yield "plain", torch.enable_grad()
    yield "fast", torch.no_grad()
