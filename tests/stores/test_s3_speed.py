"""What a peer costs on a bucket, counted exactly: PUTs, GETs and LISTs. How long they take is in `make bench`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.cli.main import run
from hopaas_p2p.core import catalog as catalogs
from hopaas_p2p.core.catalog import Catalog
from hopaas_p2p.core.records import StudyRegistered, StudyRemoved
from hopaas_p2p.moving import export_study
from hopaas_p2p.net.findings import Finding
from hopaas_p2p.stores import checks
from hopaas_p2p.stores.base import SNAPSHOT_EVERY
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.exchanges import waits_of_this_thread
from tests.support.http_messages import Request
from tests.support.objectives import five_parameters as objective
from tests.support.processes import until
from tests.support.s3_faults import FaultProxy
from tests.support.s3_server import S3Server

TRIALS = 10


class Count:
    """Requests by kind; beats apart, which go by the clock."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.asked: Counter[str] = Counter()
        self.paths: list[str] = []
        proxy.always = self._note

    def _note(self, request: Request) -> None:
        self.asked["beat" if "/beats/" in request.path else request.kind] += 1
        self.paths.append(f"{request.kind} {request.path}")

    def clear(self) -> None:
        self.asked.clear()
        self.paths.clear()


@pytest.fixture
def prefix(s3_server: S3Server) -> str:
    return s3_server.new_prefix()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def count(proxy: FaultProxy) -> Count:
    return Count(proxy)


@pytest.fixture
def far_url(s3_server: S3Server, proxy: FaultProxy, prefix: str) -> str:
    return s3_server.url(prefix, endpoint=proxy.endpoint)


@pytest.mark.parametrize(("whose", "puts"), [("optuna's", 2), ("ours", 1)])
def test_a_trial_costs_two_puts_or_one_with_our_optimize_and_nothing_else(
    far_url: str, count: Count, whose: str, puts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = hopaas_p2p.open_storage(far_url, linger=3600.0)
    monkeypatch.setattr(storage.peer.store, "freshness", 3600.0)  # however slow this machine is
    pruner = optuna.pruners.MedianPruner()
    study = (
        hopaas_p2p.open_study(storage, "s", pruner=pruner)
        if whose == "ours"
        else optuna.create_study(storage=storage, study_name="s", pruner=pruner)
    )
    study.optimize(objective, n_trials=2)
    waits = waits_of_this_thread(monkeypatch)
    count.clear()
    study.optimize(objective, n_trials=TRIALS)
    del count.asked["beat"]
    assert count.asked == {"PUT": puts * TRIALS + (whose == "ours")}, "and the last end with ours"
    assert len(waits) == count.asked["PUT"], "each of them is one wait: a PUT of 45 ms"
    storage.close()


def test_a_join_is_six_requests_and_the_tail(s3_server: S3Server, far_url: str, prefix: str, count: Count) -> None:
    storage = hopaas_p2p.open_storage(s3_server.url(prefix))
    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler())
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=140)
    part = storage.handle(study._study_id)
    found = until(part.log.log.newest_snapshot, 30)
    assert found is not None
    tail = part.state.lsn - found[0]
    count.clear()
    other = hopaas_p2p.open_storage(far_url)
    assert len(optuna.load_study(study_name="s", storage=other).trials) == 140
    log = f"study/{part.uuid}/log/"
    before = [path for path in count.paths if log not in path]
    assert sorted(path.partition(" ")[0] for path in before) == ["GET", "GET", "GET", "GET", "GET", "LIST"], before
    assert len(count.paths) - len(before) <= 2 * tail + 16
    for one in (storage, other):
        one.close()


def test_a_bucket_of_many_studies_is_opened_from_a_snapshot_of_its_list(
    s3_server: S3Server, far_url: str, prefix: str, count: Count
) -> None:
    storage = hopaas_p2p.open_storage(s3_server.url(prefix))
    for i in range(SNAPSHOT_EVERY + 3):
        assert storage.peer.commit_to_catalog(StudyRegistered(f"uuid-{i}", f"study-{i}")).number == i
    for uuid in ("uuid-0", "uuid-7"):
        storage.peer.commit_to_catalog(StudyRemoved(uuid))
    others = [hopaas_p2p.open_storage(url) for url in (far_url, s3_server.url(prefix))]
    for other in others:
        other.peer.catch_up(other.peer.catalog)
    listed = [one.peer.catalog.state.by_id for one in (storage, *others)]
    assert listed[0] == listed[1] == listed[2]
    before = 1 + 31 + 1 + 1  # meta.json, five windows of commits, the list of snapshots, one of them
    assert count.asked["LIST"] == 1
    assert len(count.paths) <= before + 2 * 5 + 3
    store = S3Store(s3_server.url(prefix))
    assert _what_the_doctor_says_of_the_snapshot(store).passed
    store.objects.put(f"studies/snapshot/{SNAPSHOT_EVERY:020d}", catalogs.dump(Catalog()))  # hostile
    assert not _what_the_doctor_says_of_the_snapshot(store).passed
    store.close()
    for one in (storage, *others):
        one.close()


def _what_the_doctor_says_of_the_snapshot(store: S3Store) -> Finding:
    return next(found for found in checks.examine(store) if found.check == "studies, snapshot")


def test_who_creates_a_study_reads_none_of_the_others(
    s3_server: S3Server, far_url: str, prefix: str, count: Count, tmp_path: Path
) -> None:
    storage = hopaas_p2p.open_storage(s3_server.url(prefix))
    others = [storage.handle(hopaas_p2p.open_study(storage, f"s{i}").study_id).uuid for i in range(3)]
    source = hopaas_p2p.open_study(tmp_path / "source", "brought")
    export_study(source, tmp_path / "x.study")
    source.close()
    brought = ["study", "import", "--from", str(tmp_path / "x.study")]
    for command in (["study", "create", "made"], brought):
        assert run([*command, "--store", far_url]) == 0
    assert [path for path in count.paths if any(uuid in path for uuid in others)] == []
    reader = hopaas_p2p.open_storage(s3_server.url(prefix))
    assert [one.study_name for one in reader.get_all_studies()] == ["s0", "s1", "s2", "made", "brought"]
    for one in (storage, reader):
        one.close()


def test_who_only_reads_puts_nothing(s3_server: S3Server, far_url: str, prefix: str, count: Count) -> None:
    storage = hopaas_p2p.open_storage(s3_server.url(prefix))
    hopaas_p2p.open_study(storage, "s").tell(hopaas_p2p.open_study(storage, "s").ask(), 1.0)
    reader = hopaas_p2p.open_study(hopaas_p2p.open_storage(far_url), "s", create=False)
    assert [trial.value for trial in reader.trials] == [1.0]
    assert count.asked["PUT"] == 0
    for one in (storage, reader.storage):
        one.close()


def test_an_idle_peer_asks_and_beats_once_every_third_of_its_ttl(far_url: str, count: Count) -> None:
    ttl = 1.5
    storage = hopaas_p2p.open_storage(far_url, lease_ttl=ttl)
    study = optuna.create_study(storage=storage)
    _running = study.ask()
    storage.flush()
    for driver in (storage.handle(study._study_id).log, storage.peer.catalog):
        driver.session.read_at = -1e9  # nobody looks
    count.clear()
    began = time.monotonic()
    until(lambda: count.asked["beat"] >= 6, 60)
    thirds = (time.monotonic() - began) / (ttl / 3)
    asked = count.asked.copy()
    assert asked["beat"] <= thirds + 2
    assert asked["GET"] <= thirds + 2
    assert set(asked) <= {"beat", "GET"}
    storage.close()
