"""The names of a study's objectives."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hopaas_p2p.core.attributes import METRIC_NAMES
from hopaas_p2p.core.state import State


def objectives(state: State) -> tuple[str, ...]:
    """The names of the objectives. By default, they are "value", or "objective 1" and so on."""
    number = len(state.define.directions) if state.define else 1
    given = names_given(state.system)
    return given or (("value",) if number == 1 else tuple(f"objective {at + 1}" for at in range(number)))


def names_given(system: Mapping[str, str]) -> tuple[str, ...]:
    """The names given to the objectives in the study's attributes; empty if there are none, or they are not distinct.

    The names serve as column heads, sometimes in capitals, so they must differ in more than capitalization.
    """
    names = tuple(json.loads(system.get(METRIC_NAMES, "null")) or ())
    return names if len({name.casefold() for name in names} - {""}) == len(names) else ()
