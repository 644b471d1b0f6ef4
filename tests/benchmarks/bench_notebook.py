"""The plots of a notebook beside `optuna.visualization`, over the same trials: seconds until the HTML is there, bytes.

10,000 trials of 5 parameters and 10 reports, by 30 peers; a third is pruned half-way. Both sides are warmed up on a
small study first, so that imports do not count.
"""

from __future__ import annotations

import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import optuna

import hopaas_p2p
from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, PeerJoin, TrialCreate, TrialFinish, TrialSet, TrialState
from hopaas_p2p.notebook.plot import Plot
from hopaas_p2p.notebook.summary import study_html
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.study import Study

_TRIALS = 10_000
_PEERS = 30
_SPACE = {
    "lr": hopaas_p2p.Float(1e-5, 1e-1, log=True),
    "layers": hopaas_p2p.Int(1, 12),
    "optimizer": hopaas_p2p.Categorical(("adam", "sgd", "rmsprop")),
    "dropout": hopaas_p2p.Float(0.0, 0.5),
    "width": hopaas_p2p.Int(16, 512, log=True),
}


class Row(NamedTuple):
    """One plot: seconds and bytes, ours and Optuna's."""

    what: str
    ours: float
    size: int
    theirs: float | None
    their_size: int | None


def campaign(trials: int, name: str) -> Study:
    """A study whose log says all of it, as many peers would have written it."""
    study = hopaas_p2p.open_study(f"memory://{name}", name, space=_SPACE)
    log = study.handle.log.log
    since = study.state.lsn
    for payload in _commits(trials):
        since = log.exchange(Outgoing(str(since), payload), since).entries[-1].lsn
    assert len(study.state.trials) == trials
    return study


def _commits(trials: int) -> Iterator[bytes]:
    numbers = random.Random(1)
    seqs = dict.fromkeys(range(_PEERS), 0)
    began = 1_700_000_000_000_000

    def say(peer: int, at: int, *records: Any) -> bytes:
        seqs[peer] += 1
        uuid = f"{peer:032x}"
        return codec.encode(Commit(uuid, seqs[peer], uuid, at, records))

    for peer in range(_PEERS):
        yield say(peer, began, PeerJoin({"site": f"site{peer % 3}", "host": f"n{peer}", "pid": str(peer)}))
    for number in range(trials):
        peer, at = number % _PEERS, began + number * 2_000_000
        lr, layers, kind = 10 ** numbers.uniform(-5, -1), numbers.randint(1, 12), numbers.randrange(3)
        params = dict(
            zip(
                _SPACE,
                (lr, float(layers), float(kind), numbers.uniform(0, 0.5), float(numbers.randint(16, 512))),
                strict=True,
            )
        )
        value = (math.log10(lr) + 3) ** 2 + abs(layers - 6) / 6 + 0.3 * kind + 0.3 * numbers.random()
        cut = numbers.random() < 1 / 3
        reports = {step: value + 2 / (step + 1) for step in range(5 if cut else 10)}
        yield say(peer, at, TrialCreate())
        end = (
            TrialFinish(number, 1, TrialState.PRUNED) if cut else TrialFinish(number, 1, TrialState.COMPLETE, (value,))
        )
        yield say(peer, at + 55_000_000, TrialSet(number, 1, params, {}, reports), end)


def rows() -> list[Row]:
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    small, large = campaign(50, "small"), campaign(_TRIALS, "large")
    theirs = {study.name: _optunas(study) for study in (small, large)}
    ours: dict[str, Callable[[Study], str]] = {
        "history": lambda study: Plot(study).history()._repr_html_(),
        "importances": lambda study: Plot(study).importances()._repr_html_(),
        "slice": lambda study: Plot(study).slice()._repr_html_(),
        "timeline": lambda study: Plot(study).timeline()._repr_html_(),
        "intermediate": lambda study: Plot(study).intermediate()._repr_html_(),
        "the study's own view": study_html,
    }
    found = []
    for what, draw in ours.items():
        draw(small)
        seconds, html = _timed(lambda draw=draw: draw(large))
        other = _PLOTS.get(what)
        their_seconds, their_html = None, None
        if other is not None:
            _html(other, theirs["small"])
            their_seconds, their_html = _timed(lambda other=other: _html(other, theirs["large"]), times=1)
        found.append(Row(what, seconds, len(html), their_seconds, None if their_html is None else len(their_html)))
    return found


_PLOTS = {
    "history": "plot_optimization_history",
    "importances": "plot_param_importances",
    "slice": "plot_slice",
    "timeline": "plot_timeline",
    "intermediate": "plot_intermediate_values",
}


def _html(plot: str, study: optuna.Study) -> str:
    """What plotly hands to a notebook, without its library of 5 MB, which goes along once."""
    text: str = getattr(optuna.visualization, plot)(study).to_html(full_html=False, include_plotlyjs=False)
    return text


def _optunas(study: Study) -> optuna.Study:
    theirs = optuna.create_study()
    theirs.add_trials(study.trials)
    return theirs


def _timed(draw: Callable[[], str], times: int = 3) -> tuple[float, str]:
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        html = draw()
        spent.append(time.perf_counter() - began)
    return statistics.median(spent), html


_INTRODUCTION = f"""\
The study has {_TRIALS:,} trials with 5 parameters and 10 reports each, by {_PEERS} peers. \
The table shows the seconds until the
HTML is ready, with both warm, and the size of the notebook output, without plotly's own 5 MB. `study.plot` draws a
sample when there are too many points to see.
"""


def main() -> str:
    """The section in Markdown."""
    lines = [
        "## Plots in notebooks",
        "",
        _INTRODUCTION,
        "| plot | study.plot | optuna.visualization | ratio | size | size of Optuna's | asked |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        theirs = ratio = size = "-"
        if row.theirs is not None and row.their_size is not None:
            theirs, ratio = f"{row.theirs:.2f} s", f"{row.theirs / row.ours:,.0f} times"
            size = f"{row.their_size / 1e6:.2f} MB"
        ours = f"{row.ours:.3f} s | {theirs} | {ratio} | {row.size / 1e6:.2f} MB | {size}"
        lines.append(f"| {row.what} | {ours} | well under 1 s |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(main())
