"""A store that is served beside the same store reached directly: one machine, one run, in turns.

Over a long link, `support.latency.Relay` stands before Postgres on one side and before the server on the other.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import optuna

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.peer import Caller
from hopaas_p2p.remote.client import RemoteStore
from hopaas_p2p.stores.base import Store
from hopaas_p2p.testing.commits import outgoing
from tests.support.exchanges import blocked
from tests.support.latency import Relay
from tests.support.objectives import five_parameters as objective
from tests.support.postgres import Server, find_binaries
from tests.support.served import HOST, Authority, Centre, HttpsProcess, administrator

ROUND_TRIP: Final = 0.030
KINDS: Final = ("direct", "https")
_ROUNDS: Final = 20
_EACH: Final = 50
_SECONDS: Final = 4.0


class Row(NamedTuple):
    """One line of the table."""

    what: str
    direct: str
    https: str
    ratio: str = ""
    asked: str = ""


class Place:
    """A Postgres that speaks TLS, a server before it, and one token for both ways."""

    def __init__(self, centre: Centre, server: HttpsProcess) -> None:
        self.ports = {"direct": centre.server.port, "https": server.port}

    def url(self, kind: str, port: int = 0) -> str:
        where = f"{HOST}:{port or self.ports[kind]}"
        return f"https://{where}" if kind == "https" else f"postgresql://{where}/store?sslmode=verify-full"

    @contextlib.contextmanager
    def link(self, kind: str) -> Iterator[str]:
        """The store by a long link."""
        with Relay(self.ports[kind], round_trip=ROUND_TRIP) as relay:
            yield self.url(kind, relay.port)


@contextlib.contextmanager
def place() -> Iterator[Place]:
    able = [binaries for binaries in find_binaries().values() if binaries.speaks_tls]
    with tempfile.TemporaryDirectory() as name:
        authority = Authority(Path(name))
        chain, key = authority.certificate(name="postgres")
        server = Server(max(able), durable=True)
        server.settings |= {
            "ssl": "on",
            "ssl_cert_file": str(server.place("server.crt", chain.read_bytes())),
            "ssl_key_file": str(server.place("server.key", key.read_bytes())),
        }
        with server:
            server.execute("CREATE DATABASE store")
            access.initialise(server.url("store"))
            centre = Centre(server, server.url("store"), Path(name), authority)
            os.environ["HOPAAS_CA_FILE"] = str(authority.file)
            try:
                os.environ["HOPAAS_TOKEN"] = centre.token().secret.reveal()
                yield Place(centre, centre.serve())
            finally:
                centre.stop()


def _exchanges(store: Store, name: str, times: int) -> list[float]:
    log, since, waits = store.log(name), 0, []
    for number in range(times):
        began = time.perf_counter()
        since = log.exchange(outgoing(f"{name}-{number}"), since).entries[-1].lsn
        waits.append(time.perf_counter() - began)
    return waits


def _row(what: str, found: dict[str, float], form: str, asked: str = "") -> Row:
    direct, https = (form.format(1e3 * found[kind]) for kind in KINDS)
    return Row(what, direct, https, f"{found['https'] / found['direct']:.2f} x", asked)


def _one_exchange(here: Place) -> list[Row]:
    near: dict[str, list[float]] = {kind: [] for kind in KINDS}
    busy: dict[str, list[float]] = {kind: [] for kind in KINDS}
    far: dict[str, list[float]] = {kind: [] for kind in KINDS}
    stores = {kind: open_store(here.url(kind)) for kind in KINDS}
    for turn in range(_ROUNDS):
        for kind, store in stores.items():
            near[kind] += _exchanges(store, f"near-{kind}-{turn}", _EACH)
    over = threading.Event()
    spinning = threading.Thread(target=_spin, args=(over,))
    spinning.start()
    for turn in range(2):
        for kind, store in stores.items():
            busy[kind] += _exchanges(store, f"busy-{kind}-{turn}", 30)
    over.set()
    spinning.join()
    for store in stores.values():
        store.close()
    for kind in KINDS:
        with here.link(kind) as url, contextlib.closing(open_store(url)) as store:
            far[kind] = _exchanges(store, f"far-{kind}", 60)
    median = statistics.median
    return [
        _row("an exchange on loopback, ms", {kind: median(near[kind]) for kind in KINDS}, "{:.3f}"),
        _row("… over 30 ms, ms", {kind: median(far[kind]) for kind in KINDS}, "{:.2f}", "1.05 x"),
        _row("… beside a busy Python thread, ms", {kind: median(busy[kind]) for kind in KINDS}, "{:.1f}"),
    ]


def _spin(over: threading.Event) -> None:
    total = 0
    while not over.is_set():
        total = sum(range(1000)) + total % 7


def _trials(here: Place) -> list[Row]:
    waits = dict.fromkeys(KINDS, 0.0)
    for turn, kind in enumerate((*KINDS, *reversed(KINDS))):
        with here.link(kind) as url, blocked(Caller, "wait") as spent:
            storage = hopaas_p2p.open_storage(url)
            study = hopaas_p2p.open_study(storage, str(turn))
            study.optimize(objective, n_trials=3)
            spent.clear()
            study.optimize(objective, n_trials=20)
            waits[kind] += sum(spent) / 40
            storage.close()
    return [_row("blocked per trial over 30 ms, ms", waits, "{:.1f}", "1.05 x")]


def _used_by(pid: int) -> float:
    """Seconds of CPU time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _crowd(peers: int) -> Row:
    """Peers of one process, on a directory in memory, each in a study of eight."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        url, authority = f"{name}/store", Authority(Path(name))
        open_store(url).close()
        pair = [str(path) for path in authority.certificate()]
        os.environ["HOPAAS_CA_FILE"], os.environ["HOPAAS_TOKEN"] = str(authority.file), administrator(url)
        server = HttpsProcess(
            Path(name), url, "--tls-cert", pair[0], "--tls-key", pair[1], "--per-token", "600"
        ).start()
        assert server.process is not None
        status = Path(f"/proc/{server.process.pid}/status")
        stores = [RemoteStore(f"https://{HOST}:{server.port}") for _ in range(peers)]
        for store in stores:
            store.facts()
        if peers == 1:
            waits = {
                "direct": _exchanges(open_store(url), "direct", 1000),
                "https": _exchanges(stores[0], "https", 1000),
            }
            server.kill()
            alone = {kind: statistics.median(found) for kind, found in waits.items()}
            return _row("an exchange on loopback, a directory in memory, ms", alone, "{:.3f}", "1 ms")
        memory = int(status.read_text().partition("VmRSS:")[2].split()[0]) // 1024
        over, counts = threading.Event(), [0] * peers

        def work(number: int) -> None:
            log, since = stores[number].log(f"study-{number // 8}"), 0
            while not over.is_set():
                entries = log.exchange(outgoing(f"{number}-{counts[number]}"), since).entries
                since = entries[-1].lsn if entries else since
                counts[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(peers)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        before, used = sum(counts), _used_by(server.process.pid) + time.process_time()
        time.sleep(_SECONDS)
        done = sum(counts) - before
        used = _used_by(server.process.pid) + time.process_time() - used
        over.set()
        for thread in threads:
            thread.join()
        for store in stores:
            store.close()
        server.kill()
    return Row(
        f"{peers} busy peers and their server on two cores, a directory in memory: exchanges/s; "
        "CPU of both per exchange, ms; server, MB",
        "",
        f"{done / _SECONDS:,.0f}; {1e3 * used / done:.2f}; {memory}",
        "",
        "1,000; ; 100" if peers < 100 else "800; ; 100",
    )


def main() -> str:
    """The table, in Markdown."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with place() as here:
        found = [*_one_exchange(here), *_trials(here)]
    found += [_crowd(1), _crowd(64), _crowd(500)]
    lines = ["| Through HTTPS | Postgres in TLS | through a server | ratio | asked |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in found]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(main())
