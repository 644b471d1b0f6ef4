"""The contract of stores, held by each kind of store as it is reached over HTTPS only, or through a folder only."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Store
from hopaas_p2p.testing.commits import outgoing
from hopaas_p2p.testing.conformance import AcrossProcesses, StoreConformance
from tests.support.served import Serve, Through


class TestServedDirectory(StoreConformance, AcrossProcesses):
    @pytest.fixture
    def store(self, serve: Serve, tmp_path: Path) -> Store:
        open_store(tmp_path / "a store").close()
        return serve(str(tmp_path / "a store"))


class TestServedBucket(StoreConformance, AcrossProcesses):
    racers = 2
    commits = 10

    @pytest.fixture
    def store(self, serve: Serve, s3_url: str) -> Store:
        open_store(s3_url).log("another").exchange(outgoing("a"), 0)  # the first write makes the store
        return serve(s3_url)


class TestServedPostgres(StoreConformance, AcrossProcesses):
    @pytest.fixture
    def store(self, serve: Serve, postgres_url: str) -> Store:
        return serve(postgres_url)


class TestFolderToADirectory(StoreConformance, AcrossProcesses):
    racers = 3
    commits = 12

    @pytest.fixture
    def store(self, through: Through, tmp_path: Path) -> Store:
        return through(str(tmp_path / "a store"))


class TestFolderToABucket(StoreConformance, AcrossProcesses):
    racers = 2
    commits = 10

    @pytest.fixture
    def store(self, through: Through, s3_url: str) -> Store:
        open_store(s3_url).log("another").exchange(outgoing("a"), 0)  # the first write makes the store
        return through(s3_url)


class TestFolderToPostgres(StoreConformance, AcrossProcesses):
    racers = 3
    commits = 12

    @pytest.fixture
    def store(self, through: Through, postgres_url: str) -> Store:
        return through(postgres_url)
