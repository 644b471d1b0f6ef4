"""Optuna's own suite for storages, unchanged and complete."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

import hopaas_p2p

_names = itertools.count()


class TestMemory(StorageTestCase):
    @pytest.fixture
    def storage(self) -> Iterator[BaseStorage]:
        storage = hopaas_p2p.open_storage(f"memory://suite-{next(_names)}")
        yield storage
        storage.close()


class TestDirectory(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[BaseStorage]:
        storage = hopaas_p2p.open_storage(str(tmp_path / "store"))
        yield storage
        storage.close()
