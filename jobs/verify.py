"""latentmill verify: read and check everything in an output, and optionally encode some clips again.

Exit codes: 0 no problems; 1 problems were found (one line each: file, row, what was found and what was expected), or
storage failed; 2 there is no output, or an option is wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jobs.process import run_command
from pipeline.errors import ConfigError, StorageError
from pipeline.output.spec_file import load_spec
from pipeline.output.wording import printable, size
from pipeline.storage import Storage
from pipeline.verify.findings import Problem
from pipeline.verify.whole import verify
from vae.errors import CheckpointError

if TYPE_CHECKING:
    from pipeline.stages.decode_video import Decoder
    from pipeline.stages.encode_chunk import Encoder

COUNTS = ("shards", "remaining", "latents", "latent_bytes", "rejections", "texts", "encoded_again")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify:
    """Options of `latentmill verify`."""

    output: str
    """Path or URL that `latentmill encode` wrote to."""
    reencode: int = 0
    """Number of clips to decode and encode again from the source, chosen from shards without problems.
    If every run of the output had this environment (versions, device, threads), the bytes must be equal.
    Otherwise the difference must be below a bound."""
    seed: int = 0
    """Random seed for the choice of clips."""
    vae: str = ""
    """With --reencode: the checkpoint, as for encode. Default: the one that the last run was given."""
    threads: int | None = None
    """With --reencode: torch threads on a CPU. Default: the number recorded in the output."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """With --reencode: device of the encoder. auto uses a GPU if there is one, as encode does."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object at the end instead of lines: ok, counts, problems, notes, and the clips encoded again."""

    def __post_init__(self) -> None:
        if self.reencode < 0:
            raise ConfigError(f"--reencode must be at least 0 clips, got {self.reencode}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {self.threads}")


def main(argv: Sequence[str] | None = None) -> int:
    """Verify an output and print every problem. The module docstring lists the exit codes."""
    try:
        args = tyro.cli(Verify, args=argv, prog="latentmill verify", description=__doc__)
        return _verify(args)
    except (ConfigError, CheckpointError) as error:
        print(printable(f"latentmill verify: {error}"), file=sys.stderr)
        return 2
    except StorageError as error:
        print(printable(f"latentmill verify: storage: {error}"), file=sys.stderr)
        return 1


@dataclass(slots=True, kw_only=True)
class Report:
    """What a verification found, said line by line as it comes unless JSON is asked for."""

    quiet: bool
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """One line for each clip that was encoded again and agrees."""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))

    def wrong(self, problem: Problem) -> None:
        self.problems.append(problem)
        self._say(f"wrong: {problem}")

    def note(self, line: str) -> None:
        self.notes.append(line)
        self._say(f"note: {line}")

    def agrees(self, line: str) -> None:
        self.again.append(line)
        self._say(f"encoded again: {line}")

    def count(self, **counts: int) -> None:
        for name, number in counts.items():
            self.counts[name] += number

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(printable(line))

    def text(self) -> str:
        """The line that ends the verification."""
        counts, problems = self.counts, len(self.problems)
        line = (
            f"{'wrong' if problems else 'ok'}: {problems} problems in {counts['shards']} shards "
            f"({counts['remaining']} remain), {counts['latents']} latents ({size(counts['latent_bytes'])}), "
            f"{counts['rejections']} rejections"
        )
        line += f", {counts['texts']} text embeddings" if counts["texts"] else ""
        return line + (f", {counts['encoded_again']} clips encoded again" if counts["encoded_again"] else "")

    def as_dict(self) -> dict[str, Any]:
        """The same, JSON-friendly."""
        problems = [asdict(problem) for problem in self.problems]
        agreeing = {"agreeing": self.again}
        return {"ok": not problems, **self.counts, "problems": problems, "notes": self.notes, **agreeing}


def _verify(args: Verify) -> int:
    output, report = Storage(args.output), Report(quiet=args.as_json)
    stages = _stages(args, output, report) if args.reencode else None  # before the long part: it may raise
    sound: dict[str, int] = {}
    for checked in verify(output):
        for problem in checked.problems:
            report.wrong(problem)
        for note in checked.notes:
            report.note(note)
        report.count(remaining=checked.remaining, rejections=checked.rejections, latent_bytes=checked.latent_bytes)
        report.count(texts=checked.texts)
        if checked.shard:
            report.count(shards=1, latents=checked.rows)
            if not checked.problems:
                sound[checked.shard] = checked.rows
    if stages:
        _reencode(args, output, stages, sound, report)
    print(json.dumps(report.as_dict(), indent=2) if args.as_json else printable(report.text()))
    return 1 if report.problems else 0


def _stages(args: Verify, output: Storage, report: Report) -> tuple[Decoder, Encoder, float | None]:
    """Load what encodes clips again: the job's two stages, and the bound of the difference, None for equal bytes.

    Raises:
        ConfigError: there is no video to encode again, or no checkpoint is known.
        CheckpointError: the checkpoint cannot be loaded, or is another one than that of the output.
    """
    import torch

    from pipeline.runs import run_records
    from pipeline.settings.job import Workers
    from pipeline.settings.resolve import largest_clip
    from pipeline.stages.decode_video import Decoder
    from pipeline.stages.encode_chunk import Encoder
    from pipeline.verify.reencode import BOUNDS, differences, recorded_threads
    from vae.info import VAEInfo

    spec = load_spec(output)
    if origin := spec.vae["config"].get("imported_from"):
        raise ConfigError(f"--reencode: these latents were imported from {origin}: there is no video to encode again")
    where = args.vae or run_records.recorded_vae(output)
    if not where:
        raise ConfigError(f"--reencode: no run recorded its checkpoint: name that of {spec.vae['name']} by --vae")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    threads = args.threads or recorded_threads(output)
    try:
        encoder = Encoder(where, spec, device=device, threads=threads, largest=largest_clip(spec.clip))
    except (CheckpointError, ConfigError) as error:
        if args.vae:
            raise
        raise ConfigError(f"--reencode: the checkpoint of the last run, {error}; name it by --vae") from error
    decoder = Decoder(clip=spec.clip, latent=spec.latent, info=VAEInfo(**spec.vae), deadline=Workers().decode_deadline)
    other = differences(output, run_records.environment(device, threads))
    for line in other:
        report.note(line)
    return decoder, encoder, BOUNDS[spec.latent.dtype] if other else None


def _reencode(
    args: Verify,
    output: Storage,
    stages: tuple[Decoder, Encoder, float | None],
    rows: dict[str, int],
    report: Report,
) -> None:
    """Encode some clips of shards without problems again, and compare."""
    from pipeline.verify.reencode import choose, reencode

    decoder, encoder, bound = stages
    for again in reencode(output, choose(rows, args.reencode, args.seed), decoder, encoder, bound):
        for problem in again.problems:
            report.wrong(problem)
        if not again.problems:
            how = "equal bytes" if again.difference == 0 else f"relative difference {again.difference:.2g} <= {bound:g}"
            report.agrees(f"{again.file} row {again.row}: {how}")
        report.count(encoded_again=1)


if __name__ == "__main__":
    run_command(main)
