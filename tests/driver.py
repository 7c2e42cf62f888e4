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
    """A running job. Its Ray lives in a folder of its own."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="lm")
        environment = os.environ | {"RAY_TMPDIR": self._folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "jobs.encode", *arguments]
        self._process = subprocess.Popen(
            command, env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def kill_when(self, moment: Callable[[], bool]) -> None:
        """SIGKILL the driver as soon as `moment` is true, and wait until every worker that it started is gone."""
        self._wait_until(moment)
        descendants = [os.pidfd_open(pid) for pid in _descendants(self._process.pid) if not _is_agent(pid)]
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()
        for descendant in descendants:
            gone, _, _ = select.select([descendant], [], [], 60)
            os.close(descendant)
            assert gone, "a worker outlived its driver by a minute"
        shutil.rmtree(self._folder, ignore_errors=True)

    def starts_processes(self) -> bool:
        """Whether Ray is starting."""
        return bool(_descendants(self._process.pid))

    def stop_when(self, moment: Callable[[], bool]) -> None:
        """SIGTERM the driver as soon as `moment` is true."""
        self._wait_until(moment)
        self._process.send_signal(signal.SIGTERM)

    def finish(self, code: int = 0) -> str:
        """Wait for the end, demand this exit code, return what it printed."""
        output = self._output()
        assert self._process.returncode == code, output
        shutil.rmtree(self._folder, ignore_errors=True)
        return output

    def _wait_until(self, moment: Callable[[], bool]) -> None:
        while not moment():
            assert self._process.poll() is None, f"ended before the moment came:\n{self._output()}"
            select.select([], [], [], 0.02)

    def _output(self) -> str:
        return self._process.communicate(timeout=300)[0].decode()


def _is_agent(pid: int) -> bool:
    """Ray's two agents notice the end of their node after a minute only; they touch no output."""
    return b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _descendants(root: int) -> list[int]:
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
