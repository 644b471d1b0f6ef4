"""A real process that is killed: what it had spent is in the ledger, and the study ends at its limit all the same."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import hopaas_p2p
from hopaas_p2p import Budget
from tests.support.processes import until

_JOB = """
import sys, time
import hopaas_p2p
study = hopaas_p2p.open_study(sys.argv[1], "s", create=False)
trial = study.ask()
for step in range(10_000):
    trial.report(1.0, step)
    study.storage.peer.flush()
    print(step, flush=True)
    time.sleep(0.05)
"""


def test_a_killed_process_costs_what_it_ran_and_counts_toward_the_limit(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    study = hopaas_p2p.open_study(
        store,
        "s",
        space={"x": hopaas_p2p.Float(0, 1)},
        policy=hopaas_p2p.StudyPolicy(lease_ttl=2.0, attempts=1),
        budget=Budget(epochs=60),
    )
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", _JOB, store], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        said = 0
        while said < 20:
            said = int(job.stdout.readline())
        job.kill()
    elapsed = time.monotonic() - began
    study.optimize(lambda trial: trial.report(1.0, 0) or 1.0)
    until(lambda: not study.state.running)  # nobody waits for it, but who is there notices
    ledger = study.state.ledger
    (lost,) = [cost for (_, _, outcome), cost in ledger.accounts.items() if outcome == "lost"]
    assert lost.epochs >= 21
    assert 1.0 <= lost.time / 1e6 <= elapsed + 2.0
    assert ledger.reached == "60 epochs are spent"
    assert sum(one.epochs for one in ledger.accounts.values()) == 60
    study.close()
