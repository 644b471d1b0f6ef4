"""The examples run as they stand."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest

import hopaas_p2p
from hopaas_p2p.cli import main
from hopaas_p2p.runtime import provenance
from tests.support.postgres_fixtures import missing
from tests.support.processes import ROOT, campaign, cli, environment, states
from tests.support.slurm_fixtures import programs

EXAMPLES = ROOT / "examples"


def test_the_training_example_is_tuned_by_a_worker(tmp_path: Path) -> None:
    study = campaign(tmp_path, space={"lr": hopaas_p2p.Float(1e-3, 1, log=True), "depth": hopaas_p2p.Int(1, 9)})
    words = [sys.executable, str(EXAMPLES / "train.py"), "--lr", "{lr}", "--depth", "{depth}", "--epochs", "3"]

    cli("worker", "-s", "store", "--study", "s", "--", *words, cwd=tmp_path)

    assert set(states(study)) <= {"COMPLETE", "PRUNED"}
    assert len(states(study)) == 3
    assert all(len(trial.intermediate_values) == 3 for trial in study.trials if trial.state.name == "COMPLETE")
    study.close()


def test_a_flow_learns_the_detector_and_is_tuned_by_a_worker(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not here: pip install 'hopaas-p2p[examples]'")
    space = {
        "lr": hopaas_p2p.Float(1e-3, 1e-2, log=True),
        "layers": hopaas_p2p.Int(2, 4),
        "width": hopaas_p2p.Int(16, 32),
    }
    study = campaign(tmp_path, space=space, budget=2)
    words = [sys.executable, str(EXAMPLES / "fastsim" / "train.py"), "--epochs", "3", "--events", "4000"]
    words += [f"--{name}={{{name}}}" for name in space]

    cli("worker", "-s", "store", "--study", "s", "--", *words, cwd=tmp_path, PYTHONWARNINGS="default")

    assert states(study) == ["COMPLETE"] * 2, [trial.reason for trial in study.state.trials]
    for trial in study.trials:
        losses = list(trial.intermediate_values.values())
        assert losses[-1] < losses[0]
    study.close()


def test_a_peer_whose_library_has_a_version_of_its_own_type_can_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TorchVersion(str):  # as torch.__version__ is
        __slots__ = ()

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=TorchVersion("2.13.0+cpu")))
    provenance._machine.cache_clear()
    study = campaign(tmp_path)

    trial = study.ask()

    assert study.provenance(trial.number)["torch"] == "2.13.0+cpu"
    provenance._machine.cache_clear()
    study.close()


def test_the_scikit_learn_loop_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(EXAMPLES / "sklearn_loop.py"))

    example["main"](str(tmp_path / "store"), budget=4, epochs=2)

    assert "best: 0.9" in capsys.readouterr().out


def test_three_sites_share_one_study(tmp_path: Path) -> None:
    study = campaign(
        tmp_path, space={"lr": hopaas_p2p.Float(1e-3, 1, log=True), "depth": hopaas_p2p.Int(1, 9)}, budget=6
    )
    shutil.copy(EXAMPLES / "train.py", tmp_path)
    found = programs(tmp_path / "bin", sys.executable, str(ROOT))
    env = environment(
        HOPAAS_STORE=str(tmp_path / "store"),
        HOPAAS_STUDY="s",
        REMOTE="local",
        MORE="--epochs 2 --seconds 0.3",
        PATH=f"{found}:{os.environ['PATH']}",
    )

    subprocess.run(
        ["sh", str(EXAMPLES / "multi_site.sh"), "north", "south", "east"],
        check=True,
        cwd=tmp_path,
        env=env,
        timeout=60,
        capture_output=True,
    )

    assert len(states(study)) == 6
    assert {study.provenance(number)["site"] for number in range(6)} == {"north", "south", "east"}
    study.close()


def test_the_kubernetes_manifest_asks_for_what_the_worker_offers() -> None:
    yaml = pytest.importorskip("yaml")
    text = (EXAMPLES / "kubernetes" / "job.yaml").read_text()

    job = yaml.safe_load(text)

    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["spec"]["completionMode"] == "Indexed"
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    grace = int(container["command"][container["command"].index("--grace") + 1])
    assert pod["terminationGracePeriodSeconds"] >= grace + 30
    program, *words = [*container["command"], *container["args"]]
    command, rest = _command(words)
    assert program == "hopaas-p2p"
    command.make_context("worker", rest)  # complains about what it does not take
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert "PASSWORD" not in text.upper()


def _command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command of ours that a line begins with, and what comes after its name."""
    command: click.Command = main.cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command, words


def _lines() -> list[str]:
    """What the examples have our program do, comments included, up to what they have it run."""
    found = []
    for path in sorted(EXAMPLES.rglob("*.*")):
        joined = re.sub(r"\s*\\\n#?\s*", " ", path.read_text())
        found += re.findall(r"(?<![\w-])hopaas-p2p ([a-z][^\n·;#]*?)(?= -- | *[\n·;#])", joined)
    return found


@pytest.mark.parametrize("line", _lines())
def test_every_command_in_an_example_is_one_of_ours(line: str) -> None:
    command, rest = _command(line.split())
    offered = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if re.fullmatch("--[a-z-]+|-[a-z]", word)} <= offered


def test_every_kind_of_example_has_commands_of_ours() -> None:
    verbs = [line.split()[0] for line in _lines()]
    assert verbs.count("worker") >= 3
    assert verbs.count("serve") >= 3


@pytest.mark.parametrize("library", ["keras", "lightning"])
def test_the_callback_examples_train(tmp_path: Path, library: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not here: pip install 'hopaas-p2p[examples]'")
    if importlib.util.find_spec(library) is None:
        missing(f"{library} (pip install 'hopaas-p2p[integrations]')")
    program = "import runpy; runpy.run_path(sys.argv[1])['main'](sys.argv[2], budget=2, epochs=2)"
    words = [sys.executable, "-c", f"import sys; {program}", EXAMPLES / f"{library}_callback.py", tmp_path / "store"]
    env = environment(PYTHONWARNINGS="ignore", KERAS_BACKEND="torch", OMP_NUM_THREADS="1")

    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    assert "best: " in done.stdout
