"""The rights of users in a directory or bucket that is served: users, tokens, grants, and the check of each request.

Users, tokens and grants are kept in a separate log of the store, which is also the audit log. Only servers, and people
who may access the store itself, read and write that log. In Postgres, the database keeps and enforces the same rights,
and the same table of test cases checks both. **These rights bind users who connect through a server, not those who can
write to the store itself.**

A user may own, work in or view a study. A guest was invited to one study, and gets a grant for no other. An owner of
the catalog is an administrator. A token is a name and a secret of 256 bits; the log holds only a hash of the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
import zlib
from collections.abc import Callable
from typing import Annotated, Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Struct

from hopaas_p2p.core import codec
from hopaas_p2p.core.catalog import RESERVED
from hopaas_p2p.core.names import valid_name
from hopaas_p2p.core.records import FORMAT, Stamp
from hopaas_p2p.errors import GUEST, Denied, InvalidInput
from hopaas_p2p.remote.protocol import CATALOG, Name, StoreRequest
from hopaas_p2p.runtime.settings import Secret
from hopaas_p2p.stores.base import ExchangeResult, Outgoing, Store, append

LOG: Final = "access"
ROLES: Final = ("viewer", "worker", "owner")
_YEAR_9999: Final = 253_370_764_800
_LIST: Final = "list them with: hopaas-p2p admin user list"
_Called = Annotated[str, Meta(max_length=64, pattern=r"\A[A-Za-z0-9._-]+\Z")]


# These types bound what an administrator may write through a server, because others list the content.


class UserSet(Struct, array_like=True, frozen=True, tag="user"):
    """Adds or removes this user."""

    name: _Called
    guest_of: str = ""
    """The uuid of the one study that a guest may take part in; empty for other users."""
    gone: bool = False


class TokenSet(Struct, array_like=True, frozen=True, tag="token"):
    """Adds or removes this token."""

    name: _Called
    user: str = ""
    digest: bytes = b""
    """The hash of the token's secret."""
    expires: Annotated[int, Meta(ge=0, lt=_YEAR_9999)] = 0
    """Seconds since 1970, by the server's clock."""
    label: Annotated[str, Meta(max_length=1000)] = ""
    gone: bool = False


class GrantSet(Struct, array_like=True, frozen=True, tag="grant"):
    """The role of a user in a log; an empty role revokes the grant."""

    log: Name
    user: _Called
    role: Annotated[str, Meta(pattern=r"\A(viewer|worker|owner|)\Z")] = ""


Change = UserSet | TokenSet | GrantSet
What = TypeVar("What", bound=Change)


class _Commit(Struct, array_like=True, frozen=True):
    """A commit of this log, in the form of a store's other commits, so that it can be stored and found like them."""

    format: int
    writer: str
    seq: int
    by: str
    at: Annotated[int, Meta(ge=0, lt=_YEAR_9999 * 1_000_000)]
    """Microseconds since 1970."""
    changes: list[Change]


_decode: Final = msgspec.msgpack.Decoder(_Commit).decode


class Known(NamedTuple, Generic[What]):
    """A user, a token or a grant, with the time and the author of the change."""

    what: What
    at: int
    by: str


class Roles:
    """The users, tokens and grants after commits 1..lsn of the log."""

    def __init__(self) -> None:
        self.lsn = 0
        self.users: dict[str, Known[UserSet]] = {}
        self.tokens: dict[str, Known[TokenSet]] = {}
        self.grants: dict[str, dict[str, Known[GrantSet]]] = {}
        """Study's uuid, or the catalog -> user -> grant."""

    def apply(self, lsn: int, payload: bytes, author: str = "") -> str | None:
        """Apply a commit. Returns why one of its changes was refused, or None. Never raises because of its content.

        `author` is the commit's author, if it came through a server.
        """
        self.lsn = lsn
        try:
            commit = _decode(payload[4:])
        except (msgspec.MsgspecError, RecursionError):
            return "malformed"
        verdicts = [self._apply(one, commit.at, author or commit.by) for one in commit.changes]
        return next((why for why in verdicts if why is not None), None)

    def _apply(self, change: Change, at: int, by: str) -> str | None:
        if isinstance(change, UserSet):
            if not change.gone:
                if change.name in self.users:
                    return f"{change.name!r} already exists in this store"
                self.users[change.name] = Known(change, at, by)
                return None
            self.tokens = {name: one for name, one in self.tokens.items() if one.what.user != change.name}
            for grants in self.grants.values():
                grants.pop(change.name, None)
            return None if self.users.pop(change.name, None) else f"there is no user {change.name!r}; {_LIST}"
        if isinstance(change, TokenSet) and change.gone:
            return None if self.tokens.pop(change.name, None) else f"there is no token {change.name!r}"
        if change.user not in self.users:
            return f"there is no user {change.user!r}; {_LIST}"
        if isinstance(change, TokenSet):
            self.tokens[change.name] = Known(change, at, by)
            return None
        there = self.grants.get(change.log, {})
        guest_of = self.guest_of(change.user)
        if guest_of and guest_of != change.log and change.role:
            return f"user {change.user} {GUEST}"
        owners = {user for user in there if self.role(user, change.log) == "owner"}
        if owners == {change.user} and change.role != "owner" and change.log != CATALOG:
            return f"{change.user} is the only owner of this study; make somebody else an owner first"
        if not change.role and change.user not in there:
            return f"user {change.user} has no grant for this study"
        self.grants.setdefault(change.log, {})[change.user] = Known(change, at, by)
        if not change.role:
            del self.grants[change.log][change.user]
        return None

    def guest_of(self, user: str) -> str:
        """The one study that this user may take part in; empty for other users."""
        found = self.users.get(user)
        return "" if found is None else found.what.guest_of

    def role(self, user: str, log: str) -> str | None:
        """The user's role in a log by its grants alone; None without a grant."""
        found = self.grants.get(log, {}).get(user)
        return None if found is None else found.what.role

    def token(self, name: str, secret: str) -> TokenSet | None:
        """The token of this name and secret, expired or not; None if there is none."""
        found = self.tokens.get(name)
        right = hmac.compare_digest(digest(secret), b"" if found is None else found.what.digest)
        return found.what if found is not None and right else None


def digest(secret: str) -> bytes:
    """The stored hash of a secret. A secret has 256 random bits, so it cannot be found by trying."""
    return hashlib.sha256(secret.encode()).digest()


# --- judging requests ---


def is_study(log: str) -> bool:
    """Whether this is a valid uuid of a study."""
    return valid_name(log) and log not in RESERVED


def role_in(roles: Roles, user: str, log: str) -> str | None:
    """The user's role in a log: owner, worker, viewer, or None. All users except guests may write to the catalog."""
    role = roles.role(user, log)
    if role == "owner" or roles.role(user, CATALOG) == "owner":
        return "owner"
    if role is None and log == CATALOG:
        return "viewer" if roles.guest_of(user) else "worker"
    return role


def judge(roles: Roles, user: str, request: StoreRequest, *, exists: bool) -> Stamp:
    """The stamp by which the server vouches for this request, if the user may make it.

    Args:
        roles: users, tokens and grants.
        user: who makes the request.
        request: the request.
        exists: whether its log has any commits. The first user to write to an empty log owns it.

    Raises:
        Denied: the user may not make this request; the message names the required role.

    """
    log, outgoing = request.log, request.commit
    if log is None:
        return Stamp(user, "worker")
    if log != CATALOG and not is_study(log):
        raise Denied("only an administrator may manage users" if log == LOG else f"{log!r} is not a study's uuid")
    role = role_in(roles, user, log)
    if role is None and not exists and not roles.grants.get(log):
        if roles.guest_of(user):
            raise Denied(f"user {user} {GUEST}")
        role = "viewer" if outgoing is None else "owner"  # nothing precedes the first commit of a log
    if role is None:
        raise Denied(f"user {user} has no grant for this study. {_ASK}")
    least = request.kind.least
    if outgoing is not None:
        least = "worker"
        if log == CATALOG and role != "owner" and outgoing.about and role_in(roles, user, outgoing.about) == "owner":
            role = f"owner:{outgoing.about}"
    rank = ROLES.index(role.partition(":")[0])
    if rank < ROLES.index(least):
        if log == CATALOG and roles.guest_of(user):
            raise Denied(f"user {user} {GUEST}")
        article = "an" if least == "owner" else "at least a"
        raise Denied(f"user {user} is only a {role} of this study, and this takes {article} {least}. {_ASK}")
    if log == CATALOG and request.kind.of == "files" and role != "owner":
        raise Denied(f"user {user} may not store files outside of studies")
    return Stamp(user, role)


_ASK: Final = "Ask an owner of the study for a grant: hopaas-p2p admin grant STUDY USER worker"


# --- the log ---


class AccessList:
    """A store's users, tokens and grants, as far as they have been read. Any thread may call its methods."""

    def __init__(self, store: Store, *, now: Callable[[], float] = time.time) -> None:
        self.roles = Roles()
        self.store = store
        self._log = store.log(LOG)
        self._freshness = store.freshness
        self._now = now
        self._read_at = float("-inf")
        self._lock = threading.Lock()

    def read(self) -> Roles:
        """All users, tokens and grants, as of now or at most the store's `freshness` ago."""
        with self._lock:
            if time.monotonic() - self._read_at < self._freshness:
                return self.roles
            more = self._log.changed(self.roles.lsn) is not False
            while more:
                found = self._log.exchange(None, self.roles.lsn)
                for entry in found.entries:
                    self.roles.apply(entry.lsn, entry.payload, entry.stamp.author)
                more = found.more
            self._read_at = time.monotonic()
            return self.roles

    def exchange(self, outgoing: Outgoing | None, since: int) -> ExchangeResult:
        """An exchange with this log, by an administrator who connects through a server."""
        with self._lock:
            self._read_at = float("-inf")
            return self._log.exchange(outgoing, since)

    def sum_at(self, lsn: int) -> int | None:
        """The sum of this log up to a commit, or None; see `Log.sum_at`."""
        with self._lock:
            return self._log.sum_at(lsn)

    def token(self, name: str, secret: Secret) -> TokenSet | None:
        """The token of this name and secret, as last read; None if there is none, or if it has expired."""
        found = self.roles.token(name, secret.reveal())
        return None if found is None or found.expires <= self._now() else found

    def change(self, *changes: Change, by: str = "") -> None:
        """Write these changes in one commit.

        Raises:
            InvalidInput: one of the changes is refused; the message gives the reason. The others are in effect.

        """
        writer = secrets.token_urlsafe(12)
        body = msgspec.msgpack.encode(_Commit(FORMAT, writer, 1, by, int(self._now() * 1e6), list(changes)))
        payload = zlib.crc32(body).to_bytes(4, "little") + body
        assert codec.nonce_of(payload) == f"{writer}:1"
        with self._lock:
            entries = append(self._log, Outgoing(f"{writer}:1", payload), self.roles.lsn)
            verdicts = {one.payload: self.roles.apply(one.lsn, one.payload, one.stamp.author) for one in entries}
        if (refused := verdicts[payload]) is not None:
            raise InvalidInput(refused)
