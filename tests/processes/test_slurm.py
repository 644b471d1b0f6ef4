"""The examples in a real Slurm."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p import Float, Int
from hopaas_p2p.study import Study
from tests.support.processes import ROOT, campaign, cli, states, until
from tests.support.slurm_fixtures import Slurm, slurm

__all__ = ["slurm"]
ARRAY = str(ROOT / "examples" / "slurm" / "array.sh")
TRAIN = ["python", str(ROOT / "examples" / "train.py"), "--lr={lr}", "--depth={depth}"]
SLOW = ["--epochs=12", "--seconds=1"]  # long enough to be interrupted, also on a busy machine
SPACE = {"lr": Float(1e-3, 1.0, log=True), "depth": Int(1, 9)}


def where(directory: Path) -> dict[str, str]:
    return {"HOPAAS_STORE": str(directory / "store"), "HOPAAS_STUDY": "s"}


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = campaign(tmp_path, space=SPACE, budget=24)
    yield made
    made.close()


def ended(slurm: Slurm, job: str, *states: str) -> bool:
    return not set(slurm.states(job)) - set(states)


def restarts(slurm: Slurm, job: str) -> int:
    return int(slurm.show(job).partition("Restarts=")[2].split()[0])


def epochs(study: Study, number: int = 0) -> int:
    trials = study.state.trials
    return len(trials[number].reports) if len(trials) > number else 0


def gone_on_with(slurm: Slurm, study: Study, job: str, epochs_in_all: int) -> bool:
    """Whether a requeued job has brought its trial to the end."""
    slurm.hurry(job)
    return epochs(study) == epochs_in_all and ended(slurm, job, "COMPLETED")


def output(directory: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(directory.glob("*.out")))


def test_an_array_of_eight_jobs_shares_one_study(slurm: Slurm, study: Study, tmp_path: Path) -> None:
    job = slurm.submit(ARRAY, *TRAIN, "--epochs=3", "--seconds=0.5", cwd=tmp_path, **where(tmp_path))

    until(lambda: ended(slurm, job, "COMPLETED"), 60, what=lambda: slurm.show(job) + output(tmp_path))

    counted = Counter(states(study))
    assert counted["COMPLETE"] + counted["PRUNED"] == 24 == counted.total()
    jobs = {study.provenance(number)["job"] for number in range(24)}
    assert len(jobs) == 8
    assert {job.partition("_")[2] for job in jobs} == set("01234567")
    assert all(study.provenance(number)["batch"] == "slurm" for number in range(24))


def test_scancel_gives_the_trial_back_and_the_job_stays_cancelled(slurm: Slurm, study: Study, tmp_path: Path) -> None:
    study.set_budget(1)
    slow = [*TRAIN, *SLOW]
    job = slurm.submit("--array=0", ARRAY, *slow, cwd=tmp_path, **where(tmp_path))
    until(lambda: epochs(study) >= 2, 30, what=slurm.logs)

    slurm.run("scancel", job)
    until(lambda: ended(slurm, job, "CANCELLED"), 30)

    assert states(study) == ["WAITING"]
    (checkpoint,) = study.state.trials[0].checkpoints
    assert checkpoint.step >= 2
    other = slurm.submit("--array=0", ARRAY, *slow, cwd=tmp_path, **where(tmp_path))
    until(lambda: ended(slurm, other, "COMPLETED"), 60)
    assert states(study) == ["COMPLETE"]
    assert list(study.trials[0].intermediate_values) == list(range(1, 13))
    assert f"continuing after epoch {checkpoint.step}" in (tmp_path / "hopaas-logs" / "s" / "0.log").read_text()


@pytest.mark.parametrize("how", ["requeued by an operator", "signalled before the end"])
def test_a_requeued_job_goes_on_where_it_was(slurm: Slurm, study: Study, tmp_path: Path, how: str) -> None:
    study.set_budget(1)
    slow = [*TRAIN, *SLOW]
    job = slurm.submit("--array=0", ARRAY, *slow, cwd=tmp_path, **where(tmp_path))
    until(lambda: epochs(study) >= 2, 30, what=slurm.logs)

    if how == "requeued by an operator":
        slurm.run("scontrol", "requeue", job)
    else:  # as --signal=B:USR1@330 does; the script asks for another turn by itself
        slurm.run("scancel", "--batch", "--signal=USR1", job)
    until(lambda: gone_on_with(slurm, study, job, 12), 60, what=lambda: slurm.show(job) + output(tmp_path))

    assert restarts(slurm, job) == 1
    assert states(study) == ["COMPLETE"]
    trial = study.state.trials[0]
    assert trial.attempt == 1
    assert [tenure.why for tenure in trial.history] == [
        "pre-empted: SIGTERM" if how == "requeued by an operator" else "pre-empted: SIGUSR1"
    ]


def test_a_job_that_nears_its_time_limit_saves_itself_and_is_queued_again(
    slurm: Slurm, study: Study, tmp_path: Path
) -> None:
    study.set_budget(1)
    slow = [*TRAIN, "--epochs=8", "--seconds=0.7"]
    options = ["--array=0", "--time=1", "--signal=B:USR2@0"]  # the worker has to see to it by itself
    job = slurm.submit(*options, ARRAY, *slow, cwd=tmp_path, HOPAAS_GRACE="50", **where(tmp_path))

    until(lambda: gone_on_with(slurm, study, job, 8), 90, what=lambda: slurm.show(job) + output(tmp_path))

    assert restarts(slurm, job) >= 1
    assert {tenure.why for tenure in study.state.trials[0].history} == {"out of time"}
    assert re.search(r"Slurm job \d+_0: (5[\d.]* s|1 min) left", output(tmp_path))


def test_a_job_that_is_ended_at_its_time_limit_gives_its_trial_back(slurm: Slurm, study: Study, tmp_path: Path) -> None:
    """Nobody told this worker of the limit: what comes is Slurm's SIGTERM, and SIGKILL 5 s later."""
    study.set_budget(1)
    script = tmp_path / "plain.sh"
    script.write_text('#!/bin/bash\nexec hopaas-p2p worker --grace 3 -- "$@"\n')
    slow = [*TRAIN, "--epochs=400", "--seconds=0.5"]
    job = slurm.submit("--time=1", str(script), *slow, cwd=tmp_path, **where(tmp_path))

    until(lambda: ended(slurm, job, "TIMEOUT"), 150, what=lambda: slurm.show(job) + output(tmp_path))

    assert states(study) == ["WAITING"]
    trial = study.state.trials[0]
    assert [tenure.why for tenure in trial.history] == ["pre-empted: SIGTERM"]
    assert trial.attempt == 1 and trial.checkpoints[-1].step > 20


def test_one_command_leads_from_an_invitation_to_a_finished_campaign(
    slurm: Slurm, study: Study, tmp_path: Path
) -> None:
    """As typed on a login node: the script is written, shown and submitted, and no file is edited."""
    study.set_budget(6)
    invitation = cli("invite", "s", "--store", str(tmp_path / "store")).stdout
    place = tmp_path / """50%a of 'it' "$HOME" $(id) #1; é"""
    place.mkdir()
    (place / "s.invitation").write_text(invitation)
    env = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "HOPAAS_TOKEN": "hunter2"}
    words = ["hopaas-p2p", "join", "s.invitation", "--submit", "slurm", "--jobs", "2", "--json", "--", *TRAIN]

    said = json.loads(slurm.run(*words, "--epochs=2", "--seconds=0.1", cwd=place, **env))

    job = said["submitted"]
    until(lambda: ended(slurm, job, "COMPLETED"), 300, what=lambda: slurm.show(job) + output(place / "hopaas-jobs"))
    assert "trial" in "".join(path.read_text() for path in (place / "hopaas-jobs").glob("hopaas-s-*-0.out"))
    assert set(states(study)) <= {"COMPLETE", "PRUNED"}
    assert len(states(study)) == 6
    assert "hunter2" not in Path(said["files"][0]).read_text() + slurm.show(job)
    assert {study.provenance(number)["batch"] for number in range(6)} == {"slurm"}
