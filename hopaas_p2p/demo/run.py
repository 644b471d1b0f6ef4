"""Runs the whole demo: creates a study, starts peers, kills one, and prints the results and commands to look closer."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console

import hopaas_p2p
from hopaas_p2p.analysis.facts import best, params_of, shown
from hopaas_p2p.analysis.savings import savings
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.state import COMPLETE, PRUNED, State, Trial
from hopaas_p2p.demo import objective
from hopaas_p2p.demo.processes import KilledPeer, PeerProcesses
from hopaas_p2p.demo.progress import EventReader
from hopaas_p2p.demo.screen import Screen
from hopaas_p2p.errors import ConfigurationError, HopaasError
from hopaas_p2p.report import write_report
from hopaas_p2p.runtime.interrupts import handled
from hopaas_p2p.study import Study

_INTERVAL: Final = 0.1  # seconds between two reads of the study
_TTL: Final = 4.0  # seconds of silence before a trial is taken over; real studies use minutes
_NAME: Final = "digits"


def run(console: Console, *, peers: int, trials: int, store: str | None, timeout: float, kill: bool) -> None:
    """Run the demo with the options of the command line.

    Raises:
        HopaasError: a peer failed, no trial was completed, or a killed peer's trial was not queued again.
        ConfigurationError: the store cannot be used.

    """
    with handled([signal.SIGTERM], signal.default_int_handler):  # so that the `with` blocks end the peers
        store = tempfile.mkdtemp(prefix="hopaas-demo-") if store is None else store
        study = _new_study(store, trials)
        folder = Path(tempfile.mkdtemp(prefix="hopaas-demo-") if "://" in store else store).expanduser().absolute()
        with contextlib.closing(study), PeerProcesses(study, store=store, folder=folder) as processes:
            title = f"hopaas-p2p demo · {peers} peer{'s' * (peers > 1)}, one shared store, no server"
            with Screen(console, title=title, epochs=objective.EPOCHS) as screen:
                screen.say(0.0, f"store {store}, study {study.name}, {trials} trials")
                processes.start(peers)
                _watch(study, processes, screen, trials=trials, timeout=timeout, kill=kill and peers > 1)
            state, killed = study.state, processes.killed
            say = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
            top = best(state)
            if top is None:
                raise HopaasError(f"no trial was completed; look at the peers' outputs in {folder}")
            _print_results(state, top, say)
            if killed is not None:
                say(_outcome(killed, state))
            elif kill and peers > 1:
                say("No peer was killed, because none was in the middle of a trial. Try more trials.")
            report = folder / f"{study.name}.html"
            write_report(study, report)
            say()
            say(f"Report  {report}", style="bold")
            say("To explore further:")
            for command in further(store, study.name, top.number if killed is None else killed.number):
                say(f"  {command}")
            say("In a browser, with the extra hopaas-p2p[dashboard]:")
            say(f"  {dashboard(store)}")


def _new_study(store: str, budget: int) -> Study:
    """A new study for this run, named digits or, if that name is taken, digits-2, digits-3, …"""
    if store.startswith("memory:"):
        raise ConfigurationError(
            "memory:// exists in one process only; give the demo a directory or a URL that is shared"
        )
    storage = hopaas_p2p.open_storage(store)
    existing = storage.study_names()
    names = itertools.chain([_NAME], (f"{_NAME}-{number}" for number in itertools.count(2)))
    name = next(name for name in names if name not in existing)
    policy = hopaas_p2p.StudyPolicy(lease_ttl=_TTL)
    return hopaas_p2p.open_study(
        storage, name, space=objective.SPACE, directions="maximize", budget=budget, policy=policy
    )


def _watch(study: Study, processes: PeerProcesses, screen: Screen, *, trials: int, timeout: float, kill: bool) -> None:
    """Show the study until its peers have ended, and kill one of them meanwhile."""
    began = time.monotonic()
    reader = EventReader({pid: name for name, pid, _ in processes.statuses()})
    stopped = False
    while True:
        at_work = processes.any_running()
        state, elapsed = study.state, time.monotonic() - began
        for text, kind in reader.new_events(state):
            screen.say(elapsed, text, kind)
        screen.show(state, processes.statuses(), elapsed=elapsed)
        if not at_work:
            return
        done = state.counts[COMPLETE] + state.counts[PRUNED]
        in_the_middle = done >= max(1, trials // 3) or (done and elapsed > timeout / 4)
        if kill and in_the_middle and processes.killed is None and not stopped:
            killed = processes.kill_one(state, epochs=objective.EPOCHS)
            if killed is not None:
                where = f"in epoch {killed.epoch + 1} of #{killed.number}"
                screen.say(elapsed, f"peer {killed.name} KILLED (SIGKILL, pid {killed.pid}) {where}", "bad")
        if elapsed > timeout and not stopped:
            stopped = True
            screen.say(elapsed, f"time is up after {timeout:g} s; no more trials are started")
            study.stop_all()
        time.sleep(_INTERVAL)


def _print_results(state: State, top: Trial, say: Callable[..., None]) -> None:
    params, value = params_of(top, state.dists), (top.values or (math.nan,))[0]
    say()
    say(f"Best of {state.counts[COMPLETE] + state.counts[PRUNED]} trials: #{top.number}", style="bold")
    for name, one in params.items():
        say(f"  {name:<14} {shown(one)}")
    say(f"  accuracy {value:.4f} in five-fold cross-validation")
    held_out = objective.held_out_accuracy(params)
    say(f"  accuracy {held_out:.4f} on 360 digits that no trial has seen", style="bold green")
    saved = savings(state, TrialTable.of(state))
    steps = round(saved.steps)
    say(
        f"Pruning saved about {shown(steps)} of {shown(steps + saved.made)} epochs ({saved.share:.0%}). This is an "
        f"estimate: {saved.pruned} of the trials were pruned, and would have run for {objective.EPOCHS} epochs each."
    )


def _outcome(killed: KilledPeer, state: State) -> str:
    """The outcome of the trial that the killed peer ran.

    Raises:
        HopaasError: the trial was not queued again.

    """
    retry = state.trials[killed.number].retried_by
    trial = None if retry is None else state.trials[retry]
    if trial is None and state.status != "stopped":
        raise HopaasError(f"trial #{killed.number} of the killed peer {killed.name} was not queued again")
    if trial is None or trial.end is None:
        return f"#{killed.number} of the killed peer {killed.name} was still waiting to be run again when time was up."
    peer = state.peers.get(trial.owner or "", {}).get("site", "another peer")
    result = f" with {trial.values[0]:.4f}" if trial.values else ""
    return (
        f"Peer {killed.name} was killed while it ran #{killed.number}. Nothing was lost: "
        f"#{retry} ran the same parameters at {peer} and ended {trial.state.name}{result}."
    )


def further(store: str, name: str, trial: int) -> list[str]:
    """Commands that show more of this study; the tests run all of them."""
    where = f"--store {shlex.quote(store)} --study {shlex.quote(name)}"
    verbs = ("study show", "trial list", f"trial show {trial}", "watch")
    return [f"{program()} {verb} {where}" for verb in verbs]


def dashboard(store: str) -> str:
    """The command that shows the store in a browser; it needs the extra `dashboard`."""
    return f"{program()} dashboard {shlex.quote(store)} --open"


def program() -> str:
    """The command for this program: its name if the shell finds it, or else its path, as after `make demo`."""
    ours = Path(sys.executable).with_name("hopaas-p2p")
    found = shutil.which("hopaas-p2p")
    if not ours.exists() or (found is not None and ours.samefile(found)):
        return "hopaas-p2p"
    here = Path.cwd()
    return shlex.quote(str(ours.relative_to(here) if ours.is_relative_to(here) else ours))
