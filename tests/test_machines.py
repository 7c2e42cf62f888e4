"""Laws of a cluster whose nodes share no disk: with source, output and checkpoint on S3 the bytes are those of one
machine, and each node fetches the checkpoint once; a local path is refused before anything starts, unless every node
sees the same files there.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import vae
from jobs import encode
from pipeline.control.same_disk import NOTHING, check_same_disk, look
from pipeline.errors import ConfigError
from pipeline.runs.summary import CONFIG
from pipeline.settings.job import Job
from tests.driver import descendants
from tests.fault_proxy import FaultProxy
from tests.machines import Machines, can_unshare, machines
from tests.s3 import S3
from tests.small import CLIP
from tests.test_ports import LOOPBACK, listening
from tests.test_run import make_tar
from tests.videos import make_video

pytest_plugins = ["tests.s3"]

SMALL = ["--num-frames", "9", "--height", "32", "--width", "48", "--fps", "8", "--clips", "all"]


@pytest.fixture
def nodes(s3: S3, faults: FaultProxy) -> Iterator[Machines]:
    """Nodes that find the S3 server, behind a proxy that counts requests."""
    if not can_unshare():
        pytest.skip("mount namespaces need root")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with machines(port) as made:
        yield made


def data(s3: S3, folder: str) -> dict[str, str]:
    """The digest of each data file of an output."""
    paths = [path for path in s3.paths() if path.startswith(f"{folder}/data/")]
    return {path.removeprefix(folder): hashlib.sha256(s3.get(path)).hexdigest() for path in paths}


@pytest.mark.slow
def test_nodes_that_share_no_disk_make_the_bytes_of_one_machine(
    nodes: Machines, s3: S3, faults: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcdef":
        make_tar(tmp_path / f"{name}.tar", {"one": make_video(num_frames=60, width=96, height=64), "two": b"no video"})
        s3.put(f"in/{name}.tar", (tmp_path / f"{name}.tar").read_bytes())
    vae.save_vae(vae.load_vae("tiny"), tmp_path / "vae.safetensors")
    s3.put("vae.safetensors", (tmp_path / "vae.safetensors").read_bytes())
    job = ["--source", s3.uri("in/*.tar"), "--vae", s3.uri("vae.safetensors"), *SMALL]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = nodes.encode(*job, "--output", s3.uri("cluster"), "--encoders", "4")
    assert done.returncode == 0, done.stderr
    copies = [nodes.on(i, ["find", f"{nodes.folder}/cache", "-name", "*.safetensors"]).stdout for i in range(3)]
    assert len({copy.strip() for copy in copies if copy}) == 1, "a copy has one name everywhere"
    assert 2 <= sum(map(bool, copies)) == faults.count("GetObject", path="vae.safetensors")

    assert not listens_elsewhere(nodes)
    assert encode.main([*job, "--output", s3.uri("alone"), "--object-store-gb", "0.1"]) == 0
    assert data(s3, "cluster") == data(s3, "alone") != {}


def listens_elsewhere(nodes: Machines) -> set[str]:
    """Addresses beyond the loopback at which the nodes listen, as /proc/net writes them."""
    pids = [pid for process in nodes.started for pid in (process.pid, *descendants(process.pid))]
    return {address.partition(":")[0] for address in listening(pids)} - LOOPBACK


@pytest.mark.slow
def test_a_disk_of_one_node_is_refused(nodes: Machines, s3: S3) -> None:
    assert nodes.on(0, ["mkdir", f"{nodes.folder}/in"]).returncode == 0
    with tempfile.TemporaryDirectory(prefix="lm") as common:  # every node sees it
        make_tar(Path(common, "a.tar"), {"one": make_video(num_frames=60, width=96, height=64)})
        assert nodes.on(0, ["cp", f"{common}/a.tar", f"{nodes.folder}/in"]).returncode == 0
        job = ["--vae", "tiny", *SMALL]

        refused = nodes.encode(*job, "--source", f"{nodes.folder}/in/*.tar", "--output", s3.uri("out"))
        assert refused.returncode == CONFIG
        assert "--source" in refused.stderr
        assert "see nothing there" in refused.stderr

        refused = nodes.encode(*job, "--source", f"{common}/*.tar", "--output", f"{nodes.folder}/out")
        assert refused.returncode == CONFIG
        assert "--output" in refused.stderr
        assert "not every node" in refused.stderr
        assert not s3.paths()

        done = nodes.encode(*job, "--source", f"{common}/*.tar", "--output", f"{common}/out")
        assert done.returncode == 0, done.stderr
        assert not list(Path(common, "out").glob(".token*"))


def views(folder: Path) -> dict[str, str]:
    """What two nodes see of a source, of which the second one has another disk."""
    aside = folder.with_name("aside")
    here = look(f"{folder}/*", 64, False)
    folder.rename(aside)
    try:
        return {"here": here, "there": look(f"{folder}/*", 64, False)}
    finally:
        aside.rename(folder)


def test_nodes_that_see_different_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes(b"video")
    seen = views(tmp_path / "in")
    assert seen["there"] == NOTHING != seen["here"]
    job = Job(source=(f"{tmp_path}/in/*",), output="s3://bucket/out", vae="tiny", clip=CLIP)
    with pytest.raises(ConfigError, match=r"--source .* is a local path, .*: there see nothing there"):
        check_same_disk(job, lambda *_: seen)
    with pytest.raises(ConfigError, match=r"a, b see different files"):
        check_same_disk(job, lambda *_: {"a": "1", "b": "2"})
    check_same_disk(job, lambda look, *args: {"a": look(*args), "b": look(*args)})


def test_the_videos_that_a_table_names_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"video": "a.mp4"}\n{"video": "https://example.org/b.mp4"}\n')
    without = look(f"{tmp_path}/t.jsonl", 64, False)
    (tmp_path / "a.mp4").write_bytes(b"video")
    assert look(f"{tmp_path}/t.jsonl", 64, False) != without != NOTHING


def test_an_output_that_all_nodes_see_is_taken(tmp_path: Path) -> None:
    job = Job(source=("s3://bucket/a.tar",), output=f"{tmp_path}/out", vae="tiny", clip=CLIP)
    check_same_disk(job, lambda read, *args: {"a": read(*args), "b": read(*args)})
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ConfigError, match=r"--output .* is a local path, .*: b see nothing there"):
        check_same_disk(job, lambda read, *args: {"a": read(*args), "b": read("/nowhere")})
