"""Studies made by hand, record by record, whose answers are known; in memory, or in a store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from hopaas_p2p.core import codec
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.attributes import FIDELITY
from hopaas_p2p.core.fidelity import Population, Rungs, encode_fidelity
from hopaas_p2p.core.records import (
    Categorical,
    Checkpoint,
    Commit,
    Distribution,
    Float,
    Int,
    PeerJoin,
    Policy,
    StudyDefine,
    StudyRegistered,
    StudySet,
    TrialCheckpoint,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialSet,
    TrialState,
)
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.open import open_store
from hopaas_p2p.stores.base import Outgoing

SPACE: dict[str, Distribution] = {
    "lr": Float(1e-5, 1e-1, log=True),
    "units": Int(8, 256),
    "opt": Categorical(("adam", "sgd", "lion")),
}
COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING


class Scribe:
    """Writes a study's records at the times it is told; keeps the commits, to be put into a store."""

    def __init__(
        self,
        *directions: str,
        name: str = "study",
        space: dict[str, Distribution] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.state = State()
        self.name = name
        self.commits: list[Commit] = []
        self._seq: dict[str, int] = {}
        self.clock = 1_700_000_000.0
        """Seconds since 1970 that the next record is written at; move it as you like."""
        define = StudyDefine(
            name, directions or ("minimize",), space=SPACE if space is None else space, policy=policy or Policy()
        )
        self.say("definer", define)

    def say(self, peer: str, *records: object) -> tuple[Verdict, ...]:
        """One commit of this peer."""
        self._seq[peer] = self._seq.get(peer, 0) + 1
        commit = Commit(peer, self._seq[peer], peer, int(self.clock * 1e6), records)  # type: ignore[arg-type]
        self.commits.append(commit)
        return apply(self.state, self.state.lsn + 1, commit)

    def join(self, peer: str, site: str, host: str = "") -> None:
        """A peer introduces itself."""
        self.say(peer, PeerJoin({"site": site, "host": host or f"{site}-1", "pid": "17", "user": "ann"}))

    def start(self, peer: str, **params: float) -> int:
        """A trial of this peer begins; returns its number."""
        number = self.say(peer, TrialCreate(params=params))[0].number
        assert number is not None
        return number

    def report(self, peer: str, number: int, *values: float, first: int = 1) -> None:
        """Reports for steps 1, 2, …"""
        trial = self.state.trials[number]
        self.say(peer, TrialSet(number, trial.epoch, reports=dict(enumerate(values, first))))

    def finish(
        self, peer: str, number: int, *values: float, state: TrialState = COMPLETE, reason: str | None = None
    ) -> None:
        """The trial ends."""
        epoch = self.state.trials[number].epoch
        self.say(peer, TrialFinish(number, epoch, state, values or None, reason))

    def trial(
        self,
        peer: str,
        *values: float,
        seconds: float = 10.0,
        state: TrialState = COMPLETE,
        reports: tuple[float, ...] = (),
        reason: str | None = None,
        **params: float,
    ) -> int:
        """A whole trial that takes so long; the next begins when it ends."""
        number = self.start(peer, **params)
        if reports:
            self.report(peer, number, *reports)
        self.clock += seconds
        self.finish(peer, number, *values, state=state, reason=reason)
        return number

    def pause(self, peer: str, number: int) -> None:
        """The trial stops at its rung, with a checkpoint."""
        self.clock += 10.0
        trial = self.state.trials[number]
        at = Checkpoint(max(trial.reports), f"checkpoint-{number}", 1000, "0" * 64)
        self.say(peer, TrialCheckpoint(number, trial.epoch, at))
        self.say(peer, TrialFinish(number, self.state.trials[number].epoch, PRUNED, None, "at a rung", paused=True))

    def go_on(self, peer: str) -> int:
        """This peer takes what a rung promotes; returns the number of the trial that goes on."""
        number = self.say(peer, TrialCreate(prefer_waiting=True))[0].number
        assert number is not None
        assert self.state.trials[number].continues is not None
        return number

    def reclaim(self, observer: str, number: int) -> None:
        """The owner fell silent; the observer has seen it alive since the trial began."""
        trial = self.state.trials[number]
        lived = round(self.clock * 1e6) - (trial.start or 0)
        self.say(observer, TrialReclaim(number, trial.epoch, lived=lived))

    def put_into(self, url: str, *, uuid: str = "0123456789abcdef") -> None:
        """Write all of it to a store, as a study of its own."""
        store = open_store(url, create=True)
        try:
            opening = Commit(
                f"opener-{uuid}", 1, f"opener-{uuid}", int(self.clock * 1e6), (StudyRegistered(uuid, self.name),)
            )
            store.catalog().exchange(Outgoing(f"opener-{uuid}:1", codec.encode(opening)), 0)
            log = store.log(uuid)
            for since, commit in enumerate(self.commits):
                outgoing = Outgoing(f"{commit.writer}:{commit.seq}", codec.encode(commit))
                log.exchange(outgoing, since)
        finally:
            store.close()


_BATCH: Final = 5  # trials that end in one commit


def large(count: int, *, reports: int = 10, name: str = "large", params: int = 5) -> Scribe:
    """A study of so many ended trials from four sites: every fourth pruned, every fiftieth failed. Quick to make."""
    space: dict[str, Distribution] = {f"p{at}": Float(0.0, 1.0) for at in range(params - 1)}
    space["opt"] = Categorical(("adam", "sgd", "lion"))
    scribe = Scribe(name=name, space=space)
    for at in range(4):
        scribe.join(f"peer-{at}", f"site-{at}")
    for first in range(0, count, _BATCH):
        numbers = range(first, min(first + _BATCH, count))
        began = int(scribe.clock * 1e6)
        records: list[object] = []
        for number in numbers:
            records += _one_of_many(number, reports, params, began)
        scribe.clock += 30.0
        scribe.say(f"peer-{first // _BATCH % 4}", *records)
        scribe.clock -= 29.0  # the four work beside each other
    scribe.clock += 60.0
    return scribe


def _one_of_many(at: int, reports: int, params: int, began: int) -> Iterator[object]:
    spots = [(at * (0.6180339887 + 0.1 * k)) % 1 for k in range(params - 1)]
    value = sum((spot - 0.3) ** 2 for spot in spots) + 1 / (1 + at)
    state = FAIL if at % 50 == 49 else PRUNED if at % 4 == 3 else COMPLETE
    made = reports if state is not PRUNED else 1 + at % max(1, reports - 1)
    curve = {step: value + math.exp(-step / 3) for step in range(1, made + 1)} if state is not FAIL else {}
    given = {**{f"p{k}": spot for k, spot in enumerate(spots)}, "opt": float(at % 3)}
    start = began + 30_000_000 - 30_000_000 * made // max(1, reports)
    yield TrialCreate(params=given, reports=curve, start=start)
    reason = f"ValueError: step {at} diverged" if state is FAIL else None
    yield TrialFinish(at, 1, state, (value,) if state is COMPLETE else None, reason)


def with_rungs() -> Scribe:
    """Nine configurations at two sites under Rungs(min=1, max=9): three go on from the first rung, one to its end."""
    scribe = Scribe(space={"lr": Float(0.0, 1.0)})
    scribe.join("a", "north")
    scribe.join("b", "south")
    scribe.say("definer", StudySet(system={FIDELITY: encode_fidelity(Rungs(min=1, max=9, first_step=1))}))
    for at in range(9):
        first = scribe.start("ab"[at % 2], lr=at / 10)
        scribe.report("ab"[at % 2], first, 1.0 + at / 10)
        scribe.pause("ab"[at % 2], first)
    for _ in range(3):
        more = scribe.go_on("b")
        best = scribe.state.trials[more].reports[1]
        scribe.report("b", more, best - 0.2, best - 0.3, first=2)
        scribe.pause("b", more)
    last = scribe.go_on("a")
    scribe.report("a", last, *(0.6 - step / 100 for step in range(4, 10)), first=4)
    scribe.finish("a", last, 0.51)
    return scribe


def with_population() -> Scribe:
    """Five members at two sites under Population(size=5, every=2, max=4): the worst copies the best, and wins."""
    scribe = Scribe(space={"lr": Float(0.0, 1.0)})
    scribe.join("a", "north")
    scribe.join("b", "south")
    policy = Population(size=5, every=2, max=4, first_step=1)
    scribe.say("definer", StudySet(system={FIDELITY: encode_fidelity(policy)}))
    for at in range(5):
        first = scribe.start("ab"[at % 2], lr=(at + 1) / 10)
        scribe.report("ab"[at % 2], first, 1.0, 0.5 + at / 10)
        scribe.pause("ab"[at % 2], first)
    for at in range(5):
        more = scribe.go_on("b")
        epoch = scribe.state.trials[more].epoch
        scribe.say("b", TrialSet(more, epoch, resumed_from=2))
        value = 0.4 + at / 10 if at < 4 else 0.1
        scribe.report("b", more, value + 0.01, value, first=3)
        scribe.finish("b", more, value)
    return scribe
