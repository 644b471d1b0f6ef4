"""Configurations that a sampler draws before there is a trial for them.

To a sampler a suggestion is a trial that runs. Its id is negative, so no trial of the log has it; its number is the one
that the trial would get if nobody else asked meanwhile. What is set on it is kept here, and travels in the record that
starts the trial.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from hopaas_p2p.core.attributes import REPLICATE
from hopaas_p2p.core.records import Distribution, TrialCreate
from hopaas_p2p.core.state import Trial
from hopaas_p2p.storage.optuna_internals import announces_parameters, new_frozen
from hopaas_p2p.translate import to_record

_ids: Final = itertools.count(-1, -1)


class TrialSuggestion(msgspec.Struct, eq=False, gc=False):
    """One of them, in the form of the log."""

    trial_id: int
    number: int
    params: dict[str, float]
    user: dict[str, str]
    system: dict[str, str]
    frozen: FrozenTrial
    distributions: dict[str, BaseDistribution] = {}
    replicates: int = 1
    """How many trials it gets."""
    trial: Any = None
    """The Trial that the sampler drew it for; it becomes that of the trial that starts with it."""

    @classmethod
    def begin(cls, number: int) -> TrialSuggestion:
        """One without parameters; `number` is a guess."""
        trial_id = next(_ids)
        now = datetime.datetime.now()  # noqa: DTZ005  # as Optuna has it
        frozen = new_frozen(trial_id, number, TrialState.RUNNING, None, now, None, {}, {}, {}, {}, {})
        return cls(trial_id, number, {}, {}, {}, frozen, {})

    def set_param(self, name: str, value: float, distribution: BaseDistribution) -> None:
        """As `Storage.set_trial_param`; the distribution is the one of the study's search space."""
        self.params[name] = value
        self.distributions[name] = distribution

    def set_attribute(self, kind: str, key: str, value: Any, text: str) -> None:
        """As `Storage.set_trial_system_attr`; `text` is the value as JSON."""
        if kind == "user":
            self.frozen.user_attrs[key] = value
            self.user[key] = text
        else:
            self.frozen.system_attrs[key] = value
            if not announces_parameters(key):  # they travel with it
                self.system[key] = text

    def record(self, skip: tuple[int, ...], known: Mapping[str, Distribution] | None) -> TrialCreate:
        """What starts the oldest trial that waits, or else a new one that has these parameters.

        `known` are the distributions that the log knows; None: the study's definition names all of them.
        """
        dists = {} if known is None else {name: to_record(one) for name, one in self.distributions.items()}
        return TrialCreate(
            prefer_waiting=True,
            params=self.params,
            dists={name: one for name, one in dists.items() if known is None or known.get(name) != one},
            user=self.user,
            system=self.system,
            skip=skip,
            replicates=self.replicates,
        )

    def became(self, trial: Trial) -> bool:
        """Whether this trial, which its record started, is a new one and no other that waited."""
        return (
            trial.epoch == 1
            and trial.attempt == 1
            and trial.continues is None
            and trial.params == self.params
            and "fixed_params" not in trial.system
            and REPLICATE not in trial.system
        )
