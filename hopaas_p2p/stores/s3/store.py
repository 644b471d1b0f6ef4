"""A store in an S3 bucket, with no server of ours at all: any S3 whose `If-None-Match: *` is atomic.

Names in the bucket are those of a directory store, see `stores.directory`; logs are in `stores.s3.log`, requests in
`stores.s3.objects`. Before a process writes to it, the server must prove that it honours the condition on which
everything rests: a PUT on an object that is there must be refused. One that ignores it would lose commits silently.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from hopaas_p2p.core.records import FORMAT
from hopaas_p2p.errors import ConfigurationError, Denied, NewerFormat, StoreCorrupt
from hopaas_p2p.stores.base import Beat, Progress
from hopaas_p2p.stores.s3.address import parse
from hopaas_p2p.stores.s3.log import S3Log
from hopaas_p2p.stores.s3.minio import MinioObjects
from hopaas_p2p.stores.s3.objects import ObjectStore
from hopaas_p2p.stores.s3.tempo import WIDEST

META: Final = "meta.json"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
_BEAT: Final = 64  # bytes of a beat that are looked at
_META: Final = 4096
_CATALOG: Final = 2 * WIDEST - 1  # studies that are read one by one: five windows of GETs, 1, 2, 4, 8 and 16


class S3Artifacts:
    """Files under `v1/artifacts/`, sent and fetched in parts."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def put(self, key: str, source: Path, progress: Progress | None = None) -> None:
        self._objects.upload(self._name(key), source, progress)

    def get(self, key: str, target: Path, progress: Progress | None = None) -> None:
        if not self._objects.download(self._name(key), target, progress):
            raise KeyError(key)

    def delete(self, key: str) -> None:
        self._objects.delete([self._name(key)])

    def keys(self, prefix: str) -> list[str]:
        return [one.key.removeprefix("artifacts/") for one in self._objects.listed(f"artifacts/{prefix}")]

    @staticmethod
    def _name(key: str) -> str:
        if not _KEY.fullmatch(key):
            raise KeyError(key)
        return f"artifacts/{key}"


class S3Store:
    """A prefix of a bucket as a store.

    Args:
        url: `s3://bucket/prefix?endpoint=…&region=…`.
        create: whether a prefix that is no store yet becomes one.
        objects: the bucket, if not the one of the URL.

    Raises:
        ConfigurationError: the URL is not understood. What else is wrong shows at the first use.
    """

    freshness = 5.0
    beats_ride = False
    snapshots = True

    def __init__(self, url: str, *, create: bool = True, objects: ObjectStore | None = None) -> None:
        address = parse(url)
        self.url = address.url
        self.objects: ObjectStore = objects or MinioObjects(address)
        self._create = create
        self._meta: bytes | None = None
        self._proven = False
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def catalog(self) -> S3Log:
        return self._log("studies/", at_first=_CATALOG)

    def log(self, uuid: str) -> S3Log:
        if not _NAME.fullmatch(uuid):
            raise StoreCorrupt(f"{uuid!r} is not a study's uuid")
        return self._log(f"study/{uuid}/")

    def _log(self, root: str, *, at_first: int | None = None) -> S3Log:
        return S3Log(
            self.objects, root, submit=self._submit, readable=self.find, writable=self.prove, at_first=at_first
        )

    def beat(self, beat: Beat) -> None:
        if _NAME.fullmatch(beat.peer):
            self.objects.put(f"beats/{beat.peer}", beat.value.encode())

    def beats(self, peers: Iterable[str]) -> dict[str, str]:
        names = [peer for peer in peers if _NAME.fullmatch(peer)]  # a hostile log may hold others
        later = [self._submit(self._beat_of, name) for name in names[1:]]
        values = [self._beat_of(name) for name in names[:1]]
        for name, future in zip(names[1:], later, strict=True):
            values.append(self._beat_of(name) if future is None else future.result())
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def _beat_of(self, peer: str) -> str | None:
        found = self.objects.get(f"beats/{peer}", limit=_BEAT)
        return None if found is None else found.data.decode(errors="replace")

    def artifacts(self) -> S3Artifacts:
        return S3Artifacts(self.objects)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._threads = None
        self.objects.after_fork()

    def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)
        self.objects.close()

    def _submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any] | None:
        """Run this in another thread; None when the interpreter is ending and has no more of them."""
        try:
            with self._lock:
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(WIDEST, thread_name_prefix="hopaas-s3")
                return self._threads.submit(function, *arguments)
        except RuntimeError:
            return None

    # --- the proof ---

    def find(self) -> bytes:
        """See that this is a store, once a process, and make it one if it may become that; its description.

        Raises:
            ConfigurationError: this is no store and may not become one, or a bucket that cannot be used.
            NewerFormat: the store was made by a newer version.

        """
        if self._meta is None:
            found = self.objects.get(META, limit=_META)
            data = self._found_store() if found is None else found.data
            self._check_meta(data)
            self._meta = data
        return self._meta

    def prove(self) -> None:
        """As `find`, and see that the server refuses a second PUT: once a process, before it writes.

        Raises:
            ConfigurationError: the server ignores the condition, or as `find`.
            NewerFormat: as `find`.

        """
        if not self._proven:
            self._check_condition(self.find())
            self._proven = True

    def _found_store(self) -> bytes:
        if not self._create:
            raise ConfigurationError(f"there is no store in {self.url}; create one with: hopaas-p2p study create")
        data = json.dumps({"format": FORMAT, "uuid": secrets.token_hex(16)}).encode() + b"\n"
        created = self.objects.create(META, data)
        found = self.objects.get(META, limit=_META)
        if found is None or (created and found.data != data):
            raise ConfigurationError(f"{self.url}: what was just written cannot be read; the server is not consistent")
        return found.data

    def _check_meta(self, data: bytes) -> None:
        try:
            version = int(json.loads(data)["format"])
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{META} in {self.url} cannot be read as the description of a store") from None
        if version > FORMAT:
            raise NewerFormat

    def _check_condition(self, data: bytes) -> None:
        """The same bytes again: refused by a server that can be used, harmless with one that cannot."""
        try:
            overwritten = self.objects.create(META, data)
        except Denied:
            return  # who may not write needs no proof
        if overwritten:
            raise ConfigurationError(
                f"{self.url}: the server, or a proxy before it, ignores 'If-None-Match: *' and overwrites what is "
                "there. Commits would be lost. Use a server that honours it: MinIO, SeaweedFS, Ceph, AWS, R2"
            )
