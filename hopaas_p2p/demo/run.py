"""The demo from beginning to end: stage, peers, the kill, the report, and where to look further."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from rich.console import Console

import hopaas_p2p
from hopaas_p2p.core.state import COMPLETE, PRUNED, State
from hopaas_p2p.demo import objective
from hopaas_p2p.demo.director import DemoFailed, Director, Kill
from hopaas_p2p.demo.screen import Screen, screen_for
from hopaas_p2p.demo.story import Event, Story, scene
from hopaas_p2p.errors import ConfigurationError, DefinitionMismatch
from hopaas_p2p.report import write_report
from hopaas_p2p.report.facts import best, params_of, savings, shown
from hopaas_p2p.study import Study

_LOOK: Final = 0.1  # seconds between two looks at the study
_TTL: Final = 4.0  # seconds of silence before a trial is taken over; real campaigns take minutes
_NAME: Final = "digits"


class Plan(NamedTuple):
    """What the command line asked for."""

    peers: int
    trials: int
    seed: int
    store: str | None
    report: Path | None
    timeout: float
    kill: bool


class Stage(NamedTuple):
    """Where the demo takes place."""

    study: Study
    store: str
    folder: Path
    """Of the peers' outputs and the report."""


def run(plan: Plan, console: Console) -> None:
    """Run the demo.

    Raises:
        DemoFailed: a peer failed, or a killed peer's trial did not come back.
        ConfigurationError: the store cannot be used, or the report would have no place.

    """
    if plan.report is not None and not plan.report.parent.is_dir():
        raise ConfigurationError(f"--report {plan.report}: there is no directory {plan.report.parent}")
    with _sigterm_interrupts():
        stage = _set_up(plan)
        try:
            kill = _perform(plan, stage, console)
            _tell_the_end(plan, stage, console, kill)
        finally:
            stage.study.close()


def _set_up(plan: Plan) -> Stage:
    """A new study in the store, and a folder for what is not part of it."""
    store = tempfile.mkdtemp(prefix="hopaas-demo-") if plan.store is None else plan.store
    is_directory = "://" not in store
    study = _new_study(store, plan.trials)
    folder = Path(store).expanduser() if is_directory else Path(tempfile.mkdtemp(prefix="hopaas-demo-"))
    return Stage(study, store, folder.absolute())


def _new_study(store: str, budget: int) -> Study:
    """A study of its own for this run: digits, else digits-2, digits-3, …"""
    if store.startswith("memory:"):
        raise ConfigurationError("memory:// lives in one process; give the demo a directory or a URL that is shared")
    storage = hopaas_p2p.open_storage(store)
    there = storage.study_names()
    name = _NAME
    number = 1
    while name in there:
        number += 1
        name = f"{_NAME}-{number}"
    try:
        return hopaas_p2p.open_study(
            storage, name, space=objective.SPACE, direction="maximize", budget=budget, lease_ttl=_TTL
        )
    except DefinitionMismatch:
        raise DemoFailed(f"somebody else has just begun {name!r} in {store}; try again") from None


def _perform(plan: Plan, stage: Stage, console: Console) -> Kill | None:
    """Run the peers to the end of the study, and kill one on the way."""
    study = stage.study
    title = f"hopaas-p2p demo · {plan.peers} {'peer' if plan.peers == 1 else 'peers'}, one shared store, no server"
    began = time.monotonic()
    may_kill = plan.kill and plan.peers > 1
    with (
        Director(study, store=stage.store, folder=stage.folder, seed=plan.seed) as director,
        screen_for(console, title=title, epochs=objective.EPOCHS) as screen,
    ):
        screen.tell(Event(0.0, f"store {stage.store}, study {study.name}, {plan.trials} trials"))
        director.start(plan.peers)
        story = Story(director.names, "maximize")
        stopped = False
        while True:
            at_work = director.running()
            state = study.state
            elapsed = time.monotonic() - began
            _show(screen, story, state, director, elapsed, plan)
            if not at_work:
                return director.killed
            done = state.counts[COMPLETE] + state.counts[PRUNED]
            in_the_middle = done >= max(1, plan.trials // 3) or (done and elapsed > plan.timeout / 4)
            if may_kill and in_the_middle and director.killed is None and not stopped:
                _kill(director, screen, state, elapsed)
            if elapsed > plan.timeout and not stopped:
                stopped = True
                screen.tell(Event(elapsed, f"time is up after {plan.timeout:g} s: no more trials are given out"))
                study.stop()
            time.sleep(_LOOK)


def _show(screen: Screen, story: Story, state: State, director: Director, elapsed: float, plan: Plan) -> None:
    for event in story.look(state, elapsed):
        screen.tell(event)
    screen.show(scene(state, director.statuses(), elapsed=elapsed, epochs=objective.EPOCHS, budget=plan.trials))


def _kill(director: Director, screen: Screen, state: State, elapsed: float) -> None:
    kill = director.kill_one(state, epochs=objective.EPOCHS)
    if kill is not None:
        text = f"peer {kill.peer} KILLED (SIGKILL, pid {kill.pid}) in epoch {kill.epoch + 1} of #{kill.number}"
        screen.tell(Event(elapsed, text, "bad"))


def _tell_the_end(plan: Plan, stage: Stage, console: Console, kill: Kill | None) -> None:
    """Results, the report, and the commands to look further."""
    study, state = stage.study, stage.study.state

    def say(line: str = "", style: str | None = None) -> None:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    top = best(state)
    if top is None or top.values is None:
        raise DemoFailed(f"no trial was completed; look at the peers' outputs in {stage.folder}")
    params = params_of(top, state)
    say()
    say(f"Best of {state.counts[COMPLETE] + state.counts[PRUNED]} trials: #{top.number}", "bold")
    for name, value in params.items():
        say(f"  {name:<14} {shown(value)}")
    say(f"  accuracy {top.values[0]:.4f} in five-fold cross-validation")
    say(f"  accuracy {objective.held_out_accuracy(params):.4f} on 360 digits that no trial has seen", "bold green")
    saved = savings(state, length=objective.EPOCHS)
    say(
        f"Pruning saved about {shown(saved.saved)} of {shown(saved.without)} epochs ({saved.share:.0%}): what the "
        f"{saved.pruned} pruned trials were short of {objective.EPOCHS}. An estimate: nobody ran them to the end."
    )
    if kill is not None:
        say(_fate(kill, state))
    elif plan.kill and plan.peers > 1:
        say("No peer was killed: no trial was caught in the middle. Give it more trials.")
    report = plan.report or stage.folder / f"{study.name}.html"
    write_report(study, report)
    say()
    say(f"Report  {report}", "bold")
    say("Look further:")
    for command in further(stage.store, study.name, kill.number if kill is not None else top.number):
        say(f"  {command}")
    say("In a browser, with the extra hopaas-p2p[dashboard]:")
    say(f"  {dashboard(stage.store)}")


def _fate(kill: Kill, state: State) -> str:
    """What became of the trial that a killed peer left behind.

    Raises:
        DemoFailed: it did not come back.

    """
    retry = state.trials[kill.number].retried_by
    if retry is None:
        if state.status == "stopped":
            return f"#{kill.number} of the killed peer {kill.peer} was still waiting for its retry when time was up."
        raise DemoFailed(f"trial #{kill.number} of the killed peer {kill.peer} did not come back")
    trial = state.trials[retry]
    if trial.end is None:
        return f"#{kill.number} of the killed peer {kill.peer} waits as #{retry}; time was up before somebody ran it."
    who = state.peers.get(trial.owner or "", {}).get("site", "another peer")
    result = f" with {trial.values[0]:.4f}" if trial.values else ""
    return (
        f"Peer {kill.peer} was killed while it ran #{kill.number}. Nothing was lost: "
        f"#{retry} ran the same parameters at {who} and ended {trial.state.name}{result}."
    )


def further(store: str, name: str, trial: int) -> list[str]:
    """Commands that show more of this study; all of them are run by the tests."""
    where = f"--store {shlex.quote(store)} --study {shlex.quote(name)}"
    verbs = ("study show", "trial list", f"trial show {trial}", "watch")
    return [f"{program()} {verb} {where}" for verb in verbs]


def dashboard(store: str) -> str:
    """The command that shows the store in a browser, for which the extra has to be installed."""
    return f"{program()} dashboard {shlex.quote(store)} --open"


def program() -> str:
    """How a shell here calls this program: by its name if that finds it, else by its path, as after `make demo`."""
    ours = Path(sys.executable).with_name("hopaas-p2p")
    found = shutil.which("hopaas-p2p")
    if not ours.exists() or (found is not None and ours.samefile(found)):
        return "hopaas-p2p"
    here = Path.cwd()
    return shlex.quote(str(ours.relative_to(here) if ours.is_relative_to(here) else ours))


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: through the blocks that end the peers."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
