"""Job, the settings of one run: the argument of `pipeline.run.run`, and the source of the command line's options."""

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
    """Worker processes. They do not change the output, except that `threads_per_encoder` may change its last bits."""

    decode_cpus: float = 0.5
    """CPUs reserved per decode task, which uses one thread. 1 means half as many decode processes.
    By default two run per core, because a task waits for its source and, 0.1 s each time, for Ray Data."""
    encoders: str = "auto"
    """Number of encode actors, or `min:max`. auto: one per GPU; without GPUs, one per CPU except one CPU.
    Without GPUs, if encoding is the bottleneck, one per CPU is faster. Each actor takes seconds to start."""
    gpus_per_encoder: float | None = None
    """GPUs per encode actor. Default: 1 if the cluster has any, else 0."""
    threads_per_encoder: int = 1
    """Torch threads (and reserved CPUs) of an encoder on a CPU."""
    ray_address: str = "local"
    """`local` starts a separate local Ray; `auto` or an address joins a cluster."""
    object_store_gb: float | None = None
    """Memory for decoded frames, with a local Ray. Default: Ray's, 30 percent of the machine's memory."""
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
        """Return the (min, max) number of encode actors on a cluster of this size.

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
    """The videos: tars (a path or a glob), a folder, or a table (Parquet, JSONL, CSV) with a column `video`.
    A local path, s3:// or any fsspec URL. May be given several times."""
    output: str
    """Where to write the latents: a local folder or any fsspec URL.
    An output has one Spec. The same command again resumes the run."""
    vae: str
    """`tiny` (for tests and demos), or a checkpoint: a folder, file, URL or Hugging Face repository id."""
    clip: ClipRule = field(default_factory=ClipRule)
    latent: LatentRule = field(default_factory=LatentRule)
    workers: Workers = field(default_factory=Workers)
    scale: str | None = None
    """Scale of the latents, (z - shift) * scale, in place of the checkpoint's: one number, or one for each channel
    with commas between. `latentmill stats` prints the values that fit an output."""
    shift: str | None = None
    """Shift of the latents, like --scale. Write it with `=` if it begins with a minus: --shift=-0.1."""
    shard_size: int = 64
    """Videos or table rows per shard, for sources that are not tars. Fixed by the first plan."""
    on_changed: Literal["refuse", "keep"] = "refuse"
    """If a source object has changed since it was planned (size or ETag). refuse: do not run.
    keep: keep the plan and run without the shards of this object."""
    allow_private: bool = False
    """Allow tables to name web addresses inside the local network. Off by default: a table may be untrusted."""
    allow_local: bool = False
    """Allow a table on S3 or the web to name files of this machine. Off by default: a table may be untrusted."""
    max_rejected: float | None = None
    """Exit with code 3 if more than this fraction of the clips is rejected. Committed shards stay.
    Default: 0.99, so a run that made nothing does not look like a success. 1 accepts it."""
    keep_going: bool = False
    """Go on when the first shards (at least 3, of at least 100 clips) have no latent and one reason for all rejections.
    By default such a run finishes what is open, and exits with code 3."""
    limit: int | None = None
    """Plan and process only this many shards. A later run without --limit continues with the rest."""
    retry_rejected: tuple[str, ...] = ()
    """Try clips again that were rejected for these reasons (`corrupt,not_found`, or the option several times).
    They are written as new shards; existing files do not change."""
    give_up_after: int | None = None
    """Reject a video as `unreachable` after its source (for example a dead host in a table) failed in this many runs.
    Default: never, and its shard is not committed. `--retry-rejected unreachable` tries it again.
    The result depends on the network."""
    grace: float = 60.0
    """Seconds to finish open work after SIGTERM. Then the command exits with code 75, which means: run it again."""
    log_json: bool = False
    """Write the log as JSON, one event a line: shard_committed, clip_rejected, claim_taken_over, progress and so on."""
    dry_run: bool = False
    """Plan, print what would be done, and write nothing."""

    def __post_init__(self) -> None:
        for name in ("source", "retry_rejected"):  # from Python: a single string would be iterated by character
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, (given,))
            elif not isinstance(given, tuple | list) or not all(isinstance(one, str) for one in given):
                raise ConfigError(f"{name} must be a text, or several in a tuple, got {given!r}")
        for name in ("output", "vae"):
            if not isinstance(given := getattr(self, name), str):
                raise ConfigError(f"{name} must be a text, got {given!r}")
        if not self.source:
            raise ConfigError("--source must be given at least once")
        if self.shard_size < 1:
            raise ConfigError(f"--shard-size must be at least 1, got {self.shard_size}")
        if self.max_rejected is not None and not 0 <= self.max_rejected <= 1:
            raise ConfigError(f"--max-rejected must lie in [0, 1], got {self.max_rejected}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit must be at least 1, got {self.limit}")
        if self.give_up_after is not None and self.give_up_after < 1:
            raise ConfigError(f"--give-up-after must be at least 1 run, got {self.give_up_after}")
        if unknown := sorted(self.retry_reasons - REASONS):
            raise ConfigError(f"--retry-rejected must name reasons among {', '.join(sorted(REASONS))}; got {unknown}")
        if self.retry_rejected and self.limit is not None:
            raise ConfigError(
                f"--retry-rejected reads every committed shard, so it does not take --limit, got {self.limit}"
            )

    @property
    def keeps_going(self) -> bool:
        """Whether the run goes on when its first shards are all refused. Retries may well be refused again."""
        return self.keep_going or bool(self.retry_rejected)

    @property
    def retry_reasons(self) -> frozenset[str]:
        """The reasons of `retry_rejected`, from one comma-separated value or several values."""
        return frozenset(reason.strip() for given in self.retry_rejected for reason in given.split(","))


def local_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
