"""A short view of a study, as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hopaas_p2p.analysis import charts, palette
from hopaas_p2p.analysis.facts import count, glance, shown
from hopaas_p2p.analysis.html import safe
from hopaas_p2p.analysis.svg import key
from hopaas_p2p.analysis.table import TrialTable
from hopaas_p2p.core.state import RUNNING, State
from hopaas_p2p.notebook.frame import drawn, framed
from hopaas_p2p.peer.liveness import SignOfLife, signs_of_life
from hopaas_p2p.report.page import trials_table
from hopaas_p2p.study_like import StudyLike, looking_at

_ROWS: Final = 8
_COLUMNS: Final = 6


def study_html(study: StudyLike) -> str:
    """The study's view, with its status, the best trial and the newest trials."""
    signs = signs_of_life(study.storage.peer, study.state)
    with looking_at(study) as state:
        return framed(overview(state, name=study.name, store=study.storage.url, signs=signs))


def overview(state: State, *, name: str, store: str, signs: Mapping[str, SignOfLife], chart: bool = False) -> str:
    """The content of the study's view. `signs` has the signs of life of the peers that run its trials."""
    seen = glance(state, signs)
    about = [store, *([", ".join(seen["directions"])] if seen["directions"] else [])]
    used = f"{seen['used']:,} of {state.budget or 0:,} {state.configurations.unit} used"
    about.append("no budget" if state.budget is None else used)
    about += [f"running at {', '.join(seen['peers'])}"] if seen["peers"] else []
    words = {"failed" if at == "FAIL" else at.lower(): many for at, many in seen["counts"].items()}
    words["failed"] -= seen["retried"]
    counts = " ".join(key(getattr(palette, word.upper()), f"{many:,} {word}") for word, many in words.items() if many)
    best, top = seen["best"], ""
    if isinstance(best, list):
        top = f"<p>{count(len(best), 'trial')} on the Pareto front</p>"
    elif best:
        params = ", ".join(f"{param} = {shown(value)}" for param, value in best["params"].items())
        said = key(palette.BEST, f"best: {shown(best['values'][0])}")
        top = f"<p>{said} trial {best['number']}: {safe(params, longest=400)}</p>"
    running = list(state.running)[-_ROWS:]
    others = [trial.number for trial in state.trials[-2 * _ROWS :] if trial.state is not RUNNING][-_ROWS:]
    newest = trials_table(sorted([*running, *others], reverse=True), state, most=_COLUMNS, live=True)
    history = charts.history(TrialTable.of(state)) if chart and seen["directions"] else None
    if history is not None:
        newest = f'<div class="two">{drawn(history)}<div>{newest}</div></div>'
    return (
        f'<div class="head">{safe(name)} · {safe(seen["state"])}</div>'
        f'<p class="about">{" · ".join(safe(one, longest=120) for one in about)}</p>'
        f"<p>{counts or 'No trials yet.'}</p>{top}{newest}"
    )
