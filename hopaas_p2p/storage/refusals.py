"""What the log refused, in words for the person whose call it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from hopaas_p2p.core.state import REFUSALS, State, Verdict
from hopaas_p2p.errors import NoWork

NO_WORK: Final = {
    "budget": "the study's budget is used up",
    "paused": "the study is paused; resume it with: hopaas-p2p study resume",
    "stopped": "the study is stopped",
    "draining": "this peer or its site was asked to take no more trials",
    "failing": "too many trials failed in a row; look at them with: hopaas-p2p trial list --state fail",
}


def no_work(state: State, refusal: str) -> NoWork:
    """The error of an ask that was refused for this reason."""
    why = NO_WORK.get(refusal, refusal)
    limit = state.limit_reached() if refusal == "budget" else None
    if refusal == "budget" and limit is None and state.budget is None:  # a population gives out so many, and no more
        why = "all members of the population have begun"
    return NoWork(why if limit is None else f"{why}: {limit}", refusal=refusal)


def why_refused(state: State, verdict: Verdict, values: Sequence[float] | None = None) -> str:
    """A refusal in words, which name what was refused where that can be told."""
    define = state.define
    if verdict.refusal == "malformed" and values is not None and define is not None:
        expected = len(define.directions)
        if len(values) != expected:
            return f"{expected} value{'s' * (expected > 1)} expected, got {len(values)}"
        if any(map(math.isnan, values)):
            return f"a value must be a number, got {', '.join(map(str, values))}"
    word = verdict.refusal or "refused"
    return REFUSALS.get(word, word)
