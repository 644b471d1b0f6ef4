"""Real processes in tests: commands of ours, scripts, and waiting with a deadline."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

import hopaas_p2p
from hopaas_p2p.study import Study
from tests.support.studies import opened_study

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "hopaas_p2p.cli.main"]
SPACE = {"lr": hopaas_p2p.Float(1e-4, 1e-1, log=True), "depth": hopaas_p2p.Int(1, 8)}
QUIET = {"PYTHONWARNINGS": "error", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def patient(seconds: float) -> float:
    """So many seconds on an idle machine; longer by the number of processes that compete for each core now."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def until(condition: Callable[[], T], seconds: float = 20.0, *, what: str | Callable[[], str] = "") -> T:
    """What the condition gives as soon as that is true; fails after so many seconds, more on a busy machine."""
    started = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() - started >= patient(seconds):
            shown = what() if callable(what) else what
            raise AssertionError(f"not within {seconds} s: {shown or condition}")
        time.sleep(0.02)


def environment(**more: str) -> dict[str, str]:
    """This process's, without settings of ours but those that are given."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HOPAAS_", "SLURM_", "_CONDOR"))}
    return {**kept, **QUIET, **more}


def cli(*words: str, cwd: Path | None = None, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ours to its end."""
    return subprocess.run(
        [*CLI, *words],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=check,
        cwd=cwd,
        env=environment(**env),
    )


def start(*words: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start a command of ours; its messages go to `worker.err` there."""
    with (cwd / "worker.err").open("a") as errors:
        return subprocess.Popen(
            [*CLI, *words], stdout=subprocess.DEVNULL, stderr=errors, text=True, cwd=cwd, env=environment(**env)
        )


def in_environment(variables: dict[str, str], work: Callable[..., None], *arguments: Any) -> None:
    """Call `work` with these variables of the environment: a fork server has those of the first test that used it."""
    os.environ.clear()
    os.environ.update(variables)
    work(*arguments)


def script(directory: Path, body: str, name: str = "train.py") -> list[str]:
    """A Python program in a file; the command that runs it."""
    path = directory / name
    path.write_text(textwrap.dedent(body))
    return [sys.executable, str(path)]


_AS_NOBODY = """
import builtins, ctypes, functools, importlib, os, platform

SETRESUID = {"x86_64": 117, "aarch64": 147}[platform.machine()]

def become(user):  # this thread alone: os.seteuid would let the others read everything, while this one imports
    if ctypes.CDLL(None).syscall(SETRESUID, -1, user, -1):
        raise OSError("setresuid")

def as_root(load):
    @functools.wraps(load)
    def loaded(*words, **named):
        user = os.geteuid()
        become(0)
        try:
            return load(*words, **named)
        finally:
            become(user)
    return loaded

builtins.__import__, importlib.import_module = as_root(builtins.__import__), as_root(importlib.import_module)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 0)
"""


def as_nobody(code: str, *arguments: str) -> str:
    """What this Python program prints when an ordinary user runs it who owns nothing; skips unless root runs the tests.

    Its imports are root's: the checkout, the packages and Python itself may lie in a home that is closed to others.
    """
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    program = [sys.executable, "-c", _AS_NOBODY + textwrap.dedent(code), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False, cwd="/", env=environment())
    assert done.stderr == ""
    return done.stdout


def campaign(directory: Path, **options: Any) -> Study:
    """A study with a search space in a new store in that directory; close it."""
    options = {"space": SPACE, "budget": 3, "lease_ttl": 5.0, **options}
    return opened_study(str(directory / "store"), "s", **options)


def states(study: Study) -> list[str]:
    """The states of all trials."""
    return [trial.state.name for trial in study.state.trials]


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False
