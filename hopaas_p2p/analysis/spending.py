"""What a study has spent, what is left of its budget, and how long that lasts: for `study show`, report and monitor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from hopaas_p2p.analysis.facts import budget_unit, duration, shown
from hopaas_p2p.core.ledger import AMOUNTS, HOUR, OUTCOMES, Account, Cost, Ledger, OpenLease, euro
from hopaas_p2p.core.records import Until
from hopaas_p2p.core.state import COMPLETE, PRUNED, State
from hopaas_p2p.times import to_iso


class Amount(NamedTuple):
    """What is spent of one thing."""

    what: str
    """The field of `Budget`: trials, gpu_hours, …"""
    unit: str
    spent: float
    limit: float | None
    pace: float | None
    """Per hour, of what runs now; None if that is not known."""

    @property
    def left(self) -> float | None:
        return None if self.limit is None else max(0.0, self.limit - self.spent)

    @property
    def lasts(self) -> float | None:
        """Seconds that the rest lasts at this pace."""
        return None if self.left is None or not self.pace else 3600 * self.left / self.pace


class SpentRow(NamedTuple):
    """One line: a site and person with an outcome, or a sum of such."""

    site: str
    user: str
    outcome: str
    leases: int
    cost: Cost
    euro: float


class Spending(NamedTuple):
    """See the module."""

    rows: list[SpentRow]
    """By site, person and outcome."""
    total: SpentRow
    amounts: list[Amount]
    """What is limited first, then what is known."""
    until: list[str]
    """What else ends the study, in words."""
    reached: str | None
    """Which of it has."""
    more_trials: int | None
    """About how many trials the rest pays for, at what one costs on average."""


def spending(state: State) -> Spending:
    """What was spent, as far as the log tells. Reads the State only."""
    ledger = state.ledger
    running = [(lease, _since_counted(lease)) for lease in list(ledger.open.values())]
    rows = _rows(ledger, running)
    total = _sum(rows, "all", "", "")
    amounts = _amounts(state, ledger, total)
    until = ledger.limits.until
    return Spending(rows, total, amounts, _until_in_words(until), ledger.reached, _more_trials(state, amounts))


def limited(state: State) -> list[Amount]:
    """What is limited beside trials, and how much of it is spent; nothing is computed where nothing is limited."""
    ledger = state.ledger
    if all(getattr(ledger.limits, what) is None for what in AMOUNTS):
        return []
    return [one for one in spending(state).amounts if one.limit is not None and one.what != "trials"]


def _since_counted(lease: OpenLease) -> Cost:
    """What a running lease cost that is not in the accounts yet."""
    cost = lease.cost()
    cost.subtract(lease.counted)
    return cost


def _rows(ledger: Ledger, running: list[tuple[OpenLease, Cost]]) -> list[SpentRow]:
    rows = {key: _row(account, ledger) for key, account in list(ledger.accounts.items())}
    for lease, cost in running:
        more = _row(Account(lease.site, lease.user, "running", cost, 0 if lease.booked else 1), ledger)
        key = f"{lease.site}\n{lease.user}\nrunning"
        rows[key] = _sum([more, *([rows[key]] if key in rows else [])], lease.site, lease.user, "running")
    order: dict[str, int] = {outcome: place for place, outcome in enumerate(OUTCOMES)}
    found = [row for row in rows.values() if row.leases or row.cost != Cost()]
    return sorted(found, key=lambda row: (row.site, row.user, order.get(row.outcome, len(order))))


def _row(account: Account, ledger: Ledger) -> SpentRow:
    price = euro(account, ledger.limits.prices)
    return SpentRow(account.site, account.user, account.outcome, account.leases, account.cost, price)


def _sum(rows: Iterable[SpentRow], site: str, user: str, outcome: str) -> SpentRow:
    cost, leases, price = Cost(), 0, 0.0
    for row in rows:
        cost.add(row.cost)
        leases += row.leases
        price += row.euro
    return SpentRow(site, user, outcome, leases, cost, price)


def _amounts(state: State, ledger: Ledger, total: SpentRow) -> list[Amount]:
    counts, limits = state.counts, ledger.limits
    used = state.used() if state.budget is not None else counts[COMPLETE] + counts[PRUNED]
    found = [Amount("trials", budget_unit(state), used, state.budget, None)]
    for what, unit in AMOUNTS.items():
        value = total.euro if what == "euro" else getattr(total.cost, what)
        limit = getattr(limits, what)
        if value or limit is not None:
            found.append(Amount(what, unit, value, limit, _pace(ledger, what)))
    return sorted(found, key=lambda one: one.limit is None)


def _pace(ledger: Ledger, what: str) -> float | None:
    """How much of it the running trials take per hour."""
    total = 0.0
    for lease in list(ledger.open.values()):
        known = lease.heard > lease.start or lease.used is not None
        hours = max(1, lease.heard - lease.start) / HOUR
        if known:
            account = Account(lease.site, lease.user, "running", lease.cost(), 1)
        else:  # it has said nothing yet: all of its devices
            hours, hour = 1.0, Cost(HOUR, HOUR * lease.gpus // 1000, HOUR * lease.cores // 1000, 3600 * lease.watts)
            account = Account(lease.site, lease.user, "running", hour, 1)
        amount = euro(account, ledger.limits.prices) if what == "euro" else getattr(account.cost, what)
        total += amount / hours
    return total or None


def _more_trials(state: State, amounts: list[Amount]) -> int | None:
    done = state.counts[COMPLETE] + state.counts[PRUNED]
    found = []
    for one in amounts:
        if one.what == "trials" and one.left is not None:
            found.append(one.left)
        elif one.left is not None and done and one.spent:
            found.append(one.left / (one.spent / done))
    return int(min(found)) if found else None


def _until_in_words(until: Until | None) -> list[str]:
    if until is None:
        return []
    found = []
    if until.target is not None:
        found.append(f"the value {shown(until.target)} is reached")
    if isinstance(until.date, int):
        found.append((to_iso(until.date) or "?").replace("T00:00:00Z", ""))
    if until.trials_without_gain is not None:
        found.append(f"{until.trials_without_gain} trials in a row bring no improvement")
    if until.hours_without_gain is not None:
        found.append(f"{shown(until.hours_without_gain)} hours bring no improvement")
    if until.gain_per_hour is not None:
        found.append(f"the gain per hour is below {shown(until.gain_per_hour)}")
    return found


# --- as texts ---

HEADS: Final = ("site", "person", "state", "attempts", "time", "GPU hours", "core hours", "kWh", "euro", "epochs")


def cells(found: Spending) -> tuple[list[str], list[list[str]]]:
    """The table by site, person and state, without columns in which nothing is; its last line is the sum."""
    shown = [*found.rows, found.total]
    costs = [(row.cost.gpu_hours, row.cost.core_hours, row.cost.kwh, row.euro) for row in shown]
    columns = [aligned_amounts(column) for column in zip(*costs, strict=True)]
    rows = [_texts(row, amounts) for row, amounts in zip(shown, zip(*columns, strict=True), strict=True)]
    keep = [at for at, _ in enumerate(HEADS) if any(row[at] not in ("", "0") for row in rows)]
    return [HEADS[at] for at in keep], [[row[at] for at in keep] for row in rows]


def _texts(row: SpentRow, amounts: Sequence[str]) -> list[str]:
    state = "returned" if row.outcome == "given back" else row.outcome
    seconds, epochs = duration(row.cost.time / 1e6), f"{row.cost.epochs:,}"
    return [row.site, row.user, state, f"{row.leases:,}", seconds, *amounts, epochs]


def aligned_amounts(values: Sequence[float]) -> list[str]:
    """Amounts of a column with the same number of decimals, so that their points stand below each other."""
    largest = max(values, default=0.0)
    places = 3 if largest < 10 else 2 if largest < 100 else 1 if largest < 1000 else 0
    least = 10.0**-places
    return ["0" if one == 0 else f"<{least:g}" if one < least / 2 else f"{one:,.{places}f}" for one in values]


def amount(value: float) -> str:
    """An amount to read: three or four digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return "<0.001" if 0 < value < 0.001 else f"{value:.4g}" if value >= 1 else f"{value:.3g}"


def budget_lines(found: Spending) -> list[str]:
    """What is spent of each limit and how long the rest lasts; what else ends the study."""
    lines = []
    for one in found.amounts:
        if one.limit is not None:
            lasts = "" if one.lasts is None or one.left == 0 else f"; the rest lasts about {duration(one.lasts)}"
            lines.append(f"{amount(one.spent)} of {amount(one.limit)} {one.unit} used{lasts}")
            if one.what == "kwh" and found.total.cost.time and not one.spent:
                lines.append("energy use is unknown: install nvidia-ml-py, allow RAPL to be read, or set HOPAAS_WATTS")
    lines += [f"ends when {one}" if not one[0].isdigit() or "bring" in one else f"ends on {one}" for one in found.until]
    if found.reached is not None:
        lines.append(f"ended: {found.reached}")
    elif found.more_trials and any(one.limit and one.spent for one in found.amounts if one.what != "trials"):
        lines.append(f"about {found.more_trials:,} more trials at the average cost so far")
    return lines or ["no limit"]


def as_data(found: Spending) -> dict[str, object]:
    """The same for `--json`."""
    amounts = [one._asdict() | {"left": one.left, "lasts_seconds": one.lasts} for one in found.amounts]
    rows = [
        {
            "site": row.site,
            "person": row.user,
            "state": row.outcome,
            "attempts": row.leases,
            "seconds": row.cost.time / 1e6,
            "gpu_hours": row.cost.gpu_hours,
            "core_hours": row.cost.core_hours,
            "kwh": row.cost.kwh,
            "euro": row.euro,
            "epochs": row.cost.epochs,
        }
        for row in found.rows
    ]
    return {
        "amounts": amounts,
        "rows": rows,
        "until": found.until,
        "reached": found.reached,
        "more_trials": found.more_trials,
    }
