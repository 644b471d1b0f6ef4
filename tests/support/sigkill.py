"""Many processes work on one study of any store, and are killed at random moments: what must be left is checked.

    outcome = massacre("./somewhere", tmp_path, seed=1)      # runs the campaign
    verify("./somewhere", outcome)                           # raises AssertionError where a promise was broken

A worker writes each tell that was acknowledged to a file of its own, with fsync, before it goes on. So the files hold
no more than what the store has promised to keep.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core import codec
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.state import State
from hopaas_p2p.storage import Storage, open_storage
from hopaas_p2p.study import Study, open_study
from hopaas_p2p.study.trial import Trial
from hopaas_p2p.testing.commits import everything
from tests.support.invariants import Witness
from tests.support.processes import in_environment, patient

_PATIENCE: Final = 120.0  # seconds until a campaign that does not end is a failure
_PRELOAD: Final = ["optuna", "hopaas_p2p.study", "tests.support.sigkill"]

Work = Callable[[str, str, Path, int], None]
"""(store, study, file for acknowledged tells, trials wanted in all) -> works until the campaign is over."""


class Outcome(NamedTuple):
    """What a massacre left behind."""

    study: str
    kills: int
    acknowledged: dict[int, float]
    """Value by trial number, of every tell that returned."""


def acknowledge(file: Path, number: int, value: float) -> None:
    """Note down, safely, that a tell has returned."""
    with file.open("a") as notes:
        notes.write(f"{number} {value!r}\n")
        notes.flush()
        os.fsync(notes.fileno())


def work_with_plain_optuna(url: str, study_name: str, file: Path, total: int) -> None:
    """Ask and tell until `total` trials are COMPLETE and nobody runs or waits any more."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(url, linger=0.05)
    sampler = optuna.samplers.RandomSampler()
    study = optuna.load_study(study_name=study_name, storage=storage, sampler=sampler)
    study_id = study._study_id
    while True:
        waiting = storage.get_n_trials(study_id, TrialState.WAITING)
        if waiting == 0 and storage.get_n_trials(study_id, TrialState.COMPLETE) >= total:
            if storage.get_n_trials(study_id, TrialState.RUNNING) == 0:
                break
            time.sleep(0.02)  # somebody's trial is to end, or to be taken over
            continue
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        for step in range(3):
            trial.report(x * step, step)
        study.tell(trial, x)
        acknowledge(file, trial.number, x)
    storage.close()


def work_with_the_study_api(url: str, study_name: str, file: Path, total: int) -> None:
    """Run `optimize` of a study whose budget is `total`, until it gives out no more."""
    study = open_study(
        open_storage(url, linger=0.05, create=False), study_name, create=False, sampler=optuna.samplers.RandomSampler()
    )

    def objective(trial: Trial) -> float:
        x = trial.suggest_float("x", 0.0, 1.0)
        trial.report(x, 0)
        return x

    def told(_: Study, trial: FrozenTrial) -> None:
        if trial.state is TrialState.COMPLETE:
            acknowledge(file, trial.number, trial.params["x"])

    study.optimize(objective, callbacks=[told])
    study.storage.close()


def massacre(
    url: str,
    notes: Path,
    *,
    seed: int,
    study: str = "massacre",
    work: Work = work_with_plain_optuna,
    workers: int = 8,
    total: int = 400,
    kills: int = 12,
) -> Outcome:
    """Let `workers` processes complete `total` trials of an existing study, and kill one now and then, at random.

    A killed worker is replaced by a new one. The moments follow from the seed and from how many tells were
    acknowledged, not from the clock.
    """
    random_ = random.Random(seed)
    moments = sorted(random_.sample(range(total // 20, total * 9 // 10), kills))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    lives = itertools.count()

    def start() -> BaseProcess:
        arguments = (dict(os.environ), work, url, study, notes / f"told-{next(lives):03d}", total)
        process = context.Process(target=in_environment, args=arguments)
        process.start()
        return process

    processes = [start() for _ in range(workers)]
    began = time.monotonic()
    killed = 0
    while any(process.is_alive() for process in processes):
        if time.monotonic() - began > patient(_PATIENCE):
            for process in processes:
                process.kill()
            raise AssertionError(f"the campaign did not end; seed {seed}")
        if killed < kills and _lines(notes) >= moments[killed]:
            victim = random_.randrange(workers)
            processes[victim].kill()
            processes[victim].join()
            processes[victim] = start()
            killed += 1
        time.sleep(0.005)
    assert [process.exitcode for process in processes] == [0] * workers
    return Outcome(study, killed, _acknowledged(notes))


def _watch_it_again(storage: Storage, study_id: int) -> None:
    """Replay the study's log from its beginning, and hold every State on the way against the invariants."""
    uuid = storage.handle(study_id).uuid
    state, witness = State(), Witness()
    for entry in everything(storage.peer.store.log(uuid)):
        apply(state, entry.lsn, codec.decode(entry.payload), entry.stamp)
        if entry.lsn % 16 == 0:  # each look costs as much as the State is large
            witness.look(state)
    witness.look(state)


def _lines(notes: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in notes.glob("told-*"))


def _acknowledged(notes: Path) -> dict[int, float]:
    told = {}
    for file in notes.glob("told-*"):
        for line in file.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                number, value = line.split()
                told[int(number)] = float(value)
    return told


def verify(url: str, outcome: Outcome) -> list[FrozenTrial]:
    """Hold what is in the store, as a fresh peer sees it, against what was promised; the trials.

    Raises:
        AssertionError: naming the promise that was broken.

    """
    storage = open_storage(url)
    try:
        return _verified(storage, outcome)
    finally:
        storage.close()


def _verified(storage: Storage, outcome: Outcome) -> list[FrozenTrial]:
    study_id = storage.get_study_id_from_name(outcome.study)
    trials = storage.get_all_trials(study_id, deepcopy=False)
    state = storage.handle(study_id).state
    assert [trial.number for trial in trials] == list(range(len(trials))), "numbers are dense and unique"
    late = {trial.late_of: trial.number for trial in state.trials if trial.late_of is not None}
    for number, value in outcome.acknowledged.items():
        kept = trials[late.get(number, number)]
        assert kept.state is TrialState.COMPLETE, f"the acknowledged tell of #{number} is {kept.state.name}"
        assert kept.values == [value], f"the acknowledged tell of #{number} has changed"
    assert not any(trial.state is TrialState.RUNNING for trial in trials), "nobody runs any more"
    if next_start(state).why != "budget":
        assert not state.waiting, "nothing is left waiting"
    _watch_it_again(storage, study_id)
    for trial in state.trials:
        interrupted = bool(trial.history) and trials[trial.number].state is TrialState.FAIL
        if interrupted and trial.retried_by is None:
            assert trial.attempt >= state.policy.attempts, f"the orphan #{trial.number} was retried or used up"
    return trials
