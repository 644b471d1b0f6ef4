"""What every side of a study stands on."""

from __future__ import annotations

import optuna
from optuna.distributions import BaseDistribution

from hopaas_p2p.core.state import State
from hopaas_p2p.storage import Storage
from hopaas_p2p.translate import to_optuna


class Handle:
    """A study of a storage, and Optuna's own object of it."""

    storage: Storage
    name: str
    study_id: int
    optuna: optuna.Study

    @property
    def state(self) -> State:
        """The replica, brought up to date. Shared with the courier's thread: read it, do not keep it."""
        return self.storage.state(self.study_id)

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """The search space of the study's definition; empty when the objective suggests as it goes."""
        define = self.state.define
        return {name: to_optuna(one) for name, one in define.space.items()} if define else {}
