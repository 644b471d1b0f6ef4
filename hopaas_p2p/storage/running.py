"""Running trials: started, and told what their owner learns; it leaves with the next exchange."""

from __future__ import annotations

import copy
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial

from hopaas_p2p.core import records
from hopaas_p2p.core.leases import Lease
from hopaas_p2p.core.records import TrialClaim, TrialCreate, TrialSet
from hopaas_p2p.core.state import Verdict
from hopaas_p2p.errors import ConfigurationError, InvalidInput, NotYourTrial, NoWork
from hopaas_p2p.frozen import Live
from hopaas_p2p.peer.outbox import Draft
from hopaas_p2p.storage.part import NO_WORK, NUMBER_BITS, Part, Parts, internal
from hopaas_p2p.translate import checked_parameter, checked_step, external, to_json, to_microseconds, to_record


class Running(Parts):
    """The side of the storage that starts trials and writes to running ones."""

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is None:
            return self.take(study_id, prefer_waiting=False)
        part = self.part(study_id)
        self._bring_up_to_date(part)
        record = self._import_record(part, template_trial)
        if record.state is not records.TrialState.RUNNING:
            (verdict,) = self.courier.commit(part.membership, record)
            if not verdict.accepted:
                refusal = verdict.refusal or "refused"
                if refusal in NO_WORK:
                    raise NoWork(NO_WORK[refusal], refusal=refusal)
                raise InvalidInput(
                    f"a {template_trial.state.name} trial with values {template_trial.values}: {refusal}"
                )
            return self._trial_id(study_id, verdict)
        return self._start(part, record)

    def take(self, study_id: int, *, prefer_waiting: bool = True) -> int:
        """Start the next trial, a WAITING one before a new one: one exchange, without a race. Returns its id.

        Raises:
            NoWork: the study gives out no trial: budget, paused, stopped, failing.
        """
        part = self.part(study_id)
        self._look_again_if_closed(part)
        skip = self.courier.resting(part.membership) if prefer_waiting else ()
        return self._start(part, TrialCreate(prefer_waiting=prefer_waiting, skip=skip))

    def _look_again_if_closed(self, part: Part) -> None:
        """See what has become of a study that gave out no trial, without an ask that is refused and stays in the log.

        While others run trials, one of them may die: who asks for work looks after them.
        """
        if part.replica.state.closed_to(self.courier.uuid) is None:
            return
        if part.replica.state.running:
            self.courier.introduce(part.membership)
        self.courier.catch_up(part.membership)
        with part.lock:
            closed = part.replica.state.closed_to(self.courier.uuid)
        if closed is not None:
            raise NoWork(NO_WORK[closed], refusal=closed)

    def _start(self, part: Part, record: TrialCreate | TrialClaim) -> int:
        with self.courier.start(part.membership, record) as verdict:
            if not verdict.accepted:
                refusal = verdict.refusal or "refused"
                raise NoWork(NO_WORK.get(refusal, refusal), refusal=refusal)
            assert verdict.number is not None
            self._make_live(part, verdict.number)
            return self._trial_id(part.view.study_id, verdict)

    def _make_live(self, part: Part, number: int) -> Live:
        """Take this process's own running trial into the view, to be written to."""
        with part.lock:
            state = part.replica.state
            trial = state.trials[number]
            assert trial.owner is not None
            live = Live(part.view.build(trial, state), Lease(trial.owner, trial.epoch), self.courier.uuid)
            if trial.end is None:
                part.view.live[number] = live
            part.view.catch_up(state)
            if trial.owner != self.courier.uuid:
                self.courier.adopted.add(trial.owner)
            return live

    @staticmethod
    def _trial_id(study_id: int, verdict: Verdict) -> int:
        assert verdict.number is not None
        return (study_id << NUMBER_BITS) + verdict.number

    def _bring_up_to_date(self, part: Part) -> None:
        if part.replica.state.define is None:
            self.courier.catch_up(part.membership)

    def _import_record(self, part: Part, template: FrozenTrial) -> TrialCreate:
        known = part.replica.state.dists
        dists = {name: to_record(distribution) for name, distribution in template.distributions.items()}
        values = template.values
        return TrialCreate(
            state=records.TrialState(template.state.value),
            params={checked_parameter(name): internal(template, name) for name in template.params},
            dists={name: one for name, one in dists.items() if known.get(name) != one},
            reports={checked_step(step): float(value) for step, value in template.intermediate_values.items()},
            user={key: to_json(key, value) for key, value in template.user_attrs.items()},
            system={key: self._system_json(key, value) for key, value in template.system_attrs.items()},
            values=None if values is None else tuple([float(value) for value in values]),
            start=to_microseconds(template.datetime_start),
            end=to_microseconds(template.datetime_complete),
        )

    def _writable(self, part: Part, number: int) -> Live | None:
        """The live trial, ready to be changed; None for a WAITING one, which changes by commits. Under the lock.

        Raises:
            UpdateFinishedTrialError: it is finished.
            NotYourTrial: another peer runs it.
        """
        live = part.view.live.get(number)
        if live is None:
            trial = part.replica.state.trials[number]
            if trial.end is not None:
                raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
            if trial.state is records.TrialState.WAITING:
                return None
            if not self.courier.is_mine(trial.owner):
                raise NotYourTrial(f"trial {number} is run by another peer, and only that one may change it")
            live = self._make_live(part, number)
        if live.frozen.state.is_finished():
            raise UpdateFinishedTrialError(f"Trial#{number} has already finished and can not be updated.")
        if live.writer != self.courier.uuid:
            self._retell(part, number, live)
        live.shown = None
        return live

    def _retell(self, part: Part, number: int, live: Live) -> None:
        """Queue all that this trial was ever told: what of it has left is not known here, and twice does no harm."""
        live.writer = self.courier.uuid
        if live.lease.owner != self.courier.uuid:
            self.courier.adopted.add(live.lease.owner)
        frozen = live.frozen
        draft = part.replica.draft(number, live.lease.epoch, live.lease.owner)
        for name, distribution in frozen.distributions.items():
            draft.params[name] = internal(frozen, name)
            self._draft_distribution(part, draft, name, to_record(distribution))
        draft.reports.update(frozen.intermediate_values)
        draft.user.update({key: to_json(key, value) for key, value in frozen.user_attrs.items()})
        draft.system.update({key: to_json(key, value) for key, value in frozen.system_attrs.items()})

    @staticmethod
    def _draft_distribution(part: Part, draft: Draft, name: str, record: records.Distribution) -> None:
        if part.replica.state.dists.get(name) != record:
            draft.dists[name] = record

    def _draft(self, part: Part, number: int, live: Live) -> Draft:
        if part.membership.drafted_at is None:
            self.courier.note_draft(part.membership)
        return part.replica.draft(number, live.lease.epoch, live.lease.owner)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        part, number = self._locate(trial_id)
        record, param_name = to_record(distribution), checked_parameter(param_name)
        value = float(param_value_internal)
        with part.lock:
            live = self._writable(part, number)
            known = part.replica.state.dists.get(param_name)
            if known != record:
                self._check_compatible(part, param_name, distribution)
            if live is not None:
                live.frozen._params[param_name] = external(distribution, value)
                live.frozen._distributions[param_name] = distribution
                draft = self._draft(part, number, live)
                draft.params[param_name] = value
                if known != record:
                    draft.dists[param_name] = record
                return
        self._set_waiting(
            part, number, params={param_name: value}, dists={} if known == record else {param_name: record}
        )

    @staticmethod
    def _check_compatible(part: Part, name: str, distribution: BaseDistribution) -> None:
        part.view.catch_up(part.replica.state)
        first = part.view.dists.setdefault(name, distribution)
        if first is not distribution:
            check_distribution_compatibility(first, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        part, number = self._locate(trial_id)
        value, step = float(intermediate_value), checked_step(step)
        with part.lock:
            live = self._writable(part, number)
            if live is not None:
                live.frozen.intermediate_values[step] = value
                self._draft(part, number, live).reports[step] = value
                return
        self._set_waiting(part, number, reports={step: value})

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        part, number = self._locate(trial_id)
        text = to_json(key, value)
        with part.lock:
            live = self._writable(part, number)
            if live is not None:
                live.frozen._user_attrs[key] = copy.deepcopy(value)
                self._draft(part, number, live).user[str(key)] = text
                return
        self._set_waiting(part, number, user={str(key): text})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        part, number = self._locate(trial_id)
        text = self._system_json(key, value)
        with part.lock:
            live = self._writable(part, number)
            if live is not None:
                live.frozen._system_attrs[key] = copy.deepcopy(value)
                self._draft(part, number, live).system[str(key)] = text
                return
        self._set_waiting(part, number, system={str(key): text})

    def _system_json(self, key: str, value: object) -> str:
        if key.startswith("cma:") and not self._options.allow_pickles:
            raise ConfigurationError(
                "Optuna's CMA-ES sampler passes pickles between peers, which can run code. Among people you trust, "
                "allow it with open_storage(…, allow_pickles=True); else use TPESampler or GPSampler."
            )
        return to_json(key, value)

    def _set_waiting(self, part: Part, number: int, **content: Any) -> None:
        epoch = part.replica.state.trials[number].epoch
        (verdict,) = self.courier.commit(part.membership, TrialSet(number, epoch, **content))
        if not verdict.accepted:
            self._refused(number, verdict)
