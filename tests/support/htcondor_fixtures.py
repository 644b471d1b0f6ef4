"""A real personal HTCondor of an ordinary user, on a free port of 127.0.0.1; ended with the tests, by process id."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.needs import missing
from tests.support.ports import free_port
from tests.support.processes import ROOT, environment, until
from tests.support.slurm_fixtures import end, programs

_USER = "hopaas-test"
_IDLE, _RUNNING = 1, 2  # HTCondor's JobStatus
CONFIG = """
use ROLE: Personal
RELEASE_DIR = /usr
LIBEXEC = {libexec}
LOCAL_DIR = {directory}
LOG = {directory}/log
SPOOL = {directory}/spool
EXECUTE = {directory}/execute
LOCK = {directory}/lock
RUN = {directory}/run
CONDOR_HOST = 127.0.0.1
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
USE_SHARED_PORT = False
COLLECTOR_HOST = 127.0.0.1:{port}
SEC_DEFAULT_AUTHENTICATION_METHODS = FS,CLAIMTOBE
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_ADMINISTRATOR = *
ALLOW_DAEMON = *
ALLOW_NEGOTIATOR = *
NUM_CPUS = 8
MEMORY = 8000
START = True
SUSPEND = False
PREEMPT = False
KILL = False
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 2
SCHEDD_MIN_INTERVAL = 1
UPDATE_INTERVAL = 5
PERIODIC_EXPR_INTERVAL = 2
MachineMaxVacateTime = 60
"""


def ordinary_user() -> str | None:
    """Whom jobs run as: HTCondor runs none of root's. None: this process's own user."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_USER)
    except KeyError:
        subprocess.run(["useradd", "--system", "--no-create-home", "--shell", "/bin/sh", _USER], check=True)
    return _USER


def python_of(user: str | None, directory: Path) -> tuple[str, str]:
    """A Python that this user may run, and its PYTHONPATH; with copies, where our own home is closed to others."""
    packages = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    if not all(_may(user, "test", "-r", f"{path}/.") for path in packages):
        packages = [str(directory / "packages")]
        _copy_packages(directory / "packages")
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path = ":".join(packages)
    for python in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        if _may(user, python, "-c", "import hopaas_p2p.ports", PYTHONPATH=path):
            return python, path
    return missing(f"an ordinary user has no {name} here that runs this project's packages")


def _may(user: str | None, *words: str, **env: str) -> bool:
    """Whether a command succeeds as this user."""
    env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **env}
    try:
        return subprocess.run(words, env=env, user=user, capture_output=True, check=False, cwd="/").returncode == 0
    except OSError:
        return False


def _copy_packages(to: Path) -> None:
    """This project and all that it requires; the whole environment has gigabytes."""
    shutil.copytree(ROOT / "hopaas_p2p", to / "hopaas_p2p")
    wanted, copied = ["hopaas-p2p"], set[str]()
    while wanted:
        name = wanted.pop()
        if name in copied:
            continue
        copied.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for another system, or another Python
            continue
        wanted += [re.split(r"[^\w.-]", line)[0] for line in found.requires or () if "extra ==" not in line]
        for file in found.files or ():
            if ".." not in file.parts:
                (to / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), to / file)


class Condor:
    """Commands of a running pool, as the user of its jobs."""

    def __init__(self, directory: Path, user: str | None) -> None:
        self.directory, self.user = directory, user
        bin_directory = programs(directory / "bin", *python_of(user, directory))
        self.environment = environment(
            CONDOR_CONFIG=str(directory / "condor_config"),
            PATH=f"{bin_directory}:{os.environ['PATH']}:/usr/sbin",
            HOME=str(directory),
        )
        self._master: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemons; wait until the machine takes jobs."""
        directory = self.directory
        for name in ("log", "spool", "execute", "lock", "run"):
            (directory / name).mkdir()
        libexec = next(path for path in map(Path, ("/usr/libexec/condor", "/usr/lib/condor/libexec")) if path.is_dir())
        port = free_port()
        (directory / "condor_config").write_text(CONFIG.format(libexec=libexec, directory=directory, port=port))
        if self.user is not None:
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, self.user, self.user)
        with (directory / "master.out").open("wb") as log:
            self._master = subprocess.Popen(
                ["condor_master", "-f"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
                cwd=directory,
            )
        until(lambda: "slot1" in self.run("condor_status", "-af", "Name", check=False), 60, what=self.logs)
        until(lambda: self.run("condor_q", "-af", "JobStatus", check=False) == "", 30, what=self.logs)

    def stop(self) -> None:
        """End all jobs and daemons: the master ends its own."""
        if self._master is not None:
            self.run("condor_rm", "-all", check=False)
            self.run("condor_off", "-fast", "-master", check=False)
            try:
                self._master.wait(15)
            except subprocess.TimeoutExpired:
                end(self._master)

    def logs(self) -> str:
        """What the daemons said, for a test that fails."""
        paths = [self.directory / "master.out", *sorted((self.directory / "log").glob("*Log*"))]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1200:]}" for path in paths)

    def run(self, *words: str, cwd: Path | None = None, check: bool = True, **env: str) -> str:
        """Run one of HTCondor's commands; its output."""
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd or self.directory,
            env={**self.environment, **env},
            user=self.user,
            group=self.user,
            extra_groups=[] if self.user else None,
            check=False,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def submit(self, *words: str, cwd: Path, **env: str) -> str:
        """Submit a description; the cluster's id."""
        said = self.run("condor_submit", "-terse", *words, cwd=cwd, PWD=str(cwd), **env)
        return said.split(".")[0]

    def running(self, job: str) -> bool:
        return self.run("condor_q", job, "-af", "JobStatus").split() == [str(_RUNNING)]

    def gone(self, job: str) -> bool:
        """Whether all of a cluster has left the queue."""
        return self.run("condor_q", job, "-af", "JobStatus") == ""

    def place(self, name: str, within: Path | None = None) -> Path:
        """A new directory that the jobs may write to."""
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=within or self.directory))
        if self.user is not None:
            shutil.chown(path, self.user, self.user)
        path.chmod(0o755)
        return path


@pytest.fixture(scope="session")
def condor() -> Iterator[Condor]:
    """A running pool."""
    for program in ("condor_master", "condor_submit"):
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            missing(f"HTCondor is not here ({program}: apt-get install htcondor)")
    directory = Path(tempfile.mkdtemp(prefix="hopaas-condor-", dir="/tmp"))  # a short path: it holds sockets
    directory.chmod(0o755)
    pool = Condor(directory, ordinary_user())
    try:
        pool.start()
        yield pool
    finally:
        pool.stop()
        shutil.rmtree(directory, ignore_errors=True)
