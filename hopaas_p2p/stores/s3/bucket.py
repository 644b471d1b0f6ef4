"""A bucket of an S3 server as an `ObjectStore`: signed requests by urllib3, with the signer of the `minio` SDK.

The SDK itself cannot send a condition, does not use `HTTPS_PROXY`, retries by itself, and hides part of an answer.
Requests for files are sent again after an error. Any other request is sent again only with newer keys or the server's
time, if it was refused for these, because the caller must know when an outcome is unknown.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import quote, unquote, urlencode, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import urllib3
from minio.signer import sign_v4_s3
from urllib3.util import Timeout

from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.runtime.parallel import each
from hopaas_p2p.stores.base import Progress
from hopaas_p2p.stores.objects.contract import Found, delete_each
from hopaas_p2p.stores.s3 import http
from hopaas_p2p.stores.s3.address import Address
from hopaas_p2p.stores.s3.errors import AWAY, CLOCK, PASSING, RUN_OUT, refusal, unreachable
from hopaas_p2p.stores.s3.keys import Chain, Keys
from hopaas_p2p.stores.s3.search import WIDEST

_TYPE: Final = {"Content-Type": "application/octet-stream"}
PAGE: Final = 1000
"""The most keys in one answer to a LIST."""
_PART: Final = 16 << 20  # bytes of a file sent at once; S3 takes 10,000 of them, which is 160 GB
_PARTS_AT_ONCE: Final = 3
_CHUNK: Final = 1 << 20
_ATTEMPTS: Final = 5  # to read one file

_DONE: Final = (200, 204, 206)
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9._-]{1,100})</Code>")  # bounded, because it is shown
_SKEW: Final = 1.0  # seconds
_BULK_READ: Final = 60.0  # seconds of silence during a file
_PAUSES: Final = (0.0, 1.0, 2.0, 4.0)  # seconds before a request about a file is sent again
_MOST_PAGES: Final = 4000  # of one listing

_abandoned: Final[list[object]] = []
"""Connections of parent processes, which are never destroyed, because that would take locks that a thread of the parent
may have held."""


class Listed(NamedTuple):
    """An object as a listing shows it."""

    key: str
    size: int
    modified: float
    etag: str = ""
    """In most cases the MD5 of the object's bytes; on any server, it changes when they do."""


class Bucket:
    """A bucket as a store of objects; see the module. Methods may be called from any thread.

    Attributes:
        requests: counts so far, by kind: PUT, GET, LIST, DELETE, POST.
        interruptions: how often the server did not answer, or answered that it is not ready.
        keys: where the keys come from.

    """

    settles = 0.0

    def __init__(self, address: Address) -> None:
        self.address = address
        self.requests: Counter[str] = Counter()
        self.interruptions = 0
        self.keys = Chain(address)
        self.keys.clock = self._now
        self._known = False
        """Whether a request to the bucket has succeeded, so that the bucket exists, or did."""
        self._heard: float | None = None
        """Seconds by which the server's clock is ahead of this machine's, according to its last answer."""
        self._ahead = 0.0
        """The seconds by which the server's clock is assumed to be ahead when requests are signed."""
        self._pool: urllib3.PoolManager | None = None
        self._room = threading.Semaphore(WIDEST)
        """Shared by the requests of all calls of `get_many` for many keys and of `delete`, which together use no more
        connections than this.
        """

    def server_now(self) -> float | None:
        """The server's clock: seconds since 1970, once it has answered."""
        return None if self._heard is None else self._now()

    def _now(self) -> float:
        return time.time() + (self._heard or 0.0)

    # --- requests ---

    def pool(self) -> urllib3.PoolManager:
        """The pool of connections, made at first use."""
        self._pool = self._pool or http.pool(self.address.endpoint)
        return self._pool

    def _ask(
        self,
        method: str,
        key: str | None,
        what: str,
        *,
        fine: tuple[int, ...] = (),
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        bulk: bool = False,
        stream: bool = False,
    ) -> Any:
        """Make one request; return the answer, completely read unless it is streamed.

        Args:
            method: the HTTP method.
            key: the object's key, below the store's root; None for the bucket.
            what: what the request does, for messages.
            fine: statuses that the caller expects, besides success.
            query, headers, body: the parts of the request.
            bulk: whether it transfers a file, and may be sent again.
            stream: whether the caller reads the body.

        Raises:
            StoreUnreachable, Denied, ConfigurationError: as `ObjectStore` says.

        """
        self.requests["LIST" if key is None and method == "GET" else method] += 1
        address, server = self.address, urlsplit(self.address.endpoint)
        host = f"{address.bucket}.{server.netloc}" if address.virtual else server.netloc
        path = ([] if address.virtual else [address.bucket]) + ([] if key is None else [quote(address.root + key)])
        options = urlencode(sorted((query or {}).items()), quote_via=quote, safe="")
        url = server._replace(netloc=host, path="/" + "/".join(path), query=options)
        digest = hashlib.sha256(body).hexdigest()
        timeout = Timeout(connect=http.CONNECT, read=_BULK_READ if bulk else http.READ)
        # redirects are not followed, because a session's token would be sent to any host that the answer names
        how: dict[str, Any] = {"redirect": False, "preload_content": False, "timeout": timeout}
        amended, pauses = False, iter(_PAUSES if bulk else ())
        while True:
            keys, ahead = self.keys.retrieve(), self._ahead
            when = datetime.datetime.fromtimestamp(time.time() + ahead, datetime.UTC)
            said: dict[str, str | list[str] | tuple[str]] = {
                **(headers or {}),
                "Host": host,
                "x-amz-content-sha256": digest,
                "x-amz-date": when.strftime("%Y%m%dT%H%M%SZ"),
                **({"x-amz-security-token": keys.session_token} if keys.session_token else {}),
            }
            signed = sign_v4_s3(
                method=method,
                url=url,
                region=address.region,
                headers=said,
                credentials=keys,  # type: ignore[arg-type]  # it reads three attributes
                content_sha256=digest,
                date=when,
            )
            try:
                answer = self.pool().urlopen(method, url.geturl(), body=body, headers=signed, **how)
                answer = answer if stream and answer.status in _DONE else http.whole(answer)
                if (date := http.parse_date(answer.headers.get("Date"))) is not None:
                    self._heard = date - time.time()
                told = None if answer.status in _DONE else _CODE.search(answer.data or b"")
                code = told[1].decode() if told else ""  # none, for instance, in a proxy's HTML page
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self.interruptions += 1
                failure = unreachable(address, error)
                if not failure.retry or (pause := next(pauses, None)) is None:
                    raise failure from None
                time.sleep(pause)
                continue
            if answer.status in _DONE:
                self._known = True
                return answer
            if answer.status in fine and code != "NoSuchBucket":
                return answer
            if answer.status in PASSING and (pause := next(pauses, None)) is not None:
                time.sleep(pause)  # our own pause, since one that the server requests may be long
                continue
            if not amended and self._amended(code, keys, ahead):
                amended = True
                self.requests[method] += 1
                continue
            self.interruptions += code == "NoSuchBucket" or (answer.status in AWAY and code != "SlowDown")
            conditional = "If-None-Match" in (headers or {})
            raise refusal(address, answer.status, code, what, conditional=conditional, known=self._known)

    def _amended(self, code: str, keys: Keys, ahead: float) -> bool:
        """Whether a request that was signed with these keys and this time would now be signed differently.

        If several requests are under way, each is refused; the first to return corrects the keys or time for all.
        """
        if code in RUN_OUT:
            return self.keys.renew(keys)
        if code in CLOCK and ahead == self._ahead and abs((self._heard or 0.0) - ahead) > _SKEW:
            self._ahead = self._heard or 0.0
        return code in CLOCK and ahead != self._ahead

    # --- small objects ---

    def get(self, key: str, *, limit: int, certain: bool = True) -> Found | None:
        answer = self._ask("GET", key, f"read {key}", fine=(404,), stream=True)
        if answer.status == 404:
            return None
        try:
            modified = http.parse_date(answer.headers.get("Last-Modified")) or 0.0
            length = answer.headers.get("Content-Length", "")
            size = int(length) if length.isascii() and length.isdigit() else 0
            data = b"" if size > limit else http.read(answer, limit)
            if (size := max(size, len(data))) > limit:
                answer.close()  # without reading the rest
                data = b""
            return Found(data, size, modified)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:  # a length of 5,000 digits
            raise unreachable(self.address, error) from None
        finally:
            answer.release_conn()

    def put(self, key: str, data: bytes) -> None:
        self._ask("PUT", key, f"write {key}", headers=_TYPE, body=data)

    def put_same(self, key: str, data: bytes) -> None:
        self.put_new(key, data)  # history is not overwritten

    def put_new(self, key: str, data: bytes, *, unless: Sequence[str] | None = ()) -> bool:
        condition = {**_TYPE, "If-None-Match": "*"}
        answer = self._ask("PUT", key, f"write {key}", fine=(412,), headers=condition, body=data)
        return bool(answer.status != 412)

    def secure(self, key: str) -> None:
        """Do nothing, because what a bucket has acknowledged is durable."""

    # --- many objects ---

    def get_many(self, keys: Sequence[str], *, limit: int) -> list[Found | StoreUnreachable | None]:
        room = self._room if len(keys) > WIDEST else contextlib.nullcontext()  # a call for few keys does not wait

        def one(key: str) -> Found | StoreUnreachable | None:
            with room:
                try:
                    return self.get(key, limit=limit)
                except StoreUnreachable as error:
                    return error

        return each(one, keys, at_once=WIDEST)

    def listed(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[str]:
        return [one.key for one in self.details(prefix, after=after, at_most=at_most)]

    def details(self, prefix: str, *, after: str = "", at_most: int | None = None) -> list[Listed]:
        """Like `listed`, with sizes and times."""
        found = []
        for one in self._list(prefix, "Contents", after=after, at_most=at_most):
            try:
                at = datetime.datetime.fromisoformat(_text(one, "LastModified")).timestamp()
                size = int(_text(one, "Size") or 0)
            except (ValueError, OverflowError):
                raise StoreUnreachable(f"{self.address.endpoint} lists invalid sizes or times") from None
            found.append(Listed(_text(one, "Key")[len(self.address.root) :], size, at, _text(one, "ETag").strip('"')))
        return found

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders in this folder."""
        found = self._list(prefix, "CommonPrefixes", delimiter="/")
        return [_text(one, "Prefix")[len(self.address.root + prefix) :].rstrip("/") for one in found]

    def _list(
        self, prefix: str, kind: str, *, delimiter: str = "", after: str = "", at_most: int | None = None
    ) -> list[Any]:
        root, what = self.address.root, f"list {prefix}"
        query = {"list-type": "2", "encoding-type": "url", "prefix": root + prefix, "delimiter": delimiter}
        query |= {"max-keys": str(min(at_most or PAGE, PAGE))} | ({"start-after": root + after} if after else {})
        found: list[Any] = []
        for _ in range(_MOST_PAGES):
            page = self._xml(self._ask("GET", None, what, query=query).data, "ListBucketResult")
            listed = page.findall(f"{{*}}{kind}")
            if len(listed) > PAGE:
                raise StoreUnreachable(f"{self.address.endpoint} lists more objects at a time than it was asked for")
            keys = [_text(one, "Key") or _text(one, "Prefix") for one in listed]
            if any(key <= root + after for key in keys):
                raise StoreUnreachable(f"{self.address.endpoint} lists objects before those that it was asked for")
            for one, key in zip(listed, keys, strict=True):
                # HTTP removes dots between slashes, so a request for such a key would go to another one
                if key.startswith(root + prefix) and {".", ".."}.isdisjoint(key.split("/")):
                    found.append(one)
            token, query["continuation-token"] = query.get("continuation-token"), _text(page, "NextContinuationToken")
            if _text(page, "IsTruncated") != "true" or (at_most is not None and len(found) >= at_most):
                return found[:at_most]
            if token == query["continuation-token"]:
                raise StoreUnreachable(f"{self.address.endpoint} lists the same objects again and again")
        raise StoreUnreachable(f"{self.address.endpoint} returns an endless list of objects")

    def _xml(self, data: bytes, root: str) -> Any:
        """The server's answer, parsed."""
        with contextlib.suppress(ElementTree.ParseError):
            few = data and sum(map(data.count, (b"<", b"=", b"&", b"\n", b"\r"))) <= 200 * PAGE  # each takes memory
            found = ElementTree.fromstring(data if few else b"", ElementTree.XMLParser(target=_Builder()))  # noqa: S314  # no entities
            if found.tag.rpartition("}")[2] == root:
                return found
        raise StoreUnreachable(f"{self.address.endpoint} sent an answer that is not from S3: no {root}")

    def delete(self, keys: Iterable[str]) -> None:
        def one(key: str) -> None:
            with self._room:
                self._ask("DELETE", key, f"remove {key}", fine=(404,))

        delete_each(one, keys, at_once=WIDEST)

    discard = delete

    # --- files ---

    def upload(self, key: str, source: Path) -> None:
        """Write a file, in several parts at once, completely or not at all."""
        size, what = source.stat().st_size, f"write {key}"
        parts = -(-size // _PART)
        with source.open("rb") as file:
            if parts <= 1:
                self._ask("PUT", key, what, headers=_TYPE, body=file.read(), bulk=True)
                return
            begun = self._ask("POST", key, what, query={"uploads": ""}, headers=_TYPE, bulk=True)
            upload = {"uploadId": _text(self._xml(begun.data, "InitiateMultipartUploadResult"), "UploadId")}

            def send(part: int) -> str:
                data = os.pread(file.fileno(), _PART, (part - 1) * _PART)
                answer = self._ask("PUT", key, what, query={**upload, "partNumber": str(part)}, body=data, bulk=True)
                return str(answer.headers.get("ETag", ""))

            try:
                listed = ""
                for part, etag in enumerate(each(send, range(1, parts + 1), at_once=_PARTS_AT_ONCE), 1):
                    listed += f"<Part><PartNumber>{part}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
                body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
                done = self._ask("POST", key, what, query=upload, body=body, bulk=True)
                self._xml(done.data, "CompleteMultipartUploadResult")  # the body may be an error in spite of the status
            except BaseException:
                with contextlib.suppress(HopaasError):
                    self._ask("DELETE", key, what, query=upload, bulk=True)
                raise

    def download(self, key: str, target: Path, progress: Progress | None = None) -> bool:
        """Read an object into a file; after a broken answer, continue where it ended if the object is still the
        same.
        """
        etag = ""
        for attempt in range(_ATTEMPTS):
            done = target.stat().st_size if etag else 0
            rest = {"Range": f"bytes={done}-", "If-Match": etag} if done else {}
            answer = self._ask("GET", key, f"read {key}", fine=(404, 412, 416), headers=rest, bulk=True, stream=True)
            if answer.status == 404:
                return False
            if answer.status in (412, 416):
                raise StoreUnreachable(f"{key} was replaced while it was read; get it again")
            etag = answer.headers.get("ETag", "")
            with target.open("ab" if done and answer.status == 206 else "wb") as file:  # or from the beginning
                try:
                    for chunk in answer.stream(_CHUNK, decode_content=False):
                        file.write(chunk)
                        if progress is not None:
                            progress(len(chunk))
                    return True
                except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:  # as in http.read
                    if attempt == _ATTEMPTS - 1:
                        raise unreachable(self.address, error) from None
                finally:
                    answer.release_conn()
        raise AssertionError("unreachable")

    # --- connections ---

    def after_fork(self) -> None:
        """Drop the connections, which belong to the parent."""
        _abandoned.append(self._pool)
        self._pool, self._room = None, threading.Semaphore(WIDEST)
        self.keys.after_fork()

    def close(self) -> None:
        """Close the connections; they are opened again when needed."""
        self._pool = None


class _Builder(ElementTree.TreeBuilder):
    """Builds a document that declares no entities, with which a few bytes could stand for many."""

    def doctype(self, *_: object) -> NoReturn:
        raise ElementTree.ParseError


def _text(element: Any, name: str) -> str:
    """The text that an element of a listing has under this name."""
    said = element.findtext(f"{{*}}{name}") or ""
    return unquote(said) if name in ("Key", "Prefix") else said
