"""`hopaas-p2p watch`: follows a study, live on a terminal, in plain lines elsewhere; or waits for a condition."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, Final

import click

from hopaas_p2p.alerts.sender import AlertSender, webhook
from hopaas_p2p.cli import output
from hopaas_p2p.cli.condition import Condition, facts_of, parse_condition
from hopaas_p2p.cli.options import CliSession, options
from hopaas_p2p.core.admission import finished
from hopaas_p2p.core.leases import FailureDetector, reclaims
from hopaas_p2p.core.spending import earlier_seconds
from hopaas_p2p.errors import ConfigurationError, HopaasError, InvalidInput, StoreUnreachable
from hopaas_p2p.peer.liveness import owners_of, sign_of_life
from hopaas_p2p.runtime.credentials import webhook_url

if TYPE_CHECKING:
    from rich.text import Text

    from hopaas_p2p.study import Study

_ROWS: Final = 12  # running trials shown


@click.command()
@options(study="argument")
@click.option("--until", metavar="CONDITION", help="Exit when it is true: done, 'best<0.1', 'failures>20 or done'.")
@click.option("--interval", type=float, default=2, metavar="S", help="Seconds between updates.")
@click.option("--timeout", type=float, metavar="S", help="Exit with code 1 after S seconds.")
@click.option("--once", is_flag=True, help="Print the current state and exit.")
@click.option("--reclaim", is_flag=True, help="Also take over the trials of peers that fell silent.")
@click.option("--alert", is_flag=True, help="Also post alerts to the webhook of HOPAAS_WEBHOOK or HOPAAS_WEBHOOK_FILE.")
def watch(
    session: CliSession,
    until: str | None,
    interval: float,
    timeout: float | None,
    once: bool,
    reclaim: bool,
    alert: bool,
) -> int:
    """Follow a study until it is done, or until --until is true.

    On a terminal the view is updated in place. Elsewhere a line is printed whenever something has changed, with --json
    as JSON. Exits with 0 when the condition is true, and with 1 if the study ended or the time was up first. Peers
    that run trials take over those of dead peers; if trials run only through tickets of `trial ask`, give --reclaim.

    With --alert, a message is posted when a site falls silent, trials fail one after another, nothing improves, 80 % of
    the budget is used, a trial is the new best, or the study ends. If several processes watch, one of them posts.
    """
    if not interval > 0:
        raise click.UsageError(f"--interval must be a positive number of seconds, got {interval}")
    reached: Condition = parse_condition(until or "done")
    study = session.study()
    if until is not None and re.search(r"\bbest\b", until) and len(study.directions) > 1:
        raise InvalidInput(f"{until!r}: this study has several objectives, so it has no single best value")
    deadline = None if timeout is None else time.monotonic() + timeout
    live = sys.stdout.isatty() and not session.as_json and not once
    lines = nullcontext(_lines(as_json=session.as_json))
    with _posting(session, study, wanted=alert) as sender, _screen() if live else lines as screen:
        watcher = _Watcher(study, reclaim=reclaim, sender=sender)
        while True:
            look = watcher.look()
            screen(look)
            if reached(look["facts"]):
                return 0
            if once:
                return 0 if until is None else 1
            if look["facts"]["done"] or (deadline is not None and time.monotonic() >= deadline):
                return 1
            left = interval if deadline is None else min(interval, deadline - time.monotonic())
            watcher.pause(max(0.0, left))


class _Watcher:
    """Reads one study repeatedly; an outage of the store is shown, and does not end it."""

    def __init__(self, study: Study, *, reclaim: bool, sender: AlertSender | None = None) -> None:
        self._study, self._reclaim, self._sender = study, reclaim, sender
        self._detector = FailureDetector()
        self._last: dict[str, Any] = {}

    def pause(self, seconds: float) -> None:
        """Until there is something new, where the store can tell, or for so long."""
        over, peer = time.monotonic() + seconds, self._study.storage.peer
        with suppress(HopaasError):
            if peer.hear(self._study.handle.log, seconds):
                return
        time.sleep(max(0.0, over - time.monotonic()))

    def look(self) -> dict[str, Any]:
        """The study now; during an outage, as it was last seen."""
        try:
            self._last = {**self._look(), "outage": None}
        except StoreUnreachable as error:
            if not self._last:
                raise
            self._last = {**self._last, "outage": str(error)}
        return self._last

    def _look(self) -> dict[str, Any]:
        from hopaas_p2p.cli import summary

        study = self._study
        seen = summary.of_study(study)
        state = study.state
        owners = owners_of(state)
        now = time.monotonic()
        self._detector.look(study.storage.peer.store.beats(owners), owners, now)
        due = reclaims(state, self._detector, now, spare=frozenset()) if self._reclaim else []
        if due:
            verdicts = study.storage.peer.commit(study.handle.log, *due)
            took = [f"#{one.number}" for one, verdict in zip(due, verdicts, strict=True) if verdict.accepted]
            if took:  # and no other peer was quicker
                output.say(f"Took over {', '.join(took)}: its peer was silent for too long.")
        if self._sender is not None:
            self._sender.look()
        running = [self._running(state.trials[number], now) for number in sorted(state.running)]
        done = finished(state) and not state.running
        return seen | {"running": running, "facts": facts_of(seen, done=done)}

    def _running(self, trial: Any, now: float) -> dict[str, Any]:
        peer = self._study.state.peers.get(trial.owner or "", {})
        step = max(trial.reports, default=None)
        ran = None if trial.start is None else earlier_seconds(trial) + max(0.0, time.time() - trial.start / 1e6)
        return {
            "number": trial.number,
            "host": peer.get("host"),
            "site": peer.get("site"),
            "seconds": ran,
            "silent": self._detector.silence(trial.owner or "", now),
            "last_seen": sign_of_life(self._study.state, trial.owner or "", self._detector, now, time.time()).ago,
            "step": step,
            "report": None if step is None else trial.reports[step],
        }


@contextmanager
def _posting(session: CliSession, study: Study, *, wanted: bool) -> Iterator[AlertSender | None]:
    """The sender of alerts, which resigns at the end."""
    if not wanted:
        yield None
        return
    session.settings.publish()
    url = webhook_url()
    if url is None:
        raise ConfigurationError("--alert needs a URL to post to. Set HOPAAS_WEBHOOK_FILE or HOPAAS_WEBHOOK.")
    sender = AlertSender(study, webhook(url), complain=output.say)
    try:
        yield sender
    finally:
        with suppress(StoreUnreachable):
            sender.resign()


def _lines(*, as_json: bool) -> Callable[[dict[str, Any]], None]:
    """Prints a line whenever something has changed."""
    before = ""

    def show(look: dict[str, Any]) -> None:
        nonlocal before
        line = _sentence(look)
        if line == before:
            return
        before = line
        if as_json:
            output.print_json({key: value for key, value in look.items() if key != "facts"})
        else:
            click.echo(f"{time.strftime('%H:%M:%S')}  {output.printable(line)}")
        sys.stdout.flush()

    return show


def _sentence(look: dict[str, Any]) -> str:
    words = {name: "failed" if name == "FAIL" else name.lower() for name in look["counts"]}
    counts = ", ".join(f"{count} {words[name]}" for name, count in look["counts"].items() if count) or "no trials yet"
    budget = "" if look["budget"] is None else f" of {look['budget']}"
    outage = f"  [{look['outage']}]" if look["outage"] else ""
    best = look["best"]
    if isinstance(best, list):
        said = f"{output.count(len(best), 'trial')} on the Pareto front"
    else:
        said = f"{output.numbers(best['values'])} (#{best['number']})" if best else "-"
    return f"{look['name']} {look['state']}, {look['used']}{budget}: {counts}; best {said}{outage}"


@contextmanager
def _screen() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Redraws the terminal at each look."""
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        yield lambda look: live.update(_table(look), refresh=True)


def _table(look: dict[str, Any]) -> Text:
    """The study's status, and its running trials."""
    from rich.text import Text

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
    right = ("#", "FOR", "STEP", "REPORT")
    lines = [
        _sentence(look),
        *output.aligned([["#", "WHERE", "FOR", "STEP", "REPORT", "LAST SEEN"], *rows], right=right),
    ]
    hidden = len(look["running"]) - _ROWS
    return Text(
        "\n".join([*lines, *([f"… and {hidden} more"] if hidden > 0 else [])]), overflow="ellipsis", no_wrap=True
    )
