"""Content that no record may have, whoever wrote it; checked once, when the record is applied.

`apply` refuses a record that contains such content, so every reader can use whatever is in a State. Arithmetic on it
does not overflow, and Optuna accepts it. Records of earlier versions stay accepted. A value outside its distribution,
which Optuna allows with a warning for a fixed parameter, gets a separate distribution that contains it.

Numbers that do not fit in 64 bits are refused even earlier, when the commit is decoded.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from hopaas_p2p.core.attributes import (
    AGAIN,
    CMAES,
    CONTINUES,
    COPIED,
    COPIES,
    FIDELITY,
    LATE_VALUES,
    LEARNED,
    LOWERED,
    METRIC_NAMES,
    MOST_REPLICATES,
    OF_EXPORTS,
    PRUNER,
    REPEATS,
    REPLICATE,
    REPLICATES,
    RESUMED,
    REUSED,
    SAMPLER,
    SPACE,
)
from hopaas_p2p.core.fidelity import possible_fidelity
from hopaas_p2p.core.ledger import possible_limits
from hopaas_p2p.core.priors import MOST_PRIORS, PriorRecord
from hopaas_p2p.core.records import LAST_TIME, Categorical, Distribution, Float, Int, Natural, Step, StudyDefine

MAX_WAITING: Final = 100_000
"""Trials that may wait at a time, because each waiting trial costs every peer memory."""
STATUSES: Final = ("running", "paused", "stopped")
MAX_BUDGET: Final = (1 << 53) - 1
"""The largest integer that a browser represents exactly."""
MOST_METRICS: Final = 64
"""Names of metrics per trial, besides its reports."""
MOST_PARAMETERS: Final = 1000
"""Names of parameters per study: each is a column with a place for every trial."""
MOST_CHOICES: Final = 10_000
"""Choices of a parameter. Each trial may have a distribution of its own, which exports write once per trial."""
LONGEST_CHOICES: Final = 1 << 16
"""Characters that the choices of a parameter have together."""
LONGEST_METRIC: Final = 100
"""Characters of the name of a metric."""
_ONE_LINE: Final = re.compile(
    "(?! *$)[^\0-\x1f\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e\u2000-\u200f"
    "\u2028-\u202f\u205f-\u206f\u3000\ud800-\uf8ff\ufdd0-\ufdef\ufeff\ufff0-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U00040000-\U000e00ff"
    "\U000e01f0-\U0010ffff]+"
)
"""A string that is not only spaces, and has no control, format or private-use characters, and no space but " ".
Python's own tables differ by version."""
_DIRECTIONS: Final = ("minimize", "maximize")
MOST_DIRECTIONS: Final = 100
LONGEST_TTL: Final = 366 * 86_400.0
"""Seconds."""
LONGEST_NAME: Final = 512
"""Characters of a parameter's or an attribute's name, as in the column of Optuna's database."""
_LONGEST_TEXT: Final = 10_000
"""Characters of a string that is only shown."""
MOST_ATTEMPTS: Final = 1000
"""A retry lists all attempts before it."""
_LARGEST: Final = 1e300
"""The largest bound. The sum or difference of two larger bounds may be infinite, and Optuna's samplers would raise."""
_FINEST_GRID: Final = 1 << 53
"""Steps. Doubles cannot distinguish the points of a finer grid, and Optuna's arithmetic with decimals fails on it."""
_REACH: Final = 1e6
"""How far outside its range a value may lie, in widths of the range: much farther out, TPE's kernels underflow to NaN.
"""
_DEEPEST: Final = 64
"""Levels of nested JSON. Beyond a few hundred, copying fails in a program whose call stack is already deep."""
_LONG_NUMBER: Final = re.compile("(?<![0-9])[0-9]{641}")
"""Whether Python reads a whole number with so many digits depends on `sys.set_int_max_str_digits`."""


def possible_time(microseconds: int) -> bool:
    """Whether a clock may show this time, even a clock that is wrong by centuries."""
    return -LAST_TIME < microseconds < LAST_TIME


def possible_metric(name: str) -> bool:
    """Whether a metric may have this name: one line of 1 to 100 characters that are not only spaces."""
    return len(name) <= LONGEST_METRIC and _ONE_LINE.fullmatch(name) is not None


def readable(text: str) -> str:
    """A string for display only, made fit for a log: shortened if it is long, and with unpaired surrogates escaped."""
    return text[:_LONGEST_TEXT].encode(errors="backslashreplace").decode()


def reason_text(reason: object) -> str | None:
    """Why a trial ended, made `readable`, so that a reason that quotes a file name in Latin-1 is not refused."""
    return None if reason is None else readable(str(reason))


# --- distributions and parameters ---


def possible_distributions(distributions: Mapping[str, Distribution], known: Mapping[str, Distribution]) -> bool:
    """Whether Optuna accepts all of these, together with those that the log has for the same parameters.

    There may be at most `MOST_PARAMETERS` parameters in all.
    """
    if len(known) + sum([name not in known for name in distributions]) > MOST_PARAMETERS:
        return False
    return all(
        possible_name(name) and _possible(one) and (name not in known or compatible(known[name], one))
        for name, one in distributions.items()
    )


def _possible(distribution: Distribution) -> bool:
    if isinstance(distribution, Categorical):
        choices = distribution.choices
        few = 0 < len(choices) <= MOST_CHOICES and length_of(choices) <= LONGEST_CHOICES
        return few and all(_fits(one) for one in choices if type(one) is int)
    low, high, step, log = distribution.low, distribution.high, distribution.step, distribution.log
    if not low <= high:
        return False
    if isinstance(distribution, Int):
        assert isinstance(step, int)
        return all(map(_fits, (low, high, step))) and step >= 1 and (not log or (low >= 1 == step))
    if not (low >= -_LARGEST and high <= _LARGEST) and not -math.inf < low == high < math.inf:
        return False
    if log:
        return step is None and low > 0
    return step is None or (0 < step < math.inf and (high - low) / step <= _FINEST_GRID)


def length_of(choices: Sequence[Any]) -> int:
    """The characters of all texts among these choices."""
    return sum([len(one) for one in choices if isinstance(one, str)])


def _fits(whole: float) -> bool:
    """Whether a whole number has no more than 64 bits."""
    return -(1 << 63) <= whole < 1 << 63


def compatible(first: Distribution, other: Distribution) -> bool:
    """Whether Optuna accepts both for one parameter: only the ranges and steps of numbers may differ."""
    if first.__class__ is not other.__class__:
        return False
    if isinstance(first, Categorical) or isinstance(other, Categorical):
        mine, theirs = first.choices, other.choices  # type: ignore[union-attr]  # both are
        both = zip(mine, theirs, strict=False)
        return len(mine) == len(theirs) and all(a == b or (a != a and b != b) for a, b in both)  # noqa: PLR0124  # NaN is a choice
    return first.log == other.log


def widened_distributions(
    params: Mapping[str, float], given: Mapping[str, Distribution], known: Mapping[str, Distribution]
) -> dict[str, Distribution] | None:
    """Distributions for the values that lie outside theirs; None if a parameter cannot have such a value, or has no
    distribution.

    Args:
        params: the values.
        given: the distributions that accompany them.
        known: the first ones that the log gave these parameters.

    """
    found: dict[str, Distribution] = {}
    for name, value in params.items():
        distribution = given.get(name) or known.get(name)
        if distribution is None:
            return None
        if distribution.__class__ is Categorical:
            if not 0 <= value < len(distribution.choices):
                return None
        elif not distribution.low <= value <= distribution.high:  # type: ignore[union-attr]  # it is no Categorical
            wider = _widened(distribution, value)
            if wider is None:
                return None
            found[name] = wider
    return found


def _widened(distribution: Distribution, value: float) -> Distribution | None:
    """The distribution with a range that contains this value too; None if it is too far away."""
    assert not isinstance(distribution, Categorical)
    low, high = float(distribution.low), float(distribution.high)
    reach = _REACH * max(high - low, abs(low), abs(high))
    if not low - reach <= value <= high + reach or (distribution.log and value <= 0):
        return None
    wider: Distribution
    if isinstance(distribution, Float):
        wider = Float(min(low, value), max(high, value), distribution.log, distribution.step)
    else:
        whole = int(value)
        if not _fits(whole):  # 2**63: the largest integer of 64 bits, rounded to a double
            return distribution
        wider = Int(min(distribution.low, whole), max(distribution.high, whole), distribution.log, distribution.step)
    return wider if _possible(wider) else None


# --- attributes ---


def possible_name(name: str) -> bool:
    """Whether a parameter or an attribute may have this name."""
    return len(name) <= LONGEST_NAME and "\0" not in name


def possible_attributes(*texts: Mapping[str, str]) -> bool:
    """Whether every reader can read, copy and write these attributes."""
    return all(
        possible_name(key)
        and not _too_deep(text)
        # half a surrogate pair is not a character, and no file, page or database can hold it
        and ("\\u" not in text or _HALF.search(text.replace(r"\\", "-")) is None)
        for some in texts
        for key, text in some.items()
    )


_HALF: Final = re.compile(r"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
_NESTS: Final = re.compile(r'"[^"]*"?|[\[{\]}]')


def _too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= _DEEPEST:
        return False
    plain = text.replace(r"\\", "").replace(r"\"", "")  # so that a string ends at the next quote
    marks = (plain[found.start()] for found in _NESTS.finditer(plain))
    return any(depth > _DEEPEST for depth in itertools.accumulate((one in "[{") - (one in "]}") for one in marks))


def satisfies_constraints(system: Mapping[str, str]) -> bool:
    """Whether a trial with these attributes satisfies its constraints, as Optuna reads them."""
    listed = json.loads(system.get("constraints", "null")) or ()
    values = {f"constraints:{place}": one for place, one in enumerate(listed)}  # unless stored under that name, too
    values |= {key: json.loads(text) for key, text in system.items() if key.startswith("constraints:")}
    return all(one <= 0 for one in values.values())


def constraints_of(system: Mapping[str, str]) -> dict[str, str]:
    """The attributes in which Optuna keeps a trial's constraints: one list, or one attribute per constraint."""
    return {key: text for key, text in system.items() if key.partition(":")[0] == "constraints"}


def possible_system(texts: Mapping[str, str], directions: int | None = None) -> bool:
    """Whether the attributes that programs read by name have the expected types, in a study with this many directions.

    Programs need not check these attributes again.
    """
    for key, text in texts.items():
        if len(text) > _SHORT and any(len(text) > most and one.fullmatch(key) for one, most in _READ_AGAIN):
            return False
        wanted = READ.get(key) or next((one for pattern, one in _READ_LIKE if pattern.fullmatch(key)), None)
        if wanted is not None and not _is(wanted, text):
            return False
    names = json.loads(texts.get(METRIC_NAMES, "null"))
    return names is None or directions in (None, len(names))


def _is(wanted: Any, text: str) -> bool:
    """Whether this string is JSON of the wanted type, or of a value that the wanted function accepts."""
    if _LONG_NUMBER.search(text):
        return False
    try:
        value = json.loads(text)
        if isinstance(wanted, type(_is_space)):
            return bool(wanted(value))
        msgspec.convert(value, wanted)
    except ValueError:
        return False
    return wanted not in _REALS or "NaN" not in text


class _Method(msgspec.Struct):
    """A class with its arguments; whether the class exists is checked when it is constructed."""

    name: str = msgspec.field(name="class")
    arguments: dict[str, Any] | None = None


_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Never = Annotated[int, msgspec.Meta(ge=1, le=0)]


class _Replicate(msgspec.Struct):
    of: _Size
    seed: _Size


class _Copied(msgspec.Struct, forbid_unknown_fields=True):
    """See `moving.records.origin`."""

    study: str | None = None
    trial: Natural | None = None
    site: str | None = None
    host: str | None = None
    earlier: Annotated[float, msgspec.Meta(ge=0, lt=LAST_TIME)] = 0.0

    def __post_init__(self) -> None:
        if (self.study is None) != (self.trial is None):
            raise ValueError("names a study without its trial, or a trial without its study")


class _Checksum(msgspec.Struct):
    """See `files.artifacts`."""

    size: Natural | None = None
    sha256: str | None = None


class _Generation(msgspec.Struct):
    generation: Natural
    parents: list[Natural]


def _is_space(value: object) -> bool:
    return possible_distributions(msgspec.convert(value, dict[str, Distribution]), {})


def possible_priors(value: object) -> bool:
    """Whether this can be a study's priors."""
    try:
        priors = msgspec.convert(value, list[PriorRecord])
    except msgspec.ValidationError:
        return False
    return len(priors) <= MOST_PRIORS and all(
        one.flaw() is None and possible_distributions(one.space, {}) for one in priors
    )


_REALS: Final = (float, list[float] | None, list[float | None])

READ: Final[dict[str, Any]] = {
    # what Optuna's samplers, pruners, callbacks and tables read
    "constraints": list[float] | None,
    "fixed_params": dict,
    "grid_id": _Size,
    "search_space": dict[str, list[Any]],
    "failed_trial": Natural,
    "retry_history": list[Natural],
    "late_of": Natural,
    METRIC_NAMES: list[str] | None,
    # of trials
    AGAIN: Natural,
    CMAES: _Generation,
    CONTINUES: Natural,
    COPIES: Natural,
    LATE_VALUES: list[float | None],
    COPIED: _Copied,
    REPLICATE: _Replicate,
    RESUMED: Step,
    REUSED: Natural,
    # of studies
    FIDELITY: possible_fidelity,
    LEARNED: possible_priors,
    LOWERED: str,
    PRUNER: _Method | None,
    REPEATS: Literal["avoid", "allow", "reuse"],
    REPLICATES: Annotated[int, msgspec.Meta(ge=1, le=MOST_REPLICATES)],
    SAMPLER: _Method | None,
    SPACE: _is_space,
    **dict.fromkeys(OF_EXPORTS, _Never),
}
"""The attributes that some program reads by name, each with its type or a function that checks it."""

_READ_LIKE: Final = (
    (re.compile(r"constraints:.*", re.DOTALL), float),
    (re.compile(r"completed_rung_[0-9]+"), float),
    (re.compile(r"[^:]+:generation"), Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]),
    (re.compile(r"[^:]+:parent:[0-9]+"), list[Step]),
    (re.compile(r"qmc .*'s last sample id", re.DOTALL), Step),
    (re.compile(r"hopaas:artifact:.*", re.DOTALL), _Checksum),
    (re.compile(r"hopaas:exporter:.*", re.DOTALL), dict),
)
_SHORT: Final = 4096
_READ_AGAIN: Final = (
    (re.compile(r"hopaas:(exporter:.*|copies|resumed)", re.DOTALL), _SHORT),
    (re.compile(r"constraints(:.*)?", re.DOTALL), 8 * _SHORT),
)
"""The attributes that `apply` reads again with later records, and their largest numbers of characters. The time for
each such record grows with the attribute's length."""


# --- studies ---


def possible_definition(define: StudyDefine) -> bool:
    """Whether a study with this definition can be run."""
    policy, directions = define.policy, define.directions
    return (
        0 < len(directions) <= MOST_DIRECTIONS
        and all(direction in _DIRECTIONS for direction in directions)
        and possible_distributions(define.space, {})
        and 0 < policy.ttl <= LONGEST_TTL
        and policy.attempts <= MOST_ATTEMPTS
        and (policy.budget is None or 0 <= policy.budget <= MAX_BUDGET)
        and (policy.progress_timeout is None or policy.progress_timeout > 0)
        and policy.interrupted in ("fail", "prune")
        and possible_limits(policy.limits, len(directions))
    )
