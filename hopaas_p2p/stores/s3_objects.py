"""Objects in a bucket: the few requests that a store needs, and what their answers mean.

`create` is the one that carries everything: PUT with `If-None-Match: *`, of which exactly one succeeds. Nothing is
tried again here, but for keys that have run out and a clock that is wrong: whoever asks must know what is not known.
Only this file knows the SDK. Its public `put_object` cannot send the condition, so `create` uses the call beneath it,
which a contract test watches.
"""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

import urllib3
from minio import Minio
from minio import time as minio_time
from minio.deleteobjects import DeleteObject

from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.stores import s3_http
from hopaas_p2p.stores.base import Progress
from hopaas_p2p.stores.s3_address import Address
from hopaas_p2p.stores.s3_credentials import Chain, chain
from hopaas_p2p.stores.s3_errors import CLOCK, PASSING, RUN_OUT, Refused, refusal, unreachable
from hopaas_p2p.stores.s3_http import Watch, parse_date

_PART: Final = 16 << 20  # bytes of a file sent at once; S3 takes 10,000 of them, which is 160 GB
_CHUNK: Final = 1 << 20
_ATTEMPTS: Final = 5  # at reading one file
_TYPE: Final = "application/octet-stream"


class Found(NamedTuple):
    """An object as it was read."""

    data: bytes
    """Empty when the object is larger than the caller would take."""
    size: int
    modified: float
    """When the server took it, by the server's clock; 0 if it did not say."""


class Listed(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int
    modified: float


class ObjectStore(Protocol):
    """What a store needs of a bucket. Keys are relative to the store's root. Any thread may call.

    Raises, all of them:
        StoreUnreachable: no answer, or one that says try later. What was asked for may have been done.
        Denied: these keys may not do that. It was not done.
        ConfigurationError: bucket, keys, clock or server must be changed. It was not done.

    """

    requests: Counter[str]
    """Requests so far by kind: PUT, GET, LIST, DELETE, POST."""

    def get(self, key: str, *, limit: int) -> Found | None:
        """The object, or None. One larger than `limit` bytes is not read."""

    def put(self, key: str, data: bytes) -> None:
        """Write the object, whatever is there."""

    def create(self, key: str, data: bytes) -> bool:
        """Write the object if there is none; whether this call did."""

    def listed(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[Listed]:
        """The objects whose keys begin so, in order of their keys."""

    def folders(self, prefix: str) -> list[str]:
        """The names up to the next slash behind this prefix."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove these, as far as they are there."""

    def upload(self, key: str, source: Path, progress: Progress | None = None) -> None:
        """Write a file of any size, in parts; whole or not at all."""

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        """Write the object to a file; whether there was one."""

    def server_now(self) -> float | None:
        """The server's clock: seconds since 1970, once it has answered."""

    def after_fork(self) -> None:
        """Forget the connections, which are the parent's."""

    def close(self) -> None:
        """Close the connections; they are made again when needed."""


class _Client(Minio):
    """The SDK's client, signing with the server's time instead of this machine's."""

    ahead = datetime.timedelta(0)

    def _build_headers(self, *args: Any, **kw: Any) -> Any:
        headers, date = super()._build_headers(*args, **kw)
        date += self.ahead
        headers["x-amz-date"] = minio_time.to_amz_date(date)
        return headers, date


_abandoned: Final[list[object]] = []
"""Clients of parent processes: to destroy one would take locks that a thread of the parent may have held."""


class MinioObjects:
    """An `ObjectStore` on the `minio` SDK."""

    def __init__(self, address: Address, *, keys: Chain | None = None) -> None:
        self.address = address
        self.watch = Watch()
        self.requests = self.watch.requests
        self._keys = keys or chain(address)
        self._keys.clock = lambda: self.watch.server_now() or minio_time.utcnow().timestamp()
        self._client: _Client | None = None
        self._bulk: _Client | None = None
        self._ahead = datetime.timedelta(0)

    def __repr__(self) -> str:
        return f"MinioObjects({self.address.url!r})"

    # --- small objects ---

    def get(self, key: str, *, limit: int) -> Found | None:
        try:
            response = self._ask("GET", key, preload_content=False)
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
            self._ask("PUT", key, body=data, headers={"Content-Type": _TYPE})
        except Refused as refused:
            raise refusal(self.address, refused, f"write {key}") from None

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._ask("PUT", key, body=data, headers={"Content-Type": _TYPE, "If-None-Match": "*"})
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
            pages = self._made().list_objects(bucket, prefix=root + prefix, recursive=recursive, start_after=start)
            return list(itertools.islice(pages, at_most))

        try:
            found: list[Any] = self._guarded(ask)
        except Refused as refused:
            raise refusal(self.address, refused, f"list {prefix}") from None
        return found

    def delete(self, keys: Iterable[str]) -> None:
        names = [DeleteObject(self.address.root + key) for key in keys]
        if not names:
            return
        try:
            failed = self._guarded(lambda: list(self._made().remove_objects(self.address.bucket, names)))
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
        name, size = self.address.root + key, source.stat().st_size

        def send() -> None:
            with source.open("rb") as file:
                data: Any = _Counted(file, progress)
                self._made(bulk=True).put_object(self.address.bucket, name, data, size, part_size=_PART)

        try:
            self._guarded(send)
        except Refused as refused:
            raise refusal(self.address, refused, f"write {key}") from None

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        with target.open("wb") as file:
            there = self._download(key, file, progress)
        if not there:
            target.unlink(missing_ok=True)
        return there

    def _download(self, key: str, file: BinaryIO, progress: Progress | None) -> bool:
        """Read on where a broken answer ended, if the object is still the same."""
        etag = ""
        for attempt in range(_ATTEMPTS):
            done = file.tell()
            rest = {"Range": f"bytes={done}-", "If-Match": etag} if done else {}
            try:
                response = self._ask("GET", key, bulk=True, preload_content=False, headers=rest)
            except Refused as refused:
                if refused.status == 404 and refused.code != "NoSuchBucket":
                    return False
                if refused.status in (412, 416):
                    raise StoreUnreachable(f"{key} was replaced while it was read; get it again") from None
                raise refusal(self.address, refused, f"read {key}") from None
            etag = response.headers.get("ETag", "")
            if done and response.status != 206:  # it sends all of it again
                file.seek(0)
                file.truncate()
            try:
                for chunk in response.stream(_CHUNK, decode_content=False):
                    file.write(chunk)
                    if progress is not None:
                        progress(len(chunk))
                return True
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise unreachable(self.address, error) from None
            finally:
                response.release_conn()
        raise AssertionError("unreachable")

    # --- the client ---

    def server_now(self) -> float | None:
        return self.watch.server_now()

    def after_fork(self) -> None:
        _abandoned.extend([self._client, self._bulk, self._keys, self.watch])
        self._client = self._bulk = None
        requests, ahead, heard = self.watch.requests, self.watch.ahead, self.watch.heard
        self.watch = Watch()
        self.watch.requests, self.watch.ahead, self.watch.heard = requests, ahead, heard
        self._keys = self._keys.copy(clock=lambda: self.watch.server_now() or minio_time.utcnow().timestamp())

    def close(self) -> None:
        self._client = self._bulk = None

    def _made(self, *, bulk: bool = False) -> _Client:
        """The client, made at first use. The one for files may send a request again, which hurts nobody there."""
        client = self._bulk if bulk else self._client
        if client is None:
            address = self.address
            secure = address.endpoint.startswith("https://")
            again = urllib3.Retry(total=4, backoff_factor=0.5, status_forcelist=sorted(PASSING), allowed_methods=None)
            http = s3_http.pool(
                address.endpoint,
                watch=self.watch,
                retries=again if bulk else False,
                read=60.0 if bulk else s3_http.READ,
            )
            client = _Client(
                endpoint=address.endpoint.partition("://")[2],
                secure=secure,
                region=address.region,
                http_client=http,
                credentials=self._keys,
            )
            client.ahead = self._ahead
            if address.virtual:
                client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
            else:
                client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
            if bulk:
                self._bulk = client
            else:
                self._client = client
        return client

    def _ask(
        self, method: str, key: str, *, bulk: bool = False, headers: dict[str, str] | None = None, **kw: Any
    ) -> Any:
        """One request, signed; raises Refused or one of our errors."""
        name = self.address.root + key

        def send() -> Any:
            return self._made(bulk=bulk)._execute(  # type: ignore[no-untyped-call, unused-ignore]
                method, self.address.bucket, name, headers=dict(headers or {}), no_body_trace=True, **kw
            )

        return self._guarded(send)

    def _guarded(self, send: Callable[[], Any]) -> Any:
        """Send; once more with other keys or the server's time, if that is what it was refused for."""
        for last in (False, True):
            try:
                return self._translated(send)
            except Refused as refused:
                if last or not self._amended(refused):
                    raise
        raise AssertionError("unreachable")

    def _amended(self, refused: Refused) -> bool:
        if refused.code in RUN_OUT:
            return self._keys.renew()
        if refused.code in CLOCK and abs(self.watch.ahead - self._ahead.total_seconds()) > 1.0:
            self._ahead = datetime.timedelta(seconds=self.watch.ahead)
            for client in (self._client, self._bulk):
                if client is not None:
                    client.ahead = self._ahead
            return True
        return False

    def _translated(self, send: Callable[[], Any]) -> Any:
        """What the SDK raises, by the status that the server answered with: its exceptions are of three kinds."""
        answer = self.watch.answer
        answer.status, answer.headers = None, {}
        try:
            return send()
        except HopaasError:
            raise
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise unreachable(self.address, error) from None
        except Exception as error:  # noqa: BLE001  # also what it trips over in a proxy's page of HTML
            status = getattr(getattr(error, "response", None), "status", None) or answer.status  # of a part's thread
            if status is None or status in (200, 204, 206):
                raise StoreUnreachable(
                    f"{self.address.endpoint} gave an answer that is not S3's: {type(error).__name__}"
                ) from None
            raise Refused(status, str(getattr(error, "code", None) or "")) from None


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: BinaryIO, progress: Progress | None) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._progress is not None and data:
            self._progress(len(data))
        return data


def _seconds(when: datetime.datetime | None) -> float:
    return when.timestamp() if when is not None else 0.0
