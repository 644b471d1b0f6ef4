"""The command `hopaas-p2p watch`, which follows a study, live on a terminal, and elsewhere in plain lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.alerts.sender import AlertSender, webhook
from hopaas_p2p.cli import output
from hopaas_p2p.cli.options import ABOVE_ZERO, CliSession, command
from hopaas_p2p.core.spending import earlier_seconds
from hopaas_p2p.errors import ConfigurationError, HopaasError, StoreUnreachable
from hopaas_p2p.peer.liveness import UNKNOWN, signs_of_life
from hopaas_p2p.runtime.credentials import webhook_url

if TYPE_CHECKING:
    from hopaas_p2p.study import Study

_ROWS: Final = 12  # running trials shown
_LAST_ALERTS: Final = 300.0  # seconds for which pending alerts are retried after the study is done


@command(study="argument")
@click.option("--interval", type=ABOVE_ZERO, default=2, metavar="S", help="Seconds between updates.")
@click.option("--timeout", type=float, metavar="S", help="Exit with code 1 after S seconds.")
@click.option("--once", is_flag=True, help="Print the current state and exit.")
@click.option("--alert", is_flag=True, help="Also post alerts to the webhook of HOPAAS_WEBHOOK or HOPAAS_WEBHOOK_FILE.")
def watch(session: CliSession, interval: float, timeout: float | None, once: bool, alert: bool) -> int:
    """Follow a study until it is done.

    On a terminal, the view is updated in place. Elsewhere, a line is printed whenever something has changed (with
    --json, as JSON). Exits with 0 when the study is done, and with 1 if --timeout has passed first. A budget such as
    until.target=0.1 ends a study at a condition.

    With --alert, a message is posted when a site falls silent, trials fail one after another, results stop improving,
    80 % of the budget is used, a trial is the new best, or the study ends. A message that the receiver does not accept
    is posted again. After the study's end, the command retries until --timeout or for five minutes, and then
    exits with 1.
    """
    study = session.study()
    until, before = None if timeout is None else time.monotonic() + timeout, ""
    deadline = until
    on_terminal = sys.stdout.isatty() and not session.as_json and not once
    sender = None
    if alert:
        url = webhook_url()
        if url is None:
            raise ConfigurationError("--alert needs a URL to post to. Set HOPAAS_WEBHOOK_FILE or HOPAAS_WEBHOOK.")
        sender = AlertSender(study, webhook(url), complain=output.say)
    with contextlib.ExitStack() as drawn:
        if on_terminal:
            from rich.console import Console, Group
            from rich.live import Live
            from rich.text import Text

            live = drawn.enter_context(Live(console=Console(), auto_refresh=False))
        for look in looks(study, sender):
            line = sentence(look)
            if on_terminal:
                rows = Text("\n".join(table(look)), overflow="ellipsis", no_wrap=True)
                live.update(Group(Text(output.printable(line)), rows), refresh=True)
            elif line != before:
                before = line
                clock = f"{time.strftime('%H:%M:%S')}  {output.printable(line)}"
                data = {key: value for key, value in look.items() if key != "done"}
                session.show(data, lambda clock=clock: click.echo(clock))  # type: ignore[misc]
                sys.stdout.flush()
            if once or (look["done"] and not (sender is not None and sender.owes)):
                return 0
            if not look["done"]:  # a larger budget may have reopened the study
                deadline = until
            elif deadline is None:
                deadline = time.monotonic() + _LAST_ALERTS
            if deadline is not None and time.monotonic() >= deadline:
                return 1
            left = interval if deadline is None else min(interval, deadline - time.monotonic())
            _pause(study, max(0.0, left))
    raise AssertionError


def _pause(study: Study, seconds: float) -> None:
    """Wait for `seconds`, or until the store announces a commit, if it can."""
    over, peer = time.monotonic() + seconds, study.storage.peer
    with contextlib.suppress(HopaasError):
        if peer.hear(study.handle.log, seconds):
            return
    time.sleep(max(0.0, over - time.monotonic()))


def looks(study: Study, sender: AlertSender | None = None) -> Iterator[dict[str, Any]]:
    """Read the study repeatedly, without end. During an outage of the store, the last known state is yielded."""
    last: dict[str, Any] = {}
    while True:
        try:
            last = {**_look(study), "outage": None}
            if sender is not None:
                sender.look()
        except StoreUnreachable as error:
            if not last:
                raise
            last = {**last, "outage": str(error)}
            if sender is not None:
                sender.store_was_away()
        yield last


def _look(study: Study) -> dict[str, Any]:
    """The study, its running trials, and whether it is done."""
    from hopaas_p2p.cli import summary

    done = study.is_over()  # read first, so that the rest includes the last trials
    state = study.state
    signs = signs_of_life(study.storage.peer, state)
    seen, running = summary.of_study(study, signs), []
    for trial in (state.trials[number] for number in sorted(state.running)):
        peer, step = state.peers.get(trial.owner or "", {}), max(trial.reports, default=None)
        ran = None if trial.start is None else earlier_seconds(trial) + max(0.0, time.time() - trial.start / 1e6)
        last_seen = signs.get(trial.owner or "", UNKNOWN).ago
        about = {"number": trial.number, "host": peer.get("host"), "site": peer.get("site"), "last_seen": last_seen}
        report = None if step is None else trial.reports[step]
        running.append({**about, "seconds": ran, "step": step, "report": report})
    return seen | {"running": running, "done": done}


def sentence(look: dict[str, Any]) -> str:
    """The state of the study when it was read and, if no trial is running, what the study waits for, on one line."""
    words = {name: "failed" if name == "FAIL" else name.lower() for name in look["counts"]}
    counts = ", ".join(f"{count} {words[name]}" for name, count in look["counts"].items() if count) or "no trials yet"
    budget = "" if look["budget"] is None else f" of {look['budget']}"
    outage = f"  [{look['outage']}]" if look["outage"] else ""
    best = look["best"]
    if isinstance(best, list):
        said = f"{output.count(len(best), 'trial')} on the Pareto front"
    else:
        said = f"{output.numbers(best['values'])} (#{best['number']})" if best else "-"
    waits = "" if look["done"] or look["running"] else "; waiting until a peer runs a trial"
    return f"{look['name']} {look['state']}, {look['used']}{budget}: {counts}; best {said}{waits}{outage}"


def table(look: dict[str, Any]) -> list[str]:
    """The lines of a table of the running trials; none if no trial is running."""
    rows = [
        [
            str(one["number"]),
            output.where(one),
            output.duration(one["seconds"]),
            "-" if one["step"] is None else str(one["step"]),
            output.number(one["report"]),
            output.ago(one["last_seen"]),
        ]
        for one in look["running"][:_ROWS]
    ]
    heads, right = ["#", "WHERE", "FOR", "STEP", "REPORT", "LAST SEEN"], ("#", "FOR", "STEP", "REPORT")
    hidden = len(look["running"]) - _ROWS
    more = [f"… and {hidden} more"] if hidden > 0 else []
    return [*output.aligned([heads, *rows], right=right), *more] if rows else []
