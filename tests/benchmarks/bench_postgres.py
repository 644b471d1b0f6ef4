"""A campaign over a long link: our Postgres store beside Optuna's RDBStorage and GrpcStorageProxy on the same server.

`tests.support.latency.Relay` simulates the link. The gRPC proxy runs next to the database, behind the link. The server
is durable (fsync is on). A trial has 5 parameters and 10 reports, each followed by `should_prune`; all use the default
sampler and the median pruner.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from typing import Any, NamedTuple

import optuna

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, StudyRegistered
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.caller import Caller
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.benchmarks import bench_core, postgres_crowd
from tests.benchmarks.postgres_places import Places, Row, grpc_proxy, rdb_url, times
from tests.support.exchanges import blocked
from tests.support.latency import Relay
from tests.support.objectives import five_parameters as objective
from tests.support.postgres import Server
from tests.support.processes import until

ROUND_TRIP = 0.030
_TRIALS = 10_000


def rows() -> list[Row]:
    """Every figure, in some two minutes."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with Server(durable=True, settings={"max_connections": "120"}) as server:
        access.initialise(server.url())
        server.execute("CREATE DATABASE rdb")
        with grpc_proxy(server) as grpc_port:
            places = Places(server, grpc_port)
            return [
                *_trials(places),
                *_join(places),
                *postgres_crowd.crowd(server),
                *postgres_crowd.shares(server),
                *_quiet(server),
                *_listening(server),
            ]


# --- a trial -----------------------------------------------------------------------------------------------------


class _Trial(NamedTuple):
    seconds: float
    blocked: float
    flights: float


def _trials(places: Places) -> list[Row]:
    found: list[Row] = []
    for round_trip in (0.0, ROUND_TRIP):
        link = f"{round_trip * 1000:.0f} ms"
        plain = _one_trial(places, "ours", round_trip, 50)
        own = _one_trial(places, "ours", round_trip, 50, own=True)
        rdb, grpc = (_one_trial(places, kind, round_trip, 3 if round_trip else 20) for kind in ("rdb", "grpc"))
        found += [
            Row(
                f"time per trial over {link}, ms",
                *[f"{1000 * one.seconds:,.1f}" for one in (plain, rdb, grpc)],
                times(plain.seconds, rdb.seconds, grpc.seconds),
            ),
            Row(
                f"… with our `Study.optimize`, ms (over {link})",
                f"{1000 * own.seconds:,.1f}",
                ratio=times(own.seconds, rdb.seconds, grpc.seconds),
            ),
            Row(
                f"one-way messages per trial (over {link})",
                f"{plain.flights:.1f}; ours {own.flights:.1f}",
                f"{rdb.flights:.1f}",
                f"{grpc.flights:.1f}",
                times(plain.flights, rdb.flights, grpc.flights),
                "5",
            ),
        ]
        if round_trip:
            found.append(
                Row(
                    "blocked per trial, in round trips",
                    f"{plain.blocked / round_trip:.2f}; ours {own.blocked / round_trip:.2f}",
                    f"{rdb.seconds / round_trip:.0f}",
                    f"{grpc.seconds / round_trip:.0f}",
                    times(plain.blocked, rdb.seconds, grpc.seconds),
                    "2.3; 1.3",
                )
            )
    return found


def _one_trial(places: Places, kind: str, round_trip: float, trials: int, *, own: bool = False) -> _Trial:
    with places.storage(kind, round_trip) as (relay, connect), blocked(Caller, "wait") as waits:
        storage = connect()
        name = f"{kind}-{round_trip}-{own}"
        pruner = optuna.pruners.MedianPruner()
        study: Any = (
            hopaas_p2p.open_study(storage, name, pruner=pruner)
            if own
            else optuna.create_study(storage=storage, study_name=name, pruner=pruner)
        )
        study.optimize(objective, n_trials=2)
        relay.reset()
        waits.clear()
        began = time.perf_counter()
        study.optimize(objective, n_trials=trials)
        took = time.perf_counter() - began
        return _Trial(took / trials, sum(waits) / trials, relay.flights / trials)


# --- joining -----------------------------------------------------------------------------------------------------


def _join(places: Places) -> list[Row]:
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
        Row(
            "connect and join 10,000 trials over 30 ms, s",
            *[f"{one:.2f}" for one in seconds.values()],
            times(*seconds.values()),
            "1.5",
        ),
        Row(
            "… in round trips, TCP's own included",
            *[f"{one:.0f}" for one in trips.values()],
            times(*trips.values()),
            "12",
        ),
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
    opening = Commit("opener", 1, "opener", 0, (StudyRegistered("bench", "bench"),))
    store.catalog().exchange(Outgoing("opening", codec.encode(opening)), 0)
    insert(
        server.url(),
        "INSERT INTO hopaas.commits SELECT id, v.lsn, v.nonce, 'admin', 'owner', 0, v.payload FROM hopaas.logs, "
        "(VALUES %s) AS v (lsn, nonce, payload) WHERE uuid = 'bench'",
        [(lsn, f"n{lsn}", payload) for lsn, payload in enumerate(log, 1) if lsn > 1],
    )
    store.log("bench").put_snapshot(last, data)
    store.close()


def _fill_rdb(server: Server) -> None:
    """The same trials in the tables of RDBStorage."""
    study = optuna.create_study(storage=rdb_url(server), study_name="bench")
    distribution = optuna.distributions.distribution_to_json(optuna.distributions.FloatDistribution(0.0, 1.0))
    now = "2026-01-01 00:00:00"
    url = server.url("rdb")
    trials = [(study._study_id, number, "COMPLETE", now, now) for number in range(_TRIALS)]
    insert(url, "INSERT INTO trials (study_id, number, state, datetime_start, datetime_complete) VALUES %s", trials)
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


def insert(url: str, sql: str, values: list[tuple[Any, ...]]) -> None:
    import psycopg2
    from psycopg2.extras import execute_values

    with contextlib.closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        execute_values(cursor, sql, values, page_size=2000)


# --- silence -----------------------------------------------------------------------------------------------------


def _quiet(server: Server) -> list[Row]:
    ttl = 3.0
    with Relay(server.port) as relay:
        storage = hopaas_p2p.open_storage(server.url(port=relay.port), lease_ttl=ttl)
        study = optuna.create_study(storage=storage, study_name="quiet")
        _running = study.ask()
        storage.flush()
        storage.handle(study._study_id).log.read_at = -1e9
        relay.reset()
        began = time.monotonic()
        until(lambda: relay.flights >= 8, 60)
        each = (time.monotonic() - began) / relay.round_trips
        size = (relay.sent + relay.received) / relay.round_trips
        storage.close()
    return [Row("an idle peer exchanges every …, in ttl; bytes", f"{each / ttl:.2f}; {size:.0f}", asked="0.33")]


def _listening(server: Server) -> list[Row]:
    """What a peer receives for each trial of the others, half a log apart."""
    near = hopaas_p2p.open_storage(server.url())
    study = optuna.create_study(storage=near, study_name="heard", sampler=optuna.samplers.RandomSampler())
    received = []
    with Relay(server.port) as relay:
        far = hopaas_p2p.open_storage(server.url(port=relay.port))
        heard = optuna.load_study(study_name="heard", storage=far)
        for _ in range(2):
            have = len(heard.trials)
            relay.reset()
            study.optimize(objective, n_trials=500)
            until(lambda have=have: len(heard.trials) == have + 500, 60)
            received.append(relay.received / 500)
        far.close()
    near.close()
    return [
        Row(
            "bytes received for a trial of others: the first 500, the next 500",
            "; ".join(f"{one:,.0f}" for one in received),
        )
    ]


def main() -> str:
    """A section in Markdown."""
    found = rows()
    lines = ["## Postgres", "", (__doc__ or "").partition("\n\n")[2]]
    lines += ["| what | ours | RDBStorage | GrpcStorageProxy | ratio | asked |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in found]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(main())
