"""Whom Postgres refuses, and which server is refused: one clear line, and no storm."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.errors import ConfigurationError, Denied, StoreCorrupt
from hopaas_p2p.stores.base import Beat
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import append_many, outgoing
from tests.support.latency import Relay
from tests.support.postgres import Server
from tests.support.postgres_fixtures import OWNER

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_a_wrong_password_is_one_clear_line_and_no_storm(
    postgres: Server, postgres_url: str, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgres.url("store", user=OWNER, password="wrong", port=relay.port)
    storage = hopaas_p2p.open_storage(url)
    for _ in range(20):
        with pytest.raises(Denied, match="wrong, expired or revoked") as refused:
            optuna.create_study(storage=storage)
        assert "\n" not in str(refused.value)
    assert relay.connections == 1, "the server is not asked again and again"
    storage.close()


def test_a_new_secret_is_tried_at_once(
    postgres: Server, postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("wrong\n")
    monkeypatch.setenv("HOPAAS_TOKEN_FILE", str(file))
    store = PostgresStore(f"postgresql://{OWNER}@127.0.0.1:{postgres.port}/store?application_name=rotated")
    with pytest.raises(Denied):
        store.catalog().exchange(None, 0)
    file.write_text(f"{postgres.password}\n")
    store.catalog().exchange(None, 0)
    store.close()


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("synchronous_commit", "off", "synchronous_commit"),
        ("default_transaction_isolation", "'serializable'", "read committed"),
        ("default_transaction_read_only", "on", "read-only"),
    ],
    ids=["may lose commits", "another isolation", "takes no writes"],
)
def test_a_database_that_cannot_keep_the_promises_is_refused(
    postgres: Server, postgres_url: str, setting: str, value: str, said: str
) -> None:
    postgres.execute(f"ALTER DATABASE store SET {setting} = {value}")
    try:
        with pytest.raises(ConfigurationError, match=said):
            PostgresStore(postgres_url).log("u").exchange(outgoing("a"), 0, Beat("p", "1"))
    finally:
        postgres.execute(f"ALTER DATABASE store RESET {setting}")


def test_a_log_that_is_shorter_than_a_peer_has_seen_is_told(postgres: Server, postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    append_many(store.log("u"), "a", 3)
    for since, commit in ((4, None), (9, outgoing("b"))):
        with pytest.raises(StoreCorrupt, match="backup"):
            store.log("u").exchange(commit, since)
    with pytest.raises(StoreCorrupt):
        store.log("never-there").exchange(None, 1)
    store.close()
