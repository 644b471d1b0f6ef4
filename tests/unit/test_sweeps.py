"""Studies described by sweeps of W&B."""

from __future__ import annotations

import shlex
from pathlib import Path

import optuna
import pytest

import hopaas_p2p
from hopaas_p2p.core.records import Budget, Categorical, Distribution, Float, Int
from hopaas_p2p.errors import InvalidInput, NoWork
from hopaas_p2p.moving import sweeps
from hopaas_p2p.moving.sweeps import StudyDescription
from hopaas_p2p.study.method import SearchMethod
from hopaas_p2p.translate import to_optuna, to_record
from tests.support.processes import cli, script, states

BAYES = """
program: train.py
name: detector
method: bayes
description: about it
metric:
  name: val_loss
  goal: maximize
run_cap: 40
parameters:
  lr:
    distribution: log_uniform_values
    min: 1e-5
    max: 1e-1
  batch:
    values: [16, 32, 64]
  layers: {min: 1, max: 8}
  dropout: {min: 0.0, max: 0.5}
  epochs: {value: 27}
  optimizer:
    parameters:
      name: {values: [adam, sgd]}
      momentum: {distribution: q_uniform, min: 0, max: 1, q: 0.1}
early_terminate:
  type: hyperband
  min_iter: 3
"""


def read(directory: Path, text: str) -> StudyDescription:
    path = directory / "s.yaml"
    path.write_text(text)
    return sweeps.read(path)


def one(directory: Path, entry: str, method: str = "random") -> Distribution:
    """The parameter of a sweep that has only this."""
    return read(directory, f"method: {method}\nparameters:\n  p: {entry}\n").space["p"]


def test_a_sweep_becomes_a_study_with_all_that_its_file_says(tmp_path: Path) -> None:
    told = read(tmp_path, BAYES)

    assert (told.name, told.directions, told.metric) == ("detector", ("maximize",), "val_loss")
    assert told.space == {
        "lr": Float(1e-5, 1e-1, log=True),
        "batch": Categorical((16, 32, 64)),
        "layers": Int(1, 8),
        "dropout": Float(0.0, 0.5),
        "optimizer.name": Categorical(("adam", "sgd")),
        "optimizer.momentum": Float(0.0, 1.0, step=0.1),
    }
    assert told.budget == Budget(trials=40)
    assert told.user_attrs == {"epochs": 27, "description": "about it"}
    assert type(told.search["sampler"]) is hopaas_p2p.samplers.TPESampler
    pruner = told.search["pruner"]
    assert isinstance(pruner, optuna.pruners.SuccessiveHalvingPruner)
    assert (pruner._min_resource, pruner._reduction_factor) == (3, 3)
    assert told.command is not None
    assert shlex.split(told.command) == [
        *("python", "train.py", "--epochs=27", "--lr={lr}", "--batch={batch}", "--layers={layers}"),
        *("--dropout={dropout}", "--optimizer.name={optimizer.name}", "--optimizer.momentum={optimizer.momentum}"),
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{min: 1, max: 8}", Int(1, 8)),
        ("{min: 1, max: 8.0}", Float(1.0, 8.0)),
        ("{min: 1e-3, max: 1E+2}", Float(1e-3, 100.0)),
        ("{distribution: int_uniform, min: 2, max: 4}", Int(2, 4)),
        ("{distribution: uniform, min: 2, max: 4}", Float(2.0, 4.0)),
        ("{distribution: q_uniform, min: 16, max: 100, q: 16}", Int(16, 96, step=16)),
        ("{distribution: q_uniform, min: 0.1, max: 0.7, q: 0.2}", Float(0.0, 0.6, step=0.2)),
        ("{distribution: log_uniform_values, min: 0.5, max: 2}", Float(0.5, 2.0, log=True)),
        ("{distribution: q_log_uniform_values, min: 16, max: 256}", Int(16, 256, log=True)),
        ("{distribution: categorical, values: [a, 1, true, null, '1e-3']}", Categorical(("a", 1, True, None, "1e-3"))),
    ],
)  # fmt: skip
def test_a_distribution_of_a_sweep_has_its_counterpart(tmp_path: Path, entry: str, expected: Distribution) -> None:
    found = one(tmp_path, entry)

    assert found == expected
    assert to_record(to_optuna(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("method: bayes\nparameters: [", "line 2: expected the node content"),
        ("method: bayes\n\tparameters: 1", "found character"),
        ("- a\n- b", "not a mapping"),
        ("", "not a mapping"),
        ("method: annealing\nparameters: {p: {min: 1, max: 2}}", "method = 'annealing'; choose from bayes, random"),
        ("program: t.py\nparameters: {p: {min: 1, max: 2}}", "method = None"),
        ("method: {grid: 1}\nparameters: {p: {min: 1, max: 2}}", "method = {'grid': 1}; choose"),
        ("method: random\nparameter: {p: {min: 1, max: 2}}", "'parameter' is not a key; did you mean 'parameters'?"),
        ("method: random", "parameters = None: give a mapping"),
        ("method: random\nparameters: {p: {value: 3}}", "none of them varies"),
        ("method: bayes\nmetric: {name: a, goal: best}\nparameters: {p: {min: 1, max: 2}}", "from minimize, maximize"),
        ("method: random\nparameters: {p: {min: 1, maxx: 2}}", "'p': 'maxx' is not a key; did you mean 'max'?"),
        ("method: random\nparameters: {p: {min: 1}}", "'p', max = None: give a number"),
        ("method: random\nparameters: {p: {min: 3, max: 2}}", "'p': min = 3 to max = 2"),
        ("method: random\nparameters: {p: 3}", "'p' = 3: give a mapping"),
        ("method: random\nparameters: {p: {values: []}}", "at least one value"),
        ("method: random\nparameters: {p: {values: [[1, 2]]}}", "name it, and look it up in your code"),
        ("method: random\nparameters: {p: {distribution: normal, mu: 5, sigma: 2}}", "normal is not supported"),
        ("method: random\nparameters: {p: {distribution: log_uniform_values, min: 0, max: 2}}", "needs min > 0"),
        ("method: random\nparameters: {p: {distribution: log_uniform, min: 1, max: 1000}}", "log_uniform_values"),
        ("method: random\nparameters: {p: {distribution: q_log_uniform_values, min: 0, max: 9}}", "needs min > 0"),
        ("method: random\nparameters: {p: {distribution: unifrom, min: 1, max: 9}}", "unifrom is not supported"),
        ("method: grid\nparameters: {p: {min: 0.0, max: 1.0}}", "a grid needs values"),
        ("method: random\nparameters: {p: {min: 1, max: 2}}\nearly_terminate: {type: median}", "only hyperband"),
        ("method: random\nparameters: {p: {min: 1, max: 2}}\nearly_terminate: {type: hyperband}", "needs min_iter"),
        ("method: random\nparameters: {p: {min: 1, max: 2}}\nrun_cap: many", "a budget cannot have trials = 'many'"),
        ("method: random\nparameters: {p: {min: 1, max: 2}}\nrun_cap: 0", "budget must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_that_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, text)

    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}")
    assert "\n" not in str(caught.value)


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("method: bayes\nparameters: [")

    done = cli("study", "create", "s", "-s", "store", "--from-yaml", "bad.yaml", cwd=tmp_path, check=False)
    gone = cli("study", "create", "s", "-s", "store", "--from-yaml", "no.yaml", cwd=tmp_path, check=False)

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert gone.stderr == "hopaas-p2p: no.yaml cannot be read: No such file or directory\n"
    assert not (tmp_path / "store").exists()


def test_a_grid_runs_every_point_once_over_all_workers(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "method: grid\nprogram: train.py\nmetric: {name: loss}\n"
        "parameters: {a: {values: [x, y]}, b: {min: 1, max: 3}, c: {value: 9}}\n"
    )
    command = script(tmp_path, "import sys, json; print(json.dumps({'value': float(sys.argv[2].partition('=')[2])}))")

    created = cli("study", "create", "g", "-s", "store", "--from-yaml", "grid.yaml", cwd=tmp_path)
    words = ["worker", "-s", "store", "--study", "g", "--", *command, "--a={a}", "--b={b}"]
    cli(*words, cwd=tmp_path)

    study = hopaas_p2p.open_study(str(tmp_path / "store"), "g", create=False)
    assert "hopaas-p2p worker --study g --store store -- python train.py --c=9 '--a={a}' '--b={b}'" in created.stderr
    assert states(study) == ["COMPLETE"] * 6
    points = [(trial.params["a"], trial.params["b"]) for trial in study.trials]
    assert sorted(points) == [(a, b) for a in "xy" for b in (1, 2, 3)]
    assert [trial.value for trial in study.trials] == [float(b) for _, b in points]
    with pytest.raises(NoWork) as none:
        study.ask()
    assert (none.value.refusal, none.value.waits) == ("space", False)
    study.close()


def test_a_point_of_a_grid_that_fails_has_no_other_run_again(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("method: grid\nmetric: {name: loss}\nparameters: {a: {values: [1, 2, 3]}}\n")
    cli("study", "create", "g", "-s", "store", "--from-yaml", "grid.yaml", cwd=tmp_path)
    study = hopaas_p2p.open_study(str(tmp_path / "store"), "g", create=False)
    study.optimize(lambda trial: 6 / (trial.params["a"] - 2), catch=ZeroDivisionError)
    assert sorted(states(study)) == ["COMPLETE", "COMPLETE", "FAIL"]
    study.close()


@pytest.mark.parametrize(("keys", "said"), [("max_iter:", "needs min_iter"), ("max_iter: 9, s: 1, eta: 0", ">= 2")])
def test_a_hyperband_that_is_none_is_refused(tmp_path: Path, keys: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read(
            tmp_path, f"method: bayes\nparameters: {{p: {{values: [1]}}}}\nearly_terminate: {{type: hyperband, {keys}}}"
        )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{distribution: q_log_uniform_values, min: 32, max: 256, q: 8}", "leave q out, and let the job round"),
        ("{values: [a, b], probabilities: [0.9, 0.1]}", "'probabilities' is not a key"),
    ],
)
def test_what_optuna_has_no_counterpart_for_is_refused(tmp_path: Path, entry: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        one(tmp_path, entry)


def test_the_command_of_a_sweep_becomes_that_of_a_worker(tmp_path: Path) -> None:
    words = '["${env}", "${interpreter}", "-u", "${program}", "--quiet", "${args_no_hyphens}"]'

    told = read(tmp_path, f"method: random\nprogram: t.py\ncommand: {words}\nparameters: {{a: {{min: 1, max: 2}}}}")

    assert told.command == "python -u t.py --quiet 'a={a}'"
    with pytest.raises(InvalidInput, match="give a list of words"):
        read(tmp_path, "method: random\ncommand: python\nparameters: {a: {min: 1, max: 2}}")


def test_the_line_that_starts_the_jobs_works_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "method: random\nname: two words\nprogram: t.py\nrun_cap: 2\nparameters: {a: {min: 1, max: 2}}"
    )
    (tmp_path / "t.py").write_text("print('{\"value\": 1}')")

    made = cli("study", "create", "-s", "a store", "--from-yaml", "s.yaml", cwd=tmp_path)
    words = shlex.split(made.stderr.splitlines()[-1].removeprefix("To start the jobs: "))
    done = cli(*words[1:], cwd=tmp_path)

    assert words[0] == "hopaas-p2p"
    assert "trial 1: COMPLETE" in done.stdout + done.stderr


def test_a_grid_with_a_cap_is_cut_short(tmp_path: Path) -> None:
    told = read(
        tmp_path,
        "method: grid\nrun_cap: 4\n"
        "parameters: {a: {values: [1, 2]}, b: {distribution: q_uniform, min: 0, max: 0.3, q: 0.1}}",
    )

    assert told.budget == Budget(trials=4)
    assert told.space == {"a": Categorical((1, 2)), "b": Float(0.0, 0.3, step=0.1)}


def test_a_sweep_is_run_by_its_own_sampler_and_pruner(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        BAYES.replace("run_cap: 40", "run_cap: 3").replace("method: bayes", "method: random")
    )
    command = script(
        tmp_path,
        """
        import sys, subprocess, json
        given = dict(word[2:].split("=") for word in sys.argv[1:])
        assert given["optimizer.name"] in ("adam", "sgd") and 1 <= int(given["layers"]) <= 8
        print(json.dumps({"value": float(given["lr"])}))
        """,
    )
    words = [f"--{name}={{{name}}}" for name in ("lr", "batch", "layers", "optimizer.name", "optimizer.momentum")]

    cli("study", "create", "-s", "store", "--from-yaml", "sweep.yaml", cwd=tmp_path)
    again = cli("study", "create", "-s", "store", "--from-yaml", "sweep.yaml", "--exist-ok", cwd=tmp_path)
    cli("worker", "-s", "store", "--study", "detector", "--", *command, *words, cwd=tmp_path)

    study = hopaas_p2p.open_study(str(tmp_path / "store"), "detector", create=False)
    assert again.returncode == 0
    assert states(study) == ["COMPLETE"] * 3
    sampler = SearchMethod.stored(study.state.system).sampler
    assert sampler == {"class": "optuna.samplers.RandomSampler", "arguments": {}}
    study.close()
