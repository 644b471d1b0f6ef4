"""Optuna's storage on a replica: a drop-in for `optuna.create_study(storage=…)`.

Reads come from memory. `create_new_trial` and the end of a trial wait for one exchange with the store; everything a
running trial is told in between waits in the outbox and leaves with the next one. Only the process that runs a trial
may change it (or one that the storage or trial travelled to, by fork or pickle).

The only file that imports `optuna.storages`, but for export, which reads and writes those of others.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from optuna.storages import BaseStorage

from hopaas_p2p.core.records import Policy
from hopaas_p2p.errors import ConfigurationError, InvalidInput, StoreUnreachable
from hopaas_p2p.frozen import copy_of
from hopaas_p2p.peer.courier import Courier
from hopaas_p2p.peer.identity import describe
from hopaas_p2p.storage.leases import Leases
from hopaas_p2p.storage.part import Mode, Options, Part
from hopaas_p2p.storage.reading import Reading
from hopaas_p2p.storage.studies import Studies
from hopaas_p2p.stores.url import open_store


def open_storage(
    url: str | os.PathLike[str],
    *,
    lease_ttl: float = 120.0,
    attempts: int = 3,
    linger: float | None = None,
    patience: float = 60.0,
    allow_pickles: bool = False,
    create: bool = True,
    acts_for: Iterable[str] = (),
    peer_ttl: float | None = None,
    on_behalf_of: str = "",
) -> Storage:
    """A storage for `optuna.create_study(storage=…)`, shared by every process that opens the same URL.

    Args:
        url: a directory, or a URL; see `hopaas_p2p.stores.url.open_store`.
        lease_ttl: seconds of silence after which a peer's trials are taken over, in studies created through this
            storage. A killed peer's trial is back within twice that.
        attempts: how often one set of parameters may be started, in studies created through this storage.
        linger: seconds for which reports wait for company before they are sent by themselves; if not said, 1 s, in a
            bucket 5 s, and longer the more peers write to the study. `flush` sends them at once.
        patience: seconds for which a call tries an unreachable store before it raises `StoreUnreachable`.
        allow_pickles: let Optuna's CMA-ES sampler pass its pickles between peers. Only among people you trust: who
            may write to the study can then run code in every peer that uses that sampler.
        create: whether a directory that is no store yet becomes one.
        acts_for: uuids of peers whose running trials this process may go on with, as a ticket of the shell does.
        peer_ttl: a longer silence than the study's that others shall grant this peer, in seconds.
        on_behalf_of: the person whom a service acts for, told in the log beside the service's own login. The service
            says so; the store does not vouch for it.

    Raises:
        ConfigurationError: the URL or the store cannot be used; the message says what to change.
    """
    if not lease_ttl > 0:
        raise InvalidInput(f"lease_ttl must be positive, got {lease_ttl}")
    options = Options(
        url=open_store(url, create=create).url,
        policy=Policy(ttl=float(lease_ttl), attempts=attempts),
        linger=linger,
        patience=patience,
        allow_pickles=allow_pickles,
        peer_ttl=peer_ttl,
        on_behalf_of=on_behalf_of,
    )
    return Storage(options, _open_courier(options, frozenset(acts_for)))


def _open_courier(options: Options, acts_for: frozenset[str] = frozenset()) -> Courier:
    store = open_store(options.url)
    return Courier(
        store,
        linger=options.linger,
        patience=options.patience,
        acts_for=acts_for,
        peer_ttl=options.peer_ttl,
        describe=partial(describe, on_behalf_of=options.on_behalf_of),
    )


_revived: Final[weakref.WeakValueDictionary[tuple[int, str], Courier]] = weakref.WeakValueDictionary()
"""(process, courier a storage was pickled with) -> the one it has here: unpickled again and again, it is one peer."""


class Storage(Studies, Leases, Reading, BaseStorage):
    """See `open_storage`. Thread-safe; a fork or an unpickled copy is a new peer that may act for this one's trials."""

    def __init__(self, options: Options, courier: Courier) -> None:
        self._options = options
        self._parts: dict[int, Part] = {}
        self._mode = Mode()
        self.courier = courier

    def __repr__(self) -> str:
        return f"hopaas_p2p.open_storage({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        with contextlib.suppress(StoreUnreachable):  # the copy sends what it touches anew
            self.courier.flush()
        mine = self.courier.acts_for | {self.courier.uuid}
        return {"options": self._options, "acts_for": mine, "origin": self.courier.uuid, "pid": os.getpid()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = state["options"]
        if options.url.startswith("memory:") and state["pid"] != os.getpid():
            raise ConfigurationError(f"{options.url} lives in one process; give the others a directory or a URL")
        key = (os.getpid(), state["origin"])
        courier = _revived.get(key) or _open_courier(options, state["acts_for"])
        _revived[key] = courier
        self.__init__(options, courier)  # type: ignore[misc]  # a revived storage is a new one

    def close(self) -> None:
        """Send what is queued and let go of the store. Blocks for 5 s at most."""
        self.courier.close()

    def flush(self) -> None:
        """Send what is queued. Blocks until the store has it, or raises `StoreUnreachable`."""
        self.courier.flush()

    def remove_session(self) -> None:
        """Optuna calls this at the end of `optimize`: see that reports and attributes are in the store."""
        with contextlib.suppress(StoreUnreachable):  # stays queued
            self.flush()


__all__ = ["Storage", "copy_of", "open_storage"]
