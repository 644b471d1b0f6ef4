"""A budget as users write it: a number of trials, a `Budget`, keys of a file, or `gpu_hours=500,until.target=0.1`."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from hopaas_p2p.core.ledger import AMOUNTS, possible_limits
from hopaas_p2p.core.records import Budget, Price, Until
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.runtime.arguments import whole
from hopaas_p2p.runtime.settings import flat
from hopaas_p2p.runtime.times import from_iso, to_iso

HELP: Final = (
    "COMPLETE + PRUNED trials over all peers, or limits such as gpu_hours=500,kwh=80,until.date=2026-12-31; "
    "see docs/budgets.md."
)
CHANGES: Final = "Limits that it does not name stay; gpu_hours=none removes one, and none alone removes all."
_TAKES: Final = "a whole number of trials, or a Budget"
_KEYS: Final = (
    "trials, epochs, gpu_hours, core_hours, kwh, euro, prices.SITE.(gpu_hour|core_hour|kwh), "
    f"until.({'|'.join(Until.__struct_fields__)})"
)


def budget_of(given: int | str | Mapping[str, Any] | Budget) -> Budget:
    """The budget, given in any of these ways.

    Raises:
        InvalidInput: a key or a value that is not allowed.

    """
    found = _converted(_by_key(given))
    if found.trials is not None:
        found = msgspec.structs.replace(found, trials=whole("budget", found.trials, takes=_TAKES))
    until = found.until
    if until is not None and until.date is not None:
        found = msgspec.structs.replace(found, until=msgspec.structs.replace(until, date=_date(until.date)))
    if found.euro is not None and not found.prices:
        raise InvalidInput("a budget in euro needs prices per site, such as prices.SITE.gpu_hour=1.10")
    return found


def budget_now(state: State) -> Budget:
    """The current budget."""
    return msgspec.structs.replace(state.ledger.limits, trials=state.budget)


def changed(now: Budget, given: int | str | Mapping[str, Any] | Budget | None) -> Budget:
    """The budget after a change: a number, a text or a mapping changes what it names; a `Budget` or None replaces it.

    Raises:
        InvalidInput: a key or a value that is not allowed.

    """
    if given is None or given == "none":
        return Budget()
    if isinstance(given, Budget):
        return budget_of(given)
    return budget_of(_over(msgspec.to_builtins(now), _by_key(given)))


def _by_key(given: int | str | Mapping[str, Any] | Budget) -> Mapping[str, Any]:
    """The limits that are given, by their keys."""
    if isinstance(given, Budget):
        return msgspec.structs.asdict(given)
    if isinstance(given, str):
        return _content(given)
    return given if isinstance(given, Mapping) else {"trials": whole("budget", given, takes=_TAKES)}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both merged; the second takes precedence."""
    inner = {key: _over(below.get(key) or {}, value) for key, value in above.items() if isinstance(value, Mapping)}
    return {**below, **above, **inner}


def limits_of(budget: Budget) -> Budget:
    """All of a budget except its trials, which a log stores separately."""
    return msgspec.structs.replace(budget, trials=None)


def check_limits(limits: Budget, objectives: int) -> None:
    """Raise InvalidInput if a study with this many objectives cannot have these limits."""
    if possible_limits(limits, objectives):
        return
    if possible_limits(limits, 1):
        raise InvalidInput(
            "a study with several objectives can end only by its budget or a date, since it has no best value"
        )
    raise InvalidInput(f"a budget's limits must be positive numbers, and a target a number; got {words(limits)}")


def words(budget: Budget) -> str:
    """The budget as one line, in the form that `--budget` accepts; empty if there is none."""
    if budget.trials is not None and limits_of(budget) == Budget():
        return str(budget.trials)
    shown = [
        (key, to_iso(value) if key == "until.date" and isinstance(value, int) else value)
        for key, value in flat(msgspec.to_builtins(budget))
    ]
    return ",".join(f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in shown)


def _content(text: str) -> dict[str, Any]:
    """The mapping that such a text represents; None for a limit that is removed."""
    content: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            key, value = "trials", part
        first, *rest = key.strip().split(".")
        names = [first, ".".join(rest[:-1]), rest[-1]] if first == "prices" and len(rest) > 1 else [first, *rest]
        place = content
        for name in names[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise InvalidInput(f"{key!r} is not a budget key; choose from: {_KEYS}")
        if names[-1] in place:
            raise InvalidInput(f"the budget gives {key.strip()} twice")
        place[names[-1]] = None if value.strip() == "none" else value.strip()
    return content


def _converted(content: Mapping[str, Any]) -> Budget:
    prices = content.get("prices")
    priced = [(one, Price) for one in prices.values()] if isinstance(prices, Mapping) else []
    unknown = set[str]()
    for part, kind in ((content, Budget), (content.get("until"), Until), *priced):
        unknown |= set(part) - set(kind.__struct_fields__) if isinstance(part, Mapping) else set()
    if unknown:
        raise InvalidInput(f"{min(unknown)!r} is not a budget key; choose from: {_KEYS}")
    try:  # numpy's numbers; dates, as read from YAML and TOML
        plain = msgspec.to_builtins(_without_none(content), enc_hook=lambda one: one.item())
        return msgspec.convert(plain, Budget, strict=False)
    except (msgspec.ValidationError, AttributeError) as error:
        key, value = str(error).partition("`$.")[2].rstrip("`"), content  # msgspec reports where the error is
        for name in key.split("."):
            value = value.get(name, value) if isinstance(value, Mapping) else value
        raise InvalidInput(f"a budget cannot have {key} = {value!r}. Keys of a budget: {_KEYS}") from None


def _without_none(content: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    return {key: value for key, value in inner.items() if value is not None and value != {}}


def _date(given: Any) -> int:
    """Microseconds since 1970, UTC unless the text names another zone; a day stands for its beginning."""
    if isinstance(given, int):
        return given
    try:
        found = datetime.datetime.fromisoformat(str(given).strip())
        return from_iso((found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).isoformat())
    except (ValueError, OverflowError):
        raise InvalidInput(
            f"until.date is a date or time such as 2026-12-31 or 2026-12-31T18:00, not {given!r}"
        ) from None


def check_spendable(
    limits: Budget, spent: Callable[[str], float], announced: Mapping[str, str], *, metered: bool
) -> None:
    """Raise ConfigurationError if only device time ends a study, and this process apparently has no such device.

    Args:
        limits: the study's limits; it has no limit on trials.
        spent: how much of a limit all peers have spent; if any has been spent, the study will end.
        announced: what this process announces about its devices and its site.
        metered: whether it can read the energy that its devices use.

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
    raise ConfigurationError(
        f"a budget of {' and '.join(AMOUNTS[name] for name in named)} would never end here: no GPU and no energy "
        "counter was found, or this site has no price for what it has. Say what this process uses (HOPAAS_GPUS=1, "
        "HOPAAS_WATTS=300), or give the study another limit: hopaas-p2p study set NAME --budget core_hours=100"
    )
