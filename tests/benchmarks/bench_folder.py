"""What a folder adds: the same commits, sent to Postgres directly and through a folder, over one link.

The server of the folder is a process of its own; the link is `tests.support.latency.Relay`; database and folder keep
their promises (fsync is on). A commit is what a `tell` costs: a few hundred bytes, and the wait until it is safe.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil

from hopaas_p2p import access
from hopaas_p2p.open import open_store
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.stores.base import Log, Outgoing, Store
from hopaas_p2p.stores.postgres.store import PostgresStore
from hopaas_p2p.testing.commits import append, append_many, everything, outgoing
from tests.support.latency import Relay
from tests.support.postgres import Server
from tests.support.served import FolderProcess

_COMMITS: Final = 100
_PEERS: Final = 8
_LONG: Final = 10_000
_IDLE: Final = 10.0  # seconds


def main() -> str:
    """The table, in about a minute."""
    lines = ["| | direct | through a folder | ratio |", "|---|--:|--:|--:|"]
    with Server(durable=True) as server, tempfile.TemporaryDirectory() as folder:
        access.initialise(server.url())
        for number, round_trip in enumerate((0.0, 0.030)):
            with Relay(server.port, round_trip=round_trip) as relay:
                url = server.url().replace(str(server.port), str(relay.port))
                with _served(Path(folder, str(number)), url) as (near, served):
                    lines += _one(url, near, round_trip)
                    if round_trip:
                        lines += _crowd(url, near, round_trip)
                        lines += _catching_up(server, url, near)
                        lines.append(_idle(served, relay))
    return "\n".join(["## Through a folder", "", *lines])


@contextlib.contextmanager
def _served(folder: Path, url: str) -> Iterator[tuple[str, FolderProcess]]:
    folder.mkdir()
    box = folder / "box"
    made = FolderProcess(box, url, folder).start()
    try:
        yield f"folder://{box}", made
    finally:
        made.kill()


def _row(what: str, direct: float, bridged: float, form: str = "{:,.1f}") -> str:
    return f"| {what} | {form.format(direct)} | {form.format(bridged)} | {bridged / direct:.2f} x |"


def _one(url: str, near: str, round_trip: float) -> list[str]:
    """One peer at a time: the wait for a commit."""
    found = {}
    for name, store in (("direct", open_store(url)), ("bridged", open_store(near))):
        log, since, seconds = store.log(f"one-{name}-{1000 * round_trip:.0f}"), 0, []
        for number in range(_COMMITS):
            began = time.perf_counter()
            since = append(log, outgoing(f"{name}-{number}", 300), since).entries[-1].lsn
            seconds.append(time.perf_counter() - began)
        found[name] = 1000 * statistics.median(seconds[10:])
        store.close()
    added = found["bridged"] - found["direct"]
    what = f"commit latency over a {1000 * round_trip:.0f} ms link, ms (a folder adds {added:.1f})"
    return [_row(what, found["direct"], found["bridged"])]


def _crowd(url: str, near: str, round_trip: float) -> list[str]:
    """Several peers at once: commits per second."""
    direct = _rate(lambda: PostgresStore(url), "direct")
    bridged = _rate(lambda: open_store(near), "bridged")
    return [_row(f"{_PEERS} peers over {1000 * round_trip:.0f} ms, commits/s", direct, bridged)]


def _rate(new_store: Callable[[], Store], name: str) -> float:
    stores = [new_store() for _ in range(_PEERS)]
    logs = [store.log(f"crowd-{name}") for store in stores]
    for log in logs:
        log.exchange(None, 0)

    def write(log: Log, writer: str) -> None:
        since = 0
        for number in range(_COMMITS // 2):
            payload = outgoing(f"{writer}-{number}", 300).payload
            since = append(log, Outgoing(f"{writer}:{number}", payload), since).entries[-1].lsn

    threads = [threading.Thread(target=write, args=(log, f"{name}-{index}")) for index, log in enumerate(logs)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - began
    for store in stores:
        store.close()
    return _PEERS * (_COMMITS // 2) / taken


def _catching_up(server: Server, url: str, near: str) -> list[str]:
    """A study of 10,000 commits, read for the first time, and once it has been brought."""
    writer = PostgresStore(server.url())
    append_many(writer.log("long"), "long", _LONG)
    writer.close()
    seconds = []
    for place in (url, near, near):
        store = open_store(place)
        if isinstance(store, RemoteStore):
            store.connections.timeout = 120.0  # type: ignore[union-attr]
        began = time.perf_counter()
        log, count = store.log("long"), 0
        while count < _LONG:
            count += len(everything(log, count))
        seconds.append(time.perf_counter() - began)
        store.close()
    return [
        _row(f"a study of {_LONG:,} commits, copied for the first time, s", seconds[0], seconds[1], "{:,.2f}"),
        _row("… read by the next peer, s", seconds[0], seconds[2], "{:,.2f}"),
    ]


def _idle(served: FolderProcess, relay: Relay) -> str:
    """What a server costs that has nothing to carry."""
    assert served.process is not None
    process = psutil.Process(served.process.pid)
    time.sleep(6)  # until it looks less often
    relay.reset()
    before, began = process.cpu_times(), time.perf_counter()
    time.sleep(_IDLE)
    after, taken = process.cpu_times(), time.perf_counter() - began
    share = (after.user + after.system - before.user - before.system) / taken
    return f"| a server at rest, requests/s; share of a core | | {relay.round_trips / taken:.1f}; {share:.1%} | |"


if __name__ == "__main__":
    print(main())
