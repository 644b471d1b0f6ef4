"""Checks tokens by logging in to Postgres, and caches the answers for a while.

There is no second list of tokens here, so an expiry, a revocation or a new password in Postgres suffices. A token found
valid is cached for 30 seconds, an invalid one for ten. Simultaneous requests with the same token share one login, and
the number of concurrent logins is limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable
from hopaas_p2p.remote.rate_limit import RateLimiter, RequestRefused
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.postgres.connect import query
from hopaas_p2p.stores.postgres.store import PostgresStore

_VALID_TTL: Final = 30.0  # seconds after which a valid token is checked with Postgres again
_INVALID_TTL: Final = 10.0  # seconds
_LOGINS: Final = 4  # at once
_QUEUE: Final = 64  # waiting logins; further ones are rejected
_REMEMBERED: Final = 4096
_WHO: Final = (
    "SELECT rolsuper OR rolreplication, extract(epoch FROM until - now())::float "
    "FROM pg_roles, nullif(rolvaliduntil, 'infinity') AS until WHERE rolname = session_user"
)
_ROLES: Final = "SELECT rolname FROM pg_roles WHERE rolcanlogin LIMIT 4096"


class TokenStatus(NamedTuple):
    """Whether a token is valid, according to Postgres or to the list of a directory or bucket."""

    valid: bool
    expires: float | None = None
    """When the token expires, in seconds since 1970 by this machine's clock; None for never."""


class TokenCache:
    """The tokens that one server has checked. Used from its event loop only.

    Args:
        url: the database, without a login.

    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._salt = secrets.token_bytes(16)
        self._known: OrderedDict[bytes, tuple[TokenStatus, float]] = OrderedDict()
        """A token's hash -> its status, and the time of the login."""
        self._checking: dict[bytes, asyncio.Future[TokenStatus]] = {}
        self._limiter = RateLimiter()
        self._pool = ThreadPoolExecutor(_LOGINS, thread_name_prefix="hopaas-token")
        self.logins = 0
        """The number of logins at Postgres so far."""
        self.reachable = True
        """Whether Postgres answered the last login."""

    async def status(self, role: str, secret: Secret, *, address: str = "") -> TokenStatus:
        """The cached status of a token, or its current status in Postgres.

        Args:
            role, secret: the token.
            address: the client's address, which is counted if the token is wrong.

        Raises:
            RequestRefused: the caller must wait.
            StoreUnreachable: Postgres does not answer.

        """
        key = hashlib.blake2b(f"{role}\0{secret.reveal()}".encode(), key=self._salt).digest()
        now = time.monotonic()
        status, checked = self._known.get(key, (None, 0.0))
        if status is not None:
            fresh = now - checked < (_VALID_TTL if status.valid else _INVALID_TTL)
            if fresh and (status.expires is None or time.time() < status.expires):
                return status
        trusted = status is not None and status.valid
        checking = self._checking.get(key)
        if checking is None:
            if not trusted:
                self._limiter.check(address, role)
            if len(self._checking) >= _QUEUE:
                raise RequestRefused(503, 1.0)
            checking = asyncio.ensure_future(self._check(key, role, secret, guess_of=None if trusted else address))
            self._checking[key] = checking
            # an error goes to the callers that still wait for it
            checking.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(checking)

    async def _check(self, key: bytes, role: str, secret: Secret, *, guess_of: str | None) -> TokenStatus:
        """Check the token with Postgres; count a wrong one for the address that guessed it."""
        self.logins += 1
        loop = asyncio.get_running_loop()
        try:
            status, roles = await loop.run_in_executor(self._pool, log_in, self._url, role, secret)
        except StoreUnreachable:
            self.reachable = False
            raise
        finally:
            del self._checking[key]
        self.reachable = True
        if guess_of is not None and not status.valid:
            self._limiter.record_failure(guess_of, role)
        if roles:
            self._limiter.set_roles(roles)
        self._known[key] = (status, time.monotonic())
        self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return status

    def close(self) -> None:
        """Release the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def log_in(url: str, role: str, secret: Secret) -> tuple[TokenStatus, list[str]]:
    """Check a token by a login that ends at once; returns (its status, all roles that may log in). Blocks.

    Raises:
        StoreUnreachable: Postgres does not answer, or its answer is unexpected.

    """
    with contextlib.closing(PostgresStore(url, login=(role, secret))) as store:
        try:
            with store.transaction() as connection:
                ((superuser, seconds),) = query(connection, _WHO)
                roles = [str(name) for (name,) in query(connection, _ROLES)]
        except (Denied, UnicodeError):
            return TokenStatus(valid=False), []
        except HopaasError as error:
            # Postgres reports this only after a correct secret; no caller can choose a name that contains this text
            if f'too many connections for role "{role}"' in str(error):
                return TokenStatus(valid=True), []
            raise StoreUnreachable(str(error)) from None
    if superuser:  # it could run programs on the database's host, which is not allowed over the Internet
        return TokenStatus(valid=False), roles
    return TokenStatus(valid=True, expires=None if seconds is None else time.time() + seconds), roles
