"""Which studies a store holds: the state of the directory log.

A study's id is its position in that log's order of openings, deleted ones included, so an id is never used twice and
every peer counts alike. Trial ids follow from it: `study_id * 2**32 + number`.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.records import UNSTAMPED, Commit, Stamp, StudyClose, StudyOpen
from hopaas_p2p.core.state import LastCommit, Verdict
from hopaas_p2p.errors import InvalidInput

MAX_NAME = 200


class Listing(NamedTuple):
    """One study of the store."""

    study_id: int
    uuid: str
    name: str


class Catalog:
    """The studies after commits 1..lsn of the directory log."""

    __slots__ = ("by_id", "by_name", "ids", "lsn", "writers")

    def __init__(self) -> None:
        self.lsn = 0
        self.ids = 0
        self.by_id: dict[int, Listing] = {}
        self.by_name: dict[str, Listing] = {}
        self.writers: dict[str, LastCommit] = {}

    def apply(self, lsn: int, commit: Commit | Garbage, stamp: Stamp = UNSTAMPED) -> tuple[Verdict, ...]:
        """Take one commit in; same contract as `state.apply`."""
        self.lsn = lsn
        if isinstance(commit, Garbage):
            return ()
        last = self.writers.get(commit.writer)
        if last is not None and commit.seq <= last.seq:
            return last.verdicts if commit.seq == last.seq else ()
        verdicts = tuple([self._apply_record(record, stamp) for record in commit.records])
        self.writers[commit.writer] = LastCommit(commit.seq, lsn, verdicts)
        return verdicts

    def _apply_record(self, record: object, stamp: Stamp) -> Verdict:
        if isinstance(record, StudyOpen):
            return self._open(record)
        if isinstance(record, StudyClose):
            return self._close(record, stamp)
        return Verdict(False, None, "malformed")

    def _open(self, record: StudyOpen) -> Verdict:
        if record.name in self.by_name:
            return Verdict(False, self.by_name[record.name].study_id, "exists")
        listing = Listing(self.ids, record.uuid, record.name)
        self.ids += 1
        self.by_id[listing.study_id] = self.by_name[listing.name] = listing
        return Verdict(True, listing.study_id)

    def _close(self, record: StudyClose, stamp: Stamp) -> Verdict:
        if stamp.role not in ("owner", f"owner:{record.uuid}"):  # of the store, or of that study
            return Verdict(False, None, "role")
        for listing in self.by_id.values():
            if listing.uuid == record.uuid:
                del self.by_id[listing.study_id]
                del self.by_name[listing.name]
                return Verdict(True, listing.study_id)
        return Verdict(False, None, "no such study")


def checked_name(name: str) -> str:
    """The name, if a study may carry it.

    Raises:
        InvalidInput: too long, or with control characters or path parts, which would harm a terminal or a file name.

    """
    if len(name) > MAX_NAME:
        raise InvalidInput(f"a study name of {len(name)} characters; at most {MAX_NAME}")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise InvalidInput(f"the study name {name!r} holds control characters; use printable ones")
    if name in (".", "..") or "/" in name or "\\" in name:
        raise InvalidInput(f"the study name {name!r} looks like a path; use a name without slashes, such as 'run-7'")
    return name
