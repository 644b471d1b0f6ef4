"""The log lines of `optimize`: how far the study is, how each trial ended, and why it stopped."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import optuna

from hopaas_p2p.core import records
from hopaas_p2p.runtime.logs import LOG

if TYPE_CHECKING:
    from hopaas_p2p.storage.handle import StudyHandle

_LONGEST_REASON: Final = 500  # characters
_INTERVAL: Final = 60.0  # seconds between two lines about the study as a whole, or about waiting


class ProgressLog:
    """Log lines of one call of `optimize`, at level INFO.

    In a program that configures no logging, they go to stderr, like Optuna's, and in a notebook to stdout. They then
    follow `optuna.logging.set_verbosity`, unless the logger `hopaas_p2p` has a level of its own.
    """

    def __init__(self, name: str, handle: StudyHandle, *, quiet: bool) -> None:
        self._name = name
        self._study = handle
        self._quiet = quiet
        self._handler: logging.Handler | None = None
        self._level = LOG.level
        self._due = time.monotonic() + _INTERVAL
        self._waiting_due = 0.0
        self._own: list[tuple[float, int]] = []
        """The trials that this call has ended and that are not known to have ended in the log, as (value, number)."""

    def __enter__(self) -> ProgressLog:
        if not LOG.hasHandlers() and not self._quiet:
            in_notebook = "ipykernel" in sys.modules  # which shows stderr in red
            self._handler = logging.StreamHandler(sys.stdout if in_notebook else sys.stderr)
            self._handler.setFormatter(logging.Formatter("%(message)s"))
            LOG.addHandler(self._handler)
            LOG.setLevel(self._level or optuna.logging.get_verbosity())
        if self.enabled:
            LOG.info("study %r: %s", self._name, self._standing())
        return self

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            LOG.removeHandler(self._handler)
            LOG.setLevel(self._level)

    @property
    def enabled(self) -> bool:
        return LOG.isEnabledFor(logging.INFO) and not self._quiet

    def ended(self, number: int, state: str, values: Sequence[float] | None, reason: str | None) -> None:
        """Log that a trial of this call ended in this state, or PAUSED; once per minute, also the study's progress."""
        if not self.enabled:
            return
        if values is None:
            LOG.info("trial %d: %s%s", number, state, f" ({last_line(reason)})" if reason else "")
        else:
            word = "" if state == "COMPLETE" else f" {state}"
            shown = ", ".join(f"{value:.6g}" for value in values)
            LOG.info("trial %d:%s %s%s", number, word, shown, self._best(None if word else (values[0], number)))
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + _INTERVAL
            LOG.info("study %r: %s", self._name, self._standing())

    def waiting(self, why: str) -> None:
        """Log that no trial can start at present, at most once per minute."""
        if self.enabled and time.monotonic() >= self._waiting_due:
            self._waiting_due = time.monotonic() + _INTERVAL
            LOG.info("waiting for study %r: %s", self._name, why)

    def stopped(self, why: str) -> None:
        """Log why this call starts no more trials."""
        if self.enabled:
            LOG.info("left study %r: %s; %s", self._name, why, self._standing())

    def _best(self, ended: tuple[float, int] | None = None) -> str:
        """The best trial so far, in words; `ended` is the (value, number) of a trial that has just ended."""
        study = self._study
        with study.lock:  # without an exchange, because what this process already knows is good enough here
            define = study.state.define
            if define is None or len(define.directions) > 1:
                return ""
            study.view.catch_up(study.state)
            best = study.view.best()
            if ended is not None and all(one <= 0 for one in study.view.trial(ended[1]).constraints.values()):
                self._own.append(ended)
            self._own = [one for one in self._own if study.state.trials[one[1]].end is None]
            known = self._own if best is None else [*self._own, (best.values[0], best.number)]
            if not known:
                return ""
            sign = -1.0 if define.directions[0] == "maximize" else 1.0
            value, number = min(known, key=lambda one: (sign * one[0], one[1]))
        return f", best {value:.6g} (#{number})"

    def _standing(self) -> str:
        with self._study.lock:
            state = self._study.state
            counts, limit = state.counts, state.budget
            done = counts[records.TrialState.COMPLETE] + counts[records.TrialState.PRUNED]
            running = counts[records.TrialState.RUNNING]
            begun, unit = state.used(), state.configurations.unit
        of = "" if limit is None else f" of {limit}"
        said = f"{done}{of} done" if unit == "trials" else f"{begun}{of} {unit} begun"
        return f"{said}, {running} running{self._best()}"


def last_line(reason: str) -> str:
    """The last line of a reason, which says the most in a traceback, cut to 500 characters; empty without a reason."""
    return reason.strip().splitlines()[-1][:_LONGEST_REASON] if reason.strip() else ""
