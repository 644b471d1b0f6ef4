"""Finds who signed in, and until when, from the provider's claims in a session or in a browser's cookie.

Streamlit keeps the claims in a signed cookie for 30 days and never asks the provider again. This module limits a
sign-in to HOPAAS_DASHBOARD_SIGN_IN seconds (by default twelve hours) after the provider issued it.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from streamlit.auth_util import get_cookie_with_chunks
from streamlit.web.server.server_util import get_cookie_secret
from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

from hopaas_p2p.errors import ConfigurationError
from hopaas_p2p.runtime import credentials

_LASTS: Final = 12 * 3600.0  # seconds; people who leave the organization are locked out the next morning
_CLAIM: Final = "sub"
_VERIFIED: Final = ("email", "phone_number")  # OpenID Connect lets people state these claims themselves
_SECRET: Final = 32  # characters
_LOCAL: Final = re.compile(r"http://(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?(/|$)", re.IGNORECASE)


def claim() -> str:
    """The name of the provider's claim that is used as a person's name."""
    return os.environ.get("HOPAAS_OIDC_CLAIM") or _CLAIM


def person(claims: Mapping[str, Any]) -> str:
    """The name of a signed-in person; empty if the provider does not send it, or has not verified it."""
    value, verified = claims.get(claim()), claims.get(f"{claim()}_verified", claim() not in _VERIFIED)
    return value if isinstance(value, str) and (verified is True or verified == "true") else ""


def shown(name: str) -> str:
    """A person's name for display, with the claim that it comes from."""
    return f"{name} ({claim()})"


def signature(name: str) -> str:
    """A person's name as stored in the log. It has a prefix if it is not from `sub`, because other claims can pass to
    another person.
    """
    return name if claim() == _CLAIM or not name else f"{claim()}:{name}"


def lasts() -> float:
    """Seconds for which a sign-in is valid.

    Raises:
        ConfigurationError: HOPAAS_DASHBOARD_SIGN_IN is not a number of seconds.

    """
    text = os.environ.get("HOPAAS_DASHBOARD_SIGN_IN")
    try:
        seconds = float(text) if text else _LASTS
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise ConfigurationError(f"HOPAAS_DASHBOARD_SIGN_IN={text!r} is not a number of seconds")
    return seconds


def ends(claims: Mapping[str, Any]) -> float:
    """When a sign-in expires, in seconds since 1970; 0 if the provider did not send the time of the sign-in."""
    began = claims.get("iat")
    return float(began) + lasts() if isinstance(began, int | float) and not isinstance(began, bool) else 0.0


def person_of_cookies(cookies: Mapping[str, str], *, now: float) -> str:
    """The person who sent these cookies; empty for a stranger, and after the sign-in has expired."""

    def signed(name: str) -> bytes | None:
        value = cookies.get(name)
        return None if value is None else decode_signed_value(get_cookie_secret(), name, value.encode("latin-1"))

    try:
        claims = json.loads(get_cookie_with_chunks(signed, USER_COOKIE_NAME) or b"{}")
    except (ValueError, UnicodeError):
        return ""
    if not isinstance(claims, dict) or not claims.get("is_logged_in") or now >= ends(claims):
        return ""
    return person(claims)


def provider() -> dict[str, Any]:
    """Streamlit's settings for the provider, from the section [auth] of the file that HOPAAS_OIDC_FILE names.

    Raises:
        ConfigurationError: there is no such section, its secret can be guessed, it names a place without TLS, or
            HOPAAS_DASHBOARD_SIGN_IN is not a number of seconds.

    """
    lasts()
    given = credentials.of_monitor("sign-in")
    try:
        auth = tomllib.loads(given.reveal() if given is not None else "").get("auth")
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"HOPAAS_OIDC_FILE: the file is not TOML: {error}") from None
    if not isinstance(auth, dict) or not auth:
        raise ConfigurationError(
            "--auth oidc needs HOPAAS_OIDC_FILE, the path of a TOML file with a section [auth]: redirect_uri, "
            "cookie_secret, client_id, client_secret and server_metadata_url of your provider"
        )
    if len(str(auth.get("cookie_secret", ""))) < _SECRET:  # anybody who guesses it can sign in as anybody
        raise ConfigurationError(
            f"HOPAAS_OIDC_FILE: cookie_secret has fewer than {_SECRET} characters. Make one: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    insecure = auth.pop("insecure", False) is True
    for section in _sections(auth):
        for name in ("server_metadata_url", "redirect_uri"):
            url, issuer = str(section.get(name, "https:")).lower(), name == "server_metadata_url"
            if not (url.startswith("https:") or _LOCAL.match(url) or (issuer and insecure and url.startswith("http:"))):
                cure = ", or [auth] has insecure = true, with which anybody in between could sign in as anybody"
                raise ConfigurationError(
                    f"HOPAAS_OIDC_FILE: {name} must begin with https:// unless it leads to this machine{cure * issuer}"
                )
    return auth


def _sections(auth: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [auth, *(one for one in auth.values() if isinstance(one, dict))]


def hosts(auth: Mapping[str, Any]) -> list[str]:
    """The hosts that the provider sends people back to, which are names of this server."""
    found = [urlsplit(str(one.get("redirect_uri", ""))).hostname for one in _sections(auth)]
    return [name for name in found if name]
