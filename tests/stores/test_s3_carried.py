"""Objects that carry copies of earlier commits, in a bucket of format 2; buckets of format 1 stay as they are."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, StudyDefine, StudySet, TrialCreate, TrialState
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import BrokenChain, NewerFormat, StoreCorrupt
from hopaas_p2p.moving import rescue
from hopaas_p2p.peer.session import LogClient, study_client
from hopaas_p2p.stores.base import Entry, Outgoing, append
from hopaas_p2p.stores.objects.carried import MOST, MOST_BYTES, PiggybackedCommits, opened, sealed
from hopaas_p2p.stores.objects.contract import Found
from hopaas_p2p.stores.s3 import gc as s3_gc
from hopaas_p2p.stores.s3 import log as log_module
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.stores.s3.search import EndSearch
from hopaas_p2p.stores.s3.store import S3Store
from hopaas_p2p.testing.commits import everything
from tests.support.processes import until
from tests.support.s3_imitation import Imitation

GOLDEN = Path(__file__).parents[1] / "golden"


def key(lsn: int) -> str:
    return f"study/u/log/{lsn:020d}"


def stored(store: S3Store, lsn: int) -> bytes:
    found = store.objects.get(key(lsn), limit=1 << 20)
    assert found is not None
    return found.data


def said(who: int, turn: int) -> Outgoing:
    """A commit of one of several peers."""
    commit = Commit(f"peer-{who}", turn + 1, f"peer-{who}", 0, (StudySet({f"note-{turn}": "1"}),))
    return Outgoing(f"peer-{who}:{turn + 1}", codec.encode(commit))


def caught_up(store: S3Store, lsn: int) -> LogClient[State]:
    """A peer that has joined and read so far."""
    peer = study_client(store.log("u"), writer="joiner", now_us=lambda: 0)

    def reads() -> bool:
        peer.exchange()
        return peer.state.lsn >= lsn

    until(reads, 60)
    return peer


def large(who: int) -> bytes:
    return codec.encode(Commit(f"peer-{who}", 1, f"peer-{who}", 0, (StudySet({"note": "1" * 5000}),)))


def written(store: S3Store, count: int, writers: int) -> list[Entry]:
    """A log to which so many peers have written in turn."""
    logs = [store.log("u") for _ in range(writers)]
    known = [0] * writers
    for turn in range(count):
        who = turn % writers
        known[who] = append(logs[who], said(who, turn), known[who])[-1].lsn
    return everything(store.log("u"))


def expecting(log: BucketLog, commits: float | None, monkeypatch: pytest.MonkeyPatch, *, hurried: bool = False) -> None:
    """Let looks expect so many new commits."""

    def search(now: float, behind: int = 0) -> EndSearch:
        return EndSearch(commits, hurried=hurried)

    monkeypatch.setattr(log.scheduler, "search", search)


def gets(store: S3Store, log: BucketLog, since: int) -> int:
    """GETs of one look."""
    before = store.objects.requests["GET"]
    log.exchange(None, since)
    return store.objects.requests["GET"] - before


# --- what objects carry ------------------------------------------------------------------------------------------


def test_an_object_carries_what_the_other_writers_lack(store: S3Store) -> None:
    found = written(store, 12, 4)
    assert [len(opened(stored(store, lsn)).copies) for lsn in range(1, 13)] == [0, 0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    last = opened(stored(store, 12))
    assert list(last.copies) == [entry.payload for entry in found[8:11]]
    assert last.before == found[8].before
    assert [entry.lsn for entry in found] == list(range(1, 13))


def test_a_log_of_one_writer_carries_nothing(store: S3Store) -> None:
    written(store, 5, 1)
    assert not any(opened(stored(store, lsn)).copies for lsn in range(1, 6))


def test_an_object_carries_a_bounded_number_of_bytes() -> None:
    carrier, total = PiggybackedCommits(), 0
    for lsn in range(1, 100):
        payload = large(lsn % 20)
        carrier.saw(lsn, payload, total)
        total = codec.following(total, payload)
    own = codec.attach(said(9, 99).payload, total)
    copies = opened(carrier.load(100, own, total)).copies
    assert 10 < len(copies) < MOST
    assert sum(map(len, copies)) <= MOST_BYTES


def test_a_reader_that_is_fifteen_behind_asks_three_or_four_times(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = written(store, 40, 16)
    for expected, asked in ((13.0, 3), (15.0, 4), (18.0, 3)):
        log = store.log("u")
        log.exchange(None, 25)
        expecting(log, expected, monkeypatch)
        assert gets(store, log, 25) == asked, f"{expected} were expected"
    monkeypatch.undo()
    assert everything(store.log("u"), 25) == found[25:]


def test_every_expectation_finds_the_same_commits(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = written(store, 50, 7)
    for expected in (None, 0.0, 1.0, 5.0, 30.0, 60.0, 1000.0):
        for hurried in (False, True):
            for since in (0, 1, 13, 49, 50):
                log = store.log("u")
                expecting(log, expected, monkeypatch, hurried=hurried)
                receipt = log.exchange(None, since)
                assert receipt.entries == found[since:], (expected, hurried, since)
                assert not receipt.more


@pytest.mark.parametrize("grows", [0, 1, 3, 4, 5, 10, 20])
@pytest.mark.parametrize("hurried", [False, True])
def test_a_search_ends_although_the_log_grows_while_it_lasts(grows: int, hurried: bool) -> None:
    """A far peer reads a round of objects while the others write several."""
    search, end, rounds = EndSearch(4.0, hurried=hurried), 4, 0
    while offsets := search.following():
        rounds, end = rounds + 1, end + grows
        assert rounds < 30
        for offset in offsets:
            if offset > end:
                search.free(offset)
                break
            search.found(offset)
    assert search._known >= 4


# --- copies that contradict --------------------------------------------------------------------------------------


def replaced(store: S3Store, lsn: int, place: int, payload: bytes, *, before: int | None = None) -> None:
    """Forge one copy in an object."""
    there = opened(stored(store, lsn))
    copies = [payload if at == place else one for at, one in enumerate(there.copies)]
    store.objects.put(key(lsn), sealed(there.stored, there.before if before is None else before, copies))


def test_a_copy_that_does_not_lead_to_its_commit_ends_in_two_histories(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(store, 12, 4)
    replaced(store, 12, 1, said(9, 99).payload)
    log = store.log("u")
    expecting(log, 4.0, monkeypatch)
    with pytest.raises(BrokenChain, match="leads to the sum"):
        log.exchange(None, 8)


def test_copies_that_begin_with_another_sum_end_in_two_histories(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lead to the commit, but not from what the peer has read: somebody forged the commit's own sum, too."""
    define(store)
    written(store, 8, 4)
    peer = caught_up(store, 9)
    payload = codec.encode(Commit("forger", 1, "forger", 0, ()))
    copies = [codec.encode(Commit("forger", seq, "forger", 0, ())) for seq in (2, 3)]
    total = 12345
    for copy in copies:
        total = codec.following(total, copy)
    store.objects.put(key(12), sealed(codec.attach(payload, total), 12345, copies))
    expecting(peer.log, 3.0, monkeypatch)  # type: ignore[arg-type]
    with pytest.raises(BrokenChain, match="10"):
        peer.exchange()
    assert peer.state.lsn == 9


def test_a_copy_with_the_same_checksum_is_noticed_by_who_has_read_the_commit(store: S3Store) -> None:
    written(store, 12, 4)
    reader = store.log("u")
    reader.exchange(None, 0)
    true = opened(stored(store, 12)).copies[1]
    forged = colliding(true)
    assert forged != true
    assert codec.following(7, forged) == codec.following(7, true)
    object_ = opened(stored(store, 12))
    own = codec.attach(said(9, 99).payload, object_.before)
    following = object_.before
    for copy in (object_.copies[0], forged):
        following = codec.following(following, copy)
    own = codec.attach(said(9, 99).payload, codec.following(following, object_.copies[2]))
    last = codec.detach(object_.stored)[0]
    total = codec.following(codec.following(following, object_.copies[2]), last)
    own = codec.attach(said(9, 99).payload, total)
    store.objects.put(key(13), sealed(own, object_.before, [object_.copies[0], forged, object_.copies[2], last]))
    with pytest.raises(BrokenChain, match="differs from the one that this peer has read"):
        reader.exchange(None, 12)


def colliding(payload: bytes) -> bytes:
    """Other bytes of the same checksum, as somebody makes them who means harm."""
    target = int.from_bytes(payload[:4], "little")
    body = payload[4:]
    rows: list[int] = []
    width = 8
    base = zlib.crc32(body + bytes(width))
    for bit in range(8 * width):
        suffix = (1 << bit).to_bytes(width, "little")
        rows.append(zlib.crc32(body + suffix) ^ base)
    want, chosen = target ^ base, 0
    basis: dict[int, tuple[int, int]] = {}
    for bit, row in enumerate(rows):
        mask = 1 << bit
        while row:
            top = row.bit_length()
            if top not in basis:
                basis[top] = (row, mask)
                break
            row, mask = row ^ basis[top][0], mask ^ basis[top][1]
    while want:
        row, mask = basis[want.bit_length()]
        want, chosen = want ^ row, chosen ^ mask
    forged = body + chosen.to_bytes(width, "little")
    assert zlib.crc32(forged) == target
    return payload[:4] + forged


def test_a_copy_that_is_no_commit_is_refused(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It might have the checksum of one in its first bytes, and nothing else of it."""
    written(store, 12, 4)
    true = opened(stored(store, 12)).copies[1]
    replaced(store, 12, 1, true[:4] + b"not what was written")
    log = store.log("u")
    expecting(log, 4.0, monkeypatch)
    with pytest.raises(BrokenChain, match="is not a commit"):
        log.exchange(None, 8)


def test_copies_of_which_a_bit_has_changed_are_damage(store: S3Store) -> None:
    written(store, 12, 4)
    data = bytearray(stored(store, 12))
    data[len(data) // 2] ^= 4
    store.objects.put(key(12), bytes(data))
    with pytest.raises(StoreCorrupt, match="damaged"):
        store.log("u").exchange(None, 0)


@pytest.mark.parametrize("data", [b"", b"\x00carried", bytes(30) + b"\x00carried", b"by a stranger"])
def test_bytes_that_no_writer_left_carry_nothing(data: bytes) -> None:
    assert opened(data).copies == ()
    assert opened(data).stored == data
    assert not opened(data).sound


# --- objects that are gone ---------------------------------------------------------------------------------------


def test_a_reader_passes_over_an_object_that_was_lost_if_a_later_one_carries_its_commit(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = written(store, 40, 16)
    store.objects.delete([key(33)])
    log = store.log("u")
    log.exchange(None, 25)
    expecting(log, 15.0, monkeypatch)
    assert everything(log, 25) == found[25:]


def test_a_reader_goes_on_at_a_hole_that_nothing_carries(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(store, 9, 1)
    store.objects.delete([key(4)])
    log = store.log("u")
    expecting(log, 9.0, monkeypatch)
    with caplog.at_level("WARNING", "hopaas_p2p"):
        assert [entry.lsn for entry in log.exchange(None, 1).entries] == [2, 3]
    assert "there are objects after it" in caplog.text


def define(store: S3Store) -> None:
    first = Commit("founder", 1, "founder", 0, (StudyDefine("s", ("minimize",)),))
    append(store.log("u"), Outgoing("founder:1", codec.encode(first)), 0)


def test_a_rescue_has_both_commits_of_a_number_that_a_server_gave_twice(store: S3Store) -> None:
    """The first is left only where a later object carries a copy of it: nobody has a spool."""
    ann, bob = (study_client(store.log("u"), writer=name, now_us=lambda: 0) for name in ("ann", "bob"))
    ann.put("ann", StudyDefine("s", ("minimize",)))
    ann.exchange()
    bob.put("bob", TrialCreate(TrialState.COMPLETE, params={}, values=(1.0,)))
    bob.exchange()
    ann.put("ann", TrialCreate(TrialState.COMPLETE, params={}, values=(2.0,)))
    ann.exchange()
    lsn = ann.state.lsn
    bob.put("bob", TrialCreate(TrialState.COMPLETE, params={}, values=(3.0,)))
    bob.exchange()
    before = codec.detach(opened(stored(store, lsn)).stored)[1]
    other = codec.encode(Commit("eve", 1, "eve", 0, (TrialCreate(TrialState.COMPLETE, params={}, values=(4.0,)),)))
    store.objects.put(key(lsn), codec.attach(other, before))

    rescued = rescue.rescue(store, "u")

    assert rescued.study is not None
    assert rescued.histories == 2
    assert sorted(one.values for one in rescued.study.trials.values()) == [(1.0,), (2.0,), (3.0,), (4.0,)]


def test_a_rescue_finds_lost_commits_in_the_objects_that_carry_them(store: S3Store) -> None:
    define(store)
    written(store, 12, 4)
    whole = list(store.log("u").salvage())
    assert len(whole) == 13
    store.objects.delete([key(8), key(9)])
    store.objects.put(key(10), b"damaged")
    assert list(store.log("u").salvage()) == whole
    rescued = rescue.rescue(store, "u")
    assert rescued.study is not None
    assert rescued.lost == []


def test_a_salvage_holds_no_more_commits_than_later_objects_may_carry(store: S3Store) -> None:
    found = written(store, 120, 4)
    before = store.objects.requests["GET"]
    ahead = []
    salvaged = []
    for entry in store.log("u").salvage():
        ahead.append(store.objects.requests["GET"] - before - entry.lsn)
        salvaged.append(entry)
    assert salvaged == found
    assert max(ahead) <= MOST + 16, "objects that were read before a commit was handed out"


# --- far behind --------------------------------------------------------------------------------------------------


def test_a_peer_that_is_ten_thousand_commits_behind_joins_by_snapshot_and_tail(
    server: Imitation, store: S3Store
) -> None:
    define(store)
    state, total = State(), 0
    payloads = [everything(store.log("u"))[0].payload]
    payloads += [said(turn % 8, turn).payload for turn in range(10_100)]
    log = store.log("u")
    entries = []
    for lsn, payload in enumerate(payloads, 1):
        entries.append(Entry(lsn, payload, before=total))
        total = codec.following(total, payload)
        if lsn <= 10_000:
            apply(state, lsn, codec.decode(payload))
    pool = server._pools[0]
    like = next(iter(pool.values()))
    root = "store/v1/" if any(name.startswith("store/v1/") for name in pool) else "store/"
    carrier = PiggybackedCommits()
    for entry in entries:
        own = codec.attach(entry.payload, entry.before)
        data = carrier.load(entry.lsn, own, entry.before) if entry.lsn > 9_900 else own
        pool[f"{root}{key(entry.lsn)}"] = like._replace(data=data)
        carrier.saw(entry.lsn, entry.payload, entry.before)
    assert log.exchange(None, 0).entries[0].lsn == 1
    log.put_snapshot(10_000, snapshot.dump(state))
    before = store.objects.requests["GET"]
    peer = caught_up(store, len(payloads))
    assert store.objects.requests["GET"] - before < 60, "of 101 commits behind the snapshot"
    replayed = State()
    for entry in entries:
        apply(replayed, entry.lsn, codec.decode(entry.payload))
    assert snapshot.digest(peer.state) == snapshot.digest(replayed)
    assert everything(store.log("u"), 9_850) == entries[9_850:]


def large_notes(log: BucketLog, count: int) -> None:
    """One writer's *count* commits of 50 kB each, from the first."""
    for seq in range(1, count + 1):
        commit = Commit("w", seq, "w", 0, (StudySet({f"note-{seq}": "1" * 50_000}),))
        append(log, Outgoing(f"w:{seq}", codec.encode(commit)), seq - 1)


def test_what_lies_before_an_object_that_was_found_is_held_up_to_the_bound_of_a_receipt(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writer, so that nothing is carried, and a look that finds the sixtieth object first."""
    log = store.log("u")
    large_notes(log, 60)
    whole = everything(store.log("u"))
    monkeypatch.setattr(log_module, "RECEIPT", 200_000)
    reader = store.log("u")
    expecting(reader, 60.0, monkeypatch)
    since, sizes = 0, []
    found: list[Entry] = []
    more = True
    while more:
        receipt = reader.exchange(None, since)
        found, more = found + receipt.entries, receipt.more
        since = found[-1].lsn
        sizes.append(sum(len(entry.payload) for entry in receipt.entries))
    assert found == whole
    assert max(sizes) < 200_000 + 16 * 51_000, "and a batch more"


def test_large_commits_are_held_up_to_the_bound_also_before_an_object_that_carries_many(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one writer has imported, and then what a crowd has said: the object that is found first carries copies."""
    log = store.log("u")
    large_notes(log, 40)
    logs, known = [store.log("u") for _ in range(4)], [0] * 4
    for turn in range(64):
        known[turn % 4] = append(logs[turn % 4], said(turn % 4, turn), known[turn % 4])[-1].lsn
    monkeypatch.setattr(log_module, "RECEIPT", 200_000)
    reader, held = store.log("u"), [0]
    expecting(reader, 60.0, monkeypatch)
    taken_apart = reader._taken_apart

    def counted(lsn: int, found: Found) -> list[Entry]:
        pieces = taken_apart(lsn, found)
        held[-1] += len(pieces[-1].payload)
        return pieces

    monkeypatch.setattr(reader, "_taken_apart", counted)
    since, more = 0, True
    while more:
        receipt = reader.exchange(None, since)
        since, more = receipt.entries[-1].lsn, receipt.more
        held.append(0)
    assert since == 104
    assert max(held) < 200_000 + 17 * 51_000, "and a batch more"


def test_gc_and_copies_go_together(store: S3Store) -> None:
    define(store)
    written(store, 12, 4)
    peer = caught_up(store, 13)
    peer.write_snapshot()
    removed = list(s3_gc._compact(store, "u", "s", 1e12, dry_run=False))
    assert [one.objects for one in removed] == [13]
    joined = caught_up(store, 13)
    assert snapshot.digest(joined.state) == snapshot.digest(peer.state)
    assert append(store.log("u"), said(0, 20), 13)[-1].lsn == 14


def test_a_bucket_of_a_newer_format_is_refused(server: Imitation, store: S3Store) -> None:
    store.find()
    found = store.objects.get("meta.json", limit=1 << 10)
    assert found is not None
    newer: dict[str, Any] = {"format": json.loads(found.data)["format"] + 1, "uuid": "0" * 32}
    store.objects.put("meta.json", json.dumps(newer).encode())
    with pytest.raises(NewerFormat):
        S3Store(server.url("store")).find()


def test_an_object_can_be_told_from_a_commit_alone_whatever_its_bytes() -> None:
    payload = codec.encode(Commit("w", 1, "w", 0, ()))
    own = codec.attach(payload, 5)
    data = sealed(own, 3, [payload])
    assert opened(data).stored == own
    assert opened(own).stored == own
    assert opened(own).copies == ()
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(data[4:])
