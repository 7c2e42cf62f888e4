"""The text that the models of a trainer learned from, and how the spec of a text shows that it is that text.

Embeddings of another encoder may have the same width and would train without an error, to nothing. The weights are not
compared: a fine-tuned encoder of the kind counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.text.clean import cleaner


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What the trainer's own code makes of a caption."""

    title: str
    """The encoder as people call it."""
    model_type: str = ""
    """As in its config.json. Empty: `latentmill text` makes no such text."""
    width: int = 0
    layers: int = 0
    layer: str = "last"
    lengths: tuple[int, ...] = ()
    """--max-length: the trainer's own first."""
    clean: str = "none"
    pad_tokens: bool = False
    """Whether its models learned from embeddings whose encoder read padding tokens as text."""

    def differences(self, spec: dict[str, Any], captions: Iterable[str]) -> list[str]:
        """Return how a text differs from this one, by its spec and what it was made of: "width 64, not 4096".

        Another --clean makes no difference where it changes no caption.
        """
        if not self.model_type:
            return [f"it is not made by {self.title}"]
        encoder, length, clean = spec["encoder"], spec["max_length"], spec.get("clean", "none")
        pairs = [
            ("encoder", encoder.get("model_type"), self.model_type),
            ("width", encoder.get("width"), self.width),
            ("layers", encoder.get("layers"), self.layers),
            ("--layer", spec["layer"], self.layer),
        ]
        found = [f"{name} {has}, not {takes}" for name, has, takes in pairs if has != takes]
        if length not in self.lengths:
            found.append(f"--max-length {length}, not {' or '.join(map(str, self.lengths))}")
        if clean != self.clean and (changed := _changed(captions, clean, self.clean)):
            found.append(f"--clean {clean}, not {self.clean}, for captions such as {changed[:60]!r}")
        return found

    @property
    def flags(self) -> str:
        """The options of `latentmill text` that make it, beside the encoder and the name."""
        clean = "" if self.clean == "none" else f" --clean {self.clean}"
        length = f"--max-length {self.lengths[0]}" if self.lengths else ""
        return f"{length}{' --pad-tokens' if self.pad_tokens else ''}{clean}".strip()


def _changed(captions: Iterable[str], one: str, other: str) -> str | None:
    """Return a caption that two ways of cleaning make different; None: there is none."""
    clean, clean_too = cleaner(one), cleaner(other)
    return next((caption for caption in captions if clean(caption) != clean_too(caption)), None)


UMT5 = "UMT5-XXL, the encoder of Wan"
WAN_226 = Recipe(title=UMT5, model_type="umt5", width=4096, layers=24, lengths=(226, 512), clean="wan")
"""Automodel's processor pads to 226 tokens; Wan's own code, and a call of diffusers' pipeline, to 512."""
WAN_512 = Recipe(title=UMT5, model_type="umt5", width=4096, layers=24, lengths=(512,), clean="wan")
WAN_RAW = Recipe(title=UMT5, model_type="umt5", width=4096, layers=24, lengths=(512,))
T5_XXL = Recipe(
    title="T5 v1.1 XXL, the encoder of CogVideoX",
    model_type="t5",
    width=4096,
    layers=24,
    lengths=(226,),
    pad_tokens=True,
)
GEMMA_FEATURES = Recipe(title="LTX-2's feature extractor, of all layers of Gemma 3 12B")
LLAMA_TEMPLATE = Recipe(title="HunyuanVideo's prompt template and two encoders, Llama and CLIP")
