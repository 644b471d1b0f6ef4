"""The commands `hopaas-p2p trial …`, which run a trial step by step, or show, queue, annotate and stop trials."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from hopaas_p2p.analysis.facts import pareto_front, row_of, trial_word, value_columns, why_not
from hopaas_p2p.analysis.objectives import objectives
from hopaas_p2p.cli import output
from hopaas_p2p.cli.annotations import add_annotations
from hopaas_p2p.cli.artifact import artifact
from hopaas_p2p.cli.lazy import Group
from hopaas_p2p.cli.options import CliSession, Columns
from hopaas_p2p.cli.verbs import ask, log, release, renew, report, should_prune, tell
from hopaas_p2p.core.attributes import CONTINUES, COPIES
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import NEVER_PAUSING, State
from hopaas_p2p.errors import InvalidInput, LeaseLost, NoSuchTrial, NotYourTrial
from hopaas_p2p.files import artifacts
from hopaas_p2p.runtime.arguments import shortened
from hopaas_p2p.spec import space

_STATES: Final = ("running", "complete", "pruned", "fail", "waiting", "paused")
_ORDERS: Final = ("number", "value", "start", "seconds")
_HEADS: Final = ("#", "CONTINUES", "STATE", "FRONT", "TIME", "TRY", "WHERE", "REASON", "TAGS", "PARAMETERS")
"""Our own columns in a list. An objective with such a name gets the head `VALUE NAME`."""


@click.group(cls=Group)
def trial() -> None:
    """Run a trial step by step, from ask to tell; list, show, enqueue, requeue, annotate and stop trials; manage files.

    Name the study with --study or HOPAAS_STUDY; `trial ask` and `trial list` also take it as an argument.
    """


for command in (ask, report, log, should_prune, tell, renew, release):
    trial.add_command(command)


@trial.command("list", study="argument")
@click.option("--state", "states", multiple=True, metavar="|".join(_STATES), help="Only trials in these states.")
@click.option(
    "--sort",
    metavar="|".join((*_ORDERS, "OBJECTIVE")),
    default="number",
    help="The order. By objective, the best come first; use value.NAME if the name is also another order.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="List at most N trials.")
@click.option("--all", "every", is_flag=True, help="List every trial, also with rungs or a population.")
def list_(session: CliSession, states: tuple[str, ...], sort: str, limit: int | None, every: bool) -> None:
    """List the trials of a study. With rungs or a population, one row per configuration: the newest of its trials."""
    from hopaas_p2p import notes
    from hopaas_p2p.analysis import configurations

    study = session.study()
    wanted = {word.strip().upper() for one in states for word in one.split(",")}
    for word in sorted(wanted - {one.upper() for one in _STATES}):
        raise click.UsageError(f"{word.lower()!r} is not a state. The states are {', '.join(_STATES)}.")
    tags = notes.tags_by_trial(study.storage.get_study_system_attrs(study.study_id))
    state = study.state
    chained = state.configurations is not NEVER_PAUSING and not every
    chains = {one.newest.number: list(one.trials) for one in configurations.rows(state)} if chained else {}
    front = {one.number for one in pareto_front(state)} if len(objectives(state)) > 1 else ()
    rows = [
        row_of(state, number)
        | {"tags": tags.get(number, []), "trials": chains.get(number, [number]), "front": number in front}
        for number, one in enumerate(state.trials)
        if (not chained or number in chains) and (not wanted or trial_word(one) in wanted)
    ]
    shown = _in_order(rows, sort, state)[:limit]
    place = {row["number"]: at for at, row in enumerate(shown)}
    values: Columns = {
        f"VALUE {head}" if (head := name.upper()) in _HEADS else head: lambda row, cells=cells: (  # type: ignore[misc]
            cells[place[row["number"]]]
        )
        for name, cells in value_columns(state, [row["values"] for row in shown]).items()
    }
    columns: Columns = {
        "#": "number",
        "CONTINUES": lambda row: " ".join(f"#{one}" for one in row["trials"] if one != row["number"]) or "-",
        "STATE": "state",
        **values,
        "FRONT": lambda row: "yes" if row["front"] else "-",
        "TIME": lambda row: output.duration(row["seconds"]),
        "TRY": "attempt",
        "WHERE": output.where,
        "REASON": lambda row: shortened(why_not(state.trials[row["number"]]), 100) or "-",
        "TAGS": lambda row: " ".join(f"#{tag}" for tag in row["tags"]) or "-",
        "PARAMETERS": lambda row: output.parameters(row["params"], digits=4),
    }
    optional = "CONTINUES", "FRONT", "REASON", "TAGS"
    empty = "No trials in the given states." if wanted else "No trials yet."
    session.show_table(shown, columns, right=("#", *values, "TIME", "TRY"), optional=optional, empty=empty)


def _in_order(rows: list[dict[str, Any]], sort: str, state: State) -> list[dict[str, Any]]:
    """The rows in ascending order. By an objective, the best come first, and infeasible trials come after the others.
    By value, the trials on a front come first. Trials without a value are last. An objective whose name is also another
    order is `value.NAME`.
    """
    directions = () if state.define is None else state.define.directions
    named = [f"value.{one}" if one in _ORDERS and len(directions) > 1 else one for one in objectives(state)]
    orders = {**{name: at for at, name in enumerate(named)}, **dict.fromkeys(_ORDERS), "value": 0}
    if sort not in orders:
        known = ", ".join(" ".join(name.split()) for name in orders)  # the names of objectives are not trusted
        raise click.UsageError(f"{sort!r} is not an order. The orders are {known}.")
    by = orders[sort]

    def key(row: dict[str, Any]) -> tuple[bool, bool, bool, Any]:
        number, value = row["number"], row.get(sort)
        if by is not None:
            value = row["values"][by] if row["values"] else None
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return (True, True, True, number)
        if by is None:
            return (False, False, False, value)
        dominated, infeasible = sort == "value" and not row["front"], not state.trials[number].feasible
        return (False, infeasible, dominated, -value if directions[by] == "maximize" else value)

    return sorted(rows, key=key)


@trial.command()
@click.argument("number", type=int)
def show(session: CliSession, number: int) -> None:
    """Show one trial: parameters, reports, metrics, who owned it, where it ran, and why it ended."""
    from hopaas_p2p import notes
    from hopaas_p2p.cli import summary

    study = session.study()
    trial = study.handle.existing(number)
    frozen = study.storage.get_trial(study.storage.get_trial_id_from_study_id_trial_number(study.study_id, number))
    attributes = study.storage.get_study_system_attrs(study.study_id)
    data = row_of(study.state, number) | {"tags": notes.tags_by_trial(attributes).get(number, [])}
    data |= summary.more_of_trial(study, frozen, trial, attributes)
    session.show(data, lambda: output.print_facts(_facts(data)))


def _facts(data: dict[str, Any]) -> dict[str, str | list[str]]:
    """The lines of `show`. Absent values are omitted."""
    reports = [f"{step}: {output.number(value)}" for step, value in data["reports"].items()]
    hidden = f" (the last 20 of {len(reports)})" if len(reports) > 20 else ""
    history = [
        f"epoch {one['epoch']}: {one['owner']} at {output.where(one)}, "
        f"until {output.utc_time(one['end'])}, {one['how']}: {one['why']}"
        + (f"; its late result is trial {one['kept_as']}" if one["kept_as"] is not None else "")
        for one in data["history"]
    ]
    if data["owner"] and all(one["how"] != "taken over" for one in data["history"]):
        history.append(f"epoch {data['epoch']}: {data['owner']} at {output.where(data)}")
    related = ("continues", "continued_by", "copies", "retry_of", "retried_by")
    links = [f"{name.replace('_', ' ')} #{data[name]}" for name in related if data[name] is not None]
    links += [f"late result of #{data['late_of']}"] if data["late_of"] is not None else []
    metrics = [
        f"{name} = {output.number(values[max(values)])} at step {max(values)} ({output.count(len(values), 'step')})"
        for name, values in data["metrics"].items()  # the JSON output has all steps
        if values
    ]
    stop, seen = data["stop_requested"], "acknowledged by its peer" if data["stop_acknowledged"] else "not acknowledged"
    listed = {CONTINUES, COPIES} | {f"{prefix}{one['id']}" for one in data["files"] for prefix in artifacts.PREFIXES}
    attributes = {**data["user_attrs"], **data["system_attrs"]}
    return {
        "trial": " ".join([str(data["number"]), *(f"#{tag}" for tag in data["tags"])]),
        "state": data["state"]
        + (f" after {output.count(data['paused_after'], 'step')}" if data["paused_after"] else ""),
        "values" if len(data["values"] or ()) > 1 else "value": output.numbers(data["values"]),
        "parameters": [f"{name} = {_value(value)}" for name, value in data["params"].items()],
        "parameters from": data["chosen_by"],
        "start": output.utc_time(data["start"]),
        "end": output.utc_time(data["end"]),
        "time": output.duration(data["seconds"]),
        "attempt": ", ".join([str(data["attempt"]), *links]),
        "reason": data["reason"] or "",
        "asked to stop": f"{stop} ({seen})" if stop else "",
        "reports": ", ".join(reports[-20:]) + hidden,
        "metrics": metrics,
        "owners": history,
        "files": [f"{one['filename']} ({output.size(one['size'])})" for one in data["files"]],
        "ran with": ", ".join(f"{name} {value}" for name, value in data["provenance"].items()),
        "attributes": [f"{name} = {_value(value)}" for name, value in attributes.items() if name not in listed],
        "note": data["note"],
    }


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(output.jsonable(value), ensure_ascii=False)


@trial.command()
@click.argument("params", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--attr", "attrs", multiple=True, metavar="NAME=VALUE", help="A user attribute of the trial.")
def enqueue(session: CliSession, params: tuple[str, ...], attrs: tuple[str, ...]) -> None:
    """Queue a trial with these parameters; the next peer that asks for a trial runs it.

    The sampler of that peer chooses the parameters that you leave out.
    """
    study = session.study()
    user = space.parse_params(attrs, {})
    _show_queued(session, [study.enqueue_trial(space.parse_params(params, dict(study.space)), user_attrs=user)])


@trial.command()
@click.argument("numbers", nargs=-1, required=True, type=int)
def requeue(session: CliSession, numbers: tuple[int, ...]) -> None:
    """Queue trials again with the same parameters. A running trial is taken from its peer."""
    study = session.study()
    for number in numbers:
        study.handle.existing(number)
    retries = [study.requeue(number) for number in numbers]
    for number, retry in zip(numbers, retries, strict=True):
        if retry is None:
            output.say(f"Trial {number} was taken from its peer, but not queued, because it has no attempts left.")
    _show_queued(session, retries)


def _show_queued(session: CliSession, numbers: Sequence[int | None]) -> None:
    """Print numbers for scripts, and sentences on a terminal."""
    as_line = "Trial {} is queued." if sys.stdout.isatty() else "{}"
    lines = [as_line.format(one) for one in numbers if one is not None]
    session.show({"numbers": list(numbers)}, lambda: output.print_lines(lines))


add_annotations(trial, "a trial's", click.argument("number", type=int))
trial.add_command(artifact)


@trial.command()
@click.argument("numbers", nargs=-1, required=True, type=int)
@click.option("--reason", help="The reason, which is shown to the trial's peer.")
def stop(session: CliSession, numbers: tuple[int, ...], reason: str | None) -> None:
    """Ask running trials to end. Their next should_prune() returns true. A waiting trial is withdrawn.

    `trial show` shows whether the trial's peer has seen the request, and later how the trial ended.
    """
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState as OptunaState

    study = session.study()
    for number in numbers:
        study.handle.existing(number)
    done = []
    for number in numbers:
        if study.state.trials[number].state is TrialState.WAITING:
            with contextlib.suppress(LeaseLost, NotYourTrial, UpdateFinishedTrialError):  # it was just started
                study.handle.finish(number, OptunaState.FAIL, None, reason or "withdrawn by hand")
                done.append(f"Trial {number} was withdrawn.")
                continue
        asked = "already asked" if study.state.trials[number].stop else "asked"
        try:
            study.stop_trial(number, reason=reason)
        except InvalidInput as error:
            raise NoSuchTrial(str(error)) from None
        done.append(f"Trial {number} was {asked} to end.")
    session.done({"numbers": list(numbers)}, "\n".join(done))
