"""An S3 server in memory that can be as wrong as real ones are, and that can change while peers write.

    with Imitation() as server:            # keeps the condition
        open server.url("store")
        server.pools = 2                   # from now on like MinIO or RustFS with a second pool

It checks no signatures.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import hashlib
import itertools
import random
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.http_messages import Request, read_request
from tests.support.http_server import ThreadedServer

BUCKET = "bucket"


class _Object(NamedTuple):
    order: int
    data: bytes
    modified: datetime.datetime


class Imitation(ThreadedServer):
    """One server with one bucket.

    Args:
        pools: each PUT goes to one of so many by chance, and its condition is looked up in that one; a GET shows the
            newest of all. Like MinIO since 2025-07 and RustFS with more than one pool.
        links_after: seconds between the look whether a key is free and the write. Like the Versity gateway.
        keeps_condition: without it every PUT succeeds. Like Ceph 18 in a bucket with versions.
        seed: for what happens by chance.

    """

    def __init__(
        self, *, pools: int = 1, links_after: float | None = None, keeps_condition: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.pools = pools
        self.links_after = links_after
        self.keeps_condition = keeps_condition
        self.no_bucket = False
        """Whether it says that there is no such bucket."""
        self.asked: Callable[[Request], int | None] | None = None
        """Asked about every request; a status is an answer."""
        self.etag_of: Callable[[bytes], str] = _etag
        """What it calls an object of these bytes."""
        self.overwritten: list[str] = []
        """Keys of conditional PUTs that were accepted though there was an object."""
        self._rng = random.Random(seed)
        self._order = itertools.count(1)
        self._pools: dict[int, dict[str, _Object]] = {}

    def url(self, prefix: str) -> str:
        """The store at this prefix."""
        return f"s3://{BUCKET}/{prefix}?endpoint={self.endpoint}&region=us-east-1"

    def reseed(self, seed: int) -> None:
        """What happens by chance from now on."""
        self._rng = random.Random(seed)

    def contents(self) -> list[str]:
        """Everything that is there."""
        return sorted(set(itertools.chain.from_iterable(self._pools.values())))

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await read_request(reader)) is not None:
            self.requests[request.kind] += 1
            status, headers, body = await self._answer(request)
            now = email.utils.format_datetime(datetime.datetime.now(datetime.UTC), usegmt=True)
            headers = {"Content-Length": str(len(body)), "Date": now, **headers}
            lines = [f"HTTP/1.1 {status} .", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
            writer.write("\r\n".join(lines).encode() + (b"" if request.kind == "HEAD" else body))
            await writer.drain()

    async def _answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        refused = self.asked(request) if self.asked is not None else None
        if refused is not None:
            return _error(refused, "NotImplemented" if refused == 501 else "AccessDenied")
        if self.no_bucket:
            return _error(404, "NoSuchBucket")
        parts = urlsplit(request.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        if request.kind == "LIST":
            return 200, {"Content-Type": "application/xml"}, self._list(query).encode()
        if request.kind == "PUT":
            return await self._put(key, request)
        if request.kind == "DELETE":
            self._remove(key)
            return 204, {}, b""
        if not key:
            return 200, {}, b""
        found = self._newest(key)
        if found is None:
            return _error(404, "NoSuchKey")
        modified = email.utils.format_datetime(found.modified, usegmt=True)
        return 200, {"Last-Modified": modified, "ETag": self.etag_of(found.data)}, found.data

    async def _put(self, key: str, request: Request) -> tuple[int, dict[str, str], bytes]:
        pool = self._pools.setdefault(self._rng.randrange(self.pools), {})
        if self.keeps_condition and any(name.lower() == "if-none-match" for name, _ in request.headers):
            there = key in pool
            if self.links_after is not None:
                await asyncio.sleep(self.links_after)
            if there:
                return _error(412, "PreconditionFailed")
            if self._newest(key) is not None:
                self.overwritten.append(key)
        pool[key] = _Object(next(self._order), request.body, datetime.datetime.now(datetime.UTC))
        return 200, {"ETag": self.etag_of(request.body)}, b""

    def _newest(self, key: str) -> _Object | None:
        return max((pool[key] for pool in self._pools.values() if key in pool), default=None)

    def _remove(self, key: str) -> None:
        for pool in self._pools.values():
            pool.pop(key, None)

    def _list(self, query: dict[str, list[str]]) -> str:
        prefix, after = query.get("prefix", [""])[0], query.get("start-after", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        shown, folders = [], set()
        for key in self.contents():
            if not key.startswith(prefix) or key <= after:
                continue
            folder, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if mark:
                folders.add(f"{prefix}{folder}{mark}")
                continue
            found = self._newest(key)
            assert found is not None
            time = found.modified.strftime("%Y-%m-%dT%H:%M:%S.000Z")
            shown.append(
                f"<Contents><Key>{escape(quote(key))}</Key><LastModified>{time}</LastModified>"
                f"<ETag>{escape(self.etag_of(found.data))}</ETag><Size>{len(found.data)}</Size></Contents>"
            )
        shown += [f"<CommonPrefixes><Prefix>{escape(quote(one))}</Prefix></CommonPrefixes>" for one in sorted(folders)]
        head = f"<Name>{BUCKET}</Name><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        return f'<ListBucketResult xmlns="{space}">{head}{"".join(shown)}</ListBucketResult>'


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _error(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return status, {"Content-Type": "application/xml"}, xml.encode()
