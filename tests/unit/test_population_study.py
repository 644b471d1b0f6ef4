"""A population, from `open_study` to its schedule: what people call, on a real directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hopaas_p2p
from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.fidelity import Population
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.errors import DefinitionMismatch, InvalidInput, NoSuchTrial, NoWork
from hopaas_p2p.files.checkpoints import unneeded
from hopaas_p2p.spec.fidelity import in_words, parse
from hopaas_p2p.study import Schedule, Study
from hopaas_p2p.study.method import SearchMethod, chosen_by
from hopaas_p2p.training import Training
from tests.support.exchanges import exchanges_of
from tests.support.processes import cli
from tests.support.studies import opened_study

SPACE = {"lr": hopaas_p2p.Float(0.01, 1.0, log=True), "layers": hopaas_p2p.Int(1, 3)}
SMALL = Population(size=4, every=2, max=8, quantile=0.25, fixed=("layers",))


def _opened(store: Path, **options: object) -> Study:
    return opened_study(store, "s", **options)  # type: ignore[arg-type]


class Descent:
    """A training whose model is one number, and the steps that made it."""

    def __init__(self, trial: hopaas_p2p.Trial) -> None:
        self.lr, self.layers = trial.params["lr"], trial.params["layers"]
        self.loss, self.made_with = 1.0, ""

    def save(self, path: Path) -> None:
        path.write_text(f"{self.loss};{self.made_with};{self.layers}")

    def load(self, path: Path) -> None:
        loss, self.made_with, layers = path.read_text().split(";")
        assert int(layers) == self.layers, "a checkpoint fits the trial that goes on from it"
        self.loss = float(loss)

    def epoch(self) -> float:
        self.loss *= 1 - self.lr / 2
        self.made_with += f"{self.lr!r} "
        return self.loss


class Trained:
    """Counts the epochs of all trainings, and keeps what made the last model of each."""

    def __init__(self) -> None:
        self.epochs = 0
        self.made_with: dict[int, list[float]] = {}

    def __call__(self, trial: hopaas_p2p.Trial) -> float:
        model = Descent(trial)
        training = Training(trial, save=model.save, load=model.load)
        for _ in training.steps(8):
            value = model.epoch()
            self.epochs += 1
            self.made_with[trial.number] = [float(one) for one in model.made_with.split()]
            training.report(value)
        return value


def test_a_population_trains_to_its_end_and_says_the_schedule_of_the_best(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, fidelity=SMALL)
    trained = Trained()
    study.optimize(trained)
    state = study.state
    assert finished(state)
    assert (state.counts[TrialState.COMPLETE], state.used()) == (4, 4)
    assert trained.epochs == 4 * 8  # no epoch is done twice
    copies = [trial for trial in state.trials if copied_trial(trial) is not None]
    assert copies
    assert chosen_by(copies[0], state) == f"perturbed from trial {copied_trial(copies[0])}"
    found = study.schedule()
    assert found.trial == study.best_trial.number
    assert found.value == study.best_value
    assert [found.at(step)["lr"] for step in range(8)] == trained.made_with[found.trial]
    assert Schedule.from_json(found.to_json()) == found
    study.close()


def test_a_peer_that_no_member_waits_for_is_told_so(tmp_path: Path) -> None:
    fidelity = hopaas_p2p.Population(size=2, every=2, max=4)
    study = hopaas_p2p.open_study(str(tmp_path), "s", space={"lr": hopaas_p2p.Float(0, 1)}, fidelity=fidelity)
    running = [study.ask(), study.ask()]
    with pytest.raises(NoWork, match="all members of the population have started"):
        study.ask()
    for trial in running:
        study.tell(trial, state="fail")
    study.close()


def test_a_schedule_is_replayed_without_the_study(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, fidelity=SMALL)
    study.optimize(Trained())
    text, best = study.schedule().to_json(), study.best_value
    study.close()
    schedule, loss = Schedule.from_json(text), 1.0
    for step in range(8):
        loss *= 1 - schedule.at(step)["lr"] / 2
    assert loss == best


def test_a_schedule_is_there_before_a_trial_is_complete(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, fidelity=SMALL)
    with pytest.raises(NoSuchTrial, match="no trial of 's' has reported"):
        study.schedule()
    study.optimize(Trained(), n_trials=6)
    found = study.schedule()
    assert found.entries[-1].last == 3
    assert study.schedule(0).entries[0].trial == 0
    with pytest.raises(NoSuchTrial, match="no trial 99"):
        study.schedule(99)
    with pytest.raises(InvalidInput, match="not a schedule"):
        Schedule.from_json("[]")
    study.close()


def test_a_lost_checkpoint_costs_the_training_and_no_more(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, fidelity=SMALL)
    trained = Trained()
    study.optimize(trained, n_trials=4)
    for path in [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "checkpoint"]:
        path.unlink()
    study.optimize(trained)
    assert finished(study.state)
    assert study.state.counts[TrialState.COMPLETE] == 4
    assert trained.epochs == 4 * 8 + 4 * 2
    found = study.schedule()
    assert [found.at(step)["lr"] for step in range(8)] == trained.made_with[found.trial]
    study.close()


def test_a_pause_costs_no_further_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a trial and the start of the next are one exchange, whether that is new, goes on or copies."""
    study = _opened(tmp_path, space=SPACE, fidelity=SMALL, lease_ttl=3600.0, linger=3600.0)

    def objective(trial: hopaas_p2p.Trial) -> float:
        for step in range(8):
            trial.report(trial.params["lr"], step)
            if trial.should_prune():
                trial.prune()
        return float(trial.params["lr"])

    study.optimize(objective, n_trials=1)
    calls = exchanges_of(study, monkeypatch)
    study.optimize(objective, n_trials=12)
    assert any(copied_trial(trial) is not None for trial in study.state.trials)
    assert len(calls) == 13  # one more for the last end
    study.close()


def test_checkpoints_that_nobody_copies_any_more_are_removed_on_the_way(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, fidelity=Population(size=3, every=1, max=12, fixed=("layers",)))

    def objective(trial: hopaas_p2p.Trial) -> float:
        model = Descent(trial)
        training = Training(trial, save=model.save, load=model.load)
        for _ in training.steps(12):
            training.report(model.epoch())
        return model.loss

    kept: list[int] = []
    count = lambda *_: kept.append(sum(path.is_file() for path in tmp_path.rglob("checkpoint/*")))  # noqa: E731
    study.optimize(objective, callbacks=[count])
    assert len(kept) == 3 * 12
    assert 0 < max(kept) <= 3 * 4  # of each member the last two pauses, each with two checkpoints
    assert not any(path.name in "".join(unneeded(study.state)) for path in tmp_path.rglob("checkpoint/*"))
    study.close()


def test_another_population_is_refused_and_an_owner_may_change_it(tmp_path: Path) -> None:
    study = _opened(tmp_path, space=SPACE, fidelity=SMALL)
    _opened(tmp_path, fidelity=Population(size=4, every=2, max=8, quantile=0.25, fixed=["layers"])).close()  # type: ignore[arg-type]
    with pytest.raises(DefinitionMismatch, match=r"population\(size=4, every=2, max=8"):
        _opened(tmp_path, fidelity=Population(size=8, every=2, max=8))
    study.search_with(fidelity=Population(size=8, every=2, max=8))
    assert SearchMethod.stored(study.state.system).fidelity == Population(size=8, every=2, max=8)
    study.search_with(fidelity="none")
    assert SearchMethod.stored(study.state.system).fidelity is None
    study.close()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("population(size=16, every=5)", Population()),
        (
            "population(quantile=0.25,resample=0,fixed=layers+width)",
            Population(16, 5, 100, 0.25, 0.0, ("layers", "width")),
        ),
    ],
)
def test_populations_are_written_as_they_are_called(said: str, meant: Population) -> None:
    assert parse(said) == meant
    assert parse(in_words(meant)) == meant


@pytest.mark.parametrize(
    "said",
    ["population(size=1)", "population(quantile=most)", "population(eta=3)", "rungs(size=3)", "population(every=0)"],
)
def test_what_cannot_be_a_population_is_refused(said: str) -> None:
    with pytest.raises(InvalidInput):
        parse(said)


def test_a_population_needs_one_direction_and_numbers_of_the_right_kind(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="one direction"):
        _opened(tmp_path, directions=["minimize", "minimize"], fidelity=SMALL)
    with pytest.raises(InvalidInput, match="whole number"):
        _opened(tmp_path, fidelity=Population(size=4.0))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="must name parameters"):
        _opened(tmp_path, fidelity=Population(fixed="layers"))  # type: ignore[arg-type]


def test_the_command_prints_a_schedule_that_can_be_replayed(tmp_path: Path) -> None:
    study = _opened(tmp_path / "store", space=SPACE, fidelity=SMALL)
    study.optimize(Trained())
    here = {"HOPAAS_STORE": str(tmp_path / "store"), "HOPAAS_STUDY": "s"}
    printed = cli("study", "schedule", "--json", **here)
    assert Schedule.from_json(printed.stdout) == study.schedule()
    table = cli("study", "schedule", "s", "--trial", str(study.schedule().trial), **here).stdout
    assert table.splitlines()[0].split() == ["STEPS", "TRIAL", "PARAMETERS"]
    assert len(table.splitlines()) == 1 + len(study.schedule().entries)
    shown = json.loads(cli("study", "show", "--json", **here).stdout)
    assert [(one["epochs"], one["reached"], one["promoted"]) for one in shown["rungs"]] == [
        (n, 4, 4) for n in (2, 4, 6)
    ]
    assert shown["search"]["fidelity"] == in_words(SMALL)
    study.close()


def test_a_population_fixes_only_parameters_that_there_are(tmp_path: Path) -> None:
    space = {"lr": hopaas_p2p.Float(0.1, 1.0), "width": hopaas_p2p.Int(1, 3)}
    wrong = Population(size=4, every=1, max=3, fixed=("widht",))
    with pytest.raises(InvalidInput, match="'widht', but the study has the parameters lr, width"):
        hopaas_p2p.open_study(tmp_path, "s", space=space, fidelity=wrong)
    study = hopaas_p2p.open_study(tmp_path, "s", space=space)
    with pytest.raises(InvalidInput, match="widht"):
        study.search_with(fidelity=wrong)
    study.close()
