"""A campaign on a bucket: our S3 store beside Optuna's JournalStorage on the same log, over the same slow requests.

A proxy before a real server (SeaweedFS) makes a PUT or LIST take 45 ms and a GET 20 ms longer, and counts them.
The journal is what a plain adapter gives: an append and a read for each call. The shape of a trial is 5 parameters and
10 reports, each followed by `should_prune`, with the default sampler and the median pruner.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import optuna
from optuna.storages.journal import JournalStorage

import hopaas_p2p
from hopaas_p2p.peer.peer import Caller
from tests.benchmarks.s3_crowd import at_full_speed, at_leisure
from tests.benchmarks.s3_join import joining
from tests.benchmarks.s3_link import GET, PRICES, PUT, Row, link
from tests.benchmarks.s3_peers import Journal
from tests.support import seaweed
from tests.support.exchanges import blocked
from tests.support.objectives import five_parameters as objective
from tests.support.seaweed import Seaweed


def rows() -> list[Row]:
    """Every figure, in some four minutes."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    os.environ.update(AWS_ACCESS_KEY_ID=seaweed.KEY, AWS_SECRET_ACCESS_KEY=seaweed.SECRET)
    with Seaweed() as server:
        return [*_alone(server), *joining(server), *at_leisure(server), *at_full_speed(server), *_idle(server)]


# --- one peer ----------------------------------------------------------------------------------------------------


class _Trial(NamedTuple):
    seconds: float
    blocked: float
    asked: dict[str, float]

    @property
    def dollars(self) -> float:
        """What 1,000 of them cost."""
        return 1000 * sum(PRICES.get(kind, 0.0) * count for kind, count in self.asked.items())


def _alone(server: Seaweed) -> list[Row]:
    plain, own, theirs = (_one_trial(server, kind) for kind in ("ours", "own", "theirs"))
    bound = 2.5 * (PUT + GET)
    return [
        Row(
            "one peer: PUTs per trial", *_pair(plain, own, theirs, lambda one: f"{one.asked.get('PUT', 0):.1f}"), "2; 1"
        ),
        Row("… GETs per trial", *_pair(plain, own, theirs, lambda one: f"{one.asked.get('GET', 0):.1f}"), "3"),
        Row("… LISTs a trial", *_pair(plain, own, theirs, lambda one: f"{one.asked.get('LIST', 0):.1f}"), "0"),
        Row(
            "… blocked per trial, ms",
            *_pair(plain, own, theirs, lambda one: f"{1000 * one.blocked:.0f}"),
            f"{1000 * bound:.0f}",
        ),
        Row("… 1,000 trials at list prices", *_pair(plain, own, theirs, lambda one: f"${one.dollars:.4f}")),
    ]


def _pair(plain: _Trial, own: _Trial, theirs: _Trial, show: Callable[[_Trial], str]) -> tuple[str, str]:
    return f"{show(plain)}; `Study.optimize` {show(own)}", show(theirs)


def _one_trial(server: Seaweed, kind: str) -> _Trial:
    trials = 5 if kind == "theirs" else 40
    pruner = optuna.pruners.MedianPruner()
    with link(server) as far, blocked(Caller, "wait") as waits:
        storage: Any = JournalStorage(Journal(far.url)) if kind == "theirs" else hopaas_p2p.open_storage(far.url)
        study: Any = (
            hopaas_p2p.open_study(storage, "s", pruner=pruner)
            if kind == "own"
            else optuna.create_study(storage=storage, study_name="s", pruner=pruner)
        )
        study.optimize(objective, n_trials=2)
        far.clear()
        waits.clear()
        began = time.perf_counter()
        study.optimize(objective, n_trials=trials)
        took = time.perf_counter() - began
        asked = {name: count / trials for name, count in far.asked.items()}
        spent = sum(waits) / trials
        if hasattr(storage, "close"):
            storage.close()
        return _Trial(took / trials, spent, asked)


# --- silence -----------------------------------------------------------------------------------------------------


def _idle(server: Seaweed) -> list[Row]:
    ttl = 3.0
    with link(server) as far:
        storage = hopaas_p2p.open_storage(far.url, lease_ttl=ttl)
        study = optuna.create_study(storage=storage, study_name="quiet")
        _running = study.ask()
        storage.flush()
        part = storage.handle(study._study_id)
        part.log.read_at = storage.peer.catalog.read_at = -1e9
        far.clear()
        began = time.monotonic()
        time.sleep(6 * ttl)
        thirds = (time.monotonic() - began) / (ttl / 3)
        asked = far.asked.copy()
        storage.close()
    return [
        Row(
            "an idle peer, per ttl/3: GETs; beats",
            f"{asked['GET'] / thirds:.2f}; {asked['PUT beat'] / thirds:.2f}",
            "",
            "1; 1",
        )
    ]


def main() -> str:
    """The table, in Markdown."""
    found = rows()
    lines = ["| S3, 45 ms PUT/LIST, 20 ms GET | ours | JournalStorage, same log | asked |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in found]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(main())
