"""Opens the store and the peer of a storage, here and in processes to which the storage is sent."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Final, NamedTuple

from hopaas_p2p.core.records import Policy
from hopaas_p2p.errors import NoStore, StoreAway
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.runtime.metering import energy_counter
from hopaas_p2p.runtime.provenance import describe
from hopaas_p2p.stores.base import Store

_LOOK_FOR_STORE: Final = 2.0  # seconds between checks whether a file system is mounted again
_SAY_EVERY: Final = 60.0  # seconds between two log lines saying that it is not


class StorageOptions(NamedTuple):
    """How a storage was opened: the content of its pickle."""

    url: str
    policy: Policy
    linger: float | None
    patience: float | None
    store_wait: float | None
    allow_pickles: bool
    peer_ttl: float | None
    on_behalf_of: str = ""
    operator: bool = False
    named: bool = True


def found_store(url: str | os.PathLike[str], *, create: bool, within: float | None, was_there: bool = False) -> Store:
    """The store; if its file system is not mounted, wait up to `within` seconds, or without a limit if that is None.

    The same holds for a directory that `was_there` and is now missing. Raises like `open_store` when the time is up.
    """
    began = due = time.monotonic()
    while True:
        try:
            return open_store(url, create=create)
        except (StoreAway, NoStore) as error:
            if isinstance(error, NoStore) and not was_there:
                raise
            now = time.monotonic()
            if within is not None and now - began >= within:
                raise
            if now >= due:
                due = now + _SAY_EVERY
                away = f"the store {url} is not there now" if isinstance(error, NoStore) else error
                LOG.warning("waiting: %s", away)
        time.sleep(_LOOK_FOR_STORE if within is None else min(_LOOK_FOR_STORE, within / 4))


def open_peer(options: StorageOptions, acts_for: frozenset[str] = frozenset(), *, was_there: bool = False) -> Peer:
    """A peer of this store. If its file system is not mounted, wait like a call that asks for a trial; see
    `found_store`.
    """
    within = options.patience if options.store_wait is None else options.store_wait
    return Peer(
        found_store(options.url, create=not options.url.startswith("file:"), within=within, was_there=was_there),
        linger=options.linger,
        patience=options.patience,
        store_wait=options.store_wait,
        acts_for=acts_for,
        peer_ttl=options.peer_ttl,
        describe=partial(describe, on_behalf_of=options.on_behalf_of),
        energy=energy_counter(),
    )
