"""Kills and poison on one machine: the driver, decode workers, encode actors, clips that kill, a stop, two runs."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.lab import Lab, LawBrokenError, Run, skip_time
from tests.chaos.laws import Files, Verdicts, local_paths, reader, repeated

KILLS_PER_OUTPUT = 6
"""After so many the run is left in peace: what was killed is to end."""

OK, LEFT, STOPPED = 0, 1, 75


@dataclass(slots=True)
class Result:
    """One row of the table."""

    name: str
    kills: int = 0
    lost: int = 0
    twice: int = 0
    again: int = 0
    """Chunks that an encoder began more than once."""
    begun: int = 0
    """Chunks that encoders began in all."""
    broken: list[str] = field(default_factory=list)
    note: str = ""
    skipped: str = ""

    def add(self, lab: Lab, files: Files, verdicts: Verdicts, paths: list[str], diary: Path) -> None:
        """Hold an output that is through against the laws."""
        found = lab.work.check(files, lab.expected, verdicts, paths)
        self.lost += found.lost
        self.twice += found.twice
        self.broken += found.broken
        again, begun = repeated(diary)
        self.again += again
        self.begun += begun


Scenario = Callable[[Lab, Result, int], None]
"""Takes the lab, the row to fill, and how many kills it is to make (for those that kill)."""


@contextmanager
def watched(lab: Lab, result: Result, verdicts: Verdicts | None = None) -> Iterator[Path]:
    """A new local output, read all the time; at the end the laws are checked."""
    output = lab.output()
    lab.fill(output)
    with reader(lambda: lab.files(output), lab.expected, poisoned=bool(verdicts)) as wrong:
        yield output
    result.broken += wrong
    diary = lab.folder / f"{output.name}.diary"
    result.add(lab, lab.files(output), verdicts or {}, local_paths(output), diary)


def moment(lab: Lab, run: Run, output: Path, rng: random.Random) -> bool:
    """Wait for a random moment of a run: of its whole time, or some files into it. False: it ended before."""
    if rng.random() < 0.3:
        end = time.monotonic() + rng.uniform(0, 1.5 * lab.seconds)
        return run.wait(lambda: time.monotonic() > end)
    known, target = _names(output), rng.randint(1, lab.work.most_new)
    if not run.wait(lambda: len(_names(output) - known) >= target):
        return False
    end = time.monotonic() + rng.uniform(0, 0.2)
    return run.wait(lambda: time.monotonic() > end)


def _names(output: Path) -> set[str]:
    return {
        str(path)
        for folder in ("data", "_staging", "index", "text", "_claims")
        for path in output.glob(f"{folder}/**/*")
    }


def claims(output: Path) -> list[Path]:
    """The claims of a local output."""
    return [path for path in output.glob("_claims/**/*") if path.is_file()]


def resume(lab: Lab, result: Result, output: Path) -> None:
    """Run until done; a run that ends with something left must leave less each time."""
    skip_time(output)
    for _ in range(3):
        if lab.start(output, pause=0.0).expect(OK, LEFT) == OK:
            return
        result.note = "needed another run"
    raise LawBrokenError("three runs without a fault left something")


def kill_driver(lab: Lab, result: Result, kills: int) -> None:
    """SIGKILL of the driver, from its first second to its last."""
    rng = lab.rng("driver")
    while result.kills < kills:
        with watched(lab, result) as output:
            for _ in range(KILLS_PER_OUTPUT):
                run = lab.start(output, block_bytes=rng.choice((1, 100_000, 20_000_000)))
                killed = moment(lab, run, output, rng) and run.signal(signal.SIGKILL)
                code = run.end()
                result.kills += killed
                if code == OK:
                    break
                if code != -signal.SIGKILL:
                    raise LawBrokenError(f"exit code {code}:\n{run.tail()}")
                if rng.random() < 0.5:  # else the next run finds claims that are young, and whose driver is gone
                    skip_time(output)
                if result.kills >= kills:
                    break
            resume(lab, result, output)


def kill_workers(stage: str) -> Scenario:
    """SIGKILL of processes of one stage, several in each run."""

    def scenario(lab: Lab, result: Result, kills: int) -> None:
        rng = lab.rng(stage)
        while result.kills < kills:
            with watched(lab, result) as output:
                run = lab.start(output, block_bytes=rng.choice((1, 100_000, 20_000_000)))
                before = result.kills
                while min(kills, before + KILLS_PER_OUTPUT) > result.kills:
                    if not run.wait(lambda run=run: bool(run.workers(stage))):
                        break
                    end = time.monotonic() + rng.expovariate(1.0)
                    if not run.wait(lambda end=end: time.monotonic() > end):
                        break
                    seen = run.noted
                    if rng.random() < 0.7 and not run.wait(lambda run=run, seen=seen: _busy(run, stage, seen)):
                        break
                    result.kills += any(process.kill() for process in run.workers(stage)[:1])
                if run.expect(OK, LEFT) == LEFT:
                    resume(lab, result, output)
            if result.kills == before:
                raise LawBrokenError(f"no process of the stage {stage} was ever seen")

    return scenario


def _busy(run: Run, stage: str, seen: int) -> bool:
    """Whether work is under way: a decode task exists only then, an encoder has just noted the chunk that it begins."""
    return run.noted > seen if stage == "Encode" else bool(run.workers(stage))


def poisoned_decoder(lab: Lab, result: Result, kills: int) -> None:
    """A decoder that segfaults, hangs (holding the GIL) or eats memory: each on one clip, two of them in one shard."""
    verdicts = {
        ("segfault-01", 1): "decode_crashed",
        ("hang-03", 1): "decode_timeout",
        ("memory-12", 1): "decode_crashed",
    }
    with watched(lab, result, verdicts) as output:
        run = lab.start(output, armed=("segfault", "hang", "memory"), decode_deadline=30.0, pause=0.0)
        if run.expect(OK, LEFT) == LEFT:
            result.broken.append(f"something left:\n{run.tail()}")


def poisoned_encoder(lab: Lab, result: Result, kills: int) -> None:
    """An encoder that is out of memory always on one clip, once or twice on others; a device that fails on one."""
    with watched(lab, result, {("oom_always-14", 1): "encode_crashed"}) as output:
        run = lab.start(output, armed=("oom_always", "oom_once", "oom_twice", "device_once"), pause=0.0)
        if run.expect(OK, LEFT) == LEFT:
            result.broken.append(f"something left:\n{run.tail()}")


def stop(lab: Lab, result: Result, kills: int) -> None:
    """SIGTERM: what is open is finished within the grace period, and the exit code says "resume me"."""
    rng = lab.rng("stop")
    while result.kills < kills:
        with watched(lab, result) as output:
            run = lab.start(output, grace=(grace := rng.choice((0.5, 60.0))))
            if moment(lab, run, output, rng):
                result.kills += run.signal(signal.SIGTERM)
            asked = time.monotonic()
            run.wait()
            in_time = time.monotonic() - asked < grace
            code = run.end()
            # Before the job is up there is nothing to finish, and SIGTERM is what it always is.
            early = code in (-signal.SIGTERM, signal.SIGTERM) and lab.work.rate not in run.tail()
            if code not in (OK, STOPPED) and not early:
                result.broken.append(f"exit code {code} after SIGTERM:\n{run.tail()}")
            if code == STOPPED and claims(output):
                result.broken.append("claims left after a stop")
            if in_time and code == STOPPED and list(output.glob("_staging/*/*.part")):
                result.broken.append("a shard that was open is not finished, and the grace period was not over")
            resume(lab, result, output)


def two_runs(lab: Lab, result: Result, kills: int) -> None:
    """Two runs at once on one output: both end well, and no chunk is encoded by both."""
    with watched(lab, result) as output:
        first = lab.start(output, pause=0.5)
        if not first.wait(lambda: bool(claims(output))):
            raise LawBrokenError(f"it ended without a claim:\n{first.tail()}")
        second = lab.start(output, pause=0.5)
        for run in (first, second):
            run.wait()
        for run in (first, second):
            run.expect(OK)
        if "another run" not in first.tail(100_000):  # they write one log
            result.broken.append(f"they did not meet:\n{first.tail()}")
    if result.again:
        result.broken.append(f"{result.again} chunks were encoded by both")
