"""Laws of a Ray that a run starts for itself: no other user can read its token, nor enter its folder; it starts
whatever the folder for temporary files is called and whatever started the command; every process and file of it is gone
when the run is, however the run ends.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.control import reaper
from pipeline.control.ray_local import LONGEST_FOLDER, MARK, place
from pipeline.errors import ConfigError
from tests.driver import descendants
from tests.test_run import make_tar
from tests.videos import make_video

ROOT = Path(__file__).parents[1]
NOBODY = 65534
KILLS = int(os.environ.get("LATENTMILL_START_KILLS", "6"))
FLAGS = ["--vae=tiny", "--num-frames=9", "--height=64", "--width=96", "--grace=0.1"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, with a short path; pytest's are closed."""
    made = Path(tempfile.mkdtemp(prefix="lm", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def environment(folder: Path, **more: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name not in ("TMPDIR", "RAY_TMPDIR")}
    return (
        ours | {"HOME": str(folder), "RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more
    )


def encode(folder: Path) -> list[str]:
    if not (folder / "a.tar").exists():
        make_tar(folder / "a.tar", {"a": make_video(num_frames=33, width=96, height=64)})
    return [sys.executable, "-m", "jobs.encode", f"--source={folder}/a.tar", f"--output={folder}/out", *FLAGS]


def variable(pid: int, name: str) -> str:
    """A variable of the environment with which a process was started; "" if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return ""
    return next((value for line in lines for key, _, value in [line.partition("=")] if key == name), "")


def of_the_ray(driver: int) -> list[int]:
    return [pid for pid in descendants(driver) if variable(pid, MARK)]


LOOK = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
folder, token, *pids = sys.argv[1:]
os.umask(0)
for at, folders, files in os.walk(folder):
    for file in files:
        path = os.path.join(at, file)
        try:
            if token.encode() in open(path, "rb").read():
                print("reads", path)
        except OSError:
            pass
    for name in folders:
        if os.access(os.path.join(at, name), os.W_OK, follow_symlinks=False):
            print("may write in", os.path.join(at, name))
for pid in pids:
    for kind in "environ", "cmdline":
        try:
            if token.encode() in open(f"/proc/{pid}/{kind}", "rb").read():
                print("reads", kind, "of", pid)
        except OSError:
            pass
"""
"""What another user sees: the token, or a folder in which he could put a socket or a link."""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can look as another user")
def test_another_user_cannot_read_the_token_nor_enter_the_folder(folder: Path) -> None:
    order = {
        "source": f"{folder}/a.tar",
        "output": f"{folder}/out",
        "moment": "in the stream",
        "mark": f"{folder}/mark",
    }
    encode(folder)
    command = [sys.executable, "-m", "tests.held", json.dumps(order | {"grace": "0.1"})]
    with subprocess.Popen(command, env=environment(folder), cwd=ROOT, stderr=subprocess.DEVNULL, umask=0o022) as driver:
        try:
            while not (folder / "mark").exists():
                assert driver.poll() is None
                select.select([], [], [], 0.1)
            pids = of_the_ray(driver.pid)
            tokens = {variable(pid, "RAY_AUTH_TOKEN") for pid in pids} - {""}  # of those that have ended since
            (token,) = tokens
            assert len(token) == 64
            seen = [sys.executable, "-I", "-S", "-c", LOOK, str(folder), token, *map(str, [driver.pid, *pids])]
            assert subprocess.run(seen, capture_output=True, text=True, check=True).stdout == ""
            (own,) = (path for path in folder.iterdir() if path.name.startswith("lm"))
            assert stat.S_IMODE(own.stat().st_mode) == 0o700
            assert list(own.rglob("raylet*")), "the folder of this Ray"
        finally:
            driver.terminate()
    assert not (folder / ".ray").exists()
    assert not own.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_for_temporary_files_with_a_long_path(name: str, folder: Path) -> None:
    """Slurm's have one."""
    long = folder / ("long" * 20)
    long.mkdir()
    before = set(Path("/tmp").glob("lm*"))
    settings = environment(folder, **{name: str(long)})
    if name == "TMPDIR":
        del settings["RAY_TMPDIR"]
    done = subprocess.run(encode(folder), env=settings, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(long.iterdir()) == []
    links = [path for path in set(Path("/tmp").glob("lm*")) - before if (path / "r").is_symlink()]
    assert not [path for path in links if (path / "r").readlink().is_relative_to(long)]


def test_a_folder_that_is_not_there_is_refused_with_a_remedy_that_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(folder / "nowhere"))
    with pytest.raises(ConfigError, match=r"Set RAY_TMPDIR to a folder of yours .* at most 30 bytes"), place():
        pass
    remedy = folder / ("r" * (30 - len(f"{folder}/")))
    remedy.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(remedy))
    with place() as made:
        assert Path(made.folder).parents[1] == remedy, "no link is needed"
        assert len(made.folder) == LONGEST_FOLDER
    assert not list(remedy.iterdir())


@pytest.mark.slow
def test_a_run_under_uv_run(folder: Path) -> None:
    """Ray looks for an ancestor whose command line begins with `uv run`, and for a pyproject.toml. Here `uv` is a
    Python and `run` a script."""
    (folder / "uv").symlink_to(Path(sys.executable).resolve())
    (folder / "run").write_text("import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))")
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0"\nrequires-python = ">=3.11"\n')
    command = [str(folder / "uv"), "run", *encode(folder)]
    done = subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_what_was_started_ends_with_its_starter_and_the_folder_goes(folder: Path) -> None:
    """The starter is killed; a grandchild in a session of its own lives on by itself, and one without the mark may."""
    mark, own = f"{MARK}=of-{folder.name}", folder / "own"
    own.mkdir()
    (own / "file").touch()
    script = f"""
import os, subprocess, sys
reaper = subprocess.Popen([sys.executable, "-I", "-S", {reaper.__file__!r}, {mark!r}, {str(own)!r}],
                          stdin=subprocess.PIPE, start_new_session=True)
name, _, value = {mark!r}.partition("=")
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
of_ray = subprocess.Popen(sleep, env=os.environ | {{name: value}}, start_new_session=True)
other = subprocess.Popen(sleep, start_new_session=True)
print(reaper.pid, of_ray.pid, other.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as starter:
        assert starter.stdout is not None
        pids = list(map(int, starter.stdout.readline().split()))
        last, of_ray, other = map(os.pidfd_open, pids)
        starter.kill()
    assert has_ended(last)
    assert has_ended(of_ray)
    assert not has_ended(other, within=0)
    assert not own.exists()
    os.kill(pids[2], signal.SIGKILL)
    for descriptor in (last, of_ray, other):
        os.close(descriptor)


def has_ended(process: int, within: float = 60.0) -> bool:
    end = select.poll()
    end.register(process, select.POLLIN)
    return bool(end.poll(within * 1000))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_run_that_ends_while_ray_starts(number: signal.Signals, folder: Path) -> None:
    rng = random.Random(number)
    for _ in range(KILLS):
        with subprocess.Popen(encode(folder), env=environment(folder), cwd=ROOT, stderr=subprocess.DEVNULL) as driver:
            while not (ours := of_the_ray(driver.pid)):
                assert driver.poll() is None
                select.select([], [], [], 0.02)
            mark = f"{MARK}={variable(ours[0], MARK)}"
            (last,) = (pid for pid in descendants(driver.pid) if reaper.__file__ in command_line(pid))
            watched = os.pidfd_open(last)
            select.select([], [], [], rng.uniform(0, 6))
            driver.send_signal(number)
            driver.wait()
            if number == signal.SIGKILL:  # nobody is left who could wait for it
                assert has_ended(watched)
            assert has_ended(watched, within=0)
            os.close(watched)
            assert reaper.marked(mark) == []
            assert not list(folder.glob("lm*"))
            shutil.rmtree(folder / "out", ignore_errors=True)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
    except OSError:
        return ""
