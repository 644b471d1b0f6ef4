"""What a directory on NFS costs, measured in the lab of `tests.support.machines`: for tests and for `make bench`."""

from __future__ import annotations

import json
import time

from tests.support.machines import NfsLab
from tests.support.processes import until

NODES = ("c1", "c2")


def stores(lab: NfsLab, options: str, name: str) -> dict[str, str]:
    """A new store, as each node has it."""
    unique = f"{name}-{time.monotonic_ns()}"
    return {node: f"{lab.mount(node, options)}/{unique}" for node in NODES}


def calls_per_trial(lab: NfsLab, options: str, *, trials: int = 40) -> dict[str, float]:
    """How often a trial of a peer that is alone calls each procedure of the server."""
    counted = lab["c1"].peers("count", stores(lab, options, "count")["c1"], "--trials", trials)
    counted.wait(90)
    found: dict[str, float] = json.loads(counted.said("calls")[0].text.partition(" ")[2])
    return found


def idle_calls(lab: NfsLab, options: str, *, peers: int = 3, seconds: float = 40.0) -> float:
    """How many calls of the server peers make together per second that take part and do nothing.

    They look every second for half a minute after a read, and then every few seconds.
    """
    store = stores(lab, options, "idle")["c1"]
    job = lab["c1"].peers("idle", store, "--peers", peers, "--seconds", 90)
    until(lambda: len(job.said("idle")) == peers, 60, what=lambda: job.output)
    before = json.loads(lab["c1"].peers("calls", store).wait())
    began = time.monotonic()
    time.sleep(seconds)
    after = json.loads(lab["c1"].peers("calls", store).wait())
    took = time.monotonic() - began
    job.signal(9)
    return sum(number - before.get(name, 0) for name, number in after.items()) / took


def seen_after(lab: NfsLab, options: str, *, trials: int = 15) -> list[float]:
    """Seconds until the other node sees a result, in order; both moments by this machine's clock."""
    store = stores(lab, options, "seen")
    watcher = lab["c2"].peers("watch", store["c2"], "--trials", trials, "--seconds", 90)
    watcher.wait_for("ready")
    teller = lab["c1"].peers("tell", store["c1"], "--trials", trials, "--pace", 0.6)
    teller.wait(90)
    watcher.wait(90)
    told = {line.text.split()[1]: line.at for line in teller.said("told")}
    seen = {line.text.split()[1]: line.at for line in watcher.said("saw")}
    return sorted(max(seen[number] - at, 0.0) for number, at in told.items())


def trials_per_minute(lab: NfsLab, options: str, kind: str, *, peers: int = 4, seconds: float = 40.0) -> float:
    """Trials per minute of so many peers on each node, from the first to the last."""
    store = stores(lab, options, kind)
    for node in NODES:
        lab[node].await_workers()  # or one node begins before the other
    words = ("--peers", peers, "--seconds", seconds, "--pace", 0)
    jobs = [lab[node].peers(kind, store[node], "--name", node, *words) for node in NODES]
    for job in jobs:
        job.wait(seconds + 120)
    times = [line.at for job in jobs for line in job.said("ack") or job.said("begun")]
    return 60 * (len(times) - 1) / (max(times) - min(times))
