"""One file with everything a store holds, or with one study, and how to restore it.

A backup only reads the store, while peers continue to work, so users can back up the studies that they may read. The
file is a zip archive:

    catalog              the commits of the list of studies; none in a file of one study
    access               the commits of the list of users, tokens and grants, of a directory or bucket
    study/{uuid}         a study's commits
    base/{uuid}          the snapshot that replaces commits removed by `gc`, if any
    files/{key}          files and, in a backup of a store, checkpoints
    backup.json          the contents: names, last commits, digests of the replayed states

The archive has a checksum of each member. A member with commits is a sequence of frames: four bytes with the length of
the rest, then an `Entry` as msgpack.

Each study ends at its last commit at the time of reading, and the list of studies is read until it names no new ones.
Files are read after the logs, so that all files that a log mentions are there.

A restore fills an empty store, or continues an interrupted restore of the same backup. It never undoes a commit, and so
refuses a store whose logs the backup does not contain, or in which peers are alive. The list of studies comes
last, so a study appears only when it is complete. A newly created directory or bucket has its own uuid, so peers of
the old one notice, and spool their results, which are delivered by the study's uuid (see `spool`). Any study of such a
file can also be added to a store in which others work, as a copy: see `import_study`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from hopaas_p2p.analysis.facts import count
from hopaas_p2p.core import catalog as catalogs
from hopaas_p2p.core import codec, snapshot
from hopaas_p2p.core.apply import apply
from hopaas_p2p.core.catalog import Catalog, Listing
from hopaas_p2p.core.names import valid_key, valid_name
from hopaas_p2p.core.state import State
from hopaas_p2p.errors import (
    TEMPORARY,
    ConfigurationError,
    Denied,
    HopaasError,
    InvalidInput,
    StoreCorrupt,
    StudyDeleted,
    waits_for,
)
from hopaas_p2p.moving.records import StudyRecords, of_state
from hopaas_p2p.runtime import settings
from hopaas_p2p.runtime.atomic import open_regular, replace_atomically, scratch
from hopaas_p2p.stores.base import Artifacts, Entry, Log, Store, read_all

_BROKEN: Final = (KeyError, OSError, ValueError, OverflowError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What `zipfile` raises for an archive with false lengths, places or contents."""
_COMMENT: Final = b"hopaas-backup 1"
_MANIFEST: Final = "backup.json"
_FILES: Final = "files/"
CATALOG: Final = "catalog"
ACCESS: Final = "access"
_LARGEST: Final = codec.MAX_BYTES + (1 << 20)  # bytes of a frame
_SMALL: Final = 1 << 20
_RATIO: Final = 32
"""Each part may inflate to _SMALL plus _RATIO times its bytes in the file; real logs grow fivefold."""
_decode_frame: Final = msgspec.msgpack.Decoder(Entry).decode

Say = Callable[[str], None]


class StudyBackup(msgspec.Struct, frozen=True):
    """One study in the backup."""

    study_id: int
    uuid: str
    name: str
    lsn: int
    trials: int
    digest: str
    """The digest of the state after the last commit, by `core.snapshot.digest`."""
    base: int = 0
    """The lsn of the snapshot that the study begins with; 0 if it begins with the first commit."""


class Manifest(msgspec.Struct, frozen=True):
    """The content of a backup."""

    at: int
    """The time of the backup, in microseconds since 1970."""
    catalog_digest: str
    """Empty in a file of one study."""
    studies: list[StudyBackup]
    left_out: dict[str, str]
    """Study -> why it was left out."""
    files: int
    files_left_out: str
    """Why files and checkpoints were left out; empty if they were not."""


# --- writing ---


def back_up(
    store: Store, target: Path, *, only: str | None = None, files: bool = True, say: Say = lambda _: None
) -> Manifest:
    """Write the store's logs and files to one file, which is created whole or not at all.

    Args:
        store: the source.
        target: the file.
        only: the uuid of the only study to write; its checkpoints are left out.
        files: whether files and checkpoints are written, too.
        say: called with a message about each study that was read.

    Raises:
        StoreCorrupt: a study is damaged; rescue it first.
        StoreUnreachable: the store did not answer.

    """
    with replace_atomically(target, private=True, sync=True) as draft:
        manifest = _write(store, draft, only, files, say, zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(draft) as archive:
            grows = any(map(_grows, archive.infolist()))
        if grows:  # peers may write data that packs to a thousandth, which in somebody else's file would be a bomb
            manifest = _write(store, draft, only, files, lambda _: None, zipfile.ZIP_STORED)
        read(draft).close()  # checks that it is complete and undamaged
    return manifest


def _write(store: Store, draft: Path, only: str | None, files: bool, say: Say, packing: int) -> Manifest:
    with zipfile.ZipFile(draft, "w", packing) as archive:
        catalog, entries, studies, left_out = _write_studies(store, archive, only, say)
        _write_entries(archive, CATALOG, entries if only is None else ())
        if only is None and _lists_users(store):
            _write_entries(archive, ACCESS, read_all(store.log(ACCESS)))
        kept = [one for one in studies if one.uuid in catalog.by_uuid]
        count, why = 0, "" if files else "left out by --no-files"
        if files and settings.artifacts_url() is not None:
            why = "they are stored elsewhere (HOPAAS_ARTIFACTS); back that up as well"
        if not why:
            try:
                prefixes = [f"{one.uuid}/{'' if only is None else 'file/'}" for one in kept]
                count = _write_files(store.artifacts(), archive, prefixes)
            except ConfigurationError as error:
                why = str(error)
        manifest = Manifest(
            at=time.time_ns() // 1000,
            catalog_digest=_digest_of(catalog) if only is None else "",
            studies=kept,
            left_out=left_out,
            files=count,
            files_left_out=why,
        )
        archive.writestr(_MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        archive.comment = _COMMENT
    return manifest


def _lists_users(store: Store) -> bool:
    """Whether users, tokens and grants are in one of the store's logs; a database keeps them itself."""
    return not store.url.startswith("postgresql")


def _write_studies(
    store: Store, archive: zipfile.ZipFile, only: str | None, say: Say
) -> tuple[Catalog, list[Entry], list[StudyBackup], dict[str, str]]:
    """Write all studies until their list names no new ones. Returns the list's entries, and the omitted studies."""
    catalog, entries = Catalog(), list[Entry]()
    studies: dict[str, StudyBackup] = {}
    left_out: dict[str, str] = {}
    seen: set[str] = set()
    while True:
        later = list(read_all(store.catalog(), catalog.lsn))
        entries += later
        catalog.replay(later)
        left = [one for one in catalog.by_id.values() if one.uuid not in seen and only in (None, one.uuid)]
        if not left:
            break
        for one in left:
            seen.add(one.uuid)
            try:
                studies[one.uuid] = _write_study(store, archive, one)
                left_out.pop(one.name, None)  # an entry of a deleted study of the same name
                say(f"{one.name}: {count(studies[one.uuid].trials, 'trial')}, {count(studies[one.uuid].lsn, 'commit')}")
            except Denied:
                left_out[one.name] = "not shared with this user"
            except StudyDeleted:
                left_out[one.name] = "deleted meanwhile"
    return catalog, entries, list(studies.values()), left_out


def _write_study(store: Store, archive: zipfile.ZipFile, one: Listing) -> StudyBackup:
    log = store.log(one.uuid)
    state, base = State(), 0
    if log.removed_up_to():
        found = log.newest_snapshot()
        if found is None:
            raise StoreCorrupt(f"the study {one.name!r} has no snapshot for the commits that were removed from it")
        base, data = found
        state = _loaded(data, one.name)
        archive.writestr(f"base/{one.uuid}", data)
    try:
        _write_entries(archive, f"study/{one.uuid}", _replayed(state, read_all(log, base)))
    except StoreCorrupt as error:
        raise StoreCorrupt(f"the study {one.name!r} is damaged: {error}") from None
    return StudyBackup(one.study_id, one.uuid, one.name, state.lsn, len(state.trials), snapshot.digest(state), base)


def _write_files(artifacts: Artifacts, archive: zipfile.ZipFile, prefixes: list[str]) -> int:
    """Write the files whose keys have these prefixes; returns how many."""
    count = 0
    with scratch() as path:
        for key in itertools.chain.from_iterable(map(artifacts.keys, prefixes)):
            if not valid_key(key):
                continue
            try:
                artifacts.get(key, path)
            except KeyError:
                continue  # removed meanwhile, as old checkpoints are
            archive.write(path, f"{_FILES}{key}", zipfile.ZIP_STORED)
            count += 1
    return count


def _replayed(state: State, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yields these commits, applying each to the state."""
    for entry in entries:
        apply(state, entry.lsn, codec.decode(entry.payload), entry.stamp)
        yield entry


def _write_entries(archive: zipfile.ZipFile, name: str, entries: Iterable[Entry]) -> None:
    with archive.open(name, "w", force_zip64=True) as member:
        for one in entries:
            data = msgspec.msgpack.encode(one)
            member.write(len(data).to_bytes(4, "big") + data)


def _digest_of(catalog: Catalog) -> str:
    return hashlib.sha256(catalogs.dump(catalog)).hexdigest()


def _loaded(data: bytes, name: str) -> State:
    try:
        return snapshot.load(data)
    except snapshot.CorruptSnapshot:
        raise StoreCorrupt(f"the snapshot that the study {name!r} begins with is damaged") from None


# --- the file ---


class Backup(zipfile.ZipFile):
    """A backup that `read` opened and found intact."""

    manifest: Manifest

    def close(self) -> None:
        file = self.fp
        super().close()
        if file is not None:
            file.close()

    def base(self, one: StudyBackup) -> tuple[int, bytes] | None:
        """The snapshot with which a study begins."""
        with _unchanged():
            return (one.base, self.read(f"base/{one.uuid}")) if one.base else None

    def replayed(self, one: StudyBackup, log: Log | None = None) -> State:
        """The state of a study after the commits of the backup, or of this log."""
        base = self.base(one)
        state = State() if base is None else _loaded(base[1], one.name)
        for _ in _replayed(state, self.entries(f"study/{one.uuid}") if log is None else read_all(log, state.lsn)):
            pass
        return state

    def records(self, one: StudyBackup) -> StudyRecords:
        """A study as records, to be added elsewhere.

        Raises:
            InvalidInput: its commits define no study.

        """
        state = self.replayed(one)
        if state.define is None:
            raise _damaged(f"study/{one.uuid}")
        return of_state(state, uuid=one.uuid)

    def files(self) -> Iterator[str]:
        """The keys of all files."""
        return (name.removeprefix(_FILES) for name in self.namelist() if name.startswith(_FILES))

    def get(self, key: str, path: Path) -> None:
        """Write a file; raises KeyError if it is not in the backup."""
        with _unchanged(), self.open(_FILES + key) as member, path.open("wb") as file:
            shutil.copyfileobj(member, file)

    def entries(self, name: str) -> Iterator[Entry]:
        """The commits of a member: CATALOG, ACCESS or `study/{uuid}`; none if there is no such member."""
        if name not in self.namelist():
            return
        with _unchanged(), self.open(name) as member:
            while head := member.read(4):
                size = int.from_bytes(head, "big")
                if size > _LARGEST:
                    raise _damaged(name)
                try:
                    entry = _decode_frame(member.read(size))
                except msgspec.MsgspecError:
                    raise _damaged(name) from None
                yield entry


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Raise InvalidInput if the file's content is no longer what `read` found intact."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(str(error)) from None


def _damaged(what: str) -> InvalidInput:
    return InvalidInput(f"this backup is damaged ({what}); use another one")


def read(path: Path) -> Backup:
    """Open a backup and check every byte of it.

    Raises:
        InvalidInput: the file is not a backup, is damaged, or was made by a newer version.
        StoreUnreachable: the file cannot be read at the moment.

    """
    with contextlib.ExitStack() as stack, waits_for(str(path)):
        file = stack.enter_context(open(open_regular(path, named=True), "rb"))  # noqa: PTH123  # a FIFO would block
        try:
            opened = stack.enter_context(Backup(file))
        except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError):
            raise InvalidInput(f"{path} is neither a complete backup nor a file of a study") from None
        try:
            _check(opened, path)
        except _BROKEN as error:
            if isinstance(error, HopaasError) or (isinstance(error, OSError) and error.errno in TEMPORARY):
                raise
            raise _damaged(str(error)) from None
        stack.pop_all()
        return opened


def _check(archive: Backup, path: Path) -> None:
    """Check the archive, and read its manifest; raises an error about whatever is wrong."""
    if archive.comment != _COMMENT:
        raise InvalidInput(f"{path} is not a backup that this version can read")
    members = archive.infolist()
    if any(map(_grows, members)):
        raise _damaged("a part of it grows too large")
    assert archive.fp is not None
    if sum(one.compress_size for one in members) > os.fstat(archive.fp.fileno()).st_size:
        raise _damaged("its parts overlap")
    if (wrong := archive.testzip()) is not None:
        raise _damaged(wrong)
    archive.manifest = manifest = msgspec.json.decode(archive.read(_MANIFEST), type=Manifest)
    uuids, files, names = [one.uuid for one in manifest.studies], list(archive.files()), archive.namelist()
    needed = {CATALOG, *(f"study/{uuid}" for uuid in uuids)}
    needed |= {f"base/{one.uuid}" for one in manifest.studies if one.base}
    valid = all(map(valid_name, uuids)) and all(map(valid_key, files)) and len(files) == manifest.files
    if not valid or not needed <= set(names) or len(set(uuids)) < len(uuids) or len(set(names)) < len(names):
        raise _damaged(_MANIFEST)


def _grows(one: zipfile.ZipInfo) -> bool:
    """Whether a part inflates more than any that we write. Files are stored uncompressed, other parts within limits."""
    if one.filename.startswith(_FILES):
        return one.compress_type != zipfile.ZIP_STORED
    packed = one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    return packed or one.file_size > _SMALL + _RATIO * one.compress_size


# --- restore ---


def restore(backup: Backup, store: Store, *, watch: Callable[[float], None] = time.sleep) -> bool:
    """Fill an empty store from a backup, and check that it replays to the states that were backed up.

    Returns whether everything was already there.

    Raises:
        ConfigurationError: the store has content that the backup lacks, or peers are alive in it, or it cannot hold
            such a backup. Nothing was written.
        StoreCorrupt: the restored logs do not replay to the same states.
        Denied: this login may not restore; in a database only an administrator may.

    """
    manifest = backup.manifest
    if not manifest.catalog_digest:
        raise ConfigurationError("this file holds one study. To add it to a store: hopaas-p2p study import --from FILE")
    logs = [store.log(one.uuid) for one in manifest.studies]
    if any(one.base and not log.begins_anywhere for one, log in zip(manifest.studies, logs, strict=True)):
        raise ConfigurationError(
            "the first commits of a study were removed from a bucket before this backup was made, so only a bucket can "
            "hold the rest. Restore it into one, and copy the study: hopaas-p2p study copy BUCKET TO"
        )
    lists = [("the list of studies", store.catalog(), CATALOG)]
    lists += [("the list of users", store.log(ACCESS), ACCESS)] if _lists_users(store) else []
    there = [_has_all(what, log, backup.entries(member), store, 0) for what, log, member in lists]
    for one, log in zip(manifest.studies, logs, strict=True):
        entries = backup.entries(f"study/{one.uuid}")
        there.append(_has_all(f"the study {one.name!r}", log, entries, store, one.base))
    if not all(there):
        _check_nobody_lives(backup, store, watch)
    for one, log in zip(manifest.studies, logs, strict=True):
        log.restore(backup.base(one), backup.entries(f"study/{one.uuid}"))
    if manifest.files:
        artifacts = store.artifacts()
        with scratch() as path:
            for key in backup.files():
                backup.get(key, path)
                artifacts.put(key, path)
    for _, log, member in lists:  # of two restores at once, the one that fails at the first list writes no users
        log.restore(None, backup.entries(member))
    _check_replay(backup, store)
    return all(there)


def _has_all(what: str, log: Log, entries: Iterator[Entry], store: Store, base: int) -> bool:
    """Whether the log has all of these commits. Raises ConfigurationError if the log has other commits, or more."""
    try:
        for here, there in itertools.zip_longest(read_all(log, base if log.removed_up_to() else 0), entries):
            if here is None:
                return False
            if there is None:
                raise ConfigurationError(
                    f"{what} has commit {here.lsn} in the store, and the backup ends before it. A restore would undo "
                    "commits that others have seen. Restore into an empty store"
                )
            if here != there:
                raise ConfigurationError(
                    f"commit {here.lsn} of {what} differs between the store and the backup; restore into an empty store"
                )
    except StudyDeleted:
        raise ConfigurationError(f"{what} was deleted in {store.url}; restore into an empty store") from None
    return True


def _check_nobody_lives(backup: Backup, store: Store, watch: Callable[[float], None]) -> None:
    """Watch the heartbeats of all peers in the backup. Raises ConfigurationError if one changes."""
    peers: dict[str, str] = {}
    ttl = 0.0
    for one in backup.manifest.studies:
        state = backup.replayed(one)
        peers |= {peer: f"{info.get('host', '?')}, pid {info.get('pid', '?')}" for peer, info in state.peers.items()}
        ttl = max(ttl, state.policy.ttl)
    before = store.beats(peers)
    if not before:
        return
    watch(ttl / 2)
    after = store.beats(peers)
    alive = [peers[peer] for peer in peers if after.get(peer) != before.get(peer)]
    if alive:
        raise ConfigurationError(
            f"{count(len(alive), 'live peer')} in {store.url} ({'; '.join(alive[:5])}) may have commits that the "
            "backup lacks. Stop all peers first. Results that they could not send stay in their spool"
        )


def _check_replay(backup: Backup, store: Store) -> None:
    catalog = Catalog()
    catalog.replay(read_all(store.catalog()))
    differ = [] if _digest_of(catalog) == backup.manifest.catalog_digest else ["the list of studies"]
    restored = ((one, backup.replayed(one, store.log(one.uuid))) for one in backup.manifest.studies)
    differ += [one.name for one, state in restored if snapshot.digest(state) != one.digest]
    if differ:
        raise StoreCorrupt(
            f"restored, but the result differs from the backup: {', '.join(differ)}. Do not use this store"
        )
