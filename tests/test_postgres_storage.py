"""Optuna's own suite for storages, on Postgres."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

import hopaas_p2p


class TestPostgres(StorageTestCase):
    @pytest.fixture
    def storage(self, any_postgres_url: str) -> Iterator[BaseStorage]:
        storage = hopaas_p2p.open_storage(any_postgres_url)
        yield storage
        storage.close()
