"""The contract of stores, and Optuna's own suite for storages, on an S3 server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

import hopaas_p2p
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Store
from hopaas_p2p.testing.conformance import AcrossProcesses, StoreConformance


class TestS3Store(StoreConformance, AcrossProcesses):
    commits = 8

    @pytest.fixture
    def store(self, s3_url: str) -> Iterator[Store]:
        store = open_store(s3_url)
        yield store
        store.close()


class TestS3(StorageTestCase):
    @pytest.fixture
    def storage(self, s3_url: str) -> Iterator[BaseStorage]:
        storage = hopaas_p2p.open_storage(s3_url)
        yield storage
        storage.close()
