"""A person's rights in a study, which follow from the store's grants, if it has any. The store itself checks only the
dashboard's own token.

Without sign-in, everyone who has the key acts as the user whose token the dashboard has, with that user's grants. With
sign-in, the provider's claim that HOPAAS_OIDC_CLAIM names (see `sign_in.py`) gives the name of a user of the store, and
that user's grants apply. A directory or a bucket has no grants. There, the people named in HOPAAS_DASHBOARD_OWNERS are
owners of every study, and all others are viewers.
"""

from __future__ import annotations

import os
from typing import Final, Literal

import streamlit as st

from dashboard_app.options import DashboardOptions
from dashboard_app.replica_cache import ReplicaCache
from hopaas_p2p.core.names import user_of
from hopaas_p2p.errors import HopaasError
from hopaas_p2p.remote.access import ROLES

Role = Literal["none", "viewer", "worker", "owner"]

_KEPT: Final = 20.0  # the most seconds until a revoked grant takes effect


def named(variable: str) -> set[str]:
    """The people that an environment variable names, separated by commas."""
    return {one.strip() for one in os.environ.get(variable, "").split(",")} - {""}


def role_of(cache: ReplicaCache, uuid: str, opts: DashboardOptions, name: str) -> Role:
    """This person's role in this study. With "none", even its existence is hidden.

    The grants of a store with users are read at most every 20 s per study. If they cannot be read, nobody may change
    anything.
    """
    if opts.auth == "none":  # the user whose token the dashboard has; an administrator needs no grant
        address = getattr(cache.store, "address", None)
        if address is None or not hasattr(address, "credentials"):
            return "owner"  # the store has no users
        login, known = str(address.credentials()[0]), grants(cache, uuid)
        if not known:
            return "viewer"  # the store does not answer, or nobody has a grant
        return known.get(login) or known.get(user_of(login)) or "owner"
    if not name:
        return "none"
    if not hasattr(cache.store, "call"):
        return "owner" if name in named("HOPAAS_DASHBOARD_OWNERS") else "viewer"
    return grants(cache, uuid).get(name, "none")


@st.cache_data(ttl=_KEPT, show_spinner=False)
def grants(_cache: ReplicaCache, uuid: str) -> dict[str, Role]:
    """User -> role in this study; empty if nobody has a grant, or the store does not answer."""
    try:
        rows = _cache.store.call("grants", log=uuid)  # type: ignore[attr-defined]  # only a Postgres store has it
    except HopaasError:
        return {}
    return {str(user): role for user, role, *_ in rows if role in ROLES}
