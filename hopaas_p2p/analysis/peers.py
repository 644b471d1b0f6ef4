"""The peers of a study, one row per peer. Times are by each peer's own clock."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Final

from hopaas_p2p.analysis.timeline import Stretch, stretches
from hopaas_p2p.core.state import State
from hopaas_p2p.peer.liveness import SignOfLife

_OF_A_SEARCH: Final = ("sampler", "pruner", "repeats", "replicates")
"""Fields that a peer announces if it searches differently from the study's definition."""
_WORDS: Final = {(True, True): "alive", (True, False): "silent", (False, True): "idle", (False, False): "gone"}
"""(whether a peer runs a trial, whether it is alive) -> a word for its state."""


def peer_rows(state: State, now: float, signs: Mapping[str, SignOfLife]) -> list[dict[str, Any]]:
    """The peers of a study, first those that run a trial, then the most recently seen.

    Args:
        state: the study.
        now: seconds since 1970.
        signs: the known signs of life. A peer that runs no trial and has no sign of life has left.

    """
    ran: dict[str, list[Stretch]] = defaultdict(list)
    for stretch in stretches(state):
        ran[stretch.owner].append(stretch)
    running: dict[str, list[int]] = defaultdict(list)
    for number in sorted(state.running):
        running[state.trials[number].owner or ""].append(number)
    ended = Counter(trial.owner for trial in state.trials if trial.end is not None)
    rows = []
    for owner in filter(None, dict.fromkeys([*state.peers, *running, *ran])):
        info, sign = state.peers.get(owner, {}), signs.get(owner)
        some, runs = ran.get(owner, []), running.get(owner, [])
        last = max((one.end / 1e6 for one in some), default=None)
        if sign is None:  # a peer removes its heartbeat when it ends
            word = "unknown" if runs else "left"
        elif sign.alive is None:
            word = "unknown" if sign.ago is None else "not heard from"
        else:
            word = _WORDS[bool(runs), sign.alive]
        row = {
            "peer": owner,
            **{what: info.get(what) for what in ("site", "host", "user", "pid")},
            "job": f"{info['batch']} {info['job']}" if "batch" in info and "job" in info else None,
            "machine": info.get("gpu") or (f"Python {info['python']}" if "python" in info else ""),
            "running": runs,
            "ended": ended[owner],
            "lost": sum(one.kind == "taken over" for one in some),
            "returned": sum(one.kind == "returned" for one in some),
            "state": word,
            "last": last,
            "last_seen": sign.ago if sign is not None else None if last is None else max(0.0, now - last),
            "draining": state.is_draining(owner),
            "differs": [f"uses the {part} {info[part]}" for part in _OF_A_SEARCH if part in info],
        }
        rows.append(row)
    return sorted(rows, key=lambda one: (not one["running"], -(one["last"] or 0.0), one["peer"]))
