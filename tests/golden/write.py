"""Writes a log that later versions must replay: `python -m tests.golden.write`, once for each format, never again.

One of every kind of record is in it, and what becomes of trials that are lost, late, released, stopped and retried.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hopaas_p2p.core import codec
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import (
    FORMAT,
    Categorical,
    Checkpoint,
    Commit,
    Float,
    Int,
    PeerDrain,
    PeerJoin,
    Policy,
    Record,
    StudyControl,
    StudyDefine,
    StudySet,
    TrialCheckpoint,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    TrialState,
    TrialStop,
)
from hopaas_p2p.core.state import State

SPACE = {"lr": Float(1e-5, 1e-1, log=True), "units": Int(8, 256), "opt": Categorical(("adam", None, 2, True))}


def described(state: State) -> dict[str, Any]:
    """What a person would say is in the study; independent of how this version keeps it."""
    return {
        "lsn": state.lsn,
        "name": state.define.name if state.define else None,
        "status": state.status,
        "budget": state.budget,
        "user": state.user,
        "peers": {uuid: info.get("host") for uuid, info in state.peers.items()},
        "refusals": state.refusals,
        "waiting": list(state.waiting),
        "running": list(state.running),
        "trials": [
            {
                "state": trial.state.name,
                "owner": trial.owner,
                "epoch": trial.epoch,
                "params": trial.params,
                "reports": {str(step): value for step, value in trial.reports.items()},
                "values": None if trial.values is None else list(trial.values),
                "reason": trial.reason,
                "attempt": trial.attempt,
                "retry_of": trial.retry_of,
                "late_of": trial.late_of,
                "user": trial.user,
                "tenures": [[tenure.owner, tenure.epoch, tenure.why] for tenure in trial.history],
            }
            for trial in state.trials
        ],
    }


def _records() -> list[tuple[str, tuple[Record, ...]]]:
    lr = {"lr": 0.01, "units": 64.0, "opt": 1.0}
    define = StudyDefine("golden", ("minimize",), Policy(budget=20, attempts=3, ttl=60.0), SPACE)
    return [
        ("a", (define,)),
        ("a", (PeerJoin({"host": "node1", "pid": "7"}), TrialCreate())),
        ("a", (TrialSet(0, 1, lr, {}, {1: 0.5, 2: 0.25}, {"who": '"me"'}),)),
        ("a", (TrialFinish(0, 1, TrialState.COMPLETE, (0.25,)), TrialCreate(prefer_waiting=True))),
        ("b", (PeerJoin({"host": "node2", "pid": "8"}), TrialCreate(TrialState.WAITING, params={"lr": 0.02}))),
        ("b", (TrialClaim(2),)),
        ("a", (TrialSet(1, 1, lr, {}, {1: float("inf")}),)),
        ("a", (TrialCheckpoint(1, 1, Checkpoint(1, "trial-1-step-1", 10, "0" * 64)),)),
        ("b", (TrialReclaim(1, 1),)),  # becomes trial 3
        ("b", (TrialFinish(2, 1, TrialState.PRUNED), TrialCreate(prefer_waiting=True))),  # runs 3
        ("a", (TrialSet(1, 1, reports={2: 0.1}), TrialFinish(1, 1, TrialState.COMPLETE, (0.1,)))),  # fenced, then late
        ("b", (TrialRelease(3, 1, reason="pre-empted"),)),
        ("c", (TrialCreate(prefer_waiting=True), TrialStop(3, 2, "enough"))),
        ("c", (TrialFinish(3, 2, TrialState.FAIL, reason="ValueError: no"),)),
        ("c", (StudySet({"note": '"hello"'}), StudyControl("paused", 30), TrialCreate())),
        ("c", (StudyControl("running"), PeerDrain(site="gone"), TrialCreate())),
        ("c", (TrialFinish(99, 1, TrialState.COMPLETE, (1.0,)),)),
    ]


def main() -> None:
    """Write the log of the present format."""
    folder = Path(__file__).parent / f"format-{FORMAT}"
    (folder / "log").mkdir(parents=True)
    state, seqs, frames = State(), {"a": 0, "b": 0, "c": 0}, b""
    for lsn, (writer, records) in enumerate(_records(), start=1):
        seqs[writer] += 1
        commit = Commit(writer, seqs[writer], writer, 1_700_000_000_000_000 + lsn, records)
        payload = codec.encode(commit)
        frames += b"%08x %b\n" % (len(payload), payload)
        apply(state, lsn, commit)
    (folder / "log" / f"{1:020d}").write_bytes(frames)
    (folder / "study.json").write_text(json.dumps(described(state), indent=1) + "\n")


if __name__ == "__main__":
    main()
