"""Who sleeps while a bucket is cleaned up, or a study deleted, is told, and writes nothing where nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.records import Commit, StudyRegistered, TrialCreate, TrialFinish, TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import BehindRetention, InvalidInput, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.peer.session import LogClient, study_client
from hopaas_p2p.stores.base import Outgoing, append
from hopaas_p2p.stores.objects.contract import lsn_of
from hopaas_p2p.stores.objects.log import Clocks, clocks
from hopaas_p2p.stores.s3 import gc as s3_gc
from hopaas_p2p.stores.s3.gc import Removal
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import append_many, everything, outgoing
from tests.support.s3_faults import FaultProxy
from tests.support.s3_server import S3Server
from tests.support.scribe import defined

NOW = -60.0
"""A `keep` that makes everything old enough to go."""


@pytest.fixture
def store(s3_url: str) -> Iterator[S3Store]:
    store = S3Store(s3_url)
    yield store
    store.close()


class Campaign:
    """A study in a bucket, its founder, and a list of studies that has it."""

    def __init__(self, store: S3Store) -> None:
        self.store = store
        opened = Commit("founder", 1, "founder", 0, (StudyRegistered("u", "study"),))
        store.catalog().exchange(Outgoing("founder:1", codec.encode(opened)), 0)
        self.founder = self.peer("founder")
        self.founder.put("founder", defined())
        self.founder.exchange()

    def peer(self, name: str) -> LogClient[State]:
        return study_client(self.store.log("u"), writer=name, now_us=lambda: 0)

    def run_trials(self, count: int) -> None:
        for _ in range(count):
            ticket = self.founder.put("founder", TrialCreate())
            self.founder.exchange()
            assert ticket.verdicts is not None
            assert ticket.verdicts[0].number is not None
            self.founder.put("founder", TrialFinish(ticket.verdicts[0].number, 1, TrialState.COMPLETE, (1.0,)))
            self.founder.exchange()

    def clean_up(self, *, dry_run: bool = False) -> list[Removal]:
        return list(s3_gc._collect(self.store, NOW, dry_run=dry_run))

    def lsns(self) -> list[int | None]:
        return [lsn_of(key) for key in self.store.objects.listed("study/u/log/")]


@pytest.fixture
def campaign(store: S3Store) -> Campaign:
    return Campaign(store)


def sleep(log: BucketLog, seconds: float = 86400.0) -> None:
    """This log's process was stopped for that long: only the clock that never stops shows it."""
    log.history.clocks = lambda: clocks()._replace(boot=clocks().boot + seconds)


def started_by(peer: LogClient[State], name: str) -> int:
    ticket = peer.put(name, TrialCreate())
    peer.exchange()
    assert ticket.verdicts is not None
    number = ticket.verdicts[0].number
    assert number is not None
    return number


# --- after gc ----------------------------------------------------------------------------------------------------


def test_gc_removes_what_a_snapshot_stands_for_and_nothing_else(campaign: Campaign) -> None:
    campaign.run_trials(5)
    campaign.founder.write_snapshot()
    campaign.run_trials(2)
    before = snapshot.digest(campaign.founder.state)
    assert [(one.study, one.objects) for one in campaign.clean_up(dry_run=True)] == [("study", 11)]
    assert campaign.lsns() == list(range(1, 16))

    assert [(one.study, one.objects) for one in campaign.clean_up()] == [("study", 11)]
    assert campaign.lsns() == [12, 13, 14, 15]
    assert campaign.clean_up() == []
    joined = campaign.peer("joiner")
    joined.exchange()
    assert snapshot.digest(joined.state) == before


def test_names_with_digits_of_another_script_are_passed_over(campaign: Campaign) -> None:
    for folder in ("log", "snapshot", "boundary"):
        campaign.store.objects.put(f"study/u/{folder}/²", b"")
    campaign.run_trials(5)
    campaign.founder.write_snapshot()
    assert [(one.study, one.objects) for one in campaign.clean_up()] == [("study", 11)]
    campaign.store.log("u").destroy()
    with pytest.raises(StudyDeleted):
        campaign.peer("joiner").exchange()


def test_gc_keeps_what_is_younger_than_a_day(campaign: Campaign) -> None:
    campaign.run_trials(3)
    campaign.founder.write_snapshot()
    assert list(s3_gc.collect(campaign.store)) == []
    with pytest.raises(InvalidInput, match="day"):
        list(s3_gc.collect(campaign.store, keep=3600.0))
    assert campaign.lsns() == [1, 2, 3, 4, 5, 6, 7]


def test_gc_keeps_all_when_the_snapshot_cannot_be_read(campaign: Campaign) -> None:
    campaign.run_trials(3)
    campaign.store.log("u").put_snapshot(7, b"damaged")
    assert campaign.clean_up() == []
    assert len(campaign.lsns()) == 7


def test_gc_stops_when_the_list_of_studies_is_gone(campaign: Campaign) -> None:
    campaign.store.objects.delete(campaign.store.objects.listed("studies/"))
    with pytest.raises(StoreCorrupt, match="nothing was removed"):
        campaign.clean_up()


def test_gc_stops_where_the_list_of_studies_has_lost_a_commit(campaign: Campaign) -> None:
    """A peer reads such a list up to the hole; the studies behind it are not deleted ones."""
    catalog = campaign.store.catalog()
    for name in "vw":
        opened = Commit(f"founder-{name}", 1, "founder", 0, (StudyRegistered(name, f"study-{name}"),))
        append(catalog, Outgoing(f"founder-{name}:1", codec.encode(opened)), 0)
        other = study_client(campaign.store.log(name), writer="founder", now_us=lambda: 0)
        other.put("founder", defined())
        other.exchange()
    campaign.store.objects.delete([f"studies/log/{2:020d}"])
    before = campaign.store.objects.listed("study/")
    with pytest.raises(StoreCorrupt, match=r"no commit 2, but has later ones.*nothing was removed"):
        campaign.clean_up()
    assert campaign.store.objects.listed("study/") == before


def test_the_files_of_a_deleted_study_go_also_when_gc_was_interrupted(campaign: Campaign, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"model")
    gone = "0" * 32
    campaign.store.artifacts().put(f"{gone}/model", tmp_path / "file")
    campaign.store.objects.put(f"study/{gone}/log/{1:020d}", b"a commit")
    steps = s3_gc._collect(campaign.store, NOW, dry_run=False)
    assert next(steps).study == gone
    steps.close()
    campaign.clean_up()
    assert campaign.store.artifacts().keys(gone) == []
    assert campaign.store.objects.listed(f"study/{gone}/") == [f"study/{gone}/boundary/deleted"]
    assert campaign.clean_up() == []


def test_a_damaged_snapshot_after_gc_is_passed_over_for_an_older_one(campaign: Campaign) -> None:
    """The log alone cannot be replayed any more: its beginning is gone."""
    campaign.run_trials(4)
    campaign.founder.write_snapshot()
    campaign.run_trials(3)
    campaign.founder.write_snapshot()
    campaign.clean_up()
    campaign.run_trials(2)
    assert campaign.lsns()[0] == 10
    for damaged in (b"", b"cut short", snapshot.dump(State()), snapshot.dump(campaign.founder.state)):
        campaign.store.objects.put(f"study/u/snapshot/{15:020d}", damaged)  # the last is whole, but of another lsn
        joined = campaign.peer("joiner")
        joined.exchange()
        assert snapshot.digest(joined.state) == snapshot.digest(campaign.founder.state)
    campaign.store.objects.put(f"study/u/snapshot/{9:020d}", b"this one too")
    joined = campaign.peer("joiner")
    with pytest.raises(StoreCorrupt):
        joined.exchange()
    assert not joined.session.joined


def test_a_snapshot_that_is_there_is_not_overwritten(campaign: Campaign) -> None:
    campaign.run_trials(2)
    campaign.founder.write_snapshot()
    log = campaign.store.log("u")
    log.put_snapshot(5, b"forged")
    found = log.newest_snapshot()
    assert found is not None
    assert snapshot.load(found[1]).lsn == found[0] == 5


def test_snapshots_of_lsns_that_never_were_drive_no_sound_one_out(campaign: Campaign) -> None:
    log = campaign.store.log("u")
    for lsn in (10**15, 10**16, 10**17):
        log.put_snapshot(lsn, b"forged")
    for _ in range(5):
        campaign.run_trials(1)
        campaign.founder.write_snapshot()
    joined = campaign.peer("joiner")
    joined.exchange()
    assert snapshot.digest(joined.state) == snapshot.digest(campaign.founder.state)
    kept = [lsn_of(key) for key in campaign.store.objects.listed("study/u/snapshot/")]
    assert [lsn for lsn in kept if lsn < 100] == [7, 9, 11]


def test_a_zombie_after_gc_joins_again_and_its_result_counts(campaign: Campaign) -> None:
    zombie = campaign.peer("zombie")
    number = started_by(zombie, "zombie")
    campaign.run_trials(6)
    campaign.founder.write_snapshot()
    campaign.clean_up()
    there = campaign.lsns()

    assert isinstance(zombie.log, BucketLog)
    sleep(zombie.log)
    ticket = zombie.put("zombie", TrialFinish(number, 1, TrialState.COMPLETE, (2.0,)))
    with pytest.raises(BehindRetention):
        zombie.exchange()
    assert campaign.lsns() == there  # nothing was written where nobody reads

    zombie.exchange()
    assert ticket.verdicts is not None
    assert ticket.verdicts[0].accepted
    campaign.founder.exchange()
    assert snapshot.digest(zombie.state) == snapshot.digest(campaign.founder.state)


def test_a_zombie_whose_last_commit_was_cleaned_up_learns_its_fate(campaign: Campaign) -> None:
    zombie = campaign.peer("zombie")
    number = started_by(zombie, "zombie")
    ticket = zombie.put("zombie", TrialFinish(number, 1, TrialState.COMPLETE, (2.0,)))
    (sent,) = zombie.session.pack_for_spool()
    campaign.store.log("u").exchange(sent, zombie.state.lsn)  # it never heard
    campaign.run_trials(2)
    campaign.founder.write_snapshot()
    campaign.clean_up()

    assert isinstance(zombie.log, BucketLog)
    sleep(zombie.log)
    with pytest.raises(BehindRetention):
        zombie.exchange()
    zombie.exchange()
    assert ticket.verdicts is not None
    assert ticket.verdicts[0].accepted
    assert [trial.values for trial in zombie.state.trials].count((2.0,)) == 1


def test_who_slept_and_could_not_look_at_the_boundary_looks_when_it_comes_again(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the free key that it finds then would be the end of the log for it."""
    history = campaign.peer("zombie").log.history
    history.begin(3)
    history.clocks = lambda: clocks()._replace(boot=clocks().boot + 86400.0)

    def away(*_: object, **__: object) -> list[str]:
        raise StoreUnreachable

    with monkeypatch.context() as patch:
        patch.setattr(history._objects, "listed", away)
        with pytest.raises(StoreUnreachable):
            history.end(3)
    campaign.store.objects.put_new(f"study/u/boundary/{9:020d}", b"")
    with pytest.raises(BehindRetention):
        history.begin(3)


def test_who_falls_asleep_between_looking_and_writing_finds_out(campaign: Campaign) -> None:
    zombie = campaign.peer("zombie")
    number = started_by(zombie, "zombie")
    campaign.run_trials(2)
    campaign.founder.write_snapshot()
    campaign.clean_up()
    assert isinstance(zombie.log, BucketLog)
    times = iter([0.0, 86400.0, *[86400.0] * 100])
    zombie.log.history.clocks = lambda: Clocks(0.0, next(times))
    zombie.log.history.last = Clocks(0.0, 0.0)
    ticket = zombie.put("zombie", TrialFinish(number, 1, TrialState.COMPLETE, (2.0,)))
    with pytest.raises(BehindRetention):
        zombie.exchange()
    zombie.exchange()
    assert ticket.verdicts is not None
    assert ticket.verdicts[0].accepted
    joined = campaign.peer("joiner")
    joined.exchange()
    assert snapshot.digest(joined.state) == snapshot.digest(zombie.state)


def test_who_is_awake_pays_nothing_for_it(s3_server: S3Server) -> None:
    with FaultProxy(s3_server.port) as proxy:
        store = S3Store(s3_server.url(s3_server.new_prefix(), endpoint=proxy.endpoint))
        log = store.log("u")
        append_many(log, "a", 2)
        proxy.clear()
        sleep(log, 300.0)
        append_many(log, "b", 2, since=2)
        assert proxy.requests == {"PUT": 2}
        sleep(log, 3600.0)
        append_many(log, "c", 1, since=4)
        assert proxy.requests == {"PUT": 3, "LIST": 1}
        store.close()


# --- of a deleted study ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [0, 3])
def test_a_zombie_of_a_deleted_study_is_told(store: S3Store, behind: int) -> None:
    zombie = store.log("u")
    append_many(zombie, "a", 2)
    append_many(store.log("u"), "b", behind, since=2)
    store.log("u").destroy()
    for commit in (outgoing("mine"), None):
        with pytest.raises(StudyDeleted):
            zombie.exchange(commit, 2)
    with pytest.raises(StudyDeleted):
        store.log("u").exchange(None, 0)


def test_gc_takes_deleted_studies_away_and_their_zombies_are_still_told(campaign: Campaign) -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    store = campaign.store
    other = store.log("gone")
    append_many(other, "a", 4)
    with TemporaryDirectory() as directory:
        file = Path(directory, "model")
        file.write_bytes(b"weights")
        store.artifacts().put("gone/model", file)
    other.destroy()
    found = campaign.clean_up()
    assert [(one.what, one.study, one.objects) for one in found] == [
        ("files of a deleted study", "gone", 1),
        ("a deleted study", "gone", 5),
    ]
    assert store.objects.listed("study/gone/") == ["study/gone/boundary/deleted"]
    assert store.artifacts().keys("gone") == []
    assert campaign.lsns() == [1]
    sleep(other)
    for commit in (outgoing("mine"), None):
        with pytest.raises(StudyDeleted):
            other.exchange(commit, 4)
    with pytest.raises(StudyDeleted):
        everything(store.log("gone"))
