"""Three Ray nodes on one machine, each with files of its own: a mount namespace with an empty disk over one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.driver import descendants

ROOT = Path(__file__).parents[1]
NODE = ["--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--object-store-memory", "100000000", "--block"]
START = """
from ray._private import services
services.get_node_ip_address = lambda *_: "127.0.0.1"  # or it replaces 127.0.0.1, and listens on every interface
from ray.scripts.scripts import main
main()
"""


def can_unshare() -> bool:
    """Whether this user may make mount namespaces."""
    return not subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode


@dataclass
class Machines:
    """The nodes; the driver runs on the first one."""

    folder: Path
    """Looks the same on every node, and is another empty disk on each."""
    address: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """What a process must know to join; a head with a token in the user's home would demand that one."""

    @property
    def _environment(self) -> dict[str, str]:
        ours = {"XDG_CACHE_HOME": f"{self.folder}/cache", "PYTHONPATH": str(ROOT)}
        return os.environ | ours | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def add(self, *options: str) -> None:
        """Start a node."""
        ray = [sys.executable, "-c", START, "start", *options, *NODE]
        script = f'mount -t tmpfs tmpfs {self.folder} && exec "$@"'
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *ray]
        log = Path(tempfile.gettempdir(), f"{self.folder.name}-{len(self.started)}.log")
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=self._environment, stdout=file, stderr=file, process_group=0)
        self.started.append(process)

    def on(self, node: int, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command with the files of a node."""
        inside = ["nsenter", "--mount", "--target", str(self.started[node].pid), f"--wdns={ROOT}"]
        environment = self._environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # so it takes 127.0.0.1, too
        return subprocess.run([*inside, *command], env=environment, capture_output=True, text=True, timeout=600)

    def encode(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `latentmill encode` on the first node."""
        return self.on(0, [sys.executable, "-m", "jobs.encode", *options, "--ray-address", self.address])

    def stop(self) -> None:
        """End every process that was started."""
        for process in self.started:
            for pid in [*descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def machines(port: int, count: int = 3) -> Iterator[Machines]:
    """Start so many nodes, and wait until all are there."""
    folder = Path(tempfile.mkdtemp(prefix="lm"))
    made = Machines(folder, f"127.0.0.1:{port}")
    try:
        temporary = f"{folder}/ray"
        made.add("--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", temporary)
        for _ in range(count - 1):
            made.add("--address", made.address)
        wait = f"import ray\nray.init('{made.address}', logging_level='ERROR', log_to_driver=False)\n"
        wait += f"while sum(node['Alive'] for node in ray.nodes()) < {count}: pass"
        while (done := made.on(0, [sys.executable, "-c", wait])).returncode:
            assert all(process.poll() is None for process in made.started), done.stderr
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
