"""Turns errors of Postgres and libpq into ours, which say whether to retry and what to do.

A failed statement has an error code. A refused connection has only a message, which is recognized by its words; an
unrecognized message (in another language) counts as temporary.
"""

from __future__ import annotations

import re
from typing import Final

from hopaas_p2p.errors import (
    ASK_FOR_ANOTHER,
    BrokenChain,
    ConfigurationError,
    Denied,
    HopaasError,
    NewerFormat,
    StoreCorrupt,
    StoreUnreachable,
    StudyDeleted,
)

SCHEMA_VERSION: Final = 10
"""The schema version that this code needs; see schema.sql."""
OLDEST_SCHEMA: Final = 10
"""The oldest schema version that `hopaas-p2p admin init` brings up to date."""

READ_ONLY: Final = "25006"
_NOT_ALLOWED: Final = "ZH401"
LOGIN_ENDED: Final = "ZH403"
"""The session is still open but may no longer be used; another login may work."""
_LOCKED: Final = "55P03"
NO_SCHEMA: Final = frozenset({"3F000", "42883", "42P01"})
"""No such schema, function or table, because `hopaas-p2p admin init` was not run, or was run by another version."""

_FOR_GOOD: Final = frozenset({"22", "23", "42"})
"""Classes of errors that a retry does not fix: data, a constraint, a statement."""

_OLDER: Final = (
    "Perhaps an older backup of the database was restored, or a standby that lagged behind was promoted. This process "
    "writes nothing more to the study. Its last commits are in its spool: hopaas-p2p admin spool list"
)
_OTHER_USER: Final = "Use another user's token; an administrator creates one: hopaas-p2p admin token create USER"
_LARGE: Final = (
    "Keep large files in a separate place that all peers can reach: "
    "HOPAAS_ARTIFACTS=/shared/directory, or s3://bucket/prefix?endpoint=…"
)
_DURABLE: Final = "Ask the administrator to correct that setting, with ALTER DATABASE … SET … or in postgresql.conf"
_OURS: Final[dict[str, tuple[type[HopaasError], str]]] = {
    "ZH402": (Denied, _OTHER_USER),
    LOGIN_ENDED: (Denied, ASK_FOR_ANOTHER),
    "ZH404": (ConfigurationError, "An administrator can list the users: hopaas-p2p admin user list"),
    "ZH405": (Denied, "Set HOPAAS_ARTIFACTS to a directory or a bucket: a database keeps the files of its own studies"),
    "ZH406": (StoreCorrupt, "Nothing was stored. Upload the file again"),
    "ZH409": (BrokenChain, _OLDER),
    "ZH410": (StudyDeleted, "Its peers may stop."),
    "ZH412": (ConfigurationError, _DURABLE),
    "ZH413": (ConfigurationError, _LARGE),
}
"""Code of schema.sql -> our error, and what to do."""

_PASSING: Final = {
    "53100": "the server's disk is full, so nothing was stored; commits are sent again",
    _LOCKED: "another session holds the lock; an owner or administrator ends it with: hopaas-p2p admin unlock STUDY",
}
_REFUSALS: Final[dict[type[HopaasError], dict[str, str]]] = {
    Denied: {
        r"password authentication failed|authentication failed for user": (
            f"the token or password is wrong, expired or revoked. {ASK_FOR_ANOTHER}"
        ),
        r"no password supplied|fe_sendauth": (
            "no token or password was given. Set HOPAAS_TOKEN_FILE, HOPAAS_TOKEN or PGPASSFILE"
        ),
        r"is not permitted to log in": f"this token was revoked. {ASK_FOR_ANOTHER}",
        r'role "[^"]*" does not exist': "there is no such user or token. Check the user in the URL",
        r"no pg_hba\.conf entry": "the server accepts no login from this host, or only with TLS; ask its administrator",
        r"permission denied for database": "this user may not connect to that database; ask its administrator",
    },
    ConfigurationError: {
        r"authentication method requirement": (
            "the server asks for the secret without SCRAM, so it was not sent; use SCRAM, or ?require_auth=password"
        ),
        r'database "[^"]*" does not exist': "check the name in the URL, or create the database: createdb NAME",
        r"certificate verify failed|root certificate|server certificate for": (
            "the server's certificate is not trusted; see hopaas-p2p doctor URL, or set HOPAAS_CA_FILE"
        ),
        r"server does not support SSL": (
            "the server does not offer TLS, and it is not on this machine. Turn ssl on there, or run hopaas-p2p serve "
            "https there"
        ),
    },
    StoreUnreachable: {
        r'too many connections for role "[^"]*"': (
            "the token has no free connection; an administrator creates another: hopaas-p2p admin token create USER"
        )
    },
}
"""Our error -> {words in the message of libpq or the server when a login is refused -> what to do}."""


class Locked(StoreUnreachable):
    """Another session's transaction holds a lock that this call needs."""


def refusal(text: str) -> HopaasError:
    """The error for a connection that could not be made."""
    line = _one_line(text)
    for kind, advices in _REFUSALS.items():
        for pattern, advice in advices.items():
            if re.search(pattern, text, re.IGNORECASE):
                return kind(f"{line}: {advice}.")
    return StoreUnreachable(f"{line}. Nothing acknowledged is lost. To find out why: hopaas-p2p doctor URL")


def failure(code: str | None, text: str) -> HopaasError:
    """The error for a statement that failed."""
    line = _one_line(text)
    if code == _NOT_ALLOWED:
        last_owner = "the only owner" in line
        who = "To do so" if last_owner else "Ask an owner of the study for a grant"
        least = "owner" if last_owner or "takes an owner" in line else "worker"
        return Denied(f"{line}. {who}: hopaas-p2p admin grant STUDY USER {least}")
    if code in _OURS:
        kind, advice = _OURS[code]
        return kind(f"{line}. {advice}")
    if code == "42501":
        if "schema hopaas" in line:
            return Denied(f"{line}. Ask an administrator for access: hopaas-p2p admin user add USER")
        return Denied(f"this needs an administrator: use the login that ran hopaas-p2p admin init ({line})")
    if (code or "")[:2] in _FOR_GOOD:
        return ConfigurationError(f"the server rejected this: {line}")
    reason = _PASSING.get(code or "")
    kind = Locked if code == _LOCKED else StoreUnreachable
    return kind(f"{reason} ({line})" if reason else f"{line}. Nothing acknowledged is lost.")


def wrong_schema(installed: int | None) -> ConfigurationError:
    """The error for a database whose schema is missing, or has a version other than `SCHEMA_VERSION`."""
    if installed is None:
        return ConfigurationError(
            "this database has no store yet. Its owner creates one with: hopaas-p2p admin init URL"
        )
    if installed > SCHEMA_VERSION:
        return NewerFormat()
    cure = "Its owner brings it up to date with: hopaas-p2p admin init URL"
    if installed < OLDEST_SCHEMA:
        cure = (
            "It is from before the first release, and cannot be brought up to date. Export its studies with the "
            "program that created it, and import them into a new database"
        )
    return ConfigurationError(
        f"the store's schema is of version {installed}, and this program needs {SCHEMA_VERSION}. {cure}"
    )


def _one_line(text: str) -> str:
    """The message of an error, without its position in the source."""
    lines = [line.strip() for line in text.strip().splitlines()]
    kept = [line for line in lines if line and not line.startswith(("CONTEXT:", "PL/pgSQL", "LINE ", "^"))]
    return re.sub(r"\s+", " ", kept[0] if kept else "the server gave no reason").rstrip(".")
