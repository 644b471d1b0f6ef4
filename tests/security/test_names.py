"""Nobody acts in another's name: where the store knows users, a peer belongs to the one that wrote its first commit."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import optuna
import psycopg2
import pytest

import hopaas_p2p
from hopaas_p2p import access, spool
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.catalog import Catalog, dump, load
from hopaas_p2p.core.records import (
    Checkpoint,
    Commit,
    PeerDrain,
    PeerJoin,
    Record,
    Stamp,
    StudyControl,
    StudyDefine,
    StudyRegistered,
    StudyRemoved,
    StudySet,
    TrialCheckpoint,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialStop,
    TrialTakeOver,
)
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import Denied, InvalidInput, StoreUnreachable
from hopaas_p2p.joining.invitation import invite
from hopaas_p2p.net.findings import Finding
from hopaas_p2p.open import open_store
from hopaas_p2p.peer.session import STUDY, LogSession
from hopaas_p2p.stores import checks
from hopaas_p2p.stores.base import Beat, Entry, ExchangeResult, Outgoing, Placed
from hopaas_p2p.stores.postgres import removal
from hopaas_p2p.testing.commits import append, outgoing
from tests.support.postgres_people import Place
from tests.support.processes import cli, until
from tests.support.scribe import COMPLETE, FAIL, RUNNING, Scribe, defined
from tests.support.spooled import keep

ENDS: dict[str, Record] = {
    "finish": TrialFinish(0, 1, FAIL),
    "complete": TrialFinish(0, 1, COMPLETE, (0.0,)),
    "reports": TrialSet(0, 1, reports={0: 9.0}),
    "release": TrialRelease(0, 1),
    "fail": TrialRelease(0, 1, fail=True),
    "checkpoint": TrialCheckpoint(0, 1, Checkpoint(1, "key", 1, "0" * 64)),
    "reclaim": TrialReclaim(0, 1),
    "take over": TrialTakeOver(0, 1, FAIL),
    "introduction": PeerJoin({"host": "elsewhere", "ttl": "1"}),
    "a trial": TrialCreate(),
    "attributes": StudySet({"note": '"mine"'}),
}


@pytest.fixture
def scribe() -> Scribe:
    """A study in which ann's peer `a` runs a trial, and bob's peer `b` takes part."""
    scribe = Scribe()
    assert scribe.say("a", PeerJoin({"host": "north"}), TrialCreate(), author="ann", role="worker").accepted
    assert scribe.say("b", PeerJoin({"host": "south"}), author="bob", role="worker").accepted
    return scribe


@pytest.mark.parametrize("role", ["worker", "owner"])
@pytest.mark.parametrize(("writer", "owner"), [("a", "a"), ("b", "a"), ("new", "a"), ("a", "b")])
@pytest.mark.parametrize("record", ENDS.values(), ids=ENDS)
def test_nothing_that_is_said_in_the_name_of_anothers_peer_counts(
    scribe: Scribe, record: Record, writer: str, owner: str, role: str
) -> None:
    before = snapshot.dump(scribe.state)
    forged = scribe.say(writer, record, owner=owner, seq=1000, author="bob", role=role)
    assert (forged.accepted, forged.refusal) == (False, "author")
    assert scribe.state.trials[0].state is RUNNING
    assert scribe.state.refusals == {"author": 1}

    scribe.state.lsn, scribe.state.refusals = scribe.state.lsn - 1, {}
    assert snapshot.dump(scribe.state) == before, "and nothing else has changed"
    own = scribe.say("a", TrialFinish(0, 1, COMPLETE, (1.0,)), seq=2, author="ann", role="worker")
    assert own.accepted, "the peer's own next commit is not a repetition"


def test_a_users_processes_act_for_each_other_with_any_of_its_tokens(scribe: Scribe) -> None:
    assert scribe.say("a's child", TrialSet(0, 1, reports={0: 1.0}), owner="a", author="ann", role="worker").accepted
    assert scribe.say("a's ticket", TrialFinish(0, 1, COMPLETE, (1.0,)), owner="a", author="ann").accepted


def test_others_reclaim_a_silent_peers_trial_and_owners_take_it_over_in_their_own_names(scribe: Scribe) -> None:
    assert scribe.say("b", TrialReclaim(0, 1), author="bob", role="worker").accepted
    retry = scribe.say("a", TrialCreate(prefer_waiting=True), author="ann", role="worker").number
    assert retry is not None
    epoch = scribe.state.trials[retry].epoch
    assert scribe.say("o", TrialTakeOver(retry, epoch, FAIL), author="olga", role="owner").accepted


def test_nobody_credits_a_peer_that_has_not_written_yet_with_its_own_trials(scribe: Scribe) -> None:
    scribe.say("b", TrialCreate(), TrialFinish(1, 1, COMPLETE, (1.0,)), owner="dora's", author="bob", role="worker")
    assert scribe.say("dora's", PeerJoin({}), author="dora", role="worker").refusal == "author"


def test_nobody_writes_through_a_server_for_a_peer_that_writes_to_the_directory_itself(scribe: Scribe) -> None:
    number = scribe.say("child", TrialCreate(), owner="direct", author="").number
    assert number is not None
    for seq, name in enumerate(("direct", "child", "b"), 10**9):
        end = TrialFinish(number, 1, FAIL)
        assert scribe.say(name, end, owner="direct", author="bob", role="owner", seq=seq).refusal == "author"
    assert scribe.say("direct", TrialFinish(number, 1, COMPLETE, (1.0,)), seq=1).accepted


@pytest.mark.parametrize("author", ["", "ann"])
def test_where_the_store_knows_no_users_nothing_changes(author: str) -> None:
    scribe = Scribe()
    scribe.say("a", TrialCreate(), author=author)
    assert scribe.say("b", TrialFinish(0, 1, FAIL), owner="a").accepted


def test_whose_a_peer_is_is_in_a_snapshot_and_in_the_digest(scribe: Scribe) -> None:
    joined = snapshot.load(snapshot.dump(scribe.state))
    assert snapshot.digest(joined) == snapshot.digest(scribe.state)
    scribe.state = joined
    assert scribe.say("b", TrialFinish(0, 1, FAIL), owner="a", author="bob").refusal == "author"

    other = Scribe()
    other.say("a", PeerJoin({"host": "north"}), TrialCreate(), author="carl", role="worker")
    other.state.peers["a"] = joined.peers["a"]
    same = Scribe()
    same.say("a", PeerJoin({"host": "north"}), TrialCreate(), author="ann", role="worker")
    assert snapshot.digest(other.state) != snapshot.digest(same.state)


def test_an_introduction_names_the_user_that_the_store_saw(scribe: Scribe) -> None:
    scribe.say("b", PeerJoin({"user": "ann", "on_behalf_of": "ann"}), author="bob", role="worker")
    assert scribe.state.peers["b"] == {"user": "bob"}
    scribe.say("service", PeerJoin({"user": "www", "on_behalf_of": "ann"}), author="monitor", role="owner")
    assert scribe.state.peers["service"] == {"user": "monitor", "on_behalf_of": "ann"}
    scribe.say("d", PeerJoin({"user": "dora"}))
    assert scribe.state.peers["d"] == {"user": "dora"}, "a directory knows nothing better"


# --- the list of studies ---


def listed(catalog: Catalog, writer: str, seq: int, record: Record, author: str, role: str = "worker") -> str | None:
    commit = Commit(writer, seq, writer, 0, (record,))
    return catalog.apply(catalog.lsn + 1, commit, Stamp(author, role))[-1].refusal


def test_nobody_lists_a_study_that_is_not_his_or_writes_as_anothers_peer() -> None:
    catalog = Catalog()
    assert listed(catalog, "a", 1, StudyRegistered("u1", "one"), "ann", "owner:u1") is None
    assert listed(catalog, "b", 1, StudyRegistered("u2", "two"), "bob") == "role"
    assert listed(catalog, "b", 2, StudyRegistered("u2", "two"), "bob", "owner:u1") == "role"
    assert listed(catalog, "a", 99, StudyRegistered("u3", "three"), "bob", "owner:u3") == "author"
    catalog = load(dump(catalog))
    assert listed(catalog, "a", 98, StudyRemoved("u1"), "bob", "owner") == "author"
    assert listed(catalog, "a", 2, StudyRegistered("u4", "four"), "ann", "owner:u4") is None


# --- a peer whose name somebody else uses ---


class Log:
    """A log that the server stamps."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.say("founder", 1, defined(), author="olga", role="owner")

    def say(self, writer: str, seq: int, *records: Record, author: str, role: str = "worker") -> None:
        self.append(codec.encode(Commit(writer, seq, writer, 0, records)), author, role)

    def append(self, payload: bytes, author: str, role: str = "worker") -> None:
        self.entries.append(Entry(len(self.entries) + 1, payload, Stamp(author, role, 1)))

    def join(self, writer: str | LogSession[State]) -> LogSession[State]:
        one = LogSession(STUDY, writer, now_us=lambda: 0) if isinstance(writer, str) else writer
        one.start_from(State())
        one.advance(ExchangeResult(self.entries), 0.0)
        if not one.duplicated:
            one.complete_join()
        return one

    def exchange(self, one: LogSession[State], author: str) -> None:
        sent = one.next_commit()
        if sent is not None:
            self.append(sent.payload, author)
        one.advance(ExchangeResult(self.entries[one.state.lsn :]), 0.0)


def test_a_commit_that_another_user_forges_makes_no_peer_doubt_its_name() -> None:
    log = Log()
    ann = log.join("a")
    ann.put("a", TrialCreate())
    log.exchange(ann, "ann")
    log.say("a", 1000, TrialFinish(0, 1, FAIL), author="bob")
    told = ann.put("a", TrialFinish(0, 1, COMPLETE, (1.0,)))
    log.exchange(ann, "ann")
    assert not ann.duplicated
    assert told.verdicts is not None
    assert told.verdicts[0].accepted
    assert log.join(ann).joined, "nor when it reads the log anew"


@pytest.mark.parametrize("known", ["", "ann"], ids=["before it knew its user", "after it has written elsewhere"])
@pytest.mark.parametrize("writer", ["a", "b"])
def test_who_writes_first_under_a_name_that_it_saw_elsewhere_locks_nobody_out(known: str, writer: str) -> None:
    log = Log()
    log.append(codec.encode(Commit(writer, 1000, "a", 0, (PeerJoin({}),))), "bob")
    ann = LogSession(STUDY, "a", now_us=lambda: 0)
    ann.author = known
    asked, noted = ann.put("a", TrialCreate()), ann.put("a", StudySet({"note": "1"}))
    log.join(ann)
    if not ann.duplicated:
        log.exchange(ann, "ann")
    assert ann.duplicated

    again = log.join(LogSession.for_child(ann, "a2", resend=True))
    while again.has_pending:
        log.exchange(again, "ann")
    verdicts = (*(asked.verdicts or ()), *(noted.verdicts or ()))
    assert [verdict.accepted for verdict in verdicts] == [True, True]
    assert again.state.trials[0].owner == "a2"


def test_in_a_directory_doctor_finds_a_name_under_which_two_wrote_the_same_number(tmp_path: Path) -> None:
    """What nobody can know there is who of the two was the peer, or who appended a commit that no other contradicts."""
    study = hopaas_p2p.open_study(str(tmp_path), "s")
    number = study.ask().number
    peer = study.storage.peer
    log = open_store(str(tmp_path)).log(study.handle.uuid)

    def names() -> list[Finding]:
        with contextlib.closing(open_store(str(tmp_path))) as store:
            return [finding for finding in checks.examine(store) if finding.check == "study s, names"]

    def end(seq: int, value: float) -> None:
        commit = Commit(peer.uuid, seq, peer.uuid, 0, (TrialFinish(number, 1, COMPLETE, (value,)),))
        append(log, Outgoing(f"{peer.uuid}:{seq}", codec.encode(commit)))

    study.close()
    end(100, 1.0)
    end(100, 1.0)
    assert names() == [], "a commit that was sent twice is no contradiction"
    end(100, 2.0)
    (finding,) = names()
    assert not finding.passed
    assert peer.uuid in finding.detail


# --- on a server ---


def forged(place: Place, url: str, commit: Commit, *, nonce: str = "") -> None:
    """Append this as the user of this URL, under the nonce that an honest peer would use, or another."""
    log = place.store(url).log(place.uuid())
    log.exchange(Outgoing(nonce or f"{commit.writer}:{commit.seq}", codec.encode(commit)), 0)


def test_a_worker_of_another_user_ends_no_trial_of_anns(place: Place) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    study = optuna.load_study(study_name="s", storage=place.storage(ann))
    trial = study.ask()
    writer = study._storage.peer.uuid
    end = (TrialFinish(trial.number, 1, FAIL),)
    with pytest.raises(Denied, match="which is another user's"):
        forged(place, bob, Commit(writer, 1000, writer, 0, end))
    forged(place, bob, Commit(writer, 1000, writer, 0, end), nonce="b:1")
    forged(place, bob, Commit("b", 2, writer, 0, end))
    study.tell(trial, 0.25)
    told = optuna.load_study(study_name="s", storage=place.storage(place.admin)).trials[trial.number]
    assert (told.state.name, told.value) == ("COMPLETE", 0.25)
    assert study._storage.peer.uuid == writer, "nor does ann's peer take another name"


def test_a_child_and_another_token_of_ann_go_on_with_her_trial(place: Place) -> None:
    ann, again = place.person("ann"), place.person("ann")
    place.study(ann)
    trial = optuna.load_study(study_name="s", storage=place.storage(ann)).ask()
    owner = place.storage(place.admin).state(0).trials[trial.number].owner
    forged(place, again, Commit("child", 1, owner or "", 0, (TrialFinish(trial.number, 1, COMPLETE, (0.5,)),)))
    assert optuna.load_study(study_name="s", storage=place.storage(ann)).trials[trial.number].value == 0.5


@pytest.mark.parametrize("why", ["unsent", "unconfirmed", "history"])
def test_a_file_of_results_says_what_a_worker_may_say(
    why: Literal["unsent", "unconfirmed", "history"], tmp_path: Path
) -> None:
    """Who sends it may be an owner: the log takes all in it for the sender's own."""
    words = [
        StudyControl(status="stopped", budget=1),
        StudySet(system={"hopaas:sampler": '{"class": "optuna.samplers.RandomSampler", "arguments": {}}'}),
        TrialTakeOver(0, 1, FAIL),
        TrialStop(0, 1),
        PeerDrain(site="*"),
        PeerJoin({"host": "h", "on_behalf_of": "ann"}),
    ]
    results = PeerJoin({"host": "h"}), TrialCreate(), TrialFinish(1, 1, COMPLETE, (1.0,)), StudySet({"note": "1"})
    payload = codec.encode(Commit("m", 1, "m", 0, (*words, *results)))
    batch = spool.Spooled("/s", "u", "s", [1], 0, why, [(0, None)], [payload])
    (tmp_path / "file").write_bytes(b"".join([spool._MAGIC, *spool._frames(batch)]))
    (read,) = spool.exported(tmp_path / "file")
    commit = codec.decode(read.payloads[0])
    assert isinstance(commit, Commit)
    assert (commit.writer, commit.seq, commit.records) == ("m", 1, results)


def test_a_spooled_result_that_anothers_token_sends_is_refused_and_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    study = optuna.load_study(study_name="s", storage=place.storage(ann))
    trial = study.ask()
    owner = study._storage.peer.uuid
    for writer in (owner, "a-tickets"):
        end = Commit(writer, 1000, owner, 0, (TrialFinish(trial.number, 1, COMPLETE, (0.5,)),))
        kept, why = keep(
            [Placed(0, None, Outgoing(f"{writer}:1000", codec.encode(end)))],
            store=place.admin,
            study=place.uuid(),
            name="s",
            trials=[trial.number],
        )
        assert kept is not None, why
        ((_, waiting),) = spool.waiting()
        peer = place.storage(bob).peer
        with pytest.raises(Denied, match="another user"):
            peer.spool.send(waiting, peer.logs, writer=peer.uuid)
        kept.unlink()


def test_only_a_peers_own_user_beats_for_it_whatever_the_server_forgets_in_a_crash(place: Place) -> None:
    ann, eve = place.person("ann"), place.person("eve")
    place.study(ann)
    access.grant(ann, "s", "eve", "viewer")
    log, hers = place.store(ann).log(place.uuid()), place.store(eve)
    commit = codec.encode(Commit("a", 1, "a", 0, (PeerJoin({}),)))
    log.exchange(Outgoing("a:1", commit), 0, Beat("a", "ann's"))
    assert hers.beats(["a"]) == {"a": "ann's"}
    for crashed in (False, True):
        if crashed:
            place.server.execute("TRUNCATE hopaas.beats", database="store")
        hers.beat(Beat("a", "eve's"))
        hers.log(place.uuid()).exchange(None, 0, Beat("a", "eve's"))
        assert hers.beats(["a"]) == ({} if crashed else {"a": "ann's"})
    log.exchange(None, 0, Beat("a", "ann's again"))
    assert hers.beats(["a"]) == {"a": "ann's again"}


def test_who_beats_first_under_a_name_that_it_saw_silences_nobody(place: Place) -> None:
    ann, bob = place.store(place.person("ann")), place.store(place.person("bob"))
    bob.beat(Beat("anns", "bob's"))
    ann.beat(Beat("anns", "ann's"))
    assert ann.beats(["anns"]) == {"anns": "bob's"}, "it is nobody's as yet"
    commit = codec.encode(Commit("anns", 1, "anns", 0, (PeerJoin({}),)))
    ann.log("anns-study").exchange(Outgoing("anns:1", commit), 0, Beat("anns", "ann's"))
    assert ann.beats(["anns"]) == {"anns": "ann's"}
    bob.beat(Beat("anns", "bob's again"))
    ann.beat(Beat("anns", "ann's again"))
    assert ann.beats(["anns"]) == {"anns": "ann's again"}


# --- guests ---


def test_an_invitation_holds_for_one_study(place: Place) -> None:
    """Whoever makes a study chooses its name and its uuid."""
    ann, mallory = place.person("ann"), place.person("mallory")
    place.study(ann, "a study with a long name, one")
    uuid = place.uuid("a study with a long name, one")
    chosen = uuid[:6] + "0" * 26
    definition = codec.encode(Commit("m", 1, "m", 0, (StudyDefine("two", ("minimize",)),)))
    opening = codec.encode(Commit("m", 1, "m", 0, (StudyRegistered(chosen, "a study with a long name, two"),)))
    place.store(mallory).log(chosen).exchange(Outgoing("m:1", definition), 0)
    place.store(mallory).catalog().exchange(Outgoing("m:1", opening, chosen), 0)
    guests = []
    for name in ("a study with a long name, one", "a study with a long name, two"):
        made = invite(place.admin, name)
        assert made.invitation.token is not None
        role, _, password = made.invitation.token.reveal().partition(":")
        guests.append(place.url((role, password)))
        assert made.guest == invite(place.admin, name).guest
        assert [study.study_name for study in place.storage(guests[-1]).get_all_studies()] == [name]
    with pytest.raises(Denied, match="no grant"):
        place.store(guests[1]).log(uuid).exchange(None, 0)


def test_guests_of_two_sites_are_two_users(place: Place) -> None:
    place.study(place.person("ann"))
    urls = []
    for site in ("north", "south"):
        token = invite(place.admin, "s", site=site).invitation.token
        assert token is not None
        role, _, password = token.reveal().partition(":")
        urls.append(place.url((role, password)))
    north, south = urls
    study = optuna.load_study(study_name="s", storage=place.storage(north))
    trial = study.ask()
    end = TrialFinish(trial.number, 1, COMPLETE, (-99.0,))
    forged(place, south, Commit("b", 1, study._storage.peer.uuid, 0, (end,)))
    study.tell(trial, 0.25)
    assert study.trials[trial.number].value == 0.25


def test_nobody_can_give_a_guest_a_second_study(place: Place) -> None:
    ann = place.person("ann")
    place.study(ann)
    place.study(ann, "t")
    guest = invite(place.admin, "s").guest
    for url in (ann, place.admin):
        with pytest.raises(Denied, match="is the guest of one study"):
            access.grant(url, "t", guest, "viewer")
    access.grant(ann, "s", guest, "viewer")


def test_a_guest_makes_no_study_and_lists_none(place: Place) -> None:
    place.study(place.person("ann"))
    made = invite(place.admin, "s", role="owner")
    assert made.invitation.token is not None
    role, _, password = made.invitation.token.reveal().partition(":")
    guest = place.url((role, password))
    with pytest.raises(Denied, match="is the guest of one study"):
        place.study(guest, "own")
    opening = codec.encode(Commit("g", 1, "g", 0, (StudyRegistered("u", "own"),)))
    with pytest.raises(Denied, match="is the guest of one study"):
        place.store(guest).catalog().exchange(Outgoing("g:1", opening, "u"), 0)
    study = optuna.load_study(study_name="s", storage=place.storage(guest))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)


def test_a_user_that_only_has_a_guests_name_is_not_invited(place: Place) -> None:
    place.study(place.person("ann"))
    guest = invite(place.admin, "s").guest
    access.remove_user(place.admin, guest)
    access.add_user(place.admin, guest)
    with pytest.raises(InvalidInput, match=f"is not this study's guest.* hopaas-p2p admin user rm {guest}"):
        invite(place.admin, "s")


# --- open transactions ---

HOLDS = [
    "SET idle_in_transaction_session_timeout = 0",
    "SET statement_timeout = 0",
    "BEGIN",
    "SAVEPOINT s",
    "SELECT hopaas.exchange_v1('{uuid}', 0, 'held', 'p', NULL, NULL, NULL, 64, NULL)",
    "RELEASE SAVEPOINT s",
]


@contextlib.contextmanager
def holding(place: Place, url: str, uuid: str) -> Iterator[None]:
    with place.session(url) as say:
        for sql in HOLDS:
            say(sql.format(uuid=uuid))
        yield
        with pytest.raises(psycopg2.OperationalError):
            say("COMMIT")


def aged(place: Place, seconds: int) -> None:
    """Let transactions look older than they are to the function that ends them."""
    (source,) = place.server.execute(
        "SELECT pg_get_functiondef('hopaas.end_transactions(interval)'::regprocedure)", database="store"
    )[0]
    place.server.execute(
        source.replace("clock_timestamp() - p_age", f"clock_timestamp() + interval '{seconds} s' - p_age").replace(
            "%", "%%"
        ),
        database="store",
    )


@pytest.fixture
def age(place: Place) -> Iterator[Callable[[int], None]]:
    yield lambda seconds: aged(place, seconds)
    access.initialise(place.admin)


def unlocked(url: str) -> list[tuple[str, bool]]:
    """The users whose transactions can block the study, and whether their sessions were ended."""
    return [(login.partition(".")[0], ended) for login, _, ended in access.unlock(url, "s")]


def test_an_owner_ends_an_open_transaction_that_stops_the_study(place: Place, age: Callable[[int], None]) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    study = place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    with holding(place, bob, place.uuid()):
        place.server.execute("ALTER FUNCTION hopaas.exchange_v1 SET lock_timeout = '100ms'", database="store")
        with pytest.raises(StoreUnreachable, match="ends it with: hopaas-p2p admin unlock STUDY"):
            place.store(ann).log(place.uuid()).exchange(outgoing("a"), 0)
        assert unlocked(ann) == [("bob", False)], "any transaction takes some seconds"
        age(25)
        assert unlocked(bob) == [("bob", False)], "for a worker it is not long enough"
        ended = cli("admin", "unlock", "s", "--json", HOPAAS_STORE=ann)
        assert [(one["login"].partition(".")[0], one["ended"]) for one in json.loads(ended.stdout)] == [("bob", True)]
        study.tell(study.ask(), 1.0)


def test_whoever_waits_ends_a_transaction_that_has_taken_minutes(place: Place, age: Callable[[int], None]) -> None:
    """As in the list of studies, which nobody owns but administrators."""
    ann, bob = place.person("ann"), place.person("bob")
    with holding(place, bob, "catalog"):
        place.server.execute("ALTER FUNCTION hopaas.exchange_v1 SET lock_timeout = '100ms'", database="store")
        age(125)
        place.study(ann)


def test_revoking_a_grant_waits_for_no_transaction_of_its_user(place: Place, age: Callable[[int], None]) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    with holding(place, bob, place.uuid()):
        access.revoke(ann, "s", "bob")
        assert [grant.user for grant in access.grants(ann, "s")] == ["ann"]
        age(25)
        assert unlocked(ann) == [("bob", True)]


def test_an_owner_stops_a_user_whose_sessions_take_turns_with_short_transactions(
    place: Place, age: Callable[[int], None]
) -> None:
    """None is as old as one that is ended, and the next one waits for the lock already."""
    ann, bob = place.person("ann"), place.person("bob")
    study = place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    write = f"SELECT hopaas.exchange_v1('{place.uuid()}', 0, 'next', 'p', NULL, NULL, NULL, 64, NULL)"
    with place.session(bob) as waits, ThreadPoolExecutor(1) as pool:
        with holding(place, bob, place.uuid()):
            turn = pool.submit(waits, write)
            until(lambda: unlocked(ann) == [("bob", False)] * 2, what="a session that waits for its turn")
            access.revoke(ann, "s", "bob")
            age(25)
            assert unlocked(ann) == [("bob", True)] * 2
        with pytest.raises(psycopg2.OperationalError):
            turn.result()
    with place.session(bob) as once_more, pytest.raises(psycopg2.Error, match="user bob has no grant for this study"):
        once_more(write)
    study.tell(study.ask(), 1.0)


def test_nobody_ends_the_sessions_of_others_by_giving_and_taking_grants(place: Place) -> None:
    """Everybody can make a study, and grant it to anybody."""
    ann, mallory = place.person("ann"), place.person("mallory")
    place.study(ann)
    place.study(mallory, "m")
    with place.session(ann) as say:
        say("BEGIN")
        say(f"SELECT hopaas.exchange_v1('{place.uuid()}', 0, 'n', 'p', NULL, NULL, NULL, 64, NULL)")
        access.grant(mallory, "m", "ann", "worker")
        access.revoke(mallory, "m", "ann")
        say("COMMIT")


@pytest.mark.parametrize("change", ["grant_v1('{uuid}', 'bob', 'viewer')", "revoke_v1('{uuid}', 'bob')"])
def test_a_user_is_removed_while_an_owner_holds_a_grant_to_it_up(place: Place, change: str) -> None:
    bob, mallory = place.person("bob"), place.person("mallory")
    place.study(mallory, "m")
    access.grant(mallory, "m", "bob", "worker")
    with place.session(mallory) as say:
        say("SET idle_in_transaction_session_timeout = 0")
        say("BEGIN")
        say(f"SELECT hopaas.{change.format(uuid=place.uuid('m'))}")
        access.remove_user(place.admin, "bob")
        with pytest.raises(psycopg2.OperationalError):
            say("COMMIT")
    with pytest.raises(Denied):
        place.store(bob).shared()


def test_a_user_is_locked_out_even_if_its_grants_cannot_be_removed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that an administrator may not end holds them, such as a prepared one of the user's friend."""
    monkeypatch.setattr(removal, "_ATTEMPTS", 1)
    bob = place.person("bob")
    place.study(bob)
    with place.session(place.server.url("store")) as holds, place.session(bob) as say:
        holds("BEGIN")
        holds("SELECT FROM hopaas.grants FOR UPDATE")
        with pytest.raises(StoreUnreachable, match="another session holds the lock"):
            access.remove_user(place.admin, "bob")
        with pytest.raises(psycopg2.OperationalError):
            say("SELECT 1")
        with pytest.raises(Denied, match="revoked"):
            place.store(bob).shared()
        holds("ROLLBACK")
    access.remove_user(place.admin, "bob")
    assert access.users(place.admin) == access.grants(place.admin, "s") == []


def test_no_open_transaction_holds_up_init(place: Place) -> None:
    ann = place.person("ann")
    place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    with place.session(ann) as say:
        say("BEGIN")
        say("SELECT hopaas.beat_v1('anns', '1')")
        say(f"SELECT hopaas.revoke_v1('{place.uuid()}', 'bob')")
        access.initialise(place.admin)
        say("COMMIT")


def test_an_open_transaction_on_a_heartbeat_is_ended(place: Place, age: Callable[[int], None]) -> None:
    """That of a guest, with the same invitation as the peer whose heartbeat it locks."""
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    with place.session(bob) as say:
        say("BEGIN")
        say("SELECT hopaas.beat_v1('bobs', '1')")
        age(25)
        assert unlocked(ann) == [("bob", True)]


def test_nobody_ends_a_session_that_has_only_read(place: Place, age: Callable[[int], None]) -> None:
    """A snapshot over a slow link takes minutes, and notes that its token is in use."""
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    place.server.execute("UPDATE hopaas.tokens SET last_used = NULL", database="store")
    with place.session(bob) as say:
        say("BEGIN")
        say(f"SELECT hopaas.newest_snapshot_v1('{place.uuid()}')")
        age(3600)
        assert access.unlock(ann, "s") == []
        say("COMMIT")


BLOCK = f"00000000-{hashlib.sha256(b'x').hexdigest()[:32]}"
WAITS = {
    "exchange_v1": "exchange_v1('{uuid}', 0, 'held', 'p', NULL, NULL, NULL, 64, NULL)",
    "put_block_v1": f"put_block_v1('{{uuid}}', '{BLOCK}', 'x')",
}


@pytest.mark.parametrize("function", WAITS)
def test_whatever_call_waits_for_minutes_ends_what_holds_it_up(
    place: Place, age: Callable[[int], None], function: str
) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    log = place.store(ann).log(place.uuid())
    wait: dict[str, Callable[[], object]] = {
        "exchange_v1": lambda: log.exchange(outgoing("a"), 0),
        "put_block_v1": lambda: place.store(ann).call("put_block", log=place.uuid(), name=BLOCK, data=b"x"),
    }
    place.server.execute(f"ALTER FUNCTION hopaas.{function} SET lock_timeout = '100ms'", database="store")
    age(125)
    with place.session(bob) as say:
        say("BEGIN")
        say(f"SELECT hopaas.{WAITS[function].format(uuid=place.uuid())}")
        with pytest.raises(StoreUnreachable, match="hopaas-p2p admin unlock"):
            wait[function]()
        wait[function]()


SWEPT = {
    "beats": (
        "beat_v1('bobs', '1')",
        "beats SET at = now() - interval '31 days'",
        "beat_v1('bobs', '2')",
        "put_snapshot_v1('{uuid}', 1, 'x', 3)",
    ),
    "uploads": (
        f"put_part_v1('{{uuid}}/x', '{'b' * 20}', 3145728, 0, 'x')",
        "artifacts SET at = now() - interval '2 days'",
        f"put_part_v1('{{uuid}}/x', '{'b' * 20}', 3145728, 1, 'x')",
        f"put_part_v1('{{uuid}}/y', '{'a' * 20}', 3145728, 0, 'x')",
    ),
}


@pytest.mark.parametrize("what", SWEPT)
def test_what_is_swept_in_passing_holds_nobody_up(place: Place, what: str) -> None:
    ann, bob = place.person("ann"), place.person("bob")
    place.study(ann)
    access.grant(ann, "s", "bob", "worker")
    made, aged, held, wanted = [sql.format(uuid=place.uuid()) for sql in SWEPT[what]]
    function = wanted.partition("(")[0]
    with place.session(bob) as bobs, place.session(ann) as anns:
        bobs(f"SELECT hopaas.{made}")
        place.server.execute(f"UPDATE hopaas.{aged}", database="store")
        place.server.execute(f"ALTER FUNCTION hopaas.{function} SET lock_timeout = '100ms'", database="store")
        try:
            bobs("BEGIN")
            bobs(f"SELECT hopaas.{held}")
            anns(f"SELECT hopaas.{wanted}")
        finally:
            access.initialise(place.admin)


def test_a_peer_in_restored_logs_belongs_to_its_first_author_whichever_log_comes_first(place: Place) -> None:
    """A log holds what another user says in its name, and a backup does not hold under which nonce that came."""
    place.person("ann")
    place.person("mallory")
    said = {"mallory": (9, 20), "ann": (1, 10)}
    for user, (seq, at) in said.items():
        commit = codec.encode(Commit("anns", seq, "anns", 0, (PeerJoin({}),)))
        place.store(place.admin).log(f"log-of-{user}").restore(None, [Entry(1, commit, Stamp(user, "owner", at), 0)])
    assert place.server.execute("SELECT peer, author FROM hopaas.peers", database="store") == [("anns", "ann")]


def test_a_peer_in_a_log_of_a_directory_is_no_users_when_that_is_restored(place: Place) -> None:
    bob = place.person("bob")
    payload = codec.encode(Commit("direct", 1, "direct", 0, (PeerJoin({}),)))
    place.store(place.admin).log("restored").restore(None, [Entry(1, payload, Stamp("", "owner", 10), 0)])
    with contextlib.suppress(Denied):
        place.store(bob).beat(Beat("direct", "alive"))
    assert place.store(place.admin).beats(["direct"]) == {}


@pytest.mark.parametrize("key", ["catalog/x", "elsewhere/x"])
def test_a_guest_has_no_files_but_those_of_its_study(place: Place, key: str) -> None:
    ann = place.person("ann")
    place.study(ann)
    guest = access.guest(place.admin, place.uuid(), "worker")
    access.grant(ann, "s", guest, "worker")
    with place.session(place.person(guest)) as say, pytest.raises(psycopg2.Error, match="to no study in this database"):
        say(f"SELECT hopaas.put_part_v1('{key}', '{'g' * 20}', 3145728, 0, 'x')")
