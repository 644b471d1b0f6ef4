"""How a storage is opened, here and where it travels to."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import Final, NamedTuple

from hopaas_p2p.core.records import Policy
from hopaas_p2p.errors import StoreAway
from hopaas_p2p.metering import energy_counter
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.provenance import describe
from hopaas_p2p.stores.base import Store
from hopaas_p2p.stores.url import open_store

_log: Final = logging.getLogger("hopaas_p2p")
_LOOK_FOR_STORE: Final = 2.0  # seconds between looks whether a file system is mounted again


class StorageOptions(NamedTuple):
    """How a storage was opened: what travels in a pickle."""

    url: str
    policy: Policy
    linger: float | None
    patience: float | None
    store_wait: float | None
    allow_pickles: bool
    peer_ttl: float | None
    on_behalf_of: str = ""
    operator: bool = False


def found_store(url: str | os.PathLike[str], *, create: bool, within: float | None) -> Store:
    """The store; one whose file system is away is waited for, within so many seconds or for as long as it takes."""
    began, said = time.monotonic(), False
    while True:
        try:
            return open_store(url, create=create)
        except StoreAway as error:
            if within is not None and time.monotonic() - began >= within:
                raise
            if not said:
                _log.warning("waiting: %s", error)
            said = True
        time.sleep(_LOOK_FOR_STORE if within is None else min(_LOOK_FOR_STORE, within / 4))


def open_peer(options: StorageOptions, acts_for: frozenset[str] = frozenset()) -> Peer:
    """The peer of a storage that is opened like this."""
    return Peer(
        open_store(options.url, create=not options.url.startswith("file:")),
        linger=options.linger,
        patience=options.patience,
        store_wait=options.store_wait,
        acts_for=acts_for,
        peer_ttl=options.peer_ttl,
        describe=partial(describe, on_behalf_of=options.on_behalf_of),
        energy=energy_counter(),
    )
