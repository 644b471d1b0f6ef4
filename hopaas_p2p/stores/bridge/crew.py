"""Several hands for one log: commits of different writers cross a long link side by side.

A commit costs a round trip, and a log takes one at a time from each connection; with eight peers behind a bridge they
would queue for its only one. So what waits is sent over several connections at once. Writers stay in their own order:
of each, at most one commit is under way. It is a short cut and no more: what goes wrong here is done again by the lane.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from hopaas_p2p.errors import HopaasError
from hopaas_p2p.stores.base import Outgoing, Receipt, Store
from hopaas_p2p.stores.bridge.frames import CATALOG, Append


class Crew:
    """Further handles on the far store, each with a connection of its own, made when it is needed."""

    def __init__(self, stores: Sequence[Store] = ()) -> None:
        self._stores = stores
        self._threads: ThreadPoolExecutor | None = None

    @property
    def large(self) -> bool:
        """Whether there is anybody to share the work with."""
        return len(self._stores) > 1

    def send(self, name: str, requests: Iterable[Append], since: int) -> list[Receipt]:
        """Append the first commit of each writer to the log of this name; what came of those that went well."""
        first: dict[str, Append] = {}
        for request in requests:
            first.setdefault(request.nonce.rpartition(":")[0], request)
        pairs = list(zip(self._stores, first.values(), strict=False))
        if len(pairs) < 2:
            return []
        if self._threads is None:
            self._threads = ThreadPoolExecutor(len(self._stores), thread_name_prefix="hopaas-bridge")

        def ask(pair: tuple[Store, Append]) -> Receipt:
            store, request = pair
            log = store.catalog() if name == CATALOG else store.log(name)
            try:
                return log.exchange(Outgoing(request.nonce, request.payload), since)
            except HopaasError:
                return Receipt([])

        return list(self._threads.map(ask, pairs))

    def close(self) -> None:
        """Let go of the connections."""
        if self._threads is not None:
            self._threads.shutdown()
        for store in self._stores:
            store.close()
