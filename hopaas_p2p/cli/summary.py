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
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.records import TrialState
from hopaas_p2p.core.spending import trial_seconds
from hopaas_p2p.files.checkpoints import unneeded
from hopaas_p2p.peer.liveness import any_alive, signs_of_life
from hopaas_p2p.runtime.times import to_iso
from hopaas_p2p.spec.space import spec
from hopaas_p2p.storage.optuna_internals import trial_id_of
from hopaas_p2p.study.definition import definition_of
from hopaas_p2p.study.method import SearchMethod, chosen_by, in_words, other_samplers
from hopaas_p2p.trackers import links
from hopaas_p2p.translate import read_json

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hopaas_p2p.core.state import State, Trial
    from hopaas_p2p.study import Study


_MEANS: Final = 5  # configurations that `study show` lists with their means


def of_study(study: Study) -> dict[str, Any]:
    """A study at a glance. The best is a trial, or with several objectives the Pareto front."""
    state = study.state
    directions = definition_of(state, study.name).directions
    attributes = study.storage.get_study_system_attrs(study.study_id)
    signs = signs_of_life(study.storage.peer, state)
    heard = Counter(
        state.peers.get(owner, {}).get("site", "?") for owner, sign in signs.items() if sign.alive is not False
    )
    top = [best(state)] if len(directions) == 1 else pareto_front(state)
    tops = [
        {"number": one.number, "values": list(one.values or ()), "params": params_of(one, state)} for one in top if one
    ]
    return {
        "name": study.name,
        "state": state_word(state, working=any_alive(signs.values())),
        "directions": list(directions),
        "trials": len(state.trials),
        "counts": {one.name: state.counts[one] for one in TrialState},
        "retried": retried(state),
        "budget": state.budget,
        "used": state.used(),
        "best": tops if len(directions) > 1 else next(iter(tops), None),
        "peers": dict(sorted(heard.items())),
        "silent": {owner: sign.ago for owner, sign in sorted(signs.items()) if sign.alive is False},
        "note": notes.read_note(attributes, None),
        "tags": notes.read_tags(attributes),
    }


def more_of_study(study: Study) -> dict[str, Any]:
    """More of a study, for `study show`."""
    state = study.state
    define = definition_of(state, study.name)
    names = {"attempts": "attempts", "lease_ttl": "ttl"}
    names |= {name: name for name in ("max_failures", "progress_timeout", "interrupted")}
    counts, gone = configurations.rung_counts(state), unneeded(state)
    brackets = len({place.bracket for place in counts})
    sizes = {one.key: one.size for trial in state.trials for one in trial.checkpoints if one.key not in gone}
    groups = study.replicates()[:_MEANS] if (SearchMethod.stored(study.state.system).replicates or 1) > 1 else []
    return {
        "store": study.storage.url,
        "objectives": study.metric_names or [f"objective {number}" for number in range(len(study.directions))],
        "space": {name: spec(one) for name, one in study.space.items()},
        "policy": {name: getattr(define.policy, field) for name, field in names.items()},
        "spending": as_data(spending(state)),
        "search": search_of(study),
        "learned": [one._asdict() | {"text": str(one)} for one in study.learned],
        "rungs": [place._asdict() | {"text": configurations.in_words(place, brackets=brackets)} for place in counts],
        "next": configurations.next_in_words(state),
        "checkpoints": {"count": len(sizes), "bytes": sum(sizes.values())},
        "other_samplers": other_samplers(state),
        "means": [
            {
                "text": str(group),
                "params": group.params,
                "trials": list(group.numbers),
                "mean": group.mean,
                "standard_error": None if math.isnan(group.standard_error) else group.standard_error,
            }
            for group in groups
        ],
        "failures_in_a_row": state.failures_in_a_row,
        "user_attrs": study.storage.get_study_user_attrs(study.study_id),
        "made_with": dict(define.info),
        "seen_at": links(study.storage.get_study_system_attrs(study.study_id)),
        "commits": state.lsn,
        "refused": dict(state.refusals),
    }


def search_of(study: Study) -> dict[str, str]:
    """How the study says that it is searched, in words."""
    method = SearchMethod.stored(study.state.system)
    return {
        "sampler": in_words(method.sampler),
        "pruner": in_words(method.pruner),
        "repeats": method.repeats or "avoid",
        "replicates": str(method.replicates or 1),
        "fidelity": in_words(method.fidelity) if method.fidelity is not None else "none",
    }


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
        "copies": copied_trial(trial),
        **{name: getattr(trial, name) for name in ("continues", "retry_of", "retried_by", "late_of")},
        "history": [
            {name: getattr(tenure, name) for name in ("owner", "epoch", "why", "kept_as")}
            | {"start": to_iso(tenure.start), "end": to_iso(tenure.end)}
            | {name: study.state.peers.get(tenure.owner, {}).get(name) for name in ("site", "host")}
            for tenure in trial.history
        ],
        "files": [one._asdict() for one in study.artifacts().list(trial.number)],
        "provenance": study.provenance(trial.number),
        "note": notes.read_note(attributes, trial_id_of(frozen)),
    }
