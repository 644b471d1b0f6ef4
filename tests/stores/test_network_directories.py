"""The directory store on NFS: a server and two clients with real kernels, in small virtual machines.

Slow, because emulated: what can be tried on one machine is in test_directory, other file systems in
test_fuse_directories.
"""

from __future__ import annotations

import itertools
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.support import measures, workers
from tests.support.machines import Job, NfsLab
from tests.support.measures import NODES, stores
from tests.support.processes import ROOT, until

MOST_CALLS: Final = 12.0
"""Of the server, per trial of a peer that is alone: the bound that the design set itself."""


def results(job: Job) -> list[float]:
    """When each tell returned."""
    return [line.at for line in job.said("ack")]


def running(job: Job) -> set[str]:
    """Numbers of the trials that it was given and has not told."""
    asked, told = ({line.text.split()[2] for line in job.said(word)} for word in ("ask", "ack"))
    return asked - told


def judged(lab: NfsLab, store: dict[str, str], jobs: list[Job], nodes: tuple[str, ...] = NODES) -> list[dict[str, Any]]:
    """What a fresh process on each node reads."""
    lsns = [lsn for lsn, _ in workers.views(job.output for job in jobs).values()]
    judges = [lab[node].peers("judge", store[node], *lsns) for node in nodes]
    return [workers.judged(judge.wait(90)) for judge in judges]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say something in the summary at the end."""
    return lambda text: record_property("summary", text)


@pytest.mark.parametrize("options", ["vers=4.2", "vers=3,nolock"])
def test_peers_on_two_nodes_lose_and_double_nothing_and_all_see_one_history(nfs_lab: NfsLab, options: str) -> None:
    store = stores(nfs_lab, options, "two-nodes")
    words = ("--peers", 2, "--seconds", 12)
    jobs = [nfs_lab[node].peers("work", store[node], "--name", node, *words) for node in NODES]
    for job in jobs:
        job.ended.wait(120)

    assert workers.faults([job.output for job in jobs], judged(nfs_lab, store, jobs)) == []
    assert [job.status for job in jobs] == [0, 0]
    assert min(len(results(job)) for job in jobs) > 2


def test_the_server_may_be_away_and_all_go_on_when_it_is_back(nfs_lab: NfsLab, tell: Callable[[str], None]) -> None:
    """Its grace period is a real one: for 90 s it opens no file, unless all clients have come back before."""
    store = stores(nfs_lab, "vers=4.2", "away")
    words = ("--peers", 2, "--seconds", 300)
    jobs = [nfs_lab[node].peers("work", store[node], "--name", node, *words) for node in NODES]
    for job in jobs:
        until(lambda job=job: len(results(job)) > 5, 60, what=lambda job=job: job.output)
    with nfs_lab.server_away():
        time.sleep(8)
    back = time.monotonic()
    for job in jobs:
        until(lambda job=job: sum(at > back for at in results(job)) > 5, 150, what=lambda job=job: job.output)
    first = min(at for job in jobs for at in results(job) if at > back)
    tell(f"NFS 4.2: the first result came {first - back:.1f} s after the server was back")
    for job in jobs:
        job.signal(10)
        job.ended.wait(60)

    assert workers.faults([job.output for job in jobs], judged(nfs_lab, store, jobs)) == []


def test_a_trial_costs_a_peer_that_is_alone_few_calls_of_the_server(
    nfs_lab: NfsLab, tell: Callable[[str], None]
) -> None:
    calls = measures.calls_per_trial(nfs_lab, "vers=4.2")
    tell(f"NFS 4.2: {sum(calls.values()):.1f} calls of the server per trial: {calls}")
    assert sum(calls.values()) <= MOST_CALLS


def test_peers_that_are_idle_cost_the_server_a_call_per_second_at_most(
    nfs_lab: NfsLab, tell: Callable[[str], None]
) -> None:
    peers = 3
    made = measures.idle_calls(nfs_lab, "vers=4.2", peers=peers)
    tell(f"NFS 4.2: {peers} idle peers make {made:.1f} calls of the server per second together")
    assert made <= peers


def test_another_node_soon_sees_a_commit(nfs_lab: NfsLab, tell: Callable[[str], None]) -> None:
    took = measures.seen_after(nfs_lab, "vers=4.2")
    tell(
        f"NFS 4.2: another node sees a commit after {statistics.median(took):.2f} s in the median, "
        f"{took[-1]:.2f} s at most"
    )
    assert len(took) == 15
    assert took[-1] < 20


@pytest.mark.parametrize("options", ["vers=4.2", "vers=3,nolock"])
def test_nodes_that_share_a_folder_only_take_part_in_a_study_that_is_kept_elsewhere(
    nfs_lab: NfsLab, options: str
) -> None:
    name = f"box-{time.monotonic_ns()}"
    boxes = {node: f"{nfs_lab.mount(node, options)}/{name}" for node in NODES}
    kept = f"/tmp/kept-{time.monotonic_ns()}"  # on a disk of the first node's own
    serve = f"exec {shlex.quote(sys.executable)} -m hopaas_p2p serve folder {boxes['c1']} {kept}"
    places = {"direct": ("c1", kept), **{node: (node, f"folder://{box}") for node, box in boxes.items()}}

    def begin(peer: str) -> Job:
        node, place = places[peer]
        return nfs_lab[node].peers("work", place, "--name", peer, "--seconds", 300)

    jobs = [begin("direct")]
    until(lambda: results(jobs[0]), 60, what=lambda: jobs[0].output)
    server = nfs_lab["c1"].submit(serve)
    server.wait_for("Serving", 120)
    jobs += [begin(node) for node in NODES]
    for job in jobs:
        until(lambda job=job: len(results(job)) > 3, 120, what=lambda job=job: job.output)
    server.signal(9)
    server.ended.wait(60)
    killed = time.monotonic()
    server = nfs_lab["c1"].submit(serve)
    for job in jobs:
        until(lambda job=job: sum(at > killed for at in results(job)) > 3, 180, what=lambda job=job: job.output)
    for job in jobs:
        job.signal(10)
        job.ended.wait(60)
    assert (
        workers.faults([job.output for job in jobs], judged(nfs_lab, {"c1": kept, "c2": places["c2"][1]}, jobs)) == []
    )
    server.signal(15)
    server.ended.wait(60)


def test_a_store_on_a_mount_that_is_read_only_can_be_read(nfs_lab: NfsLab) -> None:
    store = stores(nfs_lab, "vers=4.2", "read-only")
    written = nfs_lab["c1"].peers("work", store["c1"], "--seconds", 3)
    written.wait(60)
    folder = nfs_lab.mount("c2", "ro,vers=4.2")
    read = nfs_lab["c2"].peers("judge", f"{folder}/{store['c2'].rpartition('/')[2]}").wait()
    assert len(workers.judged(read)["complete"]) == len(results(written))


def test_two_nodes_whose_root_is_nobody_on_the_server_share_a_store(nfs_lab: NfsLab) -> None:
    name = f"squashed-{time.monotonic_ns()}"
    store = {node: f"{nfs_lab.mount(node, 'vers=4.2', squashed=True)}/{name}" for node in NODES}
    jobs = []
    for node in NODES:
        jobs.append(nfs_lab[node].peers("work", store[node], "--name", node, "--seconds", 3))
        jobs[-1].wait(60)
    assert workers.faults([job.output for job in jobs], judged(nfs_lab, store, jobs)) == []
    assert nfs_lab["c1"].run(f"stat -c %U {store['c1']}") == "nobody"


def test_two_users_of_a_group_share_a_store_in_a_directory_of_the_group(nfs_lab: NfsLab) -> None:
    for machine in nfs_lab.machines.values():
        machine.run(_USERS % " ".join(shlex.quote(str(path)) for path in (ROOT, sys.prefix, sys.base_prefix)))
    name = f"group-{time.monotonic_ns()}"
    folders = {node: f"{nfs_lab.mount(node, 'vers=4.2')}/{name}" for node in NODES}
    nfs_lab["c1"].run(f"mkdir {folders['c1']}; chgrp lab {folders['c1']}; chmod 2775 {folders['c1']}")
    store = {node: f"{folder}/store" for node, folder in folders.items()}
    jobs = []
    for node, user in (("c1", "ann"), ("c2", "bob"), ("c1", "ann")):
        words = ("--name", f"{user}-{len(jobs)}", "--seconds", 3, "--user", user, "--umask", "002")
        jobs.append(nfs_lab[node].peers("work", store[node], *words))
        jobs[-1].ended.wait(60)
    assert workers.faults([job.output for job in jobs], judged(nfs_lab, store, jobs)) == []
    assert all(len(results(job)) > 1 for job in jobs)


_USERS: Final = """
getent group lab || groupadd --gid 7000 lab
for user in ann:7001 bob:7002; do
  getent passwd ${user%%%%:*} || useradd --uid ${user#*:} --user-group --groups lab --no-create-home ${user%%%%:*}
done
for path in %s; do
  while [ "$path" != / ]; do chmod o+rx "$path"; path=$(dirname "$path"); done
done
"""
"""The users, and rights for them to read the checkout and Python, in these machines' own copy of the root."""


def test_a_node_that_loses_its_power_holds_up_nobody_and_its_trials_come_back(
    nfs_lab: NfsLab, tell: Callable[[str], None]
) -> None:
    ttl = 8.0
    store = stores(nfs_lab, "vers=4.2", "power")
    words = ("--peers", 2, "--seconds", 300, "--ttl", ttl)
    pace = {"c1": 0.1, "c2": 4.0}  # c2 is killed as soon as it has begun a trial, long before that ends
    jobs = {
        node: nfs_lab[node].peers("work", store[node], "--name", node, "--pace", pace[node], *words) for node in NODES
    }
    for job in jobs.values():
        until(lambda job=job: len(results(job)) > 1, 60, what=lambda job=job: job.output)
    until(lambda: running(jobs["c2"]), 60, what=lambda: jobs["c2"].output)
    killed = time.monotonic()
    nfs_lab["c2"].kill()
    try:
        survivor = jobs["c1"]
        until(lambda: sum(at > killed for at in results(survivor)) > 20, 60, what=lambda: survivor.output)
        moments = [killed, *(at for at in results(survivor) if at > killed)]
        longest = max(after - before for before, after in itertools.pairwise(moments))
        retried = until(lambda: [line for line in survivor.said("ack") if line.text.endswith(" 2")], 2 * ttl + 60)
        tell(f"NFS 4.2: when a node loses its power, the other stands still for {longest:.1f} s at most")
        tell(f"NFS 4.2: its first trial was done again {retried[0].at - killed:.1f} s later, with a ttl of {ttl:.0f} s")
        survivor.signal(10)
        survivor.wait(60)
        outputs = [job.output for job in jobs.values()]
        assert workers.faults(outputs, judged(nfs_lab, store, list(jobs.values()), ("c1",))) == []
        assert longest < 20  # with a lock it was the server's lease, 90 s
    finally:
        nfs_lab["c2"].boot()
