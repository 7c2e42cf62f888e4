"""Which model a VAE belongs to, and which trainers read its latents. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from vae.info import VAEInfo


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models that share a latent space."""

    name: str
    """As its makers call it."""
    models: tuple[str, ...]
    """Models that were trained on its latents."""
    trainers: tuple[str, ...]
    """Open trainers of these models that encode with this VAE, read from their code in November 2026."""


_COGVIDEOX = Family("CogVideoX", ("CogVideoX 2B, 5B", "CogVideoX 1.5 5B"), ("CogVideo/finetune", "finetrainers"))
_WAN_2_1 = Family(
    "Wan 2.1",
    ("Wan 2.1", "Wan 2.2-A14B"),
    (
        "FastVideo",
        "NeMo Automodel",
        "musubi-tuner",
        "SimpleTuner",
        "diffusion-pipe",
        "DiffSynth-Studio",
        "finetrainers",
    ),
)
_WAN_2_2 = Family("Wan 2.2", ("Wan 2.2-TI2V-5B",), ("FastVideo", "DiffSynth-Studio"))

_BY_CLASS = {
    "tiny": Family("tiny", (), ()),
    "Encoder3D": Family("CogVideoX in SAT's format, or MoVQ 3D", _COGVIDEOX.models, _COGVIDEOX.trainers),
    "AutoencoderKLCogVideoX": _COGVIDEOX,
    "AutoencoderKLQwenImage": Family(
        "Qwen-Image", ("Qwen-Image",), ("NeMo Automodel", "musubi-tuner", "DiffSynth-Studio")
    ),
    "AutoencoderKLHunyuanVideo": Family(
        "HunyuanVideo",
        ("HunyuanVideo", "FramePack"),
        ("FastVideo", "musubi-tuner", "SimpleTuner", "diffusion-pipe", "finetrainers"),
    ),
    "AutoencoderKLHunyuanVideo15": Family(
        "HunyuanVideo 1.5", ("HunyuanVideo 1.5",), ("HunyuanVideo-1.5/train.py", "NeMo Automodel", "musubi-tuner")
    ),
    "AutoencoderKLLTXVideo": Family("LTX-Video", ("LTX-Video",), ("LTX-Video-Trainer", "SimpleTuner", "finetrainers")),
    "AutoencoderKLLTX2Video": Family(
        "LTX-2", ("LTX-2",), ("LTX-2 trainer", "FastVideo", "NeMo Automodel", "SimpleTuner")
    ),
    "AutoencoderKLMochi": Family("Mochi", ("Mochi 1",), ("Mochi's own fine-tuner",)),
    "AutoencoderKLCosmos": Family("Cosmos", ("Cosmos-Predict1",), ("cosmos-predict1",)),
}


def family_of(info: VAEInfo) -> Family:
    """Return the family of a VAE; one named as its class, without models and trainers, if it is not known."""
    if info.name == "AutoencoderKLWan":
        return _WAN_2_2 if info.config.get("shortcuts") else _WAN_2_1
    return _BY_CLASS.get(info.name, Family(info.name, (), ()))
