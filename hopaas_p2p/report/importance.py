"""Which parameters matter: PED-ANOVA on what the State holds."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Final, NamedTuple

from hopaas_p2p.core.state import COMPLETE, State
from hopaas_p2p.report.facts import is_better

_FEWEST: Final = 10
"""Complete trials below which shares are chance."""


class Importance(NamedTuple):
    """Shares that add up to 1, largest first; or why there are none."""

    shares: tuple[tuple[str, float], ...]
    note: str


def importance(state: State, *, objective: int = 0, numbers: Container[int] | None = None) -> Importance:
    """Parameter importance for one objective, over all complete trials or those of these numbers."""
    from hopaas_p2p.report.ped_anova import ped_anova

    complete = [
        t
        for t in list(state.trials)
        if t.state is COMPLETE
        and t.values
        and math.isfinite(t.values[objective])
        and (numbers is None or t.number in numbers)
    ]
    if len(complete) < _FEWEST:
        return Importance((), f"Takes {_FEWEST} complete trials; there are {len(complete)}.")
    assert state.define is not None
    directions = state.define.directions
    sign = -1.0 if is_better(1.0, 0.0, directions[objective]) else 1.0
    try:
        shares = ped_anova(complete, [sign * t.values[objective] for t in complete if t.values], state)
    except Exception as error:  # noqa: BLE001  # whatever a strange log does to it: the rest of the report stands
        return Importance((), f"Could not be computed: {type(error).__name__}.")
    if not shares:
        return Importance((), "No parameter that varies sets the better trials apart.")
    which = "" if len(directions) == 1 else f", for objective {objective + 1}"
    return Importance(
        tuple(shares.items()), f"PED-ANOVA over {len(complete):,} complete trials{which}. Shares add up to 100 %."
    )
