"""32 processes on one Postgres server: what the log takes in, and who is at work when a sampler is in the loop."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import warnings
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import optuna

import hopaas_p2p
from hopaas_p2p.peer.caller import Caller
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.benchmarks import bench_core
from tests.benchmarks.postgres_places import Row, rdb_url
from tests.support.exchanges import blocked
from tests.support.objectives import five_parameters as objective
from tests.support.postgres import Server

_PROCESSES: Final = 32
_SECONDS: Final = 5.0


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


def _bare(_number: int, barrier: Any, results: Any, url: str) -> None:
    """The least that gives commits an order: a lock, a row, a flush."""
    import psycopg2

    payload = psycopg2.Binary(bench_core.commits(1, alone=False)[-1])
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        barrier.wait()
        end, count = time.perf_counter() + _SECONDS, 0
        while time.perf_counter() < end:
            cursor.execute(
                "WITH l AS (UPDATE bare_log SET head = head + 1 RETURNING head) "
                "INSERT INTO bare_commits SELECT head, %s FROM l RETURNING lsn",
                (payload,),
            )
            count += 1
    results.put(count)


def crowd(server: Server) -> list[Row]:
    waits = sorted(wait for one in _together(_exchange_only, server.url()) for wait in one)
    server.execute(
        "CREATE TABLE bare_log AS SELECT 0 AS head; CREATE TABLE bare_commits (lsn int PRIMARY KEY, p bytea)"
    )
    bare = sum(_together(_bare, server.url()))
    return [
        Row("32 processes that only exchange, commits/s", f"{len(waits) / _SECONDS:,.0f}", asked="800"),
        Row(
            "… p50 and p99 of an exchange, ms",
            f"{1000 * waits[len(waits) // 2]:.0f}, {1000 * waits[int(0.99 * len(waits))]:.0f}",
            asked="p99 150",
        ),
        Row("… relative to a bare INSERT under a row lock", f"{len(waits) / bare:.0%} of {bare / _SECONDS:,.0f}"),
    ]


class _Share(NamedTuple):
    """What one process did, each second."""

    trials: float
    in_store: float
    cpu: float


def _optimise(_number: int, barrier: Any, results: Any, kind: str, url: str) -> None:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage: Any = optuna.storages.RDBStorage(url) if kind == "rdb" else hopaas_p2p.open_storage(url)
    sampler = optuna.samplers.RandomSampler()
    study: Any = (
        hopaas_p2p.open_study(storage, kind, sampler=sampler)
        if kind == "own"
        else optuna.load_study(study_name=kind, storage=storage, sampler=sampler)
    )
    with blocked(Caller, "wait") as waits:
        study.trials  # noqa: B018  # joined before the clock runs
        barrier.wait()
        waits.clear()
        began, busy, done = time.perf_counter(), time.process_time(), []

        def until_the_end(trial: optuna.Trial) -> float:
            if time.perf_counter() - began >= _SECONDS:
                study.stop_all()
            done.append(trial.number)
            return objective(trial)

        study.optimize(until_the_end)
        took = time.perf_counter() - began
        results.put(_Share(len(done) / took, sum(waits) / took, (time.process_time() - busy) / took))
    if hasattr(storage, "close"):
        storage.close()


def shares(server: Server) -> list[Row]:
    """Where the time of 32 processes with the random sampler goes, on the cores that there are."""
    found: dict[str, list[_Share]] = {}
    cores: dict[str, float] = {}
    for kind, url in (("plain", server.url()), ("own", server.url()), ("rdb", rdb_url(server))):
        storage: Any = url if kind == "rdb" else hopaas_p2p.open_storage(url)
        optuna.create_study(storage=storage, study_name=kind)
        if kind != "rdb":
            storage.close()
        before = _cpu_of(server)
        found[kind] = _together(_optimise, kind, url)
        cores[kind] = (_cpu_of(server) - before) / _SECONDS
    rates = {kind: sum(one.trials for one in everyone) for kind, everyone in found.items()}
    return [
        Row(
            "32 processes with the random sampler, trials/s",
            f"{rates['plain']:,.0f}; with `Study.optimize` of ours {rates['own']:,.0f}",
            f"{rates['rdb']:,.0f}",
            ratio=f"{rates['plain'] / rates['rdb']:,.0f} x; {rates['own'] / rates['rdb']:,.0f} x",
        ),
        Row(
            "… cores at work: sampler and replicas, server",
            *[
                "; ".join(f"{sum(one.cpu for one in found[kind]):.2f}, {cores[kind]:.2f}" for kind in kinds)
                for kinds in (("plain", "own"), ("rdb",))
            ],
        ),
        Row(
            "… share of a process's time that it waits for the store",
            "; ".join(f"{sum(one.in_store for one in found[kind]) / _PROCESSES:.0%}" for kind in ("plain", "own")),
        ),
    ]


def _cpu_of(server: Server) -> float:
    """Seconds of CPU that the server has used, by all of its processes, also those that have ended."""
    import psutil

    parent = psutil.Process(server.pid)
    of_parent = parent.cpu_times()
    seconds = of_parent.user + of_parent.system + of_parent.children_user + of_parent.children_system
    for child in parent.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            seconds += times.user + times.system
    return float(seconds)
