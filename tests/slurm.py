"""A real Slurm on two machines made of namespaces: slurmctld and slurmd on `node1`, slurmd on `node2`.

Each machine has its own processes, host name, network, /dev/shm and scratch disk; the rest of the file system is
shared, as a cluster's is. A cable joins them, and nothing leads out, so that no daemon listens on a real interface. The
end of a machine's first process ends all its processes at once, as a loss of power does.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "nsenter", "ip")

ADDRESSES = {"node1": "10.0.0.1", "node2": "10.0.0.2"}

SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONF = """\
ClusterName=test
SlurmctldHost=node1(10.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential is over.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
MailProg=/bin/true
# Jobs that ended are kept for a day: tests ask for them.
MinJobAge=86400
# A node that says nothing for this long is down, and its jobs are requeued. It is up again when it registers.
SlurmdTimeout=10
ReturnToService=2
GresTypes=gpu
NodeName=node1 NodeAddr=10.0.0.1 CPUs={cpus} Gres=gpu:1
NodeName=node2 NodeAddr=10.0.0.2 CPUs={cpus} Gres=gpu:1
PartitionName=gpu Nodes=ALL PriorityTier=1 Default=YES
PartitionName=urgent Nodes=ALL PriorityTier=2
"""

MACHINE = """
set -e
folder=$1 name=$2 address=$3
hostname "$name"
ip link set lo up
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs none /dev/shm
mount -t tmpfs none "$folder/scratch"
echo up
read -r  # until the cable is plugged in
ip address add "$address/24" dev eth0
ip link set eth0 up
if [ "$name" = node1 ]; then
    munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" --pid-file "$folder/munge/pid" \
        --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
    slurmctld -D -f "$folder/slurm.conf" &
fi
slurmd -D -f "$folder/slurm.conf" &
wait
"""

UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--uts", "--ipc")


def missing() -> str:
    """What a Slurm for tests lacks here, or ""."""
    absent = [program for program in PROGRAMS if not shutil.which(program, path=SYSTEM_PATH)]
    if absent:
        return f"no {', '.join(absent)}: run tests/install_slurm.sh"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, env={"PATH": SYSTEM_PATH})
    return tried.stderr.strip()


class Slurm:
    """The cluster, from `with` to its end. Nothing of it is left behind."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lm"))  # a short one: Ray's sockets lie below
        self.scratch = self.folder / "scratch"
        self._machines: dict[str, subprocess.Popen[str]] = {}
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "SLURM_TMPDIR": str(self.scratch),
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Slurm:
        for name in ("munge", "state", "scratch"):
            (self.folder / name).mkdir(mode=0o700)
        (self.folder / "munge/key").write_bytes(os.urandom(128))
        (self.folder / "munge/key").chmod(0o400)
        (self.folder / "hosts").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        )
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder, cpus=os.cpu_count()))
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        try:
            for name in ADDRESSES:
                self._power_on(name)
            self._plug_in()
            wait_until(lambda: self("sinfo", "--noheader", "--format=%T %D", check=False).strip() == "idle 2", self.log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._machines):
            self.power_off(name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, *command: str, check: bool = True) -> str:
        """Run a command on node1, and return what it printed."""
        enter = ["nsenter", f"--target={self._first('node1')}", "--pid", "--mount", "--net", "--uts", "--ipc"]
        done = subprocess.run(
            [*enter, f"--wd={self.folder}", *command], env=self._environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}\n{self.log()}"
        return done.stdout

    def power_off(self, name: str) -> None:
        """End all processes of a machine at once."""
        machine = self._machines.pop(name)
        machine.kill()
        machine.communicate()

    def submit(self, *arguments: str) -> str:
        """Submit a job, and return its number."""
        return self("sbatch", "--parsable", *arguments).strip()

    def wait_for(self, job: str, *states: str) -> None:
        """Wait until each task of a job has one of these states."""
        wait_until(lambda: set() < self.states(job) <= set(states), self.log)

    def states(self, job: str) -> set[str]:
        """The states of a job's tasks."""
        return set(self("squeue", "--noheader", "--states=all", "--array", f"--jobs={job}", "--format=%T").split())

    def log(self) -> str:
        """What the daemons and the jobs said."""
        found = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-6000:]}" for path in found)

    def _power_on(self, name: str) -> None:
        self._machines[name] = subprocess.Popen(
            [*UNSHARE, "bash", "-c", MACHINE, "machine", str(self.folder), name, ADDRESSES[name]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the daemons write logs
            env=self._environment,
            text=True,
        )
        assert self._machines[name].stdout.readline() == "up\n"  # type: ignore[union-attr]

    def _plug_in(self) -> None:
        """Join the two machines by a cable, and let them go on. The bridge keeps the address of node1 alone."""
        first, second = (self._first(name) for name in ADDRESSES)
        network = (
            "link add eth0 type bridge\n"
            f"link add cable type veth peer name eth0 netns {second}\n"
            "link set cable master eth0 up\n"
        )
        enter = ["nsenter", f"--net=/proc/{first}/ns/net", "ip", "-batch", "-"]
        subprocess.run(enter, env=self._environment, check=True, input=network, text=True)
        for machine in self._machines.values():
            print(file=machine.stdin, flush=True)

    def _first(self, name: str) -> int:
        """The first process of a machine, by its number outside."""
        pid = self._machines[name].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def wait_until(moment: Callable[[], bool], log: Callable[[], str], seconds: float = 600.0) -> None:
    """Wait for a moment; raise with the log if it does not come."""
    for _ in range(int(seconds / 0.2)):
        if moment():
            return
        select.select([], [], [], 0.2)
    raise AssertionError(f"the moment did not come:\n{log()}")
