"""Workers and clean-ups of a bucket on a time-scale of seconds instead of days, for processes that are killed.

In a bucket everything stays for a day, and a process that had no contact for ten minutes may have slept. Here these are
seconds, and snapshots come every few commits, so that `gc` removes something all the time.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Final

import optuna

import hopaas_p2p
from hopaas_p2p.errors import LeaseLost, NoWork, StoreUnreachable
from hopaas_p2p.peer import session
from hopaas_p2p.stores.s3 import gc
from hopaas_p2p.stores.s3.log import BucketLog
from hopaas_p2p.stores.s3.store import S3Store
from tests.support.sigkill import acknowledge

KEEP: Final = 6.0
"""Seconds for which everything stays: a day, in a bucket."""
ASLEEP: Final = 2.0
"""Seconds without contact after which a peer may have slept: ten minutes, in a bucket."""
_SNAPSHOT_EVERY: Final = 16


def quicken() -> None:
    """Let this process live on that scale."""
    session.SNAPSHOT_EVERY = _SNAPSHOT_EVERY  # type: ignore[misc]
    session.snapshot_due = lambda lsn: lsn % _SNAPSHOT_EVERY == 0
    BucketLog.asleep = ASLEEP


def work(url: str, name: str, notes: Path, total: int) -> None:
    """Run trials with a checkpoint and a file each, until the study gives out no more."""
    quicken()
    sampler = optuna.samplers.RandomSampler()  # no two results are equal by chance, as at the edge of the space
    study = hopaas_p2p.open_study(
        hopaas_p2p.open_storage(url, linger=0.05, create=False), name, create=False, sampler=sampler
    )
    file = notes.with_suffix(".model")
    while True:
        try:
            trial = study.ask()
        except NoWork:
            if not study.state.running and not study.state.waiting:
                break
            time.sleep(0.1)
            continue
        x = trial.params["x"]
        trial.report(x, 0)
        trial.checkpoint(f"state of #{trial.number}".encode(), step=0)
        file.write_text(f"model of #{trial.number}")
        trial.upload(file, filename="model")
        with contextlib.suppress(LeaseLost):  # on a busy machine it was taken for dead: the result is a late one
            study.tell(trial, x)
            acknowledge(notes, trial.number, x)
    study.close()


def clean_up(url: str) -> None:
    """Clean up over and over, until killed."""
    quicken()
    store = S3Store(url, create=False)
    while True:
        try:
            removed = sum(one.objects for one in gc._collect(store, KEEP, dry_run=False))
        except StoreUnreachable:
            continue
        print(json.dumps(removed), flush=True)  # noqa: T201
        time.sleep(0.05)


if __name__ == "__main__":
    clean_up(sys.argv[1])
