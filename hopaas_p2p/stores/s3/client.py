"""Signed requests to one bucket, by urllib3 with the signer of the `minio` SDK, and what the server says to them.

The SDK itself cannot send a condition, knows neither `HTTPS_PROXY` nor a CA of ours, retries by itself, and keeps half
of an answer to itself. Nothing is retried here, except with newer keys or the server's time if a request was refused
for these: the caller must know what is not known.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from minio.signer import sign_v4_s3

from hopaas_p2p.stores.s3 import http
from hopaas_p2p.stores.s3.address import Address
from hopaas_p2p.stores.s3.errors import AWAY, CLOCK, PASSING, RUN_OUT, refusal, unreachable
from hopaas_p2p.stores.s3.keys import Chain, Keys

_DONE: Final = (200, 204, 206)
_CODE: Final = re.compile(rb"<Code>([^<]*)</Code>")
_SKEW: Final = 1.0  # seconds
_BULK_READ: Final = 60.0  # seconds of silence during a file
_ERROR: Final = 1 << 16  # bytes of a refusal that are read

_abandoned: Final[list[object]] = []
"""Connections of parent processes: to destroy one would take locks that a thread of the parent may have held."""


class S3Client:
    """See the module. Any thread may call.

    Attributes:
        requests: so far, by kind: PUT, GET, LIST, DELETE, POST.
        interruptions: how often the server was away: no answer, or one that says that it is not ready.
        keys: where the keys come from.

    """

    def __init__(self, address: Address, keys: Chain) -> None:
        self.address = address
        self.requests: Counter[str] = Counter()
        self.interruptions = 0
        self.keys = keys
        self.keys.clock = self.now
        self.known = False
        """Whether the bucket is there, or was."""
        self.heard: float | None = None
        """Seconds by which the server's clock is ahead of this machine's, as its last answer told."""
        self._ahead = 0.0
        """The same, as requests are signed."""
        self._pools: dict[bool, urllib3.PoolManager] = {}
        """For files, if true, and for all else."""

    def now(self) -> float:
        """The server's time in seconds since 1970, as far as it has told."""
        return time.time() + (self.heard or 0.0)

    def pool(self, *, bulk: bool = False) -> urllib3.PoolManager:
        """Connections, made at first use. Those for files may send a request again, which hurts nobody there."""
        if bulk not in self._pools:
            again = urllib3.Retry(
                total=4, redirect=False, backoff_factor=0.5, status_forcelist=sorted(PASSING), allowed_methods=None
            )
            self._pools[bulk] = http.pool(
                self.address.endpoint, retries=again if bulk else False, read=_BULK_READ if bulk else http.READ
            )
        return self._pools[bulk]

    def ask(
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
        """One request; the answer, read as a whole unless it is to be streamed.

        Args:
            method: of HTTP.
            key: of the object, below the store's root; None for the bucket.
            what: it is to do, for messages.
            fine: statuses that the caller expects, beside success.
            query, headers, body: of the request.
            bulk: whether it is about a file, and may be sent again.
            stream: whether the caller reads the body.

        Raises:
            StoreUnreachable, Denied, ConfigurationError: as `ObjectStore` says.

        """
        self.requests["LIST" if key is None and method == "GET" else method] += 1
        for last in (False, True):
            keys, ahead = self.keys.retrieve(), self._ahead
            try:
                answer = self._send(keys, method, key, query or {}, headers or {}, body, bulk=bulk, stream=stream)
                code = "" if answer.status in _DONE else _code(answer, stream=stream)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self.interruptions += 1
                raise unreachable(self.address, error) from None
            if answer.status in _DONE:
                self.known = True
                return answer
            if answer.status in fine and code != "NoSuchBucket":
                return answer
            if not last and self._amended(code, keys, ahead):
                self.requests[method] += 1
                continue
            self.interruptions += code == "NoSuchBucket" or (answer.status in AWAY and code != "SlowDown")
            conditional = "If-None-Match" in (headers or {})
            raise refusal(self.address, answer.status, code, what, conditional=conditional, known=self.known)
        raise AssertionError("unreachable")

    def _send(
        self,
        keys: Keys,
        method: str,
        key: str | None,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
        *,
        bulk: bool,
        stream: bool,
    ) -> Any:
        address, server = self.address, urlsplit(self.address.endpoint)
        host = f"{address.bucket}.{server.netloc}" if address.virtual else server.netloc
        path = [] if address.virtual else [address.bucket]
        path += [] if key is None else [quote(address.root + key)]
        options = urlencode(sorted(query.items()), quote_via=quote, safe="")
        url = server._replace(netloc=host, path="/" + "/".join(path), query=options)
        when = datetime.datetime.fromtimestamp(time.time() + self._ahead, datetime.UTC)
        digest = hashlib.sha256(body).hexdigest()
        said: dict[str, str | list[str] | tuple[str]] = {
            **headers,
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
        # redirects are not followed: a session's token would go along to whatever host the answer names
        answer = self.pool(bulk=bulk).urlopen(
            method, url.geturl(), redirect=False, body=body, headers=signed, preload_content=not stream
        )
        date = http.parse_date(answer.headers.get("Date"))
        if date is not None:
            self.heard = date - time.time()
        return answer

    def _amended(self, code: str, keys: Keys, ahead: float) -> bool:
        """Whether a request that was signed with these keys and this time would be signed otherwise now.

        Of several that are under way each is refused; the first of them to come back amends for all.
        """
        if code in RUN_OUT:
            return self.keys.renew(keys)
        if code in CLOCK and ahead == self._ahead and abs((self.heard or 0.0) - ahead) > _SKEW:
            self._ahead = self.heard or 0.0
        return code in CLOCK and ahead != self._ahead

    def after_fork(self) -> None:
        """Forget connections, which are the parent's."""
        _abandoned.extend([self._pools, self.keys])
        self._pools = {}
        self.keys = self.keys.copy(clock=self.now)

    def close(self) -> None:
        """Close connections; they are made again when needed."""
        self._pools = {}


def _code(answer: Any, *, stream: bool) -> str:
    """The code in the body of a refusal; empty if there is none, as in a proxy's page of HTML."""
    data = answer.read(_ERROR) if stream else answer.data
    answer.release_conn()
    found = _CODE.search(data or b"")
    return found[1].decode(errors="replace") if found else ""
