"""What one run is asked to do. The command line is made of these dataclasses; `pipeline.run.run` takes the Job."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.records import REASONS
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.spec import LatentRule


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Who does the work. Nothing here changes a byte of the output, but `threads_per_encoder` its last bits."""

    decode_cpus: float = 0.5
    """CPUs reserved per decode task, which uses one thread. Two to a core, because one waits for its source and, 0.1 s
    each time, for Ray Data's next look. 1 means half as many decode processes."""
    encoders: str = "auto"
    """Encode actors, `min:max` or one number. auto: one per GPU; without GPUs one per CPU but one. (Where encoding is
    the bottleneck, one for each is faster, and each costs seconds to start.)"""
    gpus_per_encoder: float | None = None
    """GPUs per encode actor; default 1 if the cluster has any, else 0."""
    threads_per_encoder: int = 1
    """torch threads (and CPUs reserved) of an encoder on a CPU."""
    ray_address: str = "local"
    """`local` starts a Ray of its own that joins no other; `auto` or an address joins a cluster."""
    object_store_gb: float | None = None
    """Memory for frames in flight, with a local Ray. Default: Ray's own choice, 30 percent of the machine."""
    decode_deadline: float = 600.0
    """Seconds after which decoding one clip counts as a hang."""
    encode_deadline: float = 1800.0
    """Seconds after which encoding one chunk counts as a hang."""

    def __post_init__(self) -> None:
        if self.decode_cpus <= 0:
            raise ConfigError(f"--decode-cpus must be above 0, got {self.decode_cpus}")
        if self.threads_per_encoder < 1:
            raise ConfigError(f"--threads-per-encoder must be at least 1, got {self.threads_per_encoder}")
        if self.decode_deadline <= 0 or self.encode_deadline <= 0:
            got = f"{self.decode_deadline:g} and {self.encode_deadline:g}"
            raise ConfigError(f"--decode-deadline and --encode-deadline must be above 0 seconds, got {got}")
        self.pool_size(cpus=2, gpus=0)

    def pool_size(self, cpus: float, gpus: float) -> tuple[int, int]:
        """(min, max) encode actors on a cluster of this size.

        Raises:
            ConfigError: `encoders` is not `auto`, a number, or `min:max` with 1 <= min <= max.
        """
        if self.encoders == "auto":
            per_encoder = self.gpus_per_encoder or 1.0
            most = int(gpus / per_encoder) if gpus else int((cpus - self.decode_cpus) / self.threads_per_encoder)
            return 1, max(most, 1)
        low, _, high = self.encoders.partition(":")
        if not low.isdecimal() or not (high or low).isdecimal() or not 1 <= int(low) <= int(high or low):
            raise ConfigError(
                f"--encoders must be `auto`, a number, or `min:max` with 1 <= min <= max, got {self.encoders!r}"
            )
        return int(low), int(high or low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Encode shards of video into shards of scaled latents."""

    source: tuple[str, ...]
    """Where the videos are: tars (a path or a glob), a folder, or a table (Parquet, JSONL, CSV with a column `video`);
    local, s3:// or any fsspec URL. May be given several times."""
    output: str
    """Where the latents go: a local folder or any fsspec URL. One output holds one Spec; running again resumes."""
    vae: str
    """`tiny` (untrained, for tests and demos), or a checkpoint: a folder, file, URL or Hugging Face repository id."""
    clip: ClipRule = field(default_factory=ClipRule)
    latent: LatentRule = field(default_factory=LatentRule)
    workers: Workers = field(default_factory=Workers)
    shard_size: int = 64
    """Files or table rows per shard, for sources that are not tars. Frozen with the first plan."""
    on_changed: Literal["refuse", "keep"] = "refuse"
    """A source object that is not the one planned (size or ETag): refuse to run, or keep the plan and go on without
    the shards that it belongs to."""
    allow_private: bool = False
    """Let a table name web addresses inside the local network. Refused by default: tables may come from anybody."""
    allow_local: bool = False
    """Let a table that lies elsewhere (S3, the web) name files of this machine. Refused by default, as above."""
    max_rejected: float = 1.0
    """Exit with code 3 when more than this fraction of the clips is rejected. What is committed stays."""
    limit: int | None = None
    """Plan and process the first so many shards only. A later run without it goes on with the rest."""
    retry_rejected: tuple[str, ...] = ()
    """Second chances: try again, as new shards, what was rejected for these reasons (`corrupt,not_found`, or the flag
    several times). The files that are there stay as they are."""
    give_up_after: int | None = None
    """Reject a video as `unreachable` when its source (a dead host in a table, say) failed in so many runs. Default:
    never, its shard stays open. `--retry-rejected unreachable` tries it again. Depends on the network."""
    grace: float = 60.0
    """Seconds to finish what is open after SIGTERM, before exiting with code 75: resume me."""
    dry_run: bool = False
    """Plan, print what would be done, and write nothing."""

    def __post_init__(self) -> None:
        for name in ("source", "retry_rejected"):  # one alone, as from Python: a string is iterated by character
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, (given,))
        if not self.source:
            raise ConfigError("--source must be given at least once")
        if self.shard_size < 1:
            raise ConfigError(f"--shard-size must be at least 1, got {self.shard_size}")
        if not 0 <= self.max_rejected <= 1:
            raise ConfigError(f"--max-rejected must lie in [0, 1], got {self.max_rejected}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit must be at least 1, got {self.limit}")
        if self.give_up_after is not None and self.give_up_after < 1:
            raise ConfigError(f"--give-up-after must be at least 1 run, got {self.give_up_after}")
        if unknown := sorted(self.retry_reasons - REASONS):
            raise ConfigError(f"--retry-rejected must name reasons among {', '.join(sorted(REASONS))}; got {unknown}")
        if self.retry_rejected and self.limit is not None:
            raise ConfigError(
                f"--retry-rejected looks at every committed shard: it goes with no --limit, got {self.limit}"
            )

    @property
    def retry_reasons(self) -> frozenset[str]:
        """The reasons of `retry_rejected`, however they were given."""
        return frozenset(reason.strip() for given in self.retry_rejected for reason in given.split(","))


def local_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
