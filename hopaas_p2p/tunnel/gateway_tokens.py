"""Is this token good? Asked of Postgres by logging in with it, and remembered for a while.

Postgres is the one judge, so an expiry, a revocation or a changed password needs no second list here. A good verdict
holds for `every` seconds, a bad one for ten. Who comes at once with the same token costs one login, and only so many
logins are under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from hopaas_p2p.errors import Denied, HopaasError, StoreUnreachable
from hopaas_p2p.settings import Secret
from hopaas_p2p.stores.postgres.errors import refusal
from hopaas_p2p.tunnel.gateway_guesses import Guesses, TooMany
from hopaas_p2p.tunnel.gateway_postgres import Target

EVERY: Final = 30.0
"""Seconds after which a token is asked about again."""
_REFUSED_FOR: Final = 10.0  # seconds
_LOGINS: Final = 4  # under way at once
_QUEUE: Final = 64  # more who wait are sent away
_REMEMBERED: Final = 4096
_CONNECT: Final = "5"  # seconds
_FULL: Final = "too many connections for role"


class Verdict(NamedTuple):
    """What Postgres says of a token."""

    good: bool
    until: float | None = None
    """When it ends, by this machine's monotonic clock."""
    expires: str | None = None
    """The same for people, in ISO 8601."""


class _Known:
    def __init__(self, verdict: Verdict, asked: float) -> None:
        self.verdict, self.asked = verdict, asked

    def holds(self, every: float) -> bool:
        """Whether it need not be asked about again."""
        now = time.monotonic()
        over = self.verdict.until is not None and now >= self.verdict.until
        return not over and now - self.asked < (every if self.verdict.good else _REFUSED_FOR)


class Tokens:
    """The verdicts of one gateway. Used from its event loop only.

    Args:
        target: the database.
        every: seconds for which a good verdict holds.
        judge: what asks Postgres, in a thread; for tests.

    """

    def __init__(
        self, target: Target, *, every: float = EVERY, judge: Callable[[Target, str, Secret], Verdict] | None = None
    ) -> None:
        self._target, self.every = target, every
        self._judge = judge or log_in
        self._salt = secrets.token_bytes(16)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Future[Verdict]] = {}
        self._guesses = Guesses()
        self._pool = ThreadPoolExecutor(_LOGINS, thread_name_prefix="hopaas-token")
        self.asked = 0
        """Logins at Postgres so far."""
        self.reachable = True
        """Whether Postgres answered the last of them."""

    async def verdict(self, role: str, secret: Secret, *, address: str = "", fresh: bool = False) -> Verdict:
        """What is known of a token, or what Postgres says of it now.

        Args:
            role, secret: the token.
            address: who asks; counted when the token is wrong.
            fresh: whether to ask in any case.

        Raises:
            TooMany: not now.
            StoreUnreachable: Postgres does not answer.

        """
        key = hashlib.blake2b(f"{role}\0{secret.reveal()}".encode(), key=self._salt).digest()
        known = self._known.get(key)
        if known is not None and not fresh and known.holds(self.every):
            return known.verdict
        trusted = fresh or (known is not None and known.verdict.good)
        asking = self._asking.get(key)
        if asking is None:
            if not trusted:
                self._guesses.check(address)
            if len(self._asking) >= _QUEUE and not fresh:
                raise TooMany(1.0, guessing=False)
            asking = self._asking[key] = asyncio.ensure_future(self._ask(key, role, secret))
            asking.add_done_callback(lambda done: self._asked(key, done, None if trusted else address))
        return await asyncio.shield(asking)

    def _asked(self, key: bytes, done: asyncio.Future[Verdict], guesser: str | None) -> None:
        self._asking.pop(key, None)
        if done.cancelled() or done.exception() is not None:
            return  # whoever waits for it has the error; and if nobody does any more, so be it
        if guesser is not None and not done.result().good:
            self._guesses.note(guesser)

    async def _ask(self, key: bytes, role: str, secret: Secret) -> Verdict:
        self.asked += 1
        loop = asyncio.get_running_loop()
        try:
            verdict = await loop.run_in_executor(self._pool, self._judge, self._target, role, secret)
        except StoreUnreachable:
            self.reachable = False
            raise
        self.reachable = True
        self._known[key] = _Known(verdict, time.monotonic())
        self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return verdict

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def log_in(target: Target, role: str, secret: Secret) -> Verdict:
    """Ask Postgres, by a login that ends at once. Blocks.

    Raises:
        StoreUnreachable: it does not answer, or not sensibly.

    """
    import psycopg2

    try:
        connection = psycopg2.connect(
            **target.libpq(),
            user=role,
            password=secret.reveal(),
            application_name="hopaas-p2p gateway",
            connect_timeout=_CONNECT,
            keepalives_idle=5,
            keepalives_interval=5,
            keepalives_count=2,
            tcp_user_timeout=10_000,
            gssencmode="disable",
        )
    except (psycopg2.OperationalError, UnicodeError) as error:
        return _refused(str(error))
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT rolsuper OR rolreplication, extract(epoch FROM until - now())::float, "
                """to_char(until AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') """
                "FROM pg_roles, nullif(rolvaliduntil, 'infinity') AS until WHERE rolname = session_user"
            )
            row = cursor.fetchone()
    except psycopg2.Error as error:
        raise StoreUnreachable(str(error)) from None
    finally:
        connection.close()
    almighty, seconds, expires = row if row is not None else (True, None, None)
    if almighty:  # can run programs on the database's host: not from the Internet
        return Verdict(good=False)
    return Verdict(good=True, until=None if seconds is None else time.monotonic() + seconds, expires=expires)


def _refused(text: str) -> Verdict:
    if _FULL in text:  # which Postgres says only to who has shown the right secret
        return Verdict(good=True)
    error: HopaasError = refusal(text)
    if isinstance(error, Denied):
        return Verdict(good=False)
    raise StoreUnreachable(str(error))
