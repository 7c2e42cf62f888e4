"""Laws of the examples for Slurm, on a real one: sbatch accepts them and their commands are ours; a run that is
preempted, told to stop, or loses its node comes back as the same job, and leaves the bytes of an undisturbed run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import encode
from tests.chaos.lab import skip_time
from tests.driver import Driver
from tests.slurm import ROOT, Slurm, missing, wait_until
from tests.test_run import data, make_tar, staged
from tests.videos import make_video

FOLDER = ROOT / "examples/slurm"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
ENCODE = re.compile(r"latentmill encode\s(.*?--clips all)", re.S)

NUM_SHARDS = 20

LACK = missing()
needs_slurm = pytest.mark.skipif(bool(LACK), reason=LACK)


def options_of(path: Path) -> list[str]:
    """The options of `latentmill encode` in a script."""
    (found,) = ENCODE.findall(path.read_text())
    return shlex.split(found.replace("\\\n", " "))


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    with Slurm() as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tars")
    videos = {"sound": make_video(num_frames=60, width=96, height=64), "text": b"not a video"}
    for number in range(NUM_SHARDS):
        make_tar(folder / f"{number:02}.tar", videos)
    return f"{folder}/*.tar"


@pytest.fixture(scope="module")
def clean(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The data files of one undisturbed run without Slurm."""
    output = tmp_path_factory.mktemp("clean") / "out"
    Driver(options(source, output)).finish()
    return data(output)


def options(source: str, output: Path) -> list[str]:
    shape = ["--height=32", "--width=48", "--num-frames=9", "--fps=8", "--clips=all"]
    return [f"--source={source}", f"--output={output}", "--vae=tiny", *shape, "--object-store-gb=0.1"]


def submit(slurm: Slurm, name: str, encode_options: list[str], *sbatch_options: str) -> str:
    """Submit an example as it is, but for the options of encode."""
    changed = f"latentmill encode {shlex.join(encode_options)}"
    (slurm.folder / name).write_text(ENCODE.sub(lambda _: changed, (FOLDER / name).read_text()))
    return slurm.submit(*sbatch_options, name)


def begun(output: Path) -> bool:
    """Whether shards are done. Most are not even claimed: a run holds a handful at a time."""
    return any(output.glob("data/*"))


def restarts(slurm: Slurm, task: str) -> int:
    (count,) = re.findall(r"Restarts=(\d+)", slurm("scontrol", "show", "job", task))
    return int(count)


def check_whole(output: Path, clean: dict[str, bytes]) -> None:
    assert data(output) == clean
    assert not staged(output)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_one_and_its_command_is_ours(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    job = encode.parse(options_of(path))
    assert job.output == "s3://latents/v1"
    lead = re.search(r"^#SBATCH --signal=B:TERM@(\d+)$", path.read_text(), re.M)
    assert lead
    assert int(lead[1]) > job.grace


def test_both_scripts_do_the_same_work() -> None:
    array, cluster = (options_of(FOLDER / f"{name}.sbatch") for name in ("array", "cluster"))
    assert cluster == ["--ray-address", "auto", *array]


@needs_slurm
def test_sbatch_knows_the_options(slurm: Slurm) -> None:
    for path in SCRIPTS:
        slurm("sbatch", "--test-only", "--nodes=1", str(path))
        (slurm.folder / "slip").write_text(path.read_text().replace("--exclusive", "--exclusiv-e"))
        with pytest.raises(AssertionError, match="unrecognized option"):
            slurm("sbatch", "--test-only", "--nodes=1", "slip")
        with pytest.raises(AssertionError, match="invalid partition specified: nowhere"):
            slurm("sbatch", "--test-only", "--nodes=1", "--partition=nowhere", str(path))


@needs_slurm
def test_the_nightly_entry_submits_the_array(slurm: Slurm) -> None:
    """Debian has no scrontab: what it would run is run by sbatch, with the options that it would take."""
    text = (FOLDER / "scrontab.txt").read_text()
    (entry,) = [line for line in text.splitlines() if line and not line.startswith("#")]
    *times, command = entry.split(maxsplit=5)
    assert times == ["0", "2", "*", "*", "*"]
    chosen = re.findall(r"^#SCRON (.*)$", text, re.M)
    command = command.replace("~/latentmill", str(ROOT)).replace("sbatch", "sbatch --test-only")
    job = slurm.submit(*chosen, f"--wrap={command}")
    slurm.wait_for(job, "COMPLETED")
    assert "to start at" in slurm.log()


@needs_slurm
@pytest.mark.slow
def test_a_run_that_is_told_to_stop_comes_back(
    slurm: Slurm, source: str, clean: dict[str, bytes], tmp_path: Path
) -> None:
    """It is alone: nobody else could take the shards that it leaves."""
    output = tmp_path / "out"
    job = submit(slurm, "array.sbatch", options(source, output), "--array=0-0")
    wait_until(lambda: begun(output), slurm.log)
    slurm("scancel", "--signal=TERM", "--batch", f"{job}_0")
    slurm.wait_for(job, "COMPLETED")
    assert restarts(slurm, f"{job}_0") == 1, slurm.log()
    assert "SIGTERM: finishing what is open" in (slurm.folder / f"latentmill-{job}_0.log").read_text()
    check_whole(output, clean)


@needs_slurm
@pytest.mark.slow
def test_preempted_runs_come_back(slurm: Slurm, source: str, clean: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out"
    job = submit(slurm, "array.sbatch", options(source, output), "--array=0-1")
    wait_until(lambda: begun(output), slurm.log)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    slurm.wait_for(urgent, "COMPLETED")
    skip_time(output)
    slurm.wait_for(job, "COMPLETED")
    assert [restarts(slurm, f"{job}_{task}") for task in (0, 1)] == [1, 1]
    check_whole(output, clean)


@needs_slurm
@pytest.mark.slow
def test_a_run_whose_node_is_lost_comes_back_on_another(
    slurm: Slurm, source: str, clean: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = submit(slurm, "array.sbatch", options(source, output), "--array=0-1")
    wait_until(lambda: begun(output), slurm.log)
    slurm.power_off("node2")
    skip_time(output)  # the claims of a lost machine are kept for ten minutes
    slurm.wait_for(job, "COMPLETED")
    assert sum(restarts(slurm, f"{job}_{task}") for task in (0, 1)) == 1
    check_whole(output, clean)


@needs_slurm
@pytest.mark.slow
def test_a_run_that_a_person_cancels_stays_away(slurm: Slurm, source: str, tmp_path: Path) -> None:
    """It ends with 75 at once: Ray has not started."""
    job = submit(slurm, "array.sbatch", options(source, tmp_path / "out"), "--array=0-0")
    printed = slurm.folder / f"latentmill-{job}_0.log"
    wait_until(lambda: printed.exists() and "planning" in printed.read_text(), slurm.log)
    slurm("scancel", job)
    slurm.wait_for(job, "CANCELLED")
    assert "stopped by SIGTERM" in printed.read_text()


@needs_slurm
@pytest.mark.slow
def test_one_run_over_two_nodes_comes_back(slurm: Slurm, source: str, clean: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out"
    over_nodes = ["--ray-address=auto", *options(source, output)[:-1]]
    job = submit(slurm, "cluster.sbatch", over_nodes, "--nodes=2")
    wait_until(lambda: begun(output), slurm.log)
    slurm("scancel", "--signal=TERM", "--batch", job)
    slurm.wait_for(job, "COMPLETED")
    assert restarts(slurm, job) == 1
    check_whole(output, clean)
