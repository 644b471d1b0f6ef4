"""The contract of stores, held by a directory whose studies live elsewhere, with a bridge in another process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Store
from hopaas_p2p.stores.bridge.store import BridgedStore
from hopaas_p2p.testing.conformance import AcrossProcesses, StoreConformance
from tests.support.processes import ROOT, environment


class Host:
    """Runs bridges in a process of its own."""

    def __init__(self, **env: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.bridge_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(**env),
        )

    @contextlib.contextmanager
    def bridge(self, near: Path, far: str) -> Iterator[None]:
        self._say(f"{near} {far} 0.05", "running")
        yield
        self._say("", "stopped")

    def _say(self, line: str, answer: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{answer}\n"

    def stop(self) -> None:
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.stop()


class _Bridged(StoreConformance, AcrossProcesses):
    racers = 3
    commits = 12

    @contextlib.contextmanager
    def bridged(self, host: Host, near: Path, far: str) -> Iterator[Store]:
        with host.bridge(near, far):
            store = open_store(str(near))
            assert isinstance(store, BridgedStore)
            store.timeout = 60.0
            yield store
            store.close()


class TestBridgeToADirectory(_Bridged):
    @pytest.fixture
    def store(self, host: Host, tmp_path: Path) -> Iterator[Store]:
        with self.bridged(host, tmp_path / "near", str(tmp_path / "far")) as store:
            yield store


class TestBridgeToPostgres(_Bridged):
    @pytest.fixture
    def store(self, host: Host, tmp_path: Path, postgres_url: str) -> Iterator[Store]:
        with self.bridged(host, tmp_path / "near", postgres_url) as store:
            yield store
