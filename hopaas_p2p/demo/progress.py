"""What happened in the demo, read from its State as it becomes visible.

No peer reports here. This opens the same store as the peers and replays the same log, as a dashboard would.
"""

from __future__ import annotations

from collections.abc import Mapping

from hopaas_p2p.analysis.facts import is_better
from hopaas_p2p.core.state import COMPLETE, FAIL, State, Trial

Event = tuple[str, str]
"""A line about what happened, and its emphasis: "best", "bad", "good" or "plain"."""


class EventReader:
    """Finds the events since its last call.

    Args:
        names: pid -> name of the demo's peers.
        direction: the study's.

    """

    def __init__(self, names: Mapping[int, str], direction: str) -> None:
        self._names = names
        self._direction = direction
        self._joined: set[str] = set()
        self._ended: set[int] = set()
        self._restarted: set[int] = set()
        self._best: float | None = None

    def new_events(self, state: State) -> list[Event]:
        """The events since the last call, in the order of their trials."""
        events = [
            (f"peer {name} joined, pid {info.get('pid', '?')}", "plain")
            for uuid, info in state.peers.items()
            if uuid not in self._joined and (name := self._name_of(uuid, state)) in self._names.values()
        ]
        self._joined.update(state.peers)
        for trial in state.trials:
            if trial.number not in self._ended:
                events += self._of_trial(trial, state)
        return events

    def _name_of(self, owner: str | None, state: State) -> str:
        pid = state.peers.get(owner or "", {}).get("pid", "")
        return self._names.get(int(pid), f"pid {pid}") if pid.isdecimal() else "unknown"

    def _of_trial(self, trial: Trial, state: State) -> list[Event]:
        events = []
        n = trial.number
        if trial.retry_of is not None and trial.owner is not None and n not in self._restarted:
            self._restarted.add(n)
            name = self._name_of(trial.owner, state)
            events.append((f"peer {name} runs #{n}, the parameters of #{trial.retry_of} once more", "good"))
        if trial.end is None:
            return events
        self._ended.add(n)
        if trial.state is COMPLETE and trial.values:
            events += self._of_result(trial, trial.values[0], state)
        elif trial.retried_by is not None:
            owner = trial.history[-1].owner if trial.history else trial.owner
            text = f"#{n} taken from peer {self._name_of(owner, state)}, silent for {state.policy.ttl:g} s"
            events.append((f"{text}; it is waiting again as #{trial.retried_by}", "good"))
        elif trial.state is FAIL:
            events.append((f"#{n} failed: {(trial.reason or 'no reason given').splitlines()[0]}", "bad"))
        elif trial.retry_of is not None:
            events.append((f"#{n}, the retry of #{trial.retry_of}, was pruned", "good"))
        return events

    def _of_result(self, trial: Trial, value: float, state: State) -> list[Event]:
        events = []
        if trial.late_of is not None:
            events.append((f"#{trial.number} keeps the late result of #{trial.late_of}: {value:.4f}", "good"))
        if trial.retry_of is not None:
            events.append((f"#{trial.number}, the retry of #{trial.retry_of}, is complete: {value:.4f}", "good"))
        if self._best is None or is_better(value, self._best, self._direction):
            self._best = value
            name = self._name_of(trial.owner, state)
            events.append((f"#{trial.number} by peer {name} is the best so far: {value:.4f}", "best"))
        return events
