"""A study's spending by site, person and outcome, and when it ends the study.

`apply` keeps a ledger for every study, and judges limits if there are any. Each lease costs the time from its start to
its owner's last record, by the owner's own clock, and that time on each of the devices that the owner announced when it
joined. An owner that measured the energy, ran several trials at once, or noticed that its clock had been set records
the correct amounts (`Used`). If an owner died, an observer records how long it saw the owner alive.

All amounts are whole numbers, so that they can be moved from one account to another without a remainder. The cost of a
running trial is booked as *running*. This cost then becomes *complete*, *pruned*, *paused* or *failed*, *lost* if the
trial's peer died, or *given back* until a later lease ends the trial.

Limits are judged when a record is applied, from the log up to that record. This module reads no clock. A time is
reached when the clocks of two of the peers that wrote the last eight commits have passed it, so one wrong clock ends no
study. If one peer wrote all eight, its clock counts alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Final, Literal

import msgspec

from hopaas_p2p.core.inherited import last_step
from hopaas_p2p.core.records import Budget, Natural, Price, Time, TrialState, Until, Used

HOUR: Final = 3_600_000_000
"""Microseconds."""
KWH: Final = 3_600_000_000
"""Millijoules."""
LONGEST_LEASE: Final = 400 * 24 * HOUR
"""The longest time that a lease is charged for; a clock that is set from 1970 to today makes it seem longer."""
_MOST: Final = 1 << 60
"""The largest amount, so that sums stay within the 64 bits that a snapshot writes."""
_PARTS: Final = 1 << 64
_EURO: Final = _PARTS * HOUR
"""Parts per euro. An hour has as many microseconds as a kilowatt hour has millijoules, so both have the same price
unit.
"""
Amount = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
_MOST_STEPS: Final = 1 << 40
_MOST_DEVICES: Final = 30_000
"""GPUs or cores of one peer. This number times the longest lease is below `_MOST`."""
_MOST_WATTS: Final = 100_000
Devices = Annotated[int, msgspec.Meta(ge=0, le=1000 * _MOST_DEVICES)]
Watts = Annotated[int, msgspec.Meta(ge=0, le=1000 * _MOST_WATTS)]
_MOST_ENERGY: Final = 1 << 52
"""The largest energy of one lease: a thousand megawatt hours."""
_MOST_ACCOUNTS: Final = 1000
_LOST_KEPT: Final = 256
_CLOCKS: Final = 8
_LONGEST_NAME: Final = 64
OTHERS: Final = "others"
"""The site and person for costs beyond the first thousand accounts."""

Outcome = Literal["running", "complete", "pruned", "paused", "failed", "lost", "given back"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("complete", "pruned", "paused", "failed", "lost", "given back", "running")
BOOKED: Final[dict[int, Outcome]] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}
"""How the cost of a trial is booked, by the state in which it ended."""


class Cost(msgspec.Struct, array_like=True, gc=False):
    """The cost of some leases."""

    time: Amount = 0
    """Microseconds."""
    gpu: Amount = 0
    """Microseconds of one GPU."""
    core: Amount = 0
    """Microseconds of one core."""
    energy: Amount = 0
    """Millijoules."""
    epochs: Amount = 0
    leases: Amount = 0
    """The number of leases."""

    def add(self, other: Cost, times: int = 1) -> None:
        """Add this cost, or subtract it if `times` is -1. Each amount stays between 0 and `_MOST`."""
        self.time += times * other.time
        self.gpu += times * other.gpu
        self.core += times * other.core
        self.energy += times * other.energy
        self.epochs += times * other.epochs
        self.leases += times * other.leases
        if not 0 <= self.time | self.gpu | self.core | self.energy | self.epochs | self.leases <= _MOST:
            for name in self.__struct_fields__:
                setattr(self, name, min(max(0, getattr(self, name)), _MOST))

    @property
    def gpu_hours(self) -> float:
        return self.gpu / HOUR

    @property
    def core_hours(self) -> float:
        return self.core / HOUR

    @property
    def kwh(self) -> float:
        return self.energy / KWH


class OpenLease(msgspec.Struct, array_like=True, gc=False):
    """The cost of a lease that is open, was returned or was lost."""

    site: str
    user: str
    gpus: Devices
    """Thousandths."""
    cores: Devices
    """Thousandths."""
    watts: Watts
    """Thousandths."""
    start: Time
    heard: Time
    """The time of the owner's last record, by the owner's clock, like `start`."""
    base: Amount
    """Epochs that its trial had when the lease began."""
    top: Amount
    """Epochs that its trial has now."""
    from_zero: bool
    """Whether the trial's steps begin with 0."""
    stored: Time = 0
    """When the store received the commit that started the lease, by the store's clock; 0 if the store has no clock."""
    used: Used | None = None
    counted: Cost = msgspec.field(default_factory=Cost)
    """The part of its cost that the accounts contain."""
    booked: Outcome | None = None
    """The outcome under which the accounts contain the lease; None if they do not."""

    def cost(self) -> Cost:
        """The cost of the lease up to its owner's last record."""
        used = self.used
        time = min(max(self.heard - self.start, 0), LONGEST_LEASE) if used is None else used.time
        energy = time * self.watts // 1_000_000 if used is None or used.energy is None else used.energy
        epochs = max(0, self.top - self.base)
        return Cost(time, time * self.gpus // 1000, time * self.cores // 1000, energy, epochs, 1)


class Ledger(msgspec.Struct, array_like=True, dict=True):
    """The spending of one study, and its limits; see the module. Only `apply` changes it."""

    limits: Budget
    maximize: bool = False
    """Whether large values are good."""
    accounts: dict[tuple[str, str, Outcome], Cost] = {}
    """Site, person and outcome -> the cost of that person's leases at that site with that outcome."""
    open: dict[int, OpenLease] = {}
    """The leases of running trials, by trial; `apply` adds one when a trial starts."""
    given_back: dict[Natural, list[OpenLease]] = {}
    """The earlier leases of unfinished trials."""
    lost: Annotated[dict[Natural, OpenLease], msgspec.Meta(max_length=_LOST_KEPT)] = {}
    """The most recently lost leases, by trial; a late result moves their cost to another account."""
    reached: str | None = None
    """Which limit has ended the study, in words."""
    best: tuple[Time, float] | None = None
    """When the best trial ended, and its value."""
    since_best: Natural = 0
    """COMPLETE and PRUNED trials since the best one ended."""
    clocks: Annotated[list[tuple[str, Time]], msgspec.Meta(max_length=_CLOCKS)] = []
    """The writers and times of the last commits, if there are limits."""
    total: Cost = msgspec.field(default_factory=Cost)
    """The sum of the accounts."""

    @property
    def measured(self) -> bool:
        """Whether a limit needs to know what running trials have cost so far."""
        limits = self.limits
        return limits is not UNLIMITED and any(getattr(limits, name) is not None for name in AMOUNTS)

    def __post_init__(self) -> None:
        if self.limits == UNLIMITED:
            self.limits = UNLIMITED

    # --- leases ---

    def heard(self, number: int, at: int, used: Used | None, reports: Mapping[int, float]) -> None:
        """Account for a record that the owner wrote about its trial."""
        lease = self.open.get(number)
        if lease is None:
            return
        lease.heard = max(lease.heard, at)
        if used is not None and _possible(used):
            lease.used = used
        if reports:
            lease.from_zero = lease.from_zero or 0 in reports
            lease.top = max(lease.top, min(max(reports) + lease.from_zero, _MOST_STEPS))
        if self.limits is not UNLIMITED and self.measured:
            self._count(lease, "running")

    def resumed(self, number: int, reports: Mapping[int, float]) -> None:
        """Account for an owner that resumed from these reports only, not from all that the trial had."""
        lease = self.open.get(number)
        if lease is not None:
            lease.top, lease.from_zero = epochs(reports)
            lease.base = min(lease.base, lease.top)

    def ended(self, number: int, outcome: Outcome, at: int | None = None, used: Used | None = None) -> None:
        """Account for a trial that ended or was returned; `at` is when its owner recorded that, and `used` its
        usage.
        """
        lease = self.open.pop(number, None)
        if lease is not None:
            if at is not None and at > lease.heard:
                lease.heard = at
            if used is not None and _possible(used):
                lease.used = used
            self._count(lease, outcome)
        if outcome == "given back" and lease is not None:
            self.given_back.setdefault(number, []).append(lease)
        elif self.given_back:
            self.settle(number, outcome)

    def settle(self, number: int, outcome: Outcome) -> None:
        """Move the cost of the trial's earlier leases to this outcome."""
        for lease in self.given_back.pop(number, ()):
            self._count(lease, outcome)

    def was_lost(self, number: int, lived: int | None, stored: int) -> None:
        """Account for an owner that died, or seemed to; an observer saw it alive for `lived` microseconds of this
        lease.

        `stored` is the store's time of the reclaim. `lived` is limited to the lease's length by the store's clock.
        """
        lease = self.open.get(number)
        if lease is None:
            return
        known = lease.cost()
        if lived is not None and stored and lease.stored:
            lived = min(lived, stored - lease.stored)
        if lived is not None and known.time < lived <= LONGEST_LEASE:
            measured = lease.used is not None and lease.used.energy is not None and known.time > 0
            lease.used = Used(lived, min(known.energy * lived // known.time, _MOST_ENERGY) if measured else None)
        self.ended(number, "lost")
        if len(self.lost) >= _LOST_KEPT:
            del self.lost[next(iter(self.lost))]
        self.lost[number] = lease

    def came_late(self, number: int, at: int, used: Used | None, reports: Mapping[int, float]) -> None:
        """Account for the owner of a lost lease that was alive after all, and sent a result."""
        lease = self.lost.pop(number, None)
        if lease is None:
            return
        lease.heard = max(lease.heard, at)
        lease.used = used if used is not None and _possible(used) else None
        lease.top = max(lease.top, epochs(reports)[0])
        self._count(lease, "complete")

    def _count(self, lease: OpenLease, outcome: Outcome) -> None:
        """Update the accounts with what a lease has cost by now, and how it ended."""
        before, lease.booked, now = lease.booked, outcome, lease.cost()
        for booked, cost, times in ((before, lease.counted, -1), (outcome, now, 1)):
            if booked is None:
                continue
            key = lease.site, lease.user, booked
            if key not in self.accounts and len(self.accounts) >= _MOST_ACCOUNTS:
                key = OTHERS, OTHERS, booked
            account, prices = self.accounts.setdefault(key, Cost()), self.limits.prices
            if prices:
                self.bill -= price(key[0], account, prices)
            account.add(cost, times)
            if prices:
                self.bill += price(key[0], account, prices)
            self.total.add(cost, times)
        lease.counted = now

    # --- limits ---

    def limit(self, limits: Budget) -> None:
        """Apply these limits from now on."""
        self.limits, self.reached = UNLIMITED if limits == UNLIMITED else limits, None
        self.__dict__.pop("bill", None)  # computed at other prices
        if self.limits is UNLIMITED:
            self.clocks = []  # no clock is added until there are limits again
        if self.measured:
            for lease in self.open.values():
                self._count(lease, "running")

    def result(self, at: int, value: float | None) -> None:
        """Account for a trial that ended COMPLETE or PRUNED; `at` is used if the log shows no time."""
        self.since_best += 1
        if self.clocks:
            at = self.time
        if value is None or not (
            self.best is None or (value > self.best[1] if self.maximize else value < self.best[1])
        ):
            return
        self.best, self.since_best = (at, value), 0

    def look(self, writer: str, at: int) -> None:
        """Record the time of a commit by this writer that is about to be applied."""
        self.clocks.append((writer, at))
        if len(self.clocks) > _CLOCKS:
            del self.clocks[0]

    @property
    def time(self) -> int:
        """The time that the log shows: the latest that two of the last writers have passed, or the only writer's."""
        clocks = sorted(dict(self.clocks).values())
        return clocks[-2:][0] if clocks else 0

    def judge(self) -> str | None:
        """Which limit is reached, in words; None if none is."""
        limits, until, best, now = self.limits, self.limits.until, self.best, self.time
        for name, unit in AMOUNTS.items():
            limit = getattr(limits, name)
            if limit is not None and self.spent(name) >= limit:
                return f"{limit:g} {unit} are spent"
        if until is not None and isinstance(until.date, int) and now >= until.date:
            return "the date is reached"
        if until is None or best is None:
            return None
        if until.target is not None and (best[1] >= until.target if self.maximize else best[1] <= until.target):
            return f"the target {until.target:g} is reached"
        if until.trials_without_gain is not None and self.since_best >= until.trials_without_gain:
            return f"{self.since_best} trial{'s' * (self.since_best != 1)} without a better one"
        if until.hours_without_gain is not None and now - best[0] >= until.hours_without_gain * HOUR:
            return f"{until.hours_without_gain:g} hours without a better trial"
        return None

    def spent(self, name: str) -> float:
        """How much of this quantity is spent: epochs, gpu_hours, core_hours, kwh or euro."""
        return self.bill / _EURO if name == "euro" else float(getattr(self.total, name))

    @functools.cached_property
    def bill(self) -> int:
        """The price of all accounts, in parts of a euro, kept up to date by `_count`. As a whole number, the sum is the
        same in any order.
        """
        return sum([price(site, cost, self.limits.prices) for (site, _, _), cost in self.accounts.items()])


AMOUNTS: Final = {
    "epochs": "epochs",
    "gpu_hours": "GPU hours",
    "core_hours": "core hours",
    "kwh": "kWh",
    "euro": "euro",
}
"""The amounts that a budget may limit besides trials: each field, and its unit in words."""
UNLIMITED: Final = Budget()


def price(site: str, cost: Cost, prices: Mapping[str, Price]) -> int:
    """What this costs at the prices of a site, in parts of a euro."""
    each = prices.get(site) or prices.get("*") or Price()
    gpu, core, kwh = int(each.gpu_hour * _PARTS), int(each.core_hour * _PARTS), int(each.kwh * _PARTS)
    return gpu * cost.gpu + core * cost.core + kwh * cost.energy


def euro(site: str, cost: Cost, prices: Mapping[str, Price]) -> float:
    """What this costs at the prices of a site, in euros."""
    return price(site, cost, prices) / _EURO


def possible_limits(limits: Budget, directions: int) -> bool:
    """Whether a study with this many objectives can have these limits."""
    until = limits.until or Until()
    amounts = [getattr(limits, name) for name in AMOUNTS]
    prices = [number for price in limits.prices.values() for number in msgspec.structs.astuple(price)]
    gains = [until.trials_without_gain, until.hours_without_gain]
    return (
        all(number is None or 0 < number < _MOST for number in [*amounts, *gains])
        and all(0 <= number < _MOST for number in prices)
        and len(limits.prices) <= _MOST_ACCOUNTS
        and limits.trials is None
        and (until.target is None or math.isfinite(until.target))
        and (until.date is None or (isinstance(until.date, int) and 0 <= until.date < _MOST))
        and (directions == 1 or all(one is None for one in [until.target, *gains]))
    )


def possible_ledger(ledger: Ledger, directions: int, running: Collection[int], trials: int) -> bool:
    """Whether `apply` can have produced this ledger for a study with this many directions and trials, and with these
    running trials.
    """
    leases = [*ledger.open.values(), *ledger.lost.values(), *itertools.chain(*ledger.given_back.values())]
    return (
        possible_limits(ledger.limits, directions)
        and ledger.open.keys() <= set(running)
        and all(number < trials for number in (*ledger.given_back, *ledger.lost))
        and (ledger.best is None or not math.isnan(ledger.best[1]))
        and all(one.used is None or _possible(one.used) for one in leases)
    )


def epochs(reports: Mapping[int, float]) -> tuple[int, bool]:
    """How many epochs were trained when these steps have been reported, and whether they begin with 0."""
    last = last_step(reports)
    if last is None:
        return 0, False
    from_zero = 0 in reports
    return min(max(0, last + from_zero), _MOST_STEPS), from_zero


@functools.lru_cache(4096)
def announced(
    site: str | None, user: str | None, gpus: str | None, cores: str | None, watts: str | None
) -> tuple[str, str, int, int, int]:
    """What an open lease records about its peer: the first fields of `OpenLease`."""
    where, who = (site or "?")[:_LONGEST_NAME], (user or "?")[:_LONGEST_NAME]
    return where, who, _thousandths(gpus), _thousandths(cores), _thousandths(watts, _MOST_WATTS)


def _thousandths(text: str | None, most: int = _MOST_DEVICES) -> int:
    number = announced_number(text)
    return round(number * 1000) if 0 <= number <= most else 0


def announced_number(text: str | None) -> float:
    """A number from an introduction, which may contain anything, such as NaN; 0 if it cannot be read."""
    try:
        return float(text) if text and text.isascii() else 0.0
    except ValueError:
        return 0.0


def _possible(used: Used) -> bool:
    return 0 <= used.time <= LONGEST_LEASE and (used.energy is None or 0 <= used.energy <= _MOST_ENERGY)
