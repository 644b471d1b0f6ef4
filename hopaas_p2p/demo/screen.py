"""Shows the story: a live screen on a terminal, plain lines anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from hopaas_p2p.demo.story import Event, PeerRow, Scene
from hopaas_p2p.report.facts import shown

_EVERY: Final = 5.0  # seconds between two lines of progress without a terminal
_STYLES: Final = {"best": "bold green", "bad": "bold red", "good": "cyan", "plain": "dim"}
_STATUS: Final = {"running": "green", "killed": "bold red", "starting": "yellow", "done": "dim"}


class Screen(Protocol):
    """Where the story is shown."""

    def __enter__(self) -> Screen: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def tell(self, event: Event) -> None:
        """Something happened."""

    def show(self, scene: Scene) -> None:
        """This is how things stand."""


def screen_for(console: Console, *, title: str, epochs: int) -> Screen:
    """The live screen on a terminal that can move its cursor, plain lines elsewhere."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console, title=title, epochs=epochs)
    return PlainScreen(console, title=title)


class PlainScreen:
    """One line an event, and one line of progress every few seconds."""

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._title = title
        self._next = _EVERY

    def __enter__(self) -> PlainScreen:
        self._print(self._title)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tell(self, event: Event) -> None:
        self._print(f"{event.at:5.1f} s  {event.text}")

    def show(self, scene: Scene) -> None:
        if scene.elapsed >= self._next:
            self._next = scene.elapsed + _EVERY
            self._print(f"{scene.elapsed:5.1f} s  {progress_line(scene)}")


def progress_line(scene: Scene) -> str:
    """How things stand, in one line."""
    top = f"best {scene.best.values[0]:.4f}" if scene.best is not None and scene.best.values else "no result yet"
    return (
        f"{scene.complete + scene.pruned}/{scene.budget} trials: {scene.complete} complete, {scene.pruned} pruned, "
        f"{scene.failed} failed, {scene.running} running; {top}; "
        f"pruning saved about {scene.savings.saved} epochs"
    )


class LiveScreen:
    """Peers, progress and the latest events, redrawn in place."""

    def __init__(self, console: Console, *, title: str, epochs: int) -> None:
        self._console = console
        self._title = title
        self._epochs = epochs
        self._events: list[Event] = []
        self._scene: Scene | None = None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=False)

    def __enter__(self) -> LiveScreen:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def tell(self, event: Event) -> None:
        self._events.append(event)

    def show(self, scene: Scene) -> None:
        self._scene = scene

    def _render(self) -> RenderableType:
        scene = self._scene
        if scene is None:
            return Text(self._title, style="bold")
        room = self._console.height - len(scene.peers) - 9
        return Group(
            header(self._title, scene),
            Rule(style="dim"),
            peer_table(scene.peers, self._epochs),
            Text(),
            progress(scene),
            Rule(style="dim"),
            *event_lines(self._events, room=max(3, min(room, 14))),
        )


def header(title: str, scene: Scene) -> RenderableType:
    """What this is, and for how long it has been going on."""
    grid = Table.grid(expand=True)
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_row(Text(title, style="bold"), Text(f"{scene.elapsed:.0f} s", style="dim"))
    return grid


def peer_table(peers: tuple[PeerRow, ...], epochs: int) -> RenderableType:
    """A line for each peer."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title, justify in (("peer", "left"), ("pid", "right"), ("", "left"), ("trial", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]  # rich spells the words out
    table.add_column("epoch", min_width=20)
    table.add_column("complete", justify="right")
    table.add_column("pruned", justify="right")
    for row in peers:
        lost = row.status == "killed" and row.trial is not None
        bar = Table.grid(padding=(0, 1, 0, 0))
        if row.trial is not None:
            style = "red" if lost else "cyan"
            bar.add_row(
                ProgressBar(total=epochs, completed=row.epoch, width=14, complete_style=style, finished_style=style),
                f"{row.epoch:2d}/{epochs}",
            )
        table.add_row(
            Text(row.name, style="bold"),
            str(row.pid),
            Text(f"{row.status:8}", style=_STATUS.get(row.status, "")),
            f"#{row.trial}" if row.trial is not None else "",
            bar,
            str(row.complete),
            str(row.pruned),
        )
    return table


def progress(scene: Scene) -> RenderableType:
    """The study in three lines."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim")
    grid.add_column()
    done = scene.complete + scene.pruned
    bar = Table.grid(padding=(0, 1, 0, 0))
    bar.add_row(
        ProgressBar(total=scene.budget, completed=done, width=22, complete_style="green", finished_style="green"),
        f"{done}/{scene.budget}  {scene.complete} complete, {scene.pruned} pruned, {scene.failed} failed",
    )
    grid.add_row("trials", bar)
    top = Text("none yet", style="dim")
    if scene.best is not None and scene.best.values:
        top = Text(f"{scene.best.values[0]:.4f}", style="bold green")
        top.append(f"  accuracy in cross-validation, trial #{scene.best.number}", style="default not bold")
    grid.add_row("best", top)
    saved = scene.savings
    grid.add_row("saved", f"about {shown(saved.saved)} of {shown(saved.without)} epochs ({saved.share:.0%}) by pruning")
    return grid


def event_lines(events: list[Event], *, room: int) -> list[RenderableType]:
    """The latest events, a line each; what was killed and taken over stays in sight longer than a new best."""
    loud = [event for event in events if event.kind in ("bad", "good")][-min(5, room) :]
    quiet = [event for event in events if event not in loud]
    chosen = loud + quiet[len(quiet) - max(0, room - len(loud)) :]
    lines: list[RenderableType] = []
    for event in sorted(chosen, key=lambda one: one.at):
        line = Text(f"{event.at:5.1f} s  ", style="dim", no_wrap=True, overflow="ellipsis")
        line.append(event.text, style=_STYLES[event.kind])
        lines.append(line)
    return lines
