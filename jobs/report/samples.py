"""Show what the latents are worth: of some clips the source, what comes back from the latent, and the difference."""

from __future__ import annotations

import base64
import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from latentmill.dataset import LatentDataset
from latentmill.format import shard_of
from pipeline.errors import LatentmillError
from pipeline.output.layout import data_path
from pipeline.plan.frozen import Plan
from pipeline.records import Chunk, ClipKey
from pipeline.settings.spec import Spec
from pipeline.stages.decode_video import Decoder
from pipeline.storage import Storage
from pipeline.storage.range_file import open_parquet
from pipeline.verify.decode_again import clips_of, decode_again
from vae.info import VAEInfo

LEAST_PSNR = 20.0
"""dB. Below it, the median of the sample clips is an alarm: a VAE that was trained gives 25 to 45 dB on videos, another
VAE's weights and wrong scalings 5 to 15 dB."""
LATENT_FRAMES = 3
"""Latent frames that are decoded: the first ones, which a causal decoder can do alone. A long clip costs no more."""
MOST_WIDTH = 360
"""Pixels; larger pictures are made smaller."""
GAIN = 4
"""The picture of the difference shows |decoded - source| times this."""

Frames = npt.NDArray[np.uint8]
"""uint8 [T, H, W, 3]."""

Decode = Callable[[Any], Frames]
"""From a stored latent, Tensor [C, T', H', W'], to its frames."""


@dataclass(slots=True, kw_only=True)
class Sample:
    """One clip for the page."""

    key: str
    id: str
    caption: str | None
    where: str
    """Its address and start."""
    shape: str
    pictures: list[dict[str, str]] = field(default_factory=list)
    """For each frame that is shown: data URIs of `source`, and of `decoded` and `difference` if it was decoded."""
    psnr: float | None = None
    """dB, over the decoded frames."""
    ssim: float | None = None
    """Mean over the decoded frames."""
    why: str = ""
    """Why there are no pictures."""


def samples(
    output: Storage,
    plan: Plan,
    spec: Spec,
    latents: LatentDataset,
    chosen: list[int],
    decode: Decode | None,
) -> list[Sample]:
    """Return the clips at these positions, in order.

    Args:
        latents: with the columns of `COLUMNS`.
        decode: None shows the sources only.
    """
    clips, found = _clips(latents, chosen), dict[int, Sample]()
    for position, frames in _sources(output, plan, spec, clips):
        facts = clips[position][2]
        sample = Sample(
            key=facts["key"],
            id=facts["id"],
            caption=facts["caption"],
            where=f"{facts['source_uri']} from {facts['start_sec']:.3f} s",
            shape=f"{facts['num_frames']} frames of {facts['height']}x{facts['width']}",
        )
        found[position] = sample
        print(f"\rreport: {len(found)} of {len(chosen)} sample clips", end="", file=sys.stderr, flush=True)
        if isinstance(frames, str):
            sample.why = frames
        elif decode is None:
            _show(sample, frames, None)
        else:
            _show(sample, frames, decode(latents[position]["latent"][:, :LATENT_FRAMES]))
    if chosen:
        print(file=sys.stderr)
    return [found[position] for position in chosen]


def fidelity(clips: list[Sample]) -> list[tuple[str, str, str]]:
    """Return the figure of the page for the PSNR of the sample clips; none if no clip was decoded."""
    found = [clip.psnr for clip in clips if clip.psnr is not None]
    if not found:
        return []
    return [(f"{np.median(found):.1f} dB", "PSNR", f"median of {len(found)} sample clips, worst {min(found):.1f} dB")]


def doubt(clips: list[Sample]) -> str:
    """Return what is wrong with the decoded pictures as a whole, or ""."""
    found = [clip.psnr for clip in clips if clip.psnr is not None]
    if not found or np.median(found) >= LEAST_PSNR:
        return ""
    return (
        f"What comes back from the latents is not the source: the median PSNR is {np.median(found):.1f} dB, and a "
        f"trained VAE has more than {LEAST_PSNR:g} dB. Is this the right checkpoint, with trained weights?"
    )


COLUMNS = ("key", "caption", "source_uri", "start_sec", "num_frames", "height", "width", "video_index", "clip_index")

Clip = tuple[str, ClipKey, dict[str, Any]]
"""(shard, clip, facts)"""


def _clips(latents: LatentDataset, chosen: list[int]) -> dict[int, Clip]:
    facts = latents.select(COLUMNS).facts(chosen)
    rows = [dict(zip(facts, values, strict=True)) for values in zip(*facts.values(), strict=True)]
    shards = [shard_of(where.file) for where in latents.ranges(chosen)[0]]
    return {
        position: (shard, (row["video_index"], row["clip_index"]), row)
        for position, shard, row in zip(chosen, shards, rows, strict=True)
    }


def _sources(output: Storage, plan: Plan, spec: Spec, clips: dict[int, Clip]) -> Iterator[tuple[int, Frames | str]]:
    """Yield of each clip the first frames again from its source, or why there are none."""
    decoder = Decoder(clip=spec.clip, latent=spec.latent, info=VAEInfo(**spec.vae), deadline=60.0)
    wanted: defaultdict[str, dict[ClipKey, int]] = defaultdict(dict)
    for position, (name, clip, _) in clips.items():
        wanted[name][clip] = position
    for shard in plan:
        if (left := wanted.get(shard.name)) is None:
            continue
        path = data_path(shard.name)
        try:
            entry = output.entry(path)
            _, settled = clips_of(open_parquet(output.address(path), entry.size, entry.etag))
            for clip, record in decode_again(shard, frozenset(left), settled, decoder):
                if clip in left:
                    yield left.pop(clip), record.frames if isinstance(record, Chunk) else record
        except (LatentmillError, pa.ArrowException, OSError, LookupError, ValueError) as error:
            yield from ((position, str(error)) for position in left.values())
            left.clear()
        yield from ((position, f"the clip does not come out of {shard.uri} again") for position in left.values())
        del wanted[shard.name]
    for name, left in wanted.items():
        yield from ((position, f"the plan does not name the shard {name}") for position in left.values())


def _show(sample: Sample, source: Frames, decoded: Frames | None) -> None:
    """Add pictures of the first, the middle and the last frame, and compare all of them."""
    count = min(len(source), 9) if decoded is None else min(len(source), len(decoded))
    source = source[:count]
    if decoded is not None:
        decoded = decoded[:count]
        sample.psnr = float(peak_signal_noise_ratio(source, decoded, data_range=255))
        sample.ssim = float(np.mean([_ssim(*pair) for pair in zip(source, decoded, strict=True)]))
    for i in sorted({0, count // 2, count - 1}):
        pictures = {"source": data_uri(source[i])}
        if decoded is not None:
            difference = np.abs(decoded[i].astype(np.int16) - source[i]) * GAIN
            pictures |= {"decoded": data_uri(decoded[i]), "difference": data_uri(difference.clip(0, 255))}
        sample.pictures.append(pictures | {"frame": str(i)})


def _ssim(source: Frames, decoded: Frames) -> float:
    """Return the structural similarity of two frames with the settings of Wang et al. 2004."""
    window = min(11, *source.shape[:2])
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    size = window - 1 + window % 2
    return float(structural_similarity(source, decoded, channel_axis=-1, data_range=255, win_size=size, **options))


def data_uri(frame: npt.NDArray[Any]) -> str:
    """Return a frame, uint8 [H, W, 3], as a data URI of a picture that is at most MOST_WIDTH wide and high."""
    picture = Image.fromarray(frame.astype(np.uint8))
    picture.thumbnail((MOST_WIDTH, MOST_WIDTH))
    file = io.BytesIO()
    picture.save(file, "webp", quality=85, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def decoder_of(spec: Spec, where: str, device: str) -> Decode:
    """Return a function from a stored latent to its frames, with the normalisation of the Spec.

    Raises:
        CheckpointError: there is no decoder, or the checkpoint is another one.
    """
    import torch

    import vae
    from vae.errors import CheckpointError

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = vae.load_vae(where, dtype=torch.float32, device=device, schedule=spec.latent.schedule)
    if loaded.info.weights_sha256 != spec.vae["weights_sha256"]:
        raise CheckpointError(f"{where} has other weights than those that made this output")
    model = loaded.normalised(spec.vae["scale"], spec.vae["shift"])
    model.decoder()

    def decode(latent: Any) -> Frames:
        pixels = model.decode(latent[None])[0].permute(1, 2, 3, 0)
        frames: Frames = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        return frames

    return decode
