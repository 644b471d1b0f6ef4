"""`ObjectStore` on the `minio` SDK."""

from __future__ import annotations

import datetime
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import urllib3
from minio.deleteobjects import DeleteObject

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Progress
from hopaas_p2p.stores.objects.contract import Found, Listed
from hopaas_p2p.stores.objects.search import WIDEST
from hopaas_p2p.stores.s3.address import Address
from hopaas_p2p.stores.s3.client import Signed
from hopaas_p2p.stores.s3.credentials import chain
from hopaas_p2p.stores.s3.errors import Refused, unreachable
from hopaas_p2p.stores.s3.files import Files
from hopaas_p2p.stores.s3.http import parse_date
from hopaas_p2p.stores.s3.keys import Chain

_TYPE: Final = "application/octet-stream"
_NOT_TOGETHER: Final = (400, 403, 405, 411, 501)
"""Statuses of servers that remove objects one by one only, or by a policy that knows only that."""

T = TypeVar("T")


class MinioObjects:
    """See the module. Any thread may call."""

    settles = 0.0

    def __init__(self, address: Address, *, keys: Chain | None = None) -> None:
        self.address = address
        self._signed = Signed(address, keys or chain(address))
        self._files = Files(self._signed)
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._singly = False

    def __repr__(self) -> str:
        return f"MinioObjects({self.address.url!r})"

    @property
    def requests(self) -> Counter[str]:
        return self._signed.observer.requests

    @property
    def interruptions(self) -> int:
        return self._signed.observer.interruptions

    @property
    def keys(self) -> Chain:
        """Where the keys come from."""
        return self._signed.keys

    # --- small objects ---

    def get(self, key: str, *, limit: int, certain: bool = True) -> Found | None:
        try:
            response = self._signed.ask("GET", key, preload_content=False)
        except Refused as refused:
            if refused.status == 404 and refused.code != "NoSuchBucket":
                return None
            raise self._signed.refusal(refused, f"read {key}") from None
        try:
            return self._read(response, limit)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.address, error) from None
        finally:
            response.release_conn()

    def _read(self, response: Any, limit: int) -> Found:
        modified = parse_date(response.headers.get("Last-Modified")) or 0.0
        length = response.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            data = response.read(limit + 1, decode_content=False)
            too_large = len(data) > limit
            size = len(data)
        else:
            size = int(length)
            too_large = size > limit
            data = b"" if too_large else response.read(size, decode_content=False)
        if too_large:
            response.close()  # without reading on
            return Found(b"", size, modified)
        if len(data) != size:
            raise StoreUnreachable(f"{self.address.endpoint} sent {len(data)} of {size} bytes")
        return Found(data, size, modified)

    def put(self, key: str, data: bytes) -> None:
        try:
            self._signed.ask("PUT", key, body=data, headers={"Content-Type": _TYPE})
        except Refused as refused:
            raise self._signed.refusal(refused, f"write {key}") from None

    def put_same(self, key: str, data: bytes) -> None:
        self.put_new(key, data)  # history is not overwritten

    def put_new(self, key: str, data: bytes, *, unless: Sequence[str] | None = ()) -> bool:
        try:
            self._signed.ask("PUT", key, body=data, headers={"Content-Type": _TYPE, "If-None-Match": "*"})
        except Refused as refused:
            if refused.status == 412:
                return False
            raise self._signed.refusal(refused, f"write {key}", conditional=True) from None
        return True

    def secure(self, key: str) -> None:
        """What a bucket has answered for is safe."""

    def exists(self, key: str) -> bool | None:
        return None

    # --- many objects ---

    def get_many(self, keys: Sequence[str], *, limit: int) -> list[Found | StoreUnreachable | None]:
        """In parallel, the first in the caller's thread."""
        later = [self._submit(self._get_or_error, key, limit) for key in keys[1:]]
        found = [self._get_or_error(key, limit) for key in keys[:1]]
        for key, future in zip(keys[1:], later, strict=True):
            found.append(self._get_or_error(key, limit) if future is None else future.result())
        return found

    def get_run(
        self, keys: Iterable[str], *, limit: int, certain: bool = True
    ) -> list[Found | StoreUnreachable | None]:
        return self.get_many(list(keys), limit=limit)

    def _get_or_error(self, key: str, limit: int) -> Found | StoreUnreachable | None:
        try:
            return self.get(key, limit=limit)
        except StoreUnreachable as error:
            return error

    def _submit(self, function: Callable[..., T], *arguments: object) -> Future[T] | None:
        """Run this in another thread; None when the interpreter is ending and has no more of them."""
        try:
            with self._lock:
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(WIDEST, thread_name_prefix="hopaas-s3")
                return self._threads.submit(function, *arguments)
        except RuntimeError:
            return None

    def listed(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[str]:
        return [one.key for one in self.details(prefix, after=after, at_most=at_most)]

    def details(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[Listed]:
        found = self._list(prefix, recursive=True, after=after, at_most=at_most)
        return [Listed(self._own(o.object_name), o.size or 0, _seconds(o.last_modified), o.etag or "") for o in found]

    def folders(self, prefix: str) -> list[str]:
        found = self._list(prefix, recursive=False)
        return [self._own(o.object_name)[len(prefix) :].rstrip("/") for o in found if o.is_dir]

    def _list(self, prefix: str, *, recursive: bool, after: str = "", at_most: int | None = None) -> list[Any]:
        root, bucket = self.address.root, self.address.bucket
        start = root + after if after else None

        def ask() -> list[Any]:  # all of it in one go: a generator that has raised only looks as if it were at its end
            pages = self._signed.client().list_objects(
                bucket, prefix=root + prefix, recursive=recursive, start_after=start
            )
            return list(itertools.islice(pages, at_most))

        try:
            found: list[Any] = self._signed.guarded(ask)
        except Refused as refused:
            raise self._signed.refusal(refused, f"list {prefix}") from None
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """In one request, or one by one where the server or its policy knows no such request."""
        names = list(keys)
        try:
            if names and not self._singly:
                self._delete_together(names)
                return
        except Refused as refused:
            if refused.status not in _NOT_TOGETHER:
                raise self._signed.refusal(refused, "remove objects") from None
        for name in names:
            try:
                self._signed.ask("DELETE", name)
            except Refused as refused:
                if refused.status != 404 or refused.code == "NoSuchBucket":
                    raise self._signed.refusal(refused, f"remove {name}") from None
            self._singly = True

    def _delete_together(self, names: Sequence[str]) -> None:
        client, bucket = self._signed.client(), self.address.bucket
        found = [DeleteObject(self.address.root + name) for name in names]
        for failed in self._signed.guarded(lambda: list(client.remove_objects(bucket, found))):
            if failed.code not in ("NoSuchKey", None):
                raise Refused(403 if failed.code == "AccessDenied" else 500, failed.code or "")

    discard = delete

    def _own(self, name: str) -> str:
        return name[len(self.address.root) :]

    # --- files ---

    def upload(self, key: str, source: Path, progress: Progress | None = None) -> None:
        self._files.upload(key, source, progress)

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        return self._files.download(key, target, progress)

    # --- the client ---

    def server_now(self) -> float | None:
        return self._signed.observer.server_now()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._threads = None
        self._signed.after_fork()

    def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False)
        self._signed.close()


def _seconds(when: datetime.datetime | None) -> float:
    return when.timestamp() if when is not None else 0.0
