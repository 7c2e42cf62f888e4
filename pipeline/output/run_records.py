"""runs/<run>.json: what each run did, with which versions and on what. Bytes in `data/` never depend on it.

The same source and Spec give the same bytes on the same hardware and versions. Where a run's differ from the first
run's, that is worth a warning: its latents may differ in the last bits.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pipeline.output import layout
from pipeline.output.summary import Summary
from pipeline.settings.job import Job
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted

log = logging.getLogger(__name__)

PACKAGES = ("torch", "av", "pyarrow", "numpy", "ray")


def environment(device: str, threads: int) -> dict[str, Any]:
    """What may change the last bits of a latent: versions (FFmpeg comes with `av`), device, threads."""
    facts: dict[str, Any] = {name: version(name) for name in PACKAGES}
    facts["python"] = platform.python_version()
    facts["machine"] = platform.machine()
    import torch

    facts["device"] = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device
    facts["cpu"] = torch.backends.cpu.get_cpu_capability()
    facts["threads_per_encoder"] = threads if device == "cpu" else None
    return facts


def warn_of_differences(output: Storage, here: dict[str, Any]) -> None:
    """Compare this run's environment with the first run's, and say what differs."""
    there = next((environment for _, environment in environments(output)), None)
    if there is None:
        return
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            log.warning(
                "%s=%s here, %s in the first run of this output: latents may differ in the last bits",
                name,
                here.get(name),
                there.get(name),
            )


def environments(output: Storage) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, environment) of each recorded run, in the order of time. A run with nothing to do has none."""
    for entry in output.list(layout.RUNS):
        try:
            environment = json.loads(output.read(entry.path))["environment"]
        except (ValueError, LookupError, TypeError) as error:
            log.warning("%s cannot be read, and is passed over: %s", entry.path, error)
            continue
        if environment and isinstance(environment, dict):
            yield entry.path, environment


def record(
    output: Storage, run_id: str, spec_digest: str, here: dict[str, Any], summary: Summary, *, job: Job, began: datetime
) -> None:
    """Put runs/<time>-<run>.json, with everything that was asked for. Names sort by time."""
    now = datetime.now(UTC)
    asked = asdict(job) | {"source": [redacted(uri) for uri in job.source]}
    asked |= {"output": redacted(job.output), "vae": redacted(job.vae)}
    facts = {
        "run": run_id,
        "began": began.isoformat(),
        "ended": now.isoformat(),
        "host": platform.node(),
        "latentmill": version("latentmill"),
        "job": asked,
        "spec_sha256": spec_digest,
        "environment": here,
        "summary": asdict(summary),
    }
    output.put(layout.run_path(now, run_id), json.dumps(facts, indent=2).encode())
