"""A token that has done all it can to stay is revoked, and so are its user's others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from hopaas_p2p import access
from hopaas_p2p.errors import ConfigurationError, Denied
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.support.postgres import Server
from tests.support.postgres_people import Place

STAYS = {
    "default privileges": 'ALTER DEFAULT PRIVILEGES FOR ROLE "{token}" GRANT SELECT ON TABLES TO PUBLIC',
    "its user's default privileges": "ALTER DEFAULT PRIVILEGES FOR ROLE ann GRANT SELECT ON TABLES TO PUBLIC",
    "a large object": "SELECT lo_create(0)",
    "a setting": "ALTER ROLE CURRENT_USER SET statement_timeout = 0",
    "a setting in a database": "ALTER ROLE CURRENT_USER IN DATABASE store SET lock_timeout = 0",
}


def _gone(place: Place, *names: str) -> bool:
    roles = place.server.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", list(names))
    return roles == [] and access.users(place.admin) == [] and access.tokens(place.admin) == []


@pytest.mark.parametrize("database", ["store", "postgres"])
@pytest.mark.parametrize("sql", STAYS.values(), ids=STAYS)
def test_a_user_is_removed_with_all_tokens_whatever_one_did(place: Place, sql: str, database: str) -> None:
    token, other = place.token("ann"), place.token("ann")
    place.study(place.url(other))
    with place.session(place.server.url(database, user=token[0], password=token[1])) as say:
        say(sql.format(token=token[0]))
        access.remove_user(place.admin, "ann")
        with pytest.raises(psycopg2.OperationalError):
            say("SELECT 1")
    for one in (token, other):
        with pytest.raises(Denied):
            place.store(place.url(one)).catalog().exchange(None, 0)
    assert _gone(place, "ann", token[0], other[0])
    assert access.grants(place.admin, "s") == []


@pytest.mark.parametrize("sql", [sql for sql in STAYS.values() if "ROLE ann" not in sql])
def test_a_token_is_revoked_whatever_it_did_and_the_users_others_go_on(place: Place, sql: str) -> None:
    token, other = place.token("ann"), place.token("ann")
    with place.session(place.url(token)) as say:
        say(sql.format(token=token[0]))
    access.revoke_token(place.admin, token[0])
    with pytest.raises(Denied):
        place.store(place.url(token)).catalog().exchange(None, 0)
    place.store(place.url(other)).catalog().exchange(None, 0)


@pytest.mark.parametrize(
    "holds",
    [
        "ALTER ROLE CURRENT_USER PASSWORD 'mine'",
        "ALTER ROLE CURRENT_USER SET work_mem = '1MB'",
        "SELECT hopaas.exchange_v1('catalog', 0, NULL, NULL, NULL, NULL, NULL, 64)",
    ],
)
def test_an_open_transaction_holds_up_no_revoking(place: Place, holds: str) -> None:
    token, other = place.token("ann"), place.token("ann")
    place.server.execute("UPDATE hopaas.tokens SET last_used = NULL", database="store")
    with place.session(place.url(token)) as say:
        for sql in ("SET idle_in_transaction_session_timeout = 0", "SET statement_timeout = 0", "BEGIN", holds):
            say(sql)
        access.remove_user(place.admin, "ann")
        with pytest.raises(psycopg2.OperationalError):
            say("COMMIT")
    assert _gone(place, "ann", token[0], other[0])


@pytest.fixture
def prepared(own_server: Callable[..., Server]) -> Iterator[Place]:
    """A server on which transactions may be prepared."""
    server = own_server(max_prepared_transactions="5")
    server.execute("CREATE ROLE dba LOGIN CREATEROLE PASSWORD %s", server.password)
    server.execute("CREATE DATABASE store OWNER dba")
    url = server.url("store", user="dba")
    access.initialise(url)
    place = Place(server, url)
    yield place
    place.close()


@pytest.mark.parametrize("database", ["store", "postgres"])
def test_a_prepared_transaction_holds_up_no_revoking(prepared: Place, database: str) -> None:
    token, other = prepared.token("ann"), prepared.token("ann")
    with prepared.session(prepared.server.url(database, user=token[0], password=token[1])) as say:
        for sql in ("BEGIN", "ALTER ROLE CURRENT_USER PASSWORD 'mine'", "PREPARE TRANSACTION 'it''s mine'"):
            say(sql)
    access.remove_user(prepared.admin, "ann")
    assert _gone(prepared, "ann", token[0], other[0])
    assert prepared.server.execute("SELECT gid FROM pg_prepared_xacts") == []


def test_doctor_fails_where_transactions_may_be_prepared(prepared: Place, place: Place) -> None:
    from hopaas_p2p.stores.postgres import checks

    def found(admin: str) -> dict[str, Any]:
        with contextlib.closing(PostgresStore(admin)) as store:
            return {finding.check: finding for finding in checks.checks(store)}

    assert not found(prepared.admin)["prepared transactions"].passed
    assert "max_prepared_transactions = 0" in found(prepared.admin)["prepared transactions"].cure
    assert "prepared transactions" not in found(place.admin)


def test_what_cannot_be_dropped_is_told_and_everything_else_is_done(place: Place) -> None:
    """Another administrator of the server lets a token own a database; only a superuser ends that."""
    token, other = place.token("ann"), place.token("ann")
    place.server.execute("DROP DATABASE IF EXISTS hers")
    place.server.execute(f'CREATE DATABASE hers OWNER "{token[0]}"')
    try:
        with pytest.raises(ConfigurationError, match=r"can no longer log in.*owner of database hers"):
            access.remove_user(place.admin, "ann")
        for one in (token, other):
            with pytest.raises(Denied):
                place.store(place.url(one)).catalog().exchange(None, 0)
        assert access.users(place.admin) == []
        left = place.server.execute("SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname ~ '^ann'")
        assert left == [(token[0], False)]
    finally:
        place.server.execute("DROP DATABASE hers")
        place.server.execute(f'DROP ROLE "{token[0]}"')
