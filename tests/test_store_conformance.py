"""Every store that needs no server, put to the contract of stores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p.stores.base import Store
from hopaas_p2p.stores.directory import store as directory
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.url import open_store
from hopaas_p2p.testing.conformance import AcrossProcesses, StoreConformance

_names = itertools.count()


class TestMemory(StoreConformance):
    @pytest.fixture
    def store(self) -> Store:
        return open_store(f"memory://conformance-{next(_names)}")


class TestDirectoryWithFlock(StoreConformance, AcrossProcesses):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = DirectoryStore(tmp_path / "a store")
        assert store._hard
        yield store
        store.close()


class TestDirectoryWithLockFile(StoreConformance, AcrossProcesses):
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
        monkeypatch.setattr(directory, "hard_locks_work", lambda _: False)
        store = DirectoryStore(tmp_path / "a store")
        assert not store._hard
        yield store
        store.close()
