"""A Ray head node with its dashboard, on the loopback, that can be lost and come back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.driver import descendants
from tests.machines import NODE, START

PATIENCE = 120.0


class Head:
    """`with Head(port, dashboard_port) as head`: it answers until it is lost."""

    def __init__(self, port: int, dashboard_port: int) -> None:
        self.dashboard = f"http://127.0.0.1:{dashboard_port}"
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
        self._folder = Path(tempfile.mkdtemp(prefix="lm"))
        options = ["--head", "--port", str(port), "--temp-dir", str(self._folder)]
        options += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
        self._command = [sys.executable, "-c", START, "start", *options, *NODE]

    @property
    def pid(self) -> int:
        """The process that started all others."""
        return self._process.pid

    def __enter__(self) -> Self:
        self._kept = {name: os.environ.get(name) for name in self.token}
        os.environ |= self.token
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._kill()
        for name, value in self._kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(self._folder, ignore_errors=True)

    def restart(self) -> None:
        """Lose the head with all its processes, and start another one at its place."""
        self._kill()
        self._start()

    def _start(self) -> None:
        log = self._folder.with_suffix(".log")
        environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                self._command, env=environment, cwd=tempfile.gettempdir(), stdout=file, stderr=file, process_group=0
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()

    def _answers(self) -> bool:
        request = urllib.request.Request(
            f"{self.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {self.token['RAY_AUTH_TOKEN']}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except OSError:
            return False

    def _kill(self) -> None:
        for pid in [*descendants(self._process.pid), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
