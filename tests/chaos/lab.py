"""Where the runs happen: the source, the undisturbed run, and runs as processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.laws import Files, local_files
from tests.chaos.processes import Process, below, sweep
from tests.chaos.work import Work

ROOT = Path(__file__).parents[2]

RUN_SECONDS = 400.0
"""No run of the chaos source takes so long: one that does hangs, which breaks a law."""

LEAVE_SECONDS = 120.0
"""How long the processes of an ended run may take to go: workers are nice, and the machine may be busy."""

LONG_AGO = 7200.0
"""Seconds; older than any claim or temporary file that counts as alive."""


class LawBrokenError(AssertionError):
    """What a chaos run found."""


@dataclass(slots=True)
class Lab:
    """A folder with everything of one session of chaos."""

    folder: Path
    seed: int
    work: Work
    settings: dict[str, Any] = field(default_factory=dict)
    """What the runner of this work needs, as JSON."""
    given: Files = field(default_factory=dict)
    """What an output holds before the first run."""
    undisturbed: Path = Path()
    seconds: float = 0.0
    """What the undisturbed run took."""
    runs: list[Run] = field(default_factory=list)
    _numbers: int = 0

    def prepare(self) -> None:
        """Make what the job needs and run it once, in peace."""
        self.settings, self.given = self.work.make(self.folder, self.seed)
        self.undisturbed = self.output()
        self.fill(self.undisturbed)
        start = time.monotonic()
        self.start(self.undisturbed, pause=0.0).expect(0)
        self.seconds = time.monotonic() - start

    def rng(self, name: str) -> random.Random:
        """The dice of one scenario."""
        return random.Random(f"{self.seed}/{name}")

    def output(self) -> Path:
        """The folder of a new output, which is not made yet."""
        self._numbers += 1
        return self.folder / f"out{self._numbers}"

    def fill(self, output: Path) -> None:
        """Put what is given into a new output."""
        for path, data in self.given.items():
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_bytes(data)

    def files(self, output: Path) -> Files:
        """What the job has made in a local output."""
        return local_files(output, self.work.folder)

    @property
    def expected(self) -> Files:
        """What the undisturbed run made."""
        return self.files(self.undisturbed)

    def start(self, output: Path | str, **order: Any) -> Run:
        """Start the job. An order: pause, armed, block_bytes, grace, settings, environment, or a field of Workers."""
        run = Run(self, output, order)
        self.runs.append(run)
        return run

    def sweep(self) -> None:
        """End every run that still goes on, with all that belongs to it."""
        for run in self.runs:
            run.kill()
        self.runs.clear()


@contextlib.contextmanager
def lab(seed: int, work: Work) -> Iterator[Lab]:
    """A lab in a new folder, ready; nothing of it is left afterwards, not a process either."""
    folder = Path(tempfile.mkdtemp(prefix="lmchaos"))
    new = Lab(folder=folder, seed=seed, work=work)
    try:
        new.prepare()
        yield new
    finally:
        new.sweep()
        shutil.rmtree(folder, ignore_errors=True)


class Run:
    """One run of the job, as a process."""

    def __init__(self, lab: Lab, output: Path | str, order: dict[str, Any]) -> None:
        name = str(output).rpartition("/")[2]
        self.output = output
        self.diary = lab.folder / f"{name}.diary"
        self.log = lab.folder / f"{name}.log"
        self._ray = tempfile.mkdtemp(prefix="lm", dir=tempfile.gettempdir())
        environment = os.environ | {"RAY_TMPDIR": self._ray, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment |= order.pop("environment", {})
        plot = {"armed": order.pop("armed", ()), "pause": order.pop("pause", 0.1), "diary": str(self.diary)}
        settings = {
            **lab.settings,
            **order.pop("settings", {}),
            "output": str(output),
            "plot": plot,
            "block_bytes": order.pop("block_bytes", 100_000),
            "grace": order.pop("grace", 30.0),
            "workers": {"object_store_gb": 0.2} | order,
        }
        command = [sys.executable, "-m", lab.work.runner, json.dumps(settings)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self._family: set[Process] = set()
        self._looked = 0.0

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def noted(self) -> int:
        """Bytes that the encoders of this output have noted so far."""
        return self.diary.stat().st_size if self.diary.exists() else 0

    def signal(self, number: signal.Signals) -> bool:
        """Send the driver a signal; False if it had ended."""
        if not self.alive:
            return False
        self._family |= set(below(self._process.pid))
        self._process.send_signal(number)
        return True

    def kill(self) -> None:
        """End the run and all that belongs to it, now."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        sweep(self._family, 0.0)
        shutil.rmtree(self._ray, ignore_errors=True)

    def workers(self, stage: str) -> list[Process]:
        """The processes of this run's own Ray that work for a stage right now."""
        return [
            process
            for process in below(self._process.pid)
            if process.title.startswith("ray::") and f"({stage}" in process.title
        ]

    def wait(self, moment: Callable[[], bool] = lambda: False, seconds: float = RUN_SECONDS) -> bool:
        """Wait for a moment (True) or the end of the run (False).

        Raises:
            LawBrokenError: neither came in time. The run is killed.
        """
        end = time.monotonic() + seconds
        while self.alive:
            if moment():
                return True
            if time.monotonic() > end:
                self.kill()
                raise LawBrokenError(f"the run did not end in {seconds:g} s:\n{self.tail()}")
            if time.monotonic() > self._looked + 0.5:
                self._family |= set(below(self._process.pid))
                self._looked = time.monotonic()
            time.sleep(0.02)
        return False

    def end(self) -> int:
        """Wait for the end of the run and of all its processes; the exit code."""
        self.wait()
        left = sweep(self._family, LEAVE_SECONDS)
        shutil.rmtree(self._ray, ignore_errors=True)
        if left:
            raise LawBrokenError(f"left running after the end: {[process.title for process in left]}")
        return self._process.returncode

    def expect(self, *codes: int) -> int:
        """`end`, with one of these exit codes."""
        if (code := self.end()) not in codes:
            raise LawBrokenError(f"exit code {code}, expected {codes}:\n{self.tail()}")
        return code

    def tail(self, num_bytes: int = 3000) -> str:
        """The end of what the run said."""
        return self.log.read_text(errors="replace")[-num_bytes:]


def skip_time(output: Path) -> None:
    """Let two hours pass for what a dead run left: its claims, and temporary files."""
    then = time.time() - LONG_AGO
    for path in (*output.rglob("_claims/**/*"), *output.glob("_staging/_tmp/*")):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (then, then))
