"""latentmill verify: read everything in an output back, and optionally encode some clips again.

Exit codes: 0 all is well; 1 something is wrong (each line names file, row, what was found and what was expected), or
storage failed; 2 no output there, or a wrong flag.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from jobs.process import run_command
from pipeline.errors import ConfigError, StorageError
from pipeline.output.spec_file import load_spec
from pipeline.output.wording import size
from pipeline.storage import Storage
from pipeline.verify.whole import verify
from vae.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class Verify:
    """What to verify."""

    output: str
    """The output of `latentmill encode`."""
    reencode: int = 0
    """Clips of sound shards to decode and encode again from the source. Equal bytes are demanded where every run of the
    output had this environment (versions, device, threads), a bound on the difference elsewhere."""
    seed: int = 0
    """Chooses the clips."""
    vae: str = ""
    """With --reencode: the checkpoint, as for encode. Not needed for `tiny`."""
    threads: int | None = None
    """With --reencode: torch threads on a CPU. Default: as the output's runs recorded."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """With --reencode: auto takes a GPU where there is one, as encode does."""

    def __post_init__(self) -> None:
        if self.reencode < 0:
            raise ConfigError(f"--reencode must be at least 0 clips, got {self.reencode}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads must be at least 1, got {self.threads}")


def main(argv: Sequence[str] | None = None) -> int:
    """Verify and print what is wrong; see the module for the exit codes."""
    try:
        args = tyro.cli(Verify, args=argv, prog="latentmill verify", description=__doc__)
        return _verify(args)
    except (ConfigError, CheckpointError) as error:
        print(f"latentmill verify: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"latentmill verify: storage: {error}", file=sys.stderr)
        return 1


def _verify(args: Verify) -> int:
    output = Storage(args.output)
    shards = rejections = remaining = num_bytes = problems = 0
    rows: dict[str, int] = {}
    sound: dict[str, int] = {}
    for checked in verify(output):
        for problem in checked.problems:
            print(f"wrong: {problem}")
        for note in checked.notes:
            print(f"note: {note}")
        problems += len(checked.problems)
        remaining += checked.remaining
        rejections += checked.rejections
        num_bytes += checked.latent_bytes
        if checked.shard:
            shards += 1
            rows[checked.shard] = checked.rows
            if not checked.problems:
                sound[checked.shard] = checked.rows
    again = wrong_again = 0
    if args.reencode:
        again, wrong_again = _reencode(args, output, sound)
    problems += wrong_again
    print(
        f"{'wrong' if problems else 'ok'}: {problems} problems in {shards} shards ({remaining} remain), "
        f"{sum(rows.values())} latents ({size(num_bytes)}), {rejections} rejections"
        + (f", {again} clips encoded again" if args.reencode else "")
    )
    return 1 if problems else 0


def _reencode(args: Verify, output: Storage, rows: dict[str, int]) -> tuple[int, int]:
    """Encode again; the number of clips, and of problems among them."""
    import torch

    from pipeline.output import run_records
    from pipeline.settings.job import Workers
    from pipeline.settings.resolve import largest_clip
    from pipeline.stages.decode_video import Decoder
    from pipeline.stages.encode_chunk import Encoder
    from pipeline.verify.reencode import BOUNDS, choose, differences, recorded_threads, reencode
    from vae.checkpoints.tiny import TINY_NAME
    from vae.info import VAEInfo

    spec = load_spec(output)
    where = args.vae or ("tiny" if spec.vae["name"] == TINY_NAME else "")
    if not where:
        raise ConfigError(f"--vae must be given with --reencode: the spec names {spec.vae['name']}, and never a path")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    threads = args.threads or recorded_threads(output)
    encoder = Encoder(where, spec, device=device, threads=threads, largest=largest_clip(spec.clip))
    decoder = Decoder(clip=spec.clip, latent=spec.latent, info=VAEInfo(**spec.vae), deadline=Workers().decode_deadline)
    other = differences(output, run_records.environment(device, threads))
    for line in other:
        print(f"note: {line}")
    bound = BOUNDS[spec.latent.dtype] if other else None
    clips = problems = 0
    for again in reencode(output, choose(rows, args.reencode, args.seed), decoder, encoder, bound):
        for problem in again.problems:
            print(f"wrong: {problem}")
        if not again.problems:
            how = "equal bytes" if again.difference == 0 else f"relative difference {again.difference:.2g} <= {bound:g}"
            print(f"encoded again: {again.file} row {again.row}: {how}")
        clips += 1
        problems += len(again.problems)
    return clips, problems


if __name__ == "__main__":
    run_command(main)
