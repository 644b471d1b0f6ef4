"""Shows the demo's progress: a live screen on a terminal, plain lines anywhere else."""

from __future__ import annotations

from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from hopaas_p2p.analysis.facts import shown
from hopaas_p2p.demo.progress import DemoEvent, DemoStatus, PeerStatus

_INTERVAL: Final = 5.0  # seconds between two status lines without a terminal
_STYLES: Final = {"best": "bold green", "bad": "bold red", "good": "cyan", "plain": "dim"}
_STATUS: Final = {"running": "green", "killed": "bold red", "starting": "yellow", "done": "dim"}


class PlainScreen:
    """One line per event, and a status line every few seconds."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._title = title
        self._next = _INTERVAL

    def __enter__(self) -> PlainScreen:
        self._print(self._title)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to restore."""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def add(self, event: DemoEvent) -> None:
        """Show an event."""
        self._print(f"{event.at:5.1f} s  {event.text}")

    def update(self, status: DemoStatus) -> None:
        """Show the status if it is time for it."""
        if status.elapsed >= self._next:
            self._next = status.elapsed + _INTERVAL
            top = f"best {status.best.values[0]:.4f}" if status.best and status.best.values else "no result yet"
            counts = f"{status.complete} complete, {status.pruned} pruned, {status.failed} failed"
            self._print(
                f"{status.elapsed:5.1f} s  {status.complete + status.pruned}/{status.budget} trials: {counts}, "
                f"{status.running} running; {top}; pruning saved about {status.savings.steps:.0f} epochs"
            )


class LiveScreen:
    """Peers, progress and the latest events, redrawn in place."""

    def __init__(self, console: Console, *, title: str, epochs: int) -> None:
        self._console = console
        self._title = title
        self._epochs = epochs
        self._events: list[DemoEvent] = []
        self._status: DemoStatus | None = None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=False)

    def __enter__(self) -> LiveScreen:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def add(self, event: DemoEvent) -> None:
        """Show an event."""
        self._events.append(event)

    def update(self, status: DemoStatus) -> None:
        """Show the status."""
        self._status = status

    def _render(self) -> RenderableType:
        status = self._status
        if status is None:
            return Text(self._title, style="bold")
        header = Table.grid(expand=True)
        header.add_column()
        header.add_column(justify="right")
        header.add_row(Text(self._title, style="bold"), Text(f"{status.elapsed:.0f} s", style="dim"))
        room = max(3, min(self._console.height - len(status.peers) - 9, 14))
        return Group(
            header,
            Rule(style="dim"),
            _peer_table(status.peers, self._epochs),
            Text(),
            _progress(status),
            Rule(style="dim"),
            *event_lines(self._events, room=room),
        )


def screen_for(console: Console, *, title: str, epochs: int) -> LiveScreen | PlainScreen:
    """The live screen on a terminal that can move its cursor, plain lines elsewhere."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console, title=title, epochs=epochs)
    return PlainScreen(console, title=title)


def _peer_table(peers: tuple[PeerStatus, ...], epochs: int) -> Table:
    """One row per peer."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("peer")
    table.add_column("pid", justify="right")
    table.add_column("")
    table.add_column("trial", justify="right")
    table.add_column("epoch", min_width=20)
    table.add_column("complete", justify="right")
    table.add_column("pruned", justify="right")
    for peer in peers:
        bar = Table.grid(padding=(0, 1, 0, 0))
        if peer.trial is not None:
            style = "red" if peer.status == "killed" else "cyan"
            bar.add_row(_bar(peer.epoch, epochs, width=14, style=style), f"{peer.epoch:2d}/{epochs}")
        table.add_row(
            Text(peer.name, style="bold"),
            str(peer.pid),
            Text(f"{peer.status:8}", style=_STATUS.get(peer.status, "")),
            f"#{peer.trial}" if peer.trial is not None else "",
            bar,
            str(peer.complete),
            str(peer.pruned),
        )
    return table


def _bar(done: int, total: int, *, width: int, style: str) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=width, complete_style=style, finished_style=style)


def _progress(status: DemoStatus) -> Table:
    """The study in three lines."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim")
    grid.add_column()
    done = status.complete + status.pruned
    bar = Table.grid(padding=(0, 1, 0, 0))
    counts = f"{status.complete} complete, {status.pruned} pruned, {status.failed} failed"
    bar.add_row(_bar(done, status.budget, width=22, style="green"), f"{done}/{status.budget}  {counts}")
    grid.add_row("trials", bar)
    top = Text("none yet", style="dim")
    if status.best is not None and status.best.values:
        top = Text(f"{status.best.values[0]:.4f}", style="bold green")
        top.append(f"  accuracy in cross-validation, trial #{status.best.number}", style="default not bold")
    grid.add_row("best", top)
    saved = status.savings
    whole = shown(round(saved.steps + saved.made))
    grid.add_row("saved", f"about {shown(round(saved.steps))} of {whole} epochs ({saved.share:.0%}) by pruning")
    return grid


def event_lines(events: list[DemoEvent], *, room: int) -> list[Text]:
    """The latest events, one line each; a kill and a takeover stay visible longer than a new best."""
    loud = [event for event in events if event.kind in ("bad", "good")][-min(5, room) :]
    quiet = [event for event in events if event not in loud]
    chosen = loud + quiet[len(quiet) - max(0, room - len(loud)) :]
    lines = []
    for event in sorted(chosen, key=lambda one: one.at):
        line = Text(f"{event.at:5.1f} s  ", style="dim", no_wrap=True, overflow="ellipsis")
        line.append(event.text, style=_STYLES[event.kind])
        lines.append(line)
    return lines
