"""What a study asks of its store."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from hopaas_p2p.peer.caller import Caller
from hopaas_p2p.stores.base import Beat, ExchangeResult, Outgoing
from hopaas_p2p.study import Study


@contextlib.contextmanager
def blocked(store: type, method: str) -> Iterator[list[float]]:
    """The seconds that this thread spends in calls of this method."""
    mine, call, spent = threading.get_ident(), getattr(store, method), list[float]()

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            if threading.get_ident() == mine:
                spent.append(time.perf_counter() - began)

    setattr(store, method, timed)
    try:
        yield spent
    finally:
        setattr(store, method, call)


def exchanges_of(study: Study, monkeypatch: pytest.MonkeyPatch) -> list[Outgoing | None]:
    """The commits that are sent from now on, one for each exchange; None for one that only reads."""
    log = study.handle.log.log
    made: list[Outgoing | None] = []
    exchange = log.exchange

    def noted(outgoing: Outgoing | None, since: int, beat: Beat | None = None) -> ExchangeResult:
        made.append(outgoing)
        return exchange(outgoing, since, beat)

    monkeypatch.setattr(log, "exchange", noted)
    return made


def waits_of_this_thread(monkeypatch: pytest.MonkeyPatch) -> list[Caller]:
    """What this thread waits for the threads that talk to a store."""
    mine, wait, waits = threading.get_ident(), Caller.wait, list[Caller]()

    def counted(caller: Caller) -> None:
        if threading.get_ident() == mine:
            waits.append(caller)
        wait(caller)

    monkeypatch.setattr(Caller, "wait", counted)
    return waits
