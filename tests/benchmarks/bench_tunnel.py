"""The tunnel beside a direct connection in TLS: the same Postgres, the same machine, one run.

Both sides log in with SCRAM and speak TLS on loopback; over a long link, `support.latency.Relay` stands before Postgres
on one side and before the gateway on the other.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import optuna
import psycopg2

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.net.proxies import ServerAddress
from hopaas_p2p.peer.peer import Caller
from hopaas_p2p.tunnel import client
from tests.benchmarks import tunnel_crowd
from tests.support.exchanges import blocked
from tests.support.latency import Relay
from tests.support.objectives import five_parameters as objective
from tests.support.postgres import Server, find_binaries
from tests.support.tunnel_fixtures import HOST, Authority, Centre, GatewayProcess

ROUND_TRIP: Final = 0.030
KINDS: Final = ("direct", "tunnel")
_CONNECTIONS: Final = 4
_ROUNDS: Final = 30
_EACH: Final = 100


class Row(NamedTuple):
    """One line of the table."""

    what: str
    direct: str
    tunnel: str
    ratio: str = ""
    asked: str = ""


class Place:
    """A Postgres that speaks TLS, a gateway before it, and one token for both ways."""

    def __init__(self, centre: Centre, gateway: GatewayProcess, token: access.NewToken) -> None:
        self.server, self.gateway, self.authority = centre.server, gateway, centre.authority
        self.role, _, self._secret = token.secret.reveal().partition(":")

    def login(self) -> dict[str, str]:
        return {"dbname": "store", "user": self.role, "password": self._secret}

    def direct(self, port: int = 0) -> dict[str, Any]:
        """psycopg2's arguments for the direct way."""
        tls = {"sslmode": "verify-full", "sslrootcert": str(self.authority.file), "gssencmode": "disable"}
        return {"host": HOST, "port": port or self.server.port, **tls, **self.login()}

    def connect(self, kind: str, port: int = 0) -> Any:
        if kind == "direct":
            return psycopg2.connect(**self.direct(port))
        return client.connect([ServerAddress(HOST, port or self.gateway.port)], **self.login())

    def url(self, kind: str, port: int = 0) -> str:
        """Of the store by that way, over a link at this port; the token is in the environment."""
        if kind == "tunnel":
            return f"postgresql+https://{HOST}:{port or self.gateway.port}/store"
        return f"postgresql://{HOST}:{port or self.server.port}/store?sslmode=verify-full"

    @contextlib.contextmanager
    def link(self, kind: str) -> Iterator[Relay]:
        """A long link before Postgres, or before the gateway."""
        target = self.server.port if kind == "direct" else self.gateway.port
        with Relay(target, round_trip=ROUND_TRIP) as relay:
            yield relay


@contextlib.contextmanager
def place() -> Iterator[Place]:
    able = [binaries for binaries in find_binaries().values() if binaries.speaks_tls]
    with tempfile.TemporaryDirectory() as name:
        authority = Authority(Path(name))
        chain, key = authority.certificate(name="postgres")
        server = Server(max(able), settings={"max_connections": "560"}, durable=True)
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
                gateway = centre.gateway("--per-token", "600")
                token = centre.token(connections=600)
                os.environ["HOPAAS_TOKEN"] = token.secret.reveal()
                yield Place(centre, gateway, token)
            finally:
                centre.stop()


# --- one exchange ------------------------------------------------------------------------------------------------


def _select(connection: Any, times: int) -> list[float]:
    connection.autocommit = True
    waits = []
    with connection.cursor() as cursor:
        for _ in range(times):
            began = time.perf_counter()
            cursor.execute("SELECT 1")
            cursor.fetchall()
            waits.append(time.perf_counter() - began)
    return waits


def _one_statement(here: Place) -> list[Row]:
    """In turns, so that both sides see the same load; and over several connections, for where the system has put a
    connection's processes, beside each other or not, it leaves them."""
    near: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(_CONNECTIONS):
        for kind, waits in _in_turns({kind: here.connect(kind) for kind in KINDS}, _EACH).items():
            near[kind] += waits
    with here.link("direct") as one, here.link("tunnel") as other:
        far = _in_turns({"direct": here.connect("direct", one.port), "tunnel": here.connect("tunnel", other.port)}, 2)
    return [
        _row("`SELECT 1` on loopback, ms", _each(_quietest, near), 1e3, "{:.3f}", "5 x, 0.6 ms"),
        _row("… mean over all, other load on the machine included, ms", _each(statistics.fmean, near), 1e3, "{:.3f}"),
        _row("`SELECT 1` over 30 ms, median, ms", _each(statistics.median, far), 1e3, "{:.2f}", "1.05 x"),
    ]


def _in_turns(ways: dict[str, Any], times: int) -> dict[str, list[float]]:
    waits: dict[str, list[float]] = {kind: [] for kind in ways}
    for _ in range(_ROUNDS):
        for kind, connection in ways.items():
            waits[kind] += _select(connection, times)
    for connection in ways.values():
        connection.close()
    return waits


def _quietest(waits: list[float]) -> float:
    """The median of the round that the machine's other work disturbed least."""
    return min(statistics.median(waits[at : at + _EACH]) for at in range(0, len(waits), _EACH))


def _each(of: Callable[[list[float]], float], waits: dict[str, list[float]]) -> dict[str, float]:
    return {kind: of(found) for kind, found in waits.items()}


def _row(what: str, found: dict[str, float], scale: float, form: str, asked: str = "") -> Row:
    direct, tunnel = (form.format(scale * found[kind]) for kind in ("direct", "tunnel"))
    return Row(what, direct, tunnel, f"{found['tunnel'] / found['direct']:.2f} x", asked)


# --- connecting --------------------------------------------------------------------------------------------------


def _connecting(here: Place) -> list[Row]:
    seconds, trips, near = {}, {}, {}
    for kind in KINDS:
        here.connect(kind).close()  # the gateway knows the token from here on
        with here.link(kind) as relay:
            taken = []
            for _ in range(5):
                relay.reset()
                began = time.perf_counter()
                connection = here.connect(kind, relay.port)
                taken.append(time.perf_counter() - began)
                trips[kind] = relay.round_trips + 1  # TCP's own
                connection.close()
            seconds[kind] = statistics.median(taken) / ROUND_TRIP
        near[kind] = statistics.median(_timed(lambda kind=kind: here.connect(kind).close()) for _ in range(20))
    difference = f"{seconds['tunnel'] - seconds['direct']:+.1f}"
    return [
        Row(
            "connect over 30 ms, in round trips' time",
            f"{seconds['direct']:.1f}",
            f"{seconds['tunnel']:.1f}",
            difference,
            "+1",
        ),
        Row("… round trips, TCP's own included", f"{trips['direct']:.0f}", f"{trips['tunnel']:.0f}", "", "+1"),
        _row("connect on loopback, ms", near, 1e3, "{:.1f}"),
    ]


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# --- a trial -----------------------------------------------------------------------------------------------------


def _trials(here: Place) -> list[Row]:
    rows = []
    for own in (False, True):
        waits = dict.fromkeys(KINDS, 0.0)
        for turn, kind in enumerate((*KINDS, *reversed(KINDS))):
            with here.link(kind) as relay, blocked(Caller, "wait") as spent:
                storage = hopaas_p2p.open_storage(here.url(kind, relay.port))
                name = f"{turn}-{own}"
                study: Any = (
                    hopaas_p2p.open_study(storage, name)
                    if own
                    else optuna.create_study(storage=storage, study_name=name)
                )
                study.optimize(objective, n_trials=3)
                spent.clear()
                study.optimize(objective, n_trials=20)
                waits[kind] += sum(spent) / 40
                storage.close()
        what = "`Study.optimize` of ours" if own else "Optuna's `optimize`"
        rows.append(_row(f"blocked per trial over 30 ms, {what}, ms", waits, 1e3, "{:.1f}", "1.05 x"))
    return rows


# --- a crowd -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _cores(gateway: int, postgres: int) -> Iterator[None]:
    """One core for the gateway; another one for Postgres and the peers, also when there is no gateway between them.

    Else hundreds of Postgres' processes that want to run would keep the gateway's one from running, which are on
    another machine in earnest.
    """
    everything = os.sched_getaffinity(0)
    if len(everything) < 2:
        yield
        return
    first, second, *_ = sorted(everything)
    for pid, core in ((gateway, second), (postgres, first), (0, first)):
        os.sched_setaffinity(pid, {core})
    try:
        yield
    finally:
        for pid in (gateway, postgres, 0):
            os.sched_setaffinity(pid, everything)


def _crowd(here: Place) -> list[Row]:
    assert here.gateway.process is not None
    pid = here.gateway.process.pid
    statement = tunnel_crowd.statement_of(here.url("direct"))
    ways: dict[str, Callable[[], tunnel_crowd.Session]] = {
        "direct": lambda: tunnel_crowd.directly(here.server.port, here.login(), here.authority.file),
        "tunnel": lambda: tunnel_crowd.through(here.gateway.port, here.login()),
    }
    loads: dict[str, list[tunnel_crowd.Load]] = {kind: [] for kind in KINDS}
    before, idle, used = tunnel_crowd.memory(pid), 0, 0.0

    def connected() -> None:
        nonlocal idle, used
        idle = idle or tunnel_crowd.memory(pid)
        used -= tunnel_crowd.cpu_seconds(pid)

    with _cores(pid, here.server.pid):
        loads["direct"].append(tunnel_crowd.run(ways["direct"], statement))
        for _ in range(2):
            loads["tunnel"].append(tunnel_crowd.run(ways["tunnel"], statement, connected))
            used += tunnel_crowd.cpu_seconds(pid)
        loads["direct"].append(tunnel_crowd.run(ways["direct"], statement))
    most = tunnel_crowd.memory(pid, most=True)
    direct, through = (tunnel_crowd.together(loads[kind]) for kind in KINDS)
    exchanges = sum(load.exchanges for load in loads["tunnel"]) * tunnel_crowd.SECONDS
    peers = tunnel_crowd.PEERS
    return [
        Row(
            f"{peers} peers, one core for the gateway and one for the rest, exchanges/s",
            f"{direct.exchanges:,.0f}",
            f"{through.exchanges:,.0f}",
            f"{through.exchanges / direct.exchanges:.2f} x",
            "1,500, or what Postgres does",
        ),
        Row(
            "… p50, p99 of an exchange, ms",
            f"{1e3 * direct.p50:.0f}, {1e3 * direct.p99:.0f}",
            f"{1e3 * through.p50:.0f}, {1e3 * through.p99:.0f}",
        ),
        Row(
            "… gateway CPU per exchange, µs; exchanges per second that one core can carry",
            "",
            f"{1e6 * used / exchanges:.0f}; {exchanges / used:,.0f}",
            "",
            "1,500",
        ),
        Row(
            "… gateway memory per connection, kB: idle; maximum during exchanges",
            "",
            f"{(idle - before) / peers / 1e3:.0f}; {(most - before) / peers / 1e3:.0f}",
            "",
            "250",
        ),
    ]


def main() -> str:
    """The table, in Markdown."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with place() as here:
        found = [*_one_statement(here), *_connecting(here), *_trials(here), *_crowd(here)]
    lines = ["| The tunnel | direct TLS | through the gateway | tunnel to direct | asked |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in found]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(main())
