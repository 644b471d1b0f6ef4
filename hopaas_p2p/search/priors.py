"""Learns from earlier studies, and computes how far a new study trusts each of them.

A prior keeps configurations of a study and their scores by rank. In the space of a new study it becomes a Gaussian
process; the mean of each such process is a feature of the new study's own process, with a coefficient that is learned
with everything else (a Bayesian linear model under a Gaussian process; Rasmussen and Williams, 2006, section 2.7). The
likelihood of the trials' order under each prior, under the mean of all priors, and under none gives the probabilities
from which each ask draws; compare RGPE (Feurer, Letham and Bakshy, arXiv:1802.02219). The weight of all priors falls
with each known trial.

A person's belief is a prior, too. It consists of configurations whose scores grow with the distance from the supposed
best, and its influence decays like that of any prior (compare Hvarfner et al., piBO, ICLR 2022).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import msgspec
import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection

from hopaas_p2p.analysis.table import Floats, Ints, TrialTable
from hopaas_p2p.core.attributes import LEARNED
from hopaas_p2p.core.priors import BELIEF, LARGEST_PRIOR, PriorRecord
from hopaas_p2p.core.records import Categorical, Distribution
from hopaas_p2p.core.state import State
from hopaas_p2p.core.validity import possible_priors
from hopaas_p2p.errors import InvalidInput, TooFewTrials
from hopaas_p2p.runtime.atomic import read_regular
from hopaas_p2p.search.known import KnownTrials, ranked_rows
from hopaas_p2p.search.optuna_internals import listed, reader_of
from hopaas_p2p.search.surrogate import (
    CONSTANT,
    Cube,
    Hypotheses,
    Lengths,
    Process,
    Processes,
    agreement,
    chosen,
    fit,
    range_of,
    scores,
)
from hopaas_p2p.translate import to_optuna, to_record

FEWEST: Final = 5
"""With fewer COMPLETE and PRUNED trials, nothing can be learned from a study."""
_DIGITS: Final = 6
_COUNTS: Final = 0.05  # a prior with a smaller weight is reported as ignored
_LASTING: Final = 115  # trials after which no weight can be as large as _COUNTS
_LEAST: Final = 0.04  # smaller weights in a mixture are left out to save time
_LENGTHS: Final = (0.05, 32.0)
_COMPARED: Final = 128  # configurations for comparing priors with each other
_BELIEVED: Final = 64  # configurations that express a belief
_WIDTHS: Final = {"low": 0.5, "medium": 0.25, "high": 0.12}
"""The likely distance of the best configuration from a person's belief, as a fraction of the range."""


class Prior(PriorRecord, frozen=True, forbid_unknown_fields=True):
    """What one study learned, for use in another, as in `default_sampler(priors=[Prior.from_study(study)])`."""

    @classmethod
    def from_study(cls, study: Any, name: str | None = None, *, uuid: str = "", place: int = 0) -> Self:
        """The prior of a study with one objective, Optuna's or ours, as it is now.

        It covers the parameters that all COMPLETE and PRUNED trials share, and is made from at most 200 of these
        trials: the best hundred, and others spread evenly over the remaining ranks.

        Raises:
            InvalidInput: the study has several objectives, or too many parameters.
            TooFewTrials: the study has fewer than five finished trials with the same parameters.

        """
        ours = getattr(study, "handle", None)
        if ours is not None:
            uuid, place = ours.uuid, study.state.lsn
        name = name or study.study_name
        if len(study.directions) > 1:
            raise InvalidInput(
                f"{name!r} has {len(study.directions)} objectives; a study learns only from those with one"
            )
        known = KnownTrials(lambda trial: trial.params)
        reader = reader_of(study)
        if reader is None:
            known.refresh(listed(study, cached=False))
        else:
            known.take(reader.read())
        ranked = ranked_rows(known, maximize=study.directions[0] == StudyDirection.MAXIMIZE)
        space = {
            one: dist
            for one, dist in known.distributions.items()
            if one not in known.mixed and not dist.single() and known.having([one])[ranked].all()
        }
        if len(ranked) < FEWEST or not space:
            raise TooFewTrials(f"{name!r} has too few finished trials with the same parameters to learn from")
        picked = chosen(len(ranked))
        while True:
            values, found = known.observations(space, ranked[picked]), scores(picked, len(ranked))
            made = cls.unfitted(name, space, values, found, uuid=uuid, place=place)
            if len(made.as_text()) <= LARGEST_PRIOR:
                return made.fitted(space, values, found)
            if len(picked) < 2 * FEWEST:
                raise InvalidInput(f"{name!r} has too many parameters to learn from")
            picked = picked[::2]

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The prior in a file written by `hopaas-p2p study export --prior`.

        Raises:
            InvalidInput: the file is not a prior, or no study can learn from its content.

        """
        try:
            return cls.checked(msgspec.json.decode(read_regular(path, limit=4 * LARGEST_PRIOR, named=True)))
        except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            why = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(f"{str(path)!r} is not a prior, as `study export --prior` writes it: {why}") from None

    @classmethod
    def checked(cls, value: Any) -> Self:
        """A prior from plain data. Raises InvalidInput."""
        try:
            made = msgspec.convert(value, cls)
        except msgspec.ValidationError as error:
            raise InvalidInput(str(error)) from None
        if not possible_priors([value]):
            raise InvalidInput(made.flaw() or "its parameters are invalid")
        return made

    @classmethod
    def believed(cls, space: Mapping[str, Distribution]) -> Self | None:
        """A person's belief, as stated in the distributions; None if no distribution states one.

        Raises:
            InvalidInput: a belief outside its range, or an unknown word for a confidence.

        """
        dists, centre, widths = {}, {}, {}
        for name, one in space.items():
            confidence = one.confidence or "medium"
            if confidence not in _WIDTHS:
                raise InvalidInput(f"{name!r}: confidence is low, medium or high, not {confidence!r}")
            if one.prior is None:
                if one.confidence is not None:
                    raise InvalidInput(f"{name!r}: confidence needs a prior")
                continue
            dist = dists[name] = to_optuna(one)
            inside = False
            with contextlib.suppress(TypeError, ValueError):
                centre[name] = float(dist.to_internal_repr(one.prior))
                inside = isinstance(one, Categorical) or one.low <= centre[name] <= one.high
            if not inside:
                raise InvalidInput(f"{name!r}: the prior {one.prior!r} is not in its range")
            widths[name] = _WIDTHS[confidence]
        if not dists:
            return None
        cube = Cube(dists)
        values = cube.anywhere(np.random.RandomState(1), _BELIEVED)
        for name, place in centre.items():
            values[name][0] = place
        points = cube.points(values)
        shares = [0.06 if isinstance(dist, CategoricalDistribution) else 1 for dist in dists.values()]
        parts = zip(cube.squares(points, points[:1]), widths.values(), shares, strict=True)
        far = sum(square[:, 0] / width**2 * share for square, width, share in parts)
        order = np.argsort(far, kind="stable")
        values = {name: column[order] for name, column in values.items()}
        found = scores(np.arange(_BELIEVED), _BELIEVED)
        return cls.unfitted(BELIEF, dists, values, found).fitted(dists, values, found)

    @classmethod
    def unfitted(
        cls, name: str, space: Mapping[str, BaseDistribution], values: Mapping[str, Floats], found: Floats, **where: Any
    ) -> Self:
        """A prior with placeholder lengths, whose text is about as long as with fitted ones; a fit can take long."""
        return cls(
            name,
            {one: to_record(dist) for one, dist in space.items()},
            {one: [_short(value) for value in column.tolist()] for one, column in values.items()},
            [round(score, 4) for score in found.tolist()],
            [0.123456] * len(space),
            0.123456,
            **where,
        )

    def fitted(self, space: Mapping[str, BaseDistribution], values: Mapping[str, Floats], found: Floats) -> Self:
        cube = Cube(space)
        points = cube.points(values)
        shared = np.full((len(found), len(found)), CONSTANT)
        lengths = fit(cube.squares(points, points), found, len(found), shared=shared)
        scales = [_short(length) for length in lengths.scales.tolist()]
        return msgspec.structs.replace(self, lengths=scales, noise=_short(lengths.noise))

    def as_text(self) -> str:
        """The prior's text in a file or an attribute."""
        return msgspec.json.encode(self).decode()


class Taught:
    """The predictions of several priors in one search space.

    Parameters are matched by name and kind. Numbers keep their values, or are moved to the edge if they are outside the
    new range. Choices are matched by value. A prior ignores parameters that it lacks.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], priors: Sequence[PriorRecord]) -> None:
        # most choices of others are no prior's, and a column of features for each could fill the memory
        self.cube = Cube(space, {name for prior in priors for name in prior.space})
        self.priors: list[PriorRecord] = []
        """The priors that share a parameter with the space."""
        self._processes: list[Process] = []
        self._together: dict[tuple[int, ...], Processes] = {}
        self._best: list[Floats] = []
        """The configurations of each prior, the best first; NaN where a value is missing."""
        logs: dict[str, list[float]] = {name: [] for name in space}
        noises = []
        for prior in priors:
            matched = {
                name: pair for name in space if name in prior.space and (pair := _matched(prior, name, space[name]))
            }
            if not matched:
                continue
            nowhere = np.full(len(prior.scores), np.nan)
            columns = [matched.get(name, (nowhere, math.inf)) for name in space]
            values = np.column_stack([column for column, _ in columns])
            points = self.cube.points(dict(zip(space, np.nan_to_num(values, nan=-1).T, strict=True)))
            lengths = Lengths(np.array([length for _, length in columns]), prior.noise, 0)
            self.priors.append(prior)
            self._processes.append(Process.of(self.cube, points, np.array(prior.scores), lengths))
            self._best.append(values)
            for name, (_, length) in matched.items():
                logs[name].append(math.log(length))
            noises.append(math.log(prior.noise))
        scales = np.exp([float(np.mean(some or [0.0])) for some in logs.values()])
        self.lengths = Lengths(scales, math.exp(float(np.mean(noises or [0.0]))), 0)
        """The starting lengths, before there are trials to fit them to."""
        if self.priors:
            evenly = self.cube.anywhere(np.random.RandomState(1), _COMPARED)
            self.hypotheses = Hypotheses(self.means(self.cube.points(evenly)))

    def means(self, points: Floats, mixture: Floats | None = None) -> Floats:
        """The predicted scores, with a row per configuration and a column per prior; or those of a mixture of
        priors.
        """
        weights = np.eye(len(self._processes)) if mixture is None else mixture
        used = tuple([place for place in range(len(self._processes)) if mixture is None or mixture[place] > _LEAST])
        if not used or not len(points):
            return np.zeros((len(points), *weights.shape[1:]))
        if used not in self._together:
            self._together[used] = Processes([self._processes[place] for place in used])
        return self._together[used].means(self.cube.features(points), weights[list(used)])

    def best(self, numbers: np.random.RandomState, count: int, mixture: Floats) -> dict[str, Floats]:
        """The best configurations of each prior in the mixture; missing parameters are drawn."""
        used = np.flatnonzero(mixture > _LEAST)
        count = max(1, count // len(used))
        found = np.column_stack(list(self.cube.anywhere(numbers, count * len(used)).values()))
        for place, prior in enumerate(used.tolist()):
            some = self._best[prior][:count]
            rows = found[place * count : place * count + len(some)]
            np.copyto(rows, some, where=~np.isnan(some))
        return dict(zip(self.cube.space, found.T, strict=True))


class Learned(NamedTuple):
    """How well one of a study's priors agrees with its trials."""

    name: str
    agreement: float | None
    """The fraction of pairs of trials that the prior ranks correctly; None while there are no pairs."""
    weight: float
    """The coefficient of the score that the prior predicts; 0 if it is ignored."""
    shared: tuple[str, ...]
    """The parameters that the prior has in common with the study."""
    lacks: tuple[str, ...]
    """The study's other parameters, which the prior lacks."""
    until: int | None
    """The trial after which the weight stayed negligible; None while the prior counts, or without trials."""

    def __str__(self) -> str:
        agrees = "" if self.agreement is None else f"agrees {100 * self.agreement:.0f} %, "
        name, *lacks = (" ".join(one.split()) for one in (self.name, *self.lacks))  # a line break would begin a fact
        if not self.shared:
            return f"Ignored {name} (no parameter in common)"
        if self.weight < _COUNTS:
            return f"Ignored {name} ({agrees.removesuffix(', ')})"
        about = f"; says nothing about {', '.join(lacks)}" if lacks else ""
        return f"Learned from {name} ({agrees}weight {self.weight:.1f}{about})"


def stored_priors(system: Mapping[str, str]) -> tuple[PriorRecord, ...]:
    """The priors in the attributes of a study, which the log has validated."""
    return msgspec.json.decode(system.get(LEARNED, "[]"), type=tuple[PriorRecord, ...])


def learned_of(state: State, trials: TrialTable, space: Mapping[str, BaseDistribution] | None = None) -> list[Learned]:
    """How well each current prior of a study agrees with the study's complete trials.

    Args:
        state: the study's state.
        trials: its trials as a table.
        space: its search space; by default, the parameters that all these trials have.

    """
    priors = stored_priors(state.system)
    if not priors:
        return []
    ranked = np.flatnonzero(trials.complete())
    ranked = ranked[np.argsort(trials.cost()[ranked], kind="stable")]
    if not space:
        known = dict(state.define.space if state.define else {}) | state.dists
        space = {
            name: to_optuna(one)
            for name, one in known.items()
            if not len(ranked) or (name in trials.params and not np.isnan(trials.merged(name, ranked)).any())
        }
    space = {name: one for name, one in space.items() if not one.single()}
    has = [~np.isnan(trials.merged(name, ranked)) for name in space if name in trials.params]
    ranked = ranked[np.all(has, axis=0)] if len(has) == len(space) and has else ranked[:0]
    taught, picked = Taught(space, priors), chosen(len(ranked))
    ended = np.argsort(trials.end[ranked], kind="stable")[:_LASTING]
    found: dict[int, tuple[float, float, int | None]] = {}
    if taught.priors:

        def expected(places: Ints) -> Floats:
            values = {name: trials.merged(name, ranked[places]) if len(ranked) else np.empty(0) for name in space}
            return taught.means(taught.cube.points(values))

        means, early = expected(picked), expected(np.sort(ended))
        agrees, weights = agreement(means).tolist(), taught.hypotheses.trust(means).weights.tolist()
        when = np.argsort(ended)  # for each trial, the best first, how many ended before it
        counted = [taught.hypotheses.trust(early[when <= last]).weights >= _COUNTS for last in range(len(ended))]
        for place, one in enumerate(taught.priors):
            last = max((count for count, those in enumerate(counted, 1) if those[place]), default=0)
            until = int(ranked[ended[last]]) if last < len(ended) else None
            found[id(one)] = agrees[place], weights[place], until
    lines = []
    for one in priors:
        share, weight, until = found.get(id(one), (0.0, 0.0, None))
        shared = tuple(name for name in space if name in one.space and _matched(one, name, space[name]))
        lacks = tuple(name for name in space if name not in shared)
        lines.append(Learned(one.name, share if len(ranked) > 2 else None, weight, shared, lacks, until))
    return lines


def _matched(prior: PriorRecord, name: str, new: BaseDistribution) -> tuple[Floats, float] | None:
    """A parameter's values in the prior's configurations, in the new space, and its length; None if it does not
    match.
    """
    old, values = prior.space[name], np.array(prior.params[name])
    length = prior.lengths[list(prior.space).index(name)]
    if isinstance(new, CategoricalDistribution):
        if not isinstance(old, Categorical):
            return None
        places = {(type(choice), choice): place for place, choice in enumerate(new.choices)}
        codes = np.array([places.get((type(choice), choice), np.nan) for choice in old.choices])
        return None if np.isnan(codes).all() else (codes[values.astype(np.int64)], length)
    if isinstance(old, Categorical):
        return None
    assert isinstance(new, FloatDistribution | IntDistribution)
    if old.log == new.log and not new.single():
        (low, high), (first, last) = range_of(new), range_of(to_optuna(old))
        length *= (last - first) / (high - low)
    return np.clip(values, new.low, new.high), min(max(length, _LENGTHS[0]), _LENGTHS[1])


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
