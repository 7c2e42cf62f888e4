"""runs/<time>-<run>.json: what each run did, with which versions and on which hardware.

The bytes in `data/` never depend on this record. The same Source and Spec give the same bytes on the same hardware and
versions. If the hardware or versions of a run differ from those of the first run, a warning is logged: the latents may
differ in the last bits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from pipeline.guard.starts import Told
from pipeline.output import layout
from pipeline.runs.summary import RunSummary
from pipeline.storage import Storage
from pipeline.storage.addresses import redacted

log = logging.getLogger(__name__)

PACKAGES = ("torch", "av", "pyarrow", "numpy", "ray")

ADDRESSES = {"source", "output", "into", "vae"}
"""Fields of a job that may hold secrets."""


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """The record of one run: its job, its environment, and its results."""

    job: Any
    """A dataclass."""
    run_id: str
    spec_digest: str
    folder: str = layout.RUNS
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    environment: dict[str, Any] = field(default_factory=dict)
    """Empty until the stream starts."""
    encoders: list[Told] = field(default_factory=list)
    """What the encoders told of themselves, each once: on a cluster they have other devices than the driver."""

    def start(self, output: Storage, environment: dict[str, Any]) -> None:
        """Record the environment, and warn if it differs from that of the first run in the folder."""
        self.environment = environment
        warn_of_differences(output, environment, self.folder)

    def put(self, output: Storage, summary: RunSummary, failure: str = "") -> None:
        """Put <folder>/<time>-<run>.json, now that the run ends. `failure` is the reason why the run failed, or ""."""
        ended, job = datetime.now(UTC), asdict(self.job)
        facts = {
            "run": self.run_id,
            "began": self.began.isoformat(),
            "ended": ended.isoformat(),
            "host": platform.node(),
            "latentmill": version("latentmill"),
            "job": job | {name: _redacted(job[name]) for name in ADDRESSES & job.keys()},
            "spec_sha256": self.spec_digest,
            "environment": self._environment(),
            "encoders": [asdict(told) for told in self.encoders],
            "summary": asdict(summary),
        }
        if failure:
            facts["failure"] = failure
        output.put(layout.run_path(ended, self.run_id, self.folder), json.dumps(facts, indent=2).encode())

    def _environment(self) -> dict[str, Any]:
        """Return the environment, with the devices of the encoders: those of the driver's machine compute nothing."""
        devices = sorted({told.device for told in self.encoders})
        return self.environment | ({"device": ", ".join(devices)} if devices else {})


def _redacted(addresses: str | Sequence[str]) -> str | list[str]:
    return redacted(addresses) if isinstance(addresses, str) else [redacted(uri) for uri in addresses]


def job_before(output: Storage) -> dict[str, Any]:
    """Return the settings of the last run that had something to do, as JSON; {} if there is none."""
    paths = [path for path, _ in environments(output)]
    job = json.loads(output.read(paths[-1])).get("job") if paths else None
    return job if isinstance(job, dict) else {}


def environment(device: str, threads: int, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Return what may change the last bits of a latent: versions (`av` contains FFmpeg), device, threads, engines.

    On CUDA the kernels come from cuDNN and Triton; without Triton the encoder takes its ordinary path.
    """
    facts: dict[str, Any] = {name: version(name) for name in packages}
    facts["python"] = platform.python_version()
    facts["machine"] = platform.machine()
    import torch

    facts["device"] = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device
    facts["cpu"] = torch.backends.cpu.get_cpu_capability()
    facts["threads_per_encoder"] = threads if device == "cpu" else None
    if device == "cuda":
        from vae.engines import cudnn_version, engines

        facts["cudnn"] = cudnn_version()
        facts["cudnn_engines"] = engines()
        facts["triton"] = version("triton") if find_spec("triton") else None
    return facts


def recorded_vae(output: Storage) -> str:
    """Return the checkpoint that the last run was given, without secrets, or "" if no run is recorded.

    It may lie on another machine, or hold other weights by now: compare its digest with that of the Spec.
    """
    for entry in reversed(list(output.list(layout.RUNS))):
        with contextlib.suppress(ValueError, LookupError, TypeError):
            if isinstance(where := json.loads(output.read(entry.path))["job"]["vae"], str):
                return where
    return ""


def warn_of_differences(output: Storage, ours: dict[str, Any], folder: str = layout.RUNS) -> None:
    """Compare this run's environment with that of the first run in the folder, and warn of each difference."""
    first = next((environment for _, environment in environments(output, folder)), ours)
    for name in sorted(ours.keys() | first.keys()):
        is_unknown = name == "device" and ours.get(name) == "cuda"  # no GPU is here; the encoders tell what they have
        if ours.get(name) != first.get(name) and not is_unknown:
            log.warning(
                "%s=%s in this run, %s in the first run of this output: the last bits may differ",
                name,
                ours.get(name),
                first.get(name),
            )


def environments(output: Storage, folder: str = layout.RUNS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, environment) of each recorded run, ordered by time. Runs that had nothing to do are skipped."""
    for entry in output.list(folder):
        try:
            environment = json.loads(output.read(entry.path))["environment"]
        except (ValueError, LookupError, TypeError) as error:
            log.warning("%s cannot be read and is skipped: %s", entry.path, error)
            continue
        if environment and isinstance(environment, dict):
            yield entry.path, environment
