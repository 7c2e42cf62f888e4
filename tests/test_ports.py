"""Law: a Ray of our own listens on the loopback only, in each of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.driver import descendants

LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same inside of IPv6, and ::1, as /proc/net writes them."""


def listening(pids: list[int]) -> dict[str, int]:
    """Every address at which one of these processes listens."""
    owners = {}
    for pid in pids:
        try:
            targets = [str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:  # ended meanwhile
            continue
        owners |= {target: pid for target in targets if target.startswith("socket:")}
    tables = [Path(f"/proc/net/{kind}").read_text() for kind in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    return {
        line[1]: owners[f"socket:[{line[9]}]"]
        for line in lines
        if line[3] == LISTENING and f"socket:[{line[9]}]" in owners
    }


def main() -> None:
    """Start a Ray as the job does, with a worker, and look. In a process of its own: tests share another Ray."""
    import ray

    import vae
    from pipeline.control.ray_cluster import ray_for
    from pipeline.runs.stop import Stop
    from pipeline.settings.clip_rule import ClipRule
    from pipeline.settings.job import Job, Workers

    clip, workers = ClipRule(num_frames=9, height=64, width=96), Workers(object_store_gb=0.1)
    job = Job(source=("a",), output="b", vae="tiny", clip=clip, workers=workers)
    with Stop(0) as stop, ray_for(job, vae.load_vae("tiny").info, stop):
        worker = ray.get(ray.remote(lambda: os.getpid()).remote())  # Ray takes no function of C
        found = listening([os.getpid(), *descendants(os.getpid())])
        assert worker in found.values(), "the worker listens somewhere"
        assert len(set(found.values())) >= 4, f"driver, head, node and worker at least, not {found}"
        open_to_all = {address: pid for address, pid in found.items() if address.partition(":")[0] not in LOOPBACK}
        assert not open_to_all, {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in open_to_all.values()}


@pytest.mark.slow
def test_our_own_ray_listens_on_the_loopback_only() -> None:
    environment = os.environ | {"RAY_TMPDIR": tempfile.mkdtemp(prefix="lm")}
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "tests.test_ports"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    main()
