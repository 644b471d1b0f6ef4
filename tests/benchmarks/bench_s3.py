"""A campaign on a bucket: our S3 store beside Optuna's JournalStorage on the same log, over the same slow requests.

A proxy before a real server (SeaweedFS) makes a PUT or LIST take 45 ms and a GET 20 ms longer, and counts them.
The journal is what a plain adapter gives: an append and a read for each call. The shape of a trial is 5 parameters and
10 reports, each followed by `should_prune`, with the default sampler and the median pruner.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optuna
from optuna.storages.journal import JournalStorage
from optuna.study import StudyDirection

import hopaas_p2p
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, StudyDefine, StudyOpen
from hopaas_p2p.core.state import State
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.s3 import S3Store
from hopaas_p2p.stores.s3_log import S3Log
from hopaas_p2p.testing import seaweed
from hopaas_p2p.testing.s3_faults import FaultProxy, Request
from hopaas_p2p.testing.seaweed import Seaweed
from tests.benchmarks import bench_core, s3_peers
from tests.benchmarks.s3_peers import STUDY, Journal, Report

PUT, GET = 0.045, 0.020
PRICES = {"PUT": 5e-6, "LIST": 5e-6, "POST": 5e-6, "GET": 4e-7, "HEAD": 4e-7, "DELETE": 0.0}
"""Dollars a request, of Amazon's standard class in us-east-1: 0.005 for 1,000 PUT or LIST, 0.0004 for 1,000 GET."""
_TRIALS = 10_000
_JOURNALLED = 250  # trials that the journal is joined with: it has 17 objects for each


class Row(NamedTuple):
    """One line of the table."""

    what: str
    ours: str
    theirs: str = ""
    asked: str = ""


def rows() -> list[Row]:
    """Every figure, in some four minutes."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ.update(AWS_ACCESS_KEY_ID=seaweed.KEY, AWS_SECRET_ACCESS_KEY=seaweed.SECRET)
    with Seaweed() as server:
        return [*_alone(server), *_join(server), *_leisure(server), *_saturated(server), *_idle(server)]


class Link:
    """A store behind slow requests, and what was asked of it, by kind and by place."""

    def __init__(self, server: Seaweed, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self.prefix = server.new_prefix()
        self.url = server.url(self.prefix, endpoint=proxy.endpoint)
        self.direct = server.url(self.prefix)
        self.asked: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        proxy.always = self._note

    def _note(self, request: Request) -> None:
        self.asked[request.kind] += 1
        if "/beats/" in request.path:
            self.asked[f"{request.kind} beat"] += 1

    def clear(self) -> None:
        self.asked.clear()


@contextlib.contextmanager
def link(server: Seaweed) -> Iterator[Link]:
    with FaultProxy(server.port, put=PUT, get=GET) as proxy:
        yield Link(server, proxy)


# --- one peer ----------------------------------------------------------------------------------------------------


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
    asked: dict[str, float]

    @property
    def dollars(self) -> float:
        """What 1,000 of them cost."""
        return 1000 * sum(PRICES.get(kind, 0.0) * count for kind, count in self.asked.items())


def _alone(server: Seaweed) -> list[Row]:
    plain, own, theirs = (_one_trial(server, kind) for kind in ("ours", "own", "theirs"))
    bound = 2.5 * (PUT + GET)
    return [
        Row("one peer: PUTs a trial", *_pair(plain, own, theirs, lambda one: f"{one.asked.get('PUT', 0):.1f}"), "2; 1"),
        Row("… GETs a trial", *_pair(plain, own, theirs, lambda one: f"{one.asked.get('GET', 0):.1f}"), "3"),
        Row("… LISTs a trial", *_pair(plain, own, theirs, lambda one: f"{one.asked.get('LIST', 0):.1f}"), "0"),
        Row(
            "… blocked a trial, ms",
            *_pair(plain, own, theirs, lambda one: f"{1000 * one.blocked:.0f}"),
            f"{1000 * bound:.0f}",
        ),
        Row("… 1,000 trials at list prices", *_pair(plain, own, theirs, lambda one: f"${one.dollars:.4f}")),
    ]


def _pair(plain: _Trial, own: _Trial, theirs: _Trial, show: Callable[[_Trial], str]) -> tuple[str, str]:
    return f"{show(plain)}; `Study.optimize` {show(own)}", show(theirs)


def _one_trial(server: Seaweed, kind: str) -> _Trial:
    trials = 5 if kind == "theirs" else 40
    pruner = optuna.pruners.MedianPruner()
    with link(server) as far, _blocked() as blocked:
        storage: Any = JournalStorage(Journal(far.url)) if kind == "theirs" else hopaas_p2p.open_storage(far.url)
        study: Any = (
            hopaas_p2p.open_study(storage, "s", pruner=pruner)
            if kind == "own"
            else optuna.create_study(storage=storage, study_name="s", pruner=pruner)
        )
        study.optimize(_objective, n_trials=2)
        far.clear()
        blocked.clear()
        began = time.perf_counter()
        study.optimize(_objective, n_trials=trials)
        took = time.perf_counter() - began
        asked = {name: count / trials for name, count in far.asked.items()}
        spent = sum(blocked) / trials
        if hasattr(storage, "close"):
            storage.close()
        return _Trial(took / trials, spent, asked)


@contextlib.contextmanager
def _blocked() -> Iterator[list[float]]:
    """The seconds that this thread spends in exchanges with a log."""
    mine, exchange, spent = threading.get_ident(), S3Log.exchange, list[float]()

    def timed(log: S3Log, *arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return exchange(log, *arguments)
        finally:
            if threading.get_ident() == mine:
                spent.append(time.perf_counter() - began)

    S3Log.exchange = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        S3Log.exchange = exchange  # type: ignore[method-assign]


# --- joining -----------------------------------------------------------------------------------------------------


def _join(server: Seaweed) -> list[Row]:
    with link(server) as far:
        tail = _fill(S3Store(far.direct))
        far.clear()
        began = time.perf_counter()
        storage = hopaas_p2p.open_storage(far.url)
        study = optuna.load_study(study_name="bench", storage=storage)
        assert len(study.get_trials(deepcopy=False)) == _TRIALS
        ours, asked = time.perf_counter() - began, sum(far.asked.values())
        storage.close()
    with link(server) as far:
        _fill_journal(S3Store(far.direct))
        far.clear()
        began = time.perf_counter()
        theirs = optuna.load_study(study_name=STUDY, storage=JournalStorage(Journal(far.url)))
        assert len(theirs.get_trials(deepcopy=False)) == _JOURNALLED
        scale = _TRIALS / _JOURNALLED
        seconds, requests = scale * (time.perf_counter() - began), scale * sum(far.asked.values())
    return [
        Row(
            "join 10,000 trials (theirs: 250, times 40): requests",
            f"{asked}, {tail} of the tail",
            f"{requests:,.0f}",
            "6 and the tail",
        ),
        Row("… s", f"{ours:.2f}", f"{seconds:,.0f}", "1 and the latency"),
    ]


def _fill(store: S3Store) -> int:
    """A study of 10,000 trials as `gc` leaves it: the newest snapshot, and what came after; how many commits that is."""
    log, state = bench_core.commits(_TRIALS, alone=False), State()
    last = len(log) // 256 * 256
    opening = Commit("opener", 1, "opener", 0, (StudyOpen("bench", "bench"),))
    store.catalog().exchange(Outgoing("opening", codec.encode(opening)), 0)
    for lsn, payload in enumerate(log, 1):
        apply(state, lsn, codec.decode(payload))
        if lsn == last:
            store.log("bench").put_snapshot(last, snapshot.dump(state))
        if lsn > last:
            store.objects.create(f"study/bench/log/{lsn:020d}", payload)
    return len(log) - last


def _fill_journal(store: S3Store) -> None:
    """The same trials as a journal has them: 17 appends for each."""
    local: Any = _Kept()
    storage = JournalStorage(local)
    study = storage.create_new_study([StudyDirection.MINIMIZE], STUDY)
    one = optuna.load_study(study_name=STUDY, storage=storage)
    one.optimize(_objective, n_trials=_JOURNALLED)
    assert study == 0
    store.prove()
    for lsn, logs in enumerate(local.appended, 1):
        payload = s3_peers.sealed(s3_peers.json.dumps([str(lsn), logs]).encode())
        store.objects.create(f"study/journal/log/{lsn:020d}", payload)


class _Kept(s3_peers.BaseJournalBackend):
    """A journal in memory."""

    def __init__(self) -> None:
        self.appended: list[list[dict[str, Any]]] = []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.appended.append(logs)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return [one for logs in self.appended for one in logs][log_number_from:]


# --- many at once ------------------------------------------------------------------------------------------------


def _together(count: int, far: Link, work: Callable[..., None], *arguments: Any) -> list[Report]:
    """What so many processes report; the requests of their work are counted, those of joining and leaving are not."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count + 1), context.Queue()
    everyone = [context.Process(target=work, args=(n, barrier, results, *arguments)) for n in range(count)]
    for one in everyone:
        one.start()
    barrier.wait(120)
    far.clear()
    found = [results.get(timeout=180) for _ in everyone]
    far.seen = far.asked.copy()
    barrier.wait(120)
    for one in everyone:
        one.join()
    return found


def _found_study(kind: str, far: Link) -> None:
    if kind == "ours":
        define = Commit("opener", 1, "opener", 0, (StudyDefine(STUDY, ("minimize",)),))
        S3Store(far.direct).log(STUDY).exchange(Outgoing("opener", codec.encode(define)), 0)
    else:
        JournalStorage(Journal(far.direct)).create_new_study([StudyDirection.MINIMIZE], STUDY)


_PEERS, _RATE, _SECONDS = 16, 0.25, 60.0


def _leisure(server: Seaweed) -> list[Row]:
    found: dict[str, tuple[str, str, str]] = {}
    for kind in ("ours", "theirs"):
        with link(server) as far:
            _found_study(kind, far)
            reports = _together(_PEERS, far, s3_peers.at_leisure, kind, far.url, _RATE, _SECONDS)
            waits = sorted(wait for one in reports for wait in one.waits)
            puts = far.seen["PUT"] / len(waits)
            beats = far.seen["PUT beat"] / len(waits)
            found[kind] = (
                f"{puts:.2f}, {beats:.2f} of it beats",
                f"{1000 * waits[len(waits) // 2]:.0f}, {1000 * waits[int(0.99 * len(waits))]:.0f}",
                f"{far.seen['GET'] / len(waits):.1f}, {far.seen['LIST']}",
            )
    both = list(zip(found["ours"], found["theirs"], strict=True))
    return [
        Row("16 peers at 0.25 commits/s each: PUTs a commit", *both[0], "1.25"),
        Row("… p50 and p99 of a commit, ms", *both[1], "250, 1000"),
        Row("… GETs a commit; LISTs in all", *both[2], "no LIST"),
    ]


def _saturated(server: Seaweed) -> list[Row]:
    found: dict[str, tuple[str, str, str]] = {}
    seconds = 20.0
    for kind in ("ours", "theirs"):
        with link(server) as far:
            _found_study(kind, far)
            reports = _together(8, far, s3_peers.at_full_speed, kind, far.url, seconds)
            served = sorted(one.records for one in reports)
            waits = sorted(wait for one in reports for wait in one.waits)
            found[kind] = (
                f"{sum(served) / seconds:.0f}",
                f"{served[0] / served[-1]:.2f}",
                f"{1000 * waits[len(waits) // 2]:.0f}, {1000 * waits[int(0.99 * len(waits))]:.0f}",
            )
    both = list(zip(found["ours"], found["theirs"], strict=True))
    return [
        Row("8 peers of 8 threads at full speed, records/s", *both[0], "100"),
        Row("… slowest peer, as a part of the fastest", *both[1], "0.5"),
        Row("… p50 and p99 of a call, ms", *both[2]),
    ]


# --- silence -----------------------------------------------------------------------------------------------------


def _idle(server: Seaweed) -> list[Row]:
    ttl = 3.0
    with link(server) as far:
        storage = hopaas_p2p.open_storage(far.url, lease_ttl=ttl)
        study = optuna.create_study(storage=storage, study_name="quiet")
        study.ask()
        storage.flush()
        part = storage.part(study._study_id)
        part.membership.read_at = storage.courier.catalog.read_at = -1e9
        far.clear()
        began = time.monotonic()
        time.sleep(6 * ttl)
        thirds = (time.monotonic() - began) / (ttl / 3)
        asked = far.asked.copy()
        storage.close()
    return [
        Row(
            "an idle peer, each ttl/3: GETs; beats",
            f"{asked['GET'] / thirds:.2f}; {asked['PUT beat'] / thirds:.2f}",
            "",
            "1; 1",
        )
    ]


def main() -> str:
    """The table, in Markdown."""
    found = rows()
    lines = ["| S3, 45 ms PUT/LIST, 20 ms GET | ours | JournalStorage, same log | asked |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in found]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(main())
