"""What grows with a study and with the peers that came and went: bytes written, joins, memory.

The log of each size is made at once, as packs of a directory, in the form of `bench_core`: 5 parameters and 10 reports.
`make bench ONLY=scale` goes to 100,000 trials; `HOPAAS_SCALE="300000 1000000"` takes it further, and `make soak` holds
what a test can hold of it with a million.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from optuna.study import StudyDirection

import hopaas_p2p
from hopaas_p2p import access
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import (
    Commit,
    Float,
    PeerJoin,
    Record,
    StudyDefine,
    StudyRegistered,
    TrialCreate,
    TrialFinish,
    TrialSet,
    TrialState,
)
from hopaas_p2p.core.state import State
from hopaas_p2p.stores.base import Outgoing, read_all, snapshot_due
from hopaas_p2p.stores.directory.packs import frame
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.objects.log import SPAN
from hopaas_p2p.stores.postgres.store import PostgresStore
from tests.benchmarks.bench_postgres import insert
from tests.support.postgres import Server

SIZES: Final = [int(one) for one in os.environ.get("HOPAAS_SCALE", "20000 100000").split()]
_NAMES: Final = "abcde"
_PEERS: Final = 1000


def main() -> str:
    """The table."""
    lines = [
        "| what | " + " | ".join(f"{size:,} trials" for size in SIZES) + " | asked |",
        "|---|" + "---|" * len(SIZES) + "---|",
    ]
    columns = []
    for size in SIZES:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as directory:
            columns.append(measured(Path(directory) / "store", size))
    lines += [
        f"| {what} | " + " | ".join(one[what] for one in columns) + f" | {asked} |" for what, asked in _ASKED.items()
    ]
    return "\n".join(lines)


_WRITTEN: Final = "bytes of snapshots written until then"
_OF_ONE: Final = "… per trial"
_JOINED: Final = "join from disk, to the first ask with the random sampler"
_CPU: Final = "… processor time"
_FIRST: Final = "… of this, the first ask"
_FROM_POSTGRES: Final = "join from Postgres on the same machine"
_ITS_CPU: Final = "… processor time of the peer"
_MEMORY: Final = "memory per trial in a peer that samples at random"
_ALL: Final = "… once it has asked for all trials"
_GONE: Final = f"bytes in every snapshot for each of {_PEERS:,} peers that came and went"
_ASKED: Final = {
    _WRITTEN: "60 MB at 300,000",
    _OF_ONE: "",
    _JOINED: "0.5 s at 300,000, 1.5 s at 1,000,000",
    _CPU: "",
    _FIRST: "0.1 s at 100,000, 0.2 s at 300,000",
    _FROM_POSTGRES: "as from disk",
    _ITS_CPU: "",
    _MEMORY: "600 B",
    _ALL: "",
    _GONE: "217 B before",
}


def measured(path: Path, size: int) -> dict[str, str]:
    written = make(path, size)
    with Server() as server:
        copy(path, server)
        from_postgres, its_cpu, *_ = in_a_process(server.url(), size)
    join, cpu, first, sampling, everything = in_a_process(path, size)
    return {
        _WRITTEN: f"{written / 1e6:.1f} MB",
        _OF_ONE: f"{written / size:.0f} B",
        _JOINED: f"{join:.2f} s",
        _CPU: f"{cpu:.2f} s",
        _FIRST: f"{first:.3f} s",
        _FROM_POSTGRES: f"{from_postgres:.2f} s",
        _ITS_CPU: f"{its_cpu:.2f} s",
        _MEMORY: f"{sampling:.0f} B",
        _ALL: f"{everything:.0f} B",
        _GONE: f"{_bytes_of_the_gone():.1f} B",
    }


def _bytes_of_the_gone() -> float:
    """What a head holds more, some thousand commits after them."""
    return (_head(_PEERS) - _head(0)) / _PEERS


def _head(peers: int) -> int:
    state = State()

    def say(writer: str, seq: int, *records: Record) -> None:
        apply(state, state.lsn + 1, Commit(writer, seq, writer, 0, records))

    say("founder", 1, StudyDefine("bench", ("minimize",)))
    for number in range(peers):
        say(f"peer-{number:011d}", 1, PeerJoin({"host": f"node{number % 40}", "site": "there", "pid": str(number)}))
    for seq in range(2, 5000):
        say("founder", seq, PeerJoin({}))
    return len(snapshot.split(snapshot.dump(state))[0])


def commits(trials: int) -> Iterator[bytes]:
    """The log of that many trials without its first commit, two commits each."""
    numbers = random.Random(1)
    at, seq = 1_700_000_000_000_000, 0
    for number in range(trials):
        params = {name: numbers.random() for name in _NAMES}
        dists = {} if number else {name: Float(0.0, 1.0) for name in _NAMES}
        reports = {step: numbers.random() for step in range(10)}
        finish = TrialFinish(number, 1, TrialState.COMPLETE, (numbers.random(),))
        for records in ((TrialCreate(),), (TrialSet(number, 1, params, dists, reports), finish)):
            at += numbers.randrange(1_000_000)
            seq += 1
            yield codec.encode(Commit("w" * 16, seq, "w" * 16, at, records))


def make(path: Path, size: int) -> int:
    """A store whose study has so many trials, with its snapshots; how many bytes of these were written."""
    storage = hopaas_p2p.open_storage(str(path))
    storage.create_new_study([StudyDirection.MINIMIZE], "bench")
    uuid = storage.peer.catalog.state.by_id[0].uuid
    storage.close()
    store = DirectoryStore(path)
    log, objects = store.log(uuid), store.objects
    written, put_same = 0, objects.put_same

    def counting(key: str, data: bytes) -> None:
        nonlocal written
        written += len(data)
        put_same(key, data)

    first = [entry.payload for entry in log.exchange(None, 0).entries]
    state, pack = State(), list[bytes]()
    for lsn, payload in enumerate((*first, *commits(size)), 1):
        apply(state, lsn, codec.decode(payload))
        pack.append(payload)
        if lsn % SPAN == 0:
            put_same(f"study/{uuid}/packs/{lsn - SPAN + 1:020d}", b"".join(map(frame, pack)))
            pack.clear()
        if snapshot_due(lsn):
            objects.put_same = counting  # type: ignore[method-assign]
            log.put_snapshot(lsn, snapshot.dump(state))
            objects.put_same = put_same  # type: ignore[method-assign]
    for lsn, payload in enumerate(pack, state.lsn - len(pack) + 1):
        objects.put_new(f"study/{uuid}/commits/{(lsn - 1) // SPAN * SPAN + 1:020d}/{lsn:020d}", payload)
    store.close()
    return written


def copy(path: Path, server: Server) -> None:
    """The same study in a database: its newest snapshot, and the commits that a peer reads behind it."""
    there = DirectoryStore(path)
    (uuid,) = there.objects.names_in("study", folders=True)
    log = there.log(uuid)
    found = log.newest_snapshot()
    assert found is not None
    lsn, data = found
    access.initialise(server.url())
    store = PostgresStore(server.url())
    store.log(uuid).exchange(Outgoing("1", log.exchange(None, 0).entries[0].payload), 0)
    opening = Commit("opener", 1, "opener", 0, (StudyRegistered(uuid, "bench"),))
    store.catalog().exchange(Outgoing("opening", codec.encode(opening)), 0)
    insert(
        server.url(),
        "INSERT INTO hopaas.commits SELECT id, v.lsn, v.nonce, 'admin', 'owner', 0, v.payload FROM hopaas.logs, "
        f"(VALUES %s) AS v (lsn, nonce, payload) WHERE uuid = '{uuid}'",
        [(entry.lsn, f"n{entry.lsn}", entry.payload) for entry in read_all(log, lsn - 1)],
    )
    store.log(uuid).put_snapshot(lsn, data)
    store.close()
    there.close()


def in_a_process(path: Path | str, size: int) -> list[float]:
    """Seconds until the first ask, of processor time, of the ask; bytes per trial then, and with all trials read."""
    code = f"from tests.benchmarks.bench_scale import joined; joined({str(path)!r}, {size})"
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return [float(word) for word in said.stdout.split()]


def joined(path: str, size: int) -> None:
    """Join, ask, and print what `in_a_process` says."""
    import gc

    import optuna
    import psutil

    memory = psutil.Process().memory_info
    sampler = optuna.samplers.RandomSampler(seed=1)
    gc.collect()
    before, began, busy = memory().rss, time.perf_counter(), time.process_time()
    study = hopaas_p2p.open_study(path, "bench", sampler=sampler)
    opened = time.perf_counter()
    trial = study.ask()
    trial.suggest_float("a", 0.0, 1.0)
    asked, cpu = time.perf_counter(), time.process_time() - busy
    for _ in range(20):
        study.tell(trial, 1.0)
        trial = study.ask()
    gc.collect()
    sampling = (memory().rss - before) / size
    assert len(study.trials) == size + 21
    gc.collect()
    everything = (memory().rss - before) / size
    study.tell(trial, 1.0)
    study.close()
    print(f"{asked - began:.2f} {cpu:.2f} {asked - opened:.3f} {sampling:.0f} {everything:.0f}")


if __name__ == "__main__":
    print(main())
