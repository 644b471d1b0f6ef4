"""Real servers that lose commits are refused before the first commit, and it is said why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.stores.checks import examine
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.s3_fixtures import s3_environment
from tests.support.s3_refused import Rclone, RefusedServer, RgwDbstore, S3rver


@pytest.fixture(params=[Rclone, S3rver, RgwDbstore], ids=lambda kind: kind.__name__)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusedServer]:
    with request.param() as server:
        s3_environment(monkeypatch, server)
        yield server


def test_a_server_that_does_not_keep_the_condition_is_refused_before_the_first_commit(server: RefusedServer) -> None:
    url = server.url("store")
    with pytest.raises(ConfigurationError, match="does not honour 'If-None-Match") as refusal:
        hopaas_p2p.open_study(url, "s", space={"x": hopaas_p2p.Float(0, 1)})
    assert "12 of 12 keys" in str(refusal.value)
    assert server.named in str(refusal.value), "among the causes"

    store = S3Store(url, create=False)
    found = {one.check: one for one in examine(store)}
    assert found["connect"].passed
    assert not found["race"].passed
    assert server.named in found["race"].cure
    kept = [key for key in store.objects.listed("") if "/log/" in key or key.endswith("meta.json")]
    assert kept == [], "there is no store, and no commit"
    store.close()
