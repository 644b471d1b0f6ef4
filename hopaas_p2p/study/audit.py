"""Who did what and when, read from the raw log of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hopaas_p2p.core import codec
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.records import Commit, Opaque, PeerJoin, StudyControl, TrialFinish, TrialSet, TrialTakeOver
from hopaas_p2p.core.state import State, Verdict
from hopaas_p2p.runtime.times import to_iso
from hopaas_p2p.spec.budget import words
from hopaas_p2p.stores.base import Entry, read_all

if TYPE_CHECKING:
    from hopaas_p2p.study import Study


def audit(study: Study) -> list[dict[str, Any]]:
    """One line per record: lsn, time, author, kind, trial, content, and the reason if it was refused.

    The author is the user that the store vouches for. A store without users has none, and the line shows what the peer
    claims to be. A dashboard with sign-in adds on whose behalf it acted.
    """
    state, log = State(), study.storage.peer.store.log(study.handle.uuid)
    return [line for entry in read_all(log) for line in _lines(state, entry)]


def _lines(state: State, entry: Entry) -> list[dict[str, Any]]:
    commit = codec.decode(entry.payload)
    if isinstance(commit, codec.Garbage):
        apply(state, entry.lsn, commit, entry.stamp)
        return [_line(state, entry, None, "unreadable", None, commit.why, "malformed")]
    last = state.writers.get(commit.writer)
    verdicts = apply(state, entry.lsn, commit, entry.stamp)
    if last is not None and verdicts is last.verdicts:
        verdicts = ()
    if not verdicts and commit.records:
        return [_line(state, entry, commit, "repeated", None, "", "duplicate")]
    return [_record(state, entry, commit, *pair) for pair in zip(commit.records, verdicts, strict=True)]


def _record(state: State, entry: Entry, commit: Commit, record: object, verdict: Verdict) -> dict[str, Any]:
    if isinstance(record, Opaque):
        return _line(state, entry, commit, "unknown", None, "", verdict.refusal)
    kind = record.__struct_config__.tag  # type: ignore[attr-defined]
    number = verdict.number if verdict.number is not None else getattr(record, "number", None)
    return _line(state, entry, commit, kind, number, _detail(record), verdict.refusal)


def _detail(record: object) -> str:
    match record:
        case StudyControl(status, budget, limits):
            moved = "" if budget is None else f"budget {'lifted' if budget < 0 else budget}"
            limited = "" if limits is None else f"limits {words(limits) or 'lifted'}"
            return " ".join(part for part in (status, moved, limited) if part)
        case TrialFinish(_, _, state, values, reason):
            numbers = ", ".join(f"{value:.6g}" for value in values or ())
            return " ".join(part for part in (state.name, numbers, _first_line(reason)) if part)
        case TrialTakeOver(_, _, state, values, reason, by):
            numbers = ", ".join(f"{value:.6g}" for value in values or ())
            return " ".join(part for part in (state.name, numbers, f"by {by}", _first_line(reason)) if part)
        case TrialSet(_, _, params, _, reports, user, system, metrics=metrics):
            counts = {
                "parameters": len(params),
                "reports": len(reports),
                "metrics": len(metrics),
                "attributes": len(user) + len(system),
            }
            return ", ".join(f"{count} {what[:-1] if count == 1 else what}" for what, count in counts.items() if count)
        case PeerJoin(info):
            return f"{info.get('site', '?')} pid {info.get('pid', '?')}"
    return _first_line(getattr(record, "reason", None) or getattr(record, "name", None))


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def _line(
    state: State, entry: Entry, commit: Commit | None, kind: str, number: int | None, detail: str, refusal: str | None
) -> dict[str, Any]:
    said = state.peers.get(commit.writer) or state.peers.get(commit.owner) if commit else None
    claimed = f"{said.get('user', '?')}@{said.get('host', '?')}" if said else None
    person = said.get("on_behalf_of") if said else None
    return {
        "lsn": entry.lsn,
        "time": to_iso(entry.stamp.at or (commit.at if commit else None)),
        "clock": "store" if entry.stamp.at else "peer",
        "author": entry.stamp.author or None,
        "claimed": claimed,
        "on_behalf_of": person,
        "writer": commit.writer if commit else None,
        "owner": commit.owner if commit else None,
        "kind": kind,
        "trial": number,
        "detail": detail,
        "refused": refusal,
    }


def author(line: dict[str, Any]) -> str:
    """The author of a line: the login or the peer, and the person on whose behalf it claims to have acted."""
    name: str = line["author"] or line["claimed"] or line["writer"] or "?"
    return f"{name} for {line['on_behalf_of']}" if line["on_behalf_of"] else name
