"""Collect what the report says in words and numbers: headline figures, runs, settings, rejections."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from typing import Any

from latentmill.format import DTYPES
from pipeline.output import layout
from pipeline.output.tally import Tally, standing
from pipeline.output.wording import duration, size
from pipeline.plan.frozen import Plan
from pipeline.settings.spec import Spec
from pipeline.storage import Storage
from pipeline.storage.parallel import in_parallel

MOST_RUNS = 20
"""Runs that the report lists: the last ones."""
MOST_FILES = 200
"""Files with rejections that are searched for examples."""
EXAMPLES = 3
"""Examples of each reason."""

Figure = tuple[str, str, str]
"""(value, what it is, a remark)"""


def headline(plan: Plan, counts: Tally, seconds: float, pixel_bytes: float) -> list[Figure]:
    """Return the figures at the top of the page.

    Args:
        seconds: of video in all committed clips.
        pixel_bytes: of the decoded frames of all committed clips, uint8 RGB.
    """
    done = plan.num_shards - plan.num_remaining
    read = plan.num_bytes - plan.remaining_bytes
    refused = sum(counts.rejected.values())
    share = refused / counts.planned if counts.planned else 0.0
    written = counts.latent_bytes
    return [
        (f"{counts.latents:,}", "latents", f"of {counts.planned:,} planned clips"),
        (f"{refused:,}", "rejected", f"{share:.2%} of the clips"),
        (f"{1 - counts.captions.empty_share:.0%}", "have a caption", counts.captions.line()),
        (f"{done:,}", "shards done", f"of {plan.num_shards:,} planned"),
        (duration(seconds) if seconds < 3600 else f"{seconds / 3600:,.1f} h", "of video", "in all clips together"),
        (size(read), "read", "encoded video of the shards that are done"),
        (size(written), "of latents", f"{written / read:.2g} of what was read" if read else ""),
        (f"{pixel_bytes / max(written, 1):,.0f} : 1", "compression", f"from {size(pixel_bytes)} of decoded frames"),
    ]


def without_folders(text: str, known: Collection[str] = ()) -> str:
    """Return `text` with every path of this machine cut to its last name: a page is shared, and folders name people.

    Args:
        known: folders that are cut even if their names hold spaces, the longest first.
    """
    for folder in known:
        text = text.replace(f"{folder}/", ".../")
    return _LOCAL_PATH.sub(r"\1.../\2", text)


def local_folders(output: Storage, plan: Plan) -> list[str]:
    """Return the folders of this machine that hold the output and the sources, the longest first."""
    uris = {output.uri, *(shard.uri if shard.kind != "files" else f"{shard.uri}/" for shard in plan)}
    return sorted({uri.rpartition("/")[0] for uri in uris if uri.startswith("/")} - {""}, key=len, reverse=True)


_LOCAL_PATH = re.compile(r"""(^|[\s'"(=:,])(?:/[^/\s'"]+)+/([^/\s'"]+)""")
"""An absolute path that is no part of a URL."""


def runs(output: Storage) -> list[dict[str, str]]:
    """Return the last runs, the newest first, each as texts by column."""
    paths = sorted(entry.path for entry in output.list(layout.RUNS))[-MOST_RUNS:]
    texts = list(in_parallel(output.read, paths))
    return [_run_or_not(path, text) for path, text in zip(reversed(paths), reversed(texts), strict=True)]


def _run_or_not(path: str, text: bytes) -> dict[str, str]:
    try:
        return _run(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        nothing = dict.fromkeys(("took", "clips", "clips/s", "busy", "host", "versions"), "")
        return {"began": path, **nothing, "ended": "this record is damaged"}


def _run(record: dict[str, Any]) -> dict[str, str]:
    summary, environment = record["summary"], record["environment"]
    wall, clips = summary["wall_seconds"], summary.get("clips_encoded")
    ended = f"stopped by {summary['stopped']}" if summary["stopped"] else record.get("failure", "")
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "av", "ray") if name in environment)
    return {
        "began": f"{datetime.fromisoformat(record['began']):%Y-%m-%d %H:%M}",
        "took": duration(wall),
        "clips": "" if clips is None else f"{clips:,}",
        "clips/s": f"{clips / wall:.2f}" if clips and wall else "",
        "busy": ", ".join(f"{stage} {duration(busy)}" for stage, busy in summary["busy_seconds"].items()),
        "host": f"{record['host']}, {environment.get('device', 'no encoder')}",
        "versions": f"latentmill {record['latentmill']}" + (f", {versions}" if versions else ""),
        "ended": ended or (f"{len(summary['open_shards'])} shards left" if summary["open_shards"] else "all done"),
    }


def words(spec: Spec) -> list[tuple[str, str]]:
    """Return the settings that decided the bytes, each as (subject, sentence)."""
    vae, clip, latent = spec.vae, spec.clip, spec.latent
    shapes = ", ".join(f"{t} frames of {h}x{w}" for t, h, w in clip.shapes)
    rate = "consecutive source frames" if clip.rate is None else f"{clip.fps} frames per second, picked by time"
    cut = {
        "first": "one clip from the start of each video",
        "all": "consecutive clips",
        "every": f"one clip every {clip.every} s",
    }
    fit = {"cover": "fill the clip, then crop", "pad": "fit inside, with bars", "stretch": "ignore the aspect ratio"}
    stored = {
        "mean": "the mean of the posterior, scaled",
        "sample": f"one sample of the posterior (seed {latent.seed}), scaled",
        "moments": "mean and log-variance of the posterior, unscaled",
    }
    windows = {
        "batched8": "in windows of 8 frames with caches",
        "whole": "in one pass",
        "causal4": "in windows of 4 frames with caches, after frame 0",
    }
    bits = 8 * DTYPES[latent.store_dtype].itemsize
    return [
        ("VAE", f"{vae['name']}: {vae['space_compression']}x in space, {vae['time_compression']}x in time, "
                f"{vae['latent_channels']} channels"),
        ("Weights", f"sha256 {vae['weights_sha256']}"),
        ("Scaling", f"(z - {_numbers(vae['shift'])}) * {_numbers(vae['scale'])}"),
        ("Clips", f"{shapes}; {rate}; {cut[clip.clips]}"),
        ("Resizing", f"{fit[clip.fit]}; {clip.filter}"),
        ("Encoding", f"{windows[vae['schedule']]}, computed in {latent.dtype}"),
        ("Stored", f"{stored[latent.posterior]}, as {latent.store_dtype} ({bits} bits) in {latent.format}"),
        ("Format", f"version {spec.format_version}; Spec sha256 {spec.digest}"),
    ]  # fmt: skip


def _numbers(value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:g}"
    return f"[{len(value)} numbers, one for each channel{' and latent frame' if isinstance(value[0], list) else ''}]"


def rejections(output: Storage, plan: Plan, counts: Tally) -> list[dict[str, Any]]:
    """Return each reason with its count and some examples: {"reason", "count", "examples": [...]}, most first."""
    superseded = plan.superseded(plan.done)
    shards = [shard for shard, _ in layout.list_shards(output, layout.REJECTED, layout.JSONL) if shard in plan.done]
    examples: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    chosen = shards[:MOST_FILES]
    for shard, (_, left) in zip(
        chosen, in_parallel(lambda shard: standing(output, shard, superseded.get(shard, set())), chosen), strict=True
    ):
        for rejection in left:
            found = examples[rejection["reason"]]
            if len(found) < EXAMPLES:
                found.append(rejection | {"shard": shard, "picture": ""})
    ordered = sorted(counts.rejected.items(), key=lambda item: (-item[1], item[0]))
    return [{"reason": reason, "count": count, "examples": examples[reason]} for reason, count in ordered]
