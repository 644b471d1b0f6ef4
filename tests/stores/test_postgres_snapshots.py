"""The blocks of a snapshot come from a database as they are, by whatever way a peer reaches it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator

import pytest

from hopaas_p2p import access
from hopaas_p2p.core import snapshot
from hopaas_p2p.core.records import TrialCreate, TrialFinish
from hopaas_p2p.core.snapshot import CorruptSnapshot
from hopaas_p2p.core.state import COMPLETE, State, Trials
from hopaas_p2p.errors import Denied, StoreCorrupt, StoreUnreachable
from hopaas_p2p.peer.session import LogClient, study_client
from hopaas_p2p.stores.checks import examine
from hopaas_p2p.stores.postgres.copying import copied_rows
from hopaas_p2p.stores.postgres.store import PostgresLog, PostgresStore
from hopaas_p2p.testing.commits import outgoing, study_snapshot
from tests.support.latency import Relay
from tests.support.pgbouncer import find_pgbouncer, transaction_pooler
from tests.support.postgres import Server
from tests.support.postgres_fixtures import OWNER, missing
from tests.support.postgres_people import Place

DATA = study_snapshot(5000)


@pytest.fixture
def stored(any_postgres_url: str) -> Iterator[PostgresLog]:
    """The log of a study of 5,000 trials, with a snapshot."""
    with contextlib.closing(PostgresStore(any_postgres_url)) as store:
        log = store.log("study")
        log.exchange(outgoing("first"), 0)
        log.put_snapshot(1, DATA)
        yield log


@pytest.fixture
def far(stored: PostgresLog, any_postgres: Server) -> Iterator[tuple[PostgresLog, Relay]]:
    """The same log over a link."""
    with Relay(any_postgres.port) as relay:
        url = any_postgres.url("store", user=OWNER, port=relay.port)
        with contextlib.closing(PostgresStore(url)) as store:
            yield store.log("study"), relay


def test_a_snapshot_travels_in_hardly_more_bytes_than_it_has(far: tuple[PostgresLog, Relay]) -> None:
    log, relay = far
    log.exchange(None, 0)
    relay.reset()
    assert log.newest_snapshot() == (1, DATA)
    assert relay.round_trips == 2, "the head, and the blocks"
    assert len(DATA) < relay.received < 1.1 * len(DATA) + 2000


def test_a_link_that_is_cut_among_the_blocks_is_made_anew(far: tuple[PostgresLog, Relay]) -> None:
    log, relay = far
    log.exchange(None, 0)
    names = list(dict(log.blocks(_names(log))))
    relay.cut("mid-reply")
    assert list(dict(log.blocks(names))) == names
    assert relay.cuts == 1


def _names(log: PostgresLog) -> list[str]:
    return sorted(name for (name,) in log._store.call("block_names", log="study"))


def test_a_server_that_is_gone_among_the_blocks_is_no_damage(far: tuple[PostgresLog, Relay]) -> None:
    log, relay = far
    names = _names(log)
    relay.refuse()
    with pytest.raises(StoreUnreachable):
        dict(log.blocks(names))
    relay.refuse(False)
    assert log.newest_snapshot() == (1, DATA)


def test_a_block_that_was_changed_in_the_database_is_refused(stored: PostgresLog, any_postgres: Server) -> None:
    changed = "UPDATE hopaas.blocks SET data = set_byte(data, 9, (get_byte(data, 9) + 1) % 256)"
    any_postgres.execute(f"{changed} WHERE name LIKE '00000002-%%'", database="store")
    _, data = stored.newest_snapshot() or (0, b"")
    assert data != DATA
    with pytest.raises(CorruptSnapshot):
        snapshot.load(data)


def test_blocks_come_through_a_transaction_pooler(stored: PostgresLog, any_postgres: Server) -> None:
    if find_pgbouncer() is None:
        missing("pgbouncer")
    with transaction_pooler(any_postgres, OWNER) as port, contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(PostgresStore(any_postgres.url("store", user=OWNER, port=port))))
        for _ in range(3):
            assert store.log("study").newest_snapshot() == (1, DATA)


def test_a_viewer_reads_the_blocks_and_somebody_without_a_grant_does_not(place: Place) -> None:
    ann, eve, sam = place.person("ann"), place.person("eve"), place.person("sam")
    place.study(ann)
    uuid = place.uuid()
    access.grant(ann, "s", "eve", "viewer")
    place.store(ann).log(uuid).put_snapshot(1, DATA)
    assert place.store(eve).log(uuid).newest_snapshot() == (1, DATA)
    with pytest.raises(Denied, match="no grant for this study"):
        place.store(sam).call("blocks", log=uuid, names=["any"], copied=True)


# --- who is believed ---


class Contributors:
    """A study of ann's, with workers bob and mallory, and joe who joins it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.ann = place.person("ann")
        place.study(self.ann)
        self.uuid = place.uuid()
        for name in ("bob", "mallory", "joe"):
            setattr(self, name, place.person(name))
            access.grant(self.ann, "s", name, "worker")

    def log(self, user: str) -> PostgresLog:
        return self.place.store(getattr(self, user)).log(self.uuid)

    def peer(self, user: str) -> LogClient[State]:
        """A peer of this user that has read the log."""
        driver = study_client(self.log(user), writer=f"{user}-{secrets.token_hex(4)}", now_us=lambda: 0)
        driver.exchange()
        return driver

    def grow(self, user: str, trials: int = 2) -> None:
        """The user runs some trials."""
        driver = self.peer(user)
        for _ in range(trials):
            number = len(driver.state.trials)
            driver.session.put(driver.session.writer, TrialCreate(), TrialFinish(number, 1, COMPLETE, (0.5,)))
            driver.exchange()
        assert len(driver.state.trials) == number + 1

    def true(self) -> bytes:
        return snapshot.dump(self.peer("ann").state)

    def lsn(self) -> int:
        return self.peer("ann").state.lsn

    def seen_by(self, user: str) -> str:
        """The digest of the study that a peer of this user joins."""
        return snapshot.digest(self.peer(user).state)


def _stopped(state: State) -> None:
    state.status = "stopped"


def _other_budget(state: State) -> None:
    state.budget = 1


def _trials_gone(state: State) -> None:
    state.trials, state.counts = Trials(), [0, 0, 0, 0, 0]


def _anothers_result(state: State) -> None:
    state.trials[0].values = (-1e9,)


def _another_history(state: State) -> None:
    state.sum = 7


FORGERIES = [_stopped, _other_budget, _trials_gone, _anothers_result, _another_history]


def _forged(data: bytes, change: Callable[[State], None]) -> bytes:
    state = snapshot.load(data)
    change(state)
    return snapshot.dump(state)


@pytest.fixture
def people(place: Place) -> Contributors:
    return Contributors(place)


@pytest.mark.parametrize("change", FORGERIES)
def test_a_snapshot_that_a_worker_forged_misleads_nobody_else(
    people: Contributors, change: Callable[[State], None]
) -> None:
    true, lsn = people.true(), people.lsn()
    people.log("mallory").put_snapshot(lsn, _forged(true, change))

    for user in ("ann", "bob", "joe"):
        assert people.seen_by(user) == snapshot.digest(snapshot.load(true))
        assert people.log(user).newest_snapshot() is None
    assert people.log("mallory").newest_snapshot() is not None, "its author believes it"


def test_an_owners_snapshot_and_ones_own_are_believed(people: Contributors) -> None:
    true, lsn = people.true(), people.lsn()
    people.log("bob").put_snapshot(lsn, true)
    assert people.log("bob").newest_snapshot() == (lsn, true)
    assert people.log("joe").newest_snapshot() is None
    people.log("ann").put_snapshot(lsn, true)
    assert people.log("joe").newest_snapshot() == (lsn, true)


def test_without_an_owner_online_a_worker_vouches_for_anothers_snapshot(people: Contributors) -> None:
    people.grow("bob")
    people.peer("bob").write_snapshot()
    people.grow("mallory", 3)
    assert people.log("joe").newest_snapshot() is None

    people.peer("mallory").write_snapshot()

    lsn, data = people.log("joe").newest_snapshot() or (0, b"")
    assert lsn == people.lsn() - 3, "bob's; nobody has vouched for mallory's yet"
    assert snapshot.load(data).lsn == lsn
    people.peer("bob").write_snapshot()
    assert (people.log("joe").newest_snapshot() or (0, b""))[0] == people.lsn()
    assert people.seen_by("joe") == people.seen_by("ann")


@pytest.mark.parametrize("change", FORGERIES)
def test_a_forged_snapshot_is_denied_and_an_honest_one_before_it_vouched_for(
    people: Contributors, change: Callable[[State], None], caplog: pytest.LogCaptureFixture
) -> None:
    people.grow("bob")
    people.peer("bob").write_snapshot()
    honest = people.lsn()
    people.grow("bob")
    people.log("mallory").put_snapshot(people.lsn(), _forged(people.true(), change))
    people.grow("bob")

    people.peer("joe").write_snapshot()

    assert (people.log("ann").newest_snapshot() or (0, b""))[0] == honest
    assert "of mallory at commit" in caplog.text
    denied = people.log("ann").denied_snapshots()
    assert [(author, deniers) for _, author, deniers in denied] == [("mallory", ["joe"])]
    findings = list(examine(people.place.store(people.ann)))
    shown = [one for one in findings if not one.passed and one.check == "study s, snapshot"]
    assert len(shown) == 1
    assert "the snapshot of mallory" in shown[0].detail


def test_no_snapshots_of_a_worker_drive_out_or_replace_those_of_others(people: Contributors) -> None:
    true, lsn = people.true(), people.lsn()
    people.log("ann").put_snapshot(lsn, true)
    people.log("bob").put_snapshot(lsn, true)
    people.log("mallory").put_snapshot(lsn, b"not a snapshot")
    people.grow("bob", 8)
    for at in range(lsn + 1, lsn + 9):
        people.log("mallory").put_snapshot(at, b"not a snapshot")

    assert people.log("joe").newest_snapshot() == (lsn, true)
    assert people.log("bob").newest_snapshot() == (lsn, true)
    count = people.place.server.execute(
        "SELECT count(*) FROM hopaas.snapshots WHERE author = 'mallory'", database="store"
    )
    assert count == [(3,)]
    for at in range(lsn + 1, lsn + 9):
        people.log("mallory")._store.call("put_snapshot", log=people.uuid, lsn=at, data=b"x", kept=1 << 30)
    assert people.place.server.execute(
        "SELECT max(c) FROM (SELECT count(*) c FROM hopaas.snapshots GROUP BY author) x", database="store"
    ) == [(3,)]


def test_nobody_vouches_for_ones_own_or_for_other_bytes_than_were_compared(people: Contributors) -> None:
    true, lsn = people.true(), people.lsn()
    forged = _forged(true, _stopped)
    mallory, again = people.log("mallory"), people.place.store(people.place.person("mallory")).log(people.uuid)
    mallory.put_snapshot(lsn, forged)
    assert again.doubtful_snapshot(0, lsn) is None
    found = people.log("bob").doubtful_snapshot(0, lsn)
    assert found is not None
    again.judge_snapshot(found, same=True)
    people.log("bob").judge_snapshot(found._replace(sum="0" * 64), same=True)
    assert people.log("joe").newest_snapshot() is None


def test_a_viewer_vouches_for_nothing(people: Contributors) -> None:
    access.grant(people.ann, "s", "joe", "viewer")
    people.log("mallory").put_snapshot(people.lsn(), people.true())
    found = people.log("bob").doubtful_snapshot(0, people.lsn())
    assert found is not None
    with pytest.raises(Denied):
        people.log("joe").judge_snapshot(found, same=True)


def test_a_snapshot_far_behind_is_not_judged(people: Contributors) -> None:
    people.log("mallory").put_snapshot(1, people.true())
    assert people.log("bob").doubtful_snapshot(1, people.lsn()) is None


# --- the format --------------------------------------------------------------------------------------------------

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
ROWS = b"\0\2\0\0\0\1a\0\0\0\3xyz" + b"\0\2\0\0\0\2bc\0\0\0\0"
END = b"\xff\xff"


def test_rows_of_a_copy_are_found() -> None:
    assert copied_rows(HEADER + ROWS + END) == [[b"a", b"xyz"], [b"bc", b""]]


@pytest.mark.parametrize(
    "begun", [b"name\tdata\n" * 3, HEADER[:-1] + b"\1" + ROWS, HEADER + b"\0\1\xff\xff\xff\xff", HEADER + ROWS]
)
def test_another_format_is_refused(begun: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        copied_rows(begun)
