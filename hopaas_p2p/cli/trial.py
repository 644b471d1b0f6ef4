"""`hopaas-p2p trial …`: look at, queue, annotate and stop trials."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p import artifacts, space
from hopaas_p2p.analysis.facts import reason_line, value_cells
from hopaas_p2p.cli import output
from hopaas_p2p.cli.annotations import add_annotations
from hopaas_p2p.cli.lazy import Subgroup
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.state import NEVER_PAUSING
from hopaas_p2p.errors import InvalidInput, LeaseLost, NoSuchTrial, NotYourTrial

if TYPE_CHECKING:
    from hopaas_p2p.study import Study

_STATES: Final = ("running", "complete", "pruned", "fail", "waiting")
_SORTS: Final = ("number", "value", "start", "seconds")


@click.group(cls=Subgroup)
def trial() -> None:
    """List, show, enqueue, requeue, annotate and stop trials.

    The study is named by --study or by HOPAAS_STUDY; `trial list` also takes it as an argument.
    """


@trial.command("list")
@options(study="argument")
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="|".join(_STATES),
    help="Only trials in these states; repeat, or use commas.",
)
@click.option("--failed", is_flag=True, help="Short for --state fail.")
@click.option(
    "--sort", type=click.Choice(_SORTS), default="number", show_default=True, help="The order; by value, best first."
)
@click.option("--reverse", "-r", is_flag=True, help="Reverse the order.")
@click.option("--limit", "-n", type=click.IntRange(min=1), metavar="N", help="List at most N trials.")
@click.option(
    "--all", "every", is_flag=True, help="With rungs or a population, list every trial, not one per configuration."
)
def list_(
    session: CliSession,
    states: tuple[str, ...],
    failed: bool,
    sort: str,
    reverse: bool,
    limit: int | None,
    every: bool,
) -> None:
    """List the trials of a study. With rungs or a population, one row per configuration: the newest of its trials."""
    from hopaas_p2p import notes
    from hopaas_p2p.cli import summary

    study = session.study()
    wanted = {word.strip().upper() for one in (*states, *(["fail"] if failed else [])) for word in one.split(",")}
    for word in sorted(wanted - {one.upper() for one in _STATES}):
        raise click.UsageError(f"{word.lower()!r} is not a state. The states are {', '.join(_STATES)}.")
    tags = notes.tags_by_trial(study.storage.get_study_system_attrs(study.study_id))
    state = study.state
    chains = {} if every or state.configurations is NEVER_PAUSING else summary.chains_of(state)
    heads = [one for one in state.trials if not chains or one.number in chains]
    rows = [summary.of_trial(one, state, tags) for one in heads if not wanted or one.state.name in wanted]
    for row in rows:
        row["trials"] = chains.get(row["number"], [row["number"]])
    rows.sort(key=lambda row: _key(row, sort, study.optuna.directions[0].name), reverse=reverse)
    shown = rows[:limit]
    cells = value_cells([row["values"] for row in shown])
    values = dict(zip((row["number"] for row in shown), cells, strict=True))
    columns: dict[str, str | Callable[[dict[str, Any]], str]] = {
        "#": "number",
        "STATE": lambda row: "PAUSED" if row["paused"] else row["state"],
        "VALUE": lambda row: values[row["number"]],
        "TIME": lambda row: output.duration(row["seconds"]),
        "TRY": "attempt",
        "WHERE": output.where,
    }
    if chains:
        columns = {"#": "number", "CONTINUES": _earlier, **columns}
    if any(row["reason"] for row in shown):
        columns["REASON"] = lambda row: reason_line(row["reason"]) or "-"
    if any(row["tags"] for row in shown):
        columns["TAGS"] = lambda row: " ".join(f"#{tag}" for tag in row["tags"]) or "-"
    columns["PARAMETERS"] = lambda row: output.parameters(row["params"], digits=4)
    empty = "No trials in this state." if wanted else "No trials yet."
    session.show_table(shown, columns, right=("#", "VALUE", "TIME", "TRY"), empty=empty)


def _key(row: dict[str, Any], sort: str, direction: str) -> tuple[bool, Any]:
    """Sorts ascending, by `value` the best first; trials without a value come last."""
    value = row["values"][0] if sort == "value" and row["values"] else row.get(sort)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return (True, row["number"])
    return (False, -value if sort == "value" and direction == "MAXIMIZE" else value)


def _earlier(row: dict[str, Any]) -> str:
    """The earlier trials of a row's configuration."""
    return " ".join(f"#{number}" for number in row["trials"] if number != row["number"]) or "-"


@trial.command()
@options()
@click.argument("number", type=int)
def show(session: CliSession, number: int) -> None:
    """Show one trial: parameters, reports, metrics, who owned it, where it ran, and why it ended."""
    from hopaas_p2p import notes
    from hopaas_p2p.cli import summary

    study = session.study()
    _exists(study, number)
    frozen = study.storage.get_trial(study.storage.get_trial_id_from_study_id_trial_number(study.study_id, number))
    attributes = study.storage.get_study_system_attrs(study.study_id)
    trial = study.state.trials[number]
    data = summary.of_trial(trial, study.state, notes.tags_by_trial(attributes))
    data |= summary.more_of_trial(study, frozen, trial, attributes)
    session.show(data, lambda: output.print_facts(_facts(data)))


def _exists(study: Study, number: int) -> None:
    if not 0 <= number < len(study.state.trials):
        raise NoSuchTrial(f"The study {study.name!r} has no trial {number}; it has {len(study.state.trials)} trials.")


def _facts(data: dict[str, Any]) -> dict[str, str]:
    reports = [f"{step}: {output.number(value)}" for step, value in data["reports"].items()]
    hidden = f" (the last 20 of {len(reports)})" if len(reports) > 20 else ""
    history = [
        f"epoch {one['epoch']}: {one['owner']} at {output.where(one)}, "
        f"until {output.utc_time(one['end'])}: {one['why']}"
        + (f"; its late result is trial {one['kept_as']}" if one["kept_as"] is not None else "")
        for one in data["history"]
    ]
    taken_away = data["end"] is not None and any(one["end"] == data["end"] for one in data["history"])
    if data["owner"] and not taken_away:
        history.append(f"epoch {data['epoch']}: {data['owner']} at {output.where(data)}")
    related = {
        "continues": data["continues"],
        "copies": data["copies"],
        "retry of": data["retry_of"],
        "retried by": data["retried_by"],
        "late result of": data["late_of"],
    }
    links = [f"{what} #{other}" for what, other in related.items() if other is not None]
    listed = tuple(f"{prefix}{one['id']}" for one in data["files"] for prefix in artifacts.PREFIXES)
    attributes = {
        name: value for name, value in {**data["user_attrs"], **data["system_attrs"]}.items() if name not in listed
    }
    facts = {
        "trial": " ".join([str(data["number"]), *(f"#{tag}" for tag in data["tags"])]),
        "state": data["state"],
        "values" if len(data["values"] or ()) > 1 else "value": output.numbers(data["values"]),
        "parameters": "\n".join(f"{name} = {_value(value)}" for name, value in data["params"].items()),
        "parameters from": data["chosen_by"],
        "start": output.utc_time(data["start"]),
        "end": output.utc_time(data["end"]),
        "time": output.duration(data["seconds"]),
        "attempt": ", ".join([str(data["attempt"]), *links]),
        "reason": data["reason"] or "",
        "asked to stop": _stop_asked(data),
        "reports": ", ".join(reports[-20:]) + hidden,
        "metrics": "\n".join(_last_logged(name, values) for name, values in data["metrics"].items() if values),
        "owners": "\n".join(history),
        "files": "\n".join(f"{one['filename']} ({output.size(one['size'])})" for one in data["files"]),
        "ran with": ", ".join(f"{name} {value}" for name, value in data["provenance"].items()),
        "attributes": "\n".join(f"{name} = {_value(value)}" for name, value in attributes.items()),
        "note": data["note"],
    }
    return {name: text for name, text in facts.items() if text}


def _last_logged(name: str, values: dict[int, float]) -> str:
    """A metric in one line; JSON has all of its steps."""
    last = max(values)
    return f"{name} = {output.number(values[last])} at step {last} ({len(values)} step{'s' * (len(values) > 1)})"


def _stop_asked(data: dict[str, Any]) -> str:
    """Why the trial was asked to end, and whether its peer knows."""
    if not data["stop_requested"]:
        return ""
    return (
        f"{data['stop_requested']} ({'acknowledged by its peer' if data['stop_acknowledged'] else 'not acknowledged'})"
    )


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(output.jsonable(value))


@trial.command()
@options()
@click.argument("params", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--attr", "attrs", multiple=True, metavar="NAME=VALUE", help="A user attribute of the trial.")
@click.option("--times", type=click.IntRange(1, 1000), default=1, metavar="N", help="Queue it N times.")
def enqueue(session: CliSession, params: tuple[str, ...], attrs: tuple[str, ...], times: int) -> None:
    """Queue a trial with these parameters; the next peer that asks for a trial runs it.

    The sampler of that peer chooses the parameters that you leave out.
    """
    study = session.study()
    given = space.parse_params(params, dict(study.space))
    user = space.parse_params(attrs, {})
    numbers = [study.enqueue(given, user_attrs=user) for _ in range(times)]
    session.show({"numbers": numbers}, lambda: output.print_lines(numbers))


@trial.command()
@options()
@click.argument("numbers", nargs=-1, required=True, type=int)
def requeue(session: CliSession, numbers: tuple[int, ...]) -> None:
    """Queue trials again with the same parameters. A running trial is taken away from its peer."""
    study = session.study()
    for number in numbers:
        _exists(study, number)
    retries = [study.requeue(number) for number in numbers]
    for number, retry in zip(numbers, retries, strict=True):
        if retry is None:
            output.say(f"Trial {number} was taken away from its peer; it has no attempts left.")
    session.show({"numbers": retries}, lambda: output.print_lines(one for one in retries if one is not None))


def _one_trial(command: Callable[..., Any]) -> Callable[..., Any]:
    return options()(click.argument("number", type=int)(command))


add_annotations(trial, "a trial's", _one_trial)


@trial.command()
@options()
@click.argument("numbers", nargs=-1, required=True, type=int)
@click.option("--reason", help="The reason, which is shown to the trial's peer.")
def stop(session: CliSession, numbers: tuple[int, ...], reason: str | None) -> None:
    """Ask running trials to end: their next should_prune() returns true. A waiting trial is withdrawn.

    `trial show` says whether the trial's peer has seen the request, and later how the trial ended.
    """
    study = session.study()
    for number in numbers:
        _exists(study, number)
    done = [f"Trial {number} {_stop(study, number, reason)}." for number in numbers]
    session.done({"numbers": list(numbers)}, "\n".join(done))


def _stop(study: Study, number: int, reason: str | None) -> str:
    """Stop a trial; returns what was done."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState as OptunaState

    if study.state.trials[number].state is TrialState.WAITING:
        trial_id = study.storage.get_trial_id_from_study_id_trial_number(study.study_id, number)
        with contextlib.suppress(LeaseLost, NotYourTrial, UpdateFinishedTrialError):  # it has just been started
            study.storage.finish(trial_id, OptunaState.FAIL, None, reason or "withdrawn by hand", strict=True)
            return "was withdrawn"
    try:
        study.stop_trial(number, reason=reason)
    except InvalidInput as error:
        raise NoSuchTrial(str(error)) from None
    return "was asked to end"
