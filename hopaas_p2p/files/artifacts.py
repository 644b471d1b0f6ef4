"""Files of studies and trials, such as models, plots and logs, kept in the study's store or at HOPAAS_ARTIFACTS.

    trial.upload("model.pt")                    # in the objective
    files = study.artifacts()
    for file in files.list(): files.get(file, Path(file.filename))

A file's name and type are in an attribute in Optuna's own format, so that optuna-dashboard shows it;
`study.artifacts()` is also an `ArtifactStore` for Optuna and its dashboard. Names serve only to show and find files.
Keys are derived from an id, and a file is checked against the checksum that was taken when it was stored, if there is
one.

An attribute may name any id, including that of another study's file, and the user who fetches or removes it may have
more rights than the author of the attribute. So every key begins with the uuid of the requesting study, and an id of
ours shows to which study it belongs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import mimetypes
import re
import shutil
import tempfile
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from hopaas_p2p.core.names import first_id
from hopaas_p2p.core.records import StudySet, TrialState
from hopaas_p2p.errors import UNDECIDED, HopaasError, InvalidInput, NoSuchFile, StoreCorrupt, waits_for
from hopaas_p2p.open import open_store
from hopaas_p2p.runtime import process, settings
from hopaas_p2p.runtime.arguments import shown
from hopaas_p2p.runtime.atomic import replace_atomically, scratch, sha256_of

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.storage.handle import StudyHandle
    from hopaas_p2p.stores.base import Artifacts, Progress, Store

_OPTUNA: Final = "artifacts:"
"""The prefix of Optuna's attributes for files, in a trial or a study."""
_DASHBOARD: Final = "dashboard:artifacts:"
"""The prefix of the dashboard's attributes for files of trials, in the study; a trial id follows."""
_DESCRIBES: Final = re.compile(r"(?:dashboard:artifacts:([0-9]{1,20}):|artifacts:)")
"""An attribute of a study that describes a file."""
SUM: Final = "hopaas:artifact:"
PREFIXES: Final = (_OPTUNA, SUM)
"""The beginnings of the names of a file's attributes; its id follows."""
OUTPUT: Final = "output.log"
"""The name of the file in which a worker stores the end of a failed command's output."""
_ID: Final = re.compile(r"[0-9a-fA-F-]{8,100}")
OWN_ID: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})")
"""The id of a file that was stored here: its study's uuid, and its own."""
_TYPE: Final = "application/octet-stream"
_MAX_NAME: Final = 200  # bytes; file systems take 255
_SHORTEST: Final = 4  # characters of an id that identify a file
_CHUNK: Final = 1 << 20


def artifacts_of(store: Store) -> Artifacts:
    """The place of the files of this store's studies: HOPAAS_ARTIFACTS if that is set, else the store itself.

    Raises:
        ConfigurationError: the place cannot be used; the message says what to change.

    """
    url = settings.artifacts_url()
    return (store if url is None else _artifact_store(url)).artifacts()


@functools.cache
def _artifact_store(url: str) -> Store:
    store = open_store(url)
    process.call_in_child(store.after_fork)
    return store


class Artifact(NamedTuple):
    """A file of a study or trial. Its name and type were written by others, so they can be shown, but not trusted."""

    id: str
    filename: str
    mimetype: str
    encoding: str | None
    trial: int | None
    """The number of the file's trial, or None for a file of the study itself."""
    size: int | None
    """Bytes; None if the file was stored by Optuna or its dashboard, which record no checksum."""
    sha256: str | None


class StudyArtifacts:
    """The files of one study and its trials; also an `optuna.artifacts` store, for `upload_artifact` and the dashboard.

    `put` and `get` block while the file is transferred. Methods may be called from any thread.
    """

    def __init__(self, storage: Storage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id

    @property
    def _handle(self) -> StudyHandle:
        return self._storage.handle(self._study_id)

    @property
    def _files(self) -> Artifacts:
        return artifacts_of(self._storage.peer.store)

    def put(
        self, source: str | Path, *, trial: int | None = None, filename: str | None = None, mimetype: str | None = None
    ) -> Artifact:
        """Store a file of the study, or of one trial, finished or not. Durable when this returns.

        Args:
            source: the path of the file; pack a directory into one file first.
            trial: the number of the file's trial; None for a file of the study.
            filename: the file's name in the study; by default the name in `source`.
            mimetype: the file's type; by default guessed from the name.

        Raises:
            InvalidInput: the file does not exist.
            NoSuchTrial: there is no such trial.
            ConfigurationError: the store cannot keep the file (Postgres, one above 64 MiB); the message says what to
                do.
            StoreUnreachable: the store does not answer.
            StoreCorrupt: the file changed while it was sent to Postgres; nothing was stored.
            LeaseLost: another peer took over the trial, which ran here; the file was removed again.
            Denied: this user may not write to the study.

        """
        path = existing_file(source, "expected the path of a file")
        handle = self._handle
        handle.refresh()
        trial = None if trial is None else handle.existing(trial).number
        name = safe_name(str(filename or path.name))
        with waits_for(str(path)):
            guessed, encoding = mimetypes.guess_type(name)  # the first time, it reads the system's files
            one = Artifact(
                id=f"{handle.uuid}-{uuid.uuid4().hex}",
                filename=name,
                mimetype=mimetype or guessed or _TYPE,
                encoding=encoding,
                trial=trial,
                size=path.stat().st_size,
                sha256=sha256_of(path),
            )
            key = key_of(one.id, handle.uuid)
            self._files.put(key, path)
        fields = {"artifact_id": one.id, "filename": name, "mimetype": one.mimetype, "encoding": encoding}
        description = json.dumps(fields)  # Optuna keeps JSON in a string
        checksum = {"size": one.size, "sha256": one.sha256}
        with removed_if_refused(self._files, key):
            if trial is not None and self._runs_here(trial):  # otherwise the study's attributes describe it
                handle.settle(trial, {SUM + one.id: checksum, _OPTUNA + one.id: description})
            else:
                said = {self._study_key(one): json.dumps(description), SUM + one.id: json.dumps(checksum)}
                handle.say(StudySet(system=said))
        return one

    def _study_key(self, one: Artifact) -> str:
        """The study's attribute that describes this file."""
        return (_OPTUNA if one.trial is None else f"{_DASHBOARD}{self._trial_id(one.trial)}:") + one.id

    def _runs_here(self, number: int) -> bool:
        trial = self._storage.state(self._study_id).trials[number]
        return trial.state is TrialState.RUNNING and self._storage.peer.is_mine(trial.owner)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def list(self, trial: int | None = None) -> list[Artifact]:
        """All files of the study and its trials, or those of one trial. Raises NoSuchTrial."""
        number = None if trial is None else self._handle.existing(trial).number
        return listed(self._storage.state(self._study_id), self._study_id, number)

    def find(self, what: str) -> Artifact:
        """The file with this id, or the only file with this name; four or more characters that begin an id are enough.

        Raises:
            NoSuchFile: there is no such file.
            InvalidInput: several files match.

        """
        files = self.list()
        found = [one for one in files if one.id == what] or [one for one in files if one.filename == what]
        if not found and len(what) >= _SHORTEST:
            found = [one for one in files if what in (one.id[: len(what)], one.id.partition("-")[2][: len(what)])]
        if not found:
            raise NoSuchFile(f"there is no file {what!r} in this study; list them with: hopaas-p2p trial artifact ls")
        if len(found) > 1:
            some = ", ".join(map(short_id, found[:3])) + (", …; see: hopaas-p2p trial artifact ls" if found[3:] else "")
            raise InvalidInput(f"{what!r} matches {len(found)} files; choose one by its id: {some}")
        return found[0]

    def get(self, what: Artifact | str, target: str | Path) -> Path:
        """Fetch a file to `target`, and check that it is unchanged. A complete download replaces an existing file.

        Raises:
            NoSuchFile: there is no such file, or its bytes are gone.
            InvalidInput: several files match.
            StoreCorrupt: the stored bytes have changed. `target` is left as it was.
            StoreUnreachable: the store does not answer.

        """
        one = self.find(what) if isinstance(what, str) else what
        return fetch(self._files, self._handle.uuid, one, target)

    def delete(self, what: Artifact | str) -> Artifact:
        """Remove a file's bytes and its description.

        The attributes of a finished trial cannot change, so the study's attributes say that the file is gone. The bytes
        of another study's file stay.

        Raises:
            NoSuchFile: there is no such file.
            InvalidInput: several files match.
            Denied: this user may not write to the study.

        """
        one = self.find(what) if isinstance(what, str) else what
        with contextlib.suppress(KeyError):  # another study's file, whose bytes are not ours to remove
            self._files.delete(key_of(one.id, self._handle.uuid))
        if one.trial is not None and self._runs_here(one.trial):
            self._storage.set_trial_system_attr(self._trial_id(one.trial), _OPTUNA + one.id, "null")
        self._handle.say(StudySet(system={self._study_key(one): json.dumps("null")}))
        return one

    # --- Optuna's protocol ---

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The bytes of a file; see `optuna.artifacts`."""
        with waits_for(artifact_id), scratch() as path:
            try:
                self._files.get(key_of(artifact_id, self._handle.uuid), path)
            except KeyError:
                raise _not_found(artifact_id) from None
            return path.open("rb")  # it stays readable when its name is removed

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store a file that Optuna describes itself; see `optuna.artifacts`."""
        with waits_for(artifact_id), tempfile.NamedTemporaryFile(prefix="hopaas-artifact-") as file:
            shutil.copyfileobj(content_body, file, _CHUNK)
            file.flush()
            self._files.put(key_of(artifact_id, self._handle.uuid), Path(file.name))

    def remove(self, artifact_id: str) -> None:
        """Remove the bytes; see `optuna.artifacts`."""
        with contextlib.suppress(KeyError):
            key = key_of(artifact_id, self._handle.uuid)
            if key in self._files.keys(key):
                self._files.delete(key)
                return
        raise _not_found(artifact_id)


def existing_file(source: str | Path, what: str, purpose: str = "") -> Path:
    """The path of an existing file; `what` describes what may be given. Raises InvalidInput."""
    try:
        path = Path(source)
    except TypeError:
        raise InvalidInput(f"{what}, got {shown(source)}") from None
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}{purpose}{'; pack it into one file first' * path.is_dir()}")
    return path


def listed(state: State, study_id: int, trial: int | None = None) -> list[Artifact]:
    """The files that a State describes: all, or those of one trial."""
    numbers = range(len(state.trials)) if trial is None else [trial]
    systems = ((number, dict(state.trials[number].system)) for number in numbers)
    found = described(dict(state.system), systems, first_id(study_id))
    return [one for one in found if one.trial in numbers or one.trial is trial]


def described(
    study: Mapping[str, str], trials: Iterable[tuple[int, Mapping[str, str]]], first: int = 0
) -> list[Artifact]:
    """The files that the system attributes of a study and of its trials describe; malformed descriptions are skipped.

    Args:
        study: the study's attributes, which also describe files of trials.
        trials: the trials' attributes, by number.
        first: the id of trial 0 in the study's attributes.

    """
    said = {key: json_or_none(text) for key, text in study.items() if "artifact" in key}
    found: dict[str, Artifact] = {}
    for key, value in said.items():
        if match := _DESCRIBES.match(key):
            _describe(found, value, said, None if match[1] is None else int(match[1]) - first)
    for number, system in trials:
        own = {key: json_or_none(text) for key, text in system.items() if "artifact" in key}
        for key, value in own.items():
            if key.startswith(_OPTUNA):
                _describe(found, value, own, number)
    gone = {key.rpartition(":")[2] for key, value in said.items() if "artifacts:" in key and value == "null"}
    there = [one for one in found.values() if one.id not in gone]
    return sorted(there, key=lambda one: -1 if one.trial is None else one.trial)


def _describe(found: dict[str, Artifact], value: object, sums: Mapping[str, Any], trial: int | None) -> None:
    """Add the file that the value of an attribute describes, by its id; `sums` are the attributes beside it."""
    fields = json_or_none(value) if isinstance(value, str) else None
    fields = fields if isinstance(fields, dict) else {}
    id_ = fields.get("artifact_id")
    if not isinstance(id_, str) or not _ID.fullmatch(id_):
        return
    checksum = sums.get(SUM + id_)
    checksum = checksum if isinstance(checksum, dict) else {}
    encoding, size, sha256 = fields.get("encoding"), checksum.get("size"), checksum.get("sha256")
    found[id_] = Artifact(
        id=id_,
        filename=safe_name(str(fields.get("filename", ""))),
        mimetype=str(fields.get("mimetype") or _TYPE),
        encoding=encoding if isinstance(encoding, str) else None,
        trial=trial,
        size=size if isinstance(size, int) else None,
        sha256=sha256 if isinstance(sha256, str) else None,
    )


def fetch(files: Artifacts, uuid: str, one: Artifact, target: str | Path) -> Path:
    """Fetch a file of the study with this uuid to `target`; raises like `StudyArtifacts.get`."""
    path = Path(target)
    with waits_for(str(path)), replace_atomically(path) as draft:
        try:
            check = within(draft, one.size)
            files.get(key_of(one.id, uuid), draft, check)
            check(0)  # the last bytes may have been in a buffer
        except KeyError:
            raise NoSuchFile(f"the bytes of {one.filename!r} are no longer in the store") from None
        if one.sha256 is not None and (draft.stat().st_size, sha256_of(draft)) != (one.size, one.sha256):
            raise StoreCorrupt(f"the stored bytes of {one.filename!r} ({one.id}) differ from those that were stored")
    return path


def within(target: Path, size: int | None) -> Progress:
    """A callback that raises StoreCorrupt if a download exceeds `size`, unless that is None.

    It looks at the size of `target` and does not count bytes, because a download that breaks off may begin again.
    """

    def check(_more: int) -> None:
        if size is not None and target.stat().st_size > size:
            raise StoreCorrupt(f"the store has more than the {size:,} bytes that were stored")

    return check


@contextlib.contextmanager
def removed_if_refused(files: Artifacts, key: str) -> Iterator[None]:
    """Remove a file's bytes again if this block, which records the file in the log, fails."""
    try:
        yield
    except UNDECIDED:
        raise  # the record may be sent at the next contact, when its bytes must exist; likewise with Ctrl-C
    except Exception:
        with contextlib.suppress(HopaasError):
            files.delete(key)
        raise


def named_after(artifact_id: str, uuid: str) -> str:
    """The id of a file's copy in the study with this uuid; a file named by Optuna keeps its id."""
    own = OWN_ID.fullmatch(artifact_id)
    return artifact_id if own is None else f"{uuid}-{own[2]}"


def key_of(artifact_id: str, uuid: str) -> str:
    """The key of the bytes of a file in the study with this uuid.

    Raises:
        KeyError: this is not the id of a file, or is the id of another study's file.

    """
    own = OWN_ID.fullmatch(artifact_id)
    if not _ID.fullmatch(artifact_id) or (own is not None and own[1] != uuid):
        raise KeyError(artifact_id)
    return f"{uuid}/file/{artifact_id if own is None else own[2]}"


def _not_found(artifact_id: str) -> Exception:
    from optuna.artifacts.exceptions import ArtifactNotFound

    return ArtifactNotFound(f"there is no file {artifact_id}")


def safe_name(name: str) -> str:
    """A file name that is safe to use: no directories, no control characters, no leading dots."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join("_" if unicodedata.category(letter)[0] == "C" else letter for letter in last).lstrip(".").strip()
    return shown.encode()[:_MAX_NAME].decode(errors="ignore") or "file"


def short_id(one: Artifact) -> str:
    """The part of a file's id that distinguishes it within its study; `find` accepts it."""
    own = OWN_ID.fullmatch(one.id)
    return (own[2] if own is not None else one.id)[:12]


def json_or_none(text: str) -> Any:
    """The value of this JSON text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
