"""A campaign over a long link: our Postgres store beside Optuna's RDBStorage and GrpcStorageProxy on the same server.

The link is `testing.latency.Relay`; the gRPC proxy stands next to the database, and the link before it. The server
keeps its promises (fsync is on). The shape of a trial is 5 parameters and 10 reports, each followed by `should_prune`,
with the default sampler and the median pruner.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optuna

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, StudyOpen
from hopaas_p2p.core.state import State
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.postgres import PostgresStore
from hopaas_p2p.testing.latency import Relay
from hopaas_p2p.testing.postgres import Server, free_port
from tests.benchmarks import bench_core
from tests.processes import until

ROUND_TRIP = 0.030
_TRIALS = 10_000
_PROCESSES = 32
_SECONDS = 5.0


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: str
    rdb: str = ""
    grpc: str = ""
    asked: str = ""


def rows() -> list[Row]:
    """Every figure, in some two minutes."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Server(durable=True, settings={"max_connections": "120"}) as server:
        access.initialise(server.url())
        server.execute("CREATE DATABASE rdb")
        with _grpc(server) as grpc_port:
            places = _Places(server, grpc_port)
            return [*_trials(places), *_join(places), *_crowd(server), *_shares(server), *_quiet(server)]


class _Places:
    """The same study server by three ways, each over a link."""

    def __init__(self, server: Server, grpc_port: int) -> None:
        self.server, self.grpc_port = server, grpc_port

    @contextlib.contextmanager
    def storage(self, kind: str, round_trip: float) -> Iterator[tuple[Relay, Callable[[], Any]]]:
        """A link, and what opens a storage over it."""
        target = self.grpc_port if kind == "grpc" else self.server.port
        with Relay(target, round_trip=round_trip) as relay:
            opened: list[Any] = []

            def connect() -> Any:
                opened.append(_open(kind, self.server, relay.port))
                return opened[-1]

            yield relay, connect
            for storage in opened:
                if hasattr(storage, "close"):
                    storage.close()
                if hasattr(storage, "engine"):
                    storage.engine.dispose()


def _open(kind: str, server: Server, port: int) -> Any:
    if kind == "ours":
        return hopaas_p2p.open_storage(server.url(port=port))
    if kind == "rdb":
        return optuna.storages.RDBStorage(_rdb_url(server, port))
    return optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)


def _rdb_url(server: Server, port: int = 0) -> str:
    return server.url("rdb", port=port).replace("postgresql:", "postgresql+psycopg2:")


@contextlib.contextmanager
def _grpc(server: Server) -> Iterator[int]:
    """Optuna's gRPC proxy before its RDBStorage, in a process of its own."""
    port = free_port()
    body = (
        "import sys, optuna; optuna.storages.run_grpc_proxy_server("
        "optuna.storages.RDBStorage(sys.argv[1]), host='127.0.0.1', port=int(sys.argv[2]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", body, _rdb_url(server), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: _answers(port), 60)
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# --- a trial -----------------------------------------------------------------------------------------------------


def _objective(trial: optuna.Trial) -> float:
    xs = [trial.suggest_float(name, 0, 1) for name in "abcde"]
    for step in range(10):
        trial.report(sum(xs) / (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return sum(xs)


class _Trial(NamedTuple):
    seconds: float
    blocked: float
    flights: float


def _trials(places: _Places) -> list[Row]:
    found: list[Row] = []
    for round_trip in (0.0, ROUND_TRIP):
        link = f"{round_trip * 1000:.0f} ms"
        plain = _one_trial(places, "ours", round_trip, 50)
        own = _one_trial(places, "ours", round_trip, 50, own=True)
        rdb, grpc = (_one_trial(places, kind, round_trip, 3 if round_trip else 20) for kind in ("rdb", "grpc"))
        found += [
            Row(f"a trial over {link}, ms", *[f"{1000 * one.seconds:,.1f}" for one in (plain, rdb, grpc)]),
            Row(f"… with `Study.optimize` of ours, ms (over {link})", f"{1000 * own.seconds:,.1f}"),
            Row(
                f"flights a trial (over {link})",
                f"{plain.flights:.1f}; ours {own.flights:.1f}",
                f"{rdb.flights:.1f}",
                f"{grpc.flights:.1f}",
                "5",
            ),
        ]
        if round_trip:
            found.append(
                Row(
                    "blocked a trial, in round trips",
                    f"{plain.blocked / round_trip:.2f}; ours {own.blocked / round_trip:.2f}",
                    f"{rdb.seconds / round_trip:.0f}",
                    f"{grpc.seconds / round_trip:.0f}",
                    "2.3; 1.3",
                )
            )
    return found


def _one_trial(places: _Places, kind: str, round_trip: float, trials: int, *, own: bool = False) -> _Trial:
    with places.storage(kind, round_trip) as (relay, connect), _blocked() as blocked:
        storage = connect()
        name = f"{kind}-{round_trip}-{own}"
        pruner = optuna.pruners.MedianPruner()
        study: Any = (
            hopaas_p2p.open_study(storage, name, pruner=pruner)
            if own
            else optuna.create_study(storage=storage, study_name=name, pruner=pruner)
        )
        study.optimize(_objective, n_trials=2)
        relay.reset()
        blocked.clear()
        began = time.perf_counter()
        study.optimize(_objective, n_trials=trials)
        took = time.perf_counter() - began
        return _Trial(took / trials, sum(blocked) / trials, relay.flights / trials)


@contextlib.contextmanager
def _blocked() -> Iterator[list[float]]:
    """The seconds that this thread spends in calls to our store."""
    mine, call, spent = threading.get_ident(), PostgresStore.call, list[float]()

    def timed(store: PostgresStore, name: str, **parameters: Any) -> list[Any]:
        began = time.perf_counter()
        try:
            return call(store, name, **parameters)
        finally:
            if threading.get_ident() == mine:
                spent.append(time.perf_counter() - began)

    PostgresStore.call = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        PostgresStore.call = call  # type: ignore[method-assign]


# --- joining -----------------------------------------------------------------------------------------------------


def _join(places: _Places) -> list[Row]:
    _fill_ours(places.server)
    _fill_rdb(places.server)
    seconds, trips = {}, {}
    for kind in ("ours", "rdb", "grpc"):
        with places.storage(kind, ROUND_TRIP) as (relay, connect):
            began = time.perf_counter()
            study = optuna.load_study(study_name="bench", storage=connect())
            assert len(study.get_trials(deepcopy=False)) == _TRIALS
            seconds[kind] = time.perf_counter() - began
            trips[kind] = relay.round_trips + relay.connections
    return [
        Row("connect and join 10,000 trials over 30 ms, s", *[f"{one:.2f}" for one in seconds.values()], "1.5"),
        Row("… in round trips, TCP's own included", *[f"{one:.0f}" for one in trips.values()], "12"),
    ]


def _fill_ours(server: Server) -> None:
    """The log of 10,000 trials, with a snapshot where a peer would have left one."""
    log, state = bench_core.commits(_TRIALS, alone=False), State()
    last = len(log) // 256 * 256
    data = b""
    for lsn, payload in enumerate(log, 1):
        apply(state, lsn, codec.decode(payload))
        if lsn == last:
            data = snapshot.dump(state)
    store = PostgresStore(server.url())
    store.log("bench").exchange(Outgoing("0", log[0]), 0)
    opening = Commit("opener", 1, "opener", 0, (StudyOpen("bench", "bench"),))
    store.catalog().exchange(Outgoing("opening", codec.encode(opening)), 0)
    _insert(
        server.url(),
        "INSERT INTO hopaas.commits SELECT id, v.lsn, v.nonce, 'admin', 'owner', 0, v.payload FROM hopaas.logs, "
        "(VALUES %s) AS v (lsn, nonce, payload) WHERE uuid = 'bench'",
        [(lsn, f"n{lsn}", payload) for lsn, payload in enumerate(log, 1) if lsn > 1],
    )
    store.log("bench").put_snapshot(last, data)
    store.close()


def _fill_rdb(server: Server) -> None:
    """The same trials in the tables of RDBStorage."""
    study = optuna.create_study(storage=_rdb_url(server), study_name="bench")
    distribution = optuna.distributions.distribution_to_json(optuna.distributions.FloatDistribution(0.0, 1.0))
    now = "2026-01-01 00:00:00"
    url = server.url("rdb")
    trials = [(study._study_id, number, "COMPLETE", now, now) for number in range(_TRIALS)]
    _insert(url, "INSERT INTO trials (study_id, number, state, datetime_start, datetime_complete) VALUES %s", trials)
    select = f"SELECT trial_id, {{}} FROM trials WHERE study_id = {study._study_id}"
    server.execute(
        "INSERT INTO trial_values (trial_id, objective, value, value_type) " + select.format("0, random(), 'FINITE'"),
        database="rdb",
    )
    for name in "abcde":
        server.execute(
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
            + select.format(f"'{name}', random(), '{distribution}'"),
            database="rdb",
        )
    server.execute(
        "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
        + select.format("s, random(), 'FINITE'").replace("FROM trials", "FROM trials, generate_series(0, 9) s"),
        database="rdb",
    )


def _insert(url: str, sql: str, values: list[tuple[Any, ...]]) -> None:
    import psycopg2
    from psycopg2.extras import execute_values

    with contextlib.closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        execute_values(cursor, sql, values, page_size=2000)


# --- many at once ------------------------------------------------------------------------------------------------


def _together(work: Callable[..., None], *arguments: Any) -> list[Any]:
    """What 32 processes put into the queue that each is given, with a barrier to begin at once."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(_PROCESSES), context.Queue()
    everyone = [
        context.Process(target=work, args=(number, barrier, results, *arguments)) for number in range(_PROCESSES)
    ]
    for one in everyone:
        one.start()
    found = [results.get(timeout=120) for _ in everyone]
    for one in everyone:
        one.join()
    return found


def _exchange_only(number: int, barrier: Any, results: Any, url: str) -> None:
    store = PostgresStore(url)
    log = store.log("crowd")
    since = 0
    log.exchange(None, since)
    payload = bench_core.commits(1, alone=False)[-1]
    barrier.wait()
    end = time.perf_counter() + _SECONDS
    waits: list[float] = []
    while (began := time.perf_counter()) < end:
        mark = b"%d:%d" % (number, len(waits))
        receipt = log.exchange(Outgoing(mark.decode(), payload + mark), since)
        waits.append(time.perf_counter() - began)
        since = receipt.entries[-1].lsn
    results.put(waits)
    store.close()


def _crowd(server: Server) -> list[Row]:
    waits = sorted(wait for one in _together(_exchange_only, server.url()) for wait in one)
    return [
        Row("32 processes that only exchange, commits/s", f"{len(waits) / _SECONDS:,.0f}", asked="800"),
        Row(
            "… p50 and p99 of an exchange, ms",
            f"{1000 * waits[len(waits) // 2]:.0f}, {1000 * waits[int(0.99 * len(waits))]:.0f}",
            asked="p99 150",
        ),
    ]


def _optimise(_number: int, barrier: Any, results: Any, kind: str, url: str) -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage: Any = hopaas_p2p.open_storage(url) if kind == "ours" else optuna.storages.RDBStorage(url)
    sampler = optuna.samplers.RandomSampler()
    study = optuna.load_study(study_name="shares", storage=storage, sampler=sampler)
    with _blocked() as blocked:
        study.trials  # noqa: B018  # joined before the clock runs
        barrier.wait()
        blocked.clear()
        began, busy, trials = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < _SECONDS:
            study.optimize(_objective, n_trials=1)
            trials += 1
        took = time.perf_counter() - began
        results.put((trials / took, sum(blocked) / took, (time.process_time() - busy) / took))
    if hasattr(storage, "close"):
        storage.close()


def _shares(server: Server) -> list[Row]:
    """Where the time of 32 processes with the random sampler goes, on the cores that there are."""
    rates = []
    for kind, url in (("ours", server.url()), ("rdb", _rdb_url(server))):
        storage: Any = hopaas_p2p.open_storage(url) if kind == "ours" else url
        optuna.create_study(storage=storage, study_name="shares")
        if kind == "ours":
            storage.close()
        found = _together(_optimise, kind, url)
        rates.append(sum(one[0] for one in found))
        if kind == "ours":
            waiting = sum(one[1] for one in found) / len(found)
            cores = sum(one[2] for one in found)
    return [
        Row("32 processes with the random sampler, trials/s", *[f"{rate:,.0f}" for rate in rates]),
        Row("… cores' worth of Optuna and replicas; share of the time in the store", f"{cores:.2f}; {waiting:.0%}"),
    ]


# --- silence -----------------------------------------------------------------------------------------------------


def _quiet(server: Server) -> list[Row]:
    ttl = 3.0
    with Relay(server.port) as relay:
        storage = hopaas_p2p.open_storage(server.url(port=relay.port), lease_ttl=ttl)
        study = optuna.create_study(storage=storage, study_name="quiet")
        study.ask()
        storage.flush()
        storage.part(study._study_id).membership.read_at = -1e9
        relay.reset()
        began = time.monotonic()
        until(lambda: relay.flights >= 8, 60)
        each = (time.monotonic() - began) / relay.round_trips
        size = (relay.sent + relay.received) / relay.round_trips
        storage.close()
    return [Row("an idle peer exchanges every …, in ttl; bytes", f"{each / ttl:.2f}; {size:.0f}", asked="0.33")]


def main() -> str:
    """A section in Markdown."""
    found = rows()
    lines = ["## Postgres", "", (__doc__ or "").partition("\n\n")[2]]
    lines += ["| what | ours | RDBStorage | GrpcStorageProxy | asked |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in found]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(main())
