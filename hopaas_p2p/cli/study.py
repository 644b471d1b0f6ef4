"""The commands `hopaas-p2p study …`, which create, show, annotate and control studies."""

from __future__ import annotations

import contextlib
import fnmatch
import shlex
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.analysis.facts import state_word
from hopaas_p2p.analysis.spending import budget_lines, cells, spending
from hopaas_p2p.cli import output
from hopaas_p2p.cli.annotations import add_annotations
from hopaas_p2p.cli.create import create, set_
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import CliSession, Columns
from hopaas_p2p.cli.transfer import copy, export, import_, report_html
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.errors import InvalidInput, NoSuchStudy
from hopaas_p2p.open import store_option
from hopaas_p2p.peer.liveness import any_alive, signs_of_life

if TYPE_CHECKING:
    from hopaas_p2p.analysis.spending import Spending

_POLICY: Final[dict[str, tuple[object, str]]] = {
    "attempts": (3, "at most {} attempts per trial"),
    "lease_ttl": ("120", "lease of {} s"),
    "max_failures": (None, "ends after {} failures in a row"),
    "progress_timeout": (None, "stops a trial after {} s without a report"),
    "interrupted": ("fail", "interrupted trials {}"),
}
"""Field of a policy -> its default value, and a description."""
_ROWS: Final = 12
"""The most lines of a list that `show` prints. A population can have thousands of rungs."""


@click.group(cls=Group)
def study() -> None:
    """Create, list, show, control, export, import and copy studies.

    Name the study as an argument, with --study, or with HOPAAS_STUDY.
    """


add_annotations(study, "the study's")
for command in (create, set_, export, report_html, import_, copy):
    study.add_command(command)


@study.command("list", study="none")
@click.argument("pattern", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=100, metavar="N", help="List only the newest N.")
@click.option("--names", is_flag=True, help="Print all names, without opening studies.")
def list_(session: CliSession, pattern: str | None, limit: int, names: bool) -> None:
    """List the studies of the store, or those whose names match a pattern such as 'mnist-*'."""
    from hopaas_p2p.cli import summary
    from hopaas_p2p.study import open_study

    storage = session.storage()
    cure = session.again("study create NAME")
    none = f"No study matches {pattern!r}." if pattern else f"No studies yet. To create one: {cure}"
    listings = [one for one in storage.listings() if pattern is None or fnmatch.fnmatchcase(one.name, pattern)]
    if names:
        session.show_table([{"name": one.name} for one in listings], {"STUDY": "name"}, empty=none)
        return
    found = []
    newest = listings[-limit:]
    if newest:
        none = f"None of the newest studies ({len(newest):,}) can be read."
    for name in [one.study_name for one in storage.frozen_studies(newest)]:
        with contextlib.suppress(NoSuchStudy):  # the study was just deleted
            found.append(summary.of_study(open_study(storage, name, create=False)))

    def best_of(row: dict[str, Any]) -> str:
        best = row["best"] or {"values": None}
        return f"{len(best)} on the front" if isinstance(best, list) else output.numbers(best["values"])

    columns: Columns = {
        "STUDY": "name",
        "STATE": "state",
        "TRIALS": lambda one: f"{one['trials']}" if one["budget"] is None else f"{one['used']}/{one['budget']}",
        "RUNNING": lambda one: str(one["counts"]["RUNNING"]),
        "FAILED": lambda one: str(one["counts"]["FAIL"] - one["retried"]),
        "BEST": best_of,
        "NOTE": lambda one: " ".join(
            [*(f"#{tag}" for tag in one["tags"]), one["note"].strip().partition("\n")[0].lstrip("# ")]
        ),
    }
    session.show_table(found, columns, right=("TRIALS", "RUNNING", "FAILED", "BEST"), empty=none)
    if len(listings) > limit:
        output.say(f"Older studies not shown: {len(listings) - limit:,}. Use a pattern, --limit N, or --names")


@study.command(study="argument")
@click.option("--trial", type=int, metavar="N", help="The trial whose schedule is shown. [default: the best]")
def schedule(session: CliSession, trial: int | None) -> None:
    """Show the parameters that led to a trial, step by step, including those of the members that it copied from.

    The output of --json can be replayed: hopaas_p2p.study.Schedule.from_json(text).at(step) has a step's parameters.

    \b
    hopaas-p2p study schedule digits --json > schedule.json
    """  # noqa: D301  # click needs the backspace
    found = session.study().schedule(trial)
    rows = [
        [f"{'' if one.first is None else one.first}..{one.last}", f"#{one.trial}", output.parameters(one.params)]
        for one in found.entries
    ]
    empty, heads = f"Trial {found.trial} has reported no steps.", ["STEPS", "TRIAL", "PARAMETERS"]
    session.show(found.as_data(), lambda: output.print_table(heads, rows) if rows else output.say(empty))


@study.command(study="argument")
@click.option("--audit", "as_audit", is_flag=True, help="List who did what and when, from the log.")
def show(session: CliSession, as_audit: bool) -> None:
    """Show one study: state, trials, best, budget, and which peers run trials where."""
    from hopaas_p2p.cli import summary
    from hopaas_p2p.study.audit import audit, author

    shown = session.study()
    if not as_audit:
        data = summary.of_study(shown) | summary.more_of_study(shown)
        session.show(data, lambda: output.print_facts(_facts(data, spending(shown.state))))
        return
    columns: Columns = {
        "LSN": "lsn",
        "TIME (UTC)": lambda line: (line["time"] or "-")[:19].replace("T", " "),
        "WHO": author,
        "RECORD": "kind",
        "TRIAL": lambda line: "-" if line["trial"] is None else f"#{line['trial']}",
        "WHAT": lambda line: (f"REFUSED ({line['refused']}) " if line["refused"] else "") + line["detail"],
    }
    session.show_table(audit(shown), columns, right=("LSN", "TRIAL"))


def _facts(data: dict[str, Any], found: Spending) -> dict[str, str | list[str]]:
    """The lines of `show`, the most important first. Absent values and defaults are omitted.

    Long lists are cut, so that the lines fit on a screen; --json has everything.
    """
    from hopaas_p2p.cli import summary

    again = {"FAIL": f" ({data['retried']} retried)"} if data["retried"] else {}
    counts = ", ".join(f"{count} {state}{again.get(state, '')}" for state, count in data["counts"].items() if count)
    silent = [f"{peer}, last seen {output.ago(ago)}" for peer, ago in data["silent"].items()]
    heads, rows = cells(found)
    shown = rows if len(rows) <= _ROWS else rows[-1:]
    policy = {name: output.number(one) if isinstance(one, float) else one for name, one in data["policy"].items()}
    files, unsaid = data["checkpoints"], summary.search_in_words({})
    study, store = shlex.quote(data["name"]), store_option(data["store"])
    worker = f"hopaas-p2p worker{store} --study {study} -- COMMAND"
    return {
        "study": data["name"],
        "store": data["store"],
        "state": data["state"],
        "best": _best(data),
        "running at": ", ".join(f"{site}: {count}" for site, count in data["peers"].items()),
        "silent": [*silent, "(a live peer takes their trials over within twice the ttl of leases:", f" {worker})"]
        if silent
        else "",
        "trials": f"{data['trials']} ({counts or 'none yet'})",
        "budget": budget_lines(found),
        "directions": ", ".join(data["directions"]),
        "space": _some([f"{name}: {one}" for name, one in data["space"].items()]) or "define-by-run",
        "policy": ", ".join(_POLICY[name][1].format(one) for name, one in policy.items() if one != _POLICY[name][0]),
        "search": ", ".join(f"{name}: {one}" for name, one in data["search"].items() if one != unsaid[name]),
        "prior": [one["text"] for one in data["learned"]],
        "rungs": [*(one["text"] for one in data["rungs"][-_ROWS:]), data["next"]] if data["rungs"] else "",
        "checkpoints": f"{files['count']}, {output.size(files['bytes'])}" if files["count"] else "",
        "spent": output.aligned([heads, *shown], right=heads[3:]) if found.rows else "",
        "best means": [f"{one['text']}  {output.parameters(one['params'])}" for one in data["means"]],
        "seen at": list(data["seen_at"].values()),
        "tags": ", ".join(data["tags"]),
        "note": _some(data["note"].splitlines()),
    }


def _best(data: dict[str, Any]) -> list[str]:
    """A line with the best trial. With several objectives, the size of the front and the best trial by each
    objective.
    """

    def line(name: str, one: dict[str, Any]) -> str:
        return f"{name}#{one['number']}: {output.numbers(one['values'])}  {output.parameters(one['params'])}"

    best = data["best"]
    if not best:
        return ["- (no complete trial satisfies the constraints)" if data["counts"]["COMPLETE"] else "-"]
    if not isinstance(best, list):
        return [line("", best)]
    listing = f"hopaas-p2p trial list --study {shlex.quote(data['name'])} --sort value"
    lines = [f"{output.count(len(best), 'trial')} on the Pareto front; to list: {listing}"]
    for at, (name, direction) in enumerate(zip(data["objectives"], data["directions"], strict=True)):
        ranked = sorted(best, key=lambda one: float(one["values"][at]))  # noqa: B023  # the function is called at once
        lines.append(line(f"best {name} ", ranked[-1 if direction == "maximize" else 0]))
    return lines


def _some(lines: list[str]) -> list[str]:
    return lines if len(lines) <= _ROWS else [*lines[: _ROWS - 1], f"… and {len(lines) - _ROWS + 1} more"]


@study.command(study="argument")
def pause(session: CliSession) -> None:
    """Start no new trials until `study resume`. Running trials continue, and peers wait."""
    paused = session.study()
    done = "Already paused:" if paused.state.status == "paused" else "Paused"
    paused.pause()
    session.done({"state": "paused"}, f"{done} {paused.name!r}. Running trials continue.")


@study.command(study="argument")
def resume(session: CliSession) -> None:
    """Start trials again, even after `stop` or too many failures."""
    resumed = session.study()
    done = "Resumed" if next_start(resumed.state).why in ("paused", "stopped", "failing") else "Nothing to resume in"
    resumed.resume()
    state = resumed.state
    word = state_word(state, working=any_alive(signs_of_life(resumed.storage.peer, state).values()))
    used = "; ".join(budget_lines(spending(state)))
    said = f": {word}, {used}."
    if word == "done":
        cure = f"To run more trials: {session.again(f'study set {shlex.quote(resumed.name)} --budget LIMITS')}"
        said = f", but its budget is used up: {state.ledger.reached or used}. {cure}"
    session.done({"state": word, "budget": state.budget}, f"{done} {resumed.name!r}{said}")


@study.command(study="argument")
@click.option("--trials", is_flag=True, help="Also ask running trials to end; their next should_prune() returns true.")
def stop(session: CliSession, trials: bool) -> None:
    """End the study. No more trials start, and running trials are finished."""
    stopped = session.study()
    done = "Already stopped:" if stopped.state.status == "stopped" else "Stopped"
    stopped.stop_all()
    running = list(stopped.state.running)
    for number in list(running) if trials else ():
        try:
            stopped.stop_trial(number, reason="the study is stopped")
        except InvalidInput:  # the trial has ended meanwhile
            running.remove(number)
    asked = f" Asked {output.count(len(running), 'running trial')} to end." if trials and running else ""
    session.done({"state": "stopped", "running": running}, f"{done} {stopped.name!r}.{asked}")


@study.command(study="argument")
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
def rm(session: CliSession, yes: bool) -> None:
    """Delete a study with its trials and its log. This cannot be undone."""
    doomed = session.study()
    state = doomed.state
    if not yes:
        running = f", {len(state.running)} of them running" if state.running else ""
        question = f"Delete {doomed.name!r} with {output.count(len(state.trials), 'trial')}{running}?"
        with contextlib.suppress(click.Abort):
            yes = click.confirm(output.printable(question), err=True)
        if not yes:
            raise click.ClickException("Nothing was deleted. To skip the question: --yes")
    doomed.storage.delete_study(doomed.study_id)
    session.done({"deleted": doomed.name}, f"Deleted {doomed.name!r}.")
