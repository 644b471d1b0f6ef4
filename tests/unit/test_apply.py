"""The rules of a study: what each record does, to which trial, said by whom."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopaas_p2p.core import snapshot
from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import (
    Categorical,
    Checkpoint,
    Commit,
    Distribution,
    Float,
    Int,
    PeerDrain,
    PeerJoin,
    Policy,
    Record,
    Stamp,
    StudyControl,
    StudyDefine,
    StudySet,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialState,
    TrialStop,
    TrialTakeOver,
)
from hopaas_p2p.core.state import REFUSALS, TRANSITIONS, LateFinish, Move, State, Trial, Verdict
from tests.support import invariants
from tests.support.invariants import Violated, Witness
from tests.support.scribe import COMPLETE, FAIL, PRUNED, RUNNING, WAITING, Scribe, X, defined

# --- the table ---------------------------------------------------------------------------------------------------

TRIAL_RECORDS = (
    TrialClaim,
    TrialSet,
    TrialCheckpoint,
    TrialFinish,
    TrialRelease,
    TrialReclaim,
    TrialTakeOver,
    TrialStop,
)
SAVED = Checkpoint(1, "key", 10, "0" * 64)


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


def trial_in(scribe: Scribe, trial_state: TrialState) -> Trial:
    """A trial in this state, last run by ann at epoch 1, if anybody has run it."""
    if trial_state is WAITING:
        return scribe.enqueue_trial(params={"x": 0.5}, dists={"x": X})
    trial = scribe.start("ann", params={"x": 0.5}, dists={"x": X}, reports={0: 1.0})
    if trial_state is not RUNNING:
        scribe.say("ann", TrialFinish(0, 1, trial_state, (1.0,) if trial_state is COMPLETE else None))
    return trial


def records_of(kind: type, *, epoch: int) -> list[Record]:
    """Every thing that a record of this kind may ask of trial 0."""
    if kind is TrialClaim:
        return [TrialClaim(0)]
    if kind is TrialSet:
        return [TrialSet(0, epoch, reports={1: 2.0})]
    if kind is TrialFinish:
        return [
            TrialFinish(0, epoch, COMPLETE, (2.0,)),
            TrialFinish(0, epoch, PRUNED),
            TrialFinish(0, epoch, FAIL, None, "why"),
        ]
    if kind is TrialTakeOver:
        ends = ((COMPLETE, (2.0,)), (PRUNED, None), (FAIL, None))
        return [TrialTakeOver(0, epoch, state, values, by="eve") for state, values in ends]
    if kind is TrialRelease:
        return [TrialRelease(0, epoch), TrialRelease(0, epoch, fail=True)]
    if kind is TrialCheckpoint:
        return [TrialCheckpoint(0, epoch, SAVED)]
    if kind is TrialCreate:
        return [TrialCreate(prefer_waiting=True)]
    return [kind(0, epoch)]


@pytest.mark.parametrize("kind", [*TRIAL_RECORDS, TrialCreate], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("before", list(TrialState), ids=lambda state: state.name)
def test_the_table_says_all_that_the_holder_of_the_lease_may_do(before: TrialState, kind: type) -> None:
    rule = TRANSITIONS.get((before, kind))
    reached = set()
    for index, interrupted, stopped in itertools.product(range(3), ("fail", "prune"), (False, True)):
        scribe = Scribe(defined(attempts=1, interrupted=interrupted))
        trial = trial_in(scribe, before)
        if stopped:
            scribe.say("founder", TrialStop(0, trial.epoch))
        choices = records_of(kind, epoch=trial.epoch)
        if index >= len(choices):
            continue
        was = invariants._facts(trial)
        verdict = scribe.say("ann", choices[index])
        if rule is None and kind is TrialCreate:
            assert verdict.number == 1, "a new trial, and the one that is there stays as it is"
            assert invariants._facts(trial) == was
        elif rule is None:
            assert verdict.refusal in REFUSALS
            assert invariants._facts(trial) == was
        else:
            assert verdict.accepted, verdict
            reached.add(trial.state)
    assert reached == (set(rule.to) if rule else set())


@pytest.mark.parametrize("budget", [None, 1], ids=["no budget", "budget of one"])
@pytest.mark.parametrize("retry", [WAITING, RUNNING], ids=lambda state: state.name)
def test_a_late_result_moves_its_retry_as_the_table_says(retry: TrialState, budget: int | None) -> None:
    scribe = Scribe(defined(budget=budget))
    scribe.start("ann")
    scribe.say("bob", TrialReclaim(0, 1))
    if retry is RUNNING:
        scribe.say("bob", TrialClaim(1))
    assert scribe.say("ann", TrialFinish(0, 1, COMPLETE, (2.0,))).refusal == "late"
    stays = retry is RUNNING and budget is None
    assert scribe.state.trials[1].state in ((RUNNING,) if stays else TRANSITIONS[retry, LateFinish].to)


@pytest.mark.parametrize("kind", TRIAL_RECORDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("writer", "epoch"), [("bob", 1), ("ann", 0), ("ann", 2)])
def test_without_the_lease_only_what_the_table_allows_to_anyone_is_accepted(
    writer: str, epoch: int, kind: type
) -> None:
    needs = TRANSITIONS.get((RUNNING, kind), Move("lease", ())).needs
    for index in range(3):
        scribe = Scribe()
        trial = trial_in(scribe, RUNNING)
        choices = records_of(kind, epoch=epoch)
        if index >= len(choices):
            continue
        was = invariants._facts(trial)
        verdict = scribe.say(writer, choices[index])
        allowed = needs == "epoch" and epoch == trial.epoch
        if kind in (TrialReclaim, TrialTakeOver) and verdict.accepted:
            assert (writer, epoch) == ("bob", 1)
            continue
        assert verdict.accepted == allowed, verdict
        if not allowed:
            assert invariants._facts(trial) == was


def test_every_entry_of_the_table_names_a_record_that_concerns_a_trial() -> None:
    assert {kind for _, kind in TRANSITIONS} == {*TRIAL_RECORDS, TrialCreate, LateFinish}
    assert not [state for state, _ in TRANSITIONS if state in (COMPLETE, PRUNED, FAIL)]


# --- the exhaustive walk -----------------------------------------------------------------------------------------


def every_saying(state: State) -> list[tuple[str, Record]]:
    """All that two peers can say about two trials, right or wrong."""
    sayings: list[tuple[str, Record]] = []
    for peer in ("ann", "bob"):
        if len(state.trials) < 2:
            sayings += [(peer, TrialCreate()), (peer, TrialCreate(WAITING))]
        elif state.waiting:
            sayings.append((peer, TrialCreate(prefer_waiting=True)))
        for number in (0, 1):
            epoch = state.trials[number].epoch if number < len(state.trials) else 1
            sayings.append((peer, TrialClaim(number)))
            for one in {epoch, max(epoch - 1, 0)}:
                sayings += [
                    (peer, TrialSet(number, one, reports={0: 1.0})),
                    (peer, TrialFinish(number, one, COMPLETE, (1.0,))),
                    (peer, TrialFinish(number, one, FAIL)),
                    (peer, TrialRelease(number, one)),
                    (peer, TrialReclaim(number, one)),
                ]
    return sayings


def clone(state: State) -> State:
    return snapshot.load(snapshot.dump(state))


def essence(state: State) -> bytes:
    """A State without its length: two that differ only in how they came about go on alike."""
    state.lsn, state.refusals = 0, {}
    state.writers.clear()
    return snapshot.dump(state)


@pytest.mark.parametrize("budget", [None, 1], ids=["no budget", "budget of one"])
def test_no_six_records_of_two_peers_on_two_trials_break_an_invariant(budget: int | None) -> None:
    start = State()
    apply(start, 1, Commit("founder", 1, "founder", 0, (defined(budget=budget, attempts=2),)))
    frontier = {essence(start): start}
    seen = set(frontier)
    refused = itertools.count()
    moved: set[tuple[TrialState, type, TrialState]] = set()
    for _ in range(6):
        following: dict[bytes, State] = {}
        for key, before in frontier.items():
            after = clone(before)
            for seq, (peer, record) in enumerate(every_saying(before), start=1):
                (verdict,) = apply(after, 1, Commit(peer, seq, peer, 0, (record,)))
                if not verdict.accepted and verdict.refusal != "late":
                    assert verdict.refusal in REFUSALS
                    next(refused)
                    continue
                witness = Witness()
                witness.look(before)
                witness.look(after)
                moved |= moves(before, after, record)
                following.setdefault(essence(after), after)
                after = clone(before)
            assert essence(after) == key, "what was refused has changed something"
        frontier = {key: state for key, state in following.items() if key not in seen}
        seen.update(frontier)
    assert len(seen) > 100
    assert next(refused) > 1000
    every = {(start, kind, end) for (start, kind), move in TRANSITIONS.items() for end in move.to if end is not start}
    unsaid = {(RUNNING, TrialReclaim, PRUNED), (WAITING, TrialFinish, PRUNED), (RUNNING, TrialFinish, PRUNED)}
    unsaid |= {(RUNNING, TrialTakeOver, end) for end in (COMPLETE, PRUNED, FAIL)}
    unsaid |= {(RUNNING, TrialRelease, end) for end in (PRUNED, FAIL)}  # the two peers say none of these
    unsaid |= {(RUNNING, LateFinish, FAIL)} if budget is None else set()  # there is a place for both
    assert moved == every - unsaid, "of one trial by its record, and of the other by a late result"


def moves(before: State, after: State, record: Record) -> set[tuple[TrialState, type, TrialState]]:
    """(from, what, to) of every trial that the record moved; each must be in the table."""
    found = set()
    for was, trial in zip(before.trials, after.trials, strict=False):
        if was.state is not trial.state:
            own = isinstance(record, TrialCreate) or record.number == trial.number  # type: ignore[union-attr]
            kind = type(record) if own else LateFinish
            assert trial.state in TRANSITIONS[was.state, kind].to
            found.add((was.state, kind, trial.state))
    return found


def test_a_witness_sees_a_broken_promise() -> None:
    scribe = Scribe(defined(budget=1))
    trial = scribe.start("ann")
    trial.owner = "bob"
    with pytest.raises(Violated, match="one owner per epoch"):
        scribe.witness.look(scribe.state)
    trial.owner = "ann"
    scribe.finish("ann", trial)
    trial.values = (5.0,)
    with pytest.raises(Violated, match="finished trials never change"):
        scribe.witness.look(scribe.state)
    scribe.state.counts[RUNNING] += 1
    with pytest.raises(Violated, match="counts agree with states"):
        scribe.witness.look(scribe.state)


# --- sequences ---------------------------------------------------------------------------------------------------

PEERS = ("ann", "bob", "eve")
numbers = st.integers(-1, 6)
epochs = st.integers(0, 4)
reals = st.sampled_from([0.0, 1.0, -1.5, math.nan, math.inf])
names = st.sampled_from(["x", "y"])
distributions: st.SearchStrategy[Distribution] = st.sampled_from(
    [Float(0.0, 1.0), Float(0.0, 2.0), Int(0, 5), Categorical((None, "a")), Float(1.0, 0.0), Categorical(())]
)
texts = st.dictionaries(names, st.sampled_from(["1", '"a"', "not json"]), max_size=1)
params = st.dictionaries(names, reals, max_size=2)
dists = st.dictionaries(names, distributions, max_size=2)
reports = st.dictionaries(st.integers(-1, 3), reals, max_size=2)
values = st.one_of(st.none(), st.lists(reals, max_size=2).map(tuple))
states = st.sampled_from(list(TrialState))
times = st.one_of(st.none(), st.sampled_from([0, -1, 1 << 40, 1 << 62, -(1 << 62), (1 << 64) - 1]))
any_record: st.SearchStrategy[Record] = st.one_of(
    st.builds(StudySet, texts, texts),
    st.builds(StudyControl, st.sampled_from([None, "running", "paused", "stopped", "?"]), st.integers(-2, 4)),
    st.builds(StudyControl, st.just("running"), st.none()),
    st.builds(PeerJoin, st.dictionaries(st.just("site"), st.sampled_from(["here", "there"]))),
    st.builds(PeerDrain, st.sampled_from([None, *PEERS]), st.sampled_from([None, "here"]), st.booleans()),
    st.builds(StudyDefine, st.just("again"), st.just(("minimize",))),
    st.builds(
        TrialCreate, states, st.booleans(), params, dists, reports, texts, texts, values, st.none(), times, times
    ),
    st.builds(TrialCreate, st.just(RUNNING), st.booleans()),
    st.builds(TrialCreate, st.just(RUNNING), st.booleans()),
    st.builds(TrialClaim, numbers),
    st.builds(TrialSet, numbers, epochs, params, dists, reports, texts, texts, st.booleans()),
    st.builds(
        TrialCheckpoint,
        numbers,
        epochs,
        st.builds(Checkpoint, st.integers(-1, 3), st.just("key"), st.just(10), st.just("0")),
    ),
    st.builds(TrialFinish, numbers, epochs, states, values, st.none()),
    st.builds(TrialFinish, numbers, epochs, st.just(COMPLETE), st.just((1.0,)), st.none()),
    st.builds(TrialRelease, numbers, epochs, st.booleans()),
    st.builds(TrialReclaim, numbers, epochs),
    st.builds(TrialStop, numbers, epochs),
)
commits = st.builds(
    Commit,
    st.sampled_from(PEERS),
    st.integers(1, 40),
    st.sampled_from(PEERS),
    st.sampled_from([0, 1 << 50]),
    st.lists(any_record, min_size=1, max_size=3).map(tuple),
)
stamps = st.sampled_from(
    [Stamp(), Stamp("ann"), Stamp("bob", "worker"), Stamp(role="worker"), Stamp(role="viewer"), Stamp(role="?")]
)
policies = st.builds(
    Policy,
    budget=st.one_of(st.none(), st.integers(0, 4)),
    attempts=st.integers(0, 3),
    max_failures=st.sampled_from([None, 1, 2]),
    interrupted=st.sampled_from(["fail", "prune"]),
)
directions = st.sampled_from([("minimize",), ("minimize",), ("maximize", "minimize")])


@settings(max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies, directions, st.lists(st.tuples(commits, stamps), max_size=40))
def test_no_sequence_of_commits_breaks_an_invariant(
    policy: Policy, towards: tuple[str, ...], log: list[tuple[Commit, Stamp]]
) -> None:
    scribe = Scribe(StudyDefine("study", towards, policy))
    for seq, (commit, stamp) in enumerate(log):
        fresh = Commit(commit.writer, seq + 1, commit.owner, commit.at, commit.records)
        verdicts = scribe.append(fresh, stamp)
        assert len(verdicts) == len(commit.records)
        assert all(v.accepted or v.refusal in REFUSALS for v in verdicts)
    assert snapshot.digest(clone(scribe.state)) == snapshot.digest(scribe.state)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(commits, stamps), max_size=30))
def test_a_commit_that_stands_twice_counts_once(log: list[tuple[Commit, Stamp]]) -> None:
    once, twice, forged = Scribe(), Scribe(), 0
    for seq, (commit, stamp) in enumerate(log):
        fresh = Commit(commit.writer, seq + 1, commit.owner, commit.at, commit.records)
        first = once.append(fresh, stamp)
        forged += first[0].refusal == "author"  # counts never
        assert twice.append(fresh, stamp) == first
        assert twice.append(fresh, stamp) == first
    assert _trials(twice) == _trials(once)
    assert twice.state.refusals.get("duplicate", 0) == len(log) - forged


def _trials(scribe: Scribe) -> list[bytes]:
    return [invariants._facts(trial) for trial in scribe.state.trials]


# --- the study ---------------------------------------------------------------------------------------------------


def test_nothing_is_accepted_before_the_definition() -> None:
    state = State()
    (verdict,) = apply(state, 1, Commit("ann", 1, "ann", 0, (TrialCreate(),)))
    assert verdict == Verdict(False, None, "undefined")
    assert not state.trials


def test_a_second_definition_is_refused_and_changes_nothing() -> None:
    scribe = Scribe(defined(budget=3))
    assert scribe.say("bob", defined(budget=9)).refusal == "undefined"
    assert scribe.state.budget == 3


@pytest.mark.parametrize(
    "define",
    [
        StudyDefine("s", ()),
        StudyDefine("s", ("upwards",)),
        StudyDefine("s", ("minimize",), Policy(ttl=0.0)),
        StudyDefine("s", ("minimize",), Policy(ttl=-1.0)),
        StudyDefine("s", ("minimize",), Policy(ttl=math.nan)),
        StudyDefine("s", ("minimize",), Policy(ttl=math.inf)),
        StudyDefine("s", ("minimize",), Policy(budget=-1)),
        StudyDefine("s", ("minimize",), Policy(interrupted="explode")),
        StudyDefine("s", ("minimize",), space={"x": Float(1.0, 0.0)}),
    ],
    ids=[
        "no direction",
        "unknown direction",
        "no lease at all",
        "negative lease",
        "lease of NaN seconds",
        "endless lease",
        "negative budget",
        "unknown fate of the interrupted",
        "impossible space",
    ],
)
def test_an_impossible_definition_is_refused_and_leaves_room_for_a_good_one(define: StudyDefine) -> None:
    state = State()
    (verdict,) = apply(state, 1, Commit("ann", 1, "ann", 0, (define,)))
    assert verdict.refusal == "malformed"
    (verdict,) = apply(state, 2, Commit("ann", 2, "ann", 0, (defined(),)))
    assert verdict.accepted


def test_a_paused_study_gives_out_nothing_but_lets_what_runs_finish(scribe: Scribe) -> None:
    running, waiting = scribe.start("ann"), scribe.enqueue_trial()
    scribe.say("founder", StudyControl("paused"))
    assert scribe.say("bob", TrialCreate()).refusal == "paused"
    assert scribe.say("bob", TrialClaim(waiting.number)).refusal == "paused"
    assert scribe.finish("ann", running).accepted
    scribe.say("founder", StudyControl("running"))
    assert scribe.say("bob", TrialClaim(waiting.number)).accepted


def test_a_stopped_study_is_finished(scribe: Scribe) -> None:
    scribe.say("founder", StudyControl("stopped"))
    assert scribe.say("bob", TrialCreate()).refusal == "stopped"
    assert finished(scribe.state)


def test_a_status_nobody_knows_is_refused(scribe: Scribe) -> None:
    assert scribe.say("founder", StudyControl("on holiday", 5)).refusal == "malformed"
    assert (scribe.state.status, scribe.state.budget) == ("running", None)


def test_a_budget_can_be_raised_lowered_and_lifted() -> None:
    scribe = Scribe(defined(budget=1))
    scribe.start("ann")
    assert scribe.say("bob", TrialCreate()).refusal == "budget"
    scribe.say("founder", StudyControl(budget=2))
    scribe.start("bob")
    scribe.say("founder", StudyControl(budget=1))
    assert scribe.say("bob", TrialCreate()).refusal == "budget"
    scribe.say("founder", StudyControl(budget=-1))
    assert scribe.say("bob", TrialCreate()).accepted


def test_attributes_are_merged_and_keep_their_order(scribe: Scribe) -> None:
    scribe.say("ann", StudySet(user={"b": "1", "a": "2"}, system={"s": "3"}))
    scribe.say("bob", StudySet(user={"b": "4"}))
    assert list(scribe.state.user.items()) == [("b", "4"), ("a", "2")]
    assert scribe.state.system == {"s": "3"}


# --- roles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [StudyControl("paused"), TrialStop(0, 1), StudySet(system={"hopaas:space": "{}"})],
    ids=["study.control", "trial.stop", "space"],
)
@pytest.mark.parametrize(
    ("role", "may"), [("owner", True), ("worker", False), ("viewer", False), ("", False), ("Owner", False)]
)
def test_control_is_the_owners(scribe: Scribe, record: Record, role: str, may: bool) -> None:
    scribe.start("ann")
    verdict = scribe.say("bob", record, role=role)
    assert (verdict.accepted, verdict.refusal) == ((True, None) if may else (False, "role"))


@pytest.mark.parametrize(
    "record",
    [TrialCreate(), TrialClaim(1), TrialSet(1, 0), TrialReclaim(0, 1), StudySet(), PeerJoin({})],
    ids=lambda record: type(record).__name__,
)
def test_a_worker_may_work_and_a_viewer_may_not(record: Record) -> None:
    for role, may in (("worker", True), ("viewer", False), ("nobody", False)):
        scribe = Scribe()
        scribe.start("ann")
        scribe.enqueue_trial()
        assert scribe.say("bob", record, role=role).accepted == may


# --- trials ------------------------------------------------------------------------------------------------------


def test_numbers_are_allotted_in_the_order_of_the_log(scribe: Scribe) -> None:
    assert [scribe.start(peer).number for peer in ("ann", "bob", "ann")] == [0, 1, 2]


def test_a_trial_runs_for_the_owner_of_the_commit_not_for_its_writer(scribe: Scribe) -> None:
    scribe.say("child", TrialCreate(), owner="ann")
    assert scribe.state.trials[0].owner == "ann"
    assert scribe.say("grandchild", TrialFinish(0, 1, COMPLETE, (1.0,)), owner="ann").accepted


def test_an_ask_that_prefers_waiting_takes_the_oldest_and_keeps_its_parameters(scribe: Scribe) -> None:
    first, second = scribe.enqueue_trial(params={"x": 0.25}, dists={"x": X}), scribe.enqueue_trial()
    assert scribe.start("ann", prefer_waiting=True) is first
    assert (first.state, first.owner, first.epoch, first.params) == (RUNNING, "ann", 1, {"x": 0.25})
    assert scribe.start("ann", prefer_waiting=True) is second
    assert scribe.start("ann", prefer_waiting=True).number == 2


def test_an_ask_that_does_not_prefer_waiting_leaves_it_alone(scribe: Scribe) -> None:
    scribe.enqueue_trial()
    assert scribe.start("ann").number == 1


def test_of_two_claims_the_first_in_the_log_wins(scribe: Scribe) -> None:
    trial = scribe.enqueue_trial()
    assert scribe.say("ann", TrialClaim(trial.number)).accepted
    assert scribe.say("bob", TrialClaim(trial.number)).refusal == "not waiting"
    assert trial.owner == "ann"


def test_what_is_set_is_merged_in_order(scribe: Scribe) -> None:
    trial = scribe.start("ann")
    scribe.say("ann", TrialSet(0, 1, {"y": 0.5}, {"y": X}, {2: 1.0}, {"u": "1"}))
    scribe.say("ann", TrialSet(0, 1, {"x": 0.5}, {"x": X}, {1: 2.0, 2: 3.0}, {"v": "2"}, {"s": "3"}))
    assert list(trial.params) == ["y", "x"]
    assert trial.reports == {2: 3.0, 1: 2.0}
    assert (trial.user, trial.system) == ({"u": "1", "v": "2"}, {"s": "3"})


def test_a_parameter_told_again_from_the_first_distribution_loses_its_own(scribe: Scribe) -> None:
    scribe.start("ann", params={"x": 0.5}, dists={"x": X})
    trial = scribe.start("ann", params={"x": 1.5}, dists={"x": Float(0.0, 2.0)})
    assert trial.distribution("x", scribe.state) == Float(0.0, 2.0)
    scribe.say("ann", TrialSet(1, 1, {"x": 0.5}))
    assert trial.distribution("x", scribe.state) == X


@pytest.mark.parametrize(
    "record",
    [TrialCreate(params={"x": 0.5}), TrialCreate(COMPLETE, params={"x": 0.5}, values=(1.0,)), TrialSet(0, 1, {"x": 1})],
    ids=["asked", "imported", "set"],
)
def test_a_parameter_without_a_distribution_is_refused(scribe: Scribe, record: Record) -> None:
    scribe.start("ann")
    assert scribe.say("ann", record).refusal == "malformed"
    assert len(scribe.state.trials) == 1


@pytest.mark.parametrize(
    "distribution",
    [
        Float(1.0, 0.0),
        Float(math.nan, 1.0),
        Float(0.0, math.inf),
        Float(0.0, 1.0, log=True),
        Float(0.0, 1.0, step=0.0),
        Float(0.0, 1.0, step=-0.5),
        Float(0.0, 1.0, step=math.nan),
        Float(1.0, 2.0, log=True, step=0.5),
        Int(5, 1),
        Int(0, 4, log=True),
        Int(0, 4, step=0),
        Int(1, 4, log=True, step=2),
        Categorical(()),
    ],
    ids=[
        "upside down",
        "NaN bound",
        "infinite bound",
        "log from zero",
        "no step",
        "backward step",
        "NaN step",
        "log and step",
        "whole numbers upside down",
        "whole numbers, log from zero",
        "whole numbers, no step",
        "whole numbers, log and step",
        "no choices",
    ],
)
def test_a_distribution_that_optuna_would_refuse_is_refused(scribe: Scribe, distribution: Distribution) -> None:
    scribe.start("ann")
    for record in (
        TrialSet(0, 1, {"z": 1.0}, {"z": distribution}),
        TrialSet(0, 1, {}, {"z": distribution}),
        TrialCreate(WAITING, params={"z": 1.0}, dists={"z": distribution}),
    ):
        assert scribe.say("ann", record).refusal == "malformed"
    assert scribe.state.dists == {}


@pytest.mark.parametrize("state", [COMPLETE, PRUNED, FAIL, WAITING, RUNNING])
@pytest.mark.parametrize("time", [1 << 62, -(1 << 62), (1 << 64) - 1])
def test_a_time_that_no_clock_shows_is_refused(scribe: Scribe, state: TrialState, time: int) -> None:
    values = (1.0,) if state is COMPLETE else None
    assert scribe.say("ann", TrialCreate(state, values=values, start=time)).refusal == "malformed"
    assert scribe.say("ann", TrialCreate(state, values=values, end=time)).refusal == "malformed"


def test_a_waiting_trial_has_no_end_whatever_its_record_says(scribe: Scribe) -> None:
    assert scribe.enqueue_trial(end=5).end is None


def test_a_finished_trial_can_be_imported_with_all_it_has(scribe: Scribe) -> None:
    trial = scribe.start(
        "ann",
        state=COMPLETE,
        params={"x": 0.5},
        dists={"x": X},
        reports={3: math.nan},
        user={"u": "1"},
        values=(math.inf,),
        start=5,
        end=7,
    )
    assert (trial.state, trial.values, trial.start, trial.end) == (COMPLETE, (math.inf,), 5, 7)
    assert trial.params == {"x": 0.5}
    assert math.isnan(trial.reports[3])


@pytest.mark.parametrize(
    "values", [None, (), (1.0, 2.0), (math.nan,)], ids=["none", "too few", "too many", "not a number"]
)
def test_a_complete_trial_needs_a_number_for_every_direction(scribe: Scribe, values: tuple[float, ...] | None) -> None:
    trial = scribe.start("ann")
    assert scribe.say("ann", TrialFinish(0, 1, COMPLETE, values)).refusal == "malformed"
    assert scribe.say("ann", TrialCreate(COMPLETE, values=values)).refusal == "malformed"
    assert trial.state is RUNNING


@pytest.mark.parametrize("state", [PRUNED, FAIL])
@pytest.mark.parametrize("values", [(), (1.0, 2.0)], ids=["too few", "too many"])
def test_values_of_the_wrong_number_are_refused_for_any_end(state: TrialState, values: tuple[float, ...]) -> None:
    scribe = Scribe()
    scribe.start("ann")
    assert scribe.say("ann", TrialFinish(0, 1, state, values)).refusal == "malformed"
    assert scribe.say("ann", TrialCreate(state, values=values)).refusal == "malformed"


@pytest.mark.parametrize("state", [RUNNING, WAITING])
def test_a_finish_that_does_not_end_anything_is_refused(scribe: Scribe, state: TrialState) -> None:
    scribe.start("ann")
    assert scribe.say("ann", TrialFinish(0, 1, state)).refusal == "malformed"


@pytest.mark.parametrize("kind", TRIAL_RECORDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("number", [-1, 1, 1 << 40])
def test_a_trial_that_was_never_allotted_is_no_such_trial(scribe: Scribe, kind: type, number: int) -> None:
    scribe.start("ann")
    full = {
        TrialClaim: (number,),
        TrialFinish: (number, 1, FAIL),
        TrialTakeOver: (number, 1, FAIL),
        TrialCheckpoint: (number, 1, SAVED),
    }
    record = kind(*full.get(kind, (number, 1)))
    assert scribe.say("ann", record).refusal == "no such trial"


# --- release, stop -----------------------------------------------------------------------------------------------


def test_a_released_trial_waits_with_its_parameters_and_without_its_reports(scribe: Scribe) -> None:
    trial = scribe.start("ann", params={"x": 0.5}, dists={"x": X}, reports={1: 2.0}, user={"u": "1"})
    scribe.say("ann", TrialRelease(0, 1, reason="pre-empted"))
    assert (trial.state, trial.owner, trial.params, trial.reports) == (WAITING, None, {"x": 0.5}, {})
    assert [(t.owner, t.epoch, t.why) for t in trial.history] == [("ann", 1, "pre-empted")]
    assert scribe.claim("bob", 0).epoch == 2


def test_a_trial_released_for_good_fails_and_is_not_counted_as_the_objectives_fault() -> None:
    scribe = Scribe(defined(max_failures=1))
    trial = scribe.start("ann")
    scribe.say("ann", TrialRelease(0, 1, fail=True, reason="no memory"))
    assert (trial.state, trial.reason) == (FAIL, "no memory")
    assert scribe.say("ann", TrialCreate()).accepted


def test_a_trial_that_was_asked_to_stop_is_pruned_when_its_owner_is_preempted(scribe: Scribe) -> None:
    trial = scribe.start("ann", reports={1: 2.0})
    scribe.say("founder", TrialStop(0, 1, "diverged"))
    scribe.say("ann", TrialRelease(0, 1, reason="pre-empted"))
    assert (trial.state, trial.reason, trial.values, trial.owner) == (PRUNED, "diverged", (2.0,), "ann")
    assert not scribe.state.waiting


def test_a_release_gives_the_place_in_the_budget_back() -> None:
    scribe = Scribe(defined(budget=1))
    scribe.start("ann")
    scribe.say("ann", TrialRelease(0, 1))
    assert scribe.start("bob", prefer_waiting=True).number == 0


def test_a_stop_names_the_lease_it_means(scribe: Scribe) -> None:
    trial = scribe.start("ann")
    scribe.say("ann", TrialRelease(0, 1))
    scribe.claim("bob", 0)
    assert scribe.say("founder", TrialStop(0, 1, "hopeless")).refusal == "fenced"
    assert trial.stop is None
    assert scribe.say("founder", TrialStop(0, 2, "hopeless")).accepted
    assert trial.stop == "hopeless"


def test_a_stop_ends_with_the_lease() -> None:
    for ending in (TrialFinish(0, 1, PRUNED), TrialRelease(0, 1)):
        scribe = Scribe()
        trial = scribe.start("ann")
        scribe.say("founder", TrialStop(0, 1))
        assert trial.stop
        scribe.say("ann", ending)
        assert trial.stop is None


# --- failures ----------------------------------------------------------------------------------------------------


def test_failures_in_a_row_end_a_campaign_and_resuming_begins_anew() -> None:
    scribe = Scribe(defined(max_failures=2))
    for _ in range(2):
        trial = scribe.start("ann")
        scribe.say("ann", TrialFinish(trial.number, 1, FAIL))
    assert scribe.say("bob", TrialCreate()).refusal == "failing"
    assert finished(scribe.state)
    scribe.say("founder", StudyControl("running"))
    assert scribe.say("bob", TrialCreate()).accepted


@pytest.mark.parametrize("success", [COMPLETE, PRUNED])
def test_a_success_between_failures_starts_the_count_again(success: TrialState) -> None:
    scribe = Scribe(defined(max_failures=2))
    for state in (FAIL, success, FAIL):
        trial = scribe.start("ann")
        scribe.say("ann", TrialFinish(trial.number, 1, state, (1.0,) if state is COMPLETE else None))
    assert scribe.say("ann", TrialCreate()).accepted


def test_a_trial_that_was_taken_away_is_no_failure_of_the_objective() -> None:
    scribe = Scribe(defined(max_failures=1))
    scribe.start("ann")
    scribe.say("bob", TrialReclaim(0, 1))
    assert scribe.state.failures_in_a_row == 0


# --- reclaim, retry ----------------------------------------------------------------------------------------------


def test_a_reclaimed_trial_fails_and_waits_again_with_the_same_parameters(scribe: Scribe) -> None:
    lost = scribe.start("ann", params={"x": 0.5}, dists={"x": X}, reports={1: 2.0}, user={"u": "1"})
    scribe.say("bob", TrialReclaim(0, 1, "silent"))
    retry = scribe.state.trials[1]
    assert (lost.state, lost.reason, lost.epoch, lost.retried_by) == (FAIL, "silent", 2, 1)
    assert (retry.state, retry.params, retry.reports, retry.user) == (WAITING, {"x": 0.5}, {}, {"u": "1"})
    assert (retry.attempt, retry.retry_of) == (2, 0)
    assert retry.system == {"failed_trial": "0", "retry_history": "[0]"}


def test_retries_end_with_the_attempts() -> None:
    scribe = Scribe(defined(attempts=2))
    scribe.start("ann")
    scribe.say("bob", TrialReclaim(0, 1))
    scribe.claim("ann", 1)
    scribe.say("bob", TrialReclaim(1, 1))
    assert len(scribe.state.trials) == 2
    assert scribe.state.waiting == {}


def test_the_history_of_retries_names_them_all() -> None:
    scribe = Scribe(defined(attempts=3))
    scribe.start("ann")
    scribe.say("bob", TrialReclaim(0, 1))
    scribe.claim("ann", 1)
    scribe.say("bob", TrialReclaim(1, 1))
    assert scribe.state.trials[2].system == {"failed_trial": "0", "retry_history": "[0,1]"}


def test_of_two_reclaims_the_second_is_fenced(scribe: Scribe) -> None:
    scribe.start("ann")
    assert scribe.say("bob", TrialReclaim(0, 1)).accepted
    assert scribe.say("eve", TrialReclaim(0, 1)).refusal == "not running"
    assert len(scribe.state.trials) == 2


def test_a_zombies_reports_are_refused(scribe: Scribe) -> None:
    lost = scribe.start("ann")
    scribe.say("bob", TrialReclaim(0, 1))
    assert scribe.say("ann", TrialSet(0, 1, reports={1: 1.0})).refusal == "fenced"
    assert lost.reports == {}


def test_an_interrupted_trial_may_count_as_pruned_at_its_last_report() -> None:
    scribe = Scribe(defined(attempts=1, interrupted="prune"))
    trial = scribe.start("ann", reports={1: 2.0, 5: 3.0})
    scribe.say("bob", TrialReclaim(0, 1))
    assert (trial.state, trial.values) == (PRUNED, (3.0,))


def test_a_retry_begins_with_the_checkpoints_and_the_reports_before_them(scribe: Scribe) -> None:
    scribe.start("ann", reports={0: 1.0, 1: 2.0, 2: 3.0})
    scribe.say("ann", TrialCheckpoint(0, 1, SAVED))
    scribe.say("bob", TrialReclaim(0, 1))
    assert scribe.state.trials[1].checkpoints == (SAVED,)
    assert scribe.state.trials[1].reports == {0: 1.0, 1: 2.0}


# --- drain -------------------------------------------------------------------------------------------------------


def test_a_drained_peer_gets_no_trial_and_keeps_the_one_it_has(scribe: Scribe) -> None:
    trial = scribe.start("ann")
    scribe.say("founder", PeerDrain(peer="ann"))
    assert scribe.say("ann", TrialCreate()).refusal == "draining"
    assert scribe.say("bob", TrialCreate()).accepted
    assert scribe.finish("ann", trial).accepted
    scribe.say("founder", PeerDrain(peer="ann", off=True))
    assert scribe.say("ann", TrialCreate()).accepted


def test_a_site_is_drained_as_a_whole(scribe: Scribe) -> None:
    scribe.say("ann", PeerJoin({"site": "here"}))
    scribe.say("bob", PeerJoin({"site": "there"}))
    scribe.say("carl", PeerJoin({}))
    for site in ("here", "None"):  # carl has none
        scribe.say("founder", PeerDrain(site=site))
    assert scribe.say("ann", TrialCreate()).refusal == "draining"
    for peer in ("bob", "carl"):
        assert scribe.say(peer, TrialCreate()).accepted


# --- late results ------------------------------------------------------------------------------------------------


def lost_trial(scribe: Scribe) -> Trial:
    """Trial 0, asked by ann with a parameter and a report, taken away by bob; trial 1 is its retry."""
    trial = scribe.start("ann", params={"x": 0.5}, dists={"x": X}, reports={1: 2.0})
    scribe.say("bob", TrialReclaim(trial.number, 1))
    return trial


def test_a_zombies_finish_becomes_a_late_trial_and_its_waiting_retry_is_withdrawn(scribe: Scribe) -> None:
    lost = lost_trial(scribe)
    verdict = scribe.finish("ann", lost, 7.0, epoch=1)
    late, retry = scribe.state.trials[2], scribe.state.trials[1]
    assert verdict == Verdict(False, 2, "late")
    assert (late.state, late.values, late.late_of, late.params, late.reports) == (
        COMPLETE,
        (7.0,),
        0,
        {"x": 0.5},
        {1: 2.0},
    )
    assert late.system["late_of"] == "0"
    assert (retry.state, retry.reason) == (FAIL, "withdrawn: #0 came back")
    assert lost.state is FAIL
    assert lost.history[0].kept_as == 2


def test_what_comes_with_a_late_result_is_kept_with_it(scribe: Scribe) -> None:
    lost = lost_trial(scribe)
    unsent = TrialSet(0, 1, {"y": 0.25}, {"y": X}, {2: 3.0}, {"u": "1"})
    impossible = TrialSet(0, 1, {"z": 0.25}, {"z": Float(1.0, 0.0)})
    others = TrialSet(0, 2, {}, {}, {9: 9.0})
    scribe.say("ann", unsent, impossible, others, TrialFinish(0, 1, COMPLETE, (7.0,)))
    late = scribe.state.trials[2]
    assert (late.params, late.reports, late.user) == ({"x": 0.5, "y": 0.25}, {1: 2.0, 2: 3.0}, {"u": "1"})
    assert (lost.params, lost.reports, lost.user) == ({"x": 0.5}, {1: 2.0}, {})


def test_a_second_late_finish_of_the_same_lease_is_refused_and_names_the_first(scribe: Scribe) -> None:
    lost = lost_trial(scribe)
    scribe.finish("ann", lost, epoch=1)
    assert scribe.finish("ann", lost, 9.0, epoch=1) == Verdict(False, 2, "finished")
    assert len(scribe.state.trials) == 3


def test_a_retry_that_runs_goes_on_while_there_is_room() -> None:
    scribe = Scribe(defined(budget=2))
    lost = lost_trial(scribe)
    retry = scribe.claim("bob", 1)
    assert scribe.finish("ann", lost, epoch=1).refusal == "late"
    assert retry.state is RUNNING
    assert scribe.finish("bob", retry).accepted
    assert scribe.state.used() == 2


def test_a_retry_that_runs_is_displaced_when_the_budget_is_full() -> None:
    scribe = Scribe(defined(budget=1))
    lost = lost_trial(scribe)
    retry = scribe.claim("bob", 1)
    assert scribe.finish("ann", lost, epoch=1) == Verdict(False, 2, "late")
    assert (retry.state, retry.epoch) == (FAIL, 2)
    assert scribe.state.trials[2].state is COMPLETE
    assert scribe.state.used() == 1


def test_a_displaced_retrys_own_result_is_kept_beside_the_budget() -> None:
    scribe = Scribe(defined(budget=1))
    lost = lost_trial(scribe)
    retry = scribe.claim("bob", 1)
    scribe.finish("ann", lost, epoch=1)
    verdict = scribe.finish("bob", retry, 8.0, epoch=1)
    assert verdict == Verdict(False, 3, "late")
    kept = scribe.state.trials[3]
    assert (kept.state, kept.system["hopaas:late_values"]) == (FAIL, "[8.0]")


def test_a_late_result_without_room_is_kept_as_a_failed_trial() -> None:
    scribe = Scribe(defined(budget=1))
    lost = lost_trial(scribe)
    retry = scribe.claim("bob", 1)
    scribe.finish("bob", retry)
    assert scribe.finish("ann", lost, 7.0, epoch=1) == Verdict(False, 2, "late")
    kept = scribe.state.trials[2]
    assert (kept.state, kept.values, kept.system["hopaas:late_values"]) == (FAIL, None, "[7.0]")
    assert scribe.state.used() == 1


def test_a_retry_of_a_retry_that_still_waits_is_withdrawn_too(scribe: Scribe) -> None:
    lost = lost_trial(scribe)
    scribe.claim("bob", 1)
    scribe.say("eve", TrialReclaim(1, 1))
    scribe.finish("ann", lost, epoch=1)
    assert scribe.state.trials[2].state is FAIL
    assert not scribe.state.waiting


def test_a_late_result_of_an_owner_that_released_is_kept(scribe: Scribe) -> None:
    trial = scribe.start("ann")
    scribe.say("ann", TrialRelease(0, 1))
    scribe.claim("bob", 0)
    assert scribe.finish("ann", trial, epoch=1) == Verdict(False, 1, "late")
    assert trial.owner == "bob"


@pytest.mark.parametrize("state", [PRUNED, FAIL])
def test_only_a_complete_result_is_kept_late(scribe: Scribe, state: TrialState) -> None:
    lost_trial(scribe)
    assert scribe.say("ann", TrialFinish(0, 1, state)).refusal == "fenced"
    assert len(scribe.state.trials) == 2


def test_a_stranger_cannot_bring_a_late_result(scribe: Scribe) -> None:
    lost_trial(scribe)
    assert scribe.say("eve", TrialFinish(0, 1, COMPLETE, (1.0,))).refusal == "fenced"


def test_a_late_result_drops_the_kept_snapshot_block_of_the_trial_it_touches(scribe: Scribe) -> None:
    lost = lost_trial(scribe)
    scribe.say("bob", *[TrialCreate(COMPLETE, values=(1.0,)) for _ in range(1200)])
    scribe.claim("bob", 1)
    scribe.say("bob", TrialFinish(1, 1, PRUNED))
    snapshot.dump(scribe.state)
    assert 0 in scribe.state.trials.closed
    scribe.finish("ann", lost, epoch=1)
    kept_as = scribe.state.trials[0].history[0].kept_as
    assert clone(scribe.state).trials[0].history[0].kept_as == kept_as == 1202


# --- the budget --------------------------------------------------------------------------------------------------


def test_the_budget_is_exact_and_a_failure_gives_its_place_back() -> None:
    scribe = Scribe(defined(budget=2))
    one, two = scribe.start("ann"), scribe.start("bob")
    assert scribe.say("eve", TrialCreate()).refusal == "budget"
    scribe.say("ann", TrialFinish(one.number, 1, FAIL))
    three = scribe.start("eve")
    scribe.finish("bob", two)
    scribe.say("eve", TrialFinish(three.number, 1, PRUNED))
    assert scribe.say("ann", TrialCreate()).refusal == "budget"
    assert finished(scribe.state)


@pytest.mark.parametrize("state", [COMPLETE, PRUNED])
def test_neither_an_import_nor_a_waiting_trial_told_by_hand_exceeds_the_budget(state: TrialState) -> None:
    scribe = Scribe(defined(budget=1))
    scribe.enqueue_trial()
    values = (1.0,) if state is COMPLETE else None
    scribe.start("ann")
    assert scribe.say("ann", TrialCreate(state, values=values)).refusal == "budget"
    assert scribe.say("ann", TrialFinish(0, 0, state, values)).refusal == "budget"
    assert scribe.say("ann", TrialFinish(0, 0, FAIL)).accepted


def test_a_failed_trial_can_always_be_imported() -> None:
    scribe = Scribe(defined(budget=0))
    assert scribe.say("ann", TrialCreate(FAIL)).accepted


# --- duplicates --------------------------------------------------------------------------------------------------


def test_an_older_commit_of_the_same_writer_is_a_duplicate_without_a_verdict(scribe: Scribe) -> None:
    scribe.say("ann", TrialCreate(), seq=2)
    commit = Commit("ann", 1, "ann", 0, (TrialCreate(),))
    assert scribe.append(commit) == ()
    assert len(scribe.state.trials) == 1


def test_the_same_seq_of_two_writers_are_two_commits(scribe: Scribe) -> None:
    scribe.say("ann", TrialCreate(), seq=7)
    scribe.say("bob", TrialCreate(), seq=7)
    assert len(scribe.state.trials) == 2


def test_one_refused_record_takes_no_other_with_it(scribe: Scribe) -> None:
    commit = Commit("ann", 1, "ann", 0, (TrialClaim(9), TrialCreate(), TrialFinish(0, 5, FAIL)))
    assert [v.accepted for v in scribe.append(commit)] == [False, True, False]


def test_every_refusal_is_counted_under_its_word(scribe: Scribe) -> None:
    scribe.start("ann")
    for record in (TrialClaim(0), TrialClaim(9), TrialSet(0, 9), TrialFinish(0, 1, RUNNING)):
        scribe.say("bob", record)
    assert scribe.state.refusals == {"not waiting": 1, "no such trial": 1, "fenced": 1, "malformed": 1}


def test_every_word_that_apply_uses_is_explained() -> None:
    scribe = Scribe(defined(budget=0))
    words = {scribe.say("a", TrialCreate()).refusal, scribe.say("a", TrialClaim(0)).refusal}
    assert words <= set(REFUSALS)
    assert all(REFUSALS[word] for word in itertools.chain(REFUSALS))
