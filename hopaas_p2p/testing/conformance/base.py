"""What every part of the suite stands on: a fresh store, and another handle on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from hopaas_p2p.stores.base import Log, Store
from hopaas_p2p.stores.url import open_store


class Conformance:
    """A store to be put to the test."""

    racers: ClassVar[int] = 4
    commits: ClassVar[int] = 25
    """How many racers append how many commits each; lower them for a slow store."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        raise NotImplementedError("give your class a fixture `store`, a fresh and empty store for each test")

    def reopen(self, store: Store) -> Store:
        """Another handle on the same place."""
        return open_store(store.url)

    @pytest.fixture
    def log(self, store: Store) -> Log:
        return store.log("study-1")
