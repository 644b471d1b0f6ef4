"""Users, tokens and grants of a Postgres store: all of them native roles of the server.

A user is a role that nobody logs in as. A token is a login role, member of its user's, with an expiry, a limit of
connections and time-outs; its secret is made here, shown once, and kept by nobody (the server gets a SCRAM verifier).
A grant lets a user view a study, work in it, or own it. Users and tokens are made by administrators, who are members
of the role that owns the schema; grants are given by a study's owners.
"""

from hopaas_p2p.access.administration import initialise
from hopaas_p2p.access.study_grants import ROLES, Grant, grant, grants, revoke
from hopaas_p2p.access.token_roles import CONNECTIONS, VALIDITIES, NewToken, Token, create_token, revoke_token, tokens
from hopaas_p2p.access.user_roles import User, add_user, remove_user, users

__all__ = [
    "CONNECTIONS",
    "ROLES",
    "VALIDITIES",
    "Grant",
    "NewToken",
    "Token",
    "User",
    "add_user",
    "create_token",
    "grant",
    "grants",
    "initialise",
    "remove_user",
    "revoke",
    "revoke_token",
    "tokens",
    "users",
]
