"""`ObjectStore` on the `minio` SDK."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import urllib3
from minio.deleteobjects import DeleteObject

from hopaas_p2p.errors import StoreUnreachable
from hopaas_p2p.stores.base import Progress
from hopaas_p2p.stores.s3.address import Address
from hopaas_p2p.stores.s3.client import Signed
from hopaas_p2p.stores.s3.credentials import chain
from hopaas_p2p.stores.s3.errors import Refused, refusal, unreachable
from hopaas_p2p.stores.s3.files import Files
from hopaas_p2p.stores.s3.http import parse_date
from hopaas_p2p.stores.s3.keys import Chain
from hopaas_p2p.stores.s3.objects import Found, Listed

_TYPE: Final = "application/octet-stream"


class MinioObjects:
    """See the module. Any thread may call."""

    def __init__(self, address: Address, *, keys: Chain | None = None) -> None:
        self.address = address
        self._signed = Signed(address, keys or chain(address))
        self._files = Files(self._signed)

    def __repr__(self) -> str:
        return f"MinioObjects({self.address.url!r})"

    @property
    def requests(self) -> Counter[str]:
        return self._signed.watch.requests

    @property
    def keys(self) -> Chain:
        """Where the keys come from."""
        return self._signed.keys

    # --- small objects ---

    def get(self, key: str, *, limit: int) -> Found | None:
        try:
            response = self._signed.ask("GET", key, preload_content=False)
        except Refused as refused:
            if refused.status == 404 and refused.code != "NoSuchBucket":
                return None
            raise refusal(self.address, refused, f"read {key}") from None
        try:
            return self._read(response, limit)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.address, error) from None
        finally:
            response.release_conn()

    def _read(self, response: Any, limit: int) -> Found:
        modified = parse_date(response.headers.get("Last-Modified")) or 0.0
        length = response.headers.get("Content-Length", "")
        if not length.isdigit():
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
            raise refusal(self.address, refused, f"write {key}") from None

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._signed.ask("PUT", key, body=data, headers={"Content-Type": _TYPE, "If-None-Match": "*"})
        except Refused as refused:
            if refused.status == 412:
                return False
            raise refusal(self.address, refused, f"write {key}") from None
        return True

    # --- many objects ---

    def listed(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[Listed]:
        found = self._list(prefix, recursive=True, after=after, at_most=at_most)
        return [Listed(self._own(o.object_name), o.size or 0, _seconds(o.last_modified)) for o in found]

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
            raise refusal(self.address, refused, f"list {prefix}") from None
        return found

    def delete(self, keys: Iterable[str]) -> None:
        names = [DeleteObject(self.address.root + key) for key in keys]
        if not names:
            return
        try:
            failed = self._signed.guarded(
                lambda: list(self._signed.client().remove_objects(self.address.bucket, names))
            )
        except Refused as refused:
            raise refusal(self.address, refused, "remove objects") from None
        refusals = [error for error in failed if error.code not in ("NoSuchKey", None)]
        if refusals:
            code = refusals[0].code or ""
            status = 403 if code == "AccessDenied" else 500
            raise refusal(self.address, Refused(status, code), f"remove {self._own(refusals[0].name or '')}")

    def _own(self, name: str) -> str:
        return name[len(self.address.root) :]

    # --- files ---

    def upload(self, key: str, source: Path, progress: Progress | None = None) -> None:
        self._files.upload(key, source, progress)

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        return self._files.download(key, target, progress)

    # --- the client ---

    def server_now(self) -> float | None:
        return self._signed.watch.server_now()

    def after_fork(self) -> None:
        self._signed.after_fork()

    def close(self) -> None:
        self._signed.close()


def _seconds(when: datetime.datetime | None) -> float:
    return when.timestamp() if when is not None else 0.0
