"""The examples in a real HTCondor."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopaas_p2p import Float, Int
from hopaas_p2p.study import Study
from tests.support.htcondor_fixtures import Condor, condor
from tests.support.processes import ROOT, campaign, cli, states, until

__all__ = ["condor"]
EXAMPLES = ROOT / "examples"
SPACE = {"lr": Float(1e-3, 1.0, log=True), "depth": Int(1, 9)}


@pytest.fixture
def place(condor: Condor) -> Path:
    """A directory of the jobs' user, with the examples in it."""
    directory = condor.place("campaign")
    for path in (EXAMPLES / "train.py", *(EXAMPLES / "htcondor").iterdir()):
        shutil.copy(path, directory)
    return directory


@pytest.fixture
def study(condor: Condor, place: Path) -> Iterator[Study]:
    made = campaign(place, space=SPACE, budget=24)
    for path in (place / "store", *(place / "store").rglob("*")):  # made by root, used by the jobs' user
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() else 0o666)
    yield made
    made.close()


def submit(condor: Condor, place: Path, more: str, *settings: str, **env: str) -> str:
    env = {"HOPAAS_STORE": str(place / "store"), "HOPAAS_STUDY": "s", **env}
    appended = [word for setting in (f"more = {more}", *settings) for word in ("-append", setting)]
    return condor.submit(*appended, "worker.sub", cwd=place, **env)


def test_a_secret_does_not_go_into_the_job_ad(condor: Condor, place: Path) -> None:
    """Whoever may ask the pool sees all of it."""
    env = {"HOPAAS_TOKEN": "hunter2", "HOPAAS_WEBHOOK": "https://hunter2", "HOPAAS_TOKEN_FILE": "/there"}
    ad = condor.run("condor_submit", "-dry-run", "-", "worker.sub", cwd=place, PWD=str(place), **env)
    assert "HOPAAS_TOKEN_FILE=/there" in ad
    assert "hunter2" not in ad


def epochs(study: Study, number: int = 0) -> int:
    trials = study.state.trials
    return len(trials[number].reports) if len(trials) > number else 0


def output(place: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(place.glob("worker*")) if path.suffix in (".err", ".log"))


def test_eight_jobs_share_one_study(condor: Condor, study: Study, place: Path) -> None:
    job = submit(condor, place, "--epochs=3 --seconds=0.5")
    until(lambda: condor.gone(job), 60, what=lambda: condor.run("condor_q", "-better", job) + output(place))

    counted = Counter(states(study))
    assert counted["COMPLETE"] + counted["PRUNED"] == 24 == counted.total()
    jobs = {study.provenance(number)["job"] for number in range(24)}
    assert jobs <= {f"{job}.{process}" for process in range(8)}
    assert len(jobs) > 1
    assert ": 3 h 59 min left" in output(place)


def test_a_vacated_job_saves_itself_and_goes_on_elsewhere(condor: Condor, study: Study, place: Path) -> None:
    study.set_budget(1)
    job = submit(condor, place, "--epochs=12 --seconds=1", "jobs = 1")  # long enough to be interrupted
    until(lambda: epochs(study) >= 2, 60, what=lambda: output(place))

    condor.run("condor_vacate_job", f"{job}.0")
    until(lambda: condor.gone(job), 60, what=lambda: condor.run("condor_q", "-better", job) + output(place))

    assert states(study) == ["COMPLETE"]
    trial = study.state.trials[0]
    assert [tenure.why for tenure in trial.history] == ["pre-empted: SIGTERM"]
    assert trial.attempt == 1
    assert trial.checkpoints
    assert list(study.trials[0].intermediate_values) == list(range(1, 13))
    assert "Job was evicted" in (place / "worker.log").read_text()


def test_a_job_that_nears_its_time_limit_is_queued_again(condor: Condor, study: Study, place: Path) -> None:
    study.set_budget(1)
    limit = "allowed_execute_duration = 17"  # less 4 s of grace, and 1.4 s for the store
    job = submit(condor, place, "--epochs=8 --seconds=2", limit, "jobs = 1", HOPAAS_GRACE="4")

    until(lambda: condor.gone(job), 90, what=lambda: condor.run("condor_q", "-better", job) + output(place))

    assert states(study) == ["COMPLETE"]
    history = study.state.trials[0].history
    assert history
    assert {tenure.why for tenure in history} == {"out of time"}
    assert (place / "worker.log").read_text().count("Job executing on host") >= 2


def test_a_removed_job_gives_its_trial_back(condor: Condor, study: Study, place: Path) -> None:
    study.set_budget(1)
    job = submit(condor, place, "--epochs=50 --seconds=0.2", "jobs = 1")
    until(lambda: epochs(study) >= 1, 60, what=lambda: output(place))

    condor.run("condor_rm", job)
    until(lambda: condor.gone(job) and states(study) == ["WAITING"], 60, what=lambda: output(place))

    assert study.state.trials[0].checkpoints


def test_one_command_leads_from_an_invitation_to_a_finished_campaign(condor: Condor, study: Study, place: Path) -> None:
    study.set_budget(4)
    here = condor.place("""$(id) $ENV(HOME) $INT(3) 50% 'it' "$HOME" #1; é""", within=place)
    (here / "s.invitation").write_text(cli("invite", "s", "--store", str(place / "store")).stdout)
    command = ["python", str(place / "train.py"), "--lr", "{lr}", "--depth", "{depth}", "--epochs=2", "--seconds=0.1"]
    words = ["hopaas-p2p", "join", "s.invitation", "--submit", "condor", "--jobs", "2", "--json", "--", *command]

    said = json.loads(condor.run(*words, cwd=here, XDG_CONFIG_HOME=str(place / "config"), HOPAAS_TOKEN="hunter2"))

    job = said["submitted"].split(".")[0]
    until(lambda: condor.gone(job), 300, what=lambda: condor.run("condor_q", "-better", job) + output(place))
    assert "trial" in "".join(path.read_text() for path in (here / "hopaas-jobs").glob("hopaas-s-*-0.err"))
    assert set(states(study)) <= {"COMPLETE", "PRUNED"}
    assert len(states(study)) == 4
    assert all("hunter2" not in Path(path).read_text() for path in said["files"])
    assert {study.provenance(number)["batch"] for number in range(4)} == {"htcondor"}
