"""Shows one line per event of the demo and, below them, a table of the peers; without a terminal, status lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from hopaas_p2p.analysis.facts import best, shown
from hopaas_p2p.analysis.savings import savings
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, State

_INTERVAL: Final = 5.0  # seconds between two status lines without a terminal
_STYLES: Final = {"best": "bold green", "bad": "bold red", "good": "cyan", "plain": "dim"}
_STATUS: Final = {"running": "green", "killed": "bold red", "starting": "yellow", "done": "dim"}
_COLUMNS: Final = (("peer", "left"), ("pid", "right"), ("", "left"), ("trial", "right"), ("epoch", "left"),
                   ("complete", "right"), ("pruned", "right"))  # fmt: skip


class Screen:
    """The demo's output, as a context manager."""

    def __init__(self, console: Console, *, title: str, epochs: int) -> None:
        self._console, self._title, self._epochs = console, title, epochs
        self._next = _INTERVAL
        can_redraw = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(console=console, refresh_per_second=8, transient=True) if can_redraw else None

    def __enter__(self) -> Screen:
        self._console.print(Text(self._title, style="bold"), soft_wrap=True)
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, at: float, text: str, kind: str = "plain") -> None:
        """Show an event of this kind that happened `at` seconds after the start."""
        line = Text(f"{at:5.1f} s  ", style="dim").append(text, style=_STYLES[kind])
        self._console.print(line, soft_wrap=True)

    def show(self, state: State, peers: Sequence[tuple[str, int, str]], *, elapsed: float) -> None:
        """Show the current state of the study; without a terminal, print a status line if one is due.

        `peers` has (name, pid, status) of each of the demo's processes.
        """
        if self._live is not None:
            self._live.update(below(state, peers, elapsed=elapsed, epochs=self._epochs))
        elif elapsed >= self._next:
            self._next = elapsed + _INTERVAL
            top = best(state)
            value = f"best {top.values[0]:.4f}" if top is not None and top.values else "no result yet"
            saved = f"pruning saved about {savings(state, TrialTable.of(state)).steps:.0f} epochs"
            line = f"{elapsed:5.1f} s  {_done(state)}, {state.counts[RUNNING]} running; {value}; {saved}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _done(state: State) -> str:
    complete, pruned, failed = (state.counts[one] for one in (COMPLETE, PRUNED, FAIL))
    return f"{complete + pruned}/{state.budget} trials: {complete} complete, {pruned} pruned, {failed} failed"


def below(state: State, peers: Sequence[tuple[str, int, str]], *, elapsed: float, epochs: int) -> RenderableType:
    """A table with one row per peer, and three lines about the study."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head, side in _COLUMNS:
        table.add_column(head, justify=side, min_width=20 if head == "epoch" else None)  # type: ignore[arg-type]
    uuids = {info.get("pid"): uuid for uuid, info in state.peers.items()}
    for name, pid, status in peers:
        uuid = uuids.get(str(pid))
        own = [trial for trial in state.trials if uuid is not None and trial.owner == uuid]
        now = next((trial for trial in own if trial.state is RUNNING), None)
        word = status if uuid is not None or status != "running" else "starting"
        bar = Table.grid(padding=(0, 1, 0, 0))
        if now is not None:
            bar.add_row(_bar(len(now.reports), epochs, 14, "cyan"), f"{len(now.reports):2d}/{epochs}")
        counts = [str(sum(trial.state is one for trial in own)) for one in (COMPLETE, PRUNED)]
        number = f"#{now.number}" if now is not None else ""
        table.add_row(Text(name, style="bold"), str(pid), Text(f"{word:8}", _STATUS[word]), number, bar, *counts)
    grid, trials = Table.grid(padding=(0, 2, 0, 0)), Table.grid(padding=(0, 1, 0, 0))
    done = state.counts[COMPLETE] + state.counts[PRUNED]
    trials.add_row(_bar(done, state.budget or 0, 22, "green"), _done(state))
    top, value = best(state), Text("none yet", style="dim")
    if top is not None and top.values:
        value = Text(f"{top.values[0]:.4f}", style="bold green")
        value.append(f"  accuracy in cross-validation, trial #{top.number}", style="default not bold")
    saved = savings(state, TrialTable.of(state))
    steps, whole = shown(round(saved.steps)), shown(round(saved.steps + saved.made))
    grid.add_row(Text(f"{elapsed:.0f} s", style="dim"), trials)
    grid.add_row(Text("best", style="dim"), value)
    grid.add_row(Text("saved", style="dim"), f"about {steps} of {whole} epochs ({saved.share:.0%}) by pruning")
    return Group(Rule(style="dim"), table, Text(), grid)


def _bar(done: int, total: int, width: int, style: str) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=width, complete_style=style, finished_style=style)
