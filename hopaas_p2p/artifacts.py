"""Files of studies and trials: models, plots, logs. Kept beside the logs, in whatever store the study is.

    trial.upload("model.pt")                    # in the objective
    files = study.artifacts()
    for file in files.list(): files.get(file, Path(file.filename))

What a file is called, and its type, stand in an attribute in Optuna's own format, so that optuna-dashboard shows it;
`study.artifacts()` is also the `ArtifactStore` that Optuna and its dashboard ask for. A name is only ever shown: keys
are made here from an id, and every byte is checked against the sum that was taken when it was stored.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import re
import shutil
import tempfile
import unicodedata
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from hopaas_p2p.core.records import StudySet, TrialState
from hopaas_p2p.errors import InvalidInput, NoSuchTrial, StoreCorrupt, StoreUnreachable

if TYPE_CHECKING:
    from hopaas_p2p.core.state import State
    from hopaas_p2p.storage import Storage
    from hopaas_p2p.stores.base import Artifacts, Progress

_OPTUNA: Final = "artifacts:"
"""What Optuna's attributes of a trial's or study's files begin with; the dashboard's own, of any trial, stand in the
study's: `dashboard:artifacts:<trial id>:`."""
_DASHBOARD: Final = "dashboard:artifacts:"
SUM: Final = "hopaas:artifact:"
_ID: Final = re.compile(r"[0-9a-fA-F-]{8,100}")
_OWN_ID: Final = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})")
_TYPE: Final = "application/octet-stream"
_MAX_NAME: Final = 200
_CHUNK: Final = 1 << 20


class Artifact(NamedTuple):
    """A file of a study or trial. What others wrote about it is not to be trusted further than it can be shown."""

    id: str
    filename: str
    mimetype: str
    encoding: str | None
    trial: int | None
    """The number of its trial, or None for the study's own."""
    size: int | None
    """Bytes; None when Optuna or its dashboard stored it, which take no sum."""
    sha256: str | None


class StudyArtifacts:
    """The files of one study and its trials. Also an `optuna.artifacts` store: for `upload_artifact` and the dashboard.

    `put` and `get` block while the file is on its way. Any thread may call.
    """

    def __init__(self, storage: Storage, study_id: int) -> None:
        self._storage = storage
        self._study_id = study_id

    @property
    def _files(self) -> Artifacts:
        return self._storage.courier.store.artifacts()

    def put(
        self,
        source: str | Path,
        *,
        trial: int | None = None,
        filename: str | None = None,
        mimetype: str | None = None,
        progress: Progress | None = None,
    ) -> Artifact:
        """Store a file, of the study or of one trial, finished or not. Durable when this returns.

        Args:
            source: the file; pack a directory into one first.
            trial: the number of its trial.
            filename: what it is called there; its own name if not said.
            mimetype: what it is; guessed from the name if not said.
            progress: told how many bytes more have been sent.

        Raises:
            InvalidInput: no such file.
            NoSuchTrial: there is no such trial.
            ConfigurationError: the store does not keep it, as Postgres files above 64 MB; the message says what to do.
            Denied: the study's owner has not allowed it.

        """
        path = Path(source)
        if not path.is_file():
            raise InvalidInput(f"there is no file {path}; pack a directory into one file first")
        part = self._storage.part(self._study_id)
        state = self._storage.state(self._study_id)
        if trial is not None and not 0 <= trial < len(state.trials):
            raise NoSuchTrial(f"the study has no trial {trial}")
        name = safe_name(filename or path.name)
        guessed, encoding = mimetypes.guess_type(name)
        one = Artifact(
            id=f"{part.membership.uuid}-{uuid.uuid4().hex}",
            filename=name,
            mimetype=mimetype or guessed or _TYPE,
            encoding=encoding,
            trial=trial,
            size=path.stat().st_size,
            sha256=_sha256(path),
        )
        self._files.put(key_of(one.id), path, progress)
        try:
            self._note(one, _described(one), _sum_of(one))
        except StoreUnreachable:
            raise  # what is said of it goes out at the next contact, and then its bytes must be there
        except BaseException:
            self._files.delete(key_of(one.id))
            raise
        return one

    def _note(self, one: Artifact, described: str, total: str) -> None:
        """Say it in the log: in the trial while it runs here, else in the study, where it can still be said."""
        if one.trial is not None and self._runs_here(one.trial):
            trial_id = self._trial_id(one.trial)
            self._storage.set_trial_system_attr(trial_id, SUM + one.id, json.loads(total))
            self._storage.set_trial_system_attr(trial_id, _OPTUNA + one.id, described)
            self._storage.flush()
            return
        prefix = _OPTUNA if one.trial is None else f"{_DASHBOARD}{self._trial_id(one.trial)}:"
        said = {prefix + one.id: json.dumps(described), SUM + one.id: total}
        self._storage.say(self._study_id, StudySet(system=said))

    def _runs_here(self, number: int) -> bool:
        trial = self._storage.state(self._study_id).trials[number]
        return trial.state is TrialState.RUNNING and self._storage.courier.is_mine(trial.owner)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def list(self, trial: int | None = None) -> list[Artifact]:
        """All files of the study and its trials; of one trial, if it is given."""
        return listed(self._storage.state(self._study_id), self._study_id, trial)

    def find(self, what: str) -> Artifact:
        """The file of this id, or the one file of this name; the beginning of an id will do.

        Raises:
            InvalidInput: there is none, or more than one.

        """
        everything = self.list()
        exact = [one for one in everything if one.id == what]
        found = exact or [one for one in everything if one.filename == what] or _by_beginning(everything, what)
        if len(found) == 1:
            return found[0]
        if not found:
            raise InvalidInput(f"there is no file {what!r} in this study; list them with: hopaas-p2p artifact ls")
        some = ", ".join(map(short_id, found[:3])) + ("" if len(found) <= 3 else ", …; see: hopaas-p2p artifact ls")
        raise InvalidInput(f"{what!r} may be any of {len(found)} files; say which by its id: {some}")

    def get(self, what: Artifact | str, target: str | Path, *, progress: Progress | None = None) -> Path:
        """Fetch a file to `target`, and check that it is as it was stored. Replaces what is there when it is whole.

        Raises:
            InvalidInput: there is no such file, or its bytes are gone.
            StoreCorrupt: what is stored is not what was put there. `target` is left as it was.

        """
        one = self.find(what) if isinstance(what, str) else what
        return fetch(self._files, one, target, progress=progress)

    def delete(self, what: Artifact | str) -> Artifact:
        """Remove a file: its bytes, and what is said of it.

        A finished trial's attributes stay as they are; the study's then say that the file is gone.
        """
        one = self.find(what) if isinstance(what, str) else what
        self._files.delete(key_of(one.id))
        if one.trial is not None and self._runs_here(one.trial):
            self._storage.set_trial_system_attr(self._trial_id(one.trial), _OPTUNA + one.id, "null")
        prefix = _OPTUNA if one.trial is None else f"{_DASHBOARD}{self._trial_id(one.trial)}:"
        self._storage.say(self._study_id, StudySet(system={prefix + one.id: json.dumps("null")}))
        return one

    # --- Optuna's protocol ---

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """The bytes of a file; see `optuna.artifacts`."""
        with tempfile.TemporaryDirectory(prefix="hopaas-artifact-") as directory:
            path = Path(directory, "file")
            try:
                self._files.get(key_of(artifact_id), path)
            except KeyError:
                raise _not_found(artifact_id) from None
            return path.open("rb")  # goes on without its name

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Store what Optuna has described itself; see `optuna.artifacts`."""
        with tempfile.NamedTemporaryFile(prefix="hopaas-artifact-") as file:
            shutil.copyfileobj(content_body, file, _CHUNK)
            file.flush()
            self._files.put(key_of(artifact_id), Path(file.name))

    def remove(self, artifact_id: str) -> None:
        """Remove the bytes; see `optuna.artifacts`."""
        key = key_of(artifact_id)
        if key not in self._files.keys(key):
            raise _not_found(artifact_id)
        self._files.delete(key)


def listed(state: State, study_id: int, trial: int | None = None) -> list[Artifact]:
    """The files that a State speaks of: all, or those of one trial."""
    study = {key: _json(text) for key, text in list(state.system.items())}
    later: dict[str, dict[str, Any]] = {}  # what the study says of its trials' files, by the trial's part of the key
    for key, value in study.items():
        if key.startswith(_DASHBOARD):
            later.setdefault(key.rpartition(":")[0] + ":", {})[key] = value
    numbers = range(len(state.trials)) if trial is None else [trial]
    found = {} if trial is not None else dict(_read(study, _OPTUNA, study, None))
    for number in numbers:
        prefix = f"{_DASHBOARD}{(study_id << 32) + number}:"
        found.update(_read(later.get(prefix, {}), prefix, study, number))
        if state.trials[number].system:
            own = {key: _json(text) for key, text in list(state.trials[number].system.items())}
            found.update(_read(own, _OPTUNA, own, number))
    gone = {key.rpartition(":")[2] for key, value in study.items() if "artifacts:" in key and value == "null"}
    return [one for one in found.values() if one.id not in gone]


def fetch(files: Artifacts, one: Artifact, target: str | Path, *, progress: Progress | None = None) -> Path:
    """Fetch a file of a store to `target`; raises as `StudyArtifacts.get` does."""
    path = Path(target)
    with tempfile.TemporaryDirectory(prefix=".hopaas-", dir=path.absolute().parent) as directory:
        draft = Path(directory, "file")
        try:
            files.get(key_of(one.id), draft, progress)
        except KeyError:
            raise InvalidInput(f"the bytes of {one.filename!r} are no longer in the store") from None
        if one.sha256 is not None and (draft.stat().st_size, _sha256(draft)) != (one.size, one.sha256):
            raise StoreCorrupt(f"the stored bytes of {one.filename!r} ({one.id}) are not what was put there")
        draft.replace(path)
    return path


def named_after(artifact_id: str, uuid: str) -> str:
    """What a file is called in the study of this uuid; one that Optuna named keeps its id."""
    own = _OWN_ID.fullmatch(artifact_id)
    return artifact_id if own is None else f"{uuid}-{own[2]}"


def key_of(artifact_id: str) -> str:
    """Where the bytes are: with the study that made the id, or with those that Optuna made.

    Raises:
        KeyError: no id of a file.

    """
    own = _OWN_ID.fullmatch(artifact_id)
    if own is not None:
        return f"{own[1]}/file/{own[2]}"
    if not _ID.fullmatch(artifact_id):
        raise KeyError(artifact_id)
    return f"files/{artifact_id}"


def _not_found(artifact_id: str) -> Exception:
    from optuna.artifacts.exceptions import ArtifactNotFound

    return ArtifactNotFound(f"there is no file {artifact_id}")


def safe_name(name: str) -> str:
    """A file name without what leads elsewhere: no directories, no control characters, no dots in front."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join("_" if unicodedata.category(letter)[0] == "C" else letter for letter in last).lstrip(".").strip()
    return shown[:_MAX_NAME] or "file"


def short_id(one: Artifact) -> str:
    """As much of a file's id as people need to tell it from others of its study; `find` takes it."""
    own = _OWN_ID.fullmatch(one.id)
    return (own[2] if own is not None else one.id)[:12]


def _by_beginning(everything: list[Artifact], what: str) -> list[Artifact]:
    if len(what) < 4:
        return []
    return [one for one in everything if one.id.startswith(what) or one.id.partition("-")[2].startswith(what)]


def _described(one: Artifact) -> str:
    """Optuna's attribute: JSON in a text."""
    fields = {"artifact_id": one.id, "filename": one.filename, "mimetype": one.mimetype, "encoding": one.encoding}
    return json.dumps(fields)


def _sum_of(one: Artifact) -> str:
    return json.dumps({"size": one.size, "sha256": one.sha256})


def _read(
    attributes: Mapping[str, Any], prefix: str, sums: Mapping[str, Any], trial: int | None
) -> Iterator[tuple[str, Artifact]]:
    """The files that these attributes speak of. Nonsense in them is passed over."""
    for key, value in attributes.items():
        if not key.startswith(prefix):
            continue
        said = _json(value) if isinstance(value, str) else None
        if not isinstance(said, dict) or not _ID.fullmatch(str(said.get("artifact_id"))):
            continue
        total = sums.get(SUM + said["artifact_id"])
        total = total if isinstance(total, dict) else {}
        size, sha256 = total.get("size"), total.get("sha256")
        yield (
            said["artifact_id"],
            Artifact(
                id=said["artifact_id"],
                filename=safe_name(str(said.get("filename", ""))),
                mimetype=str(said.get("mimetype") or _TYPE),
                encoding=said["encoding"] if isinstance(said.get("encoding"), str) else None,
                trial=trial,
                size=size if isinstance(size, int) else None,
                sha256=sha256 if isinstance(sha256, str) else None,
            ),
        )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
