"""Extreme numbers that somebody hostile writes into studies with pauses and limits: no peer stops, and all agree."""

from __future__ import annotations

import math
import random
from typing import Any, Final

import pytest

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.admission import next_start
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.attributes import FIDELITY
from hopaas_p2p.core.fidelity import Population, Rungs, encode_fidelity
from hopaas_p2p.core.records import (
    Budget,
    Categorical,
    Checkpoint,
    Commit,
    Distribution,
    Float,
    Int,
    PeerJoin,
    Policy,
    Price,
    Record,
    StudyControl,
    StudyDefine,
    StudySet,
    TrialCheckpoint,
    TrialCreate,
    TrialFinish,
    TrialReclaim,
    TrialRelease,
    TrialSet,
    Until,
    Used,
)
from hopaas_p2p.core.state import State
from tests.support.invariants import Witness
from tests.support.scribe import COMPLETE, FAIL, PRUNED, RUNNING, WAITING

WHOLE: Final = (-(1 << 63), -(1 << 53), -1, 0, 0, 1, 1, 2, 3, 5, (1 << 53) - 1, (1 << 63) - 1)
REAL: Final = (
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.0,
    16.5,
    2.0**62,
    5e-324,
    1e300,
    1.7e308,
    -1.7e308,
    math.nan,
    math.inf,
    -math.inf,
)
SPACE: Final[dict[str, Distribution]] = {"x": Float(0.0, 1.0), "n": Int(0, 9), "c": Categorical(("a", None))}
TIMES: Final = (1 - (1 << 53), 0, 1, 10**15, (1 << 53) - 1)
SYSTEM: Final = (
    *({} for _ in range(4)),
    {"constraints": "[1e999]"},
    {"constraints": "[" + "9" * 400 + "]"},
    {"hopaas:copies": "9", "hopaas:resumed": "-9223372036854775808"},
)


class Hostile:
    """Writes whatever fits the types of records."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def some(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def distribution(self) -> Distribution:
        real, whole, log = self.rng.choices(REAL, k=3), self.rng.choices(WHOLE, k=3), self.rng.random() < 0.3
        return self.some(
            Float(real[0], real[1], log, self.some(None, real[2])),
            Float(real[0], real[0], log, self.some(None, 1.0)),
            Int(whole[0], whole[1], log, self.some(1, whole[2])),
            Categorical(tuple(self.rng.choices([None, True, 1, math.nan, "a"], k=2))),
        )

    def by_step(self) -> dict[int, float]:
        return {self.some(*WHOLE): self.some(*REAL) for _ in range(self.rng.randint(0, 4))}

    def content(self) -> dict[str, Any]:
        names = self.rng.sample(["x", "n", "c", "new", "other"], self.rng.randint(0, 3))
        return {
            "params": {name: self.some(*REAL, self.rng.random()) for name in names},
            "dists": {name: self.distribution() for name in names if self.rng.random() < 0.7},
            "reports": self.by_step(),
            "metrics": self.some({}, {"m": self.by_step()}, {"": {0: 1.0}}),
            "system": self.some(*SYSTEM),
        }

    def used(self) -> Used | None:
        return self.some(None, Used(self.some(*WHOLE), self.some(None, *WHOLE)))

    def record(self, state: State, peer: str) -> Record:
        """A record, mostly about a trial that this peer runs."""
        count = len(state.trials)
        mine = [number for number in state.running if state.trials[number].owner == peer]
        number = self.some(*(mine or [self.rng.randrange(count + 1)]))
        epoch = state.trials[number].epoch if number < count else 1
        values = self.some(None, (self.some(*REAL),))
        step = self.some(*WHOLE)
        return self.some(
            TrialCreate(prefer_waiting=True, **self.content()),
            TrialCreate(prefer_waiting=True, params={"x": 0.5, "n": 3.0, "c": 0.0}),
            TrialCreate(self.some(COMPLETE, PRUNED, WAITING, RUNNING), values=values, **self.content()),
            TrialSet(number, epoch, used=self.used(), resumed_from=self.some(None, step), **self.content()),
            TrialSet(number, epoch, reports={one: self.some(*REAL) for one in range(self.rng.randint(1, 6))}),
            TrialCheckpoint(number, epoch, Checkpoint(step, "k", 1, "")),
            TrialFinish(number, epoch, PRUNED, paused=True, used=self.used()),
            TrialFinish(number, epoch, PRUNED, paused=True),
            TrialFinish(number, epoch, self.some(COMPLETE, PRUNED, FAIL), values),
            TrialRelease(number, epoch, used=self.used()),
            TrialReclaim(number, epoch, lived=self.some(None, step)),
            StudyControl("running", -1, self.some(Budget(), Budget(), self.limits())),
            PeerJoin(
                {
                    "gpus": self.some("nan", "1e9", "3"),
                    "cores": "inf",
                    "watts": "99999",
                    "site": self.some("a", "others"),
                }
            ),
        )

    def limits(self) -> Budget:
        until = Until(target=self.some(None, *REAL), hours_without_gain=self.some(None, *REAL))
        prices = {"*": Price(self.some(*REAL), 1.0, 0.0)}
        return self.some(
            Budget(epochs=self.some(*WHOLE)), Budget(euro=self.some(*REAL), prices=prices), Budget(until=until)
        )


FIDELITIES: Final = (
    Rungs(min=1, max=6, eta=2, brackets=3, whole=1),
    Population(size=8, every=1, max=6, quantile=0.5, resample=0.5),
)


@pytest.mark.parametrize("seed", range(12))
def test_no_number_stops_a_peer_and_a_snapshot_decides_as_the_log(seed: int) -> None:
    hostile, state, witness = Hostile(seed), State(), Witness()
    fidelity, limits = FIDELITIES[seed % 2], Budget() if seed % 3 else Budget(epochs=1 << 50)
    define = StudyDefine("s", ("minimize",), Policy(limits=limits), SPACE)
    apply(state, 1, Commit("f", 1, "f", 0, (define, StudySet(system={FIDELITY: encode_fidelity(fidelity)}))))
    joined = snapshot.load(snapshot.dump(state))

    accepted = 0
    for written in range(1, 121):
        peer = hostile.some("ann", "bob", "eve")
        record = hostile.record(state, peer)
        sent = Commit(peer, state.lsn + 1, peer, hostile.some(*TIMES), (record,))
        commit = codec.decode(codec.encode(sent))
        verdicts = apply(state, state.lsn + 1, commit)
        assert apply(joined, joined.lsn + 1, commit) == verdicts
        witness.look(state)
        accepted += verdicts[-1].accepted
        if written % 20 == 0:
            assert snapshot.digest(joined) == snapshot.digest(state)
            assert _standings(joined) == _standings(state)
            joined = snapshot.load(snapshot.dump(state))
    assert accepted > 20
    assert state.refusals["malformed"] > 3


def _standings(state: State) -> str:
    configurations = state.configurations
    configurations.refresh(state.trials, set())
    roots = sorted({configurations.root(trial.number) for trial in state.trials})
    pauses = [(root, configurations.pauses_at(root), configurations.standing(root)) for root in roots]
    return repr((pauses, configurations.places(), next_start(state), state.used()))
