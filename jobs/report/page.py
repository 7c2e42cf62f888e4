"""Put the page together: read the output, draw, look at sample clips, and fill the template."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from functools import partial
from typing import Any

import jinja2
import numpy as np

import latentmill
from jobs.report import Report
from jobs.report.facts import headline, local_folders, rejections, runs, without_folders, words
from jobs.report.plots import Plot, distributions, latents
from jobs.report.refused import add_pictures
from jobs.report.samples import COLUMNS, GAIN, Decode, decoder_of, doubt, fidelity, samples
from jobs.stats import stats
from latentmill.dataset import LatentDataset
from latentmill.format import STATISTICS
from latentmill.statistics.pool import matrix, tables
from pipeline.output.spec_file import load_spec
from pipeline.output.tally import tally
from pipeline.plan.frozen import read_plan
from pipeline.runs.run_records import recorded_vae
from pipeline.settings.spec import Spec
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted
from vae.checkpoints.tiny import TINY_NAME, read_tiny
from vae.errors import CheckpointError

MOST_ROWS = 100_000
"""Rows whose distributions are drawn: of a larger output, so many evenly chosen ones."""

DISTRIBUTED = (
    *("caption", "num_frames", "height", "width", "start_sec", "end_sec"),
    *("num_duplicates", "longest_hold_sec", "source_json"),
)
"""Columns whose distributions are drawn."""


def page(args: Report) -> str:
    """Return the HTML of the report.

    Raises:
        ConfigError, OpenError: there is no output, or none of its clips is committed yet.
        StorageError: the storage failed.
    """
    output = Storage(args.output)
    spec, plan = load_spec(output), read_plan(output)
    counts = tally(output, sorted(plan.done), plan.superseded(plan.done))
    has_statistics = spec.format_version >= 2
    columns = {*COLUMNS, *DISTRIBUTED, *(STATISTICS.names if has_statistics else ())}
    dataset = latentmill.open(args.output, columns=sorted(columns))
    rows = _rows(dataset)
    chosen = random.Random(args.seed).sample(range(len(dataset)), min(args.clips, len(dataset)))
    shared = str if args.full_paths else partial(without_folders, known=local_folders(output, plan))
    decode, why_not = _decoder(args, output, spec)
    found = _statistics(dataset) if has_statistics else {}
    far = [clip["position"] for clip in found["furthest"]] if found and args.clips else []
    clips = samples(output, plan, spec, _means(dataset), sorted({*chosen, *far}), decode)
    figures = headline(plan, counts, *_amounts(rows, len(dataset)))
    refused = rejections(output, plan, counts)
    if args.clips:
        add_pictures(refused, plan, spec)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        output=shared(redacted(output.uri)),
        shared=shared,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        open_shards=plan.num_remaining,
        headline=figures + fidelity(clips),
        doubt=doubt(clips),
        tiny=read_tiny().facts if spec.vae["name"] == TINY_NAME else None,
        samples=sorted(clips, key=lambda clip: (clip.psnr is None, clip.psnr)),
        pictured={clip.id: clip.pictures[0]["source"] for clip in clips if clip.pictures},
        gain=GAIN,
        why_not=why_not,
        statistics=found,
        rejections=refused,
        distributions=distributions(rows, [json.loads(text) for text in rows["source_json"]]),
        shown_rows=len(rows["caption"]),
        words=words(spec),
        spec=json.dumps(json.loads(spec.to_json()), indent=2),
        runs=runs(output),
    )


def _rows(dataset: LatentDataset) -> dict[str, list[Any]]:
    """Return the columns DISTRIBUTED of at most MOST_ROWS rows, and `seconds`, how long each clip lasts."""
    step = -(-len(dataset) // MOST_ROWS)
    rows = dataset.select(DISTRIBUTED).facts(range(0, len(dataset), step))
    ends = (rows["start_sec"], rows["end_sec"], rows["longest_hold_sec"], rows["num_frames"])
    rows["seconds"] = [0.0 if end is None else end - start for start, end, _, _ in zip(*ends, strict=True)]
    return rows


def _amounts(rows: dict[str, list[Any]], count: int) -> tuple[float, float]:
    """Return the seconds and the bytes of uint8 RGB of all clips, from those that were read."""
    factor = count / len(rows["seconds"])
    frames = np.array([rows[name] for name in ("num_frames", "height", "width")], np.float64)
    return factor * float(np.sum(rows["seconds"])), factor * float(3 * frames.prod(0).sum())


def _statistics(dataset: LatentDataset) -> dict[str, Any]:
    """Return what `latentmill stats` says, and its plots."""
    found = dataset.statistics
    assert found
    stds, largest = [], []
    for _, table in tables(dataset):
        mean, std = matrix(table["latent_mean"]), matrix(table["latent_std"])
        stds.append(np.sqrt((std**2 + mean**2).mean(1) - mean.mean(1) ** 2))
        largest.append(table["latent_max_abs"].to_numpy())
    plots: list[Plot] = latents(found, np.concatenate(stds), np.concatenate(largest))
    return stats(dataset, 5) | {"plots": plots}


def _means(dataset: LatentDataset) -> LatentDataset:
    """Return the same rows with latents that a decoder takes."""
    return dataset.posterior("mean") if dataset.stored_posterior == "moments" else dataset


def _decoder(args: Report, output: Storage, spec: Spec) -> tuple[Decode | None, str]:
    """Return what turns a latent into frames, or None and why there is none."""
    if not args.decode:
        return None, "--no-decode was given"
    where = args.vae or ("tiny" if spec.vae["name"] == TINY_NAME else recorded_vae(output))
    if not where:
        return None, f"no run recorded its checkpoint, and --vae did not name that of {spec.vae['name']}"
    try:
        return decoder_of(spec, where, args.device), ""
    except CheckpointError as error:
        return None, str(error) if args.vae else f"{error}. Name the checkpoint by --vae"
