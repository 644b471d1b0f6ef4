"""A study and its trials as plain data, for `list`, `show`, `watch` and `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from hopaas_p2p import notes
from hopaas_p2p.analysis import configurations
from hopaas_p2p.analysis.facts import glance
from hopaas_p2p.analysis.spending import as_data, spending
from hopaas_p2p.core.lineage import copied_trial
from hopaas_p2p.core.spending import past_leases
from hopaas_p2p.core.state import definition_of
from hopaas_p2p.files.checkpoints import unneeded
from hopaas_p2p.peer.liveness import signs_of_life
from hopaas_p2p.runtime.times import to_iso
from hopaas_p2p.spec.space import spec
from hopaas_p2p.storage.optuna_internals import trial_id_of
from hopaas_p2p.study.method import SearchMethod, chosen_by, in_words
from hopaas_p2p.trackers.view import links

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hopaas_p2p.core.state import Trial
    from hopaas_p2p.peer.liveness import SignOfLife
    from hopaas_p2p.study import Study


_MEANS: Final = 5  # configurations that `study show` lists with their means


def of_study(study: Study, signs: dict[str, SignOfLife] | None = None) -> dict[str, Any]:
    """A summary of a study. `signs` has the signs of life of the peers that run its trials, if these have been read."""
    state = study.state
    definition_of(state, study.name)
    attributes = study.storage.get_study_system_attrs(study.study_id)
    signs = signs_of_life(study.storage.peer, state) if signs is None else signs
    about = {"note": notes.read_note(attributes, None), "tags": notes.read_tags(attributes)}
    return {"name": study.name, **glance(state, signs), **about}


def more_of_study(study: Study) -> dict[str, Any]:
    """Further facts about a study, for `study show`."""
    state = study.state
    define = definition_of(state, study.name)
    names = {"attempts": "attempts", "lease_ttl": "ttl"}
    names |= {name: name for name in ("max_failures", "progress_timeout", "interrupted")}
    counts, gone = state.configurations.places(), unneeded(state)
    brackets = len({place.bracket for place in counts})
    sizes = {one.key: one.size for trial in state.trials for one in trial.checkpoints if one.key not in gone}
    groups = study.replicates()[:_MEANS] if (SearchMethod.stored(study.state.system).replicates or 1) > 1 else []
    return {
        "store": study.storage.url,
        "space": {name: spec(one) for name, one in study.space.items()},
        "policy": {name: getattr(define.policy, field) for name, field in names.items()},
        "spending": as_data(spending(state)),
        "search": search_in_words(state.system),
        "learned": [one._asdict() | {"text": str(one)} for one in study.learned],
        "rungs": [place._asdict() | {"text": configurations.in_words(place, brackets=brackets)} for place in counts],
        "next": configurations.next_in_words(state),
        "checkpoints": {"count": len(sizes), "bytes": sum(sizes.values())},
        "means": [group._asdict() | {"text": str(group)} for group in groups],
        "user_attrs": study.storage.get_study_user_attrs(study.study_id),
        "seen_at": links(study.storage.get_study_system_attrs(study.study_id)),
    }


def search_in_words(attributes: Mapping[str, str]) -> dict[str, str]:
    """The search settings in a study's attributes, in words."""
    method = SearchMethod.stored(attributes)
    return {
        "sampler": in_words(method.sampler),
        "pruner": in_words(method.pruner),
        "repeats": method.repeats or "avoid",
        "replicates": str(method.replicates or 1),
        "fidelity": in_words(method.fidelity) if method.fidelity is not None else "none",
    }


def more_of_trial(study: Study, frozen: FrozenTrial, trial: Trial, attributes: dict[str, Any]) -> dict[str, Any]:
    """Further facts about a trial, for `trial show`."""
    policy, later = study.state.configurations.policy, study.state.trials[trial.number + 1 :] if trial.paused else []
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
        "paused_after": policy.epochs(max(trial.reports)) if policy is not None and trial.paused else None,
        "continued_by": next((one.number for one in later if one.continues == trial.number), None),
        **{name: getattr(trial, name) for name in ("continues", "retry_of", "retried_by", "late_of")},
        "history": [
            {name: getattr(tenure, name) for name in ("owner", "epoch", "why", "kept_as")}
            | {"how": how}
            | {"start": to_iso(tenure.start), "end": to_iso(tenure.end)}
            | {name: study.state.peers.get(tenure.owner, {}).get(name) for name in ("site", "host")}
            for tenure, how in past_leases(trial)
        ],
        "files": [one._asdict() for one in study.artifacts().list(trial.number)],
        "provenance": study.provenance(trial.number),
        "note": notes.read_note(attributes, trial_id_of(frozen)),
    }
