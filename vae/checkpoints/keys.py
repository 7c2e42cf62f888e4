"""Translate tensor names between MoVQ, SAT and diffusers, which name the same weights differently. One to one.

    MoVQ, SAT                             diffusers
    down.{i}.block.{j}.*                  down_blocks.{i}.resnets.{j}.*
    down.{i}.downsample.conv.*            down_blocks.{i}.downsamplers.0.conv.*
    mid.block_{1,2}.*                     mid_block.resnets.{0,1}.*
    up.{i}.block.{j}.*                    up_blocks.{L-1-i}.resnets.{j}.*       decoder; up.0 is the finest level
    up.{i}.upsample.conv.*                up_blocks.{L-1-i}.upsamplers.0.conv.*
    *.nin_shortcut.weight                 *.conv_shortcut.weight                a plain 1x1x1 convolution
    *.conv_shortcut.conv.weight           *.conv_shortcut.conv.weight           a causal 3x3x3 convolution
    conv_in.*, norm_out.*, conv_out.*     the same

SAT writes `encoder.` and `decoder.` before MoVQ's names, and `first_stage_model.` before that inside a full checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")

_SAME = re.compile(r"(conv_in|conv_out|norm_out)\..+")
_OURS = (
    (re.compile(r"down\.(\d+)\.block\.(\d+)\.(.+)"), "down_blocks.{0}.resnets.{1}.{2}"),
    (re.compile(r"down\.(\d+)\.downsample\.(.+)"), "down_blocks.{0}.downsamplers.0.{1}"),
    (re.compile(r"mid\.block_([12])\.(.+)"), "mid_block.resnets.{less}.{1}"),
    (re.compile(r"up\.(\d+)\.block\.(\d+)\.(.+)"), "up_blocks.{flip}.resnets.{1}.{2}"),
    (re.compile(r"up\.(\d+)\.upsample\.(.+)"), "up_blocks.{flip}.upsamplers.0.{1}"),
)
_THEIRS = (
    (re.compile(r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)"), "down.{0}.block.{1}.{2}"),
    (re.compile(r"down_blocks\.(\d+)\.downsamplers\.0\.(.+)"), "down.{0}.downsample.{1}"),
    (re.compile(r"mid_block\.resnets\.([01])\.(.+)"), "mid.block_{more}.{1}"),
    (re.compile(r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)"), "up.{flip}.block.{1}.{2}"),
    (re.compile(r"up_blocks\.(\d+)\.upsamplers\.0\.(.+)"), "up.{flip}.upsample.{1}"),
)


def to_diffusers(name: str, num_levels: int = 4) -> str:
    """Return diffusers' name for MoVQ's name of an encoder or decoder tensor; a prefix `encoder.` or `decoder.` stays.

    Raises:
        KeyError: diffusers has no such tensor (for example attention in the encoder).
    """
    renamed = _rename(name, _OURS, num_levels)
    return re.sub(r"\bnin_shortcut\b", "conv_shortcut", renamed)


def from_diffusers(name: str, num_levels: int = 4) -> str:
    """Undo `to_diffusers`.

    Raises:
        KeyError: MoVQ has no such tensor.
    """
    renamed = _rename(name, _THEIRS, num_levels)
    return re.sub(r"\bconv_shortcut\.(?=weight$|bias$)", "nin_shortcut.", renamed)


def encoder_part(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return the encoder's tensors of a checkpoint under their MoVQ names.

    Takes MoVQ's, SAT's and diffusers' names, with or without `first_stage_model.`; drops the decoder and the loss.
    Unknown tensors keep their names, so that the strict load rejects them.
    """
    return _renamed_part(_inside(tensors, "first_stage_model."), "encoder.")


def decoder_part(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return the decoder's tensors of a checkpoint, as `encoder_part` does for the encoder."""
    return _inside(_inside(tensors, "first_stage_model."), "decoder.")


def _renamed_part(tensors: dict[str, Value], prefix: str) -> dict[str, Value]:
    dropped = ("decoder.", "loss.", "regularization.", "quantize.", "post_quant_conv.")
    part = {name: value for name, value in tensors.items() if not name.startswith(dropped)}
    if any(name.startswith(prefix) for name in part):
        part = {name.removeprefix(prefix): value for name, value in part.items()}
    if not any(name.startswith(("down_blocks.", "mid_block.")) for name in part):
        return part
    return {_from_diffusers_or_as_is(name): value for name, value in part.items()}


def _from_diffusers_or_as_is(name: str) -> str:
    try:
        return from_diffusers(name)
    except KeyError:
        return name


def _inside(tensors: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """Return only the tensors under `prefix`, without the prefix, or all of them if there are none under it."""
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return found or dict(tensors)


def _rename(name: str, table: tuple[tuple[re.Pattern[str], str], ...], num_levels: int) -> str:
    for prefix in ("encoder.", "decoder."):
        if name.startswith(prefix):
            return prefix + _rename(name.removeprefix(prefix), table, num_levels)
    if _SAME.fullmatch(name):
        return name
    for pattern, form in table:
        match = pattern.fullmatch(name)
        if match:
            first = int(match[1])
            return form.format(*match.groups(), less=first - 1, more=first + 1, flip=num_levels - 1 - first)
    raise KeyError(name)
