"""Small content that wants to become large, names that stores keep for themselves, and ends that nobody may write."""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from pathlib import Path

import msgspec
import pytest

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.core import apply as rules
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.catalog import RESERVED
from hopaas_p2p.core.records import Commit, StudyRegistered, TrialCreate
from hopaas_p2p.core.state import COMPLETE, WAITING
from hopaas_p2p.errors import InvalidInput, StoreCorrupt
from hopaas_p2p.files.checkpoints import load
from hopaas_p2p.open import open_store
from hopaas_p2p.remote import protocol
from hopaas_p2p.remote.protocol import StoreRequest
from hopaas_p2p.stores.base import Beat, Outgoing
from hopaas_p2p.stores.directory.store import DirectoryStore
from hopaas_p2p.stores.objects.log import TOMBSTONE
from hopaas_p2p.testing.commits import sealed
from tests.support.box_world import world
from tests.support.dashboard_studies import Scribe


def test_a_snapshot_inflates_to_a_bounded_size() -> None:
    scribe = Scribe()
    scribe.trial("a", 1.0, lr=0.01)
    whole = snapshot.dump(scribe.state)
    assert snapshot.load(whole).lsn == scribe.state.lsn

    start = len(snapshot._MAGIC) + snapshot._DIGEST
    header = msgspec.msgpack.decode(whole[start:])
    header[snapshot._Header.__struct_fields__.index("inline")] = {"00000000": zlib.compress(bytes(100 << 20), 9)}
    bomb = snapshot.seal(snapshot._MAGIC, msgspec.msgpack.encode(header))

    assert len(bomb) < 1 << 20
    with pytest.raises(snapshot.CorruptSnapshot):
        snapshot.load(bomb)


def test_a_commit_of_ten_thousand_nothings_is_garbage_as_is_one_of_millions() -> None:
    """Each record has a verdict, which stays; the shortest record of any kind has a dozen bytes."""
    for count in (10_000, 4_000_000):
        body = msgspec.msgpack.encode([1, "w", 1, None, 0, [None] * count])
        assert isinstance(codec.decode(zlib.crc32(body).to_bytes(4, "little") + body), codec.Garbage)


@pytest.mark.parametrize(
    "value", [b"\x91\xc0", b"\xcc\0", b"\xc4\0", b"\xa1a"], ids=["array", "number", "bytes", "text"]
)
def test_a_commit_of_millions_of_values_in_a_field_that_is_ignored_is_garbage(value: bytes) -> None:
    """To walk through them takes Python seconds, at every reader; what the records' own fields hold takes no walk."""
    several = b"\x91\xc0" * 300 + value * 1_000_000
    body = b"\x97" + msgspec.msgpack.encode([1, "w", 1, None, 0, []])[1:]
    body += b"\xdd" + (1_000_300).to_bytes(4, "big") + several
    assert isinstance(codec.decode(zlib.crc32(body).to_bytes(4, "little") + body), codec.Garbage)

    metrics = {f"metric-{number}": {1: number / 7} for number in range(100)}
    wide = Commit("w", 1, "w", 0, (TrialCreate(COMPLETE, values=(1.0,), metrics=metrics),) * 1_000)
    assert codec.decode(codec.encode(wide)) == wide


def test_an_ask_passes_over_a_bounded_number_of_trials() -> None:
    scribe = Scribe()
    for skip, accepted in ((50_000, True), (70_000, False)):
        record = TrialCreate(prefer_waiting=True, skip=tuple(range(skip)))
        commit = codec.decode(codec.encode(Commit("m", skip, "m", 0, (record,))))
        assert isinstance(commit, Commit)
        (verdict,) = rules.apply(scribe.state, scribe.state.lsn + 1, commit)
        assert verdict.accepted == accepted


def test_a_bounded_number_of_trials_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MAX_WAITING", 2)
    scribe = Scribe()
    found = [scribe.say("m", TrialCreate(WAITING))[0].refusal for _ in range(3)]
    assert found == [None, None, "queue"]
    assert scribe.say("m", TrialCreate(COMPLETE, values=(1.0,)))[0].accepted


@pytest.mark.parametrize("uuid", sorted(RESERVED))
def test_no_study_has_the_uuid_of_a_log_of_the_stores(tmp_path: Path, uuid: str) -> None:
    Scribe(name="good").put_into(str(tmp_path), uuid="0123456789abcdef")
    store = open_store(str(tmp_path))
    opening = Commit("mallory", 1, "mallory", 0, (StudyRegistered(uuid, "bad"),))
    store.catalog().exchange(Outgoing("mallory:1", codec.encode(opening)), 0)
    store.close()

    storage = hopaas_p2p.open_storage(str(tmp_path))
    assert [one.study_name for one in storage.get_all_studies()] == ["good"]
    assert storage.peer.catalog.state.refusals == {"malformed": 1}
    storage.close()


def test_a_study_that_cannot_be_opened_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for uuid, name in (("a" * 16, "good"), ("b" * 16, "bad")):
        Scribe(name=name).put_into(str(tmp_path), uuid=uuid)
    storage = hopaas_p2p.open_storage(str(tmp_path))
    read = storage.state

    def broken(study_id: int) -> object:
        if study_id == 1:
            raise StoreCorrupt("a commit is gone")
        return read(study_id)

    monkeypatch.setattr(storage, "state", broken)
    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        assert [one.study_name for one in storage.get_all_studies()] == ["good"]
    assert "'bad' cannot be opened: a commit is gone" in caplog.text
    storage.close()


def test_a_tombstone_without_a_boundary_ends_no_study(tmp_path: Path) -> None:
    scribe = Scribe()
    scribe.trial("a", 1.0, lr=0.01)
    scribe.put_into(str(tmp_path))
    log = DirectoryStore(tmp_path).log("0123456789abcdef")
    end = log.exchange(None, 0).entries[-1].lsn
    assert log.objects.put_new(log.key(end + 1), TOMBSTONE)

    storage = hopaas_p2p.open_storage(str(tmp_path))
    study = hopaas_p2p.open_study(storage, "study")
    study.tell(study.ask(), 0.5)
    assert [trial.values for trial in study.trials] == [[1.0], [0.5]]
    assert study.state.refusals == {"malformed": 1}
    study.close()


_SEALED = sealed(b"x")


@pytest.mark.parametrize(
    "request_",
    [
        StoreRequest("exchange", "u", (Outgoing("n" * 200, _SEALED), 0)),
        StoreRequest("exchange", "u", (Outgoing("a\0b", _SEALED), 0)),
        StoreRequest("exchange", "u", (Outgoing("n", _SEALED), 1 << 63)),
        StoreRequest("exchange", "u", (None, -1)),
        StoreRequest("exchange", "u", (Outgoing("n", _SEALED, "a\0b"), 0)),
        StoreRequest("exchange", "u", (Outgoing("n", bytes(codec.MAX_BYTES + 1)), 0)),
        StoreRequest("exchange", "u", (Outgoing("n", b"nonsense"), 0)),
        StoreRequest("keys", "a\0b"),
        StoreRequest("keys", "u/../.."),
        StoreRequest("beats", "", ("p",)),
        StoreRequest("nonsense"),
    ],
)
def test_a_request_that_no_store_takes_is_refused_before_it_reaches_one(request_: StoreRequest) -> None:
    for taken in (StoreRequest("exchange", "u", (Outgoing("w:1", _SEALED, "u"), 0)), StoreRequest("keys", "u/rescue/")):
        assert protocol.decode_request(protocol.encode(taken)) == taken
    with pytest.raises(InvalidInput):
        protocol.decode_request(protocol.encode(request_))


def test_a_server_of_a_folder_asks_for_the_beats_of_so_many_peers(tmp_path: Path) -> None:
    with world(tmp_path) as made:
        store, asked = made.store(), []
        beats = made.far_side.beats
        made.far_side.beats = lambda peers: asked.append(names := list(peers)) or beats(names)  # type: ignore[method-assign]
        for word in ("a", "b", "c"):
            store.beats([f"{word}{number}" for number in range(10_000)])
        assert {len(names) for names in asked[-10:]} == {1_000}
        assert "c0" in set().union(*asked[-10:])
        assert max(map(len, asked)) == 1_000


@pytest.mark.parametrize("pace", [1e-6, 3600.0])
def test_of_more_peers_than_one_answer_holds_each_is_told_whether_it_lives(tmp_path: Path, pace: float) -> None:
    names = [f"p{number}" for number in range(1_100)]
    with world(tmp_path, pace=pace) as made:
        for name in names:
            made.far.beat(Beat(name, "1"))
        for _ in range(2):
            assert len(made.store().beats(names)) == 1_100


@pytest.mark.parametrize("what", ["put", "get", "delete"])
def test_a_request_for_a_folder_is_answered_for_good(tmp_path: Path, what: str) -> None:
    far = DirectoryStore(tmp_path / "far")
    far.artifacts().put("u/file/below", Path(__file__))
    with world(tmp_path) as made:
        made.far_side.inner = far
        artifacts = made.store().artifacts()
        with contextlib.suppress(InvalidInput, KeyError):
            getattr(artifacts, what)("u/file", *{"put": [Path(__file__)], "get": [tmp_path / "got"]}.get(what, ()))
        made.settled()
    assert far.artifacts().keys("u") == ["u/file/below"]


def test_a_file_is_not_fetched_beyond_the_size_that_it_was_said_to_have(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s")
    (tmp_path / "small").write_text("small")
    one, trial = study.artifacts().put(tmp_path / "small"), study.ask()
    trial.checkpoint(tmp_path / "small", step=1)
    for stored in (tmp_path / "store/v1/artifacts").rglob("*"):
        if stored.is_file():
            os.truncate(stored, 64 << 20)
    with pytest.raises(StoreCorrupt, match="more than"):
        study.artifacts().get(one, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    state = study.storage.state(study.study_id)
    kept, uuid = state.trials[trial.number].checkpoints, study.handle.uuid
    assert load(study.storage.peer.store.artifacts(), uuid, kept, tmp_path) is None
    study.close()


def test_histories_of_a_file_are_kept_once_and_without_reading_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    batches = [spool.Spooled("file:///x", "u", "digits", [], at, "history", [], []) for at in range(3)]
    with monkeypatch.context() as reading_none:
        reading_none.setattr(spool, "read", None)
        for one in batches * 2:
            spool.take_in(one)

    assert [one for _, one in spool.histories("u")] == batches
