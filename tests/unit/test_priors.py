"""A study begins where earlier ones ended: what they taught, how it is matched and believed, and who may say it."""

from __future__ import annotations

import json
import math
import secrets
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import hopaas_p2p
from hopaas_p2p import Categorical, Float, Int, Prior
from hopaas_p2p.core.attributes import LEARNED
from hopaas_p2p.core.priors import LARGEST_PRIOR, MOST_CONFIGURATIONS
from hopaas_p2p.core.records import StudySet
from hopaas_p2p.core.validity import possible_system
from hopaas_p2p.errors import InvalidInput, NoSuchStudy
from hopaas_p2p.report import write_report
from hopaas_p2p.samplers import TPESampler, default_sampler
from hopaas_p2p.search.priors import Learned, Taught
from hopaas_p2p.search.surrogate import Hypotheses, agreement
from hopaas_p2p.study import Study
from tests.support.processes import cli
from tests.support.studies import opened_study

SPACE = {"x": Float(0, 1), "lr": Float(1e-5, 1e-1, log=True), "opt": Categorical(("adam", "sgd", "lion"))}
optuna.logging.set_verbosity(optuna.logging.WARNING)


def loss(params: dict[str, Any], best: float = 0.3) -> float:
    return float((params["x"] - best) ** 2 + 0.1 * (math.log10(params["lr"]) + 3) ** 2 + 0.3 * (params["opt"] != "sgd"))


def tuned(trials: int = 40, best: float = 0.3, seed: int = 1) -> optuna.Study:
    study = optuna.create_study(sampler=default_sampler(seed), study_name="earlier")
    for _ in range(trials):
        trial = study.ask()
        params = {
            "x": trial.suggest_float("x", 0, 1),
            "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
            "opt": trial.suggest_categorical("opt", ("adam", "sgd", "lion")),
        }
        study.tell(trial, loss(params, best))
    return study


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior.from_study(tuned())


@pytest.fixture
def store() -> str:
    return f"memory://{secrets.token_hex(8)}"


def run(study: Study) -> list[float]:
    study.optimize(lambda trial: loss(trial.params))
    return [trial.values[0] for trial in study.trials if trial.values]


def test_a_prior_has_configurations_and_ranks_and_no_results(prior: Prior) -> None:
    assert prior.name == "earlier"
    assert prior.space.keys() == SPACE.keys()
    assert prior.scores == sorted(prior.scores)
    assert len(prior.scores) == 40
    assert sum(prior.scores) == pytest.approx(0, abs=1e-3)


def test_a_prior_of_a_large_study_is_bounded() -> None:
    study = optuna.create_study(study_name="large")
    wide: dict[str, Any] = {f"parameter-{number}": FloatDistribution(0, 1) for number in range(60)}
    numbers = np.random.default_rng(1)
    for number in range(300):
        params = dict(zip(wide, numbers.random(60).tolist(), strict=True))
        study.add_trial(optuna.trial.create_trial(params=params, distributions=wide, value=float(number)))
    made = Prior.from_study(study)
    assert 5 <= len(made.scores) <= MOST_CONFIGURATIONS
    assert len(made.as_text()) <= LARGEST_PRIOR


def test_a_prior_is_read_from_its_file(prior: Prior, tmp_path: Path) -> None:
    (tmp_path / "digits.prior").write_text(prior.as_text())
    assert Prior.from_file(tmp_path / "digits.prior") == prior


def _spoilt(prior: Prior, **changes: Any) -> Any:
    return json.loads(prior.as_text()) | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": []},
        {"scores": [0.0] * 3},
        {"scores": [1e9] * 40},
        {"lengths": [1.0]},
        {"lengths": [0.0, 1.0, 1.0]},
        {"noise": -1.0},
        {"params": {}},
        {"params": {"x": [0.5] * 40, "lr": [0.01] * 40, "opt": [7.0] * 40}},
        {"space": {"x": ["f", 1.0, 0.0, False, None, None, None]}},
        {"name": ""},
        {"name": 3},
        {"more": 1},
        {"place": -1},
    ],
)
def test_a_damaged_prior_is_refused_by_file_and_log(prior: Prior, tmp_path: Path, changes: dict[str, Any]) -> None:
    text = json.dumps(_spoilt(prior, **changes))
    (tmp_path / "bad.prior").write_text(text)
    with pytest.raises(InvalidInput, match=r"bad\.prior"):
        Prior.from_file(tmp_path / "bad.prior")
    assert possible_system({LEARNED: f"[{prior.as_text()}]"})
    assert not possible_system({LEARNED: f"[{text}]"})


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 10_000, "\xff", "NaN", "0" * 1_000_000])
def test_what_is_no_prior_at_all_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.prior").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidInput):
        Prior.from_file(tmp_path / "bad.prior")


def test_a_prior_that_cannot_be_read_is_named_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none' is not a prior, .* writes it: No such file or directory$"):
        Prior.from_file(tmp_path / "none")


def test_what_was_learned_is_said_in_one_line_whatever_names_a_worker_gives_parameters() -> None:
    one = Learned("earlier\nState  done", None, 0.3, ("x",), ("y).\nhopaas-p2p: done", "a b"), None)
    assert str(one) == "Learned from earlier State done (weight 0.3; says nothing about y). hopaas-p2p: done, a b)"
    assert "\n" not in str(one._replace(shared=())) + str(one._replace(weight=0.0))


def test_no_study_learns_from_nine(prior: Prior) -> None:
    assert not possible_system({LEARNED: json.dumps([json.loads(prior.as_text())] * 9)})


def test_parameters_are_matched_by_name_and_kind(prior: Prior) -> None:
    numbers = np.random.RandomState(1)
    used = np.ones(1)
    moved = Taught(
        {
            "x": FloatDistribution(0.5, 2.0),
            "opt": CategoricalDistribution(("sgd", "adam")),
            "new": IntDistribution(1, 9),
        },
        [prior],
    )
    best = moved.best(numbers, 3, used)
    assert best["x"].min() >= 0.5
    assert (best["opt"] == 0).all()
    assert ((best["new"] >= 1) & (best["new"] <= 9)).all()
    for space in (
        {"y": FloatDistribution(0, 1)},
        {"x": CategoricalDistribution((0.3, 0.5))},
        {"opt": CategoricalDistribution((1, 2))},
    ):
        assert not Taught(space, [prior]).priors


def test_a_prior_predicts_its_own_study(prior: Prior) -> None:
    taught = Taught({name: tuned(5).best_trial.distributions[name] for name in SPACE}, [prior])
    good = {"x": np.array([0.3]), "lr": np.array([1e-3]), "opt": np.array([1.0])}
    bad = {"x": np.array([0.95]), "lr": np.array([0.08]), "opt": np.array([0.0])}
    assert taught.means(taught.cube.points(good))[0, 0] + 1 < taught.means(taught.cube.points(bad))[0, 0]


def test_a_prior_that_agrees_counts_and_one_that_does_not_is_ignored() -> None:
    numbers = np.random.default_rng(1)
    found = np.sort(numbers.normal(size=30))
    means = np.column_stack([found + numbers.normal(size=30) / 2, numbers.normal(size=30), -found])
    elsewhere = numbers.normal(size=(128, 3))
    said = Hypotheses(elsewhere).trust(means)
    assert said.weights[0] > 0.1 > 0.01 > said.weights[1:].max()
    agrees = agreement(means)
    assert agrees[0] > 0.7 > 0.3 > agrees[2]
    assert said.chances[0] < 0.01, "that none counts"
    mixture = said.drawn(0.5)
    assert mixture is not None
    assert mixture.argmax() == 0


def test_no_prior_counts_where_none_agrees() -> None:
    numbers = np.random.default_rng(1)
    means, elsewhere = numbers.normal(size=(40, 8)), numbers.normal(size=(128, 8))
    said = Hypotheses(elsewhere).trust(means)
    assert said.chances[0] > 0.7
    assert said.drawn(0.5) is None


def test_before_the_first_trial_peers_try_all_priors_each_and_none() -> None:
    numbers = np.random.default_rng(1)
    elsewhere = numbers.normal(size=(128, 4))
    said = Hypotheses(elsewhere).trust(np.empty((0, 4)))
    assert said.weights.tolist() == pytest.approx([said.weights[0]] * 4)
    drawn = [said.drawn(number) for number in np.linspace(0, 0.999, 40)]
    singles = {tuple(row) for row in np.eye(4).tolist()}
    assert {None if one is None else tuple(one.tolist()) for one in drawn} == {None, (0.25,) * 4, *singles}
    wave = [said.drawn(number) for number in numbers.uniform(size=8)]
    assert singles <= {None if one is None else tuple(one.tolist()) for one in wave}


def test_the_first_trials_of_any_study_come_from_the_prior(prior: Prior) -> None:
    study = optuna.create_study(sampler=default_sampler(2, priors=[prior]))
    study.optimize(
        lambda trial: loss(
            {
                "x": trial.suggest_float("x", 0, 1),
                "lr": trial.suggest_float("lr", 1e-5, 1e-1, log=True),
                "opt": trial.suggest_categorical("opt", ("adam", "sgd", "lion")),
            }
        ),
        6,
    )
    assert min(trial.value for trial in study.trials if trial.value is not None) < 0.01


def test_a_parameter_that_no_prior_has_stops_no_study(prior: Prior) -> None:
    study = optuna.create_study(sampler=default_sampler(1, priors=[prior]))
    study.optimize(lambda trial: trial.suggest_float("other", 0, 1) + trial.suggest_float("x", 0, 1), n_trials=3)
    assert len(study.trials) == 3


def test_priors_need_the_process(prior: Prior) -> None:
    with pytest.raises(InvalidInput, match="process"):
        TPESampler(priors=[prior])


def test_what_a_study_learned_lies_in_its_log(store: str) -> None:
    old = hopaas_p2p.open_study(store, "old", space=SPACE, budget=30, sampler=default_sampler(seed=1))
    best = min(run(old))
    new = hopaas_p2p.open_study(store, "new", space=SPACE, budget=8, learn_from=["old"])
    old.storage.delete_study(old.study_id)
    joined = hopaas_p2p.open_study(store, "new", create=False, sampler=default_sampler(seed=1))
    assert [one.name for one in joined.learned] == ["old"]
    assert joined.learned[0].shared == tuple(SPACE)
    assert min(run(joined)[:4]) < best + 0.02, "it begins where the earlier one ended"
    assert str(joined.learned[0]).startswith(("Learned from old (agrees", "Ignored old (agrees"))
    for study in (old, new, joined):
        study.close()


def test_auto_takes_the_newest_that_share_a_parameter(store: str) -> None:
    studies = [hopaas_p2p.open_study(store, name, space=SPACE, budget=8) for name in ("first", "second")]
    studies.append(hopaas_p2p.open_study(store, "other", space={"depth": Int(1, 8)}, budget=6))
    for study in studies[:2]:
        run(study)
    studies[2].optimize(lambda trial: trial.params["depth"])
    studies.append(hopaas_p2p.open_study(store, "young", space=SPACE))
    studies.append(hopaas_p2p.open_study(store, "new", space=SPACE, learn_from="auto"))
    assert [one.name for one in studies[-1].learned] == ["second", "first"]
    assert [str(one) for one in studies[-1].learn_from(["first"])] == ["Learned from first (weight 0.3)"]
    assert studies[-1].learn_from(()) == []
    for study in studies:
        study.close()


def test_what_cannot_be_learned_from_is_named(store: str, prior: Prior) -> None:
    def create(name: str, **options: Any) -> None:
        opened_study(store, name, **options).close()

    create("empty", space=SPACE)
    for given, error in (("nowhere", NoSuchStudy), (["empty"], InvalidInput), (7, InvalidInput), ([7], InvalidInput)):
        with pytest.raises(error):
            create("new", space=SPACE, learn_from=given)
    with pytest.raises(InvalidInput, match="shares no parameter"):
        create("new", space={"y": Float(0, 1)}, learn_from=[prior])
    with pytest.raises(InvalidInput, match="one objective"):
        create("new", space=SPACE, learn_from=[prior], directions=["minimize", "maximize"])
    with pytest.raises(InvalidInput, match="at most 8"):
        create("new", space=SPACE, learn_from=[prior] * 9)


def test_a_record_that_no_study_can_have_learned_is_refused(store: str, prior: Prior) -> None:
    study = hopaas_p2p.open_study(store, "s", space=SPACE, learn_from=[prior])
    with pytest.raises(InvalidInput):
        study.handle.say(StudySet(system={LEARNED: '[{"name": "evil"}]'}))
    assert [one.name for one in study.learned] == ["earlier"]
    study.close()


def test_the_first_trial_is_what_a_person_believes(store: str) -> None:
    believed = {
        "x": Float(0, 1, prior=0.4, confidence="high"),
        "lr": Float(1e-5, 1e-1, log=True, prior=1e-3),
        "opt": Categorical(("adam", "sgd", "lion"), prior="sgd", confidence="low"),
    }
    study = hopaas_p2p.open_study(store, "s", space=believed, budget=5)
    run(study)
    assert study.trials[0].params == {"x": 0.4, "lr": 1e-3, "opt": "sgd"}
    assert [one.name for one in study.learned] == ["your belief"]
    again = hopaas_p2p.open_study(store, "s", space=believed)  # the belief is no part of the definition
    assert again.space == hopaas_p2p.open_study(store, "s", space=SPACE).space
    for one in (study, again):
        one.close()


@pytest.mark.parametrize(
    "wrong",
    [
        Float(0, 1, prior=2.0),
        Float(0, 1, prior=0.5, confidence="sure"),
        Categorical(("a",), prior="b"),
        Int(1, 3, prior=9),
    ],
)
def test_a_belief_outside_its_range_is_refused(store: str, wrong: Any) -> None:
    with pytest.raises(InvalidInput, match="'x'"):
        hopaas_p2p.open_study(store, "s", space={"x": wrong})


def test_a_belief_may_be_of_some_parameters_only(store: str) -> None:
    space = SPACE | {"lr": Float(1e-5, 1e-1, log=True, prior=2e-3)}
    study = hopaas_p2p.open_study(store, "new", space=space, budget=3)
    assert "says nothing about " in str(study.learned[0])
    run(study)
    assert study.trials[0].params["lr"] == pytest.approx(2e-3)
    assert study.learned[0].shared == ("lr",)


def test_who_joins_with_another_belief_is_told(store: str, caplog: pytest.LogCaptureFixture) -> None:
    def joined(best: float | None) -> None:
        hopaas_p2p.open_study(store, "new", space=SPACE | {"x": Float(0, 1, prior=best)})

    joined(0.4)
    joined(0.4)
    joined(None)
    assert "differs" not in caplog.text
    joined(0.7)
    assert "differs from the one that the study began with" in caplog.text


def test_the_report_says_what_was_learned(store: str, prior: Prior, tmp_path: Path) -> None:
    misled = Prior.checked(_spoilt(prior, name="misled", scores=[-score for score in prior.scores]))
    study = hopaas_p2p.open_study(
        store, "new", space=SPACE, budget=14, learn_from=[prior, misled], sampler=default_sampler(1)
    )
    run(study)
    page = write_report(study, tmp_path / "report.html").read_text()
    assert "earlier (agrees" in page
    counts, until = (one.until for one in study.learned)
    assert counts is None
    assert f"misled is ignored from trial {until} on" in page


def test_the_commands_say_what_is_learned(tmp_path: Path) -> None:
    store, file = ("--store", str(tmp_path / "store")), str(tmp_path / "old.prior")
    old = hopaas_p2p.open_study(tmp_path / "store", "old", space={"x": Float(0, 1), "n": Int(1, 9)}, budget=6)
    old.optimize(lambda trial: trial.params["x"] + trial.params["n"])
    old.close()
    x, n = ("--space", "x=float(0,1,prior=0.25,confidence=high)"), ("--space", "n=int(1,9)")
    for words, said in (
        (("create", "plain", *store, *n), "hopaas-p2p study set plain --learn-from auto"),
        (("create", "new", *store, *x, *n), "Learned from your belief"),
        (("show", "new", *store), "Learned from your belief (weight 0.3; says nothing about n)"),
        (("export", "old", *store, "--prior", "--to", file), "Wrote the prior of 'old'"),
        (("create", "other", *store, *n, "--learn-from", file), "Learned from old"),
        (("set", "new", *store, "--learn-from", "old"), "Learned from old"),
        (("set", "new", *store, "--learn-from", "none"), "learns from no other study"),
    ):
        done = cli("study", *words, check=False)
        assert said in done.stdout + done.stderr, words


def test_a_study_with_too_few_trials_yet_is_no_wrong_use_of_the_command(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    hopaas_p2p.open_study(store, "new", space=SPACE).close()

    done = cli("study", "export", "new", "--store", store, "--prior", check=False)

    assert done.returncode == cli("study", "schedule", "new", "--store", store, check=False).returncode == 1
    assert done.stderr == "hopaas-p2p: 'new' has too few finished trials with the same parameters to learn from\n"
