"""Commands that go through trials or studies one by one, while others end them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hopaas_p2p
from hopaas_p2p import study as study_module
from hopaas_p2p.cli import worker
from hopaas_p2p.cli.main import run
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.storage.handle import StudyHandle
from hopaas_p2p.study import Study

SPACE = {"x": hopaas_p2p.Float(0, 1)}


@pytest.mark.parametrize(
    ("outcome", "code"), [("COMPLETE", 0), ("PRUNED", 0), ("FAIL", 1), ("LOST", 11), ("WAITING", 75), ("RUNNING", 75)]
)
def test_run_says_by_its_exit_code_what_became_of_its_trial(
    outcome: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "work", lambda *_, **__: (0, [(7, outcome)]))
    assert run(["run", "--", "true"]) == code


def test_a_trial_that_ends_while_a_study_is_stopped_does_not_keep_the_others_from_being_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE)
    trials = [study.ask() for _ in range(3)]
    stop_trial = Study.stop_trial

    def ends_first(self: Study, number: int, **options: Any) -> None:
        if number == 1:
            study.tell(trials[1], 0.5)
        stop_trial(self, number, **options)

    monkeypatch.setattr(Study, "stop_trial", ends_first)
    assert run(["study", "stop", "s", "--trials", "--store", str(tmp_path / "store")]) == 0
    assert [bool(trial.stop_requested) for trial in trials] == [True, False, True]


@pytest.mark.parametrize("known", [True, False], ids=["which is known here", "which is not known here yet"])
def test_a_waiting_trial_that_is_started_while_it_is_withdrawn_is_asked_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], known: bool
) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE)
    study.enqueue_trial({"x": 0.5})
    finish, started = StudyHandle.finish, []

    def starts_first(self: StudyHandle, number: int, *args: Any, **options: Any) -> None:
        started.append(study.ask())
        if known:
            self.peer.catch_up(self.log)
        finish(self, number, *args, **options)

    monkeypatch.setattr(StudyHandle, "finish", starts_first)
    assert run(["trial", "stop", "0", "--study", "s", "--store", str(tmp_path / "store")]) == 0
    assert "Trial 0 was asked to end." in capsys.readouterr().err
    assert started[0].stop_requested


def test_a_study_that_is_deleted_while_studies_are_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = hopaas_p2p.open_storage(tmp_path / "store")
    for name in ("first", "second", "third"):
        hopaas_p2p.open_study(storage, name, space=SPACE)
    open_study = study_module.open_study

    def deletes_first(there: Any, name: str, **options: Any) -> Study:
        if name == "second":
            storage.delete_study(storage.get_study_id_from_name(name))
        return open_study(there, name, **options)

    monkeypatch.setattr(study_module, "open_study", deletes_first)
    assert run(["study", "list", "--store", str(tmp_path / "store")]) == 0
    listed = capsys.readouterr().out
    assert [name in listed for name in ("first", "second", "third")] == [True, False, True]


def test_the_schedule_of_a_study_with_several_objectives_needs_a_trial(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space=SPACE, directions=["minimize", "maximize"])
    study.tell(study.ask(), (0.5, 0.5))
    with pytest.raises(InvalidInput, match="give a trial"):
        study.schedule()
