"""Which studies there are: ids never used twice, names that harm nobody, deletions that stay."""

from __future__ import annotations

import itertools
import random

import pytest

from hopaas_p2p.core import catalog as catalogs
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.catalog import Catalog, checked_name
from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.records import UNSTAMPED, Commit, Opaque, Record, Stamp, StudyRegistered, StudyRemoved, TrialCreate
from hopaas_p2p.core.snapshot import CorruptSnapshot
from hopaas_p2p.core.state import Verdict
from hopaas_p2p.errors import InvalidInput

BAD_NAMES = {
    "a newline": "a\nb",
    "an escape": "\x1b[2J",
    "a nul": "a\0b",
    "half a surrogate pair": "\ud800",
    "a path": "a/b",
    "a path of another system": "a\\b",
    "dot": ".",
    "dots": "..",
    "too long": "x" * 201,
}


class Clerk:
    """Writes a catalog by hand."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self._seq = itertools.count(1)

    def say(self, *records: Record | Opaque, role: str = "owner") -> Verdict:
        commit = Commit("ann", next(self._seq), "ann", 0, records)
        return self.catalog.apply(self.catalog.lsn + 1, commit, Stamp(role=role))[-1]

    def open(self, name: str, uuid: str | None = None) -> Verdict:
        return self.say(StudyRegistered(uuid or f"uuid-of-{name}", name))


@pytest.fixture
def clerk() -> Clerk:
    return Clerk()


def test_ids_count_openings_and_are_never_used_again(clerk: Clerk) -> None:
    assert [clerk.open(name).number for name in ("a", "b")] == [0, 1]
    assert clerk.say(StudyRemoved("uuid-of-b")).accepted
    assert clerk.open("b", "another").number == 2
    assert set(clerk.catalog.by_id) == {0, 2}


def test_a_name_is_taken_once(clerk: Clerk) -> None:
    clerk.open("a")
    assert clerk.open("a", "another") == Verdict(False, 0, "exists")
    assert clerk.open("b").number == 1


def test_a_uuid_is_used_once_even_after_its_study_is_deleted(clerk: Clerk) -> None:
    clerk.open("a", "uuid")
    assert clerk.open("b", "uuid").refusal == "exists"
    clerk.say(StudyRemoved("uuid"))
    assert clerk.open("c", "uuid").refusal == "exists"


def test_only_an_owner_deletes(clerk: Clerk) -> None:
    clerk.open("a")
    for role in ("worker", "viewer", ""):
        assert clerk.say(StudyRemoved("uuid-of-a"), role=role).refusal == "role"
    assert clerk.say(StudyRemoved("uuid-of-a")).accepted


def test_a_study_is_deleted_once(clerk: Clerk) -> None:
    clerk.open("a")
    clerk.say(StudyRemoved("uuid-of-a"))
    assert clerk.say(StudyRemoved("uuid-of-a")).refusal == "no such study"


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_name_that_could_harm_is_refused_at_the_call_and_in_the_log(name: str) -> None:
    with pytest.raises(InvalidInput):
        checked_name(name)
    clerk = Clerk()
    assert clerk.open(name, "uuid").refusal == "malformed"
    assert clerk.open("good").number == 0


@pytest.mark.parametrize("name", ["run-7", "läuft", "学習", "with space", "a" * 200, "…", ".hidden"])
def test_any_other_name_is_fine(name: str) -> None:
    assert checked_name(name) == name
    assert Clerk().open(name, "uuid").accepted


@pytest.mark.parametrize("uuid", ["", "../../etc", "a/b", "a\nb", "x" * 65])
def test_a_uuid_that_is_no_file_name_is_refused(uuid: str) -> None:
    assert Clerk().say(StudyRegistered(uuid, "a")).refusal == "malformed"


def test_garbage_and_records_of_the_other_log_are_counted_and_change_nothing(clerk: Clerk) -> None:
    clerk.open("a")
    clerk.catalog.apply(2, Garbage("noise"), UNSTAMPED)
    assert clerk.say(TrialCreate()).refusal == "malformed"
    assert clerk.say(Opaque(b"\xc0")).refusal == "malformed"
    assert clerk.catalog.refusals == {"malformed": 3}
    assert list(clerk.catalog.by_name) == ["a"]


def test_a_commit_that_stands_twice_counts_once() -> None:
    catalog = Catalog()
    commit = Commit("ann", 1, "ann", 0, (StudyRegistered("uuid", "a"),))
    first = catalog.apply(1, commit, UNSTAMPED)
    assert catalog.apply(2, commit, UNSTAMPED) == first
    assert len(catalog.by_id) == 1
    assert catalog.refusals == {"duplicate": 1}


def _everything(catalog: Catalog) -> dict[str, object]:
    return vars(catalog)


def test_snapshot_and_tail_are_the_replay_at_every_lsn() -> None:
    chosen, clerk = random.Random(1), Clerk()
    loaded: list[Catalog] = []
    for lsn in range(1, 61):
        name = chosen.choice("abcdef/")
        record = chosen.choice([StudyRegistered(f"uuid-{lsn}", name), StudyRemoved(f"uuid-{chosen.randrange(lsn)}")])
        commit = Commit(chosen.choice(["ann", "bob"]), lsn, None, 0, (record,))
        for catalog in (clerk.catalog, *loaded):
            catalog.apply(lsn, commit, Stamp(role="owner"))
        loaded.append(catalogs.load(catalogs.dump(clerk.catalog)))
    assert clerk.catalog.by_id
    assert all(_everything(one) == _everything(clerk.catalog) for one in loaded)


@pytest.mark.parametrize("name", ["a", *(name for name in BAD_NAMES.values() if name != "\ud800")])
def test_a_snapshot_with_a_name_that_could_harm_or_stands_twice_is_corrupt(clerk: Clerk, name: str) -> None:
    clerk.open("a")
    clerk.open("b")
    clerk.catalog.by_id[1] = clerk.catalog.by_id[1]._replace(name=name)
    with pytest.raises(CorruptSnapshot):
        catalogs.load(catalogs.dump(clerk.catalog))


@pytest.mark.parametrize("uuid", sorted(catalogs.RESERVED))
def test_a_snapshot_in_which_a_study_has_a_log_of_the_store_is_corrupt(clerk: Clerk, uuid: str) -> None:
    assert clerk.open("a", uuid).refusal == "malformed"
    clerk.open("a")
    listing = clerk.catalog.by_id[0]._replace(uuid=uuid)
    clerk.catalog.by_id[0], clerk.catalog.uuids = listing, {uuid}
    with pytest.raises(CorruptSnapshot):
        catalogs.load(catalogs.dump(clerk.catalog))


def test_a_snapshot_with_a_deeply_nested_field_is_corrupt(clerk: Clerk) -> None:
    body = bytes(snapshot.unseal(catalogs._MAGIC, catalogs.dump(clerk.catalog)))
    deep = bytes([body[0] + 1]) + body[1:] + b"\x91" * 200_000 + b"\xc0"  # one more field
    with pytest.raises(CorruptSnapshot):
        catalogs.load(snapshot.seal(catalogs._MAGIC, deep))


def test_a_snapshot_with_any_byte_changed_or_cut_is_corrupt(clerk: Clerk) -> None:
    clerk.open("a")
    sound = catalogs.dump(clerk.catalog)
    broken = [sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :] for i in range(len(sound))]
    for data in [*broken, *(sound[:i] for i in range(len(sound)))]:
        with pytest.raises(CorruptSnapshot):
            catalogs.load(data)
