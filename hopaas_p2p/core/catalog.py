"""The studies of a store, which are the state of its catalog log.

A study's id is the number of studies that were registered before it, including deleted ones, so no id is used twice and
all peers agree on it. A trial's id is `study_id * 2**32 + number`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.codec import Garbage
from hopaas_p2p.core.names import valid_name
from hopaas_p2p.core.records import Commit, Stamp, StudyRegistered, StudyRemoved
from hopaas_p2p.core.snapshot import CorruptSnapshot
from hopaas_p2p.core.state import LastCommit, LogState, Verdict
from hopaas_p2p.errors import InvalidInput

MAX_NAME: Final = 200
RESERVED: Final = frozenset({"catalog", "access"})
"""Names of logs that belong to the store itself, so no study may have them as its uuid."""
VERSION: Final = 2
_CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LIKE_LATIN: Final = frozenset({"CYRILLIC", "ARMENIAN", "CHEROKEE"})
_GREEK_LIKE_LATIN: Final = frozenset("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο")  # noqa: RUF001  # no other Greek letter looks like a Latin one


class Listing(NamedTuple):
    """One study of the store."""

    study_id: int
    uuid: str
    name: str


class Catalog(LogState):
    """The studies after commits 1..lsn of the catalog log."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = 0
        self.by_id: dict[int, Listing] = {}
        self.by_name: dict[str, Listing] = {}
        self.by_uuid: dict[str, Listing] = {}
        self.uuids: set[str] = set()
        """The uuids of all studies that have ever existed; none of them may be used again."""

    def replay(self, entries: Iterable[Any]) -> None:
        """Apply these entries of the catalog log, each with the role of its author."""
        for entry in entries:
            self.apply(entry.lsn, codec.decode(entry.payload), entry.stamp)

    def apply(self, lsn: int, commit: Commit | Garbage, stamp: Stamp) -> tuple[Verdict, ...]:
        """Apply one commit; same contract as `apply.apply`."""
        self.lsn, self.sum = lsn, None
        known = self.decided(commit, stamp)
        if known is not None:
            return known
        assert isinstance(commit, Commit)
        verdicts = tuple([self._apply_record(record, stamp) for record in commit.records])
        self.writers[commit.writer] = LastCommit(commit.seq, lsn, verdicts, stamp.author)
        return verdicts

    def _apply_record(self, record: object, stamp: Stamp) -> Verdict:
        if not isinstance(record, StudyRegistered | StudyRemoved):
            return self.refuse("malformed")
        if stamp.role not in ("owner", f"owner:{record.uuid}"):  # owner of the store, or of this existing study
            return self.refuse("role")
        if isinstance(record, StudyRemoved):
            gone = self.by_uuid.pop(record.uuid, None)
            if gone is None:
                return self.refuse("no such study")
            del self.by_id[gone.study_id], self.by_name[gone.name]
            return Verdict(True, gone.study_id)
        if flaw(record.name) is not None or not valid_name(record.uuid) or record.uuid in RESERVED:
            return self.refuse("malformed")
        same = self.by_name.get(record.name)
        if same is not None or record.uuid in self.uuids:
            return self.refuse("exists", None if same is None else same.study_id)
        self.uuids.add(record.uuid)
        listing = Listing(self.ids, record.uuid, record.name)
        self.ids += 1
        self.by_id[listing.study_id] = self.by_name[listing.name] = self.by_uuid[listing.uuid] = listing
        return Verdict(True, listing.study_id)


def checked_name(name: str) -> str:
    """The name, if a new study may have it. An existing study with a confusable name keeps it.

    Raises:
        InvalidInput: the name is not a string, is too long, has control characters or looks like a path, which would
            harm a terminal or a file name; or it can be mistaken for another name because of spaces at its ends,
            invisible characters or mixed alphabets.

    """
    if not isinstance(name, str):
        raise InvalidInput(f"a study's name must be a string, not {name!r}")
    what = flaw(name)
    if what is None and name != name.strip():
        what = f"the study name {name!a} begins or ends with a space; remove it"
    if what is None and any(unicodedata.category(character) == "Cf" for character in name):
        what = f"the study name {name!a} contains invisible characters; remove them"
    if what is None and mixes_alphabets(name):
        what = f"the study name {name!a} mixes look-alike letters of several alphabets; use only one"
    if what is not None:
        raise InvalidInput(what)
    return str(name)


def mixes_alphabets(name: str) -> bool:
    """Whether the name mixes Latin letters with Cyrillic, Armenian or Cherokee ones, or Greek ones that look Latin."""
    if name.isascii():
        return False
    alphabets = {unicodedata.name(letter, "").split(" ")[0] for letter in name if letter.isalpha()}
    return "LATIN" in alphabets and not (alphabets.isdisjoint(_LIKE_LATIN) and _GREEK_LIKE_LATIN.isdisjoint(name))


def flaw(name: str) -> str | None:
    """Why the log refuses a name, or None. For a new name, `checked_name` is stricter."""
    if len(name) > MAX_NAME:
        return f"a study name has at most {MAX_NAME} characters, got {len(name)}"
    if _CONTROL.search(name):
        return f"the study name {name!r} contains control characters; use printable ones"
    if name in (".", "..") or "/" in name or "\\" in name:
        return f"the study name {name!r} looks like a path; use a name without slashes, such as 'run-7'"
    return None


# --- Catalog <-> bytes, framed like a study's snapshot: for stores in which every commit is costly to read ---

_MAGIC: Final = b"hopaas-catalog\n"


class _Catalog(msgspec.Struct, array_like=True):
    version: int
    lsn: int
    ids: int
    listings: list[Listing]
    gone: list[str]
    writers: dict[str, LastCommit]
    refusals: dict[str, int]
    chain: int | None = None


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Catalog).decode


def dump(catalog: Catalog) -> bytes:
    """The snapshot of this catalog."""
    listings = list(catalog.by_id.values())
    gone = sorted(catalog.uuids - {one.uuid for one in listings})
    body = _Catalog(VERSION, catalog.lsn, catalog.ids, listings, gone, catalog.writers, catalog.refusals, catalog.sum)
    return snapshot.seal(_MAGIC, _encode(body))


def load(data: bytes) -> Catalog:
    """The catalog of a snapshot.

    Raises:
        CorruptSnapshot: the snapshot is damaged, or was written by a version that this code does not read.

    """
    try:
        found = _decode(snapshot.unseal(_MAGIC, data))
    except (msgspec.MsgspecError, RecursionError):
        raise CorruptSnapshot from None
    if found.version != VERSION:
        raise CorruptSnapshot
    catalog = Catalog()
    catalog.lsn, catalog.sum, catalog.ids, catalog.refusals = found.lsn, found.chain, found.ids, found.refusals
    catalog.writers = found.writers
    for listing in found.listings:
        catalog.by_id[listing.study_id] = catalog.by_name[listing.name] = catalog.by_uuid[listing.uuid] = listing
    catalog.uuids = {*catalog.by_uuid, *found.gone}
    sound = (
        len(catalog.by_id) == len(catalog.by_name) == len(found.listings)
        and len(catalog.uuids) == len(found.listings) + len(found.gone) == found.ids
        and all(0 <= study_id < found.ids for study_id in catalog.by_id)
        and all(valid_name(uuid) and uuid not in RESERVED for uuid in catalog.uuids)
        and not any(flaw(name) for name in catalog.by_name)
    )
    if not sound:
        raise CorruptSnapshot
    return catalog
