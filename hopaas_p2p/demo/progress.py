"""Finds the events of the demo in the study's State.

The demo's peers do not report to this process, which replays the same log from the same store, as a dashboard does.
"""

from __future__ import annotations

from collections.abc import Mapping

from hopaas_p2p.core.state import COMPLETE, FAIL, State

Event = tuple[str, str]
"""The text of an event, and its emphasis: "best", "bad", "good" or "plain"."""


class EventReader:
    """Finds the events since its last call.

    Args:
        names: pid -> name of the demo's peers.

    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._told: set[tuple[str, str | int]] = set()
        self._best: float | None = None

    def new_events(self, state: State) -> list[Event]:
        """The events since the last call: first the peers that joined, then the events of trials by number."""
        events = []
        for uuid, info in state.peers.items():
            name = self._name_of(uuid, state)
            if name in self._names.values() and self._is_news("joined", uuid):
                events.append((f"peer {name} joined, pid {info.get('pid', '?')}", "plain"))
        for trial in state.trials:
            n, of, name = trial.number, trial.retry_of, self._name_of(trial.owner, state)
            if of is not None and trial.owner is not None and self._is_news("again", n):
                events.append((f"peer {name} runs #{n}, the parameters of #{of} once more", "good"))
            if trial.end is None or not self._is_news("ended", n):
                continue
            if trial.state is COMPLETE and trial.values:
                value = trial.values[0]
                if trial.late_of is not None:
                    events.append((f"#{n} keeps the late result of #{trial.late_of}: {value:.4f}", "good"))
                if of is not None:
                    events.append((f"#{n}, the retry of #{of}, is complete: {value:.4f}", "good"))
                if self._best is None or value > self._best:
                    self._best = value
                    events.append((f"#{n} by peer {name} is the best so far: {value:.4f}", "best"))
            elif trial.retried_by is not None:
                lost = self._name_of(trial.history[-1].owner if trial.history else trial.owner, state)
                text = f"#{n} taken from peer {lost}, silent for {state.policy.ttl:g} s"
                events.append((f"{text}; it is waiting again as #{trial.retried_by}", "good"))
            elif trial.state is FAIL:
                events.append((f"#{n} failed: {(trial.reason or 'no reason given').splitlines()[0]}", "bad"))
            elif of is not None:
                events.append((f"#{n}, the retry of #{of}, was pruned", "good"))
        return events

    def _is_news(self, what: str, of: str | int) -> bool:
        known = (what, of) in self._told
        self._told.add((what, of))
        return not known

    def _name_of(self, owner: str | None, state: State) -> str:
        pid = state.peers.get(owner or "", {}).get("pid", "")
        return self._names.get(int(pid), f"pid {pid}") if pid.isdecimal() else "unknown"
