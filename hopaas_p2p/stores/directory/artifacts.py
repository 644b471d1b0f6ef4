"""Artifacts of a directory store: files, written whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import BinaryIO, Final

from hopaas_p2p.stores.base import Progress
from hopaas_p2p.stores.directory.files import reaching

_CHUNK: Final = 1 << 20  # bytes of a file copied at once
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


class DirectoryArtifacts:
    """Files under `v1/artifacts/`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, source: Path, progress: Progress | None = None) -> None:
        path = self._path(key)
        with reaching(self._root):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
            try:
                with source.open("rb") as given, draft.open("wb") as taken:
                    _copy(given, taken, progress)
                    taken.flush()
                    os.fsync(taken.fileno())
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        with reaching(self._root):
            try:
                given = self._path(key).open("rb")
            except FileNotFoundError:
                raise KeyError(key) from None
            with given, target.open("wb") as taken:
                _copy(given, taken, progress)

    def delete(self, key: str) -> None:
        with reaching(self._root):
            self._path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> list[str]:
        with reaching(self._root):
            found = [path.relative_to(self._root).as_posix() for path in self._root.rglob("[!.]*") if path.is_file()]
        return sorted(key for key in found if key.startswith(prefix))

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise KeyError(key)  # from a hostile log: such a key was never ours
        return self._root / key


def _copy(given: BinaryIO, taken: BinaryIO, progress: Progress | None) -> None:
    while chunk := given.read(_CHUNK):
        taken.write(chunk)
        if progress is not None:
            progress(len(chunk))
