"""Laws of the safetensors files of exports: the same content gives the same bytes, and the format's own library reads
it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from pipeline.export.tensor_file import DTYPES, tensor_file

METADATA = {"width": "832", "architecture": "wan", "caption1": 'a "b" \n \\ \x01 ü 猫', "format_version": "1.0.1"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (0, 4), ()])
def test_the_library_reads_what_is_written(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    tensors = {name: torch.randn(shape).to(getattr(torch, dtype)) for name in ("z", "a")}
    (tmp_path / "x").write_bytes(tensor_file(tensors, METADATA))
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == METADATA
        assert sorted(file.keys()) == ["a", "z"]
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype


def test_the_bytes_follow_from_the_content() -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2)}
    backwards = tensor_file(dict(reversed(tensors.items())), dict(reversed(METADATA.items())))
    assert tensor_file(tensors, METADATA) == backwards


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_metadata_they_are_those_of_the_library(dtype: str) -> None:
    """So that CogVideo's files stay what they were."""
    tensors = {"encoded_video": torch.randn(2, 3, 5).to(getattr(torch, dtype))}
    assert tensor_file(tensors) == save(tensors)
