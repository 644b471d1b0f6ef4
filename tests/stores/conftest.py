"""What tests of a store use unless their file has another `server` or `store`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from hopaas_p2p.stores.s3.store import S3Store
from tests.support.s3_fixtures import s3_environment
from tests.support.s3_imitation import Imitation


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Imitation]:
    """A server in this process that imitates S3, and its keys in the environment."""
    s3_environment(monkeypatch)
    with Imitation() as server:
        yield server


@pytest.fixture
def store(server: Imitation) -> Iterator[S3Store]:
    """A store in it."""
    with contextlib.closing(S3Store(server.url("store"))) as store:
        yield store
