"""The two ends of a bridge, opened and checked: what is mirrored in one place stays the mirror of one store."""

from __future__ import annotations

from typing import Final, NamedTuple

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.stores.base import Store
from hopaas_p2p.stores.bridge.frames import Piece, opened
from hopaas_p2p.stores.bridge.store import BridgedStore
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.stores.url import open_store

CREW: Final = 8
"""Connections to Postgres over which commits cross at once."""


class Ends(NamedTuple):
    """Both stores of a bridge, for the bridge alone."""

    near: DirectoryStore
    far: Store
    crew: tuple[Store, ...] = ()
    """Further handles on the far one, where commits side by side are quicker than one after another."""

    def close(self) -> None:
        for store in (self.near, self.far, *self.crew):
            store.close()


def open_ends(near_url: str, far_url: str) -> Ends:
    """Open both stores, and make the near one the mirror of the far one if it is nobody's yet.

    Raises:
        ConfigurationError: the near store is no directory, has studies of its own, mirrors another store, or is the
            far one.

    """
    far = open_store(far_url)
    if isinstance(far, BridgedStore):
        raise ConfigurationError(f"{far.url} is itself one end of a bridge; name the store where the studies live")
    near = open_store(near_url)
    if isinstance(near, BridgedStore):
        near = near.near
    if not isinstance(near, DirectoryStore):
        near.close()
        raise ConfigurationError(
            f"{near.url}: the near side of a bridge is a directory that local peers share, such as ./campaign. Peers "
            "that reach a bucket or a database use it as their store, without a bridge"
        )
    if near.url == far.url:
        raise ConfigurationError(f"{near.url}: a bridge needs two stores; this is the same one twice")
    _claim(near, far)
    crew = tuple([open_store(far_url) for _ in range(CREW)]) if isinstance(far, PostgresStore) else ()
    return Ends(near, far, crew)


def _claim(near: DirectoryStore, far: Store) -> None:
    known = near.bridged_to
    if known == far.url:
        return
    commits = near.catalog().exchange(None, 0).entries
    pieces = [piece for commit in commits if (piece := opened(commit.payload, Piece)) is not None]
    if commits and not pieces:
        raise ConfigurationError(
            f"{near.url} has studies of its own, which a bridge would hide. Choose an empty directory for the mirror; "
            "to move the studies, use: hopaas-p2p study export, and import"
        )
    first = next((piece.entries[0][0] for piece in pieces if piece.entries), None)
    if first is not None and first != next((e.payload for e in far.catalog().exchange(None, 0).entries), None):
        raise ConfigurationError(f"{near.url} is the mirror of another store, {known}. Choose an empty directory")
    near.bridge_to(far.url)
