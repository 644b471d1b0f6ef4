"""A server that gets a second pool under eight peers: commits under one lsn, which the chain of sums notices.

No proof stands in the way here: the server keeps the condition when the peers begin, and breaks it within their first
minutes. What each was told is safe is in the log, or in the spool of the peer that was told, and a rescue makes
one study of both.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import TrialFinish
from hopaas_p2p.errors import BrokenChain, HopaasError
from hopaas_p2p.moving import rescue
from hopaas_p2p.stores.objects.carried import opened
from hopaas_p2p.stores.s3.confirmation import SELDOM
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.processes import patient, until
from tests.support.s3_fixtures import s3_environment
from tests.support.s3_imitation import Imitation

PEERS = 8
_SECONDS = 60.0  # for which peers may go on that have nothing to complain about


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Imitation]:
    s3_environment(monkeypatch)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with Imitation() as server:
        yield server


class _Told(NamedTuple):
    number: int
    value: float
    params: dict[str, float]
    when: float


class _Worker(threading.Thread):
    """One peer, until it is told to stop or something goes wrong."""

    def __init__(self, url: str, index: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url, self.index, self.stop = url, index, stop
        self.told: list[_Told] = []
        """What was acknowledged."""
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            study = hopaas_p2p.open_study(self.url, "s", create=False)
        except HopaasError as error:
            self.error = error
            return
        try:
            while not self.stop.is_set():
                trial = study.ask()
                value = float(self.index * 1_000_000 + len(self.told))
                study.tell(trial, value)
                self.told.append(_Told(trial.number, value, dict(trial.params), time.monotonic()))
        except Exception as error:  # noqa: BLE001  # whatever it is, the test looks at it
            self.error = error
        finally:
            with contextlib.suppress(HopaasError):
                study.close()


def _finished(payloads: list[bytes]) -> set[float]:
    """The values of all results in these commits."""
    found = set()
    for payload in payloads:
        commit = codec.decode(payload)
        if isinstance(commit, codec.Commit):
            found |= {one.values[0] for one in commit.records if isinstance(one, TrialFinish) and one.values}
    return found


@pytest.mark.parametrize("seed", range(1, int(os.environ.get("HOPAAS_TEST_POOL_SPLITS", "2")) + 1))
def test_nothing_acknowledged_is_lost_when_a_server_gets_a_second_pool(server: Imitation, seed: int) -> None:
    url = server.url("store")
    study = hopaas_p2p.open_study(url, "s", space={"x": hopaas_p2p.Float(0, 1)})
    uuid = study.handle.uuid
    study.close()
    stop = threading.Event()
    workers = [_Worker(url, index, stop) for index in range(PEERS)]
    for worker in workers:
        worker.start()
    until(lambda: all(len(worker.told) >= 3 for worker in workers), 120)
    server.reseed(seed)
    switched = time.monotonic()
    server.pools = 2
    end = switched + _SECONDS
    until(lambda: sum(worker.error is not None for worker in workers) >= PEERS - 1 or time.monotonic() > end, 120)
    stop.set()
    for worker in workers:
        worker.join(60)
    assert server.overwritten, "the second pool took what the first had"
    stopped = [worker.error for worker in workers if worker.error is not None]
    assert len(stopped) >= PEERS - 1
    assert [error for error in stopped if not isinstance(error, BrokenChain)] == []

    store = S3Store(url, create=False)
    keys = store.objects.listed(f"study/{uuid}/log/")
    there = [
        opened(found.data).stored for found in store.objects.get_many(keys, limit=1 << 20) if hasattr(found, "data")
    ]
    store.close()
    files = [*spool.waiting(), *spool.histories(uuid)]
    spooled = [payload for _, file in files for payload in file.payloads]
    kept = _finished(there) | _finished(spooled)
    told = [one for worker in workers for one in worker.told]
    assert [one for one in told if one.value not in kept] == []
    late = [one.number for one in told if one.when > switched + patient(1.0)]
    assert len(late) == len(set(late)), "no number is given twice after the first second"
    twice = len(told) - len({one.number for one in told})
    assert twice <= len(server.overwritten), "a number is given twice only where a commit was overwritten"

    store = S3Store(url, create=False)
    rescued = rescue.rescue(store, uuid)
    store.close()
    assert rescued.study is not None
    results = {one.values: one.params for one in rescued.study.trials.values() if one.values}
    assert [one for one in told if results.get((one.value,)) != one.params] == [], "each with its own parameters"
    assert len(results) == sum(one.values is not None for one in rescued.study.trials.values()), "and once"
    assert list(rescued.study.trials) == list(range(len(rescued.study.trials)))
    print(
        f"{len(told)} told, {twice} numbers twice, {len(server.overwritten)} overwritten, {rescued.histories} histories"
    )


@pytest.mark.parametrize("ending", [False, True])
def test_a_commit_that_is_overwritten_behind_its_writer_is_noticed_by_it(server: Imitation, *, ending: bool) -> None:
    """All that is written behind it follows it, so no sum tells."""
    url = server.url("store")
    study = hopaas_p2p.open_study(url, "s", space={"x": hopaas_p2p.Float(0, 1)})
    part = study.handle
    study.tell(study.ask(), 1.0)
    store = S3Store(url, create=False)
    store.objects.put(f"study/{part.uuid}/log/{part.state.lsn:020d}", b"another's")
    store.close()
    if not ending:
        audit = part.log.log._confirmation  # type: ignore[attr-defined]
        audit.clock = lambda: time.monotonic() + SELDOM
        with pytest.raises(BrokenChain, match="another writer's now"):
            study.ask()
    study.close()
    assert len(list(spool.histories(part.uuid))) == 1


def test_no_other_study_keeps_an_overwritten_commit_from_being_noticed_at_the_end(server: Imitation) -> None:
    """One cannot be written to any more, and two have lost a commit."""
    url = server.url("store")
    storage = hopaas_p2p.open_storage(url, linger=3600.0)
    studies = [hopaas_p2p.open_study(storage, name, space={"x": hopaas_p2p.Float(0, 1)}) for name in "abc"]
    closed, *parts = [storage.handle(study.study_id) for study in studies]
    trials = [study.ask() for study in studies]
    trials[0].set_user_attr("said", 1)
    for study, trial in zip(studies[1:], trials[1:], strict=True):
        study.tell(trial, 1.0)
    store = S3Store(url, create=False)
    for part in parts:
        store.objects.put(f"study/{part.uuid}/log/{part.state.lsn:020d}", b"another's")
    store.close()
    server.asked = lambda request: 403 if request.kind == "PUT" and closed.uuid in request.path else None
    storage.close()
    assert [len(list(spool.histories(part.uuid))) for part in parts] == [1, 1]
