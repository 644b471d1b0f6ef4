"""The commands `hopaas-p2p trial ask|report|log|should-prune|tell|renew|release`, which run a trial from the shell.

eval "$(hopaas-p2p trial ask --shell)"
loss=$(./train --lr "$HOPAAS_PARAM_lr")
hopaas-p2p trial tell "$loss"
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from hopaas_p2p.analysis import facts
from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import ABOVE_ZERO, CliSession, command, space_option
from hopaas_p2p.errors import HopaasError, InvalidInput
from hopaas_p2p.open import servers_of
from hopaas_p2p.ports import socket as trial_socket
from hopaas_p2p.ports.command import text_of, variable
from hopaas_p2p.ports.verbs import PRUNE, Reply
from hopaas_p2p.runtime import credentials
from hopaas_p2p.runtime.extras import check_sampler
from hopaas_p2p.runtime.settings import Settings
from hopaas_p2p.spec import space

if TYPE_CHECKING:
    from hopaas_p2p.core.records import TrialFinish
    from hopaas_p2p.ports.ticket import Ticket


def _verb(function: Callable[..., Any]) -> click.Command:
    """Make a command that acts on the trial of a ticket."""
    ticket = click.option("--ticket", metavar="TICKET", help="The output of `trial ask`. [default: HOPAAS_TICKET]")
    return command(study="none", context_settings={"ignore_unknown_options": True})(ticket(function))  # -0.5 is a value


@command(study="argument")
@click.option("--ttl", type=ABOVE_ZERO, default=3600, metavar="S", help="Seconds of silence before a takeover.")
@space_option
@click.option("--shell", is_flag=True, help='Print exports, for eval "$(hopaas-p2p trial ask --shell)".')
def ask(session: CliSession, ttl: float, specs: tuple[str, ...], shell: bool) -> None:
    """Start a trial. Print its parameters and a ticket.

    Exits with 3 (with --shell, so does `eval`) when the budget is used up, or the study is paused or stopped. --space
    defines the parameters if the study has no search space. The commands report, should-prune, tell, renew and release
    find the trial by its ticket in HOPAAS_TICKET. If none of them is called for --ttl seconds, another peer may take
    the trial over.
    """
    from hopaas_p2p.ports.ticket import ticket_of
    from hopaas_p2p.storage.optuna_internals import suggest_fixed
    from hopaas_p2p.study.study import infer_space
    from hopaas_p2p.translate import to_optuna

    try:
        session.storage(peer_ttl=ttl)
        study = session.study()
        check_sampler(study.sampler)
        wanted = {name: to_optuna(one) for name, one in space.parse_space(specs).items()}
        if not wanted and not study.space:
            why = infer_space(study)
            if why and not (study.state.waiting or study.state.replicates):
                raise InvalidInput(f"{study.name!r} has no search space; {why}. Use --space NAME={space.SHAPES}")
        trial = study.ask()
        try:
            suggest_fixed(trial, wanted)
            ticket = ticket_of(study, trial.number)
            data = {"number": trial.number, "params": trial.params, "seed": trial.seed, "ticket": str(ticket)}
            session.show(data, lambda: _print_asked(data, shell=shell))
            sys.stdout.flush()
        except BaseException:
            study.handle.release(trial.number, reason="not started: `ask` was interrupted")
            raise
    except HopaasError as error:
        if shell:  # `eval` sees only the output, and the last trial's ticket is still set
            click.echo(f"unset HOPAAS_TICKET; (exit {error.exit_code})")
        raise


def _print_asked(asked: dict[str, Any], *, shell: bool) -> None:
    texts = {name: text_of(value) for name, value in asked["params"].items()}
    if shell:
        for name, text in texts.items():
            click.echo(f"export {variable(name)}={output.shell_word(text)}")
        click.echo(f"export HOPAAS_TRIAL={asked['number']} HOPAAS_SEED={asked['seed']}")
        click.echo(f"export HOPAAS_TICKET={output.shell_word(asked['ticket'])}")
    else:
        output.print_lines(f"{output.printable(name)}={output.printable(text)}" for name, text in texts.items())
        click.echo(f"HOPAAS_TICKET={asked['ticket']}")


Ask = Callable[..., Reply]
"""Carries a request about the ticket's trial, a verb with its arguments; see `ports.verbs`."""


@contextmanager
def _asking(
    session: CliSession, text: str | None, *, end: Callable[[Ticket], TrialFinish] | None = None
) -> Iterator[Ask]:
    """A function that sends requests about the ticket's trial. --store overrides the ticket's store, whose path can
    differ here.

    Under a worker, the ticket is the worker's socket, and no store is opened, because the worker's pruner decides.
    `end` makes the record of the result, which is spooled if the store is unreachable.
    """
    found = session.settings.get("ticket", text)
    if not found:
        raise InvalidInput("No ticket given. Use --ticket, or set HOPAAS_TICKET to the output of `trial ask`.")
    found = found.strip().rpartition("HOPAAS_TICKET=")[2]  # the whole output of `ask` is accepted, too
    if found.startswith(trial_socket.PREFIX):
        yield functools.partial(trial_socket.request, found)
        return
    from hopaas_p2p.ports.ticket import Ticket, carry

    ticket, patience = Ticket.parse(found), session.settings.seconds("patience")
    joined = credentials.is_joined(servers_of(ticket.store))  # otherwise a joined study's CA would vouch for any store
    (session.settings if joined else Settings(warn=lambda _: None, names_store=True)).publish()
    last = end(ticket) if end is not None else None
    with carry(ticket, store=session.given["store"], patience=patience, end=last) as verbs:
        yield verbs.do


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is neither a number nor an option of this command") from None


@_verb
@click.argument("value")
@click.option("--step", type=click.IntRange(min=0), required=True, help="The step, such as an epoch.")
@click.option("--should-prune", "also_prune", is_flag=True, help="Also exit like should-prune.")
def report(session: CliSession, ticket: str | None, value: str, step: int, also_prune: bool) -> int:
    """Report an intermediate value of the ticket's trial. Without a worker, returns when the store has it."""
    reported = _number(value)
    with _asking(session, ticket) as ask_trial:
        reply = ask_trial("report", value=reported, step=step)
    if also_prune:
        return _show_verdict(session, reply)
    kept = reply["value"]
    ignored = f"Trial {reply['trial']} keeps its first report at step {step}, {kept}."
    session.show(
        {"number": reply["trial"], "step": step, "value": kept},
        lambda: None if kept == facts.json_number(reported) else output.say(ignored),
    )
    return 0


@_verb
@click.argument("metrics", nargs=-1, required=True, metavar="NAME=NUMBER...")
@click.option("--step", type=click.IntRange(min=0), required=True, help="The step, such as an epoch.")
def log(session: CliSession, ticket: str | None, metrics: tuple[str, ...], step: int) -> None:
    """Log other metrics of a step, such as loss=0.3 auc=0.9.

    Metrics are shown and exported. Pruning uses only values sent by `report`.
    """
    given = {}
    for text in metrics:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"{text!r} is not NAME=NUMBER.")
        given[name] = _number(value)
    with _asking(session, ticket) as ask_trial:
        reply = ask_trial("log", step=step, metrics=given)
    session.show({"number": reply["trial"], "step": step, "metrics": given}, lambda: None)


@_verb
def should_prune(session: CliSession, ticket: str | None) -> int:
    """Exit with 10 when the ticket's trial should be pruned, else with 0.

    Under a worker: hopaas-p2p trial should-prune || exit 0. In a loop of your own, first end the trial: hopaas-p2p
    trial tell --state pruned
    """
    with _asking(session, ticket) as ask_trial:
        reply = ask_trial("should-prune")
    return _show_verdict(session, reply)


def _show_verdict(session: CliSession, reply: Reply) -> int:
    number, why = reply["trial"], reply["why"]
    data = {"number": number, "prune": reply["prune"], "why": why}
    session.show(data, lambda: output.say(f"Prune trial {number}: {why}.") if reply["prune"] else None)
    return PRUNE if reply["prune"] else 0


@_verb
@click.argument("values", nargs=-1, metavar="VALUE...")
@click.option(
    "--state", type=click.Choice(["complete", "pruned", "fail"]), help="How the trial ended. [default: complete]"
)
@click.option("--reason", help="Why it failed.")
def tell(
    session: CliSession, ticket: str | None, values: tuple[str, ...], state: str | None, reason: str | None
) -> None:
    """End the ticket's trial. Give its value (one per objective), or else --state pruned or --state fail.

    If another peer took the trial over, the result is kept as a separate trial, and the exit code is 11. If the store
    cannot be reached, the result is kept on disk (see `admin spool`), and the exit code shows why (such as 69).
    """
    from hopaas_p2p.ports.ticket import ending

    state = state or "complete"
    told = [_number(value) for value in values]
    if state == "complete" and not told:
        raise click.UsageError("Give the trial's value, or --state pruned, or --state fail.")
    if state != "complete" and told:
        raise click.UsageError(f"A trial with --state {state} takes no value.")
    if any(map(math.isnan, told)):
        raise InvalidInput("NaN is not a result; use --state fail")
    end = functools.partial(ending, values=told, state=state, reason=reason)
    with _asking(session, ticket, end=end) as ask_trial:
        number = ask_trial("tell", values=told, state=state, reason=reason)["trial"]
    done = {"number": number, "state": state.upper(), "values": told or None}
    session.done(done, f"Trial {number} is {state.upper()}.")


@_verb
def renew(session: CliSession, ticket: str | None) -> None:
    """Renew the lease of the ticket's trial.

    After --ttl seconds (an option of `ask`) without a command, another peer may take the trial over. Exits with 11 if
    another peer already has.
    """
    with _asking(session, ticket) as ask_trial:
        number = ask_trial("renew")["trial"]
    session.show({"number": number, "renewed": True}, lambda: None)


@_verb
@click.option("--reason", help="Why the trial is released.")
def release(session: CliSession, ticket: str | None, reason: str | None) -> None:
    """Release the ticket's trial. Another peer runs it again, unless it was asked to stop."""
    with _asking(session, ticket) as ask_trial:
        number = ask_trial("release", reason=reason)["trial"]
    session.done({"number": number}, f"Trial {number} is returned.")
