"""What happens to one study is no matter of the others that a process takes part in."""

from __future__ import annotations

import pickle
from pathlib import Path

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.errors import Denied, HopaasError, NoSuchStudy, NoSuchTrial, StudyDeleted
from hopaas_p2p.storage import Storage
from hopaas_p2p.stores.memory import MemoryStore
from hopaas_p2p.stores.objects.log import WriteOnceLog


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Takes part in a study that another process has deleted, and has something to say about it."""
    storage = hopaas_p2p.open_storage(tmp_path / "store", linger=3600.0)
    doomed = optuna.create_study(storage=storage, study_name="doomed")
    doomed.ask().set_user_attr("said", 1)
    other = hopaas_p2p.open_storage(tmp_path / "store")
    other.delete_study(other.get_study_id_from_name("doomed"))
    return storage


def test_a_study_is_optimized_beside_one_that_was_deleted(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, study_name="alive")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(study.trials) == 2


def test_what_was_said_of_a_deleted_study_keeps_nothing_from_being_sent(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, study_name="alive")
    study.ask().set_user_attr("said", 1)
    storage.flush()
    there = optuna.load_study(storage=hopaas_p2p.open_storage(storage.url), study_name="alive")
    assert there.trials[0].user_attrs == {"said": 1}


def test_a_storage_travels_beside_a_study_that_was_deleted(storage: Storage) -> None:
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.study_names() == []


def test_a_study_is_optimized_beside_one_that_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = hopaas_p2p.open_storage(tmp_path / "store", linger=3600.0)
    closed = optuna.create_study(storage=storage, study_name="closed")
    closed.ask().set_user_attr("said", 1)
    log, exchange = storage.handle(closed._study_id).log.log, WriteOnceLog.exchange

    def deny(self: WriteOnceLog, outgoing: object, *args: object) -> object:
        if self is log and outgoing is not None:
            raise Denied("closed")
        return exchange(self, outgoing, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(WriteOnceLog, "exchange", deny)
    study = optuna.create_study(storage=storage, study_name="open")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(study.trials) == 2
    assert "closed" in caplog.text


def test_whoever_uses_a_deleted_study_is_told_so_by_an_error_of_ours_that_optuna_knows(tmp_path: Path) -> None:
    study = hopaas_p2p.open_study(tmp_path / "store", "s", space={"x": hopaas_p2p.Float(0, 1)})
    study.ask()
    hopaas_p2p.open_storage(tmp_path / "store").delete_study(study.study_id)
    with pytest.raises(HopaasError, match="deleted"):
        study.ask()
    for use in (lambda: study.trials, lambda: study.state, study.pause, lambda: study.enqueue_trial({"x": 0.5})):
        with pytest.raises(NoSuchStudy, match=r"^No study with study_id 0 exists") as found:
            use()
        assert isinstance(found.value, KeyError)
    with pytest.raises(HopaasError):
        study.optimize(lambda _: 1.0, n_trials=1)


@pytest.mark.parametrize("freshness", [0.0, 3600.0])
def test_a_process_reaches_the_next_study_of_a_name_and_hears_that_the_one_it_used_was_deleted(
    monkeypatch: pytest.MonkeyPatch, freshness: float
) -> None:
    monkeypatch.setattr(MemoryStore, "freshness", freshness)
    space = {"x": hopaas_p2p.Float(0, 1)}
    storage, other = hopaas_p2p.open_storage("memory://namesakes"), hopaas_p2p.open_storage("memory://namesakes")
    study = hopaas_p2p.open_study(storage, "s", space=space)
    trial = study.ask()
    trial.report(1.0, 0)
    other.delete_study(study.study_id)

    with pytest.raises(NoSuchStudy, match="there is no study 's'"):
        hopaas_p2p.open_study(storage, "s", create=False)
    new = hopaas_p2p.open_study(other, "s", space=space)
    assert hopaas_p2p.open_study(storage, "s").study_id == storage.get_study_id_from_name("s") == new.study_id
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 0
    with pytest.raises(StudyDeleted):
        study.ask()
    for use in (
        lambda: trial.report(0.5, 1),
        lambda: trial.log(1, loss=0.5),
        lambda: trial.set_user_attr("k", 1),
        lambda: trial.suggest_float("y", 0, 1),
        lambda: storage.set_trial_intermediate_value(trial.id, 2, 0.5),
        lambda: storage.get_trial(trial.id),
        lambda: trial.lease_valid,
        trial.should_prune,
        study.ask,
        study.pause,
        lambda: study.state,
        lambda: study.trials,
        lambda: storage.get_study_name_from_id(study.study_id),
        lambda: storage.delete_study(study.study_id),
    ):
        with pytest.raises(KeyError, match=r"^No .*deleted\.$") as found:
            use()
        assert isinstance(found.value, HopaasError)
    assert new.ask().number == 0


def test_a_trial_that_is_not_there_is_an_error_of_ours_that_optuna_knows(tmp_path: Path) -> None:
    storage = hopaas_p2p.open_storage(tmp_path / "store")
    study = optuna.create_study(storage=storage, study_name="s")
    for trial_id in (0, (study._study_id << 32) + 7, 5 << 32, -1):
        with pytest.raises(NoSuchTrial, match=f"^No trial with trial_id {trial_id} exists") as found:
            storage.get_trial(trial_id)
        assert isinstance(found.value, KeyError)
