"""Writes a study's log by hand: each line of a test is one commit, and every commit is held against the invariants."""

from __future__ import annotations

from hopaas_p2p.core import codec
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import (
    Commit,
    Float,
    Opaque,
    Policy,
    Record,
    Stamp,
    StudyDefine,
    TrialClaim,
    TrialCreate,
    TrialFinish,
    TrialState,
)
from hopaas_p2p.core.state import State, Trial, Verdict
from tests.support.invariants import Witness

COMPLETE, FAIL, PRUNED, RUNNING, WAITING = (
    TrialState.COMPLETE,
    TrialState.FAIL,
    TrialState.PRUNED,
    TrialState.RUNNING,
    TrialState.WAITING,
)
X = Float(0.0, 1.0)


def defined(directions: tuple[str, ...] = ("minimize",), **policy: object) -> StudyDefine:
    return StudyDefine("study", directions, Policy(**policy))  # type: ignore[arg-type]


class Scribe:
    """A log, and the State after it."""

    def __init__(self, define: StudyDefine | None = None) -> None:
        self.state = State()
        self.log: list[tuple[Commit, Stamp]] = []
        self.witness = Witness()
        self._seqs: dict[str, int] = {}
        self.say("founder", define or defined())

    def say(
        self,
        writer: str,
        *records: Record | Opaque,
        owner: str | None = None,
        role: str = "owner",
        author: str = "",
        seq: int | None = None,
        at: int | None = None,
    ) -> Verdict:
        """Append a commit, and return the verdict on its last record."""
        if seq is None:
            seq = self._seqs.get(writer, 0) + 1
        self._seqs[writer] = max(seq, self._seqs.get(writer, 0))
        at = 1_000_000 * (self.state.lsn + 1) if at is None else at
        verdicts = self.append(Commit(writer, seq, owner or writer, at, tuple(records)), Stamp(author, role))
        return verdicts[-1] if verdicts else Verdict(False, None, "nothing")

    def append(self, commit: Commit, stamp: Stamp = Stamp()) -> tuple[Verdict, ...]:  # noqa: B008
        self.log.append((commit, stamp))
        verdicts = apply(self.state, self.state.lsn + 1, commit, stamp)
        self.witness.look(self.state)
        return verdicts

    def read(self, payload: bytes) -> tuple[Verdict, ...]:
        """Append whatever these bytes are."""
        verdicts = apply(self.state, self.state.lsn + 1, codec.decode(payload))
        self.witness.look(self.state)
        return verdicts

    def start(self, owner: str, **content: object) -> Trial:
        verdict = self.say(owner, TrialCreate(**content))  # type: ignore[arg-type]
        assert verdict.accepted, verdict
        assert verdict.number is not None
        return self.state.trials[verdict.number]

    def claim(self, owner: str, number: int) -> Trial:
        assert self.say(owner, TrialClaim(number)).accepted
        return self.state.trials[number]

    def enqueue_trial(self, **content: object) -> Trial:
        return self.start("founder", state=WAITING, **content)

    def finish(self, writer: str, trial: Trial, value: float = 1.0, *, epoch: int | None = None) -> Verdict:
        record = TrialFinish(trial.number, trial.epoch if epoch is None else epoch, COMPLETE, (value,))
        return self.say(writer, record)
