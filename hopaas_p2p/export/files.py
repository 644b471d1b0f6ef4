"""The files of a study on their way: from a store, or a directory, to where its trials go.

A file of ours is known by its study's uuid, so that it goes when the study does; where it arrives it belongs to another
study, and is named anew in the attributes that speak of it. A directory holds files by their ids, which is what
`optuna.artifacts.FileSystemArtifactStore` reads and writes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from hopaas_p2p.artifacts import SUM, key_of, named_after
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.export.portable import Portable

if TYPE_CHECKING:
    from hopaas_p2p.stores.base import Artifacts

Fetch = Callable[[str, Path], None]
"""Writes the file of this id to that path; KeyError if there is none."""

_SPEAKS_OF: Final = re.compile(r"(?:dashboard:)?artifacts:(?:#?\d+:)?(?P<id>[0-9a-fA-F-]{8,100})")


class Carried(NamedTuple):
    """What became of the files."""

    portable: Portable
    """The study, with its files named as they are called where they arrived."""
    files: int
    """How many were brought; those that were there already do not count."""
    warnings: list[str]


def from_store(files: Artifacts) -> Fetch:
    """Files out of a store."""
    return lambda artifact_id, path: files.get(key_of(artifact_id), path)


def from_directory(directory: Path) -> Fetch:
    """Files out of a directory.

    Raises:
        InvalidInput: there is no such directory.

    """
    if not directory.is_dir():
        raise InvalidInput(f"there is no directory {directory}")

    def fetch(artifact_id: str, path: Path) -> None:
        try:
            shutil.copyfile(directory / artifact_id, path)
        except FileNotFoundError:
            raise KeyError(artifact_id) from None

    return fetch


def carry(portable: Portable, fetch: Fetch, files: Artifacts, uuid: str) -> Carried:
    """Bring all files of the study to `files`, where its uuid is this one. What is there already is not sent again."""
    renamed, warnings, count = {}, [], 0
    there = {*files.keys(f"{uuid}/file/"), *files.keys("files/")}
    for old, total in mentioned(portable).items():
        new = named_after(old, uuid)
        renamed[old] = new
        if key_of(new) in there:
            continue
        why = _send(old, new, total, fetch, files)
        if why is None:
            count += 1
        else:
            warnings.append(f"the file {old}: {why}")
    return Carried(_with_names(portable, renamed), count, warnings)


def save(portable: Portable, fetch: Fetch, directory: Path) -> Carried:
    """Bring all files of the study into a directory, under their ids."""
    directory.mkdir(parents=True, exist_ok=True)
    warnings, count = [], 0
    for artifact_id in mentioned(portable):
        draft = directory / f".{artifact_id}"
        try:
            fetch(artifact_id, draft)
            draft.replace(directory / artifact_id)
            count += 1
        except KeyError:
            warnings.append(f"the file {artifact_id}: its bytes are no longer in the store")
        finally:
            draft.unlink(missing_ok=True)
    return Carried(portable, count, warnings)


def mentioned(portable: Portable) -> dict[str, dict[str, Any]]:
    """The ids of all files that the study and its trials speak of, with the size and sum that are known of each."""
    found: dict[str, dict[str, Any]] = {}
    removed = set()
    for system in _systems(portable):
        for key, text in system.items():
            match = _SPEAKS_OF.fullmatch(key)
            if match is not None:
                found.setdefault(match["id"], {})
                if _read(text) in (None, "null"):
                    removed.add(match["id"])
    for system in _systems(portable):
        for artifact_id in found:
            total = _read(system.get(SUM + artifact_id, "null"))
            if isinstance(total, dict):
                found[artifact_id] = total
    return {artifact_id: total for artifact_id, total in found.items() if artifact_id not in removed}


def _systems(portable: Portable) -> Iterator[Mapping[str, str]]:
    yield portable.system
    for trial in portable.trials:
        if trial.record.system:
            yield trial.record.system


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _send(old: str, new: str, total: dict[str, Any], fetch: Fetch, files: Artifacts) -> str | None:
    """Why the file could not be brought, or None."""
    with tempfile.TemporaryDirectory(prefix="hopaas-") as directory:
        path = Path(directory, "file")
        try:
            fetch(old, path)
        except KeyError:
            return "its bytes are not there"
        if "sha256" in total:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != total["sha256"]:
                    return "its bytes are not what was put there; it was left behind"
        try:
            files.put(key_of(new), path)
        except (InvalidInput, ConfigurationError) as error:  # for example too large for this store
            return f"{error} It was left behind."
    return None


def _with_names(portable: Portable, renamed: Mapping[str, str]) -> Portable:
    changed = {old: new for old, new in renamed.items() if old != new}
    if not changed:
        return portable
    pattern = re.compile("|".join(map(re.escape, changed)))

    def told(system: Mapping[str, str]) -> dict[str, str]:
        return {name(key): name(text) if "artifact" in key else text for key, text in system.items()}

    def name(text: str) -> str:
        return pattern.sub(lambda found: changed[found[0]], text)

    trials = [
        trial._replace(record=msgspec.structs.replace(trial.record, system=told(trial.record.system)))
        if trial.record.system
        else trial
        for trial in portable.trials
    ]
    return portable._replace(system=told(portable.system), trials=trials)
