"""What a store in a bucket and a store in a directory have in common: the keys, beats and artifacts.

v1/meta.json                     format and uuid of the store
v1/studies/…                     the catalog's log
v1/study/{uuid}/…                a study's log; see `log`
v1/beats/{peer}
v1/artifacts/…
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Generic

from hopaas_p2p.core.names import checked_key, valid_key, valid_name
from hopaas_p2p.errors import ConfigurationError, NewerFormat, StoreCorrupt
from hopaas_p2p.stores.base import Artifacts, Beat, Log, Progress, Store
from hopaas_p2p.stores.objects.contract import Objects, ObjectStore, answered

META: Final = "meta.json"
FORMAT: Final = 1
"""The format of a store's names and description; commits have a format of their own."""
_BEAT: Final = 64  # bytes of a beat that are read


def uuid_in(text: bytes, where: object) -> str:
    """The uuid in a store's description.

    Raises:
        ConfigurationError: this is not a store's description.
        NewerFormat: a newer version of this program wrote the description.

    """
    try:
        said = json.loads(text)
        version = int(said["format"])
        uuid = str(said["uuid"]) if version <= FORMAT else ""
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigurationError(f"{where} is not a valid description of a store; restore it from a backup") from None
    if version > FORMAT:
        raise NewerFormat
    return uuid


class ObjectArtifacts(Artifacts):
    """Files under `artifacts/`."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def put(self, key: str, source: Path) -> None:
        self._objects.upload(f"artifacts/{checked_key(key)}", source)

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        if not self._objects.download(f"artifacts/{checked_key(key)}", target, progress):
            raise KeyError(key)

    def delete(self, key: str) -> None:
        self._objects.delete([f"artifacts/{checked_key(key)}"])

    def keys(self, prefix: str) -> list[str]:
        if prefix and not valid_key(prefix.removesuffix("/")):  # it becomes the path of a folder
            return []
        return [key.removeprefix("artifacts/") for key in self._objects.listed(f"artifacts/{prefix}")]


class ObjectBackedStore(Store, Generic[Objects]):
    """Logs, beats and artifacts as objects; subclasses define which objects, and how their logs are stored."""

    objects: Objects
    logs_kept: int = 0
    """How many of the most recently used logs are kept. One thread at a time may use what `log` returns for a uuid."""

    def __init__(self) -> None:
        self._logs: dict[str, Log] = {}

    def catalog(self) -> Log:
        return self._log("studies/")

    def log(self, uuid: str) -> Log:
        if not valid_name(uuid):
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return self._log(f"study/{uuid}/")

    def _log(self, root: str) -> Log:
        log = self._logs.pop(root, None) or self._new_log(root)
        self._logs[root] = log
        if (more := len(self._logs) - self.logs_kept) > 0:
            for oldest in list(self._logs)[:more]:  # another thread may be here, too
                self._logs.pop(oldest, None)
        return log

    @abstractmethod
    def _new_log(self, root: str) -> Log:
        """A handle on the log under this folder."""

    def find(self) -> object:
        """Check, before the first read, that this is a store. Raises ConfigurationError and NewerFormat."""

    @abstractmethod
    def prove(self, root: str) -> bool:
        """Prove, before a write to the log at `root`, that exactly one of several writers of a key succeeds.

        Returns whether that holds for good, so that it need not be proved again.

        Raises:
            ConfigurationError: several writers may succeed; the message says what to change.

        """

    def beat(self, beat: Beat) -> None:
        if valid_name(beat.peer):
            self.objects.put(f"beats/{beat.peer}", beat.value.encode())

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        names = [peer for peer in peers if valid_name(peer)]  # a hostile log may hold other names
        found = answered(self.objects.get_many([f"beats/{name}" for name in names], limit=_BEAT))
        return {name: one.data.decode(errors="replace") for name, one in zip(names, found, strict=True) if one}

    def artifacts(self) -> ObjectArtifacts:
        return ObjectArtifacts(self.objects)
