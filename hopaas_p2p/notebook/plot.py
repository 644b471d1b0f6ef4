"""`study.plot`, which draws charts of the trials of all peers in their current state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hopaas_p2p.analysis import charts
from hopaas_p2p.analysis.chart import Chart
from hopaas_p2p.analysis.html import Html, safe
from hopaas_p2p.analysis.importance import importance
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.analysis.timeline import timeline
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.notebook.frame import drawn, framed
from hopaas_p2p.report.page import slices
from hopaas_p2p.study_like import StudyLike, looking_at

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State


class NotebookChart:
    """A chart of the study's state at one time, which a notebook shows."""

    def __init__(self, body: str) -> None:
        self._body = body

    def _repr_html_(self) -> str:
        return framed(self._body)


class Plot:
    """The charts of one study. Each call draws the current state, in well under a second at 10,000 trials."""

    def __init__(self, study: StudyLike) -> None:
        self._study = study

    def history(self, objective: int = 0) -> NotebookChart:
        """The value of every trial, and the best so far."""

        def drawn(_state: State, table: TrialTable) -> Chart | None:
            count = len(table.directions)
            if not 0 <= objective < count:
                raise InvalidInput(f"objective must be 0 to {count - 1}, got {objective}")
            return charts.history(table, objective)

        return self._drawn("History", drawn)

    def intermediate(self) -> NotebookChart:
        """Reports by step of the best trial, the running ones, and a sample of the others."""
        return self._drawn("Learning curves", charts.curves)

    def timeline(self) -> NotebookChart:
        """One row per peer with the trials that it ran, and where interrupted trials were retried."""
        return self._drawn("Timeline by peer", lambda state, _: timeline(state))

    def importances(self) -> NotebookChart:
        """The importance of each parameter, by PED-ANOVA."""

        def drawn(state: State, table: TrialTable) -> Chart | str:
            found = importance(state, table)
            return charts.importance(found._replace(shares=found.shares[:20])) or found.note

        return self._drawn("Which parameters matter", drawn)

    def slice(self, params: Sequence[str] | None = None) -> NotebookChart:
        """The value over each parameter."""
        return self._drawn(
            "Value over each parameter",
            lambda state, table: slices(table, _parameters(state, params)) or "No trial is complete yet.",
        )

    def _drawn(self, title: str, draw: Callable[[State, TrialTable], Chart | str | None]) -> NotebookChart:
        """A chart or other HTML from `draw`, or the reason why there is nothing to draw."""
        with looking_at(self._study) as state:
            found = draw(state, TrialTable.of(state))
        if isinstance(found, Chart):
            return NotebookChart(drawn(found))
        if not isinstance(found, Html):
            found = f'<p class="none">{safe(found or "There is nothing to draw yet.")}</p>'
        return NotebookChart(f'<div class="head">{safe(title)}</div>{found}')


def _parameters(state: State, wanted: Sequence[str] | None) -> list[str]:
    there = list(state.dists)
    unknown = [name for name in wanted or () if name not in state.dists]
    if unknown:
        raise InvalidInput(f"the study has no parameter {unknown[0]!r}; it has {', '.join(there) or 'none yet'}")
    return there if wanted is None else list(wanted)
