"""A study and its trials as plain data: what `list`, `show` and `watch` print, and what `--json` gives."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from hopaas_p2p import notes
from hopaas_p2p.cli.output import iso_time
from hopaas_p2p.cli.space import spec
from hopaas_p2p.report.facts import state_word

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from hopaas_p2p.core.state import State, Trial
    from hopaas_p2p.study import Study


def of_study(study: Study) -> dict[str, Any]:
    """What one wants to know of a study at a glance."""
    from hopaas_p2p.core.records import TrialState

    state = study.state
    define = state.define
    assert define is not None
    attributes = study.storage.get_study_system_attrs(study.study_id)
    return {
        "name": study.name,
        "state": state_word(state),
        "directions": list(define.directions),
        "trials": len(state.trials),
        "counts": {one.name: state.counts[one] for one in TrialState},
        "budget": state.budget,
        "used": state.used(),
        "best": _best(study, len(define.directions)),
        "peers": _running_peers(state),
        "note": notes.read_note(attributes, None),
        "tags": notes.read_tags(attributes),
    }


def more_of_study(study: Study) -> dict[str, Any]:
    """What `study show` adds."""
    from hopaas_p2p.trackers import links

    state = study.state
    define = state.define
    assert define is not None
    policy = define.policy
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
        "failures_in_a_row": state.failures_in_a_row,
        "user_attrs": study.storage.get_study_user_attrs(study.study_id),
        "made_with": dict(define.info),
        "seen_at": links(study.storage.get_study_system_attrs(study.study_id)),
        "commits": state.lsn,
        "refused": dict(state.refusals),
    }


def _best(study: Study, objectives: int) -> dict[str, Any] | list[dict[str, Any]] | None:
    """The best trial; of several objectives, the trials that no other one beats in all."""
    if objectives > 1:
        return [_brief(trial) for trial in study.optuna.best_trials]
    try:
        return _brief(study.best_trial)
    except ValueError:
        return None


def _brief(trial: FrozenTrial) -> dict[str, Any]:
    return {"number": trial.number, "values": trial.values, "params": trial.params}


def _running_peers(state: State) -> dict[str, int]:
    """Site -> peers that run a trial there now, as far as the log says."""
    owners = {state.trials[number].owner for number in list(state.running)}
    sites = Counter(state.peers.get(owner or "", {}).get("site", "?") for owner in owners)
    return dict(sorted(sites.items()))


def of_trial(study: Study, frozen: FrozenTrial, trial: Trial, attributes: dict[str, Any]) -> dict[str, Any]:
    """What one wants to know of a trial at a glance."""
    state = study.state
    peer = state.peers.get(trial.owner or "", {})
    ended = trial.end is not None and trial.start is not None
    return {
        "number": trial.number,
        "state": frozen.state.name,
        "values": frozen.values,
        "params": frozen.params or _fixed(frozen),
        "start": iso_time(trial.start),
        "end": iso_time(trial.end),
        "seconds": (trial.end - trial.start) / 1e6 if ended and trial.end and trial.start else None,
        "attempt": trial.attempt,
        "site": peer.get("site"),
        "host": peer.get("host"),
        "reason": trial.reason,
        "tags": notes.read_tags(attributes, trial.number),
    }


def _fixed(frozen: FrozenTrial) -> dict[str, Any]:
    """What a queued trial will be run with: it has no parameters until somebody asks for it."""
    fixed = frozen.system_attrs.get("fixed_params")
    return fixed if frozen.state.name == "WAITING" and isinstance(fixed, dict) else {}


def more_of_trial(study: Study, frozen: FrozenTrial, trial: Trial, attributes: dict[str, Any]) -> dict[str, Any]:
    """What `trial show` adds."""
    return {
        "reports": dict(sorted(frozen.intermediate_values.items())),
        "distributions": {name: spec(one) for name, one in frozen.distributions.items()},
        "user_attrs": frozen.user_attrs,
        "system_attrs": frozen.system_attrs,
        "owner": trial.owner,
        "epoch": trial.epoch,
        "stop_requested": trial.stop,
        "stop_acknowledged": trial.stopping,
        "retry_of": trial.retry_of,
        "retried_by": trial.retried_by,
        "late_of": trial.late_of,
        "history": [
            {
                "owner": tenure.owner,
                "epoch": tenure.epoch,
                "start": iso_time(tenure.start),
                "end": iso_time(tenure.end),
                "why": tenure.why,
                "kept_as": tenure.kept_as,
                "host": study.state.peers.get(tenure.owner, {}).get("host"),
            }
            for tenure in trial.history
        ],
        "provenance": study.provenance(trial.number),
        "note": notes.read_note(attributes, frozen._trial_id),
    }
