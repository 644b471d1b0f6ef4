"""Who did what and when, read from the raw log of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hopaas_p2p.analysis.facts import count
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

    A commit that is unreadable, or that was sent again, gets one line. The author is the user that the store vouches
    for. A store without users has none, and the line shows what the peer claims to be. A dashboard with sign-in adds on
    whose behalf it acted.
    """
    state, log = State(), study.storage.peer.store.log(study.handle.uuid)
    return [line for entry in read_all(log) for line in _lines(state, entry)]


def _lines(state: State, entry: Entry) -> list[dict[str, Any]]:
    """Apply the entry to the state, and describe its records."""
    decoded = codec.decode(entry.payload)
    commit = decoded if isinstance(decoded, Commit) else None
    last = None if commit is None else state.writers.get(commit.writer)
    verdicts = apply(state, entry.lsn, decoded, entry.stamp)
    if isinstance(decoded, codec.Garbage):
        found = [_content("unreadable", None, decoded.why, "malformed")]
    elif not verdicts or (last is not None and verdicts is last.verdicts):
        found = [_content("repeated", None, "", "duplicate")] if decoded.records else []
    else:
        found = [_described(*pair) for pair in zip(decoded.records, verdicts, strict=True)]
    said: Mapping[str, str] = {}
    if commit is not None:
        said = state.peers.get(commit.writer) or state.peers.get(commit.owner) or {}
    about = {
        "lsn": entry.lsn,
        "time": to_iso(entry.stamp.at or (commit.at if commit else None)),
        "clock": "store" if entry.stamp.at else "peer",
        "author": entry.stamp.author or None,
        "claimed": f"{said.get('user', '?')}@{said.get('host', '?')}" if said else None,
        "on_behalf_of": said.get("on_behalf_of"),
        "writer": commit.writer if commit else None,
        "owner": commit.owner if commit else None,
    }
    return [about | one for one in found]


def _content(kind: str, trial: int | None, detail: str, refused: str | None) -> dict[str, Any]:
    return {"kind": kind, "trial": trial, "detail": detail, "refused": refused}


def _described(record: object, verdict: Verdict) -> dict[str, Any]:
    if isinstance(record, Opaque):
        return _content("unknown", None, "", verdict.refusal)
    kind = record.__struct_config__.tag  # type: ignore[attr-defined]
    number = verdict.number if verdict.number is not None else getattr(record, "number", None)
    parts: list[str | None]
    match record:
        case StudyControl(status, budget, limits):
            moved = "" if budget is None else f"budget {'lifted' if budget < 0 else budget}"
            parts = [status, moved, "" if limits is None else f"limits {words(limits) or 'lifted'}"]
        case TrialFinish(_, _, state, values, reason) | TrialTakeOver(_, _, state, values, reason):
            by = f"by {record.by}" if isinstance(record, TrialTakeOver) else ""
            numbers = ", ".join(f"{value:.6g}" for value in values or ())
            parts = [state.name, numbers, by, _first_line(reason)]
        case TrialSet(_, _, params, _, reports, user, system, metrics=metrics):
            counts = {
                "parameter": len(params),
                "report": len(reports),
                "metric": len(metrics),
                "attribute": len(user) + len(system),
            }
            parts = [", ".join(count(number, what) for what, number in counts.items() if number)]
        case PeerJoin(info):
            parts = [f"{info.get('site', '?')} pid {info.get('pid', '?')}"]
        case _:
            parts = [_first_line(getattr(record, "reason", None) or getattr(record, "name", None))]
    return _content(kind, number, " ".join(part for part in parts if part), verdict.refusal)


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


def author(line: dict[str, Any]) -> str:
    """The author of a line: the login or the peer, and the person on whose behalf it claims to have acted."""
    name: str = line["author"] or line["claimed"] or line["writer"] or "?"
    return f"{name} for {line['on_behalf_of']}" if line["on_behalf_of"] else name
