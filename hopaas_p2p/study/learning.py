"""The earlier studies from which a new one learns, and how its log stores their priors. See `search.priors`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import optuna
from optuna.distributions import BaseDistribution

from hopaas_p2p.core.attributes import LEARNED
from hopaas_p2p.core.names import user_of
from hopaas_p2p.core.priors import BELIEF, MOST_PRIORS, PriorRecord
from hopaas_p2p.core.records import Distribution
from hopaas_p2p.core.state import TAKES_A_PLACE
from hopaas_p2p.errors import HopaasError, InvalidInput
from hopaas_p2p.runtime.arguments import shown
from hopaas_p2p.runtime.logs import LOG
from hopaas_p2p.search.priors import Prior, Taught, stored_priors
from hopaas_p2p.translate import to_optuna

if TYPE_CHECKING:
    from hopaas_p2p.storage import Storage

LearnFrom = str | Sequence["str | Prior"]
AUTO: Final = "auto"
_LARGE: Final = 20  # finished trials from which "auto" includes a study that is still running


def check_learning(directions: Sequence[object]) -> None:
    """Raise InvalidInput if a study with these directions cannot learn from others."""
    if len(directions) > 1:
        raise InvalidInput(f"learn_from needs exactly one objective, but the study has {len(directions)}")


def kept(priors: Sequence[PriorRecord]) -> dict[str, str]:
    """These priors, as an attribute of a study."""
    return {LEARNED: msgspec.json.encode(priors).decode()}


def warn_of_other_belief(name: str, system: Mapping[str, str], space: Mapping[str, Distribution]) -> None:
    """Warn if this space expresses a belief that differs from the one with which the study of that name began."""
    mine = Prior.believed(space)
    if mine is not None and all(one.name != BELIEF or one.params != mine.params for one in stored_priors(system)):
        LOG.warning("the prior= of %r is ignored: it differs from the one that the study began with", name)


def find_priors(
    storage: Storage, given: LearnFrom, space: Mapping[str, Distribution], but: str = ""
) -> list[PriorRecord]:
    """The priors from the named studies, together with the belief expressed in the space.

    Args:
        storage: where the studies are.
        given: names of studies, priors, or "auto": the newest eight, other than `but`, that share a parameter with the
            space and are finished or large.
        space: the space of the study that learns; empty if it has none.
        but: the name of the study that learns.

    Raises:
        NoSuchStudy: no study has one of the names.
        InvalidInput: nothing can be learned from one of the studies, there are too many, or `given` is something else.

    """
    if isinstance(given, str) and given != AUTO:
        given = [given]
    if not isinstance(given, str | Sequence) or not all(isinstance(one, str | PriorRecord) for one in given):
        raise InvalidInput(f'learn_from must be "auto", or a list of study names and priors, got {shown(given)}')
    believed = Prior.believed(space)
    own: list[PriorRecord] = [] if believed is None else [believed]
    if given == AUTO:
        own += auto(storage, space, but)[: MOST_PRIORS - len(own)]
    else:
        own += [one if isinstance(one, PriorRecord) else _of_study(storage, one) for one in given]
    if len(own) > MOST_PRIORS:
        raise InvalidInput(f"a study learns from at most {MOST_PRIORS} studies and priors, got {len(own)}")
    for one in own:
        if space and not Taught(_optuna(space), [one]).priors:
            raise InvalidInput(
                f"{one.name!r} shares no parameter with {', '.join(space)}: it has {', '.join(one.space)}"
            )
    return own


def auto(storage: Storage, space: Mapping[str, Distribution], but: str) -> list[PriorRecord]:
    """The priors from this store's newest studies that share a parameter with this space, and are finished or large.

    In a store with users, a study is used only if this user has written to it, because anyone can grant this user
    access to a study.
    """
    found: list[PriorRecord] = []
    user = user_of(storage.peer.store.login() or "")
    for listing in [one for one in reversed(storage.listings()[-2 * MOST_PRIORS :]) if one.name != but]:
        with contextlib.suppress(HopaasError):  # deleted, not readable by this user, or without anything to learn
            state = storage.state(listing.study_id)
            count = sum(state.counts[one] for one in TAKES_A_PLACE)
            ended = count > 0 and (state.status == "stopped" or count >= (state.budget or _LARGE))
            written = not user or any(one.author in ("", user) for one in state.writers.values())
            if written and (ended or count >= _LARGE):
                one = _of_study(storage, listing.name)
                if not space or Taught(_optuna(space), [one]).priors:
                    found.append(one)
        if len(found) == MOST_PRIORS:
            break
    return found


def _of_study(storage: Storage, name: str) -> Prior:
    """What a study teaches. Raises NoSuchStudy or InvalidInput."""
    study_id = storage.get_study_id_from_name(name)
    source = optuna.load_study(study_name=name, storage=storage)
    return Prior.from_study(source, uuid=storage.handle(study_id).uuid, place=storage.state(study_id).lsn)


def _optuna(space: Mapping[str, Distribution]) -> dict[str, BaseDistribution]:
    return {name: to_optuna(one) for name, one in space.items()}
