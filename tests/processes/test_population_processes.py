"""A population of real processes, some of which are killed: every member is trained to the end, from checkpoints."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import hopaas_p2p
from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.study import Study
from tests.support.invariants import check
from tests.support.processes import environment, until

_JOB: Final = """
import json, sys, time
import hopaas_p2p
from hopaas_p2p.training import Training

study = hopaas_p2p.open_study(sys.argv[1], "s", create=False)

class Model:
    def __init__(self, lr):
        self.lr, self.loss, self.made_with = lr, 1.0, []
    def epoch(self):
        self.loss *= 1 - self.lr / 2
        self.made_with.append(self.lr)
        return self.loss
    def save(self, path):
        path.write_text(json.dumps((self.loss, self.made_with)))
    def load(self, path):
        self.loss, self.made_with = json.loads(path.read_text())

def objective(trial):
    model = Model(trial.params["lr"])
    training = Training(trial, save=model.save, load=model.load, checkpoint_every=1)
    for _ in training.steps(9):
        training.report(model.epoch())
        time.sleep(0.05)
    trial.set_user_attr("made_with", model.made_with)
    return model.loss

study.optimize(objective)
"""


def _started(store: str, site: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _JOB, store], env=environment(HOPAAS_SITE=site))


def _study(store: str) -> Study:
    return hopaas_p2p.open_study(
        store,
        "s",
        space={"lr": hopaas_p2p.Float(0.01, 1.0, log=True)},
        fidelity=hopaas_p2p.Population(size=5, every=3, max=9, quantile=0.4),
        policy=hopaas_p2p.StudyPolicy(lease_ttl=2.0, attempts=100),
    )


@pytest.mark.parametrize("kills", [0, 4])
def test_a_population_of_processes_ends_whatever_is_killed(tmp_path: Path, kills: int) -> None:
    store, rng = str(tmp_path / "store"), random.Random(kills)
    study = _study(store)
    sites = ["north", "south", "west"]
    jobs = [_started(store, site) for site in sites]
    try:
        for _ in range(kills):
            victim = rng.randrange(len(jobs))
            seen = len(study.state.trials)
            until(lambda seen=seen: len(study.state.trials) > seen or finished(study.state), 60.0, what="a trial")
            os.kill(jobs[victim].pid, signal.SIGKILL)
            jobs[victim].wait()
            jobs[victim] = _started(store, sites[victim])
        until(lambda: finished(study.state), 120.0, what=lambda: repr(study.state))
    finally:
        for job in jobs:
            job.kill()
            job.wait()
    state = study.state
    check(state)
    assert state.counts[TrialState.COMPLETE] == state.used() == 5
    for trial in study.trials:
        if trial.state.name == "COMPLETE":
            found = study.schedule(trial.number)
            assert [found.at(step)["lr"] for step in range(9)] == trial.user_attrs["made_with"]
    study.close()
