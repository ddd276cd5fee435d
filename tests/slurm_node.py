"""A SLURM on this machine: Debian's slurmctld and slurmd, with files and ports of their own. Needs root.

It has one node, or the two hosts of launch_hosts.py.

Processes are found by their parents (proctrack/linuxproc), nothing is accounted, cores are shared out by count alone.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "salloc", "scancel", "scontrol", "squeue")
START_SECONDS = 30
# CPUS is what SLURM hands out, whatever the machine has: jobs wait for nothing but each other.
CPUS = 4
HERE = socket.gethostname()


def why_not() -> str:
    """Why there can be no SLURM here; empty where there can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in PROGRAMS if not shutil.which(name, path=search_path())]
    return f"needs {', '.join(missing)}" if missing else ""


def search_path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin"


class SlurmNode:
    """A running SLURM. `environ` is what its commands need; `ask` runs one of them, on the first of several hosts."""

    def __init__(self, folder: Path, hosts=()):
        self.folder, self._hosts = folder, hosts
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons = []

    def __enter__(self):
        try:
            self._write_files()
            munge = ["--foreground", f"--socket={self.folder}/munge.socket", f"--key-file={self.folder}/munge.key"]
            munge += [f"--{name}-file={self.folder}/munge.{name}" for name in ("log", "pid", "seed")]
            self._start("munged", *munge, "--force")
            self._wait(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-i")
            for name in self._names():
                self._start("slurmd", "-D", "-N", name)
            self._wait(
                lambda: self.ask("sinfo", "-h", "-N", "-o", "%t").stdout.split() == ["idle"] * len(self._names())
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error):
        if len(self._daemons) > 1:
            self.ask("scancel", "--signal=KILL", "--full", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def ask(self, *words: str, **environ: str) -> subprocess.CompletedProcess:
        """Run a command of SLURM to its end."""
        environ = {**os.environ, **self.environ, **environ}
        return subprocess.run(self._on(0, words), capture_output=True, text=True, env=environ)

    def state(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, ExitCode, Restarts..."""
        words = self.ask("scontrol", "show", "job", "-o", job).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _names(self):
        return [host.name for host in self._hosts] or ["node1"]

    def _on(self, number, words):
        return self._hosts[number].on(list(words)) if self._hosts else words

    def _start(self, program, *words):
        path = shutil.which(program, path=search_path())
        log = (self.folder / f"{program}{len(self._daemons)}.out").open("w")
        number = self._names().index(words[-1]) if program == "slurmd" else 0
        words = [path, *words] if program == "munged" else self._on(number, [path, *words])
        environ = {**os.environ, **self.environ}
        self._daemons.append(subprocess.Popen(words, stdout=log, stderr=log, env=environ, cwd=self.folder))

    def _wait(self, holds):
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            ended = [daemon.args[0] for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "".join(file.read_text()[-2000:] for file in self.folder.glob("*.out"))
                raise RuntimeError(f"SLURM does not start ({', '.join(ended)} ended):\n{logs}")
            time.sleep(0.05)

    def _write_files(self):
        (self.folder / "state").mkdir(mode=0o755)
        (self.folder / "munge.key").touch(mode=0o600)
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        controller, port = free_ports(2)
        controllers = f"{self._hosts[0].name}({self._hosts[0].address})" if self._hosts else f"{HERE}(127.0.0.1)"
        places = [(host.name, host.name, host.address) for host in self._hosts] or [("node1", HERE, "127.0.0.1")]
        nodes = "".join(
            f"NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs={CPUS} State=UNKNOWN\n"
            for name, host, address in places
        )
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "slurm.conf").write_text(
            f"""ClusterName=tests
SlurmctldHost={controllers}
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,requeue_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=20
OverTimeLimit=0
JobRequeue=1
SlurmdParameters=config_overrides
{nodes}PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens at now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
