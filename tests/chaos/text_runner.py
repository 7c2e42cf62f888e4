"""`latentmill text` as a process of its own, with an encoder that takes its time: see lab.py."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import pipeline.text.run
from jobs.process import carry_out, report_errors, run_command
from pipeline.text.job import TextJob, TextWorkers
from pipeline.text.stages import Encode, load_encoder
from tests.chaos.stages import Plot, note


class SlowEncoder:
    """The real encoder, which notes each shard that it begins, and pauses."""

    def __init__(self, plot: Plot, *args: Any, **options: Any) -> None:
        self._plot = plot
        self._encode: Encode = load_encoder(*args, **options)

    def __call__(self, captions: Iterable[str]) -> Any:
        captions = list(captions)
        note(self._plot, max(captions))
        time.sleep(self._plot.pause)
        return self._encode(captions)


def main(order: dict[str, Any]) -> int:
    """Run the job; the exit codes are those of `latentmill text`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipeline.text.run.IO_BLOCK_BYTES = order["block_bytes"]
    plot = Plot(**(order["plot"] | {"armed": tuple(order["plot"]["armed"])}))
    job = TextJob(
        output=order["output"],
        encoder=order["encoder"],
        dtype="float32",
        workers=TextWorkers(**order["workers"]),
        grace=order["grace"],
    )
    run = partial(pipeline.text.run.run, job, encode=partial(SlowEncoder, plot), echo_seconds=2)
    return report_errors("text", lambda: carry_out(lambda echo, _: run(echo=echo), log_json=False).exit_code())


if __name__ == "__main__":
    run_command(lambda: main(json.loads(sys.argv[1])))
