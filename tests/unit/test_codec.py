"""Bytes that are no commit, records that are no record: they change nothing, raise nothing, and are counted."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.records import (
    UNSTAMPED,
    Categorical,
    Commit,
    Float,
    Int,
    Opaque,
    Stamp,
    StudyRegistered,
    TrialCreate,
    TrialFinish,
    TrialSet,
)
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.peer.session import study_client
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.memory import MemoryLog
from tests.support.scribe import COMPLETE, Scribe, X, defined

pack = msgspec.msgpack.encode
GOOD: list[Any] = ["trial.create"]


def sealed(body: bytes) -> bytes:
    """These bytes with the checksum that makes them look like a commit."""
    return zlib.crc32(body).to_bytes(4, "little") + body


def commit_of(*records: Any, writer: Any = "eve", seq: Any = 1, owner: Any = None, at: Any = 0, form: Any = 1) -> bytes:
    return sealed(pack([form, writer, seq, owner, at, list(records)]))


def deep(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


# --- bytes that are no commit ------------------------------------------------------------------------------------

_sound = commit_of(GOOD)
GARBAGE = {
    "nothing": b"",
    "one byte": b"x",
    "a checksum of nothing": b"\0\0\0\0",
    "zeros": b"\0" * 100,
    "text": b"hello, I am not a commit",
    "random bytes": bytes(range(256)),
    "a commit without its first byte": _sound[1:],
    "a commit without its last byte": _sound[:-1],
    "half a commit": _sound[: len(_sound) // 2],
    "a commit with one more byte": _sound + b"\0",
    "a commit with one bit changed": _sound[:-1] + bytes([_sound[-1] ^ 1]),
    "a commit with a wrong checksum": b"\1\2\3\4" + _sound[4:],
    "sealed nothing": sealed(b"\xc0"),
    "sealed number": sealed(pack(7)),
    "sealed text": sealed(pack("hello")),
    "sealed map": sealed(pack({"writer": "eve"})),
    "sealed empty list": sealed(pack([])),
    "sealed header without records": sealed(pack([1, "eve", 1, None, 0])),
    "sealed records that are no list": sealed(pack([1, "eve", 1, None, 0, "all of them"])),
    "sealed records that are a map": sealed(pack([1, "eve", 1, None, 0, {"0": GOOD}])),
    "sealed two commits in a row": sealed(_sound[4:] + _sound[4:]),
    "sealed cut msgpack": sealed(_sound[4:-3]),
    "sealed list that claims a billion items": sealed(b"\xdd\x3b\x9a\xca\x00\x01"),
    "sealed text that claims four gigabytes": sealed(b"\x96\x01\xdb\xff\xff\xff\xffeve"),
    "sealed invalid msgpack code": sealed(b"\xc1"),
    "a thousand lists in each other": sealed(deep(1_000)),
    "a hundred thousand lists in each other": sealed(deep(100_000)),
    "more bytes than a commit may have": sealed(b"\0" * (codec.MAX_BYTES + 1)),
    "more records than a commit may have": commit_of(*[GOOD] * (codec.MAX_RECORDS + 1)),
    "format zero": commit_of(GOOD, form=0),
    "a negative format": commit_of(GOOD, form=-1),
    "a format that is text": commit_of(GOOD, form="1"),
    "a format that is a fraction": commit_of(GOOD, form=1.5),
    "no format": commit_of(GOOD, form=None),
    "a writer without a name": commit_of(GOOD, writer=""),
    "a writer with a very long name": commit_of(GOOD, writer="e" * 65),
    "a writer that is a number": commit_of(GOOD, writer=7),
    "no writer": commit_of(GOOD, writer=None),
    "a writer that is not UTF-8": sealed(b"\x96\x01\xa2\xff\xfe\x01\xc0\x00\x90"),
    "seq zero": commit_of(GOOD, seq=0),
    "a negative seq": commit_of(GOOD, seq=-5),
    "a seq that no float holds": commit_of(GOOD, seq=1 << 53),
    "the largest seq": commit_of(GOOD, seq=(1 << 64) - 1),
    "a seq that is text": commit_of(GOOD, seq="1"),
    "an owner without a name": commit_of(GOOD, owner=""),
    "an owner that is a list": commit_of(GOOD, owner=["ann"]),
    "a time beyond all clocks": commit_of(GOOD, at=(1 << 64) - 1),
    "a time before all clocks": commit_of(GOOD, at=-(1 << 63)),
    "a time that is text": commit_of(GOOD, at="yesterday"),
}


def study_with_a_running_trial() -> Scribe:
    scribe = Scribe()
    scribe.start("ann", params={"x": 0.5}, dists={"x": X})
    return scribe


def essence(state: State) -> bytes:
    """All of a State but its length, its writers and its counts of refusals."""
    again = snapshot.load(snapshot.dump(state))
    again.lsn, again.refusals, again.writers = 0, {}, {}
    return snapshot.dump(again)


@pytest.mark.parametrize("payload", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_a_commits_place_changes_nothing_and_is_counted(payload: bytes) -> None:
    scribe = study_with_a_running_trial()
    before = essence(scribe.state)

    assert isinstance(codec.decode(payload), Garbage)
    assert scribe.read(payload) == ()

    assert essence(scribe.state) == before
    assert scribe.state.refusals == {"malformed": 1}
    assert scribe.finish("ann", scribe.state.trials[0]).accepted


# --- records that are no record ----------------------------------------------------------------------------------

RECORDS: dict[str, Any] = {
    "nil": None,
    "true": True,
    "a number": 3,
    "a text": "trial.create",
    "bytes": b"trial.create",
    "a map": {"type": "trial.create"},
    "an empty list": [],
    "a list of nothing": [None],
    "a kind that is a number": [7],
    "a kind nobody knows": ["trial.teleport", 1, 2],
    "a kind with another case": ["Trial.Create"],
    "a kind with a space": ["trial.create "],
    "a kind without a name": [""],
    "a kind of a thousand letters": ["k" * 1000],
    "a record of the other log": ["catalog.open", "uuid", "name"],
    "a claim of nothing": ["trial.claim"],
    "a claim of a text": ["trial.claim", "0"],
    "a claim of a fraction": ["trial.claim", 0.5],
    "a claim of a list": ["trial.claim", [0]],
    "a finish without a state": ["trial.finish", 0, 1],
    "a finish in a state nobody knows": ["trial.finish", 0, 1, 9],
    "a finish in a state that is text": ["trial.finish", 0, 1, "COMPLETE"],
    "a finish with a value that is text": ["trial.finish", 0, 1, 1, ["low"]],
    "a finish with values that are a number": ["trial.finish", 0, 1, 1, 5.0],
    "a finish with a reason that is a number": ["trial.finish", 0, 1, 3, None, 7],
    "a finish of the largest number": ["trial.finish", (1 << 64) - 1, 1, 3],
    "an epoch that is text": ["trial.set", 0, "1"],
    "parameters that are a list": ["trial.set", 0, 1, ["x"]],
    "a parameter whose value is text": ["trial.set", 0, 1, {"x": "0.5"}],
    "a parameter whose value is nil": ["trial.set", 0, 1, {"x": None}],
    "a parameter whose name is a number": ["trial.set", 0, 1, {7: 0.5}],
    "a parameter without a distribution": ["trial.set", 0, 1, {"unheard of": 0.5}],
    "a distribution nobody knows": ["trial.set", 0, 1, {"q": 0.5}, {"q": ["gaussian", 0, 1]}],
    "a distribution without bounds": ["trial.set", 0, 1, {"q": 0.5}, {"q": ["f"]}],
    "a distribution upside down": ["trial.set", 0, 1, {"q": 0.5}, {"q": ["f", 1.0, 0.0]}],
    "a choice that is a list": ["trial.set", 0, 1, {"q": 0}, {"q": ["c", [[1]]]}],
    "a choice that is a map": ["trial.set", 0, 1, {"q": 0}, {"q": ["c", [{"a": 1}]]}],
    "no choices": ["trial.set", 0, 1, {"q": 0}, {"q": ["c", []]}],
    "a report at a step that is text": ["trial.set", 0, 1, {}, {}, {"1": 0.5}],
    "a report of nil": ["trial.set", 0, 1, {}, {}, {1: None}],
    "an attribute that is not text": ["trial.set", 0, 1, {}, {}, {}, {"a": 1}],
    "attributes that are nil": ["trial.set", 0, 1, {}, {}, {}, None],
    "a create in a state nobody knows": ["trial.create", 17],
    "a create that prefers a number": ["trial.create", 0, 3],
    "a complete trial without values": ["trial.create", 1],
    "a complete trial that is not a number": ["trial.create", 1, False, {}, {}, {}, {}, {}, [math.nan]],
    "a create before all times": ["trial.create", 4, False, {}, {}, {}, {}, {}, None, None, -(1 << 63)],
    "a second definition": ["study.define", "s", ["minimize"]],
    "a definition without directions": ["study.define", "s"],
    "a status nobody knows": ["study.control", "on holiday"],
    "a budget that is text": ["study.control", None, "many"],
    "a budget that is a fraction": ["study.control", None, 1.5],
    "study attributes that are a list": ["study.set", ["a"]],
    "a peer that tells nothing": ["peer.join"],
    "a peer that tells numbers": ["peer.join", {"pid": 7}],
    "a release of a stranger's trial": ["trial.release", 0, 1],
    "a reclaim of another epoch": ["trial.reclaim", 0, 2],
    "a stop of a trial that is not there": ["trial.stop", 5, 1],
    "a checkpoint of nothing": ["trial.checkpoint", 0, 1],
    "a date": msgspec.msgpack.Ext(-1, b"\0\0\0\0"),
    "an extension": msgspec.msgpack.Ext(42, b"pickle me"),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_a_bad_record_changes_nothing_is_counted_and_takes_no_other_with_it(record: Any) -> None:
    alone, among = study_with_a_running_trial(), study_with_a_running_trial()
    before = essence(alone.state)

    (verdict,) = alone.read(commit_of(record))
    three = among.read(commit_of(GOOD, record, GOOD))

    assert not verdict.accepted
    assert essence(alone.state) == before
    assert sum(alone.state.refusals.values()) == 1
    assert [one.accepted for one in three] == [True, False, True]
    assert len(among.state.trials) == 3


RAW_RECORDS = {
    "a hundred lists in each other": deep(100),
    "a thousand lists in each other": deep(1_000),
    "a text that is not UTF-8": b"\x91\xa2\xff\xfe",
    "a name that is not UTF-8": b"\x94\xa9trial.set\x00\x01\x81\xa1\xff\x01",
}


@pytest.mark.parametrize("raw", RAW_RECORDS.values(), ids=RAW_RECORDS)
def test_a_record_that_only_a_hostile_hand_can_write_changes_nothing(raw: bytes) -> None:
    scribe = study_with_a_running_trial()
    before = essence(scribe.state)
    scribe.read(sealed(b"\x96\x01\xa3eve\x01\xc0\x00\x91" + raw))
    assert essence(scribe.state) == before
    assert scribe.state.refusals == {"malformed": 1}


def test_there_are_more_than_a_hundred_kinds_of_bad_input_above() -> None:
    assert len(GARBAGE) + len(RECORDS) + len(RAW_RECORDS) > 100


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_at_all_are_decoded(noise: bytes) -> None:
    for payload in (noise, sealed(noise)):
        apply(State(), 1, codec.decode(payload))


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_any_byte_of_a_sealed_commit_may_be_anything(position: int, byte: int) -> None:
    body = bytearray(
        pack([1, "eve", 1, None, 0, [["trial.set", 0, 1, {"x": 0.5}, {"x": ["f", 0, 1]}, {1: 2.0}], GOOD]])
    )
    body[position % len(body)] = byte
    scribe = study_with_a_running_trial()
    scribe.read(sealed(bytes(body)))
    assert scribe.finish("ann", scribe.state.trials[0]).accepted


def test_an_unknown_record_is_kept_as_it_came() -> None:
    commit = codec.decode(commit_of(["trial.teleport", 1, {"to": "mars"}], GOOD))
    assert isinstance(commit, Commit)
    assert commit.records == (Opaque(pack(["trial.teleport", 1, {"to": "mars"}])), TrialCreate())


def test_a_field_that_a_newer_version_added_is_passed_over() -> None:
    commit = codec.decode(commit_of(["trial.claim", 3, "with feeling"]))
    assert isinstance(commit, Commit)
    assert commit.records[0].number == 3  # type: ignore[union-attr]


# --- what survives -----------------------------------------------------------------------------------------------


def test_nan_infinities_and_the_order_of_parameters_survive() -> None:
    params = dict(zip("zebra", [math.nan, math.inf, -math.inf, -0.0, 5e-324], strict=True))
    record = TrialSet(0, 1, params, {"z": Float(0, 1), "a": Int(1, 3), "b": Categorical((None, True, 1, 1.5, "ü"))})
    commit = Commit("ann", 1, "ann", 5, (record, TrialFinish(0, 1, COMPLETE, (math.inf, -math.inf))))

    back = codec.decode(codec.encode(commit))

    assert isinstance(back, Commit)
    found = back.records[0]
    assert isinstance(found, TrialSet)
    assert list(found.params) == list("zebra")
    assert list(map(repr, found.params.values())) == ["nan", "inf", "-inf", "-0.0", "5e-324"]
    assert found.dists == record.dists
    assert list(map(type, found.dists["b"].choices)) == [type(None), bool, int, float, str]  # type: ignore[union-attr]
    assert back.records[1] == commit.records[1]


def test_a_commit_for_another_owner_says_so_and_one_for_its_writer_does_not_spend_the_bytes() -> None:
    own, others = (Commit("ann", 1, owner, 5, (TrialCreate(),)) for owner in ("ann", "bob"))
    assert codec.decode(codec.encode(own)) == own
    assert codec.decode(codec.encode(others)) == others
    assert len(codec.encode(own)) < len(codec.encode(others))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ((TrialCreate(),) * (codec.MAX_RECORDS + 1), "at most 10000"),
        ((TrialSet(0, 1, user={"a": "x" * codec.MAX_BYTES}),), "artifact"),
        ((TrialSet(1 << 70, 1),), "cannot be written"),
        ((TrialSet(0, 1, user={"\ud800": "1"}),), "cannot be written"),
    ],
    ids=["too many records", "too many bytes", "a number of 70 bits", "half a surrogate pair"],
)
def test_what_no_reader_would_take_is_not_written(records: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        codec.encode(Commit("ann", 1, "ann", 0, records))


# --- a newer format ----------------------------------------------------------------------------------------------

NEWER = {
    "the next format": commit_of(GOOD, form=2),
    "a format of a hundred": commit_of(GOOD, form=100),
    "a format of a thousand": commit_of(GOOD, form=1000),
    "the next format with another shape": sealed(pack([2, {"everything": "is different"}])),
    "a format of two hundred with another shape": sealed(pack([200, "new"])),
    "the next format with twenty fields": sealed(pack([2, *range(20)])),
}


@pytest.mark.parametrize("payload", NEWER.values(), ids=NEWER)
def test_a_foreign_format_is_counted_and_stops_nobody(payload: bytes, tmp_path: Path) -> None:
    log = DirectoryStore(tmp_path).log("study")
    log.exchange(Outgoing("1", codec.encode(Commit("ann", 1, "ann", 0, (defined(),)))), 0)
    log.exchange(Outgoing("2", payload), 1)
    replica = study_client(DirectoryStore(tmp_path).log("study"), writer="bob", now_us=lambda: 0)
    replica.put("bob", TrialCreate())
    replica.exchange()

    log.exchange(Outgoing("3", payload), 3)
    replica.put("bob", TrialFinish(0, 1, COMPLETE, (1.0,)))
    replica.exchange()

    assert [trial.state for trial in replica.state.trials] == [COMPLETE]
    assert replica.state.refusals == {"malformed": 2}


# --- a replica among bad neighbours ------------------------------------------------------------------------------


def test_a_replica_reads_on_past_every_kind_of_garbage() -> None:
    log = MemoryLog()
    replica = study_client(log, writer="ann", now_us=lambda: 0)
    replica.put("ann", defined(), TrialCreate())
    replica.exchange()
    for payload in [*GARBAGE.values(), *(commit_of(record, seq=seq) for seq, record in enumerate(RECORDS.values(), 1))]:
        log.exchange(Outgoing("eve", payload), 0)

    ticket = replica.put("ann", TrialFinish(0, 1, COMPLETE, (1.0,)))
    replica.exchange()

    assert ticket.verdicts is not None
    assert ticket.verdicts[0].accepted
    assert sum(replica.state.refusals.values()) == len(GARBAGE) + len(RECORDS)


@pytest.mark.parametrize("stamp", [UNSTAMPED, Stamp("ann.guest", f"owner:{'u' * 64}", 1 << 50), Stamp("a", "worker")])
@pytest.mark.parametrize("before", [None, 0, 7, codec.PRIME - 1])
def test_a_commit_comes_out_of_its_stored_form_as_it_was_sealed(stamp: Stamp, before: int | None) -> None:
    payload = codec.encode(Commit("w", 1, "w", 5, (StudyRegistered("u", "n"),)))
    stored = codec.attach(payload, before, stamp)
    assert codec.detach(stored) == (payload, before, stamp)
    assert isinstance(codec.decode(stored), Commit)
    again = codec.attach(stored, before, Stamp("bob", "worker", 1))  # a commit that came with a forged stamp
    _, _, seen = codec.detach(again)
    assert (codec.detach(again)[:2], seen.author) == ((stored, before), "bob")
