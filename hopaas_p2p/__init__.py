"""Tune hyperparameters together: every process runs Optuna, and all share one log. There is no server."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

_WHERE = {
    "open_study": "hopaas_p2p.study",
    "Study": "hopaas_p2p.study",
    "StudyPolicy": "hopaas_p2p.study",
    "Trial": "hopaas_p2p.study.trial",
    "open_storage": "hopaas_p2p.storage",
    "Float": "hopaas_p2p.core.records",
    "Int": "hopaas_p2p.core.records",
    "Categorical": "hopaas_p2p.core.records",
    "Budget": "hopaas_p2p.core.records",
    "Price": "hopaas_p2p.core.records",
    "Until": "hopaas_p2p.core.records",
    "Rungs": "hopaas_p2p.core.fidelity",
    "Population": "hopaas_p2p.core.fidelity",
    "Prior": "hopaas_p2p.search.priors",
}

__version__ = "0.1.0"

__all__ = list(_WHERE)


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: `import hopaas_p2p` alone does not load Optuna."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)
