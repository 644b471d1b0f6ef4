"""Which studies a store holds: the state of the directory log.

A study's id is its position in that log's order of openings, deleted ones included, so an id is never used twice and
every peer counts alike. Trial ids follow from it: `study_id * 2**32 + number`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.records import UNSTAMPED, Commit, Stamp, StudyClose, StudyOpen
from hopaas_p2p.core.state import LastCommit, Verdict
from hopaas_p2p.errors import InvalidInput

MAX_NAME: Final = 200
UUID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Listing(NamedTuple):
    """One study of the store."""

    study_id: int
    uuid: str
    name: str


class Catalog:
    """The studies after commits 1..lsn of the directory log."""

    __slots__ = ("by_id", "by_name", "ids", "lsn", "refusals", "uuids", "writers")

    def __init__(self) -> None:
        self.lsn = 0
        self.ids = 0
        self.by_id: dict[int, Listing] = {}
        self.by_name: dict[str, Listing] = {}
        self.uuids: set[str] = set()
        """Those of all studies that ever were: none is used twice."""
        self.writers: dict[str, LastCommit] = {}
        self.refusals: dict[str, int] = {}

    def apply(self, lsn: int, commit: Commit | Garbage, stamp: Stamp = UNSTAMPED) -> tuple[Verdict, ...]:
        """Take one commit in; same contract as `apply.apply`."""
        self.lsn = lsn
        if isinstance(commit, Garbage):
            self._refuse("malformed")
            return ()
        last = self.writers.get(commit.writer)
        if last is not None and commit.seq <= last.seq:
            self._refuse("duplicate")
            return last.verdicts if commit.seq == last.seq else ()
        verdicts = tuple([self._apply_record(record, stamp) for record in commit.records])
        self.writers[commit.writer] = LastCommit(commit.seq, lsn, verdicts)
        return verdicts

    def _apply_record(self, record: object, stamp: Stamp) -> Verdict:
        if isinstance(record, StudyOpen):
            return self._open(record)
        if isinstance(record, StudyClose):
            return self._close(record, stamp)
        return self._refuse("malformed")

    def _refuse(self, reason: str, study_id: int | None = None) -> Verdict:
        self.refusals[reason] = self.refusals.get(reason, 0) + 1
        return Verdict(False, study_id, reason)

    def _open(self, record: StudyOpen) -> Verdict:
        if flaw(record.name) is not None or not UUID.fullmatch(record.uuid):
            return self._refuse("malformed")
        if record.name in self.by_name:
            return self._refuse("exists", self.by_name[record.name].study_id)
        if record.uuid in self.uuids:
            return self._refuse("exists")
        self.uuids.add(record.uuid)
        listing = Listing(self.ids, record.uuid, record.name)
        self.ids += 1
        self.by_id[listing.study_id] = self.by_name[listing.name] = listing
        return Verdict(True, listing.study_id)

    def _close(self, record: StudyClose, stamp: Stamp) -> Verdict:
        if stamp.role not in ("owner", f"owner:{record.uuid}"):  # of the store, or of that study
            return self._refuse("role")
        for listing in self.by_id.values():
            if listing.uuid == record.uuid:
                del self.by_id[listing.study_id]
                del self.by_name[listing.name]
                return Verdict(True, listing.study_id)
        return self._refuse("no such study")


def checked_name(name: str) -> str:
    """The name, if a study may carry it.

    Raises:
        InvalidInput: too long, or with control characters or path parts, which would harm a terminal or a file name.

    """
    what = flaw(name)
    if what is not None:
        raise InvalidInput(what)
    return name


def flaw(name: str) -> str | None:
    """What is wrong with a name, if anything is."""
    if len(name) > MAX_NAME:
        return f"a study name of {len(name)} characters; at most {MAX_NAME}"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return f"the study name {name!r} holds control characters; use printable ones"
    if name in (".", "..") or "/" in name or "\\" in name:
        return f"the study name {name!r} looks like a path; use a name without slashes, such as 'run-7'"
    return None
