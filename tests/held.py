"""A job that stands still at a chosen moment: `python -m tests.held ORDER`, with the order as JSON.

The moment is held for ever: by the encoder, or in front of the function that makes it. `mark` appears when it has come.
Moments after the stream need a source without a clip.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pipeline.run
from jobs.encode import exit_code
from jobs.process import run_command
from pipeline.records import Chunk, Latent
from pipeline.settings.clip_rule import ClipRule
from pipeline.settings.job import Job

HELD = {"before Ray": "make_plan", "in a commit": "commit", "sealing": "seal"}
"""By moment: the function of `pipeline.run` in front of which the job stands still."""

MOMENTS = ("before Ray", "while Ray starts", "in the stream", "in a commit", "sealing")


def stand_still(mark: str) -> NoReturn:
    Path(mark).touch()
    parent = os.getppid()
    while os.getppid() == parent:  # a test that is killed leaves nothing behind
        select.select([], [], [], 0.1)
    os._exit(1)


@dataclass(frozen=True)
class HeldEncoder:
    """Encodes nothing."""

    mark: str

    def __call__(self, chunk: Chunk) -> Latent:
        stand_still(self.mark)


def held_encoder(mark: str, *_args: Any, **_kwargs: Any) -> Callable[[Chunk], Latent]:
    return HeldEncoder(mark)


def main(order: dict[str, str]) -> int:
    """Run the job; the exit codes are those of `latentmill encode`."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    moment, mark = order["moment"], order["mark"]
    if moment in HELD:
        setattr(pipeline.run, HELD[moment], lambda *_args, **_kwargs: stand_still(mark))
    clip = ClipRule(num_frames=9, height=64, width=96)
    source, grace = (order["source"],), float(order["grace"])
    job = Job(source=source, output=order["output"], vae="tiny", clip=clip, grace=grace, max_rejected=1)
    summary = pipeline.run.run(job, encode=partial(held_encoder, mark))
    print(summary.table())
    return exit_code(summary, job)


if __name__ == "__main__":
    run_command(lambda: main(json.loads(sys.argv[1])))
