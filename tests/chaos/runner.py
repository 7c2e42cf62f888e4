"""The job as a process of its own: `python -m tests.chaos.runner ORDER`, with the order as JSON (see lab.py)."""

from __future__ import annotations

import json
import logging
import resource
import sys
from functools import partial

from jobs.encode import exit_code
from jobs.process import carry_out, report_errors, run_command
from pipeline.control import pools
from pipeline.run import run
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job, Workers
from pipeline.settings.spec import LatentRule
from tests.chaos import stages

CLIP = ClipRule(num_frames=17, height=32, width=48, fps="24", clips="all")
LATENT = LatentRule(chunk_windows=1, context="1", posterior="sample")


def main(order: dict[str, object]) -> int:
    """Run the job; the exit codes are those of `latentmill encode`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pools.IO_BLOCK_BYTES = order["block_bytes"]  # how records are grouped for transport never changes a value
    plot = stages.Plot(**(order["plot"] | {"armed": tuple(order["plot"]["armed"])}))
    workers = Workers(**order["workers"])
    job = Job(
        source=(order["source"],), output=order["output"], vae="tiny", clip=CLIP, latent=LATENT, workers=workers,
        grace=order["grace"],
    )  # fmt: skip
    whole = partial(
        run, job, decode=partial(stages.decode, plot), encode=partial(stages.load_encoder, plot), echo_seconds=5
    )
    return report_errors("encode", lambda: exit_code(carry_out(lambda echo, _: whole(echo=echo), log_json=False), job))


if __name__ == "__main__":
    run_command(lambda: main(json.loads(sys.argv[1])))
