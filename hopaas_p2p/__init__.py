"""Tune hyperparameters together: every process runs Optuna, and all share one log. There is no server."""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from hopaas_p2p.errors import waits_for as _waits_for

if TYPE_CHECKING:
    from hopaas_p2p.core.fidelity import Population as Population
    from hopaas_p2p.core.fidelity import Rungs as Rungs
    from hopaas_p2p.core.records import Budget as Budget
    from hopaas_p2p.core.records import Categorical as Categorical
    from hopaas_p2p.core.records import Float as Float
    from hopaas_p2p.core.records import Int as Int
    from hopaas_p2p.core.records import Price as Price
    from hopaas_p2p.core.records import Until as Until
    from hopaas_p2p.search.priors import Prior as Prior
    from hopaas_p2p.storage import open_storage as open_storage
    from hopaas_p2p.study import Study as Study
    from hopaas_p2p.study import StudyPolicy as StudyPolicy
    from hopaas_p2p.study import open_study as open_study
    from hopaas_p2p.study.trial import Trial as Trial

_NAMES = {
    "study": ("open_study", "Study", "StudyPolicy"),
    "study.trial": ("Trial",),
    "storage": ("open_storage",),
    "core.records": ("Float", "Int", "Categorical", "Budget", "Price", "Until"),
    "core.fidelity": ("Rungs", "Population"),
    "search.priors": ("Prior",),
}
_WHERE = {name: f"hopaas_p2p.{module}" for module, names in _NAMES.items() for name in names}

__version__ = "0.1.0"

__all__ = list(_WHERE)


def __getattr__(name: str) -> object:
    """Import each name on first use: `import hopaas_p2p` alone does not load Optuna."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _waits_for("this process"):
        return getattr(_import_module(_WHERE[name]), name)
