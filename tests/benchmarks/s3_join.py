"""Joining a study of 10,000 trials in a bucket: ours from a snapshot, Optuna's journal from its first append."""

from __future__ import annotations

import json
import time
from typing import Any

import optuna
from optuna.storages.journal import JournalStorage
from optuna.storages.journal._base import BaseJournalBackend
from optuna.study import StudyDirection

import hopaas_p2p
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, StudyRegistered
from hopaas_p2p.core.state import State
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import sealed
from tests.benchmarks import bench_core
from tests.benchmarks.s3_link import Row, link
from tests.benchmarks.s3_peers import STUDY, Journal
from tests.support.objectives import five_parameters as objective
from tests.support.seaweed import Seaweed

_TRIALS = 10_000
_JOURNALLED = 250  # trials that the journal is joined with: it has 17 objects for each


def joining(server: Seaweed) -> list[Row]:
    with link(server) as far:
        tail = _fill(S3Store(far.direct))
        far.clear()
        began = time.perf_counter()
        storage = hopaas_p2p.open_storage(far.url)
        study = optuna.load_study(study_name="bench", storage=storage)
        assert len(study.get_trials(deepcopy=False)) == _TRIALS
        ours, asked = time.perf_counter() - began, far.requests
        of_tail = far.asked["of a study's log"]
        storage.close()
    with link(server) as far:
        _fill_journal(S3Store(far.direct))
        far.clear()
        began = time.perf_counter()
        theirs = optuna.load_study(study_name=STUDY, storage=JournalStorage(Journal(far.url)))
        assert len(theirs.get_trials(deepcopy=False)) == _JOURNALLED
        scale = _TRIALS / _JOURNALLED
        seconds, requests = scale * (time.perf_counter() - began), scale * far.requests
    return [
        Row(
            "join 10,000 trials (theirs: 250, times 40): requests",
            f"{asked - of_tail}, and {of_tail} for a tail of {tail}",
            f"{requests:,.0f}",
            "6 and the tail",
        ),
        Row("… s", f"{ours:.2f}", f"{seconds:,.0f}", "1 and the latency"),
    ]


def _fill(store: S3Store) -> int:
    """A study as `gc` leaves it: the newest snapshot, and what came after; how many commits that is."""
    log, state = bench_core.commits(_TRIALS, alone=False), State()
    last = len(log) // 256 * 256
    opening = Commit("opener", 1, "opener", 0, (StudyRegistered("bench", "bench"),))
    store.catalog().exchange(Outgoing("opening", codec.encode(opening)), 0)
    for lsn, payload in enumerate(log, 1):
        apply(state, lsn, codec.decode(payload))
        if lsn == last:
            store.log("bench").put_snapshot(last, snapshot.dump(state))
        if lsn > last:
            store.objects.put_new(f"study/bench/log/{lsn:020d}", payload)
    return len(log) - last


def _fill_journal(store: S3Store) -> None:
    """The same trials as a journal has them: 17 appends for each."""
    local: Any = _Kept()
    storage = JournalStorage(local)
    study = storage.create_new_study([StudyDirection.MINIMIZE], STUDY)
    one = optuna.load_study(study_name=STUDY, storage=storage)
    one.optimize(objective, n_trials=_JOURNALLED)
    assert study == 0
    store.prove()
    for lsn, logs in enumerate(local.appended, 1):
        payload = sealed(json.dumps([str(lsn), logs]).encode())
        store.objects.put_new(f"study/journal/log/{lsn:020d}", payload)


class _Kept(BaseJournalBackend):
    """A journal in memory."""

    def __init__(self) -> None:
        self.appended: list[list[dict[str, Any]]] = []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.appended.append(logs)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return [one for logs in self.appended for one in logs][log_number_from:]
