"""A real Slurm of one node, with its own munge, on free ports of 127.0.0.1; ended with the tests, by process id."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.needs import missing
from tests.support.ports import free_ports
from tests.support.processes import ROOT, environment, until

CONFIG = """
ClusterName=testing
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge/socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
SlurmdParameters=config_overrides
SlurmctldParameters=enable_configless
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def programs(directory: Path, python: str, path: str) -> Path:
    """A directory with `python` and `hopaas-p2p`, to be put first in PATH: for a user who cannot use the venv's."""
    directory.mkdir(parents=True)
    head = f'#!/bin/sh\nexport PYTHONPATH="{path}" PYTHONDONTWRITEBYTECODE=1\nexec "{python}"'
    for name, words in {"python": "", "hopaas-p2p": " -m hopaas_p2p.cli.main"}.items():
        (directory / name).write_text(f'{head}{words} "$@"\n')
        (directory / name).chmod(0o755)
    return directory


class Slurm:
    """Commands of a running cluster. `environment` is what makes Slurm's own commands reach it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        bin_directory = programs(directory / "bin", sys.executable, str(ROOT))
        self.environment = environment(
            SLURM_CONF=str(directory / "slurm.conf"), PATH=f"{bin_directory}:{os.environ['PATH']}:/usr/sbin"
        )

    def start(self) -> None:
        """Start munge, the controller and the node; wait until the node takes jobs."""
        directory = self.directory
        host = socket.gethostname().partition(".")[0]
        controller, node = free_ports(2)
        for name in ("state", "spool"):
            (directory / name).mkdir()
        config = CONFIG.format(host=host, controller=controller, node=node, directory=directory)
        (directory / "slurm.conf").write_text(config)
        self._start_munge()
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", host)
        until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%t", check=False), 30, what=self.logs)

    def _start_munge(self) -> None:
        place = self.directory / "munge"
        place.mkdir()
        key = place / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for path in (place, key):
            shutil.chown(path, "munge", "munge")
        words = [f"--key-file={key}", f"--socket={place}/socket", f"--pid-file={place}/pid"]
        words += [f"--log-file={place}/log", f"--seed-file={place}/seed"]
        self._start("munged", "--foreground", *words, user="munge")
        until((place / "socket").exists, 10, what="munge's socket")

    def _start(self, *words: str, user: str | None = None) -> None:
        with (self.directory / "daemons.log").open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, user=user, group=user
            )
        self._processes.append(process)

    def stop(self) -> None:
        """End all jobs, then the daemons, the last one first."""
        self.run("scancel", "--user=root", "--signal=KILL", "--full", check=False)
        self.run("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 10
        while self.run("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in reversed(self._processes):
            end(process)

    def logs(self) -> str:
        """What the daemons said, for a test that fails."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self.directory.glob("*.log")
        )

    def run(self, *words: str, cwd: Path | None = None, check: bool = True, **env: str) -> str:
        """Run one of Slurm's commands; its output."""
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=120, cwd=cwd, env={**self.environment, **env}, check=False
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}\n{self.logs()}"
        return done.stdout

    def submit(self, *words: str, cwd: Path, **env: str) -> str:
        """Submit a batch script; the job's id."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd, **env).strip()

    def states(self, job: str) -> list[str]:
        """The states of a job, one for each of its array tasks; what is long over is not there."""
        return self.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T", check=False).split()

    def hurry(self, job: str) -> None:
        """Let a requeued job start soon. Slurm makes it wait two minutes, so that its node has tidied up."""
        if "PENDING" in self.states(job):
            self.run("scontrol", "update", f"JobId={job}", "StartTime=now+4", check=False)
            until(lambda: "PENDING" not in self.states(job), 30, what=self.logs)

    def show(self, job: str) -> str:
        """All that Slurm knows of a job."""
        return self.run("scontrol", "show", "job", job)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A running Slurm."""
    for program in ("slurmctld", "slurmd", "munged", "sbatch"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            missing(f"Slurm is not here ({program}: apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        missing("Slurm's node daemon wants root")
    directory = Path(tempfile.mkdtemp(prefix="hopaas-slurm-"))
    directory.chmod(0o755)
    cluster = Slurm(directory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)
