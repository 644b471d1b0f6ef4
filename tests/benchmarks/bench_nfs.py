"""A directory on NFS, beside Optuna's journal file with its lock on the same mount.

Server and clients are the small virtual machines of `tests.support.machines`: kernels and protocol are real, and under
software emulation everything takes some five to ten times as long as on real machines. Compare the ratios.
"""

from __future__ import annotations

import statistics
from typing import Final

from tests.support.machines import NfsLab
from tests.support.measures import calls_per_trial, idle_calls, seen_after, trials_per_minute

_OPTIONS: Final = ("vers=4.2", "vers=3,nolock")
_WAYS: Final = (("`Study.optimize`", "optimize", "journal_optimize"), ("`ask` and `tell`", "work", "journal"))


def main() -> str:
    """The table, in about nine minutes."""
    lines = ["| what | ours | Optuna, `JournalFileOpenLock` | ratio | asked |", "|---|--:|--:|--:|--:|"]
    with NfsLab() as lab:
        for options in _OPTIONS:
            for what, kind, beside in _WAYS:
                ours = trials_per_minute(lab, options, kind)
                theirs = trials_per_minute(lab, options, beside)
                lines.append(
                    f"| `{options}`: trials per minute, 8 workers on 2 nodes, {what} | {ours:.0f} | {theirs:.0f} "
                    f"| {ours / theirs:.1f} x | 3 x |"
                )
            calls = calls_per_trial(lab, options)
            lines.append(f"| … server calls per trial, one worker | {sum(calls.values()):.1f} | | | 12 |")
            idle = idle_calls(lab, options)
            lines.append(f"| … calls per second of 3 idle peers together, over 40 s | {idle:.1f} | | | 3 |")
            seen = seen_after(lab, options, trials=30)
            late = seen[int(0.95 * len(seen))]
            shown = f"{statistics.median(seen):.2f}, {late:.2f}"
            lines.append(f"| … until another node sees a result, median and 95 %, s | {shown} | | | 1, 3 |")
    return "\n".join(["## NFS", "", *lines])
