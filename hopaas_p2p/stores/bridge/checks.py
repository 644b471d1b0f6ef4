"""What `hopaas-p2p doctor` looks at in one end of a bridge: whether, and how quickly, the other end is reached."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Final

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.net.findings import Finding
from hopaas_p2p.stores.base import EXCHANGE_TIMEOUT
from hopaas_p2p.stores.bridge.store import BridgedStore
from hopaas_p2p.stores.directory import checks as directory_checks
from hopaas_p2p.stores.directory.store import DirectoryStore

_CURE: Final = (
    "start it on a node that reaches both sides: hopaas-p2p bridge NEAR FAR; if it runs, read its messages, and "
    "run on that node: hopaas-p2p doctor FAR"
)


def checks(store: BridgedStore) -> Generator[Finding, None, bool]:
    """The findings about the near side and the bridge. Without a bridge nothing else can be checked."""
    if isinstance(store.near, DirectoryStore):
        yield from directory_checks.checks(store.near)
    began = time.monotonic()
    try:
        store.wait_for_round(EXCHANGE_TIMEOUT)
    except StoreUnreachable:
        waited = time.monotonic() - began
        detail = f"no bridge has reached {store.leads_to} for {waited:.0f} s; {_waiting(store)}"
        yield Finding("bridge", passed=False, detail=detail, cure=_CURE)
        return False
    taken = time.monotonic() - began
    yield Finding("bridge", passed=True, detail=f"reaches {store.leads_to}; a round took {taken:.1f} s")
    yield Finding("inbox", passed=True, detail=_waiting(store))
    return True


def _waiting(store: BridgedStore) -> str:
    count = store.waiting()
    said = {0: "nothing waits", 1: "1 request waits"}.get(count, f"{count} requests wait")
    return f"{said} in the inbox"
