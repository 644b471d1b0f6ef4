"""What the peers of bench_s3 do, each in a process of its own: ours through a peer, Optuna's through a journal.

Both write to the same kind of log, `stores.objects.log.BucketLog`, through the same slow proxy.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from optuna.storages.journal import JournalStorage
from optuna.storages.journal._base import BaseJournalBackend
from optuna.trial import TrialState as Theirs

from hopaas_p2p.core.records import Float, TrialCreate, TrialFinish, TrialSet, TrialState
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import everything, sealed

STUDY = "crowd"
_THREADS = 8


class Journal(BaseJournalBackend):
    """Optuna's journal on a log of ours, plainly: an append is a commit, a read asks for what is new."""

    def __init__(self, url: str) -> None:
        self._log = S3Store(url).log("journal")
        self._lock = threading.Lock()
        self._known: list[dict[str, Any]] = []
        self._lsn = 0

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        nonce = secrets.token_hex(16)
        payload = sealed(json.dumps([nonce, logs]).encode())
        with self._lock:
            written = False
            while not written:
                entries = self._log.exchange(Outgoing(nonce, payload), self._lsn).entries
                self._take(entries)
                written = any(entry.payload == payload for entry in entries)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        with self._lock:
            self._take(everything(self._log, self._lsn))
            return self._known[log_number_from:]

    def _take(self, entries: list[Any]) -> None:
        for entry in entries:
            if entry.lsn > self._lsn:
                self._known += json.loads(entry.payload[4:])[1]
                self._lsn = entry.lsn


class Report(NamedTuple):
    """What a peer has seen in its time."""

    waits: list[float]
    """Seconds of each call that waited for the store."""
    records: int
    """Records that the log has taken."""


class _Ours:
    """A peer that starts trials and ends them."""

    def __init__(self, url: str) -> None:
        self.peer = Peer(open_store(url), linger=5.0)
        self.driver = self.peer.log(STUDY)
        self.peer.pull(self.driver)
        self.peer.commit(self.driver)

    def ask(self) -> int:
        (verdict,) = self.peer.commit(self.driver, TrialCreate())
        assert verdict.number is not None
        return verdict.number

    def tell(self, number: int) -> int:
        """Five parameters and a result; how many records that is."""
        said = (
            TrialSet(number, 1, dict.fromkeys("abcde", 0.5), dict.fromkeys("abcde", Float(0.0, 1.0)), {0: 1.0}),
            TrialFinish(number, 1, TrialState.COMPLETE, (1.0,)),
        )
        assert all(verdict.accepted for verdict in self.peer.commit(self.driver, *said))
        return len(said)

    def close(self) -> None:
        self.peer.close()


class _Theirs:
    def __init__(self, url: str) -> None:
        self.storage = JournalStorage(Journal(url))
        self.study = self.storage.get_study_id_from_name(STUDY)

    def ask(self) -> int:
        return self.storage.create_new_trial(self.study)

    def tell(self, number: int) -> int:
        self.storage.set_trial_state_values(number, Theirs.COMPLETE, [1.0])
        return 1

    def close(self) -> None:
        pass


def _peer(kind: str, url: str) -> _Ours | _Theirs:
    return _Ours(url) if kind == "ours" else _Theirs(url)


def at_leisure(number: int, barrier: Any, results: Any, kind: str, url: str, rate: float, seconds: float) -> None:
    """Say something `rate` times per second, and measure how long each takes."""
    import random

    chooser = random.Random(number)
    peer = _peer(kind, url)
    barrier.wait(120)
    end = time.perf_counter() + seconds
    waits: list[float] = []
    running: list[int] = []
    due = time.perf_counter() + chooser.uniform(0.0, 1.0 / rate)
    while due < end:
        time.sleep(max(due - time.perf_counter(), 0.0))
        began = time.perf_counter()
        if running:
            peer.tell(running.pop())
        else:
            running.append(peer.ask())
        waits.append(time.perf_counter() - began)
        due = max(due + chooser.uniform(0.5, 1.5) / rate, time.perf_counter())
    results.put(Report(waits, len(waits)))
    barrier.wait(120)
    peer.close()


def at_full_speed(number: int, barrier: Any, results: Any, kind: str, url: str, seconds: float) -> None:
    """Eight threads that start and end trials as fast as they can, as on a machine with eight GPUs."""
    peer = _peer(kind, url)
    barrier.wait(120)
    end = time.perf_counter() + seconds
    waits: list[float] = []
    records: list[int] = []

    def work() -> None:
        while (began := time.perf_counter()) < end:
            done = 1
            trial = peer.ask()
            waits.append(time.perf_counter() - began)
            began = time.perf_counter()
            done += peer.tell(trial)
            waits.append(time.perf_counter() - began)
            records.append(done)

    threads = [threading.Thread(target=work) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(Report(waits, sum(records)))
    barrier.wait(120)
    peer.close()
