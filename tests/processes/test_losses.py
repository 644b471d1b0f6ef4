"""What happens before a record reaches the log and after it leaves it: nothing is lost on the way in or out."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import ctypes
import errno
import gc
import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p import spool
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudySet, TrialCreate, TrialReclaim
from hopaas_p2p.errors import (
    BrokenChain,
    ConfigurationError,
    Denied,
    HopaasError,
    LeaseLost,
    StoreCorrupt,
    StoreUnreachable,
)
from hopaas_p2p.peer import caller as caller_module
from hopaas_p2p.peer import peer as peer_module
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.runtime import process
from hopaas_p2p.storage.handle import StudyHandle
from hopaas_p2p.storage.optuna_internals import pickle_prefixes
from hopaas_p2p.stores.base import ExchangeResult, Outgoing
from hopaas_p2p.stores.memory import MemoryStore
from hopaas_p2p.stores.objects.log import WriteOnceLog
from hopaas_p2p.study import Study
from hopaas_p2p.study.audit import audit
from hopaas_p2p.testing.commits import everything
from tests.support.lease_peer import store_away
from tests.support.processes import environment, script, until
from tests.support.scribe import defined
from tests.support.served import WAYS, each_way, reached
from tests.support.studies import copy_store, opened_study, remove_store
from tests.support.ticking import tick

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
SPACE = {"x": hopaas_p2p.Float(0, 1)}
SPACE_OF_OPTUNA = {"x": optuna.distributions.FloatDistribution(0, 1)}


def plain(study: Study) -> optuna.Study:
    """The same study as somebody sees it who only gives our storage to Optuna."""
    return optuna.load_study(study_name=study.name, storage=study.storage, sampler=study.sampler, pruner=study.pruner)


@pytest.fixture(autouse=True)
def own_spool(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    """A spool of each test's own, both places of it. The store is made before: its server may be another user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(spool, "LASTING", str(tmp_path / "lasting"))
    (tmp_path / "lasting").mkdir()


@pytest.fixture
def store(request: pytest.FixtureRequest) -> str:
    return reached(request)


@pytest.fixture
def studies(store: str) -> Iterator[Callable[..., Study]]:
    """Peers of one study."""
    opened: list[Study] = []

    def join(**options: Any) -> Study:
        opened.append(opened_study(store, "s", space=SPACE, **options))
        return opened[-1]

    yield join
    for study in opened:
        study.close()


@pytest.fixture
def study(studies: Callable[..., Study]) -> Study:
    return studies()


def in_child(work: Callable[[], object]) -> int:
    """Do this in a fork, which ends as C programs do; its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  # the parent sees the code
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def state_of(study: Study, number: int) -> str:
    return study.state.trials[number].state.name


# --- 1: a fork with a spooled result -----------------------------------------------------------------------------


def test_a_child_that_is_forked_while_a_tracker_looks_at_the_study_looks_at_it_too(
    studies: Callable[..., Study],
) -> None:
    study = studies(repeats="reuse")
    assert not study.is_over()

    def look() -> None:
        signal.alarm(5)
        assert not study.is_over()

    proposer = study._proposer
    assert proposer is not None
    with proposer._lock:  # as held by the tracker's thread, which the child does not have
        assert in_child(look) == 0


@pytest.mark.path
def test_a_child_leaves_a_result_that_its_parent_spooled_where_it_is(studies: Callable[..., Study]) -> None:
    study = studies(patience=0.0)
    trial = study.ask()
    study.storage.flush()
    away = store_away()
    away.__enter__()
    study.tell(trial, 0.5)
    assert len(list(spool.waiting())) == 1

    def read_once_the_store_is_back() -> None:
        away.__exit__(None, None, None)
        assert len(study.trials) == 1
        study.storage.flush()

    code = in_child(read_once_the_store_is_back)
    kept = list(spool.waiting())
    away.__exit__(None, None, None)

    assert code == 0
    assert len(kept) == 1, "the child had nothing of it to send, and so nothing to acknowledge"
    other = studies()
    tick(other.storage.peer)
    assert state_of(other, 0) == "COMPLETE"


# --- 2: ask here, train there, tell here -------------------------------------------------------------------------


def _train(trial: optuna.Trial) -> float:
    y = trial.suggest_float("y", 0.0, 1.0)
    trial.set_user_attr("where", "child")
    for step in range(5):
        trial.report(y + step, step)
    return y


def _train_and_send(trial: optuna.Trial, pipe: Any) -> None:
    pipe.send(_train(trial))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_a_trial_that_was_trained_in_a_child_has_all_that_the_child_said(
    studies: Callable[..., Study], method: str, kind: str
) -> None:
    study = studies(linger=3600.0)
    asking: Any = study if kind == "ours" else plain(study)
    trial = asking.ask()
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_train_and_send, args=(trial, theirs))  # type: ignore[attr-defined]
    child.start()
    value = ours.recv()
    asking.tell(trial, value)
    child.join(60)

    told = studies().trials[0]
    assert told.state is optuna.trial.TrialState.COMPLETE
    assert told.params["y"] == value
    assert told.intermediate_values == {step: value + step for step in range(5)}
    assert told.user_attrs == {"where": "child"}


@pytest.mark.parametrize("sent", ["at once", "later"])
@pytest.mark.parametrize("left", ["a checkpoint", "nothing"])
def test_the_processes_that_train_a_retried_trial_leave_each_others_reports(
    studies: Callable[..., Study], left: str, sent: str
) -> None:
    study, other = studies(linger=3600.0), studies(linger=3600.0)
    first = study.ask()
    if left == "a checkpoint":
        first.report(-1.0, 0)
        first.report(-1.0, 9)
        first.checkpoint(b"weights", step=9)
    other.handle.say(TrialReclaim(0, 1))
    trial = other.ask()
    assert trial.attempt == 2
    for step in range(0, 9, 3):
        trial.report(float(step), step)
        if sent == "at once":
            other.storage.flush()

        def train(step: int = step) -> None:
            for after in (step + 1, step + 2):
                trial.report(float(after), after)
            trial.storage.flush()

        assert in_child(train) == 0
    trial.report(9.0, 9)
    other.tell(trial, 0.5)
    assert study.trials[trial.number].intermediate_values == {step: float(step) for step in range(10)}


@each_way
def test_a_child_that_is_forked_when_its_parent_has_resumed_keeps_what_it_reports(
    studies: Callable[..., Study],
) -> None:
    study, other = studies(linger=3600.0), studies(linger=3600.0)
    first = study.ask()
    for step in range(4):
        first.report(-1.0, step)
    first.checkpoint(b"weights", step=1)
    other.handle.say(TrialReclaim(0, 1))
    trial = other.ask()
    assert trial.resume is not None

    def train() -> None:
        for step in (2, 3):
            trial.report(float(step), step)
        trial.storage.flush()

    assert in_child(train) == 0
    trial.report(4.0, 4)
    other.tell(trial, 0.5)
    assert studies().trials[trial.number].intermediate_values == {0: -1.0, 1: -1.0, 2: 2.0, 3: 3.0, 4: 4.0}


def test_a_process_that_had_a_trial_before_it_was_released_reports_under_the_new_lease(
    studies: Callable[..., Study],
) -> None:
    """As a worker of a process pool does, which stays; here it is a copy in this process."""
    study = studies(linger=3600.0)
    copies = []
    for value in (1.0, 2.0):
        trial = study.ask()
        assert trial.number == 0
        copies.append(pickle.loads(pickle.dumps(trial)))
        copies[-1].report(value, int(value))
        if value == 1.0:
            study.handle.release(trial.number)
    study.tell(trial, 0.5)
    assert studies().trials[0].intermediate_values == {2: 2.0}
    copies[0].storage.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_trial_that_was_trained_in_a_process_pool_is_pruned_at_the_last_report_of_the_child(
    studies: Callable[..., Study], method: str
) -> None:
    study = studies(linger=3600.0)
    trials = [study.ask() for _ in range(3)]
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        values = list(pool.map(_train, trials))
        for trial in trials:
            study.tell(trial, state="pruned")
    told = studies().trials
    assert [trial.values for trial in told] == [[value + 4] for value in values]
    assert all(len(trial.intermediate_values) == 5 for trial in told)


ALONE = """
import multiprocessing, sys

kept = []

def work(store):
    import hopaas_p2p
    study = hopaas_p2p.open_study(hopaas_p2p.open_storage(store, create=False, linger=3600.0), "s", create=False)
    trial = study.ask()
    trial.report(0.5, 1)
    kept.append(trial)

if __name__ == "__main__":
    child = multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(sys.argv[2],))
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_what_a_child_with_a_study_of_its_own_said_is_in_the_store_when_it_ends(
    study: Study, tmp_path: Path, method: str
) -> None:
    program = tmp_path / "alone.py"
    program.write_text(ALONE)
    subprocess.run([sys.executable, program, method, tmp_path / "store"], check=True, timeout=60, env=environment())
    said = [(line["kind"], line["detail"]) for line in audit(study)]
    assert said[-2:] == [("trial.set", "1 report"), ("trial.release", said[-1][1])]
    assert state_of(study, 0) == "WAITING"


def test_a_child_whose_token_expires_goes_on_with_its_training(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object, **__: object) -> None:
        raise Denied

    study = studies()
    trial = study.ask()
    lent = pickle.loads(pickle.dumps(trial))  # as a process pool does; here it stays in this process
    lent.report(0.0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(WriteOnceLog, "exchange", deny)
        for step in range(1, 3):
            lent.report(float(step), step)
            assert not lent.should_prune()
    lent.storage.flush()
    study.tell(trial, 0.5)
    assert studies().trials[0].intermediate_values == {step: float(step) for step in range(3)}
    lent.storage.close()


def test_a_child_that_met_an_outage_has_sent_everything_when_its_next_report_returns(
    study: Study, studies: Callable[..., Study]
) -> None:
    trial = study.ask()
    lent = pickle.loads(pickle.dumps(trial))  # as a process pool does; here it stays in this process
    lent.storage.peer.jobs.stop(within=10.0)
    lent.report(0.0, 0)
    with store_away():
        lent.report(1.0, 1)
        lent.report(2.0, 2)
    lent.report(3.0, 3)
    study.tell(trial, 0.5)
    assert studies().trials[0].intermediate_values == {step: float(step) for step in range(4)}
    lent.storage.close()


@pytest.mark.parametrize("seen", ["seen before", "seen after"])
def test_a_result_of_a_trial_that_was_lost_before_the_child_wrote_anything_is_kept_as_a_late_one(
    studies: Callable[..., Study], seen: str
) -> None:
    """As in a process pool, where a task waits, or trains for hours without a report; here it stays in this process."""
    study = studies()
    text = pickle.dumps(study.ask())
    lent = pickle.loads(text) if seen == "seen before" else None
    study.requeue(0)
    lent = lent or pickle.loads(text)
    assert lent.should_prune()
    lent.report(0.25, 1)
    with pytest.raises(LeaseLost) as lost:
        lent.study.tell(lent, 0.5)
    trials = studies().trials
    kept = trials[lost.value.kept_as]
    assert (kept.value, kept.intermediate_values, kept.system_attrs["late_of"]) == (0.5, {1: 0.25}, 0)
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "COMPLETE"]
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        lent.study.tell(lent, 0.75)
    lent.storage.close()


# --- 3 and 4: readers that share what they must not ----------------------------------------------------------------


@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy])
def test_copies_of_a_storage_in_one_process_read_each_for_itself(study: Study, copied: Callable[[Any], Any]) -> None:
    first, second = copied(study.storage), copied(study.storage)
    for number in range(3):
        assert [len(one.get_all_trials(study.study_id, deepcopy=False)) for one in (first, second)] == [number] * 2
        study.tell(study.ask(), float(number))
        for one in (first, second):
            (*_, last) = one.get_all_trials(study.study_id, deepcopy=False)
            assert (last.number, last.state.name, last.value) == (number, "COMPLETE", float(number))


def test_a_copy_that_is_closed_does_not_close_the_others(study: Study) -> None:
    first, second = pickle.loads(pickle.dumps(study.storage)), pickle.loads(pickle.dumps(study.storage))
    assert first.peer is second.peer
    first.close()
    trial_id = second.create_new_trial(study.study_id)
    second.set_trial_state_values(trial_id, optuna.trial.TrialState.COMPLETE, [1.0])
    assert state_of(study, 0) == "COMPLETE"
    second.close()
    third = pickle.loads(pickle.dumps(study.storage))
    assert third.peer is not first.peer, "one that is closed keeps no lease alive"
    third.close()


def test_a_caller_may_do_what_it_likes_with_the_list_of_trials(study: Study) -> None:
    for value in (3.0, 1.0, 2.0):
        study.tell(study.ask(), value)
    for states in (None, (optuna.trial.TrialState.COMPLETE,), tuple(optuna.trial.TrialState)):
        got = study.storage.get_all_trials(study.study_id, deepcopy=False, states=states)
        got.sort(key=lambda trial: -(trial.value or 0.0))
        got.pop()
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert study.best_trial.number == 1


def test_optunas_brute_force_sampler_tries_each_point_once(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(tmp_path)
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.BruteForceSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_int("n", 0, 4))
    assert sorted(trial.params["n"] for trial in study.trials) == [0, 1, 2, 3, 4]
    assert study.best_value == 0
    storage.close()


# --- 5: a late result is whole -----------------------------------------------------------------------------------


def test_a_late_result_has_what_was_reported_when_the_outage_began(studies: Callable[..., Study]) -> None:
    study, other = studies(patience=0.0), studies()
    trial = study.ask()
    study.storage.flush()
    for one in (study, other):
        one.storage.peer.jobs.stop(within=10.0)  # neither sends it, nor what is in the spool, by itself
    with store_away():
        trial.suggest_float("y", 0.0, 1.0)
        trial.report(0.1, 1)
        with pytest.raises(StoreUnreachable):
            study.storage.flush()  # as the scheduler does when reports are due: their fate is unknown from now on
        trial.report(0.2, 2)
        trial.set_user_attr("note", "kept")
        study.tell(trial, 0.5)
    other.handle.say(TrialReclaim(0, 1))
    study.storage.flush()

    late = next(trial for trial in other.trials if trial.value == 0.5)
    assert late.system_attrs["late_of"] == 0
    assert late.params.keys() == {"x", "y"}
    assert late.intermediate_values == {1: 0.1, 2: 0.2}
    assert late.user_attrs == {"note": "kept"}


@each_way
def test_a_late_result_keeps_its_parameters_and_reports_beside_a_lot_of_text(studies: Callable[..., Study]) -> None:
    study, other = studies(patience=0.0), studies()
    trial = study.ask()
    other.handle.say(TrialReclaim(0, 1))
    trial.report(0.1, 1)
    for part in range(3):
        trial.set_user_attr(f"text {part}", "x" * 400_000)
    with pytest.raises(hopaas_p2p.errors.LeaseLost) as lost:
        study.tell(trial, 0.5)
    late = studies().trials[lost.value.kept_as or 0]
    assert late.params.keys() == {"x"}
    assert late.intermediate_values == {1: 0.1}


# --- 6: two processes with one identity --------------------------------------------------------------------------


@pytest.mark.parametrize("store", WAYS[:3], indirect=True)  # a fork in C with a server's thread in it may hang
def test_a_process_forked_in_c_is_a_peer_of_its_own(study: Study, studies: Callable[..., Study]) -> None:
    study.tell(study.ask(), 0.0)
    mine, childs = study.ask(), study.ask()
    study.storage.flush()
    pid = ctypes.PyDLL(None).fork()  # with the interpreter's lock, which the child could else not take any more
    if pid == 0:
        try:
            study.tell(childs, 2.0)
            study.tell(study.ask(), 3.0)
        except BaseException:  # noqa: BLE001
            os._exit(1)
        os._exit(0)
    study.tell(mine, 1.0)
    study.tell(study.ask(), 4.0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sorted(trial.value for trial in studies().trials if trial.value is not None) == [0.0, 1.0, 2.0, 3.0, 4.0]


def twins() -> tuple[MemoryStore, list[Peer]]:
    """Two peers of one identity, as when the image of a machine was started twice."""
    store = MemoryStore()
    founder = Commit("founder", 1, "founder", 0, (defined(),))
    store.log("study").exchange(Outgoing("f", codec.encode(founder)), 0)
    return store, [Peer(store, threaded=False, describe=dict, uuid="twin") for _ in range(2)]


def test_of_two_peers_with_one_identity_each_commit_counts() -> None:
    store, peers = twins()
    logs = [peer.log("study") for peer in peers]
    for turn in range(3):
        for name, peer, log in zip("ab", peers, logs, strict=True):
            peer.commit(log, StudySet(user={f"{name}{turn}": "1"}))
    (number,) = [verdict.number for verdict in peers[1].commit(logs[1], TrialCreate())]
    logs[0].exchange()

    assert logs[0].state.user.keys() == {"a0", "b0", "a1", "b1", "a2", "b2"}
    assert peers[1].uuid != "twin"
    assert logs[0].state.trials[number or 0].owner == peers[1].uuid
    commits = [codec.decode(entry.payload) for entry in everything(store.log("study"))]
    assert peers[0].uuid == "twin"
    assert {getattr(commit, "writer", None) for commit in commits} == {"founder", "twin", peers[1].uuid}
    for peer in peers:
        peer.close()


def test_a_twin_that_was_away_notices_by_the_others_number_that_it_is_one() -> None:
    _, peers = twins()
    logs = [peer.log("study") for peer in peers]
    peers[0].commit(logs[0], StudySet(user={"a": "1"}))
    peers[1].pull(logs[1])  # reads a commit of its own name that it did not send
    assert peers[1].uuid != "twin"
    peers[1].commit(logs[1], StudySet(user={"b": "1"}))
    assert logs[1].state.user.keys() == {"a", "b"}
    for peer in peers:
        peer.close()


def test_a_twin_that_has_something_to_send_sends_it_once_and_under_another_name() -> None:
    store, peers = twins()
    logs = [peer.log("study") for peer in peers]
    peers[0].commit(logs[0], StudySet(user={"a": "1"}))
    peers[0].commit(logs[0], StudySet(user={"a": "2"}))
    started = peers[1].commit(logs[1], TrialCreate())  # its first look at the log is an exchange that would append
    assert [verdict.number for verdict in started] == [0]
    logs[0].exchange()
    assert [trial.owner for trial in logs[0].state.trials] == [peers[1].uuid]
    sent = [codec.decode(entry.payload) for entry in everything(store.log("study"))]
    assert {one.writer for one in sent if isinstance(one, Commit)} == {"founder", "twin", peers[1].uuid}
    assert "duplicate" not in logs[0].state.refusals
    for peer in peers:
        peer.close()


# --- 7: the operating system fails -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["checkpoint", "upload", "get", "attributes"])
def test_a_process_without_a_descriptor_left_is_told_to_try_again(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    trial, failed = study.ask(), []
    kept = trial.upload(tmp_path / "file")
    calls: dict[str, Callable[[], object]] = {
        "checkpoint": lambda: trial.checkpoint(b"weights", step=1),
        "upload": lambda: trial.upload(tmp_path / "file"),
        "get": lambda: study.artifacts().get(kept, tmp_path / "copy"),
        "attributes": lambda: study.storage.set_trial_system_attr(trial.id, "a:b", 1),
    }
    if call == "attributes":
        pickle_prefixes.cache_clear()

    def once(real: Callable[..., Any]) -> Callable[..., Any]:
        def fails_at_first(*arguments: Any, **named: Any) -> Any:
            if not failed:
                failed.append(real)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return real(*arguments, **named)

        return fails_at_first

    monkeypatch.setattr("hashlib.file_digest", once(hashlib.file_digest))
    monkeypatch.setattr(Path, "read_text", once(Path.read_text))
    if call == "checkpoint":  # which waits by itself
        calls[call]()
        assert study.state.trials[0].checkpoints[-1].step == 1
    else:
        with pytest.raises(StoreUnreachable, match="Too many open files"):
            calls[call]()
        calls[call]()
    assert failed


def test_a_first_checkpoint_waits_until_there_are_descriptors_again(tmp_path: Path) -> None:
    program = """
        import os, resource, sys, threading
        import hopaas_p2p
        trial = hopaas_p2p.open_study(sys.argv[1], "s").ask()
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        threading.Timer(1.0, resource.setrlimit, (resource.RLIMIT_NOFILE, before)).start()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        trial.checkpoint(b"weights", step=1)
    """
    subprocess.run([*script(tmp_path, program), str(tmp_path / "store")], check=True, env=environment())
    study = opened_study(str(tmp_path / "store"), "s")
    assert [one.step for one in study.state.trials[0].checkpoints] == [1]


def test_a_program_that_has_imported_us_still_chooses_its_folder_for_temporary_files(tmp_path: Path) -> None:
    program = """
        import os, sys, tempfile
        from hopaas_p2p import Float, open_study
        os.environ["TMPDIR"] = sys.argv[1]
        assert tempfile.gettempdir() == sys.argv[1]
    """
    subprocess.run([*script(tmp_path, program), str(tmp_path)], check=True, env=environment())


CODES = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EDQUOT, errno.ESTALE, errno.EROFS]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_an_error_of_the_system_in_a_store_loses_no_result(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    study = studies(patience=0.0)
    trial = study.ask()
    with monkeypatch.context() as patch:
        patch.setattr(WriteOnceLog, "exchange", fail)
        study.tell(trial, 0.5)
        assert len(list(spool.waiting())) == 1
    study.storage.flush()
    assert state_of(studies(), 0) == "COMPLETE"
    assert not list(spool.waiting())


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("kind", [ConfigurationError, StoreCorrupt, Denied])
def test_a_result_that_a_store_refuses_until_it_is_mended_is_on_disk_when_tell_says_so(
    studies: Callable[..., Study],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[HopaasError],
    readable: bool,  # noqa: FBT001
) -> None:
    def refuse(_: WriteOnceLog, outgoing: Outgoing | None, *__: object) -> ExchangeResult:
        if outgoing is not None or not readable:
            raise kind("mend it")
        return ExchangeResult([])

    study = studies()
    trial = study.ask()
    with monkeypatch.context() as patch:
        patch.setattr(WriteOnceLog, "exchange", refuse)
        patch.setattr(WriteOnceLog, "changed", lambda *_: True)
        with pytest.raises(kind, match=r"mend it\. Its end is kept in .* and sent at the next contact"):
            study.tell(trial, 0.5)
        assert len(list(spool.waiting())) == 1
    study.storage.flush()
    assert state_of(studies(), 0) == "COMPLETE"
    assert not list(spool.waiting())


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()], ids=repr)
def test_a_result_is_on_disk_whatever_a_store_fails_with(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    study = studies()
    peer, first, second = study.storage.peer, study.ask(), study.ask()
    with monkeypatch.context() as patch:
        patch.setattr(WriteOnceLog, "exchange", fail)
        with pytest.raises(type(error)):
            study.tell(first, 0.5)
        assert [spooled.trials for _, spooled in spool.waiting()] == [[0]]
        study.handle.finish(second.number, optuna.trial.TrialState.COMPLETE, (0.25,), defer=True)
        peer.say_farewell()
        assert {number for _, spooled in spool.waiting() for number in spooled.trials} == {0, 1}
    other = studies()
    tick(other.storage.peer)
    assert [trial.values for trial in other.trials] == [[0.5], [0.25]]


def test_a_result_that_is_told_to_a_log_of_two_histories_is_on_disk_when_tell_says_so(
    studies: Callable[..., Study], tmp_path: Path
) -> None:
    store, older = tmp_path / "store", tmp_path / "older"
    study = studies()
    study.tell(study.ask(), 0.1)
    copy_store(store, older)
    study.tell(study.ask(), 0.2)
    trials = [study.ask(), study.ask()]
    remove_store(store)
    older.rename(store)
    for trial, value in zip(trials, (0.3, 0.4), strict=True):
        with pytest.raises(BrokenChain, match=rf"trial {trial.number}.*kept in .* for a rescue"):
            study.tell(trial, value)
    assert {number for _, spooled in spool.waiting() for number in spooled.trials} == {2, 3}


def test_a_result_that_was_being_told_when_ctrl_c_came_is_kept_at_the_end_beside_an_earlier_one(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    study = studies(patience=0.0)
    peer = study.storage.peer
    first, second = study.ask(), study.ask()
    with store_away():
        study.tell(first, 1.0)
        assert len(list(spool.waiting())) == 1
        with monkeypatch.context() as patch:
            patch.setattr(peer, "await_commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                study.tell(second, 2.0)
        peer.say_farewell()
        assert {number for _, spooled in spool.waiting() for number in spooled.trials} == {0, 1}
        assert len(list(spool.waiting())) == 2


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_at_the_end_of_a_program_loses_no_result_of_any_of_its_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def interrupt(_: Peer) -> None:
        raise interruption  # Ctrl-C, or a program's own handler of SIGTERM

    opened = [opened_study(str(tmp_path / name), "s") for name in ("first", "second")]
    for study in opened:
        study.handle.finish(study.ask().number, optuna.trial.TrialState.COMPLETE, (0.5,), defer=True)
    with monkeypatch.context() as patch:
        patch.setattr(process, "_peers", {study.storage.peer for study in opened})
        patch.setattr(Peer, "flush", interrupt)
        process._farewell()
    assert {spooled.store for _, spooled in spool.waiting()} == {study.storage.peer.store.url for study in opened}


def test_a_start_that_cannot_be_called_back_keeps_no_result_of_another_study_from_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    storage = hopaas_p2p.open_storage(tmp_path / "store", patience=0.0)
    first, second = hopaas_p2p.open_study(storage, "first"), hopaas_p2p.open_study(storage, "second")
    trial = second.ask()
    with store_away(), monkeypatch.context() as patch:
        log = storage.handle(first.study_id).log.log  # of this one alone: Python remembers what a class can do
        patch.setattr(log, "withdraw", fail, raising=False)
        with pytest.raises(StoreUnreachable):
            first.ask()
        with monkeypatch.context() as ctrl_c:
            ctrl_c.setattr(storage.peer, "await_commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                second.tell(trial, 0.5)
        storage.peer.say_farewell()
        assert [spooled.trials for _, spooled in spool.waiting()] == [[0]]
    storage.close()


def test_a_result_that_another_thread_sends_as_patience_ends_is_told(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies(patience=0.0)
    trial = study.ask()
    peer, real = study.storage.peer, study.storage.peer.await_commit

    def give_up_too_early(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        monkeypatch.setattr(peer, "await_commit", real)
        raise StoreUnreachable

    monkeypatch.setattr(peer, "await_commit", give_up_too_early)
    study.tell(trial, 0.5)
    assert state_of(study, 0) == "COMPLETE"
    assert not list(spool.waiting())


def _no_room_in(place: Path, real: Callable[..., int]) -> Callable[..., int]:
    def open_(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_CREAT and Path(os.path.realpath(os.fsdecode(path))).is_relative_to(place):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(path, flags, *more, **options)

    return open_


def test_a_spool_without_room_has_a_second_place(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = studies(patience=0.0)
    trial = study.ask()
    with store_away(), monkeypatch.context() as patch:
        patch.setattr(os, "open", _no_room_in(tmp_path / "state", os.open))
        study.tell(trial, 0.5)
        ((path, _),) = spool.waiting()
        assert path.parent == tmp_path / "lasting" / f"hopaas-p2p-spool-{os.getuid()}"
        assert path.parent.stat().st_mode & 0o777 == 0o700
    study.storage.flush()
    assert not list(spool.waiting())


def test_a_result_in_the_second_place_of_the_spool_is_sent_after_the_jobs_temporary_directory_is_gone(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = studies(patience=0.0)
    trial = study.ask()
    (tmp_path / "job").mkdir()
    with store_away(), monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / "job"))
        patch.setattr(os, "open", _no_room_in(tmp_path / "state", os.open))
        study.tell(trial, 0.5)
    (tmp_path / "job").rmdir()
    assert len(list(spool.waiting())) == 1
    study.storage.flush()
    assert not list(spool.waiting())


def test_a_result_that_no_disk_takes_is_kept_while_the_process_lives_and_that_is_said(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = studies(patience=0.0)
    trial = study.ask()
    with store_away(), monkeypatch.context() as patch:
        patch.setattr(os, "open", _no_room_in(tmp_path, os.open))
        with pytest.raises(StoreUnreachable, match="kept in this process only") as raised:
            study.tell(trial, 0.5)
        assert not list(tmp_path.rglob("*.draft"))  # now: with room again, a draft is the next try under way
    assert os.strerror(errno.EDQUOT) in str(raised.value)
    study.storage.flush()
    assert state_of(studies(), 0) == "COMPLETE"


def test_a_machine_without_a_temporary_directory_has_one_place_for_its_spool(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    study = studies(patience=0.0)
    first, second = study.ask(), study.ask()
    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setattr(spool, "LASTING", "/proc")
    with store_away(), monkeypatch.context() as patch:
        study.tell(first, 1.0)
        patch.setattr(os, "open", _no_room_in(tmp_path / "state", os.open))
        with pytest.raises(StoreUnreachable, match="kept in this process only"):
            study.tell(second, 2.0)
        assert len(list(spool.waiting())) == 1
    study.storage.flush()
    assert {state_of(studies(), number) for number in (0, 1)} == {"COMPLETE"}


def test_a_loop_waits_with_a_result_that_no_disk_takes_until_the_store_is_back(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = studies(store_wait=60.0)
    study.storage.peer.patience = 0.0
    trial = study.ask()
    away = store_away()
    away.__enter__()
    monkeypatch.setattr(os, "open", _no_room_in(tmp_path / "state", os.open))
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    monkeypatch.setattr(spool, "LASTING", "/proc")
    real_wait = study.storage.peer.await_commit

    def back_before_the_second_wait(*arguments: Any, **options: Any) -> Any:
        if "within" in options:
            away.__exit__(None, None, None)
        return real_wait(*arguments, **options)

    monkeypatch.setattr(study.storage.peer, "await_commit", back_before_the_second_wait)
    study.tell(trial, 0.5)
    assert "kept in this process only" in caplog.text
    assert state_of(studies(), 0) == "COMPLETE"


def test_a_result_is_kept_on_disk_when_the_process_has_no_descriptor_left(studies: Callable[..., Study]) -> None:
    study = studies(patience=0.0)
    trial = study.ask()
    taken: list[int] = []
    with store_away():
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        try:
            study.tell(trial, 0.5)
        finally:
            for descriptor in taken:
                os.close(descriptor)
        assert len(list(spool.waiting())) == 1


def test_a_write_to_the_spool_that_fails_halfway_leaves_nothing_behind(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    study = studies(patience=0.0)
    trial = study.ask()
    with store_away(), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreUnreachable):
            study.tell(trial, 0.5)
    until(lambda: not [path for place in spool.directories() for path in place.glob("*")])


# --- 8: a retry begins where it really resumes -------------------------------------------------------------------


def first_attempt(study: Study) -> None:
    """A trial of four reports and two checkpoints that is taken from its owner."""
    trial = study.ask()
    for step in range(1, 5):
        trial.report(float(step), step)
        if step in (2, 4):
            trial.checkpoint(b"weights", step=step)
    study.requeue(0)


def lose_checkpoint(study: Study, step: int) -> None:
    artifacts = study.storage.peer.store.artifacts()
    (checkpoint,) = [one for one in study.state.trials[0].checkpoints if one.step == step]
    artifacts.delete(checkpoint.key)


@pytest.mark.parametrize("lost", [(2, 4), (4,), ()], ids=["both checkpoints lost", "the newest lost", "none lost"])
@pytest.mark.filterwarnings("error:.*already reported.*")
def test_a_retry_reports_anew_what_it_trains_anew(studies: Callable[..., Study], lost: tuple[int, ...]) -> None:
    study = studies()
    first_attempt(study)
    for step in lost:
        lose_checkpoint(study, step)
    trial = study.ask()
    resumed = trial.resume
    step = resumed[0] if resumed else 0
    assert step == {0: 4, 1: 2, 2: 0}[len(lost)]
    assert trial.intermediate_values == {one: float(one) for one in range(1, step + 1)}
    for one in range(step + 1, 6, 2):  # not at all steps that the first attempt reported
        trial.report(10.0 + one, one)
    study.tell(trial, 1.0)
    expected = {one: float(one) for one in range(1, step + 1)} | {one: 10.0 + one for one in range(step + 1, 6, 2)}
    assert studies().trials[1].intermediate_values == expected


@pytest.mark.filterwarnings("error:.*already reported.*")
def test_a_retry_that_resumes_nothing_is_judged_by_its_own_reports(study: Study, studies: Callable[..., Study]) -> None:
    first_attempt(study)
    retry = plain(study).ask()
    retry.report(11.0, 1)
    assert study.trials[1].intermediate_values == {1: 11.0}
    plain(study).tell(retry, 1.0)
    assert studies().trials[1].intermediate_values == {1: 11.0}


def test_a_retry_that_reports_nothing_leaves_no_report_of_the_first_attempt(studies: Callable[..., Study]) -> None:
    study = studies()
    first_attempt(study)
    study.tell(study.ask(), 1.0)
    assert studies().trials[1].intermediate_values == {}


def test_a_look_at_its_own_checkpoint_costs_a_trial_no_report(study: Study, studies: Callable[..., Study]) -> None:
    trial = study.ask()
    trial.checkpoint(b"weights", step=1)
    trial.report(2.0, 2)
    assert trial.resume[0] == 1
    study.tell(trial, 1.0)
    assert studies().trials[0].intermediate_values == {2: 2.0}


def resume_and_report(trial: Any, step: int | None) -> None:
    assert (trial.resume and trial.resume[0]) == step
    trial.report(15.0, 5)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("step", [2, None])
def test_a_retry_that_is_resumed_in_a_child_ends_the_first_attempts_reports_where_it_resumed(
    study: Study, studies: Callable[..., Study], method: str, step: int | None
) -> None:
    first_attempt(study)
    for lost in (4,) if step else (2, 4):
        lose_checkpoint(study, lost)
    trial = study.ask()
    context = multiprocessing.get_context(method)
    child = context.Process(target=resume_and_report, args=(trial, step))  # type: ignore[attr-defined]
    child.start()
    child.join(60.0)
    assert child.exitcode == 0
    study.tell(trial, 1.0)
    assert studies().trials[1].intermediate_values == ({1: 1.0, 2: 2.0} if step else {}) | {5: 15.0}


def test_a_retrys_late_result_comes_without_reports_that_it_did_not_resume(studies: Callable[..., Study]) -> None:
    study, other = studies(), studies()
    first_attempt(study)
    retry = study.ask()
    retry.report(11.0, 1)
    study.storage.flush()
    other.requeue(1)
    with pytest.raises(LeaseLost) as lost:
        study.tell(retry, 1.0)
    assert studies().trials[lost.value.kept_as].intermediate_values == {1: 11.0}


# --- 9: a trial that nobody can tell any more ----------------------------------------------------------------------


def give_back(study: Study) -> None:
    """What the scheduler does, a moment sooner or later."""
    study.storage.peer.jobs.stop(within=10.0)
    gc.collect()
    tick(study.storage.peer)


def test_a_trial_whose_object_is_collected_is_given_back(studies: Callable[..., Study]) -> None:
    study = studies(budget=1)
    trial = study.ask()
    assert study.handle.running_here() == [0]
    del trial
    give_back(study)
    assert state_of(studies(), 0) == "WAITING"
    assert study.handle.running_here() == []
    again = study.ask()
    assert again.number == 0
    study.tell(again, 1.0)
    assert state_of(studies(), 0) == "COMPLETE"


def test_a_trial_that_was_collected_before_the_study_closes_is_given_back_after_the_results_that_wait(
    studies: Callable[..., Study],
) -> None:
    study = studies(budget=2)
    told, forgotten = study.ask(), study.ask()
    study.storage.peer.jobs.stop(within=10.0)
    study._end(told.number, (1.0,), optuna.trial.TrialState.COMPLETE, reason=None, defer=True)
    del forgotten
    gc.collect()
    study.close()
    found = studies()
    assert [trial.state.name for trial in found.trials] == ["COMPLETE", "WAITING"]
    kinds = [line["kind"] for line in audit(found)]
    assert kinds.index("trial.finish") < kinds.index("trial.release")


def test_an_ask_finds_the_place_of_a_trial_that_was_collected_a_moment_ago(studies: Callable[..., Study]) -> None:
    study = studies(budget=1)
    trial = study.ask()
    study.storage.peer.jobs.stop(within=10.0)
    del trial
    gc.collect()
    again = study.ask()
    study.tell(again, 1.0)
    assert [trial.state.name for trial in studies().trials] == ["COMPLETE"]


def test_an_exception_between_ask_and_tell_holds_no_place_of_the_budget(studies: Callable[..., Study]) -> None:
    study = studies(budget=1)

    def cell() -> None:
        trial = study.ask()
        raise ZeroDivisionError(trial.number)

    with pytest.raises(ZeroDivisionError):
        cell()
    give_back(study)
    assert state_of(study, 0) == "WAITING"


@pytest.mark.parametrize("end", ["study.close()", "", "raise ZeroDivisionError", "sys.exit(3)"])
def test_a_trial_that_a_program_ends_without_a_result_is_given_back_at_once(end: str, tmp_path: Path) -> None:
    program = f"""
import sys
import hopaas_p2p
study = hopaas_p2p.open_study(sys.argv[1], "study", budget=1)
trial = study.ask()
{end}
"""
    subprocess.run([*script(tmp_path, program), str(tmp_path / "store")], check=not end, env=environment(), timeout=60)
    with contextlib.closing(hopaas_p2p.open_study(str(tmp_path / "store"), "study")) as study:
        assert state_of(study, 0) == "WAITING"


class _FailingSampler(optuna.samplers.RandomSampler):
    def sample_independent(self, *_: Any) -> Any:
        raise ZeroDivisionError


def test_a_sampler_that_fails_holds_no_place_of_the_budget(studies: Callable[..., Study]) -> None:
    study = studies(budget=1, sampler=_FailingSampler())
    with pytest.raises(ZeroDivisionError):
        study.ask()
    assert state_of(study, 0) == "WAITING"
    assert study.handle.running_here() == []


def test_a_number_is_enough_to_tell_a_trial_that_was_given_back_meanwhile(studies: Callable[..., Study]) -> None:
    study = studies()
    number = study.ask().number
    give_back(study)
    assert state_of(study, number) == "WAITING"
    study.tell(number, 0.5)
    assert state_of(studies(), number) == "COMPLETE"


def test_a_trial_in_the_hands_of_another_process_is_not_given_back(study: Study) -> None:
    trial = study.ask()
    text = pickle.dumps(trial)
    del trial
    give_back(study)
    assert state_of(study, 0) == "RUNNING"
    study.tell(pickle.loads(text), 1.0)


def test_trials_that_were_told_are_not_given_back(study: Study) -> None:
    study.optimize(lambda trial: trial.params["x"], n_trials=3)
    give_back(study)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3


# --- 10: a store that is away for long -----------------------------------------------------------------------------


def patient_peer(seconds_away: float, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Peer, list[float]]:
    """A peer on a clock of its own, whose store comes back after so many seconds."""
    now = [1000.0]
    store, _ = twins()
    real = store.log("study").exchange

    def exchange(*arguments: Any) -> Any:
        if now[0] < 1000.0 + seconds_away:
            raise StoreUnreachable
        return real(*arguments)

    monkeypatch.setattr(store.log("study"), "exchange", exchange)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(caller_module, "time", SimpleNamespace(sleep=sleep))
    return Peer(store, threaded=False, describe=dict, clock=lambda: now[0], **options), now


def test_an_ask_waits_for_the_store_as_long_as_it_takes_and_says_so_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    peer, now = patient_peer(600.0, monkeypatch)
    (verdict,) = peer.start(peer.log("study"), TrialCreate()).verdicts or ()
    assert verdict.accepted
    assert 1600.0 <= now[0] < 1610.0
    assert 9 <= len(caplog.messages) <= 11
    assert all("Ctrl-C stops waiting, and nothing is lost" in message for message in caplog.messages)
    peer.close()


@pytest.mark.parametrize("options", [{"store_wait": 30.0}, {"patience": 30.0}])
def test_an_ask_waits_no_longer_than_it_is_told(monkeypatch: pytest.MonkeyPatch, options: dict[str, float]) -> None:
    peer, now = patient_peer(600.0, monkeypatch, **options)
    with pytest.raises(StoreUnreachable):
        peer.start(peer.log("study"), TrialCreate())
    assert 1030.0 <= now[0] < 1040.0
    now[0] = 1700.0
    peer.flush()
    assert not peer.log("study").state.running
    peer.close()


def test_an_ask_that_waits_for_the_store_ends_when_the_peer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    peer, now = patient_peer(600.0, monkeypatch)
    log = peer.log("study")
    real = peer._exchange

    def closed_meanwhile(*arguments: Any) -> None:
        if now[0] > 1100.0:
            peer.closed = True  # as another thread does
        real(*arguments)

    monkeypatch.setattr(peer, "_exchange", closed_meanwhile)
    with pytest.raises(StoreUnreachable):
        peer.start(log, TrialCreate())
    assert 1100.0 <= now[0] < 1110.0


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_optimize_goes_on_when_the_store_is_back_whatever_the_patience(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    study = studies(store_wait=60.0)
    study.storage.peer.patience = 0.0
    real, refusals = WriteOnceLog.exchange, [0]

    def exchange(*arguments: Any, **options: Any) -> Any:
        if 10 <= refusals[0] < 20:
            refusals[0] += 1
            raise StoreUnreachable
        return real(*arguments, **options)

    def objective(trial: Any) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        if trial.number == 1:
            refusals[0] = 10
        return float(x)

    for module in (peer_module, caller_module):
        monkeypatch.setattr(module, "FIRST_PAUSE", 1e-3)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 1e-3)
    monkeypatch.setattr(WriteOnceLog, "exchange", exchange)
    loop: Any = study if kind == "ours" else plain(study)
    loop.optimize(objective, n_trials=4)
    study.storage.flush()
    assert refusals[0] == 20
    assert [trial.state.name for trial in studies().trials] == ["COMPLETE"] * 4


@pytest.mark.path
def test_the_end_of_a_trial_is_on_disk_while_the_next_ask_waits_for_the_store(studies: Callable[..., Study]) -> None:
    study = studies(store_wait=60.0)
    study.storage.peer.patience = 0.1
    away, seen = store_away(), []

    def mend_it_once_the_result_is_safe() -> None:
        deadline = time.monotonic() + 30.0
        while time.monotonic() < deadline and not seen:
            seen.extend(spooled.trials for _, spooled in spool.waiting())
            time.sleep(0.01)
        away.__exit__(None, None, None)

    mending = threading.Thread(target=mend_it_once_the_result_is_safe)

    def objective(trial: Any) -> float:
        if trial.number == 0:
            away.__enter__()
            mending.start()
        return 0.5

    study.optimize(objective, n_trials=2)
    mending.join()
    study.storage.flush()
    assert seen[:1] == [[0]]
    assert [trial.state.name for trial in studies().trials] == ["COMPLETE"] * 2
    assert not list(spool.waiting())


def test_an_optimize_that_is_interrupted_while_the_store_is_away_does_not_wait_long_to_keep_its_last_result(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "_SHUTDOWN_TIMEOUT", 0.5)
    study, away = studies(), store_away()
    began = [0.0]

    def terminate_the_ask() -> None:
        until(lambda: study.storage.peer.away)
        began[0] = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)

    def objective(trial: Any) -> float:
        away.__enter__()
        threading.Thread(target=terminate_the_ask).start()
        return 0.5

    with pytest.raises(SystemExit):
        study.optimize(objective, n_trials=2)
    assert time.monotonic() - began[0] < 30.0, "then a batch system kills the job; without haste it is a minute"
    assert [spooled.trials for _, spooled in spool.waiting()] == [[0]]
    away.__exit__(None, None, None)


@pytest.mark.parametrize("call", ["checkpoint", "study attribute"])
def test_a_checkpoint_and_a_samplers_attribute_wait_for_the_store_whatever_the_patience(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    study = studies(store_wait=60.0)
    study.storage.peer.patience = 0.0
    for module in (peer_module, caller_module):
        monkeypatch.setattr(module, "FIRST_PAUSE", 1e-3)
        monkeypatch.setattr(module, "LONGEST_PAUSE", 1e-3)
    owner: Any
    refused, (owner, name) = [0], (WriteOnceLog, "exchange")
    if call == "checkpoint":
        owner, name = type(study.storage.peer.store.artifacts()), "put"
    real = getattr(owner, name)

    def refuse(*arguments: Any, **options: Any) -> Any:
        if 0 < refused[0] < 10:
            refused[0] += 1
            raise StoreUnreachable
        return real(*arguments, **options)

    def objective(trial: Any) -> float:
        refused[0] = 1
        if call == "checkpoint":
            trial.checkpoint(b"weights", step=1)
        else:
            study.storage.set_study_system_attr(study.study_id, "sampler", trial.number)
        return 0.5

    monkeypatch.setattr(owner, name, refuse)
    study.optimize(objective, n_trials=2)
    assert refused[0] == 10
    assert [trial.state.name for trial in studies().trials] == ["COMPLETE"] * 2


@pytest.mark.parametrize("error", [ConfigurationError("keys expired"), KeyboardInterrupt()], ids=repr)
def test_a_checkpoint_whose_record_is_yet_to_be_sent_keeps_its_file(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> ExchangeResult:
        raise error

    study = studies()
    trial = study.ask()
    with monkeypatch.context() as patch:
        patch.setattr(WriteOnceLog, "exchange", fail)
        with pytest.raises(type(error)):
            trial.checkpoint(b"weights", step=1)
    study.storage.flush()
    (checkpoint,) = studies().state.trials[0].checkpoints
    assert study.storage.peer.store.artifacts().keys("") == [checkpoint.key]


def test_an_old_checkpoint_that_may_not_be_removed_is_no_failure_of_the_new_one(
    study: Study, studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = study.ask()
    for step in (1, 2):
        trial.checkpoint(b"weights", step=step)

    def refuse(*_: object) -> None:
        raise Denied

    monkeypatch.setattr(type(study.storage.peer.store.artifacts()), "delete", refuse)
    trial.checkpoint(b"weights", step=3)
    assert [one.step for one in studies().state.trials[0].checkpoints] == [2, 3]


def test_optimize_waits_for_the_store_no_longer_than_its_timeout(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = studies(store_wait=60.0)
    for module in (peer_module, caller_module):
        monkeypatch.setattr(module, "LONGEST_PAUSE", 0.05)
    ran: list[int] = []
    away = store_away()

    def objective(trial: Any) -> float:
        ran.append(trial.number)
        study.storage.flush()
        study.storage.peer.patience = 0.0
        away.__enter__()
        return 0.5

    study.optimize(objective, timeout=1.0)
    away.__exit__(None, None, None)
    study.storage.flush()
    assert ran == [0]
    assert "the time is up" in caplog.text
    assert [trial.state.name for trial in studies().trials] == ["COMPLETE", "WAITING"]  # the last ask was under way


@pytest.mark.parametrize("kind", ["ours", "plain"])
def test_a_trial_that_was_reclaimed_before_its_start_was_heard_of_is_not_run(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    study, other = studies(), studies()
    for one in (study, other):
        one.storage.peer.jobs.stop(within=10.0)
    log = study.handle.log.log
    real, answers = WriteOnceLog.exchange, [False]

    def exchange(self: WriteOnceLog, outgoing: Outgoing | None, *arguments: Any) -> Any:
        receipt = real(self, outgoing, *arguments)
        if self is log and outgoing is not None and not answers[0]:
            answers[0] = True
            other.handle.say(TrialReclaim(0, 1))  # the store was away from here for longer than ttl
            raise StoreUnreachable
        return receipt

    for module in (peer_module, caller_module):
        monkeypatch.setattr(module, "FIRST_PAUSE", 1e-3)
    monkeypatch.setattr(WriteOnceLog, "exchange", exchange)
    loop: Any = study if kind == "ours" else plain(study)
    loop.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=2)
    assert answers[0]
    assert [trial.state.name for trial in other.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_worker_waits_for_the_store_until_its_time_limit(studies: Callable[..., Study], tmp_path: Path) -> None:
    from hopaas_p2p.ports.worker import AGAIN, Worker

    study = studies(patience=0.05)
    said: list[str] = []
    worker = Worker(study, ["true"], time_limit=3.0, grace=0.1, logs=tmp_path / "logs", say=said.append)
    study.storage.peer.store_wait = 0.05
    began = time.monotonic()
    with store_away():
        assert worker.work() == AGAIN
    assert time.monotonic() - began > 1.0
    assert len([line for line in said if "Waiting for the store" in line]) == 1


def test_a_worker_whose_job_ends_does_not_wait_long_to_return_its_trial(
    studies: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch system often kills a job half a minute after it has asked it to end."""
    from hopaas_p2p.ports.worker import AGAIN, Worker

    study = studies(patience=60.0)
    said: list[str] = []
    hurries: list[bool] = []

    def release(handle: StudyHandle, *_: object, **__: object) -> bool:
        hurries.append(handle.peer.hurried)
        raise StoreUnreachable

    monkeypatch.setattr(StudyHandle, "release", release)
    worker = Worker(study, ["sleep", "600"], time_limit=5.0, grace=0.1, logs=tmp_path / "logs", say=said.append)
    assert worker.work() == AGAIN
    assert hurries == [True]
    assert any("could not be returned now" in line for line in said)
    assert any("trial 0: RUNNING" in line for line in said), "and it is not said to wait"


def test_a_worker_goes_on_with_a_store_that_is_back(studies: Callable[..., Study], tmp_path: Path) -> None:
    from hopaas_p2p.ports.worker import DONE, Worker

    study = studies(patience=0.05)
    away = store_away()
    away.__enter__()
    back = []

    def say(line: str) -> None:
        if "Waiting for the store" in line:
            away.__exit__(None, None, None)
            back.append(line)

    worker = Worker(study, ["echo", '{"value": 1}'], max_trials=1, logs=tmp_path / "logs", say=say)
    assert worker.work() == DONE
    assert back
    assert study.best_trial.value == 1.0


def test_an_optimize_of_one_thread_returns_when_its_own_last_result_is_safe(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies()
    both, slow = threading.Barrier(2), threading.Event()
    real, ended = StudyHandle._settled, StudyHandle.settle_deferred
    waiting: list[int] = []
    safe: list[int] = []
    returned: list[bool] = []
    came = threading.local()

    def settled(handle: StudyHandle, number: int, pending: Any) -> Any:
        waiting.append(number)
        slow.wait(60)
        verdict = real(handle, number, pending)
        safe.append(number)
        return verdict

    def settle(handle: StudyHandle) -> Any:
        if handle.deferred and not hasattr(came, "here"):
            came.here = True
            both.wait(60)  # both have told their last result
        return ended(handle)

    def optimize() -> None:
        ran: list[int] = []

        def objective(trial: Any) -> float:
            ran.append(trial.number)
            both.wait(60)  # both run
            return 0.5

        study.optimize(objective, n_trials=1)
        returned.append(ran[0] in safe)

    monkeypatch.setattr(StudyHandle, "_settled", settled)
    monkeypatch.setattr(StudyHandle, "settle_deferred", settle)
    threads = [threading.Thread(target=optimize) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: bool(returned) or len(waiting) == 2)
    slow.set()
    for thread in threads:
        thread.join(60)
    assert returned == [True, True]


def test_a_result_whose_wait_ctrl_c_interrupts_is_waited_for_again(
    studies: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = studies()
    real, calls = StudyHandle._settled, []

    def settled(handle: StudyHandle, number: int, pending: Any) -> Any:
        calls.append(number)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(handle, number, pending)

    monkeypatch.setattr(StudyHandle, "_settled", settled)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(lambda _: 0.5, n_trials=1)
    assert [(trial.number, trial.state.name) for trial in studies().state.trials] == [(0, "COMPLETE")]
    assert calls == [0, 0]


def test_a_first_use_without_a_descriptor_left_is_one_line_and_loses_no_trial(tmp_path: Path) -> None:
    body = f"""
    import os, pathlib, resource
    import hopaas_p2p
    from hopaas_p2p.errors import StoreUnreachable

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    def without(call):
        held = []
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        try:
            call()
            raise AssertionError("it needs no descriptor")
        except StoreUnreachable as error:
            said = str(error)
        finally:
            while held:
                os.close(held.pop())
        assert "Too many open files" in said and len(said.splitlines()) == 1, said
        return call()

    file = pathlib.Path({str(tmp_path / "model")!r})
    file.write_text("weights")
    store, space = {str(tmp_path / "store")!r}, {{"x": hopaas_p2p.Float(0, 1)}}
    study = without(lambda: hopaas_p2p.open_study(store, "s", space=space))
    trial = study.ask()
    without(lambda: trial.upload(file))
    study.tell(trial, 1.0)
    assert [one.state.name for one in study.trials] == ["COMPLETE"]
    """
    subprocess.run(script(tmp_path, body), env=environment(), check=True, timeout=120)
