"""A study whose trials pause, written by hand: a commit per line."""

from __future__ import annotations

from hopaas_p2p.core.attributes import FIDELITY
from hopaas_p2p.core.fidelity import Fidelity, Rungs, encode_fidelity
from hopaas_p2p.core.records import Checkpoint, Record, StudySet, TrialCheckpoint, TrialCreate, TrialFinish, TrialSet
from hopaas_p2p.core.state import Trial, Verdict
from tests.support.scribe import PRUNED, Scribe, X, defined

NINE = Rungs(min=1, max=9, eta=3)


class Campaign(Scribe):
    """A study with rungs or a population, written by hand."""

    def __init__(self, fidelity: Fidelity = NINE, **policy: object) -> None:
        super().__init__(defined(**policy))
        self.say("founder", StudySet(system={FIDELITY: encode_fidelity(fidelity)}))

    def ask(self, peer: str, *before: Record, x: float = 0.5) -> Verdict:
        return self.say(peer, *before, TrialCreate(prefer_waiting=True, params={"x": x}, dists={"x": X}))

    def start(self, peer: str, *, x: float = 0.5) -> Trial:
        number = self.ask(peer, x=x).number
        assert number is not None
        return self.trial(number)

    def train(
        self, trial: Trial, to: int, value: float, *, checkpoint: bool = True, constraint: float | None = None
    ) -> None:
        """Report up to this many epochs, keep a checkpoint, and set a constraint, which a number above 0 violates."""
        peer, epoch = trial.owner or "", trial.epoch
        begun = max(trial.reports, default=-1) + 1
        system = {} if constraint is None else {"constraints": f"[{constraint}]"}
        reports = dict.fromkeys(range(begun, to), value)
        records: list[Record] = [TrialSet(trial.number, epoch, reports=reports, system=system)]
        if checkpoint:
            records.append(TrialCheckpoint(trial.number, epoch, Checkpoint(to - 1, f"k{trial.number}-{to}", 1, "")))
        self.say(peer, *records)

    def pause(self, trial: Trial) -> Verdict:
        return self.say(trial.owner or "", TrialFinish(trial.number, trial.epoch, PRUNED, None, None, True))

    def first_rung(self, *values: float) -> list[Trial]:
        """Configurations that wait at the first rung."""
        started = [self.start(f"p{index}") for index in range(len(values))]
        for trial, value in zip(started, values, strict=True):
            self.train(trial, 1, value)
            self.pause(trial)
        return started

    def trial(self, number: int) -> Trial:
        return self.state.trials[number]
