"""Many peers on one log in a bucket: at leisure, and at full speed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from optuna.storages.journal import JournalStorage
from optuna.study import StudyDirection

from hopaas_p2p.core import codec
from hopaas_p2p.core.records import Commit, StudyDefine
from hopaas_p2p.stores.base import Outgoing
from hopaas_p2p.stores.s3.store import S3Store
from tests.benchmarks import s3_peers
from tests.benchmarks.s3_link import Link, Row, link
from tests.benchmarks.s3_peers import STUDY, Journal, Report
from tests.support.seaweed import Seaweed

_PEERS, _RATE, _SECONDS = 16, 0.25, 120.0  # some 480 commits: the figure is good to 0.02


def _together(count: int, far: Link, work: Callable[..., None], *arguments: Any) -> list[Report]:
    """What so many processes report; the requests of their work are counted, those of joining and leaving are not."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count + 1), context.Queue()
    everyone = [context.Process(target=work, args=(n, barrier, results, *arguments)) for n in range(count)]
    for one in everyone:
        one.start()
    barrier.wait(120)
    far.clear()
    found = [results.get(timeout=180) for _ in everyone]
    far.seen = far.asked.copy()
    barrier.wait(120)
    for one in everyone:
        one.join()
    return found


def _found_study(kind: str, far: Link) -> None:
    if kind == "ours":
        define = Commit("opener", 1, "opener", 0, (StudyDefine(STUDY, ("minimize",)),))
        S3Store(far.direct).log(STUDY).exchange(Outgoing("opener", codec.encode(define)), 0)
    else:
        JournalStorage(Journal(far.direct)).create_new_study([StudyDirection.MINIMIZE], STUDY)


def at_leisure(server: Seaweed) -> list[Row]:
    found: dict[str, tuple[str, str, str]] = {}
    for kind in ("ours", "theirs"):
        with link(server) as far:
            _found_study(kind, far)
            reports = _together(_PEERS, far, s3_peers.at_leisure, kind, far.url, _RATE, _SECONDS)
            waits = sorted(wait for one in reports for wait in one.waits)
            puts = far.seen["PUT"] / len(waits)
            beats = far.seen["PUT beat"] / len(waits)
            found[kind] = (
                f"{puts:.2f}, {beats:.2f} of it beats",
                f"{1000 * waits[len(waits) // 2]:.0f}, {1000 * waits[int(0.99 * len(waits))]:.0f}",
                f"{far.seen['GET'] / len(waits):.1f}, {far.seen['LIST'] - far.seen['LIST snapshot']}",
            )
    both = list(zip(found["ours"], found["theirs"], strict=True))
    return [
        Row("16 peers at 0.25 commits/s each: PUTs per commit", *both[0], "1.25"),
        Row("… p50 and p99 of a commit, ms", *both[1], "250, 1000"),
        Row("… GETs per commit; LISTs, but for one each 256 commits", *both[2], "no LIST"),
    ]


def at_full_speed(server: Seaweed) -> list[Row]:
    found: dict[str, tuple[str, str, str]] = {}
    seconds = 20.0
    for kind in ("ours", "theirs"):
        with link(server) as far:
            _found_study(kind, far)
            reports = _together(8, far, s3_peers.at_full_speed, kind, far.url, seconds)
            served = sorted(one.records for one in reports)
            waits = sorted(wait for one in reports for wait in one.waits)
            found[kind] = (
                f"{sum(served) / seconds:.0f}",
                f"{served[0] / served[-1]:.2f}",
                f"{1000 * waits[len(waits) // 2]:.0f}, {1000 * waits[int(0.99 * len(waits))]:.0f}",
            )
    both = list(zip(found["ours"], found["theirs"], strict=True))
    return [
        Row("8 peers of 8 threads at full speed, records/s", *both[0], "100"),
        Row("… slowest peer, as a fraction of the fastest", *both[1], "0.5"),
        Row("… p50 and p99 of a call, ms", *both[2]),
    ]
