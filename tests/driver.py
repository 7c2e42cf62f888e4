"""`latentmill encode` as a process of its own: start it, kill its driver, and see it and all it started gone."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path


class Driver:
    """A running job, in a process group of its own. Its Ray lives in a folder of its own."""

    def __init__(self, arguments: Sequence[str], module: str = "jobs.encode") -> None:
        self._folder = tempfile.mkdtemp(prefix="lm")
        environment = os.environ | {"RAY_TMPDIR": self._folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", module, *arguments]
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=Path(__file__).parents[1],
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def kill_when(self, moment: Callable[[], bool]) -> None:
        """SIGKILL the driver as soon as `moment` is true, and wait until every process that it started is gone."""
        self.wait_until(moment)
        left = [os.pidfd_open(pid) for pid in descendants(self._process.pid)]
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        for descendant in left:
            end = select.poll()  # select refuses the descriptors over 1023 of a process with many
            end.register(descendant, select.POLLIN)
            gone = end.poll(600_000)
            os.close(descendant)
            assert gone, "a worker outlived its driver by ten minutes"
        shutil.rmtree(self._folder, ignore_errors=True)

    def starts_processes(self) -> bool:
        """Whether Ray is starting."""
        return bool(descendants(self._process.pid))

    def signal_when(self, moment: Callable[[], bool], number: int = signal.SIGTERM, *, to_group: bool = False) -> None:
        """Signal the driver, or its whole process group, as soon as `moment` is true."""
        self.wait_until(moment)
        (os.killpg if to_group else os.kill)(self._process.pid, number)

    def printed(self) -> str:
        """What it printed so far."""
        return os.pread(self._printed.fileno(), 1 << 24, 0).decode()

    def finish(self, code: int = 0) -> str:
        """Wait for the end, demand this exit code, return what it printed."""
        self._process.wait(timeout=600)
        output = self.printed()
        assert self._process.returncode == code, output
        shutil.rmtree(self._folder, ignore_errors=True)
        return output

    def wait_until(self, moment: Callable[[], bool]) -> None:
        while not moment():
            assert self._process.poll() is None, f"ended before the moment came:\n{self.printed()}"
            select.select([], [], [], 0.02)


def descendants(root: int) -> list[int]:
    """Every process that has `root` among its ancestors."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # ended meanwhile
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]
