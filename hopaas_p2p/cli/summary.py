"""A study and its trials as plain data, for `list`, `show`, `watch` and `--json`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p import notes
from hopaas_p2p.analysis import configurations
from hopaas_p2p.analysis.facts import best, params_of, pareto_front, retried, state_word
from hopaas_p2p.analysis.spending import as_data, spending
from hopaas_p2p.budget import budget_now, words
from hopaas_p2p.checkpoints import unneeded
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.spending import trial_seconds
from hopaas_p2p.peer.liveness import SignOfLife, any_alive, signs_of_life
from hopaas_p2p.space import spec
from hopaas_p2p.storage.optuna_internals import trial_id_of
from hopaas_p2p.study.definition import definition_of
from hopaas_p2p.study.method import chosen_by, in_words, other_samplers
from hopaas_p2p.times import to_iso
from hopaas_p2p.trackers import links
from hopaas_p2p.translate import read_json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hopaas_p2p.core.state import State, Trial
    from hopaas_p2p.study import Study


_MEANS: Final = 5  # configurations that `study show` lists with their means


def of_study(study: Study) -> dict[str, Any]:
    """A study at a glance."""
    state = study.state
    define = definition_of(state, study.name)
    attributes = study.storage.get_study_system_attrs(study.study_id)
    signs = signs_of_life(study.storage.peer, state)
    return {
        "name": study.name,
        "state": state_word(state, working=any_alive(signs.values())),
        "directions": list(define.directions),
        "trials": len(state.trials),
        "counts": {one.name: state.counts[one] for one in TrialState},
        "retried": retried(state),
        "budget": state.budget,
        "used": state.used(),
        "best": _best(state, len(define.directions)),
        "peers": _live_sites(state, signs),
        "silent": {owner: sign.ago for owner, sign in sorted(signs.items()) if sign.alive is False},
        "note": notes.read_note(attributes, None),
        "tags": notes.read_tags(attributes),
    }


def more_of_study(study: Study) -> dict[str, Any]:
    """More of a study, for `study show`."""
    state = study.state
    define = definition_of(state, study.name)
    policy = define.policy
    found = spending(state)
    return {
        "store": study.storage.url,
        "space": {name: spec(one) for name, one in study.space.items()},
        "policy": {
            "attempts": policy.attempts,
            "lease_ttl": policy.ttl,
            "max_failures": policy.max_failures,
            "progress_timeout": policy.progress_timeout,
            "interrupted": policy.interrupted,
        },
        "spending": as_data(found),
        "search": search_of(study),
        **_rungs(state),
        "checkpoints": _checkpoints(state),
        "other_samplers": other_samplers(state),
        "means": _means(study),
        "failures_in_a_row": state.failures_in_a_row,
        "user_attrs": study.storage.get_study_user_attrs(study.study_id),
        "made_with": dict(define.info),
        "seen_at": links(study.storage.get_study_system_attrs(study.study_id)),
        "commits": state.lsn,
        "refused": dict(state.refusals),
    }


def budget_of_study(state: State) -> str:
    """The budget that counts now, as `--budget` takes it; empty if there is none."""
    return words(budget_now(state))


def search_of(study: Study) -> dict[str, str]:
    """How the study says that it is searched, in words."""
    method = study.method
    return {
        "sampler": in_words(method.sampler),
        "pruner": in_words(method.pruner),
        "repeats": method.repeats or "avoid",
        "replicates": str(method.replicates or 1),
        "fidelity": in_words(method.fidelity) if method.fidelity is not None else "none",
    }


def _rungs(state: State) -> dict[str, Any]:
    """Who stands on which rung, and who goes on next."""
    counts = configurations.rung_counts(state)
    brackets = len({place.bracket for place in counts})
    return {
        "rungs": [place._asdict() | {"text": configurations.in_words(place, brackets=brackets)} for place in counts],
        "next": configurations.next_in_words(state),
    }


def _checkpoints(state: State) -> dict[str, int]:
    """What the checkpoints that may be resumed from take; a file that several trials name counts once."""
    gone = unneeded(state)
    sizes = {one.key: one.size for trial in state.trials for one in trial.checkpoints if one.key not in gone}
    return {"count": len(sizes), "bytes": sum(sizes.values())}


def _means(study: Study) -> list[dict[str, Any]]:
    """The configurations with the best means, where each is tried several times."""
    if (study.method.replicates or 1) == 1:
        return []
    return [
        {
            "text": str(group),
            "params": group.params,
            "trials": list(group.numbers),
            "mean": group.mean,
            "standard_error": None if math.isnan(group.standard_error) else group.standard_error,
        }
        for group in study.replicates()[:_MEANS]
    ]


def _best(state: State, objectives: int) -> dict[str, Any] | list[dict[str, Any]] | None:
    """The best trial; with several objectives, the Pareto front."""

    def brief(trial: Trial) -> dict[str, Any]:
        return {"number": trial.number, "values": list(trial.values or ()), "params": params_of(trial, state)}

    if objectives > 1:
        return [brief(trial) for trial in pareto_front(state)]
    top = best(state)
    return None if top is None else brief(top)


def _live_sites(state: State, signs: dict[str, SignOfLife]) -> dict[str, int]:
    """Site -> number of its peers that run a trial and are not known to be silent."""
    owners = [owner for owner, sign in signs.items() if sign.alive is not False]
    sites = Counter(state.peers.get(owner, {}).get("site", "?") for owner in owners)
    return dict(sorted(sites.items()))


def of_trial(trial: Trial, state: State, tags: Mapping[int | None, list[str]]) -> dict[str, Any]:
    """A trial at a glance."""
    peer = state.peers.get(trial.owner or "", {})
    params = params_of(trial, state)
    if trial.state is TrialState.WAITING:  # has those that are fixed; the others come when it is started
        fixed = read_json(trial.system.get("fixed_params", "{}"))
        params = params or (fixed if isinstance(fixed, dict) else {})
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": None if trial.values is None else list(trial.values),
        "params": params,
        "start": to_iso(trial.start),
        "end": to_iso(trial.end),
        "seconds": trial_seconds(trial),
        "attempt": trial.attempt,
        "paused": trial.paused,
        "site": peer.get("site"),
        "host": peer.get("host"),
        "reason": trial.reason,
        "tags": tags.get(trial.number, []),
    }


def chains_of(state: State) -> dict[int, list[int]]:
    """The trial to show for each configuration -> the numbers of all its trials."""
    return {row.newest.number: list(row.trials) for row in configurations.rows(state)}


def more_of_trial(study: Study, frozen: FrozenTrial, trial: Trial, attributes: dict[str, Any]) -> dict[str, Any]:
    """More of a trial, for `trial show`."""
    return {
        "reports": dict(sorted(frozen.intermediate_values.items())),
        "metrics": {name: dict(sorted(values.items())) for name, values in trial.metrics.items()},
        "distributions": {name: spec(one) for name, one in frozen.distributions.items()},
        "user_attrs": frozen.user_attrs,
        "system_attrs": frozen.system_attrs,
        "chosen_by": chosen_by(trial, study.state),
        "owner": trial.owner,
        "epoch": trial.epoch,
        "stop_requested": trial.stop,
        "stop_acknowledged": trial.stopping,
        "continues": trial.continues,
        "copies": copied_trial(trial),
        "retry_of": trial.retry_of,
        "retried_by": trial.retried_by,
        "late_of": trial.late_of,
        "history": [
            {
                "owner": tenure.owner,
                "epoch": tenure.epoch,
                "start": to_iso(tenure.start),
                "end": to_iso(tenure.end),
                "why": tenure.why,
                "kept_as": tenure.kept_as,
                "site": study.state.peers.get(tenure.owner, {}).get("site"),
                "host": study.state.peers.get(tenure.owner, {}).get("host"),
            }
            for tenure in trial.history
        ],
        "files": [one._asdict() for one in study.artifacts().list(trial.number)],
        "provenance": study.provenance(trial.number),
        "note": notes.read_note(attributes, trial_id_of(frozen)),
    }
