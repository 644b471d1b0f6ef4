"""Optuna's own suite for storages, and ours for stores, on Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

import hopaas_p2p
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Store
from hopaas_p2p.testing.conformance import AcrossProcesses, PiggybackedBeats, StoreConformance
from tests.support.postgres import Server


class TestPostgres(StorageTestCase):
    @pytest.fixture
    def storage(self, any_postgres_url: str) -> Iterator[BaseStorage]:
        storage = hopaas_p2p.open_storage(any_postgres_url)
        yield storage
        storage.close()


class TestPostgresStore(StoreConformance, AcrossProcesses, PiggybackedBeats):
    @pytest.fixture
    def store(self, any_postgres: Server, any_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
        monkeypatch.setenv("HOPAAS_TOKEN", any_postgres.password)  # for the other processes, which get the URL alone
        store = open_store(any_postgres_url)
        yield store
        store.close()
