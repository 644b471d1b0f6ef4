"""What a person may do here. Grants decide, where the store has them; the store itself has the last word on what the
dashboard's own token may do.

Without sign-in everybody who reaches the dashboard is the one whose token it uses. With sign-in, the claim of the
provider that HOPAAS_OIDC_CLAIM names (`preferred_username` if nothing is said) is the name of a user of the store, and
the grants of that user count. A directory or a bucket has no grants: there, the people named in HOPAAS_DASHBOARD_OWNERS
own every study, and others view.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Final, Literal

from dashboard_app.feed import Feed
from dashboard_app.options import Options
from hopaas_p2p.errors import HopaasError

Role = Literal["none", "viewer", "worker", "owner"]

_ROLES: Final[dict[str, Role]] = {"viewer": "viewer", "worker": "worker", "owner": "owner"}
_KEPT: Final = 20.0  # seconds after which a grant that was taken away is felt
_grants: Final[dict[tuple[str, str], tuple[float, dict[str, Role]]]] = {}
_lock: Final = threading.Lock()


def person(claims: dict[str, Any]) -> str:
    """The name of a signed-in person; empty if the provider does not say it."""
    claim = os.environ.get("HOPAAS_OIDC_CLAIM") or "preferred_username"
    return str(claims.get(claim) or "")


def may_administer(told: Options, name: str) -> bool:
    """Whether this person may use the dashboard's own rights over users, tokens and grants.

    Without sign-in, whoever may act; with it, those whom HOPAAS_DASHBOARD_ADMINS names, with commas between.
    """
    if not told.actions:
        return False
    return told.auth == "none" or (bool(name) and name in _named("HOPAAS_DASHBOARD_ADMINS"))


def _named(variable: str) -> set[str]:
    return {one.strip() for one in os.environ.get(variable, "").split(",")} - {""}


def role_of(feed: Feed, uuid: str, told: Options, name: str) -> Role:
    """What this person may do in this study. "none": not even know of it.

    May ask the store, at most every twenty seconds a study; while that does not answer, nobody may do anything new.
    """
    if told.auth == "none":
        return "owner"
    if not name:
        return "none"
    if not hasattr(feed.store, "call"):
        return "owner" if name in _named("HOPAAS_DASHBOARD_OWNERS") else "viewer"
    return _granted(feed, uuid).get(name, "none")


def _granted(feed: Feed, uuid: str) -> dict[str, Role]:
    key, now = (feed.url, uuid), time.monotonic()
    with _lock:
        until, known = _grants.get(key, (0.0, {}))
    if now < until:
        return known
    try:
        rows = feed.store.call("grants", log=uuid)  # type: ignore[attr-defined]  # only a Postgres store has it
        known = {str(user): _ROLES[role] for user, role, *_ in rows if role in _ROLES}
    except HopaasError:
        known = {}
    with _lock:
        _grants[key] = (now + _KEPT, known)
    return known
