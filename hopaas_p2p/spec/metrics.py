"""Checks the arguments of `trial.log`, which are further numbers by name, besides the reported value.

Metrics are stored and shown. They count as progress, but pruners, rungs and budgets read only the reports.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from hopaas_p2p.core.validity import LONGEST_METRIC, MOST_METRICS, possible_metric
from hopaas_p2p.errors import InvalidInput
from hopaas_p2p.runtime.arguments import number_of, shortened, shown

_MOST_NAMED: Final = 3
_LONGEST_SHOWN: Final = 40


def checked(metrics: Mapping[str, object], known: Collection[str] = ()) -> tuple[dict[str, float], list[str]]:
    """The valid metrics, and what is wrong with the others.

    Args:
        metrics: values by name. A value is a number (also numpy's) or a tensor with one element. NaN and infinities are
            kept.
        known: names that the trial already has.

    """
    names, kept, wrong = set(known), dict[str, float](), list[str]()
    for name, value in metrics.items():
        if not isinstance(name, str) or not possible_metric(name):
            wrong.append(
                f"the name of a metric must be one line of at most {LONGEST_METRIC} characters, got {_shown(name)}"
            )
            continue
        number = number_of(value)
        if number is None:
            wrong.append(f"{name} is {_shown(value)}, which is not a number")
        elif name not in names and len(names) >= MOST_METRICS:
            wrong.append(f"{name} would be metric {len(names) + 1}, and a trial has at most {MOST_METRICS}")
        else:
            names.add(name)
            kept[name] = number
    return kept, wrong


def refuse(wrong: list[str], *, step: int, kept: Collection[str]) -> None:
    """Raise InvalidInput if anything is wrong, with one line about the first refused metrics and those kept."""
    if not wrong:
        return
    more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    others = f". The others are kept: {', '.join(list(kept)[:10])}" if kept else ""
    raise InvalidInput(f"step {step}: {'; '.join(wrong[:_MOST_NAMED])}{more}{others}")


def _shown(value: object) -> str:
    return shortened(" ".join(shown(value).split()), _LONGEST_SHOWN)
