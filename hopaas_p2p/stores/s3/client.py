"""Signed requests by the `minio` SDK, and what the server says to them.

Only this file and `minio` beside it know the SDK. Its public `put_object` cannot send a condition, so requests are made
by the call beneath it, which a contract test watches. Its exceptions are of three kinds, by what the body of an answer
holds: here the status decides.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Final, TypeVar

import urllib3
from minio import Minio
from minio import time as minio_time

from hopaas_p2p.errors import HopaasError, StoreUnreachable
from hopaas_p2p.stores.s3 import http as s3_http
from hopaas_p2p.stores.s3.address import Address
from hopaas_p2p.stores.s3.errors import CLOCK, PASSING, RUN_OUT, Refused, refusal, unreachable
from hopaas_p2p.stores.s3.http import ResponseObserver
from hopaas_p2p.stores.s3.keys import Chain, Keys

T = TypeVar("T")


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


class Signed:
    """Clients for one bucket, made when they are needed, anew after a fork."""

    def __init__(self, address: Address, keys: Chain) -> None:
        self.address = address
        self.observer = ResponseObserver()
        self.known = False
        """Whether the bucket is there, or was."""
        self.keys = keys
        self.keys.clock = self._now
        self._clients: dict[bool, _Client] = {}
        """The one for files, if `bulk`, and the one for all else."""
        self._ahead = datetime.timedelta(0)

    def _now(self) -> float:
        return self.observer.server_now() or minio_time.utcnow().timestamp()

    def after_fork(self) -> None:
        _abandoned.extend([self._clients, self.keys, self.observer])
        self._clients = {}
        self.observer = self.observer.copy()
        self.keys = self.keys.copy(clock=self._now)

    def close(self) -> None:
        self._clients = {}

    def client(self, *, bulk: bool = False) -> _Client:
        """The client, made at first use. The one for files may send a request again, which hurts nobody there."""
        client = self._clients.get(bulk)
        if client is None:
            address = self.address
            secure = address.endpoint.startswith("https://")
            again = urllib3.Retry(
                total=4,
                redirect=False,  # a session's token would go along to whatever host the answer names
                backoff_factor=0.5,
                status_forcelist=sorted(PASSING),
                allowed_methods=None,
            )
            http = s3_http.pool(
                address.endpoint,
                observer=self.observer,
                retries=again if bulk else False,
                read=60.0 if bulk else s3_http.READ,
            )
            client = _Client(
                endpoint=address.endpoint.partition("://")[2],
                secure=secure,
                region=address.region,
                http_client=http,
                credentials=self.keys,
            )
            client.ahead = self._ahead
            if address.virtual:
                client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
            else:
                client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
            self._clients[bulk] = client
        return client

    def refusal(self, refused: Refused, what: str, *, conditional: bool = False) -> HopaasError:
        """An answer that is no success, to the request to do `what`."""
        return refusal(self.address, refused, what, conditional=conditional, known=self.known)

    def ask(
        self, method: str, key: str, *, bulk: bool = False, headers: dict[str, str] | None = None, **kw: Any
    ) -> Any:
        """One request, signed; raises Refused or one of our errors."""
        name = self.address.root + key

        def send() -> Any:
            return self.client(bulk=bulk)._execute(  # type: ignore[no-untyped-call, unused-ignore]
                method, self.address.bucket, name, headers=dict(headers or {}), no_body_trace=True, **kw
            )

        return self.guarded(send)

    def guarded(self, send: Callable[[], T]) -> T:
        """Send; once more with other keys or the server's time, if that is what it was refused for."""
        for last in (False, True):
            keys, ahead = self.keys.retrieve(), self._ahead
            try:
                return self._translated(send)
            except Refused as refused:
                if last or not self._amended(refused, keys, ahead):
                    raise
        raise AssertionError("unreachable")

    def _amended(self, refused: Refused, keys: Keys, ahead: datetime.timedelta) -> bool:
        """Whether a request that was signed with these keys and this time would be signed otherwise now.

        Of several that are under way each is refused; the first of them to come back amends for all.
        """
        if refused.code in RUN_OUT:
            return self.keys.renew(keys)
        if refused.code in CLOCK and ahead != self._ahead:
            return True
        if refused.code in CLOCK and abs(self.observer.ahead - self._ahead.total_seconds()) > 1.0:
            self._ahead = datetime.timedelta(seconds=self.observer.ahead)
            for client in list(self._clients.values()):
                client.ahead = self._ahead
            return True
        return False

    def _translated(self, send: Callable[[], T]) -> T:
        """What the SDK raises, by the status that the server answered with: its exceptions are of three kinds."""
        answer = self.observer.answer
        answer.status, answer.headers = None, {}
        try:
            found = send()
        except HopaasError:
            raise
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self.observer.interruptions += 1
            raise unreachable(self.address, error) from None
        except Exception as error:  # noqa: BLE001  # also what it trips over in a proxy's page of HTML
            status = getattr(getattr(error, "response", None), "status", None) or answer.status  # of a part's thread
            if status is None or status in (200, 204, 206):
                raise StoreUnreachable(
                    f"{self.address.endpoint} sent an answer that is not from S3: {type(error).__name__}"
                ) from None
            refused = Refused(status, str(getattr(error, "code", None) or ""))
            self.observer.interruptions += refused.away
            raise refused from None
        self.known = True
        return found
