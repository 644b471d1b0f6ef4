"""A budget as users write it: a number of trials, a `Budget`, or a string such as `gpu_hours=500,until.target=0.1`."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from hopaas_p2p.core.ledger import AMOUNTS, possible_limits
from hopaas_p2p.core.records import Budget, Price, Until
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.runtime.arguments import whole
from hopaas_p2p.runtime.times import from_iso, to_iso

HELP: Final = (
    "COMPLETE + PRUNED trials over all peers, or limits such as gpu_hours=500,kwh=80,until.date=2026-12-31; "
    "see docs/budgets.md."
)
CHANGES: Final = "Limits that are not named stay; gpu_hours=none removes one limit, and none alone removes all."
_TAKES: Final = "a whole number of trials, or a Budget"
_KEYS: Final = (
    "trials, epochs, gpu_hours, core_hours, kwh, euro, prices.SITE.(gpu_hour|core_hour|kwh), "
    f"until.({'|'.join(Until.__struct_fields__)})"
)


def budget_of(given: int | str | Budget) -> Budget:
    """The budget given as a number, a string or a `Budget`.

    Raises:
        InvalidInput: a key or a value that is not allowed.

    """
    if isinstance(given, str):
        return _made(_entries(given))
    return _made(_flat(given if isinstance(given, Budget) else Budget(trials=whole("budget", given, takes=_TAKES))))


def budget_now(state: State) -> Budget:
    """The current budget."""
    return msgspec.structs.replace(state.ledger.limits, trials=state.budget)


def changed(now: Budget, given: int | str | Budget | None) -> Budget:
    """The budget after a change. A number or a string changes the limits that it names; a `Budget` replaces all limits;
    None or "none" removes them.

    Raises:
        InvalidInput: a key or a value that is not allowed.

    """
    if given is None or given == "none":
        return Budget()
    if isinstance(given, Budget):
        return budget_of(given)
    new = _entries(given) if isinstance(given, str) else _flat(budget_of(given))
    kept = {  # all limits except those that the change names, for one site or all
        key: one
        for key, one in _flat(now).items()
        if not new.keys() & {key, key.rpartition(".")[0], key.partition(".")[0]}
    }
    return _made(kept | new)


def limits_of(budget: Budget) -> Budget:
    """The limits of a budget except the number of trials, which a log stores separately."""
    return msgspec.structs.replace(budget, trials=None)


def check_limits(limits: Budget, objectives: int) -> None:
    """Raise InvalidInput if the limits are invalid, or impossible for a study with this many objectives."""
    if possible_limits(limits, objectives):
        return
    if possible_limits(limits, 1):
        raise InvalidInput(
            "a study with several objectives can end only by its budget or a date, since it has no best value"
        )
    raise InvalidInput(f"a budget's limits must be positive numbers, and its target a number, got {words(limits)}")


def words(budget: Budget) -> str:
    """The budget as one line, in the form that `--budget` accepts; empty if there is none."""
    if budget.trials is not None and limits_of(budget) == Budget():
        return str(budget.trials)
    shown = [
        (key, to_iso(value) if key == "until.date" and isinstance(value, int) else value)
        for key, value in _flat(budget).items()
    ]
    return ",".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in shown)


def _flat(budget: Budget) -> dict[str, Any]:
    """The values of a budget, by the keys of its text, such as until.target."""

    def under(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in table.items():
            if isinstance(value, Mapping) and (value or before != "prices."):
                yield from under(value, f"{before}{key}.")
            elif isinstance(value, Mapping):  # a site with a price of zero, whatever the price under "*"
                yield f"{before}{key}.gpu_hour", 0.0
            elif value is not None:
                yield f"{before}{key}", value

    # numpy's numbers have `item`
    return dict(under(msgspec.to_builtins(budget, enc_hook=lambda one: getattr(one, "item", one.__repr__)())))


def _entries(text: str) -> dict[str, Any]:
    """The values in a string by key; None for a limit that is removed."""
    entries: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (one.strip() for one in part.partition("="))
        key, value = (key, value) if equals else ("trials", key)
        if key in entries:
            raise InvalidInput(f"the budget gives {key} twice")
        entries[key] = None if value == "none" else value
    return entries


def _made(entries: Mapping[str, Any]) -> Budget:
    """The budget with these values by key."""
    content: dict[str, Any] = {}
    for key, value in entries.items():
        first, *rest = key.split(".")
        names = [first, ".".join(rest[:-1]), rest[-1]] if first == "prices" and len(rest) > 1 else [first, *rest]
        depth, kind = {"until": (2, Until), "prices": (3, Price)}.get(first, (1, Budget))
        known = len(names) == depth and names[-1] in kind.__struct_fields__
        if first not in Budget.__struct_fields__ or not (known or (value is None and len(names) < depth)):
            word = names[-1] if first in Budget.__struct_fields__ else first
            raise InvalidInput(f"{word!r} is not a budget key; choose from: {_KEYS}")
        place = content
        for name in names[:-1] if value is not None else ():
            place = place.setdefault(name, {})
        place |= {} if value is None else {names[-1]: value}
    try:
        found = msgspec.convert(content, Budget, strict=False)
    except msgspec.ValidationError as error:
        key = str(error).partition("`$.")[2].rstrip("`")  # msgspec reports where the error is
        wrong = f"{key} = {entries.get(key, entries)!r}"
        takes = "a whole number" if "`int |" in str(error) else "a number"
        raise InvalidInput(f"a budget cannot have {wrong}; this takes {takes}") from None
    if found.trials is not None:
        found = msgspec.structs.replace(found, trials=whole("budget", found.trials, takes=_TAKES))
    until = found.until
    if until is not None and until.date is not None:
        found = msgspec.structs.replace(found, until=msgspec.structs.replace(until, date=_date(until.date)))
    if found.euro is not None and not found.prices:
        raise InvalidInput("a budget in euros needs prices per site, such as prices.SITE.gpu_hour=1.10")
    return found


def _date(given: Any) -> int:
    """A time in microseconds since 1970. A string without a time zone is in UTC, and a date without a time is its
    beginning.
    """
    if isinstance(given, int):
        return given
    try:
        found = datetime.datetime.fromisoformat(str(given).strip())
        return from_iso((found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).isoformat())
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"until.date must be a date or time such as 2026-12-31 or 2026-12-31T18:00, got {given!r}"
        ) from None


def check_spendable(
    study: str, limits: Budget, spent: Callable[[str], float], announced: Mapping[str, str], *, metered: bool
) -> None:
    """Raise ConfigurationError if only device time ends a study, and this process apparently has no such device.

    Args:
        study: the study's name.
        limits: the study's limits, which do not limit trials.
        spent: returns how much of a limit all peers have spent. If this is above zero, the study will end.
        announced: what this process announces about its devices and its site.
        metered: whether this process can read the energy that its devices use.

    """
    others = (limits.epochs, limits.core_hours, limits.until)
    named = [name for name in ("gpu_hours", "kwh", "euro") if getattr(limits, name) is not None]
    if not named or any(one is not None for one in others) or any(spent(name) for name in named):
        return
    gpus, energy = "gpus" in announced, "watts" in announced or metered
    price = limits.prices.get(announced.get("site", "")) or limits.prices.get("*") or Price()
    paid = bool(price.core_hour or (price.gpu_hour and gpus) or (price.kwh and energy))
    if any({"gpu_hours": gpus, "kwh": energy, "euro": paid}[name] for name in named):
        return
    lacks = {"gpu_hours": "no GPU was found", "kwh": "no energy counter was found", "euro": "no price applies"}
    raise ConfigurationError(
        f"a budget of {' and '.join(AMOUNTS[name] for name in named)} would never end here, because "
        f"{' and '.join(lacks[name] for name in named)}. Set what this process uses (HOPAAS_GPUS=1, HOPAAS_WATTS=300), "
        f"or set another limit: hopaas-p2p study set {shlex.quote(study)} --budget core_hours=100"
    )
