"""What a peer writes, all peers read: it applies its own records unread, and must not know more than they do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, TrialFinish, TrialState, TrialStop
from hopaas_p2p.core.state import Verdict
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.peer.outbox import PendingCommit
from hopaas_p2p.peer.session import STUDY, LogSession
from hopaas_p2p.study import Study
from tests.support.studies import opened_study

SPACE = {"x": hopaas_p2p.Float(0, 1)}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE)


def as_others_see(study: Study) -> Study:
    return hopaas_p2p.open_study(study.storage.url, study.name, create=False)


@pytest.mark.parametrize("reason", [5, "caf\udce9.csv", "x" * 10_000_000, "\ud800"])
def test_a_result_is_not_lost_for_its_reason(study: Study, reason: Any) -> None:
    trial = study.ask()
    trial.report(0.5, 1)
    trial.set_user_attr("kept", True)
    study.tell(trial, 1.0, reason=reason)

    there = as_others_see(study).trials[0]
    assert (there.state, there.values, there.intermediate_values, there.user_attrs) == (
        optuna.trial.TrialState.COMPLETE,
        [1.0],
        {1: 0.5},
        {"kept": True},
    )


@pytest.mark.parametrize("reason", [5, "caf\udce9.csv"])
def test_a_trial_is_given_back_whatever_the_reason(study: Study, reason: Any) -> None:
    trial = study.ask()
    assert study.handle.release(trial.number, reason=reason)
    assert as_others_see(study).trials[0].state is optuna.trial.TrialState.WAITING


def test_long_choices_of_one_trial_take_nothing_of_it_or_of_another_along(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(hopaas_p2p.open_storage(tmp_path / "store", linger=3600.0), "s")
    first, second = study.ask(), study.ask()
    second.report(0.5, 1)
    for number in range(120):
        first.suggest_categorical(f"c{number}", ["a" * 30_000, "b" * 30_000])
    first.report(0.7, 1)
    study.storage.flush()
    study.tell(first, 1.0)
    study.tell(second, 2.0)

    one, other = as_others_see(study).trials
    assert (len(one.params), one.intermediate_values, one.values) == (120, {1: 0.7}, [1.0])
    assert (other.intermediate_values, other.values) == ({1: 0.5}, [2.0])


def test_a_draft_that_cannot_be_written_takes_none_of_another_trial_along() -> None:
    session = LogSession(STUDY, "ann", now_us=lambda: 0)
    session.draft(0, 1, "ann").system["half"] = "\ud800"
    session.draft(1, 1, "ann").reports[1] = 0.5
    session.draft(2, 1, "ann").reports[1] = 0.25
    sent = []
    while (outgoing := session.next_commit()) is not None:
        sent.append(outgoing)
        commit = codec.decode(outgoing.payload)
        assert isinstance(commit, Commit)
        session.settle((Verdict(True),) * len(commit.records))
    reports = [record.reports for one in sent for record in codec.decode(one.payload).records]  # type: ignore[union-attr]
    assert reports == [{1: 0.5}, {1: 0.25}]


@pytest.mark.parametrize("length", [1, 600_000])
def test_of_an_attribute_that_is_set_while_others_are_still_on_their_way_the_last_value_counts(length: int) -> None:
    session, found = LogSession(STUDY, "ann", now_us=lambda: 0), dict[str, str]()
    session.draft(0, 1, "ann").user.update({key: key * 300_000 for key in "abc"})
    session.next_commit()
    session.draft(0, 1, "ann").user["c"] = last = "d" * length
    while session.next_commit() is not None:
        for record in session.in_flight[0].commit.records:
            found |= record.user  # type: ignore[union-attr]
        session.settle(())
    assert found == {"a": "a" * 300_000, "b": "b" * 300_000, "c": last}


_DIGITS = 10**5000  # more than Python writes out


@pytest.mark.parametrize(
    "call",
    [
        lambda study, trial: trial.report(_DIGITS, 1),
        lambda study, trial: trial.report(0.5, _DIGITS),
        lambda study, trial: trial.log(1, loss=_DIGITS),
        lambda study, trial: trial.checkpoint(b"", step=_DIGITS),
        lambda study, trial: trial.set_user_attr("a" * 100_000, 1),
        lambda study, trial: trial.suggest_float("a" * 100_000, 0.0, 1.0),
        lambda study, trial: trial.suggest_categorical("c", ["a" * 2_000_000, "b"]),
        lambda study, trial: study.tell(_DIGITS, 0.5),
        lambda study, trial: study.stop_trial(_DIGITS),
        lambda study, trial: study.set_budget(-_DIGITS),
    ],
)
def test_what_is_too_large_for_a_log_is_refused_in_a_line(study: Study, call: Callable[[Any, Any], Any]) -> None:
    trial = study.ask()
    with pytest.raises(InvalidInput):
        call(study, trial)
    study.tell(trial, 0.5)


def test_a_step_that_is_true_is_step_one_of_a_checkpoint_for_all(study: Study) -> None:
    trial = study.ask()
    trial.checkpoint(b"weights", step=True)
    (checkpoint,) = as_others_see(study).state.trials[0].checkpoints
    assert (checkpoint.step, type(checkpoint.step)) == (1, int)


def test_a_checkpoint_with_an_impossible_step_takes_no_report_with_it(study: Study) -> None:
    trial = study.ask()
    trial.report(0.5, 1)
    with pytest.raises(InvalidInput, match="at most 9007199254740991"):
        trial.checkpoint(b"weights", step=1 << 70)
    study.tell(trial, 1.0)
    assert as_others_see(study).trials[0].intermediate_values == {1: 0.5}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda study: study.drain(site=5),
        lambda study: study.drain(site="x", off=1),
        lambda study: study.drain(site="\ud800"),
        lambda study: study.set_budget(hopaas_p2p.Budget(gpu_hours=True)),
        lambda study: study.set_budget(hopaas_p2p.Budget(epochs=5.5)),
    ],
)
def test_what_others_could_not_read_is_refused_where_it_is_said(study: Study, wrong: Callable[[Study], None]) -> None:
    with pytest.raises(InvalidInput):
        wrong(study)
    assert not as_others_see(study).state.refusals


@pytest.mark.parametrize(
    "options",
    [
        {"space": {"x": hopaas_p2p.Int(0, 2.0)}},  # type: ignore[arg-type]
        {"space": {1: hopaas_p2p.Float(0, 1)}},
        {"space": {"\ud800": hopaas_p2p.Float(0, 1)}},
        {"space": [1]},
        {"space": {"x": hopaas_p2p.Float(0, None)}},  # type: ignore[arg-type]
        {"budget": hopaas_p2p.Budget(epochs=5.5)},  # type: ignore[arg-type]
        {"budget": hopaas_p2p.Budget(gpu_hours=True)},
    ],
)
def test_no_study_is_created_that_nobody_can_read(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        opened_study(tmp_path / "store", "s", **options)
    assert hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE).ask().number == 0, "its name is free"


@pytest.mark.parametrize(
    "space",
    [
        {"x": hopaas_p2p.Int(True, 2)},
        {"x": hopaas_p2p.Int(1, 5, log=1)},  # type: ignore[arg-type]
        {"x": hopaas_p2p.Float(1, 2, log=0)},  # type: ignore[arg-type]
    ],
)
def test_a_space_with_truths_for_numbers_is_the_same_for_all(tmp_path: Path, space: Any) -> None:
    here = hopaas_p2p.open_study(tmp_path / "store", "s", space=space)
    here.tell(here.ask(), 1.0)
    there = as_others_see(here)
    assert (there.space, there.trials[0].params) == (here.space, here.trials[0].params)


def test_a_scale_that_is_one_is_a_log_scale_for_all(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 1e-3, 1, log=1) + trial.suggest_int("n", 1, 9, log=0)  # type: ignore[call-overload]

    storage = hopaas_p2p.open_storage(tmp_path / "store")
    here = optuna.create_study(storage=storage, study_name="s")
    here.optimize(objective, n_trials=1)
    there = optuna.load_study(storage=hopaas_p2p.open_storage(tmp_path / "store"), study_name="s")
    assert there.trials[0].params == here.trials[0].params
    assert there.trials[0].params


def test_the_key_of_an_attribute_is_text_for_all(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(tmp_path / "store")
    here = optuna.create_study(storage=storage, study_name="s")
    here.set_user_attr(1, 2)  # type: ignore[arg-type]
    here.enqueue_trial({"x": 0.5}, user_attrs={1: 2})  # type: ignore[dict-item]
    here.ask().set_user_attr(3, 4)  # type: ignore[arg-type]
    storage.flush()
    there = optuna.load_study(storage=hopaas_p2p.open_storage(tmp_path / "store"), study_name="s")
    assert (there.user_attrs, there.trials[0].user_attrs) == ({"1": 2}, {"1": 2, "3": 4})


class Text(str):
    """A subclass, as of an enumeration or of numpy."""

    __slots__ = ()


@pytest.mark.parametrize("name", [None, 5, b"s"])
def test_a_study_is_not_called_by_what_is_no_text(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InvalidInput, match="must be a string"):
        hopaas_p2p.open_study(tmp_path / "store", name)


def test_a_study_may_be_called_by_a_subclass_of_text(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", Text("s"), space=SPACE)
    assert as_others_see(study).name == "s"


@pytest.mark.parametrize("variable", ["HOPAAS_SITE", "USER", "JOB_ID", "SLURM_CLUSTER_NAME"])
def test_a_peer_takes_part_whatever_bytes_its_environment_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("LOGNAME", "LNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, os.fsdecode(b"caf\xe9"))
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE)
    study.tell(study.ask(), 1.0)
    assert "caf\\udce9" in as_others_see(study).provenance(0).values()


def test_a_peer_takes_part_from_a_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE)
    study.tell(study.ask(), 1.0)
    assert len(as_others_see(study).trials) == 1


def test_a_peer_takes_part_from_a_checkout_with_a_branch_in_latin_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(b"ref: refs/heads/caf\xe9\n")
    monkeypatch.chdir(tmp_path)
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE)
    assert "git_commit" not in study.provenance(study.ask().number)


@pytest.mark.parametrize("store", ["", "\0", "\ud800", 5, None, "~nobody-of-this-name/store"])
def test_what_names_no_store_is_said_to(store: Any) -> None:
    with pytest.raises(ConfigurationError):
        hopaas_p2p.open_storage(store)


def test_a_result_too_large_for_a_float_fails_its_trial_and_no_other(study: Study) -> None:
    study.optimize(lambda trial: 10**400 if trial.number == 0 else 1.0, n_trials=2)
    assert [trial.state.name for trial in as_others_see(study).trials] == ["FAIL", "COMPLETE"]


def test_a_record_that_cannot_be_written_takes_no_other_with_it() -> None:
    session = LogSession(STUDY, "w", now_us=lambda: 1)
    bad = PendingCommit("w", (TrialStop(0, 1, "\ud800"),))
    good = [PendingCommit("w", (TrialFinish(n, 1, TrialState.COMPLETE, (1.0,)),)) for n in range(3)]
    session.draft(7, 1, "w").reports[1] = 0.5
    for pending in (good[0], bad, *good[1:]):
        session.queued.append(pending)

    sent: list[PendingCommit] = []
    while session.next_commit() is not None:
        sent += session.in_flight[0].pending
        session.settle(())

    assert isinstance(bad.error, InvalidInput)
    assert all(pending in sent for pending in good)
    assert any(record.reports == {1: 0.5} for one in sent for record in one.records if hasattr(record, "reports"))
    assert bad not in sent


def test_records_that_fit_only_alone_are_sent_alone() -> None:
    session = LogSession(STUDY, "w", now_us=lambda: 1)
    large = [PendingCommit("w", (TrialStop(n, 1, "x" * 3_000_000),)) for n in range(3)]
    for pending in large:
        session.queued.append(pending)
    sent: list[PendingCommit] = []
    while session.next_commit() is not None:
        sent += session.in_flight[0].pending
        session.settle(())
    assert sent == large
    assert [pending.error for pending in large] == [None] * 3
