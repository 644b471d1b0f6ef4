"""What Postgres and libpq say, as errors of ours: whether to come again, and what to do.

A statement's error has a code. A refused connection has none, only the server's sentence, so it is known by its words;
a sentence that is not known (another language) is taken for trouble that may pass.
"""

from __future__ import annotations

import re
from typing import Final

from hopaas_p2p.errors import ConfigurationError, Denied, HopaasError, StoreCorrupt, StoreUnreachable, StudyDeleted
from hopaas_p2p.stores.postgres.watch import SILENCE

SCHEMA_VERSION: Final = 2
"""What this code needs; see schema.sql."""

ASK_FOR_ANOTHER: Final = (
    "Ask an administrator of the store for a new one (hopaas-p2p token create), and name its file in HOPAAS_TOKEN_FILE"
)
"""What somebody does whose token is not good."""

READ_ONLY: Final = "25006"
_NOT_ALLOWED: Final = "ZH401"
LOGIN_ENDED: Final = "ZH403"
"""The session goes on, and may no longer be used; another login may come in."""
NO_SCHEMA: Final = frozenset({"3F000", "42883", "42P01"})
"""No such schema, function or table: `hopaas-p2p init` was not run, or by another version."""

_FOR_GOOD: Final = frozenset({"22", "23", "42"})
"""Classes of errors that say the same however often one asks: data, a constraint, a statement."""

_OURS: Final[dict[str, type[HopaasError]]] = {
    LOGIN_ENDED: Denied,
    "ZH404": ConfigurationError,
    "ZH409": StoreCorrupt,
    "ZH410": StudyDeleted,
    "ZH412": ConfigurationError,
    "ZH413": ConfigurationError,
}
_ADVICE: Final = {
    LOGIN_ENDED: ASK_FOR_ANOTHER,
    "ZH404": "Who there is, an administrator lists with: hopaas-p2p user list",
    "ZH409": "Was an older backup of the database restored, or a standby promoted that lagged behind? "
    "Start this program anew to go on with what the server has.",
    "ZH410": "Its peers may stop.",
    "ZH413": "Give large files a place of their own, that all peers reach: "
    "HOPAAS_ARTIFACTS=/shared/directory, or s3://bucket/prefix?endpoint=…",
    "ZH412": "Ask the administrator to mend it, e.g. with: ALTER DATABASE … SET synchronous_commit = on",
}
_PASSING: Final = {
    "53100": "the server's disk is full; nothing was stored, and it is sent again",
    "53200": "the server is out of memory",
    "53300": "the server has no free connection",
    "57014": "the server stopped the statement: it took longer than statement_timeout",
    "55P03": "the study was locked for too long by somebody else",
    "57P01": "the server closed the connection: it is shutting down, or the administrator did it",
    "57P02": "the server crashed and is coming back",
    "57P03": "the server is starting or stopping",
}

_OWN_SOCKET: Final = re.compile(r'connection to server on socket "[^"]*/hopaas-[^"]*" failed:\s*')
"""Where libpq met our tunnel's end: nothing that anybody could look at."""
_REFUSALS: Final = (
    # words of libpq or of the server when it lets nobody in; what to do
    (
        r"password authentication failed|authentication failed for user",
        Denied,
        f"the token or password is wrong, expired or revoked. {ASK_FOR_ANOTHER}",
    ),
    (
        r"no password supplied|fe_sendauth",
        Denied,
        "no token or password was given. Set HOPAAS_TOKEN_FILE, HOPAAS_TOKEN or PGPASSFILE",
    ),
    (r"is not permitted to log in", Denied, f"this token was revoked. {ASK_FOR_ANOTHER}"),
    (r'role "[^"]*" does not exist', Denied, "there is no such user or token. Check the user in the URL"),
    (r"no pg_hba\.conf entry", Denied, "the server lets nobody in from here under that name, or only with TLS"),
    (r"permission denied for database", Denied, "this user may not use that database"),
    (r'database "[^"]*" does not exist', ConfigurationError, "check the name in the URL, or create it: createdb"),
    (r"leads to another database", ConfigurationError, "correct the name at the end of the URL"),
    (
        r"certificate verify failed|root certificate|server certificate for",
        ConfigurationError,
        "the server's certificate is not one to trust; hopaas-p2p doctor says why, HOPAAS_CA_FILE adds an authority",
    ),
    (
        r"server does not support SSL",
        ConfigurationError,
        "the server speaks no TLS, and it is not on this machine. Switch ssl on there, or tunnel to it",
    ),
    (r"session is read-only|is in hot standby|server is in recovery|not accept.*read-write", None, ""),
    (
        r'too many connections for role "[^"]*"',
        StoreUnreachable,
        "the token is in use by as many processes as it may be; an administrator makes more: hopaas-p2p token create",
    ),
)


def refusal(text: str) -> HopaasError:
    """The error for a connection that was not made."""
    line = _one_line(_OWN_SOCKET.sub("", text))
    for pattern, kind, advice in _REFUSALS:
        if kind is not None and re.search(pattern, text, re.IGNORECASE):
            return kind(f"{line}: {advice}.")
    return StoreUnreachable(f"{line}. Nothing acknowledged is lost; hopaas-p2p doctor looks step by step.")


def failure(code: str | None, text: str) -> HopaasError:
    """The error for a statement that failed."""
    line = _one_line(text)
    if code == _NOT_ALLOWED:
        last_owner = "the only owner" in line
        who = "With" if last_owner else "Ask an owner of the study for a grant"
        least = "owner" if last_owner or "takes an owner" in line else "worker"
        return Denied(f"{line}. {who}: hopaas-p2p grant STUDY USER {least}")
    if code in _OURS:
        return _OURS[code](f"{line}. {_ADVICE[code]}")
    if code == "42501":
        if "schema hopaas" in line:
            return Denied(f"{line}. Ask an administrator for access: hopaas-p2p user add")
        return Denied(f"that is for administrators: use the login that ran hopaas-p2p init ({line})")
    if (code or "")[:2] in _FOR_GOOD:
        return ConfigurationError(f"the server does not take this: {line}")
    reason = _PASSING.get(code or "")
    return StoreUnreachable(f"{reason} ({line})" if reason else f"{line}. Nothing acknowledged is lost.")


def silent() -> StoreUnreachable:
    """The error for a connection that was given up because nothing came."""
    return StoreUnreachable(
        f"the server, or the way to it, hangs: not a byte came for {SILENCE:.0f} s. Nothing acknowledged is lost."
    )


def wrong_schema(installed: int | None) -> ConfigurationError:
    """The error for a database whose schema is missing or older."""
    if installed is None:
        return ConfigurationError("this database holds no store yet. Its owner makes one with: hopaas-p2p init URL")
    return ConfigurationError(
        f"the store's schema is of version {installed}, and this program needs {SCHEMA_VERSION}. "
        "Its owner brings it up to date with: hopaas-p2p init URL"
    )


def _one_line(text: str) -> str:
    """The sentence of an error, without where in the source it came from."""
    lines = [line.strip() for line in text.strip().splitlines()]
    kept = [line for line in lines if line and not line.startswith(("CONTEXT:", "PL/pgSQL", "LINE ", "^"))]
    return re.sub(r"\s+", " ", kept[0] if kept else "the server gave no reason").rstrip(".")
