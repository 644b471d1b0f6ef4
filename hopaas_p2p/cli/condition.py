"""Conditions of `watch --until`: `done`, `best<0.1`, `failures>20`, joined by `or` and `and`. No code is evaluated."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from hopaas_p2p.errors import InvalidInput

Facts = Mapping[str, float | None]
Condition = Callable[[Facts], bool]

QUANTITIES: Final = ("best", "trials", "complete", "pruned", "failures", "running", "waiting", "used")
_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_TERM: Final = re.compile(r"\s*([a-z]+)\s*(<=|>=|==|<|>)\s*([-+]?[0-9.eE+-]+|[-+]?inf)\s*")


def parse_condition(text: str) -> Condition:
    """The condition of this text. `and` binds more tightly than `or`.

    Raises:
        InvalidInput: it cannot be parsed; the message shows what is allowed.

    """
    sides = [[_term(term, text) for term in re.split(r"\band\b", side)] for side in re.split(r"\bor\b", text)]
    return lambda facts: any(all(term(facts) for term in terms) for terms in sides)


def _term(term: str, whole: str) -> Condition:
    if term.strip() == "done":
        return lambda facts: bool(facts["done"])
    match = _TERM.fullmatch(term)
    if match is None or match[1] not in QUANTITIES:
        known = ", ".join(QUANTITIES)
        raise InvalidInput(f"{whole!r} is not a condition. Use done, or compare {known}, as in best<0.1")
    name, compare = match[1], _COMPARE[match[2]]
    try:
        bound = float(match[3])
    except ValueError:
        raise InvalidInput(f"{whole!r}: {match[3]!r} is not a number") from None

    def holds(facts: Facts) -> bool:
        value = facts[name]
        return value is not None and compare(value, bound)

    return holds


def facts_of(summary: Mapping[str, Any], *, done: bool) -> dict[str, float | None]:
    """The quantities of a study's summary, see `summary.of_study`."""
    counts, best = summary["counts"], summary["best"]
    facts = {name.lower(): count for name, count in counts.items()}
    facts |= {"trials": summary["trials"], "used": summary["used"], "failures": counts["FAIL"], "done": float(done)}
    return {**facts, "best": best["values"][0] if isinstance(best, dict) else None}
