"""Loops of one's own: when they report, when they save, and what every rank does."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.errors import InvalidInput, StoreUnreachable
from hopaas_p2p.study import Study
from hopaas_p2p.study.ranks import RankedTrial, Ranks
from hopaas_p2p.training import Training
from tests.support.processes import campaign, states


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    one = campaign(tmp_path, budget=2, pruner=optuna.pruners.ThresholdPruner(upper=50.0))
    yield one
    one.close()


class Model:
    """What is trained: it counts."""

    def __init__(self) -> None:
        self.count = 0

    def save(self, path: Path) -> None:
        path.write_text(str(self.count))

    def load(self, path: Path) -> None:
        self.count = int(path.read_text())


def test_who_gives_a_value_at_a_rung_learns_that_the_trial_will_not_continue(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rungs = hopaas_p2p.Rungs(min=1, max=9)
    study = campaign(tmp_path, budget=2, fidelity=rungs)
    with study.trial() as trial:
        trial.report(1.0, 0)
    assert "trial 0 is COMPLETE and does not pause at its rung" in caplog.text
    caplog.clear()
    with study.trial() as trial:
        trial.report(1.0, 0)
        trial.prune()
    study.close()
    assert "at its rung" not in caplog.text


def train(training: Training, model: Model, steps: int, *, at: Callable[[int], None] = lambda step: None) -> list[int]:
    done = []
    for step in training.steps(steps):
        model.count += 1
        done.append(step)
        at(step)
        training.report(float(model.count))
    return done


def test_it_reports_every_few_steps_and_the_last(study: Study) -> None:
    trial = study.ask()

    train(Training(trial, report_every=4), Model(), 10)

    assert trial.intermediate_values == {3: 4.0, 7: 8.0, 9: 10.0}


def test_a_checkpoint_is_taken_every_few_steps_but_not_after_the_last(study: Study) -> None:
    trial, model = study.ask(), Model()

    train(Training(trial, save=model.save, load=model.load, checkpoint_every=2), model, 6)

    assert [one.step for one in study.state.trials[0].checkpoints] == [1, 3]


def test_sigterm_is_acted_upon_after_the_step_and_the_retry_goes_on(study: Study) -> None:
    model = Model()
    before = signal.getsignal(signal.SIGTERM)

    def objective(trial: hopaas_p2p.Trial) -> float:
        training = Training(trial, save=model.save, load=model.load)
        train(training, model, 6, at=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None)
        return 1.0

    with pytest.raises(SystemExit) as ended:
        study.optimize(objective)

    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert states(study) == ["WAITING"]
    again, fresh = study.ask(), Model()
    assert train(Training(again, save=fresh.save, load=fresh.load), fresh, 6) == [3, 4, 5]
    assert (again.number, fresh.count) == (0, 6)
    assert again.intermediate_values == {step: step + 1.0 for step in range(6)}


def test_a_request_to_stop_is_heard_at_any_step(study: Study) -> None:
    trial = study.ask()

    def at(step: int) -> None:
        if step == 1:
            study.stop_trial(0, reason="enough")

    with pytest.raises(optuna.TrialPruned):
        train(Training(trial, report_every=100), Model(), 200, at=at)
    assert list(trial.intermediate_values) == [1]


def test_an_outage_at_a_checkpoint_is_a_warning(
    study: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trial, model = study.ask(), Model()

    def away(*_: Any, **__: Any) -> None:
        raise StoreUnreachable

    monkeypatch.setattr("hopaas_p2p.files.checkpoints.save", away)

    done = train(Training(trial, save=model.save, load=model.load, checkpoint_every=1), model, 3)

    assert done == [0, 1, 2]
    assert "the checkpoint of step 0 was not stored" in caplog.text


def test_who_lost_its_lease_stops_at_the_checkpoint(tmp_path: Path, study: Study) -> None:
    trial, model = study.ask(), Model()
    other = campaign(tmp_path, budget=2)
    other.requeue(0)

    with pytest.raises(optuna.TrialPruned):
        train(Training(trial, save=model.save, load=model.load, checkpoint_every=1, report_every=100), model, 50)

    assert model.count == 1
    other.close()


class TwoThreads(Ranks):
    """Two ranks in two threads."""

    def __init__(self, rank: int, box: queue.Queue[bytes]) -> None:
        self.rank, self.size, self._box = rank, 2, box

    def _broadcast(self, data: bytes) -> bytes:
        if self.rank == 0:
            self._box.put(data)
            return data
        return self._box.get(timeout=60)

    def _gather(self, data: bytes) -> list[bytes]:
        return [data, self.others.get(timeout=60)] if self.rank == 0 else [self.others.put(data)][:0]

    others: queue.Queue[bytes] = queue.Queue()


def on_two_ranks(trial: hopaas_p2p.Trial, run: Callable[[RankedTrial], None]) -> None:
    """Run this on both at once."""
    box: queue.Queue[bytes] = queue.Queue()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, RankedTrial(trial if rank == 0 else None, TwoThreads(rank, box))) for rank in range(2)]
        for one in both:
            one.result(120)


def test_ranks_resume_and_stop_together(study: Study) -> None:
    first, model = study.ask(), Model()
    train(Training(first, save=model.save, load=model.load, checkpoint_every=2), model, 5)
    study.handle.release(first.number)
    again, counts = study.ask(), []

    def run(trial: RankedTrial) -> None:
        mine = Model()
        with pytest.raises(optuna.TrialPruned):
            train(Training(trial, save=mine.save, load=mine.load), mine, 100)
        counts.append(mine.count)

    on_two_ranks(again, run)

    assert counts == [51, 51]  # from the checkpoint after the fourth step, to the pruner's bound
    assert min(again.intermediate_values) == 0
    assert max(again.intermediate_values) == 50


def test_each_rank_can_have_its_own_part_of_a_checkpoint(study: Study) -> None:
    def save(trial: RankedTrial) -> None:
        trial.checkpoint(f"part {trial.ranks.rank}".encode(), step=3, each_rank=True)

    parts: dict[int, bytes] = {}

    def resume(trial: RankedTrial) -> None:
        assert trial.resume is not None
        assert trial.resume[0] == 3
        parts[trial.ranks.rank] = trial.resume[1].read_bytes()

    first = study.ask()
    on_two_ranks(first, save)
    study.handle.release(first.number)
    again = study.ask()
    on_two_ranks(again, resume)
    assert parts == {0: b"part 0", 1: b"part 1"}
    with pytest.raises(InvalidInput, match="of 2 ranks, not 1; train on as many as before"):
        RankedTrial(again, Ranks()).resume  # noqa: B018


def test_a_call_on_one_rank_only_is_an_error_that_names_both_calls(study: Study) -> None:
    def first_alone(trial: RankedTrial) -> None:
        if trial.ranks.rank == 0:
            trial.set_user_attr("seen", True)
        trial.should_prune()

    def others_alone(trial: RankedTrial) -> None:
        if trial.ranks.rank:
            trial.at_rung  # noqa: B018
        trial.ranks.broadcast("the end", None)

    with pytest.raises(InvalidInput, match=r"the first rank is at trial\.set_user_attr, and rank 1 at trial\.should_"):
        on_two_ranks(study.ask(), first_alone)
    with pytest.raises(InvalidInput, match=r"the first rank is at the end, and rank 1 at trial\.at_rung\."):
        on_two_ranks(study.ask(), others_alone)


def test_every_rank_knows_the_number_and_the_parameters_without_a_message(tmp_path: Path) -> None:
    known: dict[int, Any] = {}

    def run(trial: RankedTrial) -> None:
        if trial.ranks.rank == 1:
            known[0] = trial.number, dict(trial.params)
        y = trial.suggest_int("y", 0, 5)
        if trial.ranks.rank == 1:
            known[1] = y, trial.params["y"]
        trial.should_prune()

    with contextlib.closing(campaign(tmp_path, space=None)) as free:
        on_two_ranks(free.ask(), run)
        assert known == {0: (0, {}), 1: (known[1][0],) * 2}


def test_what_the_first_rank_raises_is_raised_on_all(study: Study) -> None:
    raised: list[str] = []

    def run(trial: RankedTrial) -> None:
        with pytest.raises(InvalidInput) as error:
            trial.report(10**400, 0)
        raised.append(str(error.value))

    on_two_ranks(study.ask(), run)

    assert len(set(raised)) == 1
    assert len(raised) == 2


@pytest.mark.parametrize(
    "options",
    [{"report_every": 0}, {"checkpoint_every": 0}, {"save": lambda path: None}],
    ids=["no step", "no checkpoint", "no load"],
)
def test_what_makes_no_sense_is_refused_at_once(study: Study, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        Training(study.ask(), **options)


def test_what_numpy_gives_reaches_every_rank(study: Study) -> None:
    """Optuna's pruners answer with numpy's bool."""
    assert Ranks().call("should_prune", lambda: np.bool_(True)) is True
    trial = study.ask()
    trial.report(100.0, 1)
    assert RankedTrial(trial, Ranks()).should_prune() is trial.should_prune() is True


def test_a_value_that_is_not_due_is_not_waited_for(study: Study) -> None:
    read: list[int] = []

    class OnGpu:
        def __init__(self, step: int) -> None:
            self.step = step

        def __float__(self) -> float:
            read.append(self.step)
            return 0.5

    training = Training(study.ask(), report_every=3)
    for step in training.steps(5):
        training.report(OnGpu(step))  # type: ignore[arg-type]
    assert read == [2, 4]
