"""A study's spending, the rest of its budget, and how long that will last, for `study show`, report and monitor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from hopaas_p2p.analysis.facts import count, duration, person, shown
from hopaas_p2p.core.ledger import AMOUNTS, HOUR, OUTCOMES, Cost, Ledger, euro
from hopaas_p2p.core.records import Until
from hopaas_p2p.core.state import COMPLETE, PRUNED, State
from hopaas_p2p.runtime.times import to_iso


class Amount(NamedTuple):
    """The amount spent of one resource."""

    what: str
    """The name of a field of `Budget`, such as trials or gpu_hours."""
    unit: str
    spent: float
    limit: float | None
    pace: float | None
    """Spending per hour of the running trials; None if unknown."""

    @property
    def left(self) -> float | None:
        return None if self.limit is None else max(0.0, self.limit - self.spent)

    @property
    def lasts(self) -> float | None:
        """How many seconds the rest will last at this pace."""
        return None if self.left is None or not self.pace else 3600 * self.left / self.pace


class Spending(NamedTuple):
    """A study's spending, and the conditions that end the study."""

    rows: list[dict[str, Any]]
    """One row per site, person and state, with attempts, GPU hours, core hours, kWh, euro, seconds and epochs."""
    total: dict[str, Any]
    amounts: list[Amount]
    """The resources with a limit, then the others that were used. Trials are always included."""
    until: list[str]
    """The other conditions that end the study, in words."""
    reached: str | None
    """The limit or condition that has ended the study; None if none has."""


def spending(state: State) -> Spending:
    """The spending recorded in the log. Reads only the State."""
    ledger = state.ledger
    booked: list[tuple[tuple[str, str, str], Cost]] = [*ledger.accounts.items()]
    for lease in list(ledger.open.values()):
        more = lease.cost()
        more.add(lease.counted, -1)
        booked.append(((lease.site, lease.user, "running"), more))
    names = ("attempts", "gpu_hours", "core_hours", "kwh", "euro", "seconds", "epochs")
    rows: dict[tuple[str, str, str], list[float]] = {}
    for key, cost in booked:
        money, seconds = euro(key[0], cost, ledger.limits.prices), cost.time / 1e6
        numbers = (cost.leases, cost.gpu_hours, cost.core_hours, cost.kwh, money, seconds, cost.epochs)
        rows[key] = [one + more for one, more in zip(rows.get(key, [0] * len(names)), numbers, strict=True)]
    found: list[dict[str, Any]] = [
        {"site": site, "person": person, "state": outcome, **dict(zip(names, sums, strict=True))}
        for (site, person, outcome), sums in rows.items()
        if any(sums)
    ]
    found.sort(key=lambda row: (row["site"], row["person"], OUTCOMES.index(row["state"])))
    total = {"site": "all", "person": "", "state": "", **{name: sum(row[name] for row in found) for name in names}}

    counts, limits = state.counts, ledger.limits
    done = counts[COMPLETE] + counts[PRUNED] if state.budget is None else state.used()
    amounts = [Amount("trials", state.configurations.unit, done, state.budget, None)]
    for what, unit in AMOUNTS.items():
        value, limit = total[what], getattr(limits, what)
        if value or limit is not None:
            amounts.append(Amount(what, unit, value, limit, _pace(ledger, what)))
    amounts.sort(key=lambda one: one.limit is None)
    return Spending(found, total, amounts, _until_in_words(limits.until), ledger.reached)


def _pace(ledger: Ledger, what: str) -> float | None:
    """The amount of a resource that all running trials together use per hour; None if unknown."""
    total = 0.0
    for lease in list(ledger.open.values()):
        hours, cost = max(1, lease.heard - lease.start) / HOUR, lease.cost()
        if lease.heard <= lease.start and lease.used is None:  # no use was reported yet, so all its devices count
            hours, cost = 1.0, Cost(HOUR, HOUR * lease.gpus // 1000, HOUR * lease.cores // 1000, 3600 * lease.watts)
        total += (euro(lease.site, cost, ledger.limits.prices) if what == "euro" else getattr(cost, what)) / hours
    return total or None


def _until_in_words(until: Until | None) -> list[str]:
    if until is None:
        return []
    found = []
    if until.target is not None:
        found.append(f"the value {shown(until.target)} is reached")
    if isinstance(until.date, int):
        found.append((to_iso(until.date) or "?").replace("T00:00:00Z", ""))
    if until.trials_without_gain is not None:
        rounds = count(until.trials_without_gain, "trial")
        found.append(f"{rounds} in a row bring{'s' * (until.trials_without_gain == 1)} no improvement")
    if until.hours_without_gain is not None:
        found.append(f"there has been no improvement for {shown(until.hours_without_gain)} h")
    return found


# --- as texts ---

_HEADS: Final = {"gpu_hours": "GPU hours", "core_hours": "core hours", "kwh": "kWh"}
"""Headings of the columns whose internal names differ from the usual words."""


def cells(found: Spending) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of the table by site, person and state, without empty columns. The last row has the sums."""
    rows = [*found.rows, found.total]
    columns: dict[str, list[str]] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "seconds":
            columns["time"] = [duration(value) for value in values]
        elif any(values) and isinstance(values[0], float):
            columns[_HEADS.get(name, name)] = aligned_amounts(values)
        elif any(values):
            texts = [f"{value:,}" if isinstance(value, int) else value for value in values]
            columns[name] = ["returned" if text == "given back" else person(text) for text in texts]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def aligned_amounts(values: Sequence[float]) -> list[str]:
    """The amounts of a column with the same number of decimals, so that their points align."""
    largest = max(values, default=0.0)
    places = 3 if largest < 10 else 2 if largest < 100 else 1 if largest < 1000 else 0
    least = 10.0**-places
    return ["0" if one == 0 else f"<{least:g}" if one < least / 2 else f"{one:,.{places}f}" for one in values]


def amount(value: float) -> str:
    """An amount in readable form, with three or four digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return "<0.001" if 0 < value < 0.001 else f"{value:.4g}" if value >= 1 else f"{value:.3g}"


def budget_lines(found: Spending) -> list[str]:
    """One line per limit, with the spending and how long the rest will last, then the other conditions that end the
    study.
    """
    lines = []
    for one in found.amounts:
        if one.limit is not None:
            lasts = "" if one.lasts is None or one.left == 0 else f"; the rest lasts about {duration(one.lasts)}"
            lines.append(f"{amount(one.spent)} of {amount(one.limit)} {one.unit} used{lasts}")
            if one.what == "kwh" and found.total["seconds"] and not one.spent:
                lines.append("energy use is unknown: install nvidia-ml-py, or set HOPAAS_WATTS")
    lines += [f"ends when {one}" if not one[0].isdigit() or "bring" in one else f"ends on {one}" for one in found.until]
    if found.reached is not None:
        lines.append(f"ended: {found.reached}")
    return lines or ["no limit"]


def as_data(found: Spending) -> dict[str, object]:
    """A study's spending as plain data, for `--json`."""
    amounts = [one._asdict() | {"left": one.left, "lasts_seconds": one.lasts} for one in found.amounts]
    return found._asdict() | {"amounts": amounts}
