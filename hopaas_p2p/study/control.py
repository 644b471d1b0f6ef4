"""What its people decide about a study: trials queued by hand, pause and stop, budget, drain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from hopaas_p2p.core import records
from hopaas_p2p.core.records import PeerDrain, StudyControl, TrialReclaim, TrialStop
from hopaas_p2p.errors import InvalidInput, NoSuchTrial
from hopaas_p2p.notes import AGAIN
from hopaas_p2p.study.handle import Handle
from hopaas_p2p.translate import to_record


class Control(Handle):
    """The side of a study that steers it, for all peers."""

    def enqueue(self, params: Mapping[str, Any], *, user_attrs: Mapping[str, Any] | None = None) -> int:
        """Queue a trial with these parameters; returns its number.

        Raises:
            InvalidInput: an unknown parameter, or a value outside the space; nothing was queued.
        """
        space = self.space
        for name, value in params.items():
            if space and name not in space:
                raise InvalidInput(f"the study has no parameter {name!r}; it has {', '.join(space)}")
            if name in space and not _contains(space[name], value):
                raise InvalidInput(f"{name} = {value!r} is outside {to_record(space[name])}")
        before = optuna.trial.create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": dict(params)},
            user_attrs=dict(user_attrs or {}),
        )
        trial_id = self.storage.create_new_trial(self.study_id, before)
        return self.storage.get_trial_number_from_id(trial_id)

    def pause(self) -> None:
        """Give out no trials until `resume`; running ones go on."""
        self._control(StudyControl(status="paused"))

    def resume(self) -> None:
        """Give out trials again; also forgets failures in a row."""
        self._control(StudyControl(status="running"))

    def stop(self) -> None:
        """End the campaign: no more trials; running ones are finished by their owners."""
        self._control(StudyControl(status="stopped"))

    def set_budget(self, budget: int | None) -> None:
        """Move the budget; None lifts it."""
        if budget is not None and budget < 1:
            raise InvalidInput(f"budget must be at least 1, got {budget}")
        self._control(StudyControl(budget=-1 if budget is None else budget))

    def _control(self, record: StudyControl | PeerDrain | TrialStop | TrialReclaim) -> None:
        self.storage.say(self.study_id, record)

    def drain(self, *, peer: str | None = None, site: str | None = None, off: bool = False) -> None:
        """Ask a peer (by uuid), or all of a site, to finish what they run and take no more; `off` takes it back."""
        if (peer is None) == (site is None):
            raise InvalidInput("drain either a peer or a site")
        self._control(PeerDrain(peer=peer, site=site, off=off))

    def stop_trial(self, number: int, *, reason: str | None = None, epoch: int | None = None) -> None:
        """Ask the present owner of a running trial to end it: its next `should_prune()` is True.

        With `epoch`, only the owner of that lease, the one that somebody saw: InvalidInput if it is another's by now.
        """
        trial = self._running(number)
        self._control(TrialStop(number, trial.epoch if epoch is None else epoch, reason))

    def requeue(self, number: int, *, epoch: int | None = None) -> int | None:
        """Run a trial's parameters again: takes a running one away from its owner; returns the retry's number.

        None when the policy's attempts are used up. With `epoch`, a running trial is taken away only if that is still
        its lease, else InvalidInput says that it is not, and nothing is queued.
        """
        state = self.state
        if not 0 <= number < len(state.trials):
            raise NoSuchTrial(f"the study {self.name!r} has no trial {number}")
        trial = state.trials[number]
        if epoch is not None:
            self._running(number)
        if trial.state is not records.TrialState.RUNNING:
            frozen = self.storage.get_trial((self.study_id << 32) + number)
            attrs = {
                **frozen.system_attrs,
                "fixed_params": frozen.params or frozen.system_attrs.get("fixed_params", {}),
                AGAIN: number,
            }
            again = optuna.trial.create_trial(
                state=TrialState.WAITING, system_attrs=attrs, user_attrs=frozen.user_attrs
            )
            return self.storage.get_trial_number_from_id(self.storage.create_new_trial(self.study_id, again))
        self._control(TrialReclaim(number, trial.epoch if epoch is None else epoch, "requeued by hand"))
        return self.state.trials[number].retried_by

    def _running(self, number: int) -> Any:
        state = self.state
        if not 0 <= number < len(state.trials):
            raise NoSuchTrial(f"the study {self.name!r} has no trial {number}")
        trial = state.trials[number]
        if trial.state is not records.TrialState.RUNNING:
            raise InvalidInput(f"trial {number} is {trial.state.name}, not RUNNING")
        return trial


def _contains(distribution: BaseDistribution, value: object) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False
