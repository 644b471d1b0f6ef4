"""What happened in the study, read off its State: events as they become visible, and the scene as it is now.

Nobody tells the story's reader anything. It opens the same store as the peers and replays the same log, as a
dashboard or a colleague's notebook would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hopaas_p2p.core.state import COMPLETE, FAIL, PRUNED, RUNNING, State, Trial
from hopaas_p2p.report.facts import Savings, best, is_better, savings


class Event(NamedTuple):
    """One line of the story. `kind` says how loud it is: "best", "bad", "good" or "plain"."""

    at: float
    text: str
    kind: str = "plain"


class PeerRow(NamedTuple):
    """One peer as the screen shows it."""

    name: str
    pid: int
    status: str
    trial: int | None
    epoch: int
    complete: int
    pruned: int


class Scene(NamedTuple):
    """The study as it is now."""

    elapsed: float
    peers: tuple[PeerRow, ...]
    complete: int
    pruned: int
    failed: int
    running: int
    budget: int
    best: Trial | None
    savings: Savings


class Story:
    """Tells what is new since the last look.

    Args:
        names: pid -> name of the peers on the stage.
        direction: the study's.

    """

    def __init__(self, names: Mapping[int, str], direction: str) -> None:
        self._names = names
        self._direction = direction
        self._joined: set[str] = set()
        self._ended: set[int] = set()
        self._reclaimed: set[int] = set()
        self._restarted: set[int] = set()
        self._best: float | None = None

    def name_of(self, owner: str | None, state: State) -> str:
        """The name of the peer with this uuid."""
        pid = state.peers.get(owner or "", {}).get("pid", "")
        return self._names.get(int(pid), f"pid {pid}") if pid.isdecimal() else "unknown"

    def look(self, state: State, at: float) -> list[Event]:
        """The events since the last look, in the order of their trials."""
        events = [
            Event(at, f"peer {self.name_of(uuid, state)} joined, pid {state.peers[uuid].get('pid', '?')}")
            for uuid in state.peers
            if uuid not in self._joined and self.name_of(uuid, state) in self._names.values()
        ]
        self._joined.update(state.peers)
        for trial in state.trials:
            if trial.number not in self._ended:
                events += self._about(trial, state, at)
        return events

    def _about(self, trial: Trial, state: State, at: float) -> list[Event]:
        events = []
        n = trial.number
        if trial.retry_of is not None and trial.owner is not None and n not in self._restarted:
            self._restarted.add(n)
            who = self.name_of(trial.owner, state)
            events.append(Event(at, f"peer {who} runs #{n}, the parameters of #{trial.retry_of} once more", "good"))
        if trial.end is None:
            return events
        self._ended.add(n)
        if trial.state is COMPLETE and trial.values:
            events += self._completed(trial, state, at)
        elif trial.retried_by is not None:
            owner = trial.history[-1].owner if trial.history else trial.owner
            text = f"#{n} taken from peer {self.name_of(owner, state)}, silent for {state.policy.ttl:g} s"
            events.append(Event(at, f"{text}; it waits again as #{trial.retried_by}", "good"))
        elif trial.state is FAIL:
            events.append(Event(at, f"#{n} failed: {(trial.reason or 'no reason given').splitlines()[0]}", "bad"))
        elif trial.retry_of is not None:
            events.append(Event(at, f"#{n}, the retry of #{trial.retry_of}, was pruned", "good"))
        return events

    def _completed(self, trial: Trial, state: State, at: float) -> list[Event]:
        assert trial.values is not None
        value = trial.values[0]
        events = []
        who = self.name_of(trial.owner, state)
        if trial.late_of is not None:
            events.append(Event(at, f"#{trial.number} keeps the late result of #{trial.late_of}: {value:.4f}", "good"))
        if trial.retry_of is not None:
            text = f"#{trial.number}, the retry of #{trial.retry_of}, is complete: {value:.4f}"
            events.append(Event(at, text, "good"))
        if self._best is None or is_better(value, self._best, self._direction):
            self._best = value
            events.append(Event(at, f"#{trial.number} by peer {who} is the best so far: {value:.4f}", "best"))
        return events


def scene(state: State, peers: Sequence[tuple[str, int, str]], *, elapsed: float, epochs: int, budget: int) -> Scene:
    """The study now. `peers` are (name, pid, status) of the processes on the stage."""
    uuids = {info.get("pid"): uuid for uuid, info in state.peers.items()}
    rows = []
    for name, pid, status in peers:
        uuid = uuids.get(str(pid))
        own = [trial for trial in state.trials if uuid is not None and trial.owner == uuid]
        now = next((trial for trial in own if trial.state is RUNNING), None)
        rows.append(
            PeerRow(
                name,
                pid,
                status if uuid is not None or status != "running" else "starting",
                now.number if now else None,
                len(now.reports) if now else 0,
                sum(trial.state is COMPLETE for trial in own),
                sum(trial.state is PRUNED for trial in own),
            )
        )
    return Scene(
        elapsed,
        tuple(rows),
        state.counts[COMPLETE],
        state.counts[PRUNED],
        state.counts[FAIL],
        state.counts[RUNNING],
        budget,
        best(state),
        savings(state, length=epochs),
    )
