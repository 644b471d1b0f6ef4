"""A study's search method: sampler, pruner, repeats, replicates, rungs or a population, as the study's log stores it.

The method is set at creation, and owners can change it. A process may use other settings, which it gives when it opens
the study. They apply to that process alone. They are logged once, and are part of the process's introduction, which the
monitor shows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
import optuna
from optuna.distributions import BaseDistribution

from hopaas_p2p.core.attributes import FIDELITY, MOST_REPLICATES, PRUNER, REPEATS, REPEATS_POLICIES, REPLICATES, SAMPLER
from hopaas_p2p.core.fidelity import Fidelity, decode_fidelity, encode_fidelity
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.state import State
from hopaas_p2p.core.state import Trial as LoggedTrial
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.pruners import MedianPruner
from hopaas_p2p.runtime.arguments import instance
from hopaas_p2p.samplers import default_sampler
from hopaas_p2p.search import registry
from hopaas_p2p.search.repeats import count_of
from hopaas_p2p.spec import fidelity as words

_MOST_VALUES: Final = 1_000_000


class SearchMethod(NamedTuple):
    """The search method that a study's log, or one process, specifies; unspecified parts are None."""

    sampler: registry.Method | None = None
    pruner: registry.Method | None = None
    repeats: str | None = None
    replicates: int | None = None
    fidelity: Fidelity | None = None

    @classmethod
    def given(
        cls,
        sampler: optuna.samplers.BaseSampler | None,
        pruner: optuna.pruners.BasePruner | None,
        repeats: str | None,
        replicates: int | None,
        fidelity: Fidelity | None = None,
    ) -> SearchMethod:
        """The method that a caller specifies.

        Raises:
            InvalidInput: a value that is not allowed, a number out of range, or something that is not a sampler or
                pruner.

        """
        if sampler is not None:
            instance("sampler", sampler, optuna.samplers.BaseSampler, "optuna.samplers.TPESampler()")
        if pruner is not None:
            instance("pruner", pruner, optuna.pruners.BasePruner, "optuna.pruners.MedianPruner()")
        if repeats is not None and repeats not in REPEATS_POLICIES:
            raise InvalidInput(f"repeats must be 'avoid', 'allow' or 'reuse', got {repeats!r}")
        if replicates is not None and not (type(replicates) is int and 1 <= replicates <= MOST_REPLICATES):
            raise InvalidInput(f"replicates must be a whole number from 1 to {MOST_REPLICATES}, got {replicates!r}")
        return cls(
            None if sampler is None else registry.describe("sampler", sampler),
            None if pruner is None else registry.describe("pruner", pruner),
            repeats,
            replicates,
            None if fidelity is None else words.checked(fidelity),
        )

    @classmethod
    def stored(cls, system: Mapping[str, str]) -> SearchMethod:
        """The method in the attributes of a study."""
        keys = (SAMPLER, PRUNER, REPEATS, REPLICATES)
        sampler, pruner, repeats, replicates = (json.loads(system[key]) if key in system else None for key in keys)
        fidelity = decode_fidelity(system[FIDELITY]) if FIDELITY in system else None
        return cls(sampler, pruner, repeats, replicates, fidelity)

    def attributes(self) -> dict[str, str]:
        """The settings, as attributes of a study."""
        said = zip((SAMPLER, PRUNER, REPEATS, REPLICATES), self, strict=False)
        texts = {key: json.dumps(value, separators=(",", ":")) for key, value in said if value is not None}
        return texts if self.fidelity is None else texts | {FIDELITY: encode_fidelity(self.fidelity)}

    def differing(self, stored: SearchMethod) -> dict[str, str]:
        """The settings here that differ from the study's, in words, without the fidelity, which all processes share."""
        found = {}
        for name, mine, theirs in zip(self._fields, self, stored, strict=True):
            if name != "fidelity" and mine is not None and theirs is not None and mine != theirs:
                found[name] = in_words(mine)
        if self.sampler is not None and stored.sampler is None and self.sampler != _default():
            found["sampler"] = in_words(self.sampler)
        return found


NOTHING_SAID: Final = SearchMethod()


def chosen_by(trial: LoggedTrial, state: State) -> str:
    """Where the parameters of this trial came from, in words, such as its first owner's sampler; empty if unknown.

    A peer that uses a sampler other than the study's states it in its introduction. For all other peers, this is the
    study's current sampler, even if an owner of the study has changed it since.
    """
    while True:  # a member of a population may have thousands of trials before this one
        copied, earlier = copied_trial(trial), trial.retry_of if trial.continues is None else trial.continues
        if copied is not None:
            return f"perturbed from trial {copied}"
        if earlier is None or not 0 <= earlier < trial.number:
            break
        trial = state.trials[earlier]
    if "fixed_params" in trial.system:
        return "queued by hand"
    owner = trial.history[0].owner if trial.history else trial.owner
    if owner is None:
        return "imported" if trial.end is not None else ""
    own, shared = state.peers.get(owner, {}).get("sampler"), SearchMethod.stored(state.system).sampler
    return own or ("the default sampler" if shared is None else in_words(shared))


def in_words(value: registry.Method | Fidelity | str | int | None) -> str:
    """One part of the method, in words."""
    if isinstance(value, msgspec.Struct):
        return words.in_words(value)
    return registry.in_words(value) if value is None or isinstance(value, dict) else str(value)


@functools.cache
def _default() -> registry.Method:
    """The sampler of a study that names none."""
    return registry.describe("sampler", default_sampler())


_DEFAULT: Final = ", so this process uses the default"


class Searcher:
    """The search settings that one process uses for a study; they follow the log. Not safe for use by several threads
    at once.

    Args:
        sampler, pruner: this process's own; None for the study's.
        said: the settings that this process specified.

    """

    def __init__(
        self, sampler: optuna.samplers.BaseSampler | None, pruner: optuna.pruners.BasePruner | None, said: SearchMethod
    ) -> None:
        self.own = sampler, pruner
        """This process's own sampler and pruner; None for the study's."""
        self._said = said
        self.system: Mapping[str, str] | None = None
        """The study's attributes that this method follows."""
        self.stored = SearchMethod()
        self.repeats = "avoid"
        self.replicates = 1
        self.complaints: list[str] = []
        """Why this process cannot search as the study specifies; shown only to callers that ask for a trial."""
        self.sampler = default_sampler() if sampler is None else sampler
        self.pruner = MedianPruner() if pruner is None else pruner

    def use(self, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner) -> bool:
        """Use these in this process only, if they differ from those in use; return whether one does.

        Raises:
            InvalidInput: one of them is not a sampler or pruner.

        """
        mine = None if sampler is self.sampler else sampler, None if pruner is self.pruner else pruner
        if mine == (None, None):
            return False
        said = SearchMethod.given(*mine, None, None)
        self.own = mine[0] or self.own[0], mine[1] or self.own[1]
        self.sampler, self.pruner = sampler, pruner
        self._said = self._said._replace(sampler=said.sampler or self._said.sampler)
        self._said = self._said._replace(pruner=said.pruner or self._said.pruner)
        return True

    def follow(self, system: Mapping[str, str], space: Mapping[str, BaseDistribution]) -> None:
        """Apply the attributes of a study with this space."""
        self.system, before = system, self.stored
        self.stored = stored = SearchMethod.stored(system)
        self.repeats = self._said.repeats or stored.repeats or "avoid"
        self.replicates = self._said.replicates or stored.replicates or 1
        if self.own[0] is None and stored.sampler != before.sampler:
            self.sampler = self._made("sampler", stored.sampler) or default_sampler()
            lists = isinstance(self.sampler, optuna.samplers.BruteForceSampler)  # keeps all values in memory
            wide = [name for name, one in space.items() if lists and (count_of(one) or 0) > _MOST_VALUES]
            if wide:
                self.complaints.append(f"{wide[0]!r} has too many values for the sampler of the study{_DEFAULT}")
                self.sampler = default_sampler()
        if self.own[1] is None and (stored.pruner, stored.fidelity) != (before.pruner, before.fidelity):
            default = MedianPruner() if stored.fidelity is None else optuna.pruners.NopPruner()
            self.pruner = self._made("pruner", stored.pruner) or default

    def differing(self) -> dict[str, str]:
        """The settings of this process that differ from the study's."""
        return self._said.differing(self.stored)

    def _made(self, kind: registry.Kind, method: registry.Method | None) -> Any:
        """The object that the study names; None for the default, also if it cannot be made here."""
        if method is None:
            return None
        try:
            return registry.make(kind, method)
        except InvalidInput as error:
            self.complaints.append(f"the {kind} of the study cannot be created{_DEFAULT}: {error}")
            return None
