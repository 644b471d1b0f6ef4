"""Copies the files of a study from a store or a directory to another.

The id of our files begins with their study's uuid, so that they are removed with the study; a copy belongs to another
study, and gets a new id in all attributes that name it. A directory holds files by their ids, as
`optuna.artifacts.FileSystemArtifactStore` does.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from hopaas_p2p.artifacts import SUM, get_bytes, json_or_none, key_of, named_after
from hopaas_p2p.atomic import replace_atomically, sha256_of
from hopaas_p2p.errors import ConfigurationError, InvalidInput
from hopaas_p2p.export.portable import Portable
from hopaas_p2p.ownership import check_link

if TYPE_CHECKING:
    from hopaas_p2p.stores.base import Artifacts

Fetch = Callable[[str, Path], None]
"""Writes the file of an id to a path; raises KeyError if there is none."""

_NAMES_A_FILE: Final = re.compile(r"(?:dashboard:)?artifacts:(?:#?\d+:)?(?P<id>[0-9a-fA-F-]{8,100})")


class CopiedFiles(NamedTuple):
    """The result of copying files."""

    portable: Portable
    """The study, with the new ids of its files."""
    files: int
    """How many were copied; those that were there already do not count."""
    warnings: list[str]


def from_store(files: Artifacts, uuid: str) -> Fetch:
    """Fetches files of the study of this uuid from a store."""
    return lambda artifact_id, path: get_bytes(files, uuid, artifact_id, path)


def from_directory(directory: Path) -> Fetch:
    """Fetches files from a directory.

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


def copy_files(portable: Portable, fetch: Fetch, files: Artifacts, uuid: str) -> CopiedFiles:
    """Copy all files of the study to `files`, for the study of this uuid. Those that are there already are left out."""
    renamed, warnings, count = {}, [], 0
    there = set(files.keys(f"{uuid}/file/"))
    for old, total in named_files(portable).items():
        new = named_after(old, uuid)
        renamed[old] = new
        if key_of(new, uuid) in there:
            continue
        why = _send(old, key_of(new, uuid), total, fetch, files)
        if why is None:
            count += 1
        else:
            warnings.append(f"the file {old}: {why}")
    return CopiedFiles(_with_names(portable, renamed), count, warnings)


def save(portable: Portable, fetch: Fetch, directory: Path) -> CopiedFiles:
    """Copy all files of the study into a directory, under their ids."""
    check_link(directory)
    directory.mkdir(parents=True, exist_ok=True)
    warnings, count = [], 0
    for artifact_id in named_files(portable):
        try:
            with replace_atomically(directory / artifact_id) as draft:
                fetch(artifact_id, draft)
            count += 1
        except KeyError:
            warnings.append(f"the file {artifact_id}: its bytes are no longer in the store")
    return CopiedFiles(portable, count, warnings)


def named_files(portable: Portable) -> dict[str, dict[str, Any]]:
    """The ids of all files that the study and its trials name, with the size and digest that are known of each."""
    found: dict[str, dict[str, Any]] = {}
    removed = set()
    for system in _systems(portable):
        for key, text in system.items():
            match = _NAMES_A_FILE.fullmatch(key)
            if match is not None:
                found.setdefault(match["id"], {})
                if json_or_none(text) in (None, "null"):
                    removed.add(match["id"])
    for system in _systems(portable):
        for artifact_id in found:
            total = json_or_none(system.get(SUM + artifact_id, "null"))
            if isinstance(total, dict):
                found[artifact_id] = total
    return {artifact_id: total for artifact_id, total in found.items() if artifact_id not in removed}


def _systems(portable: Portable) -> Iterator[Mapping[str, str]]:
    yield portable.system
    for trial in portable.trials:
        if trial.record.system:
            yield trial.record.system


def _send(old: str, key: str, total: dict[str, Any], fetch: Fetch, files: Artifacts) -> str | None:
    """Why the file could not be copied, or None."""
    with tempfile.TemporaryDirectory(prefix="hopaas-") as directory:
        path = Path(directory, "file")
        try:
            fetch(old, path)
        except KeyError:
            return "its bytes are missing"
        if "sha256" in total and sha256_of(path) != total["sha256"]:
            return "its bytes do not match what was stored; it was not copied"
        try:
            files.put(key, path)
        except (InvalidInput, ConfigurationError) as error:  # for example too large for this store
            return f"{error} It was not copied."
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
