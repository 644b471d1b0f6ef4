"""Opens and checks the two stores of a bridge: a directory that mirrors a store is never the mirror of another.

The far store may ask for a token; the mirror asks nobody. So a directory that the bridge makes is this user's alone,
and of one that others may read the bridge warns.
"""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.stores.base import Store, read_all
from hopaas_p2p.stores.bridge.messages import Segment, unseal
from hopaas_p2p.stores.bridge.store import BridgedStore
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.postgres.store import PostgresStore

_log: Final = logging.getLogger("hopaas_p2p")
CONNECTIONS: Final = 8
"""Connections to Postgres over which commits cross side by side."""


class Endpoints(NamedTuple):
    """Both stores of a bridge, for the bridge alone."""

    near: DirectoryStore
    far: Store
    pool: tuple[Store, ...] = ()
    """Further handles on the far one, if that makes commits quicker."""

    def close(self) -> None:
        for store in (self.near, self.far, *self.pool):
            store.close()


def open_endpoints(near_url: str, far_url: str, open_store: Callable[[str], Store]) -> Endpoints:
    """Open both stores, and make the near one the mirror of the far one if it mirrors none yet.

    Raises:
        ConfigurationError: the near store is no directory, has studies of its own, mirrors another store, or is the
            far one.

    """
    far = open_store(far_url)
    if isinstance(far, BridgedStore):
        raise ConfigurationError(f"{far.url} is itself one end of a bridge; name the store where the studies live")
    _make_private(near_url)
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
        raise ConfigurationError(f"{near.url}: a bridge needs two stores; this is the same store twice")
    _claim(near, far)
    _warn_of_readers(near)
    pool = [open_store(far_url) for _ in range(CONNECTIONS if isinstance(far, PostgresStore) else 0)]
    return Endpoints(near, far, tuple(pool))


def _make_private(near_url: str) -> None:
    """Make the near directory, if it is not there, for this user alone; its errors are told by opening it."""
    scheme, separator, _ = near_url.partition("://")
    if separator and scheme.lower() != "file":
        return
    path = Path(unquote(urlsplit(near_url).path) if separator else near_url).expanduser()
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700)


def _warn_of_readers(near: DirectoryStore) -> None:
    mode = near.path.stat().st_mode
    group, others = mode & stat.S_IXGRP and mode & stat.S_IRGRP, mode & stat.S_IXOTH and mode & stat.S_IROTH
    if group or others:
        _log.warning(
            "%s can be read by %s, and with it the studies that it mirrors, whatever token the far store asks for. To "
            "keep them to yourself: chmod go-rwx %s",
            near.path,
            "every user of this machine" if others else "its group",
            near.path,
        )


def _claim(near: DirectoryStore, far: Store) -> None:
    known = near.bridged_to
    if known == far.url:
        return
    commits = near.catalog().exchange(None, 0).entries
    segments = [segment for commit in commits if (segment := unseal(commit.payload, Segment)) is not None]
    if commits and not segments:
        raise ConfigurationError(
            f"{near.url} has studies of its own, which a bridge would hide. Choose an empty directory for the mirror; "
            "to move the studies, use: hopaas-p2p study export, and import"
        )
    first = next((segment.entries[0][0] for segment in segments if segment.entries), None)
    if first is not None and first != next((entry.payload for entry in read_all(far.catalog())), None):
        raise ConfigurationError(f"{near.url} is the mirror of another store, {known}. Choose an empty directory")
    near.bridge_to(far.url)
