"""Sites as network namespaces: what has no link reaches nothing, and no firewall is needed to see to that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.processes import CLI, ROOT, environment, until

_LINK = """
import ctypes, os, socket, sys, threading
from tests.support.latency import Relay

near, far, round_trip = sys.argv[1], sys.argv[2], float(sys.argv[3])
setns = ctypes.CDLL(None, use_errno=True).setns

def enter(name):
    with open(f"/run/netns/{name}") as file:
        if setns(file.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns")

enter(near)
listener = socket.create_server(("127.0.0.1", 443))
enter(far)
with Relay(443, round_trip=round_trip, listener=listener):
    print("linked", flush=True)
    sys.stdin.read()
"""


class Namespaces:
    """Network namespaces of one test, and the processes in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._prefix = f"hopaas-{os.getpid()}-"
        self._made: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        self._cables = 0

    def make(self, *names: str) -> None:
        """Make these, each with a loopback of its own and nothing else."""
        for name in names:
            subprocess.run(["ip", "netns", "add", self._prefix + name], check=True, capture_output=True)
            self._made.append(self._prefix + name)
            self._ip("-n", self._prefix + name, "link", "set", "lo", "up")

    def cable(self, one: str, other: str) -> tuple[str, str]:
        """Connect two, and no other; their addresses."""
        self._cables += 1
        ends = [f"h{os.getpid()}{letter}{self._cables}" for letter in "ab"]
        self._ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        addresses = (f"10.77.{self._cables}.1", f"10.77.{self._cables}.2")
        for end, name, address in zip(ends, (one, other), addresses, strict=True):
            self._ip("link", "set", end, "netns", self._prefix + name)
            self._ip("-n", self._prefix + name, "addr", "add", f"{address}/30", "dev", end)
            self._ip("-n", self._prefix + name, "link", "set", end, "up")
        return addresses

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def link(self, near: str, far: str, *, round_trip: float) -> None:
        """Carry port 443 of `near`'s loopback to that of `far`, and nothing else: a long link in user space."""
        process = subprocess.Popen(
            [sys.executable, "-c", _LINK, self._prefix + near, self._prefix + far, str(round_trip)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "linked\n"

    def words(self, name: str, *words: str) -> list[str]:
        """The command that runs these words there."""
        return ["ip", "netns", "exec", self._prefix + name, *words]

    def start(self, name: str, words: Sequence[str | Path], *, log: str, **env: str) -> subprocess.Popen[str]:
        """Start a program there; what it says goes to a file of this name in the test's folder."""
        with (self._folder / log).open("a") as output:
            process = subprocess.Popen(
                self.words(name, *map(str, words)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                cwd=ROOT,
                env=environment(**env),
            )
        self._processes.append(process)
        return process

    def run(self, name: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours there, to its end."""
        return subprocess.run(
            self.words(name, *CLI, *words),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env=environment(**env),
        )

    def reaches(self, name: str, host: str, port: int) -> bool:
        """Whether a connection can be made from there."""
        code = f"import socket; socket.create_connection(({host!r}, {port}), timeout=2)"
        return (
            subprocess.run(self.words(name, sys.executable, "-c", code), capture_output=True, check=False).returncode
            == 0
        )

    def said(self, log: str) -> str:
        path = self._folder / log
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, log: str, words: str) -> None:
        """Wait until a program has said this."""
        until(lambda: words in self.said(log), 300, what=lambda: self.said(log))

    def end(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.communicate(timeout=30)
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def namespaces_or_skip(folder: Path) -> Namespaces:
    """Namespaces, where they can be made. Elsewhere the test is skipped, also in CI: no package brings them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces take root and iproute2; what they would show is tested on one host, too")
    made = Namespaces(folder)
    try:
        made.make("probe", "other")
        made.cable("probe", "other")
    except subprocess.CalledProcessError as error:
        made.end()
        pytest.skip(f"this machine allows no network namespaces: {error.stderr.decode(errors='replace').strip()}")
    return made
