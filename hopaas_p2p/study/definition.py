"""Checks the arguments that define a study, and compares them with the stored definition."""

from __future__ import annotations

import math
import operator
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BruteForceSampler

from hopaas_p2p.core import records
from hopaas_p2p.core.attributes import FIDELITY, LOWERED
from hopaas_p2p.core.fidelity import Fidelity, Population, decode_fidelity
from hopaas_p2p.core.ledger import AMOUNTS
from hopaas_p2p.core.records import Budget, Policy, StudyDefine
from hopaas_p2p.core.state import State, definition_of
from hopaas_p2p.core.validity import LONGEST_TTL, MOST_DIRECTIONS
from hopaas_p2p.errors import DefinitionMismatch, InvalidInput
from hopaas_p2p.open import store_option
from hopaas_p2p.runtime.arguments import seconds, shown, whole
from hopaas_p2p.spec.budget import budget_now, budget_of, changed, check_limits, limits_of, words
from hopaas_p2p.spec.fidelity import in_words
from hopaas_p2p.spec.space import said_later, spec
from hopaas_p2p.translate import checked_parameter, to_optuna, to_record

Space = Mapping[str, BaseDistribution | records.Domain]
BudgetGiven = int | str | Budget
"""A number of trials, or limits; see `hopaas_p2p.spec.budget`."""


class StudyPolicy(NamedTuple):
    """How a study treats trials whose peers die, fail or report nothing, and repeated configurations.

    A field that is None takes the study's own value, or the default when the study is created. If the study exists,
    given values must match its own, except `repeats` and `replicates`, which then apply to this process.
    """

    attempts: int | None = None
    """How often one set of parameters may be started when its peers die; by default 3."""
    max_failures: int | None = None
    """Failures in a row, over all processes, after which the study starts no trial until it is resumed. By default, any
    number is allowed."""
    lease_ttl: float | None = None
    """Seconds of silence after which a peer's trial is taken over; by default 120."""
    progress_timeout: float | None = None
    """Seconds without a report or metric after which a live trial is asked to stop; after twice as long it is
    reclaimed. By default never."""
    interrupted: str | None = None
    """What happens to a trial whose attempts are used up: "fail", the default (its place in the budget is free again),
    or "prune" at its last report."""
    repeats: str | None = None
    """What happens to a proposal with the same parameters as another trial, in a study with a search space. With
    "avoid", the default, another one is drawn. With "allow", it is tried again, as for a noisy objective. With "reuse",
    the known values are recorded at once, as a separate trial."""
    replicates: int | None = None
    """How many trials each configuration gets, by default 1; `trial.seed` distinguishes them. See `Study.replicates`.
    """


NO_POLICY: Final = StudyPolicy()


def definition(
    name: str,
    space: Space | None,
    directions: str | Sequence[str] | None,
    budget: BudgetGiven | None,
    policy: StudyPolicy,
) -> tuple[StudyDefine, list[str]]:
    """The study as it would be created, and the names of the parts that were given, without the budget.

    Raises:
        InvalidInput: a value that no study can have; the message says what is allowed.
    """
    if isinstance(directions, str):
        directions = (directions,)
    if directions is not None and not isinstance(directions, Iterable):
        raise InvalidInput(f"directions must be a list such as ['minimize', 'maximize'], got {shown(directions)}")
    if not isinstance(policy, StudyPolicy):
        raise InvalidInput(f"policy must be a StudyPolicy such as StudyPolicy(attempts=5), got {shown(policy)}")
    named = ("minimize",) if directions is None else tuple(directions)
    wrong = [one for one in named if one not in ("minimize", "maximize")]
    if wrong or not named:
        raise InvalidInput(f"a direction must be 'minimize' or 'maximize', got {shown(wrong) if wrong else 'none'}")
    if len(named) > MOST_DIRECTIONS:
        raise InvalidInput(f"a study has at most {MOST_DIRECTIONS} directions, got {len(named)}")
    limited = Budget() if budget is None else budget_of(budget)
    check_limits(limits_of(limited), len(named))
    checks: dict[str, Callable[[Any], Any]] = {
        "attempts": partial(whole, "attempts"),
        "max_failures": partial(whole, "max_failures"),
        "lease_ttl": partial(seconds, "lease_ttl", most=LONGEST_TTL),
        "progress_timeout": partial(seconds, "progress_timeout"),
        "interrupted": _checked_interrupted,
    }
    given = {what: check(value) for what, check in checks.items() if (value := getattr(policy, what)) is not None}
    kept = Policy(
        budget=limited.trials,
        limits=limits_of(limited),
        **{"ttl" if what == "lease_ttl" else what: value for what, value in given.items()},
    )
    parts = [what for what, value in (("directions", directions), ("space", space)) if value is not None]
    return StudyDefine(name, named, kept, checked_space(space or {}), {}), [*parts, *given]


def _checked_interrupted(word: object) -> object:
    if word not in ("fail", "prune"):
        raise InvalidInput(f"interrupted must be 'fail' or 'prune', got {word!r}")
    return word


def checked_space(space: Space) -> dict[str, records.Distribution]:
    """The search space in the log's form. Raises InvalidInput."""
    if not isinstance(space, Mapping):
        raise InvalidInput(f"a space must be a mapping of parameters to distributions, got {space!r}")
    return {checked_parameter(name): _checked(name, one) for name, one in space.items()}


def as_given(space: Space) -> dict[str, records.Distribution]:
    """Like `checked_space`, including beliefs about the parameters, which are not part of the definition."""
    found = checked_space(space)
    for name, given in space.items():
        if isinstance(given, records.Float | records.Int | records.Categorical):
            found[name] = msgspec.structs.replace(found[name], prior=given.prior, confidence=given.confidence)
    return found


def _checked(name: str, given: BaseDistribution | records.Domain) -> records.Distribution:
    """The distribution in the log's form, normalized like Optuna's: a Float's bounds 0 and 1 become 0.0 and 1.0."""
    if not isinstance(given, BaseDistribution | records.Float | records.Int | records.Categorical):
        raise InvalidInput(f"the parameter {name!r}: give a Float, Int or Categorical, got {given!r}")
    try:
        if isinstance(given, records.Int):
            _ = [operator.index(one) for one in (given.low, given.high, given.step)]  # Optuna would truncate them
        elif isinstance(given, records.Categorical) and isinstance(given.choices, str):
            raise TypeError(f"choices must be a list such as ['adam', 'sgd'], got the text {given.choices!r}")
        elif isinstance(given, records.Float | FloatDistribution):
            wrong = [one for one in (given.low, given.high) if not math.isfinite(one)]
            if wrong:
                raise ValueError(f"a bound must be a finite number, got {wrong[0]}")
        found = to_record(given if isinstance(given, BaseDistribution) else to_optuna(given))
        if isinstance(found, records.Categorical) and len(set(map(repr, found.choices))) < len(found.choices):
            raise ValueError(f"a choice is listed twice: {list(found.choices)!r}")
        return found
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"the parameter {name!r}: {error}") from None


def compare(state: State, wanted: StudyDefine, given: list[str], url: str) -> None:
    """Raise DefinitionMismatch if an argument in `given` differs from the stored definition.

    A budget is not part of the definition; see `larger_budget`.
    """
    stored = definition_of(state, wanted.name)
    stored = msgspec.structs.replace(stored, space=stored.space or said_later(state))
    lines = []
    for what in given:
        part = "ttl" if what == "lease_ttl" else what
        there, here = (
            getattr(define if part in ("directions", "space") else define.policy, part) for define in (stored, wanted)
        )
        if there != here:
            lines += _difference(what, there, here)
    if lines:
        cure = "Use the stored one (leave the argument out), or choose another name."
        if not stored.space and all(line.startswith("space, ") for line in lines):
            space = " ".join(f"--space {shlex.quote(f'{name}={spec(one)}')}" for name, one in wanted.space.items())
            what = f"{shlex.quote(wanted.name)} {space}{store_option(url)}"
            cure = f"To give it this search space: hopaas-p2p study set {what}"
        raise DefinitionMismatch(
            "\n  ".join([f"the study {wanted.name!r} exists with another definition:", *lines]) + f"\n{cure}"
        )


def larger_budget(state: State, name: str, given: BudgetGiven, url: str) -> Budget | None:
    """The budget to set if a script gives this one; None for the original or the current budget.

    Raises:
        DefinitionMismatch: a limit would be new or smaller, or `prices` or `until` would change.

    """
    first, now = definition_of(state, name).policy, budget_now(state)
    at_first = msgspec.structs.replace(first.limits, trials=first.budget)
    if any(changed(one, given) == one for one in (now, at_first)):
        return None
    wanted = changed(now, given)
    rest = [msgspec.structs.replace(one, trials=None, **dict.fromkeys(AMOUNTS)) for one in (now, wanted)]
    if rest[0] == rest[1] and not lowers(now, wanted):
        return wanted
    what = f"--budget {shlex.quote(words(wanted) or 'none')}{store_option(url)}"
    raise DefinitionMismatch(
        f"the study {name!r} has the budget {words(now) or 'none'}, not {words(wanted)}. A script can raise it but "
        f"not lower it. Leave the argument out, or run: hopaas-p2p study set {shlex.quote(name)} {what}"
    )


def was_lowered(state: State, wanted: Budget) -> bool:
    """Whether `wanted` raises a limit that has not changed since somebody last lowered the budget."""
    now, then = budget_now(state), state.system.get(LOWERED, "").strip('"').split(",")
    raised = [what for what in ("trials", *AMOUNTS) if getattr(now, what) != getattr(wanted, what)]
    texts = {what: words(Budget(**{what: getattr(now, what)})) for what in raised}
    return any(text in then or f"{what}={text}" in then for what, text in texts.items())


def lowers(now: Budget, wanted: Budget) -> bool:
    """Whether a limit in `wanted` is smaller than in `now`, or new."""
    pairs = [(getattr(now, what), getattr(wanted, what)) for what in ("trials", *AMOUNTS)]
    return any(new is not None and (old is None or new < old) for old, new in pairs)


def compare_fidelity(state: State, name: str, given: Fidelity | None) -> None:
    """Raise DefinitionMismatch if rungs or a population were given, and the study has others or none."""
    text = state.system.get(FIDELITY)
    stored = None if text is None else decode_fidelity(text)
    if given is not None and given != stored:
        raise DefinitionMismatch(
            f"the study {name!r} has the fidelity {in_words(stored)}, not {in_words(given)}. Leave the argument out, "
            f"or let an owner change it: hopaas-p2p study set {shlex.quote(name)} --fidelity '{in_words(given)}'"
        )


def check_points(sampler: object, space: Mapping[str, object]) -> None:
    """Raise InvalidInput if the sampler tries every point of the space, and there are infinitely many."""
    reals = {name: one for name, one in space.items() if isinstance(one, FloatDistribution | records.Float)}
    endless = [name for name, one in reals.items() if one.step is None and one.low < one.high]
    if endless and isinstance(sampler, BruteForceSampler):
        one, named = reals[endless[0]], ", ".join(map(repr, endless))
        such = f"{endless[0]}=float({one.low:g},{one.high:g},step={(one.high - one.low) / 10:.1g})"  # log excludes step
        raise InvalidInput(f"the grid sampler tries every value, so {named} needs a step, as in {such}")


def check_fidelity(given: Fidelity | None, directions: int, space: Mapping[str, object]) -> None:
    """Raise InvalidInput if a study with these directions and this search space (if any) cannot have this fidelity."""
    if given is not None and directions > 1:
        raise InvalidInput("a study with rungs or a population needs exactly one direction")
    for name in given.fixed if isinstance(given, Population) and space else ():
        if name not in space:
            raise InvalidInput(f"fidelity: fixed names {name!r}, but the study has the parameters {', '.join(space)}")


def _difference(what: str, there: object, given: object) -> list[str]:
    if not isinstance(there, dict) or not isinstance(given, dict):
        return [f"{what}: stored {_written(there)}, given {_written(given)}"]
    keys = sorted(set(there) | set(given))
    return [
        f"{what}, {key}: stored {_written(there.get(key))}, given {_written(given.get(key))}"
        for key in keys
        if there.get(key) != given.get(key)
    ]


def _written(value: object) -> str:
    """A value of a definition, as users write it."""
    if value is None:
        return "nothing"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return spec(value) if isinstance(value, records.Float | records.Int | records.Categorical) else f"{value}"
