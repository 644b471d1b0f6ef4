"""The study API: exact budgets, trials that end well however their code ends, and bad input."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.analysis.facts import state_word
from hopaas_p2p.cli.watch import looks
from hopaas_p2p.core.records import TrialReclaim, TrialRelease, TrialTakeOver
from hopaas_p2p.core.records import TrialState as LoggedState
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import (
    ConfigurationError,
    DefinitionMismatch,
    InvalidInput,
    LeaseLost,
    NoSuchStudy,
    NoSuchTrial,
    NothingSucceeded,
    NotYourTrial,
    NoWork,
    StoreUnreachable,
)
from hopaas_p2p.peer.peer import Peer
from hopaas_p2p.ports.ticket import ticket_of
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.objects.log import WriteOnceLog
from hopaas_p2p.study import Study
from hopaas_p2p.study.audit import audit
from hopaas_p2p.study.trial import Trial
from tests.support.exchanges import exchanges_of
from tests.support.lease_peer import store_away
from tests.support.processes import SPACE, environment, script, states, until
from tests.support.studies import opened_study


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def studies(store: str) -> Iterator[Any]:
    """Opens studies of one store, each as a peer of its own, and closes them."""
    opened: list[Study] = []

    def open_it(name: str = "s", **options: Any) -> Study:
        opened.append(opened_study(store, name, **options))
        return opened[-1]

    yield open_it
    for study in opened:
        study.close()


@pytest.fixture
def study(studies: Any) -> Study:
    return studies(space=SPACE)


def reclaim(observer: Study, number: int) -> None:
    """Another peer takes a running trial over, as it would from a silent one."""
    epoch = observer.state.trials[number].epoch
    observer.handle.say(TrialReclaim(number, epoch))


def square(trial: Trial) -> float:
    return float(trial.params["lr"]) ** 2


# --- definition --------------------------------------------------------------------------------------------------


def test_who_comes_second_joins_and_may_leave_the_definition_out(studies: Any) -> None:
    studies(space=SPACE, directions="maximize", budget=7)
    joined = studies()
    assert list(joined.space) == ["lr", "depth"]
    assert joined.state.budget == 7
    assert joined.direction.name == "MAXIMIZE"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"directions": "maximize"}, "directions: stored minimize, given maximize"),
        ({"budget": 5}, "the budget 7, not 5"),
        ({"attempts": 5}, "attempts: stored 3, given 5"),
        ({"lease_ttl": 1.5}, "lease_ttl: stored 120.0, given 1.5"),
        ({"max_failures": 2}, "max_failures: stored nothing, given 2"),
        ({"space": {**SPACE, "lr": hopaas_p2p.Float(0, 1)}}, "lr: stored float(0.0001,0.1,log), given float(0,1)"),
        ({"space": {"lr": SPACE["lr"]}}, "space, depth: stored int(1,8), given nothing"),
    ],
)
def test_another_definition_is_refused_and_the_difference_shown(
    studies: Any, given: dict[str, Any], shown: str
) -> None:
    studies(space=SPACE, budget=7)
    with pytest.raises(DefinitionMismatch) as caught:
        studies(**given)
    assert shown in str(caught.value)


def test_a_budget_that_was_moved_is_what_joiners_may_say(studies: Any) -> None:
    studies(budget=7).set_budget(9)
    assert studies(budget=9).state.budget == 9


def test_a_store_may_be_a_path(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s")
    assert study.storage.url == f"file://{tmp_path}/store"
    study.close()


def test_joining_only_says_that_there_is_no_such_study(studies: Any) -> None:
    studies("other")
    with pytest.raises(NoSuchStudy, match="'s'"):
        studies("s", create=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"directions": "up"},
        {"directions": []},
        {"budget": 0},
        {"budget": 1e3},
        {"attempts": 0},
        {"max_failures": 0},
        {"progress_timeout": -1},
        {"lease_ttl": 0},
        {"lease_ttl": "2 minutes"},
        {"lease_ttl": float("nan")},
        {"space": {"x": hopaas_p2p.Float(2, 1)}},
        {"space": {"x": hopaas_p2p.Float(0, 1, log=True)}},
        {"space": {"x": hopaas_p2p.Categorical(())}},
        {"space": {"x": hopaas_p2p.Categorical(("adam", "sgd", "adam"))}},
        {"space": {"x": hopaas_p2p.Categorical("adam")}},  # type: ignore[arg-type]
        {"space": {"x": hopaas_p2p.Int(1, float("nan"))}},  # type: ignore[arg-type]
        {"space": {"x": 5}},
        {"space": {"x": hopaas_p2p.Categorical((("a", "tuple"),))}},  # type: ignore[arg-type]
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Choices for a categorical")
def test_a_definition_that_cannot_be_is_refused_and_nothing_created(studies: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        studies(**wrong)
    with pytest.raises((NoSuchStudy, ConfigurationError)):
        studies("s", create=False)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "\x00", "..", ".", "../x", "a/b", "a\\b", "\u2028", "x" * 201])
def test_a_name_with_control_characters_or_path_parts_is_refused(studies: Any, name: str) -> None:
    with pytest.raises(InvalidInput):
        studies(name)


@pytest.mark.parametrize("name", ["run 7", "наука", "-x", "a.b", "x" * 200, "%2e%2e", "$HOME"])
def test_other_names_are_fine(studies: Any, name: str) -> None:
    assert studies(name).name == name


def test_bounds_are_the_same_numbers_for_the_creator_and_everybody_else(studies: Any) -> None:
    from hopaas_p2p.core import snapshot

    creator = studies(space={"x": hopaas_p2p.Float(0, 1)}, progress_timeout=30, lease_ttl=60)
    assert snapshot.digest(creator.state) == snapshot.digest(studies().state)


def test_what_cannot_be_called_starts_no_trial(studies: Any) -> None:
    study = studies()
    with pytest.raises(InvalidInput, match="got 5"):
        study.optimize(5)
    assert not study.state.trials


# --- budget ------------------------------------------------------------------------------------------------------


def test_the_budget_is_exact_across_threads(studies: Any) -> None:
    study = studies(space=SPACE, budget=40)
    most: list[int] = []

    def objective(trial: Trial) -> float:
        most.append(study.state.used())
        if trial.number % 7 == 3:
            raise optuna.TrialPruned
        return 1.0

    threads = [threading.Thread(target=study.optimize, args=(objective,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(states(study)) == 40
    assert set(states(study)) == {"COMPLETE", "PRUNED"}
    assert max(most) <= 40


def test_the_budget_is_exact_across_processes(tmp_path: Path, studies: Any) -> None:
    study = studies(space=SPACE, budget=60)
    worker = script(
        tmp_path,
        """
        import os, pathlib, sys, time, optuna, hopaas_p2p
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = hopaas_p2p.open_study(sys.argv[1], "s", sampler=optuna.samplers.RandomSampler())
        here = pathlib.Path(sys.argv[1]).parent
        (here / f"ready-{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while len(list(here.glob("ready-*"))) < 6:  # else the first one does it all
            assert time.monotonic() < deadline
            time.sleep(0.01)

        def objective(trial):
            assert study.state.used() <= 60
            if trial.number % 9 == 4:
                raise ValueError("a bad one")
            if trial.number % 5 == 2:
                raise optuna.TrialPruned
            return trial.params["lr"]

        study.optimize(objective, catch=ValueError)
        study.close()
        """,
    )
    peers = [subprocess.Popen([*worker, str(tmp_path / "store")], env=environment()) for _ in range(6)]
    assert [peer.wait(60) for peer in peers] == [0] * 6
    found = states(study)
    assert found.count("COMPLETE") + found.count("PRUNED") == 60
    assert set(found) == {"COMPLETE", "PRUNED", "FAIL"}
    assert len({study.state.trials[number].owner for number in range(len(found))}) > 1


def test_a_fail_gives_its_place_back(studies: Any) -> None:
    study = studies(space=SPACE, budget=2)
    study.tell(study.ask(), state="fail", reason="first")
    study.tell(study.ask(), 1.0)
    study.tell(study.ask(), 2.0)
    with pytest.raises(NoWork, match="budget"):
        study.ask()
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_an_objective_that_never_works_does_not_run_for_ever(studies: Any) -> None:
    study = studies(space=SPACE, budget=50)

    with pytest.raises(NothingSucceeded, match="all 10 trials"):
        study.optimize(lambda _: "no number")  # a wrong value fails a trial and is not raised
    assert states(study) == ["FAIL"] * 10
    study.optimize(lambda _: None, n_trials=12)  # as many as were asked for
    assert states(study) == ["FAIL"] * 22
    study.optimize(lambda trial: "no number" if 22 < trial.number < 40 else 1.0)  # one success shows that it works
    assert states(study).count("COMPLETE") == 50


def test_a_thread_with_failures_only_goes_on_while_another_one_of_its_call_succeeds(studies: Any) -> None:
    study, failing, succeeded, over = studies(space=SPACE), list[int](), threading.Event(), threading.Event()
    first = threading.Lock()

    def objective(_: Trial) -> float:
        me = threading.get_ident()
        if not failing and first.acquire(blocking=False):
            failing.append(me)
        if me in failing:
            assert succeeded.wait(60)
            failing.append(me)
            if len(failing) > 13:
                over.set()
                study.stop()
            raise ValueError("this thread's device is broken")
        if study.state.counts[LoggedState.COMPLETE]:
            succeeded.set()
            assert over.wait(60)
            study.stop()
        return 1.0

    study.optimize(objective, n_jobs=2, catch=ValueError)
    assert states(study).count("FAIL") == 13


def test_failures_in_a_row_end_a_campaign_until_it_is_resumed(studies: Any) -> None:
    study = studies(space=SPACE, budget=50, max_failures=3)

    def objective(trial: Trial) -> float:
        if trial.number == 1:
            return 0.0
        raise RuntimeError("broken")

    study.optimize(objective, catch=RuntimeError)
    assert states(study) == ["FAIL", "COMPLETE", "FAIL", "FAIL", "FAIL"]
    with pytest.raises(NoWork, match="too many trials failed in a row"):
        study.ask()
    study.resume()
    study.tell(study.ask(), 1.0)


def test_a_paused_study_gives_out_nothing_and_running_trials_go_on(study: Study, studies: Any) -> None:
    trial = study.ask()
    studies().pause()
    with pytest.raises(NoWork, match="paused"):
        study.ask()
    study.optimize(square, timeout=0.1)  # waits in vain
    study.tell(trial, 1.0)
    studies().resume()
    study.tell(study.ask(), 2.0)
    assert states(study) == ["COMPLETE", "COMPLETE"]


def test_optimize_waits_while_the_study_is_paused(
    study: Study, studies: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = studies()
    other.pause()
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 20:
            other.resume()

    monkeypatch.setattr("hopaas_p2p.study.study.time.sleep", wait)
    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        study.optimize(square, n_trials=1)
    assert states(study) == ["COMPLETE"]
    assert max(waits) == 10.0
    command = f"hopaas-p2p study resume {study.name} --store {study.storage.url}"
    assert [message for message in caplog.messages if "paused" in message] == [
        f"waiting for study {study.name!r}: the study is paused; resume it with: {command}"
    ]


def test_a_change_that_the_store_has_not_answered_says_that_it_is_queued_and_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = hopaas_p2p.open_study(hopaas_p2p.open_storage(tmp_path, patience=0.0), "study")
    log = study.handle.log
    study.enqueue_trial({"x": 2.0})
    waiting = study.trials[0]._trial_id

    def away(*_args: object, **_more: object) -> None:
        raise StoreUnreachable("away")

    with monkeypatch.context() as patch:
        patch.setattr(type(log.log), "exchange", away)
        for change in (
            study.pause,
            lambda: study.enqueue_trial({"x": 1.0}),
            lambda: study.set_user_attr("who", "ann"),
            lambda: study.storage.set_trial_user_attr(waiting, "why", "once more"),
        ):
            with pytest.raises(StoreUnreachable, match=r"^away\. The change was not refused") as raised:
                change()
            assert raised.value.queued
    study.storage.flush()

    assert (study.state.status, len(study.trials), study.user_attrs) == ("paused", 2, {"who": "ann"})
    assert study.trials[0].user_attrs == {"why": "once more"}
    study.close()


def test_the_end_of_a_study_that_the_store_has_not_answered_is_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(hopaas_p2p.open_storage(tmp_path, patience=0.0)) as storage:
        study_id = hopaas_p2p.open_study(storage, "study").study_id
        busy = StoreUnreachable("busy")  # one error, raised again and again

        def away(*_args: object, **_more: object) -> None:
            raise busy

        with monkeypatch.context() as patch:
            patch.setattr(type(storage.peer.catalog.log), "exchange", away)
            for _ in range(2):
                with pytest.raises(StoreUnreachable, match=r"^busy\. The change [^.]*\.$") as raised:
                    storage.delete_study(study_id)
                assert raised.value.queued
        hopaas_p2p.open_study(storage, "other")
        assert storage.study_names() == ["other"]


def test_a_change_of_a_study_that_cannot_be_found_is_not_said_to_be_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(hopaas_p2p.open_study(hopaas_p2p.open_storage(tmp_path, patience=0.0), "study")) as study:
        copy = pickle.loads(pickle.dumps(study))  # it has not read the list of studies yet

        def away(*_args: object, **_more: object) -> None:
            raise StoreUnreachable("away")

        with monkeypatch.context() as patch:
            patch.setattr(type(study.storage.peer.catalog.log), "exchange", away)
            with pytest.raises(StoreUnreachable, match=r"^away$") as raised:
                copy.pause()
        assert not raised.value.queued
        copy.close()
        assert study.state.status == "running"


@pytest.mark.parametrize("error", [ImportError("no torch here"), StoreUnreachable("away")])
@pytest.mark.parametrize("early", [True, False])
def test_what_is_not_the_samplers_fault_is_raised_and_no_trial_stays_running(
    studies: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, *, early: bool
) -> None:
    def fails(*_: object) -> None:
        raise error

    sampler = optuna.samplers.RandomSampler()
    sampler.needs_number = not early  # type: ignore[attr-defined]
    study = studies(space=SPACE, sampler=sampler)
    monkeypatch.setattr(optuna.samplers.RandomSampler, "sample_relative", fails)
    with pytest.raises(type(error), match=str(error)):
        study.ask()
    assert states(study) == ([] if early else ["WAITING"])


def test_a_study_has_what_users_of_optuna_type(study: Study, studies: Any) -> None:
    study.optimize(lambda trial: (trial.params["lr"] - 1.0) ** 2, n_trials=3)
    study.set_user_attr("campaign", {"year": 2026})
    plain = optuna.load_study(study_name=study.name, storage=study.storage)
    assert study.best_value == plain.best_value == study.best_trial.value
    assert study.best_params == plain.best_params
    assert study.best_trials == plain.best_trials
    assert (study.direction, study.directions) == (plain.direction, plain.directions)
    assert studies().user_attrs == {"campaign": {"year": 2026}}
    two = studies("two", directions=["minimize", "maximize"])
    with pytest.raises(RuntimeError):
        _ = two.direction


def test_optimize_says_what_it_does(study: Study, caplog: pytest.LogCaptureFixture) -> None:
    results = iter([0.5, RuntimeError("no memory"), 0.25, optuna.TrialPruned()])

    def objective(trial: Any) -> float:
        result = next(results)
        if isinstance(result, Exception):
            trial.report(0.75, step=1)
            raise result
        return result

    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        study.optimize(objective, n_trials=4, catch=RuntimeError)
    name = repr(study.name)
    assert [message for message in caplog.messages if "taken" not in message] == [
        f"study {name}: 0 done, 0 running",
        "trial 0: 0.5, best 0.5 (#0)",
        "trial 1: FAIL (RuntimeError: no memory)",
        "trial 2: 0.25, best 0.25 (#2)",
        "trial 3: PRUNED",
        f"left study {name}: ran 4 trials, as asked; 3 done, 0 running, best 0.25 (#2)",
    ]


def test_the_best_trial_that_is_told_is_the_one_in_the_log(studies: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A trial that was taken over has the value that the operator told; its own result is a trial of its own."""
    study = studies(space=SPACE)

    def objective(trial: Any) -> float:
        if trial.number:
            return 3.0
        study.handle.say(TrialTakeOver(0, 1, LoggedState.COMPLETE, (5.0,)))
        return 0.5

    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        study.optimize(objective, n_trials=2)
    assert (study.best_trial.number, study.trials[0].value) == (1, 5.0)
    assert caplog.messages[-1].endswith("best 0.5 (#1)")


def test_several_threads_of_one_call_leave_once(studies: Any, caplog: pytest.LogCaptureFixture) -> None:
    study = studies(space=SPACE, budget=4)
    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        study.optimize(square, n_jobs=3)
    assert [message.partition(";")[0] for message in caplog.messages if message.startswith("left")] == [
        f"left study {study.name!r}: the study's budget is used up"
    ]
    assert caplog.messages[-1].startswith("left")
    bests = [float(best[1]) for line in caplog.messages if (best := re.search("best ([^ ]+)", line))]
    assert bests == sorted(bests, reverse=True)


@pytest.mark.parametrize(
    ("first", "stderr", "stdout"),
    [
        ("optuna.logging.set_verbosity(optuna.logging.INFO)", 3, 0),
        ("optuna.logging.set_verbosity(optuna.logging.WARNING)", 0, 0),
        ("logging.getLogger('hopaas_p2p').setLevel(logging.ERROR)", 0, 0),
        ("sys.modules['ipykernel'] = sys", 0, 3),  # a notebook, which shows stderr in red
    ],
)
def test_a_program_that_configures_no_logging_sees_what_optimize_does_unless_it_says_otherwise(
    tmp_path: Path, first: str, stderr: int, stdout: int
) -> None:
    code = (
        f"import logging, sys, optuna, hopaas_p2p\n{first}\n"
        "study = hopaas_p2p.open_study(sys.argv[1], 's', budget=1)\n"
        "study.optimize(lambda trial: 1.5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    shown = {"stderr": done.stderr, "stdout": done.stdout}
    assert {name: len(text.splitlines()) for name, text in shown.items()} == {"stderr": stderr, "stdout": stdout}
    assert ("trial 0: 1.5, best 1.5 (#0)" in done.stderr + done.stdout) == bool(stderr or stdout)


def test_stop_all_ends_the_study_for_everybody_and_stop_says_so(study: Study) -> None:
    with pytest.raises(RuntimeError, match=r"study\.stop_all\(\)"):
        study.stop()
    study.stop_all()
    with pytest.raises(NoWork, match="stopped") as caught:
        study.ask()
    assert caught.value.exit_code == 3


def test_a_moved_budget_holds_at_once(studies: Any) -> None:
    study = studies(space=SPACE, budget=1)
    study.optimize(square)
    studies().set_budget(3)
    study.optimize(square)
    assert len(states(study)) == 3
    with pytest.raises(InvalidInput):
        study.set_budget(0)
    study.set_budget(None)
    study.tell(study.ask(), 0.0)


def test_who_asks_a_closed_study_again_and_again_writes_nothing_and_hears_when_it_is_open(studies: Any) -> None:
    study, other = studies(space=SPACE, budget=1), studies()
    study.optimize(square)
    lsn = study.state.lsn
    for _ in range(3):
        study.optimize(square, n_trials=1)
        with pytest.raises(NoWork, match="budget"):
            study.ask()
    assert study.state.lsn == lsn
    other.set_budget(2)
    study.optimize(square, n_trials=1)
    assert len(states(study)) == 2
    assert not study.state.refusals


# --- peers that die ----------------------------------------------------------------------------------------------

SLEEPER = """
    import sys, time, hopaas_p2p
    study = hopaas_p2p.open_study(sys.argv[1], "s")
    trial = study.ask()
    print(trial.number, flush=True)
    time.sleep(float(sys.argv[2]))
    study.tell(trial, 5.0)
    study.close()
"""


def sleeper(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    command = [*script(tmp_path, SLEEPER), str(tmp_path / "store"), str(seconds)]
    peer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert peer.stdout is not None
    peer.stdout.readline()
    return peer


def test_a_peer_without_work_waits_for_a_silent_owners_trial_and_runs_it(tmp_path: Path, studies: Any) -> None:
    study = studies(space=SPACE, budget=2, lease_ttl=1.0)
    victim = sleeper(tmp_path, 60)
    with victim:
        until(lambda: study.state.trials[0].params, what="the parameters")
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    began = time.monotonic()
    study.optimize(square)
    assert time.monotonic() - began < 4.0  # 2 x ttl, and the sleep between two looks
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    retry = study.state.trials[2]
    assert (retry.retry_of, retry.attempt) == (0, 2)
    assert retry.params == study.state.trials[0].params


def test_a_peer_that_saw_an_owner_a_moment_before_it_was_killed_takes_its_trial_over(
    tmp_path: Path, studies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study = studies(space=SPACE, budget=2, lease_ttl=1.5)
    victim = sleeper(tmp_path, 60)
    with victim:
        trial = study.ask()
        time.sleep(2.0)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    study.tell(trial, 1.0)
    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        study.optimize(square)
    assert states(study) == ["FAIL", "COMPLETE", "COMPLETE"]
    (waited,) = [line for line in caplog.messages if line.startswith("waiting")]
    assert re.search(
        r"still running: trial 0 of \S+ on \S+, last heard of .* died, that will be known within \d+ s", waited
    )


def test_a_peer_without_work_leaves_with_the_next_sign_of_life_of_the_owners(tmp_path: Path, studies: Any) -> None:
    study = studies(space=SPACE, budget=2, lease_ttl=1.5)
    owner = sleeper(tmp_path, 6)
    with owner:
        trial = study.ask()
        time.sleep(2.0)  # long enough to see the other one beat, as any training is
        study.tell(trial, 1.0)
        began = time.monotonic()
        study.optimize(square)
        left_after = time.monotonic() - began
        assert states(study) == ["RUNNING", "COMPLETE"]
        assert left_after < 1.0
        owner.kill()


def test_losing_the_lease_does_not_kill_optimize_and_the_result_is_kept(
    studies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study, observer = studies(space=SPACE, budget=4), studies()

    def objective(trial: Trial) -> float:
        trial.report(0.5, 0)
        if trial.number == 1:
            reclaim(observer, 1)
            study.trials  # noqa: B018  # the loss is noticed
            assert not trial.lease_held
            assert trial.should_prune()
            trial.report(0.25, 1)
            trial.set_user_attr("after", "the loss")
        return 1.0

    with caplog.at_level(logging.WARNING, "hopaas_p2p"):
        study.optimize(objective)
    assert "taken over" in caplog.text
    assert states(study).count("COMPLETE") == 4
    late = next(trial for trial in study.state.trials if trial.late_of == 1)
    assert late.values == (1.0,)


@pytest.mark.parametrize("end", ["prune", "fail", "report", "checkpoint", "upload"])
def test_losing_the_lease_does_not_kill_optimize_however_the_trial_ends(
    studies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    study, observer = studies(space=SPACE, budget=3), studies()
    (tmp_path / "file").write_bytes(b"weights")

    def objective(trial: Trial) -> float:
        if trial.number == 0:
            reclaim(observer, 0)
            with monkeypatch.context() as patched:  # a read may be as old as the store's freshness
                patched.setattr(Peer, "refresh_for_reading", lambda *_: None)
                if end == "checkpoint":
                    trial.checkpoint(b"weights", step=1)
                if end == "upload":
                    trial.upload(tmp_path / "file")
            if end == "report":
                study.trials  # noqa: B018
                trial.report(1.0, 1)
            if end == "fail":
                raise ValueError("lost and failed")
            raise optuna.TrialPruned
        return 1.0

    study.optimize(objective, catch=ValueError)
    assert states(study).count("COMPLETE") == 3


@pytest.mark.parametrize("end", [optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL])
def test_a_trial_that_was_given_back_for_its_owner_still_waits_whatever_the_owner_says_of_it(
    studies: Any, end: optuna.trial.TrialState
) -> None:
    """As `optimize(on=…)` gives back what its workers run when it is interrupted."""
    one, other = studies(space=SPACE), studies()
    trial = one.ask()
    record = TrialRelease(0, 1, reason="interrupted")
    other.storage.peer.commit(other.handle.log, record, owner=one.state.trials[0].owner)
    assert trial.should_prune()
    with pytest.raises(LeaseLost, match=r"^Trial 0 was returned \(interrupted\)\.$"):
        one.handle.finish(trial.number, end, None)
    assert [trial.state.name for trial in other.trials] == ["WAITING"]


def test_a_result_of_a_returned_trial_that_another_peer_runs_is_kept_and_nobody_says_it_was_taken(
    studies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study, other = studies(space=SPACE), studies()

    def objective(_: Trial) -> float:
        record = TrialRelease(0, 1, reason="pre-empted: SIGTERM")
        other.storage.peer.commit(other.handle.log, record, owner=study.state.trials[0].owner)
        other.ask()
        return 1.0

    study.optimize(objective, n_trials=1)
    (said,) = [record.getMessage() for record in caplog.records if "Trial 0" in record.getMessage()]
    assert said == "Trial 0 was returned (pre-empted: SIGTERM); its result is kept as trial 1."


def test_optimize_runs_a_trial_again_that_was_given_back_meanwhile(
    studies: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study, other = studies(space=SPACE, budget=1), studies()
    began: list[int] = []

    def objective(trial: Trial) -> float:
        began.append(trial.number)
        if len(began) == 1:
            record = TrialRelease(0, 1, reason="interrupted")
            other.storage.peer.commit(other.handle.log, record, owner=study.state.trials[0].owner)
            assert trial.should_prune()
            raise optuna.TrialPruned
        return 1.0

    with caplog.at_level(logging.INFO, "hopaas_p2p"):
        study.optimize(objective)
    assert (began, states(study)) == ([0, 0], ["COMPLETE"])
    assert [one for one in caplog.messages if one.lower().startswith("trial 0")] == [
        "Trial 0 was returned (interrupted).",
        "trial 0: 1, best 1 (#0)",
    ]


def test_a_lease_that_is_lost_while_somebody_asks_whether_it_is_valid_is_not(
    studies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, observer = studies(space=SPACE), studies()
    trial, real = study.ask(), Peer.lease_valid

    def after_a_stop(peer: Peer, *given: Any) -> bool:
        reclaim(observer, trial.number)
        peer.pull(study.handle.log)
        return real(peer, *given)

    monkeypatch.setattr(Peer, "lease_valid", after_a_stop)
    assert not trial.lease_valid


def test_a_told_loss_says_where_the_result_is_kept(studies: Any) -> None:
    study, observer = studies(space=SPACE), studies()
    trial = study.ask()
    reclaim(observer, trial.number)
    with pytest.raises(LeaseLost) as caught:
        study.tell(trial, 3.0)
    kept = caught.value.kept_as
    assert kept is not None
    assert study.state.trials[kept].values == (3.0,)
    assert study.state.trials[kept].late_of == trial.number
    assert caught.value.exit_code == 11


def test_a_stop_request_reaches_the_trial(studies: Any) -> None:
    study, owner = studies(space=SPACE), studies()
    trial = study.ask()
    assert not trial.should_prune()
    owner.stop_trial(trial.number, reason="too slow")
    assert trial.stop_requested == "too slow"
    assert trial.should_prune()
    study.tell(trial, state="pruned")
    with pytest.raises(InvalidInput, match="not RUNNING"):
        owner.stop_trial(trial.number)


# --- with study.trial() ------------------------------------------------------------------------------------------


def test_the_end_of_the_block_tells(study: Study) -> None:
    with study.trial() as trial:
        trial.tell(0.25)
    with study.trial() as trial:
        trial.report(3.0, 1)
        trial.report(2.0, 2)
    assert [trial.values for trial in study.trials] == [[0.25], [2.0]]


def test_a_trial_that_was_asked_for_is_not_told_by_the_word_of_the_block(study: Study) -> None:
    trial = study.ask()
    with pytest.raises(InvalidInput, match=r"call study\.tell\(trial, value\)"):
        trial.tell(0.25)
    study.tell(trial, 0.25)
    assert study.trials[0].values == [0.25]


def test_prune_in_the_block_prunes(study: Study) -> None:
    with study.trial() as trial:
        trial.report(3.0, 1)
        trial.prune()
    assert states(study) == ["PRUNED"]


def test_an_exception_fails_the_trial_with_its_reason_and_goes_on(study: Study) -> None:
    def train() -> None:
        raise ZeroDivisionError("loss / 0 " + "x" * 5000)

    with pytest.raises(ZeroDivisionError), study.trial():
        train()
    reason = study.state.trials[0].reason
    assert reason is not None
    assert reason.startswith("ZeroDivisionError: loss / 0")
    assert "in train" in reason
    assert len(reason) <= 2000
    assert study.state.failures_in_a_row == 1


@pytest.mark.parametrize("wrong", [float("nan"), "abc", None, (1.0, 2.0)])
def test_what_is_no_result_fails_the_trial_with_a_reason(study: Study, wrong: Any) -> None:
    with study.trial() as trial:
        trial.told = wrong if isinstance(wrong, tuple) else (wrong,)
    study.optimize(lambda _: wrong, n_trials=1)
    assert states(study) == ["FAIL", "FAIL"]
    assert all(trial.reason for trial in study.state.trials)
    with study.trial():
        pass
    assert study.state.trials[2].reason == "it ended without a value"


@pytest.mark.parametrize("form", ["with", "optimize"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_releases_the_trial(tmp_path: Path, studies: Any, form: str, number: signal.Signals) -> None:
    study = studies(space=SPACE)
    command = script(
        tmp_path,
        """
        import sys, time, hopaas_p2p
        study = hopaas_p2p.open_study(sys.argv[1], "s")

        def objective(trial):
            print("running", flush=True)
            for _ in range(600):  # a signal between two instructions of one long sleep would wait for its end
                time.sleep(0.1)

        if sys.argv[2] == "optimize":
            study.optimize(objective)
        else:
            with study.trial() as trial:
                objective(trial)
        """,
    )
    peer = subprocess.Popen(
        [*command, str(tmp_path / "store"), form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with peer:
        assert peer.stdout is not None
        assert peer.stdout.readline() == "running\n"
        peer.send_signal(number)
        said = peer.communicate(timeout=20)[1]
    assert ("trial 0: returned; the next process" in said) == (form == "optimize"), "which shows what it logs"
    assert peer.returncode == (143 if number == signal.SIGTERM else -2)
    (trial,) = study.state.trials
    assert trial.state.name == "WAITING"
    assert "interrupted" in trial.history[0].why
    again = study.ask()
    assert again.number == 0
    assert study.state.trials[0].epoch == 2


@pytest.mark.parametrize("ends", ["report", "return"])
def test_a_sigterm_that_somebody_swallowed_ends_the_peer_all_the_same(tmp_path: Path, studies: Any, ends: str) -> None:
    """As a callback from C does, or a bare `except` in a library."""
    study = studies(space=SPACE)
    command = script(
        tmp_path,
        """
        import os, signal, sys, hopaas_p2p
        study = hopaas_p2p.open_study(sys.argv[1], "s")

        def objective(trial):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except:
                pass
            if sys.argv[2] == "report":
                trial.report(0.5, 1)
            return 0.5

        study.optimize(objective)
        """,
    )
    done = subprocess.run([*command, str(tmp_path / "store"), ends], timeout=60, env=environment())
    assert done.returncode == 143
    assert states(study) == ["WAITING" if ends == "report" else "COMPLETE"]


def test_a_handler_of_the_programs_own_stays(study: Study) -> None:
    def own(_number: int, _frame: object) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    try:
        with study.trial() as trial:
            assert signal.getsignal(signal.SIGTERM) is own
            trial.tell(1.0)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


# --- tell --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [float("nan"), "abc", [1.0, 2.0], []])
def test_a_wrong_value_is_refused_and_the_trial_goes_on(study: Study, wrong: Any) -> None:
    trial = study.ask()
    with pytest.raises(InvalidInput):
        study.tell(trial, wrong)
    assert states(study) == ["RUNNING"]
    study.tell(trial, 1.0)


def test_only_who_runs_a_trial_may_end_it(study: Study, studies: Any) -> None:
    trial = study.ask()
    with pytest.raises(NotYourTrial):
        studies().tell(trial.number, 1.0)
    study.tell(trial, 2.0)
    with pytest.raises((NotYourTrial, optuna.exceptions.UpdateFinishedTrialError)):
        study.tell(trial, 3.0)
    assert study.trials[0].values == [2.0]


def test_a_trial_that_is_not_there_is_named(study: Study) -> None:
    with pytest.raises(NoSuchTrial, match="12"):
        study.tell(12, 1.0)
    for call in (study.provenance, study.stop_trial, study.requeue):
        with pytest.raises(NoSuchTrial, match="12"):
            call(12)


def test_a_state_that_is_none_is_refused(study: Study) -> None:
    trial = study.ask()
    with pytest.raises(InvalidInput, match="great"):
        study.tell(trial, state="great")


@pytest.mark.parametrize("in_block", [False, True], ids=["optimize", "block"])
def test_a_result_that_cannot_be_read_fails_the_trial_and_is_raised(study: Study, in_block: bool) -> None:
    class Tensor:
        def __float__(self) -> float:
            raise RuntimeError("the device is lost")

    with pytest.raises(RuntimeError, match="the device is lost"):
        if in_block:
            with study.trial() as trial:
                trial.tell(Tensor())
        else:
            study.optimize(lambda trial: Tensor(), n_trials=1)
    (ended,) = study.trials
    assert ended.state.name == "FAIL"
    assert "the device is lost" in study.state.trials[0].reason


def test_infinity_is_a_value(study: Study) -> None:
    study.tell(study.ask(), float("inf"))
    study.tell(study.ask(), 1.0)
    assert study.best_trial.number == 1


# --- enqueue and requeue -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [{"lr": 2.0}, {"lr": "high"}, {"depth": 2.5}, {"depth": 0}, {"width": 3}, {"lr": float("nan")}, {"lr": None}],
    ids=str,
)
def test_parameters_outside_the_space_are_not_queued(study: Study, params: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        study.enqueue_trial(params)
    assert states(study) == []


def test_a_queued_trial_comes_first_with_its_parameters(study: Study) -> None:
    number = study.enqueue_trial({"lr": 0.01}, user_attrs={"why": "a hunch"})
    trial = study.ask()
    assert trial.number == number
    assert trial.params["lr"] == 0.01
    assert "depth" in trial.params
    assert trial.user_attrs == {"why": "a hunch"}


def test_a_finished_trial_can_be_run_again(study: Study) -> None:
    first = study.ask()
    params = first.params
    study.tell(first, 1.0)
    again = study.requeue(first.number)
    trial = study.ask()
    assert trial.number == again
    assert trial.params == params


def test_a_running_trial_can_be_taken_away(study: Study, studies: Any) -> None:
    trial = study.ask()
    retry = studies().requeue(trial.number)
    assert retry == 1
    assert states(study) == ["FAIL", "WAITING"]
    assert not trial.lease_held


def test_a_trial_that_waits_is_not_queued_twice(study: Study) -> None:
    number = study.enqueue_trial({"lr": 0.01})
    assert number is not None
    with pytest.raises(InvalidInput, match="trial 0 is already waiting"):
        study.requeue(number)
    assert states(study) == ["WAITING"]


def test_a_trial_is_taken_away_once_however_many_ask(study: Study, studies: Any) -> None:
    trial = study.ask()
    studies().requeue(trial.number, epoch=1)
    with pytest.raises(InvalidInput, match="FAIL, not RUNNING"):
        study.requeue(trial.number, epoch=1)
    assert states(study) == ["FAIL", "WAITING"]


# --- exchanges, provenance, forks --------------------------------------------------------------------------------


def test_optimize_costs_one_exchange_a_trial(studies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = studies(space=SPACE, lease_ttl=3600.0, linger=3600.0)
    study.optimize(square, n_trials=2)
    calls = exchanges_of(study, monkeypatch)
    study.optimize(square, n_trials=20)
    assert len(calls) == 21  # each end leaves with the next start; one more for the last end
    assert all(outgoing is not None for outgoing in calls)


def test_provenance_is_stored_with_each_trial(studies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPAAS_SITE", "the-moon")
    monkeypatch.setenv("SLURM_JOB_ID", "4714")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    study = studies(space=SPACE)
    study.tell(study.ask(), 1.0)
    told = studies().provenance(0)
    assert told["site"] == "the-moon"
    assert (told["batch"], told["job"]) == ("slurm", "4711_3")
    assert told["pid"] == str(os.getpid())
    assert {"host", "user", "python", "optuna", "hopaas_p2p"} <= told.keys()


def test_the_data_frame_says_where_trials_ran(study: Study) -> None:
    pytest.importorskip("pandas")
    study.optimize(square, n_trials=2)
    frame = study.trials_dataframe()
    assert {"number", "value", "params_lr", "attempt", "owner", "site", "host"} <= set(frame.columns)
    assert list(frame["attempt"]) == [1, 1]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_children_draw_different_parameters(studies: Any) -> None:
    study = studies(space=SPACE, sampler=optuna.samplers.RandomSampler(seed=1))
    study.tell(study.ask(), 0.0)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                study.tell(study.ask(), 1.0)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len({trial.params["lr"] for trial in study.trials}) == 4
    assert len({trial.owner for trial in study.state.trials}) == 4


def test_callbacks_see_the_finished_trial(study: Study) -> None:
    seen: list[tuple[int, str]] = []
    study.optimize(square, n_trials=3, callbacks=[lambda _, trial: seen.append((trial.number, trial.state.name))])
    assert seen == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "COMPLETE")]


def test_timeout_ends_optimize_between_trials(study: Study) -> None:
    study.optimize(square, timeout=0.2)
    assert set(states(study)) == {"COMPLETE"}


def test_an_exception_that_is_not_caught_is_raised_and_the_trial_failed(study: Study) -> None:
    def objective(_: Trial) -> float:
        raise KeyError("lr2")

    with pytest.raises(KeyError):
        study.optimize(objective)
    assert states(study) == ["FAIL"]
    assert (study.state.trials[0].reason or "").startswith("KeyError: 'lr2'")


def test_several_objectives(studies: Any) -> None:
    study = studies(space=SPACE, directions=["minimize", "maximize"])
    study.optimize(lambda trial: (trial.params["lr"], trial.params["depth"]), n_trials=3)
    study.optimize(lambda _: 1.0, n_trials=1)
    assert states(study) == ["COMPLETE"] * 3 + ["FAIL"]
    assert "2 values expected, got 1" in (study.state.trials[3].reason or "")


def test_define_by_run_needs_no_space(studies: Any) -> None:
    study = studies()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert study.space == {}
    assert all("x" in trial.params for trial in study.trials)


def test_importing_the_package_loads_no_optuna() -> None:
    code = "import sys, hopaas_p2p; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, env=environment()).returncode == 0


def test_trials_appear_to_other_peers(study: Study, studies: Any) -> None:
    other = studies()
    trial = study.ask()
    trial.report(1.0, 1)
    until(lambda: other.trials and other.trials[0].intermediate_values == {1: 1.0}, what="the report to arrive")


def test_a_study_without_a_space_may_be_given_one_and_draws_from_it(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s")
    trial = study.ask()
    trial.suggest_float("y", 0, 1)
    study.tell(trial, 1.0)
    study.set_space({"x": hopaas_p2p.Float(0, 5)})
    later = study.ask()
    assert later.params.keys() == {"x"}
    study.tell(later, 1.0)
    study.close()
    hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 5)}).close()
    hopaas_p2p.open_study(tmp_path / "store", "none").close()
    with pytest.raises(
        DefinitionMismatch, match=r"\n.*: hopaas-p2p study set none --space 'x=float\(0,1\)' --store \S+$"
    ):
        hopaas_p2p.open_study(tmp_path / "store", "none", space={"x": hopaas_p2p.Float(0, 1)})
    sure = hopaas_p2p.open_study(tmp_path / "store", "other", space={"x": hopaas_p2p.Float(0, 1)})
    with pytest.raises(DefinitionMismatch, match="is fixed; create another study"):
        sure.set_space({"x": hopaas_p2p.Float(0, 5)})
    sure.close()


def test_one_word_says_what_a_study_does(studies: Any) -> None:
    study = studies(space=SPACE, budget=2)
    words = [state_word(study.state)]
    trial = study.ask()
    words.append(state_word(study.state))
    study.tell(trial, 1.0)
    words.append(state_word(study.state))
    study.pause()
    words.append(state_word(study.state))
    study.resume()
    study.tell(study.ask(), 2.0)
    words.append(state_word(study.state))

    assert words == ["open", "running", "idle", "paused", "done"]


def test_a_call_of_which_all_trials_fail_ends_with_an_error_that_says_why(studies: Any) -> None:
    study = studies(space=SPACE, max_failures=3)

    with pytest.raises(NothingSucceeded, match=r"all 3 trials of this call failed; the last one: .*None"):
        study.optimize(lambda _: None)

    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.FAIL] * 3


def test_failures_after_a_success_and_an_asked_number_of_failures_are_no_error(studies: Any) -> None:
    study = studies(space=SPACE, budget=2)
    values = iter([1.0, *[None] * 12, 2.0])
    study.optimize(lambda _: next(values))
    assert study.state.counts[1] == 2

    other = studies("other", space=SPACE)
    other.optimize(lambda _: None, n_trials=11)
    assert len(other.trials) == 11


def test_nobody_waits_for_a_paused_study_whose_budget_is_spent(studies: Any) -> None:
    study = studies(space=SPACE, budget=hopaas_p2p.Budget(trials=5, epochs=2))
    study.optimize(_two_epochs)
    study.pause()

    study.optimize(_two_epochs, timeout=300)  # it waited until somebody resumed it

    with pytest.raises(NoWork, match="2 epochs are spent"):
        study.ask()
    study.set_budget(hopaas_p2p.Budget(epochs=4))
    with pytest.raises(NoWork, match="paused"):
        study.ask()


def test_a_peer_that_is_drained_does_not_wait_for_a_paused_study(studies: Any) -> None:
    study = studies(space=SPACE)
    study.optimize(_two_epochs, n_trials=1)
    study.pause()
    study.drain(peer=study.storage.peer.uuid)

    study.optimize(_two_epochs, timeout=300)

    with pytest.raises(NoWork, match="asked to take no more"):
        study.ask()
    assert len(study.trials) == 1


def _two_epochs(trial: Any) -> float:
    for step in range(2):
        trial.report(0.5, step)
    return 0.5


def test_a_closed_study_starts_no_trial_but_tells_those_it_has_and_can_be_read(store: str) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE)
    trial = study.ask()
    study.close()

    with pytest.raises(InvalidInput, match="this study was closed"):
        study.ask()
    study.tell(trial, 0.5)

    assert study.best_value == 0.5
    assert states(study) == ["COMPLETE"]


def test_close_returns_forgotten_trials_once_the_results_that_wait_are_sent(studies: Any) -> None:
    study, other = studies(space=SPACE), studies()
    kept = study.ask()
    study.ask().report(0.5, 0)  # nothing refers to it any more
    study.handle.finish(kept.number, optuna.trial.TrialState.COMPLETE, (1.0,), defer=True)

    study.close()

    assert [trial.state.name for trial in other.trials] == ["COMPLETE", "WAITING"]
    kinds = [(line["kind"], line["trial"]) for line in audit(other)]
    assert kinds.index(("trial.finish", 0)) < kinds.index(("trial.release", 1))


def test_a_trial_of_which_a_ticket_was_made_is_not_forgotten(studies: Any) -> None:
    study, other = studies(space=SPACE), studies()
    ticket_of(study, study.ask().number)

    study.close()

    assert [trial.state.name for trial in other.trials] == ["RUNNING"]


def test_a_store_that_falls_silent_at_close_costs_no_result_for_the_sake_of_a_forgotten_trial(
    studies: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, other = studies(space=SPACE), studies()
    kept = study.ask()
    study.ask()
    study.handle.finish(kept.number, optuna.trial.TrialState.COMPLETE, (1.0,), defer=True)
    real = WriteOnceLog.exchange

    def refuse_a_release(log: WriteOnceLog, outgoing: Outgoing | None, *given: Any) -> Any:
        if outgoing is not None and b"trial.release" in outgoing.payload:
            raise StoreUnreachable
        return real(log, outgoing, *given)

    with monkeypatch.context() as patched:
        patched.setattr(WriteOnceLog, "exchange", refuse_a_release)
        patched.setattr("hopaas_p2p.peer.peer._SHUTDOWN_TIMEOUT", 0.2)
        study.close()
    assert [trial.state.name for trial in other.trials] == ["COMPLETE", "RUNNING"]


def test_a_queued_name_that_no_trial_has_is_said(store: str, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(hopaas_p2p.open_study(store, "s")) as study:
        study.enqueue_trial({"model": 1.0})
        study.optimize(lambda trial: trial.suggest_float("model", 0, 2), n_trials=1)
        study.enqueue_trial({"model": 0.5})
        assert caplog.text == ""

        study.enqueue_trial({"modl": 1.0})

    assert "no trial of 's' so far has a parameter 'modl'; did you mean 'model'?" in caplog.text


def test_a_name_that_another_peer_chose_moves_no_cursor(store: str, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.closing(hopaas_p2p.open_study(store, "s")) as study:
        study.optimize(lambda trial: trial.suggest_float("a\x1b[2Jb", 0, 2), n_trials=1)
        caplog.clear()

        study.enqueue_trial({"quite another": 1.0})

    assert r"they have 'a\x1b[2Jb'" in caplog.text
    assert "\x1b" not in caplog.text


def test_a_report_waits_for_no_store_while_the_log_is_read_again(study: Study) -> None:
    trial = study.ask()
    with store_away(), study.handle.log.lock:
        before = study.handle.log.session.state
        study.handle.log.session.start_from(State())  # and then the store went away
        trial.report(0.5, 1)
        study.handle.log.session.start_from(before)
        study.handle.log.session.joined = True
    assert study.tell(trial, 0.5).intermediate_values == {1: 0.5}


def test_the_last_look_at_a_study_shows_its_last_trial(studies: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study = studies(space=SPACE, budget=2)
    watched, is_over = studies(), Study.is_over
    study.tell(study.ask(), 0.5)
    last = study.ask()

    def ends_meanwhile(self: Study) -> bool:
        if self.state.running:
            study.tell(last, 0.25)
        return is_over(self)

    monkeypatch.setattr(Study, "is_over", ends_meanwhile)
    look = next(looks(watched))
    assert (look["done"], look["counts"]["COMPLETE"], look["running"]) == (True, 2, [])


@pytest.mark.parametrize("end", ["hopaas_p2p.peer.peer.Meter.begin", "hopaas_p2p.study.study.copy_of"])
def test_an_ask_that_is_interrupted_at_its_very_end_leaves_nothing_behind(
    study: Study, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    def interrupted(*_given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(end, interrupted)
        study.ask()
    assert study.handle.running_here() == []
    assert not study.storage.peer.meter._running, "later trials are not charged half"
    until(lambda: states(study) == ["WAITING"])
    study.tell(study.ask(), 0.5)
    assert states(study) == ["COMPLETE"]
