"""Every store that needs no server, put to the contract of stores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Store
from hopaas_p2p.stores.directory.mounts import Mount
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.testing.conformance import AcrossProcesses, StoreConformance

_names = itertools.count()


class TestMemory(StoreConformance):
    @pytest.fixture
    def store(self) -> Store:
        return open_store(f"memory://conformance-{next(_names)}")


class TestDirectory(StoreConformance, AcrossProcesses):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = DirectoryStore(tmp_path / "a store")
        assert not store.objects.mount.shared
        yield store
        store.close()


class TestDirectoryOnAFileServer(StoreConformance, AcrossProcesses):
    """The way a directory is read if other machines may write to it; real servers are in test_network_directories."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
        monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount("nfs4", "server:/", ()))
        store = DirectoryStore(tmp_path / "a store")
        assert store.objects.mount.shared
        assert store.freshness > 0
        yield store
        store.close()


class TestDirectoryWithShortLinks(StoreConformance, AcrossProcesses):
    """As on XFS, where most commits lie in files beside their links."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
        monkeypatch.setattr("hopaas_p2p.stores.directory.files._LONGEST", 16)
        store = DirectoryStore(tmp_path / "a store")
        yield store
        store.close()


class TestDirectoryWithHardLinks(StoreConformance, AcrossProcesses):
    """As on GlusterFS, where a symbolic link may be seen half made; the real one is in test_fuse_directories.

    Other processes that a test starts see that this is a local disk, and write symbolic links to the same store.
    """

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
        monkeypatch.setattr("hopaas_p2p.stores.directory.files.mount_of", lambda _: Mount("fuse.glusterfs", "s:/", ()))
        store = DirectoryStore(tmp_path / "a store")
        yield store
        store.close()
        assert not any(path.name.startswith(".") for path in tmp_path.rglob("a store/**/*")), "a draft was left"
