"""A log with two histories: whatever the store, peers notice it, write nothing more, and keep what they had written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudySet
from hopaas_p2p.errors import BrokenChain, StoreCorrupt
from hopaas_p2p.open import open_store
from hopaas_p2p.peer import session
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.memory import MemoryLog
from hopaas_p2p.stores.objects.carried import sealed
from hopaas_p2p.stores.objects.log import WriteOnceLog
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.study import Study
from hopaas_p2p.testing.commits import everything, sum_of
from tests.support.studies import copy_store, remove_store

SPACE = {"x": hopaas_p2p.Float(0, 1)}
FORGED = codec.encode(Commit("eve", 1, "eve", 0, (StudySet({"who": '"eve"'}),)))


@pytest.fixture(autouse=True)
def own_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def join() -> Iterator[Callable[[str], Study]]:
    opened: list[Study] = []

    def joined(url: str) -> Study:
        opened.append(hopaas_p2p.open_study(hopaas_p2p.open_storage(url, store_wait=5, patience=5), "s", space=SPACE))
        return opened[-1]

    yield joined
    for study in opened:
        study.close()


def uuid_of(study: Study) -> str:
    (uuid,) = study.storage.peer.logs
    return uuid


def tell_some(study: Study, count: int) -> None:
    for _ in range(count):
        study.tell(study.ask(), 0.5)


class Kind(NamedTuple):
    url: str
    execute: Callable[..., Any] | None = None

    def replace_last(self, uuid: str) -> int:
        """Put another commit in the place of the last one; its lsn."""
        store = open_store(self.url)
        log = store.log(uuid)
        entries = everything(log)
        lsn = entries[-1].lsn
        if self.execute is not None:
            self.execute(
                "UPDATE hopaas.commits SET payload = %s WHERE lsn = %s AND log = (SELECT id FROM hopaas.logs "
                "WHERE uuid = %s)",
                FORGED,
                lsn,
                uuid,
                database="store",
            )
        elif isinstance(log, MemoryLog):
            log._entries[-1] = replace(entries[-1], payload=FORGED)
            log._sum = codec.following(sum_of(entries[:-1]), FORGED)
        else:
            assert isinstance(log, WriteOnceLog)
            log.objects.delete([log.key(lsn)])
            assert log.objects.put_new(log.key(lsn), codec.attach(FORGED, sum_of(entries[:-1])))
        store.close()
        return lsn


@pytest.fixture(params=["memory", "directory", "postgres", "s3"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    if request.param == "memory":
        return Kind(f"memory://{tmp_path.name}")
    if request.param == "directory":
        return Kind(str(tmp_path / "store"))
    if request.param == "postgres":
        return Kind(request.getfixturevalue("postgres_url"), request.getfixturevalue("postgres").execute)
    return Kind(request.getfixturevalue("s3_url"))


def test_a_buckets_object_in_a_directory_is_garbage_and_stops_nobody(
    tmp_path: Path, join: Callable[[str], Study]
) -> None:
    ann = join(str(tmp_path / "store"))
    log = ann.storage.peer.store.log(uuid_of(ann))
    assert isinstance(log, WriteOnceLog)
    lsn = everything(log)[-1].lsn + 1
    assert log.objects.put_new(log.key(lsn), sealed(codec.attach(FORGED, 12345), 7, [FORGED]))
    for peer in (ann, join(str(tmp_path / "store"))):
        tell_some(peer, 2)
    assert ann.state.refusals == {"malformed": 1}


@pytest.mark.path
def test_two_commits_of_one_number_stop_the_peer_that_has_read_the_other(
    kind: Kind, join: Callable[[str], Study]
) -> None:
    ann = join(kind.url)
    tell_some(ann, 3)
    uuid = uuid_of(ann)
    lsn = kind.replace_last(uuid)
    tell_some(join(kind.url), 1)
    before = everything(open_store(kind.url).log(uuid))
    for _ in range(2):
        with pytest.raises(BrokenChain, match=f"commit {lsn}.*sum [0-9a-f]{{11}}.*[0-9a-f]{{11}}"):
            tell_some(ann, 1)
    assert everything(open_store(kind.url).log(uuid)) == before, "and it writes nothing more"
    if not kind.url.startswith("memory"):
        ((_, kept),) = spool.histories(uuid)
        in_log = {entry.payload for entry in before}
        assert [payload for payload in kept.payloads if payload not in in_log], "what the log has not is in the spool"
        assert not list(spool.waiting())


def test_a_history_that_no_disk_took_is_kept_as_soon_as_one_does(
    tmp_path: Path, join: Callable[[str], Study], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kind = Kind(str(tmp_path / "store"))
    ann = join(kind.url)
    tell_some(ann, 3)
    uuid = uuid_of(ann)
    kind.replace_last(uuid)
    tell_some(join(kind.url), 1)
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(spool, "directories", lambda: [tmp_path / "file" / "spool"])
        with pytest.raises(BrokenChain):
            tell_some(ann, 1)
        assert "no copy could be kept" in caplog.text
    ann.close()
    ((_, kept),) = spool.histories(uuid)
    assert len(kept.payloads) >= 3
    assert not list(spool.waiting())


def test_a_new_peer_stops_where_the_histories_part(kind: Kind, join: Callable[[str], Study]) -> None:
    ann, bob = join(kind.url), join(kind.url)
    tell_some(ann, 2)
    uuid = uuid_of(ann)
    bob.storage.peer.catch_up(bob.storage.peer.logs[uuid])
    kind.replace_last(uuid)
    log = open_store(kind.url).log(uuid)
    head = len(everything(log))
    if isinstance(log, BucketLog):  # nobody looks at the past there: bob goes on
        tell_some(bob, 1)
        with pytest.raises(BrokenChain):
            tell_some(join(kind.url), 1)
    else:
        with pytest.raises(BrokenChain):
            tell_some(bob, 1)
        assert len(everything(log)) == head


def rolled_back(tmp_path: Path, study: Study) -> None:
    """Copy the store, tell a trial, and bring the copy back."""
    copy_store(tmp_path / "store", tmp_path / "backup")
    tell_some(study, 2)
    remove_store(tmp_path / "store")
    (tmp_path / "backup").rename(tmp_path / "store")


def test_a_directory_that_is_rolled_back_under_a_peer_gets_nothing_from_it(
    tmp_path: Path, join: Callable[[str], Study]
) -> None:
    ann = join(str(tmp_path / "store"))
    tell_some(ann, 2)
    rolled_back(tmp_path, ann)
    uuid = uuid_of(ann)
    head = len(everything(DirectoryStore(tmp_path / "store").log(uuid)))
    with pytest.raises(BrokenChain, match="gone from the log"):
        ann.ask()
    assert len(everything(DirectoryStore(tmp_path / "store").log(uuid))) == head
    ((_, kept),) = spool.histories(uuid)
    assert len(kept.payloads) >= 4
    tell_some(join(str(tmp_path / "store")), 1)


def test_an_older_backup_of_a_database_gets_nothing_from_the_peers_of_before(
    postgres_url: str, postgres: Any, join: Callable[[str], Study]
) -> None:
    ann = join(postgres_url)
    tell_some(ann, 3)
    uuid = uuid_of(ann)
    head = len(everything(open_store(postgres_url).log(uuid)))
    of_log = "log = (SELECT id FROM hopaas.logs WHERE uuid = %s)"
    postgres.execute(f"DELETE FROM hopaas.commits WHERE {of_log} AND lsn > %s", uuid, head - 2, database="store")
    postgres.execute(f"DELETE FROM hopaas.snapshots WHERE {of_log}", uuid, database="store")
    tell_some(join(postgres_url), 3)
    before = everything(open_store(postgres_url).log(uuid))
    assert len(before) > head
    with pytest.raises(BrokenChain, match=r"two histories|ends at commit"):  # where its scheduler looked in between
        tell_some(ann, 1)
    assert everything(open_store(postgres_url).log(uuid)) == before
    assert [kept for _, kept in spool.histories(uuid)]


@pytest.mark.parametrize("place", ["directory", "s3"])
def test_a_snapshot_ahead_of_its_log_is_noticed(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, join: Callable[[str], Study]
) -> None:
    url = str(tmp_path / "store") if place == "directory" else request.getfixturevalue("s3_url")
    ann = join(url)
    tell_some(ann, 2)
    uuid = uuid_of(ann)
    (driver,) = ann.storage.peer.logs.values()
    driver.write_snapshot()
    ann.close()
    store = open_store(url)
    log = store.log(uuid)
    assert isinstance(log, WriteOnceLog)
    (ahead, _) = log.newest_snapshot() or (0, b"")
    log.objects.delete([log.key(lsn) for lsn in range(ahead, len(everything(log)) + 1)])
    with pytest.raises(BrokenChain, match="gone from the log"):
        join(url).ask()


def test_a_whole_commit_whose_bytes_have_changed_is_damage_and_stays_as_it_is(
    tmp_path: Path, join: Callable[[str], Study]
) -> None:
    ann = join(str(tmp_path / "store"))
    tell_some(ann, 2)
    uuid = uuid_of(ann)
    log = DirectoryStore(tmp_path / "store").log(uuid)
    path = tmp_path / "store" / "v1" / log.key(3)
    text = str(path.readlink())
    path.unlink()
    path.symlink_to(text[:60] + ("A" if text[60] != "A" else "B") + text[61:])
    with pytest.raises(StoreCorrupt, match="damaged: it is complete"):
        join(str(tmp_path / "store")).ask()
    assert str(path.readlink()) != text


def test_a_peer_that_stops_at_a_damaged_commit_keeps_what_it_had_written(
    tmp_path: Path, join: Callable[[str], Study]
) -> None:
    ann = join(str(tmp_path / "store"))
    tell_some(ann, 2)
    uuid = uuid_of(ann)
    log = DirectoryStore(tmp_path / "store").log(uuid)
    assert isinstance(log, WriteOnceLog)
    entries = everything(log)
    whole = codec.attach(FORGED, sum_of(entries))
    assert log.objects.put_new(log.key(len(entries) + 1), whole[:10] + bytes([whole[10] ^ 1]) + whole[11:])
    with pytest.raises(StoreCorrupt, match="damaged"):
        ann.ask()
    ((_, kept),) = spool.histories(uuid)
    assert kept.payloads[: len(entries)] == [entry.payload for entry in entries]


def test_the_last_commits_that_are_kept_are_not_more_than_memory_should_hold(
    join: Callable[[str], Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_KEPT", 5)
    study = join("memory://kept")
    tell_some(study, 10)
    (driver,) = study.storage.peer.logs.values()
    lsns = [placed.lsn for placed in driver.session.acknowledged]
    assert lsns == list(range(driver.state.lsn - 4, driver.state.lsn + 1))
