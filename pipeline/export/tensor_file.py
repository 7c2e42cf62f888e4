"""Write a safetensors file whose bytes follow from its content.

    8 bytes          length of the header, little-endian
    header           JSON, filled up with spaces to a multiple of 8: {"__metadata__": {name: text}, name: {"dtype",
                     "shape", "data_offsets": [start, stop]}}; offsets count from the end of the header
    tensors          one after the other, little-endian, C order

The library of this format keeps metadata in a hash table, so it writes them in another order each time. Here names are
sorted, as the format allows (its README, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.stages.encode_chunk import to_bytes

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""The name of each stored dtype in the format."""


def tensor_file(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a file with these tensors."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    payloads: list[bytes | memoryview] = []
    start = 0
    for name, tensor in sorted(tensors.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        payloads.append(to_bytes(tensor, dtype))
        stop = start + tensor.nbytes
        header[name] = {"dtype": DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *payloads])
