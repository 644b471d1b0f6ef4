"""Grants: which user may view a study, work in it, or own it. Given by the study's owners."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Final, NamedTuple

from hopaas_p2p.errors import InvalidInput, NoSuchStudy
from hopaas_p2p.stores.postgres.store import PostgresStore

ROLES: Final = ("viewer", "worker", "owner")


class Grant(NamedTuple):
    """What one user may do in one study."""

    user: str
    role: str
    granted: datetime.datetime
    granted_by: str


def grant(url: str, study: str, user: str, role: str) -> None:
    """Let a user view a study, work in it, or own it. For the study's owners.

    Raises:
        InvalidInput: no such role.
        NoSuchStudy: no such study.
        Denied: you do not own it.

    """
    if role not in ROLES:
        raise InvalidInput(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    with _opened(url) as store:
        store.call("grant", log=_uuid(store, study), user=user, role=role)


def revoke(url: str, study: str, user: str) -> None:
    """Take a user's grant for a study away. For the study's owners; raises as `grant`."""
    with _opened(url) as store:
        store.call("revoke", log=_uuid(store, study), user=user)


def grants(url: str, study: str) -> list[Grant]:
    """Who may do what in a study. For everybody with a grant."""
    with _opened(url) as store:
        return [Grant(*row) for row in store.call("grants", log=_uuid(store, study))]


@contextlib.contextmanager
def _opened(url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(url)
    try:
        yield store
    finally:
        store.close()


def _uuid(store: PostgresStore, name: str) -> str:
    from hopaas_p2p.peer import identity
    from hopaas_p2p.peer.courier import microseconds
    from hopaas_p2p.peer.replica import catalog_replica

    replica = catalog_replica(store.catalog(), writer=identity.new_uuid(), now_us=microseconds)
    replica.exchange()
    listing = replica.state.by_name.get(name)
    if listing is None:
        raise NoSuchStudy(f"There is no study {name!r} in this store; list them with: hopaas-p2p study list")
    return listing.uuid
