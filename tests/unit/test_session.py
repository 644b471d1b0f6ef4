"""A session by itself: no store, no thread, no clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from hopaas_p2p.core import codec
from hopaas_p2p.core.codec import shown
from hopaas_p2p.core.records import Commit, Record, StudySet, TrialCreate, TrialFinish
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.errors import BehindRetention, BrokenChain, Denied, StoreUnreachable
from hopaas_p2p.peer import outbox, session
from hopaas_p2p.peer.session import STUDY, LogSession
from hopaas_p2p.stores.base import Entry, ExchangeResult
from hopaas_p2p.testing.commits import sum_of
from tests.support.scribe import COMPLETE, defined

TTL = 12.0


class Script:
    """A log that a test writes line by line."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.say("founder", 1, defined(ttl=TTL))

    def say(self, writer: str, seq: int, *records: Record) -> None:
        self.append(codec.encode(Commit(writer, seq, writer, 0, records)))

    def append(self, payload: bytes) -> None:
        self.entries.append(Entry(len(self.entries) + 1, payload))

    def since(self, lsn: int) -> ExchangeResult:
        return ExchangeResult(self.entries[lsn:])


@pytest.fixture
def log() -> Script:
    return Script()


@pytest.fixture
def ann(log: Script) -> LogSession[State]:
    return joined(log, "ann")


def joined(log: Script, writer: str) -> LogSession[State]:
    new = LogSession(STUDY, writer, now_us=lambda: 0)
    new.start_from(State())
    new.advance(log.since(0), 0.0)
    new.complete_join()
    return new


def exchange(log: Script, one: LogSession[State], now: float = 0.0) -> None:
    sent = one.next_commit()
    if sent is not None:
        log.append(sent.payload)
    one.advance(log.since(one.state.lsn), now)


def test_it_names_nothing_that_could_do_io() -> None:
    """What does the I/O stands in the same module, in `LogClient`."""
    (of_session,) = (
        node
        for node in ast.parse(Path(session.__file__ or "").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == LogSession.__name__
    )
    for tree in (of_session, ast.parse(Path(outbox.__file__ or "").read_text())):
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        named |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {"threading", "time", "os", "socket", "random", "logging", "Log", "LogClient"} & named


def test_what_is_queued_leaves_as_one_commit_and_its_verdicts_come_back(log: Script, ann: LogSession[State]) -> None:
    first, second = ann.put("ann", TrialCreate()), ann.put("ann", TrialCreate())
    exchange(log, ann)
    assert (first.verdicts, second.verdicts) == ((Verdict(True, 0),), (Verdict(True, 1),))
    assert len(log.entries) == 2
    assert not ann.has_pending


@pytest.mark.parametrize("error", [StoreUnreachable(), BehindRetention()], ids=lambda error: type(error).__name__)
def test_a_commit_of_unknown_fate_is_what_is_sent_next_whatever_is_queued(
    ann: LogSession[State], error: StoreUnreachable
) -> None:
    ann.put("ann", TrialCreate())
    sent = ann.next_commit()
    ann.failed(error, 1.0)
    ann.put("ann", TrialCreate())
    assert ann.next_commit() == sent
    assert ann.joined == (not isinstance(error, BehindRetention))


def test_a_commit_that_the_store_refuses_is_given_up_but_not_a_result(log: Script, ann: LogSession[State]) -> None:
    control = ann.put("ann", StudySet(user={"a": "1"}))
    ann.next_commit()
    ann.failed(Denied(), 0.0)
    assert control.verdicts == (Verdict(False, None, "role"),)
    ann.put("ann", TrialCreate())
    exchange(log, ann)
    result = ann.put("ann", TrialFinish(0, 1, COMPLETE, (1.0,)))
    ann.next_commit()
    ann.failed(Denied(), 0.0)
    assert result.verdicts is None
    assert ann.ends() == [0]


def test_nothing_becomes_a_commit_before_it_is_due_unless_somebody_waits(ann: LogSession[State]) -> None:
    ann.draft(0, 1, "ann").reports[1] = 0.5
    ann.note_draft(10.0)
    due, _, look_again_at = ann.ready(10.5)
    assert (due, look_again_at) == (False, 11.0)
    assert ann.ready(11.0)[0]
    assert ann.next_commit() is not None


def test_a_peer_that_takes_part_wants_to_hear_of_others_and_a_reader_does_not(ann: LogSession[State]) -> None:
    assert not ann.ready(1000.0)[1]
    ann.introduced = True
    assert not ann.ready(TTL / 3 - 0.1)[1]
    _, if_changed, look_again_at = ann.ready(TTL / 3)
    assert if_changed
    assert look_again_at == TTL / 3 + TTL / 8


def test_readers_are_told_of_each_change_each_for_itself(log: Script, ann: LogSession[State]) -> None:
    first, second = ann.cursor(), ann.cursor()
    log.say("bob", 1, TrialCreate(), TrialCreate())
    exchange(log, ann)
    first.clear()
    log.say("bob", 2, TrialFinish(1, 1, COMPLETE, (1.0,)))
    exchange(log, ann)
    assert (first, second) == ({1}, {0, 1})


def test_a_child_knows_what_its_parent_knew_and_has_nothing_of_it_to_send(log: Script, ann: LogSession[State]) -> None:
    ann.introduced = True
    ann.put("ann", TrialCreate())
    ann.next_commit()
    waiting = ann.put("ann", TrialCreate())
    ann.draft(0, 1, "ann").reports[1] = 0.5
    ann.spooled[Path("somewhere")] = [0]
    child = LogSession.for_child(ann, "child")
    assert (child.state, child.joined, child.writer) == (ann.state, True, "child")
    assert (child.has_pending, child.spooled, child.introduced) == (False, {}, False)
    assert waiting.verdicts is not None, "nobody waits in the child for what the parent sends"
    assert child.put("child", TrialCreate()).owner == "child"
    exchange(log, child)
    assert child.state.trials[0].owner == "child"


def test_whoever_goes_on_under_another_name_sends_all_of_it_again(log: Script, ann: LogSession[State]) -> None:
    started = ann.put("ann", TrialCreate())
    exchange(log, ann)
    assert started.verdicts is not None
    ann.put("ann", TrialFinish(0, 1, COMPLETE, (2.0,)))
    ann.next_commit()
    asked = ann.put("ann", TrialCreate())
    log.say("ann", 2, StudySet(user={"of": '"the twin"'}))
    ann.advance(log.since(ann.state.lsn), 0.0)
    assert ann.duplicated

    other = LogSession.for_child(ann, "other", resend=True)
    other.start_from(State())
    other.advance(log.since(0), 0.0)
    other.complete_join()
    while other.has_pending:
        exchange(log, other)
    assert other.state.trials[0].values == (2.0,)
    assert other.state.trials[(asked.verdicts or ())[0].number or 0].owner == "other"
    assert other.state.user == {"of": '"the twin"'}


def test_a_twin_is_noticed_in_a_snapshot_too(log: Script, ann: LogSession[State]) -> None:
    ann.put("ann", TrialCreate())
    exchange(log, ann)
    log.say("ann", 2, StudySet(user={"of": '"the twin"'}))
    twins = joined(log, "reader").state
    ann.start_from(twins)
    ann.complete_join()
    assert ann.duplicated
    assert not ann.joined


def test_a_twins_commit_of_the_same_number_in_a_snapshot_does_not_pass_for_a_result(
    log: Script, ann: LogSession[State]
) -> None:
    ann.put("ann", TrialCreate())
    exchange(log, ann)
    told = ann.put("ann", TrialFinish(0, 1, COMPLETE, (1.0,)))
    assert ann.next_commit() is not None
    ann.failed(BehindRetention(), 0.0)
    log.say("ann", 2, TrialCreate())  # the twin's, and nothing but a snapshot is left of it
    ann.start_from(joined(log, "reader").state)
    ann.complete_join()
    assert ann.duplicated
    assert told.verdicts is None


def test_an_own_commit_in_a_snapshot_is_known_again(log: Script, ann: LogSession[State]) -> None:
    ann.put("ann", TrialCreate())
    exchange(log, ann)
    told = ann.put("ann", StudySet(user={"a": "1"}), TrialFinish(0, 1, COMPLETE, (1.0,)))
    sent = ann.next_commit()
    assert sent is not None
    ann.failed(BehindRetention(), 0.0)
    log.append(sent.payload)
    ann.start_from(joined(log, "reader").state)
    ann.complete_join()
    assert ann.joined
    assert told.verdicts is not None
    assert all(verdict.accepted for verdict in told.verdicts)


def test_own_commits_that_come_again_make_nobody_a_twin(log: Script, ann: LogSession[State]) -> None:
    ann.put("ann", TrialCreate())
    exchange(log, ann)
    log.append(log.entries[-1].payload)
    exchange(log, ann)
    ann.start_from(State())
    ann.advance(log.since(0), 0.0)
    ann.complete_join()
    assert not ann.duplicated
    assert ann.state.refusals == {"duplicate": 1}


# --- the chain ---


def append_chained(log: Script, writer: str, seq: int, *, before: int | None = None) -> None:
    """As a store does that keeps sums."""
    commit = codec.encode(Commit(writer, seq, writer, 0, (TrialCreate(),)))
    total = sum_of(log.entries) if before is None else before
    log.entries.append(Entry(len(log.entries) + 1, commit, before=total))


def test_commits_with_and_without_sums_are_replayed(log: Script) -> None:
    append_chained(log, "bob", 1)
    log.say("cid", 1, TrialCreate())
    append_chained(log, "bob", 2)
    ann = joined(log, "ann")
    assert ann.joined
    assert ann.broken is None
    assert (ann.state.lsn, ann.state.sum) == (4, sum_of(log.entries))


def test_a_commit_that_follows_another_history_is_not_applied_and_nothing_more_is_sent(log: Script) -> None:
    append_chained(log, "bob", 1)
    ann = joined(log, "ann")
    pending = ann.put("ann", TrialCreate())
    append_chained(log, "bob", 2, before=77)
    append_chained(log, "bob", 3)
    ann.snapshot_due = True
    with pytest.raises(BrokenChain):
        ann.advance(log.since(2), 1.0)
    assert ann.state.lsn == 2
    assert len(ann.state.trials) == 1
    assert pending.verdicts is None
    assert ann.dump() is None, "and no snapshot is made of it"
    message = str(ann.broken)
    assert "two histories" in message
    assert all(part in message for part in ("commit 2", "commit 3", shown(77), shown(ann.state.sum)))


def test_a_hole_in_the_log_is_noticed(log: Script, ann: LogSession[State]) -> None:
    append_chained(log, "bob", 1)
    append_chained(log, "bob", 2)
    with pytest.raises(BrokenChain, match="commit 3 comes after commit 1"):
        ann.advance(log.since(2), 1.0)
    assert ann.state.lsn == 1


def test_a_snapshot_carries_the_sum_it_stands_on(log: Script, ann: LogSession[State]) -> None:
    append_chained(log, "bob", 1)
    exchange(log, ann)
    dumped = ann.dump()
    assert dumped is not None
    other = LogSession(STUDY, "other", now_us=lambda: 0)
    other.start_from(other.machine.load(dumped[1]))
    append_chained(log, "bob", 2, before=77)
    with pytest.raises(BrokenChain):
        other.advance(log.since(2), 0.0)


def test_a_snapshot_without_a_sum_takes_that_of_the_commit_behind_it(log: Script, ann: LogSession[State]) -> None:
    append_chained(log, "bob", 1)
    exchange(log, ann)
    ann.state.sum = None
    append_chained(log, "bob", 2)
    exchange(log, ann)
    assert ann.broken is None
    assert (ann.state.lsn, ann.state.sum) == (3, sum_of(log.entries))


def test_a_log_that_is_shorter_when_it_is_joined_again_is_noticed(log: Script, ann: LogSession[State]) -> None:
    append_chained(log, "bob", 1)
    exchange(log, ann)
    ann.failed(BehindRetention(), 0.0)
    del log.entries[1:]
    ann.start_from(State())
    ann.advance(log.since(0), 0.0)
    ann.complete_join()
    assert not ann.joined
    assert "ends at commit 1" in str(ann.broken)


@pytest.mark.parametrize("acknowledged", [1, 2])
def test_a_commit_of_its_own_that_was_acknowledged_and_is_gone_is_noticed(
    log: Script, ann: LogSession[State], acknowledged: int
) -> None:
    for _ in range(acknowledged):
        ann.put("ann", TrialCreate())
        exchange(log, ann)
    ann.failed(BehindRetention(), 0.0)
    del log.entries[acknowledged:]
    append_chained(log, "bob", 3 - acknowledged)
    ann.start_from(State())
    ann.advance(log.since(0), 0.0)
    ann.complete_join()
    assert f"ann:{acknowledged}" in str(ann.broken)


def test_a_session_under_another_name_still_answers_for_what_was_acknowledged_before(
    log: Script, ann: LogSession[State]
) -> None:
    ann.put("ann", TrialCreate())
    exchange(log, ann)
    renewed = LogSession.for_child(ann, "ann-2", resend=True)
    renewed.put("ann-2", TrialCreate())
    exchange(log, renewed)
    assert [placed.commit.nonce for placed in renewed.history()] == ["ann:1", "ann-2:1"]
    renewed.failed(BehindRetention(), 0.0)
    renewed.start_from(State())
    renewed.advance(log.since(0), 0.0)
    renewed.complete_join()
    assert renewed.broken is None
    assert not LogSession.for_child(renewed, "child").history(), "a child's parent answers for its own"


def test_the_commit_to_send_tells_the_sum_it_follows(log: Script, ann: LogSession[State]) -> None:
    ann.put("ann", TrialCreate())
    sent = ann.next_commit()
    assert sent is not None
    assert sent.chain == sum_of(log.entries)
